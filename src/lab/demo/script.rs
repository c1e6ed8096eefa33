//! What happens in the demo, and when.

use std::time::Duration;

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
            | Act::CreateNic(nic) => Some(nic),
            _ => None,
        }
    }

    /// Does traffic have to live through it?
    pub(super) fn is_event(self) -> bool {
        !matches!(self, Act::VerifyChecksums | Act::End)
    }
}

/// Acts with their time since the paced traffic began. NIC 1 is still held down (2 s) when NIC 2 fails; the
/// forwarder is killed twice within a second; the last third is verified by the kernel.
pub(super) const SCRIPT: [(Duration, Act); 13] = [
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
    (Duration::from_millis(20_300), Act::End),
];
