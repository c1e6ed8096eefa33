//! Counters: one writer each, read by anyone at any time without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

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
