//! The tables of nf_tables, seen by packets: a host and its neighbour in two namespaces, one cable.
//!
//! Needs root. The programs `ip` and `nft` make the cable and look; nothing here is set up by them.
//!
//! `unsafe` here: `unshare`, `setsockopt`, `poll` and a raw socket.
#![allow(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use vipa::engine::message::HeldFlow;
use vipa::forward::applies::{Applies, Because};
use vipa::forward::claims::{Claim, Claims};
use vipa::forward::rule::{Mark, Rule, Target};
use vipa::link::nft::{Nft, NftRules};

/// For what must happen.
const DEADLINE: Duration = Duration::from_secs(5);
/// For what must not: long enough for a packet over veth, a thousand times.
const SILENCE: Duration = Duration::from_millis(200);
const ADAPTER: &str = "vipa0";

type Task = Box<dyn FnOnce() + Send>;

/// The other end of the cable: a thread in a namespace of its own.
struct Neighbour {
    tasks: mpsc::Sender<Task>,
    thread: i32,
}

impl Neighbour {
    fn new() -> Neighbour {
        let (tasks, queue) = mpsc::channel::<Task>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            unshare();
            // SAFETY: gettid takes nothing and cannot fail.
            ready.send(unsafe { libc::gettid() }).expect("the test waits");
            queue.iter().for_each(|task| task());
        });
        Neighbour { tasks, thread: is_ready.recv().expect("the neighbour has its namespace") }
    }

    fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, is_done) = mpsc::channel();
        let task = Box::new(move || answer.send(task()).expect("the test waits"));
        self.tasks.send(task).expect("the neighbour lives");
        is_done.recv().expect("the neighbour did it")
    }

    fn ip(&self, commands: &'static [&'static str]) {
        self.run(move || commands.iter().for_each(|command| ip(command)));
    }
}

