//! A flow as the ordinary packets of it see it ([`crate::forward::fast`]): one entry's words, with the family known
//! when the code is made, so that nothing is asked of it twice.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::entries::{
    CONTROL, FROM_NIC, PORTS, PROTOCOL_AT, REPLY_FROM_TUN, REWRITTEN, SEEN, SEQUENCES, SERVED,
    SERVED_BY, WAYS, lowers_bit, plain_bit,
};
use super::{Direction, Expected, Millis, Side, expected_in, way_of};
use crate::forward::preferred::ServerId;

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

    /// The flags that say whether data of a protocol and side finds nothing to change …
    const MASK: u32 = 0xff << PROTOCOL_AT
        | plain_bit(Self::DIRECTION, Side::Tun)
        | plain_bit(Self::DIRECTION, Side::Nic);

    /// … and what they are if so: at most the bit of the own side is ever set.
    #[inline(always)]
    pub(in crate::forward) fn plain_flags(protocol: u8, side: Side) -> u32 {
        u32::from(protocol) << PROTOCOL_AT | plain_bit(Self::DIRECTION, side)
    }

    /// The entry, if it has these addresses and ports in this direction, and of its flags [`Open::plain_flags`].
    #[inline(always)]
    pub(super) fn of(
        words: &'a [AtomicU64; S],
        (addresses, ports): (&[u64; N], u32),
        plain_flags: u32,
    ) -> Option<Self> {
        let flags = words[2 * N + CONTROL].load(Relaxed) as u32;
        let open = Open { words, flags };
        let (own, own_ports) = open.ends(Self::DIRECTION);
        let is_it = own == *addresses && own_ports == ports && flags & Self::MASK == plain_flags;
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

    /// Is the time to live of what goes this way lowered?
    #[inline(always)]
    pub(in crate::forward) fn is_lowered(&self) -> bool {
        self.flags & lowers_bit(Self::DIRECTION) != 0
    }

    /// Does what goes this way leave by the TUN?
    #[inline(always)]
    pub(in crate::forward) fn leaves_by_tun(&self) -> bool {
        match Self::DIRECTION {
            Direction::Original => self.flags & REPLY_FROM_TUN != 0,
            Direction::Reply => self.flags & FROM_NIC == 0,
        }
    }

    /// The place of the way that was found under this generation of the view, or one beyond all.
    #[inline(always)]
    pub(in crate::forward) fn way(&self, generation: u32) -> Option<usize> {
        let ways = self.word(WAYS).load(Relaxed);
        let place = usize::from(way_of(ways, Self::DIRECTION)).wrapping_sub(1);
        ((ways >> 32) as u32 == generation).then_some(place)
    }

    /// The server that has it; the greatest of all: nobody that this process knows.
    #[inline(always)]
    pub(in crate::forward) fn server(&self) -> ServerId {
        ServerId(self.word(SERVED_BY).load(Relaxed) as u16)
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
