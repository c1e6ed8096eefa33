//! The walk of a packet.
//!
//! Out: parse → flow. A flow that is known has its edit and its way. A new one asks FIG. 4 for its source
//! ([`super::begin`]), the routes for its next hops, the spread for its NIC, and is remembered.
//! In: replies to rewritten flows get back the address and port that the socket knows, and what clients send to
//! a virtual service goes to a server ([`super::service`]); all else is the kernel's.
//! Later fragments follow the first ([`super::fragments`]), and ICMP errors the flow that they are about.

use std::net::IpAddr;

use super::begin::{self, Begun};
use super::fast;
use super::flood::Floods;
use super::flow::{Direction, FlowId, FlowTable, Key, Millis, Rewritten, Side};
use super::fragments::{Fate, FragmentKey, Fragments};
use super::frame::{Frame, Ingress};
use super::limit::Answers;
use super::preferred::PreferredTable;
use super::rewrite::{self, Edit, Endpoint};
use super::route::NextHop;
use super::service;
use super::spread;
use super::verdict::{DropReason, Verdict, Wait};
use super::view::{NetView, Way, WayId, WorkerId};
use crate::wire::icmp::{self, Complaint};
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
    /// What it may say by itself.
    pub answers: Answers,
    /// Which services are flooded with SYNs.
    pub floods: Floods,
    /// First fragments of late.
    pub fragments: Fragments,
    /// Rewritten flows that made room for others or ended: the egress hold has to forget them.
    /// The engine empties it after each batch.
    pub released: Vec<Rewritten>,
    /// First fragments whose later ones meet at another worker, which has to know.
    /// The engine empties it after each batch.
    pub learned: Vec<(FragmentKey, Fate)>,
}

impl State {
    /// Worker number `worker` of `workers`, which has seen no packet yet.
    pub fn new(flows: FlowTable, worker: WorkerId, workers: u8) -> State {
        State {
            flows,
            worker,
            workers,
            answers: Answers::default(),
            floods: Floods::default(),
            fragments: Fragments::default(),
            released: Vec::with_capacity(1024),
            learned: Vec::with_capacity(64),
        }
    }
}

/// What a worker reads: snapshots that others publish, and the time.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'a> {
    /// The network around the host.
    pub net: &'a NetView,
    /// Virtual services and their preferred servers.
    pub preferred: &'a PreferredTable,
    /// The time.
    pub now: Millis,
}

/// Gives each frame its verdict and makes its edits.
pub fn process_batch(frames: &mut [Frame], state: &mut State, sight: Sight<'_>) {
    let mut ahead = [fast::Plain::NONE; fast::AHEAD];
    for frames in frames.chunks_mut(fast::AHEAD) {
        fast::look_ahead(frames, &state.flows, &mut ahead);
        let mut at = 0;
        while at < frames.len() {
            // A run ends where the kind changes; only what begins no other run is not plain.
            at += match fast::carry(&mut frames[at..], &ahead[at..], state, &sight) {
                0 => {
                    process_one(&mut frames[at], state, sight);
                    1
                }
                carried => carried,
            };
        }
    }
}

/// A packet that is not plain.
#[inline(never)]
pub(super) fn process_one(frame: &mut Frame, state: &mut State, sight: Sight<'_>) {
    frame.verdict = match process(frame, state, sight) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    };
}

fn process(frame: &mut Frame, state: &mut State, sight: Sight<'_>) -> Result<Verdict, DropReason> {
    let headers = Headers::parse(frame.packet()).map_err(|error| match error {
        ParseError::NotIp => DropReason::NotIp,
        ParseError::Malformed => DropReason::Malformed,
    })?;
    frame.truncate(headers.length);
    match frame.ingress {
        Ingress::Tun => outbound(frame, &headers, state, sight),
        Ingress::Nic(_) => inbound(frame, &headers, state, sight),
    }
}

