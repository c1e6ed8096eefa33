//! The daemon's mouth and ears: a socket for each live NIC and family, driven by the router's poll loop.

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::auth::Keyring;
use super::daemon::{Daemon, Datagram, GROUP, Input, Interface, NG_GROUP, Send};
use super::inherited::Inherited;
use super::recording::Recorder;
use super::{Advertise, Learned, NicSettings, Settings};
use crate::device::datagram::DatagramSocket;
use crate::forward::view::NicId;
use crate::wire::ip::Family;
use crate::wire::rip::{NG_PORT, PORT};

/// What an earlier run learned holds for so many updates; who answers requests tells it anew at once.
const TOLD_ANEW: u32 = 2;
/// Datagrams taken of one socket in a turn, so that no flood holds up news of the kernel.
const BUDGET: usize = 64;
/// While more comes in, the routes learned so far are told no more often.
const GATHERING: Duration = Duration::from_millis(20);
/// A full table of a neighbour comes in one burst.
const RECEIVE_BUFFER: i32 = 4 << 20;
/// RIPng's messages are bounded by the MTU; RIP's are 512 bytes and a digest.
const LARGEST: usize = 65_536;

/// What RIP did, counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Routes learned and in use.
    pub learned: u64,
    /// What was refused, by neighbour and reason.
    pub rejected: Vec<(IpAddr, &'static str, u64)>,
    /// Messages sent.
    pub sent: u64,
    /// Messages that could not be sent.
    pub unsent: u64,
    /// Messages heard, refused ones too.
    pub heard: u64,
    /// Families whose learned routes are told as unreachable, since the host does not forward.
    pub withheld: Vec<Family>,
}

/// One socket.
#[derive(Debug)]
struct Ear {
    nic: NicId,
    ifindex: u32,
    socket: DatagramSocket,
}

/// RIP and RIPng.
pub struct Speaker {
    names: Vec<String>,
    daemons: Vec<(Family, Daemon)>,
    /// Is what was learned told? Only then the host has to forward.
    is_router: bool,
    /// Of version 2.
    keys: Keyring,
    /// The key that is used since none is valid; as last told.
    stopgap: Option<u8>,
    recorder: Option<Recorder>,
    ears: Vec<Ear>,
    interfaces: Vec<Interface>,
    counts: Counts,
    /// As last told by [`Speaker::counts`]: messages, and families.
    counted: (u64, usize),
    is_unfinished: bool,
    /// As last told by [`Speaker::news`]; `None`: there is news in any case.
    told: Option<u64>,
    /// Since when there is more to tell.
    untold: Option<Instant>,
    inherited: Inherited,
    buffer: Box<[u8]>,
    /// Could not be opened; told once.
    refused: Vec<(NicId, Family)>,
    first_token: usize,
}

impl std::fmt::Debug for Speaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Speaker").field("ears", &self.ears).finish_non_exhaustive()
    }
}

impl Speaker {
    /// Speaks as `settings` say, by NICs of these names, and tells of `vipas`. `inherited` is what an earlier run learned. Its sockets
    /// have tokens from `first_token` on.
    pub fn new(
        settings: &Settings,
        names: Vec<String>,
        vipas: &[IpAddr],
        inherited: Vec<Learned>,
        first_token: usize,
        now: Instant,
    ) -> Speaker {
        let spoken = [(Family::V4, settings.is_v1 || settings.is_v2), (Family::V6, settings.is_ng)];
        let seed = wall_nanoseconds();
        let daemon = |family| Daemon::new(family, settings.clone(), vipas, seed, now);
        let daemons: Vec<(Family, Daemon)> = spoken
            .into_iter()
            .filter(|(_, is_spoken)| *is_spoken)
            .map(|(family, _)| (family, daemon(family)))
            .collect();
        let mut recorder = record(settings, now);
        for (family, _) in &daemons {
            recorder.iter_mut().for_each(|r| r.start(*family, settings, vipas, seed));
        }
        Speaker {
            names,
            daemons,
            is_router: settings.advertise == Advertise::All,
            keys: Keyring::new(settings.keys.clone(), settings.timeout),
            stopgap: None,
            recorder,
            ears: Vec::new(),
            interfaces: Vec::new(),
            counts: Counts::default(),
            counted: (0, 0),
            is_unfinished: false,
            told: Some(0),
            untold: None,
            inherited: Inherited::new(inherited, now + TOLD_ANEW * settings.update),
            buffer: vec![0; LARGEST].into_boxed_slice(),
            refused: Vec::new(),
            first_token,
        }
    }

