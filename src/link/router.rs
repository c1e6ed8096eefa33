//! The router: one thread on mio that follows the network, tells the workers by views, and keeps what vipa
//! set up in place.
//!
//! A start is in two parts, since workers need the first view. [`Router::prepare`] sets everything up while
//! the adapter has no carrier, so that the kernel's own routes carry the traffic. [`Router::run`] attaches
//! the workers last: the carrier that gives is what leads packets to them.
//!
//! On news, workers come first: a NIC that died is out of their view before its routes are put right. Another configuration is
//! taken in `router/reload.rs`.

mod reload;

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use super::mirror::Changed;
use super::net_view::{Draft, Surroundings, draft};
use super::network::Network;
use super::ports::Ports;
use super::resolve::{Hop, Known, Requested};
use super::socket_facts::Sockets;
use super::tables::Tables;
use super::{Error, Result, down};
use crate::announce;
use crate::config::Config;
use crate::engine::leave::{Asked, Leave};
use crate::engine::message::{Command, Plane, Reload, Request};
use crate::engine::statistics::{Gauge, RouterStatistics};
use crate::forward::socket::Socket;
use crate::forward::view::{NetCell, NetView, NicId};
use crate::path::watcher::Watcher;
use crate::path::{Probe, Target};
use crate::rip::speaker::Speaker;

const NETLINK: Token = Token(0);
const NFTABLES: Token = Token(1);
const WAKER: Token = Token(2);
/// Sockets for announcements have the tokens from here on …
const ANNOUNCEMENTS: usize = 16;
/// … and those of RIP the tokens from here on.
const SPEAKER: usize = 256;

/// What netlink does not tell of is looked at this often.
const TICK: Duration = Duration::from_secs(5);
/// A turn that comes later than planned by more is late.
const LATE: Duration = Duration::from_millis(20);
/// Requests taken in one turn, so that news from the kernel never wait for them.
const BUDGET: usize = 1024;
/// News beget news (what we set up is told to us as well); more than this in one turn wait for the next.
const ROUNDS: usize = 4;
/// If somebody keeps removing what we put back, we do so no more often than this …
const PATIENCE: Duration = Duration::from_millis(50);
/// … once it happened so often within a second.
const FIGHTS: usize = 10;

/// Everything is set up; the adapter has no carrier yet.
pub struct Prepared {
    config: Arc<Config>,
    network: Network,
    tables: Tables,
    ports: Ports,
    sockets: Sockets,
    requested: Requested,
    draft: Draft,
    /// Addresses that flows of earlier configurations may carry: owned as long as the process lives, and they are this host's.
    kept: Vec<IpAddr>,
    poll: Poll,
    ear: Ear,
    waker: Arc<Waker>,
    statistics: Arc<RouterStatistics>,
}

/// Which socket brings the news of nftables.
#[derive(Debug, Default)]
struct Ear(Option<RawFd>);

/// The router, ready to run.
pub struct Router {
    prepared: Prepared,
    cell: NetCell,
    requests: Receiver<Request>,
    reloads: Receiver<Reload>,
    plane: Box<dyn Plane>,
    generation: u32,
    /// Index of the adapter to which the workers are attached.
    attached: Option<u32>,
    next_tick: Instant,
    /// When others' removals were last put right.
    fights: Vec<Instant>,
    /// Putting right waits until then.
    settle_at: Option<Instant>,
    /// What went wrong last.
    trouble: Option<(String, Instant)>,
    /// The watch over the paths, and what it was told to watch last.
    watcher: Option<Watcher>,
    watched: Vec<Target>,
    /// RIP, where it is spoken.
    speaker: Option<Speaker>,
    /// What paths and RIP go by: that of a reload only once the host has taken all else of it.
    followed: Arc<Config>,
    /// VIPAs in the NICs' own subnets.
    announcements: announce::speaker::Speaker,
    /// How often the neighbours were told that it leaves.
    farewells: u32,
    /// When the routes were heard that the workers do not know yet.
    learned_since: Option<Instant>,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("network", &self.network).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").field("prepared", &self.prepared).finish_non_exhaustive()
    }
}

