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
//! | P+3 | | `from ::/1`, `from 8000::/1` `iif lo goto P+99` |
//! | P+9 | `from 0.0.0.0/32 iif lo ipproto udp` with port 520 or 521 `lookup T` | `iif lo ipproto udp` … |
//! | P+10 … P+89 | source rules that the kernel applies, in their order | the same |
//! | P+90 | `from 0.0.0.0/32 iif lo lookup T` | `iif lo lookup T` |
//! | P+99 | | nop |
//!
//! Where there are services, rules of theirs stand before all others ([`super::own`]).
//!
//! IPv6 cannot match "no source" (`::/128` means any), so those with a source jump over what is behind P+3.
//!
//! A source rule that yields a VIPA looks the route up in that VIPA's table ([`table_of`]), whose routes are
//! those of T with another preferred source. One that yields `physical` looks it up in main, and behind that
//! in T: what main has no way for goes to the forwarder, not to the next source rule. Main's own default
//! counts only if it leaves by a NIC.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::own;
use crate::config::Config;
use crate::forward::applies::{
    Applies, ROOM, applies, has_last_port, preferences as preferences_of,
};
use crate::forward::rule::{Mark, Rule as SourceRule, Target};
use crate::link::{LOCAL_TABLE, MAIN_TABLE};
use crate::wire::ip::{Family, ICMP, ICMPV6, Prefix, TCP, UDP};

/// `ip_local_port_range` where it cannot be read: the kernel's own default.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;
/// RIP and RIPng: IGNORE SOURCEVIPA by nature (V5), before any source rule.
const RIP_PORTS: RangeInclusive<u16> = 520..=521;
/// Where RIP's rules stand.
const RIP: u32 = 9;
/// Where the source rules begin that the kernel applies.
const SOURCE_RULES: u32 = 10;
/// What has no source and no rule of its own.
const THE_REST: u32 = SOURCE_RULES + ROOM;
/// Where what has a source lands.
const LANDING: u32 = BLOCK - 1;
/// Preferences that are ours.
const BLOCK: u32 = 100;

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
    /// The socket's mark.
    pub mark: Option<Mark>,
    /// The socket's user.
    pub user: Option<u32>,
    /// Routes with a prefix of this length or a shorter one do not count.
    pub suppressed: Option<u32>,
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
            mark: None,
            user: None,
            suppressed: None,
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
        if let Some(mark) = self.mark {
            write!(f, " fwmark {mark}")?;
        }
        if let Some(user) = self.user {
            write!(f, " uidrange {user}-{user}")?;
        }
        match self.action {
            Action::Lookup(MAIN_TABLE) => write!(f, " lookup main")?,
            Action::Lookup(LOCAL_TABLE) => write!(f, " lookup local")?,
            Action::Lookup(table) => write!(f, " lookup {table}")?,
            Action::Goto(preference) => write!(f, " goto {preference}")?,
            Action::Nop => write!(f, " nop")?,
            Action::Other(number) => write!(f, " action {number}")?,
        }
        match self.suppressed {
            Some(length) => write!(f, " suppress_prefixlength {length}"),
            None => Ok(()),
        }
    }
}

/// The preferences that are ours, for the first of them.
pub fn preferences(first: u32) -> RangeInclusive<u32> {
    first..=first.saturating_add(LANDING)
}

/// What the rules depend on beside the configuration.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// Addresses of NICs; they matter with `bound = "forward"` alone.
    pub nic_addresses: Vec<IpAddr>,
    /// `ip_local_port_range`; `None`: not known.
    pub ephemeral: Option<RangeInclusive<u16>>,
    /// Families whose default route in the main table leaves by no NIC.
    pub foreign_defaults: Vec<Family>,
    /// Where the rule of the `local` table stands, in IPv4 and IPv6.
    pub local: [own::Around; 2],
}

/// All rules of `config`, in the order of their preferences, a jump's landing place before the jump.
pub fn rules(config: &Config, around: &Around) -> Vec<Rule> {
    Family::BOTH
        .into_iter()
        .filter(|family| default_vipa(config, *family).is_some())
        .flat_map(|family| of_family(config, family, around))
        .collect()
}

/// The table whose routes have this VIPA as preferred source: T for the default of a family, else the one
/// that is as far behind T as the VIPA is behind the first of `addresses`.
pub fn table_of(config: &Config, vipa: IpAddr) -> u32 {
    let adapter = &config.adapter;
    let is_default = default_vipa(config, Family::of(vipa)) == Some(vipa);
    let position = adapter.addresses.iter().position(|address| *address == vipa);
    match position.and_then(|position| u32::try_from(position).ok()) {
        Some(position) if !is_default => adapter.table.saturating_add(position),
        _ => adapter.table,
    }
}

