//! What a replay came to.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::forward::verdict::DropReason;

/// Every packet of the capture has one fate, so that `packets` is the sum of `transmitted`, `delivered`, `answered`,
/// all of `dropped`, `left_to_kernel`, `snapped` and `other_interfaces`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Packets read.
    pub packets: u64,
    /// Sent by a NIC.
    pub transmitted: u64,
    /// Given to a socket of the host.
    pub delivered: u64,
    /// Answered with an ICMP error.
    pub answered: u64,
    /// By reason; every reason is there.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Came in by a NIC and are nothing that the forwarder hears: the kernel takes them by itself.
    pub left_to_kernel: u64,
    /// Cut by the capture's snap length: not run.
    pub snapped: u64,
    /// Of interfaces that are neither the adapter nor a `[[nic]]`, or whose link type is unknown here: not run.
    pub other_interfaces: u64,
    /// Flows that came to be.
    pub flows: u64,
    /// Of the flows there were at the end, those that are rewritten.
    pub flows_rewritten: u64,
    /// Packets that each device received.
    pub received: BTreeMap<String, u64>,
    /// Packets that each NIC sent.
    pub per_nic: BTreeMap<String, u64>,
    /// Checksums that were partial in the capture, and are complete in what came out.
    pub completed_checksums: u64,
    /// Packets that had a wrong checksum in the capture; it is as wrong in what came out.
    pub wrong_checksums_in: u64,
    /// Over the whole run, reading and writing included.
    pub packets_per_second: f64,
    /// How long the run took.
    pub seconds: f64,
    /// Why the capture could not be read to its end.
    pub error: Option<String>,
}

impl Report {
    /// All that were dropped.
    pub fn drops(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// Counters of the run, by number where the report has names.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) packets: u64,
    pub(super) delivered: u64,
    pub(super) answered: u64,
    pub(super) left_to_kernel: u64,
    pub(super) snapped: u64,
    pub(super) other_interfaces: u64,
    pub(super) completed_checksums: u64,
    pub(super) wrong_checksums_in: u64,
    pub(super) from_adapter: u64,
    pub(super) from_nic: Vec<u64>,
    pub(super) to_nic: Vec<u64>,
    drops: Vec<u64>,
}

impl Counts {
    pub(super) fn new(nics: usize) -> Counts {
        Counts {
            packets: 0,
            delivered: 0,
            answered: 0,
            left_to_kernel: 0,
            snapped: 0,
            other_interfaces: 0,
            completed_checksums: 0,
            wrong_checksums_in: 0,
            from_adapter: 0,
            from_nic: vec![0; nics],
            to_nic: vec![0; nics],
            drops: vec![0; DropReason::ALL.len()],
        }
    }

    #[inline]
    pub(super) fn drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    /// The report; `adapter` and `nics` are the names, flows and times are left for the caller.
    pub(super) fn report(&self, adapter: &str, nics: &[String]) -> Report {
        let named = |counts: &[u64]| nics.iter().cloned().zip(counts.iter().copied()).collect();
        let mut received: BTreeMap<String, u64> = named(&self.from_nic);
        received.insert(adapter.to_owned(), self.from_adapter);
        Report {
            packets: self.packets,
            transmitted: self.to_nic.iter().sum(),
            delivered: self.delivered,
            answered: self.answered,
            dropped: DropReason::ALL
                .iter()
                .map(|reason| (reason.name(), self.drops[*reason as usize]))
                .collect(),
            left_to_kernel: self.left_to_kernel,
            snapped: self.snapped,
            other_interfaces: self.other_interfaces,
            received,
            per_nic: named(&self.to_nic),
            completed_checksums: self.completed_checksums,
            wrong_checksums_in: self.wrong_checksums_in,
            ..Report::default()
        }
    }
}
