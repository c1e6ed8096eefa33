//! Counters: one writer each, read by anyone at any time without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::forward::verdict::DropReason;
use crate::forward::view::NicId;

/// Most NICs that a configuration may name.
pub const MAX_NICS: usize = 64;

/// A count with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning thread may call it.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Puts `n` in its place: for what can fall again. Only the owning thread may call it.
    #[inline]
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the router counts.
#[derive(Debug, Default)]
pub struct RouterStatistics {
    /// Views published.
    pub views: Counter,
    /// Settings of ours that others removed or changed and that were put back.
    pub repaired: Counter,
    /// Full netlink dumps after ENOBUFS.
    pub resyncs: Counter,
    /// Requests to the kernel that failed.
    pub kernel_errors: Counter,
    /// Flows put into the egress hold's set.
    pub flows_held: Counter,
}

/// What a worker counts of one NIC.
#[derive(Debug, Default)]
pub struct NicStatistics {
    /// Frames sent, super-packets as one.
    pub frames_out: Counter,
    /// Bytes of the packets sent, without Ethernet headers.
    pub bytes_out: Counter,
    /// Frames received for rewritten flows.
    pub frames_in: Counter,
    /// Bytes of the packets received.
    pub bytes_in: Counter,
    /// Times the NIC refused offload for the first time since its sockets were opened.
    pub offload_refused: Counter,
    /// Frames split and summed in software after that.
    pub frames_split: Counter,
    /// Frames that the kernel could not hand over (an unknown GSO kind, ENETDOWN).
    pub receive_errors: Counter,
}

/// What a worker counts.
#[derive(Debug)]
pub struct WorkerStatistics {
    /// Frames read from the TUN.
    pub tun_frames_in: Counter,
    /// Bytes of the packets read from the TUN.
    pub tun_bytes_in: Counter,
    /// Frames written into the TUN.
    pub tun_frames_out: Counter,
    /// Bytes of the packets written into the TUN.
    pub tun_bytes_out: Counter,
    /// Times the TUN refused offload.
    pub tun_offload_refused: Counter,
    /// Frames that the TUN could not hand over.
    pub tun_receive_errors: Counter,
    nics: Box<[NicStatistics]>,
    drops: Box<[Counter]>,
    /// Flows in the table now.
    pub flows: Counter,
    /// Rewritten flows in the table now.
    pub flows_rewritten: Counter,
    /// Flows that made room for others.
    pub flows_evicted: Counter,
    /// Frames kept until a next hop's MAC address or the egress hold was there.
    pub waits: Counter,
    /// Flows that went on without an answer about the egress hold.
    pub unheld: Counter,
    /// Frames handed to another worker.
    pub punts: Counter,
    /// Times the worker woke from its poll.
    pub wakeups: Counter,
}

impl Default for WorkerStatistics {
    fn default() -> WorkerStatistics {
        WorkerStatistics {
            tun_frames_in: Counter::default(),
            tun_bytes_in: Counter::default(),
            tun_frames_out: Counter::default(),
            tun_bytes_out: Counter::default(),
            tun_offload_refused: Counter::default(),
            tun_receive_errors: Counter::default(),
            nics: (0..MAX_NICS).map(|_| NicStatistics::default()).collect(),
            drops: DropReason::ALL.iter().map(|_| Counter::default()).collect(),
            flows: Counter::default(),
            flows_rewritten: Counter::default(),
            flows_evicted: Counter::default(),
            waits: Counter::default(),
            unheld: Counter::default(),
            punts: Counter::default(),
            wakeups: Counter::default(),
        }
    }
}

impl WorkerStatistics {
    /// What it counts of one NIC.
    #[inline]
    pub fn nic(&self, id: NicId) -> &NicStatistics {
        &self.nics[id.index() % MAX_NICS]
    }

    /// How many packets it dropped for this reason.
    #[inline]
    pub fn drops(&self, reason: DropReason) -> &Counter {
        &self.drops[reason as usize]
    }
}
