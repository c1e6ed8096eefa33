//! A forwarder in memory: its state, what it sees, and packets for it. No device, no kernel.

use std::fs;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use vipa::engine::flow_file::{FlowFile, Layout};
use vipa::forward::claims::Claims;
use vipa::forward::flow::{FlowTable, Millis, Shape};
use vipa::forward::frame::{Frame, Ingress};
use vipa::forward::pipeline::{Sight, State, process_batch};
use vipa::forward::preferred::{
    Choice, Fate, Mode, PreferredTable, Server, ServerCounters, ServerId, Service, ServiceId,
    Source,
};
use vipa::forward::route::{NextHop, Route, RouteTable};
use vipa::forward::service;
use vipa::forward::source::{Rule, SourcePolicy, Target};
use vipa::forward::verdict::{Verdict, Wait};
use vipa::forward::view::{NetView, NicId, NicState, NicView, WorkerId};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::ip::{Family, Prefix};
use vipa::wire::offload::{Csum, Gso, GsoKind, Offload};

pub(crate) const BATCH: usize = 64;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const PORT: u16 = 80;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Clients to a service: to its server, both ends translated.
    Service,
    /// The same, 64 KB at once.
    Large,
    /// What the servers send back.
    Answers,
    /// Both in turn.
    Turns,
    /// This host's own packets, with the source that they have.
    Egress,
    /// This host's own packets, which get another source.
    Rewritten,
    /// What comes back to those.
    Ingress,
}

impl Kind {
    pub(crate) const ALL: [Kind; 7] = [
        Kind::Service,
        Kind::Large,
        Kind::Answers,
        Kind::Turns,
        Kind::Egress,
        Kind::Rewritten,
        Kind::Ingress,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Service => "service",
            Kind::Large => "service-64k",
            Kind::Answers => "answers",
            Kind::Turns => "turns",
            Kind::Egress => "egress",
            Kind::Rewritten => "rewritten",
            Kind::Ingress => "ingress",
        }
    }

    fn is_served(self) -> bool {
        matches!(self, Kind::Service | Kind::Large | Kind::Answers | Kind::Turns)
    }

    /// Does any go the other way than the flow began?
    fn has_back(self) -> bool {
        matches!(self, Kind::Answers | Kind::Turns | Kind::Ingress)
    }
}

/// A forwarder's size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) kind: Kind,
    pub(crate) family: Family,
    /// Flows that there is room for.
    pub(crate) flows: u32,
    pub(crate) services: u16,
    /// Servers of each service.
    pub(crate) servers: u16,
    /// Routes beside those that packets take.
    pub(crate) routes: u32,
    pub(crate) nics: u8,
}

impl Setup {
    pub(crate) fn of(kind: Kind, family: Family, flows: u32) -> Setup {
        Setup { kind, family, flows, services: 1, servers: 4, routes: 0, nics: 2 }
    }
}

pub(crate) struct Host {
    setup: Setup,
    pub(crate) state: State,
    net: NetView,
    pub(crate) preferred: PreferredTable,
    frames: Vec<Frame>,
    pub(crate) now: Millis,
    /// A packet whose address of the far end is written for each.
    packet: Vec<u8>,
    /// One that goes the other way.
    answer: Vec<u8>,
    /// Of what comes back from each peer: both addresses, both ports.
    back: Vec<[u8; 36]>,
    random: u64,
}

