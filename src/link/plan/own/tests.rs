use std::time::Duration;

use super::*;
use crate::balance::policy::Policy;
use crate::balance::service::{Choose, Mode, OnDeath, Server, WhenNone};
use crate::forward::view::NicState::Live;
use crate::link::health::Health;
use crate::link::kernel::{Ours, Step, difference, local_back};
use crate::link::plan::plan;
use crate::link::plan::tests::{config, mirror};
use crate::wire::ip::{TCP, UDP};

fn service(address: &str, ports: RangeInclusive<u16>, servers: &[(&str, Option<u16>)]) -> Service {
    let server = |(address, port): &(&str, Option<u16>)| Server {
        name: (*address).into(),
        address: address.parse().expect("an address"),
        port: *port,
        is_local: address.starts_with("203."),
        weight: 1,
        capacity: None,
        place: (0, 0),
    };
    Service {
        name: "web".into(),
        address: address.parse().expect("an address"),
        ports,
        protocol: TCP,
        mode: Mode::Nat { sources: Vec::new(), keeps_client: false },
        policy: Policy::LeastLoaded,
        choose: Choose::Preferred,
        hysteresis: 0.0,
        when_none: WhenNone::Refuse,
        on_death: OnDeath::Reset,
        rise: 2,
        fall: 3,
        slow_start: Duration::ZERO,
        statuses: Vec::new(),
        servers: servers.iter().map(server).collect(),
    }
}

fn serving() -> Config {
    let servers = [("10.1.2.11", Some(8080)), ("203.0.113.10", Some(8080))];
    Config { services: vec![service("203.0.113.10", 80..=80, &servers)], ..config() }
}

fn shown(config: &Config) -> Vec<String> {
    let rules = rules(config, Family::V4, Around::default());
    rules.iter().map(ToString::to_string).collect()
}

fn held(mirror: &mut Mirror, rule: Rule, protocol: u8) {
    mirror.rules.push(KernelRule { rule, protocol, has_more: false });
}

/// The fixture with the kernel's own rule of the `local` table.
fn bare() -> Mirror {
    let mut mirror = mirror();
    held(&mut mirror, local(Family::V4, 0), 2);
    mirror
}

fn ours(moved_local: Vec<Family>) -> Ours {
    Ours {
        adapter: "vipa0".into(),
        tables: vec![923, 925],
        preferences: Vec::new(),
        addresses: Vec::new(),
        moved_local,
    }
}

/// The steps that concern rules of the first preferences.
fn steps(config: &Config, mirror: &Mirror, ours: &Ours) -> Vec<String> {
    let plan = plan(config, mirror, &Health::of([Live, Live]));
    let is_early = |step: &&Step| match step {
        Step::AddRule(rule) | Step::DeleteRule(rule) => rule.preference <= LOCAL,
        _ => false,
    };
    difference(&plan, mirror, ours).iter().filter(is_early).map(ToString::to_string).collect()
}

#[test]
fn what_the_host_asks_and_what_its_own_servers_answer_it_passes_the_adapter() {
    assert_eq!(
        shown(&serving()),
        [
            "rule 4: from all to 203.0.113.10/32 iif lo ipproto 6 dport 80-80 lookup 925",
            "rule 4: from all to 203.0.113.10/32 iif lo ipproto 6 sport 8080-8080 dport \
             61000-65534 lookup 925",
            "rule 5: from all lookup local",
        ]
    );
    assert_eq!(rules(&serving(), Family::V6, Around::default()), []);
    let plan = plan(&serving(), &mirror(), &Health::of([Live, Live]));
    let of_table = plan.routes.iter().filter(|route| route.table == 925);
    assert_eq!(
        of_table.map(ToString::to_string).collect::<Vec<_>>(),
        [
            "route default dev vipa0 table 925 src 203.0.113.10 metric 10",
            "route unreachable default table 925 metric 100",
        ]
    );
    assert!(plan.routes.is_sorted_by_key(|route| route.key()));
    let accepts = "net/ipv4/conf/vipa0/accept_local = 1";
    assert!(plan.sysctls.iter().any(|sysctl| sysctl.to_string() == accepts));
}

#[test]
fn ranges_end_before_port_65535_and_all_ports_are_no_selector() {
    let of = |ports| {
        let mut services = vec![service("203.0.113.10", ports, &[("203.0.113.10", None)])];
        services[0].protocol = UDP;
        shown(&Config { services, ..config() })
    };
    let base = "rule 4: from all to 203.0.113.10/32 iif lo ipproto 17";
    let last = "rule 5: from all lookup local".to_owned();
    let answers = |ports: &str| format!("{base} sport {ports} dport 61000-65534 lookup 925");
    assert_eq!(of(1..=65535), [format!("{base} lookup 925"), answers("1-65534"), last.clone()]);
    assert_eq!(
        of(65000..=65535),
        [format!("{base} dport 65000-65534 lookup 925"), answers("65000-65534"), last.clone()]
    );
    assert_eq!(of(65535..=65535), [last], "nothing that can be said");
}

