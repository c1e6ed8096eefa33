use std::path::Path;

use super::*;
use crate::forward::rule::{Mark, Rule as SourceRule, Target};
use crate::link::PROTOCOL;
use crate::link::mirror::{KernelHop, KernelRoute, Link, RouteKind, fixture};
use crate::rip::Learned;
use crate::wire::ip::Prefix;

use NicState::{HeldDown, Live, NoCarrier};

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn prefix(text: &str) -> Prefix {
    text.parse().expect("a prefix")
}

/// eth1 and eth2 with gateways of both families, one VIPA of each.
pub(crate) fn config() -> Config {
    let text = r#"
[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "2001:db8::10"]
[[nic]]
name = "eth1"
gateway = ["10.1.1.1", "fe80::1"]
[[nic]]
name = "eth2"
gateway = "10.1.2.1"
"#;
    Config::parse(text, Path::new("vipa.toml")).expect("it is right").0
}

/// vipa0 is 9, eth1 is 1, eth2 is 2, mgmt is 3; connected routes on the NICs, the default over mgmt.
pub(crate) fn mirror() -> Mirror {
    let mut mirror = Mirror::new([923]);
    for (index, name) in [(9, "vipa0"), (1, "eth1"), (2, "eth2"), (3, "mgmt")] {
        mirror.links.insert(index, link(name));
    }
    fixture::route(&mut mirror, "10.1.1.0/24", 0, &[(1, None)]);
    fixture::route(&mut mirror, "10.1.2.0/24", 0, &[(2, None)]);
    fixture::route(&mut mirror, "192.168.9.0/24", 0, &[(3, None)]);
    fixture::route(&mut mirror, "0.0.0.0/0", 0, &[(3, Some("192.168.9.1"))]);
    mirror
}

fn link(name: &str) -> Link {
    Link {
        name: name.into(),
        is_up: true,
        has_carrier: true,
        is_tun: name == "vipa0",
        is_without_neighbours: name == "vipa0",
        mtu: 1500,
        mac: None,
    }
}

/// The lines of the plan that speak of this prefix.
fn lines(plan: &Plan, of: &str) -> Vec<String> {
    let of = prefix(of);
    plan.routes.iter().filter(|r| r.prefix == of).map(ToString::to_string).collect()
}

#[test]
fn a_prefix_behind_a_nic_is_a_pair() {
    let plan = plan(&config(), &mirror(), &Health::of([Live, Live]));
    assert_eq!(
        lines(&plan, "10.1.1.0/24"),
        [
            "route 10.1.1.0/24 dev vipa0 table 923 src 203.0.113.10 metric 10",
            "route 10.1.1.0/24 dev eth1 table 923 src 203.0.113.10 metric 100",
        ]
    );
}

#[test]
fn the_default_goes_over_our_nics_though_another_holds_mains() {
    let plan = plan(&config(), &mirror(), &Health::of([Live, Live]));
    assert_eq!(
        lines(&plan, "0.0.0.0/0"),
        [
            "route default dev vipa0 table 923 src 203.0.113.10 metric 10",
            "route default nexthop via 10.1.1.1 dev eth1 weight 1 nexthop via 10.1.2.1 dev eth2 \
             weight 1 table 923 src 203.0.113.10 metric 100",
        ]
    );
    assert_eq!(lines(&plan, "192.168.9.0/24"), ["route throw 192.168.9.0/24 table 923 metric 10"]);
}

#[test]
fn what_is_no_way_is_the_kernels() {
    let mut mirror = mirror();
    fixture::unreachable(&mut mirror, "10.66.0.0/16");
    fixture::route(&mut mirror, "2001:db8:f::/48", 256, &[(3, None)]);
    let plan = plan(&config(), &mirror, &Health::of([Live, Live]));
    assert_eq!(lines(&plan, "10.66.0.0/16"), ["route throw 10.66.0.0/16 table 923 metric 10"]);
    assert_eq!(
        lines(&plan, "2001:db8:f::/48"),
        ["-6 route throw 2001:db8:f::/48 table 923 metric 10"]
    );
}