impl Host {
    pub(crate) fn new(setup: Setup) -> Host {
        let shape = match setup.family {
            Family::V4 => Shape { v4: setup.flows, v6: 0 },
            Family::V6 => Shape { v4: 0, v6: setup.flows },
        };
        let table = FlowTable::fresh(words(shape.words()), shape, 7);
        Host {
            setup,
            state: State::new(table, WorkerId(0), 1),
            net: net(&setup),
            preferred: if setup.kind.is_served() {
                preferred(&setup)
            } else {
                PreferredTable::default()
            },
            frames: (0..BATCH).map(|_| Frame::new()).collect(),
            now: Millis(1_000),
            packet: segment(&setup),
            answer: Vec::new(),
            back: Vec::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// A host with so many open flows, and no room for more.
    pub(crate) fn full(setup: Setup) -> Host {
        let mut host = Host::new(setup);
        host.open(setup.flows);
        host
    }

    /// Opens connections of the first `flows` peers.
    pub(crate) fn open(&mut self, flows: u32) {
        for peer in 0..flows {
            let mut back = answer(self.one(peer, SYN));
            if self.setup.kind.is_served() || self.setup.kind.has_back() {
                self.put(0, &back, self.ingress(true), back.len());
                self.run(1);
            }
            self.one(peer, ACK);
            if self.setup.kind.has_back() {
                let (addresses, layer4) = ends_of(&back);
                let mut ends = [0; 36];
                ends[..layer4 - addresses + 4].copy_from_slice(&back[addresses..layer4 + 4]);
                self.back.push(ends);
                if peer == 0 {
                    back[layer4 + 13] = ACK;
                    self.answer = back;
                }
            }
        }
        assert_eq!(self.state.flows.len(), flows);
        assert_eq!(self.state.flows.half_open(), 0);
    }

    /// Nanoseconds of a packet of an open flow, in random order, of the first `flows` peers.
    pub(crate) fn established(&mut self, packets: u32, flows: u32) -> f64 {
        let start = Instant::now();
        for _ in 0..packets / BATCH as u32 {
            self.fill_established(flows);
            self.run(BATCH);
        }
        start.elapsed().as_nanos() as f64 / f64::from(packets / BATCH as u32 * BATCH as u32)
    }

    /// Nanoseconds of a new flow. `next` is the first peer that has none yet.
    pub(crate) fn begin(&mut self, packets: u32, next: &mut u32) -> f64 {
        let start = Instant::now();
        for _ in 0..packets / BATCH as u32 {
            self.run_new(BATCH, next);
        }
        start.elapsed().as_nanos() as f64 / f64::from(packets / BATCH as u32 * BATCH as u32)
    }

    /// Nanoseconds of an open flow's packet while `rate` flows begin in a second, in batches of their own; and how many did.
    pub(crate) fn among_new(
        &mut self,
        (packets, rate): (u32, f64),
        flows: u32,
        next: &mut u32,
    ) -> (f64, f64) {
        let (mut old, mut begun) = (Duration::ZERO, 0);
        let start = Instant::now();
        for _ in 0..packets / BATCH as u32 {
            let due = (start.elapsed().as_secs_f64() * rate) as u32 - begun;
            let count = BATCH.min(due as usize);
            self.run_new(count, next);
            begun += count as u32;
            // What new ones have written is on its way to memory no longer: that is their cost.
            fence(Ordering::SeqCst);
            let middle = Instant::now();
            self.fill_established(flows);
            self.run(BATCH);
            old += middle.elapsed();
            self.now.0 += 1;
        }
        let count = f64::from(packets / BATCH as u32 * BATCH as u32);
        (old.as_nanos() as f64 / count, f64::from(begun) / start.elapsed().as_secs_f64())
    }

    /// The first packets of as many peers.
    fn run_new(&mut self, count: usize, next: &mut u32) {
        for slot in 0..count {
            self.fill(slot, *next, SYN);
            *next += 1;
        }
        self.run(count);
        // Their clients are about to open them: they are no flood.
        let service = ServiceId(self.setup.services - 1);
        (0..count).for_each(|_| self.state.floods.opened(service));
    }

    /// A batch of packets of random peers among the first `flows`.
    pub(crate) fn fill_established(&mut self, flows: u32) {
        for slot in 0..BATCH {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let peer = ((self.random >> 33) % u64::from(flows)) as u32;
            if self.setup.kind.has_back() && (self.setup.kind != Kind::Turns || slot % 2 == 1) {
                self.fill_back(slot, peer);
            } else {
                self.fill(slot, peer, ACK);
            }
        }
    }

    pub(crate) fn run(&mut self, count: usize) {
        let sight = Sight { net: &self.net, preferred: &self.preferred, now: self.now };
        process(&mut self.frames[..count], &mut self.state, sight);
    }

    /// The same with servers that somebody else publishes.
    pub(crate) fn run_with(&mut self, count: usize, preferred: &PreferredTable) {
        let sight = Sight { net: &self.net, preferred, now: self.now };
        process(&mut self.frames[..count], &mut self.state, sight);
    }

    /// One packet from or to a peer; what was sent of it.
    fn one(&mut self, peer: u32, flags: u8) -> &[u8] {
        self.fill(0, peer, flags);
        self.run(1);
        if let Verdict::Wait(Wait::Hold(id)) = self.frames[0].verdict {
            // As the engine does once the kernel knows the flow.
            self.state.flows.set_held(id);
            self.fill(0, peer, flags);
            self.run(1);
        }
        assert!(
            matches!(self.frames[0].verdict, Verdict::Transmit { .. }),
            "{:?}",
            self.frames[0].verdict
        );
        self.frames[0].packet()
    }

    /// A packet from or to peer number `peer` into a frame: the number is in its address. The checksum is whatever it is: it is
    /// brought up to date, never looked at. What is large has its headers written, and its payload is what lies there.
    fn fill(&mut self, slot: usize, peer: u32, flags: u8) {
        let is_inbound = self.setup.kind.is_served();
        let (low, layer4) = match (self.setup.family, is_inbound) {
            (Family::V4, true) => (12, 20),
            (Family::V4, false) => (16, 20),
            (Family::V6, true) => (20, 40),
            (Family::V6, false) => (36, 40),
        };
        let address = 0x0a00_0000 | peer;
        self.packet[low..low + 4].copy_from_slice(&address.to_be_bytes());
        self.packet[layer4 + 13] = flags;
        let packet = std::mem::take(&mut self.packet);
        let copied = packet.len().min(128);
        self.put(slot, &packet, self.ingress(false), copied);
        self.packet = packet;
    }

    /// A packet of peer number `peer`'s flow that goes the other way.
    fn fill_back(&mut self, slot: usize, peer: u32) {
        let mut packet = std::mem::take(&mut self.answer);
        let (addresses, layer4) = ends_of(&packet);
        let length = layer4 - addresses + 4;
        packet[addresses..layer4 + 4].copy_from_slice(&self.back[peer as usize][..length]);
        self.put(slot, &packet, self.ingress(true), packet.len());
        self.answer = packet;
    }

    /// Where packets come in, those of the other direction if `is_back`.
    fn ingress(&self, is_back: bool) -> Ingress {
        match (self.setup.kind.is_served(), is_back) {
            (true, true) => Ingress::Nic(NicId(1)),
            (false, false) => Ingress::Tun,
            _ => Ingress::Nic(NicId(0)),
        }
    }

    fn put(&mut self, slot: usize, packet: &[u8], ingress: Ingress, copied: usize) {
        let frame = &mut self.frames[slot];
        frame.space(0)[..copied].copy_from_slice(&packet[..copied]);
        frame.received(packet.len());
        frame.ingress = ingress;
        frame.offload = Offload::default();
        if packet.len() > 1500 {
            let (kind, start) = match self.setup.family {
                Family::V4 => (GsoKind::Tcp4, 20),
                Family::V6 => (GsoKind::Tcp6, 40),
            };
            let csum = Csum::Partial { start, offset: 16 };
            let gso = Some(Gso::new(kind, 1400));
            frame.offload = Offload { csum, gso, ..Offload::default() };
        }
    }
}

/// As a worker does it.
fn process(frames: &mut [Frame], state: &mut State, sight: Sight<'_>) {
    process_batch(frames, state, sight);
    service::settle(state, sight.preferred);
    black_box(frames);
}

const RULED_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 112, 1);
const RULED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

/// So many words for a flow table, in a file as the forwarder's are.
fn words(words: usize) -> &'static [AtomicU64] {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // tmpfs, as /run is.
    let path = PathBuf::from(format!("/dev/shm/vipa-pipeline-{}-{number}", std::process::id()));
    let layout = Layout { version: 0, workers: 1, words_per_worker: words };
    let opened = FlowFile::open(&path, "bench", layout);
    // It is there for as long as it is mapped.
    let removed = fs::remove_file(&path);
    let (file, _) = opened.expect("a file on tmpfs");
    removed.expect("our own file");
    file.words(WorkerId(0)).expect("the only worker")
}

