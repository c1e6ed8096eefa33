//! What is around VIPAs in a NIC's own subnet beside the plan: settings that netlink does not tell of, and what is to be announced.

use std::collections::BTreeMap;

use super::mirror::Mirror;
use super::plan::homes::{self, Home, Homes};
use super::sysctl;
use crate::announce::Place;
use crate::announce::announcer::Spot;
use crate::announce::speaker::{Nic, Scene};
use crate::config::Config;
use crate::forward::view::NicId;
use crate::wire::ethernet::MacAddr;

/// The VIPAs that are to be announced, and the NICs to do so: those with carrier.
pub(super) fn scene(config: &Config, mirror: &Mirror, homes: &Homes) -> Scene {
    let mac = |nic: NicId| {
        let (_, link) = mirror.link(&config.nics.get(nic.index())?.name)?;
        link.mac.filter(|_| link.is_up && link.has_carrier)
    };
    let spot = |(place, home): (&Place, &Home)| {
        let nics = home.nics.iter().copied().filter(|nic| mac(*nic).is_some()).collect();
        (*place, Spot { home: mac(home.nic).map(|mac| (home.nic, mac)), nics })
    };
    let spots: BTreeMap<Place, Spot> = homes.iter().map(spot).collect();
    let nic = |(nic, id): (&crate::config::Nic, NicId)| {
        let (ifindex, _) = mirror.link(&nic.name)?;
        let is_used = spots.values().any(|spot| spot.nics.contains(&id));
        is_used.then(|| Nic { nic: id, name: nic.name.clone(), ifindex })
    };
    let macs = mirror.links.values().filter_map(|link| link.mac);
    Scene {
        nics: config.nics.iter().zip((0..).map(NicId)).filter_map(nic).collect(),
        own: macs.filter(|mac| *mac != MacAddr::default()).collect(),
        spots,
    }
}

/// Tells which NICs answer from now on.
pub(super) fn tell(config: &Config, now: &Homes, before: &Homes) {
    for (place, home) in now {
        if before.get(place).map(|before| before.nic) != Some(home.nic) {
            let nic = config.nics.get(home.nic.index()).map(|nic| nic.name.as_str());
            tracing::info!(vipa = %place.0, subnet = %place.1, nic, "is answered for by");
        }
    }
}

/// `arp_ignore` of all devices.
pub(super) fn arp_ignore_of_all() -> u8 {
    read("all", "arp_ignore").and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// The homes as an earlier run left them.
pub(super) fn left_homes(config: &Config, mirror: &Mirror) -> Homes {
    let arp_ignore = |nic: NicId| read(&config.nics.get(nic.index())?.name, "arp_ignore");
    homes::adopted(config, mirror, arp_ignore)
}

/// Settings of all devices that keep the kernel from answering by the homes alone, in the words of `sysctl`.
pub(super) fn hindrances(now: &Homes) -> Vec<String> {
    let found = homes::hindrances(now, |key| read("all", key)).into_iter();
    found.map(|(key, value)| format!("net.ipv4.conf.all.{key} = {value}")).collect()
}

fn read(device: &str, key: &str) -> Option<String> {
    sysctl::read(&format!("net/ipv4/conf/{device}/{key}")).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::health::Health;
    use crate::link::mirror::fixture;
    use crate::link::plan::tests::{config, mirror};

    #[test]
    fn only_nics_with_carrier_announce_and_hear() {
        let mut config = config();
        config.adapter.addresses = vec!["10.1.1.50".parse().expect("an address")];
        let mut mirror = mirror();
        for (index, link) in &mut mirror.links {
            link.mac = Some(MacAddr([2, 0, 0, 0, 0, *index as u8]));
        }
        fixture::route(&mut mirror, "10.1.1.0/24", 9, &[(2, None)]);
        let health = Health::of([crate::forward::view::NicState::Live; 2]);
        let homes = homes::homes(&config, &mirror, &health, &Homes::new());
        let seen = scene(&config, &mirror, &homes);
        let spot = seen.spots.values().next().expect("a VIPA on a link");
        assert_eq!(spot.home, Some((NicId(0), MacAddr([2, 0, 0, 0, 0, 1]))));
        assert_eq!(seen.nics.len(), 2);
        assert_eq!(seen.own.len(), mirror.links.len());
        if let Some(link) = mirror.links.get_mut(&1) {
            link.has_carrier = false;
        }
        let seen = scene(&config, &mirror, &homes);
        let spot = seen.spots.values().next().expect("a VIPA on a link");
        assert_eq!((spot.home, seen.nics.len()), (None, 1));
        assert_eq!(spot.nics, [NicId(1)].into());
    }
}
