//! What the forwarder owns of what arrives: replies to rewritten flows, and what has to do with virtual services.
//! The packet sockets hear just this, and the kernel is kept from answering it.

use std::net::IpAddr;
use std::ops::RangeInclusive;

/// Ports of an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// IANA protocol number: TCP or UDP.
    pub protocol: u8,
    /// First and last port.
    pub ports: (u16, u16),
}

/// All that the forwarder owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Addresses that rewritten flows may carry: of these the reserved ports, echo identifiers, and replies of
    /// protocols without ports.
    pub owned: Vec<IpAddr>,
    /// The reserved ports.
    pub reserved: RangeInclusive<u16>,
    /// Virtual services.
    pub services: Vec<Claim>,
    /// What servers answer to: addresses given wholly to served flows, and their ports.
    pub sources: Vec<(IpAddr, RangeInclusive<u16>)>,
    /// Servers that answer to the client's own address, by way of this host.
    pub servers: Vec<Claim>,
}

impl Default for Claims {
    /// Nothing.
    fn default() -> Claims {
        Claims {
            owned: Vec::new(),
            reserved: 0..=0,
            services: Vec::new(),
            sources: Vec::new(),
            servers: Vec::new(),
        }
    }
}

impl Claims {
    /// Is nothing owned?
    pub fn is_empty(&self) -> bool {
        self.owned.is_empty()
            && self.services.is_empty()
            && self.sources.is_empty()
            && self.servers.is_empty()
    }
}