#[test]
fn weights_are_shares_and_only_the_lowest_metric_is_used() {
    let mut config = config();
    config.nics[1].weight = 3;
    let plan_of = |config: &Config, health: &Health| plan(config, &mirror(), health);
    let default = |plan: &Plan| lines(plan, "0.0.0.0/0")[1].clone();
    assert!(default(&plan_of(&config, &Health::of([Live, Live]))).contains("eth2 weight 3"));
    config.nics[1].metric = 2;
    let only_first = default(&plan_of(&config, &Health::of([Live, Live])));
    assert!(only_first.contains("via 10.1.1.1 dev eth1 table") && !only_first.contains("eth2"));
    let only_second = default(&plan_of(&config, &Health::of([NoCarrier, Live])));
    assert!(only_second.contains("via 10.1.2.1 dev eth2 table") && !only_second.contains("eth1"));
}

#[test]
fn without_a_live_nic_the_fallback_lists_all_that_are_up() {
    let mut mirror = mirror();
    let default = |mirror: &Mirror, health: &Health| {
        lines(&plan(&config(), mirror, health), "0.0.0.0/0").get(1).cloned().unwrap_or_default()
    };
    let both = default(&mirror, &Health::of([NoCarrier, NoCarrier]));
    assert!(both.contains("eth1") && both.contains("eth2"), "{both}");
    // One that is held down is better than none.
    let held = default(&mirror, &Health::of([HeldDown, NoCarrier]));
    assert!(held.contains("eth1") && !held.contains("eth2"), "{held}");
    mirror.links.remove(&1);
    let one = default(&mirror, &Health::of([NicState::Missing, NoCarrier]));
    assert!(!one.contains("eth1") && one.contains("eth2"), "{one}");
    mirror.links.remove(&2);
    assert_eq!(default(&mirror, &Health::of([NicState::Missing; 2])), "");
}

#[test]
fn a_gateway_serves_its_own_family() {
    let plan = plan(&config(), &mirror(), &Health::of([Live, Live]));
    assert_eq!(
        lines(&plan, "::/0"),
        [
            "-6 route default dev vipa0 table 923 src 2001:db8::10 metric 10",
            "-6 route default via fe80::1 dev eth1 table 923 src 2001:db8::10 metric 100",
        ]
    );
}

#[test]
fn without_a_gateway_the_kernels_default_over_the_nic_decides() {
    let mut config = config();
    config.nics[0].gateways.clear();
    config.nics[1].gateways.clear();
    let mut mirror = mirror();
    assert!(lines(&plan(&config, &mirror, &Health::of([Live, Live])), "0.0.0.0/0").is_empty());
    fixture::route(&mut mirror, "0.0.0.0/0", 200, &[(2, Some("10.1.2.254"))]);
    fixture::route(&mut mirror, "0.0.0.0/0", 300, &[(2, Some("10.1.2.253"))]);
    let default = lines(&plan(&config, &mirror, &Health::of([Live, Live])), "0.0.0.0/0");
    assert!(default[1].contains("default via 10.1.2.254 dev eth2 table"), "{default:?}");
}

#[test]
fn a_gateway_that_no_route_covers_is_taken_at_our_word() {
    let mut config = config();
    config.nics[0].gateways = vec![address("172.31.1.1")];
    let default = lines(&plan(&config, &mirror(), &Health::of([Live, NoCarrier])), "0.0.0.0/0");
    assert!(default[1].contains("via 172.31.1.1 dev eth1 onlink"), "{default:?}");
}

#[test]
fn a_family_without_a_vipa_is_left_alone() {
    let mut config = config();
    config.adapter.addresses.truncate(1);
    let plan = plan(&config, &mirror(), &Health::of([Live, Live]));
    assert!(plan.routes.iter().all(|r| r.prefix.family() == Family::V4));
    assert!(plan.rules.iter().all(|r| r.family == Family::V4));
}

#[test]
fn link_local_and_multicast_stay_out() {
    let mut mirror = mirror();
    fixture::route(&mut mirror, "fe80::/64", 256, &[(1, None)]);
    fixture::route(&mut mirror, "ff00::/8", 256, &[(1, None)]);
    fixture::route(&mut mirror, "224.0.0.0/4", 0, &[(1, None)]);
    let plan = plan(&config(), &mirror, &Health::of([Live, Live]));
    for none in ["fe80::/64", "ff00::/8", "224.0.0.0/4"] {
        assert!(lines(&plan, none).is_empty(), "{none}");
    }
}

