//! `advertise = "all"` makes a router of the host: refused where it does not forward, and taken back where it ceases to.

use vipa::lab::Namespace;

use crate::fixture::{Bench, PROGRAM, Setup, wait_until};

const ALL: &str = "versions = [2, \"ng\"]\nadvertise = \"all\"";

fn forward(namespace: &Namespace, v4: u8, v6: u8) {
    namespace.sysctl("net/ipv4/ip_forward", v4).expect("a setting");
    namespace.sysctl("net/ipv6/conf/all/forwarding", v6).expect("a setting");
}

/// Exit status and what is told on stderr.
fn vipa(bench: &Bench, namespace: &Namespace, command: &str) -> (Option<i32>, String) {
    let config = bench.scratch.path().join("vipa.toml");
    let output = namespace.command(PROGRAM).arg(command).arg(&config).output().expect("vipa");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_host_that_does_not_forward_is_refused_and_another_machine_is_not_judged() {
    let bench = Bench::prepare(&Setup::new(1).rip(ALL));
    let host = &bench.network.host;
    forward(host, 1, 0);
    for command in ["check", "run"] {
        let (status, told) = vipa(&bench, host, command);
        assert_eq!(status, Some(2), "{told}");
        let line = std::fs::read_to_string(bench.scratch.path().join("vipa.toml"))
            .expect("the configuration")
            .lines()
            .position(|line| line.starts_with("advertise"));
        let place = format!("vipa.toml:{}:1", line.expect("a line") + 1);
        assert!(told.contains(&place), "{place} in {told}");
        assert!(told.contains("this host does not forward IPv6"), "{told}");
        assert!(told.contains("net.ipv6.conf.all.forwarding=1"), "{told}");
        assert!(!told.contains("IPv4"), "{told}");
    }
    // The router has no eth1: the configuration is for another machine.
    let (status, told) = vipa(&bench, &bench.network.router, "check");
    assert_eq!(status, Some(0), "{told}");
    assert!(told.contains("whether the host forwards IPv4 is not known"), "{told}");
    forward(host, 1, 1);
    assert_eq!(vipa(&bench, host, "check"), (Some(0), String::new()));
}

#[test]
fn a_host_that_ceases_to_forward_is_told_of() {
    let mut bench = Bench::prepare(&Setup::new(1).rip(ALL));
    forward(&bench.network.host, 1, 1);
    bench.start_forwarder();
    let withheld = |bench: &Bench| bench.status()["rip"]["withheld"].to_string();
    assert_eq!(withheld(&bench), "[]");
    forward(&bench.network.host, 0, 1);
    wait_until("it is noticed", || withheld(&bench) == "[\"ipv4\"]");
    let log = bench.forwarder.log();
    assert!(log.contains("the host does not forward"), "{log}");
    forward(&bench.network.host, 1, 1);
    wait_until("it is noticed", || withheld(&bench) == "[]");
}
