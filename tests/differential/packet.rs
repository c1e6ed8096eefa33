//! Packets as bytes: built from a [`Shape`], split into fragments, put together again.

use std::net::IpAddr;

use crate::bytes::{crc32c, get, octets, pseudo_header, put, seal, sum};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) source: (IpAddr, u16),
    pub(crate) destination: (IpAddr, u16),
}

#[derive(Clone, Debug)]
pub(crate) enum Layer4 {
    Tcp {
        flags: u8,
        sequence: u32,
        acknowledged: u32,
        options: Vec<u8>,
    },
    Udp {
        has_checksum: bool,
    },
    /// The identifier is the port of the end that asked.
    Echo {
        is_request: bool,
        number: u16,
    },
    Sctp {
        tag: u32,
    },
    /// Bytes from the header on that the checksum covers; 0: all.
    UdpLite {
        coverage: u16,
    },
    /// Type of the packet, RFC 4340 section 5.1.
    Dccp {
        kind: u8,
    },
    /// An ICMP message other than an echo; the payload is what it quotes.
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    Other {
        protocol: u8,
    },
}

/// All of a packet but its ends.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) layer4: Layer4,
    pub(crate) payload: Vec<u8>,
    pub(crate) ttl: u8,
    /// Type of service, traffic class.
    pub(crate) tos: u8,
    /// IPv4 identification, IPv6 flow label, and what its fragments have in common.
    pub(crate) id: u16,
    pub(crate) may_fragment: bool,
    /// IPv4 options, a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers, in order: type, and what lies behind the first byte.
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
    /// Is layer 4's checksum another than it should be?
    pub(crate) is_wrong: bool,
    /// Is layer 4's checksum zero where the packet arrives?
    pub(crate) is_zero: bool,
    /// Does the sender leave the checksum to the device?
    pub(crate) is_partial: bool,
    pub(crate) split: Option<Split>,
}

/// How a packet is split into fragments.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    /// Bytes of each but the last, a multiple of eight.
    pub(crate) size: usize,
    /// The order in which they are sent: sorted by this number, which each takes in turn.
    pub(crate) order: Vec<u8>,
}

/// Where things lie in a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) layer4: usize,
    pub(crate) protocol: u8,
    pub(crate) source_port: Option<usize>,
    /// A checksum of 16 bits, and how many bytes of layer 4 it covers.
    pub(crate) checksum: Option<(usize, usize)>,
}

impl Shape {
    fn protocol(&self, is_v6: bool) -> u8 {
        match self.layer4 {
            Layer4::Tcp { .. } => TCP,
            Layer4::Udp { .. } => UDP,
            Layer4::Sctp { .. } => SCTP,
            Layer4::UdpLite { .. } => 136,
            Layer4::Dccp { .. } => 33,
            Layer4::Echo { .. } | Layer4::Icmp { .. } => [1, 58][usize::from(is_v6)],
            Layer4::Other { protocol } => protocol,
        }
    }

    /// The packet in one piece.
    pub(crate) fn build(&self, ends: Ends) -> (Vec<u8>, Layout) {
        let is_v6 = ends.source.0.is_ipv6();
        let protocol = self.protocol(is_v6);
        let mut packet = self.internet_header(ends, protocol);
        let layer4 = packet.len();
        let (bytes, field) = self.layer4(is_v6, ends.source.1, ends.destination.1);
        packet.extend(bytes);
        let length = packet.len();
        if is_v6 {
            put(&mut packet, 4, (length - 40) as u16);
        } else {
            put(&mut packet, 2, length as u16);
            seal(&mut packet);
        }
        let covered = match self.layer4 {
            Layer4::UdpLite { coverage } if coverage > 0 => usize::from(coverage),
            _ => length - layer4,
        };
        let source_port = match self.layer4 {
            Layer4::Echo { is_request, .. } => is_request.then_some(layer4 + 4),
            Layer4::Icmp { .. } | Layer4::Other { .. } => None,
            _ => Some(layer4),
        };
        let checksum = field.map(|at| (layer4 + at, covered));
        let layout = Layout { layer4, protocol, source_port, checksum };
        if let Some((at, _)) = layout.checksum {
            let field = layout.full_checksum(&packet).expect("it has one");
            let error = if self.is_wrong { [1, 0] } else { [0, 0] };
            put(&mut packet, at, sum(&[&field.to_be_bytes(), &error]));
        }
        (packet, layout)
    }

    /// With a payload that makes layer 4's checksum zero between these ends.
    pub(crate) fn zeroed(&self, ends: Ends) -> Shape {
        let mut shape = self.clone();
        put(&mut shape.payload, 0, 0);
        let (packet, layout) = shape.build(ends);
        put(&mut shape.payload, 0, layout.full_checksum(&packet).expect("it has one"));
        shape
    }

