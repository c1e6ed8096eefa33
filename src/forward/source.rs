//! FIG. 4 of US 5,923,854: which source address an outgoing datagram carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::wire::ip::Prefix;

/// `[source]` of the configuration and what the host adds to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcePolicy {
    /// Step 415: is SOURCEVIPA enabled?
    pub sourcevipa: bool,
    /// All VIPAs, in the order of the configuration.
    pub vipas: Vec<IpAddr>,
    /// The first IPv4 VIPA: what step 425 inserts where no rule names another.
    pub default_v4: Option<Ipv4Addr>,
    /// The first IPv6 VIPA.
    pub default_v6: Option<Ipv6Addr>,
    /// Step 420, in order; the first that matches wins. UDP 520 and 521 stand before them all.
    pub rules: Vec<Rule>,
    /// Source ports that rewritten flows may get: `[source] ports` less those on which a socket listens.
    pub ports: Vec<u16>,
    /// `ip_local_port_range`: a UDP source port outside it marks an answer.
    pub ephemeral: Option<RangeInclusive<u16>>,
    /// `bound = "forward"`: FIG. 4 applies to sockets bound to a NIC's address as well.
    pub is_bound_forwarded: bool,
}

/// One `[[source.rule]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// IANA number; `None`: any. ICMP (1) matches ICMPv6 as well.
    pub protocol: Option<u8>,
    /// Destination; `None`: any.
    pub destination: Option<Prefix>,
    /// Destination ports; `None`: any.
    pub ports: Option<RangeInclusive<u16>>,
    /// Source ports as the application chose them; `None`: any.
    pub local_ports: Option<RangeInclusive<u16>>,
    /// What a match yields.
    pub target: Target,
    /// Line of the configuration file, from 1.
    pub line: u32,
}

/// The source address that a rule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This VIPA (step 425). The rule matches packets of its family alone.
    Vipa(IpAddr),
    /// The address of the NIC that the packet leaves by (IGNORE, step 435).
    Physical,
}
