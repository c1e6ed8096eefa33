//! What is put together and cut again is what came.

use std::collections::BTreeMap;

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::forward::frame::Ingress;
use crate::forward::view::NicId;
use crate::wire::ethernet::MacAddr;
use crate::wire::packet::{Headers, full_checksum};
use crate::wire::segment;

const TO: Verdict = Verdict::Transmit { nic: NicId(1), destination: MacAddr([2; 6]) };

/// A packet to come; what is not said is as in the one before of its flow.
#[derive(Clone, Debug)]
struct Next {
    /// The even ones are IPv4's, the first of these may not be fragmented.
    flow: u8,
    size: u16,
    change: Change,
    checksum: Checksum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    Push,
    /// One bit of a header.
    Bit(u8, u8),
    Skip,
    Again,
    /// The same once more, and more fragments to come.
    Fragment,
    Options,
    Udp,
    OtherVerdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checksum {
    Partial,
    Verified,
    Unverified,
    Wrong,
    /// IPv4's own; verified else.
    WrongHeader,
}

/// Makes the packets of some flows one after the other.
#[derive(Default)]
struct Sender(BTreeMap<u8, (u32, u16)>);

impl Sender {
    fn frame(&mut self, next: &Next) -> Frame {
        let (sequence, number) =
            self.0.entry(next.flow).or_insert((u32::MAX - 9_000, u16::MAX - 3));
        if next.change == Change::Skip {
            *sequence = sequence.wrapping_add(7);
        }
        let port = 1000 + u16::from(next.flow);
        let is_v4 = next.flow.is_multiple_of(2);
        let step = if is_v4 {
            PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        } else {
            PacketBuilder::ipv6([1; 16], [2; 16], 64)
        };
        let payload: Vec<u8> =
            (0..next.size).map(|at| (*sequence as u16).wrapping_add(at) as u8).collect();
        let mut packet = Vec::new();
        if next.change == Change::Udp {
            step.udp(port, 80).write(&mut packet, &payload).expect("a Vec");
        } else {
            let mut step = step.tcp(port, 80, *sequence, 500).ack(77);
            if next.change == Change::Push {
                step = step.psh();
            }
            if next.change == Change::Options || next.flow >= 4 {
                let time = u32::from(next.change == Change::Options);
                step = step
                    .options(&[etherparse::TcpOptionElement::Timestamp(time, 2)])
                    .expect("room");
            }
            step.write(&mut packet, &payload).expect("a Vec");
            if !matches!(next.change, Change::Again | Change::Fragment) {
                *sequence = sequence.wrapping_add(next.size.into());
            }
        }
        if is_v4 {
            packet[4..6].copy_from_slice(&number.to_be_bytes());
            packet[6] = if next.flow == 0 { 0x40 } else { 0 };
            packet[6] |= if next.change == Change::Fragment { 0x20 } else { 0 };
            *number = if next.flow == 0 { 0 } else { number.wrapping_add(1) };
        }
        if let Change::Bit(at, bit) = next.change {
            // Not its length: the packet should be one.
            let at = usize::from(at) % if is_v4 { 40 } else { 60 };
            let is_kept = if is_v4 { matches!(at, 0 | 2 | 3 | 9) } else { matches!(at, 0 | 4..=6) };
            if !is_kept {
                packet[at] ^= 1 << (bit % 8);
            }
        }
        if is_v4 {
            let header = etherparse::Ipv4Header::from_slice(&packet).expect("its header").0;
            packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        }
        // What cannot be judged counts as verified.
        let is_verified = matches!(next.checksum, Checksum::Verified | Checksum::WrongHeader);
        let mut offload = Offload { is_verified, ..Offload::default() };
        if let Ok(headers) = Headers::parse(&packet)
            && let (Some(at), Some(sum)) = (headers.checksum_at(), full_checksum(&packet, &headers))
        {
            packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            match next.checksum {
                Checksum::Verified | Checksum::Unverified | Checksum::WrongHeader => {}
                Checksum::Wrong => packet[at] ^= 1,
                Checksum::Partial => {
                    let length = (headers.length - headers.layer4_start) as u32;
                    let (source, destination) = (headers.source, headers.destination);
                    let sum =
                        Sum::pseudo_header(source, destination, headers.protocol, length).fold();
                    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
                    let start = headers.layer4_start as u16;
                    offload.csum = Csum::Partial { start, offset: at as u16 - start };
                }
            }
        }
        if is_v4 && next.checksum == Checksum::WrongHeader {
            packet[10] ^= 4;
        }
        // With room for what others bring.
        let mut frame = Frame::new();
        frame.space(0)[..packet.len()].copy_from_slice(&packet);
        frame.received(packet.len());
        frame.offload = offload;
        frame.ingress = Ingress::Nic(NicId(0));
        frame.verdict = if next.change == Change::OtherVerdict { Verdict::Deliver } else { TO };
        frame
    }
}

/// The packets of a frame as they belong on the wire, by an independent hand: cut, and their checksums complete. The identification of one
/// that may not be fragmented says nothing.
fn on_the_wire(frame: &Frame) -> Vec<Vec<u8>> {
    let packet = frame.packet();
    let Ok(headers) = Headers::parse(packet) else { return vec![packet.to_vec()] };
    let Offload { csum, gso, .. } = frame.offload;
    let part = |at| {
        let mut out = vec![0; 2000];
        let length = segment::segment(packet, &headers, csum, gso, at, &mut out).expect("room");
        out.truncate(length);
        if headers.source.is_ipv4() {
            let header = etherparse::Ipv4Header::from_slice(&out).expect("its header").0;
            let is_right = header.calc_header_checksum() == header.header_checksum;
            assert!(gso.is_none() || is_right);
            if header.dont_fragment && is_right {
                out[4..6].fill(0);
                out[10..12].fill(0);
            }
        }
        out
    };
    (0..segment::count(&headers, packet, gso)).map(part).collect()
}

/// What has these ends, in its order; what is no packet belongs to nobody.
fn by_flow(frames: &[Frame]) -> BTreeMap<String, Vec<(Verdict, Vec<u8>)>> {
    let mut flows = BTreeMap::<_, Vec<_>>::new();
    for frame in frames {
        let flow = Headers::parse(frame.packet()).map_or(String::new(), |of| {
            format!("{} {} {} {:?}", of.source, of.destination, of.protocol, of.ports())
        });
        let wire = on_the_wire(frame).into_iter().map(|packet| (frame.verdict, packet));
        flows.entry(flow).or_default().extend(wire);
    }
    flows
}

fn next() -> impl Strategy<Value = Next> {
    let change = prop_oneof![
        20 => Just(Change::None),
        2 => Just(Change::Push),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(at, bit)| Change::Bit(at, bit)),
        1 => prop::sample::select(vec![
            Change::Skip,
            Change::Again,
            Change::Fragment,
            Change::Options,
            Change::Udp,
            Change::OtherVerdict,
        ]),
    ];
    let checksum = prop_oneof![
        10 => Just(Checksum::Partial),
        10 => Just(Checksum::Verified),
        1 => Just(Checksum::Unverified),
        1 => Just(Checksum::Wrong),
        1 => Just(Checksum::WrongHeader),
    ];
    let size = prop_oneof![8 => Just(1400), 1 => 0..1400_u16];
    (0..6_u8, size, change, checksum).prop_map(|(flow, size, change, checksum)| Next {
        flow,
        size,
        change,
        checksum,
    })
}

