//! VIPAs that lie in a NIC's own subnet: which NIC answers there, and what the kernel needs so that this one does and no other.
//!
//! Asked for one of its addresses, whichever device has it, Linux answers by every NIC in IPv4 and by none in IPv6. Several NICs on one
//! link would thus all answer, each with its own Ethernet address. So one of them is the VIPA's *home*: its `arp_ignore` is 0, that of the
//! others 1, and all have `arp_announce` 2, lest a question of theirs names the VIPA as who asks; in IPv6 the home has the VIPA as an
//! address. Where `arp_ignore` cannot be 0 (that of `all` is not, or the NIC is home to some VIPAs of its links and not to others) the
//! home has the IPv4 VIPA as an address as well. All of that works without a forwarder.
//!
//! `arp_filter` would have the kernel answer by the NIC by which it would send to who asks: with a VIPA as source that is the adapter, and
//! nobody would answer.
//!
//! A NIC whose subnet covers no VIPA stays as it is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::NicAddress;
use super::routes::nic_of;
use crate::announce::Place;
use crate::config::Config;
use crate::forward::view::{NicId, NicState};
use crate::link::MAIN_TABLE;
use crate::link::health::Health;
use crate::link::mirror::{Mirror, RouteKind};
use crate::link::sysctl::Sysctl;
use crate::wire::ip::{Family, Prefix};

/// Who answers for a VIPA on one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// This NIC.
    pub nic: NicId,
    /// All NICs on the link, this one too, in the order of `[[nic]]`.
    pub nics: Vec<NicId>,
}

/// Each VIPA on each link in whose subnet it lies.
pub type Homes = BTreeMap<Place, Home>;

/// The homes as of now. A VIPA stays where it was `before` unless a better NIC is there: one that lives before one that does not, then
/// the lower metric; the first of equals.
pub fn homes(config: &Config, mirror: &Mirror, health: &Health, before: &Homes) -> Homes {
    let home = |(place, nics): (Place, Vec<NicId>)| {
        let family = Family::of(place.0);
        let rank = |nic: &NicId| {
            let metric = config.nics.get(nic.index()).map_or(u32::MAX, |nic| nic.metric);
            (fitness(health, *nic, family), metric)
        };
        let best = nics.iter().map(rank).min()?;
        let is_best = |nic: &NicId| rank(nic) == best;
        let present = before.get(&place).map(|home| home.nic);
        let stays = present.filter(|nic| nics.contains(nic) && is_best(nic));
        let nic = stays.or_else(|| nics.iter().copied().find(is_best))?;
        Some((place, Home { nic, nics }))
    };
    links(config, mirror).into_iter().filter_map(home).collect()
}

/// The homes that an earlier run left: a NIC that has the VIPA from us, or alone answers for what is not its own.
pub fn adopted(
    config: &Config,
    mirror: &Mirror,
    arp_ignore: impl Fn(NicId) -> Option<String>,
) -> Homes {
    let is_given = |nic: NicId, vipa: IpAddr| {
        let of = |ifindex| nic_of(config, mirror, ifindex) == Some(nic);
        mirror.addresses.iter().any(|a| a.address == vipa && a.is_ours && of(a.ifindex))
    };
    let home = |(place, nics): (Place, Vec<NicId>)| {
        let given = nics.iter().copied().find(|nic| is_given(*nic, place.0));
        let answers = |nic: &NicId| arp_ignore(*nic).is_some_and(|value| value == "0");
        let alone = || {
            let mut answering = nics.iter().copied().filter(answers);
            answering.next().filter(|_| place.0.is_ipv4() && answering.next().is_none())
        };
        Some((place, Home { nic: given.or_else(alone)?, nics }))
    };
    links(config, mirror).into_iter().filter_map(home).collect()
}

