//! What a flow is found by.

use std::net::{IpAddr, Ipv6Addr};

use crate::forward::frame::Ingress;
use crate::forward::rewrite::Endpoint;
use crate::wire::ip::Family;
use crate::wire::packet::Headers;

/// Which side of this host a packet comes in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The TUN: this host sends it.
    Tun = 0,
    /// A NIC.
    Nic = 1,
}

impl From<Ingress> for Side {
    fn from(ingress: Ingress) -> Side {
        match ingress {
            Ingress::Tun => Side::Tun,
            Ingress::Nic(_) => Side::Nic,
        }
    }
}

/// Addresses, ports and protocol of a packet, and the side it comes in by. Addresses and ports lie as in the packet, so that they are
/// compared and written by words and never turned round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// IPv4: source and destination in the first word. IPv6: two words each.
    pub(super) addresses: [u64; 4],
    /// Lower half: source port and destination port. Upper half: side, protocol, family.
    pub(super) ends: u64,
}

const SIDE_AT: u32 = 32;
const PROTOCOL_AT: u32 = 33;
const IPV6: u64 = 1 << 41;

impl Key {
    /// The key of a packet that comes in by `side`.
    pub fn of(headers: &Headers, side: Side) -> Key {
        let (source_port, destination_port) = headers.ports();
        let source = Endpoint { address: headers.source, port: source_port };
        let destination = Endpoint { address: headers.destination, port: destination_port };
        Key::new(source, destination, headers.protocol, side)
    }

    /// The key of packets from `source` to `destination`, which are of one family.
    pub fn new(source: Endpoint, destination: Endpoint, protocol: u8, side: Side) -> Key {
        let (addresses, family) = pack(source.address, destination.address);
        let ([a, b], [c, d]) = (source.port.to_be_bytes(), destination.port.to_be_bytes());
        let ports = u32::from_ne_bytes([a, b, c, d]);
        Key { addresses, ends: ends(ports, protocol, family, side) }
    }

    /// The key of packets the other way, that come in by `side`.
    pub fn reversed(&self, side: Side) -> Key {
        Key::new(self.destination(), self.source(), self.protocol(), side)
    }

    /// Source of the packets.
    pub fn source(&self) -> Endpoint {
        let address = match self.family() {
            Family::V4 => v4(self.addresses[0]),
            Family::V6 => v6(self.addresses[0], self.addresses[1]),
        };
        let [a, b, _, _] = self.ports().to_ne_bytes();
        Endpoint { address, port: u16::from_be_bytes([a, b]) }
    }

    /// Destination of the packets.
    pub fn destination(&self) -> Endpoint {
        let address = match self.family() {
            Family::V4 => v4(self.addresses[0].rotate_left(32)),
            Family::V6 => v6(self.addresses[2], self.addresses[3]),
        };
        let [_, _, c, d] = self.ports().to_ne_bytes();
        Endpoint { address, port: u16::from_be_bytes([c, d]) }
    }

    /// IANA protocol number.
    pub fn protocol(&self) -> u8 {
        (self.ends >> PROTOCOL_AT) as u8
    }

    /// The side that the packets come in by.
    pub fn side(&self) -> Side {
        if self.ends >> SIDE_AT & 1 == 0 { Side::Tun } else { Side::Nic }
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        if self.ends & IPV6 == 0 { Family::V4 } else { Family::V6 }
    }

    /// Both ports: source, destination.
    pub(super) fn ports(&self) -> u32 {
        self.ends as u32
    }
}

/// The word of a key behind its addresses.
#[inline(always)]
pub(in crate::forward) fn ends(ports: u32, protocol: u8, family: Family, side: Side) -> u64 {
    let family = if family == Family::V4 { 0 } else { IPV6 };
    family | u64::from(protocol) << PROTOCOL_AT | (side as u64) << SIDE_AT | u64::from(ports)
}

fn pack(source: IpAddr, destination: IpAddr) -> ([u64; 4], Family) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let ([a, b, c, d], [e, f, g, h]) = (source.octets(), destination.octets());
            ([u64::from_ne_bytes([a, b, c, d, e, f, g, h]), 0, 0, 0], Family::V4)
        }
        // Of two families (which no packet has): some key that no flow has.
        (source, destination) => {
            let [a, b] = halves(source);
            let [c, d] = halves(destination);
            ([a, b, c, d], Family::V6)
        }
    }
}

fn halves(address: IpAddr) -> [u64; 2] {
    let address = match address {
        IpAddr::V4(a) => a.to_ipv6_mapped(),
        IpAddr::V6(a) => a,
    };
    let bits = u128::from(address);
    [(bits >> 64) as u64, bits as u64].map(u64::to_be)
}

/// The first address in a word.
fn v4(both: u64) -> IpAddr {
    let [a, b, c, d, ..] = both.to_ne_bytes();
    IpAddr::from([a, b, c, d])
}

fn v6(high: u64, low: u64) -> IpAddr {
    let [high, low] = [high, low].map(|half| u128::from(u64::from_be(half)));
    IpAddr::V6(Ipv6Addr::from(high << 64 | low))
}
