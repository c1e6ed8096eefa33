//! The judged: the forwarder's own `process_batch`, run as the engine runs it, with what waits run again and what
//! was left to the device completed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use vipa::forward::flow::{FlowTable, Millis, Shape};
use vipa::forward::frame::{Frame, Ingress};
use vipa::forward::pipeline::{Sight, State, process_batch};
use vipa::forward::preferred::PreferredTable;
use vipa::forward::route::{NextHop, Route, RouteTable};
use vipa::forward::source::{Rule, SourcePolicy, Target};
use vipa::forward::verdict::{Verdict, Wait};
use vipa::forward::view::{NetView, NicId, NicState, NicView, WorkerId};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::offload::{Csum, Offload};

use crate::addresses::{Way, default_vipa, flow_of, remotes, second_vipa};
use crate::bytes::{pseudo_header, put, sum};

const NOW: Millis = Millis(1_000);

pub(crate) struct Ours {
    state: State,
    view: NetView,
}

impl Ours {
    pub(crate) fn new(flows: usize) -> Ours {
        let shape = Shape::both(flows as u32);
        let words: Vec<AtomicU64> = (0..shape.words()).map(|_| AtomicU64::new(0)).collect();
        let (flows, torn) = FlowTable::adopt(words.leak(), shape, 7);
        assert_eq!(torn, 0);
        Ours { state: State::new(flows, WorkerId(0), 1), view: view() }
    }

    /// Runs packets, with the state of each one's checksum, and returns what left, flow by flow.
    pub(crate) fn pass(
        &mut self,
        way: Way,
        packets: &[(Vec<u8>, Csum)],
    ) -> HashMap<u16, Vec<Vec<u8>>> {
        let ingress = match way {
            Way::Out => Ingress::Tun,
            Way::In => Ingress::Nic(NicId(0)),
        };
        let mut out: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
        let mut waiting = Vec::new();
        for (packet, csum) in packets {
            let offload = Offload { csum: *csum, ..Offload::default() };
            waiting.push(Frame::holding(packet, offload, ingress));
            // As the engine does: what waits for a first fragment is run again when one came.
            let mut is_over = false;
            while !is_over {
                let preferred = PreferredTable::default();
                let sight = Sight { net: &self.view, preferred: &preferred, now: NOW };
                process_batch(&mut waiting, &mut self.state, sight);
                is_over = !self.state.fragments.take_news();
                waiting.retain(|frame| match frame.verdict {
                    Verdict::Wait(Wait::Hold(id)) => {
                        self.state.flows.set_held(id);
                        is_over = false;
                        true
                    }
                    Verdict::Wait(Wait::FirstFragment(_)) => true,
                    Verdict::Wait(other) => panic!("nothing else to wait for: {other:?}"),
                    Verdict::Transmit { .. } | Verdict::Deliver => {
                        let packet = completed(frame);
                        // A verdict out of the wrong side would be no flow's.
                        let is_ours = (way == Way::Out) == (frame.verdict != Verdict::Deliver);
                        let flow = flow_of(&packet, way).filter(|_| is_ours);
                        out.entry(flow.expect("a flow's packet")).or_default().push(packet);
                        false
                    }
                    _ => false,
                });
            }
        }
        self.state.released.clear();
        out
    }
}

/// What a device makes of a partial checksum: the complement of the sum from `start` on, which the pseudo-header's
/// sum in the field is a part of.
fn completed(frame: &Frame) -> Vec<u8> {
    let mut packet = frame.packet().to_vec();
    if let Csum::Partial { start, offset } = frame.offload.csum {
        let field = !sum(&[&packet[usize::from(start)..]]);
        // RFC 768: UDP's zero would be none.
        let is_udp = offset == 6;
        let field = if field == 0 && is_udp { 0xffff } else { field };
        put(&mut packet, usize::from(start + offset), field);
    }
    packet
}

/// The packet as a sender that leaves the checksum at `at` to the device gives it away.
pub(crate) fn partial(packet: &mut [u8], layer4: usize, at: usize, protocol: u8) -> Csum {
    let length = packet.len() - layer4;
    let pseudo = sum(&[&pseudo_header(packet, protocol, length)]);
    put(packet, at, pseudo);
    Csum::Partial { start: layer4 as u16, offset: (at - layer4) as u16 }
}

fn view() -> NetView {
    let gateways: [IpAddr; 2] =
        ["10.1.1.1", "2001:db8:1::1"].map(|a| a.parse().expect("an address"));
    let nic = NicId(0);
    let route = |prefix: &str, gateway| Route {
        prefix: prefix.parse().expect("a prefix"),
        next_hops: vec![NextHop { nic, gateway: Some(gateway) }],
    };
    let rule = |is_v6| Rule {
        destination: Some(remotes(is_v6).parse().expect("a prefix")),
        target: Target::Vipa(second_vipa(is_v6)),
        ..Rule::default()
    };
    let four = |address| match address {
        IpAddr::V4(a) => Some(a),
        IpAddr::V6(_) => None,
    };
    let six = |address| match address {
        IpAddr::V6(a) => Some(a),
        IpAddr::V4(_) => None,
    };
    NetView {
        generation: 1,
        nics: Box::new([NicView {
            name: "eth0".into(),
            ifindex: 1,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            weight: 1,
            metric: 1,
            xdp: None,
            is_live: true,
            state: NicState::Live,
            addresses: ["10.1.1.2", "2001:db8:1::2"]
                .map(|a| (a.parse().expect("an address"), 24))
                .to_vec(),
        }]),
        routes: RouteTable::new(vec![route("0.0.0.0/0", gateways[0]), route("::/0", gateways[1])]),
        neighbours: gateways.map(|a| ((nic, a), MacAddr([2, 0, 0, 0, 0, 2]))).into_iter().collect(),
        claims: vipa::forward::claims::Claims::default(),
        source: SourcePolicy {
            sourcevipa: true,
            vipas: [false, true].map(|v6| [default_vipa(v6), second_vipa(v6)]).concat(),
            default_v4: four(default_vipa(false)),
            default_v6: six(default_vipa(true)),
            rules: [false, true].map(rule).to_vec(),
            ports: (61_000..=65_000).collect(),
            ephemeral: Some(32_768..=60_999),
            ..SourcePolicy::default()
        },
    }
}