    /// FIG. 3A, as the interfaces are now: those that came get sockets, those that went lose them, and what the neighbours should
    /// know of it is sent at once. One that is not live but has carrier is told good-bye by, and heard by for nothing.
    pub fn follow(&mut self, interfaces: Vec<Interface>, registry: &Registry, now: Instant) {
        self.open(&interfaces, registry);
        if interfaces != self.interfaces {
            self.interfaces = interfaces;
            for (family, daemon) in &mut self.daemons {
                let of_family: Vec<Interface> =
                    self.interfaces.iter().map(|interface| of_family(interface, *family)).collect();
                let input = Input::Interfaces(&of_family);
                feed(daemon, &mut self.recorder, *family, input, now);
            }
        }
        self.flush(now);
    }

    /// Other VIPAs, other NICs, or other settings of NICs; what has changed is told at once. All else that is set is as it was.
    pub fn reconfigure(
        &mut self,
        nics: &[NicSettings],
        names: Vec<String>,
        vipas: &[IpAddr],
        now: Instant,
    ) {
        let ids = (0..).map(NicId).zip(&self.names);
        let is_gone = |at: usize| names.get(at).is_none_or(String::is_empty);
        let left = ids.filter(|(nic, name)| !name.is_empty() && is_gone(nic.index()));
        let left: Vec<NicId> = left.map(|(nic, _)| nic).collect();
        self.names = names;
        if self.recorder.take().is_some() {
            tracing::warn!(
                "the recording of RIP ends: it cannot say that the configuration changed"
            );
        }
        for (_, daemon) in &mut self.daemons {
            left.iter().for_each(|nic| daemon.leave(*nic, now));
            daemon.reconfigure(nics.to_vec(), vipas, now);
        }
        self.flush(now);
    }

    /// Asks whether the host forwards, if that matters to what is told.
    pub fn ask_host(&mut self, forwards: impl Fn(Family) -> bool, now: Instant) {
        if !self.is_router {
            return;
        }
        for (family, daemon) in &mut self.daemons {
            let is_forwarding = forwards(*family);
            if is_forwarding == daemon.is_forwarding() {
                continue;
            }
            feed(daemon, &mut self.recorder, *family, Input::Forwarding(is_forwarding), now);
            if is_forwarding {
                tracing::info!(?family, "the host forwards again: learned routes are told");
            } else {
                tracing::warn!(
                    ?family,
                    "the host does not forward: learned routes are told as unreachable"
                );
            }
        }
        self.counts.withheld = self
            .daemons
            .iter()
            .filter(|(_, daemon)| !daemon.is_forwarding())
            .map(|(family, _)| *family)
            .collect();
        self.flush(now);
    }

