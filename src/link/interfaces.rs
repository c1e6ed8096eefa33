//! The NICs as others are told of them: the watch over the paths (V9), and RIP, for FIG. 3A (V6). Pure.

use std::net::IpAddr;

use super::health::Health;
use super::mirror::{Address, Mirror};
use crate::config::{Config, Nic, is_link_local};
use crate::forward::view::NicId;
use crate::path::paths::Paths;
use crate::path::{Hop, State, Target};
use crate::rip::daemon::Interface;
use crate::wire::ip::{Family, Prefix};

/// The next hops whose paths are to be watched: those behind NICs with carrier.
pub(super) fn targets(config: &Config, mirror: &Mirror, paths: &Paths) -> Vec<Target> {
    let target = |(hop, _, has_answered): (Hop, State, bool)| {
        let name = &config.nics.get(hop.0.index())?.name;
        let (ifindex, link) = mirror.link(name)?;
        let is_ready = link.is_up && link.has_carrier && !link.is_without_neighbours;
        let mac = link.mac.filter(|_| is_ready)?;
        let own = mirror.addresses.iter().filter(|a| {
            a.ifindex == ifindex && !a.is_unusable && !config.adapter.addresses.contains(&a.address)
        });
        let nearest = own
            .filter_map(|a| match a.address {
                IpAddr::V4(own) => Some((Prefix::new(a.address, a.prefix_length)?, own)),
                IpAddr::V6(_) => None,
            })
            .min_by_key(|(network, _)| !network.contains(hop.1));
        Some(Target {
            hop,
            name: name.clone(),
            ifindex,
            mac,
            source: nearest.map(|(_, own)| own),
            has_answered,
        })
    };
    paths.iter().filter_map(target).collect()
}

/// The interfaces for the routing daemon, in the order of `[[nic]]`.
pub(super) fn interfaces(
    config: &Config,
    mirror: &Mirror,
    health: &Health,
    paths: &Paths,
) -> Vec<Interface> {
    let ids = (0..).map(NicId);
    let one = |(nic, id): (&Nic, NicId)| {
        let (ifindex, link) = mirror.link(&nic.name)?;
        let mut own: Vec<&Address> = mirror
            .addresses
            .iter()
            .filter(|a| a.ifindex == ifindex && !a.is_unusable)
            .filter(|a| !a.is_narrow || is_link_local(a.address))
            .filter(|a| !config.adapter.addresses.contains(&a.address))
            .collect();
        own.sort_by_key(|a| (a.address.is_ipv6(), a.is_deprecated, a.is_secondary));
        Some(Interface {
            nic: id,
            is_live: health.is_live(id),
            has_carrier: link.is_up && link.has_carrier,
            is_waking: paths.iter().any(|(hop, state, _)| hop.0 == id && state == State::Waking),
            silent: Family::BOTH
                .into_iter()
                .filter(|family| !health.carries(id, *family))
                .collect(),
            ifindex,
            addresses: own.into_iter().map(|a| (a.address, a.prefix_length)).collect(),
            mtu: link.mtu,
        })
    };
    config.nics.iter().zip(ids).filter_map(one).collect()
}
