//! Steps and questions as netlink messages, and which refusal of a step is none.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo,
};
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};
use netlink_packet_route::rule::{
    RuleAction, RuleAttribute, RuleMessage, RulePortRange, RuleUidRange,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::kernel::Step;
use super::mirror::{KernelHop, KernelRoute, RouteKind};
use super::netlink::{Mode, errno};
use super::plan::routes::{PlannedHop, PlannedRoute};
use super::plan::rules::{Action, Rule};
use super::{KERNELS_PROTOCOL, LOCAL_TABLE, PROTOCOL};
use crate::wire::ip::{Family, Prefix};

/// The step as a message, and what it may do to what exists.
pub(super) fn of(step: &Step) -> (RouteNetlinkMessage, Mode) {
    match step {
        Step::SetLink { ifindex, mtu, .. } => {
            let mut message = LinkMessage::default();
            message.header.index = *ifindex;
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
            message.attributes.push(LinkAttribute::Mtu(*mtu));
            (RouteNetlinkMessage::SetLink(message), Mode::Change)
        }
        Step::AddAddress { ifindex, address: vipa, .. } => {
            (RouteNetlinkMessage::NewAddress(address(*ifindex, *vipa)), Mode::Replace)
        }
        Step::DeleteAddress { ifindex, address: vipa, .. } => {
            (RouteNetlinkMessage::DelAddress(address(*ifindex, *vipa)), Mode::Change)
        }
        Step::PutRoute(route) => {
            (RouteNetlinkMessage::NewRoute(planned_route(route)), Mode::Replace)
        }
        Step::AppendHop(route) => {
            (RouteNetlinkMessage::NewRoute(planned_route(route)), Mode::Append)
        }
        Step::DeleteRoute(route) => {
            (RouteNetlinkMessage::DelRoute(held_route(route)), Mode::Change)
        }
        Step::AddRule(r) => {
            // The rule of the `local` table is the kernel's, wherever it stands.
            let is_kernels = r.action == Action::Lookup(LOCAL_TABLE);
            let protocol = if is_kernels { KERNELS_PROTOCOL } else { PROTOCOL };
            (RouteNetlinkMessage::NewRule(rule(r, Some(protocol))), Mode::Add)
        }
        Step::DeleteRule(r) => {
            let is_ours = r.action != Action::Lookup(LOCAL_TABLE);
            let message = rule(r, is_ours.then_some(PROTOCOL));
            (RouteNetlinkMessage::DelRule(message), Mode::Change)
        }
        Step::Manage(n) => {
            let mut message = neighbour(n.ifindex, n.address);
            let flags = NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed);
            message.attributes.push(flags);
            message.attributes.push(NeighbourAttribute::Protocol(PROTOCOL.into()));
            (RouteNetlinkMessage::NewNeighbour(message), Mode::Replace)
        }
        // Told to resolve an entry without the flag, the kernel takes the flag from it.
        Step::Release { ifindex, address } => resolve(*ifindex, *address),
    }
}

/// Errors that say: it is so already.
pub(super) fn is_settled(step: &Step, error: &io::Error) -> bool {
    let Some(errno) = errno(error) else { return false };
    match step {
        Step::AddRule(_) | Step::AppendHop(_) => errno == libc::EEXIST,
        _ if step.is_removal() => {
            [libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENODEV].contains(&errno)
        }
        _ => false,
    }
}

/// Has the kernel resolve a neighbour, or confirm what it knows. Not for entries that were fixed by hand.
pub(super) fn resolve(ifindex: u32, address: IpAddr) -> (RouteNetlinkMessage, Mode) {
    let mut message = neighbour(ifindex, address);
    message.header.flags = NeighbourFlags::Use;
    (RouteNetlinkMessage::NewNeighbour(message), Mode::Replace)
}

/// Deletes a device.
pub(super) fn delete_link(ifindex: u32) -> (RouteNetlinkMessage, Mode) {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    (RouteNetlinkMessage::DelLink(message), Mode::Change)
}

/// Asks for a device, by name: the kernel then passes on carrier news that it still holds back.
pub(super) fn get_link(name: &str) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// All devices.
pub(super) fn links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// All addresses.
pub(super) fn addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

/// Rules of a family.
pub(super) fn rules(family: Family) -> RouteNetlinkMessage {
    let mut message = RuleMessage::default();
    message.header.family = number(family);
    RouteNetlinkMessage::GetRule(message)
}

/// Asks for one neighbour.
pub(super) fn get_neighbour(ifindex: u32, address: IpAddr) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetNeighbour(neighbour(ifindex, address))
}

/// All neighbours.
pub(super) fn neighbours() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default())
}

/// Routes of a table and family.
pub(super) fn routes(table: u32, family: Family) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = number(family);
    message.attributes.push(RouteAttribute::Table(table));
    RouteNetlinkMessage::GetRoute(message)
}