/// A datagram that this host sends.
fn outbound(
    frame: &mut Frame,
    headers: &Headers,
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    let Sight { net: view, preferred, now } = sight;
    if is_multicast(headers.destination) {
        return Err(DropReason::Multicast);
    }
    if headers.fragment == Fragment::Later {
        let is_served = preferred.has_address(headers.destination);
        if let Some(verdict) = follow(frame, headers, state, now)? {
            return Ok(verdict);
        }
        if is_served || view.source.may_rewrite(headers) {
            return Ok(await_first(&FragmentKey::of(headers, Side::Tun), state));
        }
    }
    if let Some(verdict) = error_out(frame, headers, state, sight)? {
        return Ok(verdict);
    }
    let key = Key::of(headers, Side::Tun);
    let known = match state.flows.find(&key) {
        Some((id, direction)) if state.flows.is_served(id) => {
            return service::carry(frame, headers, (id, direction), state, sight);
        }
        Some((id, _)) => Some(id),
        None => match service::asked(headers, preferred) {
            Some(service) => return service::begin(frame, headers, service, state, sight),
            None if !preferred.is_empty() && view.source.vipas.contains(&headers.destination) => {
                return service::own_stranger(headers, state, sight);
            }
            None => None,
        },
    };
    let known = known.filter(|id| {
        !begins_anew(headers, &state.flows, *id) && !is_homeless(headers, &state.flows, *id, view)
    });
    let (id, is_forwarded) = match known {
        Some(id) => (Some(id), state.flows.is_forwarded(id)),
        None => match begin::begin(headers, &key, &frame.socket, state, view, now)? {
            Begun::Flow(id) => (Some(id), state.flows.is_forwarded(id)),
            Begun::Untracked { is_forwarded } => (None, is_forwarded),
            Begun::Elsewhere(worker) => return Ok(Verdict::Punt(worker)),
            Begun::Unsure => return Ok(Verdict::Wait(Wait::Socket(key))),
        },
    };
    if let Some(id) = id.filter(|id| !state.flows.is_held(*id)) {
        return Ok(Verdict::Wait(Wait::Hold(id)));
    }
    let source = id.and_then(|id| state.flows.rewritten_source(id));
    let known = id.and_then(|id| state.flows.way(id, Direction::Original, view.generation));
    let way = match known.and_then(|known| view.neighbours.way(known)) {
        Some(way) => way,
        None => match way_out(headers, source, view)? {
            Ok((place, way)) => {
                if let Some(id) = id {
                    state.flows.set_way(id, Direction::Original, place, view.generation);
                }
                way
            }
            Err(wait) => return Ok(Verdict::Wait(wait)),
        },
    };
    if let Some(id) = id {
        state.flows.touch(id, headers, Direction::Original, now);
    }
    if let Some(complaint) = complaint(frame, headers, is_forwarded, view.nic(way.nic).mtu) {
        return answer(frame, headers, complaint, is_forwarded, state, sight);
    }
    if is_forwarded {
        rewrite::lower_ttl(frame.packet_mut(), headers);
    }
    let edit = source.map(Edit::Source);
    apply(frame, headers, edit);
    if headers.fragment == Fragment::First && (edit.is_some() || view.source.may_rewrite(headers)) {
        remember(
            headers,
            Side::Tun,
            Fate::Carried { way: Some(way), edit, is_forwarded },
            state,
            now,
        );
    }
    Ok(Verdict::Transmit { nic: way.nic, destination: way.destination })
}

/// What came from outside: replies to rewritten flows and what has to do with virtual services are ours, all else is
/// the kernel's.
fn inbound(
    frame: &mut Frame,
    headers: &Headers,
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    let now = sight.now;
    if headers.fragment == Fragment::Later {
        let verdict = follow(frame, headers, state, now)?;
        return Ok(
            verdict.unwrap_or_else(|| await_first(&FragmentKey::of(headers, Side::Nic), state))
        );
    }
    if let Some(verdict) = error_in(frame, headers, state, sight)? {
        return Ok(verdict);
    }
    let Some((id, direction)) = state.flows.find(&Key::of(headers, Side::Nic)) else {
        if let Some(service) = service::asked(headers, sight.preferred) {
            return service::begin(frame, headers, service, state, sight);
        }
        let verdict = stranger(headers, state, sight);
        if headers.fragment == Fragment::First {
            let fate = match verdict {
                Ok(Verdict::Punt(_)) => return verdict,
                Ok(_) => Fate::Kernels,
                Err(reason) => Fate::Dropped(reason),
            };
            remember(headers, Side::Nic, fate, state, now);
        }
        return verdict;
    };
    if state.flows.is_served(id) {
        return service::carry(frame, headers, (id, direction), state, sight);
    }
    state.flows.touch(id, headers, Direction::Reply, now);
    let edit = Some(Edit::Destination(state.flows.original(id).source()));
    apply(frame, headers, edit);
    if headers.fragment == Fragment::First {
        let fate = Fate::Carried { way: None, edit, is_forwarded: false };
        remember(headers, Side::Nic, fate, state, now);
    }
    Ok(Verdict::Deliver)
}

