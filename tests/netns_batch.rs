//! Many frames with one system call, through the packet sockets of two NICs on one cable. Needs root.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use vipa::device::Device;
use vipa::device::ReceiveError;
use vipa::device::packet_socket::{Hearing, NicPort};
use vipa::forward::claims::{Claim, Claims};
use vipa::forward::frame::{Frame, Ingress};
use vipa::forward::view::NicId;
use vipa::lab::{Namespace, veth};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::ip;
use vipa::wire::offload::{Csum, Ecn, Gso, GsoKind, Offload};

const VIPA: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const VIPA_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10);

/// A port that hears what is sent to the VIPA.
fn port(place: &Namespace, device: &str) -> (NicPort, MacAddr) {
    let claim = Claim { address: IpAddr::V4(VIPA), protocol: ip::UDP, ports: (1, 65_535) };
    let tcp = Claim { protocol: ip::TCP, ..claim.clone() };
    let six = Claim { address: IpAddr::V6(VIPA_V6), ..claim.clone() };
    let claims = Claims { services: vec![claim, tcp, six], ..Claims::default() };
    let hearing = Hearing { claims, workers: 1, group: 0 };
    let (index, mac) = (place.index(device).unwrap(), place.mac(device).unwrap());
    (place.run(|| NicPort::open(NicId(3), index, mac, &hearing, Vec::new())).unwrap(), mac)
}

fn udp(number: u16, length: usize) -> Frame {
    let mut packet = Vec::new();
    let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 1], VIPA.octets(), 64);
    builder.udp(1000, number).write(&mut packet, &vec![number as u8; length]).unwrap();
    Frame::holding(&packet, Offload::default(), Ingress::Tun)
}

/// 20,000 bytes to be cut into segments by whoever needs that.
fn segments() -> Frame {
    let mut packet = Vec::new();
    let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 1], VIPA.octets(), 64);
    builder.tcp(1000, 2000, 1, 65_000).write(&mut packet, &[7; 20_000]).unwrap();
    let csum = Csum::Partial { start: 20, offset: 16 };
    let gso = Some(Gso::new(GsoKind::Tcp4, 1460));
    Frame::holding(&packet, Offload { csum, gso, ..Offload::default() }, Ingress::Tun)
}

/// Sends as the worker does: together what goes together.
fn send(port: &mut NicPort, to: MacAddr, frames: &mut [Frame]) -> usize {
    let (mut rest, mut alone) = (frames, 0);
    while !rest.is_empty() {
        let (sent, tried) = port.send_some(rest, &vec![to; rest.len()]);
        let done = tried.max(1);
        for frame in &mut rest[sent..done] {
            port.send(frame, to).unwrap();
            alone += 1;
        }
        rest = &mut rest[done..];
    }
    alone
}

/// So many packets, as they come, and how many calls it took.
fn receive(port: &mut NicPort, wanted: usize) -> (Vec<Vec<u8>>, usize) {
    let mut frames: Vec<Frame> = (0..64).map(|_| Frame::new()).collect();
    let (mut packets, mut calls) = (Vec::new(), 0);
    let deadline = Instant::now() + Duration::from_secs(5);
    while packets.len() < wanted && Instant::now() < deadline {
        let mut refuse = |error| panic!("refused: {error}");
        match port.receive_some(&mut frames, &mut refuse) {
            Ok(count) => {
                calls += 1;
                for frame in &frames[..count] {
                    assert_eq!(frame.ingress, Ingress::Nic(NicId(3)));
                    packets.push(frame.packet().to_vec());
                }
            }
            Err(ReceiveError::Empty) => {}
            Err(error) => panic!("{error}"),
        }
    }
    (packets, calls)
}

#[test]
fn small_frames_and_super_packets_arrive_whole_and_in_order_by_fewer_calls_than_frames() {
    let (near, far) = (Namespace::new("near").unwrap(), Namespace::new("far").unwrap());
    veth((&near, "eth1"), (&far, "eth1")).unwrap();
    let (mut sender, _) = port(&near, "eth1");
    let (mut receiver, to) = port(&far, "eth1");
    // Longer than an Ethernet frame's least: no padding behind.
    let mut frames: Vec<Frame> = (1..=200).map(|n| udp(n, 40 + usize::from(n))).collect();
    frames.insert(130, segments());
    let expected: Vec<Vec<u8>> = frames.iter().map(|frame| frame.packet().to_vec()).collect();
    let alone = send(&mut sender, to, &mut frames);
    assert_eq!(alone, 1, "the super-packet");
    let (packets, calls) = receive(&mut receiver, expected.len());
    assert_eq!(packets.len(), expected.len());
    assert!(packets == expected, "in order, each byte");
    assert!(calls < 40, "{calls} calls");
}

