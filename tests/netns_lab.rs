//! The lab itself: what it promises, the tests of everything else stand on. Needs root.
//!
//! Unsafe for one packet socket with a vnet header, which is how a wrong checksum gets past a sender.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vipa::lab::topology::{Network, client_address, vipas};
use vipa::lab::{End, Namespace, veth};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::ip::Family;

const WAIT: Duration = Duration::from_secs(5);

/// Two namespaces on one cable: 10.0.0.1 and fd00::1, 10.0.0.2 and fd00::2.
fn pair() -> (Namespace, Namespace) {
    let a = Namespace::new("a").expect("a namespace (these tests need root)");
    let b = Namespace::new("b").expect("a namespace");
    let mac = |last| MacAddr([2, 0, 0, 0, 0, last]);
    veth(End::new(&a, "v0").mac(mac(1)), End::new(&b, "v0").mac(mac(2))).expect("a cable");
    for (namespace, last) in [(&a, 1), (&b, 2)] {
        namespace.address(&format!("10.0.0.{last}/24"), "v0").expect("an address");
        namespace.address(&format!("fd00::{last}/64"), "v0").expect("an IPv6 address");
    }
    (a, b)
}

fn bound(namespace: &Namespace, address: SocketAddr) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind(address)).expect("a UDP socket");
    socket.set_read_timeout(Some(WAIT)).expect("a time limit");
    socket
}

#[test]
fn the_network_carries_udp_and_tcp_of_both_families_to_every_vipa() {
    let network = Network::new(3).expect("a network (these tests need root)");
    network.route_by_kernel().expect("routes");
    for family in Family::BOTH {
        for vipa in vipas(family) {
            let server = bound(&network.host, SocketAddr::new(vipa, 7));
            let client = bound(&network.client, SocketAddr::new(client_address(family), 0));
            client.send_to(b"there", server.local_addr().unwrap()).unwrap();
            let mut buffer = [0; 16];
            let (length, from) = server.recv_from(&mut buffer).expect("the request");
            assert_eq!((&buffer[..length], from.ip()), (&b"there"[..], client_address(family)));
            server.send_to(b"and back", from).unwrap();
            let (length, from) = client.recv_from(&mut buffer).expect("the answer");
            assert_eq!((&buffer[..length], from.ip()), (&b"and back"[..], vipa));
        }
        let address = SocketAddr::new(client_address(family), 80);
        let listener = network.client.run(|| TcpListener::bind(address)).unwrap();
        let mut opened =
            network.host.run(|| TcpStream::connect_timeout(&address, WAIT)).expect("a connection");
        let (mut accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), vipas(family)[0], "the route's preferred source");
        opened.write_all(b"over the router").unwrap();
        drop(opened);
        let mut text = String::new();
        accepted.read_to_string(&mut text).unwrap();
        assert_eq!(text, "over the router");
    }
}

#[test]
fn a_pulled_cable_takes_the_carrier_of_both_ends_and_sets_neither_down() {
    let network = Network::new(2).expect("a network (these tests need root)");
    network.pull_cable(1).unwrap();
    assert!(!network.host.has_carrier("eth1").unwrap());
    assert!(!network.router.has_carrier("r1").unwrap());
    assert!(network.host.has_carrier("eth2").unwrap());
    network.plug_cable(1).unwrap();
    assert!(network.host.has_carrier("eth1").unwrap());
    assert!(network.router.has_carrier("r1").unwrap());
}

#[test]
fn a_nic_is_deleted_and_created_anew_under_the_routers_routes() {
    let network = Network::new(2).expect("a network (these tests need root)");
    network.delete_nic(2).unwrap();
    assert!(network.host.index("eth2").is_err());
    assert!(!network.router.has_carrier("r2").unwrap());
    network.create_nic(2).unwrap();
    network.route_by_kernel().unwrap();
    network.pull_cable(1).unwrap();
    let [vipa, _] = vipas(Family::V6);
    let server = bound(&network.host, SocketAddr::new(vipa, 7));
    let client = bound(&network.client, SocketAddr::new(client_address(Family::V6), 0));
    // The router may still hold the old NIC for a dead neighbour: datagrams to those are lost until it has asked again.
    server.set_read_timeout(Some(Duration::from_millis(250))).unwrap();
    let mut buffer = [0; 64];
    let is_heard = || {
        client.send_to(b"by the new one", server.local_addr().unwrap()).unwrap();
        server.recv_from(&mut buffer).is_ok_and(|(length, _)| length == 14)
    };
    assert!(std::iter::repeat_with(is_heard).take(80).any(|heard| heard), "the request");
    assert!(network.host.counters("eth2").unwrap().rx_frames > 0);
}

#[test]
fn tbf_limits_what_a_device_sends() {
    let (a, b) = pair();
    let megabit = 1_000_000;
    a.tbf("v0", 40 * megabit, 16_384, 65_536).unwrap();
    let listener = b.run(|| TcpListener::bind("10.0.0.2:9")).unwrap();
    let address = listener.local_addr().unwrap();
    let mut sender = a.run(|| TcpStream::connect_timeout(&address, WAIT)).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let bytes = 2_000_000_u64; // 16 Mbit: 0.4 s at this rate
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || sender.write_all(&vec![0; 2_000_000]).unwrap());
        let received = std::io::copy(&mut receiver, &mut std::io::sink()).unwrap();
        assert_eq!(received, bytes);
    });
    let rate = (bytes * 8) as f64 / started.elapsed().as_secs_f64();
    assert!(rate < 44e6, "{rate:.0} bit/s went through a limit of 40 Mbit/s");
    assert!(rate > 10e6, "only {rate:.0} bit/s of 40 Mbit/s");
}

