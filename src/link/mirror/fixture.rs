//! Mirrors for tests: what would have come from the kernel, said in few words.

use std::net::IpAddr;

use super::{KernelHop, KernelRoute, Mirror, Neighbour, RouteKind};
use crate::link::MAIN_TABLE;
use crate::wire::ethernet::MacAddr;

/// A route of the main table: prefix, metric, next hops as device and gateway.
pub(crate) fn route(mirror: &mut Mirror, prefix: &str, metric: u32, hops: &[(u32, Option<&str>)]) {
    let next_hops = hops
        .iter()
        .map(|(ifindex, gateway)| KernelHop {
            ifindex: *ifindex,
            gateway: gateway.map(|g| g.parse().expect("an address")),
            weight: 1,
        })
        .collect();
    add(mirror, prefix, metric, RouteKind::Unicast, next_hops);
}

/// Any route.
pub(crate) fn insert(mirror: &mut Mirror, route: KernelRoute) {
    mirror.new_route(route, false);
}

/// An unreachable prefix in the main table.
pub(crate) fn unreachable(mirror: &mut Mirror, prefix: &str) {
    add(mirror, prefix, 0, RouteKind::Other(7), Vec::new());
}

fn add(mirror: &mut Mirror, prefix: &str, metric: u32, kind: RouteKind, hops: Vec<KernelHop>) {
    let route = KernelRoute {
        table: MAIN_TABLE,
        prefix: prefix.parse().expect("a prefix"),
        metric,
        kind,
        protocol: 2,
        source: None,
        next_hops: hops,
    };
    mirror.new_route(route, false);
}

/// A neighbour with a MAC address, in this state (NUD_*).
pub(crate) fn neighbour(mirror: &mut Mirror, ifindex: u32, address: &str, state: u16) {
    let address: IpAddr = address.parse().expect("an address");
    let mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
    let neighbour = Neighbour { mac, state, is_managed: false, protocol: 0 };
    mirror.neighbours.insert((ifindex, address), neighbour);
}
