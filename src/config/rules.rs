//! `[[source.rule]]`: step 420 of US 5,923,854 FIG. 4, and which rules can never match.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use toml::de::DeValue;

use super::address::is_link_local;
use super::mistake::Mistakes;
use super::reader::{Span, Table, Value, integer, is_a, string};
use super::user;
use crate::forward::rule::{Mark, Rule, Target, is_at_or_below};
use crate::wire::ip::{Family, ICMP, Prefix, TCP, UDP};

/// RIP and RIPng: IGNORE SOURCEVIPA by nature (V5).
const RIP_PORTS: RangeInclusive<u16> = 520..=521;

/// The rules, in order. A rule that can never match is a warning.
pub(super) fn read(
    value: Option<&Value<'_>>,
    vipas: &[IpAddr],
    mistakes: &mut Mistakes<'_>,
) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for table in Table::all_of(value, "[[source.rule]]", mistakes) {
        let span = table.span();
        let Some(rule) = read_rule(table, vipas, mistakes) else { continue };
        if let Some(why) = never_matches(&rule, &rules) {
            mistakes.warn(span, "this rule can never match", why);
        }
        rules.push(rule);
    }
    rules
}

/// A rule, whole or with what was wrong in it left out; `None` without a target.
fn read_rule(mut table: Table<'_>, vipas: &[IpAddr], mistakes: &mut Mistakes<'_>) -> Option<Rule> {
    let line = u32::try_from(mistakes.line(table.span().start)).unwrap_or(u32::MAX);
    let protocol = match table.get("protocol") {
        Some(value) => Protocol::read(value, mistakes),
        None => Protocol::Any,
    };
    let destination = read_destination(&mut table, mistakes);
    let ports = read_rule_ports(&mut table, "port", protocol, mistakes);
    let local_ports = read_rule_ports(&mut table, "local-port", protocol, mistakes);
    let mark = read_mark(&mut table, mistakes);
    let user = table.get("user").and_then(|value| user::read(value, mistakes));
    let cgroup = read_cgroup(&mut table, mistakes);
    let target = read_target(&mut table, vipas, mistakes);
    let is_for_forwarder = table.one_of("apply", &["auto", "forwarder"], mistakes) == "forwarder";
    if let (Some((Target::Vipa(vipa), _)), Some((prefix, span))) = (&target, &destination)
        && Family::of(*vipa) != prefix.family()
    {
        let found = format!("`destination` {prefix} and `use` {vipa} are of two families");
        mistakes.error(span.clone(), found, "one family");
    }
    table.finish(mistakes);
    Some(Rule {
        protocol: protocol.number(),
        destination: destination.map(|(prefix, _)| prefix),
        ports,
        local_ports,
        mark,
        user,
        cgroup,
        is_for_forwarder,
        target: target?.0,
        line,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Any,
    Tcp,
    Udp,
    Icmp,
    /// It has had its complaint; nothing is concluded from it.
    Wrong,
}

impl Protocol {
    fn read(value: &Value<'_>, mistakes: &mut Mistakes<'_>) -> Protocol {
        let wanted = "\"tcp\", \"udp\" or \"icmp\"; left out: any";
        match string(value, "protocol", wanted, mistakes) {
            Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            Some("icmp") => Protocol::Icmp,
            Some(other) => {
                mistakes.error(value.span(), format!("`protocol` is {other:?}"), wanted);
                Protocol::Wrong
            }
            None => Protocol::Wrong,
        }
    }

    fn number(self) -> Option<u8> {
        match self {
            Protocol::Any | Protocol::Wrong => None,
            Protocol::Tcp => Some(TCP),
            Protocol::Udp => Some(UDP),
            Protocol::Icmp => Some(ICMP),
        }
    }
}

fn read_destination(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<(Prefix, Span)> {
    let wanted = "a prefix such as \"10.20.0.0/16\" or \"2001:db8::/32\"";
    let value = table.get("destination")?;
    let text = string(value, "destination", wanted, mistakes)?;
    match text.parse::<Prefix>() {
        Ok(prefix) => Some((prefix, value.span())),
        Err(error) => {
            mistakes.error(value.span(), error.to_string(), wanted);
            None
        }
    }
}

fn read_rule_ports(
    table: &mut Table<'_>,
    key: &'static str,
    protocol: Protocol,
    mistakes: &mut Mistakes<'_>,
) -> Option<RangeInclusive<u16>> {
    let value = table.get(key)?;
    if matches!(protocol, Protocol::Any | Protocol::Icmp) {
        let found = format!("`{key}` in a rule that is not for tcp or udp alone");
        mistakes.error(table.key_span(key), found, "`protocol` = \"tcp\" or \"udp\" beside it");
    }
    ports(value, key, "a port from 1 to 65535, or a range such as \"1000-2000\"", mistakes)
}

/// `5`, `"0x10"` or `"0x10/0xff"`, as `ip rule` has them.
fn read_mark(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<Mark> {
    let wanted = "a number, or a number and a mask such as \"0x10/0xff\"";
    let value = table.get("mark")?;
    let read = match value.get_ref() {
        DeValue::Integer(number) => integer(number).map(|value| (value, u32::MAX)),
        DeValue::String(text) => {
            let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
            number(value).zip(number(mask))
        }
        other => {
            mistakes.error(value.span(), is_a("mark", other), wanted);
            return None;
        }
    };
    let text = || match value.get_ref() {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        _ => String::new(),
    };
    match read {
        Some((_, 0)) => {
            mistakes.error(value.span(), format!("`mark` {} has an empty mask", text()), wanted);
        }
        Some((number_, mask)) if number_ & !mask != 0 => {
            let found = format!("`mark` {} has bits outside of its mask", text());
            mistakes.error(value.span(), found, format!("\"{:#x}/{mask:#x}\"", number_ & mask));
        }
        Some((value, mask)) => return Some(Mark { value, mask }),
        None => mistakes.error(value.span(), format!("`mark` is {}", text()), wanted),
    }
    None
}

/// `16` or `0x10`.
fn number(text: &str) -> Option<u32> {
    let text = text.trim();
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A path below the root of cgroup2; slashes at its ends say nothing.
fn read_cgroup(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<String> {
    const LONGEST: usize = 4096;
    let wanted = "a path below the root of cgroup2, such as \"system.slice/nginx.service\"";
    let value = table.get("cgroup")?;
    let text = string(value, "cgroup", wanted, mistakes)?;
    let path = text.trim_matches('/');
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    if path.len() < LONGEST && path.split('/').all(is_name) {
        return Some(path.to_owned());
    }
    mistakes.error(value.span(), format!("`cgroup` is {text:?}"), wanted);
    None
}

fn read_target(
    table: &mut Table<'_>,
    vipas: &[IpAddr],
    mistakes: &mut Mistakes<'_>,
) -> Option<(Target, Span)> {
    let wanted = "one of [virtual] addresses, or \"physical\"";
    let value = table.required("use", wanted, mistakes)?;
    let text = string(value, "use", wanted, mistakes)?;
    if text == "physical" {
        return Some((Target::Physical, value.span()));
    }
    let found = match text.parse::<IpAddr>() {
        // Without any VIPA that has been complained of already.
        Ok(address) if vipas.is_empty() || vipas.contains(&address) => {
            return Some((Target::Vipa(address), value.span()));
        }
        Ok(address) => format!("`use` is {address}, which is no VIPA"),
        Err(_) => format!("`use` is {text:?}"),
    };
    mistakes.error(value.span(), found, wanted);
    None
}

/// `"443"`, `"1000-2000"` or `443`, or a complaint.
pub(super) fn ports(
    value: &Value<'_>,
    key: &str,
    wanted: &str,
    mistakes: &mut Mistakes<'_>,
) -> Option<RangeInclusive<u16>> {
    let text = match value.get_ref() {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.to_string(),
        other => {
            mistakes.error(value.span(), is_a(key, other), wanted);
            return None;
        }
    };
    let (first, last) = text.split_once('-').unwrap_or((&text, &text));
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Some(first..=last),
        (Some(first), Some(last)) => {
            let found = format!("`{key}` {text:?} runs backwards");
            mistakes.error(value.span(), found, format!("\"{last}-{first}\""));
            None
        }
        _ => {
            mistakes.error(value.span(), format!("`{key}` is {text:?}"), wanted);
            None
        }
    }
}

/// Why `rule` can never match behind `earlier`, as far as that shows.
fn never_matches(rule: &Rule, earlier: &[Rule]) -> Option<String> {
    if let Some(prefix) = rule.destination
        && !reaches_adapter(prefix)
    {
        return Some(format!("the kernel's own routes carry {prefix}"));
    }
    let is_rip = |ports: &Option<RangeInclusive<u16>>| {
        ports.as_ref().is_some_and(|ports| is_within(ports, &RIP_PORTS))
    };
    if rule.protocol == Some(UDP) && (is_rip(&rule.ports) || is_rip(&rule.local_ports)) {
        return Some("RIP, udp 520 and 521, is \"physical\" before any rule".to_owned());
    }
    let mut covering: Vec<u32> = Vec::new();
    for family in Family::BOTH.into_iter().filter(|family| rule.is_for(*family)) {
        covering.push(earlier.iter().find(|other| covers(other, rule, family))?.line);
    }
    covering.dedup();
    let rules: Vec<String> =
        covering.iter().map(|line| format!("the rule of line {line}")).collect();
    Some(format!("taken whole by {}", rules.join(" and ")))
}

/// Does any packet towards `prefix` reach the adapter? Multicast, broadcast, link-local and loopback stay
/// with the kernel's routes.
fn reaches_adapter(prefix: Prefix) -> bool {
    let address = prefix.address();
    let is_kernels = match address {
        IpAddr::V4(a) => {
            (a.is_multicast() && prefix.length() >= 4)
                || a.is_broadcast()
                || (a.is_loopback() && prefix.length() >= 8)
        }
        IpAddr::V6(a) => {
            (a.is_multicast() && prefix.length() >= 8)
                || (is_link_local(address) && prefix.length() >= 10)
                || a.is_loopback() && prefix.length() == 128
        }
    };
    !is_kernels
}

/// Does `wide` match every packet of `family` that `narrow` matches?
fn covers(wide: &Rule, narrow: &Rule, family: Family) -> bool {
    let destination = narrow.destination.unwrap_or_else(|| Prefix::default_route(family));
    wide.is_for(family)
        && (wide.protocol.is_none() || wide.protocol == narrow.protocol)
        && wide.destination.is_none_or(|prefix| {
            prefix.length() <= destination.length() && prefix.contains(destination.address())
        })
        && are_within(&narrow.ports, &wide.ports)
        && are_within(&narrow.local_ports, &wide.local_ports)
        // Without a local port a rule does not speak of what a UDP server answers.
        && (narrow.protocol != Some(UDP)
            || narrow.local_ports.is_none()
            || wide.local_ports.is_some())
        && (wide.user.is_none() || wide.user == narrow.user)
        && wide.mark.is_none_or(|wide| narrow.mark.is_some_and(|narrow| holds(wide, narrow)))
        && wide.cgroup.as_ref().is_none_or(|wide| {
            narrow.cgroup.as_ref().is_some_and(|narrow| is_at_or_below(narrow, wide))
        })
}

/// Is every mark of `narrow` one of `wide`?
fn holds(wide: Mark, narrow: Mark) -> bool {
    narrow.mask & wide.mask == wide.mask && wide.contains(narrow.value)
}

fn are_within(narrow: &Option<RangeInclusive<u16>>, wide: &Option<RangeInclusive<u16>>) -> bool {
    match (narrow, wide) {
        (_, None) => true,
        (None, Some(wide)) => *wide.start() <= 1 && *wide.end() == u16::MAX,
        (Some(narrow), Some(wide)) => is_within(narrow, wide),
    }
}

fn is_within(narrow: &RangeInclusive<u16>, wide: &RangeInclusive<u16>) -> bool {
    wide.start() <= narrow.start() && narrow.end() <= wide.end()
}
