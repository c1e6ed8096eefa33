//! The status of a forwarder, as one JSON object.
//!
//! Fields are only ever added: a reader of another version takes what it knows.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Admin;
use crate::announce::announcer::Conflict;
use crate::announce::speaker::PlaceCounts;
use crate::balance::monitor::BalanceStatus;
use crate::config::Config;
use crate::engine::statistics::{NicStatistics, Traffic, WorkerStatistics, XdpGauges};
use crate::forward::applies::{Applies, applies};
use crate::forward::rule::Rule;
use crate::forward::verdict::DropReason;
use crate::forward::view::{NetView, NicId};
use crate::path::watcher::PathCounts;
use crate::wire::ip::Family;

/// Routes and neighbours listed at most; beyond them only the count is told.
const LISTED: usize = 1024;

/// A forwarder, as of one moment. Counts are since its start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of vipa.
    pub version: String,
    /// Name of the virtual adapter.
    pub adapter: String,
    /// Process id of the forwarder, in its own PID namespace.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// It takes leave of its neighbours; `None`: it does not.
    pub withdrawing: Option<WithdrawingStatus>,
    /// The configuration file.
    pub config: String,
    /// Number of the view that the router published last; the first is 1.
    pub generation: u32,
    /// The VIPAs; the first of a family is the default source.
    pub vipas: Vec<String>,
    /// Every `[[nic]]`, in the order of the configuration.
    pub nics: Vec<NicStatus>,
    /// The first 1024 routes.
    pub routes: Vec<RouteStatus>,
    /// How many routes there are.
    pub route_count: usize,
    /// The first 1024 neighbours, by NIC and address.
    pub neighbours: Vec<NeighbourStatus>,
    /// How many neighbours there are.
    pub neighbour_count: usize,
    /// Every `[[source.rule]]`, in order.
    pub rules: Vec<RuleStatus>,
    /// Every worker.
    pub workers: Vec<WorkerStatus>,
    /// The router.
    pub router: RouterStatus,
    /// RIP.
    pub rip: RipStatus,
    /// VIPAs that lie in a NIC's own subnet.
    pub announcements: AnnouncementsStatus,
    /// The next hops that are watched.
    pub paths: PathsStatus,
    /// Services and their servers.
    pub balance: BalanceStatus,
    /// Frames dropped, all workers together: every reason, also those that never occurred.
    pub drops: BTreeMap<String, u64>,
}

/// A forwarder that is told to leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WithdrawingStatus {
    /// Times that the neighbours were told so far.
    pub told: u64,
    /// When it ends.
    pub ends_in_seconds: f64,
}

/// Frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficStatus {
    /// How many; a frame may be a super-packet of up to 64 KB.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One `[[nic]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NicStatus {
    /// Name of the device.
    pub name: String,
    /// `missing`, `down`, `no_carrier`, `no_path`, `held_down` or `live`.
    pub state: String,
    /// May flows be put on it?
    pub is_live: bool,
    /// The kernel's index; 0 while it is missing.
    pub ifindex: u32,
    /// MAC address.
    pub mac: String,
    /// Bytes of its largest packet.
    pub mtu: u32,
    /// Share of flows.
    pub weight: u16,
    /// Only live NICs of the lowest metric carry traffic.
    pub metric: u32,
    /// Its addresses with their prefix lengths.
    pub addresses: Vec<String>,
    /// By the forwarder; what bypasses the adapter is not in it.
    pub sent: TrafficStatus,
    /// Heard by the forwarder: replies to rewritten flows. The kernel takes the rest straight from the NIC.
    pub received: TrafficStatus,
    /// Frames that came for the forwarder and were lost, since too many waited.
    pub lost: u64,
    /// Frames heard that were sent on as a part of the one before (GRO).
    pub merged: u64,
    /// Times that it refused offload.
    pub offload_refused: u64,
    /// Whether XDP hands us small frames for services: `off`, `native`, `generic`, `idle` (nothing is ours alone, or more than can be told
    /// from the rest) or `refused`.
    pub xdp: String,
}

/// A route of the forwarder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteStatus {
    /// What it covers.
    pub prefix: String,
    /// Where to; empty where the kernel's route leaves by a device that is no NIC of vipa.
    pub next_hops: Vec<NextHopStatus>,
}

/// One way to a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NextHopStatus {
    /// Leaves by this NIC.
    pub nic: String,
    /// To this gateway; none: the destination is on the link.
    pub gateway: Option<String>,
}

/// A next hop whose MAC address is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct NeighbourStatus {
    /// Behind this NIC.
    pub nic: String,
    /// Its address.
    pub address: String,
    /// Its MAC address.
    pub mac: String,
}

