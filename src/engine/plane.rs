//! The data plane as a whole: makes the workers and keeps their devices in step with the view, from the
//! router's thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use mio::Waker;

use super::descriptors;
use super::guard::symptom::WORKER;
use super::heartbeat::HeartbeatPage;
use super::message::{Command, Plane};
use super::statistics::{RouterStatistics, WorkerStatistics, Xdp};
use super::worker::{Order, Parts, RouterHandle, Worker, WorkerHandle};
use crate::config::Config;
use crate::device::Device;
use crate::device::packet_socket::{Hearing, NicPort};
use crate::device::tun::TunQueue;
use crate::device::xdp::{self, Card};
use crate::forward::claims::Claims;
use crate::forward::flow::FlowTable;
use crate::forward::pipeline::State;
use crate::forward::preferred::PreferredTable;
use crate::forward::publish::Reader;
use crate::forward::view::{NetCell, NetView, NicId, WorkerId, XdpHook};

/// So often, and with such a pause, what another one has is tried again.
const XDP_TRIES: u32 = 30;
const XDP_PAUSE: Duration = Duration::from_millis(10);

/// What a NIC's sockets were opened for; when it changes they are opened anew.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Opened {
    card: Card,
    claims: Claims,
    xdp: Option<XdpHook>,
}

/// The workers and what they carry.
#[derive(Debug)]
pub struct Workers {
    config: Arc<Config>,
    handles: Vec<WorkerHandle>,
    statistics: Arc<RouterStatistics>,
    opened: Vec<Option<Opened>>,
    /// XDP on each NIC, and the index of the device.
    xdp: Vec<Option<(u32, xdp::Attachment)>>,
    /// Number of the next fan-out group.
    group: u16,
    retired: Receiver<Box<dyn Device>>,
    attached: Arc<Waker>,
}

/// What [`Workers::start`] needs beside the configuration.
#[derive(Debug)]
pub struct Supplies<'a> {
    /// Where views are published; holds the first one.
    pub cell: NetCell,
    /// Where each worker reads the preferred servers.
    pub preferred: Vec<Reader<PreferredTable>>,
    /// The router.
    pub router: RouterHandle,
    /// Where it is told how XDP does.
    pub statistics: Arc<RouterStatistics>,
    /// Where workers show that they live.
    pub page: &'a HeartbeatPage,
    /// Words of each worker's flow table.
    pub words: Vec<&'static [AtomicU64]>,
    /// Nobody has written to them yet.
    pub is_fresh: bool,
    /// Seed of the table's hash.
    pub seed: u64,
    /// Woken each time the workers are attached to the adapter.
    pub attached: Arc<Waker>,
}

impl Workers {
    /// Starts the workers; they have no devices yet.
    ///
    /// # Errors
    /// The system gives no thread or no poll.
    pub fn start(
        config: Arc<Config>,
        supplies: Supplies<'_>,
    ) -> io::Result<(Workers, Vec<Arc<WorkerStatistics>>)> {
        let (retire, retired): (Sender<Box<dyn Device>>, _) = crossbeam_channel::unbounded();
        let mut workers = Vec::new();
        let shape = config.shape(config.forwarder.workers);
        let mut handles = Vec::new();
        let mut statistics = Vec::new();
        for (number, (words, preferred)) in
            supplies.words.iter().zip(supplies.preferred).enumerate()
        {
            let worker = WorkerId(number as u8);
            let (flows, torn) = match supplies.is_fresh {
                true => (FlowTable::fresh(words, shape, supplies.seed), 0),
                false => FlowTable::adopt(words, shape, supplies.seed),
            };
            if !flows.is_empty() || torn > 0 {
                let (rewritten, served) = (flows.rewritten(), flows.served());
                tracing::info!(worker = number, rewritten, served, torn, "adopted flows");
            }
            let state = State::new(flows, worker, config.forwarder.workers);
            let counts = Arc::new(WorkerStatistics::default());
            statistics.push(Arc::clone(&counts));
            let (worker, handle) = Worker::new(Parts {
                state,
                cell: Arc::clone(&supplies.cell),
                preferred,
                router: supplies.router.clone(),
                statistics: counts,
                heartbeat: supplies.page.worker(worker),
                retired: retire.clone(),
            })?;
            workers.push(worker);
            handles.push(handle);
        }
        for (number, mut worker) in workers.into_iter().enumerate() {
            worker.meet(handles.clone());
            thread::Builder::new().name(format!("{WORKER}{number}")).spawn(move || {
                let error = worker.run().err();
                // A forwarder without one of its workers is worse than none: the kernel takes over.
                tracing::error!(worker = number, ?error, "the worker's poll failed");
                std::process::abort();
            })?;
        }
        let plane = Workers {
            config,
            handles,
            statistics: supplies.statistics,
            opened: Vec::new(),
            xdp: Vec::new(),
            group: 0,
            retired,
            attached: supplies.attached,
        };
        Ok((plane, statistics))
    }

