//! NICs die, return, come late, change (V3, V9).

use std::net::{SocketAddr, UdpSocket};

use vipa::lab::Process;
use vipa::lab::topology::nic_name;
use vipa::wire::ip::Family;

use crate::fixture::{Bench, Conversation, PROGRAM, Peer, Setup, ask, number, unbound, wait_until};

/// Frames that each NIC sent, as the forwarder counts.
fn sent(bench: &Bench) -> Vec<u64> {
    let status = bench.status();
    let nics = status["nics"].as_array().expect("nics");
    nics.iter().map(|nic| number(&nic["sent"]["frames"])).collect()
}

fn state(bench: &Bench, nic: usize) -> String {
    bench.status()["nics"][nic - 1]["state"].as_str().unwrap_or_default().to_owned()
}

fn flows(bench: &Bench, peer: &Peer, count: usize) -> Vec<Conversation> {
    (0..count)
        .flat_map(|_| {
            Family::BOTH.map(|f| Conversation::open(&bench.network.host, peer.address(f)))
        })
        .collect()
}

#[test]
fn flows_spread_a_dead_nic_loses_none_and_takes_its_share_back_when_it_returns() {
    let bench = Bench::start(&Setup::new(3));
    let peer = Peer::listen(&bench.network.client, 7000);
    let flows = flows(&bench, &peer, 15);
    flows.iter().for_each(|flow| flow.goes_on(5));
    assert!(sent(&bench).iter().all(|frames| *frames > 20), "{:?}", sent(&bench));

    bench.network.pull_cable(1).expect("a cable");
    wait_until("eth1 is seen dead", || state(&bench, 1) == "no_carrier");
    let before = sent(&bench);
    flows.iter().for_each(|flow| flow.goes_on(10));
    let after = sent(&bench);
    assert_eq!(after[0], before[0], "nothing leaves by the dead NIC");

    // A second one fails while the first is still held down.
    bench.network.plug_cable(1).expect("a cable");
    wait_until("eth1 is held down", || state(&bench, 1) == "held_down");
    bench.network.pull_cable(2).expect("a cable");
    wait_until("eth2 is seen dead", || state(&bench, 2) == "no_carrier");
    flows.iter().for_each(|flow| flow.goes_on(10));
    wait_until("eth1 is live", || state(&bench, 1) == "live");
    let before = sent(&bench);
    flows.iter().for_each(|flow| flow.goes_on(10));
    assert!(sent(&bench)[0] > before[0] + 10, "eth1 has its share again");
    flows.into_iter().for_each(Conversation::finish);
}

#[test]
fn a_nic_that_is_deleted_and_created_anew_carries_again() {
    let bench = Bench::start(&Setup::new(2));
    let peer = Peer::listen(&bench.network.client, 7000);
    let flows = flows(&bench, &peer, 8);
    bench.network.delete_nic(1).expect("a NIC");
    wait_until("eth1 is missing", || state(&bench, 1) == "missing");
    flows.iter().for_each(|flow| flow.goes_on(10));
    bench.network.create_nic(1).expect("a NIC");
    wait_until("eth1 is live", || state(&bench, 1) == "live");
    let before = sent(&bench);
    flows.iter().for_each(|flow| flow.goes_on(10));
    assert!(sent(&bench)[0] > before[0] + 10, "{before:?} {:?}", sent(&bench));
    flows.into_iter().for_each(Conversation::finish);
}

#[test]
fn the_adapter_follows_the_smallest_mtu() {
    let bench = Bench::start(&Setup::new(2));
    let peer = Peer::listen(&bench.network.client, 7000);
    let flow = Conversation::open(&bench.network.host, peer.address(Family::V4));
    bench.network.host.set_mtu(&nic_name(2), 1400).expect("an MTU");
    wait_until("vipa0 has 1400", || {
        bench.run(&bench.network.host, "ip", &["link", "show", "vipa0"]).contains("mtu 1400")
    });
    flow.goes_on(20);
    flow.finish();
}

