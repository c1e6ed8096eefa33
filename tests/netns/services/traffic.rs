//! What passes a service: both modes, both families, requests and bulk, with and without checksum offload.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream};

use vipa::lab::topology::{client_address, vipas};
use vipa::wire::ip::Family;

use super::farm::{BULK, Server, WEB, address, endpoint, here, wait_for_servers, who};
use crate::fixture::{Bench, PATIENCE, Setup, wait_until};

pub(super) const PORT: u16 = 80;

/// A service of each family on the first VIPA, with the servers of these numbers; `SECOND` in its keys is the second VIPA.
pub(super) fn served(
    setup: Setup,
    keys: &str,
    port: u16,
    to: Option<u16>,
    servers: &[u8],
) -> Setup {
    Family::BOTH.into_iter().fold(setup, |setup, family| {
        let [first, second] = vipas(family);
        let (vipa, keys) = (endpoint(first, port), keys.replace("SECOND", &second.to_string()));
        let bits = family.bits();
        let mut text = format!(
            "name = \"p{port}-{bits}\"\naddress = \"{vipa}\"\nprotocol = \"tcp\"\npolicy = \"fastest-response\"\n{keys}\n"
        );
        for number in servers {
            let address = address(*number, family);
            let at = to.map_or(address.to_string(), |to| endpoint(address, to));
            text += &format!("[[service.server]]\nname = \"s{number}\"\naddress = \"{at}\"\n");
        }
        setup.service(&text)
    })
}

pub(super) fn at(family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(vipas(family)[0], port)
}

/// 20 MiB go through a service. The receiver counts until it is told that all was sent, so not what the sockets hold at that moment: at
/// most 1 MiB at each end (256 KiB, which the kernel doubles, either way).
pub(super) fn passes_bulk(bench: &Bench, family: Family, is_reverse: bool) {
    let vipa = vipas(family)[0].to_string();
    let port = BULK.to_string();
    let mut arguments = vec!["-c", &vipa, "-p", &port, "-n", "20M", "-w", "256K", "-J"];
    if is_reverse {
        arguments.push("-R");
    }
    let mut said = serde_json::Value::Null;
    // It serves one client at a time, and may not be done with the one before.
    wait_until("iperf3 is free", || {
        let text = bench.run(&bench.network.client, "iperf3", &arguments);
        said = serde_json::from_str(&text).expect("JSON");
        !said["error"].as_str().is_some_and(|error| error.contains("busy"))
    });
    let received =
        said["end"]["sum_received"]["bytes"].as_u64().unwrap_or_else(|| panic!("{said}"));
    assert!(received >= 18 << 20, "{received} bytes: {said}");
}

#[test]
fn nat_needs_nothing_of_the_servers_and_every_checksum_is_right() {
    let setup = served(Setup::new(2), "mode = \"nat\"", PORT, Some(WEB), &[1]);
    let setup = served(setup, "mode = \"nat\"", BULK, Some(BULK), &[1]);
    let bench = Bench::start(&setup);
    let server = Server::start(&bench, 1);
    wait_for_servers(&bench);
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        server.tx_checksum(is_offloaded);
        for family in Family::BOTH {
            let (number, seen, asked) = who(&bench, &bench.network.client, at(family, PORT));
            assert_eq!((number, seen), (1, vipas(family)[0]), "the server sees a VIPA");
            assert!(asked.ends_with(":8080"), "{asked}");
            for is_reverse in [false, true] {
                passes_bulk(&bench, family, is_reverse);
            }
        }
    }
}

#[test]
fn direct_servers_answer_the_client_themselves() {
    let setup = served(Setup::new(2), "mode = \"direct\"", PORT, None, &[1]);
    let setup = served(setup, "mode = \"direct\"", BULK, None, &[1]);
    let bench = Bench::start(&setup);
    let server = Server::start(&bench, 1);
    server.owns_vipas();
    wait_for_servers(&bench);
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        server.tx_checksum(is_offloaded);
        for family in Family::BOTH {
            let (number, seen, _) = who(&bench, &bench.network.client, at(family, PORT));
            assert_eq!((number, seen), (1, client_address(family)));
            passes_bulk(&bench, family, false);
        }
    }
}

