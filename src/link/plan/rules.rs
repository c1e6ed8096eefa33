//! Policy rules: what enters our table. Only packets of this host that have no source yet, or a VIPA as
//! source, ever do; whoever is bound to a NIC's address or device never notices vipa.
//!
//! With P = `[virtual] preference` and T = `[virtual] table`:
//!
//! | preference | IPv4 | IPv6 |
//! |---|---|---|
//! | P+0 | `to 224.0.0.0/4`, `to 255.255.255.255` `lookup main` | `to fe80::/10`, `to ff00::/8` `lookup main` |
//! | P+1 | `oif NIC lookup main`, each NIC | the same |
//! | P+2 | `from VIPA iif lo lookup T`, each VIPA | the same |
//! | P+3 | `from 0.0.0.0/32 iif lo lookup T` | `from ::/1`, `from 8000::/1` `iif lo goto P+9` |
//! | P+4 | | `iif lo lookup T` |
//! | P+9 | | nop |
//!
//! IPv6 cannot match "no source" (`::/128` means any), so those with a source jump over P+4.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::config::Config;
use crate::forward::source::Target;
use crate::link::MAIN_TABLE;
use crate::wire::ip::{Family, ICMP, ICMPV6, Prefix};

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Looks the route up in this table.
    Lookup(u32),
    /// Goes on at the rule of this preference.
    Goto(u32),
    /// Nothing: a place to go to.
    Nop,
    /// What vipa never sets (FR_ACT_*).
    Other(u8),
}

/// A policy rule, with the selectors that vipa uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its family.
    pub family: Family,
    /// Rules are tried in this order.
    pub preference: u32,
    /// Source; 0.0.0.0/32 means: none yet.
    pub source: Option<Prefix>,
    /// Destination.
    pub destination: Option<Prefix>,
    /// Came in by this device; `lo`: this host sends it.
    pub iif: Option<String>,
    /// The socket is bound to this device.
    pub oif: Option<String>,
    /// IANA protocol number.
    pub protocol: Option<u8>,
    /// Source ports.
    pub source_ports: Option<RangeInclusive<u16>>,
    /// Destination ports.
    pub destination_ports: Option<RangeInclusive<u16>>,
    /// What becomes of a match.
    pub action: Action,
}

impl Rule {
    /// A rule without selectors.
    pub fn new(family: Family, preference: u32, action: Action) -> Rule {
        Rule {
            family,
            preference,
            source: None,
            destination: None,
            iif: None,
            oif: None,
            protocol: None,
            source_ports: None,
            destination_ports: None,
            action,
        }
    }

    fn of_this_host(mut self) -> Rule {
        self.iif = Some("lo".to_owned());
        self
    }

    fn from(mut self, source: Prefix) -> Rule {
        self.source = Some(source);
        self
    }

    fn to(mut self, destination: Prefix) -> Rule {
        self.destination = Some(destination);
        self
    }
}

impl fmt::Display for Rule {
    /// As `ip rule` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.family == Family::V6 {
            write!(f, "-6 ")?;
        }
        write!(f, "rule {}:", self.preference)?;
        match &self.source {
            Some(prefix) => write!(f, " from {prefix}")?,
            None => write!(f, " from all")?,
        }
        if let Some(prefix) = &self.destination {
            write!(f, " to {prefix}")?;
        }
        for (word, value) in [("iif", &self.iif), ("oif", &self.oif)] {
            if let Some(value) = value {
                write!(f, " {word} {value}")?;
            }
        }
        if let Some(protocol) = self.protocol {
            write!(f, " ipproto {protocol}")?;
        }
        for (word, ports) in [("sport", &self.source_ports), ("dport", &self.destination_ports)] {
            if let Some(ports) = ports {
                write!(f, " {word} {}-{}", ports.start(), ports.end())?;
            }
        }
        match self.action {
            Action::Lookup(MAIN_TABLE) => write!(f, " lookup main"),
            Action::Lookup(table) => write!(f, " lookup {table}"),
            Action::Goto(preference) => write!(f, " goto {preference}"),
            Action::Nop => write!(f, " nop"),
            Action::Other(number) => write!(f, " action {number}"),
        }
    }
}

/// The preferences that are ours, for a first preference.
pub fn preferences(first: u32) -> RangeInclusive<u32> {
    first..=first.saturating_add(9)
}

