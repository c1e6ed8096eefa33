use super::*;
use crate::forward::view::NicId;
use crate::forward::view::NicState::{HeldDown, Live, NoCarrier};
use crate::link::mirror::fixture;
use crate::link::plan::tests::{config, mirror};

fn draft_of(mirror: &Mirror, health: &Health, listening: &[u16]) -> Draft {
    let reaches = &crate::link::plan::routes::reaches(&config(), mirror);
    let around =
        Surroundings { reaches, health, ephemeral: &(32768..=60999), listening, kept: &[] };
    draft(&config(), mirror, around, |hop| hop.1.to_string() == "10.1.1.77")
}

fn hops(draft: &Draft, prefix: &str) -> Option<Vec<String>> {
    let prefix: Prefix = prefix.parse().expect("a prefix");
    let route = draft.routes().iter().find(|r| r.prefix == prefix)?;
    let one = |h: &NextHop| match h.gateway {
        Some(gateway) => format!("{} {gateway}", h.nic.0),
        None => h.nic.0.to_string(),
    };
    Some(route.next_hops.iter().map(one).collect())
}

#[test]
fn routes_are_the_prefixes_of_the_pairs_with_all_their_nics() {
    let draft = draft_of(&mirror(), &Health::of([Live, Live]), &[]);
    let list = |texts: &[&str]| Some(texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
    assert_eq!(hops(&draft, "0.0.0.0/0"), list(&["0 10.1.1.1", "1 10.1.2.1"]));
    assert_eq!(hops(&draft, "::/0"), list(&["0 fe80::1"]));
    assert_eq!(hops(&draft, "10.1.1.0/24"), list(&["0"]));
    assert_eq!(hops(&draft, "192.168.9.0/24"), list(&[]), "that one is the kernel's");
}

#[test]
fn a_route_over_dead_nics_gives_way_while_a_shorter_one_lives() {
    let is_there =
        |health: &Health| hops(&draft_of(&mirror(), health, &[]), "10.1.1.0/24").is_some();
    assert!(!is_there(&Health::of([NoCarrier, Live])));
    assert!(is_there(&Health::of([NoCarrier, NoCarrier])));
    assert!(is_there(&Health::of([HeldDown, NoCarrier])));
}

#[test]
fn a_nic_held_down_is_live_only_if_nothing_else_is() {
    let live = |health: &Health| -> Vec<bool> {
        draft_of(&mirror(), health, &[]).nics().iter().map(|n| n.is_live).collect()
    };
    assert_eq!(live(&Health::of([HeldDown, Live])), [false, true]);
    assert_eq!(live(&Health::of([HeldDown, NoCarrier])), [true, false]);
}

#[test]
fn neighbours_are_gateways_and_what_was_asked_for() {
    let mut mirror = mirror();
    for address in ["10.1.1.1", "10.1.1.77", "10.1.1.78"] {
        fixture::neighbour(&mut mirror, 1, address, 0x04);
    }
    fixture::neighbour(&mut mirror, 2, "10.1.2.1", 0x20);
    fixture::neighbour(&mut mirror, 3, "192.168.9.1", 0x02);
    let draft = draft_of(&mirror, &Health::of([Live, Live]), &[]);
    let known: Vec<String> =
        draft.neighbours().keys().map(|(nic, a)| format!("{} {a}", nic.0)).collect();
    assert_eq!(known, ["0 10.1.1.1", "0 10.1.1.77"]);
}

#[test]
fn addresses_on_the_wire_come_without_vipas_the_preferred_first() {
    let mut mirror = mirror();
    let mut add = |text: &str, is_deprecated, is_narrow| {
        mirror.addresses.push(Address {
            ifindex: 1,
            address: text.parse().expect("an address"),
            prefix_length: 24,
            is_narrow,
            is_deprecated,
            is_secondary: false,
            is_unusable: false,
            is_ours: false,
        });
    };
    add("2001:db8:1::dead", true, false);
    add("2001:db8:1::2", false, false);
    add("fe80::2", false, true);
    add("203.0.113.10", false, false);
    add("10.1.1.2", false, false);
    let draft = draft_of(&mirror, &Health::of([Live, Live]), &[]);
    let found: Vec<String> = draft.nics()[0].addresses.iter().map(|a| a.0.to_string()).collect();
    assert_eq!(found, ["10.1.1.2", "2001:db8:1::2", "2001:db8:1::dead"]);
}

#[test]
fn ports_with_a_listener_are_left_out() {
    let view = draft_of(&mirror(), &Health::of([Live, Live]), &[61001]).view(7);
    assert_eq!(view.source.ports[..2], [61000, 61002]);
    assert_eq!(view.source.ports.len(), 4535);
    assert_eq!((view.generation, view.nic(NicId(0)).ifindex), (7, 1));
    assert!(view.owned_addresses().is_empty(), "no rule rewrites");
}

#[test]
fn equal_drafts_need_no_publication() {
    let mut mirror = mirror();
    let draft = draft_of(&mirror, &Health::of([Live, Live]), &[]);
    fixture::neighbour(&mut mirror, 1, "10.1.1.78", 0x02);
    assert_eq!(draft_of(&mirror, &Health::of([Live, Live]), &[]), draft);
    fixture::neighbour(&mut mirror, 1, "10.1.1.1", 0x02);
    assert_ne!(draft_of(&mirror, &Health::of([Live, Live]), &[]), draft);
}
