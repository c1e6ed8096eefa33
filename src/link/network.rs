//! Mirror, plan and kernel together: follows what happens, and makes what should stand stand.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::health::Health;
use super::hold_down::HoldDown;
use super::kernel::{Ours, Step, difference, foreign_route, rules_difference};
use super::mirror::{Address, Changed, Mirror};
use super::net_view::{Surroundings, draft};
use super::netlink::{Events, Mode, Netlink, Notice, errno};
use super::plan::homes::homes;
use super::plan::routes::{Reaches, inherited, next_hops, reaches};
use super::plan::rules::all_tables;
use super::plan::{
    ManagedNeighbour, NicAddress, Plan, own, plan, plan_over, policy_rules, sysctls,
};
use super::ports;
use super::saved::Saved;
use super::survey::Survey;
use super::sysctl::{Sysctl, Wanted};
use super::{Error, MAIN_TABLE, Result, announced, request, sysctl};
use crate::announce::speaker::Scene;
use crate::config::{Config, is_link_local};
use crate::device;
use crate::engine::statistics::RouterStatistics;
use crate::forward::view::{NetView, NicId, NicState};
use crate::path::paths::Paths;
use crate::path::{Hop, Probe, State, Target};
use crate::rip::Learned;
use crate::rip::daemon::Interface;
use crate::wire::ip::{Family, Prefix};

/// Datagrams read from the listener in one go.
const DRAIN: usize = 1024;
/// Steps may call for further steps (routes need the link up); more rounds than this are left to later.
const ROUNDS: usize = 4;
/// Steps done in one turn, so that nothing waits for thousands of them.
const SLICE: usize = 128;
/// Lines told of one batch of repairs.
const LINES: usize = 8;

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

/// What `vipa check --plan` shows. Reads only.
pub fn preview(config: &Config) -> Result<Plan> {
    let (mirror, health) = survey(config)?;
    Ok(plan(config, &mirror, &health))
}

/// What the forwarder would know of the network. Reads only.
pub fn preview_view(config: &Config) -> Result<NetView> {
    let (mirror, health) = survey(config)?;
    let reaches = &reaches(config, &mirror);
    let around =
        Surroundings { reaches, health: &health, ephemeral: &(0..=0), listening: &[], kept: &[] };
    Ok(draft(config, &mirror, around, |_| false).view(0))
}

