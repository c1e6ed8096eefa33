//! The thread that asks: sockets and the time for [`Prober`] and [`Session`]. It waits for nothing but its sockets: what the kernel makes
//! the router wait for (a netlink request behind the kernel's lock may take a second) must not pass for a dead path.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use super::bfd::Session;
use super::prober::Prober;
use super::{Hop, Probe, Reject, Settings, State, Target};
use crate::device::arp::ArpSocket;
use crate::device::datagram::DatagramSocket;
use crate::engine::statistics::RouterStatistics;
use crate::forward::view::NicId;
use crate::wire::bfd;
use crate::wire::ip::Family;
use crate::wire::neighbour::{ADVERTISEMENT, Advertisement, Arp, solicitation, solicited_node};

const WAKER: Token = Token(usize::MAX);
/// Packets taken of one socket in a turn.
const BUDGET: usize = 64;
/// What is told for status is told no more often.
const TELLING: Duration = Duration::from_secs(1);
/// A turn that comes later than planned by more is late.
const LATE: Duration = Duration::from_millis(20);
/// RFC 5881 section 4, up to where Linux's own ephemeral ports usually end.
const SOURCE_PORTS: RangeInclusive<u16> = 49_152..=60_999;
/// Source ports tried for one session.
const TRIES: u16 = 256;
/// A session's end is told so often, since nobody confirms it: one loss, or two, do no harm. (RFC 5880 section 6.8.16 would have it
/// repeated for a detection time, which is longer than a stop should take.) …
const FAREWELLS: u32 = 3;
/// … and at this distance.
const FAREWELL_EVERY: Duration = Duration::from_millis(10);

/// What the watch has seen, for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Each next hop.
    pub paths: Vec<PathCounts>,
    /// What was not taken, by reason.
    pub rejected: Vec<(&'static str, u64)>,
    /// Turns that came too late.
    pub late: u64,
}

/// Of one next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathCounts {
    /// Which.
    pub hop: Hop,
    /// Its state.
    pub state: State,
    /// Times that it died.
    pub deaths: u64,
    /// Questions or BFD packets sent.
    pub sent: u64,
    /// Those that could not be sent.
    pub unsent: u64,
    /// Answers or BFD packets heard.
    pub heard: u64,
    /// Of the last answer; BFD knows none.
    pub round_trip: Option<Duration>,
}

/// The router's end. Dropped, it ends the watch.
#[derive(Debug)]
pub struct Watcher {
    targets: Sender<Vec<Target>>,
    reports: Receiver<(Hop, State)>,
    waker: Arc<Waker>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the thread in the network namespace of this one. `reserved` ports are not for it; `news` is called after each report.
    ///
    /// # Errors
    /// No thread, no poll.
    pub fn start(
        settings: Settings,
        reserved: RangeInclusive<u16>,
        statistics: Arc<RouterStatistics>,
        news: impl Fn() + Send + 'static,
    ) -> io::Result<Watcher> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let (targets, new_targets) = crossbeam_channel::unbounded();
        let (told, reports) = crossbeam_channel::unbounded();
        let is_over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&is_over);
        let thread = thread::Builder::new().name("path".to_owned()).spawn(move || {
            let seed = SystemTime::now().duration_since(UNIX_EPOCH);
            let watch = Watch {
                settings,
                reserved,
                watched: BTreeMap::new(),
                ears: BTreeMap::new(),
                rejected: BTreeMap::new(),
                late: 0,
                seed: seed.map_or(1, |since| since.as_nanos() as u64) | 1,
                told_at: None,
                is_news: false,
                told,
                statistics,
            };
            watch.run(poll, &new_targets, &ended, news);
        })?;
        Ok(Watcher { targets, reports, waker, is_over, thread: Some(thread) })
    }

    /// What is to be watched from now on.
    pub fn follow(&self, targets: Vec<Target>) {
        let _ = self.targets.send(targets);
        let _ = self.waker.wake();
    }

    /// What has changed.
    pub fn reports(&self) -> impl Iterator<Item = (Hop, State)> + '_ {
        self.reports.try_iter()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket of one NIC.
#[derive(Debug)]
enum Socket {
    Arp(ArpSocket),
    Advertisements(DatagramSocket),
    Bfd(DatagramSocket),
}

