//! Flows of one family: entries of a fixed number of words in memory that outlives the process, and an index from
//! keys to entries in ordinary memory.
//!
//! The last thing an insertion writes, and the first a deletion clears, is the control word, whose upper half is a
//! checksum over all that does not change: whatever moment a SIGKILL picks, adoption finds whole entries or none.
//! Updates of a live entry are single words. An IPv4 entry is one cache line, an IPv6 entry two.
#![allow(unsafe_code)] // Asks for memory before it is read, and for large pages of it.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release};

use super::key::{self, Key, Side};
use super::{Direction, Millis, Phase};
use crate::wire::ip::{self, Family};

/// 64-bit words of an IPv4 flow.
pub(super) const WORDS_V4: usize = 8;
/// 64-bit words of an IPv6 flow.
pub(super) const WORDS_V6: usize = 16;
/// Words of a cache line.
const LINE: usize = 8;

// Behind the addresses of both keys:
pub(super) const PORTS: usize = 0;
pub(super) const CONTROL: usize = 1;
pub(super) const WAYS: usize = 2;
pub(super) const SERVED_BY: usize = 3;
pub(super) const SEQUENCES: usize = 4;
pub(super) const SEEN: usize = 5;

pub(super) const LIVE: u32 = 1;
/// Its packets are rewritten.
pub(super) const REWRITTEN: u32 = 1 << 1;
/// Its reply key is in the index.
pub(super) const REPLY_KEY: u32 = 1 << 2;
pub(super) const HELD: u32 = 1 << 3;
pub(super) const FORWARDED: u32 = 1 << 4;
/// Of a virtual service.
pub(super) const SERVED: u32 = 1 << 5;
/// Its original direction comes in by a NIC.
pub(super) const FROM_NIC: u32 = 1 << 6;
/// Its replies come in by the TUN.
pub(super) const REPLY_FROM_TUN: u32 = 1 << 7;
pub(super) const PHASE_AT: u32 = 8;
/// The other end has answered.
pub(super) const ANSWERED: u32 = 1 << 10;
/// Four bits, by direction and side: a packet with nothing but data that comes so finds nothing to change and nothing to wait for.
/// They follow from the others; of a direction at most the one of its own side is set.
pub(super) const PLAIN_AT: u32 = 11;
const PLAIN: u32 = 15 << PLAIN_AT;
pub(super) const PROTOCOL_AT: u32 = 16;
/// The end that began it has said its last (FIN) …
pub(super) const CLIENT_ENDED: u32 = 1 << 24;
/// … and so has the other one.
pub(super) const SERVER_ENDED: u32 = 1 << 25;
/// Both have, or one reset it: it is no connection of its server's any more.
pub(super) const OVER: u32 = 1 << 26;
/// Two bits, by direction: the time to live of packets that go so is lowered. They follow from what else does not change.
const LOWERS_AT: u32 = 27;
/// What does not change while the entry lives.
const FIXED: u32 = LIVE
    | REWRITTEN
    | REPLY_KEY
    | FORWARDED
    | SERVED
    | FROM_NIC
    | REPLY_FROM_TUN
    | 3 << LOWERS_AT
    | 0xff << PROTOCOL_AT;

const EMPTY: u64 = 0;

/// Flows of one family.
#[derive(Debug)]
pub(super) struct Entries {
    family: Family,
    words: &'static [AtomicU64],
    capacity: u32,
    /// Slot: the key's hash, direction, entry; open addressing with linear probing, from the hash on.
    index: Box<[u64]>,
    free: Vec<u32>,
    hasher: foldhash::quality::FixedState,
    secrets: Secrets,
    /// Where sweep and eviction go on.
    hand: u32,
}

