//! A mirror of the kernel's state: links, addresses, routes of the tables that matter, rules, neighbours.
//!
//! Pure: messages go in, plain comparable data stands. What a message changed comes out as [`Changed`], so
//! that the router does nothing for news that concern nobody.
//!
//! Some of what the kernel does it does not tell: IPv4 routes over a device that goes down, IPv6 routes that
//! lose their preferred source. [`Changed::routes_uncertain`] then asks for the routes to be dumped anew.

mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::rule::RuleMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use self::read::{address, neighbour, route, rule};
use super::MAIN_TABLE;
use super::netlink::Notice;
use super::plan::rules::Rule;
use crate::rip::Learned;
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::{Family, Prefix};

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// IFF_UP: it is meant to be up.
    pub is_up: bool,
    /// IFF_LOWER_UP.
    pub has_carrier: bool,
    /// A TUN device as vipa makes it, with several queues; no TAP.
    pub is_tun: bool,
    /// IFF_NOARP: it has no neighbours to resolve.
    pub is_without_neighbours: bool,
    /// Bytes of the largest packet, without the link layer's header.
    pub mtu: u32,
    /// Its Ethernet address, where it has one.
    pub mac: Option<MacAddr>,
}

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device.
    pub ifindex: u32,
    /// The address.
    pub address: IpAddr,
    /// Bits of its network.
    pub prefix_length: u8,
    /// Host or link scope: not for the wire, or not beyond the link.
    pub is_narrow: bool,
    /// IPv6: not chosen by RFC 6724 unless nothing else is left.
    pub is_deprecated: bool,
    /// IPv4: not the first of its network. IPv6: a temporary one (RFC 8981).
    pub is_secondary: bool,
    /// Duplicate address detection is not done, or has failed.
    pub is_unusable: bool,
    /// `IFA_PROTO` says that vipa set it up; Linux before 5.18 does not keep that.
    pub is_ours: bool,
}

/// One next hop of a route of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelHop {
    /// Leaves by this device; 0: none.
    pub ifindex: u32,
    /// To this gateway; `None`: on the link.
    pub gateway: Option<IpAddr>,
    /// Its share, from 1.
    pub weight: u16,
}

/// What a route does with what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Sends it to a next hop.
    Unicast,
    /// Ends the lookup in this table.
    Throw,
    /// Anything else: unreachable, blackhole, prohibit, local …
    Other(u8),
}

impl RouteKind {
    /// Says that there is no way (RTN_UNREACHABLE).
    pub const UNREACHABLE: RouteKind = RouteKind::Other(7);
}

/// A route of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRoute {
    /// Its table.
    pub table: u32,
    /// What it covers.
    pub prefix: Prefix,
    /// Among routes of one prefix the lowest wins.
    pub metric: u32,
    /// What it does.
    pub kind: RouteKind,
    /// `rtm_protocol`: who set it up.
    pub protocol: u8,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// In the kernel's order; IPv6 next hops of one metric are one route here, however they came.
    pub next_hops: Vec<KernelHop>,
}

impl KernelRoute {
    /// Its next hops; without any it counts as one.
    pub fn size(&self) -> usize {
        self.next_hops.len().max(1)
    }
}

/// A rule of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRule {
    /// What it says, as far as vipa's own rules go.
    pub rule: Rule,
    /// `FRA_PROTOCOL`: who set it up.
    pub protocol: u8,
    /// It has selectors that [`Rule`] does not know: never equal to one of ours.
    pub has_more: bool,
}

/// An entry of the neighbour table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its Ethernet address, while known.
    pub mac: Option<MacAddr>,
    /// NUD_* bits.
    pub state: u16,
    /// NTF_EXT_MANAGED: the kernel keeps it resolved.
    pub is_managed: bool,
    /// `NDA_PROTOCOL`: who set it up.
    pub protocol: u8,
}

impl Neighbour {
    const STALE: u16 = 0x04;
    /// NOARP and PERMANENT: an operator's own; asking the kernel to resolve would destroy them.
    const FIXED: u16 = 0x40 | 0x80;
    /// REACHABLE, STALE, DELAY, PROBE and the fixed ones.
    const USABLE: u16 = 0x02 | Self::STALE | 0x08 | 0x10 | Self::FIXED;

