//! The programs as programs, and run by an interpreter against their pure equivalent.

use proptest::prelude::*;

use super::*;

#[test]
fn jumps_stay_inside_and_the_kernels_limit_is_kept() {
    let owned: Vec<IpAddr> =
        (0..300u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
    for family in Family::BOTH {
        let program = replies(family, &owned, &(61000..=65535));
        assert!(program.len() < 4096);
        for (at, i) in program.iter().enumerate() {
            let code = u32::from(i.code);
            let furthest = if code == ALWAYS { i.k as usize } else { usize::from(i.jt.max(i.jf)) };
            assert!(at + furthest + usize::from(code & 7 == libc::BPF_JMP) < program.len());
        }
        assert_eq!(u32::from(program[program.len() - 1].code), RETURN);
    }
}

/// Runs `program` over a packet for this host as the kernel does: a load from outside of it hears nothing.
fn runs(program: &[Instruction], packet: &[u8]) -> u32 {
    let (mut a, mut x, mut at) = (0_u32, 0_u32, 0_usize);
    let load = |from: u32, length: usize| -> Option<u32> {
        if from == PACKET_TYPE {
            return Some(PACKET_HOST);
        }
        let from = from.checked_sub(NET)? as usize;
        let bytes = packet.get(from..from + length)?;
        Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    };
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let code = u32::from(code);
        let loaded = match code {
            LOAD_WORD => load(k, 4),
            LOAD_HALF => load(k, 2),
            LOAD_BYTE => load(k, 1),
            LOAD_HALF_X => load(k + x, 2),
            LOAD_BYTE_X => load(k + x, 1),
            _ => Some(a),
        };
        let Some(value) = loaded else { return 0 };
        a = value;
        let mut jump = |is_so: bool| at += usize::from(if is_so { jt } else { jf });
        match code {
            LOAD_WORD | LOAD_HALF | LOAD_BYTE | LOAD_HALF_X | LOAD_BYTE_X => {}
            TO_X => x = a,
            IMMEDIATE_X => x = k,
            AND => a &= k,
            SHIFT_LEFT => a <<= k,
            EQUAL => jump(a == k),
            GREATER => jump(a > k),
            AT_LEAST => jump(a >= k),
            BITS => jump(a & k != 0),
            ALWAYS => at += k as usize,
            RETURN => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

const OWNED: [IpAddr; 3] = [
    IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 11)),
    IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 1, 2)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
];

/// A packet that is nearly a reply: each part right more often than not.
fn nearly_a_reply() -> impl Strategy<Value = (Family, Vec<u8>)> {
    let destination =
        prop_oneof![3 => Just(OWNED[0]), 3 => Just(OWNED[1]), 1 => Just(IpAddr::from([9; 4]))];
    let destination = (any::<bool>(), destination, any::<bool>());
    let protocol = prop_oneof![Just(6_u8), Just(17), Just(1), Just(58), any::<u8>()];
    let kind = prop_oneof![Just(0_u8), Just(129), any::<u8>()];
    let port = prop_oneof![4 => 60_990_u16..=61_010, 1 => any::<u16>()];
    let fragment =
        prop_oneof![4 => Just(0_u16), 1 => Just(0x4000), 1 => Just(0x2000), 1 => any::<u16>()];
    let length = prop_oneof![3 => Just(80_usize), 1 => 0_usize..80];
    (destination, protocol, kind, port, fragment, 5_u8..=15, length).prop_map(
        |((is_v4, v4, is_owned), protocol, kind, port, fragment, words, length)| {
            let mut packet = vec![0; 120];
            let layer4 = if is_v4 {
                let IpAddr::V4(address) = v4 else { unreachable!() };
                packet[0] = 0x40 | words;
                packet[6..8].copy_from_slice(&fragment.to_be_bytes());
                packet[9] = protocol;
                packet[16..20].copy_from_slice(&address.octets());
                usize::from(words) * 4
            } else {
                let IpAddr::V6(address) = OWNED[2] else { unreachable!() };
                packet[0] = 0x60;
                packet[6] = protocol;
                packet[24..40].copy_from_slice(&address.octets());
                packet[39] ^= u8::from(!is_owned);
                40
            };
            packet[layer4] = kind;
            packet[layer4 + 2..layer4 + 4].copy_from_slice(&port.to_be_bytes());
            packet[layer4 + 4..layer4 + 6].copy_from_slice(&port.to_be_bytes());
            packet.truncate(length);
            (if is_v4 { Family::V4 } else { Family::V6 }, packet)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_pure_choice_is_that_of_the_program((family, packet) in nearly_a_reply()) {
        let ports = 61_000..=61_005;
        let program = replies(family, &OWNED, &ports);
        prop_assert_eq!(hears(family, &packet, &OWNED, &ports), runs(&program, &packet) != 0);
    }

    #[test]
    fn whatever_comes_is_chosen_alike(packet in proptest::collection::vec(any::<u8>(), 0..100)) {
        for family in Family::BOTH {
            let program = replies(family, &OWNED, &(0..=65_535));
            let is_heard = hears(family, &packet, &OWNED, &(0..=65_535));
            prop_assert_eq!(is_heard, runs(&program, &packet) != 0);
        }
    }
}

#[test]
fn replies_are_heard() {
    let mut packet = vec![0; 40];
    packet[0] = 0x45;
    packet[9] = ip::TCP;
    packet[16..20].copy_from_slice(&[203, 0, 113, 11]);
    packet[22..24].copy_from_slice(&61_000_u16.to_be_bytes());
    let ports = 61_000..=61_005;
    assert!(hears(Family::V4, &packet, &OWNED, &ports));
    assert_ne!(runs(&replies(Family::V4, &OWNED, &ports), &packet), 0);
    packet[23] += 6;
    assert!(!hears(Family::V4, &packet, &OWNED, &ports));
    assert!(!hears(Family::V4, &packet, &[], &ports));
}

#[test]
fn of_arp_those_who_have_an_address_are_heard() {
    let senders = [[10, 1, 1, 50], [10, 1, 1, 51]].map(Ipv4Addr::from);
    let program = arp_senders(&senders);
    let mac = crate::wire::ethernet::MacAddr([2, 0, 0, 0, 0, 1]);
    for last in 49..53 {
        let arp = crate::wire::neighbour::Arp::announcement(mac, [10, 1, 1, last].into());
        assert_eq!(runs(&program, &arp.bytes()) > 0, senders.contains(&arp.sender.1), "{last}");
        assert_eq!(runs(&program, &arp.bytes()[..17]), 0);
    }
    assert_eq!(runs(&arp_senders(&[]), &[0; 28]), 0);
}
