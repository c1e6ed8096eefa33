//! Virtual services (L13, L15, C4): a client's first packet goes to the server that the preferred-server table names
//! at that moment, and the flow stays with it, whatever the table says later.
//!
//! In mode *nat* the server's address and port come in place of the VIPA's, and a VIPA of ours in place of the
//! client's, so that the answers pass here whatever the server's routes; in mode *direct* only the MAC address
//! changes, and the server answers the client itself. A server on this host is reached through the TUN.
//!
//! What comes by the TUN is this host's own: it is its own client. Then every server, whatever the mode, sees one of the
//! reserved ports, which no socket here has, so that its answers are told from all else that comes for this host; with
//! the address of the NIC where the server has the VIPAs itself.

use std::borrow::Cow;
use std::net::IpAddr;

use super::begin;
use super::flood;
use super::flow::{Direction, Expected, FlowId, Key, Millis, Phase, Served, Side};
use super::fragments::Fate;
use super::frame::{Frame, Ingress};
use super::pipeline::{Sight, State, apply, complaint, hop_to, may_complain, remember, way_by};
use super::preferred::{
    self, Choice, Mode, PreferredTable, Server, ServerId, Service, ServiceId, WorkerCounters,
};
use super::rewrite::{self, Edit, Endpoint};
use super::spread;
use super::verdict::{DropReason, Verdict, Wait};
use super::view::{NetView, Way, WorkerId};
use crate::wire::icmp::{self, Complaint};
use crate::wire::ip;
use crate::wire::packet::{Fragment, Headers, Layer4};
use crate::wire::tcp::{Numbers, Reset};

/// What comes back from a server has the client's address and another port than the client's where two of the
/// client's connections would look alike to the server: ports tried for that.
const PORT_TRIES: u16 = 64;

/// The service that a packet asks for.
#[inline]
pub(crate) fn asked(headers: &Headers, preferred: &PreferredTable) -> Option<ServiceId> {
    match headers.layer4 {
        Layer4::Tcp { destination, .. } | Layer4::Udp { destination, .. } => {
            preferred.find(headers.destination, headers.protocol, destination)
        }
        _ => None,
    }
}

/// What came from outside and no flow knows: answers that are late are dropped, the rest is the kernel's.
pub(super) fn stranger(
    headers: &Headers,
    state: &State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    if !is_for_flows(headers, sight.net, sight.preferred) {
        return Ok(Verdict::Kernel);
    }
    late(headers.ports().1, state)
}

/// Is it for a port that rewritten or served flows have, so that nothing but answers comes there from outside?
pub(crate) fn is_for_flows(headers: &Headers, net: &NetView, preferred: &PreferredTable) -> bool {
    let (to, (_, port)) = (headers.destination, headers.ports());
    matches!(headers.layer4, Layer4::Tcp { .. } | Layer4::Udp { .. })
        && (net.owns(to) && net.source.ports.binary_search(&port).is_ok()
            || is_source(to, port, net, preferred))
}

/// What this host sends to itself by way of the TUN, and no flow knows: of the reserved ports late answers of a server
/// here, all else the kernel's.
pub(super) fn own_stranger(
    headers: &Headers,
    state: &State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    let (_, port) = headers.ports();
    match headers.layer4 {
        Layer4::Tcp { .. } | Layer4::Udp { .. }
            if sight.net.source.ports.binary_search(&port).is_ok() =>
        {
            late(port, state)
        }
        _ => Ok(Verdict::Deliver),
    }
}

/// An answer that no flow of this worker's knows.
fn late(port: u16, state: &State) -> Result<Verdict, DropReason> {
    let owner = WorkerId((port % u16::from(state.workers)) as u8);
    if owner == state.worker { Err(DropReason::NoFlow) } else { Ok(Verdict::Punt(owner)) }
}

/// May a served flow have this source?
fn is_source(address: IpAddr, port: u16, net: &NetView, preferred: &PreferredTable) -> bool {
    let reserved = &net.source.ports;
    preferred.is_source(address, port, reserved)
        || net.claims.owned.binary_search(&address).is_ok() && reserved.binary_search(&port).is_ok()
}

/// The worker that a client's flows belong to: as the packet sockets' fan-out has it. (What comes by XDP may have to be handed on.)
pub(crate) fn owner(client: IpAddr, port: u16, workers: u8) -> WorkerId {
    let low = match client {
        IpAddr::V4(a) => u32::from(a),
        IpAddr::V6(a) => u128::from(a) as u32,
    };
    WorkerId(((low ^ u32::from(port)) % u32::from(workers)) as u8)
}