#[test]
fn without_a_gateway_the_kernels_routes_decide_as_they_appear_change_and_vanish() {
    let bench = Bench::start(&Setup::new(2).without_gateways());
    let host = &bench.network.host;
    let peer = Peer::listen(&bench.network.client, 7000);
    let ways = [("-4", "10.9.0.0/24", "10.1.N.1"), ("-6", "2001:db8:9::/64", "2001:db8:N::1")];
    let route = |verb: &str, nic: u8| {
        for (family, to, via) in ways {
            let (via, dev) = (via.replace('N', &nic.to_string()), nic_name(nic));
            bench.run(host, "ip", &[family, "route", verb, to, "via", &via, "dev", &dev]);
        }
    };
    let carries = |nic: usize| {
        for family in Family::BOTH {
            let before = sent(&bench)[nic];
            wait_until("the NIC of the route carries", || {
                let Ok(socket) = host.run(|| UdpSocket::bind((family.unspecified(), 0))) else {
                    return false;
                };
                // Until the forwarder has followed, the system may know no way.
                let _ = socket.send_to(b"who am I?", peer.address(family));
                sent(&bench)[nic] > before
            });
        }
    };
    route("add", 1);
    carries(0);
    let flow = Conversation::open(host, peer.address(Family::V4));
    flow.goes_on(10);
    route("replace", 2);
    carries(1);
    flow.goes_on(10);
    flow.finish();
    route("del", 2);
    for family in Family::BOTH {
        wait_until("nothing leads there any more", || {
            let socket = host.run(|| UdpSocket::bind((family.unspecified(), 0))).expect("a socket");
            socket.send_to(b"who am I?", peer.address(family)).is_err()
        });
    }
}

#[test]
fn a_rule_for_physical_follows_the_nics_address() {
    let bench = Bench::start(&Setup::new(1).physical(""));
    let host = &bench.network.host;
    let peer = Peer::listen(&bench.network.client, 7000);
    let addresses = [("10.1.1.2/24", "10.1.1.7/24"), ("2001:db8:1::2/64", "2001:db8:1::7/64")];
    for (family, (old, new)) in Family::BOTH.into_iter().zip(addresses) {
        let ip = |address: &str| address.split('/').next().unwrap_or_default().to_owned();
        let first = Conversation::open(host, peer.address(family));
        assert_eq!(first.seen.ip().to_string(), ip(old));
        first.goes_on(3);
        first.finish();
        host.delete_address(old, "eth1").expect("it was there");
        host.address(new, "eth1").expect("an address");
        wait_until("a new flow carries the new address", || {
            ask(host, unbound(family), peer.address(family)).ip().to_string() == ip(new)
        });
        let flow = Conversation::open(host, peer.address(family));
        assert_eq!(flow.seen.ip().to_string(), ip(new));
        flow.goes_on(10);
        flow.finish();
    }
}

/// IPv6 sockets keep the route that they found, whatever becomes of its device, unless a rule comes or goes.
#[test]
fn sockets_are_made_to_forget_their_routes_when_the_forwarder_comes_and_when_it_dies() {
    let mut bench = Bench::start(&Setup::new(2));
    let peer = Peer::listen(&bench.network.client, 7000);
    let flows = flows(&bench, &peer, 12);
    let mut command = bench.network.host.command("sh");
    command.args(["-c", "exec ip -6 monitor rule >&2"]);
    let monitor = Process::start(&mut command, &bench.scratch.path().join("monitor"));
    let monitor = monitor.expect("iproute2 (tools/packages.txt)");
    let forgotten = || monitor.log().matches("Deleted 32765:").count();
    let host = &bench.network.host;
    wait_until("the monitor listens", || {
        bench.run(host, "ip", &["-6", "rule", "add", "pref", "32000", "lookup", "main"]);
        bench.run(host, "ip", &["-6", "rule", "del", "pref", "32000"]);
        monitor.log().contains("Deleted 32000:")
    });
    for round in 0..3 {
        bench.forwarder.kill();
        wait_until("the guard has seen to it", || forgotten() > 2 * round);
        flows.iter().for_each(|flow| flow.goes_on(3));
        bench.start_forwarder();
        wait_until("the router has seen to it", || forgotten() > 2 * round + 1);
        flows.iter().for_each(|flow| flow.goes_on(3));
    }
    flows.into_iter().for_each(Conversation::finish);
}

