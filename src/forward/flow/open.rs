//! A flow as the ordinary packets of it see it ([`crate::forward::fast`]): one entry's words, with the family known
//! when the code is made, so that nothing is asked of it twice.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::entries::{
    CONTROL, FORWARDED, FROM_NIC, PORTS, PROTOCOL_AT, REPLY_FROM_TUN, REWRITTEN, SEEN, SEQUENCES,
    SERVED, SERVED_BY, WAYS, plain_bit,
};
use super::{Direction, Expected, Key, Millis, NOBODY, expected_in, served_by_in, way_in};
use crate::forward::preferred::ServerId;
use crate::forward::view::WayId;

/// The words of an entry: `N` of addresses in each of its keys, `S` in all. Seen by a packet of the reply direction if `R`.
#[derive(Clone, Copy, Debug)]
pub(in crate::forward) struct Open<'a, const N: usize, const S: usize, const R: bool> {
    words: &'a [AtomicU64; S],
    flags: u32,
}

/// Both ends of a packet: its addresses as a key has them, and its ports.
pub(in crate::forward) type Ends<const N: usize> = ([u64; N], u32);

impl<'a, const N: usize, const S: usize, const R: bool> Open<'a, N, S, R> {
    const DIRECTION: Direction = if R { Direction::Reply } else { Direction::Original };
    const OTHER: Direction = if R { Direction::Original } else { Direction::Reply };

    /// The entry, if it has `key` in this direction, and a packet with nothing but data finds nothing to change there.
    #[inline(always)]
    pub(super) fn of(words: &'a [AtomicU64; S], key: &Key) -> Option<Self> {
        let flags = words[2 * N + CONTROL].load(Relaxed) as u32;
        let open = Open { words, flags };
        let (addresses, ports) = open.ends(Self::DIRECTION);
        let is_it = flags & plain_bit(Self::DIRECTION, key.side()) != 0
            && addresses == key.addresses.first_chunk().copied()?
            && ports == key.ports()
            && (flags >> PROTOCOL_AT) as u8 == key.protocol();
        is_it.then_some(open)
    }

    /// Addresses and ports of the packets of one direction.
    #[inline(always)]
    fn ends(&self, direction: Direction) -> Ends<N> {
        let (start, shift) = if direction == Direction::Original { (0, 32) } else { (N, 0) };
        let addresses = std::array::from_fn(|offset| self.words[start + offset].load(Relaxed));
        (addresses, (self.word(PORTS).load(Relaxed) >> shift) as u32)
    }

    /// What the packet is to carry, if it is rewritten: the other direction's ends, the other way round.
    #[inline(always)]
    pub(in crate::forward) fn rewritten(&self) -> Option<Ends<N>> {
        (self.flags & REWRITTEN != 0).then(|| {
            let (mut addresses, ports) = self.ends(Self::OTHER);
            match addresses.as_mut_slice() {
                [both] => *both = both.rotate_left(32),
                more => more.rotate_left(N / 2),
            }
            (addresses, ports.rotate_left(16))
        })
    }

    #[inline(always)]
    pub(in crate::forward) fn is_served(&self) -> bool {
        self.flags & SERVED != 0
    }

    /// Did a flow of the TUN come from another host?
    #[inline(always)]
    pub(in crate::forward) fn is_forwarded(&self) -> bool {
        self.flags & FORWARDED != 0
    }

    /// Does what goes this way leave by the TUN?
    #[inline(always)]
    pub(in crate::forward) fn leaves_by_tun(&self) -> bool {
        match Self::DIRECTION {
            Direction::Original => self.flags & REPLY_FROM_TUN != 0,
            Direction::Reply => self.flags & FROM_NIC == 0,
        }
    }

    /// The way that was found under this generation of the view.
    #[inline(always)]
    pub(in crate::forward) fn way(&self, generation: u32) -> Option<WayId> {
        way_in(self.word(WAYS).load(Relaxed), Self::DIRECTION, generation)
    }

    /// The server that has it; `None`: of nobody that this process knows.
    #[inline(always)]
    pub(in crate::forward) fn server(&self) -> Option<ServerId> {
        served_by_in(self.word(SERVED_BY).load(Relaxed) & NOBODY).map(|(_, server)| server)
    }

    /// A packet passes.
    #[inline(always)]
    pub(in crate::forward) fn seen(&self, now: Millis) {
        if self.word(SEEN).load(Relaxed) != now.0 {
            self.word(SEEN).store(now.0, Relaxed);
        }
    }

    /// Its sender expects this sequence number next.
    #[inline(always)]
    pub(in crate::forward) fn acknowledged(&self, next: u32) {
        let word = self.word(SEQUENCES);
        let expected = expected_in(word.load(Relaxed));
        let expected = match Self::DIRECTION {
            Direction::Original => Expected { client: next, ..expected },
            Direction::Reply => Expected { server: next, ..expected },
        };
        word.store(expected.word(), Relaxed);
    }

    #[inline(always)]
    fn word(&self, offset: usize) -> &AtomicU64 {
        &self.words[2 * N + offset]
    }
}
