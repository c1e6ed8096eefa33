//! What a forwarder with nothing to do costs.

use std::thread;
use std::time::Duration;

use super::busy::Host;
use crate::fixture::wait_until;

/// The span that is measured.
const SPAN: Duration = Duration::from_secs(2);

#[test]
fn an_idle_forwarder_sleeps_and_is_small() {
    let host = Host::started();
    let pid = host.bench.forwarder.pid().expect("it runs");
    let guards = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let guards = guards.expect("it runs");
    let guard: u32 = guards.trim().parse().expect("one child, the guard");
    let wakeups = || [wakeups_of(pid), wakeups_of(guard)].concat();
    // What the start itself caused, neighbours and duplicate address detection, is over.
    wait_until("it comes to rest", || woken_within(Duration::from_millis(250), wakeups) <= 5);
    let before = wakeups();
    thread::sleep(SPAN);
    let after = wakeups();
    for ((name, then), (_, now)) in before.iter().zip(&after) {
        assert!(now - then < 20, "{name}: {} wake-ups in {SPAN:?}", now - then);
    }
    let woken = sum(&after) - sum(&before);
    assert!(woken < 40, "{woken} wake-ups of all threads in {SPAN:?}");
    for process in [pid, guard] {
        let resident = field(&format!("/proc/{process}/status"), "VmRSS:");
        assert!(resident < 32 * 1024, "{resident} KB");
    }
}

fn sum(wakeups: &[(String, u64)]) -> u64 {
    wakeups.iter().map(|(_, count)| count).sum()
}

fn woken_within(span: Duration, wakeups: impl Fn() -> Vec<(String, u64)>) -> u64 {
    let before = sum(&wakeups());
    thread::sleep(span);
    sum(&wakeups()) - before
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
