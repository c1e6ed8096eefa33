//! Descriptors: `vipa run` takes all that it may have, and what the forwarder needs is out of the reach of status objects.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use vipa::lab::Forwarder;
use vipa::lab::topology::vipas;
use vipa::wire::ip::Family;

use super::farm::{Server, WEB, address, endpoint, wait_for_servers, who};
use crate::fixture::{Bench, PROGRAM, Setup, wait_until};

/// The soft limit that the forwarder is started with.
const FOUND: u64 = 700;

/// Soft and hard limit of a process.
fn limits(pid: u32) -> (String, String) {
    let all = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
    let line = all.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
    let mut words = line.split_whitespace().map(str::to_owned);
    (words.next().expect("soft"), words.next().expect("hard"))
}

fn server(bench: &Bench) -> serde_json::Value {
    bench.status()["balance"]["services"][0]["servers"][0].clone()
}

#[test]
fn status_objects_leave_the_forwarder_its_descriptors() {
    let vipa = endpoint(vipas(Family::V4)[0], 80);
    let end = endpoint(address(1, Family::V4), WEB);
    let limit = "[[service.status]]\nname = \"limit\"\nkind = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", \"ulimit -Sn\"]\nevery = \"200ms\"";
    let mut bench = Bench::prepare(&Setup::new(2).service(&format!(
        "name = \"web\"\naddress = \"{vipa}\"\nprotocol = \"tcp\"\npolicy = \"fastest-response\"\n{limit}\n\
         [[service.server]]\nname = \"a\"\naddress = \"{end}\"\n"
    )));
    let script = bench.scratch.path().join("limited");
    let text = format!("#!/bin/sh\nulimit -Sn {FOUND}\nexec {PROGRAM} \"$@\"\n");
    std::fs::write(&script, text).expect("a file");
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("its own file");
    let (host, scratch) = (bench.network.host.clone(), bench.scratch.path().to_owned());
    std::fs::remove_file(scratch.join("ready")).expect("nobody was started");
    bench.forwarder = Forwarder::new(&host, &script, &scratch.join("vipa.toml"), &scratch)
        .expect("a forwarder to start");
    bench.start_forwarder();
    let _server = Server::start(&bench, 1);
    wait_for_servers(&bench);
    let pid = bench.forwarder.pid().expect("it runs");
    let (soft, hard) = limits(pid);
    assert_eq!(soft, hard, "all that it may have");
    // What a program finds is what the forwarder found.
    wait_until("the program has said it", || {
        let values = server(&bench)["values"].as_array().cloned().unwrap_or_default();
        values.iter().any(|one| one["name"] == "limit" && one["value"] == FOUND as f64)
    });

    // No more than the forwarder's own: 64, 6 for its worker, 16 for each NIC.
    let restrict = |soft: &str| {
        let all = format!("--nofile={soft}:{hard}");
        bench.run(&host, "prlimit", &["--pid", &pid.to_string(), &all]);
    };
    restrict("96");
    wait_until("status objects have none", || {
        let server = server(&bench);
        let why = server["why"].as_str().unwrap_or_default();
        server["state"] == "down" && why.contains("no descriptor is left")
    });
    // Nothing else suffers: a NIC that is made anew is opened, and whoever asks is answered.
    bench.network.delete_nic(1).expect("a NIC");
    bench.waits_for_state(1, "missing");
    bench.network.create_nic(1).expect("a NIC");
    bench.waits_for_state(1, "live");
    assert!(!bench.forwarder.log().contains("cannot open the NIC"), "{}", bench.forwarder.log());

    restrict(&hard);
    wait_until("it is asked again", || server(&bench)["state"] == "up");
    assert_eq!(who(&bench, &bench.network.client, (vipas(Family::V4)[0], 80).into()).0, 1);
}
