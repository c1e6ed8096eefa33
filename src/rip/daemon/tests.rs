//! One behaviour a test, by section of RFC 2453 (and RFC 2080), and the boxes of FIG. 3A and 3B.

use super::*;
use crate::rip::auth::Key;

const A: NicId = NicId(0);
const B: NicId = NicId(1);

struct World {
    daemon: Daemon,
    interfaces: Vec<Interface>,
    now: Instant,
}

fn settings() -> Settings {
    Settings {
        is_v1: false,
        is_v2: true,
        is_ng: true,
        update: Duration::from_secs(30),
        timeout: Duration::from_secs(180),
        garbage: Duration::from_secs(120),
        advertise: Advertise::Virtual,
        metric: 1,
        accept: Vec::new(),
        most_routes: 100,
        nics: vec![NicSettings::default(); 2],
        keys: Vec::<Key>::new(),
        has_bfd: false,
    }
}

fn interface(nic: NicId) -> Interface {
    let n = nic.0 + 1;
    let v4: IpAddr = format!("10.1.{n}.2").parse().expect("an address");
    let v6: IpAddr = format!("fe80::{n}:2").parse().expect("an address");
    let addresses = vec![(v4, 24), (v6, 64)];
    let (is_live, has_carrier) = (true, true);
    let (ifindex, silent) = (u32::from(n), Vec::new());
    Interface { nic, is_live, has_carrier, silent, ifindex, addresses, mtu: 1500 }
}

impl World {
    fn new(family: Family, settings: Settings) -> World {
        let vipas = ["203.0.113.10".parse().expect("v4"), "2001:db8:ffff::10".parse().expect("v6")];
        let now = Instant::now();
        let daemon = Daemon::new(family, settings, &vipas, 7, now);
        let mut world = World { daemon, interfaces: vec![interface(A), interface(B)], now };
        world.look();
        world
    }

    fn v4() -> World {
        World::new(Family::V4, settings())
    }

    fn look(&mut self) {
        self.daemon.interface_timer(&self.interfaces, self.now, 0);
    }

    fn wait(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.daemon.next_deadline() <= end {
            self.now = self.now.max(self.daemon.next_deadline());
            self.daemon.tick(self.now, 0);
        }
        self.now = end;
    }

    /// What is told by `nic` in the responses that wait: prefix and metric.
    fn told(&mut self, nic: NicId) -> Vec<(String, u8)> {
        let sends = self.daemon.take_sends();
        let family = self.daemon.family;
        sends
            .iter()
            .filter(|send| send.nic == nic)
            .filter_map(|send| Message::parse(&send.payload, family).ok())
            .filter(|message| message.command == Command::Response)
            .flat_map(|message| message.items().collect::<Vec<_>>())
            .filter_map(|item| match item {
                Ok(Item::Route(entry)) => {
                    let length = entry.length.unwrap_or(99);
                    Some((format!("{}/{length}", entry.address), entry.metric as u8))
                }
                _ => None,
            })
            .collect()
    }

    fn hear_from(&mut self, nic: NicId, source: &str, payload: &[u8]) {
        let source = source.parse().expect("a socket address");
        let datagram = Datagram { nic, source, ttl: 255, is_multicast: true, payload };
        self.daemon.receive(datagram, self.now, 0);
    }

    /// A neighbour at 10.1.N.1 tells of routes.
    fn hear(&mut self, nic: NicId, routes: &[(&str, u8)]) {
        self.hear_from(nic, &format!("10.1.{}.1:520", nic.0 + 1), &response(routes));
    }

    fn learned(&self) -> Vec<(String, Vec<u8>)> {
        self.daemon
            .learned()
            .map(|l| (l.prefix.to_string(), l.ways.iter().map(|(nic, _)| nic.0).collect()))
            .collect()
    }

    fn rejected(&self) -> Vec<&'static str> {
        self.daemon.rejects().keys().map(|(_, reject)| reject.name()).collect()
    }
}

