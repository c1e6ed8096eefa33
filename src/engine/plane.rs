//! The data plane as a whole: makes the workers and keeps their devices in step with the view, from the
//! router's thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use crossbeam_channel::{Receiver, Sender};
use mio::Waker;

use super::descriptors;
use super::guard::symptom::WORKER;
use super::heartbeat::HeartbeatPage;
use super::message::{Command, Plane};
use super::statistics::WorkerStatistics;
use super::worker::{Order, Parts, RouterHandle, Worker, WorkerHandle};
use crate::config::Config;
use crate::device::Device;
use crate::device::packet_socket::{Hearing, NicPort};
use crate::device::tun::TunQueue;
use crate::forward::claims::Claims;
use crate::forward::flow::FlowTable;
use crate::forward::pipeline::State;
use crate::forward::preferred::PreferredTable;
use crate::forward::publish::Reader;
use crate::forward::view::{NetCell, NetView, NicId, WorkerId};
use crate::wire::ethernet::MacAddr;

/// What a NIC's sockets were opened for; when it changes they are opened anew.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Opened {
    ifindex: u32,
    mac: MacAddr,
    claims: Claims,
}

/// The workers and what they carry.
#[derive(Debug)]
pub struct Workers {
    config: Arc<Config>,
    handles: Vec<WorkerHandle>,
    opened: Vec<Option<Opened>>,
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
        let opened = vec![None; config.nics.len()];
        let plane =
            Workers { config, handles, opened, group: 0, retired, attached: supplies.attached };
        Ok((plane, statistics))
    }

    /// Wakes every worker, so that it reads what was published.
    pub fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let handles = self.handles.clone();
        move || handles.iter().for_each(|handle| handle.order(Order::View))
    }

    fn open(&mut self, nic: NicId, wanted: &Opened) -> io::Result<()> {
        self.group = self.group.wrapping_add(1) & 0x7fff;
        let hearing = Hearing {
            claims: wanted.claims.clone(),
            workers: self.config.forwarder.workers,
            group: self.group,
        };
        let ports = self
            .handles
            .iter()
            .map(|_| NicPort::open(nic, wanted.ifindex, wanted.mac, &hearing))
            .collect::<io::Result<Vec<_>>>()?;
        for (handle, port) in self.handles.iter().zip(ports) {
            handle.order(Order::Nic(nic, Some(Box::new(port))));
        }
        Ok(())
    }
}

impl Plane for Workers {
    fn follow(&mut self, view: &NetView) {
        // Closing a packet socket waits for the kernel's readers: here, not on a worker.
        self.retired.try_iter().for_each(drop);
        self.opened.resize(view.nics.len(), None);
        for (at, nic) in view.nics.iter().enumerate() {
            let id = NicId(at as u8);
            let wanted = (nic.ifindex != 0).then(|| Opened {
                ifindex: nic.ifindex,
                mac: nic.mac,
                claims: view.claims.clone(),
            });
            if self.opened[at] == wanted {
                continue;
            }
            self.opened[at] = None;
            match &wanted {
                Some(wanted) => match self.open(id, wanted) {
                    Ok(()) => self.opened[at] = Some(wanted.clone()),
                    Err(error) => tracing::warn!(nic = nic.name, %error, "cannot open the NIC"),
                },
                None => self.handles.iter().for_each(|handle| handle.order(Order::Nic(id, None))),
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