/// One `[[source.rule]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RuleStatus {
    /// Its line of the configuration.
    pub line: u32,
    /// What it speaks of.
    pub matches: String,
    /// A VIPA, or `physical`.
    #[serde(rename = "use")]
    pub target: String,
    /// `kernel` or `forwarder`.
    pub applied_by: String,
    /// Why so.
    pub because: String,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// Its number, from 0.
    pub worker: u8,
    /// Read from the TUN.
    pub from_tun: TrafficStatus,
    /// Written to the TUN.
    pub to_tun: TrafficStatus,
    /// Flows in its part of the flow table.
    pub flows: u64,
    /// Flows that it ever made.
    pub flows_created: u64,
    /// Those of them that are rewritten.
    pub flows_rewritten: u64,
    /// Flows of services whose client has not answered yet.
    pub flows_half_open: u64,
    /// Services that are flooded with SYNs: of each client's the first is dropped, the next one is taken.
    pub services_flooded: u64,
    /// Flows that had to make room for others.
    pub flows_evicted: u64,
    /// Times that its poll returned.
    pub wakeups: u64,
    /// Frames handed to the worker that owns their flow.
    pub punts: u64,
    /// Frames that waited for a neighbour, a socket, the egress hold or their datagram's first fragment.
    pub waits: u64,
    /// Packets answered with an ICMP error.
    pub answered: u64,
    /// Frames heard on NICs that turned out to be the kernel's.
    pub left_to_kernel: u64,
    /// Frames dropped.
    pub drops: u64,
}

/// The router.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouterStatus {
    /// Views published.
    pub views: u64,
    /// Settings of ours that others removed or changed and that were put back.
    pub repaired: u64,
    /// Full netlink dumps after ENOBUFS.
    pub resyncs: u64,
    /// Requests to the kernel that failed.
    pub kernel_errors: u64,
    /// Flows put into the egress hold's set.
    pub flows_held: u64,
    /// Sockets asked for, since a source rule needed what only they know.
    pub sockets_asked: u64,
    /// Those of them that were not found: rules that need one do not match.
    pub sockets_unknown: u64,
    /// Turns of its loop that came more than 20 ms after they were due.
    pub late: u64,
    /// The longest turn of its loop, in microseconds.
    pub longest_turn_us: u64,
}

/// RIP; all zero where it is not spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RipStatus {
    /// Is there a `[rip]`?
    pub is_spoken: bool,
    /// Messages sent.
    pub sent: u64,
    /// Messages that a NIC did not take.
    pub unsent: u64,
    /// Messages heard.
    pub heard: u64,
    /// Routes learned from neighbours.
    pub learned: u64,
    /// Families whose learned routes are told as unreachable (`advertise = "all"`), since the host no longer forwards.
    pub withheld: Vec<Family>,
    /// The longest time in which news of such routes, once they were being read, reached the workers, in microseconds.
    pub longest_update_us: u64,
    /// What was heard and not taken.
    pub rejected: Vec<RejectedStatus>,
}

/// What a neighbour said that was not taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RejectedStatus {
    /// Who said it.
    pub neighbour: String,
    /// Why it was not taken.
    pub reason: String,
    /// How often.
    pub count: u64,
}

/// What is announced of VIPAs in the NICs' own subnets; empty where none lies in one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AnnouncementsStatus {
    /// Each VIPA on each link.
    pub vipas: Vec<AnnouncementStatus>,
    /// Announcements and questions that a NIC did not take.
    pub unsent: u64,
    /// What was heard and not taken, by reason.
    pub rejected: BTreeMap<String, u64>,
}

/// A VIPA on the link of a NIC in whose subnet it lies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AnnouncementStatus {
    /// The VIPA.
    pub vipa: String,
    /// The subnet.
    pub subnet: String,
    /// The NIC that answers for it; none while no NIC on the link has carrier.
    pub nic: Option<String>,
    /// Times that it was announced.
    pub announced: u64,
    /// Another host that claims it.
    pub conflict: Option<ConflictStatus>,
}

/// Another host claims a VIPA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConflictStatus {
    /// Its MAC address.
    pub mac: String,
    /// Heard by this NIC.
    pub nic: String,
    /// Claims heard.
    pub claims: u64,
    /// Seconds since the first.
    pub seconds: u64,
}

/// The watch over the paths; empty where nothing is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathsStatus {
    /// Each next hop.
    pub next_hops: Vec<PathStatus>,
    /// What was heard and not taken, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Turns of its loop that came more than 20 ms after they were due.
    pub late: u64,
}

