//! The flow table: fixed memory, O(1), timeouts, eviction. Pure code over a slice of words that the engine
//! maps from a file, so that flows outlive the process that made them.
//!
//! A flow is [`WORDS`] words. The last thing an insertion writes, and the first a deletion clears, is the
//! control word, whose upper half is a checksum over key and edit: whatever moment a SIGKILL picks, adoption
//! finds whole entries or none. Updates of a live entry are single words. The index from keys to entries is
//! ordinary memory, built anew at adoption.

use std::hash::{BuildHasher, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release};

use super::rewrite::Endpoint;
use super::view::NicId;
use crate::wire::ethernet::MacAddr;
use crate::wire::ip;
use crate::wire::packet::{Headers, Layer4};

/// 64-bit words of one flow.
pub const WORDS: usize = 12;
/// Rises with each change of what the words mean.
pub const LAYOUT: u32 = 1;

/// A flow of one worker's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId(pub u32);

/// Milliseconds of a clock that goes on across restarts of the process (CLOCK_MONOTONIC; in replay the
/// capture's).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// Which way a packet of the flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As the flow began: out of this host.
    Original,
    /// Back to it.
    Reply,
}

/// Addresses, ports and protocol of a packet, and its direction: what a flow is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key([u64; 5]);

impl Key {
    /// The key of a packet that goes in `direction`.
    pub fn of(headers: &Headers, direction: Direction) -> Key {
        let (source_port, destination_port) = headers.ports();
        let source = Endpoint { address: headers.source, port: source_port };
        let destination = Endpoint { address: headers.destination, port: destination_port };
        Key::new(source, destination, headers.protocol, direction)
    }

    /// The key of packets from `source` to `destination`.
    pub fn new(source: Endpoint, destination: Endpoint, protocol: u8, direction: Direction) -> Key {
        let [a, b] = words(source.address);
        let [c, d] = words(destination.address);
        let tag = match direction {
            Direction::Original => 0,
            Direction::Reply => 1,
        };
        let last = u64::from(source.port) << 48
            | u64::from(destination.port) << 32
            | u64::from(protocol) << 8
            | tag;
        Key([a, b, c, d, last])
    }

    /// Source of the packets.
    pub fn source(&self) -> Endpoint {
        Endpoint { address: address([self.0[0], self.0[1]]), port: (self.0[4] >> 48) as u16 }
    }

    /// Destination of the packets.
    pub fn destination(&self) -> Endpoint {
        Endpoint { address: address([self.0[2], self.0[3]]), port: (self.0[4] >> 32) as u16 }
    }

    /// IANA protocol number.
    pub fn protocol(&self) -> u8 {
        (self.0[4] >> 8) as u8
    }
}

fn words(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(a) => u128::from(a.to_ipv6_mapped()),
        IpAddr::V6(a) => u128::from(a),
    };
    [(bits >> 64) as u64, bits as u64]
}

fn address(words: [u64; 2]) -> IpAddr {
    let bits = u128::from(words[0]) << 64 | u128::from(words[1]);
    Ipv6Addr::from(bits).to_canonical()
}

/// How far a flow has come; what its time-out and its chance of being evicted depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One packet or SYNs only.
    Opening,
    /// Traffic flows.
    Open,
    /// FIN or RST was seen.
    Closing,
}

/// What the table remembers of a flow beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The source on the wire, if it is rewritten.
    pub rewritten: Option<Endpoint>,
    /// RIP keeps its port and has no reply entry.
    pub has_reply_key: bool,
    /// It came from another host: its time to live is lowered.
    pub is_forwarded: bool,
}

/// A flow whose replies come to the forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// As the application sends it.
    pub original: Key,
    /// Its source on the wire.
    pub wire: Endpoint,
}

/// The way a flow takes, valid for one generation of the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Leaves by this NIC.
    pub nic: NicId,
    /// To this MAC address.
    pub destination: MacAddr,
}

const SOURCE: usize = 0;
const PORTS: usize = 4;
const WIRE_ADDRESS: usize = 5;
const WIRE_PORT: usize = 7;
const CONTROL: usize = 8;
const SEEN: usize = 9;
const WAY: usize = 10;
const GENERATION: usize = 11;

