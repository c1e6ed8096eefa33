//! What happens to the servers, and when.

use std::time::Duration;

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Many log in at the preferred server, past the VIPA: it alone can tell of them.
    Load,
    /// The preferred server gets SIGKILL.
    Kill,
    /// The service gets another policy.
    Swap,
    /// The server that was killed is started again.
    Return,
    /// The preferred server is drained.
    Drain,
    /// All is said and done.
    End,
}

impl Act {
    /// Its name in the report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Act::Load => "load",
            Act::Kill => "kill",
            Act::Swap => "policy",
            Act::Return => "return",
            Act::Drain => "drain",
            Act::End => "end",
        }
    }

    /// Is it an order of the operator's, and no fact that a status object reads?
    pub(super) fn is_order(self) -> bool {
        matches!(self, Act::Swap | Act::Drain)
    }
}

/// Acts with their time since the clients began. Each has to move the new connections to another server.
pub(super) const SCRIPT: [(Duration, Act); 6] = [
    (Duration::from_millis(1_600), Act::Load),
    (Duration::from_millis(3_400), Act::Kill),
    (Duration::from_millis(5_300), Act::Swap),
    (Duration::from_millis(7_200), Act::Return),
    (Duration::from_millis(9_100), Act::Drain),
    (Duration::from_millis(11_050), Act::End),
];
