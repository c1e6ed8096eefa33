//! Is the path behind a NIC alive? A card may have carrier while nothing gets through.
//!
//! Each next hop is asked over the very link that it stands for, whether or not the link carries traffic, so that a healed path is known
//! to be healed: by ARP or neighbour solicitation ([`prober`]), which every neighbour answers, or by BFD ([`bfd`]), which both ends
//! have to speak and which is faster. Both are pure. [`watcher`] is the thread that has the sockets; it waits for nothing else.
//! [`paths`] is what the router keeps of it.
//!
//! A next hop that never answered is not dead: it may not answer such questions.

pub mod bfd;
pub mod paths;
pub mod prober;
pub mod watcher;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::forward::view::NicId;
use crate::wire::ethernet::MacAddr;

/// A next hop behind a NIC.
pub type Hop = (NicId, IpAddr);

/// How next hops are asked: `[path] probe`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// ARP, neighbour solicitation.
    #[default]
    Neighbour,
    /// RFC 5880, RFC 5881.
    Bfd,
    /// Not at all: carrier alone decides.
    Off,
}

/// `[path]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How.
    pub probe: Probe,
    /// Between two questions to a neighbour.
    pub interval: Duration,
    /// Questions without an answer, in a row, after which the path is dead.
    pub fall: u8,
    /// Answers in a row after which it is alive again.
    pub rise: u8,
    /// `[path.bfd]`.
    pub bfd: bfd::Settings,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            probe: Probe::default(),
            interval: Duration::from_millis(300),
            fall: 3,
            rise: 3,
            bfd: bfd::Settings::default(),
        }
    }
}

/// What is known of a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It never answered: nothing is concluded from its silence.
    #[default]
    Unknown,
    /// It answers.
    Up,
    /// It answered before, and does not now.
    Dead,
    /// It was dead and answers again, but does not speak BFD yet: not to be used, and its hold-down runs already.
    Waking,
}

impl State {
    /// Its name in status.
    pub fn name(self) -> &'static str {
        match self {
            State::Unknown => "unknown",
            State::Up => "up",
            State::Dead => "dead",
            State::Waking => "waking",
        }
    }
}

/// A next hop to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Behind which NIC, and its address.
    pub hop: Hop,
    /// Name of the device.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// The NIC's own address that is nearest to the next hop, never a VIPA; `None`: it has none.
    pub source: Option<Ipv4Addr>,
    /// It answered before the watch began: then silence means something from the start.
    pub has_answered: bool,
}

/// Why something that came in was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reject {
    /// The bytes are no ARP, no advertisement, no BFD packet.
    Malformed,
    /// A hop limit below 255: it may come from anywhere.
    HopLimit,
    /// An advertisement that does not tell whose it is.
    Nameless,
    /// BFD with a number that is no session's, or from nobody that is watched.
    NoSession,
    /// BFD signed where it should not be, or not where it should.
    Authentication,
    /// BFD signed with an old sequence number.
    Replayed,
}

impl Reject {
    /// One word for it, as status shows it.
    pub fn name(self) -> &'static str {
        match self {
            Reject::Malformed => "malformed",
            Reject::HopLimit => "hop_limit",
            Reject::Nameless => "nameless",
            Reject::NoSession => "no_session",
            Reject::Authentication => "authentication",
            Reject::Replayed => "replayed",
        }
    }
}
