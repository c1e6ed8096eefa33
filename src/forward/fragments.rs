//! Later fragments follow the first, which alone shows the ports: what was decided about it is remembered by
//! what the fragments of a datagram have in common. Fixed memory; a datagram's fragments travel together, so
//! what was decided is soon forgotten.

use std::net::IpAddr;

use super::flow::{Millis, Side};
use super::rewrite::Edit;
use super::spread;
use super::verdict::DropReason;
use super::view::{Way, WorkerId};
use crate::wire::packet::Headers;

/// Datagrams remembered: sets of [`WAYS`], the oldest of a set makes room.
const SETS: usize = 64;
const WAYS: usize = 4;
/// How long, in milliseconds.
const LIFETIME: u64 = 5_000;

/// What the fragments of a datagram have in common (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentKey {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    protocol: u8,
    side: Side,
}

impl FragmentKey {
    /// The key of a fragment that comes in by `side`.
    pub fn of(headers: &Headers, side: Side) -> FragmentKey {
        // In IPv6 a later fragment need not show the protocol, and the identification is enough.
        let protocol = if headers.source.is_ipv4() { headers.protocol } else { 0 };
        let Headers { source, destination, fragment_id: id, .. } = *headers;
        FragmentKey { source, destination, id, protocol, side }
    }

    /// The same on every worker.
    pub fn hash(&self) -> u64 {
        spread::mix(
            spread::address_hash(self.source)
                ^ spread::mix(spread::address_hash(self.destination) ^ u64::from(self.id)),
        )
    }

    /// The worker at which the later fragments of the datagram meet.
    pub fn home(&self, workers: u8) -> WorkerId {
        WorkerId((self.hash() % u64::from(workers)) as u8)
    }
}

/// What was decided about a first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It went on.
    Carried {
        /// This way; `None`: to a socket of this host.
        way: Option<Way>,
        /// Rewritten so.
        edit: Option<Edit>,
        /// Its time to live was lowered.
        is_forwarded: bool,
    },
    /// It was the kernel's.
    Kernels,
    /// It was dropped.
    Dropped(DropReason),
}

/// First fragments of late.
#[derive(Debug)]
pub struct Fragments {
    slots: Box<[Option<(FragmentKey, Fate, Millis)>]>,
    /// Was one remembered since [`Fragments::take_news`] was asked?
    has_news: bool,
}

impl Default for Fragments {
    fn default() -> Fragments {
        Fragments { slots: vec![None; SETS * WAYS].into_boxed_slice(), has_news: false }
    }
}

impl Fragments {
    /// Remembers what became of a first fragment.
    pub fn remember(&mut self, key: FragmentKey, fate: Fate, now: Millis) {
        self.has_news = true;
        let set = &mut self.slots[Fragments::set(&key)];
        let age = |slot: &Option<(FragmentKey, Fate, Millis)>| match slot {
            Some((other, _, _)) if *other == key => u64::MAX,
            None => u64::MAX - 1,
            Some((_, _, since)) => now.0.saturating_sub(since.0),
        };
        if let Some(oldest) = set.iter_mut().max_by_key(|slot| age(slot)) {
            *oldest = Some((key, fate, now));
        }
    }

    /// What became of the first fragment of this datagram, if it came of late.
    pub fn fate(&self, key: &FragmentKey, now: Millis) -> Option<Fate> {
        let set = self.slots[Fragments::set(key)].iter().flatten();
        set.into_iter()
            .find(|(other, _, since)| other == key && now.0.saturating_sub(since.0) <= LIFETIME)
            .map(|(_, fate, _)| *fate)
    }

    /// Has a first fragment come since this was asked? Those that wait for it should be run again.
    pub fn take_news(&mut self) -> bool {
        std::mem::take(&mut self.has_news)
    }

    fn set(key: &FragmentKey) -> std::ops::Range<usize> {
        let set = (key.hash() >> 32) as usize % SETS;
        set * WAYS..(set + 1) * WAYS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u32) -> FragmentKey {
        FragmentKey {
            source: IpAddr::from([1; 4]),
            destination: IpAddr::from([2; 4]),
            id,
            protocol: 17,
            side: Side::Tun,
        }
    }

    #[test]
    fn the_newest_of_many_are_remembered_and_none_for_long() {
        let mut fragments = Fragments::default();
        for id in 0..10_000u32 {
            fragments.remember(key(id), Fate::Kernels, Millis(u64::from(id)));
            assert_eq!(fragments.fate(&key(id), Millis(u64::from(id))), Some(Fate::Kernels));
        }
        assert!(fragments.take_news() && !fragments.take_news());
        assert_eq!(fragments.slots.len(), SETS * WAYS);
        let late = Millis(9_999 + LIFETIME);
        assert_eq!(fragments.fate(&key(9_999), late), Some(Fate::Kernels));
        assert_eq!(fragments.fate(&key(9_999), Millis(late.0 + 1)), None);
    }

    #[test]
    fn an_identification_used_again_has_the_later_fate() {
        let mut fragments = Fragments::default();
        fragments.remember(key(1), Fate::Kernels, Millis(0));
        let other = Fate::Dropped(DropReason::NoFlow);
        fragments.remember(key(1), other, Millis(1));
        assert_eq!(fragments.fate(&key(1), Millis(1)), Some(other));
        assert_eq!(fragments.slots.iter().flatten().count(), 1);
    }
}
