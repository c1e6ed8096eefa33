//! A view of three NICs, a worker's state, packets, and what runs them.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use etherparse::PacketBuilder;
use vipa::forward::flow::{FlowTable, Millis, Shape};
use vipa::forward::frame::{Frame, Ingress};
use vipa::forward::pipeline::{Sight, State, process_batch};
use vipa::forward::preferred::PreferredTable;
use vipa::forward::route::{NextHop, Route, RouteTable};
use vipa::forward::source::{Rule, SourcePolicy, Target};
use vipa::forward::verdict::{Verdict, Wait};
use vipa::forward::view::{NetView, NicId, NicState, NicView, WorkerId};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::offload::Offload;
use vipa::wire::packet::{Headers, full_checksum};

pub(crate) const VIPA: [u8; 4] = [203, 0, 113, 10];
pub(crate) const SECOND: [u8; 4] = [203, 0, 113, 11];
pub(crate) const RULED: [u8; 4] = [10, 20, 0, 1];
pub(crate) const OTHER: [u8; 4] = [192, 0, 2, 1];
pub(crate) const TUN: Ingress = Ingress::Tun;
pub(crate) const NOW: Millis = Millis(1_000);

/// 64-bit words of one flow of each family.
pub(crate) const WORDS: usize = Shape::both(1).words();

/// The shape of a table over so many words.
pub(crate) fn shape(words: usize) -> Shape {
    Shape::both((words / WORDS) as u32)
}

/// No services.
pub(crate) fn nothing() -> PreferredTable {
    PreferredTable::default()
}

/// What a worker sees at [`NOW`].
pub(crate) fn sight<'a>(net: &'a NetView, preferred: &'a PreferredTable) -> Sight<'a> {
    Sight { net, preferred, now: NOW }
}

pub(crate) fn state(flows: usize) -> State {
    let words: Vec<AtomicU64> = (0..flows * WORDS).map(|_| AtomicU64::new(0)).collect();
    state_over(words.leak())
}

pub(crate) fn state_over(words: &'static [AtomicU64]) -> State {
    let (flows, torn) = FlowTable::adopt(words, shape(words.len()), 7);
    assert_eq!(torn, 0);
    State::new(flows, WorkerId(0), 1)
}

pub(crate) fn nic(number: u8, is_live: bool) -> NicView {
    NicView {
        name: format!("eth{number}"),
        ifindex: u32::from(number) + 1,
        mac: MacAddr([2, 0, 0, 0, 0, number]),
        mtu: 1500,
        weight: 1,
        metric: 1,
        xdp: None,
        is_live,
        state: if is_live { NicState::Live } else { NicState::NoCarrier },
        addresses: vec![
            (IpAddr::from([10, number, 1, 2]), 24),
            (IpAddr::from([0xfd00, u16::from(number), 0, 0, 0, 0, 0, 2]), 64),
        ],
    }
}

pub(crate) fn gateway(number: u8) -> IpAddr {
    IpAddr::from([10, number, 1, 1])
}

/// Three NICs with a gateway each, equal-cost default routes; TCP to 10.20/16 goes under the second VIPA,
/// TCP port 25 under the NIC's address.
pub(crate) fn view(live: [bool; 3]) -> NetView {
    let rule = |destination: Option<&str>, port: Option<u16>, target| Rule {
        protocol: Some(6),
        destination: destination.map(|d| d.parse().expect("a prefix")),
        ports: port.map(|p| p..=p),
        target,
        is_for_forwarder: true,
        ..Rule::default()
    };
    let hops = |v6: bool| {
        (0..3)
            .map(|n| NextHop {
                nic: NicId(n),
                gateway: Some(if v6 { v6_gateway(n) } else { gateway(n) }),
            })
            .collect()
    };
    NetView {
        generation: 1,
        nics: (0..3).map(|n| nic(n, live[usize::from(n)])).collect(),
        routes: RouteTable::new(vec![
            Route { prefix: "0.0.0.0/0".parse().expect("p"), next_hops: hops(false) },
            Route { prefix: "::/0".parse().expect("p"), next_hops: hops(true) },
            Route { prefix: "172.17.0.0/16".parse().expect("p"), next_hops: vec![] },
        ]),
        neighbours: (0..3)
            .flat_map(|n| {
                let mac = MacAddr([6, 0, 0, 0, 0, n]);
                [((NicId(n), gateway(n)), mac), ((NicId(n), v6_gateway(n)), mac)]
            })
            .collect(),
        claims: vipa::forward::claims::Claims::default(),
        source: SourcePolicy {
            sourcevipa: true,
            vipas: vec![VIPA.into(), SECOND.into()],
            default_v4: Some(VIPA.into()),
            rules: vec![
                rule(None, Some(25), Target::Physical),
                rule(Some("10.20.0.0/16"), None, Target::Vipa(SECOND.into())),
            ],
            ports: vec![61000, 61001],
            ephemeral: Some(32768..=60999),
            ..SourcePolicy::default()
        },
    }
}

pub(crate) fn v6_gateway(n: u8) -> IpAddr {
    IpAddr::from([0xfd00, u16::from(n), 0, 0, 0, 0, 0, 1])
}

pub(crate) fn tcp(from: ([u8; 4], u16), to: ([u8; 4], u16), syn: bool) -> Vec<u8> {
    let step = PacketBuilder::ipv4(from.0, to.0, 64).tcp(from.1, to.1, 1, 100);
    let step = if syn { step.syn() } else { step.ack(1) };
    let mut bytes = Vec::new();
    step.write(&mut bytes, b"payload").expect("a packet");
    bytes
}

pub(crate) fn run(packet: &[u8], ingress: Ingress, state: &mut State, view: &NetView) -> Frame {
    let mut frames = [Frame::holding(packet, Offload::default(), ingress)];
    process_batch(&mut frames, state, sight(view, &nothing()));
    let [frame] = frames;
    frame
}

/// Runs a packet of a rewritten flow as the engine does: the hold is told, and the packet runs again.
pub(crate) fn run_held(packet: &[u8], state: &mut State, view: &NetView) -> Frame {
    let frame = run(packet, TUN, state, view);
    let Verdict::Wait(Wait::Hold(id)) = frame.verdict else { return frame };
    assert_eq!(frame.packet(), packet, "a frame that waits is untouched");
    state.flows.set_held(id);
    run(packet, TUN, state, view)
}

pub(crate) fn assert_checksum(frame: &Frame) -> Headers {
    let headers = Headers::parse(frame.packet()).expect("headers");
    let at = headers.checksum_at().expect("a checksum");
    let field = u16::from_be_bytes([frame.packet()[at], frame.packet()[at + 1]]);
    assert_eq!(Some(field), full_checksum(frame.packet(), &headers));
    headers
}
