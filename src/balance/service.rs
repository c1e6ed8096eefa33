//! A virtual service as it is configured: where requests arrive, which servers may have them, and by what the
//! preferred one is told.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::policy::Policy;
use super::status;
use crate::wire::ip::Family;

/// Ports of a VIPA that is given wholly to nat.
pub const GIVEN: RangeInclusive<u16> = 1024..=65_535;

/// One `[[service]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Its name, once in a configuration.
    pub name: Arc<str>,
    /// A VIPA.
    pub address: IpAddr,
    /// Ports of the VIPA; 1 to 65535: all of them.
    pub ports: RangeInclusive<u16>,
    /// IANA protocol number: TCP or UDP.
    pub protocol: u8,
    /// How requests reach the servers.
    pub mode: Mode,
    /// What is preferred (L7).
    pub policy: Policy,
    /// Where new connections go: to one server, or to all by their scores.
    pub choose: Choose,
    /// The share by which another server has to be better before it is preferred, 0 to 1.
    pub hysteresis: f64,
    /// What becomes of new connections when no server is left.
    pub when_none: WhenNone,
    /// What becomes of a dead server's connections.
    pub on_death: OnDeath,
    /// Good readings in a row until a server that was down is up, at least 1.
    pub rise: u32,
    /// Failed readings in a row until a server is down, at least 1. After the first it gets no new connections.
    pub fall: u32,
    /// How long a server that came up gets less than its share.
    pub slow_start: Duration,
    /// What is read from every server (L1).
    pub statuses: Vec<status::Settings>,
    /// The servers, in the order of the configuration: of equals the first is preferred.
    pub servers: Vec<Server>,
}

/// How requests reach the servers of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To the server's address and port, from an address of this host.
    Nat {
        /// VIPAs given wholly to this, all ports from 1024 on; empty: the default VIPA and `[source] ports`.
        sources: Vec<IpAddr>,
        /// The client's address stays, and the server routes back through this host.
        keeps_client: bool,
    },
    /// To the server's MAC address, the packet unchanged.
    Direct,
}

/// Where new connections go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choose {
    /// To the preferred server, until another is preferred (L15).
    Preferred,
    /// To all, in proportion to their scores.
    Weighted,
}

/// What becomes of new connections when no server is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenNone {
    /// They are refused.
    Refuse,
    /// They go to the server that was the last one.
    Last,
    /// They go to this one, of which nothing is read.
    Sorry(SocketAddr),
}

/// What becomes of a dead server's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDeath {
    /// Both ends are told.
    Reset,
    /// What comes next goes to another server.
    Reselect,
}

/// One `[[service.server]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Its name, once in a service.
    pub name: Arc<str>,
    /// Its address; one of this host's VIPAs: it is on this host.
    pub address: IpAddr,
    /// Its port; `None`: the one that the client asked for.
    pub port: Option<u16>,
    /// Is it on this host?
    pub is_local: bool,
    /// Its share among servers that are equal otherwise, 0 to 1000; 0: no new connections.
    pub weight: u16,
    /// What it can bear, in units of the configuration's own.
    pub capacity: Option<f64>,
    /// Where its address stands in the configuration: line and column, from 1; `(0, 0)`: it was added while running.
    pub place: (usize, usize),
}

impl Server {
    /// Does the configuration say the same of both, wherever they stand?
    pub fn is_as(&self, other: &Server) -> bool {
        *self == Server { place: self.place, ..other.clone() }
    }
}

/// What a server must not be: what was found, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found}: wanted {wanted}")]
pub struct Unfit {
    /// What is wrong.
    pub found: String,
    /// What would be right.
    pub wanted: String,
}

fn unfit(found: impl Into<String>, wanted: impl Into<String>) -> Unfit {
    Unfit { found: found.into(), wanted: wanted.into() }
}

/// `"10.2.0.2:80"`, `"[2001:db8::2]:80"`, or an address alone, as an address and the port, if there is one.
pub fn parse_endpoint(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((address, None));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return Some((inner.parse::<std::net::Ipv6Addr>().ok()?.into(), None));
    }
    let end = text.parse::<SocketAddr>().ok()?;
    // A zone has no place here: what is link-local is not reached over several NICs.
    if let SocketAddr::V6(end) = end
        && end.scope_id() != 0
    {
        return None;
    }
    (end.port() != 0).then_some((end.ip(), Some(end.port())))
}