/// The network namespace of the calling thread as it is.
fn survey(config: &Config) -> Result<(Mirror, Health)> {
    let mut netlink = Netlink::open().map_err(|source| Error::Netlink { what: "open", source })?;
    let mut mirror = Mirror::new(all_tables(config));
    mirror.ephemeral = ports::ephemeral();
    mirror.arp_ignore = announced::arp_ignore_of_all();
    dump(&mut netlink, &mut mirror)?;
    let now = Instant::now();
    let mut health = HoldDown::new(config).observe(config, &mirror, &Paths::default(), now);
    health.homes = homes(config, &mirror, &health, &announced::left_homes(config, &mirror));
    Ok((mirror, health))
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

    /// Takes another configuration of the same adapter. What is known of NICs and paths that are in both stays; nothing is set up
    /// before [`Network::settle_anew`].
    ///
    /// # Errors
    /// A table that it needs belongs to somebody else. Then it goes on by the configuration of before.
    pub fn follow(&mut self, config: Arc<Config>, now: Instant) -> Result<()> {
        self.absorb()?;
        let before = &self.config;
        let is_known: HashSet<u32> = all_tables(before).into_iter().collect();
        let tables = self.saved.tables.iter().copied().chain(all_tables(&config));
        let unread = self.mirror.follow(tables);
        if !unread.is_empty() || before.nics != config.nics {
            // Of NICs that are gone what is to be taken away is still to be seen.
            let nics = before.nics.iter().chain(&config.nics);
            self.mirror.watch(nics.filter(|nic| !nic.is_gone()).map(|nic| nic.name.as_str()));
            self.read()?;
        }
        for table in all_tables(&config).into_iter().filter(|table| !is_known.contains(table)) {
            if let Some(prefix) = foreign_route(&self.mirror, table) {
                return Err(Error::ForeignTable { table, route: prefix.to_string() });
            }
        }
        let mut saved = self.saved.clone();
        saved.follow(&config);
        refuse_clash(&saved)?;
        // Not before: what is saved as ours is not asked for again.
        self.saved = saved;
        self.go_by(config);
        self.observe(now);
        Ok(())
    }

    /// Takes the configuration of before one that was refused: it has all that it needs, but for what [`Network::settle_anew`] sets up.
    ///
    /// # Errors
    /// The kernel does not say what the other one has set up.
    pub fn go_back(&mut self, before: Arc<Config>, now: Instant) -> Result<()> {
        self.go_by(before);
        self.absorb()?;
        self.observe(now);
        Ok(())
    }

    /// Goes by this configuration from now on.
    pub fn go_by(&mut self, config: Arc<Config>) {
        self.hold_down.reconfigure(&config);
        if config.path.probe == Probe::Off {
            self.paths = Paths::default();
        }
        self.reached = None;
        self.config = config;
    }

    /// Takes other services, where all else is as before ([`super::plan::is_served_alike`]). Of the host only policy rules follow from these.
    ///
    /// # Errors
    /// The kernel refused one. Then those of before are to be taken again.
    pub fn serve(&mut self, config: Arc<Config>) -> Result<()> {
        self.config = config;
        self.absorb()?;
        let rules = policy_rules(&self.config, &self.mirror);
        let steps = rules_difference(&rules, &self.mirror, &Ours::of(&self.saved));
        let done = self.apply(&steps, true);
        if let Some(stands) = &mut self.stands {
            // Of what was refused some may stand: none is taken for sure.
            stands.rules = if done.is_ok() { rules } else { Vec::new() };
        }
        let seen = self.absorb();
        done.and(seen)
    }

    /// Makes the kernel's state the plan's after [`Network::follow`]. Settings that the plan of before wanted alone are given back by
    /// [`Network::let_go`].
    ///
    /// # Errors
    /// Something that is necessary was refused. Then the configuration of before is to be gone back to and settled.
    pub fn settle_anew(&mut self) -> Result<()> {
        let before = self.stands.take().map_or_else(Vec::new, |plan| plan.sysctls);
        self.disown(before);
        let done = self.settle_strictly();
        if done.is_err() {
            // What was done until then is to be seen, so that it can be undone.
            self.stands = None;
            let refused = self.plan();
            self.disown(refused.sysctls);
            let seen = self.absorb().and_then(|()| self.read_addresses());
            return done.and(seen);
        }
        done
    }

    /// These settings are to be given back, unless they are wanted in the end.
    fn disown(&mut self, settings: Vec<Sysctl>) {
        for one in settings {
            if !self.unwanted.contains(&one) {
                self.unwanted.push(one);
            }
        }
    }

    fn settle_strictly(&mut self) -> Result<()> {
        self.store()?;
        self.ensure_sysctls(true)?;
        self.settle(true).map(|_| ())
    }

    /// Lets go of what only configurations of before needed: settings are given back, NICs watched no more. After a configuration that
    /// was refused that is all of it; else ports that were reserved stay so, since flows of before may have them. Where it is not known
    /// what stands it waits for the next [`Network::settle`].
    pub fn let_go(&mut self, is_refused: bool) {
        self.unwanted.retain(|old| is_refused || matches!(old.wanted, Wanted::Exactly(_)));
        self.is_letting_go = true;
        self.give_back();
    }

    fn give_back(&mut self) {
        let Some(stands) = self.stands.as_ref().filter(|_| self.is_letting_go) else { return };
        self.is_letting_go = false;
        let nics = self.config.nics.iter().filter(|nic| !nic.is_gone());
        self.mirror.watch(nics.map(|nic| nic.name.as_str()));
        let is_wanted = |old: &Sysctl| stands.sysctls.iter().any(|new| new.path == old.path);
        let mut unwanted = std::mem::take(&mut self.unwanted);
        unwanted.retain(|old| !is_wanted(old));
        let adapter = &self.config.adapter.name;
        if let Err(error) = sysctl::give_back(&unwanted, adapter, &mut self.saved) {
            tracing::warn!(%error, "a setting that is not wanted any more could not be given back");
        }
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
        let target = |(hop, _, has_answered): (Hop, State, bool)| {
            let name = &self.config.nics.get(hop.0.index())?.name;
            let (ifindex, link) = self.mirror.link(name)?;
            let is_ready = link.is_up && link.has_carrier && !link.is_without_neighbours;
            let mac = link.mac.filter(|_| is_ready)?;
            let own = self.mirror.addresses.iter().filter(|a| {
                a.ifindex == ifindex
                    && !a.is_unusable
                    && !self.config.adapter.addresses.contains(&a.address)
            });
            let nearest = own
                .filter_map(|a| match a.address {
                    IpAddr::V4(own) => Some((Prefix::new(a.address, a.prefix_length)?, own)),
                    IpAddr::V6(_) => None,
                })
                .min_by_key(|(network, _)| !network.contains(hop.1));
            Some(Target {
                hop,
                name: name.clone(),
                ifindex,
                mac,
                source: nearest.map(|(_, own)| own),
                has_answered,
            })
        };
        self.paths.iter().filter_map(target).collect()
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
        let ids = (0..).map(NicId);
        let one = |(nic, id): (&crate::config::Nic, NicId)| {
            let (ifindex, link) = self.mirror.link(&nic.name)?;
            let mut own: Vec<&Address> = self
                .mirror
                .addresses
                .iter()
                .filter(|a| a.ifindex == ifindex && !a.is_unusable)
                .filter(|a| !a.is_narrow || is_link_local(a.address))
                .filter(|a| !self.config.adapter.addresses.contains(&a.address))
                .collect();
            own.sort_by_key(|a| (a.address.is_ipv6(), a.is_deprecated, a.is_secondary));
            Some(Interface {
                nic: id,
                is_live: self.health.is_live(id),
                has_carrier: link.is_up && link.has_carrier,
                is_waking: self
                    .paths
                    .iter()
                    .any(|(hop, state, _)| hop.0 == id && state == State::Waking),
                silent: Family::BOTH
                    .into_iter()
                    .filter(|family| !self.health.carries(id, *family))
                    .collect(),
                ifindex,
                addresses: own.into_iter().map(|a| (a.address, a.prefix_length)).collect(),
                mtu: link.mtu,
            })
        };
        self.config.nics.iter().zip(ids).filter_map(one).collect()
    }

    /// When the next hold-down ends, or a next hop is forgotten.
    pub fn next_hold_down_end(&self) -> Option<Instant> {
        [self.hold_down.next_end(), self.paths.next_end()].into_iter().flatten().min()
    }

    /// Takes in all that has happened since the last call.
    pub fn catch_up(&mut self) -> Result<Changed> {
        self.absorb()?;
        Ok(std::mem::take(&mut self.news))
    }

    /// Takes in what has happened; what changed by it stays to be told by [`Network::catch_up`].
    fn absorb(&mut self) -> Result<()> {
        loop {
            let drained = self
                .events
                .drain(DRAIN)
                .map_err(|source| Error::Netlink { what: "events", source })?;
            for notice in drained.notices {
                let is_echo = self.is_echo(&notice);
                let changed = self.mirror.apply(notice);
                if !is_echo {
                    self.news.add(changed);
                }
            }
            if drained.is_overrun {
                tracing::warn!("netlink events were lost: reading the kernel's state anew");
                self.statistics.resyncs.add(1);
                self.read()?;
            } else if self.is_unread {
                self.read()?;
            } else if std::mem::take(&mut self.news.routes_uncertain) {
                // What the workers follow at once; our own tables, which may be large, by and by.
                for family in Family::BOTH {
                    read_routes(&mut self.netlink, &mut self.mirror, MAIN_TABLE, family)?;
                }
                self.survey_routes();
                self.news.network = true;
            }
            if !drained.is_unfinished {
                return Ok(());
            }
        }
    }

    /// Reads everything anew. Where that fails, [`Network::absorb`] tries again before anybody goes by what is there.
    fn read(&mut self) -> Result<()> {
        self.is_unread = true;
        dump(&mut self.netlink, &mut self.mirror)?;
        self.is_unread = false;
        self.survey.forget();
        self.news = Changed::EVERYTHING;
        Ok(())
    }

    /// Does it tell of a route or rule that we have just set? Then there is nothing to do about it.
    fn is_echo(&self, notice: &Notice) -> bool {
        use netlink_packet_route::RouteNetlinkMessage::{DelRoute, DelRule, NewRoute, NewRule};
        matches!(notice, Notice::Route { message, asked_by, .. }
            if *asked_by == self.netlink.port()
                && matches!(**message, NewRoute(_) | DelRoute(_) | NewRule(_) | DelRule(_)))
    }

    /// Asks for the link of each NIC and of the adapter: carrier news that the kernel holds back arrive now.
    pub fn probe_links(&mut self) {
        let nics = self.config.nics.iter().filter(|nic| !nic.is_gone());
        for name in nics.map(|nic| &nic.name).chain([&self.config.adapter.name]) {
            // A device that does not exist is no news.
            for notice in self.netlink.get(request::get_link(name)).unwrap_or_default() {
                self.news.add(self.mirror.apply(notice));
            }
        }
    }

    /// Makes IPv6 sockets look their routes up anew.
    pub fn forget_cached_routes(&mut self) {
        if let Err(error) = super::cached::forget(&mut self.netlink) {
            self.statistics.kernel_errors.add(1);
            tracing::debug!(%error, "IPv6 connections keep the routes that they remember");
        }
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

    /// Makes the adapter if it does not exist; true if it was made.
    pub fn ensure_adapter(&mut self) -> Result<bool> {
        let name = self.config.adapter.name.clone();
        let fail = |source| Error::Adapter { name: name.clone(), source };
        match self.mirror.link(&name) {
            Some((_, link)) if link.is_tun => return Ok(false),
            Some(_) => {
                let why = "a device of this name exists, and is no TUN with several queues: \
                           delete or rename it, or choose another name in [virtual]";
                return Err(fail(io::Error::new(io::ErrorKind::AlreadyExists, why)));
            }
            None => {}
        }
        self.store()?;
        device::tun::create(&name).map_err(fail)?;
        self.probe_links();
        self.absorb()?;
        Ok(true)
    }

    /// Writes down what `vipa down` needs. Before the first change.
    fn store(&mut self) -> Result<()> {
        let path = self.saved.file().display().to_string();
        self.saved.store().map_err(|source| Error::State { path, source })
    }

    /// Writes down whose rule of the `local` table is about to be moved.
    fn remember_local(&mut self, plan: &Plan) -> Result<()> {
        let ours = Ours::of(&self.saved);
        let blocked = Family::BOTH.into_iter().filter(|family| {
            own::is_wanted(&self.config, *family)
                && own::Around::of(&self.mirror, *family).is_blocked
        });
        for family in blocked {
            let what = format!("{family:?}: policy rules of others at preferences 0 to 5");
            if self.refused.insert(what.clone()) {
                tracing::warn!(what, "this host's own connections to services keep to the kernel");
            }
        }
        for family in own::moves(&plan.rules) {
            if own::is_vipas(&self.mirror, family, |rule| ours.leads_to_us(rule)) {
                self.saved.remember_local(family);
            }
        }
        self.store()
    }

    /// Settings below `/proc/sys`: puts right what is wrong. At start a refusal is an error.
    pub fn ensure_sysctls(&mut self, is_start: bool) -> Result<()> {
        let wanted = sysctls(&self.config, &self.mirror, &self.health);
        let adapter = &self.config.adapter.name;
        let corrected = sysctl::ensure(&wanted, adapter, &mut self.saved).map_err(|source| {
            Error::State { path: self.saved.file().display().to_string(), source }
        })?;
        for one in corrected {
            let what = one.sysctl.to_string();
            match one.result {
                Err(source) if is_start => return Err(Error::Sysctl { what, source }),
                Err(error) => {
                    self.statistics.kernel_errors.add(1);
                    if self.refused.insert(what.clone()) {
                        tracing::warn!(setting = what, %error, "could not be set");
                    }
                }
                Ok(()) => {
                    let stood = |p: &Plan| p.sysctls.contains(&one.sysctl);
                    if !self.refused.remove(&what) && self.stands.as_ref().is_some_and(stood) {
                        self.statistics.repaired.add(1);
                        tracing::info!(setting = what, found = one.found, "put back");
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the kernel's state the plan's. True if others had removed or changed what stood. At start what
    /// is necessary and refused is an error; later it is told, and tried again by and by.
    ///
    /// What is more than a turn may do waits: [`Network::has_more`], [`Network::go_on`].
    pub fn settle(&mut self, is_start: bool) -> Result<bool> {
        let is_repair = self.approach(is_start)?;
        if !is_start && self.waiting.is_empty() {
            self.give_back();
        }
        Ok(is_repair)
    }

    fn approach(&mut self, is_start: bool) -> Result<bool> {
        let mut is_repair = false;
        self.waiting.clear();
        for _ in 0..ROUNDS {
            let plan = self.plan();
            let mut steps = difference(&plan, &self.mirror, &Ours::of(&self.saved));
            if steps.is_empty() {
                self.stands = Some(plan);
                return Ok(is_repair);
            }
            self.remember_local(&plan)?;
            if !is_start && steps.len() > SLICE {
                self.waiting = steps.split_off(SLICE).into();
            }
            is_repair |= self.apply(&steps, is_start)?;
            if !self.waiting.is_empty() {
                self.planned = Some(plan);
                return Ok(is_repair);
            }
            self.stands = Some(plan);
            self.absorb()?;
        }
        if is_start {
            return self.check().map(|()| is_repair);
        }
        Ok(is_repair)
    }

    /// Does anything wait for its turn: steps, routes to be read, or news of these?
    pub fn has_more(&self) -> bool {
        !self.waiting.is_empty() || self.survey.is_under_way() || !self.news.is_nothing()
    }

    /// Does some of what waits. True if others had removed or changed what stood.
    pub fn go_on(&mut self) -> Result<bool> {
        if self.waiting.is_empty() {
            self.news.network |= self.survey.go_on(&mut self.mirror)?;
            return Ok(false);
        }
        let steps: Vec<Step> = self.waiting.drain(..SLICE.min(self.waiting.len())).collect();
        let is_repair = self.apply(&steps, false)?;
        if self.waiting.is_empty() {
            self.stands = self.planned.take();
            // Steps may call for further steps.
            self.news.network = true;
        }
        Ok(is_repair)
    }

    /// After the last round of a start: is there anything necessary that the kernel has not taken?
    fn check(&mut self) -> Result<()> {
        let plan = self.plan();
        let steps = difference(&plan, &self.mirror, &Ours::of(&self.saved));
        match steps.iter().find(|step| !step.is_optional()) {
            None => Ok(()),
            Some(step) => Err(Error::Refused {
                what: step.to_string(),
                source: io::Error::other("it was taken, but does not stand"),
            }),
        }
    }

    fn apply(&mut self, steps: &[Step], is_start: bool) -> Result<bool> {
        let mut repaired = 0_u64;
        let mut has_new_address = false;
        for step in steps {
            let (message, mode) = request::of(step);
            let result = self.netlink.request(message, mode);
            match result {
                Ok(()) => {}
                Err(error) if is_settled(step, &error) => {
                    // The kernel drops some routes without a word.
                    if let Step::DeleteRoute(route) = step {
                        self.mirror.forget_route(route);
                    }
                }
                Err(source) if is_start && !step.is_optional() => {
                    return Err(Error::Refused { what: step.to_string(), source });
                }
                Err(error) => {
                    self.statistics.kernel_errors.add(1);
                    let name = step.to_string();
                    if self.refused.insert(name.clone()) {
                        tracing::warn!(step = name, %error, "the kernel refused");
                    }
                    continue;
                }
            }
            has_new_address |= matches!(step, Step::AddAddress { .. });
            if let Step::Manage(ManagedNeighbour { ifindex, address, .. })
            | Step::Release { ifindex, address } = step
            {
                self.read_neighbour(*ifindex, *address);
            }
            // Thousands of steps have no use for their names.
            let was_refused = !self.refused.is_empty() && self.refused.remove(&step.to_string());
            if !was_refused && self.stood(step) {
                repaired += 1;
                if repaired <= LINES as u64 {
                    tracing::info!(%step, "put back");
                }
            }
        }
        if has_new_address {
            // The kernel tells of an IPv6 address some time after it is there.
            self.read_addresses()?;
        }
        if repaired > LINES as u64 {
            tracing::info!(repaired, "put back, these and more");
        }
        self.statistics.repaired.add(repaired);
        Ok(repaired > 0)
    }

    /// Does the step only bring back what stood?
    fn stood(&self, step: &Step) -> bool {
        let Some(stands) = &self.stands else { return false };
        match step {
            Step::SetLink { mtu, .. } => stands.adapter.mtu == *mtu,
            Step::AddAddress { nic: None, address, .. } => {
                stands.adapter.addresses.contains(address)
            }
            Step::AddAddress { nic: Some(nic), ifindex, address } => {
                let (nic, ifindex, address) = (nic.clone(), *ifindex, *address);
                stands.nic_addresses.contains(&NicAddress { nic, ifindex, address })
            }
            Step::PutRoute(route) => stands.route_at(&route.key()) == Some(route),
            Step::AppendHop(route) => stands
                .route_at(&route.key())
                .is_some_and(|stood| stood.next_hops.contains(&route.next_hops[0])),
            Step::AddRule(rule) => stands.rules.contains(rule),
            Step::Manage(neighbour) => stands.neighbours.contains(neighbour),
            _ => false,
        }
    }

    /// Has the kernel resolve a neighbour, or confirm it.
    pub fn resolve(&mut self, ifindex: u32, address: IpAddr) {
        let (message, mode) = request::resolve(ifindex, address);
        if let Err(error) = self.netlink.request(message, mode) {
            self.statistics.kernel_errors.add(1);
            tracing::debug!(%address, %error, "the kernel would not resolve");
        }
        self.read_neighbour(ifindex, address);
    }

    /// Has the routes read again, by and by: the kernel changes some without a word.
    pub fn survey_routes(&mut self) {
        self.survey.begin(self.mirror.tables());
    }

    /// The kernel tells of a neighbour only once it is resolved, or cannot be.
    fn read_neighbour(&mut self, ifindex: u32, address: IpAddr) {
        // That it is gone again is told as an event.
        for notice in self.netlink.get(request::get_neighbour(ifindex, address)).unwrap_or_default()
        {
            self.news.add(self.mirror.apply(notice));
        }
    }

    fn read_addresses(&mut self) -> Result<()> {
        let found = self
            .netlink
            .dump(&request::addresses())
            .map_err(|source| Error::Netlink { what: "addresses", source })?;
        self.mirror.addresses.clear();
        for notice in found {
            self.mirror.apply(notice);
        }
        Ok(())
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

/// Errors that say: it is so already.
pub(super) fn is_settled(step: &Step, error: &io::Error) -> bool {
    let Some(errno) = errno(error) else { return false };
    match step {
        Step::AddRule(_) | Step::AppendHop(_) => errno == libc::EEXIST,
        _ if step.is_removal() => {
            [libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENODEV].contains(&errno)
        }
        _ => false,
    }
}

/// Reads everything.
pub(super) fn dump(netlink: &mut Netlink, mirror: &mut Mirror) -> Result<()> {
    mirror.clear();
    for (what, message) in [
        ("links", request::links()),
        ("addresses", request::addresses()),
        ("IPv4 rules", request::rules(Family::V4)),
        ("IPv6 rules", request::rules(Family::V6)),
        ("neighbours", request::neighbours()),
    ] {
        let found = match netlink.dump(&message) {
            // A kernel without IPv6 has no rules for it.
            Err(e) if errno(&e) == Some(libc::EOPNOTSUPP) => continue,
            other => other.map_err(|source| Error::Netlink { what, source })?,
        };
        for notice in found {
            mirror.apply(notice);
        }
    }
    for table in mirror.tables().collect::<Vec<_>>() {
        for family in Family::BOTH {
            read_routes(netlink, mirror, table, family)?;
        }
    }
    Ok(())
}

fn read_routes(
    netlink: &mut Netlink,
    mirror: &mut Mirror,
    table: u32,
    family: Family,
) -> Result<()> {
    let found = match netlink.dump(&request::routes(table, family)) {
        // Nothing was ever put into this table.
        Err(e) if errno(&e) == Some(libc::ENOENT) => Vec::new(),
        Err(e) if errno(&e) == Some(libc::EOPNOTSUPP) => Vec::new(),
        other => other.map_err(|source| Error::Netlink { what: "routes", source })?,
    };
    mirror.clear_routes(table, family);
    for notice in found {
        mirror.apply(notice);
    }
    Ok(())
}

/// Sends a step that takes something away; that it is gone already is no error.
pub(super) fn remove(netlink: &mut Netlink, step: &Step) -> io::Result<()> {
    let (message, mode) = request::of(step);
    match netlink.request(message, mode) {
        Err(e) if is_settled(step, &e) => Ok(()),
        other => other,
    }
}

/// Deletes a device; that it is gone already is no error.
pub(super) fn delete_link(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    let (message, mode): (_, Mode) = request::delete_link(ifindex);
    match netlink.request(message, mode) {
        Err(e) if errno(&e) == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}