#[test]
fn without_tx_checksum_offload_the_receiver_drops_a_wrong_checksum() {
    let (a, b) = pair();
    let server = bound(&b, "10.0.0.2:4000".parse().unwrap());
    let raw = a.run(PacketSocket::new);
    let index = a.index("v0").unwrap();
    let mut buffer = [0; 64];
    for (offload, expected) in [(true, &b"wrong"[..]), (false, &b"right"[..])] {
        a.tx_checksum("v0", offload).unwrap();
        raw.send(index, &udp_frame(b"wrong", 0x1234));
        raw.send(index, &udp_frame(b"right", 0));
        let (length, _) = server.recv_from(&mut buffer).expect("one of the two");
        assert_eq!(&buffer[..length], expected, "tx checksum offload {offload}");
        if offload {
            server.recv_from(&mut buffer).expect("the other");
        }
    }
}

/// Sends frames with a vnet header in front: PACKET_VNET_HDR.
struct PacketSocket(OwnedFd);

impl PacketSocket {
    fn new() -> PacketSocket {
        // SAFETY: socket and setsockopt with a live int; the descriptor is ours alone.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            let on: libc::c_int = 1;
            let result = libc::setsockopt(
                fd,
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                4,
            );
            assert_eq!(result, 0);
            OwnedFd::from_raw_fd(fd)
        };
        PacketSocket(socket)
    }

    fn send(&self, index: u32, frame: &[u8]) {
        // SAFETY: all zeros is a valid sockaddr_ll; address and frame live through the call.
        let sent = unsafe {
            let mut to: libc::sockaddr_ll = std::mem::zeroed();
            to.sll_family = libc::AF_PACKET as u16;
            to.sll_ifindex = index as i32;
            let length = size_of::<libc::sockaddr_ll>() as u32;
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                length,
            )
        };
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
    }
}

/// vnet header (checksum to be computed from byte 34, stored 6 on), Ethernet, IPv4, UDP; the partial sum is
/// off by `error`.
fn udp_frame(payload: &[u8], error: u16) -> Vec<u8> {
    let udp_length = 8 + payload.len() as u16;
    let mut frame = vec![1, 0, 0, 0, 0, 0, 34, 0, 6, 0];
    frame.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    let mut ip = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&(20 + udp_length).to_be_bytes());
    let sum = !folded(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend(udp_length.to_be_bytes());
    let partial = folded(&pseudo).wrapping_add(error);
    frame.extend([0x0f, 0xa1, 0x0f, 0xa0]); // 4001 → 4000
    frame.extend(udp_length.to_be_bytes());
    frame.extend(partial.to_be_bytes());
    frame.extend(payload);
    frame
}

fn folded(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn nothing_is_left_of_a_killed_demo() {
    leaves_nothing(libc::SIGKILL);
}

#[test]
fn nothing_is_left_of_a_demo_after_ctrl_c() {
    leaves_nothing(libc::SIGINT);
}

/// Starts the demo, which enters a world of its own, sends it `signal` while its traffic runs, and looks for
/// its processes, networks and files.
fn leaves_nothing(signal: libc::c_int) {
    let before = files();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_vipa"))
        .arg("demo")
        .stdout(Stdio::piped())
        .spawn()
        .expect("vipa demo");
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let is_running = |line: std::io::Result<String>| line.unwrap().contains("half of what");
    assert!(lines.by_ref().any(is_running), "the demo ended before its traffic ran");
    let processes = descendants(demo.id());
    let networks = networks_of(demo.id());
    assert!(networks.len() >= 4, "client, router, host and cables, found {networks:?}");
    // SAFETY: takes numbers alone; the process is our child and not yet waited for.
    assert_eq!(unsafe { libc::kill(demo.id() as i32, signal) }, 0);
    demo.wait().unwrap();
    let deadline = Instant::now() + WAIT;
    loop {
        let alive: Vec<_> =
            processes.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
        let in_use = networks_in_use();
        let held: Vec<_> = networks.iter().filter(|network| in_use.contains(network)).collect();
        if alive.is_empty() && held.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "processes {alive:?} and networks {held:?} are left");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(files(), before);
}

/// Children, their children and so on.
fn descendants(of: u32) -> Vec<u32> {
    let mut found: Vec<u32> = Vec::new();
    let mut parents = vec![of];
    while let Some(parent) = parents.pop() {
        for task in std::fs::read_dir(format!("/proc/{parent}/task")).unwrap().flatten() {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = text.split_whitespace().map(|pid| pid.parse::<u32>().unwrap());
            parents.extend(children.clone());
            found.extend(children);
        }
    }
    found
}

/// Networks that a process holds open.
fn networks_of(process: u32) -> Vec<u64> {
    let mut inodes = Vec::new();
    for file in std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten() {
        let is_network = std::fs::read_link(file.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("net:["));
        if is_network {
            inodes.extend(std::fs::metadata(file.path()).map(|m| m.ino()));
        }
    }
    inodes
}

/// What lies where a demo might leave something.
fn files() -> Vec<String> {
    let directories = ["/run", "/run/vipa", "/run/netns"].into_iter();
    let names = directories.filter_map(|d| std::fs::read_dir(d).ok()).flatten().flatten();
    let mut names: Vec<String> = names.map(|e| e.path().display().to_string()).collect();
    names.sort();
    names
}

/// Networks that some process is in or holds open.
fn networks_in_use() -> Vec<u64> {
    let mut inodes = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
        inodes.extend(networks_of(pid));
        for task in std::fs::read_dir(process.path().join("task")).into_iter().flatten().flatten() {
            inodes.extend(std::fs::metadata(task.path().join("ns/net")).map(|m| m.ino()));
        }
    }
    inodes
}
