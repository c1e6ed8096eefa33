//! A forwarder that dies or is stopped: traffic is back through the kernel within 500 ms (B1). The guard by
//! itself, with hung and traced forwarders, is in tests/guard.rs.

use std::time::{Duration, Instant};

use vipa::wire::ip::Family;

use crate::fixture::{Bench, Setup, wait_until};
use crate::gap::Echo;

const PROMISED: Duration = Duration::from_millis(500);

/// Does `harm` to a forwarder that carries an echo, and asserts that the kernel takes over in time.
fn survives(setup: &Setup, harm: impl FnOnce(&Bench, u32)) {
    let bench = Bench::start(setup);
    let echo = Echo::start(&bench.network, Family::V4);
    let carried = bench.carried();
    echo.goes_on();
    assert!(bench.carried() > carried, "the forwarder carries the answers");
    echo.longest_gap();
    let pid = bench.forwarder.pid().expect("it runs");
    harm(&bench, pid);
    let left = bench.left();
    let gap = echo.longest_gap();
    wait_until("the adapter has no carrier", || {
        !bench.network.host.has_carrier("vipa0").unwrap_or(true)
    });
    echo.goes_on();
    assert!(bench.left() > left, "the kernel sends by the NICs");
    assert!(gap < PROMISED, "{gap:?}");
}

fn signal(signal: &'static str) -> impl FnOnce(&Bench, u32) {
    move |bench, pid| {
        bench.run(&bench.network.host, "kill", &[signal, &pid.to_string()]);
    }
}

#[test]
fn killed() {
    survives(&Setup::new(3), signal("-KILL"));
}

#[test]
fn killed_with_two_workers_and_rules() {
    let setup = Setup::new(3).workers(2).second_vipa("protocol = \"tcp\"\nport = \"7001\"");
    survives(&setup, signal("-KILL"));
}

#[test]
fn stopped() {
    survives(&Setup::new(2), signal("-STOP"));
}

#[test]
fn panicked() {
    survives(&Setup::new(2), signal("-ABRT"));
}

#[test]
fn a_guard_that_dies_is_replaced_and_the_new_one_works() {
    survives(&Setup::new(2), |bench, pid| {
        let guards = || -> Vec<u32> {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            children.unwrap_or_default().split_whitespace().filter_map(|c| c.parse().ok()).collect()
        };
        let first = guards()[0];
        bench.run(&bench.network.host, "kill", &["-KILL", &first.to_string()]);
        wait_until("another guard", || guards().iter().any(|guard| *guard != first));
        // It takes a moment until it watches; what counts is that it does.
        let named =
            |guard: u32| std::fs::read_to_string(format!("/proc/{guard}/comm")).unwrap_or_default();
        wait_until("it watches", || guards().iter().any(|g| named(*g).trim() == "vipa-guard"));
        let at = Instant::now();
        bench.run(&bench.network.host, "kill", &["-STOP", &pid.to_string()]);
        wait_until("it is killed", || bench.forwarder.log().contains("was stopped"));
        assert!(at.elapsed() < Duration::from_secs(10));
    });
}
