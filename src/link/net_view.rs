//! From mirror and configuration to what the forwarder reads: [`NetView`]. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::health::Health;
use super::mirror::{Address, Mirror};
use super::plan::routes::{Reach, Reaches, Way, next_hops, nic_of};
use super::plan::rules::default_vipa;
use super::resolve::Hop;
use crate::balance::service::{GIVEN, Mode, WhenNone};
use crate::config::Config;
use crate::forward::applies::applies;
use crate::forward::claims::{Claim, Claims};
use crate::forward::route::{NextHop, Route, RouteTable};
use crate::forward::source::SourcePolicy;
use crate::forward::view::{NetView, NicView, owned_addresses};
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::{Family, Prefix};

/// A view without a number, comparable: only one that differs from the last is published.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    nics: Vec<NicView>,
    routes: RouteTable,
    neighbours: BTreeMap<Hop, MacAddr>,
    source: SourcePolicy,
    /// What is owned beside replies to rewritten flows.
    claims: Claims,
}

/// What the mirror does not know.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Where which prefix leads.
    pub reaches: &'a Reaches,
    /// Which NICs and next hops carry traffic.
    pub health: &'a Health,
    /// `ip_local_port_range`.
    pub ephemeral: &'a RangeInclusive<u16>,
    /// Ports on which a socket of this host is bound: not for rewritten flows.
    pub listening: &'a [u16],
    /// Addresses that flows of an earlier configuration may carry.
    pub kept: &'a [IpAddr],
}

/// The view as of now; of the neighbours that are no gateways those that `is_requested`.
pub fn draft(
    config: &Config,
    mirror: &Mirror,
    around: Surroundings<'_>,
    is_requested: impl Fn(&Hop) -> bool,
) -> Draft {
    let reaches = around.reaches;
    let nics = nics(config, mirror, around.health);
    Draft {
        neighbours: neighbours(config, mirror, reaches, is_requested),
        routes: RouteTable::new(routes(reaches, around.health)),
        source: source(config, around),
        claims: claims(config, &nics, around.kept),
        nics,
    }
}

impl Draft {
    /// The view, as number `generation`.
    pub fn view(&self, generation: u32) -> NetView {
        NetView {
            generation,
            nics: self.nics.clone().into(),
            routes: self.routes.clone(),
            neighbours: self.neighbours.iter().map(|(hop, mac)| (*hop, *mac)).collect(),
            source: self.source.clone(),
            claims: self.claims(),
        }
    }

    /// The same where other services are served, and nothing else is another.
    pub fn serving(&self, config: &Config, kept: &[IpAddr]) -> Draft {
        Draft { claims: claims(config, &self.nics, kept), ..self.clone() }
    }

    /// What is owned.
    pub fn claims(&self) -> Claims {
        Claims { owned: self.owned(), ..self.claims.clone() }
    }

    /// The addresses among that.
    pub fn owned(&self) -> Vec<IpAddr> {
        let mut owned = owned_addresses(&self.source, &self.nics);
        owned.extend_from_slice(&self.claims.owned);
        owned.sort_unstable();
        owned.dedup();
        owned
    }

    /// Which source a datagram gets.
    pub fn source(&self) -> &SourcePolicy {
        &self.source
    }

    /// The NICs in it.
    pub fn nics(&self) -> &[NicView] {
        &self.nics
    }

    /// The routes in it.
    pub fn routes(&self) -> &[Route] {
        self.routes.routes()
    }

    /// The neighbours in it.
    pub fn neighbours(&self) -> &BTreeMap<Hop, MacAddr> {
        &self.neighbours
    }
}

fn nics(config: &Config, mirror: &Mirror, health: &Health) -> Vec<NicView> {
    let one = |(nic, id): (&crate::config::Nic, crate::forward::view::NicId)| {
        let link = mirror.link(&nic.name);
        NicView {
            name: nic.name.clone(),
            ifindex: link.map_or(0, |(index, _)| index),
            mac: link.and_then(|(_, link)| link.mac).unwrap_or_default(),
            mtu: link.map_or(0, |(_, link)| link.mtu),
            weight: nic.weight,
            metric: nic.metric,
            xdp: nic.xdp,
            is_live: health.is_live(id),
            state: health.state(id),
            addresses: link.map_or_else(Vec::new, |(index, _)| addresses(config, mirror, index)),
        }
    };
    let ids = (0..).map(crate::forward::view::NicId);
    config.nics.iter().zip(ids).map(one).collect()
}

/// Addresses of a device that may stand on the wire, those to be preferred first.
fn addresses(config: &Config, mirror: &Mirror, ifindex: u32) -> Vec<(IpAddr, u8)> {
    let mut found: Vec<&Address> = mirror
        .addresses
        .iter()
        .filter(|a| a.ifindex == ifindex && !a.is_narrow && !a.is_unusable)
        .filter(|a| !config.adapter.addresses.contains(&a.address))
        .collect();
    found.sort_by_key(|a| (a.address.is_ipv6(), a.is_deprecated, a.is_secondary));
    found.into_iter().map(|a| (a.address, a.prefix_length)).collect()
}

