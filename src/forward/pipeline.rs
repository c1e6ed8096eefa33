//! The walk of a packet.
//!
//! Out: parse → flow. A flow that is known has its edit and its way. A new one asks FIG. 4 for its source
//! ([`super::source`]), the routes for its next hops, the spread for its NIC, and is remembered.
//! In: only replies to rewritten flows come here; they get back the address and port that the socket knows.

use super::flow::{Direction, Flow, FlowId, FlowTable, Key, Millis, Way};
use super::frame::{Frame, Ingress};
use super::rewrite::{self, Edit, Endpoint};
use super::route::NextHop;
use super::socket::Socket;
use super::source::{Decision, Defined, Ignored, SourcePolicy};
use super::spread;
use super::verdict::{DropReason, Verdict, Wait};
use super::view::{NetView, WorkerId};
use crate::wire::packet::{Fragment, Headers, Layer4, ParseError};

/// What a worker keeps between packets.
#[derive(Debug)]
pub struct State {
    /// Its flows.
    pub flows: FlowTable,
    /// Its number.
    pub worker: WorkerId,
    /// How many workers there are.
    pub workers: u8,
    /// Rewritten flows that made room for others or ended: the egress hold has to forget them.
    /// The engine empties it after each batch.
    pub released: Vec<Key>,
}

/// Gives each frame its verdict and makes its edits.
pub fn process_batch(frames: &mut [Frame], state: &mut State, view: &NetView, now: Millis) {
    for frame in frames {
        frame.verdict = match process(frame, state, view, now) {
            Ok(verdict) => verdict,
            Err(reason) => Verdict::Drop(reason),
        };
    }
}

fn process(
    frame: &mut Frame,
    state: &mut State,
    view: &NetView,
    now: Millis,
) -> Result<Verdict, DropReason> {
    let headers = Headers::parse(frame.packet()).map_err(|error| match error {
        ParseError::NotIp => DropReason::NotIp,
        ParseError::Malformed => DropReason::Malformed,
    })?;
    frame.truncate(headers.length);
    match frame.ingress {
        Ingress::Tun => outbound(frame, &headers, state, view, now),
        Ingress::Nic(_) => inbound(frame, &headers, state, now),
    }
}

/// A datagram that this host sends.
fn outbound(
    frame: &mut Frame,
    headers: &Headers,
    state: &mut State,
    view: &NetView,
    now: Millis,
) -> Result<Verdict, DropReason> {
    if is_multicast(headers.destination) {
        return Err(DropReason::Multicast);
    }
    let key = Key::of(headers, Direction::Original);
    let known = state.flows.find(&key).filter(|id| !begins_anew(headers, &state.flows, *id));
    let id = match known {
        Some(id) => id,
        None => match begin(headers, &key, &frame.socket, state, view, now)? {
            Begun::Flow(id) => id,
            Begun::Untracked => return way_out(headers, None, state, view),
            Begun::Elsewhere(worker) => return Ok(Verdict::Punt(worker)),
            Begun::Unsure => return Ok(Verdict::Wait(Wait::Socket(key))),
        },
    };
    if !state.flows.is_held(id) {
        return Ok(Verdict::Wait(Wait::Hold(id)));
    }
    let verdict = match state.flows.way(id, view.generation) {
        Some(way) => Verdict::Transmit { nic: way.nic, destination: way.destination },
        None => way_out(headers, Some(id), state, view)?,
    };
    if let Verdict::Transmit { .. } = verdict {
        state.flows.touch(id, headers, Direction::Original, now);
        if let Some(source) = state.flows.rewritten_source(id) {
            let csum = frame.offload.csum;
            rewrite::apply(frame.packet_mut(), headers, csum, Edit::Source(source));
        }
    }
    Ok(verdict)
}

/// A packet for a reserved port of an address that rewritten flows carry.
fn inbound(
    frame: &mut Frame,
    headers: &Headers,
    state: &mut State,
    now: Millis,
) -> Result<Verdict, DropReason> {
    let key = Key::of(headers, Direction::Reply);
    let Some(id) = state.flows.find(&key) else {
        let owner = WorkerId((key.destination().port % u16::from(state.workers)) as u8);
        return match headers.layer4 {
            _ if owner != state.worker => Ok(Verdict::Punt(owner)),
            // A ping of this host that no rule speaks of chose an identifier of the reserved range.
            Layer4::Echo { .. } => Ok(Verdict::Deliver),
            _ => Err(DropReason::NoFlow),
        };
    };
    state.flows.touch(id, headers, Direction::Reply, now);
    let socket = state.flows.original(id).source();
    let csum = frame.offload.csum;
    rewrite::apply(frame.packet_mut(), headers, csum, Edit::Destination(socket));
    Ok(Verdict::Deliver)
}

enum Begun {
    Flow(FlowId),
    /// The table has no room; the source is right as it is, so the packet goes without an entry.
    Untracked,
    /// A rewritten flow belongs to the worker that its hash names.
    Elsewhere(WorkerId),
    /// A rule asks for what only the socket knows.
    Unsure,
}

