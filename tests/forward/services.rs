//! Virtual services: which server a connection goes to, that it stays there, and what both ends see.

mod floods;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use vipa::forward::flow::{Millis, Phase};
use vipa::forward::frame::{Frame, Ingress};
use vipa::forward::pipeline::{Sight, State, process_batch};
use vipa::forward::preferred::{
    Choice, Fate, Mode, PreferredTable, Server, ServerCounters, ServerId, Service, ServiceId,
    Source,
};
use vipa::forward::route::{NextHop, Route, RouteTable};
use vipa::forward::service;
use vipa::forward::verdict::{DropReason, Verdict, Wait};
use vipa::forward::view::{NetView, NicId, WorkerId};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::offload::Offload;
use vipa::wire::packet::Headers;

use crate::fixture::*;

const CLIENT: [u8; 4] = [192, 0, 2, 7];
const SERVERS: [[u8; 4]; 2] = [[10, 9, 0, 1], [10, 9, 0, 2]];
const FROM_CLIENT: Ingress = Ingress::Nic(NicId(0));
const FROM_SERVER: Ingress = Ingress::Nic(NicId(1));
const SERVER_MACS: [MacAddr; 2] = [MacAddr([8, 0, 0, 0, 0, 1]), MacAddr([8, 0, 0, 0, 0, 2])];

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const FIN: u8 = 1;

/// The fixture's view with the servers' link behind the second NIC.
pub(crate) fn network() -> NetView {
    let mut view = view([true; 3]);
    let mut routes = view.routes.routes().to_vec();
    let next_hops = vec![NextHop { nic: NicId(1), gateway: None }];
    routes.push(Route { prefix: "10.9.0.0/24".parse().expect("a prefix"), next_hops });
    view.routes = RouteTable::new(routes);
    for (server, mac) in SERVERS.iter().zip(SERVER_MACS) {
        view.neighbours.insert((NicId(1), IpAddr::from(*server)), mac);
    }
    view
}

pub(crate) fn nat() -> Mode {
    let ports: Arc<[u16]> = (40000..40100).collect();
    Mode::Nat { sources: [Source { address: SECOND.into(), ports: Some(ports) }].into() }
}

pub(crate) fn keep_client() -> Mode {
    Mode::Nat { sources: [].into() }
}

/// TCP port 80, UDP port 53 and TCP ports 5000 to 5009 of the VIPA, each with both servers on port 8080; the first is
/// preferred.
pub(crate) fn table(mode: Mode) -> PreferredTable {
    let service = |name: &str, ports, protocol| {
        Some(Service {
            name: name.into(),
            address: VIPA.into(),
            ports,
            protocol,
            mode: mode.clone(),
            choice: Choice::Preferred(ServerId(0)),
        })
    };
    let server = |service: u16, at: usize| {
        Some(Server {
            service: ServiceId(service),
            address: SERVERS[at].into(),
            port: if mode == Mode::Direct || service == 2 { None } else { Some(8080) },
            is_local: false,
            fate: Fate::Kept,
            counters: Arc::new(ServerCounters::new(2)),
        })
    };
    let mut table = PreferredTable::new(
        vec![
            service("web", 80..=80, 6),
            service("names", 53..=53, 17),
            service("many", 5000..=5009, 6),
        ],
        (0..3).flat_map(|id| [server(id, 0), server(id, 1)]).collect(),
    );
    table.set_choice(ServiceId(1), Choice::Preferred(ServerId(2)));
    table.set_choice(ServiceId(2), Choice::Preferred(ServerId(4)));
    table
}

fn segment(from: ([u8; 4], u16), to: ([u8; 4], u16), flags: u8, numbers: (u32, u32)) -> Vec<u8> {
    let mut step = PacketBuilder::ipv4(from.0, to.0, 64).tcp(from.1, to.1, numbers.0, 1000);
    if flags & SYN != 0 {
        step = step.syn();
    }
    if flags & ACK != 0 {
        step = step.ack(numbers.1);
    }
    if flags & FIN != 0 {
        step = step.fin();
    }
    if flags & RST != 0 {
        step = step.rst();
    }
    let mut bytes = Vec::new();
    step.write(&mut bytes, if flags & SYN != 0 { b"" } else { b"payload" }).expect("a segment");
    bytes
}

fn datagram(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv4(from.0, to.0, 64)
        .udp(from.1, to.1)
        .write(&mut bytes, b"payload")
        .expect("a datagram");
    bytes
}

/// One host: its state, what it sees, and the time.
struct Host {
    state: State,
    net: NetView,
    preferred: PreferredTable,
    now: Millis,
}

impl Host {
    fn new(mode: Mode) -> Host {
        Host { state: state(64), net: network(), preferred: table(mode), now: NOW }
    }

    fn run(&mut self, packet: &[u8], ingress: Ingress) -> Frame {
        let mut frames = [Frame::holding(packet, Offload::default(), ingress)];
        let sight = Sight { net: &self.net, preferred: &self.preferred, now: self.now };
        process_batch(&mut frames, &mut self.state, sight);
        service::settle(&mut self.state, &self.preferred);
        let [frame] = frames;
        frame
    }

    /// A connection from a port of the client's, opened whole; the source that its server sees.
    fn connect(&mut self, port: u16) -> ([u8; 4], u16) {
        let client = (CLIENT, port);
        let syn = self.run(&segment(client, (VIPA, 80), SYN, (100, 0)), FROM_CLIENT);
        let headers = assert_checksum(&syn);
        let IpAddr::V4(source) = headers.source else { panic!("IPv4") };
        let IpAddr::V4(server) = headers.destination else { panic!("IPv4") };
        let (seen, server) =
            ((source.octets(), headers.ports().0), (server.octets(), headers.ports().1));
        let back = self.run(&segment(server, seen, SYN | ACK, (500, 101)), FROM_SERVER);
        let headers = assert_checksum(&back);
        assert_eq!((headers.source, headers.ports().0), (VIPA.into(), 80));
        assert_eq!((headers.destination, headers.ports().1), (CLIENT.into(), port));
        let ack = self.run(&segment(client, (VIPA, 80), ACK, (101, 501)), FROM_CLIENT);
        assert_checksum(&ack);
        seen
    }