/// One next hop that is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathStatus {
    /// Behind this NIC.
    pub nic: String,
    /// Its address.
    pub address: String,
    /// `unknown` (it never answered), `up`, `dead`, or `waking` (it answers again, but not yet over BFD).
    pub state: String,
    /// Times that it died.
    pub deaths: u64,
    /// Questions, or BFD packets, sent.
    pub sent: u64,
    /// Those that the NIC did not take.
    pub unsent: u64,
    /// Answers, or BFD packets, heard.
    pub heard: u64,
    /// Of the last answer; BFD knows none.
    pub round_trip_us: Option<u64>,
}

fn paths(admin: &Admin, view: &NetView) -> PathsStatus {
    let counts = admin.router.paths.load();
    let Some(counts) = counts.as_ref() else { return PathsStatus::default() };
    let one = |path: &PathCounts| PathStatus {
        nic: nic_name(view, path.hop.0),
        address: path.hop.1.to_string(),
        state: path.state.name().to_owned(),
        deaths: path.deaths,
        sent: path.sent,
        unsent: path.unsent,
        heard: path.heard,
        round_trip_us: path.round_trip.and_then(|time| u64::try_from(time.as_micros()).ok()),
    };
    let rejected = counts.rejected.iter().map(|(reason, n)| ((*reason).to_owned(), *n));
    PathsStatus {
        next_hops: counts.paths.iter().map(one).collect(),
        rejected: rejected.collect(),
        late: counts.late,
    }
}

fn announcements(admin: &Admin, view: &NetView) -> AnnouncementsStatus {
    let counts = admin.router.announced.load();
    let Some(counts) = counts.as_ref() else { return AnnouncementsStatus::default() };
    let conflict = |conflict: Conflict| ConflictStatus {
        mac: conflict.mac.to_string(),
        nic: nic_name(view, conflict.nic),
        claims: conflict.claims,
        seconds: conflict.since.elapsed().as_secs(),
    };
    let one = |place: &PlaceCounts| AnnouncementStatus {
        vipa: place.place.0.to_string(),
        subnet: place.place.1.to_string(),
        nic: place.home.map(|nic| nic_name(view, nic)),
        announced: place.announced,
        conflict: place.conflict.map(conflict),
    };
    let rejected = counts.rejected.iter().map(|(reason, n)| ((*reason).to_owned(), *n));
    AnnouncementsStatus {
        vipas: counts.places.iter().map(one).collect(),
        unsent: counts.unsent,
        rejected: rejected.collect(),
    }
}

fn rip(admin: &Admin) -> RipStatus {
    let config = admin.config.load();
    let is_spoken = config.rip.is_some();
    let counts = admin.router.rip.load();
    let Some(counts) = counts.as_ref() else {
        return RipStatus { is_spoken, ..RipStatus::default() };
    };
    let rejected = counts.rejected.iter().map(|(neighbour, reason, count)| RejectedStatus {
        neighbour: neighbour.to_string(),
        reason: (*reason).to_owned(),
        count: *count,
    });
    RipStatus {
        is_spoken,
        sent: counts.sent,
        unsent: counts.unsent,
        heard: counts.heard,
        learned: counts.learned,
        withheld: counts.withheld.clone(),
        longest_update_us: admin.router.longest_update.get(),
        rejected: rejected.collect(),
    }
}

impl Status {
    /// Of the forwarder behind `admin`, now.
    pub fn of(admin: &Admin) -> Status {
        let (view, config) = (admin.cell.load(), admin.config.load());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            adapter: config.adapter.name.clone(),
            pid: std::process::id(),
            uptime_seconds: (admin.started.elapsed().as_millis() as f64) / 1000.0,
            withdrawing: withdrawing(admin),
            config: config.file.display().to_string(),
            generation: view.generation,
            vipas: config.adapter.addresses.iter().map(ToString::to_string).collect(),
            nics: nics(&view, &admin.workers, &admin.router.xdp),
            routes: routes(&view),
            route_count: view.routes.routes().len(),
            neighbours: neighbours(&view),
            neighbour_count: view.neighbours.len(),
            rules: rules(&config),
            workers: (0..)
                .zip(&admin.workers)
                .map(|(number, worker)| of_worker(number, worker))
                .collect(),
            router: RouterStatus {
                views: admin.router.views.get(),
                repaired: admin.router.repaired.get(),
                resyncs: admin.router.resyncs.get(),
                kernel_errors: admin.router.kernel_errors.get(),
                flows_held: admin.router.flows_held.get(),
                sockets_asked: admin.router.sockets_asked.get(),
                sockets_unknown: admin.router.sockets_unknown.get(),
                late: admin.router.late.get(),
                longest_turn_us: admin.router.longest_turn.get(),
            },
            rip: rip(admin),
            announcements: announcements(admin, &view),
            paths: paths(admin, &view),
            balance: admin.balance.report(),
            drops: drops(&admin.workers),
        }
    }
}

