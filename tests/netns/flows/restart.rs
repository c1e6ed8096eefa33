//! Rewritten flows outlive the forwarder's death and a NIC's, and nothing of them leaves un-rewritten.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use vipa::lab::topology::vipas;
use vipa::wire::ip::{Family, TCP};

use crate::fixture::{Bench, Conversation, PATIENCE, Peer, Setup, wait_until};
use crate::wire::Wire;

const RULED: u16 = 7300;
const PLAIN: u16 = 7301;

fn under_a_rule(workers: u8) -> Setup {
    Setup::new(3).workers(workers).second_vipa(&format!("protocol = \"tcp\"\nport = \"{RULED}\""))
}

/// Connections under a rule, and one of each family that is not.
struct Talks {
    ruled: Vec<Conversation>,
    plain: Vec<Conversation>,
}

impl Talks {
    fn open(bench: &Bench) -> Talks {
        let [ruled, plain] = [RULED, PLAIN].map(|port| Peer::listen(&bench.network.client, port));
        let open =
            |peer: &Peer, family| Conversation::open(&bench.network.host, peer.address(family));
        let talks = Talks {
            ruled: (0..6).map(|n| open(&ruled, Family::BOTH[n % 2])).collect(),
            plain: (0..2).map(|n| open(&plain, Family::BOTH[n])).collect(),
        };
        for talk in &talks.ruled {
            assert_eq!(talk.seen.ip(), vipas(Family::of(talk.seen.ip()))[1]);
        }
        talks.go_on();
        talks
    }

    fn go_on(&self) {
        self.ruled.iter().chain(&self.plain).for_each(|talk| talk.goes_on(20));
    }

    fn finish(self) {
        self.ruled.into_iter().chain(self.plain).for_each(Conversation::finish);
    }
}

/// Everything to the ruled port came from the second VIPA.
fn assert_all_rewritten(wire: &Wire) {
    let sent = wire.sent(TCP, RULED);
    assert!(!sent.is_empty(), "the capture saw none of it");
    let other = sent.iter().find(|s| s.source != vipas(Family::of(s.source))[1]);
    assert_eq!(other, None, "left un-rewritten");
}

fn survive_a_death_of(time: Duration, workers: u8, is_offloaded: bool) {
    let mut bench = Bench::start(&under_a_rule(workers));
    bench.network.tx_checksum(is_offloaded).expect("ethtool");
    let talks = Talks::open(&bench);
    let wire = Wire::tap(&bench.network);
    talks.go_on();
    bench.forwarder.kill();
    let died = Instant::now();
    assert!(bench.forwarder.pid().is_none());
    if !time.is_zero() {
        let left = bench.left();
        talks.plain.iter().for_each(|talk| talk.goes_on(20));
        assert!(bench.left() > left, "the kernel carries the others while it is dead");
        wait_until("what is rewritten is held", || held(&bench) > 0);
        let rounds: Vec<u64> = talks.ruled.iter().map(Conversation::rounds).collect();
        thread::sleep(time.saturating_sub(died.elapsed()));
        let now: Vec<u64> = talks.ruled.iter().map(Conversation::rounds).collect();
        assert_eq!(rounds, now, "nobody rewrites while it is dead");
    }
    bench.start_forwarder();
    talks.go_on();
    assert_all_rewritten(&wire);
    wire.assert_no_reset();
    talks.finish();
}

/// Packets that the egress hold dropped, as nft tells.
fn held(bench: &Bench) -> u64 {
    let table = ["list", "table", "netdev", "vipa-vipa0"];
    let text = bench.run(&bench.network.host, "nft", &table);
    text.lines()
        .filter(|line| line.contains("drop"))
        .filter_map(|line| {
            line.split_once("counter packets ")?.1.split(' ').next()?.parse::<u64>().ok()
        })
        .sum()
}

#[test]
fn a_rewritten_connection_survives_sigkill_and_restart() {
    survive_a_death_of(Duration::ZERO, 1, true);
}