fn response(routes: &[(&str, u8)]) -> Vec<u8> {
    let v4 = routes.iter().all(|(prefix, _)| !prefix.contains(':'));
    let version = if v4 { Version::V2 } else { Version::Ng };
    let mut bytes = rip::header(Command::Response, version).to_vec();
    for (prefix, metric) in routes {
        let prefix = prefix.parse().expect("a prefix");
        rip::put(&mut bytes, version, Told { prefix, tag: 0, metric: *metric });
    }
    bytes
}

fn told(routes: &[(&str, u8)]) -> Vec<(String, u8)> {
    routes.iter().map(|(prefix, metric)| ((*prefix).to_owned(), *metric)).collect()
}

#[test]
fn fig_3a_319_a_new_virtual_interface_is_told_at_once_over_every_nic() {
    let mut world = World::v4();
    let sends = world.daemon.take_sends();
    let commands: Vec<(u8, u8)> = sends.iter().map(|s| (s.nic.0, s.payload[0])).collect();
    // Request and response by each NIC.
    assert_eq!(commands[..4], [(0, 1), (0, 2), (1, 1), (1, 2)]);
    assert!(sends.iter().all(|send| send.to == SocketAddr::new(GROUP.into(), PORT)));
}

#[test]
fn a_neighbour_that_does_not_answer_is_asked_again_until_one_does() {
    let mut world = World::v4();
    let requests = |world: &mut World, nic: NicId| {
        let sends = world.daemon.take_sends();
        sends.iter().filter(|send| send.nic == nic && send.payload[0] == 1).count()
    };
    assert_eq!(requests(&mut world, A), 1);
    world.wait(2);
    world.hear(B, &[("10.9.0.0/24", 2)]);
    world.daemon.take_sends();
    world.wait(60);
    let sends = world.daemon.sends.clone();
    assert_eq!(requests(&mut world, A), 2, "three more were sent before");
    world.daemon.sends = sends;
    assert_eq!(requests(&mut world, B), 0, "one there has answered");
}

#[test]
fn claim_1_neighbours_are_told_the_vipa_in_place_of_the_physical_addresses() {
    let mut world = World::v4();
    world.wait(24);
    world.daemon.take_sends();
    world.wait(12);
    assert_eq!(world.told(A), told(&[("203.0.113.10/32", 2)]));
}

#[test]
fn fig_3b_338_virtual_and_real_routes_go_over_each_live_nic() {
    let mut world =
        World::new(Family::V4, Settings { advertise: Advertise::VirtualAndReal, ..settings() });
    world.wait(5);
    world.daemon.take_sends();
    world.daemon.broadcast_timer(world.now, 0);
    // Its own network is known to all on it.
    assert_eq!(world.told(A), told(&[("10.1.2.0/24", 1), ("203.0.113.10/32", 2)]));
}

#[test]
fn fig_3b_336_a_nic_that_is_not_active_is_passed_over() {
    let mut world = World::v4();
    world.interfaces[0].is_live = false;
    world.interfaces[0].has_carrier = false;
    world.look();
    world.daemon.take_sends();
    world.wait(40);
    let sends = world.daemon.take_sends();
    assert!(!sends.is_empty());
    assert!(sends.iter().all(|send| send.nic == B));
}

#[test]
fn fig_3a_313_an_inactive_nic_s_routes_are_marked_for_deletion_and_the_virtual_ones_stay() {
    let mut world =
        World::new(Family::V4, Settings { advertise: Advertise::VirtualAndReal, ..settings() });
    world.wait(6);
    world.daemon.take_sends();
    world.interfaces[0].is_live = false;
    world.interfaces[0].has_carrier = false;
    world.look();
    // In the same tick, over what lives: the VIPA, shorter, and the lost network.
    assert_eq!(world.told(B), told(&[("10.1.1.0/24", 16), ("203.0.113.10/32", 1)]));
    world.wait(121);
    let prefix = "10.1.1.0/24".parse().expect("a prefix");
    assert!(world.daemon.table().get(&prefix).is_none(), "it outlived its garbage time");
    let vipa = "203.0.113.10/32".parse().expect("a prefix");
    assert!(world.daemon.table().get(&vipa).is_some());
}

