//! Services whose small frames XDP hands over, in the driver's hook and the kernel's; neighbours that leave checksums and segments to
//! their devices, and ones that do not.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use vipa::device::xdp::Attachment;
use vipa::lab::topology::vipas;
use vipa::wire::ip::Family;

use super::farm::{BULK, Server, WEB, wait_for_servers, who};
use super::traffic::{PORT, at, passes_bulk, served};
use crate::fixture::{Bench, PATIENCE, Setup, wait_until};

/// Both NICs by XDP, and servers that see the second VIPA, which is given wholly: their answers come that way too.
fn setup(hook: &str, workers: u8) -> Setup {
    let setup =
        Setup::new(2).workers(workers).keys(|_| format!("hold-down = \"500ms\"\nxdp = \"{hook}\""));
    let keys = "mode = \"nat\"\nsource = [\"SECOND\"]";
    let setup = served(setup, keys, PORT, Some(WEB), &[1]);
    served(setup, keys, BULK, Some(BULK), &[1])
}

fn is_at_work(bench: &Bench, hook: &str) -> bool {
    (1..=2).all(|nic| bench.nic(nic)["xdp"] == hook)
}

/// Frames for services, and answers of servers, that the kernel has looked at.
fn kernels(bench: &Bench) -> u64 {
    let listed =
        bench.run(&bench.network.host, "nft", &["-j", "list", "table", "inet", "vipa-vipa0"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let rules = listed["nftables"].as_array().expect("a list").iter().map(|one| &one["rule"]);
    let counted = rules.flat_map(|rule| rule["expr"].as_array().into_iter().flatten());
    counted.filter_map(|one| one["counter"]["packets"].as_u64()).sum()
}

#[test]
fn services_are_served_past_the_kernel_and_every_checksum_is_right() {
    for (hook, workers) in [("native", 1), ("generic", 1), ("native", 2)] {
        let bench = Bench::start(&setup(hook, workers));
        let server = Server::start(&bench, 1);
        wait_for_servers(&bench);
        assert!(is_at_work(&bench, hook), "{}", bench.forwarder.log());
        for is_offloaded in [true, false] {
            bench.network.tx_checksum(is_offloaded).expect("ethtool");
            server.tx_checksum(is_offloaded);
            for family in Family::BOTH {
                let before = kernels(&bench);
                // From other ports, so that with two workers each is asked, sooner or later.
                for _ in 0..8 {
                    let (number, seen, _) = who(&bench, &bench.network.client, at(family, PORT));
                    assert_eq!((number, seen), (1, vipas(family)[1]), "it sees the given VIPA");
                }
                assert_eq!(kernels(&bench), before, "{hook}: the kernel saw nothing of it");
                // With whole checksums, so that they are verified; by the kernel's hook also segments that the card is to cut.
                if !is_offloaded && workers == 1 {
                    passes_bulk(&bench, family, false);
                    passes_bulk(&bench, family, true);
                }
            }
        }
        assert!((1..=2).all(|nic| bench.nic(nic)["lost"] == 0));
        if workers == 1 {
            // Of the bulk, which came as it was cut.
            let merged: u64 = (1..=2).filter_map(|nic| bench.nic(nic)["merged"].as_u64()).sum();
            assert!(merged > 0, "{hook}");
        }
    }
}

/// One request of a connection that stays open.
#[track_caller]
fn ask(stream: &mut TcpStream) {
    stream.write_all(b"GET /who HTTP/1.1\r\nHost: vipa\r\n\r\n").expect("it takes a request");
    let (mut answer, mut piece) = (String::new(), [0; 1024]);
    while !answer.contains(":8080") {
        let length = stream.read(&mut piece).unwrap_or_else(|e| panic!("{e}"));
        assert!(length > 0, "it was closed after {answer:?}");
        answer.push_str(&String::from_utf8_lossy(&piece[..length]));
    }
}

#[test]
fn it_comes_and_goes_with_the_configuration_and_a_kill_and_connections_stay() {
    let mut bench = Bench::start(&setup("native", 1));
    let _server = Server::start(&bench, 1);
    wait_for_servers(&bench);
    let to = at(Family::V4, PORT);
    let mut stream = bench
        .network
        .client
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))
        .expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    ask(&mut stream);
    let text = bench.config();
    for (written, shown) in [("generic", "generic"), ("off", "off"), ("native", "native")] {
        bench.reload(&text.replace("native", written));
        wait_until(shown, || is_at_work(&bench, shown));
        ask(&mut stream);
    }
    let program =
        |bench: &Bench| bench.run(&bench.network.host, "ip", &["-d", "link", "show", "eth1"]);
    assert!(program(&bench).contains("prog/xdp"), "{}", program(&bench));
    // At once: what the killed one had may not be free yet.
    bench.forwarder.kill();
    bench.start_forwarder();
    wait_until("XDP is back", || is_at_work(&bench, "native"));
    ask(&mut stream);
    bench.forwarder.kill();
    wait_until("no program is left", || !program(&bench).contains("prog/xdp"));
}

#[test]
fn where_another_program_is_in_the_way_packet_sockets_serve() {
    let mut bench = Bench::prepare(&setup("native", 1));
    let host = &bench.network.host;
    let index = host.index("eth1").expect("it is there");
    let _other = host.run(|| Attachment::new(index)).expect("the first one may");
    bench.start_forwarder();
    let _server = Server::start(&bench, 1);
    wait_for_servers(&bench);
    assert_eq!(bench.nic(1)["xdp"], "refused");
    assert_eq!(bench.nic(2)["xdp"], "native");
    assert!(bench.forwarder.log().contains("no XDP"), "{}", bench.forwarder.log());
    for family in Family::BOTH {
        assert_eq!(who(&bench, &bench.network.client, at(family, PORT)).0, 1);
    }
}
