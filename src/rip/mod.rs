//! The routing daemon of US 5,923,854: tells the neighbours where the VIPAs are, and learns from them.
//!
//! RIP version 1 and 2 (RFC 1058, RFC 2453) and RIPng (RFC 2080). The [`daemon`] is pure: datagrams, interfaces and the time go in,
//! datagrams and learned routes come out. FIG. 3A is [`daemon::Daemon::interface_timer`], FIG. 3B
//! [`daemon::Daemon::broadcast_timer`]. [`table`] holds the routes, [`inherited`]
//! those of an earlier run, [`auth`] tells who may be believed, [`speaker`] has the sockets;
//! [`recording`] writes down what goes in and comes out, and lets it happen again. `tests/rip` has every sentence of the RFCs with *must*,
//! *should* or *may*, and the code that obeys it.

pub mod auth;
mod classful;
pub mod daemon;
pub mod inherited;
pub mod recording;
pub mod speaker;
pub mod table;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::wire::ip::Prefix;
use crate::wire::rip::Malformed;

/// What a daemon is to do: `[rip]`. Defaults are those of RFC 2453 section 3.8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Speak version 1, hear it too.
    pub is_v1: bool,
    /// Speak version 2.
    pub is_v2: bool,
    /// Speak RIPng.
    pub is_ng: bool,
    /// Between two full updates.
    pub update: Duration,
    /// A route not heard of for so long is unreachable …
    pub timeout: Duration,
    /// … and after so much longer forgotten.
    pub garbage: Duration,
    /// What neighbours are told.
    pub advertise: Advertise,
    /// Of the routes to the VIPAs, as told by a host all of whose paths are well is one more than this: that one is kept in reserve.
    pub metric: u8,
    /// Prefixes within which routes are learned; empty: all.
    pub accept: Vec<Prefix>,
    /// Routes that are learned at most.
    pub most_routes: usize,
    /// Of each `[[nic]]`.
    pub nics: Vec<NicSettings>,
    /// Version 2 is signed and has to be signed if there are any.
    pub keys: Vec<auth::Key>,
    /// Where all that is heard and said is written down.
    pub record: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            is_v1: false,
            is_v2: true,
            is_ng: true,
            update: Duration::from_secs(30),
            timeout: Duration::from_secs(180),
            garbage: Duration::from_secs(120),
            advertise: Advertise::Virtual,
            metric: 1,
            accept: Vec::new(),
            most_routes: 20_000,
            nics: Vec::new(),
            keys: Vec::new(),
            record: None,
        }
    }
}

/// Of one `[[nic]]`: `[[rip.nic]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSettings {
    /// Added to what is heard by it, 1 to 15 (RFC 2453 section 3.5).
    pub cost: u8,
    /// Hears, does not speak.
    pub is_passive: bool,
    /// How what leaves by it is told by it.
    pub horizon: Horizon,
}

impl Default for NicSettings {
    fn default() -> NicSettings {
        NicSettings { cost: 1, is_passive: false, horizon: Horizon::Poisoned }
    }
}

/// `[[rip.nic]] horizon` (RFC 2080 section 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Horizon {
    /// As unreachable.
    Poisoned,
    /// Not at all.
    Split,
    /// As anywhere else.
    None,
}

/// `[rip] advertise`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Advertise {
    /// The VIPAs in place of the physical addresses (claim 1).
    Virtual,
    /// The NICs' own networks too (FIG. 3B as drawn).
    VirtualAndReal,
    /// And what was learned: the host is a router.
    All,
}

/// Why a message or an entry of it was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reject {
    /// The bytes are no RIP.
    Malformed(Malformed),
    /// Of a version that is not spoken.
    Version,
    /// The sender lies in no network of the NIC (RIPng: has no link-local address).
    NotOnLink,
    /// A response from another port than 520 or 521.
    Port,
    /// RIPng with a hop limit below 255.
    HopLimit,
    /// By a NIC that is not live.
    NotLive,
    /// Keys are configured, and it is not signed.
    Unsigned,
    /// It is signed, and no keys are configured.
    Signed,
    /// A wrong password.
    Password,
    /// Signed in a way that there is not.
    SignatureKind,
    /// A signature behind the first entry.
    SignaturePlace,
    /// No key of that number, or not now.
    KeyId,
    /// The digest is wrong.
    Digest,
    /// Its sequence number was there before.
    Replayed,
    /// More neighbours than are kept.
    Neighbours,
    /// An entry for no destination that a route can have.
    Destination,
    /// An entry with a metric of 0 or above 16.
    Metric,
    /// An entry outside of `accept`.
    Filtered,
    /// One route more than `routes`.
    TooMany,
    /// A request while more waits to be sent than the link takes.
    Busy,
}

impl Reject {
    /// Those that a signature is refused for.
    pub const OF_SIGNATURES: [Reject; 9] = [
        Reject::Unsigned,
        Reject::Signed,
        Reject::Password,
        Reject::SignatureKind,
        Reject::SignaturePlace,
        Reject::KeyId,
        Reject::Digest,
        Reject::Replayed,
        Reject::Neighbours,
    ];

    /// One word for it, as status shows it.
    pub fn name(self) -> &'static str {
        match self {
            Reject::Malformed(Malformed::Length) => "length",
            Reject::Malformed(Malformed::Command) => "command",
            Reject::Malformed(Malformed::Version) | Reject::Version => "version",
            Reject::Malformed(Malformed::NotZero) => "not_zero",
            Reject::Malformed(Malformed::AddressFamily) => "address_family",
            Reject::Malformed(Malformed::Mask) => "mask",
            Reject::NotOnLink => "not_on_link",
            Reject::Port => "port",
            Reject::HopLimit => "hop_limit",
            Reject::NotLive => "not_live",
            Reject::Unsigned => "unsigned",
            Reject::Signed => "signed",
            Reject::Password => "password",
            Reject::SignatureKind => "signature_kind",
            Reject::SignaturePlace => "signature_place",
            Reject::KeyId => "key_id",
            Reject::Digest => "digest",
            Reject::Replayed => "replayed",
            Reject::Neighbours => "neighbours",
            Reject::Destination => "destination",
            Reject::Metric => "metric",
            Reject::Filtered => "filtered",
            Reject::TooMany => "too_many",
            Reject::Busy => "busy",
        }
    }
}

impl From<Malformed> for Reject {
    fn from(malformed: Malformed) -> Reject {
        Reject::Malformed(malformed)
    }
}

/// NICs and gateways, in order; shared by routes that have the same.
pub type Ways = Arc<[(crate::forward::view::NicId, IpAddr)]>;

/// A route that neighbours told of, with every way there that is equally short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Where to.
    pub prefix: Prefix,
    /// By these.
    pub ways: Ways,
}
