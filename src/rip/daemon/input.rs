//! What the daemon hears: whom it believes (RFC 2453 section 3.9, RFC 2080 section 2.4), and what it learns of that.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use super::{Daemon, Datagram, Interface, NEIGHBOURS};
use crate::rip::table::{Full, Heard};
use crate::rip::{Reject, classful};
use crate::wire::ip::{Family, Prefix};
use crate::wire::rip::{self, Command, Entry, INFINITY, Item, Message, NG_PORT, PORT, Version};

impl Daemon {
    /// Takes a datagram in.
    pub fn receive(&mut self, datagram: Datagram<'_>, now: Instant) {
        if let Err(reject) = self.take_in(datagram, now) {
            self.count(datagram.source.ip(), reject);
        }
    }

    pub(super) fn count(&mut self, neighbour: IpAddr, reject: Reject) {
        // Senders are anybody's to make up; past the bound they share one line.
        let is_known = self.rejects.contains_key(&(neighbour, reject));
        let neighbour = if is_known || self.rejects.len() < NEIGHBOURS {
            neighbour
        } else {
            self.family.unspecified()
        };
        *self.rejects.entry((neighbour, reject)).or_default() += 1;
    }

    fn take_in(&mut self, datagram: Datagram<'_>, now: Instant) -> Result<(), Reject> {
        let source = datagram.source.ip();
        let found = self.interfaces.iter().find(|interface| interface.nic == datagram.nic);
        let interface = found.filter(|interface| interface.is_live).ok_or(Reject::NotLive)?.clone();
        if self.interfaces.iter().any(|interface| interface.is_own(source)) {
            // Our own multicast, heard by another NIC on the same link (RFC 2453 section 3.9.2).
            return Ok(());
        }
        let is_neighbour = interface.is_on_link(source);
        // RFC 2080 section 2.4.1: a query, but not a router, may have an address that is not of the link alone.
        if !is_neighbour && !interface.networks().any(|network| network.contains(source)) {
            return Err(Reject::NotOnLink);
        }
        let message = Message::parse(datagram.message?, self.family)?;
        let is_spoken = match message.version {
            Version::V1 => self.settings.is_v1,
            Version::V2 => self.settings.is_v2,
            Version::Ng => self.settings.is_ng,
        };
        if !is_spoken {
            return Err(Reject::Version);
        }
        let port = if self.family == Family::V4 { PORT } else { NG_PORT };
        let is_from_router = datagram.source.port() == port;
        if !is_neighbour && (is_from_router || message.command == Command::Response) {
            return Err(Reject::NotOnLink);
        }
        match message.command {
            Command::Response if !is_from_router => return Err(Reject::Port),
            // RFC 2080 section 2.4.2: of what is multicast 255 shows that no router has forwarded it. An answer to us alone (FRR's
            // have 64) comes from a link-local address, which none forwards either.
            Command::Response
                if self.family == Family::V6 && datagram.is_multicast && datagram.ttl != 255 =>
            {
                return Err(Reject::HopLimit);
            }
            _ => {}
        }
        match message.command {
            Command::Request => {
                self.answer(&message, &interface, datagram.source, datagram.is_multicast)?;
                let is_for_all = matches!(message.items().next(), Some(Ok(Item::WholeTable)));
                // Who asks everybody: a question to us alone is itself asked back, and would be again.
                let is_new = datagram.is_multicast && is_from_router && is_for_all;
                if is_new && self.asking.owes_an_answer(interface.nic, source) {
                    self.ask(&interface, datagram.source, message.version);
                }
            }
            Command::Response => {
                if !datagram.is_multicast {
                    self.asking.answers(interface.nic, source);
                }
                self.learn(&message, &interface, source, now);
                self.next_aging = self.next_aging.min(now + self.settings.timeout);
                if self.table.is_changed() {
                    self.trigger(now);
                }
            }
        }
        Ok(())
    }

