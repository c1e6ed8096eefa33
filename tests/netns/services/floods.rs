//! SYNs from spoofed sources: who is served during a flood, and what it leaves behind.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use pnet::datalink::{self, Channel, Config};
use vipa::lab::topology::vipas;
use vipa::lab::{Namespace, veth};
use vipa::wire::ip::Family;

use super::farm::{address, endpoint, place, wait_for_servers};
use crate::fixture::{Bench, PATIENCE, Setup, done, number, wait_until};

const PORT: u16 = 80;
const SERVER_PORT: u16 = 8080;
/// SYNs of a flood, of both families in turn: ten in a millisecond, where the machine does it.
const SYNS: u32 = 20_000;
const EACH: u32 = 10;
/// A table of which the first flood uses all that a flood may.
const FLOWS: u32 = 4096;
/// Bytes of a message of the connection that is open.
const MESSAGE: usize = 10_000;
/// KiB by which the forwarder may grow with the first flood: the places for SYNs and flows, which it had from the start and not used yet …
const GROWTH: u64 = 8 << 10;
/// … and with the second one, which finds all of them in use.
const SLACK: u64 = 1 << 10;

fn services(mode: &str) -> Setup {
    Family::BOTH.into_iter().fold(Setup::new(2), |setup, family| {
        let (vipa, bits) = (endpoint(vipas(family)[0], PORT), family.bits());
        let to = endpoint(address(1, family), SERVER_PORT);
        setup.service(&format!(
            "name = \"echo-{bits}\"\naddress = \"{vipa}\"\nprotocol = \"tcp\"\npolicy = \"fastest-response\"\n{mode}\n\
             [[service.server]]\nname = \"s1\"\naddress = \"{to}\"\n"
        ))
    })
}

/// Sends back what it gets.
fn echo(place: &Namespace) {
    let listener =
        place.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, SERVER_PORT))).expect("a port");
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut copy = stream.try_clone()?;
                std::io::copy(&mut copy, &mut stream)
            });
        }
    });
}

