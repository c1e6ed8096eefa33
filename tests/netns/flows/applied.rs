//! Rules that the kernel applies: on the wire they hold with the socket's own port, rewritten by nobody, also
//! while no forwarder runs; and in a mix with the forwarder's rules their order counts.

#![allow(unsafe_code)] // setsockopt(SO_MARK)

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use vipa::lab::Hop;
use vipa::lab::topology::{client_address, vipas};
use vipa::wire::ip::{Family, ICMP, TCP, UDP};

use super::program::Program;
use crate::fixture::{Bench, Conversation, Peer, Setup, ask_by, nic_addresses, number, unbound};
use crate::ping::ping;
use crate::wire::Wire;

const PORT: u16 = 7600;
/// Some user who is not root; it need not have a name.
const SOMEBODY: u32 = 4711;

fn udp(bench: &Bench, family: Family) -> UdpSocket {
    bench.network.host.run(|| UdpSocket::bind(unbound(family))).expect("a socket")
}

/// TCP, UDP unconnected and connected, and a ping carry `wanted` and their own port or identifier.
fn all_carry_the_second_vipa(bench: &Bench, peer: &Peer, identifier: u16) {
    for family in Family::BOTH {
        let [_, second] = vipas(family);
        let talk = Conversation::open(&bench.network.host, peer.address(family));
        talk.goes_on(10);
        assert_eq!((talk.seen, talk.seen.ip()), (talk.local, second));
        talk.finish();
        let socket = udp(bench, family);
        let asked = ask_by(&socket, peer.address(family)).expect("an answer");
        assert_eq!(asked, SocketAddr::new(second, socket.local_addr().expect("bound").port()));
        let connected = udp(bench, family);
        connected.connect(peer.address(family)).expect("connected");
        let local = connected.local_addr().expect("bound");
        assert_eq!(local.ip(), second, "from the start");
        connected.set_read_timeout(Some(crate::fixture::PATIENCE)).expect("not zero");
        connected.send(b"who am I?").expect("sent");
        let mut answer = [0; 100];
        let length = connected.recv(&mut answer).expect("an answer");
        let asked = std::str::from_utf8(&answer[..length]).expect("an address");
        assert_eq!(asked.parse(), Ok(local));
        ping(&bench.network.host, client_address(family), identifier);
    }
}

fn by_protocol_and_port() -> Setup {
    Setup::new(3)
        .second_vipa_by_anyone(&format!("protocol = \"tcp\"\nport = \"{PORT}\""))
        .second_vipa_by_anyone(&format!("protocol = \"udp\"\nport = \"{PORT}\""))
        .second_vipa_by_anyone("protocol = \"icmp\"")
}

#[test]
fn what_the_kernel_decides_is_never_rewritten_nor_does_it_need_a_forwarder() {
    let mut bench = Bench::start(&by_protocol_and_port());
    let [ruled, plain] = [PORT, PORT + 1].map(|port| Peer::listen(&bench.network.client, port));
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        let wire = Wire::tap(&bench.network);
        let before = bench.carried();
        all_carry_the_second_vipa(&bench, &ruled, 4711);
        assert!(bench.carried() > before + 20, "all of it went through the forwarder");
        let lasting: Vec<Conversation> = Family::BOTH
            .map(|family| Conversation::open(&bench.network.host, ruled.address(family)))
            .into();
        for family in Family::BOTH {
            let [first, second] = vipas(family);
            let talk = Conversation::open(&bench.network.host, plain.address(family));
            assert_eq!((talk.seen, talk.seen.ip()), (talk.local, first), "no rule speaks of it");
            talk.finish();
            for (protocol, port) in [(TCP, PORT), (UDP, PORT), (ICMP, 0)] {
                let seen = wire.came_from(protocol, port, second);
                assert!(protocol != ICMP || seen.source_port == 4711, "{seen:?}");
            }
        }
        assert_eq!(bench.rewritten(), (0, 0));
        bench.forwarder.kill();
        assert!(bench.forwarder.pid().is_none());
        let left = bench.left();
        all_carry_the_second_vipa(&bench, &ruled, 4712);
        lasting.iter().for_each(|talk| talk.goes_on(10));
        assert!(bench.left() > left + 20, "the kernel carried it all");
        bench.start_forwarder();
        for talk in lasting {
            talk.goes_on(10);
            talk.finish();
        }
        assert_eq!(bench.rewritten(), (0, 0), "the new forwarder neither");
        for family in Family::BOTH {
            wire.came_from(TCP, PORT, vipas(family)[1]);
            wire.came_from(UDP, PORT, vipas(family)[1]);
        }
        wire.assert_no_reset();
    }
}