#[test]
fn a_rewritten_connection_survives_sigkill_and_restart_with_verified_checksums() {
    survive_a_death_of(Duration::ZERO, 1, false);
}

#[test]
fn a_rewritten_connection_survives_sigkill_and_restart_of_two_workers() {
    survive_a_death_of(Duration::ZERO, 2, false);
}

#[test]
fn a_rewritten_connection_survives_two_seconds_without_a_forwarder() {
    survive_a_death_of(Duration::from_secs(2), 1, true);
}

#[test]
fn a_rewritten_connection_survives_two_seconds_without_two_workers() {
    survive_a_death_of(Duration::from_secs(2), 2, false);
}

#[test]
fn a_connection_begun_while_the_forwarder_is_dead_waits_for_it() {
    let mut bench = Bench::start(&under_a_rule(1));
    let peer = Peer::listen(&bench.network.client, RULED);
    let wire = Wire::tap(&bench.network);
    bench.forwarder.kill();
    for family in Family::BOTH {
        let (host, to) = (bench.network.host.clone(), peer.address(family));
        let before = held(&bench);
        let connecting =
            thread::spawn(move || host.run(|| TcpStream::connect_timeout(&to, PATIENCE)));
        wait_until("its first packet is held", || held(&bench) > before);
        assert_eq!(wire.sent(TCP, RULED).iter().find(|s| Family::of(s.source) == family), None);
        assert!(!connecting.is_finished(), "the application sees no error");
        bench.start_forwarder();
        let stream = connecting.join().expect("no panic").expect("it connects in the end");
        let talk = Conversation::over(stream);
        talk.goes_on(5);
        assert_eq!(talk.seen.ip(), vipas(family)[1]);
        talk.finish();
        bench.forwarder.kill();
    }
    assert_all_rewritten(&wire);
    wire.assert_no_reset();
}

#[test]
fn once_the_hold_has_run_out_the_kernel_carries_new_connections_unrewritten() {
    let mut bench = Bench::start(&under_a_rule(1).source("hold = \"1s\""));
    let peer = Peer::listen(&bench.network.client, RULED);
    for family in Family::BOTH {
        let talk = Conversation::open(&bench.network.host, peer.address(family));
        assert_eq!(talk.seen.ip(), vipas(family)[1], "rewritten while the forwarder lives");
        talk.finish();
    }
    let wire = Wire::tap(&bench.network);
    bench.forwarder.kill();
    for family in Family::BOTH {
        let talk = Conversation::open(&bench.network.host, peer.address(family));
        talk.goes_on(5);
        assert_eq!((talk.seen, talk.seen.ip()), (talk.local, vipas(family)[0]));
        talk.finish();
        // The last words of the rewritten connections above are on the wire as well.
        wait_until("the wire saw it", || {
            wire.sent(TCP, RULED).iter().any(|s| s.source == vipas(family)[0])
        });
    }
    assert!(bench.forwarder.pid().is_none());
}

#[test]
fn a_nic_deleted_and_created_anew_costs_no_rewritten_connection() {
    for is_offloaded in [true, false] {
        let bench = Bench::start(&under_a_rule(1));
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        let talks = Talks::open(&bench);
        let wire = Wire::tap(&bench.network);
        for nic in bench.network.nics() {
            let is_live = || bench.status()["nics"][usize::from(nic) - 1]["is_live"] == true;
            assert!(is_live());
            bench.network.delete_nic(nic).expect("it is there");
            wait_until("the forwarder knows", || !is_live());
            talks.go_on();
            bench.network.create_nic(nic).expect("it is gone");
            bench.network.tx_checksum(is_offloaded).expect("ethtool");
            wait_until("it is live again", is_live);
            talks.go_on();
        }
        let nics: Vec<bool> =
            (1..=3).map(|nic| wire.sent(TCP, RULED).iter().any(|s| s.nic == nic)).collect();
        assert!(nics.iter().filter(|used| **used).count() > 1, "flows moved: {nics:?}");
        assert_all_rewritten(&wire);
        wire.assert_no_reset();
        talks.finish();
    }
}