/// A card that would give CWR to each segment leaves the cutting to the kernel, if it is told of it.
#[test]
fn cwr_stays_the_first_segments_alone_whoever_cuts() {
    let (near, far) = (Namespace::new("near").unwrap(), Namespace::new("far").unwrap());
    veth((&near, "eth1"), (&far, "eth1")).unwrap();
    let (mut sender, _) = port(&near, "eth1");
    let (mut receiver, to) = port(&far, "eth1");
    let sent = || {
        let Frame { offload, .. } = segments();
        let mut packet = segments().packet().to_vec();
        packet[20 + 13] |= 0x80;
        let gso = offload.gso.map(|gso| Gso { ecn: Ecn::First, ..gso });
        Frame::holding(&packet, Offload { gso, ..offload }, Ingress::Tun)
    };
    sender.send(&mut sent(), to).unwrap();
    let mut frame = Frame::new();
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Err(error) = receiver.receive(&mut frame) {
        assert!(matches!(error, ReceiveError::Empty), "{error}");
        assert!(Instant::now() < deadline, "it comes");
    }
    assert_eq!(frame.offload.gso, sent().offload.gso);
    let off = ["-K", "eth1", "tx-tcp-ecn-segmentation", "off"];
    assert!(near.command("ethtool").args(off).status().unwrap().success());
    sender.send(&mut sent(), to).unwrap();
    let (packets, _) = receive(&mut receiver, 14);
    let marked: Vec<bool> = packets.iter().map(|packet| packet[20 + 13] & 0x80 != 0).collect();
    assert_eq!(marked, [[true].as_slice(), &[false; 13]].concat());
}

#[test]
fn a_frame_that_the_link_does_not_take_is_the_only_one_that_is_missing() {
    let (near, far) = (Namespace::new("near").unwrap(), Namespace::new("far").unwrap());
    veth((&near, "eth1"), (&far, "eth1")).unwrap();
    let (mut sender, _) = port(&near, "eth1");
    let (mut receiver, to) = port(&far, "eth1");
    let mut frames: Vec<Frame> = (1..=20).map(|n| udp(n, 40)).collect();
    let mut expected: Vec<Vec<u8>> = frames.iter().map(|f| f.packet().to_vec()).collect();
    expected.remove(12);
    frames[12] = udp(13, 3000);
    let (sent, tried) = sender.send_some(&mut frames, &[to; 20]);
    assert_eq!((sent, tried), (12, 20));
    let alone = |frame: &mut Frame| sender.send(frame, to).map_err(|error| error.raw_os_error());
    let results: Vec<_> = frames[sent..].iter_mut().map(alone).collect();
    assert_eq!(results[0], Err(Some(libc::EMSGSIZE)));
    assert!(results[1..].iter().all(Result::is_ok), "{results:?}");
    assert!(receive(&mut receiver, expected.len()).0 == expected, "in order, each byte");
}

#[test]
fn what_comes_by_one_family_does_not_keep_the_other_from_being_heard() {
    let (near, far) = (Namespace::new("near").unwrap(), Namespace::new("far").unwrap());
    veth((&near, "eth1"), (&far, "eth1")).unwrap();
    let (mut sender, _) = port(&near, "eth1");
    let (mut receiver, to) = port(&far, "eth1");
    let mut frames: Vec<Frame> = (1..=400).map(|n| udp(n, 40)).collect();
    let mut six = Vec::new();
    let builder = etherparse::PacketBuilder::ipv6([1; 16], VIPA_V6.octets(), 64);
    builder.udp(1000, 2000).write(&mut six, &[7; 40]).unwrap();
    frames.push(Frame::holding(&six, Offload::default(), Ingress::Tun));
    assert_eq!(send(&mut sender, to, &mut frames), 0);
    let (packets, _) = receive(&mut receiver, 401);
    let place = packets.iter().position(|packet| *packet == six).expect("it is heard");
    assert!(place < 200, "behind {place} of 400");
}

#[test]
fn where_the_device_is_down_nothing_is_said_to_be_sent() {
    let (near, far) = (Namespace::new("near").unwrap(), Namespace::new("far").unwrap());
    veth((&near, "eth1"), (&far, "eth1")).unwrap();
    let (mut sender, to) = port(&near, "eth1");
    near.link_down("eth1").unwrap();
    let mut frames: Vec<Frame> = (1..=3).map(|n| udp(n, 40)).collect();
    assert_eq!(sender.send_some(&mut frames, &[to; 3]), (0, 3));
    let error = sender.send(&mut frames[0], to).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENETDOWN));
}