    fn counters(&self, server: u16) -> &ServerCounters {
        &self.preferred.server(ServerId(server)).expect("a server").counters
    }

    /// All that is sent when dead servers' flows are looked for.
    fn bury(&mut self) -> Vec<Frame> {
        let mut sent = Vec::new();
        let mut from = 0;
        loop {
            let mut frames: Vec<Frame> = (0..3).map(|_| Frame::new()).collect();
            let sight = Sight { net: &self.net, preferred: &self.preferred, now: self.now };
            let (count, next) = service::bury(&mut frames, from, &mut self.state, sight);
            sent.extend(frames.into_iter().take(count));
            match next {
                Some(next) => from = next,
                None => return sent,
            }
        }
    }
}

fn destination_of(frame: &Frame) -> (IpAddr, u16) {
    let headers = assert_checksum(frame);
    (headers.destination, headers.ports().1)
}

fn reset_numbers(frame: &Frame) -> (u32, Option<u32>) {
    assert_checksum(frame);
    let packet = SlicedPacket::from_ip(frame.packet()).expect("a packet");
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("TCP") };
    assert!(tcp.rst());
    (tcp.sequence_number(), tcp.ack().then(|| tcp.acknowledgment_number()))
}

#[test]
fn a_connection_goes_to_the_preferred_server_and_comes_back_from_the_vipa() {
    let mut host = Host::new(nat());
    let syn = segment((CLIENT, 1234), (VIPA, 80), SYN, (1, 0));
    let frame = host.run(&syn, FROM_CLIENT);
    assert_eq!(
        frame.verdict,
        Verdict::Transmit { nic: NicId(1), destination: SERVER_MACS[0] },
        "over the servers' link"
    );
    let headers = assert_checksum(&frame);
    assert_eq!((headers.destination, headers.ports().1), (SERVERS[0].into(), 8080));
    assert_eq!(headers.source, IpAddr::from(SECOND));
    assert!((40000..40100).contains(&headers.ports().0));
    assert_eq!(frame.packet()[8], 63, "it was routed");
    host.connect(1235);
    assert_eq!((host.counters(0).created(), host.counters(0).active()), (2, 2));
}

#[test]
fn a_connection_stays_with_its_server_when_another_is_preferred() {
    let mut host = Host::new(nat());
    host.connect(1000);
    host.preferred.set_choice(ServiceId(0), Choice::Preferred(ServerId(1)));
    let data = host.run(&segment((CLIENT, 1000), (VIPA, 80), ACK, (101, 501)), FROM_CLIENT);
    assert_eq!(destination_of(&data), (SERVERS[0].into(), 8080));
    let syn = host.run(&segment((CLIENT, 1001), (VIPA, 80), SYN, (1, 0)), FROM_CLIENT);
    assert_eq!(destination_of(&syn), (SERVERS[1].into(), 8080));
}

#[test]
fn a_port_of_a_range_is_asked_of_the_server_as_well() {
    let mut host = Host::new(nat());
    let syn = host.run(&segment((CLIENT, 1001), (VIPA, 5007), SYN, (1, 0)), FROM_CLIENT);
    assert_eq!(destination_of(&syn), (SERVERS[0].into(), 5007));
    let other = host.run(&segment((CLIENT, 1001), (VIPA, 5010), SYN, (1, 0)), FROM_CLIENT);
    assert_eq!(other.verdict, Verdict::Kernel);
}

#[test]
fn without_a_server_tcp_is_reset_and_udp_told() {
    let mut host = Host::new(nat());
    host.preferred.set_choice(ServiceId(0), Choice::Refuse);
    host.preferred.set_choice(ServiceId(1), Choice::Refuse);
    let refused = host.run(&segment((CLIENT, 1001), (VIPA, 80), SYN, (77, 0)), FROM_CLIENT);
    assert!(matches!(refused.verdict, Verdict::Transmit { .. }), "{:?}", refused.verdict);
    assert_eq!(reset_numbers(&refused), (0, Some(78)));
    assert_eq!(destination_of(&refused), (CLIENT.into(), 1001));
    let told = host.run(&datagram((CLIENT, 1001), (VIPA, 53)), FROM_CLIENT);
    assert!(matches!(told.verdict, Verdict::Transmit { .. }));
    let headers = Headers::parse(told.packet()).expect("headers");
    assert_eq!((headers.source, headers.destination), (VIPA.into(), CLIENT.into()));
    assert_eq!(headers.quoted(told.packet()).expect("a quote").ports(), (1001, 53));
    assert_eq!(told.packet()[20..22], [3, 3]);
    assert!(host.state.flows.is_empty());
}

#[test]
fn until_a_server_is_known_a_client_is_left_to_try_again() {
    let mut host = Host::new(nat());
    host.preferred.set_choice(ServiceId(0), Choice::Wait);
    let syn = host.run(&segment((CLIENT, 1001), (VIPA, 80), SYN, (1, 0)), FROM_CLIENT);
    assert_eq!(syn.verdict, Verdict::Drop(DropReason::ServersUnread));
    let data = host.run(&segment((CLIENT, 1001), (VIPA, 80), ACK, (5, 4321)), FROM_CLIENT);
    assert_eq!(reset_numbers(&data), (4321, None), "that one is over in any case");
}