/// Is `name` fit for a service or a server? It is typed on command lines, and `/` parts two of them.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match name.chars().find(|c| !is_fit(*c)) {
        Some(c) => Err(format!("the name {name:?} holds {c:?}")),
        None if name.is_empty() => Err("the name is empty".to_owned()),
        None if name.len() > 64 => Err(format!("the name has {} letters", name.len())),
        None => Ok(()),
    }
}

impl Settings {
    /// Is it for one port?
    pub fn port(&self) -> Option<u16> {
        (self.ports.start() == self.ports.end()).then_some(*self.ports.start())
    }

    /// Do its flows carry the default VIPA and the reserved ports towards servers?
    pub fn uses_reserved_ports(&self) -> bool {
        matches!(&self.mode, Mode::Nat { sources, keeps_client: false } if sources.is_empty())
    }

    /// Is it the same service as `other`, whatever else is set? Connections of one at another place, or reached in another way, are others.
    pub fn is_in_place_of(&self, other: &Settings) -> bool {
        let place = |of: &Settings| (of.address, of.ports.clone(), of.protocol);
        self.name == other.name && place(self) == place(other) && self.mode == other.mode
    }

    /// Do its servers see the client's address, and route back through this host?
    pub fn keeps_client(&self) -> bool {
        matches!(&self.mode, Mode::Nat { keeps_client: true, .. })
    }

    /// A status object that reads nothing of a server without `capacity`.
    pub fn wants_capacity(&self) -> Option<&status::Settings> {
        let reads_nothing = |s: &&status::Settings| s.kind == status::Kind::Fixed { value: None };
        self.statuses.iter().find(reads_nothing)
    }

    /// Does it own `port` of `address`?
    pub fn owns(&self, address: IpAddr, port: u16) -> bool {
        self.address == address && self.ports.contains(&port)
    }

    /// Do two services claim the same port?
    pub fn overlaps(&self, other: &Settings) -> bool {
        self.address == other.address
            && self.protocol == other.protocol
            && self.ports.start() <= other.ports.end()
            && other.ports.start() <= self.ports.end()
    }

    /// `"203.0.113.10:80"`, as the configuration has it.
    pub fn show_address(&self) -> String {
        let (first, last) = (self.ports.start(), self.ports.end());
        let ports = match (first, last) {
            (1, 65_535) => "*".to_owned(),
            _ if first == last => first.to_string(),
            _ => format!("{first}-{last}"),
        };
        match self.address {
            IpAddr::V4(address) => format!("{address}:{ports}"),
            IpAddr::V6(address) => format!("[{address}]:{ports}"),
        }
    }

    /// May `address` and `port` be a server of this service? `services` are all that there are, `vipas` this host's
    /// own. What depends on the network is asked elsewhere ([`super::host`]).
    ///
    /// # Errors
    /// Why not.
    pub fn fits(
        &self,
        (address, port): (IpAddr, Option<u16>),
        services: &[Settings],
        vipas: &[IpAddr],
    ) -> Result<(), Unfit> {
        if Family::of(address) != Family::of(self.address) {
            let found = format!("{address} and the service's {} are of two families", self.address);
            return Err(unfit(found, "a server of the service's family"));
        }
        let is_local = vipas.contains(&address);
        if matches!(self.mode, Mode::Direct) {
            if is_local {
                let found =
                    format!("{address} is a VIPA of this host, and mode \"direct\" is for others");
                return Err(unfit(found, "another host, or mode = \"nat\""));
            }
            if port.is_some_and(|port| self.port() != Some(port)) {
                let found = "mode \"direct\" leaves the packet as it is, and its port";
                return Err(unfit(found, "the service's port, or none"));
            }
        }
        // Whatever its protocol: nobody should have to think about which of the two is meant.
        let same = |service: &&Settings| match port {
            Some(port) => service.owns(address, port),
            None => service.address == address && service.overlaps_ports(&self.ports),
        };
        let of = services.iter().filter(|service| service.protocol == self.protocol).find(same);
        if let Some(service) = of.or_else(|| Some(self).filter(same)) {
            let found = format!("that is where the service {:?} is itself", service.name);
            return Err(unfit(found, "where the program listens: for a VIPA, another port"));
        }
        Ok(())
    }

    fn overlaps_ports(&self, ports: &RangeInclusive<u16>) -> bool {
        self.ports.start() <= ports.end() && ports.start() <= self.ports.end()
    }
}
