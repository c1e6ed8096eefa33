//! The announcer's mouth and ears: ARP and ICMPv6 sockets of the NICs on whose links a VIPA lies, driven by the router's poll loop.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::announcer::{Announcer, Conflict, Message, News, Spot};
use super::{Place, Settings};
use crate::device::arp::ArpSocket;
use crate::device::datagram::{DatagramSocket, Heard};
use crate::forward::view::NicId;
use crate::log::limited;
use crate::path::Reject;
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::Family;
use crate::wire::neighbour::{ADVERTISEMENT, Advertisement, Arp, solicitation, solicited_node};

/// Packets taken of one socket in a turn, so that no flood holds up news of the kernel.
const BUDGET: usize = 64;
/// An advertisement with its options is far shorter.
const LARGEST: usize = 2048;
/// What is told for status is told no more often, unless something was sent or disputed.
const TELLING: Duration = Duration::from_secs(1);
/// RFC 4291 section 2.7.1
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A NIC on such a link, with carrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Which.
    pub nic: NicId,
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
}

/// What is to be announced, and by which NICs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scene {
    /// Each VIPA on each link.
    pub spots: BTreeMap<Place, Spot>,
    /// The NICs on these links.
    pub nics: Vec<Nic>,
    /// Ethernet addresses of this host.
    pub own: BTreeSet<MacAddr>,
}

/// What was announced and heard, for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Each VIPA on each link.
    pub places: Vec<PlaceCounts>,
    /// Messages that a NIC did not take.
    pub unsent: u64,
    /// What was heard and not taken, by reason.
    pub rejected: Vec<(&'static str, u64)>,
}

/// Of one VIPA on one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceCounts {
    /// Which.
    pub place: Place,
    /// The NIC that answers for it.
    pub home: Option<NicId>,
    /// Times that it was announced.
    pub announced: u64,
    /// Who else claims it.
    pub conflict: Option<Conflict>,
}

#[derive(Debug)]
enum Socket {
    Arp(ArpSocket),
    Advertisements(DatagramSocket),
}

#[derive(Debug)]
struct Ear {
    nic: Nic,
    family: Family,
    socket: Socket,
}

impl Ear {
    fn fd(&self) -> RawFd {
        match &self.socket {
            Socket::Arp(socket) => socket.fd(),
            Socket::Advertisements(socket) => socket.fd(),
        }
    }
}

/// Announces, and hears who disputes it.
pub struct Speaker {
    announcer: Announcer,
    names: Vec<String>,
    vipas: Vec<IpAddr>,
    scene: Scene,
    ears: Vec<Ear>,
    rejected: BTreeMap<Reject, u64>,
    unsent: u64,
    is_unfinished: bool,
    is_news: bool,
    told_at: Option<Instant>,
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
    /// For these VIPAs and `[[nic]]`s. Its sockets have two tokens a NIC from `first_token` on.
    pub fn new(
        settings: Settings,
        vipas: &[IpAddr],
        names: impl IntoIterator<Item = String>,
        first_token: usize,
    ) -> Speaker {
        Speaker {
            announcer: Announcer::new(settings),
            names: names.into_iter().collect(),
            vipas: vipas.to_vec(),
            scene: Scene::default(),
            ears: Vec::new(),
            rejected: BTreeMap::new(),
            unsent: 0,
            is_unfinished: false,
            is_news: true,
            told_at: None,
            refused: Vec::new(),
            first_token,
        }
    }

    /// Other settings, VIPAs or `[[nic]]`s.
    pub fn reconfigure(
        &mut self,
        settings: Settings,
        vipas: &[IpAddr],
        names: impl IntoIterator<Item = String>,
        now: Instant,
    ) {
        self.announcer.reconfigure(settings, now);
        self.names = names.into_iter().collect();
        if *vipas != *self.vipas {
            // The sockets hear of the VIPAs that there were: others are opened with the next scene, which is then a new one.
            self.vipas = vipas.to_vec();
            self.ears.clear();
            self.scene = Scene::default();
        }
    }

