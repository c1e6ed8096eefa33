//! The configuration: one TOML file → typed values. A mistake has file, line and column; all mistakes of
//! a file are told in one go.

mod address;
mod announce;
pub mod difference;
mod mistake;
mod path;
mod read;
mod reader;
mod reload;
mod replay;
mod rip;
mod rules;
mod secret;
mod service;
mod status;
#[cfg(test)]
mod tests;
mod user;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::forward::flow::Shape;
use crate::forward::source::Rule;
use crate::forward::view::XdpHook;
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::Family;

pub(crate) use address::{fault_of_server, is_link_local};
pub use mistake::{Errors, Mistake, Report, Warning};
pub(crate) use reader::parse_duration as duration;
pub use user::user_id;

/// What a configuration asks of its host: does it forward this family? `None`: the host is not here.
pub type Forwards<'a> = &'a dyn Fn(&[Nic], crate::wire::ip::Family) -> Option<bool>;

/// A whole configuration, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where it was read from.
    pub file: PathBuf,
    /// `[virtual]`.
    pub adapter: Adapter,
    /// `[forwarder]`.
    pub forwarder: Forwarder,
    /// `[[nic]]`, 1 to 64. In order; after a reload those that were there before keep their places, and one that is gone leaves its
    /// place empty ([`Nic::is_gone`]): whatever speaks of a NIC by its place goes on to mean the same one.
    pub nics: Vec<Nic>,
    /// `[source]`.
    pub source: Source,
    /// `[rip]`; `None`: no RIP is spoken.
    pub rip: Option<crate::rip::Settings>,
    /// `[[service]]`, in order.
    pub services: Vec<crate::balance::service::Settings>,
    /// `[announce]`.
    pub announce: crate::announce::Settings,
    /// `[path]`.
    pub path: crate::path::Settings,
    /// `[replay]`.
    pub replay: Replay,
}

impl Config {
    /// Room that each of `workers` has for flows: the capacity's share for each family that has a VIPA, and a little
    /// for one that has none.
    pub fn shape(&self, workers: u8) -> Shape {
        let flows = self.forwarder.flows.div_ceil(u32::from(workers.max(1)));
        let of = |family| {
            let is_there = self.adapter.addresses.iter().any(|a| Family::of(*a) == family);
            if is_there { flows } else { flows.min(1024) }
        };
        Shape { v4: of(Family::V4), v6: of(Family::V6) }
    }
}

/// `[virtual]`: the virtual adapter (V1, V2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// Name of the TUN device.
    pub name: String,
    /// The VIPAs; the first of a family is the default source.
    pub addresses: Vec<IpAddr>,
    /// `table`: routing table of the pairs of routes; those behind it are for rules that yield another VIPA, in
    /// the order of `addresses`. Default 923.
    pub table: u32,
    /// `preference`: of our first policy rule; a hundred are ours. Default 9230.
    pub preference: u32,
    /// `protect`: keep other programs from changing our nftables tables, where the kernel can. Default true.
    pub is_protected: bool,
}

/// `[forwarder]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarder {
    /// Worker threads, 1 to 64.
    pub workers: u8,
    /// Capacity of the flow table for each family, all workers together; memory is fixed at start.
    pub flows: u32,
}

/// One `[[nic]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Name of the device; it may be missing, come and go.
    pub name: String,
    /// `gateway`: at most one of a family is usual; empty: the kernel's routes decide.
    pub gateways: Vec<IpAddr>,
    /// Share of flows, 1 to 1000.
    pub weight: u16,
    /// Only live NICs of the lowest metric carry traffic.
    pub metric: u32,
    /// How long a NIC that returned waits before it carries flows again.
    pub hold_down: Duration,
    /// Where XDP takes small frames for services; `None` (`"off"`): nowhere.
    pub xdp: Option<XdpHook>,
}

impl Nic {
    /// Was it taken out of the configuration while the forwarder ran?
    pub fn is_gone(&self) -> bool {
        self.name.is_empty()
    }

    /// In the place of one that is gone.
    fn gone() -> Nic {
        let (name, gateways) = (String::new(), Vec::new());
        Nic { name, gateways, weight: 1, metric: u32::MAX, hold_down: Duration::ZERO, xdp: None }
    }
}

/// `[source]`: FIG. 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Step 415.
    pub sourcevipa: bool,
    /// Source ports of rewritten flows.
    pub ports: RangeInclusive<u16>,
    /// How long a dead forwarder's rewritten flows are kept from leaving un-rewritten.
    pub hold: Duration,
    /// `bound = "forward"`: FIG. 4 applies to sockets bound to a NIC's address as well.
    pub is_bound_forwarded: bool,
    /// `[[source.rule]]` in order.
    pub rules: Vec<Rule>,
}

/// `[replay]`: what `vipa replay` cannot ask a kernel for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// `ephemeral`, in place of `ip_local_port_range`: a UDP source port outside it marks an answer.
    pub ephemeral: RangeInclusive<u16>,
    /// `[[replay.nic]]`; those of `[[nic]]` that are not among them have the defaults.
    pub nics: Vec<ReplayNic>,
}

impl Default for Replay {
    /// The kernel's own range, and no card.
    fn default() -> Replay {
        Replay { ephemeral: 32_768..=60_999, nics: Vec::new() }
    }
}

/// One `[[replay.nic]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayNic {
    /// The `[[nic]]` that it speaks of.
    pub name: String,
    /// Its MAC address. Left out: one made up, and frames to any address are taken for its own.
    pub mac: Option<MacAddr>,
    /// The MAC address of whatever is behind it.
    pub next_hop_mac: Option<MacAddr>,
    /// Its addresses and their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Bytes of the largest packet it takes.
    pub mtu: u32,
}

impl ReplayNic {
    /// `mtu` where it is left out.
    pub const DEFAULT_MTU: u32 = 1500;
}
