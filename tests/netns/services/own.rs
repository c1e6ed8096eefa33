//! This host as a client of its own services: servers on the link, servers here, and what stands without a forwarder.

use std::net::SocketAddr;

use vipa::lab::topology::vipas;
use vipa::wire::ip::Family;

use super::farm::{Server, WEB, address, endpoint, here, wait_for_servers, who};
use crate::fixture::{Bench, PROGRAM, Setup, changes, everything, nic_addresses, wait_until};

/// Services of both families on the first VIPA, one server each, which `at` says for a family.
fn serving(setup: Setup, port: u16, keys: &str, at: impl Fn(Family) -> String) -> Setup {
    Family::BOTH.into_iter().fold(setup, |setup, family| {
        let (vipa, server) = (endpoint(vipas(family)[0], port), at(family));
        let bits = family.bits();
        setup.service(&format!(
            "name = \"p{port}-{bits}\"\naddress = \"{vipa}\"\nprotocol = \"tcp\"\npolicy = \"fastest-response\"\n{keys}\n\
             [[service.server]]\nname = \"s\"\naddress = \"{server}\"\n"
        ))
    })
}

const NAT: u16 = 80;
const KEEP: u16 = 81;
const DIRECT: u16 = 8080;
const HERE: u16 = 82;

/// A service of each kind.
fn every_kind() -> Setup {
    let remote = |family| endpoint(address(1, family), WEB);
    let setup = serving(Setup::new(2), NAT, "mode = \"nat\"", remote);
    let setup = serving(setup, KEEP, "mode = \"nat\"\nkeep-client = true", remote);
    let setup = serving(setup, DIRECT, "mode = \"direct\"", |f| address(2, f).to_string());
    // The program here listens on the second VIPA: the first one's port 8080 is a service.
    serving(setup, HERE, "mode = \"nat\"", |f| endpoint(vipas(f)[1], WEB))
}

fn at(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(vipas(family)[0], port)
}

fn down(bench: &Bench) {
    let state = bench.scratch.path().join("state");
    let mut command = bench.network.host.command(PROGRAM);
    let output = command.arg("down").env("RUNTIME_DIRECTORY", state).output().expect("vipa");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn rules(bench: &Bench) -> Vec<String> {
    let of = |family: &str| bench.run(&bench.network.host, "ip", &[family, "rule", "show"]);
    [of("-4"), of("-6")].concat().lines().map(str::to_owned).collect()
}

#[test]
fn the_host_itself_reaches_servers_of_every_kind_and_every_checksum_is_right() {
    let bench = Bench::start(&every_kind());
    let servers = [1, 2].map(|number| Server::start(&bench, number));
    servers[1].owns_vipas();
    let _here = here(&bench, 9);
    wait_for_servers(&bench);
    let host = &bench.network.host;
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        servers.iter().for_each(|server| server.tx_checksum(is_offloaded));
        for family in Family::BOTH {
            let [first, second] = vipas(family);
            let (number, seen, asked) = who(&bench, host, at(family, NAT));
            assert_eq!((number, seen), (1, first), "nat: the server sees a VIPA");
            assert!(asked.ends_with(":8080"), "{asked}");
            let (number, seen, asked) = who(&bench, host, at(family, DIRECT));
            assert_eq!(number, 2);
            let own = nic_addresses(&bench.network, family);
            assert!(own.contains(&seen), "direct: {seen} is none of {own:?}");
            assert_eq!(asked, format!("{}:{WEB}", address(2, family)), "at its own address");
            let (number, seen, asked) = who(&bench, host, at(family, HERE));
            assert_eq!((number, seen), (9, first), "a server here");
            assert_eq!(asked, format!("{second}:{WEB}"));
            // Past the service, as a status object asks it.
            let (number, seen, _) = who(&bench, host, SocketAddr::new(second, WEB));
            assert_eq!((number, seen), (9, second));
        }
    }
    assert_eq!(bench.dropped("no_flow"), 0);
}

