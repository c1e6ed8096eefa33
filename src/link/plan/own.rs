//! This host's own use of its services. What it sends to itself takes the `local` table to `lo`, before any
//! other rule is asked, and never reaches the adapter. So that table's rule moves from preference 0 to 5, and
//! in front of it stand, for each service, with S = [`table`]:
//!
//! | preference | rule |
//! |---|---|
//! | 4 | `to VIPA iif lo ipproto P dport N lookup S` |
//! | 4 | `to VIPA iif lo ipproto P sport M dport RESERVED lookup S`, each server on this host |
//! | 5 | `lookup local` |
//!
//! The second kind leads what a server here answers back to the forwarder, which gave this host as a client one of
//! the reserved ports. No socket has one of these, so that whoever talks to the server past the service, a status
//! object for one, never notices.
//!
//! S has the adapter as its default, and behind it nothing: without a forwarder the connections wait for it, and
//! new ones are told that the host is unreachable. With the `local` table behind it the kernel would reset them.
//!
//! Without the `local` table a host is deaf. So its rule is never deleted before another one is known to stand
//! ([`crate::link::kernel`]), and it stays the kernel's by its protocol number: whoever tidies up rules that he
//! does not know leaves it alone.

use std::ops::RangeInclusive;

use super::rules::{Action, Rule};
use crate::balance::service::{Settings as Service, WhenNone};
use crate::config::Config;
use crate::link::mirror::{KernelRule, Mirror};
use crate::link::{LOCAL_TABLE, PROTOCOL};
use crate::wire::ip::{Family, Prefix};

/// Where the rules of services stand.
pub const SERVICES: u32 = 4;
/// Where the `local` table's rule stands meanwhile.
const LOCAL: u32 = 5;

/// The table S: the first that no VIPA has.
pub fn table(config: &Config) -> u32 {
    let vipas = u32::try_from(config.adapter.addresses.len()).unwrap_or(u32::MAX);
    config.adapter.table.saturating_add(vipas)
}

/// Is there a service of this family?
pub fn is_wanted(config: &Config, family: Family) -> bool {
    config.services.iter().any(|service| Family::of(service.address) == family)
}

/// What the mirror says of the `local` table's rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// Others have rules that would come to stand in front of it: it stays where it is.
    pub is_blocked: bool,
    /// An operator has it further behind: it need not be moved.
    pub is_behind: bool,
}

impl Around {
    /// As the mirror has it.
    pub fn of(mirror: &Mirror, family: Family) -> Around {
        let of_family = || mirror.rules.iter().filter(|held| held.rule.family == family);
        let is_at_a_place_of_ours = |held: &&KernelRule| [0, LOCAL].contains(&held.rule.preference);
        let is_others = |held: &KernelRule| {
            held.rule.preference <= LOCAL
                && held.protocol != PROTOCOL
                && !(is_local(held) && is_at_a_place_of_ours(&held))
        };
        let mut locals = of_family().filter(|held| is_local(held)).peekable();
        let is_behind = locals.peek().is_some() && !locals.any(|held| is_at_a_place_of_ours(&held));
        Around { is_blocked: of_family().any(is_others), is_behind }
    }
}

