//! The programs as programs, and run by an interpreter against their pure equivalent.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

#[test]
fn jumps_stay_inside_and_the_kernels_limit_is_kept() {
    let owned: Vec<IpAddr> =
        (0..300u32).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
    for family in Family::BOTH {
        let program = heard(family, &owning(&owned, 61000..=65535));
        assert!(program.len() <= LONGEST);
        for (at, i) in program.iter().enumerate() {
            let code = u32::from(i.code);
            let furthest = if code == ALWAYS { i.k as usize } else { usize::from(i.jt.max(i.jf)) };
            assert!(at + furthest + usize::from(code & 7 == libc::BPF_JMP) < program.len());
        }
        assert_eq!(u32::from(program[program.len() - 1].code), RETURN);
    }
}

/// Claims of replies alone.
fn owning(owned: &[IpAddr], reserved: RangeInclusive<u16>) -> Claims {
    Claims { owned: owned.to_vec(), reserved, ..Claims::default() }
}

/// Those, and services: the first address's ports 80 to 89 and TCP 65005, a source, a server that knows its clients.
pub(in crate::device) fn serving(reserved: RangeInclusive<u16>) -> Claims {
    let claim = |address, protocol, ports| Claim { address, protocol, ports };
    Claims {
        services: vec![
            claim(OWNED[0], ip::TCP, (60_990, 60_995)),
            claim(OWNED[2], ip::UDP, (60_990, 60_995)),
            claim(SERVICE, ip::TCP, (61_007, 61_007)),
            claim(SERVICE, ip::UDP, (1, 65_535)),
        ],
        sources: vec![(SOURCE, 61_003..=61_010)],
        servers: vec![claim(SERVER, ip::TCP, (61_000, 61_002))],
        ..owning(&OWNED, reserved)
    }
}

/// Runs `program` over a packet for this host as the kernel does: a load from outside of it hears nothing.
fn runs(program: &[Instruction], packet: &[u8]) -> u32 {
    runs_as(PACKET_HOST, program, packet)
}

/// The same over a packet of this type.
fn runs_as(packet_type: u32, program: &[Instruction], packet: &[u8]) -> u32 {
    let (mut a, mut x, mut stored, mut at) = (0_u32, 0_u32, 0_u32, 0_usize);
    let load = |from: u32, length: usize| -> Option<u32> {
        if from == PACKET_TYPE {
            return Some(packet_type);
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
            STORE => stored = a,
            LOAD_STORED => a = stored,
            XOR_X => a ^= x,
            MODULO => a %= k,
            RETURN_A => return a,
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

const SERVICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 12));
const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 13));
const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 1));
const OWNED: [IpAddr; 3] = [
    IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 11)),
    IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 1, 2)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
];

/// A packet that is nearly a reply: each part right more often than not.
pub(in crate::device) fn nearly_a_reply() -> impl Strategy<Value = (Family, Vec<u8>)> {
    let destination = prop_oneof![
        Just(OWNED[0]),
        Just(OWNED[1]),
        Just(SERVICE),
        Just(SOURCE),
        Just(IpAddr::from([9; 4]))
    ];
    let source = prop_oneof![Just(SERVER), Just(IpAddr::from([8; 4]))];
    let destination = (any::<bool>(), (destination, source), any::<bool>());
    let protocol = prop_oneof![Just(6_u8), Just(17), Just(1), Just(58), any::<u8>()];
    let kind = prop_oneof![Just(0_u8), Just(129), any::<u8>()];
    let port = prop_oneof![4 => 60_990_u16..=61_010, 1 => any::<u16>()];
    let fragment =
        prop_oneof![4 => Just(0_u16), 1 => Just(0x4000), 1 => Just(0x2000), 1 => any::<u16>()];
    let length = prop_oneof![3 => Just(80_usize), 1 => 0_usize..80];
    (destination, protocol, kind, port, fragment, 5_u8..=15, length).prop_map(
        |((is_v4, (v4, source), is_owned), protocol, kind, port, fragment, words, length)| {
            let mut packet = vec![0; 120];
            let layer4 = if is_v4 {
                let IpAddr::V4(address) = v4 else { unreachable!() };
                packet[0] = 0x40 | words;
                packet[6..8].copy_from_slice(&fragment.to_be_bytes());
                packet[9] = protocol;
                packet[16..20].copy_from_slice(&address.octets());
                let IpAddr::V4(address) = source else { unreachable!() };
                packet[12..16].copy_from_slice(&address.octets());
                usize::from(words) * 4
            } else {
                let IpAddr::V6(address) = OWNED[2] else { unreachable!() };
                packet[0] = 0x60;
                packet[6] = protocol;
                packet[24..40].copy_from_slice(&address.octets());
                packet[39] ^= u8::from(!is_owned);
                40
            };
            packet[layer4..layer4 + 2].copy_from_slice(&(port ^ 1).to_be_bytes());
            if ![ip::TCP, ip::UDP].contains(&protocol) {
                packet[layer4] = kind;
            }
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
        static BOTH: LazyLock<[Judged; 2]> = LazyLock::new(|| {
            [owning(&OWNED, 61_000..=61_005), serving(61_000..=61_005)].map(Judged::new)
        });
        for judged in &*BOTH {
            prop_assert!(judged.agrees(family, &packet));
        }
    }

    #[test]
    fn whatever_comes_is_chosen_alike(packet in proptest::collection::vec(any::<u8>(), 0..100)) {
        for family in Family::BOTH {
            static ALL: LazyLock<Judged> = LazyLock::new(|| Judged::new(serving(0..=65_535)));
            prop_assert!(ALL.agrees(family, &packet));
        }
    }
}

/// Claims as a program and as ears.
struct Judged {
    ears: Ears,
    v4: Vec<Instruction>,
    v6: Vec<Instruction>,
}

impl Judged {
    fn new(claims: Claims) -> Judged {
        let [v4, v6] = Family::BOTH.map(|family| heard(family, &claims));
        Judged { ears: Ears::new(&claims), v4, v6 }
    }

    fn agrees(&self, family: Family, packet: &[u8]) -> bool {
        let program = if family == Family::V4 { &self.v4 } else { &self.v6 };
        self.ears.hear(family, packet) == (runs(program, packet) != 0)
    }
}

fn segment(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.0, to.0) else { panic!("IPv4") };
    let mut packet = vec![0; 40];
    packet[0] = 0x45;
    packet[9] = ip::TCP;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet[20..22].copy_from_slice(&from.1.to_be_bytes());
    packet[22..24].copy_from_slice(&to.1.to_be_bytes());
    packet
}

