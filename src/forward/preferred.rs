//! The preferred-server table (L10, L15): where a new connection to each virtual service goes. An immutable
//! snapshot; the monitor thread is its only writer, workers read it once a batch.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hashbrown::HashMap;

use super::view::WorkerId;

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
    /// Ports that may be given to flows, in order; `None`: the reserved ones ([`super::source::SourcePolicy`]).
    pub ports: Option<Arc<[u16]>>,
}

impl Source {
    /// Its ports, where `reserved` are the reserved ones.
    pub fn ports<'a>(&'a self, reserved: &'a [u16]) -> &'a [u16] {
        self.ports.as_deref().unwrap_or(reserved)
    }
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
#[derive(Clone, Debug)]
pub struct Server {
    /// The service that it serves.
    pub service: ServiceId,
    /// Its address; one of this host's VIPAs: the server is on this host.
    pub address: IpAddr,
    /// Its port; `None`: the one that the client asked for.
    pub port: Option<u16>,
    /// Is it on this host?
    pub is_local: bool,
    /// What becomes of its connections.
    pub fate: Fate,
    /// What the flow table knows of it.
    pub counters: Arc<ServerCounters>,
}

/// What the flow table knows of a server, read by status objects (`kind = "flows"`) and status.
#[derive(Debug, Default)]
pub struct ServerCounters(Box<[WorkerCounters]>);

/// What one worker counts of a server. Aligned so that no two workers write to one cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct WorkerCounters {
    created: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    packets: AtomicU64,
}

impl ServerCounters {
    /// Counters of so many workers, all zero.
    pub fn new(workers: u8) -> ServerCounters {
        ServerCounters((0..workers).map(|_| WorkerCounters::default()).collect())
    }

    /// Flows that it has.
    pub fn active(&self) -> u64 {
        self.created().saturating_sub(self.sum(|counters| &counters.ended))
    }

    /// Flows that it ever got, those adopted from an earlier process among them.
    pub fn created(&self) -> u64 {
        self.sum(|counters| &counters.created)
    }

    /// Flows that it never answered.
    pub fn failed(&self) -> u64 {
        self.sum(|counters| &counters.failed)
    }

    /// Bytes of IP packets in both directions, as far as they pass here.
    pub fn bytes(&self) -> u64 {
        self.sum(|counters| &counters.bytes)
    }

    /// Packets in both directions; a super-packet counts once.
    pub fn packets(&self) -> u64 {
        self.sum(|counters| &counters.packets)
    }

    /// What a worker counts.
    #[inline]
    pub(crate) fn of(&self, worker: WorkerId) -> Option<&WorkerCounters> {
        self.0.get(usize::from(worker.0))
    }

    fn sum(&self, count: impl Fn(&WorkerCounters) -> &AtomicU64) -> u64 {
        self.0.iter().map(|counters| count(counters).load(Relaxed)).sum()
    }
}

impl WorkerCounters {
    pub(crate) fn began(&self) {
        add(&self.created, 1);
    }

    pub(crate) fn ended(&self, has_failed: bool) {
        add(&self.ended, 1);
        add(&self.failed, u64::from(has_failed));
    }

    #[inline]
    pub(crate) fn carried(&self, bytes: usize) {
        add(&self.bytes, bytes as u64);
        add(&self.packets, 1);
    }
}

/// One thread alone writes.
#[inline]
fn add(count: &AtomicU64, n: u64) {
    count.store(count.load(Relaxed).wrapping_add(n), Relaxed);
}

/// All virtual services and their servers.
#[derive(Clone, Debug, Default)]
pub struct PreferredTable {
    /// Rises by one with each table published.
    pub generation: u32,
    services: Vec<Option<Arc<Service>>>,
    servers: Vec<Option<Server>>,
    /// Counters of those servers whose connections go on, by the same places, of which [`NOBODY`] is none.
    kept: Vec<Option<Arc<ServerCounters>>>,
    index: Arc<Index>,
    /// Those of services.
    addresses: Arc<[IpAddr]>,
    /// What served flows carry towards servers.
    sources: Arc<[Source]>,
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
        let mut addresses: Vec<IpAddr> = index.keys().map(|(address, _)| *address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut sources: Vec<Source> = Vec::new();
        for service in services.iter().flatten() {
            let Mode::Nat { sources: own } = &service.mode else { continue };
            for source in own.iter() {
                if !sources.contains(source) {
                    sources.push(source.clone());
                }
            }
        }
        let (index, addresses, sources) = (Arc::new(index), addresses.into(), sources.into());
        let kept = servers.iter().take(NOBODY).map(kept).collect();
        PreferredTable { generation: 0, services, servers, kept, index, addresses, sources }
    }

