//! When is a VIPA announced, and what if another host claims it: RFC 5227 sections 2.3 and 2.4 for ARP, RFC 4861 section 7.2.6 for
//! neighbour advertisements. Pure: time is a parameter.
//!
//! RFC 5227 section 2.4 lets a host that keeps its address defend it once in ten seconds for ever, and each time every cache on the link
//! changes sides. So a VIPA is defended once in a conflict, and then asked for until nobody else answers: a question (an ARP probe, a
//! solicitation) changes no cache. Our own kernel does not answer it, since it does not hear what it sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Place, Settings};
use crate::forward::view::NicId;
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::Family;

/// RFC 5227 section 1.1: ANNOUNCE_NUM, ANNOUNCE_INTERVAL.
const ARP_BURST: (u8, Duration) = (2, Duration::from_secs(2));
/// RFC 4861 section 10: MAX_NEIGHBOR_ADVERTISEMENT, RETRANS_TIMER.
const ADVERTISEMENT_BURST: (u8, Duration) = (3, Duration::from_secs(1));
/// A conflict is over if nobody else claimed the VIPA for so long: RFC 5227's DEFEND_INTERVAL, so that no VIPA is defended more often.
const QUIET: Duration = Duration::from_secs(10);
/// In a conflict the others are asked so often whether it still stands.
const ASKING: Duration = Duration::from_secs(3);

/// Where a VIPA is to be announced, and heard of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spot {
    /// The NIC that answers for it, and its Ethernet address; `None`: none has carrier.
    pub home: Option<(NicId, MacAddr)>,
    /// All NICs on the link.
    pub nics: BTreeSet<NicId>,
}

/// What is to be sent by a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// About this VIPA.
    pub place: Place,
    /// By this NIC.
    pub nic: NicId,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// "Who else has it?"; else "I have it", told to all.
    pub is_question: bool,
}

/// Another host claims a VIPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Its Ethernet address; of several, who spoke last.
    pub mac: MacAddr,
    /// Heard by this NIC.
    pub nic: NicId,
    /// Since then.
    pub since: Instant,
    /// Last heard then.
    pub last: Instant,
    /// So often.
    pub claims: u64,
}

/// What the operator should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Somebody claims the VIPA, or somebody else than before does.
    Disputed(Place, Conflict),
    /// Nobody does any more.
    Settled(Place),
}

/// One VIPA on one link.
#[derive(Clone, Debug, Default)]
pub struct One {
    spot: Spot,
    /// Announcements of the burst that are still to come.
    left: u8,
    announce_at: Option<Instant>,
    ask_at: Option<Instant>,
    conflict: Option<Conflict>,
    announced: u64,
}

impl One {
    /// The NIC that it is announced by.
    pub fn home(&self) -> Option<NicId> {
        self.spot.home.map(|(nic, _)| nic)
    }

    /// Times that it was announced.
    pub fn announced(&self) -> u64 {
        self.announced
    }

    /// Who else claims it.
    pub fn conflict(&self) -> Option<Conflict> {
        self.conflict
    }

    fn begin(&mut self, family: Family, now: Instant) {
        (self.left, self.announce_at, self.ask_at) = (burst(family).0, Some(now), Some(now));
    }

    fn next_deadline(&self) -> Option<Instant> {
        let settled = self.conflict.map(|conflict| conflict.last + QUIET);
        [self.announce_at, self.ask_at, settled].into_iter().flatten().min()
    }
}

/// All that is announced.
#[derive(Debug)]
pub struct Announcer {
    settings: Settings,
    places: BTreeMap<Place, One>,
    /// Ethernet addresses of this host: what comes from them is no claim of another.
    own: BTreeSet<MacAddr>,
    messages: Vec<Message>,
    news: Vec<News>,
}

impl Announcer {
    /// Nothing to announce yet.
    pub fn new(settings: Settings) -> Announcer {
        Announcer {
            settings,
            places: BTreeMap::new(),
            own: BTreeSet::new(),
            messages: Vec::new(),
            news: Vec::new(),
        }
    }

