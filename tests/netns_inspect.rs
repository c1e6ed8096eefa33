//! What `vipa check --plan` finds on a host: sockets, netfilter rules, queueing disciplines and policy
//! rules of others, in a namespace of its own.
//!
//! Needs root, and the programs `ip`, `tc` and `nft` for what is to be found.
//!
//! `unsafe` here: `unshare`.
#![allow(unsafe_code)]

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use vipa::config::Config;
use vipa::link::inspect::{FindingKind, inspect, ports_in_use, ports_of_connections};
use vipa::link::nft::{Nft, NftRules};

/// This thread gets a namespace with the NICs eth1 and eth10.
fn host() {
    // SAFETY: only this thread changes its namespace.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "this test needs root: {}", std::io::Error::last_os_error());
    run("ip link set lo up");
    run("ip link add eth1 type veth peer name eth10");
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn nft(script: &str) {
    let output = Command::new("nft").arg(script).output().expect("nft is needed");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

fn config() -> Config {
    let text = "[virtual]\nname = \"vipa0\"\naddresses = [\"203.0.113.10\"]\n\
                [[nic]]\nname = \"eth1\"\n[[nic]]\nname = \"missing\"\n";
    Config::parse(text, Path::new("vipa.toml")).expect("it is right").0
}

fn found(kind: FindingKind) -> Vec<String> {
    let findings = inspect(&config()).expect("the kernel answers").into_iter();
    findings.filter(|finding| finding.kind == kind).map(|finding| finding.text).collect()
}

#[test]
fn nothing_is_found_on_an_empty_host() {
    host();
    assert_eq!(inspect(&config()).expect("the kernel answers"), []);
}

#[test]
fn ports_of_listeners_and_udp_sockets_are_in_use() {
    host();
    assert_eq!(ports_in_use(61_000..=65_535).expect("the kernel answers"), Vec::<u16>::new());
    let listener = TcpListener::bind("127.0.0.1:61001").expect("the port is free");
    let _v6 = TcpListener::bind("[::1]:61002").expect("the port is free");
    let _udp = UdpSocket::bind("0.0.0.0:61003").expect("the port is free");
    let connected = UdpSocket::bind("[::1]:65535").expect("the port is free");
    connected.connect("[::1]:9").expect("it has a route");
    let _outside = TcpListener::bind("127.0.0.1:60999").expect("the port is free");
    let in_use = ports_in_use(61_000..=65_535).expect("the kernel answers");
    assert_eq!(in_use, [61_001, 61_002, 61_003, 65_535]);
    assert_eq!(found(FindingKind::ReservedPort).len(), 4);

    let _client = TcpStream::connect("127.0.0.1:61001").expect("it listens");
    let (_server, _) = listener.accept().expect("it is connected");
    drop(listener);
    // A program that another test starts has it as well, until it is that program.
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut in_use = ports_in_use(61_000..=65_535).expect("the kernel answers");
    while in_use.contains(&61_001) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
        in_use = ports_in_use(61_000..=65_535).expect("the kernel answers");
    }
    assert_eq!(in_use, [61_002, 61_003, 65_535]);
    assert_eq!(ports_of_connections(61_000..=65_535).expect("the kernel answers"), [61_001]);
    let reserved = found(FindingKind::ReservedPort);
    assert!(reserved.iter().any(|text| text.contains("port 61001")), "{reserved:?}");
}

#[test]
fn udp_servers_whose_answers_change_are_named() {
    host();
    let _wildcard = UdpSocket::bind("0.0.0.0:53").expect("the port is free");
    let _v6 = UdpSocket::bind("[::]:5353").expect("the port is free");
    let _bound = UdpSocket::bind("127.0.0.1:67").expect("the port is free");
    let _ephemeral = UdpSocket::bind("127.0.0.1:40000").expect("the port is free");
    let connected = UdpSocket::bind("0.0.0.0:40001").expect("the port is free");
    connected.connect("127.0.0.1:9").expect("it has a route");
    let wildcard = found(FindingKind::WildcardUdp);
    assert_eq!(wildcard.len(), 2, "{wildcard:?}");
    assert!(wildcard[0].contains("0.0.0.0:53 of netns_inspect"), "{wildcard:?}");
    assert!(wildcard[1].contains("[::]:5353 of "), "{wildcard:?}");
    let ephemeral = found(FindingKind::EphemeralUdp);
    assert_eq!(ephemeral.len(), 1, "{ephemeral:?}");
    assert!(ephemeral[0].contains("127.0.0.1:40000"), "{ephemeral:?}");
}

#[test]
fn nftables_rules_that_compare_the_outgoing_device_are_named() {
    host();
    nft("add table inet others; \
         add chain inet others out { type filter hook output priority 0; }; \
         add rule inet others out oifname \"eth1\" counter; \
         add rule inet others out oif \"eth1\" counter; \
         add rule inet others out oifname \"eth*\" counter; \
         add rule inet others out oifname != \"eth1\" counter; \
         add rule inet others out oifname { \"missing\", \"x\" } counter; \
         add rule inet others out oifname . tcp dport { \"eth1\" . 80 } counter; \
         add rule inet others out oifname \"eth10\" counter; \
         add rule inet others out oif \"eth10\" counter; \
         add rule inet others out oifname { \"eth10\", \"x\" } counter; \
         add rule inet others out iifname \"eth1\" counter; \
         add rule inet others out tcp dport 80 counter; \
         add table ip nat; \
         add chain ip nat post { type nat hook postrouting priority 100; }; \
         add rule ip nat post oifname \"eth1\" masquerade");
    let mut ours = Nft::open("vipa0", true).expect("the kernel has nf_tables");
    let rules = NftRules {
        nics: vec!["eth1".into()],
        claims: vipa::forward::claims::Claims {
            owned: vec!["203.0.113.11".parse().expect("a VIPA")],
            reserved: 61_000..=65_535,
            ..Default::default()
        },
        local: Vec::new(),
        ephemeral: 32_768..=60_999,
        sources: Vec::new(),
        rules: Vec::new(),
        applies: Vec::new(),
        is_bound_forwarded: false,
        hold: Duration::from_secs(60),
    };
    ours.ensure(&rules).expect("our own tables are made");
    let found = found(FindingKind::NftablesRule);
    assert_eq!(found.len(), 7, "{found:#?}");
    assert!(found.iter().any(|text| text.contains("inet others out handle ")), "{found:#?}");
    assert!(found.iter().any(|text| text.contains("ip nat post handle ")), "{found:#?}");
    assert!(found.iter().any(|text| text.contains("with missing:")), "{found:#?}");
}

#[test]
fn a_queueing_discipline_that_somebody_chose_is_named() {
    host();
    run("tc qdisc add dev eth10 root tbf rate 1mbit burst 10kb latency 50ms");
    assert_eq!(found(FindingKind::Qdisc), [""; 0], "eth10 is no NIC of vipa");
    run("tc qdisc add dev eth1 root tbf rate 1mbit burst 10kb latency 50ms");
    let found = found(FindingKind::Qdisc);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("eth1 has the queueing discipline tbf"), "{found:?}");
}

#[test]
fn policy_rules_between_ours_and_the_main_table_are_named() {
    host();
    run("ip rule add to 10.0.0.0/8 table 100 preference 20000");
    run("ip rule add to 10.0.0.0/8 table 101 preference 9229");
    run("ip rule add from 10.0.0.0/8 iif eth1 table 102 preference 20001");
    run("ip rule add to 10.0.0.0/8 table 103 preference 9231 protocol 118");
    run("ip -6 rule add to fd00::/8 table 104 preference 20000");
    let found = found(FindingKind::PolicyRule);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("IPv4 policy rule of preference 20000 (table 100)"), "{found:?}");
}