#[test]
fn where_the_path_is_dead_and_the_link_is_not_the_vipa_is_told_to_be_gone() {
    let mut world = World::v4();
    world.wait(6);
    world.daemon.take_sends();
    world.interfaces[0].is_live = false;
    world.interfaces[0].has_carrier = true;
    world.look();
    assert_eq!(world.told(A), told(&[("203.0.113.10/32", 16)]), "it may be dead one way only");
    world.wait(40);
    let all = world.told(A);
    assert!(!all.is_empty() && all.iter().all(|(_, metric)| *metric == 16), "{all:?}");
}

#[test]
fn a_neighbour_with_bfd_behind_a_dead_path_is_reminded_until_it_heals() {
    for (has_bfd, least, most) in [(false, 0, 0), (true, 30, 40)] {
        let mut world = World::new(Family::V4, Settings { has_bfd, ..settings() });
        world.wait(6);
        world.interfaces[0].is_live = false;
        world.look();
        world.daemon.take_sends();
        world.wait(10);
        let reminded = world.told(A);
        assert!((least..=most).contains(&reminded.len()), "{}", reminded.len());
        assert!(reminded.iter().all(|one| *one == ("203.0.113.10/32".to_owned(), 16)));
        world.interfaces[0].is_live = true;
        world.look();
        world.daemon.take_sends();
        world.wait(10);
        assert!(world.told(A).len() < 10);
    }
}

#[test]
fn fig_3b_346_a_dead_path_makes_the_vipa_nearer_by_the_others_for_a_timeout() {
    let mut world = World::v4();
    world.wait(6);
    world.daemon.take_sends();
    world.interfaces[0].is_live = false;
    world.interfaces[0].has_carrier = false;
    world.look();
    assert_eq!(world.told(B), told(&[("203.0.113.10/32", 1)]));
    world.wait(179);
    world.daemon.take_sends();
    world.wait(6);
    let last = world.told(B).pop();
    assert_eq!(last, Some(("203.0.113.10/32".to_owned(), 2)), "the reserve is back");
}

#[test]
fn fig_3a_321_a_reactivated_nic_is_spoken_on_again_at_once() {
    let mut world = World::v4();
    world.interfaces[0].is_live = false;
    world.interfaces[0].has_carrier = false;
    world.look();
    world.wait(40);
    world.daemon.take_sends();
    world.interfaces[0].is_live = true;
    world.interfaces[0].has_carrier = true;
    world.look();
    assert!(world.told(A).contains(&("203.0.113.10/32".to_owned(), 1)));
}

#[test]
fn v7_an_update_for_a_virtual_route_changes_nothing() {
    let mut world = World::v4();
    world.hear(A, &[("203.0.113.10/32", 1)]);
    assert_eq!(world.learned(), []);
    let vipa = "203.0.113.10/32".parse().expect("a prefix");
    assert_eq!(world.daemon.table().get(&vipa).map(|route| route.metric), Some(2));
}

#[test]
fn v7_a_shorter_route_replaces_the_longer_one() {
    let mut world = World::v4();
    world.hear(A, &[("10.9.0.0/24", 5)]);
    assert_eq!(world.learned(), [("10.9.0.0/24".to_owned(), vec![0])]);
    world.hear(B, &[("10.9.0.0/24", 3)]);
    assert_eq!(world.learned(), [("10.9.0.0/24".to_owned(), vec![1])]);
    world.hear(A, &[("10.9.0.0/24", 5)]);
    assert_eq!(world.learned(), [("10.9.0.0/24".to_owned(), vec![1])], "the longer one came back");
}