    /// The same table with another choice for one service. Costs a pointer's copy for each service.
    pub fn set_choice(&mut self, id: ServiceId, choice: Choice) {
        if let Some(Some(service)) = self.services.get_mut(usize::from(id.0)) {
            Arc::make_mut(service).choice = choice;
        }
    }

    /// The same table with another fate for the connections of one server.
    pub fn set_fate(&mut self, id: ServerId, fate: Fate) {
        let at = usize::from(id.0);
        if let Some(Some(server)) = self.servers.get_mut(at) {
            server.fate = fate;
            let kept_now = kept(&self.servers[at]);
            if let Some(kept) = self.kept.get_mut(at) {
                *kept = kept_now;
            }
        }
    }

    /// The service that owns `port` of `address` for `protocol`.
    pub fn find(&self, address: IpAddr, protocol: u8, port: u16) -> Option<ServiceId> {
        let place = self.index.get(&(address, protocol))?;
        let behind = place.partition_point(|(ports, _)| *ports.start() <= port);
        let (ports, id) = place.get(behind.checked_sub(1)?)?;
        ports.contains(&port).then_some(*id)
    }

    /// May served flows have this source? `reserved` are the reserved ports.
    pub fn is_source(&self, address: IpAddr, port: u16, reserved: &[u16]) -> bool {
        self.sources.iter().any(|source| {
            source.address == address && source.ports(reserved).binary_search(&port).is_ok()
        })
    }

    /// Has any service this address?
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// A service.
    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(usize::from(id.0))?.as_deref()
    }

    /// The server of `service` that listens at this address and port, if it is known.
    pub fn server_at(&self, service: ServiceId, address: IpAddr, port: u16) -> Option<ServerId> {
        let is_it = |server: &Server| {
            server.service == service
                && server.address == address
                && server.port.is_none_or(|own| own == port)
        };
        let at = self.servers.iter().position(|server| server.as_ref().is_some_and(is_it))?;
        Some(ServerId(at as u16))
    }

    /// A server; `None` once it was removed.
    #[inline]
    pub fn server(&self, id: ServerId) -> Option<&Server> {
        self.servers.get(usize::from(id.0))?.as_ref()
    }

    /// Counters of a server whose connections go on.
    #[inline(always)]
    pub(super) fn kept(&self, id: ServerId) -> Option<&ServerCounters> {
        self.kept.get(usize::from(id.0))?.as_deref()
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

/// The place of nobody: flows have it as their server's where that is not known.
const NOBODY: usize = u16::MAX as usize;

fn kept(server: &Option<Server>) -> Option<Arc<ServerCounters>> {
    let is_kept = |server: &&Server| server.fate == Fate::Kept;
    server.as_ref().filter(is_kept).map(|server| Arc::clone(&server.counters))
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

    #[test]
    fn a_server_is_kept_while_its_connections_go_on() {
        let server = Server {
            service: ServiceId(0),
            address: IpAddr::from([10, 0, 0, 1]),
            port: None,
            is_local: false,
            fate: Fate::Kept,
            counters: Arc::new(ServerCounters::new(1)),
        };
        let mut table = PreferredTable::new(Vec::new(), vec![None, Some(server)]);
        assert!(table.kept(ServerId(0)).is_none());
        assert!(table.kept(ServerId(1)).is_some());
        for (fate, is_kept) in [(Fate::Reset, false), (Fate::Kept, true), (Fate::Reselect, false)] {
            table.set_fate(ServerId(1), fate);
            assert_eq!(table.kept(ServerId(1)).is_some(), is_kept, "{fate:?}");
        }
    }
}