#[test]
fn while_the_forwarder_is_dead_the_kernel_leaves_a_nic_without_carrier() {
    let mut bench = Bench::start(&Setup::new(2));
    let peer = Peer::listen(&bench.network.client, 7000);
    let flows = flows(&bench, &peer, 12);
    flows.iter().for_each(|flow| flow.goes_on(3));
    let host = bench.network.host.clone();
    let frames = |nic: u8| {
        let counters = host.counters(&nic_name(nic));
        counters.expect("it exists").tx_frames
    };
    bench.forwarder.kill();
    flows.iter().for_each(|flow| flow.goes_on(3));
    let before = [frames(1), frames(2)];
    flows.iter().for_each(|flow| flow.goes_on(3));
    assert!(frames(1) > before[0] && frames(2) > before[1], "the kernel spreads over both");

    // It fails while no forwarder runs.
    bench.network.pull_cable(1).expect("a cable");
    wait_until("the kernel knows", || !bench.network.host.has_carrier("eth1").unwrap_or(true));
    // IPv6 sockets remember their route: those of before find the other NIC when TCP gives their route up, or at a start.
    let is_v4 = |flow: &&Conversation| flow.local.is_ipv4();
    flows.iter().filter(is_v4).for_each(|flow| flow.goes_on(3));
    let fresh = Conversation::open(&host, peer.address(Family::V6));
    fresh.goes_on(3);
    let before = frames(2);
    flows.iter().filter(is_v4).for_each(|flow| flow.goes_on(5));
    assert!(frames(2) > before + 5, "they leave by the live NIC");
    fresh.finish();

    // It had failed before the forwarder died.
    bench.start_forwarder();
    flows.iter().for_each(|flow| flow.goes_on(3));
    bench.forwarder.kill();
    let before = [frames(1), frames(2)];
    flows.iter().for_each(|flow| flow.goes_on(5));
    assert_eq!(frames(1), before[0], "nothing leaves by the dead NIC");
    assert!(frames(2) > before[1] + 5 * flows.len() as u64);
    flows.into_iter().for_each(Conversation::finish);
}

#[test]
fn explain_asks_the_live_forwarder_and_tells_what_would_be_without_a_nic() {
    let bench = Bench::start(&Setup::new(2).second_vipa(""));
    let peer = Peer::listen(&bench.network.client, 7000);
    let state = bench.scratch.path().join("state");
    let explain = |from: SocketAddr, more: &[&str]| -> serde_json::Value {
        let (from, to) = (from.to_string(), peer.address(Family::of(from.ip())).to_string());
        let state = state.to_str().expect("a path");
        let asked = ["explain", "--live", "--protocol", "tcp", "--state", state, "--json"];
        let arguments = [&asked[..], &["--from", &from, "--to", &to], more].concat();
        let said = bench.run(&bench.network.host, PROGRAM, &arguments);
        serde_json::from_str(&said).expect("JSON")
    };
    for family in Family::BOTH {
        for _ in 0..4 {
            let flow = Conversation::open(&bench.network.host, peer.address(family));
            flow.goes_on(2);
            let told = explain(flow.local, &[]);
            assert_eq!(told["source"], flow.seen.ip().to_string(), "{told}");
            assert!(told["mac"].is_string() && told["is_rewritten"] == true, "{told}");
            let nic = told["nic"].as_str().expect("a NIC").to_owned();
            let number: u8 = nic.trim_start_matches("eth").parse().expect("a number");
            let before = bench.sent(number);
            flow.goes_on(3);
            assert!(bench.sent(number) > before, "it leaves by {nic} as was told");
            let without = explain(flow.local, &["--down", &nic]);
            assert!(without["nic"].is_string() && without["nic"] != nic.as_str(), "{without}");
            flow.finish();
        }
    }
}
