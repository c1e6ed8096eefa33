//! Questions to neighbours, their answers, and what is told unasked: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861).

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, ArpPacketSlice, EtherType};

use super::ethernet::MacAddr;

/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// ICMPv6 type of a neighbour advertisement.
pub const ADVERTISEMENT: u8 = 136;
const SOLICITATION: u8 = 135;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// An ARP packet for Ethernet and IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// A reply; else a request.
    pub is_reply: bool,
    /// Who sends it.
    pub sender: (MacAddr, Ipv4Addr),
    /// Whom it is about.
    pub target: (MacAddr, Ipv4Addr),
}

impl Arp {
    /// `bytes` behind the Ethernet header; `None` for anything that is no question or answer of IPv4 on Ethernet.
    pub fn parse(bytes: &[u8]) -> Option<Arp> {
        let arp = ArpPacketSlice::from_slice(bytes).ok()?.to_packet().try_eth_ipv4().ok()?;
        let is_reply = match arp.operation {
            ArpOperation::REQUEST => false,
            ArpOperation::REPLY => true,
            _ => return None,
        };
        Some(Arp {
            is_reply,
            sender: (MacAddr(arp.sender_mac), arp.sender_ipv4.into()),
            target: (MacAddr(arp.target_mac), arp.target_ipv4.into()),
        })
    }

    /// The bytes behind the Ethernet header.
    pub fn bytes(&self) -> Vec<u8> {
        let operation = if self.is_reply { ArpOperation::REPLY } else { ArpOperation::REQUEST };
        let (sender, target) = (self.sender, self.target);
        let packet = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            operation,
            &sender.0.0,
            &sender.1.octets(),
            &target.0.0,
            &target.1.octets(),
        );
        // Six and four bytes are never too long.
        packet.map(|packet| packet.to_bytes().to_vec()).unwrap_or_default()
    }

    /// "Who has `address`?"; from 0.0.0.0 it is a probe (RFC 5227 section 2.1.1).
    pub fn question(from: (MacAddr, Ipv4Addr), address: Ipv4Addr) -> Arp {
        Arp { is_reply: false, sender: from, target: (MacAddr::default(), address) }
    }

    /// "I have `address`", told to all (RFC 5227 section 2.3).
    pub fn announcement(mac: MacAddr, address: Ipv4Addr) -> Arp {
        Arp::question((mac, address), address)
    }
}

/// A neighbour advertisement (RFC 4861 section 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    /// It answers a question that came to it.
    pub is_solicited: bool,
    /// Whose.
    pub target: Ipv6Addr,
    /// Its Ethernet address, where it is told.
    pub mac: Option<MacAddr>,
}

impl Advertisement {
    /// `bytes` from the ICMPv6 header on; the checksum has been verified by the kernel.
    pub fn parse(bytes: &[u8]) -> Option<Advertisement> {
        let (header, mut options) = bytes.split_first_chunk::<24>()?;
        if header[0] != ADVERTISEMENT || header[1] != 0 {
            return None;
        }
        let target: [u8; 16] = header[8..].try_into().ok()?;
        let target = Ipv6Addr::from(target);
        let mut mac = None;
        while !options.is_empty() {
            let length = usize::from(*options.get(1)?) * 8;
            // RFC 4861 section 7.1.2: an option of no length makes the whole message void.
            let option = options.get(..length).filter(|option| !option.is_empty())?;
            if let [TARGET_LINK_LAYER, 1, address @ ..] = option {
                mac = address.try_into().ok().map(MacAddr);
            }
            options = &options[length..];
        }
        let is_solicited = header[4] & SOLICITED != 0;
        (!target.is_multicast()).then_some(Advertisement { is_solicited, target, mac })
    }

    /// "I have `address`", told to all (RFC 4861 section 7.2.6); the checksum is the kernel's to fill.
    pub fn announcement(mac: MacAddr, address: Ipv6Addr) -> Vec<u8> {
        let mut bytes = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
        bytes.extend_from_slice(&address.octets());
        bytes.extend_from_slice(&[TARGET_LINK_LAYER, 1]);
        bytes.extend_from_slice(&mac.0);
        bytes
    }
}

/// "Who has `address`?", from one with the Ethernet address `mac` (RFC 4861 section 4.3); the checksum is the kernel's to fill.
pub fn solicitation(mac: MacAddr, address: Ipv6Addr) -> Vec<u8> {
    let mut bytes = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&address.octets());
    bytes.extend_from_slice(&[SOURCE_LINK_LAYER, 1]);
    bytes.extend_from_slice(&mac.0);
    bytes
}

/// The group in which `address` hears questions about itself (RFC 4291 section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    #[test]
    fn arp_is_read_as_it_is_written() {
        let question = Arp::question((MAC, Ipv4Addr::new(10, 1, 1, 2)), Ipv4Addr::new(10, 1, 1, 1));
        let bytes = question.bytes();
        assert_eq!(bytes.len(), 28);
        assert_eq!(bytes[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(Arp::parse(&bytes), Some(question));
        let reply = Arp { is_reply: true, sender: question.target, target: question.sender };
        // What follows is padding of short frames.
        let mut padded = reply.bytes();
        padded.resize(46, 0);
        assert_eq!(Arp::parse(&padded), Some(reply));
        for length in 0..28 {
            assert_eq!(Arp::parse(&padded[..length]), None, "{length}");
        }
        let mut other = reply.bytes();
        other[7] = 3;
        assert_eq!(Arp::parse(&other), None, "reverse ARP");
    }

    #[test]
    fn an_advertisement_is_read_with_its_options() {
        let address: Ipv6Addr = "fe80::1".parse().expect("an address");
        let bytes = Advertisement::announcement(MAC, address);
        let read = Advertisement::parse(&bytes).expect("an advertisement");
        assert_eq!(read, Advertisement { is_solicited: false, target: address, mac: Some(MAC) });
        for length in 0..bytes.len() {
            let cut = Advertisement::parse(&bytes[..length]);
            assert_eq!(cut.is_some(), length == 24, "{length}");
        }
        let mut endless = bytes.clone();
        endless[25] = 0;
        assert_eq!(Advertisement::parse(&endless), None);
        assert_eq!(Advertisement::parse(&solicitation(MAC, address)), None);
    }

    /// RFC 4291 section 2.7.1, its own example.
    #[test]
    fn the_solicited_node_group() {
        let address: Ipv6Addr = "4037::01:800:200e:8c6c".parse().expect("an address");
        assert_eq!(solicited_node(address).to_string(), "ff02::1:ff0e:8c6c");
    }
}