#[test]
fn the_best_route_decides_whose_a_prefix_is_and_all_our_nics_share_it() {
    let mut mirror = mirror();
    fixture::route(&mut mirror, "10.9.0.0/16", 50, &[(3, None)]);
    fixture::route(&mut mirror, "10.9.0.0/16", 100, &[(1, None)]);
    fixture::route(&mut mirror, "10.8.0.0/16", 100, &[(1, Some("10.1.1.1"))]);
    fixture::route(&mut mirror, "10.8.0.0/16", 101, &[(2, Some("10.1.2.1"))]);
    let plan = plan(&config(), &mirror, &Health::of([Live, Live]));
    assert_eq!(lines(&plan, "10.9.0.0/16").len(), 1);
    let shared = lines(&plan, "10.8.0.0/16");
    assert!(shared[1].contains("dev eth1") && shared[1].contains("dev eth2"), "{shared:?}");
}

#[test]
fn rules_let_in_what_has_no_source_or_a_vipa() {
    let shown: Vec<String> = plan(&config(), &mirror(), &Health::of([Live, Live]))
        .rules
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        shown,
        [
            "rule 9230: from all to 224.0.0.0/4 lookup main",
            "rule 9230: from all to 255.255.255.255/32 lookup main",
            "rule 9231: from all oif eth1 lookup main",
            "rule 9231: from all oif eth2 lookup main",
            "rule 9232: from 203.0.113.10/32 iif lo lookup 923",
            "rule 9320: from 0.0.0.0/32 iif lo lookup 923",
            "-6 rule 9329: from all nop",
            "-6 rule 9230: from all to fe80::/10 lookup main",
            "-6 rule 9230: from all to ff00::/8 lookup main",
            "-6 rule 9231: from all oif eth1 lookup main",
            "-6 rule 9231: from all oif eth2 lookup main",
            "-6 rule 9232: from 2001:db8::10/128 iif lo lookup 923",
            "-6 rule 9233: from ::/1 iif lo goto 9329",
            "-6 rule 9233: from 8000::/1 iif lo goto 9329",
            "-6 rule 9320: from all iif lo lookup 923",
        ]
    );
}

#[test]
fn without_sourcevipa_only_what_a_rule_names_comes_in() {
    let mut config = config();
    config.source.sourcevipa = false;
    let leads_in = |config: &Config| -> Vec<String> {
        let rules = rules::rules(config, &Around::default());
        let ours = rules.iter().filter(|r| r.action == rules::Action::Lookup(923));
        ours.map(ToString::to_string).collect()
    };
    assert!(leads_in(&config).is_empty());
    config.source.rules = vec![SourceRule {
        protocol: Some(6),
        destination: Some(prefix("10.20.0.0/16")),
        ports: Some(443..=443),
        target: Target::Vipa(address("203.0.113.10")),
        ..SourceRule::default()
    }];
    let by_kernel = [
        "rule 9232: from 203.0.113.10/32 to 10.20.0.0/16 iif lo ipproto 6 dport 443-443 lookup 923",
        "rule 9240: from 0.0.0.0/32 to 10.20.0.0/16 iif lo ipproto 6 dport 443-443 lookup 923",
    ];
    assert_eq!(leads_in(&config), by_kernel);
    config.source.rules[0].is_for_forwarder = true;
    assert_eq!(leads_in(&config), by_kernel.map(|rule| rule.replace("9240", "9320")));
}

/// A rule to 10.20.0.0/16.
fn source_rule(target: &str) -> SourceRule {
    SourceRule {
        destination: Some(prefix("10.20.0.0/16")),
        target: match target {
            "physical" => Target::Physical,
            vipa => Target::Vipa(address(vipa)),
        },
        ..SourceRule::default()
    }
}

/// Of the rules those that stand for source rules, RIP's among them.
fn for_source_rules(config: &Config, around: &Around) -> Vec<String> {
    let rules = rules::rules(config, around);
    let theirs = |r: &&Rule| (9239..9320).contains(&r.preference);
    rules.iter().filter(theirs).map(ToString::to_string).collect()
}

