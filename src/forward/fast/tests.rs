//! What goes the short way does what it would do on the long one: the same verdicts, bytes, memory and counts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use etherparse::PacketBuilder;
use proptest::prelude::*;

use crate::forward::claims::Claims;
use crate::forward::flow::{FlowTable, Millis, Shape};
use crate::forward::frame::{Frame, Ingress};
use crate::forward::pipeline::{Sight, State, process_batch, process_one};
use crate::forward::preferred::{
    Choice, Fate, Mode, PreferredTable, Server, ServerCounters, ServerId, Service, ServiceId,
    Source,
};
use crate::forward::route::{NextHop, Route, RouteTable};
use crate::forward::source::{Rule, SourcePolicy, Target};
use crate::forward::verdict::{Verdict, Wait};
use crate::forward::view::{NetView, NicId, NicState, NicView, WorkerId};
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::Family;
use crate::wire::offload::{Csum, Gso, GsoKind, Offload};
use crate::wire::packet::Headers;

const SHAPE: Shape = Shape::both(24);

/// A packet to come.
#[derive(Clone, Debug)]
struct Next {
    what: What,
    flags: u8,
    ttl: u8,
    size: u16,
    /// 0: complete, 1: partial, 2: none (UDP), 3: a super-packet.
    state: u8,
}

#[derive(Clone, Debug)]
enum What {
    /// From a client to a service, or from this host to somebody.
    New {
        is_inbound: bool,
        is_v6: bool,
        is_tcp: bool,
        peer: u8,
        port: u8,
    },
    /// To what was sent: back, or the same once more.
    Follow {
        which: prop::sample::Index,
        is_back: bool,
    },
    /// Not a packet: another view, a death, time.
    View,
    Fate {
        server: u16,
        fate: u8,
    },
    Time {
        ms: u16,
    },
}

/// Now and then more than is looked ahead for at once.
fn batch() -> impl Strategy<Value = Vec<Next>> {
    let few = prop::collection::vec(next(), 1..24);
    let many = prop::collection::vec(next(), super::AHEAD..2 * super::AHEAD + 9);
    prop_oneof![8 => few, 1 => many]
}

fn next() -> impl Strategy<Value = Next> {
    let new = (any::<bool>(), any::<bool>(), any::<bool>(), 0..3u8, 0..5u8).prop_map(
        |(is_inbound, is_v6, is_tcp, peer, port)| What::New {
            is_inbound,
            is_v6,
            is_tcp,
            peer,
            port,
        },
    );
    let follow = (any::<prop::sample::Index>(), any::<bool>())
        .prop_map(|(which, is_back)| What::Follow { which, is_back });
    let what = prop_oneof![
        6 => new,
        12 => follow,
        1 => Just(What::View),
        1 => (0..6u16, 0..3u8).prop_map(|(server, fate)| What::Fate { server, fate }),
        1 => any::<u16>().prop_map(|ms| What::Time { ms }),
    ];
    let flags = prop_oneof![
        3 => Just(0x02u8), 2 => Just(0x12), 8 => Just(0x10), 3 => Just(0x18), 1 => Just(0x11), 1 => Just(0x04), 1 => any::<u8>(),
    ];
    let ttl = prop_oneof![9 => Just(64u8), 1 => 0..3u8];
    (what, flags, ttl, 0..1600u16, 0..4u8).prop_map(|(what, flags, ttl, size, state)| Next {
        what,
        flags,
        ttl,
        size,
        state,
    })
}

fn vipa(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, n).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()).into(),
    }
}

fn far(family: Family, net: u8, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, net, 0, n).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, net.into(), 0, 0, 0, 0, 0, n.into()).into(),
    }
}

