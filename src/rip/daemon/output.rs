//! What the daemon says: requests, answers, updates (RFC 2453 section 3.10, RFC 2080 section 2.5).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};

use super::interface::is_link_local;
use super::{Daemon, GROUP, Interface, MOST_WAITING, NG_GROUP, Send};
use crate::rip::table::{Origin, Route};
use crate::rip::{Advertise, Horizon, Reject, classful};
use crate::wire::ip::{Family, Prefix};
use crate::wire::rip::{
    self, Command, INFINITY, Item, MOST_ENTRIES, Message, NG_PORT, PORT, Told, Version,
};

/// What a round of updates is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    Everything,
    News,
}

/// Where to, and from which address.
type Way = (SocketAddr, Option<IpAddr>);

impl Daemon {
    /// RFC 2453 section 3.9.1: a router that comes up asks for the neighbours' tables, and tells its own.
    pub(super) fn greet(&mut self, interface: &Interface) {
        if self.nic(interface.nic).is_passive {
            return;
        }
        for version in self.spoken() {
            for (to, from) in self.everybody(interface, version) {
                let message = rip::request_for_all(version);
                self.sends.push(Send { nic: interface.nic, from, to, message });
            }
        }
        self.update(interface, About::Everything);
    }

    /// One neighbour alone.
    pub(super) fn ask(&mut self, interface: &Interface, to: SocketAddr, version: Version) {
        if !self.nic(interface.nic).is_passive && self.sends.len() < MOST_WAITING {
            let from = self.own_address(interface, to.ip(), false);
            let message = rip::request_for_all(version);
            self.sends.push(Send { nic: interface.nic, from, to, message });
        }
    }

    pub(super) fn broadcast(&mut self, about: About) {
        for interface in std::mem::take(&mut self.interfaces) {
            if interface.is_live && !self.nic(interface.nic).is_passive {
                self.update(&interface, about);
            } else if interface.has_carrier && about == About::Everything {
                // Who still hears us knows that we are here, and not to come this way.
                self.say_farewell(&interface);
            }
            self.interfaces.push(interface);
        }
    }

    pub(super) fn say_farewell(&mut self, interface: &Interface) {
        if !self.nic(interface.nic).is_passive {
            self.say(interface, About::Everything, |told| Told { metric: INFINITY, ..told });
        }
    }

    fn update(&mut self, interface: &Interface, about: About) {
        self.say(interface, about, |told| told);
    }

    /// To everybody on the link, in each version.
    fn say(&mut self, interface: &Interface, about: About, change: impl Fn(Told) -> Told) {
        for version in self.spoken() {
            let told: Vec<Told> =
                self.told(interface, about, version).into_iter().map(&change).collect();
            for to in self.everybody(interface, version) {
                self.send(interface, to, version, &told);
            }
        }
    }

    /// RFC 2453 section 3.9.1, RFC 2080 section 2.4.1. In the version that was asked in (RFC 2453 section 4.6).
    pub(super) fn answer(
        &mut self,
        message: &Message<'_>,
        interface: &Interface,
        to: SocketAddr,
        is_multicast: bool,
    ) -> Result<(), Reject> {
        if self.sends.len() >= MOST_WAITING {
            return Err(Reject::Busy);
        }
        let version = message.version;
        let port = if self.family == Family::V4 { PORT } else { NG_PORT };
        let is_query = to.port() != port;
        let from = self.own_address(interface, to.ip(), is_query && !is_multicast);
        let mut wanted = Vec::new();
        for item in message.items() {
            match item {
                Ok(Item::WholeTable) => {
                    // A silent host does not tell routers; a query from another port is a diagnosis, and is answered.
                    if self.nic(interface.nic).is_passive && !is_query {
                        return Ok(());
                    }
                    let told = self.told(interface, About::Everything, version);
                    self.send(interface, (to, from), version, &told);
                    return Ok(());
                }
                Ok(Item::Route(entry)) => wanted.push(entry),
                Err(error) => self.count(to.ip(), error.into()),
            }
        }
        // Entries asked for by name are told as they are, without split horizon; what is unknown is unreachable.
        let told: Vec<Told> = wanted
            .iter()
            .filter_map(|entry| {
                let prefix = self.prefix(entry, interface)?;
                let known = self.table.get(&prefix).filter(|route| self.is_told(route));
                let metric = known.map_or(INFINITY, |route| self.metric(route));
                Some(Told { prefix, tag: known.map_or(entry.tag, |route| route.tag), metric })
            })
            // RFC 2080 section 2.5.2: what is of the link alone is in no entry.
            .filter(|told| !is_link_local(told.prefix.address()))
            .collect();
        self.send(interface, (to, from), version, &told);
        Ok(())
    }

    fn is_told(&self, route: &Route) -> bool {
        match (&route.origin, self.settings.advertise) {
            (Origin::Virtual, _) | (_, Advertise::All) => true,
            (Origin::Real(_), advertise) => advertise == Advertise::VirtualAndReal,
            (Origin::Learned(_), _) => false,
        }
    }