#[test]
fn the_middle_of_a_connection_that_nobody_knows_is_reset() {
    let mut host = Host::new(nat());
    let frame = host.run(&segment((CLIENT, 1001), (VIPA, 80), ACK, (5, 4321)), FROM_CLIENT);
    assert_eq!(reset_numbers(&frame), (4321, None));
    let reset = host.run(&segment((CLIENT, 1001), (VIPA, 80), RST, (5, 0)), FROM_CLIENT);
    assert_eq!(reset.verdict, Verdict::Drop(DropReason::NoFlow));
}

#[test]
fn a_client_that_cannot_be_is_dropped() {
    let mut host = Host::new(nat());
    for source in [VIPA, [127, 0, 0, 1], [0, 0, 0, 0], [224, 0, 0, 1]] {
        let syn = segment((source, 1001), (VIPA, 80), SYN, (1, 0));
        let verdict = host.run(&syn, FROM_CLIENT).verdict;
        assert_eq!(verdict, Verdict::Drop(DropReason::Martian), "{source:?}");
    }
    assert!(host.state.flows.is_empty());
}

#[test]
fn a_direct_service_changes_nothing_but_the_mac_address() {
    let mut host = Host::new(Mode::Direct);
    let syn = segment((CLIENT, 1001), (VIPA, 80), SYN, (1, 0));
    let frame = host.run(&syn, FROM_CLIENT);
    assert_eq!(frame.verdict, Verdict::Transmit { nic: NicId(1), destination: SERVER_MACS[0] });
    assert_eq!(frame.packet(), syn);
    host.preferred.set_choice(ServiceId(0), Choice::Preferred(ServerId(1)));
    let ack = host.run(&segment((CLIENT, 1001), (VIPA, 80), ACK, (2, 9)), FROM_CLIENT);
    assert_eq!(ack.verdict, Verdict::Transmit { nic: NicId(1), destination: SERVER_MACS[0] });
    assert_eq!(host.state.flows.half_open(), 0, "the client has said more than SYN");
}

/// Its packets are plain ones, and yet something is to be found out by them.
#[test]
fn direct_datagram_flows_whose_clients_go_on_do_not_push_each_other_out() {
    let mut host = Host::new(Mode::Direct);
    let clients = 1000..1032;
    let mut say = |after: u64, ports: std::ops::Range<u16>| {
        host.now = Millis(NOW.0 + after);
        for port in ports {
            let frame = host.run(&datagram((CLIENT, port), (VIPA, 53)), FROM_CLIENT);
            assert!(matches!(frame.verdict, Verdict::Transmit { nic: NicId(1), .. }));
        }
        (host.state.flows.len(), host.state.flows.half_open())
    };
    // A quarter of the table may be half-open.
    assert_eq!(say(0, 1000..1016), (16, 16));
    assert_eq!(say(1999, 1000..1016), (16, 16));
    assert_eq!(say(2000, 1000..1016), (16, 0));
    assert_eq!(say(2000, clients.clone()), (32, 16));
    assert_eq!(say(4000, clients), (32, 0));
}

#[test]
fn a_direct_server_behind_a_gateway_is_a_named_drop() {
    let mut host = Host::new(Mode::Direct);
    host.net = view([true; 3]);
    let frame = host.run(&segment((CLIENT, 1001), (VIPA, 80), SYN, (1, 0)), FROM_CLIENT);
    assert_eq!(frame.verdict, Verdict::Drop(DropReason::ServerOffLink));
}

#[test]
fn a_server_whose_routes_lead_back_here_sees_the_client() {
    let mut host = Host::new(keep_client());
    assert_eq!(host.connect(1001), (CLIENT, 1001));
    // The client's other connection, which would look the same to the server.
    host.preferred.set_choice(ServiceId(2), Choice::Preferred(ServerId(4)));
    let twin = host.run(&segment((CLIENT, 8080), (VIPA, 5000), SYN, (1, 0)), FROM_CLIENT);
    assert_eq!(assert_checksum(&twin).ports(), (8080, 5000));
}

#[test]
fn two_connections_that_a_server_could_not_tell_apart_get_ports_of_their_own() {
    let mut host = Host::new(keep_client());
    host.connect(1001);
    let mut services: Vec<Option<Service>> =
        host.preferred.services().map(|(_, s)| Some(s.clone())).collect();
    services[2].as_mut().expect("many").choice = Choice::Preferred(ServerId(0));
    let servers = (0..6).map(|id| host.preferred.server(ServerId(id)).cloned()).collect();
    host.preferred = PreferredTable::new(services, servers);
    let twin = host.run(&segment((CLIENT, 1001), (VIPA, 5000), SYN, (1, 0)), FROM_CLIENT);
    let headers = assert_checksum(&twin);
    assert_eq!((headers.source, headers.ports()), (CLIENT.into(), (1002, 8080)));
    let back =
        host.run(&segment((SERVERS[0], 8080), (CLIENT, 1002), SYN | ACK, (1, 2)), FROM_SERVER);
    assert_eq!(assert_checksum(&back).ports(), (5000, 1001));
}

#[test]
fn a_server_on_this_host_is_reached_through_the_tun_and_sees_the_client() {
    let mut host = Host::new(nat());
    let servers = (0..6).map(|id| {
        let server = host.preferred.server(ServerId(id)).cloned().expect("a server");
        Some(Server { address: VIPA.into(), port: Some(8080), is_local: true, ..server })
    });
    let services = host.preferred.services().map(|(_, service)| Some(service.clone())).collect();
    host.preferred = PreferredTable::new(services, servers.collect());
    let syn = host.run(&segment((CLIENT, 1001), (VIPA, 80), SYN, (1, 0)), FROM_CLIENT);
    assert_eq!(syn.verdict, Verdict::Deliver);
    let headers = assert_checksum(&syn);
    assert_eq!((headers.source, headers.ports()), (CLIENT.into(), (1001, 8080)));
    assert_eq!(headers.destination, IpAddr::from(VIPA));
    let back = host.run(&segment((VIPA, 8080), (CLIENT, 1001), SYN | ACK, (1, 2)), TUN);
    assert!(matches!(back.verdict, Verdict::Transmit { .. }), "{:?}", back.verdict);
    assert_eq!(assert_checksum(&back).ports(), (80, 1001));
}

