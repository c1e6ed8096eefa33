//! `ping` and `hops` through routers of the kernel's.

use vipa::balance::status::{Failure, Kind};
use vipa::lab::{Hop, Namespace, veth};

use crate::fixture::{SHORT, Site};

/// us ── 1 ── 2 ── 3 (the server), each link a network of both families.
struct Chain {
    site: Site,
    nodes: Vec<Namespace>,
}

fn chain() -> Chain {
    let site = Site::new("us");
    let nodes: Vec<Namespace> =
        ["one", "two", "three"].map(|name| Namespace::new(name).expect("a network")).into();
    let all: Vec<&Namespace> = std::iter::once(&site.network).chain(&nodes).collect();
    for (n, pair) in all.windows(2).enumerate() {
        let (left, right) = (pair[0], pair[1]);
        veth((left, "right"), (right, "left")).expect("a cable");
        for (node, device, last) in [(left, "right", 1), (right, "left", 2)] {
            // No wait for others who might have the address.
            node.sysctl(&format!("net/ipv6/conf/{device}/accept_dad"), 0).expect("a setting");
            node.address(&format!("10.0.{n}.{last}/24"), device).expect("an address");
            node.address(&format!("2001:db8:{n}::{last}/64"), device).expect("an address");
            node.link_up(device).expect("a device");
        }
    }
    for (n, node) in all.iter().enumerate() {
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            node.sysctl(setting, 1).expect("a setting");
        }
        for network in 0..3 {
            let (gateway, device) = if network > n {
                (2, "right")
            } else if network + 1 < n {
                (1, "left")
            } else {
                continue;
            };
            let link = if device == "right" { n } else { n - 1 };
            for (prefix, gateway) in [
                (format!("10.0.{network}.0/24"), format!("10.0.{link}.{gateway}")),
                (format!("2001:db8:{network}::/64"), format!("2001:db8:{link}::{gateway}")),
            ] {
                node.route(&prefix, &[Hop::via(&gateway).dev(device)], None).expect("a route");
            }
        }
    }
    Chain { site, nodes }
}

#[test]
fn the_distance_is_counted_and_the_echo_timed() {
    let Chain { site, nodes } = chain();
    let hops = || Kind::Hops { most: 8 };
    for (address, distance) in [
        ("127.0.0.1:9", 1.0),
        ("10.0.0.2:9", 1.0),
        ("10.0.1.2:9", 2.0),
        ("10.0.2.2:9", 3.0),
        ("[2001:db8::2]:9", 1.0),
        ("[2001:db8:1::2]:9", 2.0),
        ("[2001:db8:2::2]:9", 3.0),
    ] {
        let mut reader = site.reader(hops(), address);
        assert_eq!(reader.value(), distance, "{address}");
        assert_eq!(reader.value(), distance, "{address}");
        assert!(site.reader(Kind::Ping, address).value() > 0.0, "{address}");
    }
    // Farther than we look.
    let mut near = site.reader(Kind::Hops { most: 2 }, "10.0.2.2:9").within(SHORT);
    assert_eq!(near.read(), Err(Failure::Timeout));

    // A router that keeps silent is counted all the same.
    let rules = "table inet quiet { chain out { type filter hook output priority 0; \
                 icmp type time-exceeded drop; icmpv6 type time-exceeded drop\n}\n}\n";
    let file = site.write("quiet", rules);
    crate::fixture::done(nodes[1].command("nft").args(["-f", &file]));
    for address in ["10.0.2.2:9", "[2001:db8:2::2]:9"] {
        assert_eq!(site.reader(hops(), address).value(), 3.0, "{address}");
    }

    // A server that answers no echo.
    let rules = "table inet deaf { chain in { type filter hook input priority 0; \
                 icmp type echo-request drop; icmpv6 type echo-request drop\n}\n}\n";
    let file = site.write("deaf", rules);
    crate::fixture::done(nodes[2].command("nft").args(["-f", &file]));
    for address in ["10.0.2.2:9", "[2001:db8:2::2]:9"] {
        for kind in [hops(), Kind::Ping] {
            let mut reader = site.reader(kind, address).within(SHORT);
            assert_eq!(reader.read(), Err(Failure::Timeout), "{address}");
        }
    }
}