#[test]
fn the_local_tables_rule_goes_only_when_another_is_seen_to_stand_and_comes_back_the_same_way() {
    let (config, mut mirror) = (serving(), bare());
    let first = steps(&config, &mirror, &ours(Vec::new()));
    let mut wanted = shown(&config);
    wanted.rotate_right(1);
    assert_eq!(first, wanted, "nothing is deleted yet, and the host is never deaf");
    for rule in rules(&config, Family::V4, Around::of(&mirror, Family::V4)) {
        let protocol = if is_moved(&rule) { 2 } else { PROTOCOL };
        held(&mut mirror, rule, protocol);
    }
    let moved = ours(vec![Family::V4]);
    assert_eq!(steps(&config, &mirror, &moved), ["delete rule 0: from all lookup local"]);
    mirror.rules.retain(|held| held.rule.preference != 0);
    assert_eq!(steps(&config, &mirror, &moved), Vec::<String>::new(), "it stays so");

    // No service any more, or `vipa down`.
    let none = crate::link::plan::tests::config();
    let back = steps(&none, &mirror, &moved);
    assert_eq!(back[0], "rule 0: from all lookup local");
    assert!(!back.contains(&"delete rule 5: from all lookup local".to_owned()), "{back:?}");
    let next = |mirror: &Mirror| local_back(mirror, &moved, Family::V4).map(|s| s.to_string());
    assert_eq!(next(&mirror).as_deref(), Some("rule 0: from all lookup local"));
    held(&mut mirror, local(Family::V4, 0), 2);
    assert_eq!(next(&mirror).as_deref(), Some("delete rule 5: from all lookup local"));
    assert!(
        steps(&none, &mirror, &moved).contains(&"delete rule 5: from all lookup local".to_owned())
    );
    mirror.rules.retain(|held| held.rule.preference != LOCAL);
    assert_eq!(next(&mirror), None);
}

fn is_moved(rule: &Rule) -> bool {
    *rule == local(rule.family, LOCAL)
}

/// Whatever somebody deleted: a host with no rule for its own addresses is deaf.
#[test]
fn a_rule_of_the_local_table_that_others_took_away_is_put_back() {
    let mut mirror = mirror();
    for rule in rules(&serving(), Family::V4, Around::default()).into_iter().take(2) {
        held(&mut mirror, rule, PROTOCOL);
    }
    let moved = ours(vec![Family::V4]);
    assert_eq!(steps(&serving(), &mirror, &moved), ["rule 5: from all lookup local"]);
    let plan = plan(&serving(), &mirror, &Health::of([Live, Live]));
    let all: Vec<String> =
        difference(&plan, &mirror, &moved).iter().map(ToString::to_string).collect();
    assert_eq!(
        (all[0].as_str(), all.len() > 9),
        ("rule 5: from all lookup local", true),
        "{all:?}"
    );
    let step = local_back(&mirror, &moved, Family::V4).map(|step| step.to_string());
    assert_eq!(step.as_deref(), Some("rule 0: from all lookup local"));
}

#[test]
fn where_others_have_rules_in_front_nothing_is_moved_and_what_was_moved_returns() {
    let (config, mut mirror) = (serving(), bare());
    held(&mut mirror, Rule::new(Family::V4, 3, Action::Lookup(77)), 4);
    assert_eq!(steps(&config, &mirror, &ours(Vec::new())), Vec::<String>::new());
    mirror.rules.clear();
    held(&mut mirror, Rule::new(Family::V4, 3, Action::Lookup(77)), 4);
    held(&mut mirror, local(Family::V4, LOCAL), 2);
    let steps = steps(&config, &mirror, &ours(vec![Family::V4]));
    assert_eq!(steps, ["rule 0: from all lookup local"]);
}

/// As VRFs have it.
#[test]
fn a_rule_of_the_local_table_further_behind_stays_there() {
    let mut mirror = mirror();
    held(&mut mirror, local(Family::V4, 32_765), 3);
    let mut rules = shown(&serving());
    rules.pop();
    assert_eq!(steps(&serving(), &mirror, &ours(Vec::new())), rules);
    assert!(!is_vipas(&mirror, Family::V4, |_| false), "nothing to put back");
}

#[test]
fn the_last_of_two_adapters_puts_the_rule_back() {
    let mut mirror = mirror();
    held(&mut mirror, local(Family::V4, LOCAL), 2);
    let mut others = rules(&serving(), Family::V4, Around::default()).swap_remove(0);
    others.action = Action::Lookup(1925);
    held(&mut mirror, others, PROTOCOL);
    let moved = ours(vec![Family::V4]);
    assert_eq!(local_back(&mirror, &moved, Family::V4), None);
    assert!(is_vipas(&mirror, Family::V4, |rule| moved.leads_to_us(rule)), "ours as well now");
    mirror.rules.truncate(1);
    assert!(local_back(&mirror, &moved, Family::V4).is_some());
}

#[test]
fn a_sorry_server_on_this_host_answers_it_as_the_others_do() {
    let mut config = serving();
    config.services[0].servers.truncate(1);
    let (here, elsewhere) = ("203.0.113.10:8081", "10.1.2.12:8081");
    for (end, is_local) in [(here, true), (elsewhere, false)] {
        config.services[0].when_none = WhenNone::Sorry(end.parse().expect("an end"));
        let rules = shown(&config);
        assert_eq!(rules.iter().any(|rule| rule.contains("sport 8081-8081")), is_local, "{end}");
    }
}
