//! What happens in the kernel, taken into the mirror; and questions to it, where it does not tell by itself or not yet.

use std::net::IpAddr;

use super::Network;
use crate::link::mirror::Changed;
use crate::link::netlink::Notice;
use crate::link::{Error, MAIN_TABLE, Result, cached, dump, request};
use crate::wire::ip::Family;

/// Datagrams read from the listener in one go.
const DRAIN: usize = 1024;

impl Network {
    /// Takes in all that has happened since the last call.
    pub fn catch_up(&mut self) -> Result<Changed> {
        self.absorb()?;
        Ok(std::mem::take(&mut self.news))
    }

    /// Takes in what has happened; what changed by it stays to be told by [`Network::catch_up`].
    pub(super) fn absorb(&mut self) -> Result<()> {
        loop {
            let drained = self
                .events
                .drain(DRAIN)
                .map_err(|source| Error::Netlink { what: "events", source })?;
            for notice in drained.notices {
                let is_echo = self.is_echo(&notice);
                let changed = self.mirror.apply(notice);
                if !is_echo {
                    self.news.add(changed);
                }
            }
            if drained.is_overrun {
                tracing::warn!("netlink events were lost: reading the kernel's state anew");
                self.statistics.resyncs.add(1);
                self.read()?;
            } else if self.is_unread {
                self.read()?;
            } else if std::mem::take(&mut self.news.routes_uncertain) {
                // What the workers follow at once; our own tables, which may be large, by and by.
                for family in Family::BOTH {
                    dump::routes(&mut self.netlink, &mut self.mirror, MAIN_TABLE, family)?;
                }
                self.survey_routes();
                self.news.network = true;
            }
            if !drained.is_unfinished {
                return Ok(());
            }
        }
    }

    /// Reads everything anew. Where that fails, [`Network::absorb`] tries again before anybody goes by what is there.
    pub(super) fn read(&mut self) -> Result<()> {
        self.is_unread = true;
        dump::everything(&mut self.netlink, &mut self.mirror)?;
        self.is_unread = false;
        self.survey.forget();
        self.news = Changed::EVERYTHING;
        Ok(())
    }

    /// Does it tell of a route or rule that we have just set? Then there is nothing to do about it.
    fn is_echo(&self, notice: &Notice) -> bool {
        use netlink_packet_route::RouteNetlinkMessage::{DelRoute, DelRule, NewRoute, NewRule};
        matches!(notice, Notice::Route { message, asked_by, .. }
            if *asked_by == self.netlink.port()
                && matches!(**message, NewRoute(_) | DelRoute(_) | NewRule(_) | DelRule(_)))
    }

    /// Asks for the link of each NIC and of the adapter: carrier news that the kernel holds back arrive now.
    pub fn probe_links(&mut self) {
        let nics = self.config.nics.iter().filter(|nic| !nic.is_gone());
        for name in nics.map(|nic| &nic.name).chain([&self.config.adapter.name]) {
            // A device that does not exist is no news.
            for notice in self.netlink.get(request::get_link(name)).unwrap_or_default() {
                self.news.add(self.mirror.apply(notice));
            }
        }
    }

    /// Makes IPv6 sockets look their routes up anew.
    pub fn forget_cached_routes(&mut self) {
        if let Err(error) = cached::forget(&mut self.netlink) {
            self.statistics.kernel_errors.add(1);
            tracing::debug!(%error, "IPv6 connections keep the routes that they remember");
        }
    }

    /// Has the kernel resolve a neighbour, or confirm it.
    pub fn resolve(&mut self, ifindex: u32, address: IpAddr) {
        let (message, mode) = request::resolve(ifindex, address);
        if let Err(error) = self.netlink.request(message, mode) {
            self.statistics.kernel_errors.add(1);
            tracing::debug!(%address, %error, "the kernel would not resolve");
        }
        self.read_neighbour(ifindex, address);
    }

    /// Has the routes read again, by and by: the kernel changes some without a word.
    pub fn survey_routes(&mut self) {
        self.survey.begin(self.mirror.tables());
    }

    /// The kernel tells of a neighbour only once it is resolved, or cannot be.
    pub(super) fn read_neighbour(&mut self, ifindex: u32, address: IpAddr) {
        // That it is gone again is told as an event.
        for notice in self.netlink.get(request::get_neighbour(ifindex, address)).unwrap_or_default()
        {
            self.news.add(self.mirror.apply(notice));
        }
    }
}
