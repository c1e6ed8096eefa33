//! VIPAs that lie in a NIC's own subnet (V8): hosts on the link look for them there, by ARP and neighbour solicitation.
//!
//! The kernel answers, so that it goes on without a forwarder: `link/plan/homes.rs` says by which NIC. What is left to say unasked is
//! here: the neighbours are told at the start, whenever another NIC takes a VIPA over, and now and then, since caches and switches may
//! have learned something else. And what others say is heard: a host that claims a VIPA is reported, and not fought.
//! [`announcer`] is pure: time, NICs and claims in, what is to be sent and who disputes what out. [`speaker`] has the sockets, in the
//! router's poll loop.

pub mod announcer;
pub mod speaker;

use std::net::IpAddr;
use std::time::Duration;

use crate::wire::ip::Prefix;

/// A VIPA and the subnet of a NIC in which it lies: one for each link on which it is looked for.
pub type Place = (IpAddr, Prefix);

/// `[announce]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Between two announcements of what has not changed; zero: there are none.
    pub interval: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { interval: Duration::from_secs(60) }
    }
}
