//! The daemon of one family: FIG. 3A, FIG. 3B, and RFC 2453 section 3.9 (RFC 2080 section 2.4). Pure: what it wants sent waits in
//! [`Daemon::take_sends`], what it learned is in [`Daemon::learned`].
//!
//! *The reserve.* The VIPAs go out one unit longer than they need to be. A neighbour that hears two of our NICs and loses the path to
//! one of them would keep to it until its timeout. When one of our paths dies the live NICs tell the shorter metric for that long: a
//! shorter route replaces at once whatever the neighbour had (FIG. 3B 346–348).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use super::auth::{self, Keyring};
use super::table::{Full, Heard, Origin, Route, Table};
use super::{Advertise, Learned, NicSettings, Reject, Settings};
use crate::forward::view::NicId;
use crate::wire::ip::{Family, Prefix};
use crate::wire::rip::{
    self, Command, Entry, INFINITY, Item, MOST_ENTRIES, Message, NG_PORT, PORT, Told, Version,
};

/// RFC 2453 section 3.10.1: between triggered updates, 1 to 5 seconds.
const TRIGGERED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// RFC 2453 section 3.8: full updates are spread by up to this share of their period, either way, lest routers fall into step.
const JITTER: u32 = 6;
/// A neighbour whose end of the link comes up later than ours hears nothing of the first request: it is asked again, so often …
const REQUESTS: u8 = 5;
/// … after so long, then after twice as long each time, until one answers (FRR hears nothing in the first second of a link).
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// A neighbour that speaks BFD forgets whom it has not heard of since the path died: it is reminded this often, so that a path is known
/// to be healed as soon as it is.
const REMINDER: Duration = Duration::from_millis(250);
/// Neighbours of which rejections are counted.
const NEIGHBOURS: usize = 256;

/// 224.0.0.9 (RFC 2453 section 4.5).
pub const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 9);
/// ff02::9 (RFC 2080 section 2.5.1).
pub const NG_GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 9);

/// A real interface, as of now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Which `[[nic]]`.
    pub nic: NicId,
    /// Does it carry traffic?
    pub is_live: bool,
    /// Can anything be sent by it at all?
    pub has_carrier: bool,
    /// Families of which nobody behind it answers any more.
    pub silent: Vec<Family>,
    /// The kernel's index, for link-local addresses.
    pub ifindex: u32,
    /// Its addresses and the lengths of their networks; of IPv6 the link-local ones too.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Bytes of its largest packet.
    pub mtu: u32,
}

impl Interface {
    fn is_on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V6(address) => address.is_unicast_link_local(),
            IpAddr::V4(_) => self
                .addresses
                .iter()
                .filter_map(|(own, length)| Prefix::new(*own, *length))
                .any(|network| network.contains(address)),
        }
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|(own, _)| *own == address)
    }

    /// Of IPv6 no link-local ones: they are nobody else's business.
    fn networks(&self) -> impl Iterator<Item = Prefix> {
        self.addresses
            .iter()
            .filter(|(address, _)| !matches!(address, IpAddr::V6(a) if a.is_unicast_link_local()))
            .filter_map(|(address, length)| Prefix::new(*address, *length))
    }
}

/// What came in.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// By this NIC.
    pub nic: NicId,
    /// From there.
    pub source: SocketAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Sent to the group, not to us alone.
    pub is_multicast: bool,
    /// Behind the UDP header.
    pub payload: &'a [u8],
}

/// What is to go out, with the NIC's own address as its source (V5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// By this NIC.
    pub nic: NicId,
    /// To there; a group, the broadcast address, or a neighbour.
    pub to: SocketAddr,
    /// Behind the UDP header.
    pub payload: Vec<u8>,
}

/// Rejections of one neighbour.
pub type Rejects = BTreeMap<(IpAddr, Reject), u64>;

/// What a round of updates is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Everything,
    News,
}