/// The first packet of a flow: FIG. 4.
fn begin(
    headers: &Headers,
    key: &Key,
    socket: &Socket,
    state: &mut State,
    view: &NetView,
    now: Millis,
) -> Result<Begun, DropReason> {
    if headers.fragment == Fragment::Later && view.source.may_rewrite(headers) {
        return Err(DropReason::Fragment);
    }
    let is_nic_address = view.has_nic_address(headers.source);
    let decision = view.source.decide(headers, is_nic_address, socket);
    let owner = owner(headers, state.workers);
    if owner != state.worker && may_be_owned(headers, decision, &view.source) {
        return Ok(Begun::Elsewhere(owner));
    }
    let wanted = match decision {
        Decision::Ask => return Ok(Begun::Unsure),
        Decision::Keep(_) => headers.source,
        Decision::Vipa(address, _) => address,
        Decision::Physical(_) => {
            let hop = next_hop(headers, None, view)?;
            let address = view.nic(hop.nic).address(headers.family());
            address.ok_or(DropReason::NoSourceAddress)?
        }
    };
    if let Some(stale) = state.flows.find(key) {
        state.released.extend(state.flows.remove(stale));
    }
    let flow = if wanted == headers.source {
        Flow { rewritten: None, has_reply_key: false }
    } else if decision == Decision::Physical(Ignored::Rip) || !has_port(headers) {
        let source = Endpoint { address: wanted, port: key.source().port };
        Flow { rewritten: Some(source), has_reply_key: false }
    } else {
        if owner != state.worker {
            return Ok(Begun::Elsewhere(owner));
        }
        let port = state
            .flows
            .free_port(
                wanted,
                key.destination(),
                headers.protocol,
                &view.source.ports,
                (state.worker.0, state.workers),
            )
            .ok_or(DropReason::PortsExhausted)?;
        Flow { rewritten: Some(Endpoint { address: wanted, port }), has_reply_key: true }
    };
    match state.flows.insert(key, flow, now) {
        Ok((id, evicted)) => {
            state.released.extend(evicted);
            Ok(Begun::Flow(id))
        }
        Err(_) if flow.rewritten.is_none() => Ok(Begun::Untracked),
        Err(_) => Err(DropReason::FlowTableFull),
    }
}

/// The worker that a rewritten flow belongs to.
fn owner(headers: &Headers, workers: u8) -> WorkerId {
    WorkerId((spread::symmetric_hash(headers) % u64::from(workers)) as u8)
}

/// The middle of a TCP connection that only its beginning could tell from an answer: its owner knows it if
/// it is rewritten. The adapter's queues follow a flow a moment late. (An answer begins with a SYN-ACK, and
/// is known from then on to the worker that met that.)
fn may_be_owned(headers: &Headers, decision: Decision, policy: &SourcePolicy) -> bool {
    decision == Decision::Keep(Defined::Answer)
        && matches!(headers.layer4, Layer4::Tcp { flags, .. } if !flags.is_syn())
        && policy.would_change(headers)
}

/// NIC and MAC address for a packet; the flow remembers them until the view changes.
fn way_out(
    headers: &Headers,
    id: Option<FlowId>,
    state: &mut State,
    view: &NetView,
) -> Result<Verdict, DropReason> {
    let wire_source = id.and_then(|id| state.flows.rewritten_source(id));
    let hop = next_hop(headers, wire_source, view)?;
    let address = hop.gateway.unwrap_or(headers.destination);
    let Some(destination) = view.neighbours.get(&(hop.nic, address)) else {
        return Ok(Verdict::Wait(Wait::Neighbour { nic: hop.nic, address }));
    };
    let way = Way { nic: hop.nic, destination: *destination };
    if let Some(id) = id {
        state.flows.set_way(id, way, view.generation);
    }
    Ok(Verdict::Transmit { nic: way.nic, destination: way.destination })
}

/// A flow that carries a NIC's own address stays with that NIC while it lives: replies come back to it.
fn next_hop(
    headers: &Headers,
    wire_source: Option<Endpoint>,
    view: &NetView,
) -> Result<NextHop, DropReason> {
    let route = view.routes.lookup(headers.destination).ok_or(DropReason::NoRoute)?;
    if route.next_hops.is_empty() {
        return Err(DropReason::RouteElsewhere);
    }
    if let Some(source) = wire_source {
        let is_home = |hop: &&NextHop| {
            let nic = view.nic(hop.nic);
            nic.is_live && nic.addresses.iter().any(|(address, _)| *address == source.address)
        };
        if let Some(home) = route.next_hops.iter().find(is_home) {
            return Ok(*home);
        }
    }
    spread::choose(&route.next_hops, view, spread::symmetric_hash(headers))
        .ok_or(DropReason::NoLiveNic)
}

/// A bare SYN on the remembered way of a flow that was an answer's, or of another decision's: ask FIG. 4.
/// A rewritten flow goes on: it is the same connection tried again, or the next one of the same socket.
fn begins_anew(headers: &Headers, flows: &FlowTable, id: FlowId) -> bool {
    matches!(headers.layer4, Layer4::Tcp { flags, .. } if flags.is_bare_syn())
        && flows.rewritten_source(id).is_none()
}

fn has_port(headers: &Headers) -> bool {
    matches!(
        headers.layer4,
        Layer4::Tcp { .. } | Layer4::Udp { .. } | Layer4::Echo { is_request: true, .. }
    )
}

fn is_multicast(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(a) => a.is_multicast() || a.is_broadcast(),
        std::net::IpAddr::V6(a) => a.is_multicast(),
    }
}
