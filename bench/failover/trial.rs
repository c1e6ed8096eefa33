//! One round: a network of its own, the router long up, the subject started, then a cable pulled and a path that dies.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vipa::lab::topology::{Network, vipas};
use vipa::wire::ip::Family;

use crate::Error;
use crate::daemon::{Daemon, Program};
use crate::subject::{Host, Running, Subject};
use crate::traffic::{Link, Missing, Server, Traffic, first_answer};

/// FRR's ripd sends its first full update two seconds after its start: then the router is long up.
const LONG_UP: Duration = Duration::from_secs(4);
const START_LIMIT: Duration = Duration::from_secs(20);
const READY_LIMIT: Duration = Duration::from_secs(60);
/// Traffic before a failure.
const BEFORE: Duration = Duration::from_millis(1000);
/// Traffic after a failure, at least: no dead path of those with BFD or probes is noticed later.
const AFTER: Duration = Duration::from_millis(2500);
/// A link that has carried nothing for so long after the failure's end "never" carries again.
const RECOVERY_LIMIT: Duration = Duration::from_secs(20);
/// Tries to have steady traffic before a failure.
const TRIES: usize = 5;
/// A link carries traffic if so many frames pass in each direction …
const FRAMES: u64 = 12;
/// … in this time: more than BFD's and RIP's own.
const WINDOW: Duration = Duration::from_millis(50);

/// How a link fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Both ends lose carrier.
    Carrier,
    /// Both keep it, and nothing gets through, either way.
    Grey,
}

impl Failure {
    pub(crate) const ALL: [Failure; 2] = [Failure::Carrier, Failure::Grey];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Failure::Carrier => "carrier",
            Failure::Grey => "grey",
        }
    }
}

/// What a failure and its end cost.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) failure: Failure,
    pub(crate) missing: Missing,
    /// Nothing was answered any more when the failure was undone.
    pub(crate) is_never: bool,
    /// ms
    pub(crate) stall: f64,
    pub(crate) on_recovery: Missing,
    /// From the failure's end until the link carries traffic both ways, ms; `None`: never.
    pub(crate) back: Option<f64>,
    pub(crate) lost_connection: Option<String>,
    /// Frames that the NIC at the link received and sent in half a second and more before the failure.
    pub(crate) crossing: [u64; 2],
    /// Frames that the dead path swallowed, of its far end and of the router. Where requests get lost there are no answers.
    pub(crate) swallowed: [u64; 2],
}

impl Outcome {
    pub(crate) fn json(&self) -> Value {
        json!({
            "failure": self.failure.name(),
            "gap_ms": self.missing.gap,
            "lost": self.missing.lost,
            "never": self.is_never,
            "tcp_stall_ms": self.stall,
            "tcp_lost": self.lost_connection,
            "recovery_gap_ms": self.on_recovery.gap,
            "recovery_lost": self.on_recovery.lost,
            "link_back_ms": self.back,
            "frames_before": self.crossing,
            "frames_swallowed": self.swallowed,
        })
    }
}

/// One round of one subject.
#[derive(Debug)]
pub(crate) struct Round {
    /// Until the VIPA answered, ms; `None`: it never did.
    pub(crate) start: Option<f64>,
    pub(crate) outcomes: Vec<Outcome>,
    /// Late turns of vipa's loops.
    pub(crate) late: u64,
}

