//! The host before and after.

use std::collections::BTreeSet;

use super::busy::Host;
use crate::fixture::{changes, everything, is_as};

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
        is_as(&self.bench.network.host, before);
    }
}
