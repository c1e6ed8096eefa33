//! What both families share: prefixes, protocol numbers, the family of an address.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// IANA protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IANA protocol number of TCP.
pub const TCP: u8 = 6;
/// IANA protocol number of UDP.
pub const UDP: u8 = 17;
/// IANA protocol number of DCCP.
pub const DCCP: u8 = 33;
/// IANA protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// IANA protocol number of SCTP.
pub const SCTP: u8 = 132;
/// IANA protocol number of UDP-Lite.
pub const UDP_LITE: u8 = 136;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "ipv4")]
    V4,
    /// IPv6.
    #[serde(rename = "ipv6")]
    V6,
}

impl Family {
    /// Both, IPv4 first.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of `address`.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Bits of an address: 32 or 128.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// 0.0.0.0 or ::
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

/// An address prefix; the bits behind its length are zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The prefix of `length` bits that `address` lies in, or `None` if the family has fewer bits.
    pub fn new(address: IpAddr, length: u8) -> Option<Prefix> {
        (length <= Family::of(address).bits())
            .then(|| Prefix { address: masked(address, length), length })
    }

    /// The prefix that holds this address alone.
    pub fn host(address: IpAddr) -> Prefix {
        Prefix { address, length: Family::of(address).bits() }
    }

    /// 0.0.0.0/0 or ::/0.
    pub fn default_route(family: Family) -> Prefix {
        Prefix { address: family.unspecified(), length: 0 }
    }

    /// The lowest address of the prefix.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that count.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.address)
    }

    /// Does `address` lie in it?
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family() && masked(address, self.length) == self.address
    }
}

/// `address` with all bits behind the first `length` cleared.
pub fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            Ipv4Addr::from(u32::from(a) & mask).into()
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            Ipv6Addr::from(u128::from(a) & mask).into()
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no prefix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PrefixError {
    /// The part before the slash is no address.
    #[error("{0:?} is not an IP address")]
    Address(String),
    /// The part behind the slash is no length of the family.
    #[error("{0:?} is not a prefix length of 0 to {1}")]
    Length(String, u8),
    /// Bits behind the length are set.
    #[error("{0} has bits behind its length; the prefix is {1}")]
    HostBits(String, Prefix),
}

impl FromStr for Prefix {
    type Err = PrefixError;

    /// `10.0.0.0/8`, `2001:db8::/32`; an address alone is a host prefix.
    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let (address, length) = match text.split_once('/') {
            Some((a, l)) => (a, Some(l)),
            None => (text, None),
        };
        let address: IpAddr =
            address.parse().map_err(|_| PrefixError::Address(address.to_owned()))?;
        let bits = Family::of(address).bits();
        let Some(length) = length else { return Ok(Prefix::host(address)) };
        let wrong = || PrefixError::Length(length.to_owned(), bits);
        let parsed: u8 = length.parse().map_err(|_| wrong())?;
        let prefix = Prefix::new(address, parsed).ok_or_else(wrong)?;
        if prefix.address != address {
            return Err(PrefixError::HostBits(text.to_owned(), prefix));
        }
        Ok(prefix)
    }
}
