//! Longest-prefix match: destination → next hops.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::view::NicId;
use crate::wire::ip::{Family, Prefix};

/// One way to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// Leaves by this NIC.
    pub nic: NicId,
    /// To this gateway; `None`: the destination is on the link. An IPv4 route may have an IPv6 gateway.
    pub gateway: Option<IpAddr>,
}

/// A route of the forwarder. Without next hops the prefix belongs to a device that is no NIC of vipa.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it covers.
    pub prefix: Prefix,
    /// Where to.
    pub next_hops: Vec<NextHop>,
}

/// Routes of both families, immutable. A look-up probes once for each prefix length that occurs, longest
/// first: hosts have few, and only the first packet of a flow asks. A clone is the same table.
#[derive(Clone, Debug, Default)]
pub struct RouteTable(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    routes: Vec<Route>,
    by_prefix: HashMap<Prefix, u32, foldhash::fast::RandomState>,
    lengths_v4: Vec<u8>,
    lengths_v6: Vec<u8>,
}

impl RouteTable {
    /// A table of these routes; of two with one prefix the first counts.
    pub fn new(routes: Vec<Route>) -> RouteTable {
        let mut table = Inner::default();
        table.by_prefix.reserve(routes.len());
        for (at, route) in routes.iter().enumerate() {
            // Far more routes than fit into memory would be needed to overflow.
            table.by_prefix.entry(route.prefix).or_insert(at as u32);
            match route.prefix.family() {
                Family::V4 => table.lengths_v4.push(route.prefix.length()),
                Family::V6 => table.lengths_v6.push(route.prefix.length()),
            }
        }
        for lengths in [&mut table.lengths_v4, &mut table.lengths_v6] {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        table.routes = routes;
        RouteTable(Arc::new(table))
    }

    /// The route with the longest prefix that covers `destination`.
    pub fn lookup(&self, destination: IpAddr) -> Option<&Route> {
        let lengths = match Family::of(destination) {
            Family::V4 => &self.0.lengths_v4,
            Family::V6 => &self.0.lengths_v6,
        };
        lengths
            .iter()
            .filter_map(|length| Prefix::new(destination, *length))
            .find_map(|prefix| self.0.by_prefix.get(&prefix))
            .map(|at| &self.0.routes[*at as usize])
    }

    /// All routes, in the order given.
    pub fn routes(&self) -> &[Route] {
        &self.0.routes
    }
}

impl PartialEq for RouteTable {
    fn eq(&self, other: &RouteTable) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.routes == other.0.routes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(prefix: &str, nic: u8) -> Route {
        let next_hops = vec![NextHop { nic: NicId(nic), gateway: None }];
        Route { prefix: prefix.parse().expect("a prefix"), next_hops }
    }

    #[test]
    fn the_longest_prefix_wins_in_each_family() {
        let table = RouteTable::new(vec![
            route("0.0.0.0/0", 0),
            route("10.0.0.0/8", 1),
            route("10.1.0.0/16", 2),
            route("10.1.2.3/32", 3),
            route("2001:db8::/32", 4),
        ]);
        let nic = |address: &str| {
            table.lookup(address.parse().expect("an address")).map(|r| r.next_hops[0].nic.0)
        };
        assert_eq!(nic("192.0.2.1"), Some(0));
        assert_eq!(nic("10.9.9.9"), Some(1));
        assert_eq!(nic("10.1.9.9"), Some(2));
        assert_eq!(nic("10.1.2.3"), Some(3));
        assert_eq!(nic("2001:db8::1"), Some(4));
        assert_eq!(nic("2001:db9::1"), None);
    }
}