/// The daemon.
#[derive(Debug)]
pub struct Daemon {
    family: Family,
    settings: Settings,
    vipas: Vec<IpAddr>,
    interfaces: Vec<Interface>,
    table: Table,
    keys: Keyring,
    sends: Vec<Send>,
    rejects: Rejects,
    next_update: Instant,
    /// No triggered update before then.
    quiet_until: Option<Instant>,
    /// News wait.
    is_triggered: bool,
    next_aging: Instant,
    /// The shorter metric is told until then.
    reserve_until: Option<Instant>,
    is_withdrawn: bool,
    /// NICs by which nobody has answered yet: when to ask again, and how often it was asked again.
    asking: Vec<(NicId, Instant, u8)>,
    /// When those behind dead paths are reminded of us.
    next_reminder: Option<Instant>,
    seed: u64,
}

impl Daemon {
    /// Of one family; `seed` spreads its updates.
    pub fn new(
        family: Family,
        settings: Settings,
        vipas: &[IpAddr],
        seed: u64,
        now: Instant,
    ) -> Daemon {
        let keys = if family == Family::V4 { settings.keys.clone() } else { Vec::new() };
        let mut daemon = Daemon {
            family,
            vipas: vipas.iter().copied().filter(|vipa| Family::of(*vipa) == family).collect(),
            interfaces: Vec::new(),
            table: Table::default(),
            keys: Keyring::new(keys),
            sends: Vec::new(),
            rejects: Rejects::new(),
            next_update: now,
            quiet_until: None,
            is_triggered: false,
            next_aging: now + settings.timeout,
            reserve_until: None,
            is_withdrawn: false,
            asking: Vec::new(),
            next_reminder: None,
            seed: seed | 1,
            settings,
        };
        daemon.next_update = now + daemon.period();
        daemon
    }

    /// What is to be sent, oldest first.
    pub fn take_sends(&mut self) -> Vec<Send> {
        std::mem::take(&mut self.sends)
    }

    /// How often what was refused of whom.
    pub fn rejects(&self) -> &Rejects {
        &self.rejects
    }

    /// The table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Rises whenever [`Daemon::learned`] has changed.
    pub fn version(&self) -> u64 {
        self.table.version()
    }

    /// The routes that neighbours told of and that lead somewhere.
    pub fn learned(&self) -> impl Iterator<Item = Learned> {
        self.table.iter().filter_map(|(prefix, route)| match &route.origin {
            Origin::Learned(ways) if route.garbage.is_none() => {
                let mut ways: Vec<_> = ways.iter().map(|way| (way.nic, way.gateway)).collect();
                ways.sort_unstable();
                ways.dedup();
                Some(Learned { prefix: *prefix, ways })
            }
            _ => None,
        })
    }

    /// When [`Daemon::tick`] has something to do.
    pub fn next_deadline(&self) -> Instant {
        let triggered = self.is_triggered.then(|| self.quiet_until.unwrap_or(self.next_update));
        let asked = self.asking.iter().map(|(_, at, _)| *at).min();
        [triggered, self.reserve_until, Some(self.next_aging), asked, self.next_reminder]
            .into_iter()
            .flatten()
            .fold(self.next_update, Instant::min)
    }

