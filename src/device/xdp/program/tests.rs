//! The program, run by an interpreter, against what packet sockets hear. That the kernel takes it is shown by tests/netns_xdp.rs.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::device::filter::Ears;
use crate::device::filter::tests::{nearly_a_reply, serving};
use crate::wire::ip::{TCP, UDP};

const MAC: MacAddr = MacAddr([2, 0, 0, 0xff, 0xfe, 7]);
const CARD: Card = Card { ifindex: 9, mac: MAC, mtu: 1500 };
const SOCKETS: RawFd = 77;

/// Is the frame led to the socket of the queue by which it came?
fn takes(program: &[Instruction], frame: &[u8]) -> bool {
    takes_from(CARD.ifindex, program, frame)
}

/// The same of a frame that came in by this device. Addresses are places in the frame, of which the first is 0.
fn takes_from(ifindex: u32, program: &[Instruction], frame: &[u8]) -> bool {
    const CAME_BY: u64 = 5;
    let mut registers = [0_u64; 11];
    // The first four read the context.
    let context = [
        (HEADER, DATA, 0),
        (END, DATA_END, frame.len() as u64),
        (QUEUE, RX_QUEUE, CAME_BY),
        (A, INGRESS, u64::from(ifindex)),
    ];
    for ((to, offset, value), first) in context.into_iter().zip(program) {
        assert_eq!((first.code, first.registers, first.offset), (LOAD_WORD, 1 << 4 | to, offset));
        registers[usize::from(to)] = value;
    }
    let mut at = 4;
    loop {
        let Instruction { code, registers: both, offset, immediate } = program[at];
        let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
        let (value, other) = (registers[to], registers[from]);
        let place = (other as i64 + i64::from(offset)) as usize;
        let load = |length: usize| -> u64 {
            // What the kernel's verifier proves.
            let bytes = frame.get(place..place + length).expect("inside the frame");
            bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        at += 1;
        let mut jump = |is_so: bool| {
            if is_so {
                at = (at as i64 + i64::from(offset)) as usize;
            }
        };
        let constant = u64::from(immediate.cast_unsigned());
        let word = value & 0xffff_ffff;
        match code {
            LOAD_BYTE => registers[to] = load(1),
            LOAD_HALF => registers[to] = load(2),
            LOAD_WORD => registers[to] = load(4),
            MOVE => registers[to] = other,
            SET => registers[to] = constant,
            ADD => registers[to] = value + constant,
            TO_BIG_ENDIAN if immediate == 16 => {
                registers[to] = u64::from((value as u16).swap_bytes());
            }
            TO_BIG_ENDIAN => registers[to] = u64::from((value as u32).swap_bytes()),
            ALWAYS => jump(true),
            IF_GREATER => jump(value > other),
            IF_AT_MOST => jump(value <= other),
            IF_EQUAL => jump(word == constant),
            IF_NOT_EQUAL => jump(word != constant),
            0x26 => jump(word > constant),
            0x36 => jump(word >= constant),
            0x46 => jump(word & constant != 0),
            LOAD_WIDE => {
                assert_eq!(both >> 4, MAP_BY_DESCRIPTOR);
                registers[to] = constant;
                at += 1;
            }
            CALL => {
                assert_eq!(immediate, REDIRECT_MAP);
                assert_eq!(registers[1..=3], [SOCKETS as u64, CAME_BY, XDP_PASS as u64]);
                return true;
            }
            EXIT => {
                assert_eq!(registers[0], XDP_PASS as u64);
                return false;
            }
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn frame(to: MacAddr, kind: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = ethernet::header(to, MacAddr([2; 6]), kind).to_vec();
    frame.extend(packet);
    frame
}

/// Of what sockets hear that which has a port of a service, or of an address given wholly, in it.
fn is_ours(claims: &Claims, family: Family, packet: &[u8]) -> bool {
    let Claims { services, sources, .. } = claims.clone();
    let ears = Ears::new(&Claims { services, sources, ..Claims::default() });
    let (least, protocol) = if family == Family::V4 { (20, 9) } else { (40, 6) };
    if packet.len() < least || ![TCP, UDP].contains(&packet[protocol]) {
        return false;
    }
    let is_unusual =
        family == Family::V4 && (packet[0] != 0x45 || (packet[6] & 0x3f, packet[7]) != (0, 0));
    !is_unusual && ears.hear(family, packet)
}

static CLAIMS: LazyLock<Claims> = LazyLock::new(|| serving(61_000..=61_005));
static PROGRAM: LazyLock<Vec<Instruction>> =
    LazyLock::new(|| program(CARD, XdpHook::Native, &CLAIMS, SOCKETS).expect("a program"));

fn kind(family: Family) -> u16 {
    if family == Family::V4 { ethernet::IPV4 } else { ethernet::IPV6 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn it_takes_what_sockets_hear_and_the_kernel_is_kept_from((family, packet) in nearly_a_reply()) {
        let frame = frame(MAC, kind(family), &packet);
        prop_assert_eq!(takes(&PROGRAM, &frame), is_ours(&CLAIMS, family, &packet));
    }

    #[test]
    fn it_looks_at_nothing_outside_of_a_frame(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        kind in prop_oneof![Just(0x0800_u16), Just(0x86dd_u16), any::<u16>()],
        length in 0_usize..200,
    ) {
        let mut frame = frame(MAC, kind, &bytes);
        frame.truncate(length);
        takes(&PROGRAM, &frame);
    }
}

fn asked(to: MacAddr, kind: u16, length: usize) -> Vec<u8> {
    let mut packet = vec![0; length];
    packet[0] = 0x45;
    packet[9] = TCP;
    packet[16..20].copy_from_slice(&[203, 0, 113, 12]);
    packet[22..24].copy_from_slice(&61_007_u16.to_be_bytes());
    frame(to, kind, &packet)
}

#[test]
fn it_takes_what_is_sent_to_this_card_in_frames_that_are_not_too_long() {
    let longest = CARD.mtu as usize;
    let other = MacAddr([2, 0, 0, 0xff, 0xfe, 8]);
    for (to, kind, length, is_taken) in [
        (MAC, ethernet::IPV4, 40, true),
        (MAC, ethernet::IPV4, longest, true),
        (MAC, ethernet::IPV4, longest + 1, false),
        (other, ethernet::IPV4, 40, false),
        (MacAddr([0xff; 6]), ethernet::IPV4, 40, false),
        (MAC, ethernet::IPV6, 60, false),
        (MAC, 0x8100, 40, false),
    ] {
        let frame = asked(to, kind, length);
        assert_eq!(takes(&PROGRAM, &frame), is_taken, "{to} {kind:#x} {length}");
    }
    let frame = asked(MAC, ethernet::IPV4, 40);
    assert!(!takes_from(CARD.ifindex + 1, &PROGRAM, &frame), "of a bond's member");
    let jumbo = Card { mtu: 9000, ..CARD };
    let jumbo = program(jumbo, XdpHook::Native, &CLAIMS, SOCKETS).expect("a program");
    for (length, is_taken) in [(LONGEST as usize, true), (LONGEST as usize + 1, false)] {
        let frame = asked(MAC, ethernet::IPV4, length - HEADER_LEN);
        assert_eq!(takes(&jumbo, &frame), is_taken, "{length}");
    }
}

#[test]
fn what_a_neighbour_may_have_left_to_be_cut_is_not_taken_for_one_datagram() {
    let program = program(CARD, XdpHook::Generic, &CLAIMS, SOCKETS).expect("a program");
    let mut frame = asked(MAC, ethernet::IPV4, 40);
    assert!(takes(&program, &frame));
    frame[HEADER_LEN + 9] = UDP;
    assert!(takes(&PROGRAM, &frame) && !takes(&program, &frame));
}

#[test]
fn where_nothing_is_ours_alone_there_is_no_program() {
    let nothing = Claims { services: Vec::new(), sources: Vec::new(), ..serving(1..=9) };
    assert!(program(CARD, XdpHook::Native, &nothing, SOCKETS).is_none());
}

#[test]
fn more_than_the_kernel_looks_at_is_no_program() {
    let service = &CLAIMS.services[2];
    let many = (0..3000_u32).map(|n| crate::forward::claims::Claim {
        address: std::net::Ipv4Addr::from(0x0a00_0000 + n).into(),
        ..service.clone()
    });
    assert!(
        program(
            CARD,
            XdpHook::Native,
            &Claims { services: many.collect(), ..Claims::default() },
            SOCKETS
        )
        .is_none()
    );
}
