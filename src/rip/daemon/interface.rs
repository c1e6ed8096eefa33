//! A real interface, as the daemon is told of it, and what is behind it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::forward::view::NicId;
use crate::wire::ip::{Family, Prefix};

/// A real interface, as of now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Which `[[nic]]`.
    pub nic: NicId,
    /// Does it carry traffic?
    pub is_live: bool,
    /// Can anything be sent by it at all?
    pub has_carrier: bool,
    /// Somebody behind it who was silent answers again, and does not speak BFD yet.
    #[serde(default)]
    pub is_waking: bool,
    /// Families of which nobody behind it answers any more.
    pub silent: Vec<Family>,
    /// The kernel's index, for link-local addresses.
    pub ifindex: u32,
    /// Its addresses and the lengths of their networks; of IPv6 the link-local ones too.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Bytes of its largest packet.
    pub mtu: u32,
}

impl Interface {
    /// Nothing but its neighbour's BFD is lacking.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_waking && self.has_carrier && !self.is_live
    }

    pub(super) fn is_on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V6(address) => address.is_unicast_link_local(),
            IpAddr::V4(_) => self
                .addresses
                .iter()
                .filter_map(|(own, length)| Prefix::new(*own, *length))
                .any(|network| network.contains(address)),
        }
    }

    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|(own, _)| *own == address)
    }

    /// Of IPv6 no link-local ones: they are nobody else's business.
    pub(super) fn networks(&self) -> impl Iterator<Item = Prefix> {
        self.addresses
            .iter()
            .filter(|(address, _)| !is_link_local(*address))
            .filter_map(|(address, length)| Prefix::new(*address, *length))
    }
}

/// Of IPv6, where RIPng is spoken by such addresses.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}
