//! What a packet of a virtual service costs in the pipeline alone: `cargo bench --bench pipeline [-- --quick]`.
//!
//! `process_batch` over packets in memory, no device and no kernel: established flows in random order at growing
//! numbers of flows, the memory that a million of them take, new flows, established ones among new ones, and
//! established ones while the preferred servers change a hundred times a second. Copying each packet into its
//! frame is in every figure. Medians of several rounds; `target/bench/pipeline.json`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use vipa::forward::claims::Claims;
use vipa::forward::flow::{FlowTable, Millis, Shape};
use vipa::forward::frame::{Frame, Ingress};
use vipa::forward::pipeline::{Sight, State, process_batch};
use vipa::forward::preferred::{
    Choice, Fate, Mode, PreferredTable, Server, ServerCounters, ServerId, Service, ServiceId,
    Source,
};
use vipa::forward::publish;
use vipa::forward::route::{NextHop, Route, RouteTable};
use vipa::forward::service;
use vipa::forward::source::SourcePolicy;
use vipa::forward::verdict::Verdict;
use vipa::forward::view::{NetView, NicId, NicState, NicView, WorkerId};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::ip::Family;

const BATCH: usize = 64;
const SERVERS: u16 = 4;
const CLIENTS: Ingress = Ingress::Nic(NicId(0));
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

fn main() {
    let is_quick = std::env::args().any(|arg| arg == "--quick");
    let (rounds, packets) = if is_quick { (3, 400_000) } else { (7, 2_000_000) };
    let mut told = serde_json::Map::new();

    for family in Family::BOTH {
        let before = resident();
        let mut host = Host::new(family, 1_000_000);
        host.open(1_000_000);
        let bytes = resident() - before;
        let name = format!("{family:?}").to_lowercase();
        println!(
            "{name}: {} live flows in {:.1} MB, {} bytes each",
            host.state.flows.served(),
            bytes as f64 / 1e6,
            bytes / 1_000_000
        );
        told.insert(format!("memory_of_1000000_{name}_flows"), bytes.into());
        if family == Family::V6 {
            let each = host.established(rounds, packets, 1_000_000);
            println!("established IPv6, 1000000 flows: {each:.0} ns a packet");
            told.insert("established_ns_1000000_v6".to_owned(), each.into());
        }
    }
    for flows in [1_000, 100_000, 1_000_000] {
        let mut host = Host::new(Family::V4, flows);
        host.open(flows);
        let each = host.established(rounds, packets, flows);
        println!("established, {flows} flows: {each:.0} ns a packet, {:.2} M/s", 1e3 / each);
        told.insert(format!("established_ns_{flows}_v4"), each.into());
    }
    let mut host = Host::new(Family::V4, 1_000_000);
    host.open(100_000);
    let alone = host.established(rounds, packets, 100_000);
    let (new, among) = host.among_new(rounds, packets / 4, 100_000);
    println!("new flows: {:.0} thousand a second", 1e6 / new);
    println!("established among as many new ones: {among:.0} ns, alone {alone:.0} ns");
    told.insert("new_flows_per_second".to_owned(), (1e9 / new).into());
    told.insert("established_ns_alone".to_owned(), alone.into());
    told.insert("established_ns_among_new".to_owned(), among.into());

    let mut host = Host::new(Family::V4, 100_000);
    host.open(100_000);
    let ratio = host.under_updates(rounds, packets, 100_000);
    println!("with 100 updates of the table a second: {ratio:.3} of the rate without");
    told.insert("rate_under_updates".to_owned(), ratio.into());

    let place = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&place).expect("target takes directories");
    let text = serde_json::to_string_pretty(&told).expect("numbers");
    std::fs::write(place.join("pipeline.json"), text).expect("target takes files");
}

/// A director between clients and servers: its state, what it sees, and the packets of its clients.
struct Host {
    family: Family,
    state: State,
    net: NetView,
    preferred: PreferredTable,
    frames: Vec<Frame>,
    now: Millis,
    /// A packet whose addresses and ports are written for each.
    packet: Vec<u8>,
    random: u64,
}