fn unshare() {
    // SAFETY: only this thread changes its namespace.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "tests of nf_tables need root: {}", std::io::Error::last_os_error());
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn ip(command: &str) {
    run("ip", &command.split(' ').collect::<Vec<_>>());
}

fn nft(command: &str) -> String {
    run("nft", &[command])
}

/// Puts the cable in, with what stands at both ends of it.
fn plug(neighbour: &Neighbour) {
    ip(&format!("link add eth1 type veth peer name eth0 netns {}", neighbour.thread));
    ip("addr add 10.1.1.2/24 dev eth1");
    ip("addr add fd01::2/64 dev eth1 nodad");
    ip("link set eth1 up");
    neighbour.ip(&[
        "addr add 10.1.1.1/24 dev eth0",
        "addr add fd01::1/64 dev eth0 nodad",
        "link set eth0 up",
        "route add 203.0.113.0/24 via 10.1.1.2",
        "route add 203.0.113.12/32 via 10.1.1.2 src 10.7.0.1",
        "route add 2001:db8::/64 via fd01::2",
    ]);
    ip("route add 10.0.0.0/8 via 10.1.1.1 src 203.0.113.10");
    ip("route add 2001:db8:9::/48 via fd01::1 src 2001:db8::10");
    // A reset tells that packets go both ways and both ends know each other's MAC address.
    let is_refused = |address| connect(address).err() == Some(ErrorKind::ConnectionRefused);
    for address in ["10.1.1.1:1", "[fd01::1]:1"] {
        until("the cable works", || is_refused(address));
    }
}

/// This thread becomes the host.
fn host() -> Neighbour {
    unshare();
    ip("link set lo up");
    for vipa in ["203.0.113.10/32", "203.0.113.11/32", "203.0.113.12/32", "2001:db8::10/128"] {
        ip(&format!("addr add {vipa} dev lo"));
    }
    let neighbour = Neighbour::new();
    neighbour.ip(&[
        "link set lo up",
        "addr add 10.9.0.1/32 dev lo",
        "addr add 10.8.0.1/32 dev lo",
        "addr add 10.7.0.1/32 dev lo",
        "addr add 10.6.0.1/32 dev lo",
        "addr add 2001:db8:9::1/128 dev lo",
    ]);
    plug(&neighbour);
    neighbour
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn rule(protocol: Option<u8>, destination: &str, port: Option<u16>, target: Target) -> Rule {
    Rule {
        protocol,
        destination: Some(destination.parse().expect("a prefix")),
        ports: port.map(|port| port..=port),
        target,
        ..Rule::default()
    }
}

fn rules() -> NftRules {
    let second = Target::Vipa(address("203.0.113.11"));
    by_forwarder(vec![
        rule(Some(6), "10.9.0.0/16", Some(443), second),
        rule(Some(17), "10.9.0.0/16", None, second),
        rule(Some(1), "10.9.0.0/16", None, second),
        rule(None, "10.7.0.0/16", None, Target::Physical),
        rule(None, "10.6.0.0/16", None, Target::Vipa(address("203.0.113.10"))),
        rule(None, "10.0.0.0/9", Some(53), Target::Physical),
        rule(None, "2001:db8:9::/48", None, Target::Physical),
    ])
}

/// All of the rules are the forwarder's.
fn by_forwarder(rules: Vec<Rule>) -> NftRules {
    NftRules {
        nics: vec!["eth1".into()],
        claims: Claims {
            owned: vec![address("203.0.113.11"), address("2001:db8::10")],
            reserved: 61_000..=65_535,
            ..Claims::default()
        },
        local: vec![address("10.1.1.2")],
        ephemeral: 32_768..=60_999,
        sources: vec![address("203.0.113.10"), address("2001:db8::10")],
        applies: vec![Applies::Forwarder(Because::Told); rules.len()],
        rules,
        is_bound_forwarded: false,
        hold: Duration::from_secs(60),
    }
}

fn open(is_protected: bool) -> Nft {
    let mut nft = Nft::open(ADAPTER, is_protected).expect("the kernel has nf_tables");
    assert!(nft.ensure(&rules()).expect("the tables are made"));
    nft
}

/// Tries to connect, for a short while.
fn connect(text: &str) -> Result<TcpStream, ErrorKind> {
    connect_within(text, SILENCE)
}

/// Connects.
fn reach(text: &str, why: &str) -> TcpStream {
    connect_within(text, DEADLINE).unwrap_or_else(|e| panic!("{text}: {e}: {why}"))
}

fn connect_within(text: &str, limit: Duration) -> Result<TcpStream, ErrorKind> {
    let address: SocketAddr = text.parse().expect("a socket address");
    TcpStream::connect_timeout(&address, limit).map_err(|e| e.kind())
}

/// The neighbour listens on this port, both families.
fn listen(neighbour: &Neighbour, port: u16) -> TcpListener {
    neighbour.run(move || TcpListener::bind(("::", port)).expect("the port is free"))
}

fn udp(neighbour: &Neighbour, port: u16) -> UdpSocket {
    let socket = neighbour.run(move || UdpSocket::bind(("::", port)).expect("the port is free"));
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket
}

fn client(local: &str) -> UdpSocket {
    UdpSocket::bind(local).expect("the local address is there")
}

fn first_heard(socket: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer).expect("one datagram passes");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Does a datagram of `sender` pass? One from a source that nothing holds, sent after it, tells.
fn passes(heard: &UdpSocket, sender: &UdpSocket, destination: &str) -> bool {
    let text = format!("{:?}", Instant::now());
    sender.send_to(text.as_bytes(), destination).expect("a held datagram is no error");
    let local = if destination.starts_with('[') { "[fd01::2]:0" } else { "10.1.1.2:0" };
    client(local).send_to(b"after", destination).expect("this source is free");
    let first = first_heard(heard);
    let does_pass = first == text;
    assert_eq!(if does_pass { first_heard(heard) } else { first }, "after");
    does_pass
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn is_readable(nft: &Nft, within: Duration) -> bool {
    let mut poll = libc::pollfd { fd: nft.event_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, and it outlives the call.
    unsafe { libc::poll(&mut poll, 1, within.as_millis() as i32) == 1 }
}

fn flow(number: u16) -> HeldFlow {
    HeldFlow {
        protocol: 6,
        source: address("203.0.113.10"),
        source_port: number,
        destination: address("10.9.0.1"),
        destination_port: 443,
        wire: None,
    }
}

/// Flows in the kernel's sets.
fn held_by_kernel() -> usize {
    ["rewritten4", "rewritten6"]
        .iter()
        .map(|set| nft(&format!("list set netdev vipa-vipa0 {set}")))
        .filter_map(|listing| Some(listing.split("elements").nth(1)?.matches(" . ").count() / 4))
        .sum()
}

/// Packets counted by those drops of a netdev chain that mention `what`.
fn counted(chain: &str, what: &str) -> u64 {
    let listing = nft(&format!("list chain netdev {chain}"));
    let lines = listing.lines().filter(|l| l.contains(what) && l.contains("drop"));
    let count = |line: &str| line.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    lines.filter_map(count).sum()
}

#[test]
fn a_reserved_port_draws_no_reset_and_no_port_unreachable() {
    let neighbour = host();
    for reserved in ["203.0.113.11:61000", "[2001:db8::10]:65535"] {
        let refused = neighbour.run(move || connect(reserved).err());
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused), "{reserved} before");
    }
    let mut nft = open(true);
    for reserved in ["203.0.113.11:61000", "[2001:db8::10]:65535"] {
        let silent = neighbour.run(move || connect(reserved).err());
        assert_eq!(silent, Some(ErrorKind::TimedOut), "{reserved}");
        let heard = neighbour.run(move || {
            let socket = UdpSocket::bind("[::]:0").expect("a port");
            let socket = if reserved.starts_with('[') { socket } else { client("0.0.0.0:0") };
            socket.connect(reserved).expect("a route");
            socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
            socket.send(b"x").expect("it is sent");
            socket.recv(&mut [0; 4]).map_err(|e| e.kind())
        });
        assert_eq!(heard, Err(ErrorKind::WouldBlock), "{reserved} by UDP");
    }
    for other in ["203.0.113.11:60999", "203.0.113.12:61000", "10.1.1.2:61000", "[fd01::2]:61000"] {
        let refused = neighbour.run(move || connect(other).err());
        assert_eq!(refused, Some(ErrorKind::ConnectionRefused), "{other} is the kernel's");
    }
    let _listener = TcpListener::bind("203.0.113.11:61500").expect("the port is free");
    assert!(neighbour.run(|| connect("203.0.113.11:61500").is_err()));
    nft.spare_ports([61_500]);
    assert!(nft.ensure(&rules()).expect("it is changed"));
    neighbour.run(|| reach("203.0.113.11:61500", "a spared port is the kernel's"));
}

#[test]
fn what_is_asked_of_services_and_what_servers_answer_is_kept_from_the_kernel() {
    let neighbour = host();
    let claim = |at: &str, protocol, ports| Claim { address: address(at), protocol, ports };
    let claims = Claims {
        services: vec![
            claim("203.0.113.11", 6, (80, 80)),
            claim("203.0.113.11", 6, (2000, 2999)),
            claim("2001:db8::10", 6, (80, 81)),
        ],
        sources: vec![(address("203.0.113.12"), 1024..=65_535)],
        servers: vec![claim("10.1.1.1", 17, (7000, 7000))],
        reserved: 61_000..=65_535,
        owned: Vec::new(),
    };
    let alone = NftRules { claims, ..rules() };
    let mut ours = open(true);
    assert!(ours.ensure(&alone).expect("it is changed"));
    assert!(!ours.ensure(&alone).expect("nothing is to do"));
    let silent = ["203.0.113.11:80", "203.0.113.11:2999", "[2001:db8::10]:81", "203.0.113.12:1024"];
    for at in silent {
        let found = neighbour.run(move || connect(at).err());
        assert_eq!(found, Some(ErrorKind::TimedOut), "{at}");
    }
    for at in ["203.0.113.11:81", "203.0.113.11:3000", "[2001:db8::10]:82", "203.0.113.12:1023"] {
        let found = neighbour.run(move || connect(at).err());
        assert_eq!(found, Some(ErrorKind::ConnectionRefused), "{at} is the kernel's");
    }
    // To this host's own address a server's answer is the kernel's; to any other it is the forwarder's.
    for (own, port, is_heard) in
        [("203.0.113.10", 7000, false), ("203.0.113.10", 7001, true), ("10.1.1.2", 7000, true)]
    {
        let heard = UdpSocket::bind((own, 0)).expect("a port");
        heard.set_read_timeout(Some(SILENCE)).expect("a timeout");
        let to = heard.local_addr().expect("bound");
        neighbour.run(move || {
            let server = UdpSocket::bind(("10.1.1.1", port)).expect("a port");
            server.send_to(b"answer", to).expect("it is sent");
        });
        let found = loop {
            match heard.recv(&mut [0; 8]).map_err(|error| error.kind()) {
                Err(ErrorKind::Interrupted) => {}
                found => break found,
            }
        };
        let wanted = if is_heard { Ok(6) } else { Err(ErrorKind::WouldBlock) };
        assert_eq!(found, wanted, "{own} from {port}");
    }
}

#[test]
fn nothing_stands_where_no_address_is_owned() {
    let _neighbour = host();
    let mut ours = open(true);
    let none = NftRules { claims: Claims::default(), ..rules() };
    assert!(ours.ensure(&none).expect("the tables are removed"));
    assert_eq!(nft("list ruleset"), "");
    assert!(!ours.ensure(&none).expect("nothing is to do"));
    ours.renew_lease().expect("no lease is no error");
    ours.hold(&[flow(1)], &[]).expect("no table is no error");
    assert!(ours.ensure(&rules()).expect("the tables are made"));
    assert_eq!(held_by_kernel(), 1);
    drop(ours);
    Nft::remove(ADAPTER).expect("orphans are removed");
    assert_eq!(nft("list ruleset"), "");
    Nft::remove(ADAPTER).expect("absent tables are no error");
}

#[test]
fn where_nothing_is_rewritten_no_frame_goes_through_the_hook() {
    let neighbour = host();
    let _listener = listen(&neighbour, 443);
    let none = NftRules { rules: Vec::new(), applies: Vec::new(), ..rules() };
    let is_hooked = || nft("list table netdev vipa-vipa0").contains("hook egress");
    let mut ours = Nft::open(ADAPTER, true).expect("the kernel has nf_tables");
    assert!(ours.ensure(&none).expect("the tables are made"));
    assert!(!is_hooked());
    ours.hold(&[flow(1)], &[]).expect("it is held");
    assert!(is_hooked(), "before its first frame leaves");
    assert_eq!(held_by_kernel(), 1);
    assert!(!ours.ensure(&none).expect("nothing is to do, and nothing was put back"));
    ours.hold(&[], &[flow(1)]).expect("it is released");
    drop(ours);
    let mut ours = Nft::open(ADAPTER, true).expect("the kernel has nf_tables");
    assert!(ours.ensure(&none).expect("the tables are adopted"));
    assert!(!is_hooked(), "there is none to hold");
    assert!(ours.ensure(&rules()).expect("it is changed"));
    assert!(is_hooked());
    assert_eq!(connect("10.9.0.1:443").err(), Some(ErrorKind::TimedOut), "rules came");
    ours.hold(&[flow(1)], &[]).expect("it is held");
    assert!(ours.ensure(&none).expect("it is changed"));
    assert!(is_hooked(), "flows of before are held");
    reach("10.9.0.1:443", "no rule holds what is new");
    drop(ours);
    let mut next = Nft::open(ADAPTER, true).expect("the kernel has nf_tables");
    next.ensure(&none).expect("the tables are adopted");
    assert!(is_hooked(), "those of the forwarder before as well");
    assert_eq!(held_by_kernel(), 1);
}

#[test]
fn first_packets_that_a_rule_would_change_are_held() {
    let neighbour = host();
    let _listeners = [443, 80].map(|port| listen(&neighbour, port));
    reach("10.9.0.1:443", "nothing is held yet");
    let ours = open(true);
    assert_eq!(connect("10.9.0.1:443").err(), Some(ErrorKind::TimedOut));
    assert_eq!(connect("[2001:db8:9::1]:80").err(), Some(ErrorKind::TimedOut));
    assert_eq!(connect("10.7.0.1:80").err(), Some(ErrorKind::TimedOut));
    reach("10.9.0.1:80", "another port");
    reach("10.8.0.1:443", "another destination");
    reach("10.6.0.1:80", "the rule yields what the packet carries");
    drop(ours);
    assert_eq!(connect("10.9.0.1:443").err(), Some(ErrorKind::TimedOut), "nobody owns the table");
}

#[test]
fn answers_pass() {
    let neighbour = host();
    let _ours = open(true);
    let _servers = ["203.0.113.12:80", "203.0.113.10:80"]
        .map(|server| TcpListener::bind(server).expect("the port is free"));
    neighbour.ip(&["route add 203.0.113.10/32 via 10.1.1.2 src 10.7.0.1"]);
    for server in ["203.0.113.12:80", "203.0.113.10:80"] {
        let from = neighbour.run(move || reach(server, "a SYN-ACK passes").local_addr());
        let from = from.expect("it is bound").ip();
        assert_eq!(from, address("10.7.0.1"), "the client is inside the rule's prefix");
    }
}

#[test]
fn udp_from_client_ports_is_held_and_else_passes() {
    let neighbour = host();
    let _ours = open(true);
    let heard = udp(&neighbour, 7000);
    let dns = udp(&neighbour, 53);
    let rip = udp(&neighbour, 520);
    let autobound = client("203.0.113.10:40000");
    assert!(!passes(&heard, &autobound, "10.9.0.1:7000"));
    assert!(passes(&heard, &autobound, "10.8.0.1:7000"), "no rule");
    assert!(!passes(&dns, &autobound, "10.8.0.1:53"), "a rule of ports without protocol");
    assert!(passes(&dns, &autobound, "10.6.0.1:53"), "the first rule that matches wins");
    assert!(passes(&rip, &autobound, "10.9.0.1:520"), "RIP is IGNORE by nature");
    assert!(passes(&heard, &client("203.0.113.10:521"), "10.9.0.1:7000"), "RIPng's source");
    assert!(passes(&heard, &client("203.0.113.10:5353"), "10.9.0.1:7000"), "a server's answer");
    assert!(passes(&heard, &client("203.0.113.12:40001"), "10.9.0.1:7000"), "a chosen source");
    let v6 = client("[2001:db8::10]:40000");
    assert!(!passes(&heard, &v6, "[2001:db8:9::1]:7000"));
    assert!(passes(&heard, &v6, "[fd01::1]:7000"));
    let marked = client("203.0.113.10:40002");
    let mark = vipa::device::MARK;
    // SAFETY: SO_MARK takes a u32, and its size is told.
    let result = unsafe {
        let value = std::ptr::from_ref(&mark).cast();
        libc::setsockopt(marked.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK, value, 4)
    };
    assert_eq!(result, 0);
    assert!(passes(&heard, &marked, "10.9.0.1:7000"), "the forwarder's own frames");
}

#[test]
fn a_rule_for_a_user_or_a_mark_holds_what_just_these_send() {
    let neighbour = host();
    let heard = udp(&neighbour, 7000);
    let plain = client("203.0.113.10:40000");
    let marked = client("203.0.113.10:40001");
    let mark: u32 = 0x15;
    // SAFETY: SO_MARK takes a u32, and its size is told.
    let result = unsafe {
        let value = std::ptr::from_ref(&mark).cast();
        libc::setsockopt(marked.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK, value, 4)
    };
    assert_eq!(result, 0);
    let to =
        |prefix, mark, user| Rule { mark, user, ..rule(Some(17), prefix, None, Target::Physical) };
    let mut rules = by_forwarder(vec![
        to("10.9.0.0/16", None, Some(26)),
        to("10.8.0.0/16", None, Some(0)),
        to("10.7.0.0/16", Some(Mark { value: 0x10, mask: 0xf0 }), None),
        to("10.6.0.0/16", None, None),
    ]);
    // The kernel's rule before one of the forwarder's: what the kernel decided about passes.
    rules.rules[3].is_for_forwarder = true;
    rules.rules.insert(
        3,
        Rule {
            target: Target::Vipa(address("203.0.113.11")),
            ..to("10.6.0.0/16", Some(Mark { value: 0x15, mask: u32::MAX }), None)
        },
    );
    rules.applies.insert(3, Applies::Kernel);
    let mut ours = Nft::open(ADAPTER, true).expect("nftables");
    ours.ensure(&rules).expect("it is set up");
    ours.renew_lease().expect("it is renewed");
    assert!(passes(&heard, &plain, "10.9.0.1:7000"), "another user's");
    assert!(!passes(&heard, &plain, "10.8.0.1:7000"), "this test is run by root");
    assert!(passes(&heard, &plain, "10.7.0.1:7000"), "it has no mark");
    assert!(!passes(&heard, &marked, "10.7.0.1:7000"));
    assert!(!passes(&heard, &plain, "10.6.0.1:7000"));
    assert!(passes(&heard, &marked, "10.6.0.1:7000"), "the kernel saw to it");
}

/// An echo request, its checksum made good.
fn echo_request(identifier: u16) -> [u8; 8] {
    let sum = !(0x0800 + identifier);
    let ([a, b], [c, d]) = (sum.to_be_bytes(), identifier.to_be_bytes());
    [8, 0, a, b, c, d, 0, 0]
}

#[test]
fn an_echo_that_a_rule_would_change_or_that_was_rewritten_is_held() {
    let _neighbour = host();
    let mut ours = open(true);
    // SAFETY: socket returns a new descriptor, or -1, which is refused below.
    let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP) };
    assert!(raw >= 0);
    // SAFETY: the descriptor is new and nobody else's.
    let raw = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(raw) });
    let send = |identifier, last| {
        let destination = SocketAddr::from((Ipv4Addr::new(10, last, 0, 1), 0));
        raw.send_to(&echo_request(identifier), destination).expect("held is no error");
    };
    let first = || counted("vipa-vipa0 first4", "icmp");
    for identifier in [7, 40_000] {
        let before = first();
        send(identifier, 9);
        assert_eq!(first(), before + 1, "{identifier}");
        send(identifier, 8);
        assert_eq!(first(), before + 1, "{identifier} to where no rule is");
    }
    let echo = HeldFlow {
        protocol: 1,
        source_port: 7,
        destination: address("10.8.0.1"),
        destination_port: 0,
        ..flow(7)
    };
    ours.hold(&[echo], &[]).expect("it is held");
    let rewritten = || counted("vipa-vipa0 hold4", "icmp");
    let before = rewritten();
    send(8, 8);
    assert_eq!(rewritten(), before, "another identifier");
    send(7, 8);
    assert_eq!(rewritten(), before + 1);
}

