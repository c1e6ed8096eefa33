//! The ordinary packet: TCP with nothing but data, or UDP, whole and without options, of a flow that is open. It goes the
//! shortest way that does what [`super::pipeline`] does; all that is not plain is left to that. Tests hold them against each
//! other.
//!
//! Flows lie all over a large table, and memory is what a look-up waits for. So a number of packets is looked up at a time, step by
//! step: loads that do not depend on each other go on at the same time.

use super::flow::{Direction, Ends, FlowTable, Guess, Key, Open, Side};
use super::frame::{Frame, Ingress};
use super::pipeline::{Sight, State};
use super::preferred;
use super::rewrite::update;
use super::verdict::Verdict;
use super::view::Way;
use crate::wire::checksum::Difference;
use crate::wire::ip::{self, Family};
use crate::wire::offload::Csum;
use crate::wire::packet::TcpFlags;

/// Packets that are looked up at a time.
pub(super) const AHEAD: usize = 16;

/// A plain packet and where its flow may be.
#[derive(Clone, Copy)]
pub(super) struct Plain {
    key: Key,
    guess: Guess,
    /// Bytes of the packet; 0: it is none.
    length: u16,
}

impl Plain {
    /// What is not plain.
    pub(super) const NONE: Plain = Plain {
        key: Key::from_parts([0; 4], 0, 0, Family::V4, Side::Tun),
        guess: Guess { at: 0, direction: Direction::Original },
        length: 0,
    };
}

/// Reads the headers of the plain packets among `frames`, of which there are at most [`AHEAD`], and has their flows at hand.
#[inline(never)]
pub(super) fn look_ahead(frames: &[Frame], flows: &FlowTable, all: &mut [Plain; AHEAD]) {
    for (plain, frame) in all.iter_mut().zip(frames) {
        if read(frame, flows, plain).is_none() {
            plain.length = 0;
        }
    }
    let mut fetched = 0;
    for plain in all.iter().take(frames.len()).filter(|plain| plain.length != 0) {
        fetched ^= match plain.key.family() {
            Family::V4 => flows.fetch::<8>(Family::V4, plain.guess),
            Family::V6 => flows.fetch::<16>(Family::V6, plain.guess),
        };
    }
    std::hint::black_box(fetched);
}

#[inline(always)]
fn read(frame: &Frame, flows: &FlowTable, plain: &mut Plain) -> Option<()> {
    let packet = frame.packet();
    let side = Side::from(frame.ingress);
    match packet.first()? {
        // RFC 791: no options, no fragment.
        0x45 => {
            let header: &[u8; 20] = packet.first_chunk()?;
            if u16::from_be_bytes(array(header, 6)) & 0x3fff != 0 {
                return None;
            }
            let length = u16::from_be_bytes(array(header, 2));
            let ends = ends(header[9], packet.get(20..usize::from(length))?)?;
            let addresses = [u64::from_be_bytes(array(header, 12)), 0, 0, 0];
            plain.key = Key::from_parts(addresses, ends, header[9], Family::V4, side);
            plain.guess = flows.guess::<1>(&plain.key)?;
            plain.length = length;
        }
        0x60..0x70 => {
            let header: &[u8; 40] = packet.first_chunk()?;
            let length = u16::from_be_bytes(array(header, 4)).checked_add(40)?;
            let ends = ends(header[6], packet.get(40..usize::from(length))?)?;
            let addresses = [8, 16, 24, 32].map(|at| u64::from_be_bytes(array(header, at)));
            plain.key = Key::from_parts(addresses, ends, header[6], Family::V6, side);
            plain.guess = flows.guess::<4>(&plain.key)?;
            plain.length = length;
        }
        _ => return None,
    }
    Some(())
}

/// Both ports, if layer 4 is plain.
#[inline(always)]
fn ends(protocol: u8, layer4: &[u8]) -> Option<u32> {
    let first: &[u8; 8] = layer4.first_chunk()?;
    if protocol == ip::TCP {
        let header: &[u8; 20] = layer4.first_chunk()?;
        let length = usize::from(header[12] >> 4) * 4;
        if length < 20 || length > layer4.len() || !TcpFlags(header[13]).is_data() {
            return None;
        }
    } else if protocol != ip::UDP {
        return None;
    }
    Some(u32::from_be_bytes(array(first, 0)))
}

/// Carries a plain packet on and gives its frame a verdict; false: it is none, and nothing was done.
#[inline(always)]
pub(super) fn carry(frame: &mut Frame, plain: &Plain, state: &State, sight: Sight<'_>) -> bool {
    if plain.length == 0 {
        return false;
    }
    let is_tcp = plain.key.protocol() == ip::TCP;
    match (plain.key.family(), is_tcp, plain.guess.direction) {
        (Family::V4, true, Direction::Original) => {
            carry_as::<1, 8, 40, false>(frame, plain, state, sight)
        }
        (Family::V4, true, Direction::Reply) => {
            carry_as::<1, 8, 40, true>(frame, plain, state, sight)
        }
        (Family::V4, false, Direction::Original) => {
            carry_as::<1, 8, 28, false>(frame, plain, state, sight)
        }
        (Family::V4, false, Direction::Reply) => {
            carry_as::<1, 8, 28, true>(frame, plain, state, sight)
        }
        (Family::V6, true, Direction::Original) => {
            carry_as::<4, 16, 60, false>(frame, plain, state, sight)
        }
        (Family::V6, true, Direction::Reply) => {
            carry_as::<4, 16, 60, true>(frame, plain, state, sight)
        }
        (Family::V6, false, Direction::Original) => {
            carry_as::<4, 16, 48, false>(frame, plain, state, sight)
        }
        (Family::V6, false, Direction::Reply) => {
            carry_as::<4, 16, 48, true>(frame, plain, state, sight)
        }
    }
    .is_some()
}