#[test]
fn routes_of_equal_cost_are_kept_side_by_side() {
    let mut world = World::v4();
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.hear(B, &[("10.9.0.0/24", 2)]);
    assert_eq!(world.learned(), [("10.9.0.0/24".to_owned(), vec![0, 1])]);
    world.hear(A, &[("10.9.0.0/24", 16)]);
    assert_eq!(world.learned(), [("10.9.0.0/24".to_owned(), vec![1])]);
}

#[test]
fn rfc2453_3_8_a_route_not_heard_of_is_unreachable_after_the_timeout_and_later_forgotten() {
    let mut world = World::new(Family::V4, Settings { advertise: Advertise::All, ..settings() });
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.wait(179);
    assert_eq!(world.learned().len(), 1);
    world.daemon.take_sends();
    world.wait(2);
    assert_eq!(world.learned(), []);
    assert!(world.told(B).contains(&("10.9.0.0/24".to_owned(), 16)), "the neighbours are told");
    let prefix = "10.9.0.0/24".parse().expect("a prefix");
    assert!(world.daemon.table().get(&prefix).is_some());
    world.wait(121);
    assert!(world.daemon.table().get(&prefix).is_none());
}

#[test]
fn rfc2453_3_9_2_only_the_one_who_told_may_make_a_route_longer() {
    let mut world = World::v4();
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.hear(B, &[("10.9.0.0/24", 16)]);
    assert_eq!(world.learned(), [("10.9.0.0/24".to_owned(), vec![0])]);
    world.hear(A, &[("10.9.0.0/24", 16)]);
    assert_eq!(world.learned(), []);
}

#[test]
fn rfc2453_3_4_3_split_horizon_with_poisoned_reverse() {
    let mut world = World::new(Family::V4, Settings { advertise: Advertise::All, ..settings() });
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.daemon.take_sends();
    world.daemon.broadcast_timer(world.now, 0);
    let sends = world.daemon.sends.clone();
    assert!(world.told(A).contains(&("10.9.0.0/24".to_owned(), 16)));
    world.daemon.sends = sends;
    assert!(world.told(B).contains(&("10.9.0.0/24".to_owned(), 3)));
}

#[test]
fn rfc2453_3_10_1_the_first_triggered_update_is_sent_at_once_and_later_ones_are_held_together() {
    let mut world = World::new(Family::V4, Settings { advertise: Advertise::All, ..settings() });
    world.wait(6);
    world.daemon.take_sends();
    world.hear(A, &[("10.9.1.0/24", 2)]);
    assert_eq!(world.told(B), told(&[("10.9.1.0/24", 3)]));
    world.hear(A, &[("10.9.2.0/24", 2)]);
    world.hear(A, &[("10.9.3.0/24", 2)]);
    assert_eq!(world.told(B), []);
    world.wait(6);
    let together = world.told(B);
    assert!(together.contains(&("10.9.2.0/24".to_owned(), 3)));
    assert!(together.contains(&("10.9.3.0/24".to_owned(), 3)));
}

#[test]
fn rfc2453_3_9_1_a_request_for_everything_is_answered_to_who_asked() {
    let mut world = World::v4();
    world.daemon.take_sends();
    world.hear_from(A, "10.1.1.7:40000", &rip::request_for_all(Version::V2));
    let sends = world.daemon.take_sends();
    assert_eq!(sends.len(), 1);
    assert_eq!(sends[0].to, "10.1.1.7:40000".parse().expect("a socket address"));
}

#[test]
fn rfc2453_3_9_1_a_request_for_entries_is_filled_in_and_what_is_unknown_is_unreachable() {
    let mut world = World::v4();
    world.daemon.take_sends();
    let mut request = response(&[("203.0.113.10/32", 1), ("10.77.0.0/16", 1)]);
    request[0] = 1;
    world.hear_from(A, "10.1.1.7:520", &request);
    assert_eq!(world.told(A), told(&[("203.0.113.10/32", 2), ("10.77.0.0/16", 16)]));
}

