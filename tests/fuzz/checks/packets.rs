//! Packets out of the fuzzer's bytes: raw ones, and ones built out of a few addresses, protocols and ports, so that
//! what the forwarder knows is met more often than by chance.

use std::net::IpAddr;

use vipa::wire::checksum::Sum;
use vipa::wire::ip;
use vipa::wire::packet::{Headers, full_checksum};

use super::input::Input;

/// Pairs of the families: two VIPAs, a NIC's address, who is ruled, two others, one on a link, none.
pub(crate) const ADDRESSES: [([u8; 4], [u8; 16]); 8] = [
    ([203, 0, 113, 10], six(0x2001, 0x10)),
    ([203, 0, 113, 11], six(0x2001, 0x11)),
    ([10, 1, 1, 2], six(0xfd00, 2)),
    ([10, 20, 0, 1], six(0x2001, 0x99)),
    ([10, 30, 0, 1], six(0x2001, 0x98)),
    ([192, 0, 2, 1], six(0x2001, 0x97)),
    ([10, 50, 0, 1], six(0xff02, 1)),
    ([0; 4], [0; 16]),
];
const PROTOCOLS: [u8; 8] =
    [ip::TCP, ip::UDP, ip::ICMP, ip::SCTP, ip::DCCP, ip::UDP_LITE, 47, ip::ICMPV6];
const PORTS: [u16; 8] = [40000, 25, 53, 520, 5060, 61000, 61001, 5555];