#[test]
fn replies_are_heard() {
    let claims = owning(&OWNED, 61_000..=61_005);
    let client = IpAddr::from([8; 4]);
    for (port, is_heard) in [(61_000, true), (61_006, false)] {
        let packet = segment((client, 5), (OWNED[0], port));
        assert_eq!(Ears::new(&claims).hear(Family::V4, &packet), is_heard);
        assert_eq!(runs(&heard(Family::V4, &claims), &packet) != 0, is_heard);
        assert!(!Ears::new(&Claims::default()).hear(Family::V4, &packet));
    }
}

#[test]
fn what_is_asked_of_services_and_what_servers_answer_is_heard() {
    let claims = serving(61_000..=61_005);
    let client = IpAddr::from([8; 4]);
    for (from, to, is_heard) in [
        ((client, 5), (SERVICE, 61_007), true),
        ((client, 5), (SERVICE, 61_008), false),
        ((SERVER, 80), (SOURCE, 61_010), true),
        ((SERVER, 80), (SOURCE, 61_011), false),
        ((SERVER, 61_001), (client, 5), true),
        ((SERVER, 61_003), (client, 5), false),
    ] {
        let packet = segment(from, to);
        assert_eq!(Ears::new(&claims).hear(Family::V4, &packet), is_heard, "{from:?} {to:?}");
        assert_eq!(runs(&heard(Family::V4, &claims), &packet) != 0, is_heard, "{from:?} {to:?}");
    }
}

#[test]
fn errors_and_what_shows_no_port_are_heard_also_where_no_echo_is_answered() {
    let claims = serving(61_000..=61_005);
    let is_heard = |family: Family, packet: &[u8], claims: &Claims| {
        let is_heard = Ears::new(claims).hear(family, packet);
        assert_eq!(runs(&heard(family, claims), packet) != 0, is_heard, "{packet:?}");
        is_heard
    };
    for address in [SERVICE, OWNED[0]] {
        for kind in 0..=20 {
            let mut packet = segment((IpAddr::from([8; 4]), 0), (address, 0));
            packet[9] = ip::ICMP;
            packet[20] = kind;
            let is_error = matches!(kind, 3 | 4 | 5 | 11 | 12);
            assert_eq!(is_heard(Family::V4, &packet, &claims), is_error, "{address} {kind}");
        }
    }
    let service = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 80);
    let claim = Claim { address: service.into(), protocol: ip::TCP, ports: (80, 80) };
    let claims = Claims { services: vec![claim], ..claims };
    for (next, shows_no_port) in [(0, true), (43, true), (44, true), (60, true), (132, false)] {
        let mut packet = vec![0; 60];
        packet[0] = 0x60;
        packet[6] = next;
        packet[24..40].copy_from_slice(&service.octets());
        assert_eq!(is_heard(Family::V6, &packet, &claims), shows_no_port, "{next}");
    }
}