impl Entries {
    /// Entries over `words`; those that an earlier process left there and that `is_kept` says are kept, all others
    /// are cleared. Returns the number of torn ones as well. Of `is_fresh` words, all zero, none is read.
    pub(super) fn adopt(
        (family, words): (Family, &'static [AtomicU64]),
        seed: u64,
        is_fresh: bool,
        is_kept: impl Fn(u32) -> bool,
    ) -> (Entries, usize) {
        let stride = stride(family);
        let capacity = (words.len() / stride) as u32;
        let slots = (capacity as usize * 8 / 3).next_power_of_two().max(8);
        let mut entries = Entries {
            family,
            words,
            capacity,
            index: in_huge_pages(vec![EMPTY; slots].into_boxed_slice()),
            free: Vec::with_capacity(capacity as usize),
            hasher: foldhash::quality::FixedState::with_seed(seed),
            secrets: Secrets::new(seed),
            hand: 0,
        };
        if is_fresh {
            entries.free.extend((0..capacity).rev());
            return (entries, 0);
        }
        let mut torn = 0;
        for at in (0..capacity).rev() {
            let control = entries.behind(at, CONTROL).load(Relaxed);
            let flags = control as u32;
            let is_whole = (control >> 32) as u32 == entries.checksum(at, flags);
            if flags & LIVE != 0 && is_whole && is_kept(flags) && entries.is_new(at) {
                entries.behind(at, WAYS).store(0, Relaxed);
                entries.set_flags(at, 0, 0);
                entries.link(at);
            } else {
                torn += usize::from(flags & LIVE != 0 && !is_whole);
                entries.behind(at, CONTROL).store(0, Relaxed);
                entries.free.push(at);
            }
        }
        (entries, torn)
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(super) fn len(&self) -> u32 {
        self.capacity - self.free.len() as u32
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// The entry of `key`, and which of its two directions that is.
    #[inline]
    pub(super) fn find(&self, key: &Key) -> Option<(u32, Direction)> {
        self.probe(upper(self.hash(key)), |at, direction| self.has_key(at, direction, key))
    }

    /// Hash of a key with `N` words of addresses, and asks for the slot of the index where it begins.
    #[inline(always)]
    pub(super) fn ahead<const N: usize>(&self, addresses: &[u64; N], ends: u64) -> u32 {
        let hash = upper(self.secrets.hash(addresses, ends));
        prefetch(self.index.as_ptr().wrapping_add(hash as usize & (self.index.len() - 1)));
        hash
    }

    /// The entry that the index alone names for a key of this hash, and its direction; asks for its `S` words. It may be another key's.
    #[inline(always)]
    pub(super) fn guess<const S: usize>(&self, hash: u32) -> Option<(u32, Direction)> {
        let guess = self.probe(hash, |_, _| true)?;
        let words = self.words.as_ptr().wrapping_add(guess.0 as usize * S);
        (0..S).step_by(LINE).for_each(|line| prefetch(words.wrapping_add(line)));
        Some(guess)
    }

    /// The first entry that the index names for keys of this hash and that `is_it`, and its direction. There is always an empty slot.
    #[inline(always)]
    fn probe(&self, hash: u32, is_it: impl Fn(u32, Direction) -> bool) -> Option<(u32, Direction)> {
        let mask = self.index.len() - 1;
        let mut slot = hash as usize & mask;
        loop {
            let value = self.index[slot];
            if value == EMPTY {
                return None;
            }
            let (at, direction) = entry_of(value);
            if upper(value) == hash && is_it(at, direction) {
                return Some((at, direction));
            }
            slot = (slot + 1) & mask;
        }
    }

    /// All words of an entry, of which there are `S`.
    #[inline(always)]
    pub(super) fn entry<const S: usize>(&self, at: u32) -> Option<&[AtomicU64; S]> {
        self.words.as_chunks().0.get(at as usize)
    }

    /// A new entry, if there is room. `reply` is what comes back, in the index if `flags` say so.
    pub(super) fn insert(
        &mut self,
        key: &Key,
        reply: &Key,
        flags: u32,
        now: Millis,
    ) -> Option<u32> {
        let at = self.free.pop()?;
        let length = address_words(self.family);
        for (offset, word) in key.addresses[..length].iter().enumerate() {
            self.word(at, offset).store(*word, Relaxed);
        }
        for (offset, word) in reply.addresses[..length].iter().enumerate() {
            self.word(at, length + offset).store(*word, Relaxed);
        }
        let ports = u64::from(key.ports()) << 32 | u64::from(reply.ports());
        self.behind(at, PORTS).store(ports, Relaxed);
        self.behind(at, WAYS).store(0, Relaxed);
        self.behind(at, SERVED_BY).store(0, Relaxed);
        self.behind(at, SEQUENCES).store(0, Relaxed);
        self.behind(at, SEEN).store(now.0, Relaxed);
        let mut flags = flags | LIVE | u32::from(key.protocol()) << PROTOCOL_AT;
        if key.side() == Side::Nic {
            flags |= FROM_NIC;
        }
        if reply.side() == Side::Tun {
            flags |= REPLY_FROM_TUN;
        }
        flags |= lowers(flags) | plain(flags);
        let control = u64::from(self.checksum(at, flags)) << 32 | u64::from(flags);
        self.behind(at, CONTROL).store(control, Release);
        self.link(at);
        Some(at)
    }

    /// Takes a live entry away; its words stay as they are until another uses them.
    pub(super) fn remove(&mut self, at: u32) {
        self.unlink(at);
        self.behind(at, CONTROL).store(0, Release);
        self.free.push(at);
    }

    /// The key of one direction of an entry.
    pub(super) fn key(&self, at: u32, direction: Direction) -> Key {
        self.key_under(at, direction, self.flags(at))
    }

    /// The same of an entry whose control word is gone already.
    pub(super) fn key_under(&self, at: u32, direction: Direction, flags: u32) -> Key {
        let length = address_words(self.family);
        let start = if direction == Direction::Original { 0 } else { length };
        let mut addresses = [0; 4];
        for (offset, word) in addresses[..length].iter_mut().enumerate() {
            *word = self.word(at, start + offset).load(Relaxed);
        }
        let protocol = (flags >> PROTOCOL_AT) as u8;
        let (ports, side) = (self.ports(at, direction), side(flags, direction));
        Key { addresses, ends: key::ends(ports, protocol, self.family, side) }
    }

    /// The side that packets of one direction come in by.
    #[inline]
    pub(super) fn side(&self, at: u32, direction: Direction) -> Side {
        side(self.flags(at), direction)
    }

    #[inline]
    pub(super) fn flags(&self, at: u32) -> u32 {
        self.behind(at, CONTROL).load(Relaxed) as u32
    }

    /// Sets those of `mask`, none of which is fixed.
    pub(super) fn set_flags(&mut self, at: u32, mask: u32, flags: u32) {
        debug_assert_eq!(mask & FIXED, 0);
        let control = self.behind(at, CONTROL);
        let value = control.load(Relaxed) & !u64::from(mask) | u64::from(flags);
        control.store(value & !u64::from(PLAIN) | u64::from(plain(value as u32)), Relaxed);
    }

    pub(super) fn protocol(&self, at: u32) -> u8 {
        (self.flags(at) >> PROTOCOL_AT) as u8
    }

    /// A word behind the addresses.
    #[inline]
    pub(super) fn behind(&self, at: u32, offset: usize) -> &AtomicU64 {
        self.word(at, 2 * address_words(self.family) + offset)
    }

    /// The next entry in turn, live or not.
    pub(super) fn advance(&mut self) -> u32 {
        self.hand = if self.hand + 1 >= self.capacity { 0 } else { self.hand + 1 };
        self.hand
    }

    /// All live entries.
    pub(super) fn live(&self) -> impl Iterator<Item = u32> {
        (0..self.capacity).filter(|at| self.flags(*at) & LIVE != 0)
    }

    fn ports(&self, at: u32, direction: Direction) -> u32 {
        let ports = self.behind(at, PORTS).load(Relaxed);
        if direction == Direction::Original { (ports >> 32) as u32 } else { ports as u32 }
    }

    #[inline]
    fn has_key(&self, at: u32, direction: Direction, key: &Key) -> bool {
        let length = address_words(self.family);
        let start = if direction == Direction::Original { 0 } else { length };
        let flags = self.flags(at);
        (0..length)
            .all(|offset| self.word(at, start + offset).load(Relaxed) == key.addresses[offset])
            && self.ports(at, direction) == key.ports()
            && (flags >> PROTOCOL_AT) as u8 == key.protocol()
            && side(flags, direction) == key.side()
    }

    #[inline]
    fn word(&self, at: u32, offset: usize) -> &AtomicU64 {
        &self.words[at as usize * stride(self.family) + offset]
    }

    /// Over keys and what is fixed, with the seed in it: torn and foreign entries do not have it.
    fn checksum(&self, at: u32, flags: u32) -> u32 {
        let mut hasher = self.hasher.build_hasher();
        for offset in 0..=2 * address_words(self.family) {
            hasher.write_u64(self.word(at, offset).load(Relaxed));
        }
        hasher.write_u32(flags & FIXED);
        (hasher.finish() >> 32) as u32
    }

    #[inline]
    pub(super) fn hash(&self, key: &Key) -> u64 {
        match self.family {
            Family::V4 => self.secrets.hash(&[key.addresses[0]], key.ends),
            Family::V6 => self.secrets.hash(&key.addresses, key.ends),
        }
    }

    /// An adopted entry whose keys no other entry has.
    fn is_new(&self, at: u32) -> bool {
        let is_free = |direction| self.find(&self.key(at, direction)).is_none();
        let has_reply = self.flags(at) & REPLY_KEY != 0;
        let (original, reply) = (Direction::Original, Direction::Reply);
        is_free(original)
            && (!has_reply || is_free(reply) && self.key(at, original) != self.key(at, reply))
    }

    fn link(&mut self, at: u32) {
        self.link_key(at, Direction::Original);
        if self.flags(at) & REPLY_KEY != 0 {
            self.link_key(at, Direction::Reply);
        }
    }

    fn link_key(&mut self, at: u32, direction: Direction) {
        let hash = upper(self.hash(&self.key(at, direction)));
        let mask = self.index.len() - 1;
        let mut slot = hash as usize & mask;
        while self.index[slot] != EMPTY {
            slot = (slot + 1) & mask;
        }
        self.index[slot] = slot_value(hash, at, direction);
    }

    fn unlink(&mut self, at: u32) {
        if self.flags(at) & REPLY_KEY != 0 {
            self.unlink_key(at, Direction::Reply);
        }
        self.unlink_key(at, Direction::Original);
    }

    /// Takes a slot out and moves back those behind it that probing would no longer reach.
    fn unlink_key(&mut self, at: u32, direction: Direction) {
        let hash = upper(self.hash(&self.key(at, direction)));
        let mask = self.index.len() - 1;
        let wanted = slot_value(hash, at, direction);
        let mut hole = hash as usize & mask;
        while self.index[hole] != wanted {
            if self.index[hole] == EMPTY {
                return;
            }
            hole = (hole + 1) & mask;
        }
        self.index[hole] = EMPTY;
        let mut slot = (hole + 1) & mask;
        while self.index[slot] != EMPTY {
            let value = self.index[slot];
            // Moving a slot asks no entry.
            let home = upper(value) as usize & mask;
            if (slot.wrapping_sub(home) & mask) >= (slot.wrapping_sub(hole) & mask) {
                self.index[hole] = value;
                self.index[slot] = EMPTY;
                hole = slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}

/// 64-bit words of one flow of a family.
pub(super) const fn stride(family: Family) -> usize {
    match family {
        Family::V4 => WORDS_V4,
        Family::V6 => WORDS_V6,
    }
}

/// 64-bit words of the two addresses of a key.
#[inline]
const fn address_words(family: Family) -> usize {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// The bit of [`PLAIN_AT`] for a direction that comes in by a side.
#[inline(always)]
pub(super) const fn plain_bit(direction: Direction, side: Side) -> u32 {
    1 << (PLAIN_AT + 2 * direction as u32 + side as u32)
}

fn plain(flags: u32) -> u32 {
    let is_tcp = (flags >> PROTOCOL_AT) as u8 == ip::TCP;
    let is_opening = flags >> PHASE_AT & 3 == Phase::Opening as u32;
    let is_held = flags & (HELD | REPLY_KEY) != REPLY_KEY;
    let is_answered = flags & SERVED == 0 || flags & ANSWERED != 0;
    // By what its client goes on to say.
    let opens_by_itself = is_tcp || flags & (SERVED | REPLY_KEY) == SERVED;
    let mut bits = 0;
    if is_held && !(is_opening && opens_by_itself) {
        bits |= plain_bit(Direction::Original, side(flags, Direction::Original));
    }
    if flags & REPLY_KEY != 0 && !is_opening && is_answered {
        bits |= plain_bit(Direction::Reply, side(flags, Direction::Reply));
    }
    bits
}

/// The bit of [`LOWERS_AT`] for a direction.
#[inline(always)]
pub(super) const fn lowers_bit(direction: Direction) -> u32 {
    1 << (LOWERS_AT + direction as u32)
}

/// What goes from NIC to NIC by way of a service is forwarded, if it does not go through unchanged as if bridged; and so are flows of the
/// TUN that came from another host.
fn lowers(flags: u32) -> u32 {
    let (original, reply) = (Direction::Original, Direction::Reply);
    if flags & SERVED == 0 {
        return if flags & FORWARDED != 0 { lowers_bit(original) } else { 0 };
    }
    let is_between = [original, reply].iter().all(|way| side(flags, *way) == Side::Nic);
    let both = lowers_bit(original) | lowers_bit(reply);
    if is_between && flags & REWRITTEN != 0 { both } else { 0 }
}

fn side(flags: u32, direction: Direction) -> Side {
    let is_nic = match direction {
        Direction::Original => flags & FROM_NIC != 0,
        Direction::Reply => flags & REPLY_FROM_TUN == 0,
    };
    if is_nic { Side::Nic } else { Side::Tun }
}

/// Tables have fewer than 2^31 - 1 entries, so a slot in use is never [`EMPTY`].
fn slot_value(hash: u32, at: u32, direction: Direction) -> u64 {
    let direction = if direction == Direction::Original { 0 } else { 1 << 31 };
    u64::from(hash) << 32 | direction | u64::from(at + 1)
}

fn upper(value: u64) -> u32 {
    (value >> 32) as u32
}

fn entry_of(value: u64) -> (u32, Direction) {
    let direction = if value & 1 << 31 == 0 { Direction::Original } else { Direction::Reply };
    ((value as u32 & 0x7fff_ffff) - 1, direction)
}

/// What the hash of a key mixes in: each factor of each product has a secret of its own, so that who picks addresses and ports can neither
/// make a product zero, whatever the rest, nor tell which keys meet. The last product is there for keys that differ by little: without it
/// they lie in rows, and probing takes twice as long.
#[derive(Debug)]
struct Secrets([u64; 7]);

impl Secrets {
    /// SplitMix64 (Steele and others, 2014) makes the secrets of one.
    fn new(seed: u64) -> Secrets {
        Secrets(std::array::from_fn(|at| {
            let state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(at as u64 + 1));
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        }))
    }

    #[inline(always)]
    fn hash<const N: usize>(&self, addresses: &[u64; N], ends: u64) -> u64 {
        let [a, b, c, d, e, f, last] = self.0;
        let addresses = match addresses.as_slice() {
            [from, from_low, to, to_low] => fold(from ^ c, from_low ^ d) ^ fold(to ^ e, to_low ^ f),
            words => words[0],
        };
        fold(addresses ^ a, ends ^ b).wrapping_mul(last | 1)
    }
}

/// Both halves of the product in one.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

/// Asks the kernel for huge pages for memory that is read in no order, where each small page has to be looked up as well. If it has none to
/// give, the memory is as it was.
fn in_huge_pages(memory: Box<[u64]>) -> Box<[u64]> {
    /// Pages of every processor begin there, and huge ones are larger.
    const PAGE: usize = 1 << 16;
    let range = memory.as_ptr_range();
    let start = (range.start as usize).next_multiple_of(PAGE);
    let length = (range.end as usize).saturating_sub(start) / PAGE * PAGE;
    if length > 0 {
        // SAFETY: whole pages within this allocation; advice changes nothing of what they hold.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
    }
    memory
}

/// Asks for the memory there.
#[inline(always)]
fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch takes any address, and neither reads nor writes as far as the program can tell.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// A hash that mixes words in with a published constant has a product of zero for addresses with that in their lower half, whatever the
    /// upper one: this is foldhash's.
    #[test]
    fn no_addresses_are_known_that_all_have_one_hash() {
        const PUBLISHED: u64 = 0xc0ac_29b7_c97c_50dd;
        let secrets = Secrets::new(7);
        let of = |prefix: u64| upper(secrets.hash(&[prefix, PUBLISHED, 1, 2], 3));
        assert_eq!((0..1000).map(of).collect::<HashSet<u32>>().len(), 1000);
    }

    /// Peers in a row, and ports in a row, as networks and clients have them.
    #[test]
    fn keys_that_differ_by_little_lie_apart_in_the_index() {
        const SLOTS: usize = 1 << 15;
        for seed in 0..16 {
            let secrets = Secrets::new(seed);
            let peers = (0..10_000u64).map(|n| ((0x0a00_0000 | n) << 32 | 0xcb00_710a, 9));
            let ports = (0..10_000u64).map(|n| (0xcb00_710a_0aff_0001, (1024 + n) << 16 | 0x50));
            let mut taken = vec![false; SLOTS];
            let mut steps = 0;
            for (addresses, ends) in peers.chain(ports) {
                let hash = upper(secrets.hash(&[addresses.to_be()], ends));
                let mut slot = hash as usize % SLOTS;
                while taken[slot] {
                    slot = (slot + 1) % SLOTS;
                    steps += 1;
                }
                taken[slot] = true;
            }
            // Of hashes at random: half of 1 / (1 - load) - 1, which is 0.78 here (Knuth, 6.4).
            assert!(steps < 20_000, "seed {seed}: {steps}");
        }
    }
}