#[test]
fn rfc2453_3_9_2_what_is_not_to_be_believed_is_counted_and_changes_nothing() {
    let good = response(&[("10.9.0.0/24", 2)]);
    let route = |prefix, metric| response(&[(prefix, metric)]);
    let cases: [(&str, &str, Vec<u8>); 9] = [
        ("not_on_link", "10.7.7.7:520", good.clone()),
        ("port", "10.1.1.1:521", good.clone()),
        ("length", "10.1.1.1:520", good[..23].to_vec()),
        ("metric", "10.1.1.1:520", route("10.9.0.0/24", 0)),
        ("metric", "10.1.1.1:520", route("10.9.0.0/24", 17)),
        ("destination", "10.1.1.1:520", route("127.0.0.0/8", 1)),
        ("destination", "10.1.1.1:520", route("0.1.0.0/16", 1)),
        ("destination", "10.1.1.1:520", route("224.0.0.0/4", 1)),
        ("command", "10.1.1.1:520", [&[9], &good[1..]].concat()),
    ];
    for (name, source, payload) in cases {
        let mut world = World::v4();
        world.hear_from(A, source, &payload);
        assert_eq!(world.rejected(), [name]);
        assert_eq!(world.learned(), [], "{name}");
    }
}

#[test]
fn our_own_messages_heard_by_another_nic_are_not_taken() {
    let mut world = World::v4();
    world.hear_from(A, "10.1.2.2:520", &response(&[("10.9.0.0/24", 2)]));
    assert_eq!(world.learned(), []);
    assert_eq!(world.rejected(), [""; 0]);
}

#[test]
fn rfc2080_2_4_2_ripng_is_believed_only_from_a_link_local_address_with_hop_limit_255() {
    let good = response(&[("2001:db8:9::/64", 2)]);
    let case = |source: &str, ttl, is_multicast| {
        let mut world = World::new(Family::V6, settings());
        let source = source.parse().expect("a socket address");
        let datagram = Datagram { nic: A, source, ttl, is_multicast, payload: &good };
        world.daemon.receive(datagram, world.now, 0);
        (world.learned().len(), world.rejected())
    };
    assert_eq!(case("[fe80::1]:521", 255, true), (1, vec![]));
    assert_eq!(case("[fe80::1]:521", 254, true), (0, vec!["hop_limit"]));
    assert_eq!(case("[fe80::1]:521", 64, false), (1, vec![]));
    assert_eq!(case("[2001:db8::1]:521", 255, true), (0, vec!["not_on_link"]));
    assert_eq!(case("[fe80::1]:520", 255, true), (0, vec!["port"]));
}

#[test]
fn a_default_route_that_ripng_withdraws_is_gone() {
    let mut world = World::new(Family::V6, settings());
    world.hear_from(A, "[fe80::1]:521", &response(&[("::/0", 1), ("2001:db8:9::/64", 1)]));
    assert_eq!(world.learned().len(), 2);
    world.hear_from(A, "[fe80::1]:521", &response(&[("::/0", 16)]));
    assert_eq!(world.learned(), [("2001:db8:9::/64".to_owned(), vec![0])]);
    assert_eq!(world.rejected(), [""; 0]);
}

#[test]
fn rfc2453_4_4_a_next_hop_on_the_link_is_used_and_another_one_means_the_sender() {
    let gateway = |hop: [u8; 4]| {
        let mut world = World::v4();
        let mut message = response(&[("10.9.0.0/24", 2)]);
        message[16..20].copy_from_slice(&hop);
        world.hear_from(A, "10.1.1.1:520", &message);
        let learned = world.daemon.learned().next().expect("a route");
        learned.ways[0].1.to_string()
    };
    assert_eq!(gateway([0; 4]), "10.1.1.1");
    assert_eq!(gateway([10, 1, 1, 9]), "10.1.1.9");
    assert_eq!(gateway([10, 8, 8, 8]), "10.1.1.1");
    assert_eq!(gateway([10, 1, 1, 2]), "10.1.1.1", "ourselves");
}

