//! From the first start to `vipa down`: connections live through it, and the host is afterwards as it was.

use crate::fixture::{Host, all_go_on};

#[test]
fn connections_live_through_first_start_kills_restarts_and_down_and_all_is_as_before() {
    let mut host = Host::new();
    let before = host.everything();
    let physical = host.physical_conversations();
    host.start();
    assert!(!host.changes_since(&before).is_empty(), "it set something up");
    all_go_on(&physical, "after the first start");
    let all = host.conversations_of_vipas();
    for round in 0..3 {
        host.forwarder.kill();
        all_go_on(&physical, "after SIGKILL");
        all_go_on(&all, "after SIGKILL");
        let frames = host.sent_by_nics();
        all_go_on(&all, "while the forwarder is dead");
        assert!(host.sent_by_nics() > frames, "bytes leave by the NICs");
        host.start();
        all_go_on(&physical, "after the restart");
        all_go_on(&all, "after the restart");
        assert!(host.forwarded() > 0, "the forwarder carries in round {round}");
    }
    host.signal("TERM");
    all_go_on(&physical, "after SIGTERM");
    all_go_on(&all, "after SIGTERM");
    drop(all);
    host.down(&[]);
    all_go_on(&physical, "after down");
    drop(physical);
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
    let conversations = host.conversations();
    host.signal(signal);
    let link = host.tool("ip link show vipa0");
    assert!(link.contains(",UP") && link.contains("NO-CARRIER"), "{link}");
    all_go_on(&conversations, "after the signal");
    host.reaches_all();
    host.start();
    let frames = host.forwarded();
    host.reaches_all();
    assert!(host.forwarded() > frames, "the forwarder carries again");
    all_go_on(&conversations, "after the restart");
}

#[test]
fn down_refuses_while_a_forwarder_runs_and_stop_ends_it() {
    let mut host = Host::new();
    let before = host.everything();
    host.start();
    let stands = host.everything();
    let output = host.vipa(&["down"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("--stop"), "{said}");
    host.is_as(&stands);
    host.down(&["--stop"]);
    assert!(host.forwarder.ended().is_some_and(|status| status.success()));
    host.is_as(&before);
}

#[test]
fn down_needs_no_configuration_and_twice_is_no_error() {
    let mut host = Host::new();
    let before = host.everything();
    host.start();
    host.forwarder.kill();
    std::fs::remove_file(&host.config).expect("it is there");
    host.down(&[]);
    host.is_as(&before);
    host.down(&[]);
    host.is_as(&before);
    let left = std::fs::read_dir(host.state()).expect("a directory").count();
    assert_eq!(left, 0, "nothing is kept");
}

#[test]
fn an_idle_forwarder_sleeps_and_is_small() {
    let host = Host::started();
    let pid = host.forwarder.pid().expect("it runs");
    let guards = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let guards = guards.expect("it runs");
    let guard: u32 = guards.trim().parse().expect("one child, the guard");
    std::thread::sleep(std::time::Duration::from_secs(1)); // what the start itself caused is over
    let wakeups = || [wakeups_of(pid), wakeups_of(guard)].concat();
    let before = wakeups();
    std::thread::sleep(std::time::Duration::from_secs(2)); // the span that is measured
    for ((name, then), (_, now)) in before.iter().zip(wakeups()) {
        assert!(now - then < 20, "{name}: {} wake-ups in 2 s", now - then);
    }
    for process in [pid, guard] {
        let resident = field(&format!("/proc/{process}/status"), "VmRSS:");
        assert!(resident < 32 * 1024, "{resident} KB");
    }
}

fn wakeups_of(pid: u32) -> Vec<(String, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let mut found: Vec<(String, u64)> = tasks
        .map(|task| {
            let task = task.expect("it can be read").path().display().to_string();
            let name = std::fs::read_to_string(format!("{task}/comm")).expect("it lives");
            let count = field(&format!("{task}/status"), "voluntary_ctxt_switches:");
            (format!("{task} {}", name.trim()), count)
        })
        .collect();
    found.sort();
    assert!(!found.is_empty());
    found
}

fn field(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).expect("it lives");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("it is told");
    line.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number")
}
