//! `[[service]]`: virtual services, their servers, and what must not be the same twice.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use toml::de::DeValue;

use super::mistake::Mistakes;
use super::reader::{Span, Table, Value, is_a, string, strings};
use super::{address, status};
use crate::balance::policy::{NoScore, Policy};
use crate::balance::score::Score;
use crate::balance::service::{Choose, Mode, OnDeath, Server, Settings, WhenNone, parse_endpoint};
use crate::balance::status::Role;
use crate::forward::rule::{Rule, Target};
use crate::wire::ip::{Family, Prefix, TCP, UDP};

/// Services of a configuration, and servers of a service.
const MOST: usize = 1024;
/// Nat gives flows the ports from here on.
const UNPRIVILEGED: u16 = 1024;
const HOUR: Duration = Duration::from_secs(3600);

/// A service, and where that of it stands which is compared with others.
struct Read {
    settings: Settings,
    name: Span,
    address: Span,
    sources: Vec<Span>,
    servers: Vec<Span>,
    sorry: Option<Span>,
}

/// The services, in order. `rules` are those of `[source]`.
pub(super) fn read(
    value: Option<&Value<'_>>,
    vipas: &[IpAddr],
    rules: &[Rule],
    mistakes: &mut Mistakes<'_>,
) -> Vec<Settings> {
    let tables = Table::all_of(value, "[[service]]", mistakes);
    if let Some(value) = value
        && tables.len() > MOST
    {
        let found = format!("there are {} [[service]]", tables.len());
        mistakes.error(value.span(), found, format!("at most {MOST}"));
    }
    let read = tables.into_iter().take(MOST);
    let read: Vec<Read> = read.filter_map(|table| read_service(table, vipas, mistakes)).collect();
    check_names(&read, mistakes);
    check_overlaps(&read, mistakes);
    check_servers(&read, vipas, mistakes);
    check_sources(&read, vipas, rules, mistakes);
    check_capacities(&read, mistakes);
    read.into_iter().map(|read| read.settings).collect()
}

fn read_service(
    mut table: Table<'_>,
    vipas: &[IpAddr],
    mistakes: &mut Mistakes<'_>,
) -> Option<Read> {
    let wanted = "the service's name, such as \"web\"";
    let name = read_name(&mut table, wanted, mistakes);
    let address = read_address(&mut table, vipas, mistakes);
    let protocol =
        if table.one_of("protocol", &["tcp", "udp"], mistakes) == "udp" { UDP } else { TCP };
    let (mode, sources) = read_mode(&mut table, mistakes);
    let statuses = read_statuses(&mut table, mistakes);
    let (servers, server_spans) = read_servers(&mut table, vipas, mistakes);
    let policy = read_policy(&mut table, &statuses, &servers, mistakes);
    let (when_none, sorry) = read_when_none(&mut table, mistakes);
    let count = |table: &mut Table<'_>, key, default, mistakes: &mut Mistakes<'_>| {
        table.integer(key, 1..=100, default, mistakes)
    };
    let is_weighted = table.one_of("choose", &["preferred", "weighted"], mistakes) == "weighted";
    let is_reselected = table.one_of("on-death", &["reset", "reselect"], mistakes) == "reselect";
    let hysteresis = read_share(&mut table, "hysteresis", 0.1, mistakes);
    let (rise, fall) =
        (count(&mut table, "rise", 2, mistakes), count(&mut table, "fall", 3, mistakes));
    let slow_start = table.duration("slow-start", Duration::ZERO..=HOUR, Duration::ZERO, mistakes);
    let (name_at, address_at) = (table.key_span("name"), table.key_span("address"));
    table.finish(mistakes);
    let (address, ports) = address?;
    let settings = Settings {
        name: name?,
        address,
        ports,
        protocol,
        mode,
        policy: policy?,
        choose: if is_weighted { Choose::Weighted } else { Choose::Preferred },
        hysteresis,
        when_none,
        on_death: if is_reselected { OnDeath::Reselect } else { OnDeath::Reset },
        rise,
        fall,
        slow_start,
        statuses,
        servers,
    };
    Some(Read {
        settings,
        name: name_at,
        address: address_at,
        sources,
        servers: server_spans,
        sorry,
    })
}

