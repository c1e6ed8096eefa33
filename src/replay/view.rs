//! The network around a host that is not here: configuration and `[replay]` → [`NetView`].
//!
//! It is told to the mirror as a kernel would tell it, so that routes, addresses and next hops come about by the
//! same code as live. Every `[[nic]]` is there and lives, its connected routes stand in the main table, and a NIC
//! without a gateway of its own has a default route on the link.

use std::net::IpAddr;

use crate::config::{Config, ReplayNic};
use crate::forward::view::{NetView, NicState};
use crate::link::MAIN_TABLE;
use crate::link::health::Health;
use crate::link::mirror::{Address, KernelHop, KernelRoute, Link, Mirror, Neighbour, RouteKind};
use crate::link::net_view::{self, Surroundings};
use crate::link::plan::routes::reaches;
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::{Family, Prefix};

/// NUD_REACHABLE.
const REACHABLE: u16 = 0x02;

/// What replay takes for granted of one `[[nic]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its MAC address, if the configuration says it: then frames to others are not for this host.
    pub known_mac: Option<MacAddr>,
    /// The MAC address of every next hop behind it.
    pub next_hop: MacAddr,
}

/// The `[[nic]]`s, in order.
pub fn cards(config: &Config) -> Vec<Card> {
    let card = |(number, nic): (u8, &crate::config::Nic)| {
        let told = told(config, &nic.name);
        Card {
            known_mac: told.and_then(|told| told.mac),
            next_hop: told
                .and_then(|told| told.next_hop_mac)
                .unwrap_or(MacAddr([2, 0, 0, 0, 1, number])),
        }
    };
    (1..).zip(&config.nics).map(card).collect()
}

/// The view, as number 1.
pub fn view(config: &Config) -> NetView {
    let mut mirror = Mirror::new([]);
    for ((number, nic), card) in (1_u8..).zip(&config.nics).zip(cards(config)) {
        let ifindex = u32::from(number);
        let told = told(config, &nic.name);
        let link = Link {
            name: nic.name.clone(),
            is_up: true,
            has_carrier: true,
            is_tun: false,
            is_without_neighbours: false,
            mtu: told.map_or(ReplayNic::DEFAULT_MTU, |told| told.mtu),
            mac: Some(card.known_mac.unwrap_or(MacAddr([2, 0, 0, 0, 0, number]))),
        };
        mirror.links.insert(ifindex, link);
        for (address, length) in told.map_or(&[][..], |told| &told.addresses) {
            mirror.addresses.push(self::address(ifindex, *address, *length));
            let prefix = Prefix::new(*address, *length);
            if let Some(prefix) = prefix.filter(|prefix| *prefix != Prefix::host(*address)) {
                mirror.new_route(on_link(ifindex, prefix), false);
            }
        }
        for family in Family::BOTH {
            mirror.new_route(on_link(ifindex, Prefix::default_route(family)), false);
        }
        for gateway in &nic.gateways {
            let mac = Some(card.next_hop);
            let neighbour = Neighbour { mac, state: REACHABLE, is_managed: false, protocol: 0 };
            mirror.neighbours.insert((ifindex, *gateway), neighbour);
        }
    }
    let around = Surroundings {
        reaches: &reaches(config, &mirror),
        health: &Health::of(vec![NicState::Live; config.nics.len()]),
        ephemeral: &config.replay.ephemeral,
        listening: &[],
        kept: &[],
    };
    net_view::draft(config, &mirror, around, |_| false).view(1)
}

fn told<'a>(config: &'a Config, name: &str) -> Option<&'a ReplayNic> {
    config.replay.nics.iter().find(|told| told.name == name)
}

fn address(ifindex: u32, address: IpAddr, prefix_length: u8) -> Address {
    Address {
        ifindex,
        address,
        prefix_length,
        is_narrow: crate::config::is_link_local(address),
        is_deprecated: false,
        is_secondary: false,
        is_unusable: false,
        is_ours: false,
    }
}

fn on_link(ifindex: u32, prefix: Prefix) -> KernelRoute {
    KernelRoute {
        table: MAIN_TABLE,
        prefix,
        metric: 0,
        kind: RouteKind::Unicast,
        protocol: 0,
        source: None,
        next_hops: vec![KernelHop { ifindex, gateway: None, weight: 1 }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::view::NicId;
    use std::path::Path;

    fn config(more: &str) -> Config {
        let text = format!(
            r#"
[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "203.0.113.11"]
[[nic]]
name = "eth1"
gateway = "10.1.1.1"
[[nic]]
name = "eth2"
{more}"#
        );
        Config::parse(&text, Path::new("vipa.toml")).expect("a configuration").0
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let view = view(&config(""));
        assert_eq!(view.nics[0].mac, MacAddr([2, 0, 0, 0, 0, 1]));
        assert_eq!(view.nics[1].mac, MacAddr([2, 0, 0, 0, 0, 2]));
        assert!(view.nics.iter().all(|nic| nic.is_live && nic.mtu == 1500));
        assert!(view.nics.iter().all(|nic| nic.addresses.is_empty()));
        let hops = &view.routes.lookup([192, 0, 2, 1].into()).expect("a default route").next_hops;
        let ways: Vec<_> = hops.iter().map(|hop| (hop.nic, hop.gateway)).collect();
        let gateway = IpAddr::from([10, 1, 1, 1]);
        assert_eq!(ways, [(NicId(0), Some(gateway)), (NicId(1), None)]);
        let (_, way) = view.neighbours.find(NicId(0), gateway).expect("a neighbour");
        assert_eq!(way.destination, MacAddr([2, 0, 0, 0, 1, 1]));
        assert_eq!(view.source.ephemeral, Some(32_768..=60_999));
        assert_eq!(view.source.ports.len(), 4536);
    }

    #[test]
    fn what_is_told_stands_in_the_view() {
        let config = config(
            r#"
[replay]
ephemeral = "1024-2000"
[[replay.nic]]
name = "eth2"
mac = "02:aa:00:00:00:01"
next-hop-mac = "02:bb:00:00:00:01"
addresses = ["10.1.2.2/24", "203.0.113.11/24", "fe80::2/64"]
mtu = 9000
"#,
        );
        let view = view(&config);
        assert_eq!((view.nics[1].mac, view.nics[1].mtu), (MacAddr([2, 0xaa, 0, 0, 0, 1]), 9000));
        // A VIPA is nobody's address, and a link-local one is not for the wire.
        assert_eq!(view.nics[1].addresses, [(IpAddr::from([10, 1, 2, 2]), 24)]);
        let on_link = view.routes.lookup([10, 1, 2, 9].into()).expect("a connected route");
        assert_eq!((on_link.next_hops.len(), on_link.next_hops[0].nic), (1, NicId(1)));
        assert_eq!(view.source.ephemeral, Some(1024..=2000));
        let cards = cards(&config);
        assert_eq!(cards[0].known_mac, None);
        assert_eq!(cards[1].known_mac, Some(MacAddr([2, 0xaa, 0, 0, 0, 1])));
        assert_eq!(cards[1].next_hop, MacAddr([2, 0xbb, 0, 0, 0, 1]));
    }
}