/// The worker whose flow an ICMP error is about, if it quotes what a service or its client sent.
pub(super) fn owner_of_error(quoted: &Headers, sight: Sight<'_>, workers: u8) -> Option<WorkerId> {
    let (source_port, destination_port) = quoted.ports();
    if sight.preferred.find(quoted.source, quoted.protocol, source_port).is_some() {
        return Some(owner(quoted.destination, destination_port, workers));
    }
    is_source(quoted.source, source_port, sight.net, sight.preferred)
        .then(|| WorkerId((source_port % u16::from(workers)) as u8))
}

/// The first packet of a flow.
pub(super) fn begin(
    frame: &mut Frame,
    headers: &Headers,
    id: ServiceId,
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    begin_or_reset(frame, headers, id, Before::Nothing, state, sight)
}

/// What there was with the ends of a flow that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    /// A flow that was ending; no flood keeps its SYN out, that has been asked.
    Another,
    /// A flow of a server that died: its client is told of it in any case.
    Dead,
}

fn begin_or_reset(
    frame: &mut Frame,
    headers: &Headers,
    id: ServiceId,
    before: Before,
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    let side = Side::from(frame.ingress);
    let (port, asked_port) = headers.ports();
    let owner = owner(headers.source, port, state.workers);
    if owner != state.worker {
        return Ok(Verdict::Punt(owner));
    }
    if side == Side::Nic && begin::is_martian(headers, sight.net) {
        return Err(DropReason::Martian);
    }
    let service = sight.preferred.service(id).ok_or(DropReason::NoServer)?;
    let is_middle = matches!(headers.layer4, Layer4::Tcp { flags, .. } if !flags.is_bare_syn());
    if service.choice == Choice::Wait && !is_middle {
        return Err(DropReason::ServersUnread);
    }
    let chosen = choose(service, headers, sight.preferred).filter(|_| !is_middle);
    let Some((server_id, server)) = chosen else {
        return refuse(frame, headers, before == Before::Dead, state, sight);
    };
    if before != Before::Another && is_shed(frame, headers, id, state, sight.now) {
        return Err(DropReason::SynFlood);
    }
    let key = Key::of(headers, side);
    let client = key.source();
    let instance = Endpoint { address: server.address, port: server.port.unwrap_or(asked_port) };
    let seen = seen(service, server, headers, side, sight.net)?;
    let is_direct = matches!(seen, Seen::Untouched);
    let back = if server.is_local { Side::Tun } else { Side::Nic };
    let towards = match seen {
        Seen::Untouched => Some(client),
        Seen::Client => distinct(client, instance, headers.protocol, back, state),
        Seen::Of(sources, reserved) => {
            translated(&sources, (instance, back), headers, state, reserved)
        }
    };
    let towards = towards.ok_or(DropReason::PortsExhausted)?;
    let reply = Key::new(instance, towards, headers.protocol, back);
    let served = Served { service: id, server: server_id, reply, is_direct };
    let (flow, evicted) = state
        .flows
        .insert_served(&key, &served, sight.now)
        .map_err(|_| DropReason::FlowTableFull)?;
    state.released.extend(evicted);
    count(server, state, WorkerCounters::began);
    carry_on(frame, headers, (flow, Direction::Original), Some(server), state, sight)
}

/// A packet of a flow goes on.
pub(super) fn carry(
    frame: &mut Frame,
    headers: &Headers,
    (id, direction): (FlowId, Direction),
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    let server = identify(id, state, sight.preferred).and_then(|id| sight.preferred.server(id));
    let is_dead = server.is_some_and(|server| server.fate != preferred::Fate::Kept);
    if is_dead || direction == Direction::Original && is_another(headers, state.flows.phase(id)) {
        let asked = asked(headers, sight.preferred);
        // A SYN that is not taken ends nothing.
        if !is_dead && asked.is_some_and(|id| is_shed(frame, headers, id, state, sight.now)) {
            return Err(DropReason::SynFlood);
        }
        state.flows.remove(id);
        settle(state, sight.preferred);
        let before = if is_dead { Before::Dead } else { Before::Another };
        return match asked {
            Some(id) => begin_or_reset(frame, headers, id, before, state, sight),
            // From the server: there is nobody any more to tell.
            None => Err(DropReason::NoFlow),
        };
    }
    if is_hasty(frame, headers, (id, direction), state, sight)
        && let Some((service, _)) = state.flows.served_by(id)
        && !state.floods.admits_again(service, sight.now)
    {
        return Err(DropReason::SynFlood);
    }
    carry_on(frame, headers, (id, direction), server, state, sight)
}