fn read_statuses(
    table: &mut Table<'_>,
    mistakes: &mut Mistakes<'_>,
) -> Vec<crate::balance::status::Settings> {
    if table.get("status").is_none() {
        let found = "the service has no [[service.status]]";
        let wanted = "at least one: kind = \"tcp\" asks whether a server lives";
        mistakes.error(table.span(), found, wanted);
    }
    status::read(table.get("status"), mistakes)
}

/// What names services and servers on the command line.
fn read_name(table: &mut Table<'_>, wanted: &str, mistakes: &mut Mistakes<'_>) -> Option<Arc<str>> {
    let value = table.required("name", wanted, mistakes)?;
    let name = string(value, "name", wanted, mistakes)?;
    if let Err(found) = crate::balance::service::check_name(name) {
        let wanted = "1 to 64 letters, digits, `-`, `_` and `.`";
        mistakes.error(value.span(), found, wanted);
        return None;
    }
    Some(name.into())
}

fn read_address(
    table: &mut Table<'_>,
    vipas: &[IpAddr],
    mistakes: &mut Mistakes<'_>,
) -> Option<(IpAddr, RangeInclusive<u16>)> {
    let wanted = "a VIPA and its port, such as \"203.0.113.10:80\" or \"[2001:db8::10]:443\", a range of ports (\":1000-2000\") or all of them (\":*\")";
    let value = table.required("address", wanted, mistakes)?;
    let text = string(value, "address", wanted, mistakes)?;
    let parsed = text.rsplit_once(':').and_then(|(address, ports)| {
        let inner = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = match inner {
            Some(inner) => inner.parse().ok().map(IpAddr::V6),
            None => address.parse().ok().map(IpAddr::V4),
        };
        let ports = if ports == "*" { Some(1..=u16::MAX) } else { parse_ports(ports) };
        Some((address?, ports?))
    });
    match parsed {
        Some((address, _)) if !vipas.contains(&address) => {
            let found = format!("{address} is no VIPA");
            mistakes.error(value.span(), found, "one of [virtual] addresses");
            None
        }
        Some(parsed) => Some(parsed),
        None => {
            mistakes.error(value.span(), format!("`address` is {text:?}"), wanted);
            None
        }
    }
}

/// `"80"` or `"1000-2000"`.
fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(first..=last)
}

