//! Every kind of packet (B5): fragments, protocols without ports, ICMP errors, packets that are too big, time to
//! live, and what comes from outside and cannot be.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use vipa::forward::frame::{Frame, Ingress};
use vipa::forward::pipeline::{State, process_batch};
use vipa::forward::source::{Rule, Target};
use vipa::forward::verdict::{DropReason, Verdict, Wait};
use vipa::forward::view::{NetView, NicId, WorkerId};
use vipa::wire::checksum::Sum;
use vipa::wire::offload::{Csum, Gso, GsoKind, Offload};
use vipa::wire::packet::{Headers, full_checksum};

use crate::fixture::*;
use crate::packets::fragments;

pub(crate) const FROM_NIC: Ingress = Ingress::Nic(NicId(1));
const VIPA6: u16 = 0x10;
const SECOND6: u16 = 0x11;
const RULED6: u16 = 0x99;
const ROUTER: [u8; 4] = [192, 0, 2, 254];

/// An IPv6 address of these tests.
pub(crate) fn six(last: u16) -> [u8; 16] {
    let IpAddr::V6(address) = IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]) else { panic!() };
    address.octets()
}

/// [`view`] with one rule: all that goes to `RULED` or `RULED6` carries the second VIPA.
pub(crate) fn ruled() -> NetView {
    let mut view = view([true; 3]);
    let rule = |destination: &str, to: IpAddr| Rule {
        protocol: None,
        destination: Some(destination.parse().expect("a prefix")),
        target: Target::Vipa(to),
        is_for_forwarder: true,
        ..Rule::default()
    };
    view.source.rules =
        vec![rule("10.20.0.0/16", SECOND.into()), rule("2001:db8::99/128", six(SECOND6).into())];
    view.source.vipas.extend([IpAddr::from(six(VIPA6)), six(SECOND6).into()]);
    view.source.default_v6 = Some(six(VIPA6).into());
    view
}

pub(crate) fn ip(
    v6: bool,
    source: usize,
    destination: usize,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let fours = [VIPA, SECOND, RULED, ROUTER];
    let sixes = [VIPA6, SECOND6, RULED6, 0xfe].map(six);
    let headers = if v6 {
        etherparse::IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                source: sixes[source],
                destination: sixes[destination],
                hop_limit: 64,
                ..Default::default()
            },
            Default::default(),
        )
    } else {
        let header = etherparse::Ipv4Header::new(
            0,
            64,
            etherparse::IpNumber(0),
            fours[source],
            fours[destination],
        );
        etherparse::IpHeaders::Ipv4(header.expect("a header"), Default::default())
    };
    PacketBuilder::ip(headers)
}

/// Positions in the lists of [`ip`].
pub(crate) const DEFAULT_AT: usize = 0;
pub(crate) const SECOND_AT: usize = 1;
pub(crate) const RULED_AT: usize = 2;
pub(crate) const ROUTER_AT: usize = 3;