/// The tables in use, each with the VIPA that is its preferred source: T for both families, and one for each
/// VIPA that a rule of the kernel's yields.
pub fn tables(config: &Config) -> Vec<(u32, IpAddr)> {
    let defaults = Family::BOTH.into_iter().filter_map(|family| default_vipa(config, family));
    let by_rules = kernel_rules(config).filter_map(|(_, rule)| match rule.target {
        Target::Vipa(vipa) => Some(vipa),
        Target::Physical => None,
    });
    let mut tables: Vec<(u32, IpAddr)> = Vec::new();
    for vipa in defaults.chain(by_rules) {
        let table = (table_of(config, vipa), vipa);
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    tables
}

/// All tables in use: those of [`tables`], and that of this host's own use of its services.
pub fn all_tables(config: &Config) -> Vec<u32> {
    let mut all: Vec<u32> = tables(config).into_iter().map(|(table, _)| table).collect();
    if !config.services.is_empty() {
        all.push(own::table(config));
    }
    all
}

/// The source rules that the kernel applies, each with its first step behind [`SOURCE_RULES`].
fn kernel_rules(config: &Config) -> impl Iterator<Item = (u32, &SourceRule)> {
    let source = &config.source;
    let by = applies(&source.rules, source.is_bound_forwarded);
    let mut next = SOURCE_RULES;
    source.rules.iter().zip(by).filter(|(_, by)| by.is_by_kernel()).map(move |(rule, _)| {
        let step = next;
        next += preferences_of(rule);
        (step, rule)
    })
}

/// The first VIPA of the family: the default source.
pub fn default_vipa(config: &Config, family: Family) -> Option<IpAddr> {
    config.adapter.addresses.iter().copied().find(|a| Family::of(*a) == family)
}

fn of_family(config: &Config, family: Family, around: &Around) -> Vec<Rule> {
    let first = config.adapter.preference;
    let table = config.adapter.table;
    let main = |step| Rule::new(family, first + step, Action::Lookup(MAIN_TABLE));
    let ours = |step, table| Rule::new(family, first + step, Action::Lookup(table)).of_this_host();
    let mut rules = own::rules(config, family, around.local[usize::from(family == Family::V6)]);
    if family == Family::V6 {
        rules.push(Rule::new(family, first + LANDING, Action::Nop));
    }
    rules.extend(never_ours(family).map(|prefix| main(0).to(prefix)));
    rules.extend(config.nics.iter().filter(|nic| !nic.is_gone()).map(|nic| {
        let mut rule = main(1);
        rule.oif = Some(nic.name.clone());
        rule
    }));
    if config.source.is_bound_forwarded {
        let bound = around.nic_addresses.iter().filter(|a| Family::of(**a) == family);
        rules.extend(bound.map(|address| ours(2, table).from(Prefix::host(*address))));
    }
    if config.source.sourcevipa {
        let vipas = config.adapter.addresses.iter().filter(|a| Family::of(**a) == family);
        rules.extend(vipas.map(|address| ours(2, table).from(Prefix::host(*address))));
    } else {
        rules.extend(leading_in(config, family, |vipa, rule, by| {
            let default = default_vipa(config, family).filter(|_| leaves_some(rule, by));
            let carried = Some(vipa).filter(|_| by.is_by_kernel()).into_iter().chain(default);
            carried.map(|vipa| ours(2, table).from(Prefix::host(vipa))).collect()
        }));
    }
    let without_source = |step, table| match family {
        Family::V4 => ours(step, table).from(Prefix::host(family.unspecified())),
        Family::V6 => ours(step, table),
    };
    if family == Family::V6 {
        let jump = || Rule::new(family, first + 3, Action::Goto(first + LANDING)).of_this_host();
        rules.extend(halves().map(|half| jump().from(half)));
    }
    rules.extend(by_kernel(config, family, around, without_source));
    if config.source.sourcevipa {
        rules.push(without_source(THE_REST, table));
    } else {
        rules.extend(leading_in(config, family, |_, rule, by| {
            let base = leaves_some(rule, by).then(|| without_source(THE_REST, table));
            base.into_iter().collect()
        }));
    }
    rules.sort_by_key(|rule| (rule.action != Action::Nop, rule.preference));
    rules
}

/// The source rules that the kernel applies, and RIP before them.
fn by_kernel(
    config: &Config,
    family: Family,
    around: &Around,
    without_source: impl Fn(u32, u32) -> Rule,
) -> Vec<Rule> {
    let ephemeral = around.ephemeral.clone().unwrap_or(EPHEMERAL);
    let is_foreign = around.foreign_defaults.contains(&family);
    let table = config.adapter.table;
    let mut rules = Vec::new();
    for (step, rule) in kernel_rules(config).filter(|(_, rule)| rule.is_for(family)) {
        match rule.target {
            Target::Vipa(vipa) => {
                let base = without_source(step, table_of(config, vipa));
                rules.extend(selected(&base, rule, &ephemeral));
            }
            Target::Physical => {
                let mut main = without_source(step, MAIN_TABLE);
                // A default over another device is not ours (see `reaches`), its address no NIC's.
                main.suppressed = is_foreign.then_some(0);
                rules.extend(selected(&main, rule, &ephemeral));
                if config.source.sourcevipa {
                    rules.extend(selected(&without_source(step + 1, table), rule, &ephemeral));
                }
            }
        }
    }
    if rules.iter().any(|rule| rule.protocol == Some(UDP)) {
        let rip = without_source(RIP, if config.source.sourcevipa { table } else { MAIN_TABLE });
        let rip = Rule { protocol: Some(UDP), ..rip };
        rules.push(Rule { source_ports: Some(RIP_PORTS), ..rip.clone() });
        rules.push(Rule { destination_ports: Some(RIP_PORTS), ..rip });
    }
    rules
}

/// `base` for what the source rule speaks of, one for each protocol. The kernel decides about TCP, about
/// ICMP, and about UDP as far as it is no server's answer; other protocols are the forwarder's.
fn selected(base: &Rule, rule: &SourceRule, ephemeral: &RangeInclusive<u16>) -> Vec<Rule> {
    let icmp = match base.family {
        Family::V4 => ICMP,
        Family::V6 => ICMPV6,
    };
    let protocols = match rule.protocol {
        None => vec![TCP, UDP, icmp],
        Some(ICMP) => vec![icmp],
        Some(protocol) => vec![protocol],
    };
    protocols
        .into_iter()
        .map(|protocol| {
            let mut selected = selecting(base, rule);
            selected.protocol = Some(protocol);
            if protocol == UDP && selected.source_ports.is_none() {
                selected.source_ports =
                    Some(*ephemeral.start()..=(*ephemeral.end()).min(u16::MAX - 1));
            }
            selected
        })
        .collect()
}

/// `base` with all that a policy rule can say of what the source rule speaks of.
fn selecting(base: &Rule, rule: &SourceRule) -> Rule {
    let mut selecting = base.clone();
    // To the kernel `to 0.0.0.0/0` is no selector.
    selecting.destination = rule.destination.filter(|prefix| prefix.length() > 0);
    selecting.protocol = match (rule.protocol, base.family) {
        (Some(ICMP), Family::V6) => Some(ICMPV6),
        (protocol, _) => protocol,
    };
    // What a policy rule cannot say it leaves out: more is led in, and the forwarder sees to it.
    selecting.source_ports = rule.local_ports.clone().filter(|ports| !has_last_port(ports));
    selecting.destination_ports = rule.ports.clone().filter(|ports| !has_last_port(ports));
    selecting.mark = rule.mark;
    selecting.user = rule.user;
    selecting
}

/// `sourcevipa = false`: in place of everything, what a source rule asks a VIPA for. `bases` tells of a rule
/// where in our preferences it is led in. Rules that ask for the NIC's address need nothing: what another rule
/// leads in, the forwarder sends out with it.
fn leading_in(
    config: &Config,
    family: Family,
    bases: impl Fn(IpAddr, &SourceRule, Applies) -> Vec<Rule>,
) -> Vec<Rule> {
    let source = &config.source;
    let by = applies(&source.rules, source.is_bound_forwarded);
    let mut led: Vec<Rule> = Vec::new();
    for (rule, by) in source.rules.iter().zip(by).filter(|(rule, _)| rule.is_for(family)) {
        let Target::Vipa(vipa) = rule.target else { continue };
        let selecting = bases(vipa, rule, by).into_iter().map(|base| selecting(&base, rule));
        for rule in selecting {
            if !led.contains(&rule) {
                led.push(rule);
            }
        }
    }
    led
}

/// Does anything that the rule speaks of come to the forwarder with the default VIPA? Of rules of the
/// kernel's, protocols that it does not decide about.
fn leaves_some(rule: &SourceRule, by: Applies) -> bool {
    !by.is_by_kernel() || rule.protocol.is_none()
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
