//! The neighbours know (V6–V8): FRR and BIRD on the router, both families, signed and not.

mod asked;
pub(crate) mod daemon;
mod decoded;
mod forwarding;
mod leave;
mod many;
mod ours;
mod reload;
mod told;

use vipa::lab::topology::{client_address, nic_name, vipas};
use vipa::wire::ip::Family;

use self::daemon::{Daemon, Kind, Signed};

use crate::fixture::{Bench, Conversation, Peer, Setup, number, wait_until};

pub(crate) const RIP: &str = "versions = [2, \"ng\"]\nupdate = \"5s\"\ntimeout = \"30s\"\n";

/// The router's links by which it has a route to the VIPA.
pub(crate) fn ways(bench: &Bench, family: Family) -> Vec<u8> {
    let vipa = vipas(family)[0].to_string();
    let version = if family == Family::V4 { "-4" } else { "-6" };
    let shown = bench.run(&bench.network.router, "ip", &[version, "route", "show", &vipa]);
    let is_way = |nic: &u8| {
        shown.split("nexthop").any(|hop| {
            hop.contains(&format!("dev r{nic} "))
                && !hop.contains("linkdown")
                && !hop.contains("dead")
        })
    };
    bench.network.nics().filter(is_way).collect()
}

pub(crate) fn waits_for_ways(bench: &Bench, wanted: &[u8]) {
    for family in Family::BOTH {
        wait_until(&format!("the router's ways to the VIPA are {wanted:?}"), || {
            ways(bench, family) == wanted
        });
    }
}

/// The forwarder's view comes first, the kernel's routes behind it.
fn waits_for_the_kernel(bench: &Bench) {
    for family in Family::BOTH {
        let client = client_address(family).to_string();
        wait_until("the kernel knows a way", || {
            let mut command = bench.network.host.command("ip");
            command.args(["route", "get", &client]).output().expect("ip").status.success()
        });
    }
}

/// Without a gateway in the configuration: what is beyond the router is known by RIP alone.
fn lives_through_a_dead_nic(kind: Kind, signed: Signed, keys: &str) {
    let setup = Setup::new(2).without_gateways().rip(&format!("{RIP}{keys}"));
    let mut bench = Bench::prepare(&setup);
    let _daemon = Daemon::start(kind, &bench.network, signed);
    bench.start_forwarder();
    waits_for_ways(&bench, &[1, 2]);
    let routes = || bench.status()["routes"].to_string();
    for prefix in ["10.9.0.0/24", "2001:db8:9::/64"] {
        wait_until("the client's network is learned", || routes().contains(prefix));
    }
    waits_for_the_kernel(&bench);
    let peer = Peer::listen(&bench.network.client, 7000);
    let open = |family| Conversation::open(&bench.network.host, peer.address(family));
    let flows: Vec<_> = (0..6).flat_map(|_| Family::BOTH.map(open)).collect();
    flows.iter().for_each(|flow| flow.goes_on(5));
    for flow in &flows {
        assert!(vipas(Family::of(flow.seen.ip())).contains(&flow.seen.ip()), "{}", flow.seen);
    }

    bench.network.pull_cable(1).expect("a cable");
    waits_for_ways(&bench, &[2]);
    let before = bench.network.host.counters(&nic_name(2)).expect("a NIC");
    flows.iter().for_each(|flow| flow.goes_on(10));
    let after = bench.network.host.counters(&nic_name(2)).expect("a NIC");
    assert!(after.rx_frames > before.rx_frames + 100, "what comes in comes by the other NIC");

    bench.network.plug_cable(1).expect("a cable");
    match kind {
        Kind::Bird => waits_for_ways(&bench, &[1, 2]),
        // FRR 8.4 leaves the kernel's route as the flap left it, with one way, and shows two.
        Kind::Frr => bench.waits_for_state(1, "live"),
    }
    let next_hops = || {
        let status = bench.status();
        let routes = status["routes"].as_array().cloned().unwrap_or_default();
        let of = |prefix: &str| {
            let found = routes.iter().find(|route| route["prefix"] == prefix);
            found.and_then(|route| route["next_hops"].as_array().map(Vec::len)).unwrap_or(0)
        };
        (of("10.9.0.0/24"), of("2001:db8:9::/64"))
    };
    wait_until("both ways out are known again", || next_hops() == (2, 2));
    let before = bench.sent(1);
    flows.iter().for_each(|flow| flow.goes_on(10));
    assert!(bench.sent(1) > before + 50, "what goes out goes by both NICs again");
    flows.into_iter().for_each(Conversation::finish);
    let rip = &bench.status()["rip"];
    assert!(number(&rip["heard"]) > 0 && number(&rip["sent"]) > 0, "{rip}");
    let rejected = rip["rejected"].as_array().expect("a list");
    // FRR signs what it tells, and asks unsigned.
    // What is heard by a card that waits out its hold-down is not taken yet.
    let is_known = |reason: &str| reason == "not_live" || kind == Kind::Frr && reason == "unsigned";
    assert!(rejected.iter().all(|one| is_known(one["reason"].as_str().unwrap_or(""))), "{rip}");
}

