//! What workers and the router say to each other, over bounded channels (crossbeam) with a `mio::Waker`
//! beside each. Never a packet on its fast path.

use std::net::IpAddr;

use crate::forward::view::{NicId, WorkerId};

/// A rewritten flow as the application sends it, before the rewrite: what the egress hold must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeldFlow {
    /// IANA protocol number.
    pub protocol: u8,
    /// Source address, before the rewrite.
    pub source: IpAddr,
    /// Source port (ICMP echo: identifier), before the rewrite.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port (ICMP echo: 0).
    pub destination_port: u16,
}

/// A worker asks the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The MAC address of this next hop is wanted; answered by a new view.
    Resolve {
        /// Behind this NIC.
        nic: NicId,
        /// The next hop.
        address: IpAddr,
    },
    /// Put the flow into the egress hold's set, then answer [`Command::Held`].
    Hold {
        /// Who asks.
        worker: WorkerId,
        /// The flow.
        flow: HeldFlow,
    },
    /// The flow is gone: take it out of the set.
    Release(HeldFlow),
    /// A send to this NIC failed as if it were gone: look at its link now.
    Suspect(NicId),
}

/// The router tells a worker (views go through the `NetCell`).
#[derive(Debug)]
pub enum Command {
    /// The flow is in the egress hold's set (or cannot be, and goes without).
    Held(HeldFlow),
}