    /// Wakes every worker, so that it reads what was published.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let handles = self.handles.clone();
        move || handles.iter().for_each(|handle| handle.order(Order::View))
    }

    /// The queues by which XDP may hand us frames of a NIC; none where that is not wanted, or refused.
    fn queues(&mut self, nic: NicId, name: &str, wanted: &Opened) -> Vec<xdp::Queue> {
        let (at, ifindex) = (usize::from(nic.0), wanted.card.ifindex);
        let is_kept = |(of, _): &(u32, xdp::Attachment)| wanted.xdp.is_some() && *of == ifindex;
        self.xdp[at] = self.xdp[at].take().filter(is_kept);
        if wanted.xdp.is_none() {
            self.statistics.xdp.set(nic, Xdp::Off);
            return Vec::new();
        }
        if self.xdp[at].is_none() {
            match self.patiently(nic, || xdp::Attachment::new(ifindex)) {
                Ok(attachment) => self.xdp[at] = Some((ifindex, attachment)),
                Err(error) => self.refused(nic, name, &error),
            }
        }
        self.xdp[at].as_ref().map_or_else(Vec::new, |(_, xdp)| xdp.queues().to_vec())
    }

    /// Whoever reads the queues is there: now frames may come by them.
    fn take_by_xdp(&mut self, nic: NicId, name: &str, wanted: &Opened) {
        let at = usize::from(nic.0);
        let (Some(hook), Some((of, mut xdp))) = (wanted.xdp, self.xdp[at].take()) else { return };
        match self.patiently(nic, || xdp.take(wanted.card, hook, &wanted.claims)) {
            Ok(is_any) => {
                self.xdp[at] = Some((of, xdp));
                self.statistics.xdp.set(nic, if is_any { Xdp::At(hook) } else { Xdp::Idle });
            }
            Err(error) => self.refused(nic, name, &error),
        }
    }

    fn refused(&self, nic: NicId, name: &str, error: &io::Error) {
        let advice = xdp::advice(error);
        tracing::warn!(nic = name, %error, advice, "no XDP: all frames come by packet sockets");
        self.statistics.xdp.set(nic, Xdp::Refused);
    }

    /// Tries again for a while, if another one is in the way: a process that was killed holds its sockets and programs for moments more, and
    /// ports of ours that were just replaced do. Who was refused last time is not waited for.
    fn patiently<T>(
        &self,
        nic: NicId,
        mut attempt: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        let was_refused = self.statistics.xdp.get(nic) == Xdp::Refused;
        for _ in 0..if was_refused { 0 } else { XDP_TRIES } {
            match attempt() {
                Err(error) if xdp::is_taken(&error) => thread::sleep(XDP_PAUSE),
                done => return done,
            }
            self.retired.try_iter().for_each(drop);
        }
        attempt()
    }

    fn open(&mut self, nic: NicId, name: &str, wanted: &Opened) -> io::Result<()> {
        self.group = self.group.wrapping_add(1) & 0x7fff;
        let hearing = Hearing {
            claims: wanted.claims.clone(),
            workers: self.config.forwarder.workers,
            group: self.group,
        };
        let queues = self.queues(nic, name, wanted);
        let workers = self.handles.len();
        let ports = (0..workers)
            .map(|worker| {
                let own = queues.iter().skip(worker).step_by(workers).cloned().collect();
                NicPort::open(nic, wanted.card.ifindex, wanted.card.mac, &hearing, own)
            })
            .collect::<io::Result<Vec<_>>>()?;
        for (handle, port) in self.handles.iter().zip(ports) {
            handle.order(Order::Nic(nic, Some(Box::new(port))));
        }
        self.take_by_xdp(nic, name, wanted);
        Ok(())
    }
}

impl Plane for Workers {
    fn follow(&mut self, view: &NetView) {
        // Closing a packet socket waits for the kernel's readers: here, not on a worker.
        self.retired.try_iter().for_each(drop);
        self.opened.resize(view.nics.len(), None);
        self.xdp.resize_with(view.nics.len(), || None);
        for (at, nic) in view.nics.iter().enumerate() {
            let id = NicId(at as u8);
            let wanted = (nic.ifindex != 0).then(|| Opened {
                card: Card { ifindex: nic.ifindex, mac: nic.mac, mtu: nic.mtu },
                claims: view.claims.clone(),
                xdp: nic.xdp,
            });
            if self.opened[at] == wanted {
                continue;
            }
            self.opened[at] = None;
            match &wanted {
                Some(wanted) => match self.open(id, &nic.name, wanted) {
                    Ok(()) => self.opened[at] = Some(wanted.clone()),
                    Err(error) => tracing::warn!(nic = nic.name, %error, "cannot open the NIC"),
                },
                None => {
                    self.xdp[at] = None;
                    self.statistics.xdp.set(id, Xdp::Off);
                    self.handles.iter().for_each(|handle| handle.order(Order::Nic(id, None)));
                }
            }
        }
    }

    fn attach(&mut self) -> io::Result<()> {
        let queues = self
            .handles
            .iter()
            .map(|_| descriptors::high(|| TunQueue::attach(&self.config.adapter.name)))
            .collect::<io::Result<Vec<_>>>()?;
        for (handle, queue) in self.handles.iter().zip(queues) {
            handle.order(Order::Adapter(Box::new(queue)));
        }
        self.attached.wake()
    }

    fn published(&mut self) {
        self.handles.iter().for_each(|handle| handle.order(Order::View));
    }

    fn tell(&mut self, worker: WorkerId, command: Command) {
        if let Some(handle) = self.handles.get(usize::from(worker.0)) {
            handle.order(match command {
                Command::Held(flow) => Order::Held(flow),
                Command::Socket(key, socket) => Order::Socket(key, socket),
            });
        }
    }
}
