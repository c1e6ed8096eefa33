//! The nftables rules (stub).

use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::engine::message::HeldFlow;

/// What the tables should say.
#[derive(PartialEq, Clone, Debug)]
pub struct NftRules {
    /// NICs that exist now.
    pub nics: Vec<String>,
    /// Addresses on which the forwarder owns the reserved ports.
    pub owned: Vec<IpAddr>,
    /// The reserved ports.
    pub ports: RangeInclusive<u16>,
    /// `ip_local_port_range`.
    pub ephemeral: RangeInclusive<u16>,
    /// Sources that may be undecided.
    pub sources: Vec<IpAddr>,
    /// Rules that the forwarder applies.
    pub rules: Vec<crate::forward::source::Rule>,
    /// How long the lease lasts.
    pub hold: Duration,
}

/// Our tables.
#[derive(Debug)]
pub struct Nft;

impl Nft {
    /// Opens the netlink sockets.
    pub fn open(_adapter: &str, _is_protected: bool) -> io::Result<Nft> {
        Ok(Nft)
    }
    /// Makes the tables say `rules`; true if anything was missing or changed.
    pub fn ensure(&mut self, _rules: &NftRules) -> io::Result<bool> {
        Ok(false)
    }
    /// Ports on which a socket of this host listens.
    pub fn spare_ports(&mut self, _ports: impl IntoIterator<Item = u16>) {}
    /// Renews the lease.
    pub fn renew_lease(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Adds to and removes from the set of held flows.
    pub fn hold(&mut self, _add: &[HeldFlow], _remove: &[HeldFlow]) -> io::Result<()> {
        Ok(())
    }
    /// Readable when nftables changed.
    pub fn event_fd(&self) -> RawFd {
        -1
    }
    /// True if others touched our tables.
    pub fn drain_events(&mut self) -> bool {
        false
    }
    /// Deletes our tables.
    pub fn remove(_adapter: &str) -> io::Result<()> {
        Ok(())
    }
}
