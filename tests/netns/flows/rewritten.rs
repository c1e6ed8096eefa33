//! Flows that a rule gives another source: they work both ways, have a port of the reserved range, and one
//! that finds no port harms no other.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use vipa::lab::Namespace;
use vipa::lab::topology::{client_address, vipas};
use vipa::wire::ip::{Family, ICMP, TCP, UDP};

use crate::fixture::{
    Bench, Conversation, Peer, Setup, ask, ask_by, nic_addresses, number, unbound, wait_until,
};
use crate::ping::ping;
use crate::wire::Wire;

const PORT: u16 = 7200;
const RESERVED: std::ops::RangeInclusive<u16> = 61_000..=65_535;

fn sockets(host: &Namespace, family: Family, count: usize) -> Vec<UdpSocket> {
    (0..count).map(|_| host.run(|| UdpSocket::bind(unbound(family))).expect("a socket")).collect()
}

/// The source ports that a peer sees, in order.
fn ports_seen(sockets: &[UdpSocket], to: SocketAddr) -> Vec<u16> {
    let mut ports: Vec<u16> =
        sockets.iter().map(|s| ask_by(s, to).expect("an answer").port()).collect();
    ports.sort_unstable();
    ports
}

/// Calls `speak` with a peer of the client and a fresh capture, with offloaded checksums and with real ones; no
/// reset may be on the wire.
fn with_either_checksum(bench: &Bench, speak: impl Fn(&Peer, &Wire)) {
    let peer = Peer::listen(&bench.network.client, PORT);
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        let wire = Wire::tap(&bench.network);
        speak(&peer, &wire);
        wire.assert_no_reset();
    }
}

#[test]
fn a_rule_gives_the_second_vipa_and_a_reserved_port_and_replies_come_back() {
    let bench = Bench::start(&Setup::new(3).second_vipa(""));
    with_either_checksum(&bench, |peer, wire| {
        let heard = bench.nics("received", "frames");
        for family in Family::BOTH {
            let [first, second] = vipas(family);
            let talk = Conversation::open(&bench.network.host, peer.address(family));
            talk.goes_on(30);
            assert_eq!((talk.local.ip(), talk.seen.ip()), (first, second));
            let asked_by = ask(&bench.network.host, unbound(family), peer.address(family));
            assert_eq!(asked_by.ip(), second);
            ping(&bench.network.host, client_address(family), 4711);
            for (protocol, port) in [(TCP, PORT), (UDP, PORT), (ICMP, 0)] {
                let seen = wire.came_from(protocol, port, second);
                assert!(RESERVED.contains(&seen.source_port), "{seen:?}");
            }
            talk.finish();
        }
        assert!(bench.nics("received", "frames") > heard + 60, "replies come by the forwarder");
    });
}

#[test]
fn a_rule_for_physical_gives_the_address_of_the_nic_it_leaves_by() {
    let bench = Bench::start(&Setup::new(3).physical(""));
    with_either_checksum(&bench, |peer, wire| {
        for family in Family::BOTH {
            let physical = nic_addresses(&bench.network, family);
            for _ in 0..6 {
                let talk = Conversation::open(&bench.network.host, peer.address(family));
                talk.goes_on(5);
                assert!(physical.contains(&talk.seen.ip()), "{}", talk.seen);
                let asked_by = ask(&bench.network.host, unbound(family), peer.address(family));
                assert!(physical.contains(&asked_by.ip()), "{asked_by}");
                talk.finish();
            }
            ping(&bench.network.host, client_address(family), 4711);
        }
        for (protocol, port) in [(TCP, PORT), (UDP, PORT), (ICMP, 0)] {
            wait_until("the wire saw both families", || {
                Family::BOTH
                    .iter()
                    .all(|f| wire.sent(protocol, port).iter().any(|s| Family::of(s.source) == *f))
            });
            for seen in wire.sent(protocol, port) {
                let physical = nic_addresses(&bench.network, Family::of(seen.source));
                assert_eq!(seen.source, physical[usize::from(seen.nic) - 1], "{seen:?}");
                assert!(RESERVED.contains(&seen.source_port), "{seen:?}");
            }
        }
    });
}