/// Ports 80 to 84: nat, keep-client, direct, a server on this host, nobody's; each for TCP and UDP of both families.
fn services() -> PreferredTable {
    let (mut services, mut servers) = (Vec::new(), Vec::new());
    for family in Family::BOTH {
        for protocol in [6, 17] {
            for port in 80..84u16 {
                let id = ServerId(servers.len() as u16);
                let service = ServiceId(services.len() as u16);
                let sources = if port == 80 {
                    vec![Source { address: vipa(family, 20), ports: Some((5000..5040).collect()) }]
                } else {
                    Vec::new()
                };
                services.push(Some(Service {
                    name: format!("s{}", services.len()).into(),
                    address: vipa(family, 10),
                    ports: port..=port,
                    protocol,
                    mode: if port == 82 {
                        Mode::Direct
                    } else {
                        Mode::Nat { sources: sources.into() }
                    },
                    choice: Choice::Preferred(id),
                }));
                let is_local = port == 83;
                servers.push(Some(Server {
                    service,
                    address: if is_local { vipa(family, 11) } else { far(family, 2, port as u8) },
                    port: (port != 82).then_some(8080),
                    is_local,
                    fate: Fate::Kept,
                    counters: Arc::new(ServerCounters::new(1)),
                }));
            }
        }
    }
    PreferredTable::new(services, servers)
}

fn view() -> NetView {
    let nic = |n: u8| NicView {
        name: format!("eth{n}"),
        ifindex: u32::from(n) + 2,
        mac: MacAddr([2, 0, 0, 0, 0, n]),
        mtu: if n == 0 { 1500 } else { 1000 },
        weight: 1,
        metric: 1,
        xdp: None,
        is_live: true,
        state: NicState::Live,
        addresses: vec![(far(Family::V4, n, 250), 24), (far(Family::V6, n, 250), 64)],
    };
    let hops = |family| {
        [0, 1].map(|n| NextHop { nic: NicId(n), gateway: Some(far(family, n, 1)) }).to_vec()
    };
    let route =
        |prefix: &str, next_hops| Route { prefix: prefix.parse().expect("a prefix"), next_hops };
    let on_link = vec![NextHop { nic: NicId(1), gateway: None }];
    let routes = vec![
        route("0.0.0.0/0", hops(Family::V4)),
        route("::/0", hops(Family::V6)),
        route("10.2.0.0/24", on_link.clone()),
        route("fd00:2::/64", on_link),
    ];
    let gateways = Family::BOTH.into_iter().flat_map(|family| {
        [0, 1].map(|n| ((NicId(n), far(family, n, 1)), MacAddr([6, 0, 0, 0, 0, n])))
    });
    let servers = Family::BOTH.into_iter().flat_map(|family| {
        (80..84).map(move |n| ((NicId(1), far(family, 2, n)), MacAddr([8, 0, 0, 0, 0, n])))
    });
    let rule = |address: IpAddr, port: u16| Rule {
        ports: Some(port..=port),
        target: Target::Vipa(address),
        ..Rule::default()
    };
    let physical = Rule { ports: Some(81..=81), ..Rule::default() };
    let source = SourcePolicy {
        sourcevipa: true,
        vipas: Family::BOTH.into_iter().flat_map(|f| [10, 11, 20].map(|n| vipa(f, n))).collect(),
        default_v4: Some(Ipv4Addr::new(203, 0, 113, 10)),
        default_v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10)),
        rules: vec![rule(vipa(Family::V4, 11), 80), rule(vipa(Family::V6, 11), 80), physical],
        ports: (6000..6020).collect(),
        ephemeral: Some(30_000..=60_999),
        ..SourcePolicy::default()
    };
    NetView {
        generation: 1,
        nics: [nic(0), nic(1)].into(),
        routes: RouteTable::new(routes),
        neighbours: gateways.chain(servers).collect(),
        source,
        claims: Claims::default(),
    }
}

/// A forwarder with memory that can be looked at.
struct Forwarder {
    state: State,
    words: &'static [AtomicU64],
    preferred: PreferredTable,
}

impl Forwarder {
    fn new() -> Forwarder {
        let words: Vec<AtomicU64> = (0..SHAPE.words()).map(|_| AtomicU64::new(0)).collect();
        let words: &'static [AtomicU64] = words.leak();
        let table = FlowTable::fresh(words, SHAPE, 7);
        let state = State::new(table, WorkerId(0), 1);
        Forwarder { state, words, preferred: services() }
    }

    fn memory(&self) -> Vec<u64> {
        self.words.iter().map(|word| word.load(Relaxed)).collect()
    }