/// All rules of `config`, in the order of their preferences, a jump's landing place before the jump.
/// `nic_addresses` matter with `bound = "forward"` alone.
pub fn rules(config: &Config, nic_addresses: &[IpAddr]) -> Vec<Rule> {
    Family::BOTH
        .into_iter()
        .filter(|family| default_vipa(config, *family).is_some())
        .flat_map(|family| of_family(config, family, nic_addresses))
        .collect()
}

/// The first VIPA of the family: the default source.
pub fn default_vipa(config: &Config, family: Family) -> Option<IpAddr> {
    config.adapter.addresses.iter().copied().find(|a| Family::of(*a) == family)
}

fn of_family(config: &Config, family: Family, nic_addresses: &[IpAddr]) -> Vec<Rule> {
    let first = config.adapter.preference;
    let main = |step| Rule::new(family, first + step, Action::Lookup(MAIN_TABLE));
    let ours =
        |step| Rule::new(family, first + step, Action::Lookup(config.adapter.table)).of_this_host();
    let mut rules = Vec::new();
    if family == Family::V6 {
        rules.push(Rule::new(family, first + 9, Action::Nop));
    }
    rules.extend(never_ours(family).map(|prefix| main(0).to(prefix)));
    rules.extend(config.nics.iter().map(|nic| {
        let mut rule = main(1);
        rule.oif = Some(nic.name.clone());
        rule
    }));
    if config.source.is_bound_forwarded {
        let bound = nic_addresses.iter().filter(|a| Family::of(**a) == family);
        rules.extend(bound.map(|address| ours(2).from(Prefix::host(*address))));
    }
    let sources: Vec<Prefix> = if config.source.sourcevipa {
        let vipas = config.adapter.addresses.iter().filter(|a| Family::of(**a) == family);
        vipas.map(|address| Prefix::host(*address)).collect()
    } else {
        default_vipa(config, family).map(Prefix::host).into_iter().collect()
    };
    let selected = |rule: Rule| -> Vec<Rule> {
        if config.source.sourcevipa { vec![rule] } else { selectors(config, family, &rule) }
    };
    rules.extend(sources.into_iter().flat_map(|source| selected(ours(2).from(source))));
    match family {
        Family::V4 => rules.extend(selected(ours(3).from(Prefix::host(family.unspecified())))),
        Family::V6 => {
            let jump = || Rule::new(family, first + 3, Action::Goto(first + 9)).of_this_host();
            rules.extend(halves().map(|half| jump().from(half)));
            rules.extend(selected(ours(4)));
        }
    }
    rules.sort_by_key(|rule| (rule.action != Action::Nop, rule.preference));
    rules
}

/// `sourcevipa = false`: in place of everything, what a source rule asks a VIPA for. Rules that ask for the
/// NIC's address need nothing: what another rule leads in, the forwarder sends out with it.
fn selectors(config: &Config, family: Family, base: &Rule) -> Vec<Rule> {
    let mut selected: Vec<Rule> = Vec::new();
    for rule in &config.source.rules {
        let is_of_family = match rule.target {
            Target::Vipa(address) => Family::of(address) == family,
            Target::Physical => false,
        };
        if !is_of_family || rule.destination.is_some_and(|d| d.family() != family) {
            continue;
        }
        let mut selector = base.clone();
        selector.destination = rule.destination;
        selector.protocol = match (rule.protocol, family) {
            (Some(ICMP), Family::V6) => Some(ICMPV6),
            (protocol, _) => protocol,
        };
        selector.source_ports.clone_from(&rule.local_ports);
        selector.destination_ports.clone_from(&rule.ports);
        if !selected.contains(&selector) {
            selected.push(selector);
        }
    }
    selected
}

/// Multicast, broadcast and link-local are the kernel's.
pub fn never_ours(family: Family) -> impl Iterator<Item = Prefix> {
    let prefixes: [(IpAddr, u8); 2] = match family {
        Family::V4 => [(Ipv4Addr::new(224, 0, 0, 0).into(), 4), (Ipv4Addr::BROADCAST.into(), 32)],
        Family::V6 => [
            (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10),
            (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
        ],
    };
    prefixes.into_iter().filter_map(|(address, length)| Prefix::new(address, length))
}

/// `::/1` and `8000::/1`: every source that is set.
fn halves() -> impl Iterator<Item = Prefix> {
    let upper = Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0);
    [Ipv6Addr::UNSPECIFIED, upper].into_iter().filter_map(|a| Prefix::new(a.into(), 1))
}
