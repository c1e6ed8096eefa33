//! Which addresses may stand where.

use std::net::{IpAddr, Ipv4Addr};

use super::mistake::Mistakes;
use super::reader::Span;

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// One of `[virtual] addresses`: it must be good anywhere, so not on one link alone.
    Vipa,
    /// A `[[nic]] gateway`; link-local is usual in IPv6.
    Gateway,
    /// One of `[[replay.nic]] addresses`, whose prefix length has been taken off.
    Card,
}

impl Place {
    fn wanted(self) -> &'static str {
        match self {
            Place::Vipa => {
                "a unicast address that other hosts can reach, without prefix length, such as \"203.0.113.10\""
            }
            Place::Gateway => "the address of a router on the link, such as \"10.1.1.1\"",
            Place::Card => "a unicast address with its prefix length, such as \"10.1.1.2/24\"",
        }
    }
}

/// `text` as an address that may stand in `place`, or a complaint.
pub(super) fn parse(
    text: &str,
    place: Place,
    span: Span,
    mistakes: &mut Mistakes<'_>,
) -> Option<IpAddr> {
    let fault = match text.parse::<IpAddr>() {
        Ok(address) => match fault(address, place) {
            None => return Some(address),
            Some(fault) => format!("{address} is {fault}"),
        },
        Err(_) if text.contains('%') => format!("{text:?} names a zone; its [[nic]] says which"),
        Err(_) if text.contains('/') => format!("{text:?} has a prefix length"),
        Err(_) => format!("{text:?} is not an IP address"),
    };
    mistakes.error(span, fault, place.wanted());
    None
}

/// What is wrong with `address` for a server, if anything is.
pub(crate) fn fault_of_server(address: IpAddr) -> Option<&'static str> {
    fault(address, Place::Vipa)
}

fn fault(address: IpAddr, place: Place) -> Option<&'static str> {
    let is_unspecified = match address {
        IpAddr::V4(a) => a.octets()[0] == 0,
        IpAddr::V6(a) => a.is_unspecified(),
    };
    let is_mapped = matches!(address, IpAddr::V6(a) if a.to_ipv4_mapped().is_some());
    if is_unspecified {
        Some("unspecified")
    } else if address.is_multicast() {
        Some("multicast")
    } else if address == Ipv4Addr::BROADCAST {
        Some("the broadcast address")
    } else if address.is_loopback() {
        Some("loopback")
    } else if is_mapped {
        Some("an IPv4 address in IPv6's clothes")
    } else if place == Place::Vipa && is_link_local(address) {
        Some("link-local")
    } else {
        None
    }
}

/// 169.254.0.0/16 (RFC 3927) or fe80::/10 (RFC 4291, 2.5.6).
pub(crate) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}