impl Host {
    fn new(family: Family, flows: u32) -> Host {
        let shape = match family {
            Family::V4 => Shape { v4: flows, v6: 0 },
            Family::V6 => Shape { v4: 0, v6: flows },
        };
        let words: Vec<AtomicU64> = (0..shape.words()).map(|_| AtomicU64::new(0)).collect();
        let (table, _) = FlowTable::adopt(words.leak(), shape, 7);
        Host {
            family,
            state: State::new(table, WorkerId(0), 1),
            net: net(),
            preferred: preferred(family, flows),
            frames: (0..BATCH).map(|_| Frame::new()).collect(),
            now: Millis(1_000),
            packet: segment(family),
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// Opens connections of the first `flows` clients, all three packets of each.
    fn open(&mut self, flows: u32) {
        for client in 0..flows {
            let sent = self.one(client, SYN);
            let back = answer(sent);
            self.put(0, &back, Ingress::Nic(NicId(1)));
            self.run(1);
            self.one(client, ACK);
        }
        assert_eq!(self.state.flows.served(), flows);
        assert_eq!(self.state.flows.half_open(), 0);
    }

    /// Nanoseconds of a packet of an established flow, in random order: the median of the rounds.
    fn established(&mut self, rounds: usize, packets: u32, flows: u32) -> f64 {
        let rates = (0..rounds).map(|_| {
            let start = Instant::now();
            for _ in 0..packets / BATCH as u32 {
                self.batch_of_established(flows);
            }
            start.elapsed().as_nanos() as f64 / f64::from(packets / BATCH as u32 * BATCH as u32)
        });
        median(rates.collect())
    }

    /// Nanoseconds of a new flow, and of an established flow's packet in batches that take turns with those of new flows.
    fn among_new(&mut self, rounds: usize, packets: u32, flows: u32) -> (f64, f64) {
        let mut next = flows;
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (mut spent_new, mut spent_old) = (Duration::ZERO, Duration::ZERO);
            for _ in 0..packets / BATCH as u32 {
                let start = Instant::now();
                for slot in 0..BATCH {
                    self.fill(slot, next, SYN);
                    next += 1;
                }
                self.run(BATCH);
                let middle = Instant::now();
                self.batch_of_established(flows);
                spent_new += middle - start;
                spent_old += middle.elapsed();
                self.now.0 += 1;
            }
            let count = f64::from(packets / BATCH as u32 * BATCH as u32);
            new.push(spent_new.as_nanos() as f64 / count);
            old.push(spent_old.as_nanos() as f64 / count);
        }
        (median(new), median(old))
    }

    /// The rate while another thread publishes a table each ten milliseconds, in shares of that without; the two take turns.
    fn under_updates(&mut self, rounds: usize, packets: u32, flows: u32) -> f64 {
        let first = Arc::new(self.preferred.clone());
        let (mut publisher, mut readers) = publish::channel(1, Arc::clone(&first));
        let mut reader = readers.remove(0);
        let is_publishing = Arc::new(AtomicBool::new(false));
        let is_over = Arc::new(AtomicBool::new(false));
        let (on, over) = (Arc::clone(&is_publishing), Arc::clone(&is_over));
        let writer = std::thread::spawn(move || {
            let mut table = PreferredTable::clone(&first);
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
                if on.load(Ordering::Relaxed) {
                    table.generation += 1;
                    let id = ServerId((table.generation % u32::from(SERVERS)) as u16);
                    table.set_choice(ServiceId(0), Choice::Preferred(id));
                    publisher.publish(Arc::new(table.clone()));
                }
            }
        });
        let mut ratios = Vec::new();
        for _ in 0..rounds.max(5) {
            let [without, with] = [false, true].map(|is_on| {
                is_publishing.store(is_on, Ordering::Relaxed);
                let start = Instant::now();
                for _ in 0..packets / BATCH as u32 {
                    self.preferred = PreferredTable::clone(reader.get());
                    self.batch_of_established(flows);
                }
                start.elapsed().as_secs_f64()
            });
            ratios.push(without / with);
        }
        is_over.store(true, Ordering::Relaxed);
        writer.join().expect("it only publishes");
        median(ratios)
    }

    fn batch_of_established(&mut self, flows: u32) {
        for slot in 0..BATCH {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let client = ((self.random >> 33) % u64::from(flows)) as u32;
            self.fill(slot, client, ACK);
        }
        self.run(BATCH);
    }

    /// One packet of a client; what was sent of it.
    fn one(&mut self, client: u32, flags: u8) -> &[u8] {
        self.fill(0, client, flags);
        self.run(1);
        assert!(matches!(self.frames[0].verdict, Verdict::Transmit { .. }));
        self.frames[0].packet()
    }

    /// Client `client`'s packet into a frame: its number is in its address. The checksum is whatever it is: it is
    /// brought up to date, never looked at.
    fn fill(&mut self, slot: usize, client: u32, flags: u8) {
        let (low, layer4) = match self.family {
            Family::V4 => (12, 20),
            Family::V6 => (20, 40),
        };
        let address = 0x0a00_0000 | client;
        self.packet[low..low + 4].copy_from_slice(&address.to_be_bytes());
        self.packet[layer4 + 13] = flags;
        let packet = std::mem::take(&mut self.packet);
        self.put(slot, &packet, CLIENTS);
        self.packet = packet;
    }