impl Router {
    /// Creates or adopts the adapter and sets up everything around it, in the network namespace of the
    /// calling thread. If it fails, what it set up is taken away again, except where an earlier run left its
    /// work: that stands as it stood.
    pub fn prepare(
        config: Arc<Config>,
        state: PathBuf,
        statistics: Arc<RouterStatistics>,
    ) -> Result<Prepared> {
        let (network, is_adopted) =
            Network::open(Arc::clone(&config), &state, Arc::clone(&statistics))?;
        let prepared = set_up(Arc::clone(&config), network, statistics);
        if prepared.is_err() && !is_adopted {
            undo(&state, &config.adapter.name);
        }
        prepared
    }

    /// Attaches the workers and runs until it is asked to leave, and has. Leaves everything in place: the
    /// kernel carries on.
    pub fn run(mut self, leave: &Leave) -> Result<()> {
        let view = self.prepared.draft.view(self.generation);
        self.plane.follow(&view);
        self.prepared.tables.renew_lease();
        self.attach()?;
        self.watch(Instant::now())?;
        self.speak(Instant::now());
        self.announce(Instant::now());
        let mut events = Events::with_capacity(16);
        let mut pending = Changed::default();
        loop {
            let now = Instant::now();
            let deadline = match leave.asked() {
                None => self.next_deadline(),
                Some(asked) => {
                    let next = self.take_leave(&asked, now);
                    if next <= now {
                        return Ok(());
                    }
                    self.next_deadline().min(next)
                }
            };
            let timeout = deadline.saturating_duration_since(now);
            match self.prepared.poll.poll(&mut events, Some(timeout)) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(Error::Poll)?,
            }
            let turned = Instant::now();
            self.prepared.statistics.turns.add(1);
            self.prepared.statistics.late.add(u64::from(turned > deadline + LATE));
            if let Err(error) = self.turn(&mut pending) {
                // Nothing here is worth dying for: the workers go on with the view that they have.
                self.prepared.statistics.kernel_errors.add(1);
                self.complain(&error);
                self.settle_at = Some(Instant::now() + PATIENCE);
                pending = Changed { links: true, network: true, ..pending };
            }
            longest(&self.prepared.statistics.longest_turn, turned);
        }
    }

    /// Tells the neighbours that the VIPAs leave, if they are to be told now. When there is something to do next; now: it is over.
    fn take_leave(&mut self, asked: &Asked, now: Instant) -> Instant {
        let Some(speaker) = self.speaker.as_mut().filter(|_| asked.is_polite) else {
            if asked.is_polite {
                tracing::info!("no RIP is spoken: there is nobody to tell");
            }
            return now;
        };
        while let Some(at) = asked.next_telling(self.farewells) {
            if at > now {
                return at.min(asked.end);
            }
            speaker.withdraw(now);
            self.farewells += 1;
            self.prepared.statistics.farewells.add(1);
            tracing::info!(
                time = self.farewells,
                ends_in = ?asked.end.saturating_duration_since(now),
                "withdrawing: the neighbours are told that the VIPAs are gone"
            );
        }
        asked.end
    }

    /// The same trouble is told once in a tick.
    fn complain(&mut self, error: &Error) {
        let (error, now) = (error.to_string(), Instant::now());
        let is_told = self
            .trouble
            .as_ref()
            .is_some_and(|(told, at)| *told == error && now.duration_since(*at) < TICK);
        if !is_told {
            tracing::error!(error, "could not follow the network; trying again");
            self.trouble = Some((error, now));
        }
    }

    fn attach(&mut self) -> Result<()> {
        self.plane.attach().map_err(Error::Attach)?;
        let network = &mut self.prepared.network;
        // The kernel would tell of the adapter's carrier, and use it, up to a second later.
        network.probe_links();
        network.forget_cached_routes();
        let adapter = &self.prepared.config.adapter.name;
        self.attached = network.mirror().link(adapter).map(|(index, _)| index);
        Ok(())
    }

    fn next_deadline(&self) -> Instant {
        let (network, now) = (&self.prepared.network, Instant::now());
        // While it waits it cannot go on with them.
        if network.has_more() && self.settle_at.is_none_or(|at| at <= now) {
            return now;
        }
        let spoken = self.speaker.as_ref().and_then(Speaker::next_deadline);
        let announced = self.announcements.next_deadline();
        let renewal = self.prepared.tables.next_renewal();
        [self.settle_at, network.next_hold_down_end(), renewal, spoken, announced]
            .into_iter()
            .flatten()
            .fold(self.next_tick, Instant::min)
    }

    /// One turn of the loop: all that is new is taken in, told to the workers, and put right. What could not
    /// be done yet stays in `pending`.
    fn turn(&mut self, pending: &mut Changed) -> Result<()> {
        let now = Instant::now();
        pending.add(self.prepared.network.catch_up()?);
        let is_suspect = self.take_requests(pending, now);
        self.take_reloads(pending, now);
        if is_suspect || pending.links {
            self.prepared.network.probe_links();
            pending.add(self.prepared.network.catch_up()?);
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick(pending, now);
        }
        for (hop, state) in self.watcher.iter().flat_map(Watcher::reports) {
            pending.network |= self.prepared.network.report(hop, state);
        }
        self.prepared.tables.look();
        if self.prepared.tables.next_renewal().is_some_and(|at| at <= now) {
            self.prepared.tables.renew_lease();
        }
        if let Some(speaker) = &mut self.speaker {
            speaker.turn(now);
            if let Some((learned, since)) = speaker.news(now) {
                self.prepared.network.set_learned(learned);
                self.learned_since = Some(since);
                pending.network = true;
            }
            if let Some(counts) = speaker.counts() {
                self.prepared.statistics.rip.store(Some(Arc::new(counts)));
            }
        }
        self.announcements.turn(now);
        self.tell_announced(now);
        if pending.is_nothing() && !self.is_due(now) {
            if self.prepared.network.has_more() && self.prepared.network.go_on()? {
                self.fight(now);
            }
            return Ok(());
        }
        for _ in 0..ROUNDS {
            self.react(pending, now)?;
            if pending.is_nothing() || self.settle_at.is_some() {
                return Ok(());
            }
        }
        self.settle_at = Some(now + PATIENCE);
        Ok(())
    }

    /// Is there something to do without any news?
    fn is_due(&self, now: Instant) -> bool {
        let ends = [self.settle_at, self.prepared.network.next_hold_down_end()];
        ends.into_iter().flatten().any(|at| at <= now) || self.prepared.tables.is_touched()
    }

    /// Workers first, then the kernel.
    fn react(&mut self, pending: &mut Changed, now: Instant) -> Result<()> {
        let prepared = &mut self.prepared;
        pending.settings |= prepared.network.observe(now);
        let next = prepared.compute();
        let is_new = next != prepared.draft;
        if is_new {
            // Rules that keep the kernel from answering stand before a flow can need them.
            if prepared.tables.gains(&next) {
                prepared.tables.ensure(&next, &prepared.statistics);
            }
            prepared.draft = next;
            self.publish();
        }
        let is_learned = self.learned_since.is_some();
        if let Some(since) = self.learned_since.take() {
            longest(&self.prepared.statistics.longest_update, since);
        }
        self.watch(now)?;
        // The neighbours in the same tick as the workers; the kernel's routes, which nothing waits for, come last.
        self.speak(now);
        self.announce(now);
        let prepared = &mut self.prepared;
        if is_new || prepared.tables.is_touched() {
            prepared.tables.ensure(&prepared.draft, &prepared.statistics);
        }
        if is_learned && self.settle_at.is_none() {
            // There may be thousands: the kernel's share is the next turn's.
            self.settle_at = Some(now);
            return Ok(());
        }
        if self.settle_at.is_some_and(|at| now < at) {
            return Ok(());
        }
        self.settle_at = None;
        let prepared = &mut self.prepared;
        let changed = std::mem::take(pending);
        let is_new_adapter = prepared.network.ensure_adapter()?;
        if changed.links || changed.settings || is_new_adapter {
            prepared.network.ensure_sysctls(false)?;
        }
        if prepared.network.settle(false)? || is_new_adapter {
            self.fight(now);
        }
        let prepared = &mut self.prepared;
        pending.add(prepared.network.catch_up()?);
        let adapter = &prepared.config.adapter.name;
        let index = prepared.network.mirror().link(adapter).map(|(index, _)| index);
        if index.is_some() && index != self.attached {
            tracing::warn!(adapter, "was deleted by others: made anew");
            prepared.statistics.repaired.add(1);
            self.attach()?;
        }
        Ok(())
    }

    /// The next hops of now are watched.
    fn watch(&mut self, now: Instant) -> Result<()> {
        let prepared = &mut self.prepared;
        let settings = &prepared.config.path;
        if settings.probe == Probe::Off {
            return Ok(());
        }
        let targets = prepared.network.targets(now);
        if targets == self.watched {
            return Ok(());
        }
        if self.watcher.is_none() {
            let waker = Arc::clone(&prepared.waker);
            let news = move || drop(waker.wake());
            let ports = prepared.config.source.ports.clone();
            let statistics = Arc::clone(&prepared.statistics);
            let watcher = Watcher::start(settings.clone(), ports, statistics, news);
            self.watcher = Some(watcher.map_err(Error::Poll)?);
        }
        self.watcher.iter().for_each(|watcher| watcher.follow(targets.clone()));
        self.watched = targets;
        Ok(())
    }

    /// FIG. 3A: what the interfaces are now.
    fn speak(&mut self, now: Instant) {
        let Some(speaker) = &mut self.speaker else { return };
        let prepared = &self.prepared;
        speaker.follow(prepared.network.interfaces(), prepared.poll.registry(), now);
    }

    /// The VIPAs in the NICs' own subnets, where they are now.
    fn announce(&mut self, now: Instant) {
        let prepared = &self.prepared;
        self.announcements.follow(prepared.network.scene(), prepared.poll.registry(), now);
        self.tell_announced(now);
    }

    fn tell_announced(&mut self, now: Instant) {
        if let Some(counts) = self.announcements.counts(now) {
            self.prepared.statistics.announced.store(Some(Arc::new(counts)));
        }
    }

    fn publish(&mut self) {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        let view = Arc::new(self.prepared.draft.view(self.generation));
        self.plane.follow(&view);
        self.cell.store(view);
        self.plane.published();
        self.prepared.statistics.views.add(1);
    }

    /// Others removed something, and it is back. If that goes on and on, the next time waits a little.
    fn fight(&mut self, now: Instant) {
        self.fights.retain(|at| now.duration_since(*at) < Duration::from_secs(1));
        self.fights.push(now);
        if self.fights.len() > FIGHTS {
            self.settle_at = Some(now + PATIENCE);
        }
    }

    /// Takes requests of workers; true if one suspects a NIC.
    fn take_requests(&mut self, pending: &mut Changed, now: Instant) -> bool {
        let mut is_suspect = false;
        let mut answers = Vec::new();
        let mut count = 0;
        for request in self.requests.try_iter().take(BUDGET) {
            count += 1;
            match request {
                Request::Resolve { nic, address } => {
                    self.prepared.resolve((nic, address), now);
                    pending.neighbours = true;
                }
                Request::Hold { worker, flow } => {
                    self.prepared.tables.hold(flow);
                    answers.push((worker, flow));
                }
                Request::Socket { worker, key } => {
                    let socket = self.prepared.sockets.ask(&key);
                    let statistics = &self.prepared.statistics;
                    statistics.sockets_asked.add(1);
                    statistics.sockets_unknown.add(u64::from(socket == Socket::Unknown));
                    self.plane.tell(worker, Command::Socket(key, socket));
                }
                Request::Release(flow) => self.prepared.tables.release(flow),
                Request::Suspect(nic) => {
                    tracing::debug!(nic = nic.index(), "a worker suspects the NIC");
                    is_suspect = true;
                }
            }
        }
        self.prepared.tables.commit(&self.prepared.statistics);
        for (worker, flow) in answers {
            self.plane.tell(worker, Command::Held(flow));
        }
        if count == BUDGET {
            // The channel may hold more, and its waker has been heard already.
            let _ = self.prepared.waker.wake();
        }
        is_suspect
    }

    /// What netlink does not tell of.
    fn tick(&mut self, pending: &mut Changed, now: Instant) {
        let prepared = &mut self.prepared;
        prepared.network.survey_routes();
        prepared.ports.read();
        prepared.network.set_ephemeral(&prepared.ports.ephemeral);
        prepared.network.read_arp_settings();
        prepared.tables.spare(&prepared.ports.listening);
        pending.settings = true;
        pending.network = true;
        prepared.tables.suspect();
        let due = {
            let (config, network) = (&prepared.config, &prepared.network);
            prepared.requested.refresh(now, |hop| known(config, network, hop))
        };
        for hop in due {
            prepared.ask_kernel(&hop);
        }
        if let Some(speaker) = &mut self.speaker {
            speaker.ask_host(super::sysctl::forwards, now);
        }
    }
}

