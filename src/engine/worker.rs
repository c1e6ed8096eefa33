//! A worker: polls its devices, carries batches between them and the pipeline, puts segments together, does what the verdicts say.
//!
//! Nothing here waits but the poll. In each round a device is drained by at most one batch, and rounds are
//! bounded, so no device and no order starves; one that may have more is asked again in the next turn without
//! a poll in between being able to sleep. On the established path nothing is allocated or logged, no lock is
//! one that another thread wants, and the clock is read once a batch.

mod desk;

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam_channel::{Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use self::desk::{Desk, Outcome, Received, Slot};
use super::busy_poll::BusyPoll;
use super::heartbeat::{Heartbeat, monotonic_ns};
use super::message::{HeldFlow, Request};
use super::statistics::{NICS, WorkerStatistics};
use super::waiting::{PATIENCE, Waiter, Waiting};
use crate::device::Device;
use crate::device::fallback::Outlet;
use crate::forward::flow::{Key, Millis};
use crate::forward::fragments::{Fate, FragmentKey};
use crate::forward::frame::Frame;
use crate::forward::gro;
use crate::forward::pipeline::{Sight, State, process_batch};
use crate::forward::preferred::PreferredTable;
use crate::forward::publish::Reader;
use crate::forward::service;
use crate::forward::socket::Socket;
use crate::forward::verdict::{DropReason, Verdict, Wait};
use crate::forward::view::{NetView, NicId, WorkerId};

/// Frames of a batch.
const BATCH: usize = 64;
/// Rounds of the devices before the worker looks for other events.
const ROUNDS: usize = 64;
/// How often flows are looked through, and how long one look-through of all of them takes.
pub(crate) const SWEEP_EVERY: Millis = Millis(1_000);
pub(crate) const SWEEPS_FOR_ALL: u32 = 30;

const ORDERS: Token = Token(NICS);
const ADAPTER: Token = Token(NICS + 1);

/// What a worker is told.
#[derive(Debug)]
pub enum Order {
    /// Carry frames of this queue of the adapter from now on.
    Adapter(Box<dyn Device>),
    /// Carry frames of this NIC, in place of what there was; `None`: it is gone.
    Nic(NicId, Option<Box<dyn Device>>),
    /// The egress hold knows the flow, or goes without it.
    Held(HeldFlow),
    /// Another worker met the first fragment of a datagram whose later ones meet here.
    First(FragmentKey, Fate),
    /// What is known of the socket that sends packets with this key.
    Socket(Key, Socket),
    /// Something new was published that should not wait for a packet: a view, or what becomes of connections.
    View,
}

/// Frames that other workers may leave at a worker's door.
const PUNTS: usize = 256;

/// How to reach a worker.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    orders: Sender<Order>,
    punts: Sender<Frame>,
    waker: Arc<Waker>,
}

impl WorkerHandle {
    /// Gives an order.
    pub fn order(&self, order: Order) {
        // Neither fails while the worker lives, and the process does not outlive a worker.
        let _ = self.orders.send(order);
        let _ = self.waker.wake();
    }

    /// Hands over a frame that this worker owns; false if too many wait already.
    fn punt(&self, frame: Frame) -> bool {
        self.punts.try_send(frame).is_ok() && self.waker.wake().is_ok()
    }
}

/// How a worker reaches the router.
#[derive(Clone, Debug)]
pub struct RouterHandle {
    /// Its requests.
    pub requests: Sender<Request>,
    /// Wakes it.
    pub waker: Arc<Waker>,
}

impl RouterHandle {
    fn ask(&self, request: Request) {
        if self.requests.try_send(request).is_ok() {
            // The router outlives the workers.
            let _ = self.waker.wake();
        }
    }
}

/// What a worker is made of.
#[derive(Debug)]
pub struct Parts {
    /// Its flows and number.
    pub state: State,
    /// Where views are published.
    pub cell: Arc<ArcSwap<NetView>>,
    /// Where preferred servers are published.
    pub preferred: Reader<PreferredTable>,
    /// The router.
    pub router: RouterHandle,
    /// What it counts.
    pub statistics: Arc<WorkerStatistics>,
    /// Where it shows that it lives.
    pub heartbeat: Heartbeat,
    /// Devices it no longer carries go here, to be closed by somebody with time.
    pub retired: Sender<Box<dyn Device>>,
}

/// A worker, before and while it runs.
#[derive(Debug)]
pub struct Worker {
    poll: Poll,
    orders: Receiver<Order>,
    punted: Receiver<Frame>,
    peers: Vec<WorkerHandle>,
    cell: arc_swap::Cache<Arc<ArcSwap<NetView>>, Arc<NetView>>,
    preferred: Reader<PreferredTable>,
    frames: Vec<Frame>,
    adapter: Option<Slot>,
    nics: Vec<Option<Slot>>,
    desk: Desk,
}

