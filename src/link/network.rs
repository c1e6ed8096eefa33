//! Mirror, plan and kernel together: follows what happens (`network/events.rs`), and makes what should stand stand
//! (`network/settle.rs`), also by another configuration (`network/reload.rs`).

mod events;
mod reload;
mod settle;

use std::collections::{HashSet, VecDeque};
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::health::Health;
use super::hold_down::HoldDown;
use super::kernel::{Step, foreign_route};
use super::mirror::{Changed, Mirror};
use super::netlink::{Events, Netlink};
use super::plan::homes::homes;
use super::plan::routes::{Reaches, inherited, next_hops, reaches};
use super::plan::{Plan, plan_over};
use super::saved::Saved;
use super::survey::Survey;
use super::sysctl::Sysctl;
use super::{Error, Result, announced, interfaces, ports};
use crate::announce::speaker::Scene;
use crate::config::Config;
use crate::engine::statistics::RouterStatistics;
use crate::forward::view::NicState;
use crate::path::paths::Paths;
use crate::path::{Hop, State, Target};
use crate::rip::Learned;
use crate::rip::daemon::Interface;

/// The network side without its clock.
#[derive(Debug)]
pub struct Network {
    config: Arc<Config>,
    netlink: Netlink,
    events: Events,
    mirror: Mirror,
    /// Reading everything has begun and did not end: the mirror holds a part.
    is_unread: bool,
    hold_down: HoldDown,
    paths: Paths,
    health: Health,
    saved: Saved,
    /// What stood when we last looked: what is missing of it, others have removed. `None`: that is not known.
    stands: Option<Plan>,
    /// Steps that wait for the next turn, and what stands when they are done.
    waiting: VecDeque<Step>,
    planned: Option<Plan>,
    /// Settings of plans of before that may have to be given back …
    unwanted: Vec<Sysctl>,
    /// … as soon as it is known what stands.
    is_letting_go: bool,
    survey: Survey,
    /// Where which prefix leads, as of a version of the mirror.
    reached: Option<(u64, Arc<Reaches>)>,
    /// What changed in the mirror and was not told yet.
    news: Changed,
    /// Steps and settings that the kernel refused, told once.
    refused: HashSet<String>,
    statistics: Arc<RouterStatistics>,
}

impl Network {
    /// Looks at the network namespace of the calling thread, and at what an earlier run left behind; true if
    /// it left something. Changes nothing.
    pub fn open(
        config: Arc<Config>,
        state: &Path,
        statistics: Arc<RouterStatistics>,
    ) -> Result<(Network, bool)> {
        let (saved, is_adopted) = Saved::open(state, &config)
            .map_err(|source| Error::State { path: state.display().to_string(), source })?;
        refuse_clash(&saved)?;
        let open = |source| Error::Netlink { what: "open", source };
        let mut network = Network {
            // The listener before the first dump: nothing falls between them.
            events: Events::open().map_err(open)?,
            netlink: Netlink::open().map_err(open)?,
            mirror: {
                let mut mirror = Mirror::new(saved.tables.iter().copied());
                mirror.ephemeral = ports::ephemeral();
                mirror.arp_ignore = announced::arp_ignore_of_all();
                mirror.watch(config.nics.iter().map(|nic| nic.name.as_str()));
                mirror
            },
            is_unread: false,
            hold_down: HoldDown::new(&config),
            paths: Paths::default(),
            health: Health::default(),
            saved,
            stands: None,
            waiting: VecDeque::new(),
            planned: None,
            unwanted: Vec::new(),
            is_letting_go: false,
            reached: None,
            survey: Survey::open().map_err(open)?,
            news: Changed::default(),
            refused: HashSet::new(),
            statistics,
            config,
        };
        network.read()?;
        network.catch_up()?;
        for table in network.saved.fresh_tables.iter().copied() {
            if let Some(prefix) = foreign_route(&network.mirror, table) {
                return Err(Error::ForeignTable { table, route: prefix.to_string() });
            }
        }
        if is_adopted {
            network.health.homes = announced::left_homes(&network.config, &network.mirror);
        }
        network.observe(Instant::now());
        Ok((network, is_adopted))
    }

    /// For mio: readable when something happened.
    pub fn fd(&self) -> RawFd {
        self.events.fd()
    }

    /// The kernel's state as known.
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// Which NICs and next hops carry traffic, as of the last [`Network::observe`].
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// A path is in another state; true if that is news.
    pub fn report(&mut self, hop: Hop, state: State) -> bool {
        let is_news = self.paths.report(hop, state);
        if let (true, Some(nic)) = (is_news, self.config.nics.get(hop.0.index())) {
            match state {
                State::Dead => tracing::warn!(nic = nic.name, next_hop = %hop.1, "does not answer"),
                State::Up => tracing::info!(nic = nic.name, next_hop = %hop.1, "answers"),
                State::Waking => {
                    tracing::info!(nic = nic.name, next_hop = %hop.1, "answers, but not over BFD");
                }
                State::Unknown => {}
            }
        }
        is_news
    }

