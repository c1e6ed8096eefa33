//! From the first start to `vipa down`: connections live through it, and the host is afterwards as it was.

use super::busy::{Host, all_go_on};
use crate::fixture::Conversation;

#[test]
fn connections_live_through_first_start_kills_restarts_and_down_and_all_is_as_before() {
    let mut host = Host::new();
    let before = host.everything();
    let physical = host.physical_conversations();
    host.bench.start_forwarder();
    assert!(!host.changes_since(&before).is_empty(), "it set something up");
    all_go_on(&physical);
    let all = host.conversations_of_vipas();
    for round in 0..3 {
        host.bench.forwarder.kill();
        all_go_on(&physical);
        all_go_on(&all);
        let frames = host.sent_by_nics();
        all_go_on(&all);
        assert!(host.sent_by_nics() > frames, "bytes leave by the NICs");
        host.bench.start_forwarder();
        all_go_on(&physical);
        all_go_on(&all);
        assert!(host.bench.carried() > 0, "the forwarder carries in round {round}");
    }
    host.signal("TERM");
    all_go_on(&physical);
    all_go_on(&all);
    all.into_iter().for_each(Conversation::finish);
    host.down(&[]);
    all_go_on(&physical);
    physical.into_iter().for_each(Conversation::finish);
    host.is_as(&before);
}

#[test]
fn sigterm_leaves_the_adapter_up_and_the_kernel_forwarding() {
    left_to_the_kernel("TERM");
}

#[test]
fn sigint_leaves_the_adapter_up_and_the_kernel_forwarding() {
    left_to_the_kernel("INT");
}

fn left_to_the_kernel(signal: &str) {
    let mut host = Host::started();
    let mut conversations = host.physical_conversations();
    conversations.extend(host.conversations_of_vipas());
    host.signal(signal);
    let link = host.bench.run(&host.bench.network.host, "ip", &["link", "show", "vipa0"]);
    assert!(link.contains(",UP") && link.contains("NO-CARRIER"), "{link}");
    all_go_on(&conversations);
    host.reaches_all();
    host.bench.start_forwarder();
    let frames = host.bench.carried();
    host.reaches_all();
    assert!(host.bench.carried() > frames, "the forwarder carries again");
    all_go_on(&conversations);
    conversations.into_iter().for_each(Conversation::finish);
}

#[test]
fn down_refuses_while_a_forwarder_runs_and_stop_ends_it() {
    let mut host = Host::new();
    let before = host.everything();
    host.bench.start_forwarder();
    let physical = host.physical_conversations();
    let stands = host.everything();
    let output = host.vipa(&["down"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("--stop"), "{said}");
    host.is_as(&stands);
    all_go_on(&physical);
    host.down(&["--stop"]);
    assert!(host.bench.forwarder.ended().is_some_and(|status| status.success()));
    all_go_on(&physical);
    host.is_as(&before);
    physical.into_iter().for_each(Conversation::finish);
}

#[test]
fn down_needs_no_configuration_and_twice_is_no_error() {
    let mut host = Host::new();
    let before = host.everything();
    host.bench.start_forwarder();
    host.bench.forwarder.kill();
    std::fs::remove_file(host.bench.scratch.path().join("vipa.toml")).expect("it is there");
    let told = host.down(&[]);
    assert!(told.starts_with("vipa0 is gone: "), "{told}");
    host.is_as(&before);
    let told = host.down(&[]);
    assert!(told.starts_with("nothing is set up"), "{told}");
    host.is_as(&before);
    let left = std::fs::read_dir(host.state()).expect("a directory").count();
    assert_eq!(left, 0, "nothing is kept");
}
