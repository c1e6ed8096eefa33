//! First match wins, whoever applies the rules: random rules and packets, once through the policy rules that
//! are handed to the kernel and then FIG. 4 on what came, once by looking at the rules in their order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use etherparse::PacketBuilder;
use proptest::prelude::*;
use proptest::sample::select;
use vipa::config::Config;
use vipa::forward::applies::{Applies, applies};
use vipa::forward::rule::{Mark, Rule, Target};
use vipa::forward::socket::{Socket, SocketFacts};
use vipa::forward::source::{Decision, SourcePolicy};
use vipa::link::MAIN_TABLE;
use vipa::link::plan::rules::{self, Action, Around, default_vipa, tables};
use vipa::wire::ip::{Family, ICMP, ICMPV6, TCP, UDP};
use vipa::wire::packet::Headers;

const SCTP: u8 = 132;
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32768..=65535;

fn vipas() -> Vec<IpAddr> {
    ["203.0.113.10", "203.0.113.11", "203.0.113.12", "2001:db8::10", "2001:db8::11"]
        .map(|a| a.parse().expect("an address"))
        .to_vec()
}

/// What an application sends from a socket that named no source.
#[derive(Clone, Debug)]
struct Sent {
    destination: IpAddr,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    socket: SocketFacts,
}

/// What carries it: a VIPA, or the address of a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carried {
    Vipa(IpAddr),
    Physical,
}

impl Sent {
    fn family(&self) -> Family {
        Family::of(self.destination)
    }

    fn headers(&self, source: IpAddr) -> Headers {
        let mut bytes = Vec::new();
        let (from, to) = (self.source_port, self.destination_port);
        let step = match (source, self.destination) {
            (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 9),
            (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 9),
            _ => panic!("one family"),
        };
        match (self.protocol, self.family()) {
            (TCP, _) => step.tcp(from, to, 1, 1).syn().write(&mut bytes, b""),
            (UDP, _) => step.udp(from, to).write(&mut bytes, b""),
            (ICMP, Family::V4) => step.icmpv4_echo_request(1, 1).write(&mut bytes, b""),
            (ICMPV6, Family::V6) => step.icmpv6_echo_request(1, 1).write(&mut bytes, b""),
            // Of SCTP that is an INIT.
            (protocol, _) => {
                step.write(&mut bytes, protocol.into(), &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
            }
        }
        .expect("a packet");
        Headers::parse(&bytes).expect("headers")
    }
}

fn config(rules: Vec<Rule>, sourcevipa: bool) -> Config {
    let vipas = vipas().iter().map(IpAddr::to_string).collect::<Vec<_>>();
    let text =
        format!("[virtual]\nname = \"vipa0\"\naddresses = {vipas:?}\n[[nic]]\nname = \"eth1\"\n");
    let mut config = Config::parse(&text, Path::new("vipa.toml")).expect("it is right").0;
    config.source.rules = rules;
    config.source.sourcevipa = sourcevipa;
    config
}

/// What main knows of the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Main {
    Route,
    ForeignDefault,
    Nothing,
}

/// The source that the kernel's policy rules give, as its lookup goes: no source, no device.
fn by_kernel(rules: &[rules::Rule], config: &Config, sent: &Sent, main: Main) -> Carried {
    let within = |ports: &Option<std::ops::RangeInclusive<u16>>, port: u16| {
        ports.as_ref().is_none_or(|ports| ports.contains(&port))
    };
    // A TCP socket has no port yet, other protocols have none.
    let source_port = if sent.protocol == UDP { sent.source_port } else { 0 };
    let destination_port =
        if [TCP, UDP].contains(&sent.protocol) { sent.destination_port } else { 0 };
    let mut from = 0;
    let mut in_order: Vec<&rules::Rule> = rules.iter().collect();
    in_order.sort_by_key(|rule| rule.preference);
    for rule in in_order {
        let is_sourceless = match (rule.source, sent.family()) {
            (None, _) => true,
            (Some(prefix), Family::V4) => prefix.contains(Ipv4Addr::UNSPECIFIED.into()),
            (Some(_), Family::V6) => false,
        };
        let is_match = rule.preference >= from
            && rule.family == sent.family()
            && is_sourceless
            && rule.oif.is_none()
            && rule.destination.is_none_or(|prefix| prefix.contains(sent.destination))
            && rule.protocol.is_none_or(|protocol| protocol == sent.protocol)
            && within(&rule.source_ports, source_port)
            && within(&rule.destination_ports, destination_port)
            && rule.mark.is_none_or(|mark| sent.socket.mark & mark.mask == mark.value)
            && rule.user.is_none_or(|user| user == sent.socket.user);
        if !is_match {
            continue;
        }
        match rule.action {
            Action::Goto(to) => from = to,
            Action::Lookup(MAIN_TABLE) => match (main, rule.suppressed) {
                (Main::Route, _) => return Carried::Physical,
                (Main::ForeignDefault, None) => panic!("by a device that is no NIC"),
                _ => {}
            },
            Action::Lookup(table) => {
                let of_family =
                    |(t, vipa): &&(u32, IpAddr)| *t == table && Family::of(*vipa) == sent.family();
                let tables = tables(config);
                return Carried::Vipa(tables.iter().find(of_family).expect("its table").1);
            }
            Action::Nop | Action::Other(_) => {}
        }
    }
    Carried::Physical // main's turn
}

