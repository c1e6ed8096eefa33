//! The network around the host, as the kernel tells it by netlink, and what vipa sets up in it.
//!
//! A [`mirror`] of the kernel's state is fed by [`netlink`] dumps and events. From configuration and mirror
//! alone [`plan`] says what should stand in the kernel, and [`net_view`] what the forwarder should know.
//! [`kernel`] turns the difference between plan and mirror into requests, so that starting, following a
//! change, adopting what an earlier run left and putting back what others removed are one and the same act.
//! [`network`] holds these together, [`router`] is the thread that runs them, [`down`] takes all of it away.
//!
//! Ours is what carries protocol number 118 ([`PROTOCOL`]) in our table or at our preferences; nothing else
//! is ever deleted. Originals of kernel settings are [`saved`] once, before the first change.

mod announced;
mod cached;
pub mod down;
mod dump;
pub mod health;
pub mod hold_down;
pub mod inspect;
mod interfaces;
pub mod kernel;
pub mod mirror;
pub mod net_view;
pub mod netlink;
pub mod network;
pub mod nft;
pub mod plan;
mod ports;
mod preview;
mod request;
pub mod resolve;
pub mod router;
pub mod saved;
mod socket_facts;
mod survey;
pub mod sysctl;
mod tables;

pub use cached::forget_cached_routes;
pub use preview::{preview, preview_view};

/// `rtm_protocol`, `FRA_PROTOCOL` and `NDA_PROTOCOL` of all that vipa sets up ("v").
pub const PROTOCOL: u8 = 0x76;

/// The kernel's main routing table.
pub const MAIN_TABLE: u32 = 254;
/// The table of this host's own addresses.
pub const LOCAL_TABLE: u32 = 255;
/// `rtm_protocol` of what the kernel sets up by itself (RTPROT_KERNEL).
pub const KERNELS_PROTOCOL: u8 = 2;

/// What goes wrong on the network side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A netlink request of the kind that should always work did not.
    #[error("netlink: {what}: {source}")]
    Netlink {
        /// What was asked.
        what: &'static str,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// The adapter could not be made.
    #[error("cannot create the adapter {name}: {source}")]
    Adapter {
        /// Its name.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refused something without which nothing works.
    #[error("the kernel refused `{what}`: {source}")]
    Refused {
        /// In the words of `ip`.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// A kernel setting could not be read or written.
    #[error("cannot set {what}: {source}")]
    Sysctl {
        /// Its name.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// The table is in use by others.
    #[error(
        "routing table {table} already holds {route}, which is not vipa's: choose another [virtual] table"
    )]
    ForeignTable {
        /// The table.
        table: u32,
        /// One of the routes in it.
        route: String,
    },
    /// Two adapters of one network namespace would take each other's things for their own.
    #[error(
        "{adapter}, another adapter of vipa's in this network namespace, has {what}: give this one a [virtual] table and \
         preference of its own, and take down first (`vipa down --adapter`) which of the two is not to have that any more"
    )]
    OtherAdapter {
        /// The other one.
        adapter: String,
        /// What it has.
        what: String,
    },
    /// The nftables rules could not be set up.
    #[error("nftables: {0}")]
    Nftables(std::io::Error),
    /// The state directory or a file in it.
    #[error("{path}: {source}")]
    State {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The poll loop could not be built.
    #[error("poll: {0}")]
    Poll(std::io::Error),
    /// The data plane could not attach to the adapter.
    #[error("cannot attach to the adapter: {0}")]
    Attach(std::io::Error),
}

/// Result of the network side.
pub type Result<T> = std::result::Result<T, Error>;