impl Prepared {
    /// The view with which the cell begins.
    pub fn first_view(&self) -> NetView {
        self.draft.view(1)
    }

    /// Wakes the router after a request was put into its channel.
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// The router for workers that read `cell`, which holds [`Prepared::first_view`].
    pub fn start(
        self,
        cell: NetCell,
        requests: Receiver<Request>,
        reloads: Receiver<Reload>,
        plane: Box<dyn Plane>,
    ) -> Router {
        let vipas = &self.config.adapter.addresses;
        let speaker = self.speaker(Instant::now());
        let (settings, names) = (self.config.announce, self.names());
        let announcements = announce::speaker::Speaker::new(settings, vipas, names, ANNOUNCEMENTS);
        Router {
            followed: Arc::clone(&self.config),
            prepared: self,
            cell,
            requests,
            reloads,
            plane,
            generation: 1,
            attached: None,
            next_tick: Instant::now() + TICK,
            fights: Vec::new(),
            settle_at: None,
            trouble: None,
            watcher: None,
            watched: Vec::new(),
            speaker,
            announcements,
            farewells: 0,
            learned_since: None,
        }
    }

    fn names(&self) -> Vec<String> {
        self.config.nics.iter().map(|nic| nic.name.clone()).collect()
    }

    /// RIP, if it is to be spoken, with what has been learned so far.
    fn speaker(&self, now: Instant) -> Option<Speaker> {
        let settings = self.config.rip.as_ref()?;
        let inherited = self.network.mirror().learned().to_vec();
        let vipas = &self.config.adapter.addresses;
        Some(Speaker::new(settings, self.names(), vipas, inherited, SPEAKER, now))
    }