fn policy(config: &Config, by: Vec<Applies>, can_ask: bool) -> SourcePolicy {
    let default = |family| default_vipa(config, family);
    SourcePolicy {
        sourcevipa: config.source.sourcevipa,
        vipas: config.adapter.addresses.clone(),
        default_v4: default(Family::V4).map(|a| match a {
            IpAddr::V4(a) => a,
            IpAddr::V6(_) => panic!("IPv4"),
        }),
        default_v6: default(Family::V6).map(|a| match a {
            IpAddr::V6(a) => a,
            IpAddr::V4(_) => panic!("IPv6"),
        }),
        rules: config.source.rules.clone(),
        applies: by,
        can_ask,
        ports: (61000..=65535).collect(),
        ephemeral: Some(EPHEMERAL),
        is_bound_forwarded: false,
    }
}

/// FIG. 4 on a packet with `source`; the socket is asked where that is wanted.
fn by_forwarder(policy: &SourcePolicy, sent: &Sent, source: IpAddr) -> Carried {
    let headers = sent.headers(source);
    let decision = match policy.decide(&headers, false, &Socket::Unasked) {
        Decision::Ask => policy.decide(&headers, false, &Socket::Known(sent.socket.clone())),
        decision => decision,
    };
    match decision {
        Decision::Ask => panic!("it was answered"),
        Decision::Keep(_) => Carried::Vipa(source),
        Decision::Vipa(address, _) => Carried::Vipa(address),
        Decision::Physical(_) => Carried::Physical,
    }
}

fn both_ways(config: &Config, sent: &Sent, main: Main) -> Carried {
    let by = applies(&config.source.rules, false);
    let foreign_defaults = match main {
        Main::ForeignDefault => Family::BOTH.to_vec(),
        _ => Vec::new(),
    };
    let around = Around {
        nic_addresses: Vec::new(),
        ephemeral: Some(EPHEMERAL),
        foreign_defaults,
        ..Around::default()
    };
    match by_kernel(&rules::rules(config, &around), config, sent, main) {
        Carried::Physical => Carried::Physical,
        Carried::Vipa(vipa) => by_forwarder(&policy(config, by, true), sent, vipa),
    }
}

/// The rules in their order, with the socket known, and nobody before the forwarder.
fn in_order(config: &Config, sent: &Sent) -> Carried {
    let default = default_vipa(config, sent.family()).expect("both families have VIPAs");
    let by_nobody = policy(config, Vec::new(), true);
    let headers = sent.headers(default);
    match by_nobody.decide(&headers, false, &Socket::Known(sent.socket.clone())) {
        Decision::Ask => panic!("it is known"),
        Decision::Keep(_) => Carried::Vipa(default),
        Decision::Vipa(address, _) => Carried::Vipa(address),
        Decision::Physical(_) => Carried::Physical,
    }
}

fn maybe<T: Clone + std::fmt::Debug + 'static>(
    weight: f64,
    values: Vec<T>,
) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(weight, select(values))
}