fn number(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn address(ifindex: u32, vipa: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = number(Family::of(vipa));
    message.header.prefix_len = Family::of(vipa).bits();
    message.header.scope = AddressScope::Universe;
    message.header.index = ifindex;
    message.attributes.push(AddressAttribute::Local(vipa));
    message.attributes.push(AddressAttribute::Protocol(PROTOCOL.into()));
    if vipa.is_ipv6() {
        // No duplicate address detection on a link without neighbours, no route in main, and RFC 6724 is
        // not to choose it for what does not go our way.
        message.header.flags = AddressHeaderFlags::Nodad;
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        message.attributes.push(AddressAttribute::Flags(flags));
        let mut times = CacheInfo::default();
        times.ifa_preferred = 0;
        times.ifa_valid = u32::MAX;
        message.attributes.push(AddressAttribute::CacheInfo(times));
    } else {
        message.attributes.push(AddressAttribute::Address(vipa));
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    }
    message
}

fn planned_route(route: &PlannedRoute) -> RouteMessage {
    let mut message = route_head(route.table, route.prefix, route.metric, kind_of(route.kind()));
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    let is_on_link = route.next_hops.iter().all(|hop| hop.gateway.is_none());
    if route.prefix.family() == Family::V4 && is_on_link && route.kind() == RouteKind::Unicast {
        message.header.scope = RouteScope::Link;
    }
    let hops = route.next_hops.iter().map(|hop| next_hop(route.prefix.family(), hop)).collect();
    add_hops(&mut message, hops);
    message
}

/// A route as the kernel told it, to be deleted.
fn held_route(route: &KernelRoute) -> RouteMessage {
    let kind = kind_of(route.kind);
    let mut message = route_head(route.table, route.prefix, route.metric, kind);
    message.header.scope = RouteScope::NoWhere; // any
    if kind == RouteType::Unicast {
        let family = route.prefix.family();
        let hops = route.next_hops.iter().map(|hop: &KernelHop| {
            let hop = PlannedHop {
                device: String::new(),
                ifindex: hop.ifindex,
                gateway: hop.gateway,
                weight: hop.weight,
                is_onlink: false,
            };
            next_hop(family, &hop)
        });
        add_hops(&mut message, hops.collect());
    }
    message
}

fn kind_of(kind: RouteKind) -> RouteType {
    match kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Throw => RouteType::Throw,
        RouteKind::Other(number) => number.into(),
    }
}

fn route_head(table: u32, prefix: Prefix, metric: u32, kind: RouteType) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = number(prefix.family());
    message.header.destination_prefix_length = prefix.length();
    message.header.protocol = RouteProtocol::from(PROTOCOL);
    message.header.kind = kind;
    message.header.scope = RouteScope::Universe;
    message.attributes.push(RouteAttribute::Table(table));
    if prefix.length() != 0 {
        message.attributes.push(RouteAttribute::Destination(prefix.address().into()));
    }
    message.attributes.push(RouteAttribute::Priority(metric));
    message
}

fn next_hop(family: Family, hop: &PlannedHop) -> RouteNextHop {
    let mut next_hop = RouteNextHop::default();
    next_hop.interface_index = hop.ifindex;
    // Shares run from 1 here and from 0 on the wire.
    next_hop.hops = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
    if hop.is_onlink {
        next_hop.flags = RouteNextHopFlags::Onlink;
    }
    if let Some(gateway) = hop.gateway {
        next_hop.attributes.push(if Family::of(gateway) == family {
            RouteAttribute::Gateway(gateway.into())
        } else {
            RouteAttribute::Via(RouteVia::from(gateway))
        });
    }
    next_hop
}

/// One next hop stands in the message itself, several in an attribute.
fn add_hops(message: &mut RouteMessage, mut hops: Vec<RouteNextHop>) {
    if hops.len() > 1 {
        message.attributes.push(RouteAttribute::MultiPath(hops));
        return;
    }
    let Some(hop) = hops.pop() else { return };
    if hop.hops > 0 {
        message.attributes.push(RouteAttribute::MultiPath(vec![hop]));
        return;
    }
    message.header.flags =
        netlink_packet_route::route::RouteFlags::from_bits_retain(hop.flags.bits().into());
    message.attributes.push(RouteAttribute::Oif(hop.interface_index));
    message.attributes.extend(hop.attributes);
}

/// `protocol`: who set it up; `None`: anybody.
fn rule(rule: &Rule, protocol: Option<u8>) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = number(rule.family);
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.preference));
    attributes.extend(protocol.map(|number| RuleAttribute::Protocol(number.into())));
    message.header.action = match rule.action {
        Action::Lookup(table) => {
            attributes.push(RuleAttribute::Table(table));
            RuleAction::ToTable
        }
        Action::Goto(preference) => {
            attributes.push(RuleAttribute::Goto(preference));
            RuleAction::Goto
        }
        Action::Nop => RuleAction::Nop,
        Action::Other(number) => number.into(),
    };
    if let Some(source) = rule.source {
        message.header.src_len = source.length();
        attributes.push(RuleAttribute::Source(source.address()));
    }
    if let Some(destination) = rule.destination {
        message.header.dst_len = destination.length();
        attributes.push(RuleAttribute::Destination(destination.address()));
    }
    if let Some(name) = &rule.iif {
        attributes.push(RuleAttribute::Iifname(name.clone()));
    }
    if let Some(name) = &rule.oif {
        attributes.push(RuleAttribute::Oifname(name.clone()));
    }
    if let Some(protocol) = rule.protocol {
        attributes.push(RuleAttribute::IpProtocol(i32::from(protocol).into()));
    }
    let range = |ports: &std::ops::RangeInclusive<u16>| RulePortRange {
        start: *ports.start(),
        end: *ports.end(),
    };
    if let Some(ports) = &rule.source_ports {
        attributes.push(RuleAttribute::SourcePortRange(range(ports)));
    }
    if let Some(ports) = &rule.destination_ports {
        attributes.push(RuleAttribute::DestinationPortRange(range(ports)));
    }
    if let Some(mark) = rule.mark {
        attributes.push(RuleAttribute::FwMark(mark.value));
        attributes.push(RuleAttribute::FwMask(mark.mask));
    }
    if let Some(user) = rule.user {
        attributes.push(RuleAttribute::UidRange(RuleUidRange { start: user, end: user }));
    }
    if let Some(length) = rule.suppressed {
        attributes.push(RuleAttribute::SuppressPrefixLen(length));
    }
    message
}

fn neighbour(ifindex: u32, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = number(Family::of(address));
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::None;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}