    fn compute(&mut self) -> Draft {
        let around = Surroundings {
            reaches: &self.network.reaches(),
            health: self.network.health(),
            ephemeral: &self.ports.ephemeral,
            listening: &self.ports.listening,
            kept: &self.kept,
        };
        let is_requested = |hop: &Hop| self.requested.contains(hop);
        draft(&self.config, self.network.mirror(), around, is_requested)
    }

    fn resolve(&mut self, hop: Hop, now: Instant) {
        let known = known(&self.config, &self.network, &hop);
        if self.requested.ask(hop, known, now) {
            self.ask_kernel(&hop);
        }
    }

    fn ask_kernel(&mut self, hop: &Hop) {
        if let Some(ifindex) = ifindex(&self.config, &self.network, hop.0) {
            self.network.resolve(ifindex, hop.1);
        }
    }
}

impl Ear {
    /// Listens to this socket, if it does not yet.
    fn listen(&mut self, registry: &Registry, fd: Option<RawFd>) -> io::Result<()> {
        if fd == self.0 {
            return Ok(());
        }
        // The one before is closed. Until it is heard, it is not.
        self.0 = None;
        if let Some(fd) = fd {
            registry.register(&mut SourceFd(&fd), NFTABLES, Interest::READABLE)?;
        }
        self.0 = fd;
        Ok(())
    }
}

