//! The monitor (L4–L6, L17): what is known of every instance of every application, gathered from its sources, and the
//! decision that follows from it. One type at three heights: over the status objects of instances it is an individual and a
//! replicated monitor in one (L17).
//!
//! Pure: readings and the time in, a [`PreferredTable`] out (L10). What asks the instances is [`super::schedule`]. A
//! decision is made when a reading arrives, and published at once; [`Monitor::tick`] sees to what changes without one:
//! connections that were given since, and slow starts.
//!
//! Of `monitor/`: `decide.rs` picks, `change.rs` is what a reload or an operator may change (L8, L9), `retired.rs` is what was taken away
//! and has connections, `table.rs` makes the table of it, `report.rs` tells of it.

mod change;
mod decide;
mod report;
mod retired;
mod table;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::candidate::{Candidate, Counts, State};
use super::service::{self, Settings};
use super::status::{self, Every, Failure, Reading, Role};
use crate::forward::preferred::{Choice, PreferredTable, ServerCounters, ServerId, ServiceId};
use crate::forward::publish::Publisher;

pub use change::Change;
pub use report::{BalanceStatus, ServerStatus, ServiceStatus, SwitchStatus, ValueStatus};

/// Switches that a service remembers.
const REMEMBERED: usize = 64;
/// How long the monitor waits for a tick while connections are given …
const BUSY: Duration = Duration::from_millis(20);
/// … and while none are.
const IDLE: Duration = Duration::from_millis(50);
/// A status object that failed is read again after so long, however long its period is.
const AGAIN: Duration = Duration::from_secs(5);
/// … and so soon while it is undecided whether its server is up.
const SOON: Duration = Duration::from_secs(1);
/// While it is undecided whether a server is up, it is asked this many times as often, …
const HASTE: u32 = 10;
/// … but not more often than this, and not less often than [`SOON`].
const HASTIEST: Duration = Duration::from_millis(50);

/// What services are set in.
#[derive(Clone, Debug)]
pub struct World {
    /// This host's VIPAs; the first of a family is its default source.
    pub vipas: Vec<IpAddr>,
    /// Workers of the data plane, each of which counts connections.
    pub workers: u8,
}

/// One status object of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The server.
    pub server: ServerId,
    /// The status object: never another's while the process lives.
    pub status: u32,
}

/// What is to be read.
#[derive(Clone, Debug)]
pub struct Watch {
    /// What it is called here.
    pub key: Key,
    /// How it is read.
    pub settings: Arc<status::Settings>,
    /// Of whom.
    pub instance: status::Instance,
    /// What the data plane counts of it.
    pub counters: Arc<ServerCounters>,
}

/// When to read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// After so long, plus or minus a little.
    After(Duration),
    /// When somebody asks.
    Asked,
    /// Never: it is wanted no more.
    Never,
}

/// Gathers, decides and publishes.
#[derive(Debug)]
pub struct Monitor {
    world: World,
    services: Vec<Service>,
    /// What was taken away and has connections.
    retired: Vec<retired::Retired>,
    /// The last of them ended.
    has_ended: bool,
    /// Where each server is: of which service, and which of its servers.
    places: HashMap<ServerId, (usize, usize), foldhash::fast::RandomState>,
    next: Numbers,
    table: PreferredTable,
    publisher: Publisher<PreferredTable>,
    /// Something in the table changed since it was published.
    is_changed: bool,
    /// Somebody's connections have another fate, and the workers were not woken yet.
    has_fates: bool,
    /// Readings taken, and those of them that failed.
    readings: (u64, u64),
}

/// The next free ones.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    service: usize,
    server: usize,
    status: u32,
}

#[derive(Debug)]
struct Service {
    id: ServiceId,
    /// As the file has it: a reload changes what differs from this.
    filed: Settings,
    /// As it is.
    settings: Settings,
    /// As its status objects are known by: in the order of `settings`.
    statuses: Vec<(u32, Arc<status::Settings>)>,
    roles: Vec<Option<Role>>,
    servers: Vec<Server>,
    sorry: Option<ServerId>,
    choice: Choice,
    /// Is it the choice of `when-none`?
    is_none_left: bool,
    /// Has every server been read once, or its first time to answer passed? Until then the choice is not one to keep.
    is_chosen: bool,
    /// The last one while there were servers.
    last: Option<Choice>,
    /// Of a weighted choice, what its table was made of.
    spread: Vec<(ServerId, f64)>,
    why: String,
    switches: VecDeque<Switch>,
}

#[derive(Debug)]
struct Server {
    id: ServerId,
    settings: service::Server,
    candidate: Candidate,
    /// What the data plane counts of it.
    counters: Arc<ServerCounters>,
    /// Connections that it had been given when each of its status objects was read.
    given_when_read: Vec<u64>,
    /// Those at the last tick.
    given: u64,
    /// Its weighted score at the last decision, or why it has none.
    score: Option<Result<f64, String>>,
}

/// Another choice.
#[derive(Clone, Debug)]
struct Switch {
    at: Instant,
    from: String,
    to: String,
    why: String,
}

impl Monitor {
    /// One without services, which publishes what it decides.
    pub fn new(world: World, publisher: Publisher<PreferredTable>) -> Monitor {
        Monitor {
            world,
            services: Vec::new(),
            retired: Vec::new(),
            has_ended: false,
            places: HashMap::default(),
            next: Numbers::default(),
            table: PreferredTable::default(),
            publisher,
            is_changed: false,
            has_fates: false,
            readings: (0, 0),
        }
    }

