//! Where flows go while NICs die and return.

use vipa::wire::ip::Family;

use super::ways::{Conversations, Taps, Ways, spread};
use crate::fixture::{Bench, Setup, wait_until};

const EACH: usize = 12;
/// Nothing returns by itself during a test.
const LONG: &str = "hold-down = \"1h\"";

/// The forwarder runs on a host with so many NICs, each with these keys.
fn start(nics: u8, keys: impl Fn(u8) -> String) -> Bench {
    Bench::start(&Setup::new(nics).keys(keys))
}

#[test]
fn flows_of_both_families_spread_over_all_live_nics() {
    let host = start(3, |_| String::new());
    let mut taps = Taps::new(&host.network);
    for family in Family::BOTH {
        let counts = spread(&host, &mut taps, family, 90);
        for nic in 1..=3 {
            assert!((10..=55).contains(&counts[nic]), "{family:?}: {counts:?}");
        }
    }
    assert!((1..=3).all(|nic| host.sent(nic) >= 20), "the forwarder carried them");
}

#[test]
fn flows_spread_by_weight() {
    let host = start(2, |nic| format!("weight = {}", if nic == 1 { 3 } else { 1 }));
    let mut taps = Taps::new(&host.network);
    for family in Family::BOTH {
        let counts = spread(&host, &mut taps, family, 200);
        // 150 : 50, five standard deviations to each side.
        assert!((120..=180).contains(&counts[1]), "{family:?}: {counts:?}");
    }
}

#[test]
fn only_nics_of_the_lowest_metric_carry_and_the_next_ones_when_these_are_dead() {
    let host = start(3, |nic| format!("{LONG}\nmetric = {}", if nic < 3 { 1 } else { 2 }));
    let mut taps = Taps::new(&host.network);
    for family in Family::BOTH {
        let counts = spread(&host, &mut taps, family, 40);
        assert!(counts[1] > 0 && counts[2] > 0 && counts[3] == 0, "{family:?}: {counts:?}");
    }
    for nic in [1, 2] {
        host.network.pull_cable(nic).unwrap();
        host.waits_for_state(nic, "no_carrier");
    }
    for family in Family::BOTH {
        assert_eq!(spread(&host, &mut taps, family, 40)[3], 40);
    }
}

/// Which NIC each conversation goes by.
fn ways(talk: &mut Conversations, taps: &mut Taps) -> Ways {
    taps.take();
    talk.talk();
    let ways = taps.take();
    assert_eq!(ways.len(), 2 * EACH, "{ways:?}");
    assert!(ways.values().all(|nics| nics.len() == 1), "{ways:?}");
    ways
}

fn by(ways: &Ways, nic: u8) -> usize {
    ways.values().filter(|nics| nics.contains(&nic)).count()
}

fn moves_only_its_own(death: impl Fn(&Bench), state: &str) {
    let host = start(3, |_| LONG.to_owned());
    let mut taps = Taps::new(&host.network);
    let mut talk = Conversations::open(&host, EACH);
    let before = ways(&mut talk, &mut taps);
    assert!((1..=3).all(|nic| by(&before, nic) > 0), "{before:?}");
    death(&host);
    host.waits_for_state(1, state);
    let sent = host.sent(1);
    let after = ways(&mut talk, &mut taps);
    assert_eq!(host.sent(1), sent, "nothing leaves by the dead NIC");
    for (flow, nics) in &before {
        if nics.contains(&1) {
            assert!(!after[flow].contains(&1), "{flow:?} stayed on the dead NIC");
        } else {
            assert_eq!(&after[flow], nics, "{flow:?} was not on the dead NIC");
        }
    }
}

#[test]
fn a_nic_that_loses_carrier_moves_only_its_own_flows() {
    moves_only_its_own(|host| host.network.pull_cable(1).unwrap(), "no_carrier");
}

#[test]
fn a_nic_that_is_set_down_moves_only_its_own_flows() {
    let death = |host: &Bench| {
        host.network.host.link_down("eth1").unwrap();
        host.network.cables().link_down("r1").unwrap();
    };
    moves_only_its_own(death, "down");
}

#[test]
fn a_nic_that_is_deleted_moves_only_its_own_flows() {
    moves_only_its_own(|host| host.network.delete_nic(1).unwrap(), "missing");
}