    /// FIG. 3A, at its timer and at any news of an interface. `wall`: seconds since 1970, for signatures.
    pub fn interface_timer(&mut self, interfaces: &[Interface], now: Instant, wall: u64) {
        let is_path_lost = self.interfaces.iter().any(|old| {
            old.is_live && !interfaces.iter().any(|new| new.nic == old.nic && new.is_live)
        });
        let before = std::mem::replace(&mut self.interfaces, interfaces.to_vec());
        let garbage = now + self.settings.garbage;
        let mut reactivated = Vec::new();
        // 303–315: the virtual adapter first, whose routes (319) never time out (307).
        if is_path_lost {
            self.reserve_until = Some(now + self.settings.timeout);
        }
        self.put_virtual(garbage);
        for interface in interfaces {
            let networks: Vec<Prefix> = interface.networks().collect();
            let keep = |prefix: &Prefix| networks.contains(prefix);
            if !interface.is_live {
                // 311, 313
                self.table.fail_nic(interface.nic, |_| false, garbage);
                continue;
            }
            self.table.drop_real(interface.nic, keep, garbage);
            // 321
            for network in &networks {
                self.table.put_real(*network, interface.nic, self.nic(interface.nic).cost);
            }
            let was_live = before.iter().any(|old| old.nic == interface.nic && old.is_live);
            if !was_live {
                reactivated.push(interface.clone());
            }
        }
        for old in &before {
            if !interfaces.iter().any(|new| new.nic == old.nic) {
                self.table.fail_nic(old.nic, |_| false, garbage);
            }
        }
        self.asking.retain(|(nic, ..)| interfaces.iter().any(|i| i.nic == *nic && i.is_live));
        for interface in &reactivated {
            self.greet(interface, wall);
            self.asking.push((interface.nic, now + ASK_AGAIN, 0));
        }
        let is_awaited = interfaces.iter().any(|interface| self.is_awaited(interface));
        let next = self.next_reminder.unwrap_or(now + REMINDER);
        self.next_reminder = is_awaited.then_some(next);
        self.next_aging = self.next_aging.min(garbage);
        if is_path_lost {
            // All VIPAs in full, in the same tick, whatever was sent a moment ago.
            self.broadcast(About::Everything, wall);
            self.table.told();
            self.is_triggered = false;
            self.quiet(now);
        } else if self.table.is_changed() {
            self.trigger(now, wall);
        }
    }

    fn put_virtual(&mut self, garbage: Instant) {
        let metric = self.virtual_metric();
        let mut wanted: Vec<Prefix> = self.vipas.iter().copied().map(Prefix::host).collect();
        if self.is_withdrawn {
            wanted.clear();
        }
        self.table.drop_virtual(|prefix| wanted.contains(prefix), garbage);
        for prefix in wanted {
            self.table.put_virtual(prefix, metric);
        }
    }

    fn virtual_metric(&self) -> u8 {
        let reserve = u8::from(self.reserve_until.is_none());
        (self.settings.metric + reserve).min(INFINITY - 1)
    }

    /// RFC 2453 section 3.9.1: a router that comes up asks for the neighbours' tables, and tells its own.
    fn greet(&mut self, interface: &Interface, wall: u64) {
        if self.nic(interface.nic).is_passive {
            return;
        }
        for version in self.spoken() {
            let request = rip::request_for_all(version);
            for to in self.everybody(interface, version) {
                let payload = self.signed(version, request.clone(), wall);
                self.sends.push(Send { nic: interface.nic, to, payload });
            }
        }
        self.update(interface, About::Everything, wall);
    }

    fn say_farewell(&mut self, interface: &Interface, wall: u64) {
        let told = self.told(interface.nic, About::Everything);
        self.say_gone(interface, told, wall);
    }

    fn say_gone(&mut self, interface: &Interface, told: Vec<Told>, wall: u64) {
        if self.nic(interface.nic).is_passive {
            return;
        }
        let gone: Vec<Told> =
            told.into_iter().map(|told| Told { metric: INFINITY, ..told }).collect();
        for version in self.spoken() {
            for to in self.everybody(interface, version) {
                self.send(interface, to, version, &gone, wall);
            }
        }
    }

    /// Is the path behind it dead, and to be brought back by a neighbour that has to hear of us first?
    fn is_awaited(&self, interface: &Interface) -> bool {
        let can_send = interface.has_carrier && !interface.addresses.is_empty();
        self.settings.has_bfd && can_send && !interface.is_live
    }

    fn remind(&mut self, now: Instant, wall: u64) {
        let Some(at) = self.next_reminder.filter(|at| *at <= now) else { return };
        self.next_reminder = Some((at + REMINDER).max(now));
        for interface in std::mem::take(&mut self.interfaces) {
            if self.is_awaited(&interface) {
                let vipas = self.table.iter().filter(|(_, route)| route.origin == Origin::Virtual);
                let told = |(prefix, route): (&Prefix, &Route)| Told {
                    prefix: *prefix,
                    tag: route.tag,
                    metric: INFINITY,
                };
                let told = vipas.map(told).collect();
                self.say_gone(&interface, told, wall);
            }
            self.interfaces.push(interface);
        }
    }