#[test]
fn what_the_kernel_can_decide_is_handed_to_it_with_a_table_for_each_vipa() {
    let mut config = config();
    config.adapter.addresses.insert(1, address("203.0.113.11"));
    let tcp =
        SourceRule { protocol: Some(6), ports: Some(443..=443), ..source_rule("203.0.113.11") };
    let marked = SourceRule {
        protocol: Some(1),
        user: Some(26),
        mark: Some(Mark { value: 1, mask: 0xff }),
        destination: None,
        ..source_rule("2001:db8::10")
    };
    config.source.rules = vec![tcp, source_rule("physical"), marked];
    let around = Around { ephemeral: Some(40000..=50000), ..Around::default() };
    assert_eq!(
        for_source_rules(&config, &around),
        [
            "rule 9239: from 0.0.0.0/32 iif lo ipproto 17 sport 520-521 lookup 923",
            "rule 9239: from 0.0.0.0/32 iif lo ipproto 17 dport 520-521 lookup 923",
            "rule 9240: from 0.0.0.0/32 to 10.20.0.0/16 iif lo ipproto 6 dport 443-443 lookup 924",
            "rule 9241: from 0.0.0.0/32 to 10.20.0.0/16 iif lo ipproto 6 lookup main",
            "rule 9241: from 0.0.0.0/32 to 10.20.0.0/16 iif lo ipproto 17 sport 40000-50000 lookup main",
            "rule 9241: from 0.0.0.0/32 to 10.20.0.0/16 iif lo ipproto 1 lookup main",
            "rule 9242: from 0.0.0.0/32 to 10.20.0.0/16 iif lo ipproto 6 lookup 923",
            "rule 9242: from 0.0.0.0/32 to 10.20.0.0/16 iif lo ipproto 17 sport 40000-50000 lookup 923",
            "rule 9242: from 0.0.0.0/32 to 10.20.0.0/16 iif lo ipproto 1 lookup 923",
            "-6 rule 9243: from all iif lo ipproto 58 fwmark 0x1/0xff uidrange 26-26 lookup 923",
        ]
    );
    assert_eq!(
        rules::tables(&config),
        [(923, "203.0.113.10"), (923, "2001:db8::10"), (924, "203.0.113.11")]
            .map(|(table, vipa)| (table, address(vipa)))
    );
    let plan = plan(&config, &mirror(), &Health::of([Live, Live]));
    assert_eq!(
        lines(&plan, "10.1.1.0/24"),
        [
            "route 10.1.1.0/24 dev vipa0 table 923 src 203.0.113.10 metric 10",
            "route 10.1.1.0/24 dev eth1 table 923 src 203.0.113.10 metric 100",
            "route 10.1.1.0/24 dev vipa0 table 924 src 203.0.113.11 metric 10",
            "route 10.1.1.0/24 dev eth1 table 924 src 203.0.113.11 metric 100",
        ]
    );
    let throws = ["923", "924"].map(|t| format!("route throw 192.168.9.0/24 table {t} metric 10"));
    assert_eq!(lines(&plan, "192.168.9.0/24"), throws);
    assert!(
        lines(&plan, "::/0").iter().all(|line| line.contains("table 923")),
        "no rule yields IPv6's"
    );
    // Main's default leaves by mgmt: its address is no NIC's.
    let physical = "rule 9241: from 0.0.0.0/32 to 10.20.0.0/16 iif lo ipproto 6 lookup main \
                    suppress_prefixlength 0";
    assert!(plan.rules.iter().any(|rule| rule.to_string() == physical));
}

#[test]
fn what_the_forwarder_applies_has_no_policy_rule() {
    let mut config = config();
    let mut forwarded = source_rule("physical");
    forwarded.is_for_forwarder = true;
    config.source.rules =
        vec![forwarded, SourceRule { protocol: Some(6), ..source_rule("203.0.113.10") }];
    assert_eq!(for_source_rules(&config, &Around::default()), Vec::<String>::new());
}