/// Plays it.
pub(crate) fn round(
    subject: &Subject,
    failures: &[Failure],
    frr: Option<&Path>,
) -> Result<Round, Error> {
    let network = Network::new(2)?;
    as_linux_is(&network, subject)?;
    let root = frr.unwrap_or(Path::new("/nonexistent"));
    let mut neighbour = None;
    if let Some(router) = subject.router {
        let router = if frr.is_some() { router } else { Program::Bird };
        let daemon = neighbour.insert(Daemon::new(router, &network.router, root)?);
        daemon.start(&["r1", "r2"], subject.bfd, subject.timers)?;
    }
    let _server = Server::start(&network.host)?;
    let mut running = Running::prepare(subject, &network, root)?;
    if neighbour.is_some() {
        thread::sleep(LONG_UP);
    }
    let start = first_answer(&network.client, START_LIMIT, || running.start(subject, &network))?;
    let start = start.map(|time| time.as_secs_f64() * 1e3);
    let mut outcomes = Vec::new();
    for failure in failures.iter().copied() {
        let mut tries = 0;
        let outcome = loop {
            ready(&network, &running, neighbour.as_ref(), subject)
                .map_err(|e| format!("{}: {e}\n{}", subject.name, running.log()))?;
            match fail(&network, &running.link(&network, failure), subject, failure)? {
                Some(outcome) => break outcome,
                // The machine stood still, and BFD took that for a dead path.
                None if tries < TRIES => tries += 1,
                None => return Err(format!("{}: no steady traffic", subject.name).into()),
            }
        };
        if outcome.is_never {
            eprintln!("{}: it was never over\n{}", subject.name, running.log());
        }
        outcomes.push(outcome);
    }
    Ok(Round { start, outcomes, late: running.late() })
}

/// The kernel's defaults on router and host, but for ports in the hash of equal-cost routes; and no static routes to the VIPAs. Where
/// nothing but the kernel is measured, the routes stay, and what lost its carrier is left: by default it is not.
fn as_linux_is(network: &Network, subject: &Subject) -> Result<(), Error> {
    let is_kernel = subject.host == Host::Kernel;
    if !is_kernel {
        for vipa in vipas(Family::V4) {
            network.router.delete_route(&format!("{vipa}/32"))?;
        }
    }
    for (namespace, letter) in [(&network.router, "r"), (&network.host, "eth")] {
        namespace.sysctl("net/ipv4/fib_multipath_use_neigh", 0)?;
        let links = network.nics().map(|nic| format!("{letter}{nic}"));
        for link in links.chain(["all".to_owned(), "default".to_owned()]) {
            let path = format!("net/ipv4/conf/{link}/ignore_routes_with_linkdown");
            namespace.sysctl(&path, u8::from(is_kernel))?;
        }
    }
    Ok(())
}

