//! One behaviour a test, by section of RFC 2453 (and RFC 2080), and the boxes of FIG. 3A and 3B.

use super::*;
use crate::rip::auth::{Algorithm, Key};
use crate::rip::{Advertise, Horizon};
use crate::wire::rip::{self, Command, Item, Message, PORT, Told, Version};

const A: NicId = NicId(0);
const B: NicId = NicId(1);

struct World {
    daemon: Daemon,
    interfaces: Vec<Interface>,
    now: Instant,
}

fn settings() -> Settings {
    Settings { most_routes: 100, nics: vec![NicSettings::default(); 2], ..Settings::default() }
}

fn interface(nic: NicId) -> Interface {
    let n = nic.0 + 1;
    let v4: IpAddr = format!("10.1.{n}.2").parse().expect("an address");
    let v6: IpAddr = format!("fe80::{n}:2").parse().expect("an address");
    let addresses = vec![(v4, 24), (v6, 64)];
    let (is_live, has_carrier, is_waking) = (true, true, false);
    let (ifindex, silent) = (u32::from(n), Vec::new());
    Interface { nic, is_live, has_carrier, is_waking, silent, ifindex, addresses, mtu: 1500 }
}

impl World {
    fn new(family: Family, settings: Settings) -> World {
        let vipas = ["203.0.113.10".parse().expect("v4"), "2001:db8:ffff::10".parse().expect("v6")];
        let now = Instant::now();
        let daemon = Daemon::new(family, settings, &vipas, 7, now);
        let mut interfaces = vec![interface(A), interface(B)];
        // As the speaker tells each daemon of its own family alone.
        let is_known = |(address, _): &(IpAddr, u8)| Family::of(*address) == family;
        interfaces.iter_mut().for_each(|interface| interface.addresses.retain(is_known));
        let mut world = World { daemon, interfaces, now };
        world.look();
        world
    }

    fn v4() -> World {
        World::new(Family::V4, settings())
    }

    fn look(&mut self) {
        self.daemon.interface_timer(&self.interfaces, self.now);
    }