#[test]
fn this_host_is_a_client_of_its_own_service() {
    let mut host = Host::new(nat());
    let syn = host.run(&segment((VIPA, 33000), (VIPA, 80), SYN, (1, 0)), TUN);
    assert!(matches!(syn.verdict, Verdict::Transmit { nic: NicId(1), .. }), "{:?}", syn.verdict);
    let headers = assert_checksum(&syn);
    assert_eq!(headers.source, IpAddr::from(SECOND));
    assert_eq!(syn.packet()[8], 64, "this host's own");
    let seen = (SECOND, headers.ports().0);
    let back = host.run(&segment((SERVERS[0], 8080), seen, SYN | ACK, (1, 2)), FROM_SERVER);
    assert_eq!(back.verdict, Verdict::Deliver);
    let headers = assert_checksum(&back);
    assert_eq!((headers.source, headers.ports()), (VIPA.into(), (80, 33000)));
    assert_eq!(headers.destination, IpAddr::from(VIPA));
}

/// All services' servers are where `address` says, on port 8080; true: on this host.
fn move_servers(host: &mut Host, address: [u8; 4], is_local: bool) {
    let servers = (0..6).map(|id| {
        let server = host.preferred.server(ServerId(id)).cloned().expect("a server");
        Some(Server { address: address.into(), port: Some(8080), is_local, ..server })
    });
    let services = host.preferred.services().map(|(_, service)| Some(service.clone())).collect();
    host.preferred = PreferredTable::new(services, servers.collect());
}

#[test]
fn a_server_here_sees_this_host_on_a_reserved_port_and_answers_it_through_the_forwarder() {
    let mut host = Host::new(nat());
    host.net.source.ports = vec![61000, 65535];
    move_servers(&mut host, VIPA, true);
    let syn = host.run(&segment((VIPA, 33000), (VIPA, 80), SYN, (1, 0)), TUN);
    assert_eq!(syn.verdict, Verdict::Deliver);
    let headers = assert_checksum(&syn);
    assert_eq!((headers.source, headers.destination), (VIPA.into(), VIPA.into()));
    assert_eq!(headers.ports(), (61000, 8080));
    let back = host.run(&segment((VIPA, 8080), (VIPA, 61000), SYN | ACK, (1, 2)), TUN);
    assert_eq!(back.verdict, Verdict::Deliver);
    assert_eq!(assert_checksum(&back).ports(), (80, 33000));
    // No policy rule can name port 65535: its answers would not come here.
    host.run(&segment((VIPA, 33000), (VIPA, 80), ACK, (2, 2)), TUN);
    let second = host.run(&segment((VIPA, 33001), (VIPA, 80), SYN, (1, 0)), TUN);
    assert_eq!(second.verdict, Verdict::Drop(DropReason::PortsExhausted));
}

#[test]
fn what_this_host_sends_itself_and_no_flow_knows_never_leaves_it() {
    let mut host = Host::new(nat());
    let late = host.run(&segment((VIPA, 8080), (VIPA, 61000), ACK, (1, 2)), TUN);
    assert_eq!(late.verdict, Verdict::Drop(DropReason::NoFlow));
    host.state.workers = 2;
    let another = host.run(&segment((VIPA, 8080), (VIPA, 61001), ACK, (1, 2)), TUN);
    assert_eq!(another.verdict, Verdict::Punt(WorkerId(1)));
    let packet = segment((VIPA, 8080), (SECOND, 40000), ACK, (1, 2));
    let others = host.run(&packet, TUN);
    assert_eq!((others.verdict, others.packet()), (Verdict::Deliver, packet.as_slice()));
}

#[test]
fn servers_that_see_their_clients_see_an_address_of_this_host_that_is_not_theirs() {
    for (mode, seen) in [(keep_client(), VIPA), (Mode::Direct, [10, 1, 1, 2])] {
        let mut host = Host::new(mode.clone());
        move_servers(&mut host, SERVERS[0], false);
        host.net.claims.owned = vec![seen.into()];
        let syn = host.run(&segment((SECOND, 33000), (VIPA, 80), SYN, (1, 0)), TUN);
        let way = Verdict::Transmit { nic: NicId(1), destination: SERVER_MACS[0] };
        assert_eq!(syn.verdict, way, "{mode:?}");
        let headers = assert_checksum(&syn);
        assert_eq!((headers.source, headers.destination), (seen.into(), SERVERS[0].into()));
        let port = headers.ports().0;
        assert!([61000, 61001].contains(&port), "{port}");
        let answer = segment((SERVERS[0], 8080), (seen, port), SYN | ACK, (1, 2));
        let back = host.run(&answer, FROM_SERVER);
        assert_eq!(back.verdict, Verdict::Deliver);
        let headers = assert_checksum(&back);
        assert_eq!((headers.source, headers.destination), (VIPA.into(), SECOND.into()));
        assert_eq!(headers.ports(), (80, 33000));
        host.state.flows.remove(host.state.flows.served_flows()[0]);
        let late = host.run(&answer, FROM_SERVER);
        assert_eq!(late.verdict, Verdict::Drop(DropReason::NoFlow), "{mode:?}");
    }
}