proptest! {
    #[test]
    fn cut_again_it_is_what_came_in_the_order_of_each_flow(
        all in prop::collection::vec(next(), 0..64),
    ) {
        let sent = || {
            let mut sender = Sender::default();
            all.iter().map(|next| sender.frame(next)).collect::<Vec<_>>()
        };
        let expected = by_flow(&sent());
        let mut frames = sent();
        let left = merge(&mut frames);
        prop_assert_eq!(by_flow(&frames[..left]), expected);
        for frame in frames[..left].iter().filter(|frame| frame.offload.gso.is_some()) {
            prop_assert!(frame.packet().len() <= LONGEST);
            prop_assert!(is_left_to_be_summed(frame));
        }
    }
}

/// Does the checksum of a super-packet say what is still to be added, and hold what is not?
fn is_left_to_be_summed(frame: &Frame) -> bool {
    let packet = frame.packet();
    let of = Headers::parse(packet).expect("a packet");
    let length = (of.length - of.layer4_start) as u32;
    let sum = Sum::pseudo_header(of.source, of.destination, of.protocol, length).fold();
    let at = of.layer4_start + 16;
    packet[at..at + 2] == sum.to_be_bytes()
        && frame.offload.csum == Csum::Partial { start: of.layer4_start as u16, offset: 16 }
        && of.length == packet.len()
}

fn plain(flow: u8) -> Next {
    Next { flow, size: 1400, change: Change::None, checksum: Checksum::Verified }
}