fn carry_on(
    frame: &mut Frame,
    headers: &Headers,
    (id, direction): (FlowId, Direction),
    server: Option<&Server>,
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    let way = match way(id, direction, headers, state, sight)? {
        Ok(way) => way,
        Err(wait) => return Ok(Verdict::Wait(wait)),
    };
    let edit = state.flows.edit(id, direction);
    let is_forwarded = edit.is_some() && frame.ingress != Ingress::Tun && way.is_some();
    if let Some(way) = way {
        let mtu = sight.net.nic(way.nic).mtu;
        if let Some(complaint) = complaint(frame, headers, is_forwarded, mtu) {
            return tell(frame, headers, complaint, state, sight);
        }
    }
    if is_forwarded {
        rewrite::lower_ttl(frame.packet_mut(), headers);
    }
    let is_opened = state.flows.touch_served(id, headers, direction, sight.now);
    if is_opened
        && headers.protocol == ip::TCP
        && let Some((service, _)) = state.flows.served_by(id)
    {
        state.floods.opened(service);
    }
    expect(frame.packet(), headers, (id, direction), state);
    if let Some(server) = server {
        count(server, state, |counters| counters.carried(headers.length));
    }
    apply(frame, headers, edit);
    if headers.fragment == Fragment::First {
        let side = Side::from(frame.ingress);
        remember(headers, side, Fate::Carried { way, edit, is_forwarded }, state, sight.now);
    }
    Ok(onwards(way))
}

/// An ICMP error about a packet of a flow, which went the other way than `direction`.
pub(super) fn carry_error(
    frame: &mut Frame,
    headers: &Headers,
    quoted: &Headers,
    (id, direction): (FlowId, Direction),
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    let way = match way(id, direction, headers, state, sight)? {
        Ok(way) => way,
        Err(wait) => return Ok(Verdict::Wait(wait)),
    };
    let Some(Edit::Both { source, destination }) = state.flows.edit(id, direction) else {
        // A direct service's: to the server as it is.
        return Ok(onwards(way));
    };
    // From the end itself, or from a router on the way to it.
    let is_end = headers.source == state.flows.key(id, direction).source().address;
    let from = if is_end { source.address } else { headers.source };
    let no_port = |address| Endpoint { address, port: 0 };
    let outer = Edit::Both { source: no_port(from), destination: no_port(destination.address) };
    let inner = Edit::Both { source: destination, destination: source };
    let csum = frame.offload.csum;
    rewrite::apply_to_error(frame.packet_mut(), (headers, csum), quoted, (outer, inner));
    if headers.fragment == Fragment::First {
        let side = Side::from(frame.ingress);
        let fate = Fate::Carried { way, edit: Some(outer), is_forwarded: false };
        remember(headers, side, fate, state, sight.now);
    }
    Ok(onwards(way))
}

/// Resets connections whose server died, `on-death = "reset"`: looks at flows from the `from`th on, fills `frames`
/// with what is to be sent, each with its verdict, and says how many that are and where to go on. The
/// others of a dead server are forgotten.
pub fn bury(
    frames: &mut [Frame],
    from: u32,
    state: &mut State,
    sight: Sight<'_>,
) -> (usize, Option<u32>) {
    /// Entries looked at in one go.
    const LOOK: u32 = 4096;
    if state.flows.served() == 0 {
        return (0, None);
    }
    let mut filled = 0;
    let end = from.saturating_add(LOOK).min(state.flows.capacity());
    for at in from..end {
        if filled + 2 > frames.len() {
            return (filled, Some(at));
        }
        let Some(id) = state.flows.at(at).filter(|id| state.flows.is_served(*id)) else { continue };
        let server = identify(id, state, sight.preferred).and_then(|id| sight.preferred.server(id));
        let Some(server) = server.filter(|server| server.fate != preferred::Fate::Kept) else {
            continue;
        };
        if server.fate == preferred::Fate::Reset {
            for direction in [Direction::Reply, Direction::Original] {
                let frame = &mut frames[filled];
                if let Some(verdict) = reset(frame, id, direction, state, sight) {
                    frame.verdict = verdict;
                    filled += 1;
                }
            }
        }
        state.flows.remove(id);
    }
    settle(state, sight.preferred);
    (filled, (end < state.flows.capacity()).then_some(end))
}

