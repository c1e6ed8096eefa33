//! The routing daemon of US 5,923,854: tells the neighbours where the VIPAs are, and learns from them.
//!
//! RIP version 1 and 2 (RFC 1058, RFC 2453) and RIPng (RFC 2080). The [`daemon`] is pure: datagrams, interfaces and the time go in,
//! datagrams and learned routes come out. FIG. 3A is [`daemon::Daemon::interface_timer`], FIG. 3B
//! [`daemon::Daemon::broadcast_timer`]. [`table`] holds the routes, [`auth`] tells who may be believed, [`speaker`] has the sockets.

pub mod auth;
pub mod daemon;
pub mod speaker;
pub mod table;

use std::net::IpAddr;
use std::time::Duration;

use crate::wire::ip::Prefix;
use crate::wire::rip::Malformed;

/// What a daemon is to do: `[rip]`. Defaults are those of RFC 2453 section 3.8.
#[derive(Clone, Debug)]
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
    /// The neighbours are asked by BFD (`[path] probe`): they speak it only with those of whom they hear.
    pub has_bfd: bool,
}

/// Of one `[[nic]]`: `[[rip.nic]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicSettings {
    /// Added to what is heard by it, 1 to 15 (RFC 2453 section 3.5).
    pub cost: u8,
    /// Hears, does not speak.
    pub is_passive: bool,
}

impl Default for NicSettings {
    fn default() -> NicSettings {
        NicSettings { cost: 1, is_passive: false }
    }
}

/// `[rip] advertise`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl Reject {
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
        }
    }
}

impl From<Malformed> for Reject {
    fn from(malformed: Malformed) -> Reject {
        Reject::Malformed(malformed)
    }
}

/// A route that neighbours told of, with every way there that is equally short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Where to.
    pub prefix: Prefix,
    /// By these NICs and gateways.
    pub ways: Vec<(crate::forward::view::NicId, IpAddr)>,
}