    /// The MAC address, if frames may be sent to it.
    pub fn usable(&self) -> Option<MacAddr> {
        self.mac.filter(|_| self.state & Self::USABLE != 0)
    }

    /// It was set by hand.
    pub fn is_fixed(&self) -> bool {
        self.state & Self::FIXED != 0
    }

    /// It was not confirmed for a while.
    pub fn is_stale(&self) -> bool {
        self.state & Self::STALE != 0
    }
}

/// What messages have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// A link came, went or changed.
    pub links: bool,
    /// Addresses, routes or rules.
    pub network: bool,
    /// Neighbours.
    pub neighbours: bool,
    /// A per-device kernel setting may have changed.
    pub settings: bool,
    /// The kernel may have dropped or changed routes without a word.
    pub routes_uncertain: bool,
}

impl Changed {
    /// Nothing at all.
    pub fn is_nothing(self) -> bool {
        self == Changed::default()
    }

    /// Adds what `other` says.
    pub fn add(&mut self, other: Changed) {
        self.links |= other.links;
        self.network |= other.network;
        self.neighbours |= other.neighbours;
        self.settings |= other.settings;
        self.routes_uncertain |= other.routes_uncertain;
    }

    /// All of it: the mirror was filled anew.
    pub const EVERYTHING: Changed = Changed {
        links: true,
        network: true,
        neighbours: true,
        settings: true,
        routes_uncertain: false,
    };
    const LINKS: Changed = Changed { links: true, ..Changed::NOTHING };
    const NETWORK: Changed = Changed { network: true, ..Changed::NOTHING };
    const NOTHING: Changed = Changed {
        links: false,
        network: false,
        neighbours: false,
        settings: false,
        routes_uncertain: false,
    };

    fn network_if(is_changed: bool) -> Changed {
        Changed { network: is_changed, ..Changed::NOTHING }
    }
}

/// Identifies a route among all that the mirror holds.
type RouteKey = (u32, Prefix, u32);

/// The kernel's state as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    /// By index.
    pub links: BTreeMap<u32, Link>,
    /// In the kernel's order.
    pub addresses: Vec<Address>,
    /// In the kernel's order.
    pub rules: Vec<KernelRule>,
    /// By device and address; multicast left out.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// `ip_local_port_range`, which no message tells of: the router reads it now and then.
    pub ephemeral: Option<RangeInclusive<u16>>,
    /// `arp_ignore` of `all`, which no message tells of either: the greater of it and a NIC's own holds.
    pub arp_ignore: u8,
    /// What neighbours told by RIP: no more the kernel's than the range is, but as much a part of the network.
    learned: Vec<Learned>,
    routes: BTreeMap<RouteKey, Vec<KernelRoute>>,
    /// Rises with each change of a route …
    version: u64,
    /// … and with each of what decides where a prefix leads.
    ways_version: u64,
    tables: BTreeSet<u32>,
    /// Devices whose neighbours are held; empty: all.
    watched: BTreeSet<String>,
}

impl Mirror {
    /// An empty mirror that will hold routes of main and of `tables`.
    pub fn new(tables: impl IntoIterator<Item = u32>) -> Mirror {
        let tables = tables.into_iter().chain([MAIN_TABLE]).collect();
        Mirror { tables, ..Mirror::default() }
    }

    /// Holds routes of these tables too. Those that are new to it are returned: they are to be read.
    pub fn follow(&mut self, tables: impl IntoIterator<Item = u32>) -> Vec<u32> {
        tables.into_iter().filter(|table| self.tables.insert(*table)).collect()
    }