/// Takes flows that ended out of their servers' counts. The engine calls it after what may end flows.
pub fn settle(state: &mut State, preferred: &PreferredTable) {
    let worker = state.worker;
    for ended in state.flows.take_ended() {
        let server = preferred.server(ended.server);
        if let Some(counters) = server.and_then(|server| server.counters.of(worker)) {
            counters.ended(ended.has_failed);
        }
    }
}

/// Says of adopted flows whose they are, so far as the table knows.
pub fn recognise(state: &mut State, preferred: &PreferredTable) {
    for id in state.flows.served_flows() {
        identify(id, state, preferred);
    }
}

/// A reset for the end that packets of `direction` go to, as from the other end.
fn reset(
    frame: &mut Frame,
    id: FlowId,
    direction: Direction,
    state: &State,
    sight: Sight<'_>,
) -> Option<Verdict> {
    let key = state.flows.key(id, direction);
    let is_there = direction == Direction::Reply || state.flows.edit(id, direction).is_some();
    if key.protocol() != ip::TCP || !is_there {
        return None;
    }
    let other = state.flows.key(id, direction.other());
    let (source, destination) = (other.destination(), other.source());
    let Expected { client, server } = state.flows.expected(id);
    let (sequence, acknowledgement) =
        if direction == Direction::Reply { (client, server) } else { (server, client) };
    let reset = Reset {
        source: (source.address, source.port),
        destination: (destination.address, destination.port),
        sequence,
        acknowledgement: Some(acknowledgement),
    };
    let length = reset.write(frame.space(0))?;
    frame.received(length);
    frame.offload = Default::default();
    frame.ingress = Ingress::Tun;
    let headers = Headers::parse(frame.packet()).ok()?;
    if state.flows.leaves_by(id, direction) == Side::Tun {
        return Some(Verdict::Deliver);
    }
    let hop =
        hop_to(headers.destination, spread::symmetric_hash(&headers), None, sight.net).ok()?;
    // One whose neighbour is not known is not worth the waiting.
    way_by(hop, headers.destination, sight.net).ok().map(|(_, way)| onwards(Some(way)))
}

/// What a server sees of the client of a new flow.
pub(crate) enum Seen<'a> {
    /// The packet as it is.
    Untouched,
    /// The client's address.
    Client,
    /// One of these addresses, and one of its ports or else of these.
    Of(Cow<'a, [preferred::Source]>, &'a [u16]),
}

/// What `server` sees of a client whose packets come in by `side`.
pub(crate) fn seen<'a>(
    service: &'a Service,
    server: &Server,
    headers: &Headers,
    side: Side,
    view: &'a NetView,
) -> Result<Seen<'a>, DropReason> {
    let reserved = view.source.ports.as_slice();
    let is_own = side == Side::Tun;
    let address = match &service.mode {
        _ if is_own && server.is_local => Some(service.address),
        Mode::Nat { sources } if !server.is_local && !sources.is_empty() => {
            return Ok(Seen::Of(Cow::Borrowed(sources), reserved));
        }
        Mode::Nat { .. } if is_own => view.source.default_vipa(headers.family()),
        Mode::Direct if is_own => {
            let hop = hop_to(server.address, spread::symmetric_hash(headers), None, view)?;
            view.nic(hop.nic).address(headers.family())
        }
        Mode::Direct if !server.is_local => return Ok(Seen::Untouched),
        Mode::Direct | Mode::Nat { .. } => return Ok(Seen::Client),
    };
    let address = address.ok_or(DropReason::NoSourceAddress)?;
    // The policy rule that leads the answers of a server here back can name all ports but the last.
    let sayable = reserved.strip_suffix(&[u16::MAX]).filter(|_| server.is_local);
    let source = preferred::Source { address, ports: None };
    Ok(Seen::Of(Cow::Owned(vec![source]), sayable.unwrap_or(reserved)))
}

/// The server for a new flow.
pub(crate) fn choose<'a>(
    service: &Service,
    headers: &Headers,
    preferred: &'a PreferredTable,
) -> Option<(ServerId, &'a Server)> {
    let id = match &service.choice {
        Choice::Preferred(id) => *id,
        Choice::Weighted(table) => {
            let hash = spread::symmetric_hash(headers);
            *table.get((hash % table.len().max(1) as u64) as usize)?
        }
        Choice::Refuse | Choice::Wait => return None,
    };
    let server = preferred.server(id)?;
    (server.fate == preferred::Fate::Kept).then_some((id, server))
}

