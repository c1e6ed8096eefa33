//! Queueing disciplines of the NICs and policy rules of others, by rtnetlink.

use std::fs;
use std::io;

use super::{Finding, FindingKind, native, nics};
use crate::config::Config;
use crate::link::nft::message::{find, text};
use crate::link::nft::socket::Requests;

const RTM_GETRULE: u16 = 34;
const RTM_NEWRULE: u16 = 32;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWQDISC: u16 = 36;
/// Bytes of `struct tcmsg`.
const TC_HEADER: usize = 20;
/// Bytes of `struct fib_rule_hdr`.
const RULE_HEADER: usize = 12;
/// `TC_H_ROOT`.
const ROOT: u32 = u32::MAX;
/// What a kernel or a distribution puts on a NIC by itself.
const COMMON: [&str; 5] = ["noqueue", "pfifo_fast", "mq", "fq_codel", "fq"];
/// `FRA_PROTOCOL` of our own rules.
const OURS: u8 = 118;
/// Preference of the rule that leads to the main table.
const MAIN: u32 = 32_766;

/// Root queueing disciplines that somebody chose.
pub(super) fn qdiscs(config: &Config) -> io::Result<Vec<Finding>> {
    let nics = nics(config);
    let default = fs::read_to_string("/proc/sys/net/core/default_qdisc").unwrap_or_default();
    let mut findings = Vec::new();
    let mut requests = Requests::open(netlink_sys::protocols::NETLINK_ROUTE)?;
    requests.dump(RTM_GETQDISC, &[0; TC_HEADER], |kind, payload| {
        if kind != RTM_NEWQDISC || native(payload, 12) != Some(ROOT) {
            return;
        }
        let nic = nics.iter().find(|nic| Some(nic.0) == native(payload, 4));
        let discipline = payload.get(TC_HEADER..).and_then(|a| find(a, 1)).map_or("", text);
        if let Some((_, nic)) = nic
            && !COMMON.contains(&discipline)
            && discipline != default.trim()
        {
            let text = format!(
                "{nic} has the queueing discipline {discipline}: its filters see what the forwarder sends \
                 without the socket's mark, priority, user and cgroup"
            );
            findings.push(Finding { kind: FindingKind::Qdisc, text });
        }
    })?;
    Ok(findings)
}

/// Rules between ours and the main table's: what the host itself sends goes by ours before.
pub(super) fn policy_rules(config: &Config) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    if !config.source.sourcevipa && config.source.rules.is_empty() {
        return Ok(findings);
    }
    let mut requests = Requests::open(netlink_sys::protocols::NETLINK_ROUTE)?;
    for (family, name) in [(libc::AF_INET, "IPv4"), (libc::AF_INET6, "IPv6")] {
        if !config.adapter.addresses.iter().any(|a| a.is_ipv4() == (family == libc::AF_INET)) {
            continue;
        }
        let mut request = [0; RULE_HEADER];
        request[0] = family as u8;
        requests.dump(RTM_GETRULE, &request, |kind, payload| {
            let Some(attributes) = payload.get(RULE_HEADER..) else { return };
            let preference = find(attributes, 6).and_then(|p| native(p, 0)).unwrap_or(0);
            let protocol = find(attributes, 21).and_then(|p| p.first()).copied();
            let is_behind = (config.adapter.preference..MAIN).contains(&preference);
            // A rule for what came in by another device is about forwarded packets.
            let is_forwarding = find(attributes, 3).is_some_and(|iif| text(iif) != "lo");
            if kind == RTM_NEWRULE && is_behind && protocol != Some(OURS) && !is_forwarding {
                let table = find(attributes, 15).and_then(|t| native(t, 0)).unwrap_or(0);
                let text = format!(
                    "the {name} policy rule of preference {preference} (table {table}) stands behind those \
                     of vipa: what this host sends from a VIPA, or from no chosen address, no longer \
                     reaches it"
                );
                findings.push(Finding { kind: FindingKind::PolicyRule, text });
            }
        })?;
    }
    Ok(findings)
}