#[test]
fn servers_that_see_their_clients_see_a_vipa_where_the_host_asks() {
    let bench = Bench::start(&every_kind());
    let _server = Server::start(&bench, 1);
    wait_for(&bench, KEEP);
    for family in Family::BOTH {
        let (number, seen, _) = who(&bench, &bench.network.host, at(family, KEEP));
        assert_eq!((number, seen), (1, vipas(family)[0]));
    }
}

#[test]
fn the_local_tables_rule_is_moved_put_back_by_down_and_kept_right_over_a_kill() {
    let mut bench = Bench::prepare(&every_kind());
    let before = (everything(&bench.network.host), rules(&bench));
    bench.start_forwarder();
    let _server = Server::start(&bench, 1);
    let stands = rules(&bench);
    let local: Vec<&String> = stands.iter().filter(|rule| rule.contains("lookup local")).collect();
    assert_eq!(local, ["5:\tfrom all lookup local"; 2]);
    wait_for(&bench, NAT);
    // What is removed is put back at once, the rule without which the host is deaf above all.
    for family in ["-4", "-6"] {
        bench.run(&bench.network.host, "ip", &[family, "rule", "del", "pref", "5"]);
    }
    wait_until("all rules are back", || rules(&bench) == stands);
    let (number, ..) = who(&bench, &bench.network.host, at(Family::V6, NAT));
    assert_eq!(number, 1);

    bench.forwarder.kill();
    assert_eq!(rules(&bench), stands, "they wait for the next one");
    for family in Family::BOTH {
        let host = &bench.network.host;
        let url = format!("http://{}/who", at(family, NAT));
        let output = host.command("curl").args(["-gsS", &url]).output().expect("curl");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // 7: could not connect, and at once.
        assert_eq!(output.status.code(), Some(7), "{said}");
        // What is no service's goes on: a socket of the host to its own VIPA.
        let second = vipas(family)[1];
        let _here = here_alone(&bench, second);
    }
    bench.start_forwarder();
    assert_eq!(rules(&bench), stands);
    wait_for(&bench, NAT);
    for family in Family::BOTH {
        assert_eq!(who(&bench, &bench.network.host, at(family, NAT)).0, 1);
    }
    bench.forwarder.kill();
    down(&bench);
    assert_eq!(rules(&bench), before.1);
    assert_eq!(changes(&bench.network.host, &before.0), Vec::<String>::new());
}

/// A connection of the host to itself, bytes and all.
fn here_alone(bench: &Bench, address: std::net::IpAddr) -> std::net::TcpStream {
    bench.network.host.run(|| {
        let listener = std::net::TcpListener::bind((address, 0)).expect("a port");
        let to = listener.local_addr().expect("bound");
        let stream = std::net::TcpStream::connect_timeout(&to, crate::fixture::PATIENCE);
        stream.expect("the kernel connects the host to itself")
    })
}

/// Waits until the services of a port have a server.
fn wait_for(bench: &Bench, port: u16) {
    let has_one = |s: &serde_json::Value| s["choice"] != "none" && s["when_none"].is_null();
    wait_until(&format!("the services of port {port} have a server"), || {
        let status = bench.status();
        let services = status["balance"]["services"].as_array().expect("services").clone();
        let is_of = |s: &&serde_json::Value| {
            s["name"].as_str().is_some_and(|name| name.starts_with(&format!("p{port}-")))
        };
        services.iter().filter(is_of).count() == 2 && services.iter().filter(is_of).all(has_one)
    });
}

/// What `vipa explain` says of a connection from `from` to `to`.
fn explained(bench: &Bench, from: SocketAddr, to: SocketAddr) -> serde_json::Value {
    let (from, to) = (from.to_string(), to.to_string());
    let state = bench.scratch.path().join("state");
    let state = state.to_str().expect("a path");
    let asked = ["explain", "--live", "--protocol", "tcp", "--state", state, "--json"];
    let ends = ["--from", &from, "--to", &to];
    let said = bench.run(&bench.network.host, PROGRAM, &[&asked[..], &ends].concat());
    serde_json::from_str(&said).expect("JSON")
}