    /// RFC 2453 section 3.9.2, RFC 2080 section 2.4.2.
    fn learn(
        &mut self,
        message: &Message<'_>,
        interface: &Interface,
        neighbour: IpAddr,
        now: Instant,
    ) {
        for item in message.items() {
            let taken = match item {
                Ok(Item::Route(entry)) => self.learn_entry(&entry, interface, neighbour, now),
                // In a response it is the default route of a neighbour that lost it (RIPng writes it the same way).
                Ok(Item::WholeTable) => Ok(()),
                Err(error) => self.lost_default(error, interface, neighbour, now),
            };
            if let Err(reject) = taken {
                self.count(neighbour, reject);
            }
        }
    }

    /// RIPng's default route at metric 16 has the very bytes of a request for everything.
    fn lost_default(
        &mut self,
        error: rip::Malformed,
        interface: &Interface,
        neighbour: IpAddr,
        now: Instant,
    ) -> Result<(), Reject> {
        if self.family == Family::V4 || error != rip::Malformed::AddressFamily {
            return Err(error.into());
        }
        let address = Ipv6Addr::UNSPECIFIED.into();
        let metric = u32::from(INFINITY);
        let entry = Entry { address, length: Some(0), tag: 0, next_hop: None, metric };
        self.learn_entry(&entry, interface, neighbour, now)
    }

    fn learn_entry(
        &mut self,
        entry: &Entry,
        interface: &Interface,
        neighbour: IpAddr,
        now: Instant,
    ) -> Result<(), Reject> {
        let metric =
            u8::try_from(entry.metric).ok().filter(|metric| (1..=INFINITY).contains(metric));
        let metric = metric.ok_or(Reject::Metric)?;
        let prefix = self.prefix(entry, interface).ok_or(Reject::Destination)?;
        if !is_destination(prefix) {
            return Err(Reject::Destination);
        }
        let accept = &self.settings.accept;
        let is_within =
            |wide: &Prefix| wide.contains(prefix.address()) && wide.length() <= prefix.length();
        let mut of_family = accept.iter().filter(|a| a.family() == self.family).peekable();
        if !accept.is_empty() && (of_family.peek().is_none() || !of_family.any(is_within)) {
            return Err(Reject::Filtered);
        }
        // A next hop that is not on this link, or is ourselves, means the sender.
        let named = entry.next_hop.filter(|hop| {
            interface.is_on_link(*hop) && !interface.is_own(*hop) && !self.vipas.contains(hop)
        });
        let heard = Heard {
            prefix,
            metric: metric.saturating_add(self.nic(interface.nic).cost).min(INFINITY),
            tag: entry.tag,
            nic: interface.nic,
            neighbour,
            gateway: named.unwrap_or(neighbour),
        };
        let (expires, garbage) = (now + self.settings.timeout, now + self.settings.garbage);
        self.table
            .hear(heard, self.settings.most_routes, expires, garbage)
            .map_err(|Full| Reject::TooMany)
    }

    /// Where an entry leads. Version 1, and version 2 without a mask (RFC 2453 section 4.3), leave it to the NIC's own mask or the
    /// address's class.
    pub(super) fn prefix(&self, entry: &Entry, interface: &Interface) -> Option<Prefix> {
        match (entry.length, entry.address) {
            (Some(length), address) => Prefix::new(address, length),
            (None, IpAddr::V4(address)) => classful::prefix(address, interface.networks()),
            (None, IpAddr::V6(_)) => None,
        }
    }
}

/// RFC 2453 section 3.9.2: unicast, not net 0 (the default route aside), not net 127; nor of one link alone.
fn is_destination(prefix: Prefix) -> bool {
    match prefix.address() {
        IpAddr::V4(_) if prefix.length() == 0 => true,
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            (1..=223).contains(&first) && first != 127 && !address.is_link_local()
        }
        IpAddr::V6(address) => {
            let is_loopback = address.is_loopback() && prefix.length() == 128;
            let is_unspecified = address.is_unspecified() && prefix.length() != 0;
            !address.is_multicast()
                && !address.is_unicast_link_local()
                && !is_loopback
                && !is_unspecified
        }
    }
}
