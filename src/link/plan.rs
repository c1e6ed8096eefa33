//! What should stand in the kernel, from configuration, mirror and the NICs' states alone: plain data,
//! compared with the mirror by [`super::kernel`] and shown line by line by `vipa check --plan`.

pub mod homes;
pub mod own;
pub mod routes;
pub mod rules;

use std::fmt;
use std::net::IpAddr;

use self::routes::{PlannedRoute, Reaches, RouteKey, next_hops, reaches};
use self::rules::{Around, Rule, default_vipa};
use super::health::Health;
use super::mirror::Mirror;
use super::sysctl::{Sysctl, Wanted};
use crate::config::Config;
use crate::forward::view::{NicId, NicState};
use crate::wire::ip::Family;

/// MTU of the adapter while no NIC exists.
const DEFAULT_MTU: u32 = 1500;
/// IPv6 works on nothing smaller (RFC 8200 section 5).
const LEAST_MTU: u32 = 1280;
/// What a TUN device takes at most.
const GREATEST_MTU: u32 = 65535;

/// All that vipa sets up beside its nftables rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The adapter itself.
    pub adapter: AdapterPlan,
    /// VIPAs that NICs have as addresses.
    pub nic_addresses: Vec<NicAddress>,
    /// Settings below `/proc/sys`.
    pub sysctls: Vec<Sysctl>,
    /// Routes of our tables, in the order of their keys.
    pub routes: Vec<PlannedRoute>,
    /// Policy rules.
    pub rules: Vec<Rule>,
    /// Gateways that the kernel keeps resolved.
    pub neighbours: Vec<ManagedNeighbour>,
}

/// The adapter: up, with the VIPAs, as wide as the narrowest NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterPlan {
    /// Its name.
    pub name: String,
    /// The smallest MTU of the NICs that exist.
    pub mtu: u32,
    /// The VIPAs.
    pub addresses: Vec<IpAddr>,
}

/// A VIPA that a NIC has as an address, so that the kernel answers for it by this one ([`homes`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicAddress {
    /// The NIC.
    pub nic: String,
    /// Its index.
    pub ifindex: u32,
    /// The VIPA.
    pub address: IpAddr,
}

/// A gateway behind a NIC. The kernel never sends to it while a forwarder runs, and would forget it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedNeighbour {
    /// The NIC.
    pub nic: String,
    /// Its index.
    pub ifindex: u32,
    /// The gateway.
    pub address: IpAddr,
}

impl Plan {
    /// The route of this table, prefix and metric.
    pub fn route_at(&self, key: &RouteKey) -> Option<&PlannedRoute> {
        let at = self.routes.binary_search_by_key(key, PlannedRoute::key).ok()?;
        self.routes.get(at)
    }
}

impl fmt::Display for Plan {
    /// One line for each thing, in the words of `ip` and `sysctl`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "link {} type tun mtu {} up", self.adapter.name, self.adapter.mtu)?;
        for address in &self.adapter.addresses {
            let bits = Family::of(*address).bits();
            writeln!(f, "address {address}/{bits} dev {}", self.adapter.name)?;
        }
        for NicAddress { nic, address, .. } in &self.nic_addresses {
            writeln!(f, "address {address}/{} dev {nic}", Family::of(*address).bits())?;
        }
        self.sysctls.iter().try_for_each(|sysctl| writeln!(f, "sysctl {sysctl}"))?;
        self.routes.iter().try_for_each(|route| writeln!(f, "{route}"))?;
        self.rules.iter().try_for_each(|rule| writeln!(f, "{rule}"))?;
        for neighbour in &self.neighbours {
            writeln!(f, "neighbour {} dev {} managed", neighbour.address, neighbour.nic)?;
        }
        Ok(())
    }
}

/// May any packet's source be rewritten to the reserved ports? Only then does the forwarder own them, or anything of
/// what arrives. This host itself gets one of them as a client of any service.
pub fn can_rewrite(config: &Config) -> bool {
    !config.source.rules.is_empty()
        || config.source.is_bound_forwarded
        || !config.services.is_empty()
}

/// The plan. `health` has a state for each `[[nic]]`.
pub fn plan(config: &Config, mirror: &Mirror, health: &Health) -> Plan {
    plan_over(config, mirror, &reaches(config, mirror), health)
}

/// The same where [`reaches`] is known.
pub fn plan_over(config: &Config, mirror: &Mirror, reaches: &Reaches, health: &Health) -> Plan {
    Plan {
        adapter: AdapterPlan {
            name: config.adapter.name.clone(),
            mtu: mtu(config, mirror),
            addresses: config.adapter.addresses.clone(),
        },
        nic_addresses: homes::addresses(config, mirror, &health.homes),
        sysctls: sysctls(config, mirror, health),
        routes: routes::routes(config, mirror, reaches, health),
        rules: policy_rules(config, mirror),
        neighbours: neighbours(config, mirror, reaches, health),
    }
}