    /// Before split horizon.
    fn metric(&self, route: &Route) -> u8 {
        let is_way = self.is_forwarding || !matches!(route.origin, Origin::Learned(_));
        if is_way && !self.is_withdrawn { route.metric } else { INFINITY }
    }

    /// What is told on the link of `interface`. Routes that leave by it are told as unreachable, or not at all (RFC 2453 section 3.4.3, RFC
    /// 2080 section 2.6); its own network is left out, since everybody there knows it better.
    fn told(&self, interface: &Interface, about: About, version: Version) -> Vec<Told> {
        let (nic, horizon) = (interface.nic, self.nic(interface.nic).horizon);
        let all = self.table.iter().filter(|(_, route)| self.is_told(route));
        let all = all.filter(|(_, route)| route.origin != Origin::Real(nic));
        let told = all.filter_map(|(prefix, route)| {
            let metric = match horizon {
                _ if !route.leaves_by(nic) => self.metric(route),
                Horizon::Poisoned => INFINITY,
                Horizon::Split => return None,
                Horizon::None => self.metric(route),
            };
            Some((Told { prefix: *prefix, tag: route.tag, metric }, route.is_changed))
        });
        let is_wanted = |is_news: bool| about == About::Everything || is_news;
        let only = |(told, is_news): (Told, bool)| is_wanted(is_news).then_some(told);
        if version != Version::V1 {
            return told.filter_map(only).collect();
        }
        let link: Vec<Prefix> = interface.networks().collect();
        let connected: Vec<Prefix> = self.interfaces.iter().flat_map(Interface::networks).collect();
        let told: Vec<(Told, bool)> = told.collect();
        let plain = classful::told(&told, &link, &connected, &self.vipas);
        plain.into_iter().filter_map(only).collect()
    }

    /// In as many messages as it takes; none is larger than its version allows, and there is none without a route.
    fn send(&mut self, interface: &Interface, (to, from): Way, version: Version, told: &[Told]) {
        // RFC 2453 section 4.1: a signature has the place of an entry.
        let signature = usize::from(!self.settings.keys.is_empty());
        let most = match version {
            Version::Ng => rip::ng_most(interface.mtu),
            Version::V2 => MOST_ENTRIES - signature,
            Version::V1 => MOST_ENTRIES,
        };
        for told in told.chunks(most) {
            let mut message = rip::header(Command::Response, version).to_vec();
            for told in told {
                rip::put(&mut message, version, *told);
            }
            self.sends.push(Send { nic: interface.nic, from, to, message });
        }
    }

    fn spoken(&self) -> Vec<Version> {
        let settings = &self.settings;
        let of = |is_spoken: bool, version: Version| is_spoken.then_some(version);
        [
            of(settings.is_v1, Version::V1),
            of(settings.is_v2, Version::V2),
            of(settings.is_ng, Version::Ng),
        ]
        .into_iter()
        .flatten()
        .filter(|version| version.family() == self.family)
        .collect()
    }

    /// The group; for version 1 the broadcast address. In IPv4 once for each of the NIC's networks, since neighbours believe what comes
    /// from their own alone.
    fn everybody(&self, interface: &Interface, version: Version) -> Vec<Way> {
        if version == Version::Ng {
            let group = SocketAddrV6::new(NG_GROUP, NG_PORT, 0, interface.ifindex);
            return vec![(group.into(), self.designated.get(&interface.nic).copied())];
        }
        let mut networks: Vec<Prefix> = Vec::new();
        let mut everybody = Vec::new();
        for (address, length) in &interface.addresses {
            let (IpAddr::V4(own), Some(network)) = (address, Prefix::new(*address, *length)) else {
                continue;
            };
            if networks.contains(&network) {
                continue;
            }
            networks.push(network);
            let to = match version {
                Version::V1 if *length >= 31 => continue,
                Version::V1 => Ipv4Addr::from(u32::from(*own) | u32::MAX >> length),
                _ => GROUP,
            };
            everybody.push((SocketAddr::new(to.into(), PORT), Some(*address)));
        }
        everybody
    }

    /// To speak to `peer` from. RFC 2080 section 2.5.2: link-local, but for answers to queries.
    fn own_address(&self, interface: &Interface, peer: IpAddr, is_query: bool) -> Option<IpAddr> {
        let designated = self.designated.get(&interface.nic).copied();
        if self.family == Family::V6 && !is_query {
            return designated;
        }
        let wide = interface.addresses.iter().filter(|(address, _)| !is_link_local(*address));
        let near = wide.clone().find(|(address, length)| {
            Prefix::new(*address, *length).is_some_and(|network| network.contains(peer))
        });
        near.or_else(|| wide.clone().next()).map(|(address, _)| *address).or(designated)
    }
}
