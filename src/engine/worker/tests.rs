use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::engine::heartbeat::HeartbeatPage;
use crate::forward::claims::Claims;
use crate::forward::flow::{FlowTable, Shape};
use crate::forward::frame::Ingress;
use crate::forward::publish;
use crate::forward::route::RouteTable;
use crate::forward::source::SourcePolicy;

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

#[test]
fn a_worker_with_too_much_to_do_shows_with_each_batch_that_it_gets_on() {
    let words: Vec<AtomicU64> = (0..Shape::both(1).words()).map(|_| AtomicU64::new(0)).collect();
    let flows = FlowTable::fresh(words.leak(), Shape::both(1), 1);
    let poll = Poll::new().expect("a poll");
    let waker = Arc::new(Waker::new(poll.registry(), ORDERS).expect("a waker"));
    let page = HeartbeatPage::new().expect("a page");
    let (mut worker, handle) = Worker::new(Parts {
        state: State::new(flows, WorkerId(0), 1),
        cell: Arc::new(ArcSwap::from_pointee(nothing())),
        preferred: publish::channel(1, Arc::default()).1.remove(0),
        router: RouterHandle { requests: crossbeam_channel::bounded(1).0, waker },
        statistics: Arc::default(),
        heartbeat: page.worker(WorkerId(0)),
        retired: crossbeam_channel::unbounded().0,
    })
    .expect("a worker");
    let stamps = Arc::new(Mutex::new(BTreeSet::new()));
    handle.order(Order::Adapter(Box::new(Endless { page, stamps: Arc::clone(&stamps) })));
    worker.turn(&mut Events::with_capacity(8)).expect("a turn");
    assert_eq!(stamps.lock().expect("no panic").len(), ROUNDS);
}
