//! A router that speaks RIP and RIPng, of our own making: what `rip` learns goes into the main table of its network.
//!
//! It forwards by the kernel, has no VIPA, and tells nothing; a thread in its network has the daemon's sockets. It knows of a path only
//! what its neighbours tell: it has neither probes nor BFD.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::error::Step;
use super::{Error, Hop, Namespace};
use crate::forward::view::NicId;
use crate::link::netlink;
use crate::rip::daemon::Interface;
use crate::rip::speaker::Speaker;
use crate::rip::{Learned, Settings};
use crate::wire::ip::Prefix;

const WAKER: Token = Token(0);
const NETLINK: Token = Token(1);
/// Sockets of RIP have the tokens from here on.
const SPEAKER: usize = 2;
/// Notices of the kernel taken at once; what they say is asked for anyway.
const NOTICES: usize = 1024;
/// What the kernel did not take is tried again so much later.
const AGAIN: Duration = Duration::from_millis(100);

/// Where a route leads: port and gateway of each way.
type Ways = Vec<(NicId, IpAddr)>;

/// The running router. Dropped, it ends; its routes stay.
#[derive(Debug)]
pub struct RipRouter {
    routes: Arc<Mutex<BTreeMap<Prefix, Ways>>>,
    ports: Vec<String>,
    is_over: Arc<AtomicBool>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

impl RipRouter {
    /// Listens and asks on `ports` of the network `router`, by the timers of the RFC.
    ///
    /// # Errors
    /// When the system has no descriptors or threads left.
    pub fn start(router: &Namespace, ports: &[String]) -> Result<RipRouter, Error> {
        let step = || format!("RIP in {}", router.name());
        let poll = Poll::new().step(step)?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER).step(step)?);
        let events = router.run(netlink::Events::open).step(step)?;
        poll.registry()
            .register(&mut SourceFd(&events.fd()), NETLINK, Interest::READABLE)
            .step(step)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let routes = Arc::default();
        let now = Instant::now();
        let daemon = Daemon {
            speaker: Speaker::new(
                &Settings::default(),
                ports.to_vec(),
                &[],
                Vec::new(),
                SPEAKER,
                now,
            ),
            router: router.clone(),
            ports: ports.to_vec(),
            events,
            wanted: BTreeMap::new(),
            routes: Arc::clone(&routes),
            again: None,
        };
        let ended = Arc::clone(&is_over);
        let thread = router.spawn("rip", move || daemon.run(poll, &ended))?;
        let ports = ports.to_vec();
        Ok(RipRouter { routes, ports, is_over, waker, thread: Some(thread) })
    }

    /// The ports by which `prefix` is reached now, as RIP told; none: it is not known.
    pub fn ways(&self, prefix: Prefix) -> Vec<&str> {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let ways = routes.get(&prefix).into_iter().flatten();
        ways.filter_map(|(nic, _)| self.ports.get(nic.index())).map(String::as_str).collect()
    }
}

impl Drop for RipRouter {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Daemon {
    speaker: Speaker,
    router: Namespace,
    ports: Vec<String>,
    events: netlink::Events,
    /// As RIP has it, and as the kernel took it.
    wanted: BTreeMap<Prefix, Ways>,
    routes: Arc<Mutex<BTreeMap<Prefix, Ways>>>,
    again: Option<Instant>,
}

impl Daemon {
    fn run(mut self, mut poll: Poll, is_over: &AtomicBool) {
        let mut events = Events::with_capacity(64);
        while !is_over.load(Ordering::Acquire) {
            let now = Instant::now();
            // Whatever happened, the ports are asked: their carrier comes later by itself.
            let _ = self.events.drain(NOTICES);
            self.speaker.follow(self.interfaces(), poll.registry(), now);
            self.speaker.turn(now);
            if let Some((learned, _)) = self.speaker.news(now) {
                self.wanted = learned
                    .into_iter()
                    .map(|Learned { prefix, ways }| (prefix, ways.to_vec()))
                    .collect();
                self.again = Some(now);
            }
            if self.again.is_some_and(|at| at <= now) {
                self.again = (!self.install()).then(|| now + AGAIN);
            }
            let deadline = [self.speaker.next_deadline(), self.again].into_iter().flatten().min();
            let wait = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            match poll.poll(&mut events, wait) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return,
                _ => {}
            }
        }
    }

    fn interfaces(&self) -> Vec<Interface> {
        let one = |(name, nic): (&String, NicId)| {
            let has_carrier = self.router.has_carrier(name).ok()?;
            Some(Interface {
                nic,
                is_live: has_carrier,
                has_carrier,
                is_waking: false,
                silent: Vec::new(),
                ifindex: self.router.index(name).ok()?,
                addresses: self.router.addresses(name).ok()?,
                mtu: self.router.mtu(name).ok()?,
            })
        };
        self.ports.iter().zip((0..).map(NicId)).filter_map(one).collect()
    }

    /// Makes the main table what RIP has; false: the kernel did not take all of it.
    fn install(&self) -> bool {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<Prefix> =
            routes.keys().filter(|prefix| !self.wanted.contains_key(prefix)).copied().collect();
        for prefix in gone {
            // One that is gone already needs no deleting.
            let _ = self.router.delete_route(&prefix.to_string());
            routes.remove(&prefix);
        }
        let mut is_whole = true;
        for (prefix, ways) in &self.wanted {
            if routes.get(prefix) == Some(ways) {
                continue;
            }
            match self.put(*prefix, ways) {
                Ok(()) => drop(routes.insert(*prefix, ways.clone())),
                Err(_) => is_whole = false,
            }
        }
        is_whole
    }

    fn put(&self, prefix: Prefix, ways: &Ways) -> Result<(), Error> {
        let named = ways
            .iter()
            .filter_map(|(nic, gateway)| Some((self.ports.get(nic.index())?, gateway.to_string())));
        let named: Vec<(&String, String)> = named.collect();
        let hops: Vec<Hop<'_>> =
            named.iter().map(|(port, gateway)| Hop::via(gateway).dev(port)).collect();
        self.router.route(&prefix.to_string(), &hops, None)
    }
}
