use super::*;
use crate::forward::view::NicState::{Live, NoCarrier};
use crate::link::health::Health;
use crate::link::mirror::{Link, fixture};
use crate::link::plan::plan;
use crate::link::plan::rules::{self, Around};
use crate::link::plan::tests::{config, mirror};

fn ours() -> Ours {
    Ours {
        moved_local: Vec::new(),
        adapter: "vipa0".into(),
        tables: vec![923],
        preferences: vec![9230],
        addresses: vec!["203.0.113.10".parse().expect("an address")],
    }
}

fn route(prefix: &str, metric: u32, protocol: u8) -> KernelRoute {
    KernelRoute {
        table: 923,
        prefix: prefix.parse().expect("a prefix"),
        metric,
        kind: RouteKind::Unicast,
        protocol,
        source: None,
        next_hops: vec![KernelHop { ifindex: 1, gateway: None, weight: 1 }],
    }
}

fn text(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

#[test]
fn on_a_bare_host_nothing_is_deleted_and_routes_stand_before_rules() {
    let mirror = mirror();
    let plan = plan(&config(), &mirror, &Health::of([Live, Live]));
    let steps = difference(&plan, &mirror, &ours());
    assert!(steps.iter().all(|step| !step.is_removal()));
    let last_route = steps.iter().rposition(|s| matches!(s, Step::PutRoute(_)));
    let first_rule = steps.iter().position(|s| matches!(s, Step::AddRule(_)));
    assert!(last_route < first_rule);
    assert_eq!(steps[0].to_string(), "address 203.0.113.10");
}

#[test]
fn only_what_is_ours_is_deleted_and_only_after_all_is_added() {
    let mut mirror = mirror();
    let plan = plan(&config(), &mirror, &Health::of([Live, Live]));
    let foreign = Rule::new(Family::V4, 9235, Action::Lookup(MAIN_TABLE));
    let former = Rule::new(Family::V4, 9236, Action::Lookup(MAIN_TABLE));
    let elsewhere = Rule::new(Family::V4, 77, Action::Lookup(50));
    for (rule, protocol) in [(&foreign, 0), (&former, PROTOCOL), (&elsewhere, PROTOCOL)] {
        let (rule, has_more) = (rule.clone(), false);
        mirror.rules.push(KernelRule { rule, protocol, has_more });
    }
    fixture::insert(&mut mirror, route("10.77.0.0/16", 10, PROTOCOL));
    fixture::insert(&mut mirror, route("10.78.0.0/16", 10, 4));
    let steps = difference(&plan, &mirror, &ours());
    let first = steps.iter().position(Step::is_removal).expect("there is something to delete");
    assert!(steps[first..].iter().all(Step::is_removal));
    assert_eq!(
        text(&steps[first..]),
        ["delete rule 9236: from all lookup main", "delete route 10.77.0.0/16 table 923 metric 10",]
    );
}

#[test]
fn an_ipv6_next_hop_is_added_and_deleted_by_itself() {
    let mut config = config();
    config.nics[1].gateways.push("fe80::2".parse().expect("an address"));
    let mut mirror = mirror();
    let both = plan(&config, &mirror, &Health::of([Live, Live]));
    let fallback = |steps: &[Step]| -> Vec<String> {
        text(steps).into_iter().filter(|s| s.contains("-6 route default via")).collect()
    };
    let steps = difference(&both, &mirror, &ours());
    assert_eq!(fallback(&steps).len(), 2, "{steps:?}");
    assert!(steps.iter().filter(|s| matches!(s, Step::AppendHop(_))).count() == 2);
    let mut held = route("::/0", 100, PROTOCOL);
    held.source = "2001:db8::10".parse().ok();
    held.next_hops = vec![
        KernelHop { ifindex: 1, gateway: "fe80::1".parse().ok(), weight: 1 },
        KernelHop { ifindex: 2, gateway: "fe80::2".parse().ok(), weight: 1 },
    ];
    fixture::insert(&mut mirror, held);
    let is_default = |s: &&Step| {
        s.to_string().contains("::/0") || s.to_string().contains("-6 route default via")
    };
    let steps = difference(&both, &mirror, &ours());
    assert_eq!(steps.iter().filter(is_default).count(), 0);
    let one = plan(&config, &mirror, &Health::of([Live, NoCarrier]));
    let steps = difference(&one, &mirror, &ours());
    let removed: Vec<&Step> = steps.iter().filter(is_default).collect();
    let [Step::DeleteRoute(gone)] = removed.as_slice() else { panic!("{removed:?}") };
    assert_eq!(gone.next_hops.iter().map(|h| h.ifindex).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_route_that_lost_its_source_is_put_right() {
    let mut mirror = mirror();
    let plan = plan(&config(), &mirror, &Health::of([Live, Live]));
    let mut held = route("::/0", 10, PROTOCOL);
    held.next_hops[0].ifindex = 9;
    fixture::insert(&mut mirror, held);
    let steps = difference(&plan, &mirror, &ours());
    assert!(
        text(&steps)
            .contains(&"-6 route default dev vipa0 table 923 src 2001:db8::10 metric 10".into())
    );
}

#[test]
fn takedown_begins_with_the_rules_that_lead_to_us() {
    let mut mirror = mirror();
    mirror.links.insert(9, Link { is_up: false, ..mirror.links[&9].clone() });
    for rule in rules::rules(&config(), &Around::default()) {
        mirror.rules.push(KernelRule { rule, protocol: PROTOCOL, has_more: false });
    }
    fixture::insert(&mut mirror, route("10.77.0.0/16", 10, PROTOCOL));
    fixture::insert(&mut mirror, route("10.78.0.0/16", 10, 4));
    let steps = takedown(&mirror, &ours());
    let shown = text(&steps);
    assert!(shown[..4].iter().all(|s| s.contains("lookup 923")), "{shown:?}");
    assert_eq!(shown[shown.len() - 1], "delete route 10.77.0.0/16 table 923 metric 10");
    assert_eq!(shown.len(), mirror.rules.len() + 1);
}

mod nics {
    use super::*;
    use crate::link::plan::NicAddress;

    fn address(text: &str, ifindex: u32, prefix_length: u8) -> Address {
        let address: IpAddr = text.parse().expect("an address");
        Address {
            ifindex,
            address,
            prefix_length,
            is_narrow: false,
            is_deprecated: address.is_ipv6(),
            is_secondary: false,
            is_unusable: false,
            is_ours: true,
        }
    }

    /// Steps about addresses of NICs, for a host whose eth2 is to have two VIPAs.
    fn steps(held: &[Address]) -> Vec<String> {
        let planned = |text: &str| NicAddress {
            nic: "eth2".into(),
            ifindex: 2,
            address: text.parse().expect("an address"),
        };
        let mut mirror = mirror();
        let mut plan = plan(&config(), &mirror, &Health::of([Live, Live]));
        plan.nic_addresses = vec![planned("203.0.113.10"), planned("2001:db8::10")];
        mirror.addresses = held.to_vec();
        let mut ours = ours();
        ours.addresses.push("2001:db8::10".parse().expect("an address"));
        ours.addresses.push("203.0.113.99".parse().expect("an address"));
        let steps = text(&difference(&plan, &mirror, &ours)).into_iter();
        steps.filter(|step| step.contains("address") && step.contains(" dev ")).collect()
    }

    #[test]
    fn a_vipa_moves_from_nic_to_nic_and_a_former_one_goes() {
        let held = [
            address("203.0.113.10", 9, 32),
            address("203.0.113.10", 1, 32),
            address("203.0.113.99", 2, 32),
            address("2001:db8::10", 1, 128),
        ];
        assert_eq!(
            steps(&held),
            [
                "address 203.0.113.10 dev eth2",
                "address 2001:db8::10 dev eth2",
                "delete address 203.0.113.10 dev eth1",
                "delete address 203.0.113.99 dev eth2",
                "delete address 2001:db8::10 dev eth1",
            ]
        );
        assert!(
            steps(&[address("203.0.113.10", 2, 32), address("2001:db8::10", 2, 128)]).is_empty()
        );
    }

    #[test]
    fn an_operators_own_address_stays_as_it_is() {
        let theirs = |text, ifindex, length| Address {
            is_ours: false,
            is_deprecated: false,
            ..address(text, ifindex, length)
        };
        let held = [
            theirs("203.0.113.10", 2, 24),
            theirs("2001:db8::10", 2, 64),
            theirs("203.0.113.10", 1, 32),
        ];
        assert_eq!(steps(&held), [""; 0]);
    }

    /// RFC 6724 would choose it for what does not go our way.
    #[test]
    fn one_that_is_preferred_is_put_right() {
        let preferred = Address { is_deprecated: false, ..address("2001:db8::10", 2, 128) };
        assert_eq!(
            steps(&[address("203.0.113.10", 2, 32), preferred]),
            ["address 2001:db8::10 dev eth2"]
        );
    }

    #[test]
    fn takedown_takes_them_from_the_nics_and_leaves_the_adapters_to_its_end() {
        let mut mirror = mirror();
        mirror.addresses = vec![
            address("203.0.113.10", 9, 32),
            address("203.0.113.10", 1, 32),
            Address { is_ours: false, ..address("203.0.113.10", 2, 32) },
        ];
        assert_eq!(text(&takedown(&mirror, &ours())), ["delete address 203.0.113.10 dev eth1"]);
    }
}