    fn internet_header(&self, ends: Ends, protocol: u8) -> Vec<u8> {
        let mut packet;
        if ends.source.0.is_ipv4() {
            packet = vec![0x45 + (self.options.len() / 4) as u8, self.tos, 0, 0];
            packet.extend(self.id.to_be_bytes());
            packet.extend([if self.may_fragment { 0 } else { 0x40 }, 0, self.ttl, protocol, 0, 0]);
        } else {
            packet = vec![0x60 | self.tos >> 4, self.tos << 4];
            packet.extend(self.id.to_be_bytes());
            packet.extend([0, 0, protocol, self.ttl]);
        }
        packet.extend(octets(ends.source.0));
        packet.extend(octets(ends.destination.0));
        if ends.source.0.is_ipv4() {
            packet.extend(&self.options);
            return packet;
        }
        let mut next = 6;
        for (kind, bytes) in &self.extensions {
            packet[next] = *kind;
            next = packet.len();
            packet.push(protocol);
            packet.extend(bytes);
        }
        packet
    }

    /// Header and payload with a checksum of zero, and where that lies.
    fn layer4(&self, is_v6: bool, source: u16, destination: u16) -> (Vec<u8>, Option<usize>) {
        let mut bytes = Vec::new();
        let ports = |bytes: &mut Vec<u8>| {
            bytes.extend(source.to_be_bytes());
            bytes.extend(destination.to_be_bytes());
        };
        let field = match &self.layer4 {
            Layer4::Tcp { flags, sequence, acknowledged, options } => {
                ports(&mut bytes);
                bytes.extend(sequence.to_be_bytes());
                bytes.extend(acknowledged.to_be_bytes());
                let length = (20 + options.len()) as u8 / 4;
                bytes.extend([length << 4, *flags, 0xff, 0xff, 0, 0, 0, 0]);
                bytes.extend(options);
                Some(16)
            }
            Layer4::Udp { has_checksum } => {
                ports(&mut bytes);
                bytes.extend((self.payload.len() as u16 + 8).to_be_bytes());
                bytes.extend([0, 0]);
                has_checksum.then_some(6)
            }
            Layer4::Echo { is_request, number } => {
                let kind = match (is_v6, is_request) {
                    (false, true) => 8,
                    (false, false) => 0,
                    (true, true) => 128,
                    (true, false) => 129,
                };
                bytes.extend([kind, 0, 0, 0]);
                bytes.extend(if *is_request { source } else { destination }.to_be_bytes());
                bytes.extend(number.to_be_bytes());
                Some(2)
            }
            Layer4::Sctp { tag } => {
                ports(&mut bytes);
                bytes.extend(tag.to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(&self.payload);
                let crc = crc32c(&bytes);
                bytes[8..12].copy_from_slice(&crc);
                return (bytes, None);
            }
            Layer4::UdpLite { coverage } => {
                ports(&mut bytes);
                bytes.extend(coverage.to_be_bytes());
                bytes.extend([0, 0]);
                Some(6)
            }
            Layer4::Dccp { kind } => {
                ports(&mut bytes);
                // A Request's header is 20 bytes long, that of the others here 28; sequence numbers of 48 bits.
                bytes.extend([if *kind == 0 { 5 } else { 7 }, 0, 0, 0, kind << 1 | 1, 0]);
                bytes.resize(if *kind == 0 { 20 } else { 28 }, 1);
                Some(6)
            }
            Layer4::Icmp { kind, code, rest } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(rest);
                Some(2)
            }
            Layer4::Other { .. } => None,
        };
        bytes.extend(&self.payload);
        (bytes, field)
    }

    /// The packet as it is sent: in one piece, or in fragments.
    pub(crate) fn frames(&self, ends: Ends) -> Vec<Vec<u8>> {
        self.split(self.build(ends).0)
    }

    /// A packet of this shape as it is sent.
    pub(crate) fn split(&self, packet: Vec<u8>) -> Vec<Vec<u8>> {
        match &self.split {
            Some(split) => split.apply(&packet, self.id),
            None => vec![packet],
        }
    }
}

impl Layout {
    /// The checksum as it should be.
    pub(crate) fn full_checksum(&self, packet: &[u8]) -> Option<u16> {
        let (at, covered) = self.checksum?;
        let bytes = &packet[self.layer4..];
        let within = at - self.layer4;
        let pseudo = match self.protocol {
            1 => Vec::new(),
            protocol => pseudo_header(packet, protocol, bytes.len()),
        };
        let field = !sum(&[&pseudo, &bytes[..within], &bytes[within + 2..covered]]);
        // RFC 768: a computed zero is sent as all ones.
        let is_never_zero = self.protocol == UDP || self.protocol == 136;
        Some(if is_never_zero && field == 0 { 0xffff } else { field })
    }

    /// How far the field is from what it should be: 0, and nothing else, is right.
    pub(crate) fn error(&self, packet: &[u8]) -> u16 {
        let Some((at, _)) = self.checksum else { return 0 };
        let right = self.full_checksum(packet).expect("it has one");
        sum(&[&get(packet, at).to_be_bytes(), &(!right).to_be_bytes()]) % 0xffff
    }
}