#[test]
fn bound_forward_lets_in_the_nics_own_addresses() {
    let mut config = config();
    config.source.is_bound_forwarded = true;
    let shown: Vec<String> = rules::rules(
        &config,
        &Around { nic_addresses: vec![address("10.1.1.2")], ..Around::default() },
    )
    .iter()
    .map(ToString::to_string)
    .collect();
    assert!(shown.contains(&"rule 9232: from 10.1.1.2/32 iif lo lookup 923".to_owned()));
}

#[test]
fn gateways_are_kept_resolved_unless_fixed_by_hand_or_out_of_reach() {
    let shown = |mirror: &Mirror, health: &Health| -> Vec<String> {
        let plan = plan(&config(), mirror, health);
        plan.neighbours.iter().map(|n| format!("{} {}", n.nic, n.address)).collect()
    };
    let mut mirror = mirror();
    assert_eq!(
        shown(&mirror, &Health::of([Live, Live])),
        ["eth1 10.1.1.1", "eth2 10.1.2.1", "eth1 fe80::1"]
    );
    assert_eq!(shown(&mirror, &Health::of([NoCarrier, HeldDown])), ["eth2 10.1.2.1"]);
    fixture::neighbour(&mut mirror, 2, "10.1.2.1", 0x80);
    assert_eq!(shown(&mirror, &Health::of([NoCarrier, Live])), Vec::<String>::new());
}

#[test]
fn the_adapter_is_as_narrow_as_the_narrowest_nic() {
    let mut mirror = mirror();
    mirror.links.get_mut(&2).expect("eth2").mtu = 1400;
    assert_eq!(plan(&config(), &mirror, &Health::of([Live, Live])).adapter.mtu, 1400);
    mirror.links.get_mut(&2).expect("eth2").mtu = 576;
    assert_eq!(
        plan(&config(), &mirror, &Health::of([Live, Live])).adapter.mtu,
        1280,
        "IPv6 needs that"
    );
    assert_eq!(plan(&config(), &Mirror::new([923]), &Health::default()).adapter.mtu, 1500);
}

#[test]
fn the_plan_can_be_read() {
    let text = plan(&config(), &mirror(), &Health::of([Live, Live])).to_string();
    for line in [
        "link vipa0 type tun mtu 1500 up",
        "address 2001:db8::10/128 dev vipa0",
        "sysctl net/ipv4/conf/eth1/rp_filter = 2",
        "route default dev vipa0 table 923 src 203.0.113.10 metric 10",
        "neighbour 10.1.1.1 dev eth1 managed",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("reserved"), "no rule can rewrite");
}

/// What RIP had told an earlier run is in its fallback routes, and nowhere else.
#[test]
fn b1_what_nobody_else_explains_was_learned_by_an_earlier_run() {
    let (config, mut mirror) = (config(), mirror());
    let route = |prefix: &str, metric, protocol, hops: &[(u32, &str)]| KernelRoute {
        table: 923,
        prefix: self::prefix(prefix),
        metric,
        kind: RouteKind::Unicast,
        protocol,
        source: None,
        next_hops: hops
            .iter()
            .map(|(ifindex, gateway)| KernelHop {
                ifindex: *ifindex,
                gateway: Some(address(gateway)),
                weight: 1,
            })
            .collect(),
    };
    let both: &[(u32, &str)] = &[(1, "10.1.1.1"), (2, "10.1.2.1")];
    for route in [
        route("10.9.0.0/24", 10, PROTOCOL, &[]),
        route("10.9.0.0/24", 100, PROTOCOL, both),
        // The default is the configuration's, the network the kernel's, the last one somebody else's.
        route("0.0.0.0/0", 100, PROTOCOL, both),
        route("10.1.2.0/24", 100, PROTOCOL, &[(1, "10.1.1.1")]),
        route("10.8.0.0/24", 100, 3, both),
    ] {
        fixture::insert(&mut mirror, route);
    }
    let ways = vec![(NicId(0), address("10.1.1.1")), (NicId(1), address("10.1.2.1"))];
    let learned = Learned { prefix: prefix("10.9.0.0/24"), ways: ways.into() };
    assert_eq!(routes::inherited(&config, &mirror), [learned]);
}