#[test]
fn the_hold_ends_with_the_lease() {
    let neighbour = host();
    let _listener = listen(&neighbour, 443);
    let mut ours = Nft::open(ADAPTER, true).expect("the kernel has nf_tables");
    let brief = NftRules { hold: Duration::from_millis(1500), ..rules() };
    assert!(ours.ensure(&brief).expect("the tables are made"));
    let made = Instant::now();
    let mut renewed = made;
    while made.elapsed() < brief.hold + SILENCE {
        assert!(connect("10.9.0.1:443").is_err());
        ours.renew_lease().expect("it is renewed");
        renewed = Instant::now();
    }
    until("the lease runs out", || connect("10.9.0.1:443").is_ok());
    assert!(renewed.elapsed() > brief.hold - SILENCE, "{:?}", renewed.elapsed());
    ours.renew_lease().expect("it begins anew");
    assert!(connect("10.9.0.1:443").is_err());
}

#[test]
fn packets_of_a_rewritten_flow_are_held_though_it_is_established() {
    let neighbour = host();
    let listener = listen(&neighbour, 8443);
    let mut ours = open(true);
    for destination in ["10.8.0.1:8443", "[fd01::1]:8443"] {
        let mut here = reach(destination, "no rule holds it");
        let (mut there, _) = listener.accept().expect("it is established");
        let source = here.local_addr().expect("it is bound");
        let destination = here.peer_addr().expect("it is connected");
        let flow = HeldFlow {
            protocol: 6,
            source: source.ip(),
            source_port: source.port(),
            destination: destination.ip(),
            destination_port: destination.port(),
            wire: None,
        };
        ours.hold(&[flow], &[]).expect("it is held");
        ours.hold(&[flow], &[]).expect("twice is no error");
        here.write_all(b"x").expect("held silently");
        there.set_read_timeout(Some(SILENCE)).expect("a timeout");
        let silent = there.read(&mut [0]).map_err(|e| e.kind());
        assert_eq!(silent, Err(ErrorKind::WouldBlock), "{destination}");
        ours.hold(&[], &[flow]).expect("it is released");
        ours.hold(&[], &[flow]).expect("twice is no error");
        there.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        there.read_exact(&mut [0]).expect("TCP sends it again");
    }
}

