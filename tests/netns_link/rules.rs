//! Source rules that the kernel applies: which source a lookup without one gets, by the real kernel's word.

use std::sync::Arc;

use vipa::config::Config;
use vipa::engine::statistics::RouterStatistics;
use vipa::forward::rule::{Mark, Rule, Target};
use vipa::link::router::Router;

use crate::fixture::{Fixture, eventually, everything, in_namespace, ip};

fn to(target: &str) -> Rule {
    let target = match target {
        "physical" => Target::Physical,
        vipa => Target::Vipa(vipa.parse().expect("an address")),
    };
    Rule { target, ..Rule::default() }
}

const SECOND: &str = "203.0.113.11";
const SECOND_V6: &str = "2001:db8::11";

/// A rule for each key, of both families where that matters, over two VIPAs of each.
fn config(fixture: &Fixture) -> Config {
    let mut config = fixture.config();
    config.adapter.addresses.push(SECOND_V6.parse().expect("an address"));
    let prefix = |text: &str| Some(text.parse().expect("a prefix"));
    config.source.rules = vec![
        Rule { destination: prefix("10.20.7.0/24"), ..to("203.0.113.10") },
        Rule { destination: prefix("10.20.0.0/16"), protocol: Some(6), ..to(SECOND) },
        Rule { protocol: Some(6), ports: Some(443..=450), ..to(SECOND) },
        Rule { protocol: Some(6), ports: Some(443..=450), ..to(SECOND_V6) },
        Rule { protocol: Some(17), ports: Some(53..=53), ..to(SECOND) },
        Rule { protocol: Some(17), ports: Some(53..=53), ..to(SECOND_V6) },
        Rule { protocol: Some(17), local_ports: Some(5060..=5060), ..to(SECOND) },
        Rule { protocol: Some(1), mark: Some(Mark { value: 9, mask: u32::MAX }), ..to(SECOND) },
        Rule { protocol: Some(1), mark: Some(Mark { value: 9, mask: u32::MAX }), ..to(SECOND_V6) },
        Rule { user: Some(26), ..to("physical") },
        Rule { mark: Some(Mark { value: 0x10, mask: 0xf0 }), ..to(SECOND) },
        Rule { mark: Some(Mark { value: 0x10, mask: 0xf0 }), ..to(SECOND_V6) },
        // What is no selector to the kernel, and what it cannot say.
        Rule {
            destination: prefix("0.0.0.0/0"),
            protocol: Some(6),
            ports: Some(7..=7),
            ..to(SECOND)
        },
        Rule {
            destination: prefix("::/0"),
            protocol: Some(6),
            ports: Some(7..=7),
            ..to(SECOND_V6)
        },
        Rule { protocol: Some(6), ports: Some(65535..=65535), ..to(SECOND) },
        // A mark of 0 is a mark.
        Rule {
            protocol: Some(6),
            ports: Some(22..=22),
            mark: Some(Mark { value: 0, mask: 0xff }),
            ..to(SECOND)
        },
    ];
    config
}

fn way(to: &str) -> String {
    ip(&format!("route get {to}")).lines().next().unwrap_or("").to_owned()
}

fn assert_ways(ways: &[(&str, &str)]) {
    for (to, expected) in ways {
        assert!(way(to).contains(expected), "{to}: {} (wanted {expected})", way(to));
    }
}

#[test]
fn the_kernel_chooses_the_source_by_what_it_knows_of_a_socket() {
    in_namespace("applied", |fixture| {
        let running = fixture.run(config(fixture));
        let first = "src 203.0.113.10";
        let second = "dev vipa0 table 924 src 203.0.113.11";
        let second_v6 = "dev vipa0 table 926 proto 118 src 2001:db8::11";
        assert_ways(&[
            ("10.20.1.1", first),
            ("10.20.1.1 ipproto tcp dport 9", second),
            ("10.20.7.1 ipproto tcp dport 9", first),
            ("198.51.100.1 ipproto tcp dport 443", second),
            ("198.51.100.1 ipproto tcp dport 451", first),
            ("2001:db8:77::1 ipproto tcp dport 450", second_v6),
            ("2001:db8:77::1 ipproto tcp dport 451", "src 2001:db8::10"),
            ("198.51.100.1 ipproto udp sport 40000 dport 53", second),
            ("2001:db8:77::1 ipproto udp sport 40000 dport 53", second_v6),
            ("198.51.100.1 ipproto udp sport 53 dport 53", first),
            ("198.51.100.1 ipproto udp sport 5060 dport 9", second),
            ("198.51.100.1 ipproto icmp mark 9", second),
            ("198.51.100.1 ipproto icmp mark 8", first),
            ("2001:db8:77::1 ipproto ipv6-icmp mark 9", second_v6),
            ("10.20.1.1 ipproto udp sport 40000 uid 26", "via 10.1.1.1 dev eth1 src 10.1.1.2"),
            // Main's default leaves by mgmt, which is no NIC of vipa: the forwarder's then.
            ("198.51.100.1 ipproto udp sport 40000 uid 26", first),
            ("2001:db8:1::77 ipproto tcp dport 9 uid 26", "dev eth1"),
            ("2001:db8:1::77 ipproto tcp dport 9 uid 26", "src 2001:db8:1::2"),
            ("198.51.100.1 ipproto tcp dport 9 mark 0x1f", second),
            ("198.51.100.1 ipproto tcp dport 9 mark 0x2f", first),
            ("2001:db8:77::1 ipproto tcp dport 9 mark 0x10", second_v6),
            ("198.51.100.1 ipproto tcp dport 22 mark 0x100", second),
            ("198.51.100.1 ipproto tcp dport 22 mark 0x1", first),
            ("198.51.100.1 ipproto tcp dport 7", second),
            ("2001:db8:77::1 ipproto tcp dport 7", second_v6),
            ("198.51.100.1 ipproto tcp dport 65535", first),
            // RIP stands before all rules; who has a source or a device keeps it; others' ways stay others'.
            ("10.20.1.1 ipproto udp sport 40000 dport 520 mark 0x10", first),
            ("2001:db8:1::77 from 2001:db8:1::2 ipproto tcp dport 443", "dev eth1"),
            ("10.1.1.77 from 10.1.1.2 ipproto tcp dport 443", "dev eth1"),
            ("10.1.1.77 oif eth1 ipproto tcp dport 443", "dev eth1 src 10.1.1.2"),
            ("172.17.0.9 ipproto tcp dport 443", "dev docker0 src 172.17.0.1"),
            ("198.51.100.1 from 203.0.113.11 ipproto tcp dport 443", "dev vipa0"),
        ]);
        drop(running);
        // It holds while no forwarder runs.
        eventually("the fallback is used", || {
            way("198.51.100.1 ipproto tcp dport 443").contains("dev eth")
        });
        for (to, source) in [
            ("198.51.100.1 ipproto tcp dport 443", "src 203.0.113.11"),
            ("198.51.100.1 ipproto tcp dport 451", first),
            ("2001:db8:77::1 ipproto udp sport 40000 dport 53", "src 2001:db8::11"),
        ] {
            let way = way(to);
            assert!(way.contains("dev eth") && way.contains(source), "{to}: {way}");
        }
    });
}

