//! VIPAs in a NIC's own subnet (V8, V3, V9): who answers for them, who is told, what others claim. In both families, with Linux hosts
//! as neighbours.

mod conflict;
mod link;

use std::net::SocketAddr;

use vipa::lab::Namespace;
use vipa::wire::ip::Family;

use self::link::{Capture, Link, cached, mac, setting, vipa};
use crate::fixture::{Conversation, Peer, changes, everything, is_as, number, run, wait_until};

/// A port of the host, at the VIPA.
fn at_vipa(family: Family, peer: &Peer) -> SocketAddr {
    SocketAddr::new(vipa(family).parse().expect("an address"), peer.0)
}

/// Conversations of alice and bob with the VIPAs.
fn conversations(link: &Link, peer: &Peer) -> Vec<Conversation> {
    let open = |one: &Namespace| Family::BOTH.map(|f| Conversation::open(one, at_vipa(f, peer)));
    let all: Vec<Conversation> = [&link.alice, &link.bob].into_iter().flat_map(open).collect();
    all.iter().for_each(|one| one.goes_on(3));
    all
}

/// alice and bob begin to speak to the VIPAs, having forgotten where they are.
fn are_reached_anew(link: &Link, peer: &Peer, nic: u8) {
    link.flush_caches();
    conversations(link, peer).into_iter().for_each(Conversation::finish);
    link.waits_for_caches(nic);
}

fn announcements(link: &Link, family: Family) -> u64 {
    link.announced(family)["announced"].as_u64().unwrap_or(0)
}

/// Which NICs have a VIPA of these as an address.
fn holders(link: &Link, address: &str) -> Vec<String> {
    let shown = run(&link.host, "ip", &["-o", "addr", "show", "to", address]);
    let device = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    let mut devices: Vec<String> = shown.lines().filter_map(device).collect();
    devices.sort();
    devices
}

#[test]
fn a_neighbour_with_a_stale_cache_is_told_at_the_start() {
    let mut link = Link::new("");
    for family in Family::BOTH {
        let entry = ["neigh", "replace", vipa(family), "lladdr", "02:00:00:00:00:99"];
        for (one, device) in [(&link.alice, "a0"), (&link.bob, "b0")] {
            run(one, "ip", &[&entry[..], &["dev", device, "nud", "stale"]].concat());
        }
    }
    link.start();
    link.waits_for_caches(1);
    let peer = Peer::listen(&link.host, 7000);
    for (one, device) in [(&link.host, "eth1"), (&link.host, "eth2"), (&link.alice, "a0")] {
        one.tx_checksum(device, false).expect("ethtool");
    }
    conversations(&link, &peer).into_iter().for_each(Conversation::finish);
}

#[test]
fn announcements_come_again_and_again_and_their_echo_is_no_conflict() {
    let link = Link::new("[announce]\ninterval = \"300ms\"\n");
    let mut link = link;
    let capture = Capture::on(&link.bob, "b0", &link.scratch);
    link.start();
    for family in Family::BOTH {
        wait_until("several", || capture.announcements(family).len() > 8);
        // eth2 is on the same link, and hears each of them.
        let one = link.announced(family);
        assert!(one["announced"].as_u64() > Some(8) && one["conflict"].is_null(), "{one}");
    }
    let rejected = link.status()["announcements"]["rejected"].to_string();
    assert_eq!(rejected, "{}");
    let link = Link::started("[announce]\ninterval = \"0s\"\n");
    wait_until("the first are said", || {
        let said = |family, goal| announcements(&link, family) == goal;
        said(Family::V4, 2) && said(Family::V6, 3)
    });
}

#[test]
fn only_one_nic_of_the_link_answers() {
    let link = Link::started("");
    let capture = Capture::on(&link.alice, "a0", &link.scratch);
    let peer = Peer::listen(&link.host, 7000);
    for _ in 0..3 {
        are_reached_anew(&link, &peer, 1);
    }
    for family in Family::BOTH {
        let answers = capture.answers(family);
        let (first, other) = (mac(1).to_string(), mac(2).to_string());
        assert!(answers.len() >= 3 && answers.iter().all(|line| line.contains(&first)));
        assert!(!answers.iter().any(|line| line.contains(&other)), "{answers:#?}");
    }
    assert_eq!(["eth1", "eth2", "eth3"].map(|nic| link.arp_ignore(nic)), ["0", "1", "0"]);
    let announce = |nic| setting(&link.host, &format!("net/ipv4/conf/{nic}/arp_announce"));
    assert_eq!(["eth1", "eth2", "eth3"].map(announce), ["2", "2", "0"], "eth3 is elsewhere");
    assert_eq!(holders(&link, "10.1.1.50"), ["vipa0"]);
    assert_eq!(holders(&link, "2001:db8:1::50"), ["eth1", "vipa0"]);
    let shown = run(&link.host, "ip", &["-d", "-o", "-6", "addr", "show", "dev", "eth1"]);
    let line = shown.lines().find(|line| line.contains("2001:db8:1::50/128")).expect("a VIPA");
    assert!(line.contains("nodad") && line.contains("noprefixroute"), "{line}");
    assert!(line.contains("preferred_lft 0sec"), "{line}");
    // It is nobody's address: RIP and source rules see the NIC's own alone.
    let nic = link.status()["nics"][0]["addresses"].to_string();
    assert!(nic.contains("2001:db8:1::2/64") && !nic.contains("::50"), "{nic}");
}

