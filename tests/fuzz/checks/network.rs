//! A host with three NICs of different MTUs, rules of every kind, and workers: what the pipeline runs in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vipa::forward::applies::applies;
use vipa::forward::claims::Claims;
use vipa::forward::flow::{FlowTable, Shape};
use vipa::forward::pipeline::State;
use vipa::forward::preferred::{
    Choice, Fate, Mode, PreferredTable, Server, ServerCounters, ServerId, Service, ServiceId,
    Source,
};
use vipa::forward::route::{NextHop, Route, RouteTable};
use vipa::forward::rule::{Rule, Target};
use vipa::forward::source::SourcePolicy;
use vipa::forward::view::{NetView, NicId, NicState, NicView, WorkerId};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::ip;

use super::input::Input;
use super::packets::ADDRESSES;

pub(crate) const MTUS: [u32; 3] = [1500, 1280, 600];

/// Workers, each with a small flow table.
pub(crate) fn states(input: &mut Input<'_>) -> Vec<State> {
    let (workers, flows) = (input.pick(&[1, 1, 2, 3]), input.pick(&[16, 4, 1, 64]));
    (0..workers)
        .map(|number| {
            let (flows, torn) =
                FlowTable::adopt(words(number, flows), Shape::both(flows as u32), 7);
            assert_eq!(torn, 0);
            State::new(flows, WorkerId(number), workers)
        })
        .collect()
}

/// Room for a table of `flows` flows, all zero: made once for each number and size, and used again.
pub(crate) fn words(number: u8, flows: usize) -> &'static [AtomicU64] {
    // One thread at a time: checks run one after the other.
    type Made = BTreeMap<(u8, usize), &'static [AtomicU64]>;
    static MADE: Mutex<Made> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().expect("no check goes on after a panic");
    let words = *made.entry((number, flows)).or_insert_with(|| {
        (0..Shape::both(flows as u32).words()).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
    });
    words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    words
}

/// The network, and what is served in it.
pub(crate) fn view(input: &mut Input<'_>) -> (NetView, PreferredTable) {
    let (policy, around) = (input.byte(), input.byte());
    let preferred = preferred(around);
    let [default, second] = [ADDRESSES[0], ADDRESSES[1]];
    let has_v6 = policy & 4 == 0;
    let vipas = [default.0.into(), second.0.into(), default.1.into(), second.1.into()];
    let mut view = NetView {
        generation: 1,
        nics: nics(around),
        routes: routes(),
        neighbours: neighbours().collect(),
        claims: Claims::default(),
        source: SourcePolicy {
            sourcevipa: policy & 1 == 0,
            vipas: vipas[..if has_v6 { 4 } else { 2 }].to_vec(),
            default_v4: Some(default.0.into()),
            default_v6: has_v6.then(|| default.1.into()),
            rules: rules(has_v6),
            applies: applies(&rules(has_v6), policy & 2 != 0),
            can_ask: policy & 4 != 0,
            ports: (61000..61000 + u16::from(policy >> 4)).collect(),
            ephemeral: (policy & 8 == 0).then_some(32768..=60999),
            is_bound_forwarded: policy & 2 != 0,
        },
    };
    if !preferred.is_empty() {
        let nics = view.nics.iter().flat_map(|nic| nic.addresses.iter().map(|(a, _)| *a));
        let mut owned: Vec<IpAddr> = nics
            .chain([default.0.into(), default.1.into()])
            .chain(view.owned_addresses())
            .collect();
        owned.sort_unstable();
        owned.dedup();
        view.claims.owned = owned;
    }
    (view, preferred)
}

/// Where a program of this host serves.
const HERE: u16 = 5555;