    fn counts(&self) -> Vec<[u64; 5]> {
        let server = |n| self.preferred.server(ServerId(n));
        (0..16)
            .filter_map(server)
            .map(|server| &server.counters)
            .map(|c| [c.active(), c.created(), c.failed(), c.bytes(), c.packets()])
            .collect()
    }
}

fn packet(from: (IpAddr, u16), to: (IpAddr, u16), is_tcp: bool, next: &Next) -> Vec<u8> {
    let step = match (from.0, to.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), next.ttl),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), next.ttl),
        _ => unreachable!("of one family"),
    };
    let payload = vec![7; usize::from(if next.state == 3 { next.size * 4 } else { next.size })];
    let mut bytes = Vec::new();
    let start = if from.0.is_ipv4() { 20 } else { 40 };
    if is_tcp {
        step.tcp(from.1, to.1, 9, 100).write(&mut bytes, &payload).expect("a segment");
        bytes[start + 8..start + 12].copy_from_slice(&u32::from(next.size).to_be_bytes());
        bytes[start + 13] = next.flags;
    } else {
        step.udp(from.1, to.1).write(&mut bytes, &payload).expect("a datagram");
        if next.state == 2 {
            bytes[start + 6..start + 8].fill(0);
        }
    }
    // What the link pads.
    bytes.resize(bytes.len() + usize::from(next.flags % 3), 0);
    bytes
}

fn offload(packet: &[u8], is_tcp: bool, state: u8) -> Offload {
    let is_v4 = packet[0] >> 4 == 4;
    let start = if is_v4 { 20 } else { 40 };
    let csum = Csum::Partial { start, offset: if is_tcp { 16 } else { 6 } };
    let kind = match (is_tcp, is_v4) {
        (false, _) => GsoKind::Udp,
        (true, true) => GsoKind::Tcp4,
        (true, false) => GsoKind::Tcp6,
    };
    match state {
        1 => Offload { csum, ..Offload::default() },
        3 => Offload { csum, gso: Some(Gso::new(kind, 900)), ..Offload::default() },
        _ => Offload::default(),
    }
}

/// The next packet, what is known of its offload, and where it comes in; `sent` are those that went out, and where.
fn frame(next: &Next, sent: &[(Vec<u8>, Ingress)]) -> Option<(Vec<u8>, Offload, Ingress)> {
    let (from, to, is_tcp, ingress) = match &next.what {
        What::New { is_inbound, is_v6, is_tcp, peer, port } => {
            let family = if *is_v6 { Family::V6 } else { Family::V4 };
            let peer = (far(family, 9, *peer), 40_000 + u16::from(*peer));
            let port = 80 + u16::from(*port);
            if *is_inbound {
                (peer, (vipa(family, 10), port), *is_tcp, Ingress::Nic(NicId(0)))
            } else {
                let own = (vipa(family, 10), 40_000 + u16::from(next.flags % 2));
                (own, (peer.0, port), *is_tcp, Ingress::Tun)
            }
        }
        What::Follow { which, is_back } => {
            if sent.is_empty() {
                return None;
            }
            let (bytes, went) = which.get(sent);
            let headers = Headers::parse(bytes).ok()?;
            let (source, destination) = headers.ports();
            let (a, b) = ((headers.source, source), (headers.destination, destination));
            let is_tcp = headers.protocol == 6;
            if *is_back { (b, a, is_tcp, *went) } else { (a, b, is_tcp, *went) }
        }
        _ => return None,
    };
    let bytes = packet(from, to, is_tcp, next);
    let offload = offload(&bytes, is_tcp, next.state);
    Some((bytes, offload, ingress))
}