fn vipa(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([203, 0, 113, 10]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10]),
    }
}

/// Of a server.
fn address(family: Family, at: u16) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 255, (at >> 8) as u8, at as u8]),
        Family::V6 => IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, 1 + at]),
    }
}

/// Peers of the host: clients, or those that it speaks to.
fn peer(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 0, 0, 0]),
        Family::V6 => IpAddr::from([0x20; 16]),
    }
}

/// Sources enough for all flows, where a port of a source is used once for each server. Packets are for the last service.
fn preferred(setup: &Setup) -> PreferredTable {
    let Setup { family, flows, services, servers, .. } = *setup;
    let ports: Arc<[u16]> = (1024..=65_535).collect();
    let count = flows.div_ceil(50_000 * u32::from(servers)).max(1);
    let sources = (0..count).map(|at| Source {
        address: match vipa(family) {
            IpAddr::V4(a) => Ipv4Addr::from(u32::from(a) + 1 + at).into(),
            IpAddr::V6(a) => Ipv6Addr::from(u128::from(a) + 1 + u128::from(at)).into(),
        },
        ports: Some(Arc::clone(&ports)),
    });
    let sources: Arc<[Source]> = sources.collect();
    let last = services - 1;
    let service = |at: u16| Service {
        name: format!("bench{at}").into(),
        address: vipa(family),
        ports: PORT + last - at..=PORT + last - at,
        protocol: 6,
        mode: Mode::Nat { sources: if at == last { sources.clone() } else { sources[..1].into() } },
        choice: Choice::Weighted((0..servers).map(|i| ServerId(id(at, i, setup))).collect()),
    };
    let server = |at: u16| {
        Some(Server {
            service: ServiceId(at / servers),
            address: address(family, at % servers),
            port: Some(8080),
            is_local: false,
            fate: Fate::Kept,
            counters: Arc::new(ServerCounters::new(1)),
        })
    };
    let all = (0..services).map(|at| Some(service(at))).collect();
    PreferredTable::new(all, (0..services * servers).map(server).collect())
}