fn connect(bench: &Bench, family: Family) -> TcpStream {
    let at = SocketAddr::new(vipas(family)[0], PORT);
    let stream = bench.network.client.run(|| TcpStream::connect_timeout(&at, PATIENCE));
    let stream = stream.unwrap_or_else(|error| panic!("{family:?}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// A message goes and comes back, byte for byte.
fn comes_back(mut stream: &TcpStream, seed: u64) {
    let sent: Vec<u8> = (0..MESSAGE as u64).map(|n| (n * n + seed * 7) as u8).collect();
    stream.write_all(&sent).expect("sent");
    let mut got = vec![0; MESSAGE];
    stream.read_exact(&mut got).expect("it comes back");
    assert!(got == sent, "another message came back");
}

/// KiB of the forwarder's memory that are in use.
fn resident(bench: &Bench) -> u64 {
    let pid = bench.forwarder.pid().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Who floods, on the link of eth1; what goes back to the sources ends at the router.
fn attacker(bench: &Bench) -> Namespace {
    let namespace = Namespace::new("attacker").expect("root");
    veth((&namespace, "eth0"), (bench.network.cables(), "x1")).expect("a cable");
    bench.network.cables().enslave("x1", "b1").expect("the bridge of eth1");
    for route in ["198.18.0.0/15", "2001:db8:ffff::/48"] {
        done(bench.network.router.command("ip").args(["route", "add", "blackhole", route]));
    }
    namespace
}

/// SYNs from ever other sources, as many as `SYNS` or until it is over; counts them.
fn flood(place: &Namespace, from: u32, sent: &AtomicU64, is_over: &AtomicBool) {
    place.run(|| {
        let interfaces = datalink::interfaces();
        let eth0 = interfaces.iter().find(|interface| interface.name == "eth0").expect("eth0");
        let Ok(Channel::Ethernet(mut link, _)) = datalink::channel(eth0, Config::default()) else {
            panic!("a packet socket");
        };
        let began = Instant::now();
        for n in 0..SYNS {
            if is_over.load(Relaxed) {
                return;
            }
            while u128::from(n / EACH) > began.elapsed().as_millis() {
                thread::sleep(Duration::from_millis(1));
            }
            let syn = syn(from + n);
            sent.fetch_add(u64::from(matches!(link.send_to(&syn, None), Some(Ok(())))), Relaxed);
        }
    });
}

fn syn(number: u32) -> Vec<u8> {
    let family = Family::BOTH[number as usize % 2];
    let [a, b, c, d] = number.wrapping_mul(0x9e37_79b1).to_be_bytes();
    let step = PacketBuilder::ethernet2([2, 9, 9, 9, 9, 9], [2, 0, 0, 1, 1, 2]);
    let step = match vipas(family)[0] {
        IpAddr::V4(vipa) => step.ipv4([198, 18 | a & 1, b, c], vipa.octets(), 64),
        IpAddr::V6(vipa) => {
            let source = Ipv6Addr::new(
                0x2001,
                0xdb8,
                0xffff,
                0,
                0,
                0,
                u16::from_be_bytes([a, b]),
                u16::from_be_bytes([c, d]),
            );
            step.ipv6(source.octets(), vipa.octets(), 64)
        }
    };
    let mut bytes = Vec::new();
    let step = step.tcp(1024 + u16::from(d), PORT, number, 64240).syn();
    step.write(&mut bytes, &[]).expect("a packet");
    bytes
}

fn flooded(bench: &Bench) -> u64 {
    number(&bench.status()["workers"][0]["services_flooded"])
}

#[test]
fn a_flood_of_syns_keeps_nobody_from_connecting_and_takes_no_byte_of_who_is_connected() {
    for mode in ["mode = \"nat\"", "mode = \"nat\"\nkeep-client = true"] {
        let mut bench = Bench::prepare(&services(mode));
        let config = bench.config();
        let small = config.replace("[forwarder]\n", &format!("[forwarder]\nflows = {FLOWS}\n"));
        bench.write_config(&small);
        bench.start_forwarder();
        let server = place(&bench, 1);
        if mode.contains("keep-client") {
            for (route, via) in [("0.0.0.0/0", "10.1.2.2"), ("::/0", "2001:db8:2::2")] {
                done(server.command("ip").args(["route", "replace", route, "via", via]));
            }
        }
        echo(&server);
        wait_for_servers(&bench);
        let attacker = attacker(&bench);
        let open = Family::BOTH.map(|family| connect(&bench, family));
        let mut memory = vec![resident(&bench)];
        for round in 0..2 {
            let (sent, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
            let (before, dropped) = (
                number(&bench.status()["workers"][0]["flows_created"]),
                bench.dropped("syn_flood"),
            );
            thread::scope(|scope| {
                let flooding = scope.spawn(|| flood(&attacker, round * SYNS, &sent, &is_over));
                wait_until("both services are flooded", || flooded(&bench) == 2);
                for (family, open) in Family::BOTH.into_iter().zip(&open) {
                    comes_back(open, 1);
                    comes_back(&connect(&bench, family), 2);
                    comes_back(open, 3);
                }
                is_over.store(true, Relaxed);
                flooding.join().expect("no panic");
            });
            let sent = sent.load(Relaxed);
            let dropped = bench.dropped("syn_flood") - dropped;
            assert!(dropped > 0, "of {sent}");
            wait_until("the counters follow", || {
                number(&bench.status()["workers"][0]["flows_created"]) > before
            });
            let begun = number(&bench.status()["workers"][0]["flows_created"]) - before;
            assert!(begun < sent, "{begun} of {sent} began a flow");
            memory.push(resident(&bench));
            wait_until("the floods are over", || flooded(&bench) == 0);
        }
        open.iter().for_each(|open| comes_back(open, 4));
        let [before, first, second] = memory[..] else { panic!("two rounds") };
        assert!(first < before + GROWTH && second < first + SLACK, "{memory:?}");
    }
}