const LIVE: u64 = 1;
const REWRITTEN: u64 = 1 << 1;
const REPLY_KEY: u64 = 1 << 2;
const HELD: u64 = 1 << 3;
const FORWARDED: u64 = 1 << 4;
const PHASE_AT: u32 = 8;

const EMPTY: u64 = 0;
/// Entries looked at to find one to evict.
const EVICTION_LOOK: u32 = 32;

/// Flows of one worker.
#[derive(Debug)]
pub struct FlowTable {
    entries: &'static [AtomicU64],
    capacity: u32,
    /// Slot: upper half of the key's hash, entry, direction; open addressing with linear probing.
    index: Box<[u64]>,
    free: Vec<u32>,
    hasher: foldhash::fast::FixedState,
    /// Where sweep and eviction go on.
    hand: u32,
    next_port: usize,
    rewritten: u32,
    created: u64,
    evicted: u64,
}

impl FlowTable {
    /// A table over `words`, whose length is a multiple of [`WORDS`]; what an earlier process left there
    /// is adopted: rewritten flows go on, others are only remembered ways and are forgotten. Returns the
    /// number of entries dropped as torn as well.
    pub fn adopt(words: &'static [AtomicU64], seed: u64) -> (FlowTable, usize) {
        let capacity = (words.len() / WORDS) as u32;
        let slots = (capacity as usize * 8 / 3).next_power_of_two().max(8);
        let mut table = FlowTable {
            entries: words,
            capacity,
            index: vec![EMPTY; slots].into_boxed_slice(),
            free: Vec::with_capacity(capacity as usize),
            hasher: foldhash::fast::FixedState::with_seed(seed),
            hand: 0,
            next_port: 0,
            rewritten: 0,
            created: 0,
            evicted: 0,
        };
        let mut torn = 0;
        for at in (0..capacity).rev() {
            let control = table.word(at, CONTROL).load(Relaxed);
            let whole = control >> 32 == table.checksum(at) >> 32;
            if control & LIVE != 0 && whole && control & REWRITTEN != 0 && table.is_new(at) {
                table.word(at, GENERATION).store(0, Relaxed);
                table.link(at);
                table.rewritten += 1;
            } else {
                torn += usize::from(control & LIVE != 0 && !whole);
                table.word(at, CONTROL).store(0, Relaxed);
                table.free.push(at);
            }
        }
        (table, torn)
    }

