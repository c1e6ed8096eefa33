//! The host before and after.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::busy::Host;
use crate::fixture::{changes, everything};

impl Host {
    pub(crate) fn everything(&self) -> BTreeSet<String> {
        everything(&self.bench.network.host)
    }

    /// What differs from `before`; nothing, if all is well.
    pub(crate) fn changes_since(&self, before: &BTreeSet<String>) -> Vec<String> {
        changes(&self.bench.network.host, before)
    }

    #[track_caller]
    pub(crate) fn is_as(&self, before: &BTreeSet<String>) {
        let deadline = Instant::now() + Duration::from_secs(2); // a device's end is told after the fact
        loop {
            let changes = self.changes_since(before);
            if changes.is_empty() {
                return;
            }
            let log = self.bench.forwarder.log();
            assert!(Instant::now() < deadline, "not as it was:\n{}\n{log}", changes.join("\n"));
            thread::sleep(Duration::from_millis(5));
        }
    }
}