fn id(service: u16, server: u16, setup: &Setup) -> u16 {
    service * setup.servers + server
}

fn net(setup: &Setup) -> NetView {
    let nic = |number: u8| NicView {
        name: format!("eth{number}"),
        ifindex: u32::from(number) + 1,
        mac: MacAddr([2, 0, 0, 0, 0, number]),
        mtu: 1500,
        weight: 1,
        metric: 1,
        xdp: None,
        is_live: true,
        state: NicState::Live,
        addresses: vec![(IpAddr::from([10, 254, number, 2]), 24)],
    };
    let gateway = |nic: u8, family| match family {
        Family::V4 => IpAddr::from([10, 254, nic, 1]),
        Family::V6 => IpAddr::from([0xfd08, 0, 0, u16::from(nic), 0, 0, 0, 1]),
    };
    let ways: Vec<NicId> = (0..setup.nics).filter(|nic| *nic != 1).map(NicId).collect();
    let out = |family| {
        ways.iter()
            .map(|nic| NextHop { nic: *nic, gateway: Some(gateway(nic.0, family)) })
            .collect()
    };
    let servers = |prefix: &str| Route {
        prefix: prefix.parse().expect("a prefix"),
        next_hops: vec![NextHop { nic: NicId(1), gateway: None }],
    };
    let default = |prefix: &str, family| Route {
        prefix: prefix.parse().expect("a prefix"),
        next_hops: out(family),
    };
    let mut routes = vec![
        default("0.0.0.0/0", Family::V4),
        default("::/0", Family::V6),
        servers("10.255.0.0/16"),
        servers("fd09::/64"),
    ];
    // Lengths from 16 on as they are in a full table, none of which covers a peer.
    routes.extend((0..setup.routes).map(|at| {
        let prefix = match setup.family {
            Family::V4 => {
                let length = [24, 24, 24, 22, 20, 16][at as usize % 6];
                let bits = (0x5000_0000 + at * 256) & !(u32::MAX >> length);
                Prefix::new(Ipv4Addr::from(bits).into(), length)
            }
            Family::V6 => {
                let length = [48, 48, 44, 40, 32][at as usize % 5];
                let bits = (0x2a00_u128 << 112 | u128::from(at) << 80) & !(u128::MAX >> length);
                Prefix::new(Ipv6Addr::from(bits).into(), length)
            }
        };
        Route { prefix: prefix.expect("no bits behind its length"), next_hops: out(setup.family) }
    }));
    let gateways = Family::BOTH.into_iter().flat_map(|family| {
        ways.iter().map(move |nic| ((*nic, gateway(nic.0, family)), MacAddr([6; 6])))
    });
    let servers = Family::BOTH.into_iter().flat_map(|family| {
        (0..setup.servers).map(move |at| ((NicId(1), address(family, at)), MacAddr([8; 6])))
    });
    let rules = match (setup.kind, vipa(setup.family)) {
        (Kind::Rewritten | Kind::Ingress, IpAddr::V4(_)) => vec![RULED_V4.into()],
        (Kind::Rewritten | Kind::Ingress, IpAddr::V6(_)) => vec![RULED_V6.into()],
        _ => Vec::<IpAddr>::new(),
    };
    let (v4, v6) = (vipa(Family::V4), vipa(Family::V6));
    let source = SourcePolicy {
        sourcevipa: true,
        vipas: vec![v4, v6, RULED_V4.into(), RULED_V6.into()],
        default_v4: match v4 {
            IpAddr::V4(a) => Some(a),
            IpAddr::V6(_) => None,
        },
        default_v6: match v6 {
            IpAddr::V6(a) => Some(a),
            IpAddr::V4(_) => None,
        },
        rules: rules
            .into_iter()
            .map(|vipa| Rule { target: Target::Vipa(vipa), ..Rule::default() })
            .collect(),
        ports: (1024..=65_535).collect(),
        ephemeral: Some(32_768..=60_999),
        ..SourcePolicy::default()
    };
    NetView {
        generation: 1,
        nics: (0..setup.nics).map(nic).collect(),
        routes: RouteTable::new(routes),
        neighbours: gateways.chain(servers).collect(),
        source,
        claims: Claims::default(),
    }
}