/// Which NICs see each VIPA on their link: those with a route for it that needs no gateway, by the longest such route of each.
fn links(config: &Config, mirror: &Mirror) -> BTreeMap<Place, Vec<NicId>> {
    let mut links: BTreeMap<Place, Vec<NicId>> = BTreeMap::new();
    for vipa in &config.adapter.addresses {
        let mut nearest: BTreeMap<NicId, Prefix> = BTreeMap::new();
        for route in mirror.routes(MAIN_TABLE) {
            let length = route.prefix.length();
            let is_subnet = route.kind == RouteKind::Unicast
                && (1..Family::of(*vipa).bits()).contains(&length)
                && route.prefix.contains(*vipa);
            for hop in route.next_hops.iter().filter(|hop| is_subnet && hop.gateway.is_none()) {
                let Some(nic) = nic_of(config, mirror, hop.ifindex) else { continue };
                let is_link = |link: &crate::link::mirror::Link| {
                    link.mac.is_some() && !link.is_without_neighbours
                };
                if !mirror.links.get(&hop.ifindex).is_some_and(is_link) {
                    continue;
                }
                let held = nearest.entry(nic).or_insert(route.prefix);
                if held.length() < length {
                    *held = route.prefix;
                }
            }
        }
        for (nic, subnet) in nearest {
            links.entry((*vipa, subnet)).or_default().push(nic);
        }
    }
    links
}

/// The lower the better. Not [`Health::is_live`]: that asks whether any NIC of the host is better, and these are those of one link.
fn fitness(health: &Health, nic: NicId, family: Family) -> u8 {
    match health.state(nic) {
        NicState::Live if !health.silent.contains(&(nic, family)) => 0,
        NicState::Live => 1,
        NicState::HeldDown => 2,
        NicState::NoPath => 3,
        NicState::NoCarrier | NicState::Down | NicState::Missing => 4,
    }
}

/// Is this NIC home to all VIPAs that it sees?
fn is_home_to_all(homes: &Homes, nic: NicId) -> bool {
    let sees = |(place, home): &(&Place, &Home)| place.0.is_ipv4() && home.nics.contains(&nic);
    homes.iter().filter(sees).all(|(_, home)| home.nic == nic)
}

/// The VIPAs that NICs have as addresses.
pub(super) fn addresses(config: &Config, mirror: &Mirror, homes: &Homes) -> Vec<NicAddress> {
    let mut planned: Vec<NicAddress> = Vec::new();
    for ((vipa, _), home) in homes {
        let answers_anyway =
            vipa.is_ipv4() && mirror.arp_ignore == 0 && is_home_to_all(homes, home.nic);
        let Some(nic) = config.nics.get(home.nic.index()).filter(|_| !answers_anyway) else {
            continue;
        };
        let Some((ifindex, link)) = mirror.link(&nic.name) else { continue };
        // IPv6 drops the addresses of what is down.
        if !link.is_up {
            continue;
        }
        let address = NicAddress { nic: nic.name.clone(), ifindex, address: *vipa };
        if !planned.contains(&address) {
            planned.push(address);
        }
    }
    planned
}

/// Who answers ARP, and with which address who asks.
pub(super) fn sysctls(config: &Config, mirror: &Mirror, homes: &Homes) -> Vec<Sysctl> {
    let mut wanted = Vec::new();
    for (nic, id) in config.nics.iter().zip((0..).map(NicId)) {
        let is_seen = |(place, home): (&Place, &Home)| place.0.is_ipv4() && home.nics.contains(&id);
        let Some((ifindex, _)) = mirror.link(&nic.name).filter(|_| homes.iter().any(is_seen))
        else {
            continue;
        };
        let arp_ignore = if is_home_to_all(homes, id) { "0" } else { "1" };
        for (key, value) in [("arp_ignore", arp_ignore), ("arp_announce", "2"), ("arp_filter", "0")]
        {
            wanted.push(Sysctl::of_device("ipv4", &nic.name, ifindex, key, value));
        }
    }
    wanted
}

/// What settings of all devices keep the homes from answering, or the others from keeping silent; they are an operator's alone.
pub fn hindrances(
    homes: &Homes,
    of_all: impl Fn(&str) -> Option<String>,
) -> Vec<(&'static str, String)> {
    if !homes.keys().any(|(vipa, _)| vipa.is_ipv4()) {
        return Vec::new();
    }
    // 1 and 2: the NIC has the VIPA. 3 and more answer for any device's addresses, or for none.
    let hinders = |key, value: &str| match key {
        "arp_ignore" => !["0", "1", "2"].contains(&value),
        _ => value != "0",
    };
    let read = |key: &'static str| Some((key, of_all(key)?));
    ["arp_ignore", "arp_filter"]
        .into_iter()
        .filter_map(read)
        .filter(|(key, value)| hinders(*key, value.as_str()))
        .collect()
}

#[cfg(test)]
mod tests;