#[test]
fn a_default_over_a_nic_serves_physical_as_well() {
    in_namespace("default", |fixture| {
        let running = fixture.run(config(fixture));
        let other = "198.51.100.1 ipproto tcp dport 9 uid 26";
        assert!(way(other).contains("src 203.0.113.10"), "main's default leaves by mgmt");
        ip("route replace default via 10.1.2.1 dev eth2");
        eventually("main's way is used", || {
            way(other).contains("via 10.1.2.1 dev eth2 src 10.1.2.2")
        });
        ip("route replace default via 192.168.9.1 dev mgmt");
        eventually("and is not any more", || way(other).contains("src 203.0.113.10"));
        drop(running);
    });
}

#[test]
fn the_ports_of_clients_are_followed_as_far_as_a_policy_rule_can_say() {
    in_namespace("ephemeral", |fixture| {
        let asked = |port: u16| way(&format!("198.51.100.1 ipproto udp sport {port} dport 53"));
        let is_clients = |port| asked(port).contains("src 203.0.113.11");
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535").expect("it is set");
        let running = fixture.run(config(fixture));
        assert!(is_clients(1024) && is_clients(65534) && !is_clients(1023));
        // The kernel takes no range that ends at 65535.
        assert!(!is_clients(65535));
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 50000").expect("it is set");
        // No message tells of it: it is read every five seconds.
        eventually("the new range", || !is_clients(39999));
        assert!(is_clients(40000) && is_clients(50000) && !is_clients(50001));
        drop(running);
    });
}

#[test]
fn policy_rules_and_tables_of_source_rules_are_put_back_and_taken_down() {
    in_namespace("rules", |fixture| {
        let before = everything();
        let running = fixture.run(config(fixture));
        running.survives("a rule with ports", || {
            ip("rule del pref 9242 ipproto tcp dport 443-450");
        });
        running.survives("a rule with a user", || {
            ip("rule del uidrange 26-26 ipproto tcp lookup main");
        });
        running.survives("a rule with a mark", || {
            ip("-6 rule del fwmark 0x10/0xf0 ipproto tcp");
        });
        running.survives("a rule with a mark of 0", || {
            ip("rule del fwmark 0/0xff ipproto tcp");
        });
        running.survives("RIP's rule", || {
            ip("rule del pref 9239 ipproto udp dport 520-521");
        });
        running.survives("a VIPA's table", || {
            ip("route flush table 924");
        });
        running.survives("a VIPA's table of IPv6", || {
            ip("-6 route flush table 926");
        });
        drop(running);
        let stands = everything();
        let (prepared, statistics) = fixture.prepare(config(fixture));
        assert_eq!(everything(), stands, "a second start changes nothing");
        assert_eq!((statistics.repaired.get(), statistics.kernel_errors.get()), (0, 0));
        drop(prepared);
        // Without the rules their tables go, and with `down` all the rest.
        drop(fixture.prepare(fixture.config()));
        assert!(!ip("rule show").contains("9242"), "{}", ip("rule show"));
        assert_eq!(ip("route show table 924"), "");
        drop(fixture.prepare(config(fixture)));
        assert_eq!(everything(), stands);
        fixture.down();
        assert_eq!(everything(), before);
    });
}

#[test]
fn a_rules_table_that_others_use_is_refused_at_a_later_start_too() {
    in_namespace("foreign-rule", |fixture| {
        ip("route add 10.99.0.0/16 dev eth1 table 924");
        let bare = everything();
        let refused = || {
            let statistics = Arc::new(RouterStatistics::default());
            let prepared =
                Router::prepare(Arc::new(config(fixture)), fixture.state.clone(), statistics);
            prepared.expect_err("the table is in use").to_string()
        };
        assert!(refused().contains("routing table 924 already holds 10.99.0.0/16"));
        assert_eq!(everything(), bare);
        // Without a rule that wants the table nobody minds; with one it is looked at then.
        drop(fixture.prepare(fixture.config()));
        let stands = everything();
        assert!(refused().contains("routing table 924"));
        assert_eq!(everything(), stands);
        fixture.down();
        assert_eq!(everything(), bare);
    });
}
