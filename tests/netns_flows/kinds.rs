//! Kinds of packets beyond the common ones, under a rule that gives them the second VIPA, between real kernels:
//! fragments, ICMP errors, protocols without ports, paths with a smaller MTU (B5).

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use pnet::packet::ip::IpNextHeaderProtocol;
use pnet::transport::TransportChannelType::Layer4;
use pnet::transport::TransportProtocol::{Ipv4, Ipv6};
use pnet::transport::{TransportReceiver, TransportSender, transport_channel};
use vipa::lab::Namespace;
use vipa::lab::topology::{client_address, vipas};
use vipa::wire::ip::Family;

use crate::fixture::{Bench, PATIENCE, Setup, unbound, wait_until};

const PORT: u16 = 7300;
const AGAIN: Duration = Duration::from_millis(250);
/// Three fragments on an Ethernet.
const LARGE: usize = 4000;

/// A UDP port of the client that says everything back; the address by which it was asked stands in front.
fn repeat_datagrams(namespace: &Namespace) {
    let any = SocketAddr::new(Family::V6.unspecified(), PORT);
    let socket = namespace.run(|| UdpSocket::bind(any)).expect("a free port");
    thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let asked_by = from.ip().to_canonical().to_string();
            let answer = [asked_by.as_bytes(), b"\n", &buffer[..length]].concat();
            let _ = socket.send_to(&answer, from);
        }
    });
}

/// Sends a datagram of `size` bytes until it comes back whole; returns by whom it came, as the client saw it.
fn exchange(socket: &UdpSocket, to: SocketAddr, size: usize) -> IpAddr {
    socket.set_read_timeout(Some(AGAIN)).expect("not zero");
    let said: Vec<u8> = (0..size).map(|at| ((at * 31) >> 3) as u8).collect();
    let deadline = Instant::now() + PATIENCE;
    let mut answer = vec![0; 70_000];
    while Instant::now() < deadline {
        match socket.send_to(&said, to) {
            // What the path takes is being found out.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => continue,
            outcome => outcome.unwrap_or_else(|e| panic!("{size} bytes to {to}: {e}")),
        };
        let Ok((length, from)) = socket.recv_from(&mut answer) else { continue };
        assert_eq!(from, to, "the answer comes from whom was asked");
        let line = answer.iter().position(|byte| *byte == b'\n').expect("a line");
        assert_eq!(&answer[line + 1..length], &said[..], "other bytes came back");
        let by = std::str::from_utf8(&answer[..line]).expect("an address");
        return by.parse().expect("an address");
    }
    panic!("{size} bytes to {to} never came back");
}

fn fragments_go_both_ways(workers: u8) {
    let bench = Bench::start(&Setup::new(3).workers(workers).second_vipa(""));
    let (host, client) = (&bench.network.host, &bench.network.client);
    repeat_datagrams(client);
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        for family in Family::BOTH {
            let to = SocketAddr::new(client_address(family), PORT);
            let heard = bench.nics("received", "frames");
            for _ in 0..8 {
                let socket = host.run(|| UdpSocket::bind(unbound(family))).expect("a socket");
                assert_eq!(exchange(&socket, to, LARGE), vipas(family)[1]);
            }
            let fragments = bench.nics("received", "frames") - heard;
            assert!(fragments >= 8 * 3, "{fragments}: replies come by the forwarder, in fragments");
        }
    }
}

#[test]
fn datagrams_in_fragments_go_both_ways_under_a_rule() {
    fragments_go_both_ways(1);
}

#[test]
fn datagrams_in_fragments_go_both_ways_whichever_of_four_workers_meets_them() {
    fragments_go_both_ways(4);
}

#[test]
fn the_socket_of_a_rewritten_flow_hears_that_a_port_is_closed() {
    for workers in [1, 2] {
        let bench = Bench::start(&Setup::new(2).workers(workers).second_vipa(""));
        for is_offloaded in [true, false] {
            bench.network.tx_checksum(is_offloaded).expect("ethtool");
            for family in Family::BOTH {
                let socket = bench.network.host.run(|| UdpSocket::bind(unbound(family)));
                let socket = socket.expect("a socket");
                socket.set_read_timeout(Some(AGAIN)).expect("not zero");
                let closed = SocketAddr::new(client_address(family), PORT);
                bench.network.host.run(|| socket.connect(closed)).expect("a route");
                let heard = bench.nics("received", "frames");
                wait_until("the socket hears of it", || {
                    let _ = socket.send(b"anybody?");
                    let error = socket.recv(&mut [0; 8]).expect_err("nobody answers");
                    error.kind() == io::ErrorKind::ConnectionRefused
                });
                assert!(bench.nics("received", "frames") > heard, "by way of the forwarder");
            }
        }
    }
}

