//! Messages of the kernel as plain data. What does not concern vipa is `None`.

use std::net::IpAddr;

use netlink_packet_core::Nla;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoData, LinkInfo};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::{Address, KernelHop, KernelRoute, KernelRule, Neighbour, RouteKind};
use crate::forward::rule::Mark;
use crate::link::PROTOCOL;
use crate::link::plan::rules::{Action, Rule};
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::{Family, Prefix};

fn family(family: AddressFamily) -> Option<Family> {
    match family {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}

/// IFLA_TUN_TYPE, which is IFF_TUN or IFF_TAP.
const TUN_TYPE: (u16, u8) = (3, 1);
/// IFLA_TUN_MULTI_QUEUE.
const TUN_MULTI_QUEUE: (u16, u8) = (7, 1);

/// A TUN of several queues? A TAP is of the same kind, and to a TUN of one queue no worker can attach.
pub(super) fn is_tun(parts: &[LinkInfo]) -> bool {
    let data = parts.iter().find_map(|part| match part {
        LinkInfo::Data(InfoData::Tun(data)) => Some(data),
        _ => None,
    });
    let says = |(kind, wanted): (u16, u8)| {
        let mut value = [0];
        data.into_iter().flatten().filter(|nla| nla.kind() == kind && nla.value_len() == 1).any(
            |nla| {
                nla.emit_value(&mut value);
                value == [wanted]
            },
        )
    };
    says(TUN_TYPE) && says(TUN_MULTI_QUEUE)
}

pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    family(message.header.family)?;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut peer, mut protocol) = (None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::Protocol(number) => protocol = u8::from(*number),
            _ => {}
        }
    }
    Some(Address {
        ifindex: message.header.index,
        // On a point-to-point link IFA_ADDRESS is the other side.
        address: local.or(peer)?,
        prefix_length: message.header.prefix_len,
        is_narrow: !matches!(message.header.scope, AddressScope::Universe | AddressScope::Site),
        is_deprecated: flags.contains(AddressFlags::Deprecated),
        is_secondary: flags.contains(AddressFlags::Secondary),
        is_unusable: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
            && !flags.contains(AddressFlags::Optimistic),
        is_ours: protocol == PROTOCOL,
    })
}

pub(super) fn route(message: &RouteMessage) -> Option<KernelRoute> {
    let header = &message.header;
    let family = family(header.address_family)?;
    // Cached exceptions, source-specific routes and routes for a type of service are others' business.
    let is_special = header.flags.contains(RouteFlags::Cloned)
        || header.source_prefix_length != 0
        || header.tos != 0;
    if is_special {
        return None;
    }
    let mut destination = family.unspecified();
    let (mut table, mut metric) = (u32::from(header.table), 0);
    let (mut source, mut device, mut gateway) = (None, 0, None);
    let mut several = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => device = *index,
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(address) => gateway = via(address),
            RouteAttribute::MultiPath(hops) => several = Some(hops),
            _ => {}
        }
    }
    // A next hop shown as dead is still there: with `ignore_routes_with_linkdown` that is one without carrier.
    let next_hops = match several {
        Some(hops) => hops
            .iter()
            .map(|hop| KernelHop {
                ifindex: hop.interface_index,
                gateway: hop.attributes.iter().find_map(|a| match a {
                    RouteAttribute::Gateway(address) => ip(address),
                    RouteAttribute::Via(address) => via(address),
                    _ => None,
                }),
                weight: u16::from(hop.hops) + 1,
            })
            .collect(),
        None => vec![KernelHop { ifindex: device, gateway, weight: 1 }],
    };
    Some(KernelRoute {
        table,
        prefix: Prefix::new(destination, header.destination_prefix_length)?,
        metric,
        kind: match header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::Throw => RouteKind::Throw,
            other => RouteKind::Other(other.into()),
        },
        protocol: header.protocol.into(),
        source,
        next_hops,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

fn via(via: &RouteVia) -> Option<IpAddr> {
    match via {
        RouteVia::Inet(a) => Some((*a).into()),
        RouteVia::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

pub(super) fn rule(message: &RuleMessage) -> Option<KernelRule> {
    let header = &message.header;
    let family = family(header.family)?;
    let mut rule = Rule::new(family, 0, Action::Other(header.action.into()));
    let (mut table, mut target, mut protocol) = (u32::from(header.table), 0, 0);
    let mut has_more = header.tos != 0 || header.flags.contains(RuleFlags::Invert);
    let mut has_unknown = false;
    let (mut source, mut destination) = (family.unspecified(), family.unspecified());
    let mut mark = Mark { value: 0, mask: 0 };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => rule.preference = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Goto(number) => target = *number,
            RuleAttribute::Protocol(number) => protocol = u8::from(*number),
            RuleAttribute::Source(address) => source = *address,
            RuleAttribute::Destination(address) => destination = *address,
            RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
            RuleAttribute::Oifname(name) => rule.oif = Some(name.clone()),
            RuleAttribute::IpProtocol(number) => rule.protocol = Some(u8::from(*number)),
            RuleAttribute::SourcePortRange(range) => {
                rule.source_ports = Some(range.start..=range.end);
            }
            RuleAttribute::DestinationPortRange(range) => {
                rule.destination_ports = Some(range.start..=range.end);
            }
            RuleAttribute::FwMark(value) => mark.value = *value,
            RuleAttribute::FwMask(mask) => mark.mask = *mask,
            RuleAttribute::UidRange(range) if range.start == range.end => {
                rule.user = Some(range.start);
            }
            RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            RuleAttribute::SuppressPrefixLen(length) => rule.suppressed = Some(*length),
            RuleAttribute::Other(_) => has_unknown = true,
            _ => has_more = true,
        }
    }
    // Newer kernels add the mask of a single port to what we set; on others' rules an unknown selector
    // is one more.
    has_more |= has_unknown && protocol != PROTOCOL;
    rule.mark = Some(mark).filter(|mark| mark.mask != 0);
    // 0.0.0.0/32 ("no source yet") is told by its length alone where the address is left out.
    rule.source = (header.src_len != 0).then(|| Prefix::new(source, header.src_len)).flatten();
    rule.destination =
        (header.dst_len != 0).then(|| Prefix::new(destination, header.dst_len)).flatten();
    rule.action = match header.action {
        RuleAction::ToTable => Action::Lookup(table),
        RuleAction::Goto => Action::Goto(target),
        RuleAction::Nop => Action::Nop,
        other => Action::Other(other.into()),
    };
    Some(KernelRule { rule, protocol, has_more })
}

pub(super) fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbour)> {
    let mut neighbour =
        Neighbour { mac: None, state: message.header.state.into(), is_managed: false, protocol: 0 };
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => {
                address = Some(IpAddr::from(*a));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
                address = Some(IpAddr::from(*a));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                neighbour.mac = bytes.as_slice().try_into().ok().map(MacAddr);
            }
            NeighbourAttribute::ExtFlags(flags) => {
                neighbour.is_managed = flags.contains(NeighbourExtFlags::Managed);
            }
            NeighbourAttribute::Protocol(number) => neighbour.protocol = u8::from(*number),
            _ => {}
        }
    }
    let address = address.filter(|a| !a.is_multicast())?;
    Some(((message.header.ifindex, address), neighbour))
}