#[test]
fn a_nic_that_returns_takes_back_its_share_after_its_hold_down() {
    let host = start(3, |_| "hold-down = \"4s\"".to_owned());
    let mut taps = Taps::new(&host.network);
    let mut talk = Conversations::open(&host, EACH);
    let before = ways(&mut talk, &mut taps);
    host.network.pull_cable(1).unwrap();
    host.waits_for_state(1, "no_carrier");
    talk.talk();
    host.network.plug_cable(1).unwrap();
    host.waits_for_state(1, "held_down");
    let held = ways(&mut talk, &mut taps);
    assert_eq!(host.nic(1)["state"], "held_down", "the conversations took too long to tell");
    assert_eq!(by(&held, 1), 0);
    host.waits_for_state(1, "live");
    assert_eq!(ways(&mut talk, &mut taps), before);
}

#[test]
fn a_second_nic_fails_while_the_first_is_held_down() {
    let host = start(3, |_| LONG.to_owned());
    let mut taps = Taps::new(&host.network);
    let mut talk = Conversations::open(&host, EACH);
    host.network.pull_cable(1).unwrap();
    host.waits_for_state(1, "no_carrier");
    talk.talk();
    host.network.plug_cable(1).unwrap();
    host.waits_for_state(1, "held_down");
    host.network.pull_cable(2).unwrap();
    host.waits_for_state(2, "no_carrier");
    let after = ways(&mut talk, &mut taps);
    assert_eq!((by(&after, 1), by(&after, 3)), (0, 2 * EACH));
    // And the last one: what is held down is better than nothing.
    host.network.pull_cable(3).unwrap();
    host.waits_for_state(3, "no_carrier");
    wait_until("the held-down NIC carries", || host.nic(1)["is_live"] == true);
    assert_eq!(host.nic(1)["state"], "held_down");
    assert_eq!(by(&ways(&mut talk, &mut taps), 1), 2 * EACH);
}

#[test]
fn a_nic_that_was_missing_at_start_carries_once_it_is_there() {
    let mut host = Bench::prepare(&Setup::new(2).keys(|_| "hold-down = \"0s\"".to_owned()));
    host.network.delete_nic(1).unwrap();
    host.start_forwarder();
    assert_eq!(host.nic(1)["state"], "missing");
    let mut taps = Taps::new(&host.network);
    for family in Family::BOTH {
        assert_eq!(spread(&host, &mut taps, family, 20)[2], 20);
    }
    let mut talk = Conversations::open(&host, EACH);
    assert_eq!(by(&ways(&mut talk, &mut taps), 2), 2 * EACH);
    host.network.create_nic(1).unwrap();
    host.waits_for_state(1, "live");
    assert!(by(&ways(&mut talk, &mut taps), 1) > 0, "flows that were there before it");
    for family in Family::BOTH {
        let counts = spread(&host, &mut taps, family, 40);
        assert!(counts[1] > 0 && counts[2] > 0, "{family:?}: {counts:?}");
    }
}

#[test]
fn without_a_live_nic_packets_are_dropped_and_connections_live_on_when_one_returns() {
    let host = start(2, |_| LONG.to_owned());
    let mut talk = Conversations::open(&host, 2);
    for nic in [1, 2] {
        host.network.pull_cable(nic).unwrap();
        host.waits_for_state(nic, "no_carrier");
    }
    assert!((1..=2).all(|nic| host.nic(nic)["is_live"] == false));
    for from in ["203.0.113.10:0", "0.0.0.0:0"] {
        let socket = host.network.host.run(|| std::net::UdpSocket::bind(from)).unwrap();
        let before = host.dropped("no_live_nic");
        wait_until("it is dropped with that reason", || {
            socket.send_to(b"lost", "10.9.0.2:9").unwrap();
            host.dropped("no_live_nic") > before
        });
    }
    let sent = host.sent(2);
    host.network.plug_cable(2).unwrap();
    talk.talk();
    assert_eq!(host.nic(2)["state"], "held_down", "used while nothing else lives");
    assert!(host.sent(2) > sent);
}

#[test]
fn a_gateway_that_does_not_answer_is_told_as_the_reason() {
    let silent = |_| "gateway = [\"10.1.1.99\", \"2001:db8:1::99\"]".to_owned();
    let host = Bench::start(&Setup::new(1).without_gateways().keys(silent));
    for to in ["10.9.0.2:9", "[2001:db8:9::2]:9"] {
        let before = host.dropped("neighbour_unresolved");
        let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = host.network.host.run(|| std::net::UdpSocket::bind(any)).unwrap();
        socket.send_to(b"lost", to).unwrap();
        let told = || host.dropped("neighbour_unresolved") > before;
        wait_until(&format!("{to}: neighbour_unresolved"), told);
    }
}
