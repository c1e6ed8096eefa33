//! The established path allocates nothing, live and in replay: counted by an allocator, over devices in memory,
//! while packets are seen to pass.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::ArcSwap;
use etherparse::PacketBuilder;
use vipa::capture::{Link, Reader, Writer};
use vipa::config::Config;
use vipa::device::memory::Memory;
use vipa::engine::heartbeat::HeartbeatPage;
use vipa::engine::message::{HeldFlow, Request};
use vipa::engine::statistics::WorkerStatistics;
use vipa::engine::worker::{Order, Parts, RouterHandle, Worker};
use vipa::forward::flow::{FlowTable, Shape};
use vipa::forward::frame::Ingress;
use vipa::forward::pipeline::State;
use vipa::forward::publish;
use vipa::forward::route::{NextHop, Route, RouteTable};
use vipa::forward::source::{Rule, SourcePolicy, Target};
use vipa::forward::view::{NetView, NicId, NicState, NicView, WorkerId};
use vipa::replay;
use vipa::wire::ethernet::MacAddr;
use vipa::wire::offload::Offload;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[allow(unsafe_code)] // A global allocator is unsafe by its trait; this one only counts and passes on.
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

const VIPA: [u8; 4] = [203, 0, 113, 10];
const SECOND: [u8; 4] = [203, 0, 113, 11];
const GATEWAY: [u8; 4] = [10, 1, 1, 1];

fn view() -> NetView {
    NetView {
        generation: 1,
        nics: [NicView {
            name: "eth1".into(),
            ifindex: 1,
            mac: MacAddr::default(),
            mtu: 1500,
            weight: 1,
            metric: 1,
            xdp: None,
            is_live: true,
            state: NicState::Live,
            addresses: vec![],
        }]
        .into(),
        routes: RouteTable::new(vec![Route {
            prefix: "0.0.0.0/0".parse().expect("a prefix"),
            next_hops: vec![NextHop { nic: NicId(0), gateway: Some(GATEWAY.into()) }],
        }]),
        neighbours: [((NicId(0), GATEWAY.into()), MacAddr([1; 6]))].into_iter().collect(),
        claims: vipa::forward::claims::Claims::default(),
        source: SourcePolicy {
            sourcevipa: true,
            vipas: vec![VIPA.into(), SECOND.into()],
            default_v4: Some(VIPA.into()),
            rules: vec![Rule {
                ports: Some(443..=443),
                target: Target::Vipa(SECOND.into()),
                ..Rule::default()
            }],
            ports: (61000..=65535).collect(),
            ..SourcePolicy::default()
        },
    }
}

fn tcp(from: ([u8; 4], u16), to: ([u8; 4], u16), syn: bool) -> Vec<u8> {
    let step = PacketBuilder::ipv4(from.0, to.0, 64).tcp(from.1, to.1, 1, 100);
    let step = if syn { step.syn() } else { step.ack(1) };
    let mut bytes = Vec::new();
    step.write(&mut bytes, &[7; 1000]).expect("a packet");
    bytes
}