    fn ask_again(&mut self, now: Instant, wall: u64) {
        let mut asking = std::mem::take(&mut self.asking);
        for (nic, at, asked) in &mut asking {
            if *at <= now {
                *asked += 1;
                *at = now + ASK_AGAIN * 2_u32.pow((*asked).into());
                if let Some(interface) = self.interfaces.iter().find(|i| i.nic == *nic).cloned() {
                    self.greet(&interface, wall);
                }
            }
        }
        asking.retain(|(.., asked)| *asked < REQUESTS);
        self.asking = asking;
    }

    /// FIG. 3B: for each real interface (334) that is active (336) the routes of the table; never over the virtual one.
    pub fn broadcast_timer(&mut self, now: Instant, wall: u64) {
        self.broadcast(About::Everything, wall);
        self.table.told();
        self.is_triggered = false;
        self.next_update = now + self.period();
        // RFC 2453 section 3.10.1: a full update soon makes a triggered one needless.
        self.quiet_until = None;
    }

    fn broadcast(&mut self, about: About, wall: u64) {
        for interface in std::mem::take(&mut self.interfaces) {
            if interface.is_live && !self.nic(interface.nic).is_passive {
                self.update(&interface, about, wall);
            } else if interface.has_carrier && about == About::Everything {
                // Who still hears us knows that we are here, and not to come this way: BIRD and FRR speak BFD only to neighbours
                // of whom they hear.
                self.say_farewell(&interface, wall);
            }
            self.interfaces.push(interface);
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant, wall: u64) {
        if self.reserve_until.is_some_and(|until| until <= now) {
            self.reserve_until = None;
            self.put_virtual(now + self.settings.garbage);
            self.trigger(now, wall);
        }
        if self.next_aging <= now {
            self.table.age(now, self.settings.garbage);
            self.next_aging = self.table.next_deadline().unwrap_or(now + self.settings.timeout);
            if self.table.is_changed() {
                self.trigger(now, wall);
            }
        }
        self.ask_again(now, wall);
        self.remind(now, wall);
        if self.next_update <= now {
            self.broadcast_timer(now, wall);
        } else if self.is_triggered && self.quiet_until.is_none_or(|until| until <= now) {
            self.trigger(now, wall);
        }
    }

    /// RFC 2453 section 3.10.1: the first at once, later ones at a distance.
    fn trigger(&mut self, now: Instant, wall: u64) {
        if self.quiet_until.is_some_and(|until| now < until) {
            self.is_triggered = true;
            return;
        }
        self.broadcast(About::News, wall);
        self.table.told();
        self.is_triggered = false;
        self.quiet(now);
    }

    fn quiet(&mut self, now: Instant) {
        let spread = TRIGGERED.1 - TRIGGERED.0;
        self.quiet_until = Some(now + TRIGGERED.0 + spread.mul_f64(self.random()));
    }

    /// Withdraws the VIPAs: metric 16 on all NICs, at once.
    pub fn withdraw(&mut self, now: Instant, wall: u64) {
        self.is_withdrawn = true;
        self.put_virtual(now + self.settings.garbage);
        self.broadcast(About::Everything, wall);
        self.table.told();
    }

    /// Takes a datagram in.
    pub fn receive(&mut self, datagram: Datagram<'_>, now: Instant, wall: u64) {
        if let Err(reject) = self.take_in(datagram, now, wall) {
            self.count(datagram.source.ip(), reject);
        }
    }

    fn count(&mut self, neighbour: IpAddr, reject: Reject) {
        // Senders are anybody's to make up; past the bound they share one line.
        let is_known = self.rejects.contains_key(&(neighbour, reject));
        let neighbour = if is_known || self.rejects.len() < NEIGHBOURS {
            neighbour
        } else {
            self.family.unspecified()
        };
        *self.rejects.entry((neighbour, reject)).or_default() += 1;
    }

    fn take_in(&mut self, datagram: Datagram<'_>, now: Instant, wall: u64) -> Result<(), Reject> {
        let source = datagram.source.ip();
        let found = self.interfaces.iter().find(|interface| interface.nic == datagram.nic);
        let interface = found.filter(|interface| interface.is_live).ok_or(Reject::NotLive)?.clone();
        if self.interfaces.iter().any(|interface| interface.is_own(source)) {
            // Our own multicast, heard by another NIC on the same link (RFC 2453 section 3.9.2).
            return Ok(());
        }
        if !interface.is_on_link(source) {
            return Err(Reject::NotOnLink);
        }
        // A digest at the end makes no whole entry: it has to be off before the rest is looked at.
        let body = match self.family {
            Family::V4 => self.keys.verify(datagram.payload, source, wall)?,
            Family::V6 => datagram.payload,
        };
        let message = Message::parse(body, self.family)?;
        if auth::is_misplaced(&message) {
            return Err(Reject::SignaturePlace);
        }
        let is_spoken = match message.version {
            Version::V1 => self.settings.is_v1,
            Version::V2 => self.settings.is_v2,
            Version::Ng => self.settings.is_ng,
        };
        if !is_spoken {
            return Err(Reject::Version);
        }
        let port = if self.family == Family::V4 { PORT } else { NG_PORT };
        let is_from_router = datagram.source.port() == port;
        match message.command {
            Command::Response if !is_from_router => return Err(Reject::Port),
            // RFC 2080 section 2.4.2: of what is multicast 255 shows that no router has forwarded it. An answer to us alone (FRR's
            // have 64) comes from a link-local address, which none forwards either.
            Command::Response
                if self.family == Family::V6 && datagram.is_multicast && datagram.ttl != 255 =>
            {
                return Err(Reject::HopLimit);
            }
            _ => {}
        }
        match message.command {
            Command::Request => self.answer(&message, &interface, datagram.source, wall),
            Command::Response => {
                self.asking.retain(|(nic, ..)| *nic != interface.nic);
                self.learn(&message, &interface, source, now);
                self.next_aging = self.next_aging.min(now + self.settings.timeout);
                if self.table.is_changed() {
                    self.trigger(now, wall);
                }
            }
        }
        Ok(())
    }

    /// RFC 2453 section 3.9.1, RFC 2080 section 2.4.1.
    fn answer(&mut self, message: &Message<'_>, interface: &Interface, to: SocketAddr, wall: u64) {
        let version = message.version;
        let mut wanted = Vec::new();
        for item in message.items() {
            match item {
                Ok(Item::WholeTable) => {
                    // A silent host does not tell routers; a query from another port is a diagnosis, and is answered.
                    let port = if self.family == Family::V4 { PORT } else { NG_PORT };
                    if self.nic(interface.nic).is_passive && to.port() == port {
                        return;
                    }
                    let told = self.told(interface.nic, About::Everything);
                    self.send(interface, to, version, &told, wall);
                    return;
                }
                Ok(Item::Route(entry)) => wanted.push(entry),
                Ok(Item::Authentication(..)) => {}
                Err(error) => self.count(to.ip(), error.into()),
            }
        }
        if wanted.is_empty() {
            // There is no response to a request without entries.
            return;
        }
        // Entries asked for by name are told as they are, without split horizon; what is unknown is unreachable.
        let told: Vec<Told> = wanted
            .iter()
            .filter_map(|entry| {
                let prefix = self.prefix(entry, interface)?;
                let known = self.table.get(&prefix).filter(|route| self.is_told(route));
                let metric = known.map_or(INFINITY, |route| route.metric);
                Some(Told { prefix, tag: known.map_or(entry.tag, |route| route.tag), metric })
            })
            .collect();
        self.send(interface, to, version, &told, wall);
    }

    /// RFC 2453 section 3.9.2, RFC 2080 section 2.4.2.
    fn learn(
        &mut self,
        message: &Message<'_>,
        interface: &Interface,
        neighbour: IpAddr,
        now: Instant,
    ) {
        for item in message.items() {
            let taken = match item {
                Ok(Item::Route(entry)) => self.learn_entry(&entry, interface, neighbour, now),
                // In a response it is the default route of a neighbour that lost it (RIPng writes it the same way).
                Ok(Item::WholeTable) | Ok(Item::Authentication(..)) => Ok(()),
                Err(error) => self.lost_default(error, interface, neighbour, now),
            };
            if let Err(reject) = taken {
                self.count(neighbour, reject);
            }
        }
    }

    /// RIPng's default route at metric 16 has the very bytes of a request for everything.
    fn lost_default(
        &mut self,
        error: rip::Malformed,
        interface: &Interface,
        neighbour: IpAddr,
        now: Instant,
    ) -> Result<(), Reject> {
        if self.family == Family::V4 || error != rip::Malformed::AddressFamily {
            return Err(error.into());
        }
        let address = Ipv6Addr::UNSPECIFIED.into();
        let metric = u32::from(INFINITY);
        let entry = Entry { address, length: Some(0), tag: 0, next_hop: None, metric };
        self.learn_entry(&entry, interface, neighbour, now)
    }

    fn learn_entry(
        &mut self,
        entry: &Entry,
        interface: &Interface,
        neighbour: IpAddr,
        now: Instant,
    ) -> Result<(), Reject> {
        let metric =
            u8::try_from(entry.metric).ok().filter(|metric| (1..=INFINITY).contains(metric));
        let metric = metric.ok_or(Reject::Metric)?;
        let prefix = self.prefix(entry, interface).ok_or(Reject::Destination)?;
        if !is_destination(prefix) {
            return Err(Reject::Destination);
        }
        let accept = &self.settings.accept;
        let is_within =
            |wide: &Prefix| wide.contains(prefix.address()) && wide.length() <= prefix.length();
        let mut of_family = accept.iter().filter(|a| a.family() == self.family).peekable();
        if !accept.is_empty() && (of_family.peek().is_none() || !of_family.any(is_within)) {
            return Err(Reject::Filtered);
        }
        // A next hop that is not on this link, or is ourselves, means the sender.
        let named = entry.next_hop.filter(|hop| {
            interface.is_on_link(*hop) && !interface.is_own(*hop) && !self.vipas.contains(hop)
        });
        let heard = Heard {
            prefix,
            metric: metric.saturating_add(self.nic(interface.nic).cost).min(INFINITY),
            tag: entry.tag,
            nic: interface.nic,
            neighbour,
            gateway: named.unwrap_or(neighbour),
        };
        let (expires, garbage) = (now + self.settings.timeout, now + self.settings.garbage);
        self.table
            .hear(heard, self.settings.most_routes, expires, garbage)
            .map_err(|Full| Reject::TooMany)
    }

    /// Where an entry leads. Version 1, and version 2 without a mask, leave it to the NIC's own mask or the address's class
    /// (RFC 2453 sections 3.7 and 4.3, RFC 1058 section 3.2).
    fn prefix(&self, entry: &Entry, interface: &Interface) -> Option<Prefix> {
        if let Some(length) = entry.length {
            return Prefix::new(entry.address, length);
        }
        let IpAddr::V4(address) = entry.address else { return None };
        let class = match address.octets()[0] {
            1..=126 => 8,
            128..=191 => 16,
            192..=223 => 24,
            _ => return None,
        };
        let network = Prefix::new(entry.address, class)?;
        let subnet = interface
            .networks()
            .filter(|own| own.length() > class && network.contains(own.address()))
            .map(|own| own.length())
            .min();
        let fits =
            |length| Prefix::new(entry.address, length).filter(|p| p.address() == entry.address);
        fits(class).or_else(|| fits(subnet?)).or_else(|| Prefix::new(entry.address, 32))
    }

    fn update(&mut self, interface: &Interface, about: About, wall: u64) {
        let told = self.told(interface.nic, about);
        if told.is_empty() {
            return;
        }
        for version in self.spoken() {
            for to in self.everybody(interface, version) {
                self.send(interface, to, version, &told, wall);
            }
        }
    }

    fn is_told(&self, route: &Route) -> bool {
        match (&route.origin, self.settings.advertise) {
            (Origin::Virtual, _) | (_, Advertise::All) => true,
            (Origin::Real(_), advertise) => advertise == Advertise::VirtualAndReal,
            (Origin::Learned(_), _) => false,
        }
    }

    /// What is told by `nic`: routes that leave by it are told as unreachable (RFC 2453 section 3.4.3, split horizon with
    /// poisoned reverse); its own network is left out, since everybody there knows it better.
    fn told(&self, nic: NicId, about: About) -> Vec<Told> {
        let news = |route: &&Route| about == About::Everything || route.is_changed;
        self.table
            .iter()
            .filter(|(_, route)| news(route) && self.is_told(route))
            .filter(|(_, route)| route.origin != Origin::Real(nic))
            .map(|(prefix, route)| {
                let metric = if route.leaves_by(nic) { INFINITY } else { route.metric };
                Told { prefix: *prefix, tag: route.tag, metric }
            })
            .collect()
    }

    /// In as many messages as it takes; none is larger than its version allows.
    fn send(
        &mut self,
        interface: &Interface,
        to: SocketAddr,
        version: Version,
        told: &[Told],
        wall: u64,
    ) {
        let most = match version {
            Version::Ng => rip::ng_most(interface.mtu),
            Version::V2 => MOST_ENTRIES - self.keys.reserve(),
            Version::V1 => MOST_ENTRIES,
        };
        for told in told.chunks(most) {
            let mut payload = rip::header(Command::Response, version).to_vec();
            for told in told {
                rip::put(&mut payload, version, *told);
            }
            let payload = self.signed(version, payload, wall);
            self.sends.push(Send { nic: interface.nic, to, payload });
        }
    }

    fn signed(&mut self, version: Version, payload: Vec<u8>, wall: u64) -> Vec<u8> {
        if version == Version::V2 { self.keys.sign(payload, wall) } else { payload }
    }

    fn spoken(&self) -> Vec<Version> {
        let settings = &self.settings;
        let of = |is_spoken: bool, version: Version| is_spoken.then_some(version);
        [
            of(settings.is_v1, Version::V1),
            of(settings.is_v2, Version::V2),
            of(settings.is_ng, Version::Ng),
        ]
        .into_iter()
        .flatten()
        .filter(|version| version.family() == self.family)
        .collect()
    }

    /// The group; for version 1 the broadcast address of each of the NIC's networks.
    fn everybody(&self, interface: &Interface, version: Version) -> Vec<SocketAddr> {
        match version {
            Version::V2 => vec![SocketAddr::new(GROUP.into(), PORT)],
            Version::Ng => {
                vec![SocketAddrV6::new(NG_GROUP, NG_PORT, 0, interface.ifindex).into()]
            }
            Version::V1 => interface
                .addresses
                .iter()
                .filter_map(|(address, length)| match address {
                    IpAddr::V4(address) if *length < 31 => {
                        let host = u32::MAX >> length;
                        Some(Ipv4Addr::from(u32::from(*address) | host))
                    }
                    _ => None,
                })
                .map(|broadcast| SocketAddr::new(broadcast.into(), PORT))
                .collect(),
        }
    }

    fn nic(&self, nic: NicId) -> NicSettings {
        self.settings.nics.get(nic.index()).copied().unwrap_or_default()
    }

    fn period(&mut self) -> Duration {
        let spread = self.settings.update / JITTER;
        self.settings.update - spread + (2 * spread).mul_f64(self.random())
    }

    /// From 0 to 1 (xorshift): nothing depends on it but that hosts differ.
    fn random(&mut self) -> f64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// RFC 2453 section 3.9.2: unicast, not net 0 (the default route aside), not net 127; nor of one link alone.
fn is_destination(prefix: Prefix) -> bool {
    match prefix.address() {
        IpAddr::V4(_) if prefix.length() == 0 => true,
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            (1..=223).contains(&first) && first != 127 && !address.is_link_local()
        }
        IpAddr::V6(address) => {
            let is_loopback = address.is_loopback() && prefix.length() == 128;
            let is_unspecified = address.is_unspecified() && prefix.length() != 0;
            !address.is_multicast()
                && !address.is_unicast_link_local()
                && !is_loopback
                && !is_unspecified
        }
    }
}

#[cfg(test)]
mod tests;
