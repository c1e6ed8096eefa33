//! A router that speaks our own RIP, as the demo has it: what the host tells is in its kernel's table, and what it takes back is not.

use vipa::lab::RipRouter;
use vipa::lab::topology::{nic_name, vipas};
use vipa::wire::ip::{Family, Prefix};

use super::RIP;
use crate::fixture::{Bench, Conversation, Peer, Setup, wait_until};

fn waits_for_ways(bench: &Bench, router: &RipRouter, wanted: &[&str]) {
    for family in Family::BOTH {
        for vipa in vipas(family) {
            wait_until(&format!("the ways to {vipa} are {wanted:?}"), || {
                router.ways(Prefix::host(vipa)) == wanted
            });
            let version = if family == Family::V4 { "-4" } else { "-6" };
            let vipa = vipa.to_string();
            let shown = bench.run(&bench.network.router, "ip", &[version, "route", "show", &vipa]);
            for port in bench.network.ports() {
                let is_used = shown.contains(&format!("dev {port} "));
                assert_eq!(is_used, wanted.contains(&port.as_str()), "{port}: {shown}");
            }
        }
    }
}

#[test]
fn a_router_of_ours_leaves_a_dead_path_and_a_dead_link_and_takes_them_again() {
    let mut bench = Bench::prepare(&Setup::new(3).rip(RIP).path("interval = \"100ms\""));
    bench.network.forget_vipas().expect("the lab's static routes");
    let router = RipRouter::start(&bench.network.router, &bench.network.ports()).expect("a router");
    bench.start_forwarder();
    let all = ["r1", "r2", "r3"];
    waits_for_ways(&bench, &router, &all);
    let peer = Peer::listen(&bench.network.client, 7000);
    let open = |family| Conversation::open(&bench.network.host, peer.address(family));
    // So many that each card has some, both ways, whatever their ports: all but once in a hundred thousand times.
    let flows: Vec<_> = (0..16).flat_map(|_| Family::BOTH.map(open)).collect();
    let network = &bench.network;
    // A path first: for the timeout after it nothing shorter is left to tell, and links need no telling.
    for (nic, is_path) in [(1, true), (2, false), (1, false), (3, false)] {
        let port = format!("r{nic}");
        let others: Vec<&str> = all.into_iter().filter(|other| *other != port).collect();
        let carried = || network.host.counters(&nic_name(nic)).expect("a NIC");
        bench.waits_for_state(nic, "live");
        flows.iter().for_each(|flow| flow.goes_on(10));
        if is_path { network.break_path(nic) } else { network.pull_cable(nic) }.expect("a cable");
        waits_for_ways(&bench, &router, &others);
        flows.iter().for_each(|flow| flow.goes_on(10));
        if is_path { network.mend_path(nic) } else { network.plug_cable(nic) }.expect("a cable");
        waits_for_ways(&bench, &router, &all);
        let before = carried();
        wait_until("it carries traffic both ways", || {
            let now = carried();
            now.rx_bytes > before.rx_bytes + 100_000 && now.tx_bytes > before.tx_bytes + 100_000
        });
    }
    flows.into_iter().for_each(Conversation::finish);
}

/// The routes of a forwarder that starts again are all there again soon, though it tells them longer than the one before.
#[test]
fn every_way_to_a_forwarder_that_starts_again_is_taken_again() {
    let mut bench = Bench::prepare(&Setup::new(3).rip("update = \"10m\"\ntimeout = \"1h\"\n"));
    bench.network.forget_vipas().expect("the lab's static routes");
    let router = RipRouter::start(&bench.network.router, &bench.network.ports()).expect("a router");
    bench.start_forwarder();
    waits_for_ways(&bench, &router, &["r1", "r2", "r3"]);
    bench.network.pull_cable(1).expect("a cable");
    waits_for_ways(&bench, &router, &["r2", "r3"]);
    bench.network.plug_cable(1).expect("a cable");
    waits_for_ways(&bench, &router, &["r1", "r2", "r3"]);
    bench.forwarder.kill();
    bench.start_forwarder();
    let longer = |bench: &Bench| bench.status()["rip"]["sent"].as_u64() > Some(20);
    wait_until("it has told more than once", || longer(&bench));
    waits_for_ways(&bench, &router, &["r1", "r2", "r3"]);
}