    fn wait(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.daemon.next_deadline() <= end {
            self.now = self.now.max(self.daemon.next_deadline());
            self.daemon.tick(self.now);
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
            .filter_map(|send| Message::parse(&send.message, family).ok())
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
        self.hears(nic, source, payload, true);
    }

    fn hears(&mut self, nic: NicId, source: &str, payload: &[u8], is_multicast: bool) {
        let source = source.parse().expect("a socket address");
        let datagram = Datagram { nic, source, ttl: 255, is_multicast, message: Ok(payload) };
        self.daemon.receive(datagram, self.now);
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
    let commands: Vec<(u8, u8)> = sends.iter().map(|s| (s.nic.0, s.message[0])).collect();
    // Request and response by each NIC.
    assert_eq!(commands[..4], [(0, 1), (0, 2), (1, 1), (1, 2)]);
    assert!(sends.iter().all(|send| send.to == SocketAddr::new(GROUP.into(), PORT)));
}

#[test]
fn a_neighbour_that_does_not_answer_is_asked_again_until_one_does() {
    let mut world = World::v4();
    let requests = |world: &mut World, nic: NicId| {
        let sends = world.daemon.take_sends();
        sends.iter().filter(|send| send.nic == nic && send.message[0] == 1).count()
    };
    assert_eq!(requests(&mut world, A), 1);
    world.wait(2);
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.hears(B, "10.1.2.1:520", &response(&[("10.9.0.0/24", 2)]), false);
    world.daemon.take_sends();
    world.wait(60);
    let sends = world.daemon.sends.clone();
    assert_eq!(
        requests(&mut world, A),
        3,
        "two more were sent before; what all are told is no answer"
    );
    world.daemon.sends = sends;
    assert_eq!(requests(&mut world, B), 0, "one there has answered");
}

#[test]
fn a_router_that_comes_up_later_is_asked_back_until_it_has_answered() {
    for (family, neighbour, version) in
        [(Family::V4, "10.1.1.1:520", Version::V2), (Family::V6, "[fe80::1]:521", Version::Ng)]
    {
        let mut world = World::new(family, settings());
        let request = rip::request_for_all(version);
        let asks = |world: &mut World, who: &str| {
            world.daemon.take_sends();
            world.hear_from(A, who, &request);
            let sends = world.daemon.take_sends();
            let to = who.parse().expect("a socket address");
            assert!(sends.iter().all(|send| (send.nic, send.to) == (A, to)));
            sends.iter().map(|send| send.message[0]).collect::<Vec<_>>()
        };
        let answer = rip::header(Command::Response, version).to_vec();
        assert_eq!(asks(&mut world, neighbour), [2, 1], "an answer, and a question");
        world.hear_from(A, neighbour, &answer);
        assert_eq!(asks(&mut world, neighbour), [2, 1], "all may be told no more than news");
        world.hears(A, neighbour, &answer, false);
        assert_eq!(asks(&mut world, neighbour), [2], "it has answered");
        let (another, query) = match family {
            Family::V4 => ("10.1.1.7:520", "10.1.1.7:40000"),
            Family::V6 => ("[fe80::7]:521", "[fe80::7]:40000"),
        };
        assert_eq!(asks(&mut world, another), [2, 1], "each for itself");
        assert_eq!(asks(&mut world, query), [2], "no router");

        // The link was away: who answered before knows other things by now.
        for is_live in [false, true] {
            world.interfaces[0].is_live = is_live;
            world.look();
        }
        assert_eq!(asks(&mut world, neighbour), [2, 1]);
    }
}

#[test]
fn two_that_have_nothing_to_tell_do_not_ask_each_other_for_ever() {
    let now = Instant::now();
    let mut pair = [2, 1].map(|last| {
        let mut interface = interface(A);
        interface.addresses = vec![(format!("10.1.1.{last}").parse().expect("an address"), 24)];
        let mut daemon = Daemon::new(Family::V4, settings(), &[], 7, now);
        daemon.interface_timer(&[interface], now);
        daemon
    });
    let mut messages = 0;
    while messages < 100 {
        let sends = pair.each_mut().map(Daemon::take_sends);
        if sends.iter().all(Vec::is_empty) {
            break;
        }
        for (from, sends) in sends.into_iter().enumerate() {
            for send in sends {
                messages += 1;
                let source = (send.from.expect("an address"), PORT).into();
                let is_multicast = send.to.ip().is_multicast();
                let message = Ok(&*send.message);
                let datagram = Datagram { nic: A, source, ttl: 1, is_multicast, message };
                pair[1 - from].receive(datagram, now);
            }
        }
    }
    assert_eq!(messages, 4, "each asks all, and is asked back");
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
    world.daemon.broadcast_timer(world.now);
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
fn a_neighbour_that_answers_again_is_reminded_until_its_path_is_live() {
    let mut world = World::v4();
    world.wait(6);
    world.interfaces[0].is_live = false;
    world.look();
    world.daemon.take_sends();
    world.interfaces[0].is_waking = true;
    world.look();
    for pause in [125, 250, 500, 1000] {
        world.wait(0);
        assert_eq!(world.told(A), told(&[("203.0.113.10/32", 16)]), "at once, and again");
        world.look();
        world.wait(0);
        assert_eq!(world.daemon.take_sends().len(), 0, "news of others are no reason");
        world.now += Duration::from_millis(pause);
    }
    world.interfaces[0].is_live = true;
    world.look();
    world.daemon.take_sends();
    assert_eq!(world.daemon.reminder, None);
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
    let vipa = |metric| ("203.0.113.10/32".to_owned(), metric);
    assert!(world.told(A).contains(&vipa(2)));
}

#[test]
fn fig_3b_346_the_reserve_is_back_with_the_path_and_serves_the_next_failure() {
    let mut world = World::v4();
    world.wait(6);
    for [dead, other] in [[A, B], [B, A], [A, B]] {
        let at = usize::from(dead.0);
        world.daemon.take_sends();
        world.interfaces[at].is_live = false;
        world.look();
        assert_eq!(world.told(other), told(&[("203.0.113.10/32", 1)]), "nearer by the other");
        world.wait(3);
        world.daemon.take_sends();
        world.interfaces[at].is_live = true;
        world.look();
        let sends = world.daemon.take_sends();
        let responses = || sends.iter().filter(|send| send.message[0] == 2);
        let metrics: Vec<u8> = responses().map(|send| send.message[23]).collect();
        assert_eq!(metrics, [2, 2, 2]);
        let nics: Vec<NicId> = responses().map(|send| send.nic).collect();
        assert_eq!((nics[2], nics.contains(&other)), (dead, true), "it is told last");
        world.wait(1);
        let again = world.told(dead);
        assert!(again.contains(&("203.0.113.10/32".to_owned(), 2)), "{again:?}");
    }
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
    world.daemon.broadcast_timer(world.now);
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
        let datagram = Datagram { nic: A, source, ttl, is_multicast, message: Ok(&good) };
        world.daemon.receive(datagram, world.now);
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

/// Who has several ways takes one after the other for longer, and needs to hear of all of them again.
#[test]
fn what_is_told_at_a_start_and_after_the_reserve_is_told_again() {
    let mut world = World::v4();
    for (nic, neighbour) in [(A, "10.1.1.1:520"), (B, "10.1.2.1:520")] {
        world.hears(nic, neighbour, &response(&[("10.9.0.0/24", 2)]), false);
    }
    world.daemon.take_sends();
    world.wait(3);
    let twice = told(&[("203.0.113.10/32", 2), ("203.0.113.10/32", 2)]);
    assert_eq!(world.told(B), twice, "again, though it was answered");
    world.interfaces[0].is_live = false;
    world.look();
    let end = world.daemon.reserve_until.expect("the shorter metric is told");
    world.wait((end - world.now).as_secs() - 1);
    world.daemon.take_sends();
    world.wait(5);
    let longer = ("203.0.113.10/32".to_owned(), 2);
    assert!(world.told(B).iter().filter(|told| **told == longer).count() >= 2);
}

#[test]
fn a_withdrawal_tells_all_that_the_vipa_is_unreachable() {
    let mut world = World::v4();
    world.wait(6);
    world.daemon.take_sends();
    world.daemon.withdraw();
    let sends = world.daemon.sends.clone();
    assert_eq!(world.told(A), told(&[("203.0.113.10/32", 16)]));
    world.daemon.sends = sends;
    assert_eq!(world.told(B), told(&[("203.0.113.10/32", 16)]));
}

#[test]
fn who_takes_leave_says_so_of_all_that_was_told_and_to_the_end() {
    let garbage = Duration::from_secs(1);
    let mut world = World::new(
        Family::V4,
        Settings { advertise: Advertise::All, garbage, update: garbage, ..settings() },
    );
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.wait(6);
    world.daemon.take_sends();
    world.daemon.withdraw();
    world.wait(10);
    let told = world.told(B);
    assert!(told.iter().all(|(_, metric)| *metric == 16), "{told:?}");
    for prefix in ["203.0.113.10/32", "10.9.0.0/24"] {
        assert!(told.iter().filter(|(told, _)| told == prefix).count() > 3, "{told:?}");
    }
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
    world.daemon.broadcast_timer(world.now);
    let by_b: Vec<usize> =
        world.daemon.take_sends().iter().filter(|s| s.nic == B).map(|s| s.message.len()).collect();
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

// Of the sentences in tests/rip: RFC 2453.

#[test]
fn rfc2453_3_8_a_route_that_comes_back_in_time_is_not_collected() {
    let mut world = World::v4();
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.hear(A, &[("10.9.0.0/24", 16)]);
    assert_eq!(world.learned(), []);
    world.wait(100);
    world.hear(A, &[("10.9.0.0/24", 3)]);
    world.wait(60);
    assert_eq!(world.learned(), [("10.9.0.0/24".to_owned(), vec![0])], "the old timer runs on");
}

#[test]
fn rfc2453_3_8_a_deletion_begins_once_however_often_it_is_told() {
    let mut world = World::v4();
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.hear(A, &[("10.9.0.0/24", 16)]);
    world.wait(100);
    world.hear(A, &[("10.9.0.0/24", 16)]);
    world.wait(21);
    assert!(world.daemon.table().get(&"10.9.0.0/24".parse().expect("a prefix")).is_none());
}

#[test]
fn rfc2453_3_9_1_an_answer_to_a_request_for_everything_has_split_horizon_and_one_by_name_has_not() {
    let mut world = World::new(Family::V4, Settings { advertise: Advertise::All, ..settings() });
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.daemon.take_sends();
    world.hear_from(A, "10.1.1.1:520", &rip::request_for_all(Version::V2));
    assert!(world.told(A).contains(&("10.9.0.0/24".to_owned(), 16)));
    let mut request = response(&[("10.9.0.0/24", 1)]);
    request[0] = 1;
    world.hear_from(A, "10.1.1.1:520", &request);
    assert_eq!(world.told(A), told(&[("10.9.0.0/24", 3)]));
}

#[test]
fn rfc2453_3_9_1_a_request_without_entries_has_no_answer() {
    let mut world = World::v4();
    world.daemon.take_sends();
    world.hear_from(A, "10.1.1.7:520", &rip::header(Command::Request, Version::V2));
    assert_eq!(world.daemon.take_sends(), []);
}

#[test]
fn rfc2453_4_6_a_request_is_answered_in_its_own_version_if_that_is_spoken() {
    let asked = |version, settings| {
        let mut world = World::new(Family::V4, settings);
        world.daemon.take_sends();
        world.hear_from(A, "10.1.1.7:40000", &rip::request_for_all(version));
        let answers = world.daemon.take_sends();
        (answers.iter().map(|s| s.message[1]).collect::<Vec<_>>(), world.rejected())
    };
    let both = Settings { is_v1: true, ..settings() };
    assert_eq!(asked(Version::V1, both.clone()), (vec![1], vec![]));
    assert_eq!(asked(Version::V2, both), (vec![2], vec![]));
    assert_eq!(asked(Version::V1, settings()), (vec![], vec!["version"]));
}

#[test]
fn rfc2453_3_10_1_a_triggered_update_has_what_changed_and_clears_the_flags() {
    let mut world = World::new(Family::V4, Settings { advertise: Advertise::All, ..settings() });
    world.hear(A, &[("10.9.1.0/24", 2)]);
    world.wait(7);
    world.daemon.take_sends();
    world.hear(A, &[("10.9.2.0/24", 2)]);
    assert_eq!(world.told(B), told(&[("10.9.2.0/24", 3)]));
    assert!(!world.daemon.table().is_changed());
}

#[test]
fn rfc2453_3_10_1_a_regular_update_takes_the_place_of_a_triggered_one() {
    let settings = Settings { update: Duration::from_secs(1), ..settings() };
    let mut world = World::new(Family::V4, Settings { advertise: Advertise::All, ..settings });
    world.hear(A, &[("10.9.1.0/24", 2)]);
    world.hear(A, &[("10.9.2.0/24", 2)]);
    assert!(world.daemon.is_triggered);
    // It may not be sent within a second of the first, and until then the regular one is due.
    world.daemon.quiet_until = Some(world.now + Duration::from_secs(3));
    world.now += Duration::from_millis(1200);
    world.daemon.take_sends();
    world.daemon.tick(world.now);
    assert!(world.told(B).contains(&("10.9.1.0/24".to_owned(), 3)), "no regular update");
    assert!(!world.daemon.is_triggered);
}

#[test]
fn rfc2453_3_10_1_triggered_updates_are_one_to_five_seconds_apart() {
    for seed in 1..200 {
        let mut world = World::v4();
        world.daemon.seed = seed;
        world.daemon.quiet(world.now);
        let wait = world.daemon.quiet_until.expect("quiet") - world.now;
        assert!((TRIGGERED.0..=TRIGGERED.1).contains(&wait), "{wait:?}");
    }
}

#[test]
fn rfc2453_3_8_updates_are_spread() {
    let mut world = World::v4();
    let periods: Vec<Duration> = (0..100).map(|_| world.daemon.period()).collect();
    let (least, most) = (periods.iter().min(), periods.iter().max());
    let seconds = |d: Option<&Duration>| d.expect("some").as_secs();
    assert!((25..=27).contains(&seconds(least)), "{least:?}");
    assert!((33..35).contains(&seconds(most)), "{most:?}");
}

#[test]
fn rfc2453_4_1_a_signature_leaves_room_for_24_entries() {
    let algorithm = Algorithm::Md5;
    let key = Key { id: 1, algorithm, secret: b"secret".to_vec(), from: None, until: None };
    let all = Settings { advertise: Advertise::All, most_routes: 1000, ..settings() };
    let mut world = World::new(Family::V4, Settings { keys: vec![key], ..all });
    for n in 0..30 {
        world.hear(A, &[(&format!("10.9.{n}.0/24"), 2)]);
    }
    world.daemon.take_sends();
    world.daemon.broadcast_timer(world.now);
    let sends = world.daemon.take_sends();
    let longest = sends.iter().map(|s| s.message.len()).max();
    assert_eq!(longest, Some(4 + 20 * 24));
}

#[test]
fn rfc2453_4_2_a_route_tag_is_kept_and_told() {
    let mut world = World::new(Family::V4, Settings { advertise: Advertise::All, ..settings() });
    let mut message = response(&[("10.9.0.0/24", 2)]);
    message[6..8].copy_from_slice(&[0x12, 0x34]);
    world.hear_from(A, "10.1.1.1:520", &message);
    world.daemon.take_sends();
    world.daemon.broadcast_timer(world.now);
    let sends = world.daemon.take_sends();
    let by_b = sends.iter().find(|send| send.nic == B).expect("an update");
    let tags: Vec<u16> = Message::parse(&by_b.message, Family::V4)
        .expect("ours")
        .items()
        .filter_map(|item| match item {
            Ok(Item::Route(entry)) if entry.address.to_string() == "10.9.0.0" => Some(entry.tag),
            _ => None,
        })
        .collect();
    assert_eq!(tags, [0x1234]);
}

#[test]
fn rfc2453_4_4_we_name_no_next_hop_but_ourselves() {
    let mut world = World::new(Family::V4, Settings { advertise: Advertise::All, ..settings() });
    let mut message = response(&[("10.9.0.0/24", 2)]);
    message[16..20].copy_from_slice(&[10, 1, 1, 9]);
    world.hear_from(A, "10.1.1.1:520", &message);
    world.daemon.take_sends();
    world.daemon.broadcast_timer(world.now);
    for send in world.daemon.take_sends() {
        assert!(send.message[4..].chunks(20).all(|entry| entry[12..16] == [0; 4]));
    }
}

#[test]
fn rfc2453_3_7_version_1_tells_no_subnet_outside_of_its_network() {
    let is_v1 = Settings { is_v1: true, is_v2: false, ..settings() };
    let mut world = World::new(Family::V4, Settings { advertise: Advertise::All, ..is_v1 });
    world.interfaces[1].addresses[0] = ("192.168.7.2".parse().expect("an address"), 24);
    world.look();
    // Until the network that it had before is forgotten.
    world.wait(130);
    world.daemon.take_sends();
    world.daemon.broadcast_timer(world.now);
    let addresses = |world: &mut World, nic| -> Vec<String> {
        world.told(nic).into_iter().map(|(prefix, _)| prefix).collect()
    };
    let sends = world.daemon.sends.clone();
    // 10.1.1.0/24 as its network, and of ours the whole network that 192.168.7.0/24 is.
    assert_eq!(addresses(&mut world, B), ["10.0.0.0/99", "203.0.113.10/99"]);
    world.daemon.sends = sends;
    assert_eq!(addresses(&mut world, A), ["192.168.7.0/99", "203.0.113.10/99"]);
}

#[test]
fn rfc2453_3_10_each_network_of_a_nic_is_spoken_to_from_its_own_address() {
    for (is_v1, group) in
        [(false, ["224.0.0.9", "224.0.0.9"]), (true, ["10.1.1.255", "10.7.255.255"])]
    {
        let mut world = World::new(Family::V4, Settings { is_v1, is_v2: !is_v1, ..settings() });
        let second = ("10.7.0.2".parse().expect("an address"), 16);
        let third = ("10.7.0.3".parse().expect("an address"), 16);
        world.interfaces[0].addresses.extend([second, third]);
        world.look();
        world.daemon.take_sends();
        world.daemon.broadcast_timer(world.now);
        let sends = world.daemon.take_sends();
        let by_a: Vec<(Option<String>, String)> = sends
            .iter()
            .filter(|send| send.nic == A)
            .map(|send| (send.from.map(|from| from.to_string()), send.to.ip().to_string()))
            .collect();
        let wanted = ["10.1.1.2", "10.7.0.2"].map(|from| Some(from.to_owned()));
        let wanted: Vec<_> = wanted.into_iter().zip(group.map(str::to_owned)).collect();
        assert_eq!(by_a, wanted);
    }
}

// RFC 2080.

fn by_a(world: &mut World) -> Vec<Send> {
    let sends = world.daemon.take_sends();
    sends.into_iter().filter(|send| send.nic == A).collect()
}

#[test]
fn rfc2080_2_5_2_all_goes_out_from_one_link_local_address_while_it_is_valid() {
    let mut world = World::new(Family::V6, settings());
    let from = |world: &mut World| -> Vec<String> {
        world.daemon.broadcast_timer(world.now);
        let sends = by_a(world);
        sends.iter().map(|s| s.from.expect("an address").to_string()).collect()
    };
    world.daemon.take_sends();
    assert_eq!(from(&mut world), ["fe80::1:2"]);
    // One more, before it in the kernel's order.
    let other = ("fe80::7".parse().expect("an address"), 64);
    world.interfaces[0].addresses.insert(0, other);
    world.look();
    world.daemon.take_sends();
    assert_eq!(from(&mut world), ["fe80::1:2"]);
    world.interfaces[0].addresses.retain(|address| *address == other);
    world.look();
    world.daemon.take_sends();
    assert_eq!(from(&mut world), ["fe80::7"]);
}

#[test]
fn rfc2080_2_4_1_a_query_from_another_port_is_answered_from_a_global_address() {
    let mut world = World::new(Family::V6, settings());
    let global = ("2001:db8:1::2".parse().expect("an address"), 64);
    world.interfaces[0].addresses.push(global);
    world.look();
    world.daemon.take_sends();
    let ask = |world: &mut World, source: &str, is_multicast| {
        let request = rip::request_for_all(Version::Ng);
        let source = source.parse().expect("a socket address");
        let datagram = Datagram { nic: A, source, ttl: 64, is_multicast, message: Ok(&request) };
        world.daemon.receive(datagram, world.now);
        let answers = by_a(world);
        answers.iter().map(|s| (s.from.expect("an address").to_string(), s.to)).collect::<Vec<_>>()
    };
    let to = |text: &str| text.parse().expect("a socket address");
    let answered = ask(&mut world, "[2001:db8:1::9]:40000", false);
    assert_eq!(answered, [("2001:db8:1::2".to_owned(), to("[2001:db8:1::9]:40000"))]);
    let answered = ask(&mut world, "[fe80::9]:40000", false);
    assert_eq!(answered, [("2001:db8:1::2".to_owned(), to("[fe80::9]:40000"))]);
    // A router: it is asked back as well.
    let answered = ask(&mut world, "[fe80::9]:521", true);
    let from_the_link = ("fe80::1:2".to_owned(), to("[fe80::9]:521"));
    assert_eq!(answered, [from_the_link.clone(), from_the_link]);
    assert_eq!(world.rejected(), [""; 0]);
    // Neither a router with an address that is not of the link, nor anybody from beyond.
    assert_eq!(ask(&mut world, "[2001:db8:1::9]:521", false), []);
    assert_eq!(ask(&mut world, "[2001:db8:7::9]:40000", false), []);
    assert_eq!(world.rejected(), ["not_on_link", "not_on_link"]);
}

#[test]
fn rfc2080_2_4_1_an_answer_to_a_request_for_everything_has_split_horizon() {
    let mut world = World::new(Family::V6, Settings { advertise: Advertise::All, ..settings() });
    world.hear_from(A, "[fe80::1]:521", &response(&[("2001:db8:9::/64", 2)]));
    world.daemon.take_sends();
    world.hear_from(A, "[fe80::1]:521", &rip::request_for_all(Version::Ng));
    assert!(world.told(A).contains(&("2001:db8:9::/64".to_owned(), 16)));
}

#[test]
fn rfc2080_2_4_2_entries_that_are_not_to_be_believed_are_passed_over_and_counted() {
    let cases = [
        ("destination", "ff05::/16", 1),
        ("destination", "fe80::/64", 1),
        ("destination", "::1/128", 1),
        ("metric", "2001:db8:8::/64", 0),
        ("metric", "2001:db8:8::/64", 17),
    ];
    for (reason, prefix, metric) in cases {
        let mut world = World::new(Family::V6, settings());
        let routes = [(prefix, metric), ("2001:db8:9::/64", 1)];
        world.hear_from(A, "[fe80::1]:521", &response(&routes));
        assert_eq!(world.rejected(), [reason], "{prefix}");
        assert_eq!(world.learned(), [("2001:db8:9::/64".to_owned(), vec![0])], "{prefix}");
    }
    let mut long = response(&[("2001:db8:8::/64", 1), ("2001:db8:9::/64", 1)]);
    long[4 + 18] = 129;
    let mut world = World::new(Family::V6, settings());
    world.hear_from(A, "[fe80::1]:521", &long);
    assert_eq!((world.rejected(), world.learned().len()), (vec!["mask"], 1));
}

#[test]
fn rfc2080_2_4_2_our_own_messages_are_not_taken() {
    let mut world = World::new(Family::V6, settings());
    world.hear_from(A, "[fe80::2:2]:521", &response(&[("2001:db8:9::/64", 1)]));
    assert_eq!((world.learned(), world.rejected()), (vec![], vec![]));
}

#[test]
fn rfc2080_2_3_a_route_that_comes_back_in_time_is_not_collected() {
    let mut world = World::new(Family::V6, settings());
    for metric in [2, 16] {
        world.hear_from(A, "[fe80::1]:521", &response(&[("2001:db8:9::/64", metric)]));
    }
    world.wait(100);
    world.hear_from(A, "[fe80::1]:521", &response(&[("2001:db8:9::/64", 3)]));
    world.wait(60);
    assert_eq!(world.learned(), [("2001:db8:9::/64".to_owned(), vec![0])]);
}

#[test]
fn rfc2080_2_5_1_a_triggered_update_goes_to_the_group_by_every_nic_with_what_changed() {
    let mut world = World::new(Family::V6, Settings { advertise: Advertise::All, ..settings() });
    world.wait(7);
    world.daemon.take_sends();
    world.hear_from(A, "[fe80::1]:521", &response(&[("2001:db8:9::/64", 2)]));
    let sends = world.daemon.sends.clone();
    let to: Vec<(u8, String)> = sends.iter().map(|s| (s.nic.0, s.to.to_string())).collect();
    assert_eq!(to, [(0, "[ff02::9%1]:521".to_owned()), (1, "[ff02::9%2]:521".to_owned())]);
    assert_eq!(world.told(B), told(&[("2001:db8:9::/64", 3)]));
    assert!(!world.daemon.table().is_changed());
    world.hear_from(A, "[fe80::1]:521", &response(&[("2001:db8:8::/64", 2)]));
    assert_eq!(world.told(B), [], "held back");
    world.wait(6);
    assert!(world.told(B).contains(&("2001:db8:8::/64".to_owned(), 3)));
}

#[test]
fn rfc2080_2_5_2_what_is_of_a_link_alone_is_never_told() {
    let all = Settings { advertise: Advertise::All, ..settings() };
    let mut world = World::new(Family::V6, all);
    world.wait(40);
    let mut request = response(&[("fe80::/64", 1), ("2001:db8:9::/64", 1)]);
    request[0] = 1;
    world.hear_from(A, "[fe80::1]:521", &request);
    let told = [world.told(A), world.told(B)].concat();
    assert!(told.iter().all(|(prefix, _)| !prefix.starts_with("fe80")), "{told:?}");
}

#[test]
fn rfc2080_2_5_2_a_message_fits_the_link_and_unreachable_routes_are_in_it() {
    let all = Settings { advertise: Advertise::All, most_routes: 1000, ..settings() };
    let mut world = World::new(Family::V6, all);
    world.interfaces.iter_mut().for_each(|interface| interface.mtu = 1280);
    world.look();
    for n in 0..100 {
        world.hear_from(A, "[fe80::1]:521", &response(&[(&format!("2001:db8:{n}::/48"), 2)]));
    }
    world.hear_from(A, "[fe80::1]:521", &response(&[("2001:db8::/48", 16)]));
    world.daemon.take_sends();
    world.daemon.broadcast_timer(world.now);
    let sends = world.daemon.sends.clone();
    assert!(
        sends
            .iter()
            .all(|send| send.message.len() + 48 <= 1280 && send.message[..4] == [2, 1, 0, 0])
    );
    let told = world.told(B);
    assert_eq!(told.len(), 101);
    assert!(told.contains(&("2001:db8::/48".to_owned(), 16)));
}

#[test]
fn rfc2080_2_6_each_nic_has_its_own_horizon() {
    let told = |horizon| {
        let mut nics = vec![NicSettings::default(); 2];
        nics[0].horizon = horizon;
        let all = Settings { advertise: Advertise::All, nics, ..settings() };
        let mut world = World::new(Family::V6, all);
        world.hear_from(A, "[fe80::1]:521", &response(&[("2001:db8:9::/64", 2)]));
        world.daemon.take_sends();
        world.daemon.broadcast_timer(world.now);
        let of = |(prefix, metric): (String, u8)| (prefix == "2001:db8:9::/64").then_some(metric);
        world.told(A).into_iter().find_map(of)
    };
    assert_eq!(told(Horizon::Poisoned), Some(16));
    assert_eq!(told(Horizon::Split), None);
    assert_eq!(told(Horizon::None), Some(3));
}

// Hostile input, and what is not in an RFC.

#[test]
fn rejections_are_counted_by_neighbour_and_reason() {
    let mut world = World::v4();
    let bad = [9; 24];
    for source in ["10.1.1.1:520", "10.1.1.1:520", "10.1.1.7:520"] {
        world.hear_from(A, source, &bad);
    }
    world.hear_from(A, "10.1.1.7:520", &[2]);
    let counted: Vec<(String, &str, u64)> = world
        .daemon
        .rejects()
        .iter()
        .map(|((from, reject), times)| (from.to_string(), reject.name(), *times))
        .collect();
    let wanted =
        [("10.1.1.1", "command", 2), ("10.1.1.7", "length", 1), ("10.1.1.7", "command", 1)];
    assert_eq!(counted, wanted.map(|(from, reason, times)| (from.to_owned(), reason, times)));
}

#[test]
fn past_the_bound_neighbours_that_are_refused_share_one_line() {
    let mut world = World::v4();
    for n in 0..2 * NEIGHBOURS as u32 {
        let source = std::net::Ipv4Addr::from(0x0b00_0000 + n);
        world.hear_from(A, &format!("{source}:520"), &[2]);
    }
    let rejects = world.daemon.rejects();
    assert_eq!(rejects.len(), NEIGHBOURS + 1);
    assert_eq!(rejects.values().sum::<u64>(), 2 * NEIGHBOURS as u64);
    let unknown = (Family::V4.unspecified(), Reject::NotOnLink);
    assert_eq!(rejects.get(&unknown), Some(&(NEIGHBOURS as u64)));
}

#[test]
fn what_is_refused_for_its_signature_changes_nothing_and_is_counted() {
    for reject in Reject::OF_SIGNATURES {
        let mut world = World::v4();
        let source = "10.1.1.1:520".parse().expect("a socket address");
        let message = Err(reject);
        let datagram = Datagram { nic: A, source, ttl: 1, is_multicast: true, message };
        world.daemon.receive(datagram, world.now);
        assert_eq!(world.rejected(), [reject.name()]);
        assert_eq!(world.learned(), []);
    }
}

#[test]
fn a_flood_of_requests_does_not_fill_the_memory() {
    let mut world = World::v4();
    for _ in 0..2 * MOST_WAITING {
        world.hear_from(A, "10.1.1.7:40000", &rip::request_for_all(Version::V2));
    }
    assert!(world.daemon.take_sends().len() <= MOST_WAITING + 1);
    assert_eq!(world.rejected(), ["busy"]);
}

#[test]
fn a_nic_that_is_not_live_is_not_believed() {
    let mut world = World::v4();
    world.interfaces[0].is_live = false;
    world.look();
    world.hear(A, &[("10.9.0.0/24", 2)]);
    assert_eq!((world.learned(), world.rejected()), (vec![], vec!["not_live"]));
}

#[test]
fn a_host_that_ceases_to_forward_is_no_way_to_what_it_learned() {
    let mut world = World::new(Family::V4, Settings { advertise: Advertise::All, ..settings() });
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.wait(7);
    world.daemon.take_sends();
    let of = |world: &mut World| {
        let told = world.told(B);
        told.into_iter().filter(|(prefix, _)| prefix == "10.9.0.0/24").collect::<Vec<_>>()
    };
    world.daemon.forwards(false, world.now);
    let sends = world.daemon.sends.clone();
    assert_eq!(of(&mut world), told(&[("10.9.0.0/24", 16)]), "at once");
    world.daemon.sends = sends;
    assert!(world.told(B).contains(&("203.0.113.10/32".to_owned(), 2)), "the VIPA stays");
    assert_eq!(world.learned().len(), 1, "it is used all the same");
    world.wait(7);
    world.daemon.take_sends();
    world.daemon.forwards(true, world.now);
    assert_eq!(of(&mut world), told(&[("10.9.0.0/24", 3)]));
}

#[test]
fn other_vipas_are_told_at_once_and_what_was_learned_stays() {
    let mut world = World::v4();
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.wait(60);
    world.daemon.take_sends();
    let vipas: [IpAddr; 1] = ["203.0.113.11".parse().expect("an address")];
    world.daemon.reconfigure(vec![NicSettings::default(); 2], &vipas, world.now);
    let said = world.told(B);
    assert!(said.contains(&("203.0.113.10/32".to_owned(), 16)), "{said:?}");
    assert!(said.contains(&("203.0.113.11/32".to_owned(), 2)), "{said:?}");
    assert_eq!(world.learned(), [("10.9.0.0/24".to_owned(), vec![0])]);
    // It is forgotten as any route that is gone.
    world.wait(120);
    world.daemon.take_sends();
    world.daemon.broadcast_timer(world.now);
    assert_eq!(world.told(B), told(&[("203.0.113.11/32", 2)]));
}

#[test]
fn a_network_of_a_nic_costs_what_the_nic_costs_now() {
    let real = Settings { advertise: Advertise::VirtualAndReal, ..settings() };
    let mut world = World::new(Family::V4, real);
    world.wait(60);
    world.daemon.take_sends();
    let nics = vec![NicSettings { cost: 5, ..NicSettings::default() }, NicSettings::default()];
    let vipas: [IpAddr; 1] = ["203.0.113.10".parse().expect("an address")];
    world.daemon.reconfigure(nics, &vipas, world.now);
    assert_eq!(world.told(B), told(&[("10.1.1.0/24", 5)]), "and nothing else is news");
}

#[test]
fn a_nic_that_is_taken_out_is_told_good_bye_by_and_costs_no_reserve() {
    let mut world = World::v4();
    world.hear(A, &[("10.9.0.0/24", 2)]);
    world.hear(B, &[("10.8.0.0/24", 2)]);
    world.wait(60);
    world.daemon.take_sends();
    world.daemon.leave(A, world.now);
    assert_eq!(world.told(A), told(&[("203.0.113.10/32", 16)]));
    world.interfaces.remove(0);
    world.look();
    assert_eq!(world.learned(), [("10.8.0.0/24".to_owned(), vec![1])]);
    world.daemon.broadcast_timer(world.now);
    assert!(world.told(B).contains(&("203.0.113.10/32".to_owned(), 2)), "no shorter than ever");
}
