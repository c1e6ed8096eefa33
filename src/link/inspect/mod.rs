//! What on this host behaves differently once vipa runs: for `vipa check --plan`. Reads; changes nothing.
//!
//! [`sockets`] asks the kernel for its sockets, [`netfilter`] for the rules of others that name a NIC,
//! [`routing`] for queueing disciplines and policy rules.

mod netfilter;
mod routing;
mod sockets;

use std::io;

pub use self::sockets::{ports_in_use, ports_of_connections};
use crate::config::Config;

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// A UDP socket on the wildcard address: unless it uses IP_PKTINFO it answers from the VIPA.
    WildcardUdp,
    /// A UDP socket on a port of `ip_local_port_range`: its answers look like a client's datagrams.
    EphemeralUdp,
    /// A socket has a port of `[source] ports`.
    ReservedPort,
    /// An nftables rule compares the outgoing device with a NIC.
    NftablesRule,
    /// Tables of the legacy iptables, which cannot be read by netlink.
    LegacyIptables,
    /// A queueing discipline that someone chose for a NIC.
    Qdisc,
    /// A policy rule that the host's own packets no longer reach.
    PolicyRule,
    /// Something could not be looked at.
    Unknown,
}

impl FindingKind {
    /// The name in `--json`.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::WildcardUdp => "wildcard_udp",
            FindingKind::EphemeralUdp => "ephemeral_udp",
            FindingKind::ReservedPort => "reserved_port",
            FindingKind::NftablesRule => "nftables_rule",
            FindingKind::LegacyIptables => "legacy_iptables",
            FindingKind::Qdisc => "qdisc",
            FindingKind::PolicyRule => "policy_rule",
            FindingKind::Unknown => "unknown",
        }
    }
}

/// One thing that behaves differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub kind: FindingKind,
    /// One sentence: what it is, and what becomes of it.
    pub text: String,
}

/// Looks at the current network namespace. What the kernel does not let us see, for want of a module or
/// of privilege, is a finding of its own.
///
/// # Errors
/// None of the kernel's answers; `Interrupted` alone, where a dump changed each time it was read.
pub fn inspect(config: &Config) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let looks: [(&str, Look); 5] = [
        ("sockets", sockets::inspect),
        ("nftables rules", netfilter::nftables),
        ("legacy iptables", netfilter::legacy),
        ("queueing disciplines", routing::qdiscs),
        ("policy rules", routing::policy_rules),
    ];
    for (what, look) in looks {
        match look(config) {
            Ok(found) => findings.extend(found),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
            Err(e) => {
                let text = format!("{what} could not be looked at: {e}");
                findings.push(Finding { kind: FindingKind::Unknown, text });
            }
        }
    }
    Ok(findings)
}

type Look = fn(&Config) -> io::Result<Vec<Finding>>;

/// The NICs of the configuration that exist, as (index, name).
fn nics(config: &Config) -> Vec<(u32, String)> {
    pnet::datalink::interfaces()
        .into_iter()
        .filter(|interface| config.nics.iter().any(|nic| nic.name == interface.name))
        .map(|interface| (interface.index, interface.name))
        .collect()
}

/// An integer in the machine's byte order.
fn native(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|b| u32::from_ne_bytes(*b))
}