#[test]
fn thousands_of_flows_in_one_call() {
    let _neighbour = host();
    let mut ours = open(true);
    let v6 = |f: HeldFlow| HeldFlow {
        source: address("2001:db8::10"),
        destination: address("2001:db8:9::1"),
        ..f
    };
    let mut flows: Vec<HeldFlow> = (1..=5000).map(flow).collect();
    flows.extend((1..=5000).map(flow).map(v6));
    ours.hold(&flows, &[]).expect("they are held");
    assert_eq!(held_by_kernel(), 10_000);
    assert!(!is_readable(&ours, Duration::ZERO), "own transactions wake nobody");
    drop(ours);

    let adopt = |is_protected: bool| {
        let mut ours = Nft::open(ADAPTER, is_protected).expect("the kernel has nf_tables");
        ours.ensure(&rules()).expect("they are adopted");
        assert_eq!(ours.held().count(), 10_000, "protected: {is_protected}");
        assert_eq!(held_by_kernel(), 10_000, "protected: {is_protected}");
        ours
    };
    let mut orphaned = adopt(false);
    nft("flush ruleset");
    assert!(orphaned.ensure(&rules()).expect("all is put back"));
    drop(orphaned);
    let mut ours = adopt(true);
    flows.extend((6000..7000).map(flow));
    ours.hold(&[flow(9)], &flows).expect("absent ones are no error");
    assert_eq!(held_by_kernel(), 1);
}