    /// Takes a reading, or why there is none, decides anew and publishes.
    pub fn take(&mut self, key: Key, result: Result<Reading, Failure>, now: Instant) -> Next {
        self.readings.0 += 1;
        self.readings.1 += u64::from(result.is_err());
        let Some(&(at, place)) = self.places.get(&key.server) else { return Next::Never };
        let service = &mut self.services[at];
        let Some(status) = service.statuses.iter().position(|(id, _)| *id == key.status) else {
            return Next::Never;
        };
        let counts = Counts { rise: service.settings.rise, fall: service.settings.fall };
        let every = service.statuses[status].1.every;
        let server = &mut service.servers[place];
        server.given_when_read[status] = server.counters.created();
        server.candidate.connections = server.counters.active();
        let check = &mut server.candidate.checks[status];
        // Nobody is asked again for what an application hands over.
        let is_hurried = !matches!(result, Err(Failure::Stale));
        check.take(result, counts, now);
        let is_undecided = check.is_undecided() && is_hurried;
        let next = match every {
            Every::Period(every) if is_undecided => {
                Next::After((every / HASTE).clamp(HASTIEST, SOON).min(every))
            }
            Every::Period(every) if check.failure().is_some() && is_hurried => {
                Next::After(every.min(AGAIN))
            }
            Every::Period(every) => Next::After(every),
            Every::Demand if is_undecided => Next::After(SOON),
            Every::Demand if check.failure().is_some() => Next::After(AGAIN),
            Every::Demand => Next::Asked,
        };
        self.settle(at, place, now);
        self.decide(at, now);
        self.publish();
        next
    }

    /// Looks at what changes without a reading. When to call it again; `None`: not before another change.
    pub fn tick(&mut self, now: Instant) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        for at in 0..self.services.len() {
            let service = &mut self.services[at];
            let slow = service.settings.slow_start;
            let counts = service.settings.policy.counts_connections(&service.roles);
            let mut is_watched = counts;
            let mut is_moved = false;
            for server in &mut service.servers {
                let candidate = &mut server.candidate;
                let given = server.counters.created();
                let is_given = given != std::mem::replace(&mut server.given, given);
                let is_limited =
                    candidate.checks.iter().any(|c| c.words().most_connections.is_some());
                let is_starting = candidate.state() == State::Up && candidate.ramp(slow, now) < 1.0;
                candidate.connections = server.counters.active();
                is_watched |= is_limited || is_starting;
                is_moved |= is_given && counts || is_limited || is_starting;
                if is_given {
                    next = Some(BUSY);
                }
            }
            if is_watched {
                next = next.or(Some(IDLE));
            }
            if is_moved {
                for place in 0..self.services[at].servers.len() {
                    self.settle(at, place, now);
                }
                self.decide(at, now);
            }
        }
        if self.forget_retired(now) {
            self.rebuild();
        }
        self.publish();
        next
    }

    /// Everything that is to be read.
    pub fn watches(&self) -> Vec<Watch> {
        let mut watches = Vec::new();
        for service in &self.services {
            for server in &service.servers {
                let instance = status::Instance {
                    service: service.settings.name.clone(),
                    server: server.settings.name.clone(),
                    address: server.address(&service.settings),
                    capacity: server.settings.capacity,
                };
                watches.extend(service.statuses.iter().map(|(id, settings)| Watch {
                    key: Key { server: server.id, status: *id },
                    settings: settings.clone(),
                    instance: instance.clone(),
                    counters: server.counters.clone(),
                }));
            }
        }
        watches
    }

    /// Are there no services, and nothing left of any?
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.retired.is_empty()
    }

    /// Has every status object of every server been read?
    pub fn is_read(&self) -> bool {
        let mut servers = self.services.iter().flat_map(|service| &service.servers);
        servers.all(|server| server.candidate.checks.iter().all(super::candidate::Check::is_read))
    }

    /// Has what becomes of any connection changed since the last call? Then the workers are to look at once, traffic or not.
    pub fn take_fates(&mut self) -> bool {
        std::mem::take(&mut self.has_fates)
    }

    /// What was published last.
    pub fn published(&self) -> &Arc<PreferredTable> {
        self.publisher.newest()
    }

    /// Works out a server's state, and what becomes of its connections.
    fn settle(&mut self, at: usize, place: usize, now: Instant) {
        let service = &mut self.services[at];
        let names: Vec<&str> = service.statuses.iter().map(|(_, status)| &*status.name).collect();
        let server = &mut service.servers[place];
        let Some(before) = server.candidate.settle(now) else { return };
        let (state, why) = (server.candidate.state(), server.candidate.why(&names));
        let (service, server) = (&service.settings.name, &server.settings.name);
        if state.is_dead() || state == State::Failing {
            crate::log::limited!(warn, %service, %server, was = before.name(), is = state.name(), why);
        } else {
            crate::log::limited!(info, %service, %server, was = before.name(), is = state.name(), why);
        }
    }
}

impl Server {
    fn new(
        id: ServerId,
        settings: service::Server,
        (checks, workers): (usize, u8),
        now: Instant,
    ) -> Server {
        Server {
            id,
            candidate: Candidate::new(checks, settings.weight, now),
            counters: Arc::new(ServerCounters::new(workers)),
            settings,
            given_when_read: vec![0; checks],
            given: 0,
            score: None,
        }
    }

    /// Where status objects find it: without a port of its own at the service's first.
    fn address(&self, service: &Settings) -> std::net::SocketAddr {
        let port = self.settings.port.unwrap_or(*service.ports.start());
        (self.settings.address, port).into()
    }
}
