//! The preferred-server table (L10, L15): where a new connection to each virtual service goes. An immutable
//! snapshot; the monitor thread is its only writer, workers read it once a batch.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use hashbrown::HashMap;

/// A virtual service's place in the table: the same for as long as the process lives, whatever is reloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u16);

/// A server's place in the table: one for each server of each service, and never another's while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(pub u16);

/// How requests reach the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To the server's address and port, from one of `sources`: needs nothing of the server.
    Nat {
        /// Addresses that served flows carry towards the server; empty: the client's stays (`keep-client`), and
        /// the server routes back through this host.
        sources: Arc<[Source]>,
    },
    /// To the server's MAC address, the packet unchanged: the server has the VIPA on loopback and answers the
    /// client itself.
    Direct,
}

/// An address for served flows, and its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// A VIPA.
    pub address: IpAddr,
    /// Ports that may be given to flows, in order.
    pub ports: Arc<[u16]>,
}

/// Where new connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// All to this server: the preferred one.
    Preferred(ServerId),
    /// To the server at the place that the flow's hash names: a Maglev table (Eisenbud and others, 2016, section 3.4).
    Weighted(Arc<[ServerId]>),
    /// Nowhere: TCP is answered with a reset, UDP with an ICMP error.
    Refuse,
    /// Nowhere yet: the servers are being read for the first time. What comes is dropped without a word, and its
    /// sender tries again.
    Wait,
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// A VIPA.
    pub address: IpAddr,
    /// Ports of the VIPA; 1 to 65535: all of them.
    pub ports: RangeInclusive<u16>,
    /// IANA protocol number: TCP or UDP.
    pub protocol: u8,
    /// How requests reach the server.
    pub mode: Mode,
    /// Where new connections go.
    pub choice: Choice,
}

/// What becomes of the connections that a server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They go on: it serves, or it drains.
    Kept,
    /// It is dead, `on-death = "reset"`: both ends are told.
    Reset,
    /// It is dead, `on-death = "reselect"`: what comes next goes to another server.
    Reselect,
}

/// A server of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its address; one of this host's VIPAs: the server is on this host.
    pub address: IpAddr,
    /// Its port; `None`: the one that the client asked for.
    pub port: Option<u16>,
    /// Is it on this host?
    pub is_local: bool,
    /// What becomes of its connections.
    pub fate: Fate,
}

/// All virtual services and their servers.
#[derive(Clone, Debug, Default)]
pub struct PreferredTable {
    /// Rises by one with each table published.
    pub generation: u32,
    services: Vec<Option<Arc<Service>>>,
    servers: Vec<Option<Server>>,
    index: Arc<Index>,
}

/// Ports of an address and protocol, in order, and whose they are.
type Index =
    HashMap<(IpAddr, u8), Vec<(RangeInclusive<u16>, ServiceId)>, foldhash::fast::RandomState>;

impl PreferredTable {
    /// A table of these services and servers by their places; places may be empty. No two services share a port of
    /// an address.
    pub fn new(services: Vec<Option<Service>>, servers: Vec<Option<Server>>) -> PreferredTable {
        let services: Vec<_> = services.into_iter().map(|service| service.map(Arc::new)).collect();
        let mut index = Index::default();
        for (at, service) in services.iter().enumerate() {
            let Some(service) = service else { continue };
            let place = index.entry((service.address, service.protocol)).or_default();
            place.push((service.ports.clone(), ServiceId(at as u16)));
        }
        index.values_mut().for_each(|place| place.sort_by_key(|(ports, _)| *ports.start()));
        PreferredTable { generation: 0, services, servers, index: Arc::new(index) }
    }

    /// The same table with another choice for one service. Costs a pointer's copy for each service.
    pub fn set_choice(&mut self, id: ServiceId, choice: Choice) {
        if let Some(Some(service)) = self.services.get_mut(usize::from(id.0)) {
            Arc::make_mut(service).choice = choice;
        }
    }

    /// The same table with another fate for the connections of one server.
    pub fn set_fate(&mut self, id: ServerId, fate: Fate) {
        if let Some(Some(server)) = self.servers.get_mut(usize::from(id.0)) {
            server.fate = fate;
        }
    }

    /// The service that owns `port` of `address` for `protocol`.
    pub fn find(&self, address: IpAddr, protocol: u8, port: u16) -> Option<ServiceId> {
        let place = self.index.get(&(address, protocol))?;
        let behind = place.partition_point(|(ports, _)| *ports.start() <= port);
        let (ports, id) = place.get(behind.checked_sub(1)?)?;
        ports.contains(&port).then_some(*id)
    }

    /// A service.
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(usize::from(id.0))?.as_deref()
    }

    /// A server; `None` once it was removed.
    #[inline]
    pub fn server(&self, id: ServerId) -> Option<&Server> {
        self.servers.get(usize::from(id.0))?.as_ref()
    }

    /// All services and their places.
    pub fn services(&self) -> impl Iterator<Item = (ServiceId, &Service)> {
        let all = self.services.iter().enumerate();
        all.filter_map(|(at, service)| Some((ServiceId(at as u16), service.as_deref()?)))
    }

    /// Are there no services?
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip;

    fn service(ports: RangeInclusive<u16>) -> Option<Service> {
        Some(Service {
            name: "web".into(),
            address: IpAddr::from([203, 0, 113, 10]),
            ports,
            protocol: ip::TCP,
            mode: Mode::Direct,
            choice: Choice::Refuse,
        })
    }

    #[test]
    fn a_service_is_found_by_address_protocol_and_port() {
        let services = vec![service(80..=80), None, service(1000..=2000), service(443..=443)];
        let table = PreferredTable::new(services, Vec::new());
        let find = |protocol, port| table.find(IpAddr::from([203, 0, 113, 10]), protocol, port);
        for (port, wanted) in [(79, None), (80, Some(0)), (81, None), (443, Some(3))] {
            assert_eq!(find(ip::TCP, port), wanted.map(ServiceId), "port {port}");
        }
        for (port, wanted) in [(999, None), (1000, Some(2)), (2000, Some(2)), (2001, None)] {
            assert_eq!(find(ip::TCP, port), wanted.map(ServiceId), "port {port}");
        }
        assert_eq!(find(ip::UDP, 80), None);
        assert_eq!(table.find(IpAddr::from([203, 0, 113, 11]), ip::TCP, 80), None);
    }
}