    /// The links as they are now. What is new or has moved is announced at once.
    pub fn follow(&mut self, scene: Scene, registry: &Registry, now: Instant) {
        if scene == self.scene {
            return;
        }
        let needed = needed(&scene);
        self.open(&needed, registry);
        self.announcer.follow(&scene.spots, &scene.own, now);
        self.is_news = true;
        self.speak(now);
        // Last: it takes the kernel ten milliseconds and more to close a packet socket.
        let is_needed = |ear: &Ear| needed.contains(&(&ear.nic, ear.family));
        for ear in self.ears.extract_if(.., |ear| !is_needed(ear)) {
            let _ = registry.deregister(&mut SourceFd(&ear.fd()));
        }
        self.scene = scene;
    }

    fn open(&mut self, needed: &[(&Nic, Family)], registry: &Registry) {
        for (nic, family) in needed.iter().copied() {
            if self.ears.iter().any(|ear| (&ear.nic, ear.family) == (nic, family)) {
                continue;
            }
            let number = nic.nic.index() * 2 + usize::from(family == Family::V6);
            let opened = self.socket(nic, family).and_then(|socket| {
                let ear = Ear { nic: nic.clone(), family, socket };
                let (fd, token) = (ear.fd(), Token(self.first_token + number));
                registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
                Ok(ear)
            });
            let key = (nic.nic, family);
            match opened {
                Ok(ear) => {
                    self.refused.retain(|refused| *refused != key);
                    self.ears.push(ear);
                }
                Err(error) if !self.refused.contains(&key) => {
                    tracing::warn!(nic = nic.name, %error, "nothing can be announced by it");
                    self.refused.push(key);
                }
                Err(_) => {}
            }
        }
    }

    fn socket(&self, nic: &Nic, family: Family) -> io::Result<Socket> {
        let v4 = |vipa: &IpAddr| match vipa {
            IpAddr::V4(vipa) => Some(*vipa),
            IpAddr::V6(_) => None,
        };
        Ok(match family {
            Family::V4 => {
                let vipas: Vec<Ipv4Addr> = self.vipas.iter().filter_map(v4).collect();
                Socket::Arp(ArpSocket::of_senders(nic.ifindex, &vipas)?)
            }
            Family::V6 => Socket::Advertisements(DatagramSocket::icmpv6(&nic.name, ADVERTISEMENT)?),
        })
    }

    /// Takes in what was heard, and does what is due.
    pub fn turn(&mut self, now: Instant) {
        self.is_unfinished = false;
        let mut buffer = [0; LARGEST];
        for ear in &self.ears {
            for taken in 0.. {
                if taken == BUDGET {
                    self.is_unfinished = true;
                    break;
                }
                let heard = match &ear.socket {
                    Socket::Arp(socket) => socket.receive().map(|(arp, _)| {
                        let arp = arp.ok_or(Reject::Malformed)?;
                        Ok((IpAddr::V4(arp.sender.1), Some(arp.sender.0)))
                    }),
                    Socket::Advertisements(socket) => socket
                        .receive(&mut buffer)
                        .map(|heard| claim(heard, buffer.get(..heard.length).unwrap_or_default())),
                };
                match heard {
                    Ok(Ok((address, _))) if !self.vipas.contains(&address) => {}
                    Ok(Ok((address, Some(mac)))) => {
                        self.announcer.hear(ear.nic.nic, address, mac, now);
                    }
                    // An answer to a question that went to all says it, and so does what is told unasked (RFC 4861 sections 7.2.4 and
                    // 7.2.6).
                    Ok(Ok((_, None))) => *self.rejected.entry(Reject::Nameless).or_default() += 1,
                    Ok(Err(reject)) => *self.rejected.entry(reject).or_default() += 1,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // Nothing more; or an error of the device, which netlink tells of as well.
                    Err(_) => break,
                }
            }
        }
        self.speak(now);
    }

