//! A container's published port, as Docker sets it up: DNAT to a bridge behind strict reverse-path filters, masquerade
//! for what the container sends.

use std::net::{IpAddr, SocketAddr};

use vipa::lab::topology::{client_address, vipas};
use vipa::lab::{Hop, Namespace, veth};
use vipa::wire::ip::Family;

use crate::fixture::{Bench, Conversation, Peer, Setup};

const PUBLISHED: u16 = 8080;
const INSIDE: u16 = 7100;

#[test]
fn a_containers_published_port_works_by_nic_and_by_vipa_forwarder_alive_and_dead() {
    let mut bench =
        Bench::prepare(&Setup::new(2).second_vipa("protocol = \"tcp\"\nport = \"7001\""));
    let host = bench.network.host.clone();
    let container = Namespace::new("container").expect("root");
    veth((&container, "c0"), (&host, "port0")).expect("a cable");
    host.bridge("docker0", &["port0"]).expect("a bridge");
    host.address("172.17.0.1/16", "docker0").expect("an address");
    container.address("172.17.0.2/16", "c0").expect("an address");
    container.route("0.0.0.0/0", &[Hop::via("172.17.0.1")], None).expect("a route");
    host.route("0.0.0.0/0", &[Hop::via("10.1.1.1").dev("eth1")], None).expect("a route");
    host.sysctl("net/ipv4/ip_forward", 1).expect("it can be set");
    host.sysctl("net/ipv4/conf/docker0/rp_filter", 1).expect("it can be set");
    for rule in [
        "add table ip docker",
        "add chain ip docker pre { type nat hook prerouting priority -100; }",
        "add rule ip docker pre fib daddr type local tcp dport 8080 dnat to 172.17.0.2:7100",
        "add chain ip docker post { type nat hook postrouting priority 100; }",
        "add rule ip docker post ip saddr 172.17.0.0/16 oifname != docker0 masquerade",
    ] {
        bench.run(&host, "nft", &[rule]);
    }
    Peer::listen(&container, INSIDE);
    let outside = Peer::listen(&bench.network.client, 7000);
    let client = bench.network.client.clone();
    let nic = "10.1.1.2".parse().expect("an address");
    let asked_on = [nic, vipas(Family::V4)[0], vipas(Family::V4)[1]];

    let work = |bench: &Bench, asked_on: &[IpAddr], when: &str| {
        for &address in asked_on {
            let flow = Conversation::open(&client, SocketAddr::new(address, PUBLISHED));
            assert_eq!(flow.seen.ip(), client_address(Family::V4), "{when}: {address}");
            flow.goes_on(5);
            flow.finish();
        }
        // What the container begins is masqueraded by main's own way: none of it is vipa's.
        let flow = Conversation::open(&container, outside.address(Family::V4));
        assert_eq!(flow.seen.ip(), nic, "{when}: masqueraded");
        flow.goes_on(5);
        flow.finish();
        let filter = bench.run(&host, "sysctl", &["-n", "net.ipv4.conf.docker0.rp_filter"]);
        assert_eq!(filter.trim(), "1", "{when}: still strict");
    };
    work(&bench, &asked_on[..1], "before");
    bench.start_forwarder();
    let carried = bench.carried();
    work(&bench, &asked_on, "with the forwarder");
    assert_eq!(bench.carried(), carried, "none of it is led into the adapter");
    bench.forwarder.kill();
    work(&bench, &asked_on, "with the forwarder dead");
}