#[test]
fn a_path_with_a_smaller_mtu_is_found_out_by_a_rewritten_flow() {
    let bench = Bench::start(&Setup::new(2).second_vipa(""));
    repeat_datagrams(&bench.network.client);
    bench.network.router.set_mtu("c0", 1300).expect("it takes it");
    bench.network.client.set_mtu("c0", 1300).expect("it takes it");
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        for family in Family::BOTH {
            let to = SocketAddr::new(client_address(family), PORT);
            let socket = bench.network.host.run(|| UdpSocket::bind(unbound(family)));
            assert_eq!(exchange(&socket.expect("a socket"), to, 1400), vipas(family)[1]);
        }
    }
}

type Raw = (TransportSender, TransportReceiver);

/// A raw socket of a protocol that no kernel here knows.
fn raw(namespace: &Namespace, family: Family, protocol: u8) -> Raw {
    let protocol = IpNextHeaderProtocol(protocol);
    let kind = match family {
        Family::V4 => Layer4(Ipv4(protocol)),
        Family::V6 => Layer4(Ipv6(protocol)),
    };
    namespace.run(|| transport_channel(4096, kind)).expect("a raw socket (needs root)")
}

/// Its next packet of those that end with `content`, and by whom it was sent.
fn receive(
    socket: &mut TransportReceiver,
    family: Family,
    content: &[u8],
    until: Instant,
) -> Option<IpAddr> {
    use pnet::packet::Packet;
    let mut packets = pnet::transport::udp_packet_iter(socket);
    let _ = family;
    while Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now());
        if let Ok(Some((packet, from))) = packets.next_with_timeout(left)
            && packet.packet().ends_with(content)
        {
            return Some(from);
        }
    }
    None
}

/// SCTP with ports 5000 and 7000 and an INIT; whatever CRC, nobody here looks at it.
const SCTP_INIT: [u8; 16] = [0x13, 0x88, 0x1b, 0x58, 0, 0, 0, 1, 9, 9, 9, 9, 1, 0, 0, 4];
const SCTP_INIT_ACK: [u8; 16] = [0x1b, 0x58, 0x13, 0x88, 0, 0, 0, 1, 8, 8, 8, 8, 2, 0, 0, 4];

#[test]
fn protocols_without_ports_to_choose_go_both_ways_and_the_kernel_does_not_answer_for_them() {
    let bench = Bench::start(&Setup::new(3).second_vipa(""));
    let (host, client) = (&bench.network.host, &bench.network.client);
    let cases: [(u8, &[u8], &[u8]); 2] =
        [(253, b"question", b"answer!!"), (132, &SCTP_INIT, &SCTP_INIT_ACK)];
    for is_offloaded in [true, false] {
        bench.network.tx_checksum(is_offloaded).expect("ethtool");
        for family in Family::BOTH {
            for (protocol, question, answer) in cases {
                let [first, second] = vipas(family);
                let (mut to_client, mut at_host) = raw(host, family, protocol);
                let (mut to_host, mut at_client) = raw(client, family, protocol);
                let remote = client_address(family);
                let mut is_answered = false;
                let deadline = Instant::now() + PATIENCE;
                while !is_answered && Instant::now() < deadline {
                    let packet = pnet::packet::udp::UdpPacket::new(question).expect("eight bytes");
                    to_client.send_to(packet, remote).expect("it is sent");
                    let again = Instant::now() + AGAIN;
                    let Some(from) = receive(&mut at_client, family, question, again) else {
                        continue;
                    };
                    assert_eq!(from, second, "protocol {protocol}");
                    let packet = pnet::packet::udp::UdpPacket::new(answer).expect("eight bytes");
                    to_host.send_to(packet, from).expect("it is sent");
                    let again = Instant::now() + AGAIN;
                    is_answered = receive(&mut at_host, family, answer, again) == Some(remote);
                }
                assert!(is_answered, "protocol {protocol} from {first}");
            }
        }
    }
    // What the kernel gets of replies it would answer with protocol-unreachable: the set has to hold them.
    for (set, family) in [("replies4", Family::V4), ("replies6", Family::V6)] {
        let listing = bench.run(host, "nft", &["list", "set", "inet", "vipa-vipa0", set]);
        let second = vipas(family)[1].to_string();
        let count = listing.matches(&second).count();
        assert_eq!(count, 2, "protocol 253 and SCTP: {listing}");
    }
}
