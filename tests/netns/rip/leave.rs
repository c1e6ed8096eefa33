//! Going away politely, and not going away: `vipa drain`, `vipa run --withdraw`, SIGKILL and a restart.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use vipa::lab::topology::{nic_name, vipas};
use vipa::lab::{Hop, Namespace, Process};
use vipa::wire::bfd;
use vipa::wire::ip::Family;

use super::daemon::{Daemon, Kind, Signed};
use super::told::Tap;
use super::{RIP, waits_for_the_kernel, waits_for_ways, ways};
use crate::fixture::{Bench, Conversation, PROGRAM, Peer, Setup, number, wait_until};

fn drain(bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = bench.network.host.command(PROGRAM);
    let state = bench.scratch.path().join("state");
    command.arg("drain").args(arguments).arg("--state").arg(state);
    command
}

fn begin(bench: &Bench, arguments: &[&str]) -> Child {
    let mut command = drain(bench, arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("vipa")
}

/// What it said, one JSON object; it has succeeded.
fn told(output: &Output) -> Value {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {complaint}", output.status);
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn withdrawing(bench: &Bench) -> Value {
    bench.status()["withdrawing"].clone()
}

fn flows(bench: &Bench, peer: &Peer) -> Vec<Conversation> {
    waits_for_the_kernel(bench);
    let open = |family| Conversation::open(&bench.network.host, peer.address(family));
    let flows: Vec<_> = (0..4).flat_map(|_| Family::BOTH.map(open)).collect();
    flows.iter().for_each(|flow| flow.goes_on(5));
    flows
}

/// The route that is left when RIP's is gone: a static one, by the first NIC alone. FRR reads the highest byte as its distance.
const LONGER: &str = "3355443200";

fn add_longer_routes(bench: &Bench) {
    for (family, version, via) in
        [(Family::V4, "-4", "10.1.1.2"), (Family::V6, "-6", "2001:db8:1::2")]
    {
        for vipa in vipas(family) {
            let vipa = format!("{vipa}/{}", family.bits());
            let route = ["route", "add", &vipa, "via", via, "dev", "r1", "metric", LONGER];
            bench.run(&bench.network.router, "ip", &[&[version], &route[..]].concat());
        }
    }
}

/// Does the router know the VIPA by RIP?
fn is_known(bench: &Bench, family: Family) -> bool {
    let vipa = vipas(family)[0].to_string();
    let version = if family == Family::V4 { "-4" } else { "-6" };
    let shown = bench.run(&bench.network.router, "ip", &[version, "route", "show", &vipa]);
    let is_learned = |line: &str| line.starts_with(&vipa) && !line.contains(LONGER);
    shown.lines().any(is_learned)
}

/// The VIPA is gone from the router's table before the forwarder is, and connections go on by the longer route and the kernel.
fn drains(kind: Kind) {
    let mut bench = Bench::prepare(&Setup::new(2).rip(RIP));
    let _daemon = Daemon::start(kind, &bench.network, Signed::default());
    add_longer_routes(&bench);
    bench.start_forwarder();
    let are_known = |bench: &Bench| Family::BOTH.map(|family| is_known(bench, family));
    wait_until("the router knows the VIPAs", || are_known(&bench) == [true; 2]);
    let peer = Peer::listen(&bench.network.client, 7000);
    let flows = flows(&bench, &peer);
    assert_eq!(withdrawing(&bench), Value::Null);

    let draining = begin(&bench, &["--json", "--wait", "10m"]);
    wait_until("it withdraws", || !withdrawing(&bench).is_null());
    wait_until("the router forgets them", || are_known(&bench) == [false; 2]);
    wait_until("they are told again and again", || number(&withdrawing(&bench)["told"]) == 3);
    flows.iter().for_each(|flow| flow.goes_on(20));
    let state = bench.scratch.path().join("state").display().to_string();
    let page = bench.run(&bench.network.host, PROGRAM, &["status", "--state", &state]);
    assert!(page.contains("withdrawing"), "{page}");

    let pid = bench.forwarder.pid().expect("it still forwards");
    assert!(bench.forwarder.ended().is_none());
    let again = begin(&bench, &["--json", "--wait", "0s"]);
    wait_until("the second is heard", || bench.forwarder.log().contains("told to drain again"));
    assert!(bench.forwarder.ended().is_none(), "the first wait stands");
    bench.run(&bench.network.host, "kill", &["-TERM", &pid.to_string()]);
    for (child, was_leaving) in [(draining, false), (again, true)] {
        let told = told(&child.wait_with_output().expect("it ends"));
        assert_eq!((&told["stopped"], &told["was_leaving"]), (&true.into(), &was_leaving.into()));
        assert_eq!(told["told_by"], serde_json::json!(["eth1", "eth2"]), "{told}");
        assert_eq!(number(&told["pid"]), u64::from(pid));
    }
    assert!(bench.forwarder.ended().is_some_and(|status| status.success()));
    assert_eq!(are_known(&bench), [false; 2]);
    let carried = || bench.network.host.counters(&nic_name(1)).expect("a NIC").rx_frames;
    let before = carried();
    flows.iter().for_each(|flow| flow.goes_on(50));
    assert!(carried() > before + 200, "what comes in comes by the longer route");
    flows.into_iter().for_each(Conversation::finish);

    bench.start_forwarder();
    wait_until("it is back, and so is the route", || are_known(&bench) == [true; 2]);
}

#[test]
fn bird_forgets_a_drained_forwarder_and_no_connection_is_lost() {
    drains(Kind::Bird);
}

#[test]
fn frr_forgets_a_drained_forwarder_and_no_connection_is_lost() {
    drains(Kind::Frr);
}

/// Metric 16 by each NIC, three times, from its own address, and nothing else after; then BFD says that it means nothing.
#[test]
fn neighbours_of_a_drained_forwarder_are_told_by_every_nic_and_bfd_is_taken_down_last() {
    let bird = "interval 50 ms; multiplier 5;";
    let path = "probe = \"bfd\"\n[path.bfd]\ntransmit = \"50ms\"\nreceive = \"50ms\"\n";
    let mut bench = Bench::prepare(&Setup::new(2).rip(RIP).path(path));
    let signed = Signed { bfd: bird, ..Signed::default() };
    let _daemon = Daemon::start(Kind::Bird, &bench.network, signed);
    bench.start_forwarder();
    waits_for_ways(&bench, &[1, 2]);
    wait_until("BFD is up", || {
        let paths = bench.status()["paths"]["next_hops"].clone();
        let all = paths.as_array().cloned().unwrap_or_default();
        all.iter().filter(|one| one["state"] == "up").count() == 4
    });
    let tap = Tap::on(&bench.network);
    let report = told(&drain(&bench, &["--json", "--wait", "600ms"]).output().expect("vipa"));
    assert_eq!(report["stopped"], true, "{report}");
    for (nic, family) in [(1, Family::V4), (1, Family::V6), (2, Family::V4), (2, Family::V6)] {
        for vipa in vipas(family) {
            let is_told = || {
                let metrics = tap.metrics(nic, vipa);
                let farewells = metrics.iter().filter(|metric| **metric == 16).count();
                farewells >= 3 && metrics.last() == Some(&16)
            };
            wait_until("it is told", is_told);
            let metrics = tap.metrics(nic, vipa);
            let first = metrics.iter().position(|metric| *metric == 16).unwrap_or(0);
            assert!(metrics[first..].iter().all(|metric| *metric == 16), "{metrics:?}");
        }
        let all = tap.told();
        let of_nic = || all.iter().filter(|told| told.nic == nic);
        let own = |told: &&super::told::Told| match family {
            Family::V4 => told.source.ip() == std::net::IpAddr::from([10, 1, nic, 2]),
            Family::V6 => told.source.to_string().starts_with("[fe80:"),
        };
        let vipa = vipas(family)[0];
        assert!(of_nic().filter(|told| told.metric(vipa).is_some()).all(|told| own(&told)), "V5");
        let is_of_family = |told: &&super::told::Told| Family::of(told.source.ip()) == family;
        let bfd = || of_nic().filter(is_of_family).filter_map(super::told::Told::bfd_state);
        assert!(bfd().any(|state| state == bfd::State::Up), "BFD outlives the withdrawal");
        // What the last one said may still be on its way into the tap.
        wait_until("BFD says three times that its end means nothing", || {
            let all = tap.told();
            let of_nic = all.iter().filter(|told| told.nic == nic).filter(is_of_family);
            let states: Vec<_> = of_nic.filter_map(super::told::Told::bfd_state).collect();
            states.ends_with(&[bfd::State::AdminDown; 3])
        });
    }
}

#[test]
fn without_rip_there_is_nobody_to_tell_and_it_stops_at_once() {
    let mut bench = Bench::start(&Setup::new(2));
    let peer = Peer::listen(&bench.network.client, 7000);
    let flows = flows(&bench, &peer);
    let output = drain(&bench, &["--wait", "10m"]).output().expect("vipa");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("nobody to tell") && said.contains("stopped"), "{said}");
    assert!(bench.forwarder.ended().is_some_and(|status| status.success()));
    let log = bench.forwarder.log();
    assert!(log.contains("nobody to tell"), "{log}");
    flows.iter().for_each(|flow| flow.goes_on(20));
    flows.into_iter().for_each(Conversation::finish);

    let output = drain(&bench, &[]).output().expect("vipa");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no forwarder runs on vipa0"));
    bench.start_forwarder();
    let config = bench.scratch.path().join("vipa.toml").display().to_string();
    let output = drain(&bench, &[&config]).output().expect("vipa");
    assert!(output.status.success(), "{output:?}");
    assert!(bench.forwarder.ended().is_some());
}

#[test]
fn a_polite_stop_tells_the_neighbours_and_an_impolite_one_does_not() {
    let setup = Setup::new(2).without_gateways().rip(RIP);
    let bench = Bench::prepare(&setup);
    let _daemon = Daemon::start(Kind::Bird, &bench.network, Signed::default());
    let config = bench.scratch.path().join("vipa.toml");
    for is_polite in [false, true] {
        let mut command = bench.network.host.command(PROGRAM);
        command.arg("run").arg(&config).env("RUNTIME_DIRECTORY", bench.scratch.path());
        if is_polite {
            command.arg("--withdraw");
        }
        let log = bench.scratch.path().join(format!("polite-{is_polite}"));
        let mut vipa = Process::start(&mut command, &log).expect("vipa");
        wait_until("it forwards", || vipa.log().contains("forwarding"));
        waits_for_ways(&bench, &[1, 2]);
        bench.run(&bench.network.host, "kill", &["-TERM", &vipa.pid().to_string()]);
        if is_polite {
            waits_for_ways(&bench, &[]);
            assert!(vipa.ended().is_none(), "it still forwards when the neighbours know");
        }
        wait_until("it has ended", || vipa.ended().is_some());
        if !is_polite {
            assert_eq!(ways(&bench, Family::V4), [1, 2]);
        }
    }
}

/// What becomes of the routes of a network, by ip-monitor(8).
struct Watch {
    program: Child,
    file: PathBuf,
}

impl Watch {
    fn on(bench: &Bench, namespace: &Namespace) -> Watch {
        let file = bench.scratch.path().join(format!("routes-{}", namespace.name()));
        let said = File::create(&file).expect("a file");
        let mut program = namespace.command("ip");
        let program = program.args(["monitor", "route"]).stdout(said).spawn().expect("iproute2");
        let watch = Watch { program, file };
        watch.sees_a_change(namespace, "192.0.2.1/32");
        watch
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.file).expect("a file")
    }

    /// Shows that it saw all that was before.
    fn sees_a_change(&self, namespace: &Namespace, prefix: &str) {
        let address = prefix.trim_end_matches("/32");
        wait_until("the watch sees a change", || {
            namespace.route(prefix, &[Hop::on("lo")], None).expect("a route");
            namespace.delete_route(prefix).expect("it is there");
            self.said().contains(address)
        });
    }

    /// No such route was deleted.
    fn saw_no(mut self, namespace: &Namespace, is_meant: impl Fn(&str) -> bool) {
        self.sees_a_change(namespace, "192.0.2.2/32");
        let _ = self.program.kill();
        let _ = self.program.wait();
        let said = self.said();
        let lost = said.lines().find(|line| line.starts_with("Deleted") && is_meant(line));
        assert_eq!(lost, None, "{said}");
    }
}

