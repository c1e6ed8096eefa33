//! The networks around: on-link hosts, gateways that do not answer, devices that are none of vipa's.

use std::net::{SocketAddr, UdpSocket};

use vipa::lab::topology::vipas;
use vipa::lab::{Namespace, veth};
use vipa::wire::ip::Family;

use crate::fixture::{
    Bench, Conversation, PATIENCE, Peer, Setup, ask, ask_by, unbound, wait_until,
};

/// A UDP peer at `address` in `namespace` that tells by whom it was asked.
fn answering(namespace: &Namespace) -> u16 {
    Peer::listen(namespace, 7100).0
}

#[test]
fn hosts_on_the_link_are_reached_alive_and_in_fallback() {
    let mut bench = Bench::start(&Setup::new(2));
    let port = answering(&bench.network.router);
    let on_link = ["10.1.1.1", "2001:db8:1::1"]
        .map(|address| SocketAddr::new(address.parse().expect("an address"), port));
    let host = bench.network.host.clone();
    let speaks = |family: Family, address: SocketAddr| {
        // Over TCP: a wildcard UDP server of the router answers from an address of its own choice.
        let flow = Conversation::open(&host, address);
        assert_eq!(flow.seen.ip(), vipas(family)[0]);
        flow.goes_on(3);
        flow.finish();
    };
    for (family, address) in Family::BOTH.into_iter().zip(on_link) {
        let before = bench.carried();
        speaks(family, address);
        assert!(bench.carried() > before, "it went through the adapter");
    }
    bench.forwarder.kill();
    host.flush_neighbours("eth1").expect("a NIC");
    for (family, address) in Family::BOTH.into_iter().zip(on_link) {
        speaks(family, address);
    }
}

#[test]
fn a_next_hop_that_does_not_answer_is_a_reason() {
    let bench = Bench::start(&Setup::new(1));
    let socket = bench.network.host.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    wait_until("drops with that reason", || {
        socket.send_to(b"anybody?", "10.1.1.77:9").expect("sent");
        bench.dropped("neighbour_unresolved") > 0
    });
    assert!(PATIENCE.as_secs() > 3, "the kernel's probes take three seconds");
}

#[test]
fn a_bridge_a_second_tun_and_a_management_nic_keep_their_ways() {
    let mut bench = Bench::prepare(&Setup::new(2));
    let host = bench.network.host.clone();
    let (container, office) =
        (Namespace::new("container").expect("root"), Namespace::new("office").expect("root"));
    veth((&container, "c0"), (&host, "port0")).expect("a cable");
    host.bridge("docker0", &["port0"]).expect("a bridge");
    host.address("172.17.0.1/16", "docker0").expect("an address");
    container.address("172.17.0.2/16", "c0").expect("an address");
    veth((&office, "o0"), (&host, "mgmt0")).expect("a cable");
    host.address("192.0.2.2/24", "mgmt0").expect("an address");
    office.address("192.0.2.1/24", "o0").expect("an address");
    host.route("0.0.0.0/0", &[vipa::lab::Hop::via("192.0.2.1").dev("mgmt0")], None)
        .expect("a route");
    let _vpn = host.run(|| vipa::device::tun::TunQueue::attach("vpn0")).expect("a TUN");
    bench.run(&host, "ip", &["addr", "add", "172.30.0.2/24", "dev", "vpn0"]);
    bench.run(&host, "ip", &["link", "set", "vpn0", "up"]);
    bench.run(&host, "ip", &["route", "add", "172.31.0.0/16", "dev", "vpn0"]);
    let ports = [answering(&container), answering(&office)];
    bench.start_forwarder();

    let to = |address: &str, port| SocketAddr::new(address.parse().expect("an address"), port);
    let before = bench.carried();
    let seen = ask(&host, unbound(Family::V4), to("172.17.0.2", ports[0]));
    assert_eq!(seen.ip().to_string(), "172.17.0.1", "the bridge's own address");
    let seen = ask(&host, unbound(Family::V4), to("192.0.2.1", ports[1]));
    assert_eq!(seen.ip().to_string(), "192.0.2.2", "the management NIC's own address");
    let route = bench.run(&host, "ip", &["route", "get", "172.31.0.9"]);
    assert!(route.contains("dev vpn0") && route.contains("src 172.30.0.2"), "{route}");
    assert_eq!(bench.carried(), before, "none of it reached the adapter");

    // The operator's session from far away, by the management NIC.
    let session = office.run(|| UdpSocket::bind("192.0.2.1:0")).expect("a socket");
    let server = Peer::listen(&host, 7200);
    let seen = ask_by(&session, to("192.0.2.2", server.0)).expect("an answer");
    assert_eq!(seen.ip().to_string(), "192.0.2.1");
    assert_eq!(bench.carried(), before);

    let peer = Peer::listen(&bench.network.client, 7000);
    let seen = ask(&host, unbound(Family::V4), peer.address(Family::V4));
    assert_eq!(seen.ip(), vipas(Family::V4)[0], "all else carries the VIPA");
    assert!(bench.carried() > before);
}