/// What moves with a VIPA. alice speaks to it all the time; bob knows it and is silent, so that his kernel asks nobody.
fn moves(link: &Link, from: u8, to: u8, event: impl FnOnce()) {
    let peer = Peer::listen(&link.host, 7000);
    conversations(link, &peer).into_iter().for_each(Conversation::finish);
    link.waits_for_caches(from);
    let flows = Family::BOTH.map(|f| Conversation::open(&link.alice, at_vipa(f, &peer)));
    event();
    link.waits_for_home(to);
    link.waits_for_caches(to);
    flows.iter().for_each(|flow| flow.goes_on(20));
    wait_until("the kernel's settings are there", || {
        [from, to].map(|nic| link.arp_ignore(&format!("eth{nic}"))) == ["1", "0"]
            && holders(link, "2001:db8:1::50") == [&format!("eth{to}"), "vipa0"]
    });
    flows.into_iter().for_each(Conversation::finish);
}

#[test]
fn a_nic_that_loses_its_carrier_hands_the_vipa_over_and_does_not_take_it_back() {
    let link = Link::started("");
    let peer = Peer::listen(&link.host, 7001);
    moves(&link, 1, 2, || link.switch.link_down("h1").expect("a cable"));
    link.switch.link_up("h1").expect("a cable");
    wait_until("it is back", || link.status()["nics"][0]["state"] == "live");
    link.waits_for_home(2);
    are_reached_anew(&link, &peer, 2);
}

#[test]
fn a_nic_that_is_set_down_or_deleted_hands_the_vipa_over() {
    let link = Link::started("");
    let peer = Peer::listen(&link.host, 7001);
    conversations(&link, &peer).into_iter().for_each(Conversation::finish);
    let flows = conversations(&link, &peer);
    for event in [["link", "set", "eth1", "down"], ["link", "del", "dev", "eth1"]] {
        run(&link.host, "ip", &event);
        link.waits_for_home(2);
        link.waits_for_caches(2);
        flows.iter().for_each(|flow| flow.goes_on(20));
    }
    flows.into_iter().for_each(Conversation::finish);
}

#[test]
fn a_dead_path_on_a_live_link_hands_the_vipa_over() {
    let link = Link::started("[path]\ninterval = \"100ms\"\n");
    wait_until("the gateway answers", || {
        let paths = link.status()["paths"]["next_hops"].clone();
        let all = paths.as_array().cloned().unwrap_or_default();
        all.len() >= 4 && all.iter().all(|one| one["state"] == "up")
    });
    moves(&link, 1, 2, || link.switch.release("h1").expect("a bridge"));
    assert_eq!(link.status()["nics"][0]["state"], "no_path");
    assert!(link.host.has_carrier("eth1").expect("a NIC"));
}

#[test]
fn a_backup_gives_the_vipa_back() {
    let link = Link::new("");
    let config = link.scratch.path().join("vipa.toml");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    let text = text.replace("name = \"eth2\"", "name = \"eth2\"\nmetric = 2");
    std::fs::write(&config, text).expect("a file");
    let mut link = link;
    link.start();
    link.waits_for_home(1);
    link.switch.link_down("h1").expect("a cable");
    link.waits_for_home(2);
    link.switch.link_up("h1").expect("a cable");
    link.waits_for_home(1);
}

#[test]
fn the_kernel_answers_after_sigkill_and_the_next_forwarder_adopts_it() {
    let mut link = Link::started("");
    let peer = Peer::listen(&link.host, 7000);
    link.forwarder.kill();
    are_reached_anew(&link, &peer, 1);
    link.start();
    link.switch.link_down("h1").expect("a cable");
    link.waits_for_home(2);
    wait_until("the kernel's settings are there", || {
        link.arp_ignore("eth2") == "0" && holders(&link, "2001:db8:1::50") == ["eth2", "vipa0"]
    });
    link.switch.link_up("h1").expect("a cable");
    link.forwarder.kill();
    are_reached_anew(&link, &peer, 2);
    wait_until("eth1 has carrier", || link.host.has_carrier("eth1").expect("a NIC"));
    let said = link.forwarder.log().len();
    link.start();
    link.waits_for_home(2);
    are_reached_anew(&link, &peer, 2);
    // Routes by eth1, which came back a moment ago, the kernel may drop a moment later.
    let log = link.forwarder.log();
    let is_of_a_home = |line: &&str| {
        line.contains("put back")
            && ["10.1.1.50", "2001:db8:1::50", "arp_"].iter().any(|w| line.contains(w))
    };
    let put_back: Vec<&str> = log[said..].lines().filter(is_of_a_home).collect();
    assert!(put_back.is_empty(), "{put_back:?}");
}