#[test]
fn programs_of_a_user_carry_the_vipa_of_the_users_rule() {
    let bench = Bench::start(&Setup::new(2).second_vipa_by_anyone(&format!("user = {SOMEBODY}")));
    let peer = Peer::listen(&bench.network.client, PORT);
    for family in Family::BOTH {
        let [first, second] = vipas(family);
        for protocol in [TCP, UDP] {
            let ask = |user| {
                let program = Program { user, ..Program::default() };
                program.ask(&bench, protocol, peer.address(family))
            };
            assert_eq!(ask(Some(SOMEBODY)), second);
            assert_eq!(ask(Some(SOMEBODY + 1)), first);
            assert_eq!(ask(None), first);
        }
    }
    assert_eq!(bench.rewritten(), (0, 0));
}

fn set_mark(socket: &UdpSocket, mark: u32) {
    // SAFETY: SO_MARK takes a u32, and its size is told.
    let result = unsafe {
        let value = std::ptr::from_ref(&mark).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK, value, 4)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_socket_with_a_mark_carries_the_vipa_of_the_marks_rule() {
    let bench = Bench::start(&Setup::new(2).second_vipa_by_anyone("mark = \"0x10/0xf0\""));
    let peer = Peer::listen(&bench.network.client, PORT);
    for family in Family::BOTH {
        let [first, second] = vipas(family);
        let socket = udp(&bench, family);
        let port = socket.local_addr().expect("bound").port();
        // A socket that is not connected is looked up anew with each datagram.
        for (mark, wanted) in [(0, first), (0x15, second), (0x25, first)] {
            set_mark(&socket, mark);
            let seen = ask_by(&socket, peer.address(family));
            assert_eq!(seen, Some(SocketAddr::new(wanted, port)), "mark {mark:#x}");
        }
    }
    assert_eq!(bench.rewritten(), (0, 0));
}

/// A connection to `to`, where somebody listens, does not come about while there is no forwarder.
fn assert_held(bench: &Bench, to: SocketAddr) {
    let waiting = bench.network.host.run(|| {
        let brief = std::time::Duration::from_millis(500);
        std::net::TcpStream::connect_timeout(&to, brief).map_err(|e| e.kind())
    });
    assert_eq!(waiting.err(), Some(std::io::ErrorKind::TimedOut), "{to} is held");
}

#[test]
fn physical_takes_the_main_tables_way_and_else_the_forwarders() {
    let mut bench = Bench::start(&Setup::new(2).physical_by_anyone(""));
    let host = bench.network.host.clone();
    let host = &host;
    let peer = Peer::listen(&bench.network.client, PORT);
    for family in Family::BOTH {
        // The main table knows no way to the client yet.
        let talk = Conversation::open(host, peer.address(family));
        assert_eq!(talk.local.ip(), vipas(family)[0]);
        assert!(nic_addresses(&bench.network, family).contains(&talk.seen.ip()), "{}", talk.seen);
        talk.finish();
    }
    let (rewritten, heard) = bench.rewritten();
    assert!(rewritten > 0 && heard > 0, "the forwarder did that");
    bench.forwarder.kill();
    for family in Family::BOTH {
        assert_held(&bench, peer.address(family));
    }
    bench.start_forwarder();
    host.route("10.9.0.0/24", &[Hop::via("10.1.1.1").dev("eth1")], None).expect("a route");
    host.route("2001:db8:9::/64", &[Hop::via("2001:db8:1::1").dev("eth1")], None).expect("a route");
    let carried = bench.carried();
    for family in Family::BOTH {
        let talk = Conversation::open(host, peer.address(family));
        talk.goes_on(5);
        let nic = nic_addresses(&bench.network, family)[0];
        assert_eq!((talk.seen, talk.seen.ip()), (talk.local, nic));
        talk.finish();
    }
    assert_eq!(bench.carried(), carried, "the kernel's own way");
}

#[test]
fn a_udp_servers_answers_keep_their_address_under_a_rule_for_all_udp() {
    let mut bench = Bench::start(&Setup::new(2).second_vipa_by_anyone(""));
    let server = Peer::listen(&bench.network.host, PORT);
    for is_alive in [true, false] {
        for family in Family::BOTH {
            // Asked on the default VIPA; a wildcard socket's answer has no source of its own.
            let at = SocketAddr::new(vipas(family)[0], server.0);
            let socket = bench.network.client.run(|| UdpSocket::bind(unbound(family)));
            assert!(ask_by(&socket.expect("a socket"), at).is_some(), "{at}, alive: {is_alive}");
            // As a client, the same host is the rule's.
            let listener = bench.network.client.run(|| {
                TcpListener::bind(SocketAddr::new(client_address(family), PORT)).expect("a port")
            });
            let to = listener.local_addr().expect("bound");
            let accepting = std::thread::spawn(move || listener.accept().expect("a client").1);
            let _stream = bench.network.host.run(|| std::net::TcpStream::connect(to)).expect("it");
            assert_eq!(accepting.join().expect("no panic").ip(), vipas(family)[1]);
        }
        bench.forwarder.kill();
    }
}

#[test]
fn in_a_mix_of_the_kernels_rules_and_the_forwarders_the_first_wins() {
    let tcp = |ports: &str| format!("protocol = \"tcp\"\nport = \"{ports}\"");
    let setup = Setup::new(2)
        .second_vipa_by_anyone(&tcp("7600"))
        .physical(&tcp("7600-7601"))
        .second_vipa_by_anyone(&tcp("7601-7602"))
        .second_vipa_by_anyone(&tcp("7603"))
        .second_vipa_by_anyone("protocol = \"udp\"\nport = \"7600-7602\"");
    let bench = Bench::start(&setup);
    let peers: Vec<Peer> =
        (7600..=7604).map(|port| Peer::listen(&bench.network.client, port)).collect();
    for family in Family::BOTH {
        let [first, second] = vipas(family);
        let physical = nic_addresses(&bench.network, family);
        let talks: Vec<Conversation> = peers
            .iter()
            .map(|peer| Conversation::open(&bench.network.host, peer.address(family)))
            .collect();
        talks.iter().for_each(|talk| talk.goes_on(5));
        assert_eq!((talks[0].seen.ip(), talks[0].local), (second, talks[0].seen), "the kernel's");
        assert!(physical.contains(&talks[1].seen.ip()), "the forwarder's, before the next");
        assert_eq!(talks[1].local.ip(), first);
        assert_eq!((talks[2].seen.ip(), talks[2].local.ip()), (second, first), "behind that");
        assert_eq!((talks[3].seen.ip(), talks[3].local), (second, talks[3].seen), "not behind it");
        assert_eq!((talks[4].seen.ip(), talks[4].local), (first, talks[4].seen), "nobody's");
        talks.into_iter().for_each(Conversation::finish);
        let socket = udp(&bench, family);
        let port = socket.local_addr().expect("bound").port();
        let seen = ask_by(&socket, peers[1].address(family));
        assert_eq!(seen, Some(SocketAddr::new(second, port)), "the kernel's");
    }
    assert_eq!(bench.rewritten().0, 4, "just the forwarder's are rewritten");
}

#[test]
fn a_connection_under_the_kernels_rule_is_not_held_beside_one_of_the_forwarders() {
    let tcp = |port: u16| format!("protocol = \"tcp\"\nport = \"{port}\"");
    let setup = Setup::new(2).second_vipa_by_anyone(&tcp(PORT)).second_vipa(&tcp(PORT + 1));
    let mut bench = Bench::start(&setup);
    let [kernels, forwarders] =
        [PORT, PORT + 1].map(|port| Peer::listen(&bench.network.client, port));
    bench.forwarder.kill();
    for family in Family::BOTH {
        let talk = Conversation::open(&bench.network.host, kernels.address(family));
        talk.goes_on(5);
        assert_eq!((talk.seen, talk.seen.ip()), (talk.local, vipas(family)[1]));
        // One that chose the default VIPA itself is the forwarder's to rewrite, but there is none: it passes.
        let from = SocketAddr::new(vipas(family)[0], 0);
        let chosen = Conversation::open_bound(&bench.network.host, from, kernels.address(family));
        assert_eq!(chosen.seen, chosen.local);
        chosen.finish();
        talk.finish();
        assert_held(&bench, forwarders.address(family));
    }
}

/// A cgroup of cgroup2 with one below it, gone with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Cgroup {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("proc");
        let root = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let path = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
        });
        let root = root.expect("these tests need cgroup2, mounted and writable");
        let directory = root.join(format!("vipa-{name}-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("below")).expect("a cgroup");
        Cgroup(directory)
    }

    fn name(&self) -> &str {
        self.0.file_name().and_then(|name| name.to_str()).expect("it has one")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A program that ended may take a moment to leave.
        for directory in [self.0.join("below"), self.0.clone()] {
            for _ in 0..100 {
                if std::fs::remove_dir(&directory).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}

#[test]
fn programs_of_a_cgroup_carry_the_vipa_of_the_cgroups_rule() {
    let [wanted, other] = ["wanted", "other"].map(Cgroup::new);
    let rule = format!("cgroup = \"/{}\"", wanted.name());
    let mut bench = Bench::start(&Setup::new(2).workers(2).second_vipa_by_anyone(&rule));
    let peer = Peer::listen(&bench.network.client, PORT);
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        let wire = Wire::tap(&bench.network);
        for family in Family::BOTH {
            let [first, second] = vipas(family);
            for protocol in [TCP, UDP] {
                let ask = |cgroup: Option<&Path>| {
                    let program = Program { cgroup, ..Program::default() };
                    program.ask(&bench, protocol, peer.address(family))
                };
                for (cgroup, wanted) in [
                    (Some(wanted.0.clone()), second),
                    (Some(wanted.0.join("below")), second),
                    (Some(other.0.clone()), first),
                    (None, first),
                ] {
                    assert_eq!(ask(cgroup.as_deref()), wanted, "{cgroup:?}");
                }
            }
            // A ping has no socket that could be asked for: no rule that needs one matches.
            ping(&bench.network.host, client_address(family), 4711);
            wire.came_from(ICMP, 0, first);
        }
    }
    let router = &bench.status()["router"];
    assert!(number(&router["sockets_asked"]) >= 34, "{router}");
    assert!(number(&router["sockets_unknown"]) >= 2, "the pings: {router}");
    // While nobody asks, nobody is held up either: what a cgroup sends cannot be told at the hook.
    bench.forwarder.kill();
    for family in Family::BOTH {
        let talk = Conversation::open(&bench.network.host, peer.address(family));
        assert_eq!(talk.seen, talk.local);
        talk.finish();
    }
}

#[test]
fn the_forwarder_asks_the_socket_for_its_user_and_mark_where_it_is_told_to() {
    let setup = Setup::new(2)
        .second_vipa(&format!("user = {SOMEBODY}"))
        .physical("mark = 9\nprotocol = \"udp\"")
        .second_vipa_by_anyone("mark = 8\nprotocol = \"udp\"");
    let bench = Bench::start(&setup);
    let peer = Peer::listen(&bench.network.client, PORT);
    for family in Family::BOTH {
        let [first, second] = vipas(family);
        for protocol in [TCP, UDP] {
            let ask = |user| {
                let program = Program { user, ..Program::default() };
                program.ask(&bench, protocol, peer.address(family))
            };
            assert_eq!(ask(Some(SOMEBODY)), second);
            assert_eq!(ask(None), first);
        }
        for (mark, wanted) in
            [(9, nic_addresses(&bench.network, family)), (8, vec![second]), (7, vec![first])]
        {
            let socket = udp(&bench, family);
            set_mark(&socket, mark);
            let seen = ask_by(&socket, peer.address(family)).expect("an answer");
            assert!(wanted.contains(&seen.ip()), "mark {mark}: {seen}");
            // A connected socket is found as well.
            let socket = udp(&bench, family);
            set_mark(&socket, mark);
            socket.connect(peer.address(family)).expect("connected");
            socket.set_read_timeout(Some(crate::fixture::PATIENCE)).expect("not zero");
            socket.send(b"who am I?").expect("sent");
            let mut answer = [0; 100];
            let length = socket.recv(&mut answer).expect("an answer");
            let seen: SocketAddr =
                std::str::from_utf8(&answer[..length]).expect("text").parse().expect("an address");
            assert!(wanted.contains(&seen.ip()), "connected, mark {mark}: {seen}");
        }
    }
    assert!(bench.rewritten().0 >= 8);
}
