//! Counters: one writer each, read by anyone at any time without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::forward::verdict::DropReason;
use crate::forward::view::{NicId, XdpHook};

/// Network cards that statistics have room for: as many as a configuration may name.
pub const NICS: usize = 64;

/// A count with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning thread may call it.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that rises and falls, with one writer.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// It is `value` now. Only the owning thread may call it.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether XDP hands over some of what comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xdp {
    /// It is not asked to.
    #[default]
    Off,
    /// It does, from there.
    At(XdpHook),
    /// Nothing is ours alone, or too much to be told from the rest.
    Idle,
    /// It is asked to, and the kernel refuses.
    Refused,
}

impl Xdp {
    const ALL: [Xdp; 5] =
        [Xdp::Off, Xdp::At(XdpHook::Native), Xdp::At(XdpHook::Generic), Xdp::Idle, Xdp::Refused];

    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Xdp::Off => "off",
            Xdp::At(hook) => hook.name(),
            Xdp::Idle => "idle",
            Xdp::Refused => "refused",
        }
    }
}

/// An [`Xdp`] of each NIC, with one writer.
#[derive(Debug)]
pub struct XdpGauges([Gauge; NICS]);

impl XdpGauges {
    /// It is so now. Only the owning thread may call it.
    pub fn set(&self, nic: NicId, xdp: Xdp) {
        self.0[nic.index()].set(Xdp::ALL.iter().position(|one| *one == xdp).unwrap_or(0) as u64);
    }

    /// What it is.
    pub fn get(&self, nic: NicId) -> Xdp {
        Xdp::ALL.get(self.0[nic.index()].get() as usize).copied().unwrap_or_default()
    }
}

impl Default for XdpGauges {
    fn default() -> XdpGauges {
        XdpGauges(std::array::from_fn(|_| Gauge::default()))
    }
}

/// Frames of one direction. A frame may be a super-packet of up to 64 KB.
#[derive(Debug, Default)]
pub struct Traffic {
    /// How many.
    pub frames: Counter,
    /// Their bytes.
    pub bytes: Counter,
}

impl Traffic {
    /// One more frame, of so many bytes.
    #[inline]
    pub fn add(&self, bytes: usize) {
        self.frames.add(1);
        self.bytes.add(bytes as u64);
    }
}

/// What one worker counts at one NIC.
#[derive(Debug, Default)]
pub struct NicStatistics {
    /// Sent by it.
    pub sent: Traffic,
    /// Heard on it by the forwarder: replies to rewritten flows.
    pub received: Traffic,
    /// Times that it refused offload for the first time since its sockets were opened.
    pub offload_refused: Counter,
    /// Frames split and summed in software after that.
    pub split: Counter,
    /// Frames received by it that were sent on as a part of the one before ([`crate::forward::gro`]).
    pub merged: Counter,
    /// Frames that the kernel could not hand over (an unknown GSO kind, ENETDOWN).
    pub receive_errors: Counter,
    /// Frames that came and were lost, since too many waited.
    pub lost: Counter,
}

/// What one worker counts. Aligned so that no two workers write to one cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerStatistics {
    /// Read from the TUN: what this host sends.
    pub from_tun: Traffic,
    /// Written to the TUN: replies to rewritten flows.
    pub to_tun: Traffic,
    /// By [`NicId`].
    pub nics: [NicStatistics; NICS],
    /// In the order of [`DropReason::ALL`].
    pub drops: [Counter; DropReason::ALL.len()],
    /// Flows in its part of the flow table.
    pub flows: Gauge,
    /// Flows that it ever made.
    pub flows_created: Gauge,
    /// Those in the table that are rewritten.
    pub flows_rewritten: Gauge,
    /// Flows that made room for others.
    pub flows_evicted: Gauge,
    /// Those of services whose client has not answered yet.
    pub flows_half_open: Gauge,
    /// Services that are flooded with SYNs.
    pub services_flooded: Gauge,
    /// Flows that went on without an answer about the egress hold.
    pub flows_unheld: Counter,
    /// Times that the TUN refused offload for the first time.
    pub tun_offload_refused: Counter,
    /// Frames that the TUN could not hand over.
    pub tun_receive_errors: Counter,
    /// Times that its poll returned.
    pub wakeups: Counter,
    /// Frames handed to the worker that owns their flow.
    pub punts: Counter,
    /// Frames that waited for a neighbour, for the egress hold or for their datagram's first fragment.
    pub waits: Counter,
    /// Packets answered with an ICMP error.
    pub answered: Counter,
    /// Frames heard on NICs that turned out to be the kernel's: fragments, errors and the like that were not
    /// about a rewritten flow.
    pub left_to_kernel: Counter,
}

impl WorkerStatistics {
    /// The counters of one NIC.
    #[inline]
    pub fn nic(&self, id: NicId) -> &NicStatistics {
        &self.nics[id.index()]
    }

    /// One more frame is dropped.
    #[inline]
    pub fn count_drop(&self, reason: DropReason) {
        self.dropped(reason).add(1);
    }

    /// The frames dropped for `reason`.
    #[inline]
    pub fn dropped(&self, reason: DropReason) -> &Counter {
        &self.drops[reason as usize]
    }
}

impl Default for WorkerStatistics {
    fn default() -> WorkerStatistics {
        WorkerStatistics {
            from_tun: Traffic::default(),
            to_tun: Traffic::default(),
            nics: std::array::from_fn(|_| NicStatistics::default()),
            drops: std::array::from_fn(|_| Counter::default()),
            flows: Gauge::default(),
            flows_created: Gauge::default(),
            flows_rewritten: Gauge::default(),
            flows_evicted: Gauge::default(),
            flows_half_open: Gauge::default(),
            services_flooded: Gauge::default(),
            flows_unheld: Counter::default(),
            tun_offload_refused: Counter::default(),
            tun_receive_errors: Counter::default(),
            wakeups: Counter::default(),
            punts: Counter::default(),
            waits: Counter::default(),
            answered: Counter::default(),
            left_to_kernel: Counter::default(),
        }
    }
}

/// What the router counts.
#[derive(Debug, Default)]
pub struct RouterStatistics {
    /// Turns of its loop: while it lives, at least one in five seconds.
    pub turns: Counter,
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
    /// Sockets asked for, since a source rule needed what only they know.
    pub sockets_asked: Counter,
    /// Those of them that were not found.
    pub sockets_unknown: Counter,
    /// Turns of its loop that came more than 20 ms after they were due.
    pub late: Counter,
    /// Times that the neighbours were told that it leaves.
    pub farewells: Counter,
    /// The longest turn since it was ready, in microseconds.
    pub longest_turn: Gauge,
    /// The longest time in which news of RIP's routes, once they were being read, reached the workers, in microseconds.
    pub longest_update: Gauge,
    /// Whether XDP hands over some of what comes.
    pub xdp: XdpGauges,
    /// What RIP did; empty until it did something.
    pub rip: arc_swap::ArcSwapOption<crate::rip::speaker::Counts>,
    /// What was announced of VIPAs in the NICs' own subnets.
    pub announced: arc_swap::ArcSwapOption<crate::announce::speaker::Counts>,
    /// What was seen of the paths; empty where they are not watched.
    pub paths: arc_swap::ArcSwapOption<crate::path::watcher::Counts>,
}