#[test]
fn connections_of_a_dead_server_are_reset_at_both_ends_at_once() {
    let mut host = Host::new(nat());
    let seen = host.connect(1001);
    host.preferred.set_choice(ServiceId(0), Choice::Preferred(ServerId(1)));
    host.connect(1002);
    host.preferred.set_fate(ServerId(0), Fate::Reset);
    let sent = host.bury();
    assert_eq!(sent.len(), 2);
    // The client acknowledged 501, the server 101.
    assert_eq!(
        (destination_of(&sent[0]), reset_numbers(&sent[0])),
        ((CLIENT.into(), 1001), (501, Some(101)))
    );
    assert_eq!(destination_of(&sent[1]), (SERVERS[0].into(), 8080));
    assert_eq!(reset_numbers(&sent[1]), (101, Some(501)));
    assert_eq!(assert_checksum(&sent[1]).source, IpAddr::from(seen.0));
    assert_eq!(host.state.flows.served(), 1, "the other server's connection stays");
    assert_eq!((host.counters(0).active(), host.counters(1).active()), (0, 1));
}

/// As Linux limits its own: 50 at once, then one in a millisecond.
#[test]
fn a_flood_of_what_is_not_served_is_answered_with_few_resets_and_errors_and_the_rest_counted() {
    let mut host = Host::new(nat());
    host.preferred.set_choice(ServiceId(0), Choice::Refuse);
    host.preferred.set_choice(ServiceId(1), Choice::Refuse);
    let flood = |host: &mut Host, packet: fn([u8; 4]) -> Vec<u8>| {
        let frames = (0..200).map(|n| host.run(&packet([198, 51, 100, n]), FROM_CLIENT));
        let (sent, dropped): (Vec<Verdict>, _) =
            frames.map(|frame| frame.verdict).partition(|v| matches!(v, Verdict::Transmit { .. }));
        assert!(dropped.iter().all(|v| *v == Verdict::Drop(DropReason::AnswersLimited)));
        sent.len()
    };
    let syn: fn([u8; 4]) -> Vec<u8> = |from| segment((from, 1001), (VIPA, 80), SYN, (1, 0));
    let query: fn([u8; 4]) -> Vec<u8> = |from| datagram((from, 1001), (VIPA, 53));
    assert_eq!((flood(&mut host, syn), flood(&mut host, query)), (50, 50));
    host.now.0 += 7;
    assert_eq!((flood(&mut host, syn), flood(&mut host, query)), (7, 7));
    // This host itself is told always.
    let own = host.run(&segment((VIPA, 33000), (VIPA, 80), SYN, (1, 0)), TUN);
    assert_eq!(own.verdict, Verdict::Answer);
    let own = host.run(&datagram((VIPA, 33000), (VIPA, 53)), TUN);
    assert_eq!(own.verdict, Verdict::Answer);
}

#[test]
fn what_a_dead_servers_connections_are_owed_no_flood_takes_away() {
    let mut host = Host::new(nat());
    host.net.nics[0].mtu = 600;
    (1000..1010).for_each(|port| _ = host.connect(port));
    while host.state.answers.resets.take(host.now) {}
    while host.state.answers.errors.take(host.now) {}
    // Path MTU discovery goes on: from a server to a client behind the narrow NIC.
    let seen = host.connect(1010);
    let mut big = Vec::new();
    let step = PacketBuilder::ipv4(SERVERS[0], seen.0, 64).tcp(8080, seen.1, 501, 1000).ack(101);
    step.write(&mut big, &[0; 1000]).expect("a segment");
    let routes = host.net.routes.routes().iter().filter(|route| route.prefix.length() != 0);
    let by_first = vec![NextHop { nic: NicId(0), gateway: Some(gateway(0)) }];
    let default = Route { prefix: "0.0.0.0/0".parse().expect("p"), next_hops: by_first };
    host.net.routes = RouteTable::new(routes.cloned().chain([default]).collect());
    host.net.generation += 1;
    let told = host.run(&big, FROM_SERVER);
    assert!(matches!(told.verdict, Verdict::Transmit { .. }), "{:?}", told.verdict);
    assert!(Headers::parse(told.packet()).expect("headers").is_icmp_error());

    host.preferred.set_choice(ServiceId(0), Choice::Refuse);
    host.preferred.set_fate(ServerId(0), Fate::Reset);
    let early = host.run(&segment((CLIENT, 1000), (VIPA, 80), ACK, (101, 501)), FROM_CLIENT);
    assert_eq!(reset_numbers(&early), (501, None), "before it is buried");
    assert_eq!(host.bury().len(), 20, "both ends of the other ten");
    let stranger = host.run(&segment((CLIENT, 999), (VIPA, 80), ACK, (101, 501)), FROM_CLIENT);
    assert_eq!(stranger.verdict, Verdict::Drop(DropReason::AnswersLimited));
}

#[test]
fn what_a_dead_servers_client_sends_next_is_reset_even_before_that() {
    let mut host = Host::new(nat());
    host.connect(1001);
    host.preferred.set_fate(ServerId(0), Fate::Reset);
    let data = host.run(&segment((CLIENT, 1001), (VIPA, 80), ACK, (101, 501)), FROM_CLIENT);
    assert_eq!((destination_of(&data), reset_numbers(&data)), ((CLIENT.into(), 1001), (501, None)));
}

#[test]
fn a_dead_servers_datagram_flow_goes_to_another() {
    let mut host = Host::new(nat());
    let packet = datagram((CLIENT, 1001), (VIPA, 53));
    assert_eq!(destination_of(&host.run(&packet, FROM_CLIENT)), (SERVERS[0].into(), 8080));
    host.preferred.set_choice(ServiceId(1), Choice::Preferred(ServerId(3)));
    assert_eq!(destination_of(&host.run(&packet, FROM_CLIENT)), (SERVERS[0].into(), 8080));
    host.preferred.set_fate(ServerId(2), Fate::Reselect);
    assert_eq!(destination_of(&host.run(&packet, FROM_CLIENT)), (SERVERS[1].into(), 8080));
}

