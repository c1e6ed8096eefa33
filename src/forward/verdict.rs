//! What becomes of a packet, as plain data.

use std::net::IpAddr;

use super::flow::{FlowId, Key};
use super::view::{NicId, WorkerId};
use crate::wire::ethernet::MacAddr;

/// What the engine does with a frame that [`super::pipeline::process_batch`] has seen. Edits to the
/// bytes have been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Out by a NIC, to this MAC address.
    Transmit {
        /// The NIC.
        nic: NicId,
        /// MAC address of the next hop.
        destination: MacAddr,
    },
    /// Into the TUN: to a socket of this host.
    Deliver,
    /// The frame has become an ICMP error about what it was: into the TUN, back to who sent it.
    Answer,
    /// The kernel has it already, and it is none of the forwarder's.
    Kernel,
    /// Keep it a while and run it again; the bytes are untouched.
    Wait(Wait),
    /// Another worker owns the flow; the bytes are untouched.
    Punt(WorkerId),
    /// Gone, and counted.
    Drop(DropReason),
}

/// What a frame waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The MAC address of a next hop.
    Neighbour {
        /// Behind this NIC.
        nic: NicId,
        /// Its address.
        address: IpAddr,
    },
    /// The egress hold must know a rewritten flow before its first frame leaves.
    Hold(FlowId),
    /// The first fragment of a datagram, of which this is a later one: its key's hash.
    FirstFragment(u64),
    /// What only the socket of this flow knows.
    Socket(Key),
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a packet was dropped. Each is counted under its name.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// The name in status and metrics.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// One sentence for the reader of the status page.
            pub fn meaning(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc),+).trim_ascii_start(),)+ }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its headers say, or a header field contradicts another.
    Malformed = "malformed",
    /// Neither IPv4 nor IPv6.
    NotIp = "not_ip",
    /// Multicast or broadcast reached the adapter; the kernel's own routes carry those.
    Multicast = "multicast",
    /// No route of a NIC covers the destination.
    NoRoute = "no_route",
    /// The kernel's route for the destination leaves by a device that is no NIC of vipa.
    RouteElsewhere = "route_elsewhere",
    /// No NIC that the route allows is live.
    NoLiveNic = "no_live_nic",
    /// The source is left as an address of the family that the flow needs, but none is configured.
    NoSourceAddress = "no_source_address",
    /// Every reserved source port towards this destination is taken; of a protocol without ports, another flow
    /// between the two addresses is rewritten already.
    PortsExhausted = "ports_exhausted",
    /// The flow table is full of flows that may not be evicted.
    FlowTableFull = "flow_table_full",
    /// A later fragment whose first one did not come in time.
    Fragment = "fragment",
    /// From outside with a source that cannot be: this host's own, loopback, unspecified or multicast.
    Martian = "martian",
    /// The time to live of what is forwarded for another host ran out.
    TtlExceeded = "ttl_exceeded",
    /// It came for a reserved port that no flow has.
    NoFlow = "no_flow",
    /// A virtual service has no server for it, and nobody may be told.
    NoServer = "no_server",
    /// Its sender would be told why, but so many are told already that this would be a flood.
    AnswersLimited = "answers_limited",
    /// A virtual service is flooded with SYNs: of each client's the first is dropped, the next one is taken.
    SynFlood = "syn_flood",
    /// The servers of a virtual service are being read for the first time; the client tries again.
    ServersUnread = "servers_unread",
    /// The server of a service in mode `direct` is on no link of a NIC.
    ServerOffLink = "server_off_link",
    /// The next hop did not answer in time.
    NeighbourUnresolved = "neighbour_unresolved",
    /// The queue of frames that wait was full.
    WaitQueueFull = "wait_queue_full",
    /// The queue to another worker was full.
    PuntQueueFull = "punt_queue_full",
    /// The NIC's send queue was full (EAGAIN, ENOBUFS).
    NicQueueFull = "nic_queue_full",
    /// The NIC went away while the frame was sent (ENETDOWN, ENXIO, ENODEV).
    NicDown = "nic_down",
    /// The device refused the frame, also without offload.
    DeviceRefused = "device_refused",
    /// Larger than the NIC takes.
    TooBig = "too_big",
    /// The kernel refused what was written into the TUN.
    TunRefused = "tun_refused",
}