/// What is heard on a NIC: of ARP, of advertisements, of BFD in each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Neighbour(Family),
    Bfd(Family),
}

impl Kind {
    fn token(self, nic: NicId) -> Token {
        let number = match self {
            Kind::Neighbour(Family::V4) => 0,
            Kind::Neighbour(Family::V6) => 1,
            Kind::Bfd(Family::V4) => 2,
            Kind::Bfd(Family::V6) => 3,
        };
        Token(nic.index() * 4 + number)
    }
}

#[derive(Debug)]
struct Ear {
    ifindex: u32,
    socket: Socket,
}

impl Ear {
    fn fd(&self) -> std::os::fd::RawFd {
        match &self.socket {
            Socket::Arp(socket) => socket.fd(),
            Socket::Advertisements(socket) | Socket::Bfd(socket) => socket.fd(),
        }
    }
}

#[derive(Debug)]
enum Method {
    Neighbour(Prober),
    Bfd(Box<Spoken>),
}

/// A session and its socket.
#[derive(Debug)]
struct Spoken {
    session: Session,
    socket: DatagramSocket,
    /// While the session is dead: does the next hop answer at all? A session takes a second and more to come up, and the hold-down
    /// need not wait for it.
    waking: Option<Prober>,
}

impl Spoken {
    fn state(&self) -> State {
        let answers = self.waking.as_ref().is_some_and(|prober| prober.state() == State::Up);
        match self.session.state() {
            State::Dead if answers => State::Waking,
            state => state,
        }
    }

    fn next_deadline(&self) -> Instant {
        let next = self.session.next_deadline();
        self.waking.as_ref().map_or(next, |prober| prober.next_deadline().min(next))
    }

    /// Is the next hop to be asked whether it answers?
    fn wakes(&mut self, settings: &Settings, now: Instant) -> bool {
        if self.session.state() != State::Dead {
            self.waking = None;
            return false;
        }
        self.waking.get_or_insert_with(|| Prober::new(settings, false, now)).tick(now)
    }
}

#[derive(Debug)]
struct Watched {
    target: Target,
    method: Method,
    /// Ethernet address of the last answer.
    mac: Option<crate::wire::ethernet::MacAddr>,
    state: State,
    counts: PathCounts,
}

impl Watched {
    fn state(&self) -> State {
        match &self.method {
            Method::Neighbour(prober) => prober.state(),
            Method::Bfd(spoken) => spoken.state(),
        }
    }

    fn next_deadline(&self) -> Instant {
        match &self.method {
            Method::Neighbour(prober) => prober.next_deadline(),
            Method::Bfd(spoken) => spoken.next_deadline(),
        }
    }
}

struct Watch {
    settings: Settings,
    reserved: RangeInclusive<u16>,
    watched: BTreeMap<Hop, Watched>,
    ears: BTreeMap<(NicId, Kind), Ear>,
    rejected: BTreeMap<Reject, u64>,
    late: u64,
    seed: u64,
    told_at: Option<Instant>,
    is_news: bool,
    told: Sender<(Hop, State)>,
    statistics: Arc<RouterStatistics>,
}

