//! The ordinary packet: TCP with nothing but data, or UDP, whole and without options, of a flow that is open. It goes the
//! shortest way that does what [`super::pipeline`] does; all that is not plain is left to that. Tests hold them against each
//! other.
//!
//! Flows lie all over a large table, and memory is what a look-up waits for. So a number of packets is looked up at a time, step by
//! step: the index is asked for where each one's flow should be, then the entries that it names, and none is waited for alone.

use super::flow::{self, Ends, FlowTable, Open, Side};
use super::frame::Frame;
use super::pipeline::{Sight, State};
use super::verdict::Verdict;
use super::view::Way;
use crate::wire::checksum::Difference;
use crate::wire::ip::{self, Family};
use crate::wire::offload::Csum;
use crate::wire::packet::TcpFlags;

/// Packets that are looked up at a time.
pub(super) const AHEAD: usize = 64;
/// Bytes of the longest headers of a plain packet.
const HEADERS: usize = 60;

/// A plain packet and where its flow may be.
#[derive(Clone, Copy)]
pub(super) struct Plain {
    /// The hash of its key, then the place that the index names for that.
    place: u32,
    /// Bytes of the packet.
    length: u16,
    /// Which of [`KINDS`], and its side; or [`NONE`].
    kind: u8,
}

impl Plain {
    /// What is not plain.
    pub(super) const NONE: Plain = Plain { place: 0, length: 0, kind: NONE };
}