const fn six(first: u16, last: u8) -> [u8; 16] {
    let [a, b] = first.to_be_bytes();
    let third = if first == 0x2001 { 0x0d } else { 0 };
    let fourth = if first == 0x2001 { 0xb8 } else { 0 };
    [a, b, third, fourth, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// Raw or built, and put right or not.
pub(crate) fn packet(input: &mut Input<'_>) -> Vec<u8> {
    let choice = input.byte();
    let mut packet = if choice & 1 == 0 {
        let length = usize::from(input.byte());
        let mut packet = input.bytes(length).to_vec();
        packet.resize(packet.len() + usize::from(choice >> 4) * 200, 0x45);
        packet
    } else {
        built(input)
    };
    for _ in 0..(choice >> 1) & 3 {
        let (at, value) = (usize::from(input.word()), input.byte());
        if let Some(byte) = packet.get_mut(at % 128) {
            *byte = value;
        }
    }
    if choice & 8 != 0 {
        put_right(&mut packet);
    }
    packet
}

fn built(input: &mut Input<'_>) -> Vec<u8> {
    let (ends, kind, ports) = (input.byte(), input.byte(), input.byte());
    let (flags, part, size, ttl) = (input.byte(), input.byte(), input.byte(), input.byte());
    let choice = |bits: u8| ADDRESSES[usize::from(bits & 7)];
    let port = |bits: u8| PORTS[usize::from(bits & 7)];
    let is_v6 = ends & 1 != 0;
    let mut protocol = PROTOCOLS[usize::from(kind & 7)];
    if protocol == ip::ICMP && is_v6 {
        protocol = ip::ICMPV6;
    }
    let payload = usize::from(size & 0x7f) * if size & 0x80 != 0 { 29 } else { 1 };
    let body = layer4(protocol, (port(ports), port(ports >> 3)), flags, payload);
    // Half of all are whole.
    let offset = if part & 0x80 != 0 { u16::from(part & 0x30) } else { 0 };
    let has_more = part & 0xc0 == 0xc0;
    let id = u16::from(part & 7);
    let (from, to) = (choice(ends >> 1), choice(ends >> 4));
    let mut packet = Vec::with_capacity(64 + body.len());
    if is_v6 {
        packet.extend([0x60, 0, 0, 0, 0, 0, protocol, ttl & 0x7f]);
        packet.extend(from.1);
        packet.extend(to.1);
        if part & 0x80 != 0 {
            packet[6] = 44;
            let [a, b] = (offset << 3 | u16::from(has_more)).to_be_bytes();
            packet.extend([protocol, 0, a, b, 0, 0, 0, id as u8]);
        }
        if kind & 0x80 != 0 {
            let next = std::mem::replace(&mut packet[6], 60);
            packet.splice(40..40, [next, 0, 1, 4, 0, 0, 0, 0]);
        }
    } else {
        let options = if kind & 0x80 != 0 { 8 } else { 0 };
        let [a, b] = (offset | u16::from(has_more) << 13).to_be_bytes();
        packet.extend([0x45 + options / 4, 0, 0, 0, 0, id as u8, a, b, ttl & 0x7f, protocol, 0, 0]);
        packet.extend(from.0);
        packet.extend(to.0);
        packet.resize(packet.len() + usize::from(options), 1);
    }
    packet.extend(body);
    put_length(&mut packet);
    packet
}

fn layer4(protocol: u8, (from, to): (u16, u16), flags: u8, payload: usize) -> Vec<u8> {
    let [[a, b], [c, d]] = [from.to_be_bytes(), to.to_be_bytes()];
    let mut body = match protocol {
        ip::TCP => vec![a, b, c, d, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 1, 0, 0, 0, 0, 0],
        ip::UDP | ip::UDP_LITE => {
            let [high, low] = (8 + payload as u16).to_be_bytes();
            vec![a, b, c, d, high, low, 0, 0]
        }
        // Type: echo, its reply, or any.
        ip::ICMP => vec![if flags & 0xf0 == 0 { flags & 8 } else { flags }, 0, 0, 0, a, b, 0, 1],
        ip::ICMPV6 => {
            vec![if flags & 0xf0 == 0 { 128 | flags & 1 } else { flags }, 0, 0, 0, a, b, 0, 1]
        }
        ip::SCTP => vec![a, b, c, d, 0, 0, 0, 7, 1, 2, 3, 4, flags & 3, 0, 0, 20],
        ip::DCCP => vec![a, b, c, d, 3, 0, 0, 0, flags & 6, 0, 0, 1],
        _ => vec![0, 0, 8, 0],
    };
    body.resize(body.len() + payload, flags);
    body
}

fn put_length(packet: &mut [u8]) {
    let length = packet.len();
    match packet.first().map(|first| first >> 4) {
        Some(4) if length >= 20 => packet[2..4].copy_from_slice(&(length as u16).to_be_bytes()),
        Some(6) if length >= 40 => {
            packet[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        }
        _ => {}
    }
}

/// Length and checksums as a sender makes them, where the packet has such.
pub(crate) fn put_right(packet: &mut [u8]) {
    put_length(packet);
    let Ok(headers) = Headers::parse(packet) else { return };
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let header_len = usize::from(packet[0] & 0x0f) * 4;
        let sum = Sum::default().bytes(&packet[..header_len]).complement();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    if let (Some(at), Some(field)) = (headers.checksum_at(), full_checksum(packet, &headers)) {
        packet[at..at + 2].copy_from_slice(&field.to_be_bytes());
    }
}

/// The other end's packet: addresses, ports and the kind of an echo turned around.
pub(crate) fn reply(packet: &[u8]) -> Option<Vec<u8>> {
    let headers = Headers::parse(packet).ok()?;
    let mut reply = packet[..headers.length].to_vec();
    let (at, half) = if headers.source.is_ipv4() { (12, 4) } else { (8, 16) };
    let (source, destination) = reply[at..at + 2 * half].split_at_mut(half);
    source.swap_with_slice(destination);
    let start = headers.layer4_start;
    match headers.protocol {
        ip::TCP | ip::UDP | ip::SCTP | ip::DCCP | ip::UDP_LITE if reply.len() >= start + 4 => {
            let (source, destination) = reply[start..start + 4].split_at_mut(2);
            source.swap_with_slice(destination);
        }
        ip::ICMP if reply.get(start) == Some(&8) => reply[start] = 0,
        ip::ICMPV6 if reply.get(start) == Some(&128) => reply[start] = 129,
        _ => {}
    }
    put_right(&mut reply);
    Some(reply)
}

/// An ICMP error from somewhere about `packet`, to its source.
pub(crate) fn error(packet: &[u8], from: ([u8; 4], [u8; 16]), quoted: usize) -> Option<Vec<u8>> {
    let headers = Headers::parse(packet).ok()?;
    let quote = &packet[..quoted.min(headers.length)];
    let mut error = match headers.source {
        IpAddr::V4(to) => {
            let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, ip::ICMP, 0, 0];
            bytes.extend(from.0);
            bytes.extend(to.octets());
            bytes.extend([3, 3, 0, 0, 0, 0, 0, 0]);
            bytes
        }
        IpAddr::V6(to) => {
            let mut bytes = vec![0x60, 0, 0, 0, 0, 0, ip::ICMPV6, 64];
            bytes.extend(from.1);
            bytes.extend(to.octets());
            bytes.extend([1, 4, 0, 0, 0, 0, 0, 0]);
            bytes
        }
    };
    error.extend(quote);
    put_right(&mut error);
    Some(error)
}