proptest! {
    #[test]
    fn the_short_way_does_what_the_long_one_does(
        batches in prop::collection::vec(batch(), 1..12),
    ) {
        let (mut short, mut long) = (Forwarder::new(), Forwarder::new());
        let mut net = view();
        let mut now = Millis(1_000);
        let mut sent: Vec<(Vec<u8>, Ingress)> = Vec::new();
        for batch in batches {
            let mut frames = Vec::new();
            for next in &batch {
                match next.what {
                    What::View => net.generation += 1,
                    What::Fate { server, fate } => {
                        let fate = [Fate::Kept, Fate::Reset, Fate::Reselect][usize::from(fate)];
                        short.preferred.set_fate(ServerId(server), fate);
                        long.preferred.set_fate(ServerId(server), fate);
                    }
                    What::Time { ms } => now.0 += u64::from(ms),
                    _ => frames.extend(frame(next, &sent)),
                }
            }
            let hold = |(bytes, offload, ingress): &(Vec<u8>, Offload, Ingress)| {
                Frame::holding(bytes, *offload, *ingress)
            };
            let mut by_short: Vec<Frame> = frames.iter().map(hold).collect();
            let mut by_long: Vec<Frame> = frames.iter().map(hold).collect();
            let sight = |preferred| Sight { net: &net, preferred, now };
            process_batch(&mut by_short, &mut short.state, sight(&short.preferred));
            for frame in &mut by_long {
                process_one(frame, &mut long.state, sight(&long.preferred));
            }
            for ((a, b), (input, _, ingress)) in by_short.iter().zip(&by_long).zip(&frames) {
                prop_assert_eq!(a.verdict, b.verdict);
                prop_assert_eq!(a.packet(), b.packet());
                match a.verdict {
                    // What went to a NIC is answered from there; and it may come again where it came from.
                    Verdict::Transmit { nic, .. } => sent.push((a.packet().to_vec(), Ingress::Nic(nic))),
                    Verdict::Deliver => sent.push((a.packet().to_vec(), Ingress::Tun)),
                    Verdict::Wait(Wait::Hold(id)) => {
                        short.state.flows.set_held(id);
                        long.state.flows.set_held(id);
                    }
                    _ => {}
                }
                sent.push((input.clone(), *ingress));
            }
            prop_assert_eq!(short.memory(), long.memory());
            prop_assert_eq!(short.counts(), long.counts());
            prop_assert_eq!(short.state.flows.half_open(), long.state.flows.half_open());
        }
    }
}

/// The test above would show nothing if nothing went the short way.
#[test]
fn data_of_open_flows_goes_the_short_way_in_every_mode() {
    let mut forwarder = Forwarder::new();
    let net = view();
    let next = |flags| Next { what: What::View, flags, ttl: 64, size: 10, state: 0 };
    for family in Family::BOTH {
        for port in 80..84 {
            let (client, vipa) = ((far(family, 9, 1), 40_000), (vipa(family, 10), port));
            let mut one = |from: (IpAddr, u16), to, flags, ingress| {
                let bytes = packet(from, to, true, &next(flags));
                let mut frames = [Frame::holding(&bytes, Offload::default(), ingress)];
                let mut ahead = [super::Plain::NONE; super::AHEAD];
                let sight = Sight { net: &net, preferred: &forwarder.preferred, now: Millis(1) };
                super::look_ahead(&frames, &forwarder.state.flows, &mut ahead);
                let is_short = super::carry(&mut frames, &ahead, &forwarder.state, &sight) == 1;
                if !is_short {
                    process_one(&mut frames[0], &mut forwarder.state, sight);
                }
                (is_short, frames[0].packet().to_vec(), frames[0].verdict)
            };
            let nic = Ingress::Nic(NicId(0));
            let (is_short, there, verdict) = one(client, vipa, 0x02, nic);
            assert!(!is_short, "a SYN begins a flow");
            if port != 82 {
                let headers = Headers::parse(&there).expect("headers");
                let (source, destination) = headers.ports();
                let ends = ((headers.destination, destination), (headers.source, source));
                let back =
                    if verdict == Verdict::Deliver { Ingress::Tun } else { Ingress::Nic(NicId(1)) };
                one(ends.0, ends.1, 0x12, back);
                one(client, vipa, 0x10, nic);
                one(ends.0, ends.1, 0x10, back);
                assert!(one(ends.0, ends.1, 0x10, back).0, "{family:?} {port}: what comes back");
            } else {
                one(client, vipa, 0x10, nic);
            }
            assert!(one(client, vipa, 0x18, nic).0, "{family:?} {port}: what goes there");
        }
    }
}

