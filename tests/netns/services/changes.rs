//! Ten thousand short connections while everything changes: policies, weights, and the servers themselves. No request
//! fails but those that were open on a killed server, or were sent to it before that could be known.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use vipa::lab::topology::vipas;
use vipa::wire::ip::Family;

use super::farm::{Server, WEB, address, endpoint, wait_for_servers};
use super::load::{Load, Request};
use crate::fixture::{Bench, Setup, number, wait_until};

const PORT: u16 = 80;
const REQUESTS: usize = 10_000;
const CLIENTS: usize = 12;
/// Each status object's period, and its timeout.
const EVERY: Duration = Duration::from_millis(500);
/// How long the slow server takes.
const SLOW: Duration = Duration::from_millis(100);
/// The services: who asks the first goes to the preferred server, who asks the second to all by their scores.
const SERVICES: [(&str, Family); 2] = [("web", Family::V4), ("all", Family::V6)];
/// The servers at the start, by number; the second is slow.
const NAMES: [&str; 3] = ["a", "b", "c"];

fn at(family: Family) -> SocketAddr {
    SocketAddr::new(vipas(family)[0], PORT)
}

fn name(number: u8) -> &'static str {
    NAMES.get(usize::from(number) - 1).copied().unwrap_or("d")
}

fn setup() -> Setup {
    SERVICES.into_iter().fold(Setup::new(2), |setup, (service, family)| {
        let choose = if service == "web" { "preferred" } else { "weighted" };
        let servers = (1..=3).map(|number| {
            let at = endpoint(address(number, family), WEB);
            format!("[[service.server]]\nname = \"{}\"\naddress = \"{at}\"\n", name(number))
        });
        setup.whole_service(&format!(
            "name = \"{service}\"\naddress = \"{}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
             policy = \"least-loaded\"\nchoose = \"{choose}\"\nfall = 20\n{}\
             [[service.status]]\nname = \"clients\"\nrole = \"clients\"\nkind = \"http\"\n\
             url = \"http://{{server}}/status\"\nnumber-after = \"Active connections:\"\nevery = \"{EVERY:?}\"\n\
             [[service.status]]\nname = \"rtt\"\nrole = \"response-time\"\nkind = \"http\"\n\
             url = \"http://{{server}}/who\"\nevery = \"{EVERY:?}\"\n",
            at(family),
            servers.collect::<String>(),
        ))
    })
}

/// What the status says of a service …
fn service(bench: &Bench, name: &str) -> Value {
    named(&bench.status()["balance"]["services"], name)
}

/// … and of its server.
fn server(bench: &Bench, of: &str, name: &str) -> Value {
    named(&service(bench, of)["servers"], name)
}

fn named(list: &Value, name: &str) -> Value {
    let list = list.as_array().expect("a list");
    list.iter().find(|one| one["name"] == name).cloned().expect("one of that name")
}

fn both_say(bench: &Bench, name: &str, state: &str) -> bool {
    SERVICES.iter().all(|(service, _)| server(bench, service, name)["state"] == state)
}

fn both(bench: &Bench, before: &str, after: &str) {
    SERVICES.iter().for_each(|(service, _)| bench.operate(&format!("{before}{service}{after}")));
}

/// A time in which a service may not have sent anything to a server.
struct Spared {
    service: &'static str,
    server: u8,
    from: Instant,
    until: Instant,
}