/// What servers a service has: on the link, behind a gateway, here.
fn servers(is_v6: bool, mode: &Mode) -> Vec<(IpAddr, Option<u16>, bool)> {
    let of = |at: usize| match ADDRESSES[at] {
        (_, six) if is_v6 => IpAddr::from(six),
        (four, _) => IpAddr::from(four),
    };
    let port = Some(HERE).filter(|_| *mode != Mode::Direct);
    let on_link = if is_v6 { gateway(1, true) } else { of(6) };
    let here = (of(1), Some(HERE), true);
    let others = [(on_link, port, false), (of(5), port, false)];
    if *mode == Mode::Direct { others.to_vec() } else { [others.as_slice(), &[here]].concat() }
}

/// Two services of each family on the first VIPA, in a mode that bits 3 to 5 of `around` name; 0: none.
pub(crate) fn preferred(around: u8) -> PreferredTable {
    let second = |is_v6: bool| match ADDRESSES[1] {
        (_, six) if is_v6 => IpAddr::from(six),
        (four, _) => IpAddr::from(four),
    };
    let mode = |is_v6| match around >> 3 & 7 {
        1 | 2 => {
            let ports = Some((61000..61003).collect());
            Mode::Nat { sources: [Source { address: second(is_v6), ports }].into() }
        }
        3 | 4 => {
            let default = ADDRESSES[0];
            let address = if is_v6 { default.1.into() } else { default.0.into() };
            Mode::Nat { sources: [Source { address, ports: None }].into() }
        }
        5 => Mode::Nat { sources: [].into() },
        _ => Mode::Direct,
    };
    if around >> 3 & 7 == 0 {
        return PreferredTable::default();
    }
    let (mut services, mut all) = (Vec::new(), Vec::new());
    for (is_v6, protocol, ports) in [
        (false, ip::TCP, 25..=53),
        (false, ip::UDP, 53..=53),
        (true, ip::TCP, 25..=53),
        (true, ip::UDP, 1..=u16::MAX),
    ] {
        let id = ServiceId(services.len() as u16);
        let vipa = ADDRESSES[0];
        let mode = mode(is_v6);
        all.extend(servers(is_v6, &mode).into_iter().map(|(address, port, is_local)| {
            let counters = Arc::new(ServerCounters::new(3));
            Some(Server { service: id, address, port, is_local, fate: Fate::Kept, counters })
        }));
        services.push(Some(Service {
            name: "fuzzed".into(),
            address: if is_v6 { vipa.1.into() } else { vipa.0.into() },
            ports,
            protocol,
            mode,
            choice: Choice::Wait,
        }));
    }
    let mut table = PreferredTable::new(services, all);
    choose(&mut table, around);
    table
}

/// Each service's choice, and what becomes of its servers' connections, by bits 3 to 7 of `around`.
pub(crate) fn choose(table: &mut PreferredTable, around: u8) {
    let services: Vec<ServiceId> = table.services().map(|(id, _)| id).collect();
    let servers: Vec<(ServerId, ServiceId)> = (0..16)
        .map(ServerId)
        .filter_map(|id| table.server(id).map(|server| (id, server.service)))
        .collect();
    for service in services {
        let own: Vec<ServerId> =
            servers.iter().filter(|(_, of)| *of == service).map(|(id, _)| *id).collect();
        let choice = match around >> 6 {
            0 => Choice::Weighted(own.as_slice().into()),
            1 => Choice::Preferred(own[0]),
            2 => Choice::Preferred(own[own.len() - 1]),
            _ if around & 8 == 0 => Choice::Refuse,
            _ => Choice::Preferred(own[own.len() / 2]),
        };
        table.set_choice(service, choice);
    }
    for (at, (server, _)) in servers.iter().enumerate() {
        let fate = match around >> 3 & 7 {
            6 if at % 2 == 0 => Fate::Reset,
            7 if at % 2 == 1 => Fate::Reselect,
            _ => Fate::Kept,
        };
        table.set_fate(*server, fate);
    }
}

/// Those whose bits are set in `dead` carry nothing.
pub(crate) fn nics(dead: u8) -> Box<[NicView]> {
    (0..3).map(|n| nic(n, dead & (1 << n) == 0)).collect()
}