/// Notes the time since `start`, if none was longer.
fn longest(gauge: &Gauge, start: Instant) {
    let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    gauge.set(gauge.get().max(micros));
}

fn ifindex(config: &Config, network: &Network, nic: NicId) -> Option<u32> {
    let name = &config.nics.get(nic.index())?.name;
    network.mirror().link(name).map(|(index, _)| index)
}

fn known(config: &Config, network: &Network, hop: &Hop) -> Known {
    let neighbour = ifindex(config, network, hop.0)
        .and_then(|index| network.mirror().neighbours.get(&(index, hop.1)));
    match neighbour {
        Some(n) if n.is_fixed() => Known::Yes,
        Some(n) if n.usable().is_none() => Known::No,
        Some(n) if n.is_stale() => Known::Stale,
        Some(_) => Known::Yes,
        None => Known::No,
    }
}

fn set_up(
    config: Arc<Config>,
    mut network: Network,
    statistics: Arc<RouterStatistics>,
) -> Result<Prepared> {
    let poll = Poll::new().map_err(Error::Poll)?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(Error::Poll)?);
    poll.registry()
        .register(&mut SourceFd(&network.fd()), NETLINK, Interest::READABLE)
        .map_err(Error::Poll)?;
    network.ensure_adapter()?;
    network.ensure_sysctls(true)?;
    if config.rip.is_some() {
        network.inherit();
    }
    network.settle(true)?;
    let ports = Ports::of(&config);
    let mut requested = Requested::default();
    let now = Instant::now();
    for ((ifindex, address), neighbour) in &network.mirror().neighbours {
        // What the kernel knows at the start, connections of before may need at once.
        let nic = super::plan::routes::nic_of(&config, network.mirror(), *ifindex);
        if let (Some(nic), Some(_)) = (nic, neighbour.usable()) {
            requested.ask((nic, *address), Known::Yes, now);
        }
    }
    let around = Surroundings {
        reaches: &network.reaches(),
        health: network.health(),
        ephemeral: &ports.ephemeral,
        listening: &ports.listening,
        kept: &[],
    };
    let draft = draft(&config, network.mirror(), around, |hop| requested.contains(hop));
    let tables = Tables::open(&config, &draft, &ports.listening)?;
    let mut ear = Ear::default();
    ear.listen(poll.registry(), tables.fd()).map_err(Error::Poll)?;
    let sockets = Sockets::of(&config);
    Ok(Prepared {
        config,
        network,
        tables,
        ports,
        sockets,
        requested,
        draft,
        kept: Vec::new(),
        poll,
        ear,
        waker,
        statistics,
    })
}

/// A start that failed leaves the host as it was.
fn undo(state: &Path, adapter: &str) {
    match down::down(state, Some(adapter)) {
        Ok(report) => {
            for failure in report.failed {
                tracing::error!(failure, "could not be undone");
            }
        }
        Err(error) => tracing::error!(%error, "could not be undone"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_socket_that_could_not_be_listened_to_is_tried_again() {
        let (mut poll, mut ear) = (Poll::new().expect("a poll"), Ear::default());
        let (mut there, here) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert!(ear.listen(poll.registry(), Some(-1)).is_err());
        assert!(ear.listen(poll.registry(), Some(-1)).is_err(), "it is not taken for heard");
        let fd = Some(here.as_raw_fd());
        ear.listen(poll.registry(), fd).expect("it is open");
        ear.listen(poll.registry(), fd).expect("it is heard already");
        there.write_all(b"news").expect("it is open");
        let mut events = Events::with_capacity(1);
        poll.poll(&mut events, Some(TICK)).expect("it can be asked");
        assert!(events.iter().any(|event| event.token() == NFTABLES));
    }
}