#[test]
fn an_orphan_is_adopted_with_its_flows_and_gets_the_new_rules() {
    let neighbour = host();
    let _listeners = [443, 80].map(|port| listen(&neighbour, port));
    let mut first = open(true);
    first.hold(&[flow(1), flow(2)], &[]).expect("they are held");
    let second = Nft::open(ADAPTER, true).expect("sockets open").ensure(&rules());
    assert_eq!(second.map_err(|e| e.kind()), Err(ErrorKind::ResourceBusy));
    let denied = Nft::remove(ADAPTER).map_err(|e| e.kind());
    assert_eq!(denied, Err(ErrorKind::PermissionDenied));
    drop(first);

    let mut other = rules();
    other.rules[0].ports = Some(80..=80);
    let mut ours = Nft::open(ADAPTER, true).expect("the kernel has nf_tables");
    assert!(ours.ensure(&other).expect("it is adopted"));
    assert_eq!(held_by_kernel(), 2);
    assert_eq!(ours.held().count(), 2);
    reach("10.9.0.1:443", "the old rule is gone");
    assert!(connect("10.9.0.1:80").is_err(), "the new one holds");
    assert!(!ours.ensure(&other).expect("nothing is to do"));
    nft("flush ruleset");
    assert_eq!(held_by_kernel(), 2, "its owner's tables are passed by");
}