impl Worker {
    /// A worker without devices.
    ///
    /// # Errors
    /// The system gives no poll.
    pub fn new(parts: Parts) -> io::Result<(Worker, WorkerHandle)> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), ORDERS)?);
        let (sender, orders) = crossbeam_channel::unbounded();
        let (punts, punted) = crossbeam_channel::bounded(PUNTS);
        let worker = Worker {
            poll,
            orders,
            punted,
            peers: Vec::new(),
            cell: arc_swap::Cache::new(parts.cell),
            preferred: parts.preferred,
            frames: (0..BATCH).map(|_| Frame::new()).collect(),
            adapter: None,
            nics: (0..NICS).map(|_| None).collect(),
            desk: Desk {
                state: parts.state,
                router: parts.router,
                statistics: parts.statistics,
                heartbeat: parts.heartbeat,
                retired: parts.retired,
                scratch: Frame::new(),
                waiting: Waiting::default(),
                seen_generation: 0,
                seen_preferred: 0,
                burial: None,
                swept: Millis(0),
                flooded: Vec::new(),
                next_nic: 0,
                busy: BusyPoll::default(),
                now: Millis(monotonic_ns() / 1_000_000),
            },
        };
        Ok((worker, WorkerHandle { orders: sender, punts, waker }))
    }

    /// Tells the worker of all workers, itself among them, in the order of their numbers.
    pub fn meet(&mut self, peers: Vec<WorkerHandle>) {
        self.peers = peers;
    }

    /// Works until its process ends.
    ///
    /// # Errors
    /// The poll itself failed.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(128);
        for flow in self.desk.state.flows.held_flows() {
            self.desk.ask_hold(&flow);
        }
        service::recognise(&mut self.desk.state, self.preferred.get());
        loop {
            self.turn(&mut events)?;
        }
    }

    /// Waits for work, unless there is some, and does one round of it.
    ///
    /// # Errors
    /// The poll itself failed.
    pub fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = self.timeout();
        if timeout != Some(Duration::ZERO) {
            self.desk.heartbeat.polling();
        }
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => other?,
        }
        let now = monotonic_ns();
        self.desk.heartbeat.busy(now);
        self.desk.now = Millis(now / 1_000_000);
        if timeout != Some(Duration::ZERO) {
            self.desk.statistics.wakeups.add(1);
        }
        for event in events.iter() {
            match event.token() {
                ADAPTER => ready(&mut self.adapter),
                ORDERS => {}
                Token(nic) => self.nics.get_mut(nic).into_iter().for_each(ready),
            }
        }
        let has_answers = self.take_orders();
        let net = Arc::clone(self.cell.load());
        let preferred = Arc::clone(self.preferred.get());
        let sight = Sight { net: &net, preferred: &preferred, now: self.desk.now };
        if net.generation != self.desk.seen_generation || has_answers {
            self.desk.seen_generation = net.generation;
            self.run_waiting(sight);
        }
        if preferred.generation != self.desk.seen_preferred {
            self.desk.seen_preferred = preferred.generation;
            self.desk.burial = Some(0);
        }
        self.serve_devices(sight);
        self.serve_punted(sight);
        if self.desk.state.fragments.take_news() && self.desk.waiting.has_fragments() {
            self.run_waiting(sight);
        }
        self.bury(sight);
        self.keep_house(sight);
        service::settle(&mut self.desk.state, sight.preferred);
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        if self.has_ready()
            || self.desk.busy.is_on(monotonic_ns())
            || self.desk.burial.is_some()
            || !self.orders.is_empty()
            || !self.punted.is_empty()
        {
            Some(Duration::ZERO)
        } else if !self.desk.state.flows.is_empty()
            || !self.desk.waiting.is_empty()
            || !self.desk.flooded.is_empty()
        {
            Some(Duration::from_millis(SWEEP_EVERY.0))
        } else {
            None
        }
    }

    /// May any device have frames?
    fn has_ready(&self) -> bool {
        let is_ready = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.is_ready);
        is_ready(&self.adapter) || self.nics.iter().any(is_ready)
    }

    /// Carries out some of the orders; says whether one of them answers a frame that waits.
    fn take_orders(&mut self) -> bool {
        let mut has_answers = false;
        for _ in 0..BATCH {
            let Ok(order) = self.orders.try_recv() else { break };
            match order {
                Order::View => {}
                // The old device first: both may have the same descriptor (a queue of XDP's).
                Order::Adapter(device) => {
                    let old = self.adapter.take();
                    self.retire(old);
                    self.adapter = self.open(device, ADAPTER);
                }
                Order::Nic(id, device) => {
                    let old = self.nics.get_mut(id.index()).and_then(Option::take);
                    self.retire(old);
                    let slot = device.and_then(|device| self.open(device, Token(id.index())));
                    if let Some(place) = self.nics.get_mut(id.index()) {
                        *place = slot;
                    }
                }
                Order::Held(flow) => {
                    self.desk.held(&flow);
                    has_answers = true;
                }
                Order::First(key, fate) => {
                    let now = self.desk.now;
                    self.desk.state.fragments.remember(key, fate, now);
                }
                Order::Socket(key, socket) => {
                    self.desk.waiting.answer(&key, &socket);
                    has_answers = true;
                }
            }
        }
        has_answers
    }

    fn open(&mut self, device: Box<dyn Device>, token: Token) -> Option<Slot> {
        let descriptors = device.descriptors();
        let registry = self.poll.registry();
        let register = |fd| registry.register(&mut SourceFd(fd), token, Interest::READABLE);
        let is_polled = descriptors.iter().all(|fd| register(fd).is_ok());
        let slot = Slot { outlet: Outlet::new(device), descriptors, is_ready: true };
        if is_polled {
            return Some(slot);
        }
        // A descriptor that cannot be polled is a device that cannot be used.
        self.retire(Some(slot));
        None
    }

    fn retire(&mut self, slot: Option<Slot>) {
        let Some(slot) = slot else { return };
        for fd in &slot.descriptors {
            // It may not be there. Closing takes it out too, but a queue of XDP's outlives the device.
            let _ = self.poll.registry().deregister(&mut SourceFd(fd));
        }
        let _ = self.desk.retired.try_send(slot.outlet.device);
    }

    /// Some rounds: in each a batch of the adapter, and one of a NIC that may have frames, each NIC in its turn.
    fn serve_devices(&mut self, sight: Sight<'_>) {
        let mut bytes = 0;
        for _ in 0..ROUNDS {
            bytes += self.serve(None, sight);
            if let Some(nic) = self.next_ready_nic() {
                bytes += self.serve(Some(nic), sight);
            }
            if !self.has_ready() {
                break;
            }
            // It gets on, however much there is: a turn of small frames that each begin something may take long.
            self.desk.heartbeat.busy(monotonic_ns());
        }
        let then = monotonic_ns();
        let busy = &mut self.desk.busy;
        busy.moved(bytes, then);
        if busy.is_bulk() {
            let last_nic = (self.desk.next_nic + NICS - 1) % NICS;
            ready(&mut self.adapter);
            ready(&mut self.nics[last_nic]);
        }
        if bytes == 0 && busy.is_on(then) {
            self.desk.heartbeat.polling();
            thread::yield_now();
            busy.gave_way(then, monotonic_ns());
        }
    }

    fn next_ready_nic(&mut self) -> Option<NicId> {
        let is_ready = |at: &usize| self.nics[*at].as_ref().is_some_and(|slot| slot.is_ready);
        let from = self.desk.next_nic;
        let at = (0..NICS).map(|step| (from + step) % NICS).find(is_ready)?;
        self.desk.next_nic = (at + 1) % NICS;
        Some(NicId(at as u8))
    }

    /// Some of the frames that other workers left.
    fn serve_punted(&mut self, sight: Sight<'_>) {
        for _ in 0..BATCH {
            let Ok(frame) = self.punted.try_recv() else { return };
            let mut frames = [frame];
            process_batch(&mut frames, &mut self.desk.state, sight);
            self.dispatch(&mut frames);
        }
    }

    /// One batch of a device; returns its bytes.
    fn serve(&mut self, nic: Option<NicId>, sight: Sight<'_>) -> usize {
        let place = match nic {
            None => &mut self.adapter,
            Some(nic) => &mut self.nics[nic.index()],
        };
        let Some(slot) = place.as_mut().filter(|slot| slot.is_ready) else { return 0 };
        let Received { count, bytes, outcome } = self.desk.receive(nic, slot, &mut self.frames);
        if let Outcome::Gone = outcome {
            let slot = place.take();
            self.retire(slot);
        }
        let mut frames = std::mem::take(&mut self.frames);
        process_batch(&mut frames[..count], &mut self.desk.state, sight);
        // What comes from this host is not cut yet.
        let left = match nic {
            None => count,
            Some(nic) => {
                let left = gro::merge(&mut frames[..count]);
                self.desk.statistics.nic(nic).merged.add((count - left) as u64);
                left
            }
        };
        self.dispatch(&mut frames[..left]);
        self.frames = frames;
        bytes
    }

    /// Does what each frame's verdict says.
    fn dispatch(&mut self, frames: &mut [Frame]) {
        let mut rest = frames;
        while let [frame, ..] = &mut *rest {
            let mut done = 1;
            match frame.verdict {
                Verdict::Transmit { nic, destination } => {
                    match self.nics.get_mut(nic.index()).and_then(Option::as_mut) {
                        Some(slot) if frame.offload.gso.is_some() => {
                            self.desk.transmit(nic, slot, frame, destination);
                        }
                        Some(slot) => done = self.desk.transmit_some(nic, slot, rest),
                        None => self.desk.drop(DropReason::NicDown),
                    }
                }
                Verdict::Deliver => self.deliver(frame),
                Verdict::Answer => {
                    self.desk.statistics.answered.add(1);
                    self.deliver(frame);
                }
                Verdict::Kernel => self.desk.statistics.left_to_kernel.add(1),
                Verdict::Wait(cause) => {
                    let since = self.desk.now;
                    self.desk.keep(frame, cause, since);
                }
                Verdict::Punt(worker) => self.punt(worker, frame),
                Verdict::Drop(reason) => self.desk.drop(reason),
            }
            rest = &mut rest[done..];
        }
        self.desk.release();
        for (key, fate) in self.desk.state.learned.drain(..) {
            let home = key.home(self.desk.state.workers);
            if let Some(peer) = self.peers.get(usize::from(home.0)) {
                peer.order(Order::First(key, fate));
            }
        }
    }

    fn deliver(&mut self, frame: &mut Frame) {
        match &mut self.adapter {
            Some(slot) => self.desk.deliver(slot, frame),
            None => self.desk.drop(DropReason::TunRefused),
        }
    }

    fn punt(&mut self, worker: WorkerId, frame: &Frame) {
        let mut copy = Frame::holding(frame.packet(), frame.offload, frame.ingress);
        copy.socket = frame.socket.clone();
        let is_taken = self.peers.get(usize::from(worker.0)).is_some_and(|peer| peer.punt(copy));
        if is_taken {
            self.desk.statistics.punts.add(1);
        } else {
            self.desk.drop(DropReason::PuntQueueFull);
        }
    }

    /// Runs every frame that waits once more.
    fn run_waiting(&mut self, sight: Sight<'_>) {
        for waiter in self.desk.waiting.take() {
            let Waiter { mut frame, cause, since } = waiter;
            if self.desk.now.0.saturating_sub(since.0) > PATIENCE {
                match cause {
                    Wait::Neighbour { .. } => {
                        self.desk.drop(DropReason::NeighbourUnresolved);
                        continue;
                    }
                    Wait::FirstFragment(_) => {
                        self.desk.drop(DropReason::Fragment);
                        continue;
                    }
                    Wait::Hold(id) => {
                        self.desk.state.flows.set_held(id);
                        self.desk.statistics.flows_unheld.add(1);
                    }
                    Wait::Socket(_) => frame.socket = Socket::Unknown,
                }
            }
            let mut frames = [frame];
            process_batch(&mut frames, &mut self.desk.state, sight);
            if let [Frame { verdict: Verdict::Wait(next), .. }] = frames {
                let [frame] = frames;
                if !self.desk.waiting.push(Waiter { frame, cause: next, since }) {
                    self.desk.drop(DropReason::WaitQueueFull);
                } else if next != cause {
                    self.desk.ask(next);
                }
            } else {
                self.dispatch(&mut frames);
            }
        }
    }

    /// Resets what dead servers leave behind, a part of the flow table in each turn.
    fn bury(&mut self, sight: Sight<'_>) {
        let Some(from) = self.desk.burial else { return };
        let mut frames = std::mem::take(&mut self.frames);
        let (count, next) = service::bury(&mut frames, from, &mut self.desk.state, sight);
        self.desk.burial = next;
        self.dispatch(&mut frames[..count]);
        self.frames = frames;
    }

    /// What is due now and then: frames that waited too long, flows whose time is over, gauges.
    fn keep_house(&mut self, sight: Sight<'_>) {
        let desk = &mut self.desk;
        if desk.now.0 < desk.swept.0 + SWEEP_EVERY.0 {
            return;
        }
        desk.swept = desk.now;
        let count = desk.state.flows.capacity().div_ceil(SWEEPS_FOR_ALL);
        let released = &mut desk.state.released;
        desk.state.flows.sweep(count, desk.now, |flow| released.push(flow));
        desk.release();
        desk.gauge();
        for (nic, slot) in (0..).map(NicId).zip(&mut self.nics) {
            let lost = slot.as_mut().map_or(0, |slot| slot.outlet.device.take_lost());
            desk.statistics.nic(nic).lost.add(lost);
        }
        desk.tell_floods(sight.preferred);
        self.run_waiting(sight);
    }
}

fn ready(slot: &mut Option<Slot>) {
    if let Some(slot) = slot {
        slot.is_ready = true;
    }
}

#[cfg(test)]
mod tests;
