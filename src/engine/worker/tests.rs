use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use crossbeam_channel::Receiver;

use super::*;
use crate::device::ReceiveError;
use crate::engine::heartbeat::HeartbeatPage;
use crate::forward::claims::Claims;
use crate::forward::flow::{FlowTable, Shape};
use crate::forward::frame::Ingress;
use crate::forward::publish;
use crate::forward::route::{NextHop, Route, RouteTable};
use crate::forward::source::{Rule, SourcePolicy, Target};
use crate::forward::view::{NicState, NicView};
use crate::wire::ethernet::MacAddr;
use crate::wire::offload::Offload;

/// A device that always has a frame, and notes the worker's stamp at each.
#[derive(Debug)]
struct Endless {
    page: HeartbeatPage,
    stamps: Arc<Mutex<BTreeSet<u64>>>,
}

impl Device for Endless {
    fn receive(&mut self, frame: &mut Frame) -> Result<(), ReceiveError> {
        let stamp = self.page.busy().next().expect("it works").since;
        self.stamps.lock().expect("no panic").insert(stamp);
        frame.received(1);
        frame.ingress = Ingress::Tun;
        Ok(())
    }

    fn send(&mut self, _frame: &mut Frame, _to: MacAddr) -> io::Result<()> {
        Ok(())
    }

    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }
}

fn nothing() -> NetView {
    NetView {
        generation: 1,
        nics: Box::default(),
        routes: RouteTable::new(Vec::new()),
        neighbours: std::iter::empty().collect(),
        claims: Claims::default(),
        source: SourcePolicy::default(),
    }
}

/// A worker that sees this network; who gives it orders, and what it asks the router.
fn worker(net: NetView, page: &HeartbeatPage) -> (Worker, WorkerHandle, Receiver<Request>) {
    let words: Vec<AtomicU64> = (0..Shape::both(1).words()).map(|_| AtomicU64::new(0)).collect();
    let flows = FlowTable::fresh(words.leak(), Shape::both(1), 1);
    let poll = Poll::new().expect("a poll");
    let waker = Arc::new(Waker::new(poll.registry(), ORDERS).expect("a waker"));
    let (requests, asked) = crossbeam_channel::bounded(16);
    let (worker, handle) = Worker::new(Parts {
        state: State::new(flows, WorkerId(0), 1),
        cell: Arc::new(ArcSwap::from_pointee(net)),
        preferred: publish::channel(1, Arc::default()).1.remove(0),
        router: RouterHandle { requests, waker },
        statistics: Arc::default(),
        heartbeat: page.worker(WorkerId(0)),
        retired: crossbeam_channel::unbounded().0,
    })
    .expect("a worker");
    (worker, handle, asked)
}

#[test]
fn a_worker_with_too_much_to_do_shows_with_each_batch_that_it_gets_on() {
    let page = HeartbeatPage::new().expect("a page");
    let (mut worker, handle, _asked) = worker(nothing(), &page);
    let stamps = Arc::new(Mutex::new(BTreeSet::new()));
    handle.order(Order::Adapter(Box::new(Endless { page, stamps: Arc::clone(&stamps) })));
    worker.turn(&mut Events::with_capacity(8)).expect("a turn");
    assert_eq!(stamps.lock().expect("no panic").len(), ROUNDS);
}

/// A device that has one frame.
#[derive(Debug)]
struct Once(Option<Vec<u8>>);

impl Device for Once {
    fn receive(&mut self, frame: &mut Frame) -> Result<(), ReceiveError> {
        let packet = self.0.take().ok_or(ReceiveError::Empty)?;
        *frame = Frame::holding(&packet, Offload::default(), Ingress::Tun);
        Ok(())
    }

    fn send(&mut self, _frame: &mut Frame, _to: MacAddr) -> io::Result<()> {
        Ok(())
    }

    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }
}

/// The first packet of a rewritten flow waits for the egress hold, and then for a next hop that nobody has asked for yet.
#[test]
fn a_frame_that_comes_to_wait_for_something_else_has_that_found_out() {
    let [own, other, there] =
        [[203, 0, 113, 10], [203, 0, 113, 11], [10, 1, 1, 9]].map(Ipv4Addr::from);
    let nic = NicView {
        name: "eth1".into(),
        ifindex: 2,
        mac: MacAddr::default(),
        mtu: 1500,
        weight: 1,
        metric: 1,
        xdp: None,
        is_live: true,
        state: NicState::Live,
        addresses: vec![([10, 1, 1, 2].into(), 24)],
    };
    let next_hops = vec![NextHop { nic: NicId(0), gateway: None }];
    let prefix = "10.1.1.0/24".parse().expect("a prefix");
    let rule = Rule { target: Target::Vipa(other.into()), ..Rule::default() };
    let net = NetView {
        nics: [nic].into(),
        routes: RouteTable::new(vec![Route { prefix, next_hops }]),
        source: SourcePolicy {
            sourcevipa: true,
            vipas: vec![own.into(), other.into()],
            default_v4: Some(own),
            rules: vec![rule],
            ports: (61_000..61_010).collect(),
            ephemeral: Some(30_000..=60_999),
            ..SourcePolicy::default()
        },
        ..nothing()
    };
    let page = HeartbeatPage::new().expect("a page");
    let (mut worker, handle, asked) = worker(net, &page);
    let mut packet = Vec::new();
    let builder = etherparse::PacketBuilder::ipv4(own.octets(), there.octets(), 64);
    builder.udp(40_000, 9).write(&mut packet, &[7; 20]).expect("a datagram");
    handle.order(Order::Adapter(Box::new(Once(Some(packet)))));
    let mut events = Events::with_capacity(8);
    worker.turn(&mut events).expect("a turn");
    let Ok(Request::Hold { flow, .. }) = asked.try_recv() else { panic!("it is held first") };
    handle.order(Order::Held(flow));
    worker.turn(&mut events).expect("a turn");
    let next = asked.try_recv();
    let is_asked = |nic, address| (nic, address) == (NicId(0), IpAddr::from(there));
    assert!(
        matches!(next, Ok(Request::Resolve { nic, address }) if is_asked(nic, address)),
        "{next:?}"
    );
}

#[test]
fn a_worker_that_asks_on_does_not_sleep() {
    let page = HeartbeatPage::new().expect("a page");
    let (mut worker, _handle, _asked) = worker(nothing(), &page);
    assert_eq!(worker.timeout(), None);
    // Had frames a second from now: the moment after that lasts long enough.
    worker.desk.busy.moved(60, monotonic_ns() + 1_000_000_000);
    assert_eq!(worker.timeout(), Some(Duration::ZERO));
}