fn withdrawing(admin: &Admin) -> Option<WithdrawingStatus> {
    let asked = admin.leave.asked().filter(|asked| asked.is_polite)?;
    let ends_in = asked.end.saturating_duration_since(Instant::now());
    let told = admin.router.farewells.get();
    Some(WithdrawingStatus { told, ends_in_seconds: ends_in.as_secs_f64() })
}

/// Who applies each source rule, and why.
pub fn rules(config: &Config) -> Vec<RuleStatus> {
    let source = &config.source;
    let by = applies(&source.rules, source.is_bound_forwarded);
    let one = |(rule, by): (&Rule, Applies)| RuleStatus {
        line: rule.line,
        matches: rule.to_string(),
        target: rule.target.to_string(),
        applied_by: by.name().to_owned(),
        because: by.reason(rule, &source.rules),
    };
    source.rules.iter().zip(by).map(one).collect()
}

fn nics(
    view: &NetView,
    workers: &[std::sync::Arc<WorkerStatistics>],
    xdp: &XdpGauges,
) -> Vec<NicStatus> {
    let sum = |id: NicId, count: fn(&NicStatistics) -> u64| -> u64 {
        workers.iter().map(|worker| count(worker.nic(id))).sum()
    };
    (0..)
        .map(NicId)
        .zip(&view.nics)
        .filter(|(_, nic)| !nic.is_gone())
        .map(|(id, nic)| NicStatus {
            name: nic.name.clone(),
            state: nic.state.name().to_owned(),
            is_live: nic.is_live,
            ifindex: nic.ifindex,
            mac: nic.mac.to_string(),
            mtu: nic.mtu,
            weight: nic.weight,
            metric: nic.metric,
            addresses: nic.addresses.iter().map(|(a, length)| format!("{a}/{length}")).collect(),
            sent: TrafficStatus {
                frames: sum(id, |nic| nic.sent.frames.get()),
                bytes: sum(id, |nic| nic.sent.bytes.get()),
            },
            received: TrafficStatus {
                frames: sum(id, |nic| nic.received.frames.get()),
                bytes: sum(id, |nic| nic.received.bytes.get()),
            },
            lost: sum(id, |nic| nic.lost.get()),
            merged: sum(id, |nic| nic.merged.get()),
            offload_refused: sum(id, |nic| nic.offload_refused.get()),
            xdp: xdp.get(id).name().to_owned(),
        })
        .collect()
}

fn routes(view: &NetView) -> Vec<RouteStatus> {
    let listed = view.routes.routes().iter().take(LISTED);
    listed
        .map(|route| RouteStatus {
            prefix: route.prefix.to_string(),
            next_hops: route
                .next_hops
                .iter()
                .map(|hop| NextHopStatus {
                    nic: nic_name(view, hop.nic),
                    gateway: hop.gateway.map(|gateway| gateway.to_string()),
                })
                .collect(),
        })
        .collect()
}

fn neighbours(view: &NetView) -> Vec<NeighbourStatus> {
    let mut known: Vec<_> = view.neighbours.iter().collect();
    known.sort_unstable_by_key(|(hop, _)| *hop);
    known
        .into_iter()
        .take(LISTED)
        .map(|((nic, address), mac)| NeighbourStatus {
            nic: nic_name(view, nic),
            address: address.to_string(),
            mac: mac.to_string(),
        })
        .collect()
}

fn nic_name(view: &NetView, id: NicId) -> String {
    view.nics.get(id.index()).map_or_else(String::new, |nic| nic.name.clone())
}

fn of_worker(number: u8, worker: &WorkerStatistics) -> WorkerStatus {
    WorkerStatus {
        worker: number,
        from_tun: of_traffic(&worker.from_tun),
        to_tun: of_traffic(&worker.to_tun),
        flows: worker.flows.get(),
        flows_created: worker.flows_created.get(),
        flows_rewritten: worker.flows_rewritten.get(),
        flows_half_open: worker.flows_half_open.get(),
        services_flooded: worker.services_flooded.get(),
        flows_evicted: worker.flows_evicted.get(),
        wakeups: worker.wakeups.get(),
        punts: worker.punts.get(),
        waits: worker.waits.get(),
        answered: worker.answered.get(),
        left_to_kernel: worker.left_to_kernel.get(),
        drops: worker.drops.iter().map(|count| count.get()).sum(),
    }
}

fn of_traffic(traffic: &Traffic) -> TrafficStatus {
    TrafficStatus { frames: traffic.frames.get(), bytes: traffic.bytes.get() }
}

fn drops(workers: &[std::sync::Arc<WorkerStatistics>]) -> BTreeMap<String, u64> {
    let count =
        |reason: DropReason| workers.iter().map(|worker| worker.dropped(reason).get()).sum();
    DropReason::ALL.iter().map(|reason| (reason.name().to_owned(), count(*reason))).collect()
}