    /// Flows it has room for.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Flows in it.
    pub fn len(&self) -> u32 {
        self.capacity - self.free.len() as u32
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rewritten flows in it.
    pub fn rewritten(&self) -> u32 {
        self.rewritten
    }

    /// Flows remembered since the table was made.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// Flows that had to make room since the table was made.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The flow of `key`.
    #[inline]
    pub fn find(&self, key: &Key) -> Option<FlowId> {
        let hash = self.hash(key);
        let direction = key.0[4] & 1;
        let mask = self.index.len() - 1;
        let mut slot = home(hash) & mask;
        loop {
            let value = self.index[slot];
            if value == EMPTY {
                return None;
            }
            if value >> 32 == hash >> 32 && (value >> 31) & 1 == direction {
                let at = entry_of(value);
                if self.key(at, direction) == *key {
                    return Some(FlowId(at));
                }
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Remembers a flow; `key` is the original direction's and not in the table. Where the table is full
    /// another flow makes room, which is returned if it was a rewritten one.
    ///
    /// # Errors
    /// No flow may be evicted.
    pub fn insert(
        &mut self,
        key: &Key,
        flow: Flow,
        now: Millis,
    ) -> Result<(FlowId, Option<Rewritten>), TableFull> {
        let mut evicted = None;
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                let victim = self.victim(now).ok_or(TableFull)?;
                evicted = self.remove(FlowId(victim));
                self.evicted += 1;
                self.free.pop().ok_or(TableFull)?
            }
        };
        for (offset, word) in key.0.iter().enumerate() {
            self.word(at, SOURCE + offset).store(*word, Relaxed);
        }
        let wire = flow.rewritten.unwrap_or(key.source());
        let [high, low] = words(wire.address);
        self.word(at, WIRE_ADDRESS).store(high, Relaxed);
        self.word(at, WIRE_ADDRESS + 1).store(low, Relaxed);
        self.word(at, WIRE_PORT).store(u64::from(wire.port), Relaxed);
        self.word(at, SEEN).store(now.0, Relaxed);
        self.word(at, GENERATION).store(0, Relaxed);
        let mut flags = LIVE;
        if flow.rewritten.is_some() {
            flags |= REWRITTEN;
            self.rewritten += 1;
        }
        if flow.has_reply_key {
            flags |= REPLY_KEY;
        }
        if flow.is_forwarded {
            flags |= FORWARDED;
        }
        let checksum = self.checksum(at) & !0xffff_ffff;
        self.word(at, CONTROL).store(checksum | flags, Release);
        self.link(at);
        self.created += 1;
        Ok((FlowId(at), evicted))
    }

    /// Forgets a flow; returns it if it was rewritten with a reply key.
    pub fn remove(&mut self, id: FlowId) -> Option<Rewritten> {
        let at = id.0;
        let control = self.word(at, CONTROL).load(Relaxed);
        if control & LIVE == 0 {
            return None;
        }
        self.unlink(at);
        self.word(at, CONTROL).store(0, Release);
        self.free.push(at);
        if control & REWRITTEN != 0 {
            self.rewritten -= 1;
        }
        (control & REWRITTEN != 0 && control & REPLY_KEY != 0).then(|| self.rewritten_flow(id))
    }

    /// The key of the flow's original direction.
    pub fn original(&self, id: FlowId) -> Key {
        self.key(id.0, 0)
    }

    /// A flow with its source on the wire.
    pub fn rewritten_flow(&self, id: FlowId) -> Rewritten {
        Rewritten { original: self.key(id.0, 0), wire: self.wire(id.0) }
    }

    /// Did it come from another host?
    #[inline]
    pub fn is_forwarded(&self, id: FlowId) -> bool {
        self.flags(id) & FORWARDED != 0
    }

    /// What a rewritten flow carries as source on the wire.
    #[inline]
    pub fn rewritten_source(&self, id: FlowId) -> Option<Endpoint> {
        (self.flags(id) & REWRITTEN != 0).then(|| self.wire(id.0))
    }

    /// Does the egress hold know the flow, or need it not?
    #[inline]
    pub fn is_held(&self, id: FlowId) -> bool {
        self.flags(id) & (HELD | REPLY_KEY) != REPLY_KEY
    }

    /// The egress hold knows it.
    pub fn set_held(&mut self, id: FlowId) {
        self.set_flags(id, HELD, HELD);
    }

    /// How far the flow has come.
    pub fn phase(&self, id: FlowId) -> Phase {
        match (self.flags(id) >> PHASE_AT) & 3 {
            0 => Phase::Opening,
            1 => Phase::Open,
            _ => Phase::Closing,
        }
    }

    /// A packet of the flow passes: its time and phase follow.
    #[inline]
    pub fn touch(&mut self, id: FlowId, headers: &Headers, direction: Direction, now: Millis) {
        let seen = self.word(id.0, SEEN);
        if seen.load(Relaxed) != now.0 {
            seen.store(now.0, Relaxed);
        }
        let phase = self.phase(id);
        let next = match headers.layer4 {
            Layer4::Tcp { flags, .. } if flags.is_rst() || flags.is_fin() => Phase::Closing,
            Layer4::Tcp { flags, .. } if flags.is_bare_syn() => Phase::Opening,
            Layer4::Tcp { flags, .. } if flags.is_syn() => phase,
            Layer4::Tcp { .. } if phase == Phase::Closing => phase,
            Layer4::Tcp { .. } => Phase::Open,
            _ if direction == Direction::Reply => Phase::Open,
            _ => phase,
        };
        if next != phase {
            self.set_flags(id, 3 << PHASE_AT, (next as u64) << PHASE_AT);
        }
    }

    /// The way that was found under this generation of the view.
    #[inline]
    pub fn way(&self, id: FlowId, generation: u32) -> Option<Way> {
        if self.word(id.0, GENERATION).load(Relaxed) != u64::from(generation) {
            return None;
        }
        let word = self.word(id.0, WAY).load(Relaxed).to_be_bytes();
        let [nic, _, a, b, c, d, e, f] = word;
        Some(Way { nic: NicId(nic), destination: MacAddr([a, b, c, d, e, f]) })
    }

    /// Remembers a way for this generation of the view.
    pub fn set_way(&mut self, id: FlowId, way: Way, generation: u32) {
        let [a, b, c, d, e, f] = way.destination.0;
        let word = u64::from_be_bytes([way.nic.0, 0, a, b, c, d, e, f]);
        self.word(id.0, WAY).store(word, Relaxed);
        self.word(id.0, GENERATION).store(u64::from(generation), Relaxed);
    }

    /// A port of `ports` with which packets from `address` to `remote` belong to no flow yet, or `None` if
    /// all are taken. Only ports of worker `share` of `workers` count. Ports are given out in turn, so one
    /// that was freed rests as long as it can.
    pub fn free_port(
        &mut self,
        address: IpAddr,
        remote: Endpoint,
        protocol: u8,
        ports: &[u16],
        (share, workers): (u8, u8),
    ) -> Option<u16> {
        let is_echo = protocol == ip::ICMP || protocol == ip::ICMPV6;
        for _ in 0..ports.len() {
            self.next_port = (self.next_port + 1) % ports.len();
            let port = ports[self.next_port];
            if port % u16::from(workers) != u16::from(share) {
                continue;
            }
            let local = Endpoint { address, port };
            let remote = if is_echo { Endpoint { port: 0, ..remote } } else { remote };
            if self.find(&Key::new(remote, local, protocol, Direction::Reply)).is_none() {
                return Some(port);
            }
        }
        None
    }

    /// Looks at the next `count` entries and forgets those whose time is over; `released` is told each
    /// rewritten flow that had a reply key.
    pub fn sweep(&mut self, count: u32, now: Millis, mut released: impl FnMut(Rewritten)) {
        for _ in 0..count.min(self.capacity) {
            let at = self.advance();
            if self.flags(FlowId(at)) & LIVE != 0
                && self.idle(at, now) > self.timeout(at)
                && let Some(flow) = self.remove(FlowId(at))
            {
                released(flow);
            }
        }
    }

    /// All rewritten flows that the egress hold has to know.
    pub fn held_flows(&self) -> impl Iterator<Item = Rewritten> {
        (0..self.capacity)
            .filter(|at| {
                let flags = self.word(*at, CONTROL).load(Relaxed);
                flags & LIVE != 0 && flags & REWRITTEN != 0 && flags & REPLY_KEY != 0
            })
            .map(|at| self.rewritten_flow(FlowId(at)))
    }

    /// How long a flow may be silent, in milliseconds. RFC 5382 REQ-5 (TCP), RFC 4787 REQ-5 (UDP), RFC 5508
    /// REQ-1 (ICMP). Of a flow that is not rewritten only its way is remembered: a minute will do.
    fn timeout(&self, at: u32) -> u64 {
        let id = FlowId(at);
        if self.flags(id) & REWRITTEN == 0 {
            return 60_000;
        }
        match (self.key(at, 0).protocol(), self.phase(id)) {
            (ip::TCP, Phase::Opening) => 75_000,
            (ip::TCP, Phase::Open) => 7_440_000,
            (ip::TCP, Phase::Closing) => 120_000,
            (ip::ICMP | ip::ICMPV6, _) => 60_000,
            _ => 300_000,
        }
    }

    /// Of the next entries the one that is missed least: a remembered way before a rewritten flow, a
    /// closing or half-open one before an open one; of equals the one silent longest. An open rewritten
    /// flow is never taken.
    fn victim(&mut self, now: Millis) -> Option<u32> {
        let mut best: Option<((u8, u64), u32)> = None;
        for _ in 0..EVICTION_LOOK.min(self.capacity) {
            let at = self.advance();
            let id = FlowId(at);
            let rank = match (self.flags(id) & REWRITTEN != 0, self.phase(id)) {
                (false, _) => 3,
                (true, Phase::Closing) => 2,
                (true, Phase::Opening) => 1,
                (true, Phase::Open) => continue,
            };
            let rank = (rank, self.idle(at, now));
            if best.is_none_or(|(highest, _)| rank > highest) {
                best = Some((rank, at));
            }
        }
        best.map(|(_, at)| at)
    }

    fn advance(&mut self) -> u32 {
        self.hand = if self.hand + 1 >= self.capacity { 0 } else { self.hand + 1 };
        self.hand
    }

    fn idle(&self, at: u32, now: Millis) -> u64 {
        now.0.saturating_sub(self.word(at, SEEN).load(Relaxed))
    }

    #[inline]
    fn word(&self, at: u32, offset: usize) -> &AtomicU64 {
        &self.entries[at as usize * WORDS + offset]
    }

    #[inline]
    fn flags(&self, id: FlowId) -> u64 {
        self.word(id.0, CONTROL).load(Relaxed)
    }

    fn set_flags(&mut self, id: FlowId, mask: u64, flags: u64) {
        let control = self.flags(id);
        self.word(id.0, CONTROL).store(control & !mask | flags, Relaxed);
    }

    fn wire(&self, at: u32) -> Endpoint {
        let load = |offset| self.word(at, offset).load(Relaxed);
        Endpoint {
            address: address([load(WIRE_ADDRESS), load(WIRE_ADDRESS + 1)]),
            port: load(WIRE_PORT) as u16,
        }
    }

    /// The key of an entry in a direction (0 original, 1 reply).
    fn key(&self, at: u32, direction: u64) -> Key {
        let load = |offset| self.word(at, SOURCE + offset).load(Relaxed);
        let original = Key([load(0), load(1), load(2), load(3), load(PORTS)]);
        if direction == 0 {
            return original;
        }
        Key::new(original.destination(), self.wire(at), original.protocol(), Direction::Reply)
    }

    /// Over key and edit, with the seed in it: torn and foreign entries do not have it.
    fn checksum(&self, at: u32) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for offset in SOURCE..CONTROL {
            hasher.write_u64(self.word(at, offset).load(Relaxed));
        }
        hasher.finish()
    }

    fn hash(&self, key: &Key) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for word in key.0 {
            hasher.write_u64(word);
        }
        hasher.finish()
    }

