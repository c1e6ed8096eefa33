//! The first packet of a flow: FIG. 4 decides its source ([`super::source`]), and the flow remembers it.

use std::net::{IpAddr, Ipv4Addr};

use super::flow::{Flow, FlowId, Key, Millis, Side};
use super::pipeline::{State, next_hop};
use super::rewrite::Endpoint;
use super::socket::Socket;
use super::source::{Decision, Defined, Ignored, SourcePolicy};
use super::spread;
use super::verdict::DropReason;
use super::view::{NetView, WorkerId};
use crate::wire::ip;
use crate::wire::packet::{Headers, Layer4};

/// What came of a flow's first packet.
pub(super) enum Begun {
    Flow(FlowId),
    /// The table has no room; the source is right as it is, so the packet goes without an entry.
    Untracked {
        is_forwarded: bool,
    },
    /// A rewritten flow belongs to the worker that its hash names.
    Elsewhere(WorkerId),
    /// A rule asks for what only the socket knows.
    Unsure,
}

/// FIG. 4 for a packet without a flow.
pub(super) fn begin(
    headers: &Headers,
    key: &Key,
    socket: &Socket,
    state: &mut State,
    view: &NetView,
    now: Millis,
) -> Result<Begun, DropReason> {
    if view.is_broadcast(headers.destination) {
        return Err(DropReason::Multicast);
    }
    let is_nic_address = view.has_nic_address(headers.source);
    let decision = view.source.decide(headers, is_nic_address, socket);
    let owner = owner(headers, state.workers);
    if owner != state.worker && may_be_owned(headers, decision, &view.source) {
        return Ok(Begun::Elsewhere(owner));
    }
    if decision == Decision::Ask {
        return Ok(Begun::Unsure);
    }
    let is_forwarded = decision == Decision::Keep(Defined::Foreign);
    let wanted = source(headers, decision, view)?;
    if let Some((known, _)) = state.flows.find(key) {
        // A SYN sent again, or the next connection of the same ports: nothing is to change.
        if wanted == headers.source && state.flows.rewritten_source(known).is_none() {
            return Ok(Begun::Flow(known));
        }
        state.released.extend(state.flows.remove(known));
    }
    let rewritten = |port| Some(Endpoint { address: wanted, port });
    let flow = if wanted == headers.source {
        Flow { rewritten: None, has_reply_key: false, is_forwarded }
    } else if decision == Decision::Physical(Ignored::Rip) || headers.source.is_unspecified() {
        // The socket itself hears what comes back.
        Flow { rewritten: rewritten(key.source().port), has_reply_key: false, is_forwarded }
    } else if owner != state.worker {
        return Ok(Begun::Elsewhere(owner));
    } else {
        let port =
            wire_port(headers, key, wanted, state, view).ok_or(DropReason::PortsExhausted)?;
        Flow { rewritten: rewritten(port), has_reply_key: true, is_forwarded }
    };
    match state.flows.insert(key, flow, now) {
        Ok((id, evicted)) => {
            state.released.extend(evicted);
            Ok(Begun::Flow(id))
        }
        Err(_) if flow.rewritten.is_none() => Ok(Begun::Untracked { is_forwarded }),
        Err(_) => Err(DropReason::FlowTableFull),
    }
}

/// The source address that a decision yields.
pub(crate) fn source(
    headers: &Headers,
    decision: Decision,
    view: &NetView,
) -> Result<IpAddr, DropReason> {
    match decision {
        // Nobody is asked where this is called: the source stays.
        Decision::Keep(_) | Decision::Ask => Ok(headers.source),
        Decision::Vipa(address, _) => Ok(address),
        Decision::Physical(_) => {
            let hop = next_hop(headers, None, view)?;
            view.nic(hop.nic).address(headers.family()).ok_or(DropReason::NoSourceAddress)
        }
    }
}

/// The port, or identifier, that tells the flow's replies apart. Where the protocol has none to choose the
/// addresses alone have to.
fn wire_port(
    headers: &Headers,
    key: &Key,
    wanted: IpAddr,
    state: &mut State,
    view: &NetView,
) -> Option<u16> {
    if has_port(headers) {
        let share = (state.worker.0, state.workers);
        let remote = key.destination();
        let replies = (headers.protocol, Side::Nic);
        return state.flows.free_port(wanted, remote, replies, &view.source.ports, share);
    }
    let wire = Endpoint { address: wanted, port: key.source().port };
    let reply = Key::new(key.destination(), wire, headers.protocol, Side::Nic);
    state.flows.find(&reply).is_none().then_some(wire.port)
}

/// The worker that a rewritten flow belongs to.
pub(super) fn owner(headers: &Headers, workers: u8) -> WorkerId {
    if has_port(headers) {
        WorkerId((spread::symmetric_hash(headers) % u64::from(workers)) as u8)
    } else {
        owner_without_port(headers.destination, workers)
    }
}

/// The same for a protocol whose port cannot be chosen: its replies show nothing but the remote address.
pub(super) fn owner_without_port(remote: IpAddr, workers: u8) -> WorkerId {
    WorkerId((spread::address_hash(remote) % u64::from(workers)) as u8)
}

/// The worker that gave out the `port` on which `reply` comes.
pub(super) fn owner_of_reply(reply: &Headers, port: u16, workers: u8) -> WorkerId {
    match reply.layer4 {
        Layer4::Tcp { .. } | Layer4::Udp { .. } | Layer4::Echo { .. } => {
            WorkerId((port % u16::from(workers)) as u8)
        }
        _ => owner_without_port(reply.source, workers),
    }
}

/// The middle of a TCP connection that only its beginning could tell from an answer: its owner knows it if
/// it is rewritten. The adapter's queues follow a flow a moment late. (An answer begins with a SYN-ACK, and
/// is known from then on to the worker that met that.)
fn may_be_owned(headers: &Headers, decision: Decision, policy: &SourcePolicy) -> bool {
    decision == Decision::Keep(Defined::Answer)
        && match headers.layer4 {
            Layer4::Tcp { flags, .. } => !flags.is_syn(),
            Layer4::Kept { .. } => true,
            _ => false,
        }
        && policy.would_change(headers)
}

fn has_port(headers: &Headers) -> bool {
    matches!(
        headers.layer4,
        Layer4::Tcp { .. } | Layer4::Udp { .. } | Layer4::Echo { is_request: true, .. }
    )
}

/// From outside with a source that no other host can have (RFC 1812 section 5.3.7). DHCP and duplicate address
/// detection (RFC 4862 section 5.4.2) know no source yet.
pub(crate) fn is_martian(headers: &Headers, view: &NetView) -> bool {
    let source = headers.source;
    if source.is_unspecified() {
        return !match headers.layer4 {
            Layer4::Udp { source: 68, destination: 67 } => source == Ipv4Addr::UNSPECIFIED,
            Layer4::Icmp { kind: 135 | 143 } => headers.protocol == ip::ICMPV6,
            _ => false,
        };
    }
    source.is_loopback()
        || source.is_multicast()
        || view.source.vipas.contains(&source)
        || view.has_nic_address(source)
}
