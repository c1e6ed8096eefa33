//! The daemon of one family, and its timers: FIG. 3A, FIG. 3B, RFC 2453 section 3.8. What it hears is in `daemon/input.rs`, what it says
//! in `daemon/output.rs`. Pure: an [`Input`] and the time go in; what it wants sent waits in [`Daemon::take_sends`], what it learned is in
//! [`Daemon::learned`]. The same inputs at the same times yield the same ([`super::recording`]).
//!
//! *The reserve.* The VIPAs go out one unit longer than they need to be. A neighbour that hears two of our NICs and loses the path to
//! one of them would keep to it until its timeout. When one of our paths dies the live NICs tell the shorter metric for that long: a
//! shorter route replaces at once whatever the neighbour had (FIG. 3B 346–348).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use self::asking::Asking;
pub use self::interface::Interface;
use self::interface::is_link_local;
use self::output::About;
use super::table::Table;
use super::{Learned, NicSettings, Reject, Settings, Ways};
use crate::forward::view::NicId;
use crate::wire::ip::{Family, Prefix};
use crate::wire::rip::INFINITY;

/// RFC 2453 section 3.10.1: between triggered updates, 1 to 5 seconds.
const TRIGGERED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// RFC 2453 section 3.8: full updates are spread by up to this share of their period, either way, lest routers fall into step.
const JITTER: u32 = 6;
/// Who has several ways to the VIPA, by several NICs of ours, drops those that it is told are longer now one after the other, but for the
/// last, and takes the others again only when it is told again: after so much, and so much more, since what is told may also be lost.
const TELL_AGAIN: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];
/// BIRD and FRR speak BFD only to neighbours of whom they hear: one that answers again is told of us at once, lest its end of the link
/// comes up later so much after that, and then after twice the time again and again.
const REMINDER: Duration = Duration::from_millis(125);
/// Neighbours of which rejections are counted, and answers remembered.
const NEIGHBOURS: usize = 256;
/// Datagrams that may wait to be sent before requests are no longer answered: several whole tables.
const MOST_WAITING: usize = 8192;

/// 224.0.0.9 (RFC 2453 section 4.5).
pub const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 9);
/// ff02::9 (RFC 2080 section 2.5.1).
pub const NG_GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 9);

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
    /// Behind the UDP header, without what signed it; or why it is not believed ([`super::auth::Keyring::verify`]).
    pub message: Result<&'a [u8], Reject>,
}

/// What is to go out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// By this NIC.
    pub nic: NicId,
    /// From this address of the NIC (V5); `None`: it has none that fits, and the kernel chooses.
    pub from: Option<IpAddr>,
    /// To there; a group, the broadcast address, or a neighbour.
    pub to: SocketAddr,
    /// Behind the UDP header, yet to be signed.
    pub message: Vec<u8>,
}