/// A run ends where the kind of packets changes, and the next one begins there.
#[test]
fn packets_that_alternate_go_the_short_way_as_well() {
    let mut forwarder = Forwarder::new();
    let net = view();
    let (client, service) = ((far(Family::V4, 9, 1), 40_000), (vipa(Family::V4, 10), 80));
    let bytes = |from, to, flags| {
        let next = Next { what: What::View, flags, ttl: 64, size: 10, state: 0 };
        packet(from, to, true, &next)
    };
    let [to_client, to_server] = [0, 1].map(|nic| Ingress::Nic(NicId(nic)));
    let mut run = |packets: &[(Vec<u8>, Ingress)]| {
        let hold = |(bytes, ingress): &(Vec<u8>, Ingress)| {
            Frame::holding(bytes, Offload::default(), *ingress)
        };
        let mut frames: Vec<Frame> = packets.iter().map(hold).collect();
        let sight = Sight { net: &net, preferred: &forwarder.preferred, now: Millis(1) };
        let mut ahead = [super::Plain::NONE; super::AHEAD];
        super::look_ahead(&frames, &forwarder.state.flows, &mut ahead);
        let (mut at, mut runs) = (0, Vec::new());
        while at < frames.len() {
            let carried = super::carry(&mut frames[at..], &ahead[at..], &forwarder.state, &sight);
            if carried == 0 {
                process_one(&mut frames[at], &mut forwarder.state, sight);
            }
            runs.push(carried);
            at += carried.max(1);
        }
        (runs, frames[0].packet().to_vec())
    };
    let (_, syn) = run(&[(bytes(client, service, 0x02), to_client)]);
    let headers = Headers::parse(&syn).expect("headers");
    let (source, destination) = headers.ports();
    let (server, seen) = ((headers.destination, destination), (headers.source, source));
    run(&[(bytes(server, seen, 0x12), to_server)]);
    run(&[(bytes(client, service, 0x10), to_client)]);
    let (there, back) =
        ((bytes(client, service, 0x10), to_client), (bytes(server, seen, 0x10), to_server));
    run(&[there.clone(), back.clone()]);
    let (a, b) = (there, back);
    let (runs, _) = run(&[a.clone(), b.clone(), a.clone(), a.clone(), b.clone(), a, b]);
    assert_eq!(runs, [1, 1, 2, 1, 1, 1]);
}

/// RFC 768: a checksum of 0 would say that there is none.
#[test]
fn a_datagrams_checksum_that_comes_to_zero_is_sent_as_all_ones() {
    let add = |a: u16, b: u16| {
        let sum = u32::from(a) + u32::from(b);
        (sum + (sum >> 16)) as u16
    };
    for family in Family::BOTH {
        let mut forwarder = Forwarder::new();
        let net = view();
        let mut run = |bytes: &[u8]| {
            let mut frames = [Frame::holding(bytes, Offload::default(), Ingress::Tun)];
            let sight = Sight { net: &net, preferred: &forwarder.preferred, now: Millis(1) };
            process_batch(&mut frames, &mut forwarder.state, sight);
            if let Verdict::Wait(Wait::Hold(id)) = frames[0].verdict {
                forwarder.state.flows.set_held(id);
            }
            frames[0].packet().to_vec()
        };
        // By rule from another VIPA.
        let (own, to) = ((vipa(family, 10), 40_000), (far(family, 9, 1), 80));
        let next = Next { what: What::View, flags: 0, ttl: 64, size: 10, state: 0 };
        let mut bytes = packet(own, to, false, &next);
        let start = if family == Family::V4 { 20 } else { 40 };
        let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        run(&bytes);
        let sent = run(&bytes);
        let checksum = word(&sent, start + 6);
        assert_ne!(checksum, word(&bytes, start + 6), "it was rewritten");
        // So much more in the payload, and as much less in the checksum.
        let payload = add(word(&bytes, start + 8), checksum);
        bytes[start + 8..start + 10].copy_from_slice(&payload.to_be_bytes());
        let before = !add(!word(&bytes, start + 6), checksum);
        bytes[start + 6..start + 8].copy_from_slice(&before.to_be_bytes());
        assert_eq!(word(&run(&bytes), start + 6), 0xffff, "{family:?}");
    }
}