#[test]
fn a_server_whose_route_leads_back_here_sees_the_client() {
    let keys = "mode = \"nat\"\nkeep-client = true";
    let setup = served(Setup::new(2), keys, PORT, Some(WEB), &[1]);
    let bench = Bench::start(&setup);
    let server = Server::start(&bench, 1);
    wait_for_servers(&bench);
    let back = |family| match family {
        Family::V4 => ("10.9.0.0/24", "10.1.2.2"),
        Family::V6 => ("2001:db8:9::/64", "2001:db8:2::2"),
    };
    for family in Family::BOTH {
        let (prefix, gateway) = back(family);
        server.namespace.route(prefix, &[vipa::lab::Hop::via(gateway)], None).expect("a route");
        let (number, seen, _) = who(&bench, &bench.network.client, at(family, PORT));
        assert_eq!((number, seen), (1, client_address(family)));
    }
}

#[test]
fn a_server_on_this_host_keeps_the_clients_address() {
    let services = Family::BOTH.into_iter().fold(Setup::new(2), |setup, family| {
        let vipa = vipas(family)[0];
        let (service, server) = (endpoint(vipa, PORT), endpoint(vipa, WEB));
        let bits = family.bits();
        setup.service(&format!(
            "name = \"here-{bits}\"\naddress = \"{service}\"\nprotocol = \"tcp\"\npolicy = \"fastest-response\"\nmode = \"nat\"\n\
             [[service.server]]\nname = \"own\"\naddress = \"{server}\"\n"
        ))
    });
    let bench = Bench::start(&services);
    let _nginx = here(&bench, 9);
    wait_for_servers(&bench);
    for family in Family::BOTH {
        let (number, seen, _) = who(&bench, &bench.network.client, at(family, PORT));
        assert_eq!((number, seen), (9, client_address(family)));
    }
}

/// A client behind the router, and a service on a VIPA that is given wholly.
#[test]
fn a_vipa_given_wholly_is_what_servers_see() {
    let setup = Family::BOTH.into_iter().fold(Setup::new(2), |setup, family| {
        let [first, second] = vipas(family);
        let (service, server) = (endpoint(first, PORT), endpoint(address(1, family), WEB));
        let bits = family.bits();
        setup.service(&format!(
            "name = \"given-{bits}\"\naddress = \"{service}\"\nprotocol = \"tcp\"\npolicy = \"fastest-response\"\nmode = \"nat\"\nsource = [\"{second}\"]\n\
             [[service.server]]\nname = \"s1\"\naddress = \"{server}\"\n"
        ))
    });
    let bench = Bench::start(&setup);
    let _server = Server::start(&bench, 1);
    wait_for_servers(&bench);
    for family in Family::BOTH {
        let seen: IpAddr = who(&bench, &bench.network.client, at(family, PORT)).1;
        assert_eq!(seen, vipas(family)[1]);
    }
}

#[test]
fn connections_outlive_a_killed_forwarder() {
    let setup = served(Setup::new(2), "mode = \"nat\"", BULK, Some(BULK), &[1]);
    let mut bench = Bench::start(&setup);
    let _server = Server::start(&bench, 1);
    wait_for_servers(&bench);
    let vipa = vipas(Family::V4)[0].to_string();
    let child = bench
        .network
        .client
        .command("iperf3")
        .args(["-c", &vipa, "-p", &BULK.to_string(), "-t", "4", "-J"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("iperf3 (tools/packages.txt)");
    let served = |bench: &Bench| {
        let workers = bench.status()["workers"].clone();
        workers[0]["flows"].as_u64().expect("a count")
    };
    wait_until("both connections are served", || served(&bench) >= 2);
    bench.forwarder.kill();
    bench.start_forwarder();
    wait_until("they were adopted", || served(&bench) >= 2);
    let output = child.wait_with_output().expect("it ends");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success(), "{said}");
    assert_eq!(said["error"], serde_json::Value::Null);
    assert!(said["end"]["sum_received"]["bytes"].as_u64().expect("a count") > 1 << 20);
}

/// Nothing is sent: neither by the client, nor by the server, which is cut off and can tell nobody.
#[test]
fn an_idle_connection_to_a_server_that_dies_is_reset() {
    let bench = Bench::start(&served(Setup::new(2), "mode = \"nat\"", PORT, Some(WEB), &[1]));
    let server = Server::start(&bench, 1);
    wait_for_servers(&bench);
    let clients = Family::BOTH.map(|family| {
        let connect = || TcpStream::connect_timeout(&at(family, PORT), PATIENCE);
        let client = bench.network.client.run(connect).expect("the service answers");
        client.set_read_timeout(Some(PATIENCE)).expect("a patience");
        client
    });
    server.namespace.link_down("eth0").expect("a link");
    for mut client in clients {
        let read = client.read(&mut [0]).expect_err("the server says nothing");
        assert_eq!(read.kind(), std::io::ErrorKind::ConnectionReset);
    }
}
