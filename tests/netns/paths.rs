//! Is the path alive (V9)? It dies while its link stays up: both ways, one way, for one family; and heals.

use vipa::lab::topology::nic_name;
use vipa::wire::ip::Family;

use crate::fixture::{Bench, Conversation, Peer, Setup, wait_until};
use crate::rip::daemon::{Daemon, Kind, Signed};
use crate::rip::{RIP, waits_for_ways, ways};

const SOON: &str = "interval = \"100ms\"";
const BFD: &str =
    "probe = \"bfd\"\n[path.bfd]\ntransmit = \"50ms\"\nreceive = \"50ms\"\nmultiplier = 5\n";
const BIRD: &str = "interval 50 ms; multiplier 5;";

fn flows(bench: &Bench, peer: &Peer, of_each: usize) -> Vec<Conversation> {
    let open = |family| Conversation::open(&bench.network.host, peer.address(family));
    let flows: Vec<_> = (0..of_each).flat_map(|_| Family::BOTH.map(open)).collect();
    flows.iter().for_each(|flow| flow.goes_on(5));
    flows
}

fn state(bench: &Bench, address: &str) -> String {
    let paths = bench.status()["paths"]["next_hops"].clone();
    let found = paths.as_array().and_then(|all| all.iter().find(|one| one["address"] == address));
    found.and_then(|one| one["state"].as_str()).unwrap_or("").to_owned()
}

/// Frames by the NIC, out and in.
fn frames(bench: &Bench, nic: u8) -> (u64, u64) {
    let counters = bench.network.host.counters(&nic_name(nic)).expect("a NIC");
    (counters.tx_frames, counters.rx_frames)
}

/// Out and in they leave the dead path and no connection notices; healed, it is used again, out and in.
fn lives_through_a_dead_path(kind: Kind, signed: Signed, path: &str) {
    let setup = Setup::new(2).rip(RIP).path(path);
    let mut bench = Bench::prepare(&setup);
    let _daemon = Daemon::start(kind, &bench.network, signed);
    bench.start_forwarder();
    waits_for_ways(&bench, &[1, 2]);
    let peer = Peer::listen(&bench.network.client, 7000);
    let flows = flows(&bench, &peer, 6);
    let gateways = ["10.1.1.1", "2001:db8:1::1"];
    if !path.contains("bfd") {
        for gateway in gateways {
            wait_until("the gateways answer", || state(&bench, gateway) == "up");
        }
    }
    wait_until("the paths are known", || {
        let paths = bench.status()["paths"]["next_hops"].clone();
        let of = |nic: &str| {
            let all = paths.as_array().cloned().unwrap_or_default();
            all.iter().filter(|one| one["nic"] == nic && one["state"] == "up").count()
        };
        of("eth1") > 1 && of("eth2") > 1
    });

    bench.network.break_path(1).expect("a cable");
    bench.waits_for_state(1, "no_path");
    waits_for_ways(&bench, &[2]);
    let before = frames(&bench, 2);
    flows.iter().for_each(|flow| flow.goes_on(20));
    let after = frames(&bench, 2);
    assert!(after.0 > before.0 + 100 && after.1 > before.1 + 100, "{before:?} {after:?}");

    bench.network.mend_path(1).expect("a cable");
    bench.waits_for_state(1, "live");
    waits_for_ways(&bench, &[1, 2]);
    let before = frames(&bench, 1);
    flows.iter().for_each(|flow| flow.goes_on(20));
    let after = frames(&bench, 1);
    assert!(after.0 > before.0 + 50 && after.1 > before.1 + 50, "{before:?} {after:?}");
    flows.into_iter().for_each(Conversation::finish);
    let rejected = bench.status()["paths"]["rejected"].clone();
    // A neighbour may speak BFD to us before we know of it.
    let is_known = |reason: &String| path.contains("bfd") && reason == "no_session";
    assert!(rejected.as_object().is_some_and(|all| all.keys().all(is_known)), "{rejected}");
}

#[test]
fn asked_by_arp_and_solicitations_with_bird() {
    lives_through_a_dead_path(Kind::Bird, Signed::default(), SOON);
}

#[test]
fn asked_by_arp_and_solicitations_with_frr() {
    lives_through_a_dead_path(Kind::Frr, Signed::default(), SOON);
}

#[test]
fn by_bfd_with_bird() {
    lives_through_a_dead_path(Kind::Bird, Signed { bfd: BIRD, ..Signed::default() }, BFD);
}