/// What came from outside and belongs to no flow of this worker.
fn stranger(headers: &Headers, state: &State, sight: Sight<'_>) -> Result<Verdict, DropReason> {
    let view = sight.net;
    if begin::is_martian(headers, view) {
        return Err(DropReason::Martian);
    }
    if is_multicast(headers.destination) {
        return Ok(Verdict::Kernel);
    }
    let owner = match headers.layer4 {
        Layer4::Tcp { .. } | Layer4::Udp { .. } => return service::stranger(headers, state, sight),
        _ if !view.owns(headers.destination) => state.worker,
        Layer4::Echo { .. } => {
            let (_, id) = headers.ports();
            let is_reserved = view.source.ports.binary_search(&id).is_ok();
            if is_reserved { WorkerId((id % u16::from(state.workers)) as u8) } else { state.worker }
        }
        // What it quotes has decided whose it is, and not who sent it: handed on, it would come back.
        _ if headers.is_icmp_error() => state.worker,
        _ => begin::owner_without_port(headers.source, state.workers),
    };
    Ok(if owner == state.worker { Verdict::Kernel } else { Verdict::Punt(owner) })
}

/// A later fragment goes the way of the first; `None`: that is not known, or nothing depends on it.
fn follow(
    frame: &mut Frame,
    headers: &Headers,
    state: &State,
    now: Millis,
) -> Result<Option<Verdict>, DropReason> {
    let key = FragmentKey::of(headers, frame.ingress.into());
    match state.fragments.fate(&key, now) {
        Some(Fate::Carried { way, edit, is_forwarded }) => {
            if is_forwarded && !rewrite::lower_ttl(frame.packet_mut(), headers) {
                return Err(DropReason::TtlExceeded);
            }
            apply(frame, headers, edit);
            Ok(Some(match way {
                Some(Way { nic, destination }) => Verdict::Transmit { nic, destination },
                None => Verdict::Deliver,
            }))
        }
        Some(Fate::Dropped(reason)) => Err(reason),
        Some(Fate::Kernels) => Ok(Some(Verdict::Kernel)),
        None => Ok(None),
    }
}

fn await_first(key: &FragmentKey, state: &State) -> Verdict {
    let home = key.home(state.workers);
    if home == state.worker {
        Verdict::Wait(Wait::FirstFragment(key.hash()))
    } else {
        Verdict::Punt(home)
    }
}

/// Remembers what became of a first fragment, here or where the later ones meet.
pub(super) fn remember(headers: &Headers, side: Side, fate: Fate, state: &mut State, now: Millis) {
    let key = FragmentKey::of(headers, side);
    if key.home(state.workers) == state.worker {
        state.fragments.remember(key, fate, now);
    } else {
        state.learned.push((key, fate));
    }
}

