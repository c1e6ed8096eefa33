//! Flow → NIC: weighted rendezvous hashing (Thaler and Ravishankar, 1998) over the live NICs of the lowest
//! metric. Each NIC's score depends on the flow and on that NIC alone, so a NIC that dies moves only its
//! own flows, and one that returns takes back just what it had.

use std::net::IpAddr;

use super::route::NextHop;
use super::view::NetView;
use crate::wire::packet::Headers;

/// A hash of the flow that is the same for both directions of a connection.
pub fn symmetric_hash(headers: &Headers) -> u64 {
    let (source_port, destination_port) = headers.ports();
    let end = |address, port: u16| {
        let bits = bits(address);
        mix((bits as u64) ^ mix((bits >> 64) as u64 ^ (u64::from(port) << 48)))
    };
    let a = end(headers.source, source_port);
    let b = end(headers.destination, destination_port);
    mix(a.wrapping_add(b) ^ u64::from(headers.protocol))
}

/// A hash of an address, the same in every process.
pub fn address_hash(address: IpAddr) -> u64 {
    let bits = bits(address);
    mix(bits as u64 ^ mix((bits >> 64) as u64))
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

/// The next hop for a flow of this hash, or `None` if no NIC that `hops` names is live. Of several next
/// hops behind one NIC each has the NIC's share divided by their number.
pub fn choose(hops: &[NextHop], view: &NetView, flow: u64) -> Option<NextHop> {
    let live = |hop: &&NextHop| view.nics.get(hop.nic.index()).is_some_and(|nic| nic.is_live);
    let lowest = hops.iter().filter(live).map(|hop| view.nic(hop.nic).metric).min()?;
    let carrying = |hop: &&NextHop| live(hop) && view.nic(hop.nic).metric == lowest;
    let mut best: Option<(f64, NextHop)> = None;
    for hop in hops.iter().filter(carrying) {
        let nic = view.nic(hop.nic);
        let siblings = hops.iter().filter(|other| other.nic == hop.nic).count();
        let share = f64::from(nic.weight) / siblings as f64;
        let score = score(flow, key(&nic.name, hop), share);
        if best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, *hop));
        }
    }
    best.map(|(_, hop)| hop)
}

/// The share of all flows that each of `hops` gets, 0 to 1; 0 for one that carries none.
pub fn shares(hops: &[NextHop], view: &NetView) -> Vec<f64> {
    let lowest = hops.iter().map(|hop| view.nic(hop.nic)).filter(|nic| nic.is_live);
    let lowest = lowest.map(|nic| nic.metric).min();
    let share = |hop: &NextHop| {
        let nic = view.nic(hop.nic);
        let siblings = hops.iter().filter(|other| other.nic == hop.nic).count();
        let carries = nic.is_live && Some(nic.metric) == lowest;
        if carries { f64::from(nic.weight) / siblings as f64 } else { 0.0 }
    };
    let total: f64 = hops.iter().map(share).sum();
    hops.iter().map(|hop| if total > 0.0 { share(hop) / total } else { 0.0 }).collect()
}

/// `-share / ln(u)` with `u` uniform in (0, 1): the highest of such scores falls on each NIC in proportion
/// to its share (Schindelhauer and Schomaker, 2005).
fn score(flow: u64, key: u64, share: f64) -> f64 {
    let bits = mix(flow ^ key) >> 11;
    let uniform = (bits as f64 + 0.5) / (1u64 << 53) as f64;
    -share / uniform.ln()
}

/// FNV-1a of the device's name and the gateway: neither changes with the order of the configuration.
fn key(name: &str, hop: &NextHop) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().for_each(&mut eat);
    match hop.gateway {
        None => {}
        Some(IpAddr::V4(a)) => a.octets().into_iter().for_each(&mut eat),
        Some(IpAddr::V6(a)) => a.octets().into_iter().for_each(&mut eat),
    }
    mix(hash)
}

/// The finalizer of SplitMix64: every input bit changes half of the output's.
pub(super) fn mix(value: u64) -> u64 {
    let z = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