#[test]
fn frr_takes_the_vipas_and_leaves_a_dead_nic_and_takes_it_again() {
    lives_through_a_dead_nic(Kind::Frr, Signed::default(), "");
}

#[test]
fn bird_takes_the_vipas_and_leaves_a_dead_nic_and_takes_it_again() {
    lives_through_a_dead_nic(Kind::Bird, Signed::default(), "");
}

#[test]
fn frr_signs_by_md5() {
    let frr = " ip rip authentication mode md5\n ip rip authentication string a-secret\n";
    let keys = "[[rip.key]]\nid = 1\nalgorithm = \"md5\"\nsecret = \"a-secret\"\n";
    lives_through_a_dead_nic(Kind::Frr, Signed { frr, ..Signed::default() }, keys);
}

#[test]
fn bird_signs_by_md5() {
    let bird =
        "authentication cryptographic; password \"a secret\" { id 1; algorithm keyed md5; };";
    let keys = "[[rip.key]]\nid = 1\nalgorithm = \"md5\"\nsecret = \"a secret\"\n";
    lives_through_a_dead_nic(Kind::Bird, Signed { bird, ..Signed::default() }, keys);
}

#[test]
fn bird_signs_by_each_hmac_of_rfc4822() {
    for bits in ["1", "256", "384", "512"] {
        let name = if bits == "1" { "sha1".to_owned() } else { format!("sha{bits}") };
        let bird = format!(
            "authentication cryptographic; password \"a secret\" {{ id 9; algorithm hmac {name}; }};"
        );
        let keys = format!(
            "[[rip.key]]\nid = 9\nalgorithm = \"hmac-sha-{bits}\"\nsecret = \"a secret\"\n"
        );
        let setup = Setup::new(1).without_gateways().rip(&format!("{RIP}{keys}"));
        let mut bench = Bench::prepare(&setup);
        let signed = Signed { bird: bird.leak(), ..Signed::default() };
        let _daemon = Daemon::start(Kind::Bird, &bench.network, signed);
        bench.start_forwarder();
        waits_for_ways(&bench, &[1]);
        wait_until("the client's network is learned", || {
            bench.status()["routes"].to_string().contains("10.9.0.0/24")
        });
    }
}

#[test]
fn a_neighbour_that_does_not_sign_is_not_believed_and_counted() {
    let keys = "[[rip.key]]\nalgorithm = \"md5\"\nsecret = \"a secret\"\n";
    let setup = Setup::new(1).without_gateways().rip(&format!("{RIP}{keys}"));
    let bench = Bench::start(&setup);
    let _daemon = Daemon::start(Kind::Bird, &bench.network, Signed::default());
    wait_until("it is counted", || {
        bench.status()["rip"]["rejected"].to_string().contains("unsigned")
    });
    let routes = bench.status()["routes"].to_string();
    assert!(!routes.contains("10.9.0.0/24"), "{routes}");
    assert!(ways(&bench, Family::V4).is_empty());
}

#[test]
fn a_router_that_dies_is_forgotten_after_the_timeout() {
    let keys = "update = \"1s\"\ntimeout = \"3s\"\ngarbage = \"2s\"\n";
    let setup = Setup::new(1).without_gateways().rip(keys);
    let mut bench = Bench::prepare(&setup);
    let mut daemon = Daemon::start(Kind::Bird, &bench.network, Signed::default());
    bench.start_forwarder();
    let knows = |bench: &Bench| bench.status()["routes"].to_string().contains("10.9.0.0/24");
    wait_until("the client's network is learned", || knows(&bench));
    daemon.kill();
    wait_until("the client's network is forgotten", || !knows(&bench));
}
