use netlink_packet_route::neighbour::NeighbourAttribute;

use super::*;

fn hop(ifindex: u32, gateway: &str) -> KernelHop {
    KernelHop { ifindex, gateway: gateway.parse().ok(), weight: 1 }
}

fn route(prefix: &str, next_hops: Vec<KernelHop>) -> KernelRoute {
    KernelRoute {
        table: 923,
        prefix: prefix.parse().expect("a prefix"),
        metric: 100,
        kind: RouteKind::Unicast,
        protocol: super::super::PROTOCOL,
        source: None,
        next_hops,
    }
}

fn held(mirror: &Mirror) -> Vec<KernelRoute> {
    mirror.routes(923).cloned().collect()
}

#[test]
fn ipv6_next_hops_are_one_route_however_they_come() {
    let both = route("2001:db8::/32", vec![hop(1, "fe80::1"), hop(2, "fe80::2")]);
    let mut together = Mirror::new([923]);
    assert!(together.new_route(both.clone(), false));
    let mut apart = Mirror::new([923]);
    for hop in &both.next_hops {
        apart.new_route(route("2001:db8::/32", vec![hop.clone()]), false);
    }
    // And once more with all of them, as the kernel tells of an appended one.
    assert!(!apart.new_route(both.clone(), false));
    assert_eq!(held(&together), std::slice::from_ref(&both));
    assert_eq!(held(&apart), [both]);
    apart.delete_route(&route("2001:db8::/32", vec![hop(1, "fe80::1")]));
    assert_eq!(held(&apart), [route("2001:db8::/32", vec![hop(2, "fe80::2")])]);
    apart.delete_route(&route("2001:db8::/32", vec![hop(2, "fe80::2")]));
    assert!(held(&apart).is_empty());
}

#[test]
fn a_replacement_takes_the_place_of_what_was() {
    let mut mirror = Mirror::new([923]);
    for prefix in ["10.0.0.0/8", "2001:db8::/32"] {
        mirror.clear();
        mirror.new_route(route(prefix, vec![hop(1, "10.1.1.1")]), false);
        mirror.new_route(route(prefix, vec![hop(2, "10.1.2.1")]), true);
        assert_eq!(held(&mirror), [route(prefix, vec![hop(2, "10.1.2.1")])]);
    }
}

#[test]
fn routes_of_other_tables_are_no_news() {
    let mut mirror = Mirror::new([923]);
    let other = KernelRoute { table: 255, ..route("10.0.0.0/8", vec![hop(1, "10.1.1.1")]) };
    assert!(!mirror.new_route(other, false));
    assert!(!mirror.delete_route(&route("10.0.0.0/8", Vec::new())));
}

#[test]
fn a_bridge_that_loses_a_port_has_not_lost_the_device() {
    let mut mirror = Mirror::new([923]);
    let mut message = LinkMessage::default();
    message.header.index = 4;
    message.attributes.push(LinkAttribute::IfName("eth1".into()));
    assert!(mirror.new_link(&message).links);
    message.header.interface_family = AddressFamily::Bridge;
    assert!(mirror.delete_link(&message).is_nothing());
    assert!(mirror.link("eth1").is_some());
    message.header.interface_family = AddressFamily::Unspec;
    assert!(mirror.delete_link(&message).routes_uncertain);
    assert!(mirror.link("eth1").is_none());
}

#[test]
fn a_link_that_goes_down_makes_routes_uncertain_and_lost_carrier_does_not() {
    let mut mirror = Mirror::new([923]);
    let mut message = LinkMessage::default();
    message.header.index = 4;
    message.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    mirror.new_link(&message);
    assert!(mirror.new_link(&message).is_nothing());
    message.header.flags = LinkFlags::Up;
    assert_eq!(mirror.new_link(&message), Changed::LINKS);
    message.header.flags = LinkFlags::empty();
    assert!(mirror.new_link(&message).routes_uncertain);
}

#[test]
fn only_what_was_resolved_is_usable() {
    let neighbour =
        |state, mac: Option<MacAddr>| Neighbour { mac, state, is_managed: false, protocol: 0 };
    let mac = Some(MacAddr([2; 6]));
    for usable in [0x02, 0x04, 0x08, 0x10, 0x40, 0x80] {
        assert_eq!(neighbour(usable, mac).usable(), mac);
        assert_eq!(neighbour(usable, None).usable(), None);
    }
    for unusable in [0x00, 0x01, 0x20] {
        assert_eq!(neighbour(unusable, mac).usable(), None);
    }
}

#[test]
fn neighbours_of_other_devices_are_no_news() {
    let mut mirror = Mirror::new([923]);
    mirror.watch(["eth1"]);
    for (index, name) in [(1, "eth1"), (2, "docker0")] {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::IfName(name.into()));
        mirror.new_link(&message);
    }
    let of = |index| {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        let address = std::net::Ipv4Addr::new(10, 0, 0, 1);
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        message
    };
    assert!(mirror.new_neighbour(&of(1)).neighbours);
    assert!(mirror.new_neighbour(&of(2)).is_nothing());
    // A device that is watched no more is forgotten.
    mirror.watch(["docker0"]);
    assert!(mirror.neighbours.is_empty());
    assert!(mirror.new_neighbour(&of(1)).is_nothing());
    assert!(mirror.new_neighbour(&of(2)).neighbours);
}