#[test]
fn routes_past_the_bound_and_outside_of_the_filter_are_counted() {
    let mut world = World::new(Family::V4, Settings { most_routes: 2, ..settings() });
    world.hear(A, &[("10.9.1.0/24", 2), ("10.9.2.0/24", 2), ("10.9.3.0/24", 2)]);
    assert_eq!(world.learned().len(), 2);
    assert_eq!(world.rejected(), ["too_many"]);
    let accept = vec!["10.9.0.0/16".parse().expect("a prefix")];
    let mut world = World::new(Family::V4, Settings { accept, ..settings() });
    world.hear(A, &[("10.9.1.0/24", 2), ("10.8.1.0/24", 2), ("10.0.0.0/8", 2)]);
    assert_eq!(world.learned(), [("10.9.1.0/24".to_owned(), vec![0])]);
    assert_eq!(world.rejected(), ["filtered"]);
}

#[test]
fn a_passive_nic_hears_and_does_not_speak() {
    let mut nics = vec![NicSettings::default(); 2];
    nics[0].is_passive = true;
    let mut world = World::new(Family::V4, Settings { nics, ..settings() });
    world.wait(70);
    assert!(world.daemon.take_sends().iter().all(|send| send.nic == B));
    world.hear(A, &[("10.9.0.0/24", 2)]);
    assert_eq!(world.learned().len(), 1);
}

#[test]
fn a_nic_s_cost_is_added_to_what_is_heard_by_it() {
    let mut nics = vec![NicSettings::default(); 2];
    nics[0].cost = 5;
    let mut world = World::new(Family::V4, Settings { nics, ..settings() });
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.hear(B, &[("10.9.0.0/24", 4)]);
    assert_eq!(world.learned(), [("10.9.0.0/24".to_owned(), vec![1])]);
}

#[test]
fn a_withdrawal_tells_all_that_the_vipa_is_unreachable() {
    let mut world = World::v4();
    world.wait(6);
    world.daemon.take_sends();
    world.daemon.withdraw(world.now, 0);
    let sends = world.daemon.sends.clone();
    assert_eq!(world.told(A), told(&[("203.0.113.10/32", 16)]));
    world.daemon.sends = sends;
    assert_eq!(world.told(B), told(&[("203.0.113.10/32", 16)]));
}

#[test]
fn rfc2453_3_6_no_message_has_more_than_25_entries() {
    let mut world = World::new(
        Family::V4,
        Settings { advertise: Advertise::All, most_routes: 1000, ..settings() },
    );
    for n in 0..60 {
        world.hear(A, &[(&format!("10.9.{n}.0/24"), 2)]);
    }
    world.daemon.take_sends();
    world.daemon.broadcast_timer(world.now, 0);
    let by_b: Vec<usize> =
        world.daemon.take_sends().iter().filter(|s| s.nic == B).map(|s| s.payload.len()).collect();
    // Two NICs' networks are told as well, but for B's own.
    assert_eq!(by_b, [504, 504, 4 + 20 * 12]);
}

#[test]
fn rfc1058_version_1_is_broadcast_and_its_masks_are_those_of_the_nic_or_the_class() {
    let mut world = World::new(Family::V4, Settings { is_v1: true, is_v2: false, ..settings() });
    let sends = world.daemon.take_sends();
    assert_eq!(sends[0].to, "10.1.1.255:520".parse().expect("a socket address"));
    let mut heard = rip::header(Command::Response, Version::V1).to_vec();
    for prefix in ["10.9.9.0/24", "172.16.0.0/16", "10.0.0.0/8", "10.9.9.9/32"] {
        let prefix = prefix.parse().expect("a prefix");
        rip::put(&mut heard, Version::V1, Told { prefix, tag: 0, metric: 1 });
    }
    world.hear_from(A, "10.1.1.1:520", &heard);
    let learned: Vec<String> = world.learned().into_iter().map(|(prefix, _)| prefix).collect();
    assert_eq!(learned, ["10.0.0.0/8", "10.9.9.0/24", "10.9.9.9/32", "172.16.0.0/16"]);
}