    /// Holds neighbours of these devices alone: others' come and go by the thousand.
    pub fn watch<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        self.watched = names.into_iter().map(str::to_owned).collect();
        let is_watched = |index| {
            let link: Option<&Link> = self.links.get(&index);
            self.watched.is_empty() || link.is_some_and(|link| self.watched.contains(&link.name))
        };
        self.neighbours.retain(|(index, _), _| is_watched(*index));
    }

    /// Rises whenever a route changes.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Rises whenever something changes that decides where a prefix leads: links, routes of main, what was learned.
    pub fn ways_version(&self) -> u64 {
        self.ways_version
    }

    /// What neighbours told by RIP.
    pub fn learned(&self) -> &[Learned] {
        &self.learned
    }

    /// Takes in what neighbours told by RIP.
    pub fn set_learned(&mut self, learned: Vec<Learned>) {
        self.learned = learned;
        self.ways_version += 1;
    }

    fn is_changed(&mut self, table: u32) {
        self.version += 1;
        self.ways_version += u64::from(table == MAIN_TABLE);
    }

    /// Routes of `table` by prefix and metric.
    pub fn groups(&self, table: u32) -> impl Iterator<Item = ((Prefix, u32), &[KernelRoute])> {
        let first = (table, Prefix::default_route(Family::V4), 0);
        let of_table = self.routes.range(first..).take_while(move |(key, _)| key.0 == table);
        of_table.map(|((_, prefix, metric), routes)| ((*prefix, *metric), routes.as_slice()))
    }

    /// Is this route held, or part of one that is?
    pub fn holds(&self, route: &KernelRoute) -> bool {
        let is_part = |held: &KernelRoute| {
            (held.kind, held.protocol, held.source) == (route.kind, route.protocol, route.source)
                && route.next_hops.iter().all(|hop| held.next_hops.contains(hop))
        };
        self.routes_at(route.table, route.prefix, route.metric).iter().any(is_part)
    }

    /// Next hops of all routes of this table and family; a route without any counts as one.
    pub fn next_hops(&self, table: u32, family: Family) -> usize {
        self.of(table, family).flat_map(|(_, routes)| routes).map(KernelRoute::size).sum()
    }

    /// A route that the kernel turned out not to have.
    pub fn forget_route(&mut self, route: &KernelRoute) {
        self.delete_route(route);
    }

    /// Takes over what `other` holds of this table and family.
    pub fn take_routes(&mut self, other: Mirror, table: u32, family: Family) {
        self.clear_routes(table, family);
        let is_such = |key: &RouteKey| key.0 == table && key.1.family() == family;
        self.routes.extend(other.routes.into_iter().filter(|(key, _)| is_such(key)));
        self.is_changed(table);
    }

    fn of(
        &self,
        table: u32,
        family: Family,
    ) -> impl Iterator<Item = (&RouteKey, &Vec<KernelRoute>)> {
        let first = (table, Prefix::default_route(family), 0);
        let is_such = move |key: &RouteKey| key.0 == table && key.1.family() == family;
        self.routes.range(first..).take_while(move |(key, _)| is_such(key))
    }

    /// The tables whose routes are held.
    pub fn tables(&self) -> impl Iterator<Item = u32> + '_ {
        self.tables.iter().copied()
    }

    /// The device of this name, with its index.
    pub fn link(&self, name: &str) -> Option<(u32, &Link)> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(index, link)| (*index, link))
    }

    /// Routes of `table`, by prefix, then metric.
    pub fn routes(&self, table: u32) -> impl Iterator<Item = &KernelRoute> {
        let first = Prefix::default_route(Family::V4);
        let after_first = self.routes.range((table, first, 0)..);
        after_first.take_while(move |(key, _)| key.0 == table).flat_map(|(_, routes)| routes)
    }

    /// Routes of `table` for just this prefix, the lowest metric first.
    pub fn routes_of(&self, table: u32, prefix: Prefix) -> impl Iterator<Item = &KernelRoute> {
        self.routes.range((table, prefix, 0)..=(table, prefix, u32::MAX)).flat_map(|(_, r)| r)
    }

    /// Routes of this table, prefix and metric.
    pub fn routes_at(&self, table: u32, prefix: Prefix, metric: u32) -> &[KernelRoute] {
        self.routes.get(&(table, prefix, metric)).map_or(&[], Vec::as_slice)
    }

    /// Forgets everything, before a full dump.
    pub fn clear(&mut self) {
        *self = Mirror {
            tables: std::mem::take(&mut self.tables),
            ephemeral: self.ephemeral.take(),
            arp_ignore: self.arp_ignore,
            learned: std::mem::take(&mut self.learned),
            watched: std::mem::take(&mut self.watched),
            version: self.version + 1,
            ways_version: self.ways_version + 1,
            ..Mirror::default()
        };
    }

    /// Forgets the routes of a table and family, before they are dumped anew.
    pub fn clear_routes(&mut self, table: u32, family: Family) {
        self.routes.retain(|key, _| key.0 != table || key.1.family() != family);
        self.is_changed(table);
    }

    /// Takes in one message of a dump, an event or an answer.
    pub fn apply(&mut self, notice: Notice) -> Changed {
        let Notice::Route { message, is_replace, .. } = notice else {
            return Changed { settings: true, ..Changed::NOTHING };
        };
        match *message {
            RouteNetlinkMessage::NewLink(message) => self.new_link(&message),
            RouteNetlinkMessage::DelLink(message) => self.delete_link(&message),
            RouteNetlinkMessage::NewAddress(message) => self.new_address(&message),
            RouteNetlinkMessage::DelAddress(message) => self.delete_address(&message),
            RouteNetlinkMessage::NewRoute(message) => {
                Changed::network_if(route(&message).is_some_and(|r| self.new_route(r, is_replace)))
            }
            RouteNetlinkMessage::DelRoute(message) => {
                Changed::network_if(route(&message).is_some_and(|r| self.delete_route(&r)))
            }
            RouteNetlinkMessage::NewRule(message) => self.new_rule(&message),
            RouteNetlinkMessage::DelRule(message) => self.delete_rule(&message),
            RouteNetlinkMessage::NewNeighbour(message) => self.new_neighbour(&message),
            RouteNetlinkMessage::DelNeighbour(message) => self.delete_neighbour(&message),
            _ => Changed::NOTHING,
        }
    }

    fn new_link(&mut self, message: &LinkMessage) -> Changed {
        // A bridge tells of its ports as links of its own family.
        if message.header.interface_family != AddressFamily::Unspec {
            return Changed::NOTHING;
        }
        let flags = message.header.flags;
        let index = message.header.index;
        let before = self.links.get(&index);
        let mut link = Link {
            name: before.map(|l| l.name.clone()).unwrap_or_default(),
            is_up: flags.contains(LinkFlags::Up),
            has_carrier: flags.contains(LinkFlags::LowerUp),
            is_tun: before.is_some_and(|l| l.is_tun),
            is_without_neighbours: flags.contains(LinkFlags::Noarp),
            mtu: before.map_or(0, |l| l.mtu),
            mac: before.and_then(|l| l.mac),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::LinkInfo(parts) => link.is_tun = read::is_tun(parts),
                LinkAttribute::Address(bytes) => {
                    link.mac = bytes.as_slice().try_into().ok().map(MacAddr);
                }
                _ => {}
            }
        }
        if before == Some(&link) {
            return Changed::NOTHING;
        }
        let is_up_changed = before.is_some_and(|l| l.is_up != link.is_up);
        self.ways_version += 1;
        self.links.insert(index, link);
        Changed { routes_uncertain: is_up_changed, ..Changed::LINKS }
    }

    fn delete_link(&mut self, message: &LinkMessage) -> Changed {
        if message.header.interface_family != AddressFamily::Unspec {
            return Changed::NOTHING;
        }
        let index = message.header.index;
        if self.links.remove(&index).is_none() {
            return Changed::NOTHING;
        }
        self.ways_version += 1;
        self.addresses.retain(|a| a.ifindex != index);
        self.neighbours.retain(|key, _| key.0 != index);
        Changed { routes_uncertain: true, ..Changed::LINKS }
    }

    fn new_address(&mut self, message: &AddressMessage) -> Changed {
        let Some(address) = address(message) else { return Changed::NOTHING };
        match self.addresses.iter_mut().find(|a| is_same_address(a, &address)) {
            Some(held) if *held == address => return Changed::NOTHING,
            Some(held) => *held = address,
            None => self.addresses.push(address),
        }
        Changed::NETWORK
    }

    fn delete_address(&mut self, message: &AddressMessage) -> Changed {
        let Some(address) = address(message) else { return Changed::NOTHING };
        self.addresses.retain(|a| !is_same_address(a, &address));
        // The kernel drops IPv4 routes with this source, and takes it from IPv6 routes without a word.
        Changed { routes_uncertain: true, ..Changed::NETWORK }
    }

    /// Takes in a route; true if that changed anything.
    pub(crate) fn new_route(&mut self, route: KernelRoute, is_replace: bool) -> bool {
        if !self.tables.contains(&route.table) {
            return false;
        }
        let key = (route.table, route.prefix, route.metric);
        let known = self.routes.get(&key).map_or(&[][..], Vec::as_slice);
        if known.contains(&route) && (known.len() == 1 || !is_replace) {
            return false;
        }
        self.is_changed(route.table);
        let held = self.routes.entry(key).or_default();
        match held.first_mut() {
            Some(first) if is_replace => *first = route,
            // One next hop after the other, or all of them again with one more.
            Some(first)
                if route.prefix.family() == Family::V6
                    && route.kind == RouteKind::Unicast
                    && first.kind == RouteKind::Unicast =>
            {
                for hop in route.next_hops {
                    match first.next_hops.iter_mut().find(|h| is_same_hop(h, &hop)) {
                        Some(held) => *held = hop,
                        None => first.next_hops.push(hop),
                    }
                }
                first.source = route.source;
                first.protocol = route.protocol;
            }
            _ => held.push(route),
        }
        true
    }

    fn delete_route(&mut self, gone: &KernelRoute) -> bool {
        let key = (gone.table, gone.prefix, gone.metric);
        if !self.routes.contains_key(&key) {
            return false;
        }
        self.is_changed(gone.table);
        let Some(held) = self.routes.get_mut(&key) else { return false };
        if gone.prefix.family() == Family::V6 && gone.kind == RouteKind::Unicast {
            for route in held.iter_mut().filter(|r| r.kind == RouteKind::Unicast) {
                route.next_hops.retain(|h| !gone.next_hops.iter().any(|g| is_same_hop(g, h)));
            }
            held.retain(|r| r.kind != RouteKind::Unicast || !r.next_hops.is_empty());
        } else {
            let position = held
                .iter()
                .position(|r| r == gone)
                .or_else(|| held.iter().position(|r| r.kind == gone.kind));
            if let Some(position) = position {
                held.remove(position);
            }
        }
        if held.is_empty() {
            self.routes.remove(&key);
        }
        true
    }

    fn new_rule(&mut self, message: &RuleMessage) -> Changed {
        let Some(rule) = rule(message) else { return Changed::NOTHING };
        if self.rules.contains(&rule) {
            return Changed::NOTHING;
        }
        self.rules.push(rule);
        Changed::NETWORK
    }

    fn delete_rule(&mut self, message: &RuleMessage) -> Changed {
        let gone = rule(message);
        let position = self.rules.iter().position(|r| Some(r) == gone.as_ref());
        Changed::network_if(position.map(|p| self.rules.remove(p)).is_some())
    }

    fn new_neighbour(&mut self, message: &NeighbourMessage) -> Changed {
        let Some((key, neighbour)) = neighbour(message) else { return Changed::NOTHING };
        let is_watched = |link: &Link| self.watched.contains(&link.name);
        if !self.watched.is_empty() && !self.links.get(&key.0).is_some_and(is_watched) {
            return Changed::NOTHING;
        }
        let before = self.neighbours.insert(key, neighbour.clone());
        Changed { neighbours: before != Some(neighbour), ..Changed::NOTHING }
    }

    fn delete_neighbour(&mut self, message: &NeighbourMessage) -> Changed {
        let key = neighbour(message).map(|(key, _)| key);
        let gone = key.and_then(|key| self.neighbours.remove(&key));
        Changed { neighbours: gone.is_some(), ..Changed::NOTHING }
    }
}

/// The route that a message tells of, if it is one that stands.
pub fn route_of(notice: &Notice) -> Option<KernelRoute> {
    let Notice::Route { message, .. } = notice else { return None };
    let RouteNetlinkMessage::NewRoute(message) = &**message else { return None };
    route(message)
}

fn is_same_address(a: &Address, b: &Address) -> bool {
    (a.ifindex, a.address, a.prefix_length) == (b.ifindex, b.address, b.prefix_length)
}

fn is_same_hop(a: &KernelHop, b: &KernelHop) -> bool {
    (a.ifindex, a.gateway) == (b.ifindex, b.gateway)
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