    fn open(&mut self, interfaces: &[Interface], registry: &Registry) {
        let is_there = |ear: &Ear| {
            interfaces.iter().any(|i| i.nic == ear.nic && i.ifindex == ear.ifindex && i.has_carrier)
        };
        for ear in self.ears.extract_if(.., |ear| !is_there(ear)) {
            let _ = registry.deregister(&mut SourceFd(&ear.socket.fd()));
        }
        for interface in interfaces.iter().filter(|interface| interface.has_carrier) {
            for (family, _) in &self.daemons {
                let is_open =
                    |ear: &Ear| ear.nic == interface.nic && ear.socket.family() == *family;
                if self.ears.iter().any(is_open) {
                    continue;
                }
                let Some(name) = self.names.get(interface.nic.index()) else { continue };
                let key = (interface.nic, *family);
                let token = Token(
                    self.first_token
                        + interface.nic.index() * 2
                        + usize::from(*family == Family::V6),
                );
                let opened = open(*family, name, interface.ifindex).and_then(|socket| {
                    registry.register(&mut SourceFd(&socket.fd()), token, Interest::READABLE)?;
                    Ok(Ear { nic: interface.nic, ifindex: interface.ifindex, socket })
                });
                match opened {
                    Ok(ear) => {
                        self.refused.retain(|refused| *refused != key);
                        self.ears.push(ear);
                    }
                    Err(error) if !self.refused.contains(&key) => {
                        let hint = match error.kind() {
                            io::ErrorKind::AddrInUse => "; is another RIP daemon there?",
                            _ => "",
                        };
                        tracing::warn!(nic = name, %error, "RIP cannot be spoken by it{hint}");
                        self.refused.push(key);
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// Takes in what was heard, does what is due, and sends what that yields.
    pub fn turn(&mut self, now: Instant) {
        let wall = wall_seconds();
        self.look_at_keys(wall);
        self.is_unfinished = false;
        for ear in &self.ears {
            let family = ear.socket.family();
            let Some((_, daemon)) = self.daemons.iter_mut().find(|(of, _)| *of == family) else {
                continue;
            };
            for taken in 0.. {
                if taken == BUDGET {
                    self.is_unfinished = true;
                    break;
                }
                match ear.socket.receive(&mut self.buffer) {
                    Ok(heard) => {
                        self.counts.heard += 1;
                        let payload = &self.buffer[..heard.length.min(LARGEST)];
                        let message = match family {
                            Family::V4 => self.keys.verify(payload, heard.source.ip(), wall),
                            Family::V6 => Ok(Cow::Borrowed(payload)),
                        };
                        let datagram = Datagram {
                            nic: ear.nic,
                            source: heard.source,
                            ttl: heard.ttl,
                            is_multicast: heard.is_multicast,
                            message: message.as_deref().map_err(|reject| *reject),
                        };
                        feed(daemon, &mut self.recorder, family, Input::Heard(datagram), now);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // Nothing more; or an error of the device, which netlink tells of as well.
                    Err(_) => break,
                }
            }
        }
        if self.inherited.is_over(now) {
            self.told = None;
        }
        for (family, daemon) in &mut self.daemons {
            if daemon.next_deadline() <= now {
                feed(daemon, &mut self.recorder, *family, Input::Tick, now);
            }
        }
        self.flush(now);
    }

    /// RFC 2082 section 4.3: that the last key has ended is to be told.
    fn look_at_keys(&mut self, wall: u64) {
        let stopgap = self.keys.stopgap(wall);
        if stopgap == self.stopgap {
            return;
        }
        match stopgap {
            Some(key) => tracing::warn!(
                key,
                "no [[rip.key]] counts now: the last one to end is used all the same"
            ),
            None => tracing::info!("a [[rip.key]] counts again"),
        }
        self.stopgap = stopgap;
    }

    fn flush(&mut self, now: Instant) {
        let wall = wall_seconds();
        for (family, daemon) in &mut self.daemons {
            let sends = daemon.take_sends();
            if let Some(recorder) = &mut self.recorder {
                recorder.output(*family, daemon, &sends, now);
            }
            for Send { nic, from, to, message } in sends {
                let is_it = |ear: &&Ear| ear.nic == nic && ear.socket.family() == *family;
                let payload = match family {
                    Family::V4 => self.keys.sign(&message, wall),
                    Family::V6 => Cow::Borrowed(&message[..]),
                };
                let ear = self.ears.iter().find(is_it);
                let sent = ear.map(|ear| ear.socket.send(&payload, to, from));
                match sent {
                    Some(Ok(())) => self.counts.sent += 1,
                    Some(Err(_)) | None => self.counts.unsent += 1,
                }
            }
        }
        if let Some(Err(error)) = self.recorder.as_mut().map(Recorder::end_turn) {
            tracing::warn!(%error, "the recording of RIP ends");
            self.recorder = None;
        }
    }

    /// When [`Speaker::turn`] has something to do without being told anything.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.is_unfinished {
            return Some(Instant::now());
        }
        let daemons = self.daemons.iter().map(|(_, daemon)| daemon.next_deadline());
        daemons.chain(self.inherited.next_deadline()).min()
    }

    /// The learned routes, if they are other than the last time, and since when. What comes in one burst is told together.
    pub fn news(&mut self, now: Instant) -> Option<(Vec<Learned>, Instant)> {
        let version = self.daemons.iter().map(|(_, daemon)| daemon.version()).sum();
        if self.told == Some(version) {
            return None;
        }
        let since = *self.untold.get_or_insert(now);
        if self.is_unfinished && now.duration_since(since) < GATHERING {
            return None;
        }
        (self.told, self.untold) = (Some(version), None);
        let mut learned: Vec<Learned> =
            self.daemons.iter().flat_map(|(_, daemon)| daemon.learned()).collect();
        self.counts.learned = learned.len() as u64;
        self.inherited.add_to(&mut learned);
        Some((learned, since))
    }

    /// Tells the neighbours that nothing is to be reached by us any more.
    pub fn withdraw(&mut self, now: Instant) {
        for (family, daemon) in &mut self.daemons {
            feed(daemon, &mut self.recorder, *family, Input::Withdraw, now);
        }
        self.flush(now);
    }

    /// What was done since the last time, if anything was.
    pub fn counts(&mut self) -> Option<Counts> {
        let messages = self.counts.sent + self.counts.unsent + self.counts.heard;
        let done = (messages, self.counts.withheld.len());
        if done == self.counted {
            return None;
        }
        self.counted = done;
        let rejects = self.daemons.iter().flat_map(|(_, daemon)| daemon.rejects());
        let rejected = rejects.map(|((neighbour, reject), n)| (*neighbour, reject.name(), *n));
        Some(Counts { rejected: rejected.collect(), ..self.counts.clone() })
    }
}

fn of_family(interface: &Interface, family: Family) -> Interface {
    let mut one = interface.clone();
    one.addresses.retain(|(address, _)| Family::of(*address) == family);
    // Without an address there is nothing to speak with.
    one.is_live &= !one.addresses.is_empty() && !one.silent.contains(&family);
    one
}

fn open(family: Family, name: &str, ifindex: u32) -> io::Result<DatagramSocket> {
    let (port, hops, group) = match family {
        Family::V4 => (PORT, 64, IpAddr::V4(GROUP)),
        // RFC 2080 section 2.4.2
        Family::V6 => (NG_PORT, 255, IpAddr::V6(NG_GROUP)),
    };
    let socket = DatagramSocket::udp(family, name, port, hops)?;
    socket.set_receive_buffer(RECEIVE_BUFFER);
    socket.join(group, ifindex)?;
    Ok(socket)
}

/// Opens the recording that is wanted; that it cannot be written is no reason not to run.
fn record(settings: &Settings, now: Instant) -> Option<Recorder> {
    let path = settings.record.as_ref()?;
    match Recorder::create(path, now) {
        Ok(recorder) => {
            tracing::info!(path = %path.display(), "RIP is recorded");
            Some(recorder)
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "RIP is not recorded");
            None
        }
    }
}

fn feed(
    daemon: &mut Daemon,
    recorder: &mut Option<Recorder>,
    family: Family,
    input: Input<'_>,
    now: Instant,
) {
    if let Some(recorder) = recorder {
        recorder.input(family, input, now);
    }
    daemon.take(input, now);
}

fn wall_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn wall_nanoseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64)
}