/// What carries packets on, by family, protocol and direction.
type Carry = fn(&mut [Frame], &[Plain], &State, &Sight<'_>) -> usize;
const KINDS: [Carry; 8] = [
    carry_as::<1, 8, 28, false>,
    carry_as::<1, 8, 28, true>,
    carry_as::<1, 8, 40, false>,
    carry_as::<1, 8, 40, true>,
    carry_as::<4, 16, 48, false>,
    carry_as::<4, 16, 48, true>,
    carry_as::<4, 16, 60, false>,
    carry_as::<4, 16, 60, true>,
];
const REPLY: u8 = 1;
const TCP: u8 = 2;
const V6: u8 = 4;
const NIC: u8 = 8;
const NONE: u8 = u8::MAX;

/// Reads the headers of the plain packets among `frames`, of which there are at most [`AHEAD`], and has their flows at hand.
#[inline(never)]
pub(super) fn look_ahead(frames: &[Frame], flows: &FlowTable, all: &mut [Plain; AHEAD]) {
    for (plain, frame) in all.iter_mut().zip(frames) {
        if read(frame, flows, plain).is_none() {
            plain.kind = NONE;
        }
    }
    for (plain, _) in all.iter_mut().zip(frames) {
        let guess = match plain.kind {
            NONE => continue,
            kind if kind & V6 == 0 => flows.guess::<1, 8>(plain.place),
            _ => flows.guess::<4, 16>(plain.place),
        };
        match guess {
            Some((place, direction)) => {
                plain.place = place;
                plain.kind |= direction as u8 * REPLY;
            }
            None => plain.kind = NONE,
        }
    }
}

#[inline(always)]
fn read(frame: &Frame, flows: &FlowTable, plain: &mut Plain) -> Option<()> {
    let packet: &[u8; HEADERS] = frame.start()?;
    // RFC 791: version and length of the header, and what says of fragments; no options, no fragment.
    const MASK: u64 = u64::from_ne_bytes([0xff, 0, 0, 0, 0, 0, 0x3f, 0xff]);
    const PLAIN: u64 = u64::from_ne_bytes([0x45, 0, 0, 0, 0, 0, 0, 0]);
    if u64::from_ne_bytes(array(packet, 0)) & MASK == PLAIN {
        let length = u16::from_be_bytes(array(packet, 2));
        read_as::<1>(frame, packet, (packet[9], length), flows, plain)
    } else if packet[0] >> 4 == 6 {
        let length = u16::from_be_bytes(array(packet, 4)).checked_add(40)?;
        read_as::<4>(frame, packet, (packet[6], length), flows, plain)
    } else {
        None
    }
}

#[inline(always)]
fn read_as<const N: usize>(
    frame: &Frame,
    packet: &[u8; HEADERS],
    (protocol, length): (u8, u16),
    flows: &FlowTable,
    plain: &mut Plain,
) -> Option<()> {
    let kind = kind::<N>(packet, protocol, length)?;
    if usize::from(length) > frame.length() {
        return None;
    }
    let side = Side::from(frame.ingress);
    let (family, of_family) = if N == 1 { (Family::V4, 0) } else { (Family::V6, V6) };
    plain.length = length;
    plain.kind = kind | of_family | (side as u8 * NIC);
    let ends = flow::ends(ports::<N>(packet), protocol, family, side);
    plain.place = flows.ahead(&addresses::<N>(packet), ends);
    Some(())
}

/// The kind of a packet of so many bytes, as far as layer 4 says it; `None`: it is not plain.
#[inline(always)]
fn kind<const N: usize>(packet: &[u8; HEADERS], protocol: u8, length: u16) -> Option<u8> {
    let (start, length) = (start_of::<N>(), usize::from(length));
    if protocol == ip::TCP {
        let header = usize::from(packet[start + 12] >> 4) * 4;
        let is_whole = header >= 20 && start + header <= length;
        (is_whole && TcpFlags(packet[start + 13]).is_data()).then_some(TCP)
    } else {
        (protocol == ip::UDP && start + 8 <= length).then_some(0)
    }
}

/// Carries on the first of these packets, as many as are plain and of one kind, and gives their frames a verdict. Says how many those are;
/// of the next one nothing was written but a verdict.
#[inline(always)]
pub(super) fn carry(
    frames: &mut [Frame],
    ahead: &[Plain],
    state: &State,
    sight: &Sight<'_>,
) -> usize {
    match ahead.first() {
        Some(plain) if plain.kind != NONE => {
            KINDS[usize::from(plain.kind % NIC)](frames, ahead, state, sight)
        }
        _ => 0,
    }
}

/// Those of a family with `N` words of addresses and `S` words in a flow, a protocol whose headers have `H` bytes, IP's included, and of
/// the reply direction if `R`.
fn carry_as<const N: usize, const S: usize, const H: usize, const R: bool>(
    frames: &mut [Frame],
    ahead: &[Plain],
    state: &State,
    sight: &Sight<'_>,
) -> usize {
    let kind = ahead.first().map_or(NONE, |plain| plain.kind);
    let side = if kind & NIC == 0 { Side::Tun } else { Side::Nic };
    let protocol = if is_tcp::<N, H>() { ip::TCP } else { ip::UDP };
    let flags = Open::<'_, N, S, R>::plain_flags(protocol, side);
    let mut carried = 0;
    for (frame, plain) in frames.iter_mut().zip(ahead) {
        let is_carried = plain.kind == kind
            && carry_one::<N, S, H, R>(frame, plain, flags, state, sight).is_some();
        if !is_carried {
            break;
        }
        carried += 1;
    }
    carried
}

/// One of them. What is not carried on gets its verdict from the walk, whatever it has here.
#[inline(always)]
fn carry_one<const N: usize, const S: usize, const H: usize, const R: bool>(
    frame: &mut Frame,
    plain: &Plain,
    flags: u32,
    state: &State,
    sight: &Sight<'_>,
) -> Option<()> {
    let view = sight.net;
    let (start, ttl_at) = (start_of::<N>(), if N == 1 { 8 } else { 7 });
    let packet = frame.start::<HEADERS>()?;
    let ends = (&addresses::<N>(packet), ports::<N>(packet));
    let open: Open<'_, N, S, R> = state.flows.open(plain.place, ends, flags)?;
    if open.leaves_by_tun() {
        frame.verdict = Verdict::Deliver;
    } else {
        let &Way { nic, destination } = view.neighbours.at(open.way(view.generation)?)?;
        frame.verdict = Verdict::Transmit { nic, destination };
        if longest::<N, H>(frame, plain) > view.nic(nic).mtu as usize {
            return None;
        }
    }
    let is_complete = frame.offload.csum == Csum::Complete;
    let packet: &mut [u8; HEADERS] = frame.start_mut()?;
    if open.is_lowered() && packet[ttl_at] <= 1 {
        return None;
    }
    if open.is_served() {
        if let Some(counters) = sight.preferred.kept(open.server())?.of(state.worker) {
            counters.carried(usize::from(plain.length));
        }
        if is_tcp::<N, H>() {
            open.acknowledged(u32::from_be_bytes(array(packet, start + 8)));
        }
    }
    let mut header = Difference::default();
    if open.is_lowered() {
        packet[ttl_at] -= 1;
        // It is the upper half of its word.
        header = header.word(u16::from_ne_bytes([1, 0]), 0);
    }
    match open.rewritten() {
        Some(added) => rewrite::<N, H>(packet, ends, is_complete, added, header),
        None if N == 1 && open.is_lowered() => {
            let sum = header.apply_complete(field(packet, 10));
            put(packet, 10, sum.to_ne_bytes());
        }
        None => {}
    }
    frame.cut(plain.length);
    open.seen(sight.now);
    Some(())
}

/// Bytes of IP's header.
const fn start_of<const N: usize>() -> usize {
    if N == 1 { 20 } else { 40 }
}

const fn is_tcp<const N: usize, const H: usize>() -> bool {
    H - start_of::<N>() == 20
}

/// Both ports, as a key has them.
#[inline(always)]
fn ports<const N: usize>(packet: &[u8; HEADERS]) -> u32 {
    u32::from_ne_bytes(array(packet, start_of::<N>()))
}

/// The words of addresses of a packet's key.
#[inline(always)]
fn addresses<const N: usize>(packet: &[u8; HEADERS]) -> [u64; N] {
    std::array::from_fn(|at| u64::from_ne_bytes(array(packet, addresses_at::<N>() + 8 * at)))
}

const fn addresses_at<const N: usize>() -> usize {
    if N == 1 { 12 } else { 8 }
}

/// Bytes of the longest packet that leaves of it.
#[inline(always)]
fn longest<const N: usize, const H: usize>(frame: &Frame, plain: &Plain) -> usize {
    let length = usize::from(plain.length);
    match frame.offload.gso {
        None => length,
        Some(gso) => {
            let start = start_of::<N>();
            let offset = frame.start::<HEADERS>().map_or(0, |packet| packet[start + 12] >> 4);
            let layer4 = if is_tcp::<N, H>() { usize::from(offset) * 4 } else { 8 };
            length.min(start + layer4 + usize::from(gso.size))
        }
    }
}

/// Writes other ends into a packet; `header` is what else has changed of IP's header. Checksums are taken in the byte order that the words
/// are read in: the sum is the same in either (RFC 1071 section 2 B).
#[inline(always)]
fn rewrite<const N: usize, const H: usize>(
    packet: &mut [u8; HEADERS],
    (removed, removed_ports): (&[u64; N], u32),
    is_complete: bool,
    (added, ports): Ends<N>,
    header: Difference,
) {
    let start = start_of::<N>();
    let is_tcp = is_tcp::<N, H>();
    let covered = Difference::default().words(removed, &added);
    for (at, word) in added.iter().enumerate() {
        put(packet, addresses_at::<N>() + 8 * at, word.to_ne_bytes());
    }
    if N == 1 {
        let sum = header.and(covered).apply_complete(field(packet, 10));
        put(packet, 10, sum.to_ne_bytes());
    }
    put(packet, start, ports.to_ne_bytes());
    let at = start + if is_tcp { 16 } else { 6 };
    let sum = match field(packet, at) {
        0 if !is_tcp && is_complete => return,
        sum if !is_complete => covered.apply_partial(sum),
        sum => match covered.pair(removed_ports, ports).apply_complete(sum) {
            0 if !is_tcp => 0xffff,
            sum => sum,
        },
    };
    put(packet, at, sum.to_ne_bytes());
}

/// A field of 16 bits, taken as it lies.
#[inline(always)]
fn field(packet: &[u8; HEADERS], at: usize) -> u16 {
    u16::from_ne_bytes(array(packet, at))
}

#[inline(always)]
fn array<const L: usize>(bytes: &[u8; HEADERS], at: usize) -> [u8; L] {
    let mut array = [0; L];
    array.copy_from_slice(&bytes[at..at + L]);
    array
}

#[inline(always)]
fn put<const L: usize>(bytes: &mut [u8; HEADERS], at: usize, value: [u8; L]) {
    bytes[at..at + L].copy_from_slice(&value);
}

#[cfg(test)]
mod tests;