fn a_rule() -> impl Strategy<Value = Rule> {
    let prefixes = ["10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "2001:db8:1::/48", "::/0"];
    let prefixes = prefixes.map(|p| p.parse().expect("a prefix")).to_vec();
    let mut targets: Vec<Target> = vipas().into_iter().map(Target::Vipa).collect();
    targets.extend([Target::Physical, Target::Vipa(vipas()[0])]);
    (
        maybe(0.6, vec![TCP, UDP, UDP, ICMP]),
        maybe(0.4, prefixes),
        maybe(0.3, vec![53..=53, 50..=60, 443..=443, 519..=521, 60..=65535]),
        maybe(0.2, vec![5060..=5060, 40000..=40001]),
        maybe(0.25, vec![Mark { value: 1, mask: u32::MAX }, Mark { value: 1, mask: 1 }]),
        maybe(0.25, vec![0, 26]),
        maybe(0.15, vec!["a".to_owned(), "a/b".to_owned()]),
        proptest::bool::weighted(0.2),
        select(targets),
    )
        .prop_map(|(protocol, destination, ports, local, mark, user, cgroup, told, target)| {
            let has_ports = matches!(protocol, Some(TCP | UDP));
            Rule {
                protocol,
                destination,
                ports: ports.filter(|_| has_ports),
                local_ports: local.filter(|_| has_ports),
                mark,
                user,
                cgroup,
                is_for_forwarder: told,
                target,
                line: 1,
            }
        })
}

fn a_packet() -> impl Strategy<Value = Sent> {
    let v6 = |last| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last));
    let to = vec![
        IpAddr::from([10, 1, 0, 1]),
        [10, 2, 0, 1].into(),
        [10, 3, 0, 1].into(),
        [192, 0, 2, 1].into(),
        v6(1),
        v6(2),
    ];
    (
        select(to),
        select(vec![TCP, UDP, UDP, ICMP, SCTP]),
        select(vec![40000, 40001, 50000, 5060, 53, 520, 65535]),
        select(vec![53, 55, 443, 520, 5060, 65535]),
        select(vec![0, 1, 3]),
        select(vec![0, 26, 27]),
        maybe(0.6, vec!["a", "a/b", "ab"]),
    )
        .prop_map(
            |(destination, protocol, source_port, destination_port, mark, user, cgroup)| {
                let is_v6 = destination.is_ipv6() && protocol == ICMP;
                Sent {
                    destination,
                    protocol: if is_v6 { ICMPV6 } else { protocol },
                    source_port,
                    destination_port,
                    socket: SocketFacts { user, mark, cgroup: cgroup.map(Into::into) },
                }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8_000, ..ProptestConfig::default() })]

    #[test]
    fn the_first_match_wins_whoever_applies_the_rules(
        rules in proptest::collection::vec(a_rule(), 1..7),
        sent in a_packet(),
        main in select(vec![Main::Route, Main::ForeignDefault, Main::Nothing]),
    ) {
        let config = config(rules, true);
        prop_assert_eq!(both_ways(&config, &sent, main), in_order(&config, &sent));
    }

    /// Whoever leaves a source to the kernel's own routes is not asked; what a rule yields still holds.
    #[test]
    fn without_sourcevipa_the_first_match_wins_as_well(
        rules in proptest::collection::vec(a_rule(), 1..7),
        sent in a_packet(),
    ) {
        // What a TCP socket gets as its port by itself leads nobody in: the kernel's lookup comes before it.
        let has_port = |rule: &Rule| rule.protocol == Some(TCP) && rule.local_ports.is_some();
        let rules = rules.into_iter().filter(|rule| !has_port(rule)).collect();
        let config = config(rules, false);
        let wanted = in_order(&config, &sent);
        let got = both_ways(&config, &sent, Main::Route);
        // Answers of servers keep the kernel's own source, and with them what no policy rule can name.
        let is_clients = |port| EPHEMERAL.contains(&port) && port != u16::MAX;
        let is_server = sent.protocol == UDP && !is_clients(sent.source_port);
        prop_assert!(got == wanted || is_server && got == Carried::Physical, "{got:?} {wanted:?}");
    }
}

/// The generators reach what the property is about: a test that compares nothing proves nothing.
#[test]
fn the_random_rules_are_applied_by_both() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let rules = proptest::collection::vec(a_rule(), 2..7);
    let (mut kernel, mut forwarder, mut differ) = (0, 0, 0);
    for _ in 0..500 {
        let rules = rules.new_tree(&mut runner).expect("rules").current();
        let sent = a_packet().new_tree(&mut runner).expect("a packet").current();
        let by = applies(&rules, false);
        kernel += by.iter().filter(|by| by.is_by_kernel()).count();
        forwarder += by.iter().filter(|by| !by.is_by_kernel()).count();
        let default = default_vipa(&config(Vec::new(), true), sent.family()).expect("a VIPA");
        differ += usize::from(in_order(&config(rules, true), &sent) != Carried::Vipa(default));
    }
    assert!(kernel > 300 && forwarder > 300 && differ > 100, "{kernel} {forwarder} {differ}");
}