/// From a peer to a service, or from this host to a peer.
fn segment(setup: &Setup) -> Vec<u8> {
    let (far, own) = (peer(setup.family), vipa(setup.family));
    let (source, destination, ports) =
        if setup.kind.is_served() { (far, own, (40_000, PORT)) } else { (own, far, (40_000, 443)) };
    let step = match (source, destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => PacketBuilder::ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => PacketBuilder::ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!("of one family"),
    };
    let payload = vec![b'v'; if setup.kind == Kind::Large { 65_000 } else { 8 }];
    let mut bytes = Vec::new();
    let step = step.tcp(ports.0, ports.1, 1, 1000).ack(1);
    step.write(&mut bytes, &payload).expect("a segment");
    bytes
}

/// The SYN-ACK to what was sent.
fn answer(sent: &[u8]) -> Vec<u8> {
    let mut bytes = sent.to_vec();
    let (source, length, layer4) = if sent[0] >> 4 == 4 { (12, 4, 20) } else { (8, 16, 40) };
    bytes[source..source + length].copy_from_slice(&sent[source + length..source + 2 * length]);
    bytes[source + length..source + 2 * length].copy_from_slice(&sent[source..source + length]);
    bytes[layer4..layer4 + 2].copy_from_slice(&sent[layer4 + 2..layer4 + 4]);
    bytes[layer4 + 2..layer4 + 4].copy_from_slice(&sent[layer4..layer4 + 2]);
    bytes[layer4 + 13] = SYN | ACK;
    bytes
}

/// Where a packet's addresses and its ports lie.
fn ends_of(packet: &[u8]) -> (usize, usize) {
    if packet[0] >> 4 == 4 { (12, 20) } else { (8, 40) }
}

/// Bytes of this process in memory.
pub(crate) fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc");
    let pages =
        statm.split(' ').nth(1).and_then(|text| text.parse::<u64>().ok()).expect("a number");
    pages * 4096
}