/// The mode, and where its sources stand.
fn read_mode(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> (Mode, Vec<Span>) {
    let mode = table.one_of("mode", &["nat", "direct", "tunnel"], mistakes);
    if mode == "tunnel" {
        let found = "`mode` \"tunnel\" is not in this version of vipa";
        mistakes.error(table.key_span("mode"), found, "\"nat\" or \"direct\"");
    }
    let keeps_client = table.boolean("keep-client", false, mistakes);
    let wanted = "a list of VIPAs, such as [\"203.0.113.12\"]";
    let listed = table
        .get("source")
        .map_or(Vec::new(), |value| strings(value, "source", wanted, true, mistakes));
    if mode != "nat" {
        for key in ["source", "keep-client"] {
            if table.get(key).is_some() {
                let found = format!("`{key}` with mode {mode:?}");
                mistakes.error(table.key_span(key), found, "it is for mode = \"nat\"");
            }
        }
        return (Mode::Direct, Vec::new());
    }
    if keeps_client && table.get("source").is_some() {
        let found = "`source` with `keep-client`";
        mistakes.error(
            table.key_span("source"),
            found,
            "one of the two: whose address do servers see?",
        );
    }
    let (mut sources, mut spans) = (Vec::new(), Vec::new());
    for (text, span) in listed {
        let parsed = address::parse(text, address::Place::Vipa, span.clone(), mistakes);
        if let Some(source) = parsed {
            sources.push(source);
            spans.push(span);
        }
    }
    (Mode::Nat { sources, keeps_client }, spans)
}

fn read_servers(
    table: &mut Table<'_>,
    vipas: &[IpAddr],
    mistakes: &mut Mistakes<'_>,
) -> (Vec<Server>, Vec<Span>) {
    let span = table.span();
    let value = table.get("server");
    let tables = Table::all_of(value, "[[service.server]]", mistakes);
    if value.is_none() {
        let why = "until `vipa server add` it has none";
        mistakes.warn(span.clone(), "the service has no [[service.server]]", why);
    }
    if tables.len() > MOST {
        let found = format!("there are {} [[service.server]]", tables.len());
        mistakes.error(span, found, format!("at most {MOST}"));
    }
    let mut names: HashMap<Arc<str>, usize, foldhash::fast::RandomState> = HashMap::default();
    let mut ends: HashMap<(IpAddr, Option<u16>), usize, foldhash::fast::RandomState> =
        HashMap::default();
    let (mut servers, mut spans) = (Vec::new(), Vec::new());
    for mut table in tables.into_iter().take(MOST) {
        let at = table.span();
        let name = read_name(&mut table, "the server's name, such as \"a\"", mistakes);
        let end = read_end(&mut table, "address", mistakes);
        let weight = table.integer("weight", 0..=1000, 1, mistakes) as u16;
        let capacity = read_capacity(&mut table, mistakes);
        for key in ["farm", "agent"] {
            if table.get(key).is_some() {
                let found = format!("`{key}` is not in this version of vipa");
                mistakes.error(table.key_span(key), found, "leave it out");
            }
        }
        table.finish(mistakes);
        if let Some(name) = &name {
            let line = mistakes.line(at.start);
            if let Some(first) = names.insert(name.clone(), line) {
                let wanted = format!("each server once; it stands in line {first}");
                mistakes.error(at.clone(), format!("{name:?} is given twice"), wanted);
            }
        }
        let (Some(name), Some((address, port, span))) = (name, end) else { continue };
        if let Some(first) = ends.insert((address, port), mistakes.line(span.start)) {
            let wanted = format!("each once; it stands in line {first}");
            mistakes.error(span.clone(), "two servers of one address and port", wanted);
        }
        let is_local = vipas.contains(&address);
        let place = mistakes.place(span.start);
        servers.push(Server { name, address, port, is_local, weight, capacity, place });
        spans.push(span);
    }
    (servers, spans)
}

fn read_end(
    table: &mut Table<'_>,
    key: &'static str,
    mistakes: &mut Mistakes<'_>,
) -> Option<(IpAddr, Option<u16>, Span)> {
    let wanted = "a server's address and port, such as \"10.2.0.2:80\" or \"[2001:db8::2]:80\"; without a port: the one that the client asked for";
    let value = table.required(key, wanted, mistakes)?;
    let text = string(value, key, wanted, mistakes)?;
    let Some((address, port)) = parse_endpoint(text) else {
        mistakes.error(value.span(), format!("`{key}` is {text:?}"), wanted);
        return None;
    };
    let inner = address.to_string();
    let address = address::parse(&inner, address::Place::Vipa, value.span(), mistakes)?;
    Some((address, port, value.span()))
}

fn read_capacity(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<f64> {
    let value = table.get("capacity")?;
    let wanted = "a number above 0";
    let number = match value.get_ref() {
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|n| n as f64)
        }
        DeValue::Float(number) => number.as_str().parse().ok(),
        other => {
            mistakes.error(value.span(), is_a("capacity", other), wanted);
            return None;
        }
    };
    let number = number.filter(|number: &f64| number.is_finite() && *number > 0.0);
    if number.is_none() {
        mistakes.error(value.span(), "`capacity` is none", wanted);
    }
    number
}

/// `"10%"` as 0.1.
fn read_share(
    table: &mut Table<'_>,
    key: &'static str,
    default: f64,
    mistakes: &mut Mistakes<'_>,
) -> f64 {
    let Some(value) = table.get(key) else { return default };
    let wanted = "a share from \"0%\" to \"100%\"";
    let Some(text) = string(value, key, wanted, mistakes) else { return default };
    let percent = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    match percent.filter(|percent| (0.0..=100.0).contains(percent)) {
        Some(percent) => percent / 100.0,
        None => {
            mistakes.error(value.span(), format!("`{key}` is {text:?}"), wanted);
            default
        }
    }
}