#[test]
fn the_established_path_allocates_nothing() {
    let cell = Arc::new(ArcSwap::from_pointee(view()));
    let words: Vec<AtomicU64> = (0..Shape::both(1024).words()).map(|_| AtomicU64::new(0)).collect();
    let (flows, _) = FlowTable::adopt(words.leak(), Shape::both(1024), 1);
    let statistics = Arc::new(WorkerStatistics::default());
    let (requests, asked) = crossbeam_channel::bounded(64);
    let router_poll = mio::Poll::new().expect("poll");
    let waker = Arc::new(mio::Waker::new(router_poll.registry(), mio::Token(0)).expect("waker"));
    let page = HeartbeatPage::new().expect("page");
    let (retired, _retired) = crossbeam_channel::unbounded();
    let (mut worker, handle) = Worker::new(Parts {
        state: State::new(flows, WorkerId(0), 1),
        cell,
        preferred: publish::channel(1, Arc::default()).1.remove(0),
        router: RouterHandle { requests, waker },
        statistics: Arc::clone(&statistics),
        heartbeat: page.worker(WorkerId(0)),
        retired,
    })
    .expect("a worker");

    let (adapter, tun) = Memory::new();
    let (port, nic) = Memory::new();
    handle.order(Order::Adapter(Box::new(adapter)));
    handle.order(Order::Nic(NicId(0), Some(Box::new(port))));

    // One plain and one rewritten flow come to be, with all that costs.
    let remote = [192, 0, 2, 1];
    let mut events = mio::Events::with_capacity(8);
    for (port, syn) in [(80, true), (443, true), (80, false), (443, false)] {
        tun.push(&tcp((VIPA, 40000), (remote, port), syn), Offload::default(), Ingress::Tun);
    }
    worker.turn(&mut events).expect("a turn");
    let held: HeldFlow = match asked.try_recv().expect("a request") {
        Request::Hold { flow, .. } => flow,
        other => panic!("{other:?}"),
    };
    handle.order(Order::Held(held));
    worker.turn(&mut events).expect("a turn");
    assert_eq!(nic.sent_count(), 4, "both flows go out");
    let wire_port = u16::from_be_bytes([nic.sent()[2][20], nic.sent()[2][21]]);

    // More than a turn takes from each device: the first one opens them, the second is measured.
    const PACKETS: usize = 10_000;
    const A_TURN: usize = 4_000;
    let out = [tcp((VIPA, 40000), (remote, 80), false), tcp((VIPA, 40000), (remote, 443), false)];
    let back = tcp((remote, 443), (SECOND, wire_port), false);
    for packet in out.iter().cycle().take(PACKETS) {
        tun.push(packet, Offload::default(), Ingress::Tun);
        nic.push(&back, Offload::default(), Ingress::Nic(NicId(0)));
    }
    nic.count_only();
    tun.count_only();
    handle.order(Order::Adapter(Box::new(Memory::over(&tun))));
    handle.order(Order::Nic(NicId(0), Some(Box::new(Memory::over(&nic)))));
    worker.turn(&mut events).expect("a turn");

    let (sent_before, back_before) = (nic.sent_count(), tun.sent_count());
    let allocations_before = ALLOCATIONS.with(Cell::get);
    worker.turn(&mut events).expect("a turn");
    let allocations = ALLOCATIONS.with(Cell::get) - allocations_before;
    assert!(nic.sent_count() - sent_before >= A_TURN, "packets passed");
    assert!(tun.sent_count() - back_before >= A_TURN, "replies passed");
    // The memory device drops each packet it was given; it makes none.
    assert_eq!(allocations, 0);
}

/// A capture of so many packets of one flow.
fn capture(packets: u64) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), [("vipa0", Link::Ip)]);
    for number in 0..packets {
        let packet = tcp((VIPA, 40000), ([192, 0, 2, 1], 443), number == 0);
        writer.write(0, number * 1_000, &packet).expect("memory");
    }
    writer.finish().expect("memory")
}

#[test]
fn replay_allocates_nothing_for_a_packet() {
    let text = "[virtual]\nname = \"vipa0\"\naddresses = [\"203.0.113.10\", \"203.0.113.11\"]\n\
                [[nic]]\nname = \"eth1\"\n\
                [[source.rule]]\nprotocol = \"tcp\"\nport = 443\nuse = \"203.0.113.11\"\n";
    let (config, _) = Config::parse(text, std::path::Path::new("vipa.toml")).expect("it is right");
    let allocations = |packets: u64| {
        let file = capture(packets);
        let before = ALLOCATIONS.with(Cell::get);
        let reader = Reader::new(file.as_slice()).expect("a capture");
        let report = replay::run(&config, reader, std::io::sink(), None, |_| {}).expect("a sink");
        assert_eq!((report.transmitted, report.flows_rewritten), (packets, 1));
        ALLOCATIONS.with(Cell::get) - before
    };
    assert_eq!(allocations(5_000), allocations(100));
}
