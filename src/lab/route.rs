//! Addresses, routes and neighbours of a namespace.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::neighbour::{NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::Step;
use super::{Error, Namespace};
use crate::wire::ip::{Family, Prefix};

/// One next hop of a route: a gateway, a device, or both.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    gateway: Option<&'a str>,
    device: Option<&'a str>,
    weight: u8,
}

impl<'a> Hop<'a> {
    /// Through this gateway.
    pub fn via(gateway: &'a str) -> Hop<'a> {
        Hop { gateway: Some(gateway), device: None, weight: 1 }
    }

    /// Straight to what is on this device.
    pub fn on(device: &'a str) -> Hop<'a> {
        Hop { gateway: None, device: Some(device), weight: 1 }
    }

    /// Out of this device.
    pub fn dev(self, device: &'a str) -> Hop<'a> {
        Hop { device: Some(device), ..self }
    }

    /// Its share among the hops of the route, from 1.
    pub fn weight(self, weight: u8) -> Hop<'a> {
        Hop { weight, ..self }
    }
}

impl Namespace {
    /// Gives the device an address with its prefix length (`10.1.1.2/24`); IPv6 without duplicate address
    /// detection, so that it works at once. One that is there already stays.
    ///
    /// # Errors
    /// When the text is no address, or there is no such device.
    pub fn address(&self, address: &str, device: &str) -> Result<(), Error> {
        let (ip, length) = parse_address(address)?;
        let mut message = AddressMessage::default();
        message.header.family = family(ip);
        message.header.prefix_len = length;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.header.index = self.index(device)?;
        message.attributes = vec![
            AddressAttribute::Local(ip),
            AddressAttribute::Address(ip),
            AddressAttribute::Flags(AddressFlags::Nodad),
        ];
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
            .step(|| format!("address {address} on {device} of {}", self.name()))?;
        Ok(())
    }

    /// Takes an address from the device.
    ///
    /// # Errors
    /// When the text is no address, or the device does not have it.
    pub fn delete_address(&self, address: &str, device: &str) -> Result<(), Error> {
        let (ip, length) = parse_address(address)?;
        let mut message = AddressMessage::default();
        message.header.family = family(ip);
        message.header.prefix_len = length;
        message.header.index = self.index(device)?;
        message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        self.request(RouteNetlinkMessage::DelAddress(message), 0)
            .step(|| format!("deleting {address} on {device} of {}", self.name()))?;
        Ok(())
    }

    /// The device's addresses with their prefix lengths, the link-local ones too.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn addresses(&self, device: &str) -> Result<Vec<(IpAddr, u8)>, Error> {
        let index = self.index(device)?;
        let query = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self
            .request(query, NLM_F_DUMP)
            .step(|| format!("addresses on {device} of {}", self.name()))?;
        let of_device = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => {
                let ip = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                })?;
                Some((ip, message.header.prefix_len))
            }
            _ => None,
        });
        Ok(of_device.collect())
    }

    /// Sets the main table's route to `prefix`, over one hop or spread over several, optionally with a
    /// preferred source. A route that is there is replaced.
    ///
    /// # Errors
    /// When a text is no address, or the kernel finds a hop unreachable.
    pub fn route(&self, prefix: &str, hops: &[Hop<'_>], source: Option<&str>) -> Result<(), Error> {
        let mut message = self.route_message(prefix)?;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        let has_gateway = hops.iter().any(|hop| hop.gateway.is_some());
        message.header.scope = if has_gateway { RouteScope::Universe } else { RouteScope::Link };
        if let Some(source) = source {
            message.attributes.push(RouteAttribute::PrefSource(parse_ip(source)?.into()));
        }
        match hops {
            [hop] => {
                let (device, gateway) = self.resolve(hop)?;
                message.attributes.extend(device.map(RouteAttribute::Oif));
                message.attributes.extend(gateway.map(RouteAttribute::Gateway));
            }
            _ => {
                let several: Result<Vec<_>, Error> =
                    hops.iter().map(|h| self.next_hop(h)).collect();
                message.attributes.push(RouteAttribute::MultiPath(several?));
            }
        }
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
            .step(|| format!("route to {prefix} in {}", self.name()))?;
        Ok(())
    }

    /// Deletes the main table's route to `prefix`.
    ///
    /// # Errors
    /// When there is none.
    pub fn delete_route(&self, prefix: &str) -> Result<(), Error> {
        let mut message = self.route_message(prefix)?;
        message.header.scope = RouteScope::NoWhere;
        self.request(RouteNetlinkMessage::DelRoute(message), 0)
            .step(|| format!("deleting the route to {prefix} in {}", self.name()))?;
        Ok(())
    }

    /// Forgets every neighbour that was learned on the device, of both families.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn flush_neighbours(&self, device: &str) -> Result<(), Error> {
        let index = self.index(device)?;
        let step = || format!("neighbours on {device} of {}", self.name());
        let query = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        for answer in self.request(query, NLM_F_DUMP).step(step)? {
            let RouteNetlinkMessage::NewNeighbour(neighbour) = answer else { continue };
            let is_kept = [NeighbourState::Permanent, NeighbourState::Noarp];
            if neighbour.header.ifindex != index || is_kept.contains(&neighbour.header.state) {
                continue;
            }
            match self.request(RouteNetlinkMessage::DelNeighbour(neighbour), 0) {
                Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e).step(step),
                _ => {}
            }
        }
        Ok(())
    }

    fn route_message(&self, prefix: &str) -> Result<RouteMessage, Error> {
        let prefix: Prefix = prefix.parse().map_err(|e| Error::Text(format!("{e}")))?;
        let mut message = RouteMessage::default();
        message.header.address_family = family(prefix.address());
        message.header.destination_prefix_length = prefix.length();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.attributes.push(RouteAttribute::Destination(prefix.address().into()));
        Ok(message)
    }

    fn next_hop(&self, hop: &Hop<'_>) -> Result<RouteNextHop, Error> {
        let (device, gateway) = self.resolve(hop)?;
        let mut next_hop = RouteNextHop::default();
        next_hop.hops = hop.weight.saturating_sub(1); // the kernel counts weights from 0
        next_hop.interface_index = device.unwrap_or(0);
        next_hop.attributes.extend(gateway.map(RouteAttribute::Gateway));
        Ok(next_hop)
    }

    fn resolve(&self, hop: &Hop<'_>) -> Result<(Option<u32>, Option<RouteAddress>), Error> {
        let device = hop.device.map(|device| self.index(device)).transpose()?;
        let gateway = hop.gateway.map(parse_ip).transpose()?.map(RouteAddress::from);
        Ok((device, gateway))
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    match Family::of(ip) {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| Error::Text(format!("{text:?} is not an IP address")))
}

/// An address that keeps its host bits, unlike a [`Prefix`].
fn parse_address(text: &str) -> Result<(IpAddr, u8), Error> {
    let wrong = || Error::Text(format!("{text:?} is not an address with its prefix length"));
    let (ip, length) = text.split_once('/').ok_or_else(wrong)?;
    let ip = parse_ip(ip)?;
    let length = length.parse().map_err(|_| wrong())?;
    Prefix::new(ip, length).ok_or_else(wrong)?;
    Ok((ip, length))
}