/// As the pipeline has it: replies by their port, the rest by the client.
#[test]
fn packets_are_steered_to_the_worker_that_owns_them() {
    let claims = serving(61_000..=61_005);
    let program = worker(Family::V4, &claims, 3);
    for n in 0..50 {
        let client = IpAddr::from([8, 8, 8, n as u8]);
        let owner = crate::forward::service::owner(client, 1000 + n, 3);
        let asks = segment((client, 1000 + n), (SERVICE, 61_007));
        assert_eq!(runs(&program, &asks), u32::from(owner.0));
        let answers = segment((SERVER, 61_001), (client, 1000 + n));
        assert_eq!(runs(&program, &answers), u32::from(owner.0));
        for address in [OWNED[1], SOURCE] {
            let reply = segment((client, 5), (address, 61_003 + n % 3));
            assert_eq!(runs(&program, &reply), u32::from((61_003 + n % 3) % 3));
        }
    }
}

#[test]
fn more_addresses_than_a_program_can_tell_apart_are_heard_as_well() {
    let all = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
    let services =
        (0..5000).map(|n| Claim { address: all(n), protocol: ip::TCP, ports: (80, 80) }).collect();
    let servers =
        (0..5000).map(|n| Claim { address: all(n), protocol: ip::TCP, ports: (9, 9) }).collect();
    let sources = (0..5000).map(|n| (all(n), 1024..=65_535)).collect();
    let claims = Claims { services, servers, ..owning(&OWNED, 61_000..=61_005) };
    let wholly = Claims { sources, ..owning(&OWNED, 61_000..=61_005) };
    let packet = segment((IpAddr::from([8; 4]), 5), (all(4999), 80));
    for claims in [&claims, &wholly] {
        for program in [heard(Family::V4, claims), worker(Family::V4, claims, 2)] {
            assert!(program.len() <= LONGEST);
        }
    }
    let program = heard(Family::V4, &claims);
    assert_ne!(runs(&program, &packet), 0);
    assert_eq!(runs_as(libc::PACKET_OTHERHOST.into(), &program, &packet), 0, "another host's");
}

#[test]
fn what_is_for_another_host_is_not_heard() {
    let program = heard(Family::V4, &owning(&OWNED, 61_000..=61_005));
    let packet = segment((IpAddr::from([8; 4]), 5), (OWNED[0], 61_000));
    let of_type = |kind: u8| runs_as(kind.into(), &program, &packet) != 0;
    assert!(of_type(libc::PACKET_HOST));
    assert!(!of_type(libc::PACKET_OTHERHOST) && !of_type(libc::PACKET_OUTGOING));
}

#[test]
fn ipv6_and_echoes_are_steered_too_and_what_shows_no_port_goes_to_the_first() {
    let claims = serving(61_000..=61_005);
    let [v4, v6] = Family::BOTH.map(|family| worker(family, &claims, 3));
    for n in 0..50_u16 {
        // Both halves of the client's address differ.
        let client = std::net::Ipv6Addr::new(0x2001, n, n, n, 7, 7, n / 2, 3 * n);
        let owner = crate::forward::service::owner(client.into(), 1000 + n, 3);
        let mut asks = vec![0; 60];
        asks[0] = 0x60;
        asks[6] = ip::UDP;
        asks[8..24].copy_from_slice(&client.octets());
        asks[40..42].copy_from_slice(&(1000 + n).to_be_bytes());
        asks[42..44].copy_from_slice(&60_990_u16.to_be_bytes());
        assert_eq!(runs(&v6, &asks), u32::from(owner.0));
        asks[42..44].copy_from_slice(&(61_000 + n % 6).to_be_bytes());
        assert_eq!(runs(&v6, &asks), u32::from((61_000 + n % 6) % 3), "a reply");

        let mut echo = segment((IpAddr::from([8; 4]), 0), (OWNED[0], 0));
        echo[9] = ip::ICMP;
        echo[24..26].copy_from_slice(&(61_000 + n).to_be_bytes());
        assert_eq!(runs(&v4, &echo), u32::from((61_000 + n) % 3));
        let mut later = segment((IpAddr::from([8, 8, 8, n as u8]), 1000 + n), (SERVICE, 61_007));
        later[7] = 9;
        assert_eq!(runs(&v4, &later), 0, "a later fragment");
    }
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
        // Whoever is asked for.
        for target in [50, 99] {
            let mut question = arp.bytes();
            question[24..28].copy_from_slice(&[10, 1, 1, target]);
            assert_eq!(runs(&program, &question) > 0, senders.contains(&arp.sender.1), "{last}");
        }
    }
    assert_eq!(runs(&arp_senders(&[]), &[0; 28]), 0);
}
