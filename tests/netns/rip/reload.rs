//! VIPAs that come and go with a reload are told and taken back; what was learned stays.

use std::net::IpAddr;

use vipa::lab::topology::vipas;
use vipa::wire::ip::Family;

use super::daemon::{Daemon, Kind, Signed};
use super::{RIP, waits_for_ways};
use crate::fixture::{Bench, Conversation, Peer, Setup, wait_until};

/// Has the router a route to it?
fn is_known(bench: &Bench, vipa: IpAddr) -> bool {
    let version = if vipa.is_ipv4() { "-4" } else { "-6" };
    let vipa = vipa.to_string();
    !bench.run(&bench.network.router, "ip", &[version, "route", "show", &vipa]).is_empty()
}

#[test]
fn addresses_are_told_and_taken_back_and_learned_routes_stay() {
    let mut bench = Bench::prepare(&Setup::new(2).without_gateways().rip(RIP));
    let _daemon = Daemon::start(Kind::Bird, &bench.network, Signed::default());
    bench.start_forwarder();
    let all = bench.config();
    waits_for_ways(&bench, &[1, 2]);
    let knows = |prefix: &str| bench.status()["routes"].to_string().contains(prefix);
    let is_learned = || knows("10.9.0.0/24") && knows("2001:db8:9::/64");
    wait_until("the client's networks are learned", is_learned);
    let peer = Peer::listen(&bench.network.client, 7000);
    let flows = Family::BOTH.map(|family| {
        let client = peer.address(family).ip().to_string();
        wait_until("the kernel knows a way", || {
            let mut command = bench.network.host.command("ip");
            command.args(["route", "get", &client]).output().expect("ip").status.success()
        });
        Conversation::open(&bench.network.host, peer.address(family))
    });
    let go_on = || flows.iter().for_each(|flow| flow.goes_on(10));

    let seconds = Family::BOTH.map(|family| vipas(family)[1]);
    let fewer = seconds
        .iter()
        .fold(all.clone(), |text, vipa| text.replacen(&format!(", \"{vipa}\""), "", 1));
    let difference = bench.reload(&fewer);
    let removed = seconds.map(|vipa| format!("address {vipa}"));
    assert_eq!(difference["removed"], serde_json::json!(removed));
    assert!(is_learned());
    wait_until("they are taken back", || seconds.iter().all(|vipa| !is_known(&bench, *vipa)));
    waits_for_ways(&bench, &[1, 2]);
    go_on();
    bench.reload(&all);
    wait_until("they are told again", || seconds.iter().all(|vipa| is_known(&bench, *vipa)));

    // A NIC that lives goes: those behind it are told, and send another way.
    let (head, last) = all.split_at(all.find("\n[[nic]]\nname = \"eth2\"").expect("eth2"));
    let without = format!("{head}{}", &last[last.find("\n[source]").expect("a section")..]);
    assert_eq!(bench.reload(&without)["removed"], serde_json::json!(["nic eth2"]));
    waits_for_ways(&bench, &[1]);
    go_on();
    bench.reload(&all);
    waits_for_ways(&bench, &[1, 2]);
    go_on();

    // Other bounds: as at a restart, what was learned is inherited.
    let update = all.replacen("[rip]", "[rip]\nroutes = 1000", 1);
    assert_eq!(bench.reload(&update)["changed"], serde_json::json!(["[rip]"]));
    assert!(is_learned());
    go_on();
    let learned = || bench.status()["rip"]["learned"].as_u64() > Some(1);
    wait_until("they are learned anew", learned);
    go_on();
    waits_for_ways(&bench, &[1, 2]);
    flows.into_iter().for_each(Conversation::finish);
}