#[test]
fn tables_of_an_unprotected_run_are_adopted() {
    let _neighbour = host();
    let mut first = open(false);
    first.hold(&[flow(1)], &[]).expect("it is held");
    drop(first);
    let mut again = Nft::open(ADAPTER, false).expect("the kernel has nf_tables");
    assert!(!again.ensure(&rules()).expect("all is there"));
    drop(again);
    let mut ours = Nft::open(ADAPTER, true).expect("the kernel has nf_tables");
    assert!(ours.ensure(&rules()).expect("they are made anew"));
    assert_eq!(held_by_kernel(), 1);
    assert!(!ours.ensure(&rules()).expect("nothing is to do"));
}

#[test]
fn what_others_do_to_unprotected_tables_is_noticed_and_put_back() {
    let neighbour = host();
    let _listener = listen(&neighbour, 443);
    let mut ours = open(false);
    ours.hold(&[flow(1)], &[]).expect("it is held");
    let claims = Claims { reserved: 62_000..=65_535, ..rules().claims };
    let other = NftRules { claims, ..rules() };
    assert!(ours.ensure(&other).expect("it is changed"));
    assert!(ours.ensure(&rules()).expect("it is changed back"));
    ours.renew_lease().expect("it is renewed");
    assert!(!is_readable(&ours, Duration::ZERO) && !ours.drain_events(), "no news of our own");
    nft("add table inet another");
    assert!(is_readable(&ours, DEADLINE) && !ours.drain_events(), "others' tables do not count");
    assert!(!ours.ensure(&rules()).expect("nothing is to do"));

    for damage in [
        "flush ruleset",
        "delete table netdev vipa-vipa0",
        "flush chain netdev vipa-vipa0 hold4",
        "insert rule netdev vipa-vipa0 hold accept",
        "add chain netdev vipa-vipa0 mine",
        "flush set inet vipa-vipa0 owned4",
        "flush set netdev vipa-vipa0 rewritten4",
        "flush set netdev vipa-vipa0 lease",
        "add element netdev vipa-vipa0 rewritten4 { tcp . 1.1.1.1 . 1 . 2.2.2.2 . 2 }",
        "add set inet vipa-vipa0 mine { type ipv4_addr; }",
        "add table inet vipa-vipa0 { flags dormant; }",
        "add chain netdev vipa-vipa0 egress-eth1 { policy drop; }",
    ] {
        nft(damage);
        assert!(is_readable(&ours, DEADLINE) && ours.drain_events(), "{damage}: noticed");
        assert!(ours.ensure(&rules()).expect("it is put back"), "{damage}");
        assert!(connect("10.9.0.1:443").is_err(), "{damage}: held again");
        let reserved = neighbour.run(|| connect("203.0.113.11:61000").err());
        assert_eq!(reserved, Some(ErrorKind::TimedOut), "{damage}");
        assert_eq!(held_by_kernel(), 1, "{damage}");
        assert!(!ours.ensure(&rules()).expect("nothing is to do"), "{damage}");
    }
    nft("flush ruleset");
    ours.renew_lease().expect("it is put back at once");
    nft("flush ruleset");
    ours.hold(&[flow(2)], &[flow(3)]).expect("it is put back at once");
    assert_eq!(held_by_kernel(), 2);
    assert!(ours.ensure(&rules()).expect("all is there"), "and it tells that it was not");
}

#[test]
fn a_nic_made_anew_is_hooked_again() {
    let neighbour = host();
    let _listener = listen(&neighbour, 443);
    let mut ours = open(true);
    let none = NftRules { nics: Vec::new(), ..rules() };
    for is_seen_missing in [true, false, true] {
        assert!(connect("10.9.0.1:443").is_err());
        ip("link del eth1");
        if is_seen_missing {
            ours.ensure(&none).expect("the hook is removed");
            ours.ensure(&rules()).expect("a NIC that vanished meanwhile is no error");
        }
        plug(&neighbour);
        ours.ensure(&rules()).expect("the NIC is hooked");
        reach("10.8.0.1:443", "no rule holds it");
        assert!(connect("10.9.0.1:443").is_err(), "held on the new NIC");
        let reserved = neighbour.run(|| connect("203.0.113.11:61000").err());
        assert_eq!(reserved, Some(ErrorKind::TimedOut));
    }
}