/// An ICMP error that this host sends about a reply to a rewritten flow: outside, nobody knows the addresses
/// and ports that the socket has.
fn error_out(
    frame: &mut Frame,
    headers: &Headers,
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Option<Verdict>, DropReason> {
    let view = sight.net;
    let Some(quoted) = headers.quoted(frame.packet()) else { return Ok(None) };
    // The quoted packet went the other way.
    let key = Key::of(&quoted, Side::Nic).reversed(Side::Tun);
    let Some((id, direction)) = state.flows.find(&key) else {
        let owner = begin::owner(&quoted, state.workers);
        let may_be_owned = owner != state.worker
            && view.source.may_rewrite(&Headers {
                source: quoted.destination,
                destination: quoted.source,
                ..quoted
            });
        return Ok(may_be_owned.then_some(Verdict::Punt(owner)));
    };
    if state.flows.is_served(id) {
        return service::carry_error(frame, headers, &quoted, (id, direction), state, sight)
            .map(Some);
    }
    let Some(wire) = state.flows.rewritten_source(id) else { return Ok(None) };
    let way = match way_out(headers, Some(wire), view)? {
        Ok((_, way)) => way,
        Err(wait) => return Ok(Some(Verdict::Wait(wait))),
    };
    let outer = if headers.source == key.source().address { wire.address } else { headers.source };
    let outer = Edit::Source(Endpoint { address: outer, port: 0 });
    let csum = frame.offload.csum;
    let edits = (outer, Edit::Destination(wire));
    rewrite::apply_to_error(frame.packet_mut(), (headers, csum), &quoted, edits);
    if headers.fragment == Fragment::First {
        let fate = Fate::Carried { way: Some(way), edit: Some(outer), is_forwarded: false };
        remember(headers, Side::Tun, fate, state, sight.now);
    }
    Ok(Some(Verdict::Transmit { nic: way.nic, destination: way.destination }))
}

/// An ICMP error from outside about a packet of a rewritten flow: to the socket that sent it.
fn error_in(
    frame: &mut Frame,
    headers: &Headers,
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Option<Verdict>, DropReason> {
    let Some(quoted) = headers.quoted(frame.packet()) else { return Ok(None) };
    let key = Key::of(&quoted, Side::Tun).reversed(Side::Nic);
    let Some((id, direction)) = state.flows.find(&key) else {
        // As if the reply had come in place of the error.
        let reply = Headers { source: quoted.destination, destination: quoted.source, ..quoted };
        let port = quoted.ports().0;
        let owner = match begin::owner_of_reply(&reply, port, state.workers) {
            owner if sight.net.owns(quoted.source) => owner,
            _ => match service::owner_of_error(&quoted, sight, state.workers) {
                Some(owner) => owner,
                None => return Ok(None),
            },
        };
        return Ok((owner != state.worker).then_some(Verdict::Punt(owner)));
    };
    if state.flows.is_served(id) {
        return service::carry_error(frame, headers, &quoted, (id, direction), state, sight)
            .map(Some);
    }
    let socket = state.flows.original(id).source();
    let outer = Edit::Destination(Endpoint { address: socket.address, port: 0 });
    let csum = frame.offload.csum;
    rewrite::apply_to_error(
        frame.packet_mut(),
        (headers, csum),
        &quoted,
        (outer, Edit::Source(socket)),
    );
    if headers.fragment == Fragment::First {
        let fate = Fate::Carried { way: None, edit: Some(outer), is_forwarded: false };
        remember(headers, Side::Nic, fate, state, sight.now);
    }
    Ok(Some(Verdict::Deliver))
}

/// Makes an edit.
pub(super) fn apply(frame: &mut Frame, headers: &Headers, edit: Option<Edit>) {
    if let Some(edit) = edit {
        let csum = frame.offload.csum;
        rewrite::apply(frame.packet_mut(), headers, csum, edit);
    }
}

/// Why a packet may not go on as it is.
pub(super) fn complaint(
    frame: &Frame,
    headers: &Headers,
    is_forwarded: bool,
    mtu: u32,
) -> Option<Complaint> {
    let packet = frame.packet();
    if is_forwarded && packet[if headers.source.is_ipv4() { 8 } else { 7 }] <= 1 {
        return Some(Complaint::TimeExceeded);
    }
    let longest = match frame.offload.gso {
        Some(gso) => headers.length.min(headers.headers_len(packet) + usize::from(gso.size)),
        None => headers.length,
    };
    (longest > mtu as usize).then_some(Complaint::TooBig { mtu })
}

/// Tells who sent the packet what is wrong with it, if it may be told (RFC 1122 section 3.2.2, RFC 4443
/// section 2.4 e).
fn answer(
    frame: &mut Frame,
    headers: &Headers,
    complaint: Complaint,
    is_forwarded: bool,
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    let view = sight.net;
    let reason = match complaint {
        Complaint::TooBig { .. } => DropReason::TooBig,
        Complaint::TimeExceeded => DropReason::TtlExceeded,
        Complaint::PortUnreachable => DropReason::NoServer,
    };
    // The kernel takes nothing from its own addresses: what it sent is answered from where it should have gone.
    let own = view.source.default_vipa(headers.family()).filter(|_| is_forwarded);
    let from = own.unwrap_or(headers.destination);
    let may_be_told = headers.fragment != Fragment::Later
        && !headers.is_icmp_error()
        && !headers.source.is_unspecified()
        && !is_multicast(headers.source);
    if !may_be_told {
        return Err(reason);
    }
    if is_forwarded && !may_complain(complaint, state, sight.now) {
        return Err(DropReason::AnswersLimited);
    }
    let length = icmp::complain(frame.space(0), headers, complaint, from).ok_or(reason)?;
    frame.received(length);
    frame.offload = Default::default();
    Ok(Verdict::Answer)
}

/// Is there room for one more error to another host? Path MTU discovery is not limited.
pub(super) fn may_complain(complaint: Complaint, state: &mut State, now: Millis) -> bool {
    matches!(complaint, Complaint::TooBig { .. }) || state.answers.errors.take(now)
}

/// NIC and MAC address for a packet, or what it has to wait for.
fn way_out(
    headers: &Headers,
    wire_source: Option<Endpoint>,
    view: &NetView,
) -> Result<Result<(WayId, Way), Wait>, DropReason> {
    let hop = next_hop(headers, wire_source.map(|source| source.address), view)?;
    Ok(way_by(hop, headers.destination, view))
}

/// The way by a next hop, or what there is to wait for.
pub(super) fn way_by(
    hop: NextHop,
    destination: IpAddr,
    view: &NetView,
) -> Result<(WayId, Way), Wait> {
    let address = hop.gateway.unwrap_or(destination);
    view.neighbours.find(hop.nic, address).ok_or(Wait::Neighbour { nic: hop.nic, address })
}

/// A flow that carries a NIC's own address stays with that NIC while it lives: replies come back to it.
pub(crate) fn next_hop(
    headers: &Headers,
    wire_source: Option<IpAddr>,
    view: &NetView,
) -> Result<NextHop, DropReason> {
    hop_to(headers.destination, spread::symmetric_hash(headers), wire_source, view)
}

/// The next hop to `destination` for a flow of this hash.
pub(crate) fn hop_to(
    destination: IpAddr,
    flow: u64,
    wire_source: Option<IpAddr>,
    view: &NetView,
) -> Result<NextHop, DropReason> {
    let route = view.routes.lookup(destination).ok_or(DropReason::NoRoute)?;
    if route.next_hops.is_empty() {
        return Err(DropReason::RouteElsewhere);
    }
    if let Some(source) = wire_source {
        let is_home = |hop: &&NextHop| {
            let nic = view.nic(hop.nic);
            nic.is_live && nic.addresses.iter().any(|(address, _)| *address == source)
        };
        if let Some(home) = route.next_hops.iter().find(is_home) {
            return Ok(*home);
        }
    }
    spread::choose(&route.next_hops, view, flow).ok_or(DropReason::NoLiveNic)
}

/// A bare SYN on the remembered way of a flow that was an answer's, or of another decision's: ask FIG. 4.
/// A rewritten flow goes on: it is the same connection tried again, or the next one of the same socket.
fn begins_anew(headers: &Headers, flows: &FlowTable, id: FlowId) -> bool {
    matches!(headers.layer4, Layer4::Tcp { flags, .. } if flags.is_bare_syn())
        && flows.rewritten_source(id).is_none()
}

/// A rewritten flow whose address on the wire is no NIC's any more, nor a VIPA: no reply can come back. A
/// connection may wait for the address to return; a datagram gets another source.
fn is_homeless(headers: &Headers, flows: &FlowTable, id: FlowId, view: &NetView) -> bool {
    flows.way(id, Direction::Original, view.generation).is_none()
        && matches!(headers.layer4, Layer4::Udp { .. } | Layer4::Echo { .. })
        && flows.rewritten_source(id).is_some_and(|source| {
            !view.source.vipas.contains(&source.address) && !view.has_nic_address(source.address)
        })
}

pub(crate) fn is_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_multicast(),
    }
}
