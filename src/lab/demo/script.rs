//! What happens in the demo, and when.

use std::time::Duration;

use crate::lab::traffic::Micros;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// The cable of a NIC is pulled.
    LoseCarrier(u8),
    /// It is plugged in again.
    ReturnCarrier(u8),
    /// A NIC disappears from the host.
    DeleteNic(u8),
    /// It is put in again, as a new device.
    CreateNic(u8),
    /// Nothing gets through any more between a NIC and the router, either way; both keep their carrier.
    BreakPath(u8),
    /// It gets through again.
    MendPath(u8),
    /// The forwarder gets SIGKILL and is started again.
    KillForwarder,
    /// From here on no sender offloads checksums: each packet is verified by the kernel of its receiver.
    VerifyChecksums,
    /// All is said and done.
    End,
}

impl Act {
    /// Its name in the report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Act::LoseCarrier(_) => "carrier_lost",
            Act::ReturnCarrier(_) => "carrier_returned",
            Act::DeleteNic(_) => "nic_deleted",
            Act::CreateNic(_) => "nic_created",
            Act::BreakPath(_) => "path_died",
            Act::MendPath(_) => "path_healed",
            Act::KillForwarder => "forwarder_killed",
            Act::VerifyChecksums => "checksums_verified",
            Act::End => "end",
        }
    }

    /// The NIC that it happens to.
    pub(super) fn nic(self) -> Option<u8> {
        match self {
            Act::LoseCarrier(nic)
            | Act::ReturnCarrier(nic)
            | Act::DeleteNic(nic)
            | Act::CreateNic(nic)
            | Act::BreakPath(nic)
            | Act::MendPath(nic) => Some(nic),
            _ => None,
        }
    }

    /// Is it about a path, of which no link tells?
    pub(super) fn is_of_path(self) -> bool {
        matches!(self, Act::BreakPath(_) | Act::MendPath(_))
    }

    /// How long it is watched what it costs. A dead path is found by questions without an answer; a healed one is used when its
    /// hold-down is over.
    pub(super) fn window(self) -> Micros {
        match self {
            Act::BreakPath(_) => 3_500_000,
            Act::MendPath(_) => 4_500_000,
            _ => 2_000_000,
        }
    }

    /// Does traffic have to live through it?
    pub(super) fn is_event(self) -> bool {
        !matches!(self, Act::VerifyChecksums | Act::End)
    }
}

/// Stands for the NIC that is busiest when its path breaks.
pub(super) const BUSIEST: u8 = 0;

/// Acts with their time since the paced traffic began. NIC 1 is still held down (2 s) when NIC 2 fails; the
/// forwarder is killed twice within a second; the last part is verified by the kernel.
pub(super) const SCRIPT: [(Duration, Act); 15] = [
    (Duration::from_millis(1_100), Act::LoseCarrier(1)),
    (Duration::from_millis(2_900), Act::ReturnCarrier(1)),
    (Duration::from_millis(3_900), Act::LoseCarrier(2)),
    (Duration::from_millis(5_700), Act::ReturnCarrier(2)),
    (Duration::from_millis(7_500), Act::DeleteNic(3)),
    (Duration::from_millis(9_300), Act::CreateNic(3)),
    (Duration::from_millis(11_100), Act::KillForwarder),
    (Duration::from_millis(13_150), Act::VerifyChecksums),
    (Duration::from_millis(14_400), Act::LoseCarrier(1)),
    (Duration::from_millis(16_000), Act::ReturnCarrier(1)),
    (Duration::from_millis(17_600), Act::KillForwarder),
    (Duration::from_millis(18_300), Act::KillForwarder),
    (Duration::from_millis(21_400), Act::BreakPath(BUSIEST)),
    (Duration::from_millis(24_900), Act::MendPath(BUSIEST)),
    (Duration::from_millis(29_500), Act::End),
];
