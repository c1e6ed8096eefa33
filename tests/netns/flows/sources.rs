//! FIG. 4 on the wire: which source address leaves the host.

use std::net::{SocketAddr, UdpSocket};

use vipa::lab::Hop;
use vipa::lab::topology::{client_address, vipas};
use vipa::wire::ip::{Family, ICMP, TCP, UDP};

use crate::fixture::{Bench, Conversation, Peer, Setup, ask, nic_addresses, unbound, wait_until};
use crate::ping::ping;
use crate::wire::Wire;

const PORT: u16 = 7100;

#[test]
fn what_no_rule_speaks_of_carries_the_default_vipa() {
    let bench = Bench::start(&Setup::new(3));
    let peer = Peer::listen(&bench.network.client, PORT);
    let wire = Wire::tap(&bench.network);
    for family in Family::BOTH {
        let [vipa, _] = vipas(family);
        let before = bench.carried();
        let talk = Conversation::open(&bench.network.host, peer.address(family));
        talk.goes_on(20);
        assert_eq!(talk.seen, talk.local, "nothing is rewritten");
        assert_eq!(ask(&bench.network.host, unbound(family), peer.address(family)).ip(), vipa);
        ping(&bench.network.host, client_address(family), 4711);
        for (protocol, port) in [(TCP, PORT), (UDP, PORT), (ICMP, 0)] {
            let seen = wire.came_from(protocol, port, vipa);
            if protocol == ICMP {
                assert_eq!(seen.source_port, 4711);
            }
        }
        talk.finish();
        assert!(bench.carried() >= before + 22, "all of it went through the forwarder");
    }
    wire.assert_no_reset();
}

/// A way to the client for sockets that are bound to the address of the first NIC.
fn route_of_the_first_nic(bench: &Bench) {
    let host = &bench.network.host;
    host.route("10.9.0.0/24", &[Hop::via("10.1.1.1").dev("eth1")], None).expect("a route");
    host.route("2001:db8:9::/64", &[Hop::via("2001:db8:1::1").dev("eth1")], None).expect("a route");
}

#[test]
fn a_socket_bound_to_a_nics_address_bypasses_the_adapter() {
    let bench = Bench::start(&Setup::new(2).second_vipa(""));
    route_of_the_first_nic(&bench);
    let peer = Peer::listen(&bench.network.client, PORT);
    let wire = Wire::tap(&bench.network);
    let before = bench.carried();
    for family in Family::BOTH {
        let address = nic_addresses(&bench.network, family)[0];
        let from = SocketAddr::new(address, 0);
        let talk = Conversation::open_bound(&bench.network.host, from, peer.address(family));
        talk.goes_on(10);
        assert_eq!(talk.seen, talk.local);
        assert_eq!(ask(&bench.network.host, from, peer.address(family)).ip(), address);
        wire.came_from(TCP, PORT, address);
        wire.came_from(UDP, PORT, address);
        talk.finish();
    }
    assert_eq!(bench.carried(), before, "nothing of it went through the adapter");
    // The count does move.
    ask(&bench.network.host, unbound(Family::V4), peer.address(Family::V4));
    assert!(bench.carried() > before);
}

#[test]
fn a_socket_bound_to_a_nics_address_gets_the_vipa_where_bound_is_forward() {
    let bench = Bench::start(&Setup::new(2).source("bound = \"forward\""));
    route_of_the_first_nic(&bench);
    let peer = Peer::listen(&bench.network.client, PORT);
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        let wire = Wire::tap(&bench.network);
        let before = bench.carried();
        for family in Family::BOTH {
            let [vipa, _] = vipas(family);
            let from = SocketAddr::new(nic_addresses(&bench.network, family)[0], 0);
            let talk = Conversation::open_bound(&bench.network.host, from, peer.address(family));
            talk.goes_on(10);
            assert_eq!((talk.seen.ip(), talk.local.ip()), (vipa, from.ip()));
            assert_eq!(ask(&bench.network.host, from, peer.address(family)).ip(), vipa);
            wire.came_from(TCP, PORT, vipa);
            wire.came_from(UDP, PORT, vipa);
            talk.finish();
        }
        assert!(bench.carried() >= before + 20);
    }
}

#[test]
fn without_sourcevipa_only_what_a_rule_speaks_of_carries_a_vipa() {
    let setup = Setup::new(2).source("sourcevipa = false").second_vipa("protocol = \"udp\"");
    let bench = Bench::start(&setup);
    route_of_the_first_nic(&bench);
    let peer = Peer::listen(&bench.network.client, PORT);
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        let wire = Wire::tap(&bench.network);
        for family in Family::BOTH {
            let before = bench.carried();
            let talk = Conversation::open(&bench.network.host, peer.address(family));
            talk.goes_on(10);
            assert_eq!(talk.seen, talk.local);
            wire.came_from(TCP, PORT, nic_addresses(&bench.network, family)[0]);
            assert_eq!(bench.carried(), before, "TCP keeps the kernel's own way");
            talk.finish();
            let [_, second] = vipas(family);
            assert_eq!(
                ask(&bench.network.host, unbound(family), peer.address(family)).ip(),
                second
            );
            wire.came_from(UDP, PORT, second);
            assert!(bench.carried() > before, "what the rule speaks of does not");
        }
    }
}

#[test]
fn rip_leaves_with_the_physical_address_and_its_own_port() {
    // Also under a rule that speaks of everything.
    let bench = Bench::start(&Setup::new(3).second_vipa(""));
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        let wire = Wire::tap(&bench.network);
        for family in Family::BOTH {
            let physical = nic_addresses(&bench.network, family);
            for port in [520, 521] {
                let to = SocketAddr::new(client_address(family), port);
                let router = bench.network.client.run(|| UdpSocket::bind(to)).expect("a port");
                router.set_read_timeout(Some(crate::fixture::PATIENCE)).expect("not zero");
                let from = SocketAddr::new(family.unspecified(), port);
                let socket = bench.network.host.run(|| UdpSocket::bind(from)).expect("a port");
                socket.send_to(b"rip", to).expect("sent");
                let mut datagram = [0; 10];
                let (length, from) = router.recv_from(&mut datagram).expect("it arrives");
                assert_eq!(&datagram[..length], b"rip");
                assert!(physical.contains(&from.ip()), "{from} is no address of a NIC");
                assert_eq!(from.port(), port);
                let of_family = || {
                    let mut sent = wire.sent(UDP, port);
                    sent.retain(|s| Family::of(s.source) == family);
                    sent
                };
                wait_until("the wire saw it", || !of_family().is_empty());
                for seen in of_family() {
                    assert_eq!(seen.source, physical[usize::from(seen.nic) - 1], "{seen:?}");
                    assert_eq!(seen.source_port, port);
                }
            }
        }
    }
}
