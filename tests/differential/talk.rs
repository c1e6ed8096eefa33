//! What the two ends of a flow say to each other, protocol by protocol: headers and payloads, in order.

use crate::bytes::Random;
use crate::packet::Layer4;

/// True: the host sends it.
pub(crate) type Talk = Vec<(bool, Layer4, Vec<u8>)>;

/// A kind of flow, and its talk.
pub(crate) fn any(is_v6: bool, random: &mut Random) -> (&'static str, Talk) {
    match random.of(0..100) {
        0..30 => ("TCP", tcp(random)),
        30..55 => ("UDP", udp(random)),
        55..70 => ("echo", echo(random)),
        70..80 => ("SCTP", sctp(random)),
        80..84 => ("UDP-Lite", udp_lite(random)),
        84..86 => ("DCCP", dccp(random)),
        86..90 => ("ESP", other(50, random)),
        90..94 => ("GRE", gre(random)),
        // In IPv6 it is an extension header, and precedes any of the others.
        94..96 if !is_v6 => ("AH", authenticated(random)),
        _ => {
            // EtherIP, OSPF, IP compression, L2TP, experiments.
            let protocol = random.pick(&[97, 89, 108, 115, 253]);
            ("other", other(protocol, random))
        }
    }
}

fn some(random: &mut Random) -> Vec<u8> {
    let count = if random.is(20) { 0 } else { random.of(1..1200) };
    random.bytes(count)
}

fn tcp(random: &mut Random) -> Talk {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const PSH: u8 = 8;
    const ACK: u8 = 16;
    let (mut ours, mut theirs) = (random.next() as u32, random.next() as u32);
    let synchronised = vec![2, 4, 5, 0xb4, 4, 2, 1, 1];
    let timed = [vec![1, 1, 8, 10], random.bytes(8)].concat();
    let segment = |flags, sequence, acknowledged, options: &Vec<u8>| Layer4::Tcp {
        flags,
        sequence,
        acknowledged,
        options: options.clone(),
    };
    let mut talk = vec![
        (true, segment(SYN, ours, 0, &synchronised), vec![]),
        (false, segment(SYN | ACK, theirs, ours.wrapping_add(1), &synchronised), vec![]),
    ];
    (ours, theirs) = (ours.wrapping_add(1), theirs.wrapping_add(1));
    talk.push((true, segment(ACK, ours, theirs, &timed), vec![]));
    let question = some(random);
    let asked = ours.wrapping_add(question.len() as u32);
    talk.push((true, segment(PSH | ACK, ours, theirs, &timed), question));
    let answer = some(random);
    let answered = theirs.wrapping_add(answer.len() as u32);
    talk.push((false, segment(PSH | ACK, theirs, asked, &timed), answer));
    talk.push((true, segment(FIN | ACK, asked, answered, &vec![]), vec![]));
    talk
}

fn udp(random: &mut Random) -> Talk {
    // RFC 768: 0 is none; RFC 6935: tunnels have none in IPv6 too.
    let has_checksum = random.is(80);
    [true, false, true, false]
        .map(|is_out| (is_out, Layer4::Udp { has_checksum }, some(random)))
        .to_vec()
}

fn echo(random: &mut Random) -> Talk {
    let mut talk = Talk::new();
    for number in 1..3 {
        let data = some(random);
        talk.push((true, Layer4::Echo { is_request: true, number }, data.clone()));
        talk.push((false, Layer4::Echo { is_request: false, number }, data));
    }
    talk
}

/// RFC 9260 section 5.1, and data.
fn sctp(random: &mut Random) -> Talk {
    let (ours, theirs) = (random.next() as u32 | 1, random.next() as u32 | 1);
    let init = |kind: u8, tag: u32, more: &[u8]| {
        let mut chunk = vec![kind, 0, 0, 20 + more.len() as u8];
        chunk.extend(tag.to_be_bytes());
        chunk.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        chunk.extend(more);
        chunk
    };
    let data = |random: &mut Random| {
        let count = random.of(1..300) * 4;
        let mut chunk = vec![0, 3];
        chunk.extend((16 + count as u16).to_be_bytes());
        chunk.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        chunk.extend(random.bytes(count));
        chunk
    };
    let packet = |tag| Layer4::Sctp { tag };
    vec![
        (true, packet(0), init(1, ours, &[])),
        (false, packet(ours), init(2, theirs, &[0, 7, 0, 8, 1, 2, 3, 4])),
        (true, packet(theirs), vec![10, 0, 0, 8, 1, 2, 3, 4]),
        (false, packet(ours), vec![11, 0, 0, 4]),
        (true, packet(theirs), data(random)),
        (false, packet(ours), data(random)),
    ]
}

fn udp_lite(random: &mut Random) -> Talk {
    [true, false]
        .map(|is_out| {
            let coverage = random.pick(&[0, 0, 8, 12]);
            (is_out, Layer4::UdpLite { coverage }, random.bytes(100))
        })
        .to_vec()
}

fn dccp(random: &mut Random) -> Talk {
    // Request and Response.
    [true, false]
        .map(|is_out| (is_out, Layer4::Dccp { kind: u8::from(!is_out) }, some(random)))
        .to_vec()
}

fn gre(random: &mut Random) -> Talk {
    // Version 0, with a protocol type that nobody has.
    let packet = |random: &mut Random| [vec![0, 0, 0x88, 0xb5, 1, 2, 3, 4], some(random)].concat();
    [true, false, true, false]
        .map(|is_out| (is_out, Layer4::Other { protocol: 47 }, packet(random)))
        .to_vec()
}

/// RFC 4302, around an experiment.
fn authenticated(random: &mut Random) -> Talk {
    let packet = |random: &mut Random| [vec![253, 4, 0, 0], random.bytes(60)].concat();
    [true, false].map(|is_out| (is_out, Layer4::Other { protocol: 51 }, packet(random))).to_vec()
}

fn other(protocol: u8, random: &mut Random) -> Talk {
    [true, false, true, false]
        .map(|is_out| {
            let count = random.of(8..1000);
            (is_out, Layer4::Other { protocol }, random.bytes(count))
        })
        .to_vec()
}