fn read_when_none(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> (WhenNone, Option<Span>) {
    let Some(value) = table.get("when-none") else { return (WhenNone::Refuse, None) };
    let wanted = "\"refuse\", \"last\", or a server to go to instead, such as \"10.9.9.9:80\"";
    match string(value, "when-none", wanted, mistakes) {
        None | Some("refuse") => (WhenNone::Refuse, None),
        Some("last") => (WhenNone::Last, None),
        Some(text) => match text.parse::<SocketAddr>() {
            Ok(end) if end.port() != 0 => (WhenNone::Sorry(end), Some(value.span())),
            _ => {
                mistakes.error(value.span(), format!("`when-none` is {text:?}"), wanted);
                (WhenNone::Refuse, None)
            }
        },
    }
}

/// `policy` or `score`, of which the service's status objects must tell enough.
fn read_policy(
    table: &mut Table<'_>,
    statuses: &[crate::balance::status::Settings],
    servers: &[Server],
    mistakes: &mut Mistakes<'_>,
) -> Option<Policy> {
    let names = Policy::names();
    let (named, score) = (table.get("policy"), table.get("score"));
    if named.is_some() && score.is_some() {
        let found = "`policy` and `score` in one service";
        mistakes.error(table.key_span("score"), found, "one of the two");
    }
    if let Some(value) = score {
        let wanted =
            "an expression over the service's status objects, such as \"clients * 2 + pending\"";
        let text = string(value, "score", wanted, mistakes)?;
        let names: Vec<&str> = statuses.iter().map(|status| &*status.name).collect();
        return Score::parse(text, &names)
            .map_err(|wrong| {
                let span = mistakes.within(value.span(), text, wrong.at);
                mistakes.error(span, wrong.found, wrong.wanted);
            })
            .map(Policy::Score)
            .ok();
    }
    // The first is the default.
    let name = table.one_of("policy", &names, mistakes);
    let policy = Policy::named(name)?;
    let roles: Vec<Option<Role>> = statuses.iter().map(|status| status.role).collect();
    let stated = servers.iter().all(|server| server.capacity.is_some());
    let span = named.map_or(table.span(), Value::span);
    match policy.fits(&roles, stated) {
        // Of status objects that are missing or wrong has been complained already.
        Err(NoScore::NoRole(role)) if !statuses.is_empty() => {
            let found = format!("policy {name:?} without a status object of the role {role:?}");
            let wanted = format!("a [[service.status]] with role = {role:?}, or another policy");
            mistakes.error(span, found, wanted);
        }
        Err(NoScore::NoValue(_)) => {
            let found = format!("policy {name:?}, and not every server says its `capacity`");
            let wanted = "`capacity` for each, or a [[service.status]] of that role";
            mistakes.error(span, found, wanted);
        }
        _ => {}
    }
    Some(policy)
}

fn check_names(services: &[Read], mistakes: &mut Mistakes<'_>) {
    let mut names: HashMap<&str, usize, foldhash::fast::RandomState> = HashMap::default();
    for service in services {
        let line = mistakes.line(service.name.start);
        if let Some(first) = names.insert(&service.settings.name, line) {
            let wanted = format!("each service once; it stands in line {first}");
            let found = format!("{:?} is given twice", service.settings.name);
            mistakes.error(service.name.clone(), found, wanted);
        }
    }
}

fn check_overlaps(services: &[Read], mistakes: &mut Mistakes<'_>) {
    for (at, service) in services.iter().enumerate() {
        let earlier = services[..at].iter();
        let mut same = earlier.filter(|other| other.settings.overlaps(&service.settings));
        if let Some(other) = same.next() {
            let line = mistakes.line(other.address.start);
            let found = format!(
                "{} and the {} of {:?} overlap",
                service.settings.show_address(),
                other.settings.show_address(),
                other.settings.name
            );
            let wanted = format!("each port for one service; that one stands in line {line}");
            mistakes.error(service.address.clone(), found, wanted);
        }
    }
}

fn check_servers(services: &[Read], vipas: &[IpAddr], mistakes: &mut Mistakes<'_>) {
    let all: Vec<Settings> = services.iter().map(|service| service.settings.clone()).collect();
    for service in services {
        let settings = &service.settings;
        let mut check = |end, span: &Span| {
            if let Err(unfit) = settings.fits(end, &all, vipas) {
                mistakes.error(span.clone(), unfit.found, unfit.wanted);
            }
        };
        for (server, span) in settings.servers.iter().zip(&service.servers) {
            check((server.address, server.port), span);
        }
        if let (WhenNone::Sorry(end), Some(span)) = (settings.when_none, &service.sorry) {
            check((end.ip(), Some(end.port())), span);
        }
    }
}

/// A server of mode direct has the VIPAs itself, and can answer none of them: what this host sends it, and its status
/// objects ask, carries a NIC's address. Behind `rules`, the operator's own.
pub(super) fn rules_for_direct(services: &[Settings], rules: &[Rule]) -> Vec<Rule> {
    let direct = services.iter().filter(|service| matches!(service.mode, Mode::Direct));
    let mut added: Vec<Rule> = Vec::new();
    for server in direct.flat_map(|service| &service.servers) {
        let (line, _) = server.place;
        let rule = Rule {
            destination: Some(Prefix::host(server.address)),
            line: u32::try_from(line).unwrap_or(u32::MAX),
            ..Rule::default()
        };
        let is_there = |other: &Rule| Rule { line: rule.line, ..other.clone() } == rule;
        if !rules.iter().chain(&added).any(is_there) {
            added.push(rule);
        }
    }
    added
}

/// What is stated has to be stated.
fn check_capacities(services: &[Read], mistakes: &mut Mistakes<'_>) {
    for service in services {
        let Some(status) = service.settings.wants_capacity() else { continue };
        let servers = service.settings.servers.iter().zip(&service.servers);
        for (server, span) in servers.filter(|(server, _)| server.capacity.is_none()) {
            let found = format!(
                "the server {:?} states no `capacity`, and that is what the status object {:?} tells (kind = \"fixed\")",
                server.name, status.name
            );
            let wanted = "`capacity` of the server, or `value` of the status object";
            mistakes.error(span.clone(), found, wanted);
        }
    }
}

/// What is given wholly to nat is nobody else's: not the host's, no service's and no server's.
fn check_sources(services: &[Read], vipas: &[IpAddr], rules: &[Rule], mistakes: &mut Mistakes<'_>) {
    for service in services {
        let Mode::Nat { sources, .. } = &service.settings.mode else { continue };
        for (source, span) in sources.iter().zip(&service.sources) {
            if let Some((found, wanted)) = taken(*source, &service.settings, services, vipas, rules)
            {
                mistakes.error(span.clone(), found, wanted);
            }
        }
    }
}

fn taken(
    source: IpAddr,
    settings: &Settings,
    services: &[Read],
    vipas: &[IpAddr],
    rules: &[Rule],
) -> Option<(String, &'static str)> {
    let family = Family::of(source);
    let default = vipas.iter().find(|vipa| Family::of(**vipa) == family);
    if !vipas.contains(&source) {
        return Some((format!("{source} is no VIPA"), "one of [virtual] addresses"));
    }
    if family != Family::of(settings.address) {
        let found = format!("{source} and the service's {} are of two families", settings.address);
        return Some((found, "one family"));
    }
    if default == Some(&source) {
        let found = format!("{source} is the default source of what this host sends");
        return Some((
            found,
            "another VIPA, or no `source`: then [source] ports of this one are taken",
        ));
    }
    if rules.iter().any(|rule| rule.target == Target::Vipa(source)) {
        let found = format!("{source} is what a [[source.rule]] uses");
        return Some((found, "a VIPA that this host sends nothing else from"));
    }
    let all = || services.iter().map(|service| &service.settings);
    if let Some(other) =
        all().find(|other| other.address == source && *other.ports.end() >= UNPRIVILEGED)
    {
        let found =
            format!("{source} has ports of the service {:?}, {}", other.name, other.show_address());
        return Some((found, "a VIPA without services on ports from 1024 on"));
    }
    let is_there = |server: &&Server| {
        server.address == source && server.port.is_none_or(|port| port >= UNPRIVILEGED)
    };
    let server = all().flat_map(|other| &other.servers).find(is_there)?;
    let found = format!("on {source} is the server {:?}", server.name);
    Some((found, "a VIPA without servers on ports from 1024 on"))
}

#[cfg(test)]
mod tests;