/// Bytes of data of what is left.
fn merged(all: &[Next]) -> Vec<usize> {
    let mut sender = Sender::default();
    let mut frames: Vec<Frame> = all.iter().map(|next| sender.frame(next)).collect();
    let left = merge(&mut frames);
    let data = |frame: &Frame| {
        let headers = Headers::parse(frame.packet()).expect("a packet");
        let gso = frame.offload.gso.map(|gso| (gso.kind, gso.size));
        let kind = if headers.source.is_ipv4() { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
        let data = headers.length - headers.headers_len(frame.packet());
        assert_eq!(gso, (data > 1400).then_some((kind, 1400)));
        data
    };
    frames[..left].iter().map(data).collect()
}

#[test]
fn flows_whose_segments_are_mixed_are_told_apart_and_no_packet_is_too_long() {
    for flows in 1..=6 {
        let mixed: Vec<Next> = (0..60).map(|at| plain(at % flows)).collect();
        let expected = if flows == 1 {
            vec![46 * 1400, 14 * 1400]
        } else {
            vec![60 / usize::from(flows) * 1400; flows.into()]
        };
        assert_eq!(merged(&mixed), expected);
    }
}

#[test]
fn a_flow_that_never_has_two_takes_no_others_place() {
    let bulk = (0..3).flat_map(|_| {
        let pairs = (0..9).flat_map(|_| [plain(2), Next { change: Change::Push, ..plain(2) }]);
        [plain(0)].into_iter().chain(pairs)
    });
    assert_eq!(merged(&bulk.collect::<Vec<_>>())[0], 3 * 1400);
}

#[test]
fn nothing_follows_what_is_pushed_or_short_and_nothing_overtakes() {
    let one = 1400;
    let with = |at: usize, change| {
        let mut all = vec![plain(0); 6];
        all[at].change = change;
        all
    };
    assert_eq!(merged(&with(2, Change::Push)), [3 * one, 3 * one]);
    assert_eq!(merged(&with(0, Change::Push)), [one, 5 * one]);
    assert_eq!(merged(&with(3, Change::Skip)), [3 * one, 3 * one]);
    assert_eq!(merged(&with(3, Change::OtherVerdict)), [3 * one, one, 2 * one]);
    assert_eq!(merged(&with(3, Change::Options)), [3 * one, one, 2 * one]);
    assert_eq!(merged(&with(3, Change::Udp)), [5 * one, one]);
    for change in [Change::Bit(12, 0), Change::Bit(1, 0), Change::Bit(8, 3)] {
        assert_eq!(merged(&with(3, change)).len(), 3, "{change:?}");
    }
    for changes in [&[Change::Fragment][..], &[Change::Fragment, Change::Fragment]] {
        let mut all = vec![plain(0); 6];
        all.splice(2..2, changes.iter().map(|change| Next { change: *change, ..plain(0) }));
        let expected = [&[2 * one][..], &vec![one; changes.len()], &[4 * one]].concat();
        assert_eq!(merged(&all), expected);
    }
    let mut fragments = vec![plain(0); 6];
    fragments[2..4].fill(Next { change: Change::Bit(6, 5), ..plain(0) });
    assert_eq!(merged(&fragments), [2 * one, one, one, 2 * one]);
    // 65,560 bytes with its headers: more than IP's can say.
    let mut long = vec![plain(0); 47];
    long[46].size = 1120;
    assert_eq!(merged(&long), [46 * one, 1120]);
    let mut short = vec![plain(0); 6];
    short[2].size = 9;
    assert_eq!(merged(&short), [2 * one + 9, 3 * one]);
    // An acknowledgement of its own.
    short[2].size = 0;
    assert_eq!(merged(&short), [2 * one, 0, 3 * one]);
}

#[test]
fn super_packets_what_the_link_padded_and_checksums_elsewhere_stay_as_they_are() {
    let change: [fn(&mut Frame); 3] = [
        |frame| frame.offload.csum = Csum::Partial { start: 20, offset: 6 },
        |frame| frame.offload.gso = Some(Gso::new(GsoKind::Tcp4, 5)),
        |frame| assert!(frame.append(&[0; 4])),
    ];
    for change in change {
        let mut sender = Sender::default();
        let mut frames: Vec<Frame> = (0..3).map(|_| sender.frame(&plain(0))).collect();
        frames.push(sender.frame(&Next { size: 9, ..plain(0) }));
        change(&mut frames[3]);
        let changed = frames[3].packet().to_vec();
        assert_eq!(merge(&mut frames), 2);
        assert!(frames[1].packet() == changed);
    }
}

#[test]
fn what_nobody_verified_stays_alone_and_a_damaged_one_damaged() {
    for checksum in [Checksum::Unverified, Checksum::Wrong, Checksum::WrongHeader] {
        let mut all = vec![plain(2); 5];
        all[2].checksum = checksum;
        assert_eq!(merged(&all), [2 * 1400, 1400, 2 * 1400]);
    }
}