    /// The next hops whose paths are to be watched now: those behind NICs with carrier.
    pub fn targets(&mut self, now: Instant) -> Vec<Target> {
        let reaches = self.reaches();
        self.paths.follow(&next_hops(&reaches).collect(), now);
        interfaces::targets(&self.config, &self.mirror, &self.paths)
    }

    /// Where which prefix leads.
    pub fn reaches(&mut self) -> Arc<Reaches> {
        let version = self.mirror.ways_version();
        match &self.reached {
            Some((of, reaches)) if *of == version => Arc::clone(reaches),
            _ => {
                let reaches = Arc::new(reaches(&self.config, &self.mirror));
                self.reached = Some((version, Arc::clone(&reaches)));
                reaches
            }
        }
    }

    fn plan(&mut self) -> Plan {
        let reaches = self.reaches();
        plan_over(&self.config, &self.mirror, &reaches, &self.health)
    }

    /// Takes in what `ip_local_port_range` says.
    pub fn set_ephemeral(&mut self, range: &RangeInclusive<u16>) {
        self.mirror.ephemeral = Some(range.clone());
    }

    /// Reads again what `arp_ignore` of all devices says, and tells what keeps the VIPAs from being answered for as they should.
    pub fn read_arp_settings(&mut self) {
        self.mirror.arp_ignore = announced::arp_ignore_of_all();
        for setting in announced::hindrances(&self.health.homes) {
            if self.refused.insert(setting.clone()) {
                tracing::warn!(setting, "keeps the kernel from answering for VIPAs by one NIC");
            }
        }
    }

    /// The VIPAs that are to be announced, and the NICs to do so.
    pub fn scene(&self) -> Scene {
        announced::scene(&self.config, &self.mirror, &self.health.homes)
    }

    /// Takes in what neighbours told by RIP.
    pub fn set_learned(&mut self, learned: Vec<Learned>) {
        self.mirror.set_learned(learned);
    }

    /// What an earlier run had learned by RIP is taken as learned.
    pub fn inherit(&mut self) {
        let inherited = inherited(&self.config, &self.mirror);
        self.mirror.set_learned(inherited);
    }

    /// The interfaces for the routing daemon, in the order of `[[nic]]`.
    pub fn interfaces(&self) -> Vec<Interface> {
        interfaces::interfaces(&self.config, &self.mirror, &self.health, &self.paths)
    }

    /// When the next hold-down ends, or a next hop is forgotten.
    pub fn next_hold_down_end(&self) -> Option<Instant> {
        [self.hold_down.next_end(), self.paths.next_end()].into_iter().flatten().min()
    }

    /// Looks at the NICs, and tells of each that changed its state. True if a VIPA has moved from one NIC to another.
    pub fn observe(&mut self, now: Instant) -> bool {
        let mut health = self.hold_down.observe(&self.config, &self.mirror, &self.paths, now);
        for (i, (nic, state)) in self.config.nics.iter().zip(&health.states).enumerate() {
            if nic.is_gone() || self.health.states.get(i) == Some(state) {
                continue;
            }
            let nic_name = nic.name.as_str();
            match state {
                NicState::Missing => tracing::warn!(nic = nic_name, "no such device"),
                NicState::Down => tracing::warn!(nic = nic_name, "down"),
                NicState::NoCarrier => tracing::warn!(nic = nic_name, "no carrier"),
                NicState::NoPath => tracing::warn!(nic = nic_name, "nobody answers behind it"),
                NicState::HeldDown => {
                    tracing::info!(nic = nic_name, "back, held down");
                }
                NicState::Live => tracing::info!(nic = nic_name, "live"),
            }
        }
        health.homes = homes(&self.config, &self.mirror, &health, &self.health.homes);
        let has_moved = health.homes != self.health.homes;
        announced::tell(&self.config, &health.homes, &self.health.homes);
        self.health = health;
        has_moved
    }
}

/// Two adapters are not to have the same table or preferences.
fn refuse_clash(saved: &Saved) -> Result<()> {
    let others = saved
        .others()
        .map_err(|source| Error::State { path: saved.directory().display().to_string(), source })?;
    match saved.clash(&others) {
        Some((adapter, what)) => Err(Error::OtherAdapter { adapter: adapter.to_owned(), what }),
        None => Ok(()),
    }
}