    fn speak(&mut self, now: Instant) {
        self.announcer.tick(now);
        for message in self.announcer.take_messages() {
            self.is_news |= !message.is_question;
            if let Err(error) = self.send(&message) {
                self.unsent += 1;
                let (vipa, nic) = (message.place.0, self.name(message.nic));
                limited!(debug, %vipa, nic, %error, "could not be announced");
            }
        }
        for news in self.announcer.take_news() {
            self.is_news = true;
            match news {
                News::Disputed((vipa, _), conflict) => limited!(
                    warn,
                    %vipa,
                    nic = self.name(conflict.nic),
                    mac = %conflict.mac,
                    "another host claims this address"
                ),
                News::Settled((vipa, subnet)) => {
                    limited!(info, %vipa, %subnet, "no other host claims this address any more");
                }
            }
        }
    }

    fn send(&self, message: &Message) -> io::Result<()> {
        let family = Family::of(message.place.0);
        let is_meant = |ear: &&Ear| (ear.nic.nic, ear.family) == (message.nic, family);
        // The newest: one of a device that was made anew meanwhile may still be there.
        let ear = self.ears.iter().rev().find(is_meant).ok_or(io::ErrorKind::NotConnected)?;
        match (&ear.socket, message.place.0) {
            (Socket::Arp(socket), IpAddr::V4(vipa)) => {
                let arp = if message.is_question {
                    Arp::question((message.mac, Ipv4Addr::UNSPECIFIED), vipa)
                } else {
                    Arp::announcement(message.mac, vipa)
                };
                socket.send(&arp, None)
            }
            (Socket::Advertisements(socket), IpAddr::V6(vipa)) => {
                let (to, bytes) = if message.is_question {
                    (solicited_node(vipa), solicitation(message.mac, vipa))
                } else {
                    (ALL_NODES, Advertisement::announcement(message.mac, vipa))
                };
                let to = SocketAddrV6::new(to, 0, 0, ear.nic.ifindex);
                socket.send(&bytes, to.into(), None)
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn name(&self, nic: NicId) -> &str {
        self.names.get(nic.index()).map_or("", String::as_str)
    }

    /// When [`Speaker::turn`] has something to do without being told anything.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.is_unfinished {
            return Some(Instant::now());
        }
        self.announcer.next_deadline()
    }

    /// What was done, if it is news or has not been told for a while.
    pub fn counts(&mut self, now: Instant) -> Option<Counts> {
        let is_due = self.told_at.is_none_or(|at| now.duration_since(at) >= TELLING);
        if !self.is_news && !is_due {
            return None;
        }
        (self.is_news, self.told_at) = (false, Some(now));
        let places = self.announcer.iter().map(|(place, one)| PlaceCounts {
            place: *place,
            home: one.home(),
            announced: one.announced(),
            conflict: one.conflict(),
        });
        Some(Counts {
            places: places.collect(),
            unsent: self.unsent,
            rejected: self.rejected.iter().map(|(reject, n)| (reject.name(), *n)).collect(),
        })
    }
}

/// A socket of each family that is looked for on the link of each NIC.
fn needed(scene: &Scene) -> Vec<(&Nic, Family)> {
    let mut needed = Vec::new();
    for nic in &scene.nics {
        for family in Family::BOTH {
            let is_looked_for = |(place, spot): (&Place, &Spot)| {
                Family::of(place.0) == family && spot.nics.contains(&nic.nic)
            };
            if scene.spots.iter().any(is_looked_for) {
                needed.push((nic, family));
            }
        }
    }
    needed
}

/// Who claims what by an advertisement (RFC 4861 section 7.1.2).
fn claim(heard: Heard, bytes: &[u8]) -> Result<(IpAddr, Option<MacAddr>), Reject> {
    if heard.ttl != 255 {
        return Err(Reject::HopLimit);
    }
    let told = Advertisement::parse(bytes).ok_or(Reject::Malformed)?;
    if told.is_solicited && heard.is_multicast {
        return Err(Reject::Malformed);
    }
    Ok((told.target.into(), told.mac))
}
