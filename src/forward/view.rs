//! What the forwarder knows of the network: an immutable snapshot that the router publishes and each
//! worker reads once a batch.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::claims::Claims;
use super::route::RouteTable;
use super::source::{SourcePolicy, Target};
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::Family;

/// A NIC's position among the `[[nic]]` of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NicId(pub u8);

impl NicId {
    /// As an index into [`NetView::nics`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A worker's number, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u8);

/// Why a NIC carries no traffic, or that it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NicState {
    /// No device of this name exists.
    Missing,
    /// It exists but is not up.
    Down,
    /// It is up without carrier.
    NoCarrier,
    /// It has carrier, and nobody behind it answers any more.
    NoPath,
    /// It came back and waits out its hold-down.
    HeldDown,
    /// It carries traffic.
    Live,
}

impl NicState {
    /// Its name in status.
    pub fn name(self) -> &'static str {
        match self {
            NicState::Missing => "missing",
            NicState::Down => "down",
            NicState::NoCarrier => "no_carrier",
            NicState::NoPath => "no_path",
            NicState::HeldDown => "held_down",
            NicState::Live => "live",
        }
    }
}

/// The place in the kernel where an XDP program looks at a NIC's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpHook {
    /// In the NIC's driver, before the kernel makes a packet of it.
    Native,
    /// In the kernel's common path, for drivers that have none.
    Generic,
}

impl XdpHook {
    /// As it is written in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            XdpHook::Native => "native",
            XdpHook::Generic => "generic",
        }
    }
}

/// One `[[nic]]` as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicView {
    /// Name of the device.
    pub name: String,
    /// The kernel's index; 0 while the device is missing.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Bytes of the largest packet it takes, without the Ethernet header.
    pub mtu: u32,
    /// Share of flows (`[[nic]] weight`).
    pub weight: u16,
    /// Only live NICs of the lowest metric carry traffic.
    pub metric: u32,
    /// Where XDP takes its small frames (`[[nic]] xdp`); `None`: nowhere.
    pub xdp: Option<XdpHook>,
    /// May flows be put on it? (`HeldDown` counts as live where nothing else is left, then `NoPath`.)
    pub is_live: bool,
    /// For status; `is_live` decides.
    pub state: NicState,
    /// Its addresses and their prefix lengths, VIPAs left out, the preferred of a family first,
    /// link-local ones left out.
    pub addresses: Vec<(IpAddr, u8)>,
}

impl NicView {
    /// Was it taken out of the configuration while the forwarder ran? Its place stays empty.
    pub fn is_gone(&self) -> bool {
        self.name.is_empty()
    }

    /// Its preferred address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().map(|(address, _)| *address).find(|a| Family::of(*a) == family)
    }
}

/// A way out: by this NIC, to this MAC address. As large as a word: its place is found without multiplying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(8))]
pub struct Way {
    /// Leaves by this NIC.
    pub nic: NicId,
    /// To this MAC address.
    pub destination: MacAddr,
}

/// A way's place in one generation of the view: what flows remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WayId(pub u16);

/// Next hops whose MAC addresses are known.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    places: HashMap<(NicId, IpAddr), u32, foldhash::fast::RandomState>,
    ways: Vec<Way>,
}

impl Neighbours {
    /// The way to a next hop, and its place; a place beyond what can be remembered is [`WayId`]'s greatest, which
    /// no flow remembers.
    pub fn find(&self, nic: NicId, address: IpAddr) -> Option<(WayId, Way)> {
        let place = *self.places.get(&(nic, address))?;
        Some((WayId(u16::try_from(place).unwrap_or(u16::MAX)), self.ways[place as usize]))
    }

    /// The way at a place of this generation.
    #[inline]
    pub fn way(&self, id: WayId) -> Option<Way> {
        self.ways.get(usize::from(id.0)).copied()
    }

    /// The same, where it lies.
    #[inline(always)]
    pub(super) fn at(&self, place: usize) -> Option<&Way> {
        self.ways.get(place)
    }

    /// One more, or another MAC address of a known one.
    pub fn insert(&mut self, (nic, address): (NicId, IpAddr), destination: MacAddr) {
        let way = Way { nic, destination };
        let next = self.ways.len() as u32;
        match *self.places.entry((nic, address)).or_insert(next) {
            place if place == next => self.ways.push(way),
            place => self.ways[place as usize] = way,
        }
    }