#[test]
fn where_the_kernel_is_not_to_answer_for_other_devices_the_nic_has_the_vipa() {
    let mut link = Link::new("");
    link.host.sysctl("net/ipv4/conf/all/arp_ignore", 1).expect("it can be set");
    let before = everything(&link.host);
    link.start();
    let peer = Peer::listen(&link.host, 7000);
    assert_eq!(holders(&link, "10.1.1.50"), ["eth1", "vipa0"]);
    let shown = run(&link.host, "ip", &["-d", "-o", "-4", "addr", "show", "dev", "eth1"]);
    let line = shown.lines().find(|line| line.contains("10.1.1.50")).expect("a VIPA");
    assert!(line.contains("noprefixroute"), "{line}");
    let nic = link.status()["nics"][0]["addresses"].to_string();
    assert!(nic.contains("10.1.1.2/24") && !nic.contains("10.1.1.50"), "{nic}");
    are_reached_anew(&link, &peer, 1);
    link.forwarder.kill();
    are_reached_anew(&link, &peer, 1);
    link.start();
    link.switch.link_down("h1").expect("a cable");
    link.waits_for_home(2);
    wait_until("eth2 has it", || holders(&link, "10.1.1.50") == ["eth2", "vipa0"]);
    are_reached_anew(&link, &peer, 2);
    link.forwarder.kill();
    are_reached_anew(&link, &peer, 2);
    link.switch.link_up("h1").expect("a cable");
    link.down();
    is_as(&link.host, &before);
}

#[test]
fn a_change_of_that_setting_is_followed() {
    let link = Link::started("");
    assert_eq!(holders(&link, "10.1.1.50"), ["vipa0"]);
    link.host.sysctl("net/ipv4/conf/all/arp_ignore", 1).expect("it can be set");
    wait_until("eth1 has it", || holders(&link, "10.1.1.50") == ["eth1", "vipa0"]);
    link.host.sysctl("net/ipv4/conf/all/arp_ignore", 0).expect("it can be set");
    wait_until("eth1 does not have it", || holders(&link, "10.1.1.50") == ["vipa0"]);
}

#[test]
fn down_leaves_nothing_and_restores_what_was() {
    let mut link = Link::new("");
    link.host.sysctl("net/ipv4/conf/eth1/arp_ignore", 2).expect("it can be set");
    link.host.sysctl("net/ipv4/conf/eth2/arp_announce", 1).expect("it can be set");
    link.host.sysctl("net/ipv4/conf/eth2/arp_filter", 1).expect("it can be set");
    let before = everything(&link.host);
    link.start();
    link.switch.link_down("h1").expect("a cable");
    link.waits_for_home(2);
    wait_until("it has moved", || holders(&link, "2001:db8:1::50") == ["eth2", "vipa0"]);
    assert!(!changes(&link.host, &before).is_empty());
    let peer = Peer::listen(&link.host, 7000);
    are_reached_anew(&link, &peer, 2);
    link.forwarder.kill();
    link.switch.link_up("h1").expect("a cable");
    link.down();
    is_as(&link.host, &before);
}

#[test]
fn what_others_change_is_put_back() {
    let link = Link::started("");
    let peer = Peer::listen(&link.host, 7000);
    let mut repaired = number(&link.status()["router"]["repaired"]);
    for (damage, is_right) in [
        ("ip addr del 2001:db8:1::50/128 dev eth1", None),
        ("ip addr change 2001:db8:1::50/128 dev eth1 preferred_lft forever", None),
        ("sysctl -qw net.ipv4.conf.eth1.arp_ignore=1", Some(("eth1/arp_ignore", "0"))),
        ("sysctl -qw net.ipv4.conf.eth2.arp_ignore=0", Some(("eth2/arp_ignore", "1"))),
        ("sysctl -qw net.ipv4.conf.eth2.arp_announce=0", Some(("eth2/arp_announce", "2"))),
    ] {
        let words: Vec<&str> = damage.split(' ').collect();
        run(&link.host, words[0], &words[1..]);
        wait_until(damage, || match is_right {
            Some((path, value)) => setting(&link.host, &format!("net/ipv4/conf/{path}")) == value,
            None => {
                let shown = run(&link.host, "ip", &["-o", "-6", "addr", "show", "dev", "eth1"]);
                let line = shown.lines().find(|line| line.contains("2001:db8:1::50/128"));
                line.is_some_and(|line| line.contains("preferred_lft 0sec"))
            }
        });
        wait_until("it is counted", || number(&link.status()["router"]["repaired"]) > repaired);
        repaired = number(&link.status()["router"]["repaired"]);
    }
    are_reached_anew(&link, &peer, 1);
}

/// What was announced to whom: an entry of its own making is not made.
#[test]
fn who_never_asked_learns_nothing() {
    let link = Link::started("");
    wait_until("it is announced", || announcements(&link, Family::V4) > 0);
    assert_eq!(cached(&link.alice, "a0", vipa(Family::V4)), None);
}