#[test]
fn a_syn_on_a_closed_connection_is_another_connection_and_one_on_an_open_one_is_not() {
    let mut host = Host::new(nat());
    host.connect(1001);
    host.preferred.set_choice(ServiceId(0), Choice::Preferred(ServerId(1)));
    let syn = segment((CLIENT, 1001), (VIPA, 80), SYN, (900, 0));
    assert_eq!(destination_of(&host.run(&syn, FROM_CLIENT)), (SERVERS[0].into(), 8080));
    assert_eq!(host.state.flows.half_open(), 0, "a forged SYN makes nothing half-open");
    let fin = segment((CLIENT, 1001), (VIPA, 80), FIN | ACK, (101, 501));
    host.run(&fin, FROM_CLIENT);
    assert_eq!(destination_of(&host.run(&syn, FROM_CLIENT)), (SERVERS[1].into(), 8080));
    assert_eq!(host.state.flows.served(), 1);
}

/// A server in TIME-WAIT takes the SYN for one of the connection that had these ends before.
#[test]
fn a_client_that_resets_an_answer_of_before_asks_the_same_server_with_the_same_port() {
    let mut host = Host::new(nat());
    let client = (CLIENT, 1001);
    let syn = segment(client, (VIPA, 80), SYN, (900, 0));
    let seen = assert_checksum(&host.run(&syn, FROM_CLIENT)).ports();
    host.run(&segment((SERVERS[0], 8080), (SECOND, seen.0), ACK, (77, 55)), FROM_SERVER);
    let reset = host.run(&segment(client, (VIPA, 80), RST, (55, 0)), FROM_CLIENT);
    assert_eq!(assert_checksum(&reset).ports(), seen, "it ends what the server remembers");
    host.preferred.set_choice(ServiceId(0), Choice::Preferred(ServerId(1)));
    assert_eq!(assert_checksum(&host.run(&syn, FROM_CLIENT)).ports(), seen);
    assert_eq!((host.counters(0).created(), host.counters(1).created()), (1, 0));
    assert_eq!(host.state.flows.half_open(), 1, "until the server has answered this one");
    host.run(&segment((SERVERS[0], 8080), (SECOND, seen.0), SYN | ACK, (500, 901)), FROM_SERVER);
    host.run(&segment(client, (VIPA, 80), ACK, (901, 501)), FROM_CLIENT);
    assert_eq!(host.state.flows.half_open(), 0);
}

#[test]
fn a_connection_is_its_servers_until_both_ends_have_said_their_last() {
    let mut host = Host::new(nat());
    let seen = host.connect(1001);
    host.connect(1002);
    let (client, server) = ((CLIENT, 1001), (SERVERS[0], 8080));
    for _ in 0..2 {
        host.run(&segment(client, (VIPA, 80), FIN | ACK, (101, 501)), FROM_CLIENT);
        assert_eq!(host.counters(0).active(), 2, "the server may still have much to say");
    }
    for _ in 0..2 {
        host.run(&segment(server, seen, FIN | ACK, (501, 102)), FROM_SERVER);
        assert_eq!(host.counters(0).active(), 1);
    }
    host.run(&segment((CLIENT, 1002), (VIPA, 80), RST, (101, 0)), FROM_CLIENT);
    assert_eq!((host.counters(0).active(), host.counters(0).failed()), (0, 0));
    assert_eq!(host.state.flows.served(), 2, "what comes late still finds its way");
    host.state.flows.sweep(128, Millis(NOW.0 + 121_000), |_| {});
    service::settle(&mut host.state, &host.preferred);
    assert_eq!((host.counters(0).active(), host.state.flows.served()), (0, 0));

    // Refused.
    let syn = host.run(&segment(client, (VIPA, 80), SYN, (1, 0)), FROM_CLIENT);
    let seen = (SECOND, assert_checksum(&syn).ports().0);
    host.run(&segment(server, seen, RST | ACK, (0, 2)), FROM_SERVER);
    assert_eq!((host.counters(0).active(), host.counters(0).failed()), (0, 1));

    let mut host = Host::new(Mode::Direct);
    host.run(&segment(client, (VIPA, 80), SYN, (1, 0)), FROM_CLIENT);
    host.run(&segment(client, (VIPA, 80), FIN | ACK, (2, 9)), FROM_CLIENT);
    assert_eq!(host.counters(0).active(), 0, "the server is not heard");
}

#[test]
fn half_open_flows_take_a_quarter_of_the_table_and_no_open_one_has_to_go() {
    let mut host = Host::new(nat());
    for port in 1000..1020 {
        host.connect(port);
    }
    for n in 0..1000u32 {
        let [.., a, b] = n.to_be_bytes();
        let syn = segment(([198, 51, a, b], 99), (VIPA, 80), SYN, (1, 0));
        let frame = host.run(&syn, FROM_CLIENT);
        assert!(matches!(frame.verdict, Verdict::Transmit { .. }), "{:?}", frame.verdict);
    }
    assert_eq!(host.state.flows.half_open(), 16);
    assert_eq!(host.state.flows.served(), 36);
    for port in 1000..1020 {
        let data = host.run(&segment((CLIENT, port), (VIPA, 80), ACK, (101, 501)), FROM_CLIENT);
        assert_eq!(destination_of(&data), (SERVERS[0].into(), 8080), "port {port}");
    }
    host.connect(2000);
}

#[test]
fn a_full_table_makes_room_from_idle_connections_alone() {
    let mut host = Host::new(nat());
    for port in 1000..1064 {
        host.connect(port);
    }
    let syn = segment((CLIENT, 2000), (VIPA, 80), SYN, (1, 0));
    let refused = host.run(&syn, FROM_CLIENT);
    assert_eq!(refused.verdict, Verdict::Drop(DropReason::FlowTableFull));
    assert_eq!(host.state.flows.served(), 64);
    host.now = Millis(NOW.0 + 61_000);
    let begun = host.run(&syn, FROM_CLIENT);
    assert!(matches!(begun.verdict, Verdict::Transmit { .. }), "{:?}", begun.verdict);
    assert_eq!((host.state.flows.served(), host.state.flows.evicted()), (64, 1));
}