    /// Other settings; what is announced now and then is so from now on.
    pub fn reconfigure(&mut self, settings: Settings, now: Instant) {
        if settings == self.settings {
            return;
        }
        self.settings = settings;
        let next = Some(now + settings.interval).filter(|_| !settings.interval.is_zero());
        let is_quiet = |one: &&mut One| one.left == 0 && one.conflict.is_none();
        for one in self.places.values_mut().filter(is_quiet) {
            (one.announce_at, one.ask_at) = (next, next);
        }
    }

    /// What lies where now, and the Ethernet addresses of this host. What is new or has moved is announced with the next
    /// [`Announcer::tick`], in a conflict too: the neighbours would go on sending to a NIC that is gone.
    pub fn follow(&mut self, spots: &BTreeMap<Place, Spot>, own: &BTreeSet<MacAddr>, now: Instant) {
        self.own.clone_from(own);
        self.places.retain(|place, _| spots.contains_key(place));
        for (place, spot) in spots {
            let one = self.places.entry(*place).or_default();
            let has_moved = spot.home != one.spot.home;
            one.spot.clone_from(spot);
            if has_moved && spot.home.is_some() {
                one.begin(Family::of(place.0), now);
            } else if spot.home.is_none() {
                (one.announce_at, one.ask_at) = (None, None);
            }
        }
    }

    /// Somebody with the Ethernet address `mac` said on the link of `nic` that it has `address`.
    pub fn hear(&mut self, nic: NicId, address: std::net::IpAddr, mac: MacAddr, now: Instant) {
        if self.own.contains(&mac) {
            return;
        }
        let is_meant =
            |place: &Place, one: &One| place.0 == address && one.spot.nics.contains(&nic);
        for (place, one) in self.places.iter_mut().filter(|(place, one)| is_meant(place, one)) {
            let before = one.conflict;
            let conflict = Conflict {
                mac,
                nic,
                since: before.map_or(now, |before| before.since),
                last: now,
                claims: before.map_or(0, |before| before.claims) + 1,
            };
            one.conflict = Some(conflict);
            if before.is_none_or(|before| before.mac != mac) {
                self.news.push(News::Disputed(*place, conflict));
            }
            if before.is_none() && one.spot.home.is_some() {
                // The only defence; whatever of a burst was still to come is left out.
                (one.left, one.announce_at) = (1, Some(now));
                one.ask_at = Some(now + ASKING);
            }
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let interval = Some(self.settings.interval).filter(|interval| !interval.is_zero());
        for (place, one) in &mut self.places {
            let family = Family::of(place.0);
            if is_due(one.conflict.map(|conflict| conflict.last + QUIET)) {
                one.conflict = None;
                self.news.push(News::Settled(*place));
                if one.spot.home.is_some() {
                    one.begin(family, now);
                }
            }
            let Some((nic, mac)) = one.spot.home else { continue };
            let message = |is_question| Message { place: *place, nic, mac, is_question };
            if is_due(one.announce_at) {
                self.messages.push(message(false));
                one.announced += 1;
                one.left = one.left.saturating_sub(1);
                one.announce_at = match (one.left, one.conflict) {
                    (1.., _) => Some(now + burst(family).1),
                    (0, Some(_)) => None,
                    (0, None) => interval.map(|interval| now + interval),
                };
            }
            if is_due(one.ask_at) {
                self.messages.push(message(true));
                one.ask_at = match one.conflict {
                    Some(_) => Some(now + ASKING),
                    None => interval.map(|interval| now + interval),
                };
            }
        }
    }

    /// When [`Announcer::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.places.values().filter_map(One::next_deadline).min()
    }

    /// What is to be sent, in this order.
    pub fn take_messages(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.messages)
    }

    /// What is to be told.
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Each VIPA on each link.
    pub fn iter(&self) -> impl Iterator<Item = (&Place, &One)> {
        self.places.iter()
    }
}

fn burst(family: Family) -> (u8, Duration) {
    match family {
        Family::V4 => ARP_BURST,
        Family::V6 => ADVERTISEMENT_BURST,
    }
}

#[cfg(test)]
mod tests;