    /// All next hops and their MAC addresses.
    pub fn iter(&self) -> impl Iterator<Item = ((NicId, IpAddr), MacAddr)> {
        self.places.iter().map(|(hop, place)| (*hop, self.ways[*place as usize].destination))
    }

    /// Forgets them all. Places remembered under this generation of the view mean nothing any more.
    pub fn clear(&mut self) {
        self.places.clear();
        self.ways.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ways.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.ways.is_empty()
    }
}

impl FromIterator<((NicId, IpAddr), MacAddr)> for Neighbours {
    fn from_iter<I: IntoIterator<Item = ((NicId, IpAddr), MacAddr)>>(all: I) -> Neighbours {
        let mut neighbours = Neighbours::default();
        all.into_iter().for_each(|(hop, mac)| neighbours.insert(hop, mac));
        neighbours
    }
}

/// The network around the host, as of one moment.
#[derive(Clone, Debug)]
pub struct NetView {
    /// Rises by one with each view published; never 0.
    pub generation: u32,
    /// In the order of the configuration; [`NicId`] indexes it.
    pub nics: Box<[NicView]>,
    /// Prefix → next hops over NICs.
    pub routes: RouteTable,
    /// MAC addresses of the next hops, from the kernel's table.
    pub neighbours: Neighbours,
    /// FIG. 4 and its rules.
    pub source: SourcePolicy,
    /// What the forwarder owns of what arrives.
    pub claims: Claims,
}

impl NetView {
    /// The NIC `id`.
    pub fn nic(&self, id: NicId) -> &NicView {
        &self.nics[id.index()]
    }

    /// Is `address` one of a NIC's, and no VIPA?
    pub fn has_nic_address(&self, address: IpAddr) -> bool {
        self.nics.iter().any(|nic| nic.addresses.iter().any(|(a, _)| *a == address))
    }

    /// Is `address` the broadcast address of a NIC's network?
    pub fn is_broadcast(&self, address: IpAddr) -> bool {
        let is_of = |(own, length): &(IpAddr, u8)| match (own, address) {
            (IpAddr::V4(own), IpAddr::V4(address)) if *length < 31 => {
                let hosts = u32::MAX.checked_shr(u32::from(*length)).unwrap_or(0);
                u32::from(*own) | hosts == u32::from(address)
            }
            _ => false,
        };
        self.nics.iter().any(|nic| nic.addresses.iter().any(is_of))
    }

    /// Is `address` one of [`NetView::owned_addresses`]?
    pub fn owns(&self, address: IpAddr) -> bool {
        let source = &self.source;
        let is_vipa = source.vipas.contains(&address);
        let is_physical = !is_vipa && self.has_nic_address(address);
        let is_default = [source.default_v4.map(IpAddr::from), source.default_v6.map(IpAddr::from)]
            .contains(&Some(address));
        source.rules.iter().any(|rule| match rule.target {
            Target::Vipa(vipa) => vipa == address,
            Target::Physical => is_physical,
        }) || source.is_bound_forwarded && if source.sourcevipa { is_default } else { is_physical }
    }

    /// The addresses that rewritten flows may carry on the wire. On these the forwarder owns the reserved
    /// ports: the packet sockets hear them, and the kernel is kept from answering. Empty where no rule can
    /// rewrite anything. Sorted.
    pub fn owned_addresses(&self) -> Vec<IpAddr> {
        owned_addresses(&self.source, &self.nics)
    }
}

/// [`NetView::owned_addresses`], of these.
pub fn owned_addresses(source: &SourcePolicy, nics: &[NicView]) -> Vec<IpAddr> {
    let mut owned: Vec<IpAddr> = Vec::new();
    let mut physical = !source.sourcevipa && source.is_bound_forwarded;
    for rule in &source.rules {
        match rule.target {
            Target::Vipa(address) => owned.push(address),
            Target::Physical => physical = true,
        }
    }
    if source.sourcevipa && source.is_bound_forwarded {
        owned.extend(source.default_v4.map(IpAddr::from));
        owned.extend(source.default_v6.map(IpAddr::from));
    }
    if physical {
        owned.extend(nics.iter().flat_map(|nic| nic.addresses.iter().map(|a| a.0)));
    }
    owned.sort_unstable();
    owned.dedup();
    owned
}

/// The cell through which the router publishes and workers read.
pub type NetCell = Arc<ArcSwap<NetView>>;
