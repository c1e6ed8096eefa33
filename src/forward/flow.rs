//! The flow table: fixed memory, O(1), timeouts, eviction. Pure code over a slice of words that the engine
//! maps from a file, so that flows outlive the process that made them.
//!
//! A flow has two keys: of its packets as it began, and of those that come back. Together they say how each
//! direction is rewritten: what is to go on leaves with the other key's ends. `key.rs` has the keys, `entries.rs`
//! the memory, `life.rs` how long a flow lives and which one makes room; here is what a flow means.

mod entries;
mod key;
mod life;
mod open;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use entries::{
    ANSWERED, Entries, FORWARDED, HELD, LIVE, OVER, REPLY_KEY, REWRITTEN, SEQUENCES, SERVED,
    SERVED_BY, WAYS, stride,
};
pub(super) use key::ends;
pub use key::{Key, Side};
use life::Opening;
pub(super) use open::{Ends, Open};

use super::preferred::{ServerId, ServiceId};
use super::rewrite::{Edit, Endpoint};
use super::view::WayId;
use crate::wire::ip::{self, Family};

/// Rises with each change of what the words mean.
pub const LAYOUT: u32 = 4;

/// How many flows of each family a table has room for; each below 2^31 - 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// IPv4 flows.
    pub v4: u32,
    /// IPv6 flows.
    pub v6: u32,
}

impl Shape {
    /// Room for `flows` of each family.
    pub const fn both(flows: u32) -> Shape {
        Shape { v4: flows, v6: flows }
    }

    /// 64-bit words of a table of this shape.
    pub const fn words(self) -> usize {
        self.v4 as usize * stride(Family::V4) + self.v6 as usize * stride(Family::V6)
    }
}

/// A flow of one worker's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowId(u32);

const V6: u32 = 1 << 31;

impl FlowId {
    fn new(family: Family, at: u32) -> FlowId {
        FlowId(if family == Family::V4 { at } else { at | V6 })
    }

    fn family(self) -> Family {
        if self.0 & V6 == 0 { Family::V4 } else { Family::V6 }
    }

    fn at(self) -> u32 {
        self.0 & !V6
    }
}

/// Milliseconds of a clock that goes on across restarts of the process (CLOCK_MONOTONIC; in replay the
/// capture's).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

/// Which way a packet of the flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As the flow began.
    Original = 0,
    /// Back.
    Reply = 1,
}

impl Direction {
    /// The other one.
    pub fn other(self) -> Direction {
        match self {
            Direction::Original => Direction::Reply,
            Direction::Reply => Direction::Original,
        }
    }
}

/// How far a flow has come; what its time-out and its chance of being evicted depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One packet or SYNs only; of a served one: the client has not answered the server yet.
    Opening,
    /// Traffic flows.
    Open,
    /// FIN or RST was seen.
    Closing,
}

/// What the table remembers of a flow of this host beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The source on the wire, if it is rewritten.
    pub rewritten: Option<Endpoint>,
    /// RIP keeps its port and has no reply entry.
    pub has_reply_key: bool,
    /// It came from another host: its time to live is lowered.
    pub is_forwarded: bool,
}

/// What the table remembers of a flow of a virtual service beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The service.
    pub service: ServiceId,
    /// The server that the flow stays with.
    pub server: ServerId,
    /// What comes back from the server.
    pub reply: Key,
    /// Packets pass unchanged, and what comes back does not pass here.
    pub is_direct: bool,
}

/// A flow whose replies come to the forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// As the application sends it.
    pub original: Key,
    /// Its source on the wire.
    pub wire: Endpoint,
}

/// A served flow that is gone, or a connection of which nothing more is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The server that had it.
    pub server: ServerId,
    /// It never came to be.
    pub has_failed: bool,
}

/// What each end of a TCP connection expects next: enough to reset it (RFC 9293 section 3.5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The end that began it.
    pub client: u32,
    /// The other end.
    pub server: u32,
}

impl Expected {
    fn word(self) -> u64 {
        u64::from(self.client) << 32 | u64::from(self.server)
    }
}