/// The place of the source that is tried first: by that half of the hash by which no server is chosen, so that each server's flows spread
/// over all of them.
pub(crate) fn first_of(sources: &[preferred::Source], headers: &Headers) -> usize {
    (spread::symmetric_hash(headers) >> 32) as usize % sources.len()
}

/// An address and port of ours that no flow to the server has.
fn translated(
    sources: &[preferred::Source],
    (instance, back): (Endpoint, Side),
    headers: &Headers,
    state: &mut State,
    reserved: &[u16],
) -> Option<Endpoint> {
    let first = first_of(sources, headers);
    let share = (state.worker.0, state.workers);
    (0..sources.len()).map(|step| &sources[(first + step) % sources.len()]).find_map(|source| {
        let (address, ports) = (source.address, source.ports(reserved));
        let answers = (headers.protocol, back);
        let port = state.flows.free_port(address, instance, answers, ports, share)?;
        Some(Endpoint { address, port })
    })
}

/// The client's own address and port, or another port where a flow to the server has that.
fn distinct(
    client: Endpoint,
    instance: Endpoint,
    protocol: u8,
    back: Side,
    state: &State,
) -> Option<Endpoint> {
    // Steps that leave the port with its worker.
    let step = u16::from(state.workers);
    (0..PORT_TRIES).map(|n| client.port.wrapping_add(n * step)).find_map(|port| {
        let towards = Endpoint { port, ..client };
        let reply = Key::new(instance, towards, protocol, back);
        (port != 0 && state.flows.find(&reply).is_none()).then_some(towards)
    })
}

/// Whose flow it is. One that was adopted from an earlier process is known by its ends, and counted as its server's from then on.
fn identify(id: FlowId, state: &mut State, preferred: &PreferredTable) -> Option<ServerId> {
    if let Some((_, server)) = state.flows.served_by(id) {
        return Some(server);
    }
    let original = state.flows.original(id);
    let (vipa, protocol) = (original.destination(), original.protocol());
    let service = preferred.find(vipa.address, protocol, vipa.port)?;
    let instance = state.flows.key(id, Direction::Reply).source();
    let server = preferred.server_at(service, instance.address, instance.port)?;
    state.flows.set_served_by(id, service, server);
    if !state.flows.is_over(id)
        && let Some(server) = preferred.server(server)
    {
        count(server, state, WorkerCounters::began);
    }
    Some(server)
}

/// A SYN on a flow that has ended: another connection with the same ends.
fn is_another(headers: &Headers, phase: Phase) -> bool {
    phase == Phase::Closing
        && matches!(headers.layer4, Layer4::Tcp { flags, .. } if flags.is_bare_syn())
}

/// Does a flood keep this SYN, which may begin a connection, out? What this host sends itself is no flood.
fn is_shed(
    frame: &Frame,
    headers: &Headers,
    id: ServiceId,
    state: &mut State,
    now: Millis,
) -> bool {
    let Layer4::Tcp { flags, .. } = headers.layer4 else { return false };
    if !flags.is_bare_syn() || frame.ingress == Ingress::Tun {
        return false;
    }
    let Some(numbers) = Numbers::of(frame.packet(), headers) else { return false };
    // The same for the same SYN sent again.
    let key = Key::of(headers, Side::Nic);
    let syn = spread::mix(state.flows.hash_of(&key) ^ u64::from(numbers.sequence));
    !state.floods.admits(id, syn, now)
}

/// A SYN, from outside, of a half-open flow that has been carried, and sooner after anything else of that than a client sends its SYN again.
fn is_hasty(
    frame: &Frame,
    headers: &Headers,
    (id, direction): (FlowId, Direction),
    state: &State,
    sight: Sight<'_>,
) -> bool {
    let flows = &state.flows;
    matches!(headers.layer4, Layer4::Tcp { flags, .. } if flags.is_bare_syn())
        && direction == Direction::Original
        && frame.ingress != Ingress::Tun
        && flows.phase(id) == Phase::Opening
        // One that waits for its next hop has not been carried.
        && (flows.leaves_by(id, direction) == Side::Tun
            || flows.way(id, direction, sight.net.generation).is_some())
        && flows.idle(id, sight.now) < flood::PATIENCE
}