#[test]
fn by_signed_bfd_with_bird() {
    for (name, theirs) in [
        (
            "keyed-sha-1",
            "interval 50 ms; multiplier 5; authentication keyed sha1; password \"a secret\" { id 3; };",
        ),
        (
            "meticulous-keyed-sha-1",
            "interval 50 ms; multiplier 5; authentication meticulous keyed sha1; password \"a secret\" { id 3; };",
        ),
    ] {
        let ours =
            format!("{BFD}[path.bfd.key]\nid = 3\nalgorithm = \"{name}\"\nsecret = \"a secret\"\n");
        lives_through_a_dead_path(Kind::Bird, Signed { bfd: theirs, ..Signed::default() }, &ours);
    }
}

#[test]
fn bfd_of_one_that_does_not_know_the_key_is_refused_and_counted() {
    let ours = format!("{BFD}[path.bfd.key]\nsecret = \"a secret\"\n");
    let mut bench = Bench::prepare(&Setup::new(1).rip(RIP).path(&ours));
    let signed = Signed { bfd: BIRD, ..Signed::default() };
    let _daemon = Daemon::start(Kind::Bird, &bench.network, signed);
    bench.start_forwarder();
    wait_until("it is counted", || {
        bench.status()["paths"]["rejected"]["authentication"].as_u64() > Some(3)
    });
    assert_eq!(state(&bench, "10.1.1.1"), "unknown");
    assert_eq!(bench.nic(1)["state"], "live", "what never came up is no dead path");
}

/// Requests arrive, answers do not.
#[test]
fn a_path_that_is_dead_one_way_is_dead() {
    let mut bench = Bench::prepare(&Setup::new(2).rip(RIP).path(SOON));
    let _daemon = Daemon::start(Kind::Bird, &bench.network, Signed::default());
    bench.start_forwarder();
    waits_for_ways(&bench, &[1, 2]);
    let peer = Peer::listen(&bench.network.client, 7000);
    let flows = flows(&bench, &peer, 3);
    for port in ["r1", "h1"] {
        for gateway in ["10.1.1.1", "2001:db8:1::1"] {
            wait_until("the gateways answer", || state(&bench, gateway) == "up");
        }
        bench.waits_for_state(1, "live");
        let drop = format!(
            "table netdev grey {{ chain in {{ type filter hook ingress device {port} priority 0; \
             policy drop; }}; }}"
        );
        let cables = bench.network.cables();
        bench.run(cables, "nft", &[&drop]);
        bench.waits_for_state(1, "no_path");
        flows.iter().for_each(|flow| flow.goes_on(20));
        bench.run(cables, "nft", &["delete", "table", "netdev", "grey"]);
    }
    flows.into_iter().for_each(Conversation::finish);
}

#[test]
fn one_dead_family_leaves_the_other_where_it_is() {
    let mut bench = Bench::prepare(&Setup::new(2).rip(RIP).path(SOON));
    let _daemon = Daemon::start(Kind::Bird, &bench.network, Signed::default());
    bench.start_forwarder();
    waits_for_ways(&bench, &[1, 2]);
    let peer = Peer::listen(&bench.network.client, 7000);
    let flows = flows(&bench, &peer, 6);
    for gateway in ["10.1.1.1", "2001:db8:1::1"] {
        wait_until("the gateways answer", || state(&bench, gateway) == "up");
    }
    let drop = "table netdev grey { chain in { type filter hook ingress device r1 priority 0; \
                ether type ip6 drop; }; }";
    bench.run(bench.network.cables(), "nft", &[drop]);
    wait_until("it is seen", || state(&bench, "2001:db8:1::1") == "dead");
    wait_until("IPv6 comes by the other", || ways(&bench, Family::V6) == [2]);
    assert_eq!(bench.nic(1)["state"], "live");
    assert_eq!(ways(&bench, Family::V4), [1, 2]);
    let before = bench.sent(1);
    flows.iter().for_each(|flow| flow.goes_on(20));
    assert!(bench.sent(1) > before, "IPv4 still leaves by it");
    flows.into_iter().for_each(Conversation::finish);
}

#[test]
fn who_never_answered_is_not_dead_and_off_asks_nobody() {
    let absent = |nic: u8| format!("gateway = [\"10.1.{nic}.77\"]");
    let setup = Setup::new(1).without_gateways().keys(absent).path(SOON);
    let bench = Bench::start(&setup);
    wait_until("it is asked", || {
        bench.status()["paths"]["next_hops"][0]["sent"].as_u64() > Some(8)
    });
    assert_eq!(state(&bench, "10.1.1.77"), "unknown");
    assert_eq!(bench.nic(1)["state"], "live");
    let bench = Bench::start(&Setup::new(1).path("probe = \"off\""));
    assert_eq!(bench.status()["paths"]["next_hops"].to_string(), "[]");
}