#[test]
fn explain_names_the_server_that_answers_and_why_it_is_that_one() {
    let remote = |family| endpoint(address(1, family), WEB);
    let setup = serving(Setup::new(2), NAT, "mode = \"nat\"", remote);
    let bench =
        Bench::start(&serving(setup, HERE, "mode = \"nat\"", |f| endpoint(vipas(f)[1], WEB)));
    for family in Family::BOTH {
        let client = SocketAddr::new(vipa::lab::topology::client_address(family), 40000);
        let none = explained(&bench, client, at(family, NAT));
        assert!(none["server"].is_null(), "{none}");
    }
    let _server = Server::start(&bench, 1);
    let _here = here(&bench, 9);
    wait_for_servers(&bench);
    let status = bench.status();
    for family in Family::BOTH {
        let client = SocketAddr::new(vipa::lab::topology::client_address(family), 40000);
        let own = SocketAddr::new(vipas(family)[0], 40000);
        for (from, namespace) in [(client, &bench.network.client), (own, &bench.network.host)] {
            let told = explained(&bench, from, at(family, NAT));
            let (number, seen, _) = who(&bench, namespace, at(family, NAT));
            assert_eq!((&told["server"], number), (&"s".into(), 1), "{told}");
            assert_eq!(told["server_address"], endpoint(address(1, family), WEB));
            assert_eq!((&told["verdict"], &told["nic"]), (&"transmit".into(), &"eth2".into()));
            assert_eq!(told["source"], seen.to_string());
            let name = told["service"].as_str().expect("a service");
            let services = status["balance"]["services"].as_array().expect("services");
            let service = services.iter().find(|s| s["name"] == name).expect("it is known");
            let why = service["why"].as_str().expect("a reason");
            assert!(told["why"].as_str().is_some_and(|told| told.ends_with(why)), "{told}, {why}");

            let told = explained(&bench, from, at(family, HERE));
            let (_, seen, _) = who(&bench, namespace, at(family, HERE));
            assert_eq!(
                (&told["verdict"], &told["source"]),
                (&"deliver".into(), &seen.to_string().into())
            );
        }
    }
}

/// A connection in the middle of its bytes when the forwarder is killed goes on when it is back.
#[test]
fn the_hosts_own_connections_outlive_a_killed_forwarder() {
    use std::io::{Read, Write};
    let mut bench = Bench::start(&every_kind());
    let _servers = [1, 2].map(|number| Server::start(&bench, number));
    let _here = here(&bench, 9);
    wait_for_servers(&bench);
    let open = |bench: &Bench, family, port| {
        let mut stream = bench.network.host.run(|| {
            std::net::TcpStream::connect_timeout(&at(family, port), crate::fixture::PATIENCE)
        });
        let stream_ = stream.as_mut().expect("it is served");
        stream_.set_read_timeout(Some(crate::fixture::PATIENCE)).expect("a timeout");
        stream_.write_all(b"GET /who HTTP/1.1\r\n").expect("half a request");
        stream.expect("it is served")
    };
    let mut streams = Vec::new();
    for family in Family::BOTH {
        for (port, number) in [(NAT, '1'), (DIRECT, '2'), (HERE, '9')] {
            streams.push((open(&bench, family, port), number));
        }
    }
    bench.forwarder.kill();
    for (stream, _) in &mut streams {
        stream.write_all(b"Host: vipa\r\n").expect("the kernel keeps it");
    }
    bench.start_forwarder();
    for (stream, number) in &mut streams {
        stream.write_all(b"Connection: close\r\n\r\n").expect("it lives");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("an answer");
        let body = said.split("\r\n\r\n").nth(1).unwrap_or_else(|| panic!("{said:?}"));
        assert!(body.starts_with(*number), "{said}");
    }
}