#[test]
fn out_of_ports_towards_one_destination_the_others_go_on() {
    let bench = Bench::start(&Setup::new(2).source("ports = \"61000-61003\"").second_vipa(""));
    let host = &bench.network.host;
    let peers = [PORT, PORT + 1].map(|port| Peer::listen(&bench.network.client, port));
    for family in Family::BOTH {
        let to = peers[0].address(family);
        let sockets = sockets(host, family, 4);
        assert_eq!(ports_seen(&sockets, to), [61000, 61001, 61002, 61003], "each its own");
        let before = bench.dropped("ports_exhausted");
        let fifth = host.run(|| UdpSocket::bind(unbound(family))).expect("a socket");
        fifth.send_to(b"who am I?", to).expect("the application sees no error");
        wait_until("the drop is counted", || bench.dropped("ports_exhausted") > before);
        for socket in &sockets {
            ask_by(socket, to).expect("the others go on");
        }
        let elsewhere = ask_by(&fifth, peers[1].address(family));
        assert_eq!(elsewhere.map(|from| from.ip()), Some(vipas(family)[1]));
    }
}

#[test]
fn sockets_on_reserved_ports_keep_working_and_no_flow_gets_their_port() {
    let setup = Setup::new(2).source("ports = \"61000-61003\"").second_vipa("");
    let mut bench = Bench::prepare(&setup);
    let host = bench.network.host.clone();
    let listener = host.run(|| TcpListener::bind("[::]:61001")).expect("a port");
    let server = host.run(|| UdpSocket::bind("[::]:61002")).expect("a port");
    bench.start_forwarder();
    for port in [61001, 61002] {
        let warned = bench.forwarder.log().lines().any(|line| {
            line.contains("WARN")
                && line.contains("[source] ports")
                && line.contains(&port.to_string())
        });
        assert!(warned, "a warning about {port}: {}", bench.forwarder.log());
    }
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut &stream, b"[::1]:1\n");
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    std::thread::spawn(move || {
        let mut question = [0; 100];
        while let Ok((_, from)) = server.recv_from(&mut question) {
            let _ = server.send_to(b"[::1]:2", from);
        }
    });
    let peer = Peer::listen(&bench.network.client, PORT);
    for family in Family::BOTH {
        // The address that rewritten flows carry is the one whose ports are taken from the kernel. UDP
        // servers on a wildcard answer from the default VIPA, so they are asked there.
        let [first, second] = vipas(family);
        let talk = Conversation::open(&bench.network.client, SocketAddr::new(second, 61001));
        talk.goes_on(5);
        talk.finish();
        ask(&bench.network.client, unbound(family), SocketAddr::new(first, 61002));
        let sockets = sockets(&host, family, 2);
        assert_eq!(ports_seen(&sockets, peer.address(family)), [61000, 61003]);
    }
}

fn many_flows_over(workers: u8) {
    let setup = Setup::new(3).workers(workers).second_vipa("protocol = \"tcp\"\nport = \"7200\"");
    let setup = setup.second_vipa("protocol = \"udp\"\nport = \"7200\"");
    let bench = Bench::start(&setup);
    let host = &bench.network.host;
    let [ruled, plain] = [PORT, PORT + 1].map(|port| Peer::listen(&bench.network.client, port));
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        let mut talks = Vec::new();
        let mut asked = Vec::new();
        let mut owners = vec![0; usize::from(workers)];
        let mut own = |from: SocketAddr| owners[usize::from(from.port() % u16::from(workers))] += 1;
        for family in Family::BOTH {
            let [first, second] = vipas(family);
            for (peer, source) in [(&ruled, second), (&plain, first)] {
                let to = peer.address(family);
                for _ in 0..8 {
                    let talk = Conversation::open(host, to);
                    assert_eq!(talk.seen.ip(), source);
                    if source == second {
                        own(talk.seen);
                    }
                    talks.push(talk);
                }
                for socket in sockets(host, family, 16) {
                    let from = ask_by(&socket, to).expect("an answer");
                    assert_eq!(from.ip(), source);
                    if source == second {
                        own(from);
                    }
                    asked.push((socket, to, from));
                }
            }
        }
        assert!(owners.iter().all(|flows| *flows > 0), "each worker owns some: {owners:?}");
        for (socket, to, from) in &asked {
            assert_eq!(ask_by(socket, *to), Some(*from), "the same flow");
        }
        for talk in &talks {
            talk.goes_on(10);
        }
        talks.into_iter().for_each(Conversation::finish);
        wait_until("each worker shows its rewritten flows", || {
            let status = bench.status();
            let each = status["workers"].as_array().expect("workers");
            each.len() == usize::from(workers)
                && each.iter().all(|worker| number(&worker["flows_rewritten"]) > 0)
        });
    }
    for reason in ["no_flow", "punt_queue_full", "ports_exhausted", "malformed"] {
        assert_eq!(bench.dropped(reason), 0, "{reason}");
    }
}

#[test]
fn flows_work_both_ways_whichever_of_two_workers_meets_them() {
    many_flows_over(2);
}

#[test]
fn flows_work_both_ways_whichever_of_four_workers_meets_them() {
    many_flows_over(4);
}
