use super::*;
use crate::link::mirror::{Address, fixture};
use crate::link::plan::plan;
use crate::link::plan::tests::{config as two_nics, mirror as two_links};
use crate::wire::ethernet::MacAddr;

use NicState::{Down, HeldDown, Live, NoCarrier, NoPath};

const V4: &str = "10.1.1.50";
const V6: &str = "2001:db8:1::50";

fn vipa(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn config() -> Config {
    let mut config = two_nics();
    config.adapter.addresses = vec![vipa(V4), vipa(V6)];
    config
}

/// eth1 (1) and eth2 (2) on the link of 10.1.1.0/24 and 2001:db8:1::/64, eth2 on that of 10.1.2.0/24 too; mgmt (3) elsewhere.
fn mirror() -> Mirror {
    let mut mirror = two_links();
    for (index, link) in &mut mirror.links {
        link.mac = Some(MacAddr([2, 0, 0, 1, *index as u8, 2]));
    }
    for ifindex in [1, 2] {
        fixture::route(&mut mirror, "10.1.1.0/24", 100 + ifindex, &[(ifindex, None)]);
        fixture::route(&mut mirror, "2001:db8:1::/64", 256 + ifindex, &[(ifindex, None)]);
    }
    mirror
}

fn now(config: &Config, mirror: &Mirror, health: &Health, before: &Homes) -> Homes {
    homes(config, mirror, health, before)
}

/// Home of a VIPA.
fn home(homes: &Homes, of: &str) -> Option<u8> {
    homes.iter().find(|(place, _)| place.0 == vipa(of)).map(|(_, home)| home.nic.0)
}

fn at(nic: u8) -> Homes {
    let homes = now(&config(), &mirror(), &Health::of([Live, Live]), &Homes::new());
    homes.into_iter().map(|(place, home)| (place, Home { nic: NicId(nic), ..home })).collect()
}

/// The plan's lines about ARP and addresses of NICs.
fn lines(config: &Config, mirror: &Mirror, homes: Homes) -> Vec<String> {
    let health = Health { homes, ..Health::of([Live, Live]) };
    let text = plan(config, mirror, &health).to_string();
    let is_meant = |line: &&str| {
        line.contains("/arp_") || line.starts_with("address") && !line.ends_with("dev vipa0")
    };
    text.lines().filter(is_meant).map(str::to_owned).collect()
}

#[test]
fn the_first_nic_that_lives_is_home_and_stays_so() {
    let (config, mirror) = (config(), mirror());
    let first = now(&config, &mirror, &Health::of([Live, Live]), &Homes::new());
    assert_eq!(first.len(), 2);
    assert_eq!((home(&first, V4), home(&first, V6)), (Some(0), Some(0)));
    assert!(first.values().all(|home| home.nics == [NicId(0), NicId(1)]));
    for state in [NoCarrier, NoPath, HeldDown, Down] {
        let second = now(&config, &mirror, &Health::of([state, Live]), &first);
        assert_eq!((home(&second, V4), home(&second, V6)), (Some(1), Some(1)), "{state:?}");
        let third = now(&config, &mirror, &Health::of([Live, Live]), &second);
        assert_eq!((home(&third, V4), home(&third, V6)), (Some(1), Some(1)), "it stays");
    }
}

#[test]
fn of_those_that_do_not_live_the_nearest_to_it_is_home() {
    let (config, mirror) = (config(), mirror());
    let home_of =
        |states: [NicState; 2]| home(&now(&config, &mirror, &Health::of(states), &at(0)), V4);
    assert_eq!(home_of([NoCarrier, NoPath]), Some(1));
    assert_eq!(home_of([NoPath, HeldDown]), Some(1));
    assert_eq!(home_of([HeldDown, NoPath]), Some(0));
    assert_eq!(home_of([NoCarrier, NoCarrier]), Some(0));
}

#[test]
fn the_lower_metric_is_home_when_it_lives() {
    let (mut config, mirror) = (config(), mirror());
    config.nics[0].metric = 2;
    let home_of =
        |states: [NicState; 2]| home(&now(&config, &mirror, &Health::of(states), &at(0)), V4);
    assert_eq!(home_of([Live, Live]), Some(1));
    assert_eq!(home_of([Live, HeldDown]), Some(0));
}

#[test]
fn a_silent_family_leaves_the_nic_and_the_other_stays() {
    let (config, mirror) = (config(), mirror());
    let mut health = Health::of([Live, Live]);
    health.silent.insert((NicId(0), Family::V6));
    let homes = now(&config, &mirror, &health, &at(0));
    assert_eq!((home(&homes, V4), home(&homes, V6)), (Some(0), Some(1)));
}

#[test]
fn a_vipa_in_no_subnet_has_no_home_and_nothing_is_set() {
    let mut config = config();
    config.adapter.addresses = vec![vipa("203.0.113.10"), vipa("192.168.9.50")];
    let mut mirror = mirror();
    // Neither a gateway, nor a host's route, nor the default makes a subnet.
    fixture::route(&mut mirror, "203.0.113.0/24", 0, &[(1, Some("10.1.1.1"))]);
    fixture::route(&mut mirror, "203.0.113.10/32", 0, &[(1, None)]);
    fixture::route(&mut mirror, "0.0.0.0/0", 9, &[(1, None)]);
    let homes = now(&config, &mirror, &Health::of([Live, Live]), &Homes::new());
    assert_eq!(homes, Homes::new());
    assert_eq!(lines(&config, &mirror, homes), [""; 0]);
}

#[test]
fn a_device_without_neighbours_is_no_home() {
    let mut mirror = mirror();
    if let Some(link) = mirror.links.get_mut(&1) {
        link.is_without_neighbours = true;
    }
    let homes = now(&config(), &mirror, &Health::of([Live, Live]), &Homes::new());
    assert_eq!(home(&homes, V4), Some(1));
}

#[test]
fn each_link_that_sees_the_vipa_has_a_home() {
    let mut mirror = mirror();
    mirror.clear_routes(MAIN_TABLE, Family::V4);
    fixture::route(&mut mirror, "10.1.1.0/24", 0, &[(1, None)]);
    fixture::route(&mut mirror, "10.1.0.0/16", 0, &[(1, None), (2, None)]);
    let homes = now(&config(), &mirror, &Health::of([Live, Live]), &Homes::new());
    let of_v4: Vec<(String, u8)> = homes
        .iter()
        .filter(|(place, _)| place.0.is_ipv4())
        .map(|(place, home)| (place.1.to_string(), home.nic.0))
        .collect();
    assert_eq!(of_v4, [("10.1.0.0/16".to_owned(), 1), ("10.1.1.0/24".to_owned(), 0)]);
    let lines = lines(&config(), &mirror, homes);
    assert!(lines.iter().filter(|line| line.ends_with("arp_ignore = 0")).count() == 2, "{lines:?}");
}

#[test]
fn the_home_answers_and_the_others_do_not() {
    assert_eq!(
        lines(&config(), &mirror(), at(1)),
        [
            "address 2001:db8:1::50/128 dev eth2",
            "sysctl net/ipv4/conf/eth1/arp_ignore = 1",
            "sysctl net/ipv4/conf/eth1/arp_announce = 2",
            "sysctl net/ipv4/conf/eth1/arp_filter = 0",
            "sysctl net/ipv4/conf/eth2/arp_ignore = 0",
            "sysctl net/ipv4/conf/eth2/arp_announce = 2",
            "sysctl net/ipv4/conf/eth2/arp_filter = 0",
        ]
    );
}

#[test]
fn where_all_are_not_to_answer_for_others_the_home_has_the_vipa() {
    let mut mirror = mirror();
    mirror.arp_ignore = 1;
    let lines = lines(&config(), &mirror, at(0));
    assert_eq!(
        lines[..2],
        ["address 10.1.1.50/32 dev eth1", "address 2001:db8:1::50/128 dev eth1"]
    );
}

/// `arp_ignore` 0 would make it answer for both.
#[test]
fn a_nic_that_is_home_to_one_of_two_has_that_one() {
    let mut config = config();
    config.adapter.addresses.push(vipa("10.1.1.51"));
    let mut homes = now(&config, &mirror(), &Health::of([Live, Live]), &Homes::new());
    for (place, home) in &mut homes {
        home.nic = NicId(u8::from(place.0 == vipa("10.1.1.51")));
    }
    assert_eq!(
        lines(&config, &mirror(), homes),
        [
            "address 10.1.1.50/32 dev eth1",
            "address 10.1.1.51/32 dev eth2",
            "address 2001:db8:1::50/128 dev eth1",
            "sysctl net/ipv4/conf/eth1/arp_ignore = 1",
            "sysctl net/ipv4/conf/eth1/arp_announce = 2",
            "sysctl net/ipv4/conf/eth1/arp_filter = 0",
            "sysctl net/ipv4/conf/eth2/arp_ignore = 1",
            "sysctl net/ipv4/conf/eth2/arp_announce = 2",
            "sysctl net/ipv4/conf/eth2/arp_filter = 0",
        ]
    );
}

#[test]
fn what_an_earlier_run_left_is_found() {
    let (config, mut mirror) = (config(), mirror());
    let found = |mirror: &Mirror, values: [&str; 2]| {
        let homes =
            adopted(&config, mirror, |nic| values.get(nic.index()).map(|v| (*v).to_owned()));
        (home(&homes, V4), home(&homes, V6))
    };
    assert_eq!(found(&mirror, ["1", "0"]), (Some(1), None));
    assert_eq!(found(&mirror, ["0", "0"]), (None, None));
    assert_eq!(found(&mirror, ["1", "1"]), (None, None));
    let given = |address: &str, ifindex| Address {
        ifindex,
        address: vipa(address),
        prefix_length: Family::of(vipa(address)).bits(),
        is_narrow: false,
        is_deprecated: true,
        is_secondary: false,
        is_unusable: false,
        is_ours: true,
    };
    mirror.addresses = vec![given(V4, 9), given(V6, 9), given(V6, 2), given(V4, 1)];
    assert_eq!(found(&mirror, ["1", "1"]), (Some(0), Some(1)));
}

#[test]
fn settings_of_all_devices_that_hinder_are_named() {
    let found = |ignore: &str, filter: &str| {
        let value = |key: &str| Some(if key == "arp_filter" { filter } else { ignore }.to_owned());
        let found = hindrances(&at(0), value);
        found.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
    };
    assert_eq!(found("1", "0"), [""; 0]);
    assert_eq!(found("8", "1"), ["arp_ignore", "arp_filter"]);
    assert!(hindrances(&Homes::new(), |_| Some("8".to_owned())).is_empty());
}