/// Of a family with `N` words of addresses and `S` words in a flow, a protocol whose headers have `H` bytes, IP's included, and of the
/// reply direction if `R`.
#[inline(never)]
fn carry_as<const N: usize, const S: usize, const H: usize, const R: bool>(
    frame: &mut Frame,
    plain: &Plain,
    state: &State,
    sight: Sight<'_>,
) -> Option<()> {
    let view = sight.net;
    let is_tcp = H - start_of::<N>() == 20;
    let open: Open<'_, N, S, R> = state.flows.open(&plain.key, plain.guess)?;
    let is_served = open.is_served();
    let mut counters = None;
    if is_served {
        let server = sight.preferred.server(open.server()?)?;
        if server.fate != preferred::Fate::Kept {
            return None;
        }
        counters = server.counters.of(state.worker);
    }
    let rewritten = open.rewritten();
    let way = if open.leaves_by_tun() {
        None
    } else {
        let way = view.neighbours.at(open.way(view.generation)?)?;
        if longest::<N, H>(frame, plain) > view.nic(way.nic).mtu as usize {
            return None;
        }
        Some(way)
    };
    let is_forwarded = way.is_some()
        && if is_served {
            rewritten.is_some() && frame.ingress != Ingress::Tun
        } else {
            open.is_forwarded()
        };
    let csum = frame.offload.csum;
    let packet: &mut [u8; H] = frame.packet_mut().first_chunk_mut()?;
    let ttl_at = if N == 1 { 8 } else { 7 };
    if is_forwarded {
        if packet[ttl_at] <= 1 {
            return None;
        }
        packet[ttl_at] -= 1;
    }
    match rewritten {
        Some(ends) => rewrite::<N, H>(packet, &plain.key, csum, ends, is_forwarded),
        None if is_forwarded && N == 1 => {
            update(packet, 10, |sum| {
                Difference::default().pair(LOWERED.0, LOWERED.1).apply_complete(sum)
            });
        }
        None => {}
    }
    if is_served && is_tcp {
        open.acknowledged(u32::from_be_bytes(array(packet, start_of::<N>() + 8)));
    }
    frame.truncate(usize::from(plain.length));
    frame.verdict = match way {
        Some(&Way { nic, destination }) => Verdict::Transmit { nic, destination },
        None => Verdict::Deliver,
    };
    open.seen(sight.now);
    if let Some(counters) = counters {
        counters.carried(usize::from(plain.length));
    }
    Some(())
}

/// Bytes of IP's header.
const fn start_of<const N: usize>() -> usize {
    if N == 1 { 20 } else { 40 }
}

/// Bytes of the longest packet that leaves of it.
#[inline(always)]
fn longest<const N: usize, const H: usize>(frame: &Frame, plain: &Plain) -> usize {
    let length = usize::from(plain.length);
    let Some(gso) = frame.offload.gso else { return length };
    let start = start_of::<N>();
    let layer4 = if H - start == 20 {
        frame.packet().get(start + 12).map_or(20, |offset| usize::from(offset >> 4) * 4)
    } else {
        8
    };
    length.min(start + layer4 + usize::from(gso.size))
}

/// Writes other ends into a packet, whose time to live has been lowered if `is_lowered`.
#[inline(always)]
fn rewrite<const N: usize, const H: usize>(
    packet: &mut [u8; H],
    key: &Key,
    csum: Csum,
    (addresses, ports): Ends<N>,
    is_lowered: bool,
) {
    let start = start_of::<N>();
    let is_tcp = H - start == 20;
    let mut covered = Difference::default();
    for (offset, (new, old)) in addresses.iter().zip(key.addresses()).enumerate() {
        covered = covered.quad(*old, *new);
        let at = if N == 1 { 12 } else { 8 };
        put(packet, at + 8 * offset, new.to_be_bytes());
    }
    if N == 1 {
        let lowered = if is_lowered { covered.pair(LOWERED.0, LOWERED.1) } else { covered };
        update(packet, 10, |sum| lowered.apply_complete(sum));
    }
    put(packet, start, ports.to_be_bytes());
    let at = start + if is_tcp { 16 } else { 6 };
    if !is_tcp && csum == Csum::Complete && array(packet, at) == [0, 0] {
        return;
    }
    let sum = u16::from_be_bytes(array(packet, at));
    let sum = if csum == Csum::Complete {
        let sum = covered.pair(key.ports(), ports).apply_complete(sum);
        if sum == 0 && !is_tcp { 0xffff } else { sum }
    } else {
        covered.apply_partial(sum)
    };
    put(packet, at, sum.to_be_bytes());
}

/// What lowering the time to live by one does to the word that it is the upper half of.
const LOWERED: (u32, u32) = (0x0100, 0);

#[inline(always)]
fn array<const L: usize>(bytes: &[u8], at: usize) -> [u8; L] {
    let mut array = [0; L];
    array.copy_from_slice(&bytes[at..at + L]);
    array
}

#[inline(always)]
fn put<const L: usize>(bytes: &mut [u8], at: usize, value: [u8; L]) {
    bytes[at..at + L].copy_from_slice(&value);
}

#[cfg(test)]
mod tests;