#[test]
fn a_half_open_flow_gives_its_port_to_the_next_where_none_is_free() {
    let mut host = Host::new(nat());
    host.state = state(1024);
    for port in 1000..1050 {
        host.connect(port);
    }
    for port in 2000..2100 {
        let syn = segment((CLIENT, port), (VIPA, 80), SYN, (1, 0));
        let frame = host.run(&syn, FROM_CLIENT);
        assert!(matches!(frame.verdict, Verdict::Transmit { .. }), "{:?}", frame.verdict);
    }
    assert_eq!((host.state.flows.half_open(), host.state.flows.served()), (50, 100));
    assert_eq!(host.state.flows.evicted(), 50);
    // Those that began last are left: the oldest have made room.
    let served = host.state.flows.served_flows().into_iter();
    let half_open = served.filter(|id| host.state.flows.phase(*id) == Phase::Opening);
    let ports = half_open.map(|id| host.state.flows.original(id).source().port);
    assert!(ports.collect::<Vec<_>>().iter().all(|port| *port >= 2050));
}

#[test]
fn served_connections_outlive_the_process() {
    let words: &'static [AtomicU64] =
        (0..64 * WORDS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    let mut host = Host::new(nat());
    host.state = state_over(words);
    host.connect(1001);

    let mut next = Host::new(nat());
    next.state = state_over(words);
    // A newer configuration: the places are others.
    next.preferred.set_choice(ServiceId(0), Choice::Preferred(ServerId(1)));
    service::recognise(&mut next.state, &next.preferred);
    assert_eq!((next.state.flows.served(), next.counters(0).active()), (1, 1));
    let data = next.run(&segment((CLIENT, 1001), (VIPA, 80), ACK, (101, 501)), FROM_CLIENT);
    assert_eq!(destination_of(&data), (SERVERS[0].into(), 8080));
}

#[test]
fn a_flow_of_a_server_that_was_removed_goes_on() {
    let mut host = Host::new(nat());
    host.connect(1001);
    let services = host.preferred.services().map(|(_, service)| Some(service.clone())).collect();
    let servers = (0..6).map(|id| host.preferred.server(ServerId(id)).filter(|_| id != 0).cloned());
    host.preferred = PreferredTable::new(services, servers.collect());
    let data = host.run(&segment((CLIENT, 1001), (VIPA, 80), ACK, (101, 501)), FROM_CLIENT);
    assert_eq!(destination_of(&data), (SERVERS[0].into(), 8080));
}

#[test]
fn errors_reach_the_end_that_they_are_about_in_its_own_terms() {
    let mut host = Host::new(nat());
    let seen = host.connect(1001);
    // From a router on the way to the server, about what the server got.
    let sent = segment(seen, (SERVERS[0], 8080), ACK, (101, 501));
    let mut error = Vec::new();
    PacketBuilder::ipv4([10, 9, 0, 254], seen.0, 60)
        .icmpv4_raw(3, 1, [0; 4])
        .write(&mut error, &sent[..28])
        .expect("an error");
    let frame = host.run(&error, FROM_SERVER);
    assert!(matches!(frame.verdict, Verdict::Transmit { .. }), "{:?}", frame.verdict);
    let headers = assert_checksum(&frame);
    assert_eq!((headers.source, headers.destination), ([10, 9, 0, 254].into(), CLIENT.into()));
    let quoted = headers.quoted(frame.packet()).expect("a quote");
    assert_eq!((quoted.source, quoted.destination), (CLIENT.into(), VIPA.into()));
    assert_eq!(quoted.ports(), (1001, 80));

    // From the client itself, about what it got.
    let got = segment((VIPA, 80), (CLIENT, 1001), ACK, (501, 101));
    let mut error = Vec::new();
    PacketBuilder::ipv4(CLIENT, VIPA, 60)
        .icmpv4_raw(3, 4, [0, 0, 5, 0])
        .write(&mut error, &got[..28])
        .expect("an error");
    let frame = host.run(&error, FROM_CLIENT);
    assert_eq!(frame.verdict, Verdict::Transmit { nic: NicId(1), destination: SERVER_MACS[0] });
    let headers = assert_checksum(&frame);
    assert_eq!((headers.source, headers.destination), (seen.0.into(), SERVERS[0].into()));
    let quoted = headers.quoted(frame.packet()).expect("a quote");
    assert_eq!((quoted.source, quoted.ports()), (SERVERS[0].into(), (8080, seen.1)));
}

#[test]
fn fragments_follow_the_first_to_the_server() {
    let mut host = Host::new(nat());
    let whole = datagram((CLIENT, 1001), (VIPA, 53));
    let fragment = |offset: u16, more: bool, payload: &[u8]| {
        let mut bytes = whole[..20].to_vec();
        bytes.extend(payload);
        let length = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes[4..6].copy_from_slice(&[7, 7]);
        let more = if more { 0x2000 } else { 0 };
        bytes[6..8].copy_from_slice(&(more + offset / 8).to_be_bytes());
        bytes
    };
    let first = fragment(0, true, &[&whole[20..28], &[1; 8][..]].concat());
    let second = fragment(16, false, &[2; 24]);
    let waits = host.run(&second, FROM_CLIENT);
    assert!(matches!(waits.verdict, Verdict::Wait(Wait::FirstFragment(_))));
    assert!(matches!(host.run(&first, FROM_CLIENT).verdict, Verdict::Transmit { .. }));
    let follows = host.run(&second, FROM_CLIENT);
    assert_eq!(follows.verdict, Verdict::Transmit { nic: NicId(1), destination: SERVER_MACS[0] });
    let headers = Headers::parse(follows.packet()).expect("headers");
    assert_eq!((headers.source, headers.destination), (SECOND.into(), SERVERS[0].into()));
    assert_eq!(follows.packet()[8], 63);
}

#[test]
fn a_client_is_told_of_what_cannot_go_on() {
    let mut host = Host::new(nat());
    host.connect(1001);
    let mut late = segment((CLIENT, 1001), (VIPA, 80), ACK, (101, 501));
    late[8] = 1;
    let frame = host.run(&late, FROM_CLIENT);
    assert!(matches!(frame.verdict, Verdict::Transmit { .. }), "{:?}", frame.verdict);
    let headers = assert_checksum(&frame);
    assert_eq!((headers.source, headers.destination), (VIPA.into(), CLIENT.into()));
    assert_eq!(frame.packet()[20..22], [11, 0]);
    host.net.nics[1].mtu = 40;
    let large = segment((CLIENT, 1001), (VIPA, 80), ACK, (101, 501));
    let frame = host.run(&large, FROM_CLIENT);
    assert_eq!(frame.packet()[20..22], [3, 4]);
}

#[test]
fn weights_spread_new_connections_and_leave_the_old_ones() {
    let mut host = Host::new(nat());
    host.state = state(4096);
    let spread: Arc<[ServerId]> = [0, 0, 1].map(ServerId).into();
    host.preferred.set_choice(ServiceId(0), Choice::Weighted(spread));
    let mut counts = [0; 2];
    for port in 1000..1090 {
        let syn = host.run(&segment((CLIENT, port), (VIPA, 80), SYN, (1, 0)), FROM_CLIENT);
        let (server, _) = destination_of(&syn);
        counts[usize::from(server == IpAddr::from(SERVERS[1]))] += 1;
    }
    assert!(counts[0] > 40 && counts[1] > 15, "{counts:?}");
}

/// Where they did not, a server's flows would search half of the sources' ports for a free one, and leave the others unused.
#[test]
fn each_servers_connections_spread_over_all_sources() {
    let source = |address: [u8; 4]| Source {
        address: address.into(),
        ports: Some((40_000..41_000).collect()),
    };
    let mut host = Host::new(Mode::Nat { sources: [source(SECOND), source(VIPA)].into() });
    host.state = state(4096);
    let spread: Arc<[ServerId]> = [0, 1].map(ServerId).into();
    host.preferred.set_choice(ServiceId(0), Choice::Weighted(spread));
    let mut counts = std::collections::BTreeMap::new();
    for port in 1000..1100 {
        let syn = host.run(&segment((CLIENT, port), (VIPA, 80), SYN, (1, 0)), FROM_CLIENT);
        *counts.entry((destination_of(&syn).0, assert_checksum(&syn).source)).or_insert(0) += 1;
    }
    assert!(counts.len() == 4 && counts.values().all(|count| *count > 10), "{counts:?}");
}

#[test]
fn a_client_belongs_to_one_worker_and_its_servers_answers_too() {
    let mut owners = [0; 2];
    for port in 1000..1050 {
        let syn = segment((CLIENT, port), (VIPA, 80), SYN, (1, 0));
        let mut hosts = [0, 1].map(|number| {
            let mut host = Host::new(nat());
            host.state = State { worker: WorkerId(number), workers: 2, ..state(64) };
            host
        });
        let frames = [0, 1].map(|at| hosts[at].run(&syn, FROM_CLIENT));
        let owner = match frames.each_ref().map(|frame| frame.verdict) {
            [Verdict::Transmit { .. }, Verdict::Punt(WorkerId(0))] => 0,
            [Verdict::Punt(WorkerId(1)), Verdict::Transmit { .. }] => 1,
            other => panic!("{other:?}"),
        };
        owners[owner] += 1;
        let seen = assert_checksum(&frames[owner]).ports().0;
        assert_eq!(usize::from(seen % 2), owner, "answers are steered by their port");
        let back = segment((SERVERS[0], 8080), (SECOND, seen), SYN | ACK, (1, 2));
        let stray = hosts[1 - owner].run(&back, FROM_SERVER);
        assert_eq!(stray.verdict, Verdict::Punt(WorkerId(owner as u8)));
    }
    assert!(owners[0] > 5 && owners[1] > 5, "{owners:?}");
}

#[test]
fn a_late_answer_of_a_server_is_dropped_and_what_is_no_services_is_the_kernels() {
    let mut host = Host::new(nat());
    let late = segment((SERVERS[0], 8080), (SECOND, 40007), ACK, (1, 2));
    assert_eq!(host.run(&late, FROM_SERVER).verdict, Verdict::Drop(DropReason::NoFlow));
    let ssh = segment((CLIENT, 1001), (VIPA, 22), SYN, (1, 0));
    assert_eq!(host.run(&ssh, FROM_CLIENT).verdict, Verdict::Kernel);
}

#[test]
fn a_half_open_flow_lives_for_seconds_and_an_open_one_for_hours() {
    let mut host = Host::new(nat());
    host.connect(1001);
    host.run(&segment((CLIENT, 1002), (VIPA, 80), SYN, (1, 0)), FROM_CLIENT);
    host.state.flows.sweep(128, Millis(NOW.0 + 16_000), |_| {});
    service::settle(&mut host.state, &host.preferred);
    assert_eq!((host.state.flows.served(), host.state.flows.half_open()), (1, 0));
    assert_eq!((host.counters(0).active(), host.counters(0).failed()), (1, 1));
    host.state.flows.sweep(128, Millis(NOW.0 + 7_000_000), |_| {});
    assert_eq!(host.state.flows.served(), 1);
    let id = host.state.flows.served_flows()[0];
    assert_eq!(host.state.flows.phase(id), Phase::Open);
}