/// A route whose ways are all dead gives way to a shorter prefix with a usable one, as it does in the kernel
/// with `ignore_routes_with_linkdown`. Where there is none it stays, so that drops have the right name.
fn routes(reaches: &Reaches, health: &Health) -> Vec<Route> {
    let has_usable = |ways: &[Way]| ways.iter().any(|way| health.is_usable(way));
    let is_replaced = |prefix: &Prefix| {
        let shorter = (0..prefix.length()).rev().filter_map(|length| {
            Prefix::new(prefix.address(), length).and_then(|shorter| reaches.get(&shorter))
        });
        for reach in shorter {
            match reach {
                Reach::Elsewhere => return false,
                Reach::Nics(ways) if has_usable(ways) => return true,
                Reach::Nics(_) => {}
            }
        }
        false
    };
    let mut routes = Vec::new();
    for (prefix, reach) in reaches {
        let ways = match reach {
            Reach::Elsewhere => &[][..],
            Reach::Nics(ways) if !has_usable(ways) && is_replaced(prefix) => continue,
            Reach::Nics(ways) => ways,
        };
        let has_usable = has_usable(ways);
        // Ways by a dead NIC stay: the flows of the others are spread as if it were there.
        let is_left = |way: &&Way| !has_usable || health.is_usable(way) || !health.is_live(way.nic);
        let next_hops = ways
            .iter()
            .filter(is_left)
            .map(|way| NextHop { nic: way.nic, gateway: way.gateway })
            .collect();
        routes.push(Route { prefix: *prefix, next_hops });
    }
    routes
}

fn neighbours(
    config: &Config,
    mirror: &Mirror,
    reaches: &Reaches,
    is_requested: impl Fn(&Hop) -> bool,
) -> BTreeMap<Hop, MacAddr> {
    let gateways: std::collections::BTreeSet<Hop> = next_hops(reaches).collect();
    let usable = mirror.neighbours.iter().filter_map(|((ifindex, address), neighbour)| {
        let mac = neighbour.usable()?;
        Some(((nic_of(config, mirror, *ifindex)?, *address), mac))
    });
    usable.filter(|(hop, _)| gateways.contains(hop) || is_requested(hop)).collect()
}

/// What virtual services own, and the addresses `kept`.
fn claims(config: &Config, nics: &[NicView], kept: &[IpAddr]) -> Claims {
    let (owned, reserved) = (kept.to_vec(), config.source.ports.clone());
    let mut claims = Claims { owned, reserved, ..Claims::default() };
    for service in &config.services {
        let ports = (*service.ports.start(), *service.ports.end());
        let claim = |address, ports| Claim { address, protocol: service.protocol, ports };
        claims.services.push(claim(service.address, ports));
        let family = Family::of(service.address);
        // With these this host itself asks servers that see their clients.
        if service.uses_reserved_ports() || service.keeps_client() {
            claims.owned.extend(default_vipa(config, family));
        }
        let Mode::Nat { sources, keeps_client } = &service.mode else {
            let addresses = nics.iter().flat_map(|nic| nic.addresses.iter().map(|(a, _)| *a));
            claims.owned.extend(addresses.filter(|address| Family::of(*address) == family));
            continue;
        };
        claims.sources.extend(sources.iter().map(|source| (*source, GIVEN)));
        if *keeps_client {
            claims.servers.extend(service.servers.iter().filter(|server| !server.is_local).map(
                |server| claim(server.address, server.port.map_or(ports, |port| (port, port))),
            ));
            if let WhenNone::Sorry(end) = service.when_none
                && !config.adapter.addresses.contains(&end.ip())
            {
                claims.servers.push(claim(end.ip(), (end.port(), end.port())));
            }
        }
    }
    // While services change, one may stand here as it was and as it will be.
    claims.services.sort_unstable();
    claims.services.dedup();
    claims.sources.sort_unstable_by_key(|(address, _)| *address);
    claims.sources.dedup();
    claims.servers.sort_unstable();
    claims.servers.dedup();
    claims
}

fn source(config: &Config, around: Surroundings<'_>) -> SourcePolicy {
    let default = |family| default_vipa(config, family);
    SourcePolicy {
        sourcevipa: config.source.sourcevipa,
        vipas: config.adapter.addresses.clone(),
        default_v4: default(Family::V4).and_then(|a| match a {
            IpAddr::V4(a) => Some(a),
            IpAddr::V6(_) => None,
        }),
        default_v6: default(Family::V6).and_then(|a| match a {
            IpAddr::V6(a) => Some(a),
            IpAddr::V4(_) => None,
        }),
        rules: config.source.rules.clone(),
        applies: applies(&config.source.rules, config.source.is_bound_forwarded),
        can_ask: true,
        ports: config
            .source
            .ports
            .clone()
            .filter(|port| !around.listening.contains(port))
            .collect(),
        ephemeral: Some(around.ephemeral.clone()),
        is_bound_forwarded: config.source.is_bound_forwarded,
    }
}

#[cfg(test)]
mod tests;