fn nic(number: u8, is_live: bool) -> NicView {
    NicView {
        name: format!("eth{number}"),
        ifindex: u32::from(number) + 1,
        mac: MacAddr([2, 0, 0, 0, 0, number]),
        mtu: MTUS[usize::from(number)],
        weight: 1 + u16::from(number),
        metric: u32::from(number == 2),
        xdp: None,
        is_live,
        state: if is_live { NicState::Live } else { NicState::NoCarrier },
        addresses: vec![
            (IpAddr::from([10, number, 1, 2]), 24),
            (IpAddr::from([0xfd00, u16::from(number), 0, 0, 0, 0, 0, 2]), 64),
        ],
    }
}

fn gateway(number: u8, is_v6: bool) -> IpAddr {
    if is_v6 {
        IpAddr::from([0xfd00, u16::from(number), 0, 0, 0, 0, 0, 1])
    } else {
        IpAddr::from([10, number, 1, 1])
    }
}

fn routes() -> RouteTable {
    let route = |prefix: &str, next_hops: Vec<NextHop>| Route {
        prefix: prefix.parse().expect("a prefix"),
        next_hops,
    };
    let all = |is_v6: bool| {
        (0..3)
            .map(|n| NextHop { nic: NicId(n), gateway: Some(gateway(n, is_v6)) })
            .collect::<Vec<_>>()
    };
    RouteTable::new(vec![
        route("0.0.0.0/0", all(false)),
        route("::/0", all(true)),
        route("172.17.0.0/16", vec![]),
        route("10.50.0.0/16", vec![NextHop { nic: NicId(1), gateway: None }]),
        // IPv4 by an IPv6 gateway (RFC 8950).
        route("10.30.0.0/16", vec![NextHop { nic: NicId(2), gateway: Some(gateway(2, true)) }]),
    ])
}

/// One next hop is not resolved, one destination on a link is.
fn neighbours() -> impl Iterator<Item = ((NicId, IpAddr), MacAddr)> {
    let mac = |n| MacAddr([6, 0, 0, 0, 0, n]);
    [
        ((NicId(0), gateway(0, false)), mac(0)),
        ((NicId(0), gateway(0, true)), mac(0)),
        ((NicId(1), gateway(1, false)), mac(1)),
        ((NicId(2), gateway(2, false)), mac(2)),
        ((NicId(2), gateway(2, true)), mac(2)),
        ((NicId(1), IpAddr::from([10, 50, 0, 1])), mac(9)),
    ]
    .into_iter()
}

fn rules(has_v6: bool) -> Vec<Rule> {
    let rule = |protocol: Option<u8>, destination: Option<&str>, target: Target| Rule {
        protocol,
        destination: destination.map(|text| text.parse().expect("a prefix")),
        target,
        ..Rule::default()
    };
    let second = Target::Vipa(ADDRESSES[1].0.into());
    let mut rules = vec![
        Rule { ports: Some(25..=25), ..rule(Some(ip::TCP), None, Target::Physical) },
        Rule { local_ports: Some(5060..=5060), ..rule(Some(ip::UDP), None, second) },
        Rule { ports: Some(5000..=6000), ..rule(Some(ip::UDP), None, Target::Physical) },
        rule(Some(ip::ICMP), Some("10.30.0.0/16"), Target::Physical),
        rule(Some(ip::SCTP), Some("10.50.0.0/16"), Target::Physical),
        Rule { user: Some(1000), ..rule(None, Some("10.60.0.0/16"), second) },
        Rule { cgroup: Some("a".to_owned()), ..rule(None, Some("10.61.0.0/16"), second) },
        rule(None, Some("10.20.0.0/16"), second),
    ];
    if has_v6 {
        let second = Target::Vipa(ADDRESSES[1].1.into());
        rules.push(rule(None, Some("2001:db8::99/128"), second));
        rules.push(rule(Some(ip::ICMP), Some("2001:db8::98/128"), Target::Physical));
    }
    rules
}