#[test]
fn ten_thousand_connections_fail_only_at_a_killed_server_before_that_is_known() {
    let bench = Bench::start(&setup());
    let delays = [None, Some(SLOW), None];
    let servers = (1..).zip(delays).map(|(number, delay)| match delay {
        None => Server::start(&bench, number),
        Some(delay) => Server::slow(&bench, number, delay),
    });
    let mut servers: Vec<Server> = servers.collect();
    bench.network.tx_checksum(false).expect("ethtool");
    servers.iter().for_each(|server| server.tx_checksum(false));
    wait_for_servers(&bench);
    wait_until("all are up", || NAMES.iter().all(|name| both_say(&bench, name, "up")));

    let services = SERVICES.map(|(_, family)| at(family));
    let load = Load::start(&bench.network.client, &services, CLIENTS);
    let mut spared: Vec<Spared> = Vec::new();
    // Of the next requests none goes to these servers.
    let mut spare = |services: &[&'static str], servers: &[u8], requests: usize| {
        let from = Instant::now();
        load.goes_on(requests);
        let until = Instant::now();
        for server in servers {
            let of = |service: &&'static str| Spared { service, server: *server, from, until };
            spared.extend(services.iter().map(of));
        }
    };
    let all = ["web", "all"];
    load.goes_on(1000);

    both(&bench, "policy ", " fastest-response");
    spare(&["web"], &[2], 1000);

    both(&bench, "server drain ", "/a");
    spare(&all, &[1], 500);
    // What was open there has ended: nothing is left that could be reset.
    load.turns();
    both(&bench, "server down ", "/a");
    spare(&all, &[1], 500);
    both(&bench, "server up ", "/a");
    wait_until("a is back", || both_say(&bench, "a", "up"));

    // A fourth comes, alone with the slow one for a while, and goes.
    let fourth = Server::start(&bench, 4);
    fourth.tx_checksum(false);
    for (service, family) in SERVICES {
        let at = endpoint(address(4, family), WEB);
        bench.operate(&format!("server add {service} d {at} --weight 2"));
    }
    wait_until("d is up", || both_say(&bench, "d", "up"));
    both(&bench, "server weight ", "/a 0");
    both(&bench, "server drain ", "/c");
    spare(&all, &[1, 3], 1000);
    both(&bench, "policy ", " clients+rtt/10");
    both(&bench, "server up ", "/c");
    both(&bench, "server weight ", "/a 1");
    load.goes_on(500);
    both(&bench, "server remove ", "/d");
    spare(&all, &[4], 500);

    // The third is killed with requests on it, which is known at its next reading: beside the slow one all who ask the first service
    // ask it.
    both(&bench, "policy ", " fastest-response");
    both(&bench, "server drain ", "/a");
    spare(&all, &[1], 500);
    wait_until("c is preferred", || service(&bench, "web")["choice"] == "c");
    let killed = Instant::now();
    servers[2].kill_nginx();
    wait_until("c is known to be dead", || {
        SERVICES.iter().all(|(service, _)| server(&bench, service, "c")["state"] != "up")
    });
    let known = Instant::now();
    spare(&all, &[3], 500);
    both(&bench, "server up ", "/a");
    wait_until("c is down", || both_say(&bench, "c", "down"));
    spare(&all, &[3], 500);
    servers[2].restart_nginx();
    wait_until("c is back", || both_say(&bench, "c", "up"));
    load.goes_on(500);
    both(&bench, "server drain ", "/a");
    load.goes_on(500);
    both(&bench, "server up ", "/a");

    let requests = load.finish(REQUESTS);
    assert!(requests.len() >= REQUESTS);
    judge(&bench, &requests, killed, known);
    for Spared { service, server, from, until } in &spared {
        let family = SERVICES.iter().find(|(name, _)| name == service).expect("a service").1;
        let in_time = requests.iter().filter(|r| r.to == at(family));
        let mut in_time = in_time.filter(|r| *from < r.began && r.began < *until);
        let wrong = in_time.find(|r| r.answer.as_ref().is_ok_and(|number| number == server));
        assert!(wrong.is_none(), "{service}/{} got {wrong:?}", name(*server));
    }
}

/// What failed was the killed server's, and began before that was known.
fn judge(bench: &Bench, requests: &[Request], killed: Instant, known: Instant) {
    let failed: Vec<&Request> = requests.iter().filter(|r| r.answer.is_err()).collect();
    let at_killed = |request: &&&Request| request.ended >= killed && request.began <= known;
    assert_eq!(failed.iter().filter(at_killed).count(), failed.len(), "{failed:?}");
    assert!(!failed.is_empty(), "it was killed with nothing to do");

    // Each connection was given to one server; who did not answer was that one.
    let mut failed_at = [0; NAMES.len()];
    for (service, family) in SERVICES {
        for (name, (number_, failed)) in NAMES.iter().zip((1..).zip(&mut failed_at)) {
            let given = number(&server(bench, service, name)["given"]);
            let is_answered = |r: &&Request| {
                r.to == at(family) && r.answer.as_ref().is_ok_and(|number| *number == number_)
            };
            let answered = requests.iter().filter(is_answered).count() as u64;
            assert!(answered > 0, "{service}/{name} never answered");
            *failed += given - answered;
        }
    }
    assert_eq!(failed_at, [0, 0, failed.len() as u64], "{failed:?}");
}