/// Killed and started again it goes on to tell what it told: the router's route never leaves, and nobody is told that it should.
fn returns_unnoticed(kind: Kind) {
    let mut bench = Bench::prepare(&Setup::new(2).without_gateways().rip(RIP));
    let _daemon = Daemon::start(kind, &bench.network, Signed::default());
    bench.start_forwarder();
    waits_for_ways(&bench, &[1, 2]);
    for prefix in ["10.9.0.0/24", "2001:db8:9::/64"] {
        wait_until("the client's network is learned by both", || {
            let routes = bench.status()["routes"].clone();
            let routes = routes.as_array().cloned().unwrap_or_default();
            let found = routes.iter().find(|route| route["prefix"] == prefix);
            found.is_some_and(|route| {
                route["next_hops"].as_array().is_some_and(|all| all.len() == 2)
            })
        });
    }
    let peer = Peer::listen(&bench.network.client, 7000);
    let flows = flows(&bench, &peer);
    let routers = Watch::on(&bench, &bench.network.router);
    let hosts = Watch::on(&bench, &bench.network.host);
    let tap = Tap::on(&bench.network);
    for _ in 0..3 {
        bench.forwarder.kill();
        flows.iter().for_each(|flow| flow.goes_on(20));
        let told_before = tap.told().len();
        bench.start_forwarder();
        wait_until("it tells", || {
            let told = tap.told();
            let of = |nic, family| {
                let vipa = vipas(family)[0];
                told[told_before..].iter().any(|t| t.nic == nic && t.metric(vipa).is_some())
            };
            [1, 2].iter().all(|nic| Family::BOTH.iter().all(|family| of(*nic, *family)))
        });
        flows.iter().for_each(|flow| flow.goes_on(20));
    }
    for family in Family::BOTH {
        for vipa in vipas(family) {
            for nic in [1, 2] {
                let metrics = tap.metrics(nic, vipa);
                assert!(metrics.len() >= 3 && !metrics.contains(&16), "{vipa}: {metrics:?}");
            }
        }
    }
    let vipas = Family::BOTH.map(|family| vipas(family)[0].to_string());
    let is_of_a_vipa = |line: &str| vipas.iter().any(|vipa| line.contains(vipa));
    routers.saw_no(&bench.network.router, is_of_a_vipa);
    // Nor does the host lose, for a moment, what it had learned.
    let is_learned = |line: &str| {
        ["10.9.0.0/24", "2001:db8:9::/64"].iter().any(|prefix| line.contains(prefix))
            && line.contains("metric 10 ")
    };
    hosts.saw_no(&bench.network.host, is_learned);
    waits_for_ways(&bench, &[1, 2]);
    flows.into_iter().for_each(Conversation::finish);
}

#[test]
fn bird_never_notices_a_forwarder_that_is_killed_and_started_again() {
    returns_unnoticed(Kind::Bird);
}

#[test]
fn frr_never_notices_a_forwarder_that_is_killed_and_started_again() {
    returns_unnoticed(Kind::Frr);
}
