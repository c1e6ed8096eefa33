//! The router: one thread on mio that follows the network, tells the workers by views, and keeps what vipa
//! set up in place.
//!
//! A start is in two parts, since workers need the first view. [`Router::prepare`] sets everything up while
//! the adapter has no carrier, so that the kernel's own routes carry the traffic. [`Router::run`] attaches
//! the workers last: the carrier that gives is what leads packets to them.
//!
//! On news, workers come first: a NIC that died is out of their view before its routes are put right. What workers ask is answered in
//! `router/requests.rs`, who is around the host is heard and told in `router/neighbours.rs`, another configuration is taken in
//! `router/reload.rs`.

mod ear;
mod neighbours;
mod prepare;
mod reload;
mod requests;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use mio::{Events, Poll, Token, Waker};

use self::ear::Ear;
use super::mirror::Changed;
use super::net_view::{Draft, Surroundings, draft};
use super::network::Network;
use super::ports::Ports;
use super::resolve::{Hop, Requested};
use super::socket_facts::Sockets;
use super::tables::Tables;
use super::{Error, Result};
use crate::announce;
use crate::config::Config;
use crate::engine::leave::Leave;
use crate::engine::message::{Plane, Reload, Request};
use crate::engine::statistics::{Gauge, RouterStatistics};
use crate::forward::view::NetCell;
use crate::path::Target;
use crate::path::watcher::Watcher;
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
        self.prepared.tables.look();
        if self.prepared.tables.next_renewal().is_some_and(|at| at <= now) {
            self.prepared.tables.renew_lease();
        }
        self.hear(pending, now);
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
        prepared.ask_again(now);
        if let Some(speaker) = &mut self.speaker {
            speaker.ask_host(super::sysctl::forwards, now);
        }
    }
}

impl Prepared {
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
}

/// Notes the time since `start`, if none was longer.
fn longest(gauge: &Gauge, start: Instant) {
    let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    gauge.set(gauge.get().max(micros));
}