    fn put(&mut self, slot: usize, packet: &[u8], ingress: Ingress) {
        let frame = &mut self.frames[slot];
        frame.space(0)[..packet.len()].copy_from_slice(packet);
        frame.received(packet.len());
        frame.ingress = ingress;
        frame.offload = Default::default();
    }

    fn run(&mut self, count: usize) {
        let sight = Sight { net: &self.net, preferred: &self.preferred, now: self.now };
        process_batch(&mut self.frames[..count], &mut self.state, sight);
        service::settle(&mut self.state, &self.preferred);
        black_box(&self.frames);
    }
}

fn vipa(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([203, 0, 113, 10]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10]),
    }
}

fn server(family: Family, at: u16) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 255, 0, 1 + at as u8]),
        Family::V6 => IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, 1 + at]),
    }
}

/// Sources enough for `flows`: a port of a source is used once for each server.
fn preferred(family: Family, flows: u32) -> PreferredTable {
    let ports: Arc<[u16]> = (1024..=65_535).collect();
    let count = flows.div_ceil(50_000 * u32::from(SERVERS)).max(1);
    let sources = (0..count).map(|at| Source {
        address: match vipa(family) {
            IpAddr::V4(a) => Ipv4Addr::from(u32::from(a) + 1 + at).into(),
            IpAddr::V6(a) => Ipv6Addr::from(u128::from(a) + 1 + u128::from(at)).into(),
        },
        ports: Some(Arc::clone(&ports)),
    });
    let service = Service {
        name: "bench".into(),
        address: vipa(family),
        ports: 80..=80,
        protocol: 6,
        mode: Mode::Nat { sources: sources.collect() },
        choice: Choice::Weighted((0..SERVERS).map(ServerId).collect()),
    };
    let servers = (0..SERVERS).map(|at| {
        Some(Server {
            service: ServiceId(0),
            address: server(family, at),
            port: Some(8080),
            is_local: false,
            fate: Fate::Kept,
            counters: Arc::new(ServerCounters::new(1)),
        })
    });
    PreferredTable::new(vec![Some(service)], servers.collect())
}

fn net() -> NetView {
    let nic = |number: u8| NicView {
        name: format!("eth{number}"),
        ifindex: u32::from(number) + 1,
        mac: MacAddr([2, 0, 0, 0, 0, number]),
        mtu: 1500,
        weight: 1,
        metric: 1,
        is_live: true,
        state: NicState::Live,
        addresses: vec![(IpAddr::from([10, 254, number, 2]), 24)],
    };
    let gateway = |family| match family {
        Family::V4 => IpAddr::from([10, 254, 0, 1]),
        Family::V6 => IpAddr::from([0xfd08, 0, 0, 0, 0, 0, 0, 1]),
    };
    let to = |prefix: &str, nic: u8, gateway| Route {
        prefix: prefix.parse().expect("a prefix"),
        next_hops: vec![NextHop { nic: NicId(nic), gateway }],
    };
    let routes = vec![
        to("0.0.0.0/0", 0, Some(gateway(Family::V4))),
        to("::/0", 0, Some(gateway(Family::V6))),
        to("10.255.0.0/24", 1, None),
        to("fd09::/64", 1, None),
    ];
    let gateways = Family::BOTH.map(|family| ((NicId(0), gateway(family)), MacAddr([6; 6])));
    let servers = Family::BOTH.into_iter().flat_map(|family| {
        (0..SERVERS).map(move |at| ((NicId(1), server(family, at)), MacAddr([8; 6])))
    });
    NetView {
        generation: 1,
        nics: [nic(0), nic(1)].into(),
        routes: RouteTable::new(routes),
        neighbours: gateways.into_iter().chain(servers).collect(),
        source: SourcePolicy::default(),
        claims: Claims::default(),
    }
}

fn segment(family: Family) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (vipa(family), family) {
        (IpAddr::V4(vipa), _) => PacketBuilder::ipv4([10, 0, 0, 0], vipa.octets(), 64),
        (IpAddr::V6(vipa), _) => PacketBuilder::ipv6([0x20; 16], vipa.octets(), 64),
    }
    .tcp(40_000, 80, 1, 1000)
    .ack(1)
    .write(&mut bytes, b"eight by")
    .expect("a segment");
    bytes
}

/// The server's SYN-ACK to what was sent to it.
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

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc");
    let pages =
        statm.split(' ').nth(1).and_then(|text| text.parse::<u64>().ok()).expect("a number");
    pages * 4096
}