/// Ports looked at to find a free one …
const PORT_LOOK: usize = 4096;
/// … and behind the first one that could be taken from a served flow: in a flood of SYNs nearly all are such.
const PORT_LOOK_ON: usize = 32;
/// No server, in the lower half: of an earlier process, and not known to this one.
const NOBODY: u64 = 0xffff_ffff;

/// Flows of one worker.
#[derive(Debug)]
pub struct FlowTable {
    v4: Entries,
    v6: Entries,
    next_port: usize,
    rewritten: u32,
    served: u32,
    /// Half-open served flows of each family.
    opening: [Opening; 2],
    stamp: u32,
    created: u64,
    evicted: u64,
    ended: Vec<Ended>,
}

impl FlowTable {
    /// A table over `words`, of which there are as many as `shape` wants; what an earlier process left there
    /// is adopted: rewritten and served flows go on, others are only remembered ways and are forgotten. Returns
    /// the number of entries dropped as torn as well.
    pub fn adopt(words: &'static [AtomicU64], shape: Shape, seed: u64) -> (FlowTable, usize) {
        FlowTable::over(words, shape, seed, false)
    }

    /// A table over `words` that nobody has written to: none of its memory is touched before a flow needs it.
    pub fn fresh(words: &'static [AtomicU64], shape: Shape, seed: u64) -> FlowTable {
        FlowTable::over(words, shape, seed, true).0
    }

    fn over(
        words: &'static [AtomicU64],
        shape: Shape,
        seed: u64,
        is_fresh: bool,
    ) -> (FlowTable, usize) {
        let (v4, v6) = words.split_at((shape.v4 as usize * stride(Family::V4)).min(words.len()));
        let is_kept = |flags: u32| flags & (REWRITTEN | SERVED) != 0;
        let (v4, torn_v4) = Entries::adopt((Family::V4, v4), seed, is_fresh, is_kept);
        let (v6, torn_v6) = Entries::adopt((Family::V6, v6), seed, is_fresh, is_kept);
        let mut table = FlowTable {
            v4,
            v6,
            next_port: 0,
            rewritten: 0,
            served: 0,
            opening: Default::default(),
            stamp: 0,
            created: 0,
            evicted: 0,
            ended: Vec::with_capacity(1024),
        };
        if is_fresh {
            return (table, 0);
        }
        for id in table.ids() {
            if table.flags(id) & SERVED != 0 {
                table.word(id, SERVED_BY).store(NOBODY, Relaxed);
                table.served += 1;
                table.opens(id);
            } else {
                table.rewritten += 1;
            }
        }
        (table, torn_v4 + torn_v6)
    }

    /// Flows it has room for.
    pub fn capacity(&self) -> u32 {
        self.v4.capacity() + self.v6.capacity()
    }

    /// Flows in it.
    pub fn len(&self) -> u32 {
        self.v4.len() + self.v6.len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rewritten flows of this host in it.
    pub fn rewritten(&self) -> u32 {
        self.rewritten
    }

    /// Flows of virtual services in it.
    pub fn served(&self) -> u32 {
        self.served
    }

    /// Those of them whose client has not answered yet.
    pub fn half_open(&self) -> u32 {
        self.opening.iter().map(|opening| opening.count).sum()
    }

    /// Flows remembered since the table was made.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// Flows that had to make room since the table was made.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The flow of `key`, and the direction that `key` has in it.
    #[inline]
    pub fn find(&self, key: &Key) -> Option<(FlowId, Direction)> {
        let family = key.family();
        let (at, direction) = self.half(family).find(key)?;
        Some((FlowId::new(family, at), direction))
    }

    /// A hash of a key, by this table's own seed.
    pub(super) fn hash_of(&self, key: &Key) -> u64 {
        self.half(key.family()).hash(key)
    }

    /// Hash of a key with `N` words of addresses; the index is asked for where that leads.
    #[inline(always)]
    pub(super) fn ahead<const N: usize>(&self, addresses: &[u64; N], ends: u64) -> u32 {
        self.half_of::<N>().ahead(addresses, ends)
    }

    /// The place of `S` words that the index alone names for a key of this hash, and its direction; the entry is asked for. It may be
    /// another key's.
    #[inline(always)]
    pub(super) fn guess<const N: usize, const S: usize>(
        &self,
        hash: u32,
    ) -> Option<(u32, Direction)> {
        self.half_of::<N>().guess::<S>(hash)
    }

    /// The flow at a guessed place, if it has these ends and [`Open::plain_flags`] in the direction of replies, or in the other if not `R`.
    #[inline(always)]
    pub(super) fn open<const N: usize, const S: usize, const R: bool>(
        &self,
        at: u32,
        ends: (&[u64; N], u32),
        plain_flags: u32,
    ) -> Option<Open<'_, N, S, R>> {
        Open::of(self.half_of::<N>().entry(at)?, ends, plain_flags)
    }

