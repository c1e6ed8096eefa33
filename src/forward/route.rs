//! Longest-prefix match: destination → next hops.

use std::net::IpAddr;

use super::view::NicId;
use crate::wire::ip::Prefix;

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

/// Routes of both families, immutable.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Route>,
}

impl RouteTable {
    /// A table of these routes; of two with one prefix the first counts.
    pub fn new(routes: Vec<Route>) -> RouteTable {
        RouteTable { routes }
    }

    /// All routes, for status.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }
}