/// May `after` take the place of `before` with other policy rules and nothing else? Then they differ in what is served alone.
pub fn is_served_alike(before: &Config, after: &Config) -> bool {
    let of = |config: &Config| {
        let tables = rules::all_tables(config);
        (Family::BOTH.map(|family| own::is_wanted(config, family)), can_rewrite(config), tables)
    };
    let bare = |config: &Config| Config { services: Vec::new(), ..config.clone() };
    of(before) == of(after) && bare(before) == bare(after)
}

/// The policy rules of the plan alone.
pub fn policy_rules(config: &Config, mirror: &Mirror) -> Vec<Rule> {
    rules::rules(config, &around(config, mirror))
}

fn around(config: &Config, mirror: &Mirror) -> Around {
    let is_foreign = |family: &Family| routes::is_default_foreign(config, mirror, *family);
    Around {
        nic_addresses: nic_addresses(config, mirror),
        ephemeral: mirror.ephemeral.clone(),
        foreign_defaults: Family::BOTH.into_iter().filter(is_foreign).collect(),
        local: Family::BOTH.map(|family| own::Around::of(mirror, family)),
    }
}

fn mtu(config: &Config, mirror: &Mirror) -> u32 {
    let smallest = config
        .nics
        .iter()
        .filter_map(|nic| mirror.link(&nic.name))
        .map(|(_, link)| link.mtu)
        .min()
        .unwrap_or(DEFAULT_MTU);
    let least = default_vipa(config, Family::V6).map_or(68, |_| LEAST_MTU);
    smallest.clamp(least, GREATEST_MTU)
}

/// Addresses of NICs that may be a packet's source on the wire: no VIPA, not link-local.
fn nic_addresses(config: &Config, mirror: &Mirror) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = mirror
        .addresses
        .iter()
        .filter(|a| routes::nic_of(config, mirror, a.ifindex).is_some())
        .filter(|a| !a.is_narrow && !a.is_unusable)
        .map(|a| a.address)
        .filter(|a| !config.adapter.addresses.contains(a))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Settings below `/proc/sys`.
pub fn sysctls(config: &Config, mirror: &Mirror, health: &Health) -> Vec<Sysctl> {
    let mut wanted = Vec::new();
    let name = &config.adapter.name;
    let ifindex = mirror.link(name).map_or(0, |(index, _)| index);
    let mut set = |family, key, value| {
        wanted.push(Sysctl::of_device(family, name, ifindex, key, value));
    };
    set("ipv4", "ignore_routes_with_linkdown", "1");
    set("ipv4", "rp_filter", "2");
    if own::is_wanted(config, Family::V4) {
        // What the forwarder hands this host of its own services bears one of its own addresses.
        set("ipv4", "accept_local", "1");
    }
    if default_vipa(config, Family::V6).is_some() {
        set("ipv6", "disable_ipv6", "0");
    }
    set("ipv6", "ignore_routes_with_linkdown", "1");
    set("ipv6", "accept_ra", "0");
    set("ipv6", "addr_gen_mode", "1");
    for nic in &config.nics {
        if let Some((ifindex, _)) = mirror.link(&nic.name) {
            for (family, key, value) in [
                ("ipv4", "rp_filter", "2"),
                ("ipv4", "ignore_routes_with_linkdown", "1"),
                ("ipv6", "ignore_routes_with_linkdown", "1"),
            ] {
                wanted.push(Sysctl::of_device(family, &nic.name, ifindex, key, value));
            }
        }
    }
    wanted.extend(homes::sysctls(config, mirror, &health.homes));
    if can_rewrite(config) {
        wanted.push(Sysctl {
            path: "net/ipv4/ip_local_reserved_ports".into(),
            device: None,
            wanted: Wanted::Reserved(config.source.ports.clone()),
        });
    }
    wanted
}

/// Gateways behind NICs that are up with carrier; what an operator has fixed by hand stays as it is.
fn neighbours(
    config: &Config,
    mirror: &Mirror,
    reaches: &Reaches,
    health: &Health,
) -> Vec<ManagedNeighbour> {
    let mut managed: Vec<ManagedNeighbour> = Vec::new();
    for (id, address) in next_hops(reaches) {
        let nic = &config.nics[id.index()].name;
        let Some((ifindex, link)) = mirror.link(nic) else { continue };
        let is_fixed = mirror.neighbours.get(&(ifindex, address)).is_some_and(|n| n.is_fixed());
        if !is_ready(health, id) || link.is_without_neighbours || is_fixed {
            continue;
        }
        let neighbour = ManagedNeighbour { nic: nic.clone(), ifindex, address };
        if !managed.contains(&neighbour) {
            managed.push(neighbour);
        }
    }
    managed
}

fn is_ready(health: &Health, nic: NicId) -> bool {
    health.is_live(nic) || matches!(health.state(nic), NicState::HeldDown | NicState::NoPath)
}

#[cfg(test)]
pub(crate) mod tests;
