//! Version 1 knows no masks (RFC 1058 section 3.2, RFC 2453 section 3.7): what an address without one means, and which routes can be
//! told without one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::wire::ip::Prefix;
use crate::wire::rip::Told;

/// Bits of the network that an address lies in by its class; `None`: of no class that hosts have.
fn class(address: Ipv4Addr) -> Option<u8> {
    match address.octets()[0] {
        1..=126 => Some(8),
        128..=191 => Some(16),
        192..=223 => Some(24),
        _ => None,
    }
}

/// Where an entry without a mask leads, as heard on a link with these `networks`: a network by its class, a subnet if the link lies in the
/// same network, else a host.
pub(super) fn prefix(address: Ipv4Addr, networks: impl Iterator<Item = Prefix>) -> Option<Prefix> {
    let class = class(address)?;
    let network = Prefix::new(address.into(), class)?;
    let subnet = networks
        .filter(|own| own.length() > class && network.contains(own.address()))
        .map(|own| own.length())
        .min();
    let fits = |length| {
        let prefix = Prefix::new(address.into(), length)?;
        (prefix.address() == IpAddr::from(address)).then_some(prefix)
    };
    fits(class).or_else(|| fits(subnet?)).or_else(|| Prefix::new(address.into(), 32))
}

/// What can be told on a link with the networks `link`, of a host with the networks `connected`: that of `told` which a neighbour without
/// masks cannot misunderstand. Subnets stay within their network; to others it is one entry, at the metric of the nearest (RFC 2453 section
/// 3.7). What is neither is left out. The addresses `own` are told as they are: a whole network in their place would draw traffic
/// that is not for this host. Of each route: is it news?
pub(super) fn told(
    told: &[(Told, bool)],
    link: &[Prefix],
    connected: &[Prefix],
    own: &[IpAddr],
) -> Vec<(Told, bool)> {
    let mut plain: BTreeMap<Prefix, (Told, bool)> = BTreeMap::new();
    for (one, is_news) in told {
        let Some(prefix) = without_mask(one.prefix, link, connected, own) else { continue };
        let one = Told { prefix, ..*one };
        let entry = plain.entry(prefix).or_insert((one, *is_news));
        entry.1 |= *is_news;
        if one.metric < entry.0.metric {
            entry.0 = one;
        }
    }
    plain.into_values().collect()
}

fn without_mask(
    prefix: Prefix,
    link: &[Prefix],
    connected: &[Prefix],
    own: &[IpAddr],
) -> Option<Prefix> {
    let IpAddr::V4(address) = prefix.address() else { return None };
    let (length, is_host) = (prefix.length(), prefix.length() == 32);
    if length == 0 || is_host && own.contains(&prefix.address()) {
        return Some(prefix);
    }
    let class = class(address)?;
    let network = Prefix::new(address.into(), class)?;
    let is_within = |networks: &[Prefix]| networks.iter().any(|n| network.contains(n.address()));
    match length {
        // More than a network: it would be taken for one (RFC 2453 section 4.3).
        _ if length < class => None,
        _ if length == class => Some(prefix),
        32 if is_within(link) || !is_within(connected) => Some(prefix),
        _ if !is_within(link) => Some(network),
        // A subnet on a link of its own network: with the link's mask it is understood.
        _ => link
            .iter()
            .any(|own| own.length() == length && network.contains(own.address()))
            .then_some(prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().expect("a prefix")).collect()
    }

    fn on(link: &[&str], routes: &[(&str, u8)]) -> Vec<(String, u8)> {
        let routes: Vec<(Told, bool)> = routes
            .iter()
            .map(|(prefix, metric)| {
                let prefix = prefix.parse().expect("a prefix");
                (Told { prefix, tag: 0, metric: *metric }, true)
            })
            .collect();
        let connected = prefixes(&["10.1.1.0/24", "192.168.7.0/24"]);
        let own = ["10.9.9.9".parse().expect("an address")];
        told(&routes, &prefixes(link), &connected, &own)
            .into_iter()
            .map(|(told, _)| (told.prefix.to_string(), told.metric))
            .collect()
    }

    fn all(routes: &[(&str, u8)]) -> Vec<(String, u8)> {
        routes.iter().map(|(prefix, metric)| ((*prefix).to_owned(), *metric)).collect()
    }

    #[test]
    fn rfc2453_3_7_subnets_stay_within_their_network_and_are_one_entry_outside_of_it() {
        let routes = [("10.1.1.0/24", 3), ("10.1.2.0/24", 2), ("10.1.0.0/16", 1)];
        let inside = on(&["10.1.1.0/24"], &routes);
        assert_eq!(inside, all(&[("10.1.1.0/24", 3), ("10.1.2.0/24", 2)]), "of the link's mask");
        assert_eq!(on(&["192.168.7.0/24"], &routes), all(&[("10.0.0.0/8", 1)]));
    }

    #[test]
    fn rfc2453_3_7_hosts_of_a_connected_network_are_not_mentioned_in_another() {
        let routes = [("10.1.1.7/32", 2), ("172.16.0.7/32", 2), ("10.9.9.9/32", 2)];
        let inside = on(&["10.1.1.0/24"], &routes);
        assert_eq!(inside, all(&[("10.1.1.7/32", 2), ("10.9.9.9/32", 2), ("172.16.0.7/32", 2)]));
        let outside = on(&["192.168.7.0/24"], &routes);
        assert_eq!(
            outside,
            all(&[("10.0.0.0/8", 2), ("10.9.9.9/32", 2), ("172.16.0.7/32", 2)]),
            "our own addresses are told in any case"
        );
    }

    #[test]
    fn rfc2453_4_3_more_than_a_network_is_not_told() {
        let routes = [("192.168.0.0/16", 1), ("0.0.0.0/0", 1), ("172.16.0.0/16", 1)];
        assert_eq!(on(&["10.1.1.0/24"], &routes), all(&[("0.0.0.0/0", 1), ("172.16.0.0/16", 1)]));
    }
}
