//! What becomes of a connection to a virtual service: the server that gets it, why this one, and what it sees.

use std::net::{IpAddr, SocketAddr};

use super::{Explanation, candidates, taken};
use crate::balance::table::Named;
use crate::forward::begin;
use crate::forward::flow::Side;
use crate::forward::pipeline::hop_to;
use crate::forward::preferred::{Choice, Mode, Server, Service, ServiceId};
use crate::forward::service::{self, Seen};
use crate::forward::spread;
use crate::forward::verdict::DropReason;
use crate::forward::view::NetView;
use crate::wire::ip;
use crate::wire::packet::Headers;

/// Does this host itself send what has this source?
fn is_own(view: &NetView, source: IpAddr) -> bool {
    source.is_unspecified() || view.source.vipas.contains(&source) || view.has_nic_address(source)
}

/// Tells it, if the packet is for a service or for this host itself.
pub(super) fn explain(
    told: &mut Explanation,
    view: &NetView,
    services: &Named,
    headers: &Headers,
) -> bool {
    if let Some(id) = service::asked(headers, &services.table) {
        if let Err(reason) = served(told, view, services, headers, id) {
            told.drops(reason);
        }
        return true;
    }
    let to = headers.destination;
    if !view.source.vipas.contains(&to) && !view.has_nic_address(to) {
        return false;
    }
    let is_own = is_own(view, headers.source);
    if !is_own && begin::is_martian(headers, view) {
        told.drops(DropReason::Martian);
    } else if !is_own && service::is_for_flows(headers, view, &services.table) {
        told.drops(DropReason::NoFlow);
    } else {
        "kernel".clone_into(&mut told.verdict);
        told.why = match is_own {
            true => "to this host itself, and no service's: it keeps to lo",
            false => "the address is this host's, the port no service's: its sockets have it",
        }
        .to_owned();
    }
    true
}

fn served(
    told: &mut Explanation,
    view: &NetView,
    services: &Named,
    headers: &Headers,
    id: ServiceId,
) -> Result<(), DropReason> {
    let side = if is_own(view, headers.source) { Side::Tun } else { Side::Nic };
    let table = &services.table;
    let service = table.service(id).ok_or(DropReason::NoServer)?;
    told.service = Some(service.name.to_string());
    if side == Side::Nic && begin::is_martian(headers, view) {
        return Err(DropReason::Martian);
    }
    if service.choice == Choice::Wait {
        return Err(DropReason::ServersUnread);
    }
    let why = services.why(id);
    let Some((server_id, server)) = service::choose(service, headers, table) else {
        if side == Side::Nic {
            hop_to(headers.source, spread::symmetric_hash(headers), None, view)?;
        }
        let how = if headers.protocol == ip::TCP { "a reset" } else { "port unreachable" };
        "refuse".clone_into(&mut told.verdict);
        told.why = format!("no server has it, and the client is told ({how}); {why}");
        return Ok(());
    };
    told.server = Some(services.name(server_id));
    let port = server.port.unwrap_or(headers.ports().1);
    told.server_address = Some(SocketAddr::new(server.address, port).to_string());
    let seen = service::seen(service, server, headers, side, view)?;
    let source = match &seen {
        Seen::Untouched | Seen::Client => headers.source,
        Seen::Of(sources, reserved) => {
            let first = &sources[service::first_of(sources, headers)];
            if first.ports(reserved).is_empty() {
                return Err(DropReason::PortsExhausted);
            }
            first.address
        }
    };
    told.source = Some(source.to_string());
    told.is_rewritten = source != headers.source;
    "forwarder".clone_into(&mut told.applied_by);
    let by = match (&service.choice, why) {
        (Choice::Weighted(_), "") => "its share of the flows".to_owned(),
        (Choice::Weighted(_), why) => format!("its share of the flows; {why}"),
        (_, why) => why.to_owned(),
    };
    told.why = format!("{}: {by}", sight_of(service, server, source, headers));
    if server.is_local {
        "deliver".clone_into(&mut told.verdict);
        return Ok(());
    }
    let route = view.routes.lookup(server.address);
    if let Some(route) = route {
        told.route = Some(route.prefix.to_string());
        told.candidates = candidates(view, &route.next_hops);
    }
    let hop = hop_to(server.address, spread::symmetric_hash(headers), None, view)?;
    if matches!(seen, Seen::Untouched) && hop.gateway.is_some() {
        return Err(DropReason::ServerOffLink);
    }
    "transmit".clone_into(&mut told.verdict);
    taken(told, view, hop, server.address, false);
    Ok(())
}

/// What reaches the server.
fn sight_of(service: &Service, server: &Server, source: IpAddr, headers: &Headers) -> String {
    match service.mode {
        _ if source != headers.source => {
            format!("the source {} becomes {source}", headers.source)
        }
        Mode::Direct if !server.is_local => {
            "the packet stays as it is, and the server answers the client itself".to_owned()
        }
        _ => format!("the source stays {source}"),
    }
}