/// The way of a flow's direction: to the server, or to the client; `None`: into the TUN.
fn way(
    id: FlowId,
    direction: Direction,
    headers: &Headers,
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Result<Option<Way>, Wait>, DropReason> {
    if state.flows.leaves_by(id, direction) == Side::Tun {
        return Ok(Ok(None));
    }
    let view = sight.net;
    let known = state.flows.way(id, direction, view.generation);
    if let Some(way) = known.and_then(|known| view.neighbours.way(known)) {
        return Ok(Ok(Some(way)));
    }
    let destination = state.flows.key(id, direction.other()).source().address;
    let hop = hop_to(destination, spread::symmetric_hash(headers), None, view)?;
    let is_direct = state.flows.edit(id, direction).is_none();
    if is_direct && hop.gateway.is_some() {
        return Err(DropReason::ServerOffLink);
    }
    Ok(way_by(hop, destination, view).map(|(place, way)| {
        state.flows.set_way(id, direction, place, view.generation);
        Some(way)
    }))
}

fn count(server: &Server, state: &State, one: impl FnOnce(&WorkerCounters)) {
    if let Some(counters) = server.counters.of(state.worker) {
        one(counters);
    }
}

fn onwards(way: Option<Way>) -> Verdict {
    match way {
        Some(Way { nic, destination }) => Verdict::Transmit { nic, destination },
        None => Verdict::Deliver,
    }
}

/// What the ends will expect of each other next.
#[inline]
fn expect(
    packet: &[u8],
    headers: &Headers,
    (id, direction): (FlowId, Direction),
    state: &mut State,
) {
    let Some(numbers) = Numbers::of(packet, headers) else { return };
    let mut expected = state.flows.expected(id);
    match (direction, numbers.acknowledgement) {
        (Direction::Original, Some(next)) => expected.client = next,
        // The SYN counts.
        (Direction::Original, None) => expected.server = numbers.sequence.wrapping_add(1),
        (Direction::Reply, Some(next)) => expected.server = next,
        (Direction::Reply, None) => return,
    }
    state.flows.set_expected(id, expected);
}

/// No server: TCP is answered with a reset, UDP with an ICMP error.
fn refuse(
    frame: &mut Frame,
    headers: &Headers,
    is_owed: bool,
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    if headers.protocol != ip::TCP {
        return tell(frame, headers, Complaint::PortUnreachable, state, sight);
    }
    let reset = Reset::answering(frame.packet(), headers).ok_or(DropReason::NoFlow)?;
    let is_free = is_owed || frame.ingress == Ingress::Tun;
    let may_send = |state: &mut State| is_free || state.answers.resets.take(sight.now);
    answer(frame, headers, state, sight, may_send, |buffer| reset.write(buffer))?
        .ok_or(DropReason::NoServer)
}

/// Tells the sender of a packet what is wrong with it.
fn tell(
    frame: &mut Frame,
    headers: &Headers,
    complaint: Complaint,
    state: &mut State,
    sight: Sight<'_>,
) -> Result<Verdict, DropReason> {
    let reason = match complaint {
        Complaint::TooBig { .. } => DropReason::TooBig,
        Complaint::TimeExceeded => DropReason::TtlExceeded,
        Complaint::PortUnreachable => DropReason::NoServer,
    };
    let from = headers.destination;
    let is_free = frame.ingress == Ingress::Tun;
    let may_send = |state: &mut State| is_free || may_complain(complaint, state, sight.now);
    let error = |buffer: &mut [u8]| icmp::complain(buffer, headers, complaint, from);
    answer(frame, headers, state, sight, may_send, error)?.ok_or(reason)
}

/// Makes of the frame an answer to its sender, by `write`, if it `may_send` one; `None`: there is no room for it.
fn answer(
    frame: &mut Frame,
    headers: &Headers,
    state: &mut State,
    sight: Sight<'_>,
    may_send: impl FnOnce(&mut State) -> bool,
    write: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> Result<Option<Verdict>, DropReason> {
    let verdict = match frame.ingress {
        Ingress::Tun => Verdict::Answer,
        Ingress::Nic(_) => {
            let flow = spread::symmetric_hash(headers);
            let hop = hop_to(headers.source, flow, None, sight.net)?;
            match way_by(hop, headers.source, sight.net) {
                Ok((_, way)) => onwards(Some(way)),
                Err(wait) => return Ok(Some(Verdict::Wait(wait))),
            }
        }
    };
    if !may_send(state) {
        return Err(DropReason::AnswersLimited);
    }
    let Some(length) = write(frame.space(0)) else { return Ok(None) };
    frame.received(length);
    frame.offload = Default::default();
    Ok(Some(verdict))
}