/// What happens to the daemon.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// [`Daemon::interface_timer`]: all interfaces, as they are now.
    Interfaces(&'a [Interface]),
    /// [`Daemon::forwards`].
    Forwarding(bool),
    /// [`Daemon::receive`].
    Heard(Datagram<'a>),
    /// [`Daemon::tick`].
    Tick,
    /// [`Daemon::withdraw`].
    Withdraw,
}

/// Rejections of one neighbour.
pub type Rejects = BTreeMap<(IpAddr, Reject), u64>;

/// The daemon.
#[derive(Debug)]
pub struct Daemon {
    family: Family,
    settings: Settings,
    vipas: Vec<IpAddr>,
    interfaces: Vec<Interface>,
    table: Table,
    sends: Vec<Send>,
    rejects: Rejects,
    next_update: Instant,
    /// No triggered update before then.
    quiet_until: Option<Instant>,
    /// News wait.
    is_triggered: bool,
    next_aging: Instant,
    /// Everything is told once more then, and at these distances after that.
    again: Option<(Instant, &'static [Duration])>,
    /// The shorter metric is told until then, or until all NICs that were lost since are live again.
    reserve_until: Option<Instant>,
    lost: Vec<NicId>,
    is_withdrawn: bool,
    /// Does the host forward for others?
    is_forwarding: bool,
    /// The link-local address that each NIC speaks RIPng from.
    designated: BTreeMap<NicId, IpAddr>,
    /// When neighbours that answer again are told of us, and the time to the next after that.
    reminder: Option<(Instant, Duration)>,
    asking: Asking,
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
        let mut daemon = Daemon {
            family,
            vipas: vipas.iter().copied().filter(|vipa| Family::of(*vipa) == family).collect(),
            interfaces: Vec::new(),
            table: Table::default(),
            sends: Vec::new(),
            rejects: Rejects::new(),
            next_update: now,
            quiet_until: None,
            is_triggered: false,
            next_aging: now + settings.timeout,
            again: None,
            reminder: None,
            reserve_until: None,
            lost: Vec::new(),
            is_withdrawn: false,
            is_forwarding: true,
            designated: BTreeMap::new(),
            asking: Asking::default(),
            seed: seed | 1,
            settings,
        };
        daemon.next_update = now + daemon.period();
        daemon
    }

    /// Takes `input` in, as of `now`.
    pub fn take(&mut self, input: Input<'_>, now: Instant) {
        match input {
            Input::Interfaces(interfaces) => self.interface_timer(interfaces, now),
            Input::Forwarding(is_forwarding) => self.forwards(is_forwarding, now),
            Input::Heard(datagram) => self.receive(datagram, now),
            Input::Tick => self.tick(now),
            Input::Withdraw => self.withdraw(),
        }
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
        // One neighbour tells of many routes.
        let mut last = Ways::default();
        self.table.iter().filter_map(move |(prefix, route)| {
            route.ways(&mut last).map(|ways| Learned { prefix: *prefix, ways })
        })
    }

    /// The ways to `prefix` that neighbours told of; none: it was not learned, or leads nowhere.
    pub fn learned_of(&self, prefix: &Prefix) -> Vec<(NicId, IpAddr)> {
        let ways = self.table.get(prefix).and_then(|route| route.ways(&mut Ways::default()));
        ways.unwrap_or_default().to_vec()
    }

    /// When [`Daemon::tick`] has something to do.
    pub fn next_deadline(&self) -> Instant {
        let triggered = self.is_triggered.then(|| self.quiet_until.unwrap_or(self.next_update));
        let reminder = self.reminder.map(|(at, _)| at);
        [
            triggered,
            self.again.map(|(at, _)| at),
            reminder,
            self.reserve_until,
            Some(self.next_aging),
            self.asking.next(),
        ]
        .into_iter()
        .flatten()
        .fold(self.next_update, Instant::min)
    }

    /// FIG. 3A, at its timer and at any news of an interface.
    pub fn interface_timer(&mut self, interfaces: &[Interface], now: Instant) {
        let is_live = |nic: NicId| interfaces.iter().any(|new| new.nic == nic && new.is_live);
        let was_live = self.interfaces.iter().filter(|old| old.is_live).map(|old| old.nic);
        let lost: Vec<NicId> = was_live.filter(|nic| !is_live(*nic)).collect();
        let is_path_lost = !lost.is_empty();
        self.lost.extend(lost);
        self.lost.retain(|nic| !is_live(*nic));
        // Nothing is stale any more, and the next failure may need the reserve.
        let is_whole_again = self.reserve_until.is_some() && self.lost.is_empty();
        let before = std::mem::replace(&mut self.interfaces, interfaces.to_vec());
        self.designate();
        let garbage = now + self.settings.garbage;
        let mut reactivated = Vec::new();
        // 303–315: the virtual adapter first, whose routes (319) never time out (307).
        if is_path_lost {
            self.reserve_until = Some(now + self.settings.timeout);
        } else if is_whole_again {
            self.reserve_until = None;
        }
        self.put_virtual();
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
        self.asking.retain(is_live);
        if is_whole_again {
            // First where the shorter metric was told: who still has it takes no other way for as good.
            self.broadcast(About::Everything);
            self.table.told();
            self.tell_again(now);
        }
        for interface in &reactivated {
            self.greet(interface);
            self.asking.begin(interface.nic, now);
            self.tell_again(now);
        }
        let awaited = |all: &[Interface]| -> Vec<NicId> {
            all.iter().filter(|i| i.is_awaited()).map(|i| i.nic).collect()
        };
        let (were_awaited, are_awaited) = (awaited(&before), awaited(interfaces));
        if are_awaited.iter().any(|nic| !were_awaited.contains(nic)) {
            self.reminder = Some((now, REMINDER));
        } else if are_awaited.is_empty() {
            self.reminder = None;
        }
        self.next_aging = self.next_aging.min(garbage);
        if is_path_lost {
            // All VIPAs in full, in the same tick, whatever was sent a moment ago.
            self.broadcast(About::Everything);
            self.table.told();
            self.is_triggered = false;
            self.quiet(now);
        } else if self.table.is_changed() {
            self.trigger(now);
        }
    }

    /// This NIC is spoken by no more: whoever is behind it is told that nothing is to be reached this way. No path has died by it, and the
    /// reserve stays.
    pub fn leave(&mut self, nic: NicId, now: Instant) {
        let is_it = |interface: &mut Interface| interface.nic == nic;
        let left: Vec<Interface> = self.interfaces.extract_if(.., is_it).collect();
        let live = left.iter().filter(|interface| interface.is_live);
        live.for_each(|interface| self.say_farewell(interface));
        self.lost.retain(|lost| *lost != nic);
        self.table.fail_nic(nic, |_| false, now + self.settings.garbage);
    }

    /// Other VIPAs, and other settings of the NICs. What was learned stays; what costs another metric now is learned so with the next
    /// update.
    pub fn reconfigure(&mut self, nics: Vec<NicSettings>, vipas: &[IpAddr], now: Instant) {
        self.settings.nics = nics;
        let is_of_family = |vipa: &IpAddr| Family::of(*vipa) == self.family;
        let vipas: Vec<IpAddr> = vipas.iter().copied().filter(is_of_family).collect();
        let garbage = now + self.settings.garbage;
        for gone in self.vipas.iter().filter(|vipa| !vipas.contains(vipa)) {
            self.table.drop_virtual(Prefix::host(*gone), garbage);
        }
        self.vipas = vipas;
        self.put_virtual();
        let ids: Vec<NicId> = self.interfaces.iter().map(|interface| interface.nic).collect();
        for nic in ids {
            self.table.set_real(nic, self.nic(nic).cost);
        }
        self.next_aging = self.next_aging.min(garbage);
        if self.table.is_changed() {
            self.trigger(now);
            self.tell_again(now);
        }
    }

    fn put_virtual(&mut self) {
        let metric = self.virtual_metric();
        for vipa in &self.vipas {
            self.table.put_virtual(Prefix::host(*vipa), metric);
        }
    }

    fn virtual_metric(&self) -> u8 {
        if self.is_withdrawn {
            return INFINITY;
        }
        let reserve = u8::from(self.reserve_until.is_none());
        (self.settings.metric + reserve).min(INFINITY - 1)
    }

    fn remind(&mut self, now: Instant) {
        let Some((_, pause)) = self.reminder.filter(|(at, _)| *at <= now) else { return };
        self.reminder = Some((now + pause, (pause * 2).min(self.settings.update)));
        for interface in self.interfaces.clone() {
            if interface.is_awaited() {
                self.say_farewell(&interface);
            }
        }
    }

    fn tell_again(&mut self, now: Instant) {
        let [first, left @ ..] = &TELL_AGAIN;
        self.again = Some((now + *first, left));
    }

    fn ask_again(&mut self, now: Instant) {
        for nic in self.asking.due(now) {
            if let Some(interface) = self.interfaces.iter().find(|i| i.nic == nic).cloned() {
                self.greet(&interface);
            }
        }
    }

    /// FIG. 3B: for each real interface (334) that is active (336) the routes of the table; never over the virtual one.
    pub fn broadcast_timer(&mut self, now: Instant) {
        self.broadcast(About::Everything);
        self.table.told();
        self.is_triggered = false;
        self.next_update = now + self.period();
        // RFC 2453 section 3.10.1: a full update soon makes a triggered one needless.
        self.quiet_until = None;
    }

    /// RFC 2080 section 2.5.2: of several link-local addresses one, and no other while it is valid.
    fn designate(&mut self) {
        for interface in &self.interfaces {
            let is_kept =
                self.designated.get(&interface.nic).is_some_and(|old| interface.is_own(*old));
            let mut own = interface.addresses.iter().map(|(address, _)| *address);
            let first = own.find(|address| is_link_local(*address));
            if !is_kept && let Some(first) = first {
                self.designated.insert(interface.nic, first);
            } else if !is_kept {
                self.designated.remove(&interface.nic);
            }
        }
    }

    /// Does the host forward for others, as it was told last?
    pub fn is_forwarding(&self) -> bool {
        self.is_forwarding
    }

    /// A host that does not forward is no way to what it has learned: with `advertise = "all"` that is told as unreachable.
    pub fn forwards(&mut self, is_forwarding: bool, now: Instant) {
        if is_forwarding != self.is_forwarding {
            self.is_forwarding = is_forwarding;
            self.table.all_changed();
            self.trigger(now);
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        if self.reserve_until.is_some_and(|until| until <= now) {
            self.reserve_until = None;
            self.lost.clear();
            self.put_virtual();
            self.trigger(now);
            self.tell_again(now);
        }
        if self.next_aging <= now {
            self.table.age(now, self.settings.garbage);
            self.next_aging = self.table.next_deadline().unwrap_or(now + self.settings.timeout);
            if self.table.is_changed() {
                self.trigger(now);
            }
        }
        self.ask_again(now);
        self.remind(now);
        if let Some((_, left)) = self.again.filter(|(at, _)| *at <= now) {
            self.again = left.split_first().map(|(pause, left)| (now + *pause, left));
            self.broadcast(About::Everything);
        }
        if self.next_update <= now {
            self.broadcast_timer(now);
        } else if self.is_triggered && self.quiet_until.is_none_or(|until| until <= now) {
            self.trigger(now);
        }
    }

    /// RFC 2453 section 3.10.1: the first at once, later ones at a distance.
    fn trigger(&mut self, now: Instant) {
        if self.quiet_until.is_some_and(|until| now < until) {
            self.is_triggered = true;
            return;
        }
        self.broadcast(About::News);
        self.table.told();
        self.is_triggered = false;
        self.quiet(now);
    }

    fn quiet(&mut self, now: Instant) {
        let spread = TRIGGERED.1 - TRIGGERED.0;
        self.quiet_until = Some(now + TRIGGERED.0 + spread.mul_f64(self.random()));
    }

    /// Takes leave: from here on all that was ever told is told at metric 16. On all NICs, at once.
    pub fn withdraw(&mut self) {
        self.is_withdrawn = true;
        self.put_virtual();
        self.broadcast(About::Everything);
        self.table.told();
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

mod asking;
mod input;
mod interface;
mod output;
#[cfg(test)]
mod tests;
