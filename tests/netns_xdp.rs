//! XDP on one end of a cable, in the driver's hook and the kernel's: what it hands over, and what it leaves to the packet sockets.
//! Needs root.

#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use vipa::device::packet_socket::{Hearing, NicPort};
use vipa::device::xdp::{Attachment, Card, Queue, is_taken};
use vipa::device::{Device, ReceiveError};
use vipa::forward::claims::{Claim, Claims};
use vipa::forward::frame::{Frame, Ingress};
use vipa::forward::view::{NicId, XdpHook};
use vipa::lab::{Namespace, veth};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::ip;
use vipa::wire::offload::{Csum, Offload};

const HOOKS: [XdpHook; 2] = [XdpHook::Native, XdpHook::Generic];
const VIPA: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const VIPA_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PORT: u16 = 2000;

/// UDP and TCP of one port, of both families.
fn claims() -> Claims {
    let claim = |address, protocol| Claim { address, protocol, ports: (PORT, PORT) };
    let services = [IpAddr::V4(VIPA), IpAddr::V6(VIPA_V6)]
        .into_iter()
        .flat_map(|address| [claim(address, ip::UDP), claim(address, ip::TCP)])
        .collect();
    Claims { services, ..Claims::default() }
}

/// Two ends of a cable, the near one to send by.
struct Cable {
    far: Namespace,
    _near: Namespace,
    sender: NicPort,
    mac: MacAddr,
    card: Card,
}

impl Cable {
    fn new() -> Cable {
        let (near, far) = (Namespace::new("near").unwrap(), Namespace::new("far").unwrap());
        veth((&near, "eth1"), (&far, "eth1")).unwrap();
        let sender = open(&near, &Claims::default(), &[]);
        let (mac, ifindex) = (far.mac("eth1").unwrap(), far.index("eth1").unwrap());
        Cable { far, _near: near, sender, mac, card: Card { ifindex, mac, mtu: 1500 } }
    }

    fn attach(&self) -> Attachment {
        self.far.run(|| Attachment::new(self.card.ifindex)).unwrap()
    }

    /// XDP at work there, and a port that has its frames.
    fn takes(&self, hook: XdpHook) -> (Attachment, NicPort) {
        let mut attachment = self.attach();
        let card = self.card;
        assert!(self.far.run(|| attachment.take(card, hook, &claims())).unwrap());
        let port = open(&self.far, &claims(), attachment.queues());
        (attachment, port)
    }

    fn send(&mut self, packet: &[u8], offload: Offload) {
        self.sender.send(&mut Frame::holding(packet, offload, Ingress::Tun), self.mac).unwrap();
    }
}

fn open(place: &Namespace, claims: &Claims, queues: &[Queue]) -> NicPort {
    let hearing = Hearing { claims: claims.clone(), workers: 1, group: 0 };
    let (index, mac) = (place.index("eth1").unwrap(), place.mac("eth1").unwrap());
    place.run(|| NicPort::open(NicId(3), index, mac, &hearing, queues.to_vec())).unwrap()
}

/// So many frames as they come; fewer, if no more come for long.
fn receive(port: &mut NicPort, wanted: usize) -> Vec<Frame> {
    let mut frames: Vec<Frame> = (0..64).map(|_| Frame::new()).collect();
    let mut received = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(5);
    while received.len() < wanted && Instant::now() < deadline {
        match port.receive_some(&mut frames, &mut |error| panic!("refused: {error}")) {
            Ok(count) => {
                for frame in &frames[..count] {
                    assert_eq!(frame.ingress, Ingress::Nic(NicId(3)));
                    received.push(Frame::holding(frame.packet(), frame.offload, frame.ingress));
                }
            }
            Err(ReceiveError::Empty) => {}
            Err(error) => panic!("{error}"),
        }
    }
    received
}

fn packets(frames: &[Frame]) -> Vec<Vec<u8>> {
    frames.iter().map(|frame| frame.packet().to_vec()).collect()
}

fn udp(port: u16, length: usize, mark: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(NEIGHBOUR.octets(), VIPA.octets(), 64);
    builder.udp(1000, port).write(&mut packet, &vec![mark; length]).unwrap();
    packet
}

fn udp_v6(mark: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6([1; 16], VIPA_V6.octets(), 64);
    builder.udp(1000, PORT).write(&mut packet, &[mark; 40]).unwrap();
    packet
}

