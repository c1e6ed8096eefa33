//! A forwarder that dies or is stopped: traffic is back through the kernel within 500 ms (B1). The guard by
//! itself, with hung and traced forwarders, is in tests/guard.rs.

use std::time::{Duration, Instant};

use vipa::wire::ip::Family;

use super::traced;
use crate::fixture::{Bench, Conversation, Peer, Setup, wait_until};
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

fn children(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children.unwrap_or_default().split_whitespace().filter_map(|c| c.parse().ok()).collect()
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

/// A child holds nothing that would keep the adapter's carrier. The guard is the one child that a forwarder has
/// (tests/guard.rs has others); here it lives on stopped, so that it is the kernel alone that notices: within
/// the second for which it may hold carrier news back.
#[test]
fn killed_while_its_child_lives_on_and_does_nothing() {
    let bench = Bench::start(&Setup::new(2));
    let echo = Echo::start(&bench.network, Family::V4);
    echo.goes_on();
    let pid = bench.forwarder.pid().expect("it runs");
    let child = children(pid)[0].to_string();
    bench.run(&bench.network.host, "kill", &["-STOP", &child]);
    let left = bench.left();
    bench.run(&bench.network.host, "kill", &["-KILL", &pid.to_string()]);
    wait_until("the adapter has no carrier", || {
        !bench.network.host.has_carrier("vipa0").unwrap_or(true)
    });
    echo.goes_on();
    assert!(bench.left() > left, "the kernel sends by the NICs");
    let status = std::fs::read_to_string(format!("/proc/{child}/status")).expect("it is there");
    assert!(status.contains("State:\tT"), "the child lives on, stopped: {status}");
    bench.run(&bench.network.host, "kill", &["-CONT", &child]);
    let is_gone = || !std::path::Path::new(&format!("/proc/{child}")).exists();
    wait_until("the child sees that its parent is dead, and goes", is_gone);
}

#[test]
fn held_by_a_debugger() {
    let mut tracers = Vec::new();
    survives(&Setup::new(2), |_, pid| tracers.push(traced::hold(pid, "worker-0")));
    for tracer in tracers {
        tracer.join().expect("it saw the end");
    }
}

#[test]
fn rewritten_connections_outlive_a_forwarder_that_a_debugger_held() {
    let mut bench = Bench::start(&Setup::new(2).second_vipa(""));
    let peer = Peer::listen(&bench.network.client, 7001);
    let flows =
        Family::BOTH.map(|family| Conversation::open(&bench.network.host, peer.address(family)));
    flows.iter().for_each(|flow| flow.goes_on(10));
    let tracer = traced::hold(bench.forwarder.pid().expect("it runs"), "worker-0");
    wait_until("the guard kills it", || bench.forwarder.log().contains("was stopped"));
    tracer.join().expect("it saw the end");
    bench.start_forwarder();
    flows.iter().for_each(|flow| flow.goes_on(10));
    flows.into_iter().for_each(Conversation::finish);
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
        let guards = || children(pid);
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