    /// An adopted entry whose keys no other entry has.
    fn is_new(&self, at: u32) -> bool {
        let replies = self.word(at, CONTROL).load(Relaxed) & REPLY_KEY != 0;
        self.find(&self.key(at, 0)).is_none() && !(replies && self.find(&self.key(at, 1)).is_some())
    }

    fn link(&mut self, at: u32) {
        self.link_key(at, 0);
        if self.word(at, CONTROL).load(Relaxed) & REPLY_KEY != 0 {
            self.link_key(at, 1);
        }
    }

    fn link_key(&mut self, at: u32, direction: u64) {
        let hash = self.hash(&self.key(at, direction));
        let mask = self.index.len() - 1;
        let mut slot = home(hash) & mask;
        while self.index[slot] != EMPTY {
            slot = (slot + 1) & mask;
        }
        self.index[slot] = slot_value(hash, at, direction);
    }

    fn unlink(&mut self, at: u32) {
        if self.word(at, CONTROL).load(Relaxed) & REPLY_KEY != 0 {
            self.unlink_key(at, 1);
        }
        self.unlink_key(at, 0);
    }

    /// Takes a slot out and moves back those behind it that probing would no longer reach.
    fn unlink_key(&mut self, at: u32, direction: u64) {
        let hash = self.hash(&self.key(at, direction));
        let mask = self.index.len() - 1;
        let wanted = slot_value(hash, at, direction);
        let mut hole = home(hash) & mask;
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
            let home = home(value) & mask;
            if (slot.wrapping_sub(home) & mask) >= (slot.wrapping_sub(hole) & mask) {
                self.index[hole] = value;
                self.index[slot] = EMPTY;
                hole = slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}

/// No entry is free and none may be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the flow table is full of flows that may not be evicted")]
pub struct TableFull;

/// Where probing begins: by the half of the hash that a slot holds, so that moving a slot asks no entry.
fn home(hash_or_slot: u64) -> usize {
    (hash_or_slot >> 32) as usize
}

/// Tables have fewer than 2^31 - 1 entries, so a slot in use is never [`EMPTY`].
fn slot_value(hash: u64, at: u32, direction: u64) -> u64 {
    hash & !0xffff_ffff | direction << 31 | u64::from(at + 1)
}

fn entry_of(value: u64) -> u32 {
    (value as u32 & 0x7fff_ffff) - 1
}