fn tcp(mark: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(NEIGHBOUR.octets(), VIPA.octets(), 64);
    builder.tcp(1000, PORT, 1, 65_000).write(&mut packet, &[mark; 40]).unwrap();
    packet
}

/// The first part of a datagram.
fn fragment() -> Vec<u8> {
    let mut packet = udp(PORT, 64, 9);
    packet[6] = 0x20;
    let sum = etherparse::Ipv4Header::from_slice(&packet).unwrap().0.calc_header_checksum();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn what_is_ours_alone_is_handed_over_before_the_kernel_and_all_else_is_as_ever() {
    for hook in HOOKS {
        let mut cable = Cable::new();
        cable.far.set_mtu("eth1", 3000).unwrap();
        cable._near.set_mtu("eth1", 3000).unwrap();
        let (attachment, mut port) = cable.takes(hook);
        // Hears all that the kernel gets to see of it.
        let mut kernel = open(&cable.far, &Claims { owned: vec![VIPA.into()], ..claims() }, &[]);
        // Datagrams may be several in one by the kernel's hook.
        let datagrams = [udp(PORT, 60, 1), udp_v6(2), udp(PORT, 1000, 4)];
        let (ours, mut kernels) = match hook {
            XdpHook::Native => ([vec![tcp(3)], datagrams.to_vec()].concat(), Vec::new()),
            XdpHook::Generic => (vec![tcp(3), tcp(8)], datagrams.to_vec()),
        };
        kernels.extend([udp(PORT, 2000, 5), fragment()]);
        let others = [udp(PORT + 1, 60, 6)];
        for packet in ours.iter().chain(&kernels).chain(&others).chain([&ours[0]]) {
            cable.send(packet, Offload::default());
        }
        let mut expected: Vec<_> = ours.iter().chain(&kernels).chain([&ours[0]]).cloned().collect();
        let mut received = packets(&receive(&mut port, expected.len()));
        received.sort();
        expected.sort();
        assert!(received == expected, "{hook:?}: each once, each byte");
        // Each came before the last one, which came.
        let mut passed = packets(&receive(&mut kernel, kernels.len()));
        passed.sort();
        kernels.sort();
        assert!(passed == kernels, "{hook:?}: past XDP");
        drop(attachment);
        cable.send(&ours[0], Offload::default());
        assert!(packets(&receive(&mut kernel, 1)) == ours[..1], "{hook:?}: it is gone");
    }
}

/// On a veth the neighbour leaves checksums to a device that there is none.
#[test]
fn a_checksum_that_was_left_to_the_device_is_known_as_that() {
    for hook in HOOKS {
        let mut cable = Cable::new();
        let (_attachment, mut port) = cable.takes(hook);
        let whole = match hook {
            XdpHook::Native => vec![tcp(1), udp(PORT, 60, 2), udp_v6(3)],
            XdpHook::Generic => vec![tcp(1), tcp(2), tcp(3)],
        };
        let partial = |packet: &[u8]| {
            let (start, protocol) =
                if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
            Csum::Partial { start, offset: if protocol == ip::TCP { 16 } else { 6 } }
        };
        for packet in &whole {
            cable.send(packet, Offload::default());
            // The kernel puts the pseudo-header's sum there, whatever it was, for who says that it is to be completed.
            let Csum::Partial { start, offset } = partial(packet) else { unreachable!() };
            let mut left = packet.clone();
            let at = usize::from(start + offset);
            let sum = pseudo_header(packet);
            left[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            let csum = Csum::Partial { start, offset };
            cable.send(&left, Offload { csum, ..Offload::default() });
        }
        let received = receive(&mut port, 6);
        for (pair, packet) in received.chunks(2).zip(&whole) {
            assert_eq!(pair[0].offload.csum, Csum::Complete, "{hook:?}");
            assert_eq!(pair[1].offload.csum, partial(packet), "{hook:?}");
        }
        assert_eq!(received.len(), 6);
    }
}

fn pseudo_header(packet: &[u8]) -> u16 {
    let ip = etherparse::PacketHeaders::from_ip_slice(packet).unwrap();
    let (source, destination): (IpAddr, IpAddr) = match ip.net.unwrap() {
        etherparse::NetHeaders::Ipv4(header, _) => {
            (header.source.into(), header.destination.into())
        }
        etherparse::NetHeaders::Ipv6(header, _) => {
            (header.source.into(), header.destination.into())
        }
        etherparse::NetHeaders::Arp(_) => unreachable!(),
    };
    let (start, protocol) = if packet[0] >> 4 == 4 { (20, packet[9]) } else { (40, packet[6]) };
    let length = (packet.len() - start) as u32;
    vipa::wire::checksum::Sum::pseudo_header(source, destination, protocol, length).fold()
}

#[test]
fn what_there_is_no_room_for_is_counted() {
    let mut cable = Cable::new();
    let (_attachment, mut port) = cable.takes(XdpHook::Native);
    assert_eq!(port.take_lost(), 0);
    const SENT: usize = 20_000;
    const ROOM: usize = 4096;
    let packet = udp(PORT, 20, 1);
    (0..SENT).for_each(|_| cable.send(&packet, Offload::default()));
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut lost = 0;
    while lost == 0 && Instant::now() < deadline {
        lost += port.take_lost() as usize;
    }
    let received = receive(&mut port, ROOM).len();
    lost += port.take_lost() as usize;
    assert!(received >= ROOM && lost > 0, "{received} received, {lost} lost");
    // The veth may have lost some before.
    assert!(received + lost <= SENT, "each counts once: {received} received, {lost} lost");
    cable.send(&packet, Offload::default());
    assert_eq!(receive(&mut port, 1).len(), 1, "there is room again");
}

#[test]
fn what_is_taken_and_where_can_change_while_frames_come() {
    let mut cable = Cable::new();
    let (mut attachment, mut port) = cable.takes(XdpHook::Native);
    let mut kernel = open(&cable.far, &claims(), &[]);
    let (card, far) = (cable.card, cable.far.clone());
    let mut take = |hook, claims: &Claims| far.run(|| attachment.take(card, hook, claims)).unwrap();
    assert!(take(XdpHook::Generic, &claims()));
    cable.send(&tcp(1), Offload::default());
    assert_eq!(receive(&mut port, 1).len(), 1);
    let one = Claims { services: claims().services[3..].to_vec(), ..Claims::default() };
    assert!(take(XdpHook::Generic, &one));
    cable.send(&tcp(2), Offload::default());
    assert!(packets(&receive(&mut kernel, 1)) == [tcp(2)], "no longer taken");
    assert!(!take(XdpHook::Generic, &Claims::default()), "nothing is ours");
    cable.send(&tcp(3), Offload::default());
    assert!(packets(&receive(&mut kernel, 1)) == [tcp(3)]);
}

#[test]
fn the_kernel_takes_programs_of_many_addresses_and_more_are_told_to_be_too_many() {
    let cable = Cable::new();
    let mut attachment = cable.attach();
    let mut is_taken = |many: u32| {
        let claim = |n: u32| {
            let ports = (PORT, PORT + n as u16 % 7);
            let v6 = Ipv6Addr::from(u128::from(VIPA_V6) + u128::from(n));
            let v4 = Ipv4Addr::from(u32::from(VIPA) + n);
            [IpAddr::V4(v4), IpAddr::V6(v6)].map(|address| Claim {
                address,
                protocol: ip::TCP,
                ports,
            })
        };
        let claims = Claims { services: (0..many).flat_map(claim).collect(), ..Claims::default() };
        cable.far.run(|| attachment.take(cable.card, XdpHook::Generic, &claims)).unwrap()
    };
    assert!([1, 10, 100].into_iter().all(&mut is_taken));
    // Somewhere here one family, and then the other, comes to be too long.
    let _ = (100..400).step_by(15).map(&mut is_taken).count();
    assert!(!is_taken(1000));
}

#[test]
fn a_card_that_another_program_has_is_refused_until_it_is_free() {
    let cable = Cable::new();
    let (index, far) = (cable.card.ifindex, cable.far.clone());
    let open = || far.run(|| Attachment::new(index));
    let first = open().unwrap();
    assert!(is_taken(&open().unwrap_err()));
    drop(first);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut attachment = loop {
        match open() {
            // The kernel frees a queue a little after its socket.
            Err(error) if is_taken(&error) && Instant::now() < deadline => {}
            opened => break opened.unwrap(),
        }
    };
    assert!(far.run(|| attachment.take(cable.card, XdpHook::Native, &claims())).unwrap());
    let gone = far.run(|| Attachment::new(9999)).map(drop);
    assert_eq!(gone.unwrap_err().raw_os_error(), Some(libc::ENODEV));
}
