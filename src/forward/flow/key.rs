//! What a flow is found by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

/// Addresses, ports and protocol of a packet, and the side it comes in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// IPv4: source and destination in the first word. IPv6: two words each.
    pub(super) addresses: [u64; 4],
    /// Source port, destination port, protocol, family, side.
    pub(super) ends: u64,
}

const NIC: u64 = 1;
const IPV6: u64 = 2;

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
        let side = match side {
            Side::Tun => 0,
            Side::Nic => NIC,
        };
        let ends = u64::from(source.port) << 48
            | u64::from(destination.port) << 32
            | u64::from(protocol) << 8
            | family
            | side;
        Key { addresses, ends }
    }

    /// The key of packets the other way, that come in by `side`.
    pub fn reversed(&self, side: Side) -> Key {
        Key::new(self.destination(), self.source(), self.protocol(), side)
    }

    /// Source of the packets.
    pub fn source(&self) -> Endpoint {
        let address = match self.family() {
            Family::V4 => IpAddr::V4(Ipv4Addr::from((self.addresses[0] >> 32) as u32)),
            Family::V6 => v6(self.addresses[0], self.addresses[1]),
        };
        Endpoint { address, port: (self.ends >> 48) as u16 }
    }

    /// Destination of the packets.
    pub fn destination(&self) -> Endpoint {
        let address = match self.family() {
            Family::V4 => IpAddr::V4(Ipv4Addr::from(self.addresses[0] as u32)),
            Family::V6 => v6(self.addresses[2], self.addresses[3]),
        };
        Endpoint { address, port: (self.ends >> 32) as u16 }
    }

    /// IANA protocol number.
    pub fn protocol(&self) -> u8 {
        (self.ends >> 8) as u8
    }

    /// The side that the packets come in by.
    pub fn side(&self) -> Side {
        if self.ends & NIC == 0 { Side::Tun } else { Side::Nic }
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        if self.ends & IPV6 == 0 { Family::V4 } else { Family::V6 }
    }

    /// Its words of addresses.
    #[inline(always)]
    pub(in crate::forward) fn addresses(&self) -> &[u64; 4] {
        &self.addresses
    }

    /// Both ports: source, destination.
    #[inline(always)]
    pub(in crate::forward) fn ports(&self) -> u32 {
        (self.ends >> 32) as u32
    }

    /// A key as an entry of the table holds it.
    #[inline(always)]
    pub(in crate::forward) const fn from_parts(
        addresses: [u64; 4],
        ports: u32,
        protocol: u8,
        family: Family,
        side: Side,
    ) -> Key {
        let family = if matches!(family, Family::V4) { 0 } else { IPV6 };
        let side = if matches!(side, Side::Tun) { 0 } else { NIC };
        Key { addresses, ends: (ports as u64) << 32 | (protocol as u64) << 8 | family | side }
    }
}

fn pack(source: IpAddr, destination: IpAddr) -> ([u64; 4], u64) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ([u64::from(u32::from(source)) << 32 | u64::from(u32::from(destination)), 0, 0, 0], 0)
        }
        // Of two families (which no packet has): some key that no flow has.
        (source, destination) => {
            let [a, b] = halves(source);
            let [c, d] = halves(destination);
            ([a, b, c, d], IPV6)
        }
    }
}

fn halves(address: IpAddr) -> [u64; 2] {
    let bits = match address {
        IpAddr::V4(a) => u128::from(a.to_ipv6_mapped()),
        IpAddr::V6(a) => u128::from(a),
    };
    [(bits >> 64) as u64, bits as u64]
}

fn v6(high: u64, low: u64) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)))
}