/// Waits until both links carry traffic both ways, and BFD is up on both.
fn ready(
    network: &Network,
    running: &Running,
    neighbour: Option<&Daemon>,
    subject: &Subject,
) -> Result<(), Error> {
    let deadline = Instant::now() + READY_LIMIT;
    let mut lacks = "a way back";
    while Instant::now() < deadline {
        let sessions = neighbour.filter(|_| subject.bfd.is_some()).map(Daemon::sessions_up);
        if sessions.transpose()?.is_some_and(|up| up < 2) {
            lacks = "BFD on both links";
        } else {
            match Failure::ALL.into_iter().try_for_each(|failure| {
                let link = running.link(network, failure);
                Traffic::start(network, &link)?.finish().map(drop)
            }) {
                Ok(()) => return Ok(()),
                Err(_) => lacks = "traffic on both links",
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
    Err(format!("not ready within {READY_LIMIT:?}: no {lacks}").into())
}

/// `None`: the traffic left the link by itself.
fn fail(
    network: &Network,
    link: &Link,
    subject: &Subject,
    failure: Failure,
) -> Result<Option<Outcome>, Error> {
    let nic = link.nic;
    let traffic = Traffic::start(network, link)?;
    thread::sleep(BEFORE / 2);
    let before = link.frames()?;
    thread::sleep(BEFORE / 2);
    // At any moment between two packets of BFD, of a probe, or two updates.
    thread::sleep(Duration::from_millis(u64::from(std::process::id() + nanos()) % 300));
    let after = link.frames()?;
    let crossing = [after[0] - before[0], after[1] - before[1]];
    if crossing.iter().any(|frames| *frames < 300) {
        traffic.finish()?;
        return Ok(None);
    }

    let failed = Instant::now();
    match failure {
        Failure::Carrier => network.pull_cable(nic)?,
        Failure::Grey => {
            let rule = |port: &str| {
                format!(
                    "chain {port} {{ type filter hook ingress device {port} priority 0; \
                     policy accept; counter drop; }};"
                )
            };
            let (ours, theirs) = (rule(&format!("h{nic}")), rule(&format!("r{nic}")));
            nft(network, &format!("table netdev grey {{ {ours} {theirs} }}"))?;
        }
    }
    let limit = Duration::from_secs(if subject.is_slow() { 260 } else { 20 });
    let mut swallowed = [0; 2];
    let is_never = !goes_on(&traffic, limit);
    if failure == Failure::Grey {
        swallowed = dropped(network)?;
        if swallowed.contains(&0) {
            return Err(format!("the failure was not met both ways: {swallowed:?}").into());
        }
    }

    let base = link.frames()?;
    let mended = Instant::now();
    match failure {
        Failure::Carrier => network.plug_cable(nic)?,
        Failure::Grey => nft(network, "delete table netdev grey")?,
    }
    let limit = RECOVERY_LIMIT + Duration::from_secs(if subject.is_slow() { 40 } else { 0 });
    let back = carries_again(link, base, mended, limit)?;
    thread::sleep(Duration::from_millis(700));
    let ended = Instant::now();
    let record = traffic.finish()?;
    Ok(Some(Outcome {
        failure,
        missing: record.missing(failed - Duration::from_millis(20), mended),
        is_never,
        stall: record.stall(failed, mended),
        on_recovery: record.missing(mended, ended),
        back: back.map(|time| time.as_secs_f64() * 1e3),
        lost_connection: record.lost_connection,
        crossing,
        swallowed,
    }))
}

fn nanos() -> u32 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.subsec_micros())
}

/// Waits until answers come each millisecond again and TCP goes on; false: not within `limit`.
fn goes_on(traffic: &Traffic, limit: Duration) -> bool {
    let began = Instant::now();
    let returned = traffic.returned();
    let (mut answers, mut at) = (traffic.answers(), Instant::now());
    let mut is_steady = false;
    while began.elapsed() < limit {
        if is_steady && began.elapsed() >= AFTER && traffic.returned() > returned {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
        if at.elapsed() >= Duration::from_millis(500) {
            let now = traffic.answers();
            is_steady = now - answers > 400;
            (answers, at) = (now, Instant::now());
        }
    }
    false
}

/// Time from `mended` on until frames of the traffic pass both ways.
fn carries_again(
    link: &Link,
    base: [u64; 2],
    mended: Instant,
    limit: Duration,
) -> Result<Option<Duration>, Error> {
    let mut seen = vec![(mended, base)];
    while mended.elapsed() < limit {
        thread::sleep(Duration::from_millis(5));
        let now = (Instant::now(), link.frames()?);
        seen.push(now);
        let start = seen.iter().rev().find(|(at, _)| now.0 - *at >= WINDOW);
        let Some((from, then)) = start else { continue };
        if now.1.iter().zip(then).all(|(now, then)| now - then >= FRAMES) {
            return Ok(Some(*from - mended));
        }
    }
    Ok(None)
}

/// All at once: both directions die in the same moment.
fn nft(network: &Network, command: &str) -> Result<(), Error> {
    let output = network.cables().command("nft").arg(command).output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("nft {command}: {why}").into());
    }
    Ok(())
}

/// What the dead path has swallowed, at each end.
fn dropped(network: &Network) -> Result<[u64; 2], Error> {
    let mut command = network.cables().command("nft");
    let output = command.args(["-j", "list", "table", "netdev", "grey"]).output()?;
    let listed: Value = serde_json::from_slice(&output.stdout)?;
    let rules = listed["nftables"].as_array().into_iter().flatten();
    let counts: Vec<u64> = rules
        .filter_map(|entry| entry["rule"]["expr"].as_array())
        .filter_map(|parts| parts.iter().find_map(|part| part["counter"]["packets"].as_u64()))
        .collect();
    <[u64; 2]>::try_from(counts).map_err(|_| "the counters of the failure are not there".into())
}