/// Nor if only TCP or only services did: this host's own flows, kept, rewritten and answered, and UDP.
#[test]
fn data_of_this_hosts_own_flows_and_udp_go_the_short_way() {
    let mut forwarder = Forwarder::new();
    let net = view();
    let (nic, data) = (Ingress::Nic(NicId(0)), 0x10);
    let mut one = |from: (IpAddr, u16), to: (IpAddr, u16), is_tcp, flags, ingress| {
        let next = Next { what: What::View, flags, ttl: 64, size: 10, state: 0 };
        let bytes = packet(from, to, is_tcp, &next);
        let mut frames = [Frame::holding(&bytes, Offload::default(), ingress)];
        let mut ahead = [super::Plain::NONE; super::AHEAD];
        let sight = Sight { net: &net, preferred: &forwarder.preferred, now: Millis(1) };
        super::look_ahead(&frames, &forwarder.state.flows, &mut ahead);
        if super::carry(&mut frames, &ahead, &forwarder.state, &sight) == 1 {
            return (true, frames[0].packet().to_vec());
        }
        process_one(&mut frames[0], &mut forwarder.state, sight);
        if let Verdict::Wait(Wait::Hold(id)) = frames[0].verdict {
            forwarder.state.flows.set_held(id);
            process_one(&mut frames[0], &mut forwarder.state, sight);
        }
        (false, frames[0].packet().to_vec())
    };
    for family in Family::BOTH {
        let own = (vipa(family, 10), 40_000);
        for is_tcp in [true, false] {
            // By rule from another VIPA, from a NIC's address, and as it is.
            for (port, is_rewritten) in [(80, true), (81, true), (84, false)] {
                let to = (far(family, 9, 1), port);
                assert!(!one(own, to, is_tcp, 0x02, Ingress::Tun).0, "it begins a flow");
                one(own, to, is_tcp, data, Ingress::Tun);
                let (is_short, sent) = one(own, to, is_tcp, data, Ingress::Tun);
                assert!(is_short, "{family:?} {port} {is_tcp}");
                if is_rewritten {
                    let headers = Headers::parse(&sent).expect("headers");
                    let back = (headers.source, headers.ports().0);
                    one(to, back, is_tcp, data, nic);
                    assert!(one(to, back, is_tcp, data, nic).0, "{family:?} {port} {is_tcp}: back");
                }
            }
        }
        let (client, service) = ((far(family, 9, 2), 41_000), (vipa(family, 10), 80));
        let headers = Headers::parse(&one(client, service, false, 0, nic).1).expect("headers");
        let (source, destination) = headers.ports();
        let ends = ((headers.destination, destination), (headers.source, source));
        one(ends.0, ends.1, false, 0, Ingress::Nic(NicId(1)));
        assert!(one(ends.0, ends.1, false, 0, Ingress::Nic(NicId(1))).0, "{family:?}: UDP back");
        assert!(one(client, service, false, 0, nic).0, "{family:?}: UDP there");
    }
}

/// That a server answers for the first time has to be seen, though its client has said its last already. This host as the client: no
/// way back has to be found, which alone would make it the long one.
#[test]
fn the_first_answer_to_a_closing_flow_goes_the_long_way() {
    let (mut short, mut long) = (Forwarder::new(), Forwarder::new());
    let net = view();
    let client = (vipa(Family::V4, 10), 40_000);
    let service = (vipa(Family::V4, 10), 80);
    let mut both = |from, to, flags, ingress| {
        let next = Next { what: What::View, flags, ttl: 64, size: 10, state: 0 };
        let bytes = packet(from, to, true, &next);
        let frame = || [Frame::holding(&bytes, Offload::default(), ingress)];
        let (mut a, mut b) = (frame(), frame());
        let sight = |preferred| Sight { net: &net, preferred, now: Millis(1) };
        process_batch(&mut a, &mut short.state, sight(&short.preferred));
        process_one(&mut b[0], &mut long.state, sight(&long.preferred));
        assert_eq!((a[0].verdict, a[0].packet()), (b[0].verdict, b[0].packet()));
        assert_eq!(short.memory(), long.memory());
        Headers::parse(a[0].packet()).expect("headers")
    };
    let there = both(client, service, 0x02, Ingress::Tun);
    both(client, service, 0x11, Ingress::Tun);
    let (source, destination) = there.ports();
    let back = Ingress::Nic(NicId(1));
    both((there.destination, destination), (there.source, source), 0x10, back);
}