impl Watch {
    fn run(
        mut self,
        mut poll: Poll,
        new_targets: &Receiver<Vec<Target>>,
        is_over: &AtomicBool,
        news: impl Fn(),
    ) {
        let mut events = Events::with_capacity(64);
        let mut unfinished: Vec<Token> = Vec::new();
        loop {
            let now = Instant::now();
            let deadline = self.watched.values().map(Watched::next_deadline).min();
            let wait = deadline.map(|at| at.saturating_duration_since(now));
            let wait = if unfinished.is_empty() { wait } else { Some(Duration::ZERO) };
            match poll.poll(&mut events, wait) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // Nothing to poll with, nothing to watch with; what is known stands.
                Err(error) => return tracing::error!(%error, "paths are no longer watched"),
                Ok(()) => {}
            }
            if is_over.load(Ordering::Acquire) {
                return self.end();
            }
            if let Some(targets) = new_targets.try_iter().last() {
                self.follow(targets, poll.registry());
            }
            let mut ready = std::mem::take(&mut unfinished);
            ready.extend(events.iter().map(|event| event.token()));
            // What has come in counts before what has not.
            unfinished = ready.into_iter().filter(|token| self.hear(*token)).collect();
            let now = Instant::now();
            self.late += u64::from(deadline.is_some_and(|at| now > at + LATE));
            self.ask(now);
            if self.report(now) {
                news();
            }
        }
    }

    /// Who has a session is told that its end means nothing: one who misses that drops the routes by us.
    fn end(&mut self) {
        for time in 0..FAREWELLS {
            if time > 0 {
                thread::sleep(FAREWELL_EVERY);
            }
            let mut is_said = false;
            for watched in self.watched.values_mut() {
                if let Method::Bfd(spoken) = &mut watched.method {
                    let bytes = spoken.session.withdraw();
                    let _ = send_bfd(&spoken.socket, &watched.target, &bytes);
                    is_said = true;
                }
            }
            if !is_said {
                return;
            }
        }
    }

    fn follow(&mut self, targets: Vec<Target>, registry: &Registry) {
        let now = Instant::now();
        let find = |hop: &Hop| targets.iter().find(|target| target.hop == *hop);
        // A device made anew is another path.
        self.watched.retain(|hop, watched| {
            find(hop).is_some_and(|target| target.ifindex == watched.target.ifindex)
        });
        let mut needed: BTreeMap<(NicId, Kind), &Target> = BTreeMap::new();
        for target in &targets {
            needed.insert((target.hop.0, self.kind(target.hop.1)), target);
            // With BFD as well: see `Spoken::waking`.
            needed.insert((target.hop.0, Kind::Neighbour(Family::of(target.hop.1))), target);
        }
        self.ears.retain(|key, ear| {
            let is_needed = needed.get(key).is_some_and(|target| target.ifindex == ear.ifindex);
            if !is_needed {
                let _ = registry.deregister(&mut SourceFd(&ear.fd()));
            }
            is_needed
        });
        for (key, target) in needed {
            if self.ears.contains_key(&key) {
                continue;
            }
            match open(key.1, target) {
                Ok(ear) => {
                    let token = key.1.token(key.0);
                    let fd = ear.fd();
                    if registry.register(&mut SourceFd(&fd), token, Interest::READABLE).is_ok() {
                        self.ears.insert(key, ear);
                    }
                }
                Err(error) => {
                    tracing::warn!(nic = target.name, %error, "its paths cannot be watched");
                }
            }
        }
        for target in targets {
            // Without an ear nothing would ever answer.
            if !self.ears.contains_key(&(target.hop.0, self.kind(target.hop.1))) {
                continue;
            }
            if let Some(watched) = self.watched.get_mut(&target.hop) {
                watched.target = target;
                continue;
            }
            match self.watched(target, now) {
                Ok(watched) => drop(self.watched.insert(watched.target.hop, watched)),
                Err(error) => tracing::warn!(%error, "a path cannot be watched"),
            }
        }
        self.is_news = true;
    }

    fn kind(&self, address: IpAddr) -> Kind {
        let family = Family::of(address);
        if self.settings.probe == Probe::Bfd { Kind::Bfd(family) } else { Kind::Neighbour(family) }
    }

    fn watched(&mut self, target: Target, now: Instant) -> io::Result<Watched> {
        let has_answered = target.has_answered;
        let method = match self.settings.probe {
            Probe::Bfd => {
                let seed = self.random();
                let discr = self.discriminator();
                let session = Session::new(&self.settings.bfd, discr, has_answered, seed, now);
                let socket = self.source(&target)?;
                Method::Bfd(Box::new(Spoken { session, socket, waking: None }))
            }
            _ => Method::Neighbour(Prober::new(&self.settings, has_answered, now)),
        };
        let state = if has_answered { State::Up } else { State::Unknown };
        let counts = PathCounts {
            hop: target.hop,
            state,
            deaths: 0,
            sent: 0,
            unsent: 0,
            heard: 0,
            round_trip: None,
        };
        Ok(Watched { target, method, mac: None, state, counts })
    }

    /// A socket with a source port of its own (RFC 5881 section 4).
    fn source(&mut self, target: &Target) -> io::Result<DatagramSocket> {
        let ports = SOURCE_PORTS.len() as u64;
        let first = self.random() % ports;
        let mut failed = io::Error::from(io::ErrorKind::AddrInUse);
        for at in 0..u64::from(TRIES) {
            let port = SOURCE_PORTS.start() + ((first + at) % ports) as u16;
            if self.reserved.contains(&port) {
                continue;
            }
            match DatagramSocket::udp(Family::of(target.hop.1), &target.name, port, 255) {
                Ok(socket) => return Ok(socket),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Not 0, and no other session's.
    fn discriminator(&mut self) -> u32 {
        let is_taken = |watch: &Watch, discr: u32| {
            watch.watched.values().any(|watched| match &watched.method {
                Method::Bfd(spoken) => spoken.session.local_discr() == discr,
                Method::Neighbour(_) => false,
            })
        };
        loop {
            let discr = self.random() as u32;
            if discr != 0 && !is_taken(self, discr) {
                return discr;
            }
        }
    }

    /// Takes in what has come; true if there may be more.
    fn hear(&mut self, token: Token) -> bool {
        let is_it = |((nic, kind), _): &(&(NicId, Kind), &Ear)| kind.token(*nic) == token;
        let Some((&(nic, _), ear)) = self.ears.iter().find(is_it) else { return false };
        let mut buffer = [0u8; 2048];
        for _ in 0..BUDGET {
            let now = Instant::now();
            let taken = match &ear.socket {
                Socket::Arp(socket) => socket.receive().map(|(arp, is_ours)| match arp {
                    Some(arp) if arp.is_reply && is_ours => {
                        let hop = (nic, arp.sender.1.into());
                        answered(&mut self.watched, hop, Some(arp.sender.0), now);
                        Ok(())
                    }
                    Some(_) => Ok(()),
                    None => Err(Reject::Malformed),
                }),
                Socket::Advertisements(socket) => socket.receive(&mut buffer).map(|heard| {
                    // RFC 4861 section 7.1.2
                    if heard.ttl != 255 {
                        return Err(Reject::HopLimit);
                    }
                    let bytes = buffer.get(..heard.length).unwrap_or_default();
                    let told = Advertisement::parse(bytes).ok_or(Reject::Malformed)?;
                    if told.is_solicited {
                        answered(&mut self.watched, (nic, told.target.into()), told.mac, now);
                    }
                    Ok(())
                }),
                Socket::Bfd(socket) => socket.receive(&mut buffer).map(|heard| {
                    // RFC 5881 section 5
                    if heard.ttl != 255 {
                        return Err(Reject::HopLimit);
                    }
                    let bytes = buffer.get(..heard.length).unwrap_or_default();
                    hear_bfd(&mut self.watched, (nic, heard.source.ip()), bytes, now)
                }),
            };
            match taken {
                Ok(Ok(())) => {}
                Ok(Err(reject)) => *self.rejected.entry(reject).or_default() += 1,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing more; or an error of the device, which netlink tells of as well.
                Err(_) => return false,
            }
        }
        true
    }

    fn ask(&mut self, now: Instant) {
        let ears = &self.ears;
        let ask = |target: &Target, mac| {
            let kind = Kind::Neighbour(Family::of(target.hop.1));
            let ear = ears.get(&(target.hop.0, kind))?;
            Some(ask_neighbour(&ear.socket, target, mac))
        };
        for Watched { target, method, mac, counts, .. } in self.watched.values_mut() {
            let sent = match method {
                Method::Neighbour(prober) => {
                    let is_asked = prober.tick(now);
                    let mac = mac.filter(|_| !prober.is_doubtful());
                    [is_asked.then(|| ask(target, mac)).flatten(), None]
                }
                Method::Bfd(spoken) => {
                    let bytes = spoken.session.tick(now);
                    let told = bytes.map(|bytes| send_bfd(&spoken.socket, target, &bytes));
                    let is_asked = spoken.wakes(&self.settings, now);
                    [told, is_asked.then(|| ask(target, None)).flatten()]
                }
            };
            for sent in sent.into_iter().flatten() {
                match sent {
                    Ok(()) => counts.sent += 1,
                    Err(_) => counts.unsent += 1,
                }
            }
        }
    }

    /// Tells the router what has changed; true if anything has.
    fn report(&mut self, now: Instant) -> bool {
        let mut is_told = false;
        for (hop, watched) in &mut self.watched {
            let state = watched.state();
            if state != watched.state {
                watched.counts.deaths += u64::from(state == State::Dead);
                watched.state = state;
                let _ = self.told.send((*hop, state));
                is_told = true;
            }
        }
        self.is_news |= is_told;
        let is_due = self.told_at.is_none_or(|at| now.duration_since(at) >= TELLING);
        if self.is_news || is_due {
            (self.is_news, self.told_at) = (false, Some(now));
            let paths = self.watched.values().map(|watched| PathCounts {
                state: watched.state,
                round_trip: match &watched.method {
                    Method::Neighbour(prober) => prober.round_trip(),
                    Method::Bfd(..) => None,
                },
                ..watched.counts.clone()
            });
            let counts = Counts {
                paths: paths.collect(),
                rejected: self.rejected.iter().map(|(reject, n)| (reject.name(), *n)).collect(),
                late: self.late,
            };
            self.statistics.paths.store(Some(Arc::new(counts)));
        }
        is_told
    }

    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }
}

fn open(kind: Kind, target: &Target) -> io::Result<Ear> {
    let name = &target.name;
    let socket = match kind {
        Kind::Neighbour(Family::V4) => Socket::Arp(ArpSocket::open(target.ifindex)?),
        Kind::Neighbour(Family::V6) => {
            Socket::Advertisements(DatagramSocket::icmpv6(name, ADVERTISEMENT)?)
        }
        Kind::Bfd(family) => Socket::Bfd(DatagramSocket::udp(family, name, bfd::PORT, 255)?),
    };
    Ok(Ear { ifindex: target.ifindex, socket })
}

fn answered(
    watched: &mut BTreeMap<Hop, Watched>,
    hop: Hop,
    mac: Option<crate::wire::ethernet::MacAddr>,
    now: Instant,
) {
    let Some(watched) = watched.get_mut(&hop) else { return };
    let prober = match &mut watched.method {
        Method::Neighbour(prober) => Some(prober),
        Method::Bfd(spoken) => spoken.waking.as_mut(),
    };
    if let Some(prober) = prober {
        watched.counts.heard += 1;
        watched.mac = mac.or(watched.mac);
        prober.answered(now);
    }
}

/// RFC 5880 section 6.8.6: by our number of the session, or, before the other knows it, by who sends.
fn hear_bfd(
    watched: &mut BTreeMap<Hop, Watched>,
    from: Hop,
    bytes: &[u8],
    now: Instant,
) -> Result<(), Reject> {
    let (packet, signed) = bfd::parse(bytes).map_err(|_| Reject::Malformed)?;
    let one = watched.values_mut().find(|one| match &one.method {
        Method::Bfd(spoken) if packet.your != 0 => {
            spoken.session.local_discr() == packet.your && one.target.hop.0 == from.0
        }
        Method::Bfd(..) => one.target.hop == from,
        Method::Neighbour(_) => false,
    });
    let Some(Watched { method: Method::Bfd(spoken), counts, .. }) = one else {
        return Err(Reject::NoSession);
    };
    spoken.session.receive(&packet, &signed, bytes, now)?;
    counts.heard += 1;
    Ok(())
}

/// `mac`: to this one alone; else to all who may be meant.
fn ask_neighbour(
    socket: &Socket,
    target: &Target,
    mac: Option<crate::wire::ethernet::MacAddr>,
) -> io::Result<()> {
    match (socket, target.hop.1) {
        (Socket::Arp(socket), IpAddr::V4(address)) => {
            let source = target.source.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
            socket.send(&Arp::question((target.mac, source), address), mac)
        }
        (Socket::Advertisements(socket), IpAddr::V6(address)) => {
            let to = if mac.is_some() { address } else { solicited_node(address) };
            let to = SocketAddrV6::new(to, 0, 0, target.ifindex);
            socket.send(&solicitation(target.mac, address), to.into(), None)
        }
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn send_bfd(socket: &DatagramSocket, target: &Target, bytes: &[u8]) -> io::Result<()> {
    let to = match target.hop.1 {
        IpAddr::V4(address) => SocketAddr::new(address.into(), bfd::PORT),
        IpAddr::V6(address) => SocketAddrV6::new(address, bfd::PORT, 0, target.ifindex).into(),
    };
    socket.send(bytes, to, target.source.map(IpAddr::V4))
}