impl Split {
    fn apply(&self, packet: &[u8], id: u16) -> Vec<Vec<u8>> {
        let is_v6 = packet[0] >> 4 == 6;
        let (start, next_at) = unfragmentable(packet);
        let payload = &packet[start..];
        let last = payload.len().div_ceil(self.size) - 1;
        let parts = payload.chunks(self.size).enumerate().map(|(at, part)| {
            let mut out = packet[..start].to_vec();
            let (offset, more) = ((at * self.size) as u16, u16::from(at < last));
            if is_v6 {
                put(&mut out, 4, (start - 40 + 8 + part.len()) as u16);
                out.extend([packet[next_at], 0]);
                out[next_at] = FRAGMENT;
                out.extend((offset | more).to_be_bytes());
                out.extend([0x5a, 0x5a]);
                out.extend(id.to_be_bytes());
            } else {
                put(&mut out, 2, (start + part.len()) as u16);
                put(&mut out, 6, (offset / 8) | (more << 13));
                seal(&mut out);
            }
            out.extend(part);
            out
        });
        let order = self.order.iter().cycle();
        let mut parts: Vec<_> = order.zip(parts).collect();
        parts.sort_by_key(|(order, _)| *order);
        parts.into_iter().map(|(_, part)| part).collect()
    }
}

/// Where the part that is split begins, and where the type of what follows stands. Of IPv6 hop-by-hop options and
/// a routing header are in each fragment (RFC 8200 section 4.5).
fn unfragmentable(packet: &[u8]) -> (usize, usize) {
    if packet[0] >> 4 == 4 {
        return (usize::from(packet[0] & 15) * 4, 9);
    }
    let (mut at, mut next_at) = (40, 6);
    while matches!(packet[next_at], HOP_BY_HOP | ROUTING) {
        next_at = at;
        at += (usize::from(packet[at + 1]) + 1) * 8;
    }
    (at, next_at)
}

/// What a fragment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Part {
    pub(crate) offset: usize,
    pub(crate) length: usize,
    pub(crate) is_last: bool,
    pub(crate) id: u32,
}

/// Where an IPv6 fragment header begins, and where its type stands. Linux has destination options in front of it
/// too (ip6_find_1stfragopt()).
fn fragment_header(frame: &[u8]) -> Option<(usize, usize)> {
    const DESTINATION_OPTIONS: u8 = 60;
    let (mut at, mut next_at) = (40, 6);
    while matches!(frame[next_at], HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
        next_at = at;
        at += (usize::from(frame[at + 1]) + 1) * 8;
    }
    (frame[next_at] == FRAGMENT).then_some((at, next_at))
}

/// Fragment or whole, and where its header (an IPv6 fragment header included) ends.
pub(crate) fn part(frame: &[u8]) -> (Part, usize) {
    let (start, _) = unfragmentable(frame);
    if frame[0] >> 4 == 4 {
        let word = get(frame, 6);
        let part = Part {
            offset: usize::from(word & 0x1fff) * 8,
            length: usize::from(get(frame, 2)) - start,
            is_last: word & 0x2000 == 0,
            id: u32::from(get(frame, 4)),
        };
        return (part, start);
    }
    let length = 40 + usize::from(get(frame, 4));
    let Some((at, _)) = fragment_header(frame) else {
        return (Part { offset: 0, length: length - start, is_last: true, id: 0 }, start);
    };
    let word = get(frame, at + 2);
    let id = u32::from(get(frame, at + 4)) << 16 | u32::from(get(frame, at + 6));
    let offset = usize::from(word & !7);
    (Part { offset, length: length - at - 8, is_last: word & 1 == 0, id }, at + 8)
}

/// Puts the fragments of one datagram together; a whole packet is all of itself.
pub(crate) fn join(frames: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    let mut parts: Vec<_> = frames.iter().map(|frame| (part(frame), frame)).collect();
    parts.sort_by_key(|((part, _), _)| part.offset);
    let Some(((_, _), first)) = parts.first() else { return Err("nothing came".into()) };
    let is_v6 = first[0] >> 4 == 6;
    let header = if is_v6 { fragment_header(first) } else { None };
    let start = header.map_or(unfragmentable(first).0, |(at, _)| at);
    let mut whole = first[..start].to_vec();
    if let Some((at, next_at)) = header {
        whole[next_at] = first[at];
    }
    for (at, ((part, header), frame)) in parts.iter().enumerate() {
        let is_next = part.offset == whole.len() - start && part.id == parts[0].0.0.id;
        if !is_next || part.is_last != (at + 1 == parts.len()) {
            let parts: Vec<_> = parts.iter().map(|((part, _), _)| part).collect();
            return Err(format!("fragments do not fit: {parts:?}"));
        }
        if header + part.length != frame.len() {
            return Err(format!(
                "{} bytes, of which {header} + {} count",
                frame.len(),
                part.length
            ));
        }
        if !is_v6 && sum(&[&frame[..start]]) != 0xffff {
            return Err("wrong IPv4 header checksum".into());
        }
        whole.extend(&frame[*header..]);
    }
    let length = whole.len();
    if is_v6 {
        put(&mut whole, 4, (length - 40) as u16);
    } else {
        put(&mut whole, 2, length as u16);
        let flags = get(&whole, 6) & 0x4000;
        put(&mut whole, 6, flags);
        seal(&mut whole);
    }
    Ok(whole)
}