    /// Remembers a flow of this host; `key` is not in the table, nor that of its replies. Where the table is full
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
        let evicted = self.make_room(key.family(), now)?;
        let wire = flow.rewritten.unwrap_or(key.source());
        let reply = Key::new(key.destination(), wire, key.protocol(), Side::Nic);
        let mut flags = 0;
        if flow.rewritten.is_some() {
            flags |= REWRITTEN;
        }
        if flow.has_reply_key {
            flags |= REPLY_KEY;
        }
        if flow.is_forwarded {
            flags |= FORWARDED;
        }
        let half = self.half_mut(key.family());
        let at = half.insert(key, &reply, flags, now).ok_or(TableFull)?;
        self.rewritten += u32::from(flow.rewritten.is_some());
        self.created += 1;
        Ok((FlowId::new(key.family(), at), evicted))
    }

    /// Remembers a flow of a virtual service; neither of its keys is in the table. Half-open ones take a quarter of
    /// the table at most: then the oldest of them makes room.
    ///
    /// # Errors
    /// No flow may be evicted.
    pub fn insert_served(
        &mut self,
        key: &Key,
        served: &Served,
        now: Millis,
    ) -> Result<(FlowId, Option<Rewritten>), TableFull> {
        let family = key.family();
        if self.opening(family).count >= (self.half(family).capacity() / 4).max(1) {
            self.evict_half_open(family);
        }
        let evicted = self.make_room(family, now)?;
        let flags = SERVED | if served.is_direct { 0 } else { REWRITTEN | REPLY_KEY | HELD };
        let at = self.half_mut(family).insert(key, &served.reply, flags, now).ok_or(TableFull)?;
        let id = FlowId::new(family, at);
        self.stamp = self.stamp.wrapping_add(1);
        self.word(id, SERVED_BY).store(u64::from(self.stamp) << 32, Relaxed);
        self.set_served_by(id, served.service, served.server);
        if served.is_direct && key.protocol() != ip::TCP {
            self.begins(id, now);
        }
        self.opens(id);
        self.served += 1;
        self.created += 1;
        Ok((id, evicted))
    }

    /// Forgets a flow; returns it if it was rewritten with a reply key and the egress hold knows it.
    pub fn remove(&mut self, id: FlowId) -> Option<Rewritten> {
        let flags = self.flags(id);
        if flags & LIVE == 0 {
            return None;
        }
        let is_opening = self.phase(id) == Phase::Opening;
        let server = self.served_by(id);
        let at = id.at();
        self.half_mut(id.family()).remove(at);
        if flags & SERVED != 0 {
            self.served -= 1;
            self.opening(id.family()).count -= u32::from(is_opening);
            if flags & OVER == 0 {
                // Of a direct one no answer passes.
                let has_failed = is_opening && flags & (ANSWERED | REPLY_KEY) == REPLY_KEY;
                self.ended.extend(server.map(|(_, server)| Ended { server, has_failed }));
            }
            return None;
        }
        self.rewritten -= u32::from(flags & REWRITTEN != 0);
        (flags & REWRITTEN != 0 && flags & REPLY_KEY != 0).then(|| {
            let half = self.half(id.family());
            let wire = half.key_under(at, Direction::Reply, flags).destination();
            Rewritten { original: half.key_under(at, Direction::Original, flags), wire }
        })
    }

    /// Served flows that ended since the last call.
    pub fn take_ended(&mut self) -> std::vec::Drain<'_, Ended> {
        self.ended.drain(..)
    }

    /// The key of one direction.
    pub fn key(&self, id: FlowId, direction: Direction) -> Key {
        self.half(id.family()).key(id.at(), direction)
    }

    /// The key of the flow's original direction.
    pub fn original(&self, id: FlowId) -> Key {
        self.key(id, Direction::Original)
    }

    /// A flow of this host with its source on the wire.
    pub fn rewritten_flow(&self, id: FlowId) -> Rewritten {
        Rewritten { original: self.original(id), wire: self.wire(id) }
    }

    /// Did it come from another host?
    #[inline]
    pub fn is_forwarded(&self, id: FlowId) -> bool {
        self.flags(id) & FORWARDED != 0
    }

    /// Is it a virtual service's?
    #[inline]
    pub fn is_served(&self, id: FlowId) -> bool {
        self.flags(id) & SERVED != 0
    }

    /// Whose a served flow is; `None`: of nobody that this process knows.
    #[inline]
    pub fn served_by(&self, id: FlowId) -> Option<(ServiceId, ServerId)> {
        served_by_in(self.word(id, SERVED_BY).load(Relaxed))
    }

    /// Says whose an adopted flow is.
    pub fn set_served_by(&mut self, id: FlowId, service: ServiceId, server: ServerId) {
        let word = self.word(id, SERVED_BY);
        let whose = u64::from(service.0) << 16 | u64::from(server.0);
        word.store(word.load(Relaxed) & !NOBODY | whose, Relaxed);
    }

    /// The flow at a place from 0 to [`FlowTable::capacity`].
    pub fn at(&self, place: u32) -> Option<FlowId> {
        let id = match place.checked_sub(self.v4.capacity()) {
            None => FlowId::new(Family::V4, place),
            Some(at) if at < self.v6.capacity() => FlowId::new(Family::V6, at),
            Some(_) => return None,
        };
        (self.flags(id) & LIVE != 0).then_some(id)
    }

    /// All served flows.
    pub fn served_flows(&self) -> Vec<FlowId> {
        self.ids().into_iter().filter(|id| self.is_served(*id)).collect()
    }

    /// What a rewritten flow of this host carries as source on the wire.
    #[inline]
    pub fn rewritten_source(&self, id: FlowId) -> Option<Endpoint> {
        (self.flags(id) & (REWRITTEN | SERVED) == REWRITTEN).then(|| self.wire(id))
    }

    /// What to write into a packet of a served flow; `None`: nothing.
    #[inline]
    pub fn edit(&self, id: FlowId, direction: Direction) -> Option<Edit> {
        (self.flags(id) & REWRITTEN != 0).then(|| {
            let other = self.key(id, direction.other());
            Edit::Both { source: other.destination(), destination: other.source() }
        })
    }

    /// The side by which packets of one direction go on: that by which the other direction comes in.
    #[inline]
    pub fn leaves_by(&self, id: FlowId, direction: Direction) -> Side {
        self.half(id.family()).side(id.at(), direction.other())
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

    /// What both ends of a served TCP connection expect next.
    pub fn expected(&self, id: FlowId) -> Expected {
        expected_in(self.word(id, SEQUENCES).load(Relaxed))
    }

    /// Remembers what they expect.
    #[inline]
    pub fn set_expected(&mut self, id: FlowId, expected: Expected) {
        self.word(id, SEQUENCES).store(expected.word(), Relaxed);
    }

    /// The way of one direction that was found under this generation of the view.
    #[inline]
    pub fn way(&self, id: FlowId, direction: Direction, generation: u32) -> Option<WayId> {
        way_in(self.word(id, WAYS).load(Relaxed), direction, generation)
    }

    /// Remembers a way for this generation of the view.
    pub fn set_way(&mut self, id: FlowId, direction: Direction, way: WayId, generation: u32) {
        let Some(one) = way.0.checked_add(1) else { return };
        let word = self.word(id, WAYS).load(Relaxed);
        let old = if (word >> 32) as u32 == generation { word as u32 } else { 0 };
        let ways = match direction {
            Direction::Original => u32::from(one) << 16 | old & 0xffff,
            Direction::Reply => old & 0xffff_0000 | u32::from(one),
        };
        self.word(id, WAYS).store(u64::from(generation) << 32 | u64::from(ways), Relaxed);
    }

    /// A port of `ports` with which packets from `remote` to `address`, which come in by `side`, belong to no flow yet, or `None` if none is
    /// found. Only ports of worker `share` of `workers` count. Ports are given out in turn, so one that was
    /// freed rests as long as it can; one that a half-open or closing served flow has held the longest is taken from it.
    pub fn free_port(
        &mut self,
        address: IpAddr,
        remote: Endpoint,
        (protocol, side): (u8, Side),
        ports: &[u16],
        (share, workers): (u8, u8),
    ) -> Option<u16> {
        let (share, workers) = (u16::from(share), u16::from(workers));
        let is_echo = protocol == ip::ICMP || protocol == ip::ICMPV6;
        let remote = if is_echo { Endpoint { port: 0, ..remote } } else { remote };
        let mut looks = ports.len().min(PORT_LOOK * usize::from(workers));
        let mut last_resort = None;
        while looks > 0 {
            looks -= 1;
            self.next_port = (self.next_port + 1) % ports.len();
            let port = ports[self.next_port];
            if port % workers != share {
                continue;
            }
            let local = Endpoint { address, port };
            match self.find(&Key::new(remote, local, protocol, side)) {
                None => return Some(port),
                Some((id, _))
                    if last_resort.is_none()
                        && self.is_served(id)
                        && self.phase(id) != Phase::Open =>
                {
                    last_resort = Some((id, self.next_port));
                    looks = looks.min(PORT_LOOK_ON * usize::from(workers));
                }
                Some(_) => {}
            }
        }
        let (id, at) = last_resort?;
        // On from here the next time: those behind it were given later.
        self.next_port = at;
        self.remove(id);
        self.evicted += 1;
        Some(ports[at])
    }

    /// All rewritten flows that the egress hold has to know.
    pub fn held_flows(&self) -> impl Iterator<Item = Rewritten> {
        let is_held = |id: &FlowId| {
            self.flags(*id) & (REWRITTEN | REPLY_KEY | SERVED) == REWRITTEN | REPLY_KEY
        };
        self.ids().into_iter().filter(is_held).map(|id| self.rewritten_flow(id))
    }

    fn wire(&self, id: FlowId) -> Endpoint {
        self.key(id, Direction::Reply).destination()
    }

    fn ids(&self) -> Vec<FlowId> {
        if self.is_empty() {
            return Vec::new();
        }
        let of = |family| self.half(family).live().map(move |at| FlowId::new(family, at));
        of(Family::V4).chain(of(Family::V6)).collect()
    }

    /// Flows whose keys have `N` words of addresses.
    #[inline(always)]
    fn half_of<const N: usize>(&self) -> &Entries {
        self.half(if N == 1 { Family::V4 } else { Family::V6 })
    }

    #[inline]
    fn half(&self, family: Family) -> &Entries {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    #[inline]
    fn half_mut(&mut self, family: Family) -> &mut Entries {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    #[inline]
    fn word(&self, id: FlowId, offset: usize) -> &AtomicU64 {
        self.half(id.family()).behind(id.at(), offset)
    }

    #[inline]
    fn flags(&self, id: FlowId) -> u32 {
        self.half(id.family()).flags(id.at())
    }

    fn set_flags(&mut self, id: FlowId, mask: u32, flags: u32) {
        self.half_mut(id.family()).set_flags(id.at(), mask, flags);
    }
}

#[inline]
fn served_by_in(word: u64) -> Option<(ServiceId, ServerId)> {
    let word = word & NOBODY;
    (word != NOBODY).then_some((ServiceId((word >> 16) as u16), ServerId(word as u16)))
}

#[inline]
fn expected_in(word: u64) -> Expected {
    Expected { client: (word >> 32) as u32, server: word as u32 }
}

#[inline]
fn way_in(word: u64, direction: Direction, generation: u32) -> Option<WayId> {
    let is_of_it = (word >> 32) as u32 == generation;
    way_of(word, direction).checked_sub(1).filter(|_| is_of_it).map(WayId)
}

/// One more than the place of a way; 0: a new entry has none.
#[inline(always)]
fn way_of(word: u64, direction: Direction) -> u16 {
    match direction {
        Direction::Original => (word >> 16) as u16,
        Direction::Reply => word as u16,
    }
}

/// No entry is free and none may be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the flow table is full of flows that may not be evicted")]
pub struct TableFull;