/// The rules of this family.
pub fn rules(config: &Config, family: Family, around: Around) -> Vec<Rule> {
    if !is_wanted(config, family) || around.is_blocked {
        return Vec::new();
    }
    let mut rules: Vec<Rule> = Vec::new();
    let of_family = config.services.iter().filter(|s| Family::of(s.address) == family);
    for rule in of_family.flat_map(|service| of_service(config, service)) {
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    if !around.is_behind {
        rules.push(local(family, LOCAL));
    }
    rules
}

fn of_service(config: &Config, service: &Service) -> Vec<Rule> {
    let base = Rule {
        destination: Some(Prefix::host(service.address)),
        iif: Some("lo".to_owned()),
        protocol: Some(service.protocol),
        ..Rule::new(Family::of(service.address), SERVICES, Action::Lookup(table(config)))
    };
    let mut rules = Vec::new();
    // To the kernel all ports are no selector.
    if service.ports == (1..=u16::MAX) {
        rules.push(base.clone());
    } else if let Some(ports) = sayable(&service.ports) {
        rules.push(Rule { destination_ports: Some(ports), ..base.clone() });
    }
    let reserved = sayable(&config.source.ports);
    let here = service.servers.iter().filter(|server| server.is_local).map(|server| server.port);
    let sorry = match service.when_none {
        WhenNone::Sorry(end) if config.adapter.addresses.contains(&end.ip()) => Some(end.port()),
        _ => None,
    };
    for port in here.chain(sorry.map(Some)) {
        let ports = port.map_or_else(|| service.ports.clone(), |port| port..=port);
        if let (Some(ports), Some(reserved)) = (sayable(&ports), reserved.clone()) {
            rules.push(Rule {
                source_ports: Some(ports),
                destination_ports: Some(reserved),
                ..base.clone()
            });
        }
    }
    rules
}

/// The ports but for 65535, which the kernel takes in no rule.
fn sayable(ports: &RangeInclusive<u16>) -> Option<RangeInclusive<u16>> {
    let last = (*ports.end()).min(u16::MAX - 1);
    (*ports.start() <= last).then_some(*ports.start()..=last)
}

/// A rule that looks up the `local` table.
fn local(family: Family, preference: u32) -> Rule {
    Rule::new(family, preference, Action::Lookup(LOCAL_TABLE))
}

fn is_local(held: &KernelRule) -> bool {
    !held.has_more && held.rule == local(held.rule.family, held.rule.preference)
}

/// The families of which these rules have the `local` table's among them.
pub fn moves(rules: &[Rule]) -> impl Iterator<Item = Family> {
    Family::BOTH.into_iter().filter(|family| rules.contains(&local(*family, LOCAL)))
}

/// Where the `local` table's rule stands in place of the kernel's own, `leads_to_us` saying which rules are this
/// adapter's: it was moved, by this adapter or by another of vipa's.
pub fn is_vipas(mirror: &Mirror, family: Family, leads_to_us: impl Fn(&Rule) -> bool) -> bool {
    stands_at(mirror, family, 0) || has_others(mirror, family, leads_to_us)
}

/// The kernel's own rule, which may go: the one that was moved is known to stand.
pub fn replaced(mirror: &Mirror, family: Family) -> Option<Rule> {
    let both = stands_at(mirror, family, 0) && stands_at(mirror, family, LOCAL);
    both.then(|| local(family, 0))
}

/// The next thing to do so that the kernel's own rule stands again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Back {
    /// First it is added,
    Add(Rule),
    /// then the one that was moved is deleted.
    Delete(Rule),
}

/// What brings the kernel's own rule back; `None`: it is back, or another adapter of vipa's needs it where it is.
pub fn back(mirror: &Mirror, family: Family, leads_to_us: impl Fn(&Rule) -> bool) -> Option<Back> {
    if has_others(mirror, family, leads_to_us) {
        return None;
    }
    let is_other = |held: &KernelRule| {
        held.rule.family == family && is_local(held) && held.rule.preference != LOCAL
    };
    let has_other = mirror.rules.iter().any(is_other);
    let is_moved = stands_at(mirror, family, LOCAL);
    match (has_other, is_moved) {
        (true, true) => Some(Back::Delete(local(family, LOCAL))),
        (true, false) => None,
        (false, _) => Some(Back::Add(local(family, 0))),
    }
}

fn stands_at(mirror: &Mirror, family: Family, preference: u32) -> bool {
    let wanted = local(family, preference);
    mirror.rules.iter().any(|held| is_local(held) && held.rule == wanted)
}

/// Has another adapter of vipa's services of its own?
fn has_others(mirror: &Mirror, family: Family, leads_to_us: impl Fn(&Rule) -> bool) -> bool {
    mirror.rules.iter().any(|held| {
        held.rule.family == family
            && held.rule.preference == SERVICES
            && held.protocol == PROTOCOL
            && !leads_to_us(&held.rule)
    })
}

#[cfg(test)]
mod tests;