pub(crate) fn udp(
    v6: bool,
    (from, source): (usize, u16),
    (to, destination): (usize, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(v6, from, to).udp(source, destination).write(&mut bytes, payload).expect("a packet");
    bytes
}

/// A packet of any protocol, with `payload` behind the IP header.
fn raw(v6: bool, from: usize, to: usize, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ip(v6, from, to).write(&mut bytes, etherparse::IpNumber(protocol), payload).expect("a packet");
    bytes
}

/// An ICMP error from a router about `packet`, to `to`, with eight bytes of layer 4.
pub(crate) fn unreachable(v6: bool, from: usize, to: usize, packet: &[u8]) -> Vec<u8> {
    let headers = Headers::parse(packet).expect("headers");
    let quote = &packet[..headers.layer4_start + 8];
    let mut bytes = Vec::new();
    let ip = ip(v6, from, to);
    if v6 {
        ip.icmpv6_raw(1, 4, [0; 4]).write(&mut bytes, quote)
    } else {
        ip.icmpv4_raw(3, 3, [0; 4]).write(&mut bytes, quote)
    }
    .expect("an error");
    bytes
}

/// Puts fragments in order together again.
pub(crate) fn joined(parts: &[Vec<u8>]) -> Vec<u8> {
    let v6 = parts[0][0] >> 4 == 6;
    let (start, skipped) = if v6 { (40, 48) } else { (20, 20) };
    let mut out = parts[0][..start].to_vec();
    parts.iter().for_each(|part| out.extend_from_slice(&part[skipped..]));
    let length = out.len();
    if v6 {
        out[6] = parts[0][40];
        out[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
    } else {
        out[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        out[6..8].fill(0);
        out[10..12].fill(0);
        let sum = Sum::default().bytes(&out[..20]).complement();
        out[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    out
}

pub(crate) fn assert_header_checksum(packet: &[u8]) {
    if packet[0] >> 4 == 4 {
        assert_eq!(Sum::default().bytes(&packet[..20]).complement(), 0, "IPv4 header checksum");
    }
}

pub(crate) fn source_of(frame: &Frame) -> IpAddr {
    assert_header_checksum(frame.packet());
    Headers::parse(frame.packet()).expect("headers").source
}

pub(crate) fn second(v6: bool) -> IpAddr {
    if v6 { six(SECOND6).into() } else { SECOND.into() }
}

pub(crate) fn default(v6: bool) -> IpAddr {
    if v6 { six(VIPA6).into() } else { VIPA.into() }
}

#[test]
fn fragments_of_a_rewritten_datagram_follow_the_first() {
    for v6 in [false, true] {
        let (mut state, view) = (state(16), ruled());
        let payload: Vec<u8> = (0..4000u32).map(|n| n as u8).collect();
        let whole = udp(v6, (DEFAULT_AT, 40000), (RULED_AT, 53), &payload);
        let sent: Vec<_> = fragments(&whole, 1448, 7)
            .iter()
            .map(|part| {
                let frame = run_held(part, &mut state, &view);
                assert!(matches!(frame.verdict, Verdict::Transmit { .. }), "{:?}", frame.verdict);
                assert_eq!(source_of(&frame), second(v6));
                frame
            })
            .collect();
        let nics: Vec<_> = sent.iter().map(|frame| frame.verdict).collect();
        assert!(nics.iter().all(|verdict| *verdict == nics[0]), "one way");
        let parts: Vec<_> = sent.iter().map(|frame| frame.packet().to_vec()).collect();
        let whole = joined(&parts);
        let headers = Headers::parse(&whole).expect("headers");
        let at = headers.checksum_at().expect("a checksum");
        let field = u16::from_be_bytes([whole[at], whole[at + 1]]);
        assert_eq!(full_checksum(&whole, &headers), Some(field));
        assert!(view.source.ports.contains(&headers.ports().0));

        // And back.
        let back = udp(v6, (RULED_AT, 53), (SECOND_AT, headers.ports().0), &payload);
        let parts: Vec<_> = fragments(&back, 1448, 9)
            .iter()
            .map(|part| {
                let frame = run(part, FROM_NIC, &mut state, &view);
                assert_eq!(frame.verdict, Verdict::Deliver);
                assert_header_checksum(frame.packet());
                frame.packet().to_vec()
            })
            .collect();
        assert_eq!(joined(&parts), {
            let mut wanted = udp(v6, (RULED_AT, 53), (DEFAULT_AT, 40000), &payload);
            // Identification and flags are of the fragments; joined() leaves the first.
            if !v6 {
                wanted[4..6].copy_from_slice(&9u16.to_be_bytes());
                wanted[6..8].fill(0);
                wanted[10..12].fill(0);
                let sum = Sum::default().bytes(&wanted[..20]).complement();
                wanted[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            wanted
        });
    }
}

#[test]
fn later_fragments_that_come_first_wait_for_the_first() {
    for v6 in [false, true] {
        let (mut state, view) = (state(16), ruled());
        let whole = udp(v6, (DEFAULT_AT, 40000), (RULED_AT, 53), &[7; 3000]);
        let parts = fragments(&whole, 1448, 7);
        for part in &parts[1..] {
            let frame = run(part, TUN, &mut state, &view);
            assert!(
                matches!(frame.verdict, Verdict::Wait(Wait::FirstFragment(_))),
                "{:?}",
                frame.verdict
            );
            assert_eq!(frame.packet(), part, "a frame that waits is untouched");
        }
        assert!(!state.fragments.take_news());
        run_held(&parts[0], &mut state, &view);
        assert!(state.fragments.take_news(), "those that wait are to be run again");
        for part in &parts[1..] {
            assert_eq!(source_of(&run(part, TUN, &mut state, &view)), second(v6));
        }
    }
}

#[test]
fn fragments_that_no_rule_can_change_wait_for_nothing() {
    let (mut state, view) = (state(16), ruled());
    let whole = udp(false, (DEFAULT_AT, 40000), (ROUTER_AT, 53), &[7; 3000]);
    for part in fragments(&whole, 1448, 7).iter().rev() {
        let frame = run(part, TUN, &mut state, &view);
        assert!(matches!(frame.verdict, Verdict::Transmit { .. }), "{:?}", frame.verdict);
        assert_eq!(frame.packet(), part);
    }
}

#[test]
fn fragments_from_outside_that_are_not_ours_are_the_kernels() {
    let (mut state, view) = (state(16), ruled());
    let whole = udp(false, (ROUTER_AT, 53), (SECOND_AT, 1234), &[7; 3000]);
    for part in fragments(&whole, 1448, 7) {
        assert_eq!(run(&part, FROM_NIC, &mut state, &view).verdict, Verdict::Kernel);
    }
    let stray = udp(false, (ROUTER_AT, 53), (SECOND_AT, 61000), &[7; 3000]);
    for part in fragments(&stray, 1448, 8) {
        let verdict = run(&part, FROM_NIC, &mut state, &view).verdict;
        assert_eq!(verdict, Verdict::Drop(DropReason::NoFlow));
    }
}

#[test]
fn with_several_workers_later_fragments_meet_at_one_that_learns_of_the_first() {
    let mut view = ruled();
    view.source.ports = (61000..=61100).collect();
    let workers = 4;
    let whole = udp(false, (DEFAULT_AT, 40000), (RULED_AT, 53), &[7; 3000]);
    for id in 0..20 {
        let mut states: Vec<State> =
            (0..workers).map(|n| State { worker: WorkerId(n), workers, ..state(16) }).collect();
        let parts = fragments(&whole, 1448, id);
        let homes: Vec<_> =
            states.iter_mut().map(|state| run(&parts[1], TUN, state, &view).verdict).collect();
        let home = homes
            .iter()
            .position(|verdict| matches!(verdict, Verdict::Wait(_)))
            .expect("one keeps them");
        for (at, verdict) in homes.iter().enumerate() {
            if at != home {
                assert_eq!(*verdict, Verdict::Punt(WorkerId(home as u8)));
            }
        }
        let mut owners = 0;
        let mut learned = Vec::new();
        for state in &mut states {
            let frame = run_held(&parts[0], state, &view);
            owners += usize::from(matches!(frame.verdict, Verdict::Transmit { .. }));
            learned.append(&mut state.learned);
        }
        assert_eq!(owners, 1);
        for (key, fate) in learned {
            assert_eq!(key.home(workers), WorkerId(home as u8));
            states[home].fragments.remember(key, fate, NOW);
        }
        assert_eq!(source_of(&run(&parts[1], TUN, &mut states[home], &view)), second(false));
    }
}

/// SCTP with ports 5000 and 7000; the CRC is only carried along.
fn sctp(first_chunk: u8, ports: [u16; 2]) -> Vec<u8> {
    let mut bytes = Vec::new();
    ports.iter().for_each(|port| bytes.extend(port.to_be_bytes()));
    bytes.extend([1, 2, 3, 4, 0xaa, 0xbb, 0xcc, 0xdd, first_chunk, 0, 0, 4]);
    bytes
}

#[test]
fn protocols_without_ports_to_choose_are_rewritten_by_address_alone_and_work_both_ways() {
    let gre = [0, 0, 8, 0, 1, 2, 3, 4];
    let cases = [
        ("SCTP", 132, sctp(1, [5000, 7000]), sctp(2, [7000, 5000])),
        ("ESP", 50, vec![9; 40], vec![8; 40]),
        ("GRE", 47, gre.to_vec(), gre.to_vec()),
        ("experimental", 253, vec![1], vec![2, 3]),
    ];
    for v6 in [false, true] {
        for (name, protocol, there, back) in &cases {
            let (mut state, view) = (state(16), ruled());
            let frame =
                run_held(&raw(v6, DEFAULT_AT, RULED_AT, *protocol, there), &mut state, &view);
            assert!(
                matches!(frame.verdict, Verdict::Transmit { .. }),
                "{name} {:?}",
                frame.verdict
            );
            let wanted = raw(v6, SECOND_AT, RULED_AT, *protocol, there);
            assert_eq!(frame.packet(), wanted, "{name}: nothing but the source changes");

            let reply = raw(v6, RULED_AT, SECOND_AT, *protocol, back);
            let frame = run(&reply, FROM_NIC, &mut state, &view);
            assert_eq!(frame.verdict, Verdict::Deliver, "{name}");
            assert_eq!(frame.packet(), raw(v6, RULED_AT, DEFAULT_AT, *protocol, back), "{name}");

            let other = raw(v6, ROUTER_AT, SECOND_AT, *protocol, back);
            assert_eq!(run(&other, FROM_NIC, &mut state, &view).verdict, Verdict::Kernel, "{name}");
        }
    }
}

#[test]
fn an_sctp_answer_keeps_the_address_it_was_asked_on() {
    let (mut state, view) = (state(16), ruled());
    let init_ack = raw(false, DEFAULT_AT, RULED_AT, 132, &sctp(2, [7000, 5000]));
    let frame = run(&init_ack, TUN, &mut state, &view);
    assert!(matches!(frame.verdict, Verdict::Transmit { .. }));
    assert_eq!(frame.packet(), init_ack);
}

#[test]
fn udp_lite_and_dccp_keep_their_ports_and_their_checksums_stay_right() {
    for v6 in [false, true] {
        for protocol in [136u8, 33] {
            let (mut state, view) = (state(16), ruled());
            // Source port, destination port, coverage or offset and type, checksum, then data.
            let mut there = vec![0x9c, 0x40, 0, 53, 0, 0, 0, 0];
            there.extend([0; 12]);
            there.extend(b"data");
            let mut packet = raw(v6, DEFAULT_AT, RULED_AT, protocol, &there);
            let sum = |packet: &[u8]| {
                let headers = Headers::parse(packet).expect("headers");
                let start = headers.layer4_start;
                let mut bytes = packet[start..].to_vec();
                bytes[6..8].fill(0);
                let length = bytes.len() as u32;
                Sum::pseudo_header(headers.source, headers.destination, protocol, length)
                    .bytes(&bytes)
                    .complement()
            };
            let at = if v6 { 46 } else { 26 };
            let field = sum(&packet).to_be_bytes();
            packet[at..at + 2].copy_from_slice(&field);
            let frame = run_held(&packet, &mut state, &view);
            assert_eq!(source_of(&frame), second(v6), "{protocol}");
            let field = u16::from_be_bytes([frame.packet()[at], frame.packet()[at + 1]]);
            assert_eq!(field, sum(frame.packet()), "{protocol}");
        }
    }
}

#[test]
fn a_second_flow_without_ports_between_the_same_addresses_is_not_mixed_up_with_the_first() {
    let (mut state, mut view) = (state(16), ruled());
    view.source.is_bound_forwarded = true;
    let first = raw(false, DEFAULT_AT, RULED_AT, 47, &[0; 8]);
    assert!(matches!(run_held(&first, &mut state, &view).verdict, Verdict::Transmit { .. }));
    // The same from a socket that is bound to a NIC's address.
    let mut second = first.clone();
    second[12..16].copy_from_slice(&[10, 1, 1, 2]);
    second[10..12].fill(0);
    let sum = Sum::default().bytes(&second[..20]).complement();
    second[10..12].copy_from_slice(&sum.to_be_bytes());
    let verdict = run_held(&second, &mut state, &view).verdict;
    assert_eq!(verdict, Verdict::Drop(DropReason::PortsExhausted));
}

#[test]
fn an_error_about_a_rewritten_flow_reaches_the_socket_with_its_own_addresses_and_ports() {
    for v6 in [false, true] {
        let (mut state, view) = (state(16), ruled());
        let packet = udp(v6, (DEFAULT_AT, 40000), (RULED_AT, 53), b"question");
        let sent = run_held(&packet, &mut state, &view).packet().to_vec();
        let error = unreachable(v6, ROUTER_AT, SECOND_AT, &sent);
        let frame = run(&error, FROM_NIC, &mut state, &view);
        assert_eq!(frame.verdict, Verdict::Deliver);
        let headers = assert_checksum(&frame);
        assert_header_checksum(frame.packet());
        assert_eq!(headers.destination, default(v6));
        let quote = &frame.packet()[headers.quote_start()..];
        assert_eq!(quote, &packet[..quote.len()], "it quotes what the socket sent");
    }
}

#[test]
fn an_error_that_this_host_sends_about_a_reply_names_what_the_other_end_knows() {
    for v6 in [false, true] {
        let (mut state, view) = (state(16), ruled());
        let out = udp(v6, (DEFAULT_AT, 40000), (RULED_AT, 53), b"question");
        let sent = run_held(&out, &mut state, &view).packet().to_vec();
        let port = Headers::parse(&sent).expect("headers").ports().0;
        let reply = udp(v6, (RULED_AT, 53), (SECOND_AT, port), b"late answer");
        let delivered = run(&reply, FROM_NIC, &mut state, &view).packet().to_vec();
        let error = unreachable(v6, DEFAULT_AT, RULED_AT, &delivered);
        let frame = run(&error, TUN, &mut state, &view);
        assert!(matches!(frame.verdict, Verdict::Transmit { .. }), "{:?}", frame.verdict);
        let headers = assert_checksum(&frame);
        assert_eq!(headers.source, second(v6));
        let quote = &frame.packet()[headers.quote_start()..];
        assert_eq!(quote, &reply[..quote.len()], "it quotes what the other end sent");
    }
}

#[test]
fn an_error_about_anything_else_is_the_kernels() {
    let (mut state, view) = (state(16), ruled());
    let sent = udp(false, (SECOND_AT, 1234), (RULED_AT, 53), b"question");
    let error = unreachable(false, ROUTER_AT, SECOND_AT, &sent);
    let frame = run(&error, FROM_NIC, &mut state, &view);
    assert_eq!(frame.verdict, Verdict::Kernel);
    assert_eq!(frame.packet(), error);
}

#[test]
fn an_error_that_no_worker_knows_is_handed_over_once_at_most() {
    const WORKERS: u8 = 3;
    let view = ruled();
    let mut handed_over = 0;
    for (port, last) in (1024..1034).zip(0..) {
        let sent = udp(false, (SECOND_AT, port), (RULED_AT, 53), b"question");
        let mut error = unreachable(false, ROUTER_AT, SECOND_AT, &sent);
        // From another router each time.
        error[15] = last;
        for first in 0..WORKERS {
            let on = |worker: u8| {
                let mut state = state(16);
                (state.worker, state.workers) = (WorkerId(worker), WORKERS);
                run(&error, FROM_NIC, &mut state, &view).verdict
            };
            match on(first) {
                Verdict::Punt(WorkerId(next)) => {
                    assert_eq!(on(next), Verdict::Kernel, "port {port}, from {first} to {next}");
                    handed_over += 1;
                }
                verdict => assert_eq!(verdict, Verdict::Kernel),
            }
        }
    }
    assert_eq!(handed_over, 20, "by two workers out of three");
}

fn gso_frame(packet: &[u8], gso: Option<Gso>) -> Frame {
    let headers = Headers::parse(packet).expect("headers");
    let offset = headers.checksum_at().expect("a checksum") - headers.layer4_start;
    let csum = Csum::Partial { start: headers.layer4_start as u16, offset: offset as u16 };
    Frame::holding(packet, Offload { csum, gso, ..Offload::default() }, TUN)
}

#[test]
fn what_is_too_big_for_its_nic_is_answered_with_the_mtu_that_fits() {
    for v6 in [false, true] {
        let (mut state, mut view) = (state(16), ruled());
        view.nics.iter_mut().for_each(|nic| nic.mtu = 1400);
        let packet = udp(v6, (DEFAULT_AT, 40000), (RULED_AT, 53), &[0; 1400]);
        let frame = run_held(&packet, &mut state, &view);
        assert_eq!(frame.verdict, Verdict::Answer);
        let headers = assert_checksum(&frame);
        assert_header_checksum(frame.packet());
        assert_eq!(headers.destination, default(v6));
        let mtu = if v6 { &frame.packet()[46..48] } else { &frame.packet()[26..28] };
        assert_eq!(mtu, 1400u16.to_be_bytes());
        let quote = &frame.packet()[headers.quote_start()..];
        assert_eq!(quote, &packet[..quote.len()], "it quotes what the socket sent");
        let fits = udp(v6, (DEFAULT_AT, 40000), (RULED_AT, 53), &[0; 1300]);
        assert!(matches!(run_held(&fits, &mut state, &view).verdict, Verdict::Transmit { .. }));
    }
}

#[test]
fn a_super_packet_is_too_big_if_its_segments_would_be() {
    let (mut state, mut view) = (state(16), ruled());
    view.nics.iter_mut().for_each(|nic| nic.mtu = 1400);
    let packet = tcp((VIPA, 40000), (OTHER, 80), true);
    let mut big = packet.clone();
    big.resize(20_000, 7);
    big[2..4].copy_from_slice(&20_000u16.to_be_bytes());
    for (size, fits) in [(1360, true), (1361, false)] {
        let gso = Some(Gso::new(GsoKind::Tcp4, size));
        let mut frames = [gso_frame(&big, gso)];
        process_batch(&mut frames, &mut state, sight(&view, &nothing()));
        let is_sent = matches!(frames[0].verdict, Verdict::Transmit { .. });
        assert_eq!((is_sent, frames[0].verdict == Verdict::Answer), (fits, !fits), "{size}");
    }
}

#[test]
fn errors_and_later_fragments_are_never_answered() {
    let (mut state, mut view) = (state(16), ruled());
    view.nics.iter_mut().for_each(|nic| nic.mtu = 600);
    let quoted = udp(false, (RULED_AT, 53), (DEFAULT_AT, 9), &[0; 900]);
    let mut error = Vec::new();
    ip(false, DEFAULT_AT, ROUTER_AT)
        .icmpv4_raw(3, 3, [0; 4])
        .write(&mut error, &quoted)
        .expect("an error");
    let verdict = run(&error, TUN, &mut state, &view).verdict;
    assert_eq!(verdict, Verdict::Drop(DropReason::TooBig));
    let whole = udp(false, (DEFAULT_AT, 40000), (ROUTER_AT, 53), &[7; 3000]);
    let later = &fragments(&whole, 1448, 7)[1];
    let verdict = run(later, TUN, &mut state, &view).verdict;
    assert_eq!(verdict, Verdict::Drop(DropReason::TooBig));
}

#[test]
fn time_to_live_is_lowered_for_others_and_never_for_this_host() {
    for v6 in [false, true] {
        let (mut state, view) = (state(16), ruled());
        let at = if v6 { 7 } else { 8 };
        let own = udp(v6, (DEFAULT_AT, 40000), (ROUTER_AT, 53), b"x");
        assert_eq!(run(&own, TUN, &mut state, &view).packet()[at], 64);
        for _ in 0..2 {
            // Of another host: the ruled one's address is none of ours.
            let foreign = udp(v6, (RULED_AT, 40000), (ROUTER_AT, 53), b"x");
            let frame = run(&foreign, TUN, &mut state, &view);
            assert!(matches!(frame.verdict, Verdict::Transmit { .. }));
            assert_eq!(frame.packet()[at], 63);
            assert_header_checksum(frame.packet());
        }
    }
}

#[test]
fn a_time_to_live_that_runs_out_is_answered_for_others() {
    for v6 in [false, true] {
        let (mut state, view) = (state(16), ruled());
        let mut foreign = udp(v6, (RULED_AT, 40000), (ROUTER_AT, 53), b"x");
        foreign[if v6 { 7 } else { 8 }] = 1;
        if !v6 {
            foreign[10..12].fill(0);
            let sum = Sum::default().bytes(&foreign[..20]).complement();
            foreign[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let frame = run(&foreign, TUN, &mut state, &view);
        assert_eq!(frame.verdict, Verdict::Answer);
        let headers = assert_checksum(&frame);
        assert_eq!(headers.source, default(v6));
        assert_eq!(frame.packet()[headers.layer4_start], if v6 { 3 } else { 11 });
    }
}

#[test]
fn sources_that_cannot_be_are_dropped_by_name_and_dhcp_and_address_detection_are_not() {
    let (mut state, view) = (state(16), ruled());
    let from = |source: [u8; 4], port: u16| {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(source, SECOND, 64)
            .udp(port, 67)
            .write(&mut bytes, b"x")
            .expect("a packet");
        bytes
    };
    for martian in [VIPA, SECOND, [10, 2, 1, 2], [127, 0, 0, 1], [0; 4], [224, 0, 0, 1]] {
        let verdict = run(&from(martian, 9), FROM_NIC, &mut state, &view).verdict;
        assert_eq!(verdict, Verdict::Drop(DropReason::Martian), "{martian:?}");
    }
    assert_eq!(run(&from([0; 4], 68), FROM_NIC, &mut state, &view).verdict, Verdict::Kernel);
    let mut detection = Vec::new();
    PacketBuilder::ipv6([0; 16], six(SECOND6), 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut detection, &six(SECOND6))
        .expect("a packet");
    assert_eq!(run(&detection, FROM_NIC, &mut state, &view).verdict, Verdict::Kernel);
    let mut echo = Vec::new();
    PacketBuilder::ipv6([0; 16], six(SECOND6), 255)
        .icmpv6_echo_request(1, 1)
        .write(&mut echo, b"")
        .expect("a packet");
    let verdict = run(&echo, FROM_NIC, &mut state, &view).verdict;
    assert_eq!(verdict, Verdict::Drop(DropReason::Martian));
}

#[test]
fn multicast_and_broadcast_are_the_kernels() {
    let (mut state, view) = (state(16), ruled());
    let to = |destination: [u8; 4], source: [u8; 4]| {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(source, destination, 1)
            .udp(5353, 5353)
            .write(&mut bytes, b"")
            .expect("a packet");
        bytes
    };
    for all in [[224, 0, 0, 251], [255; 4], [10, 1, 1, 255]] {
        let verdict = run(&to(all, OTHER), FROM_NIC, &mut state, &view).verdict;
        assert_eq!(verdict, Verdict::Kernel, "{all:?} from outside");
        let verdict = run(&to(all, VIPA), TUN, &mut state, &view).verdict;
        assert_eq!(verdict, Verdict::Drop(DropReason::Multicast), "{all:?} into the adapter");
    }
}

#[test]
fn options_and_extension_headers_stay_as_they_are() {
    let (mut state, view) = (state(16), ruled());
    // Record route, seven bytes and padding: RFC 791.
    let mut packet = udp(false, (DEFAULT_AT, 40000), (RULED_AT, 53), b"x");
    let options = [7, 7, 4, 0, 0, 0, 0, 0];
    packet[0] = 0x47;
    packet.splice(20..20, options);
    let length = packet.len() as u16;
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[10..12].fill(0);
    let sum = Sum::default().bytes(&packet[..28]).complement();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    let frame = run_held(&packet, &mut state, &view);
    assert_eq!(assert_checksum(&frame).source, second(false));
    assert_eq!(Sum::default().bytes(&frame.packet()[..28]).complement(), 0);
    assert_eq!(&frame.packet()[20..28], options);

    // Hop-by-hop and destination options, with padding: RFC 8200 section 4.2.
    let mut packet = udp(true, (DEFAULT_AT, 40000), (RULED_AT, 53), b"x");
    packet[6] = 0;
    let headers = [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0];
    packet.splice(40..40, headers);
    let length = packet.len() as u16 - 40;
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    let frame = run_held(&packet, &mut state, &view);
    assert_eq!(assert_checksum(&frame).source, second(true));
    assert_eq!(&frame.packet()[40..56], headers);
}
