//! Splits a super-packet in software, for a device that refuses to: TCP (RFC 9293) and UDP into packets of
//! at most `size` payload bytes, each with its own lengths, sequence number and complete checksums.

use super::ip;
use super::offload::{Csum, Ecn, Gso};
use super::packet::{Fragment, Headers, Layer4, full_checksum};

const TCP_FIN_AND_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// How many packets `packet` makes.
pub fn count(headers: &Headers, packet: &[u8], gso: Option<Gso>) -> usize {
    let payload = headers.length.saturating_sub(headers.headers_len(packet));
    match segments(headers, gso) {
        Some(size) => payload.div_ceil(size).max(1),
        None => 1,
    }
}

/// Payload bytes of each packet, if it is one that can be split: whole, TCP or UDP.
fn segments(headers: &Headers, gso: Option<Gso>) -> Option<usize> {
    let can_be = matches!(headers.layer4, Layer4::Tcp { .. } | Layer4::Udp { .. })
        && headers.fragment == Fragment::Whole;
    gso.map(|gso| usize::from(gso.size)).filter(|size| can_be && *size > 0)
}

/// Writes packet number `at` of [`count`] into `out` and returns its length, or `None` if `out` is too
/// small for it. Without `gso`, or if it cannot be split, that is the packet itself with its checksum completed.
pub fn segment(
    packet: &[u8],
    headers: &Headers,
    csum: Csum,
    gso: Option<Gso>,
    at: usize,
    out: &mut [u8],
) -> Option<usize> {
    let header_len = headers.headers_len(packet);
    let payload = packet.get(header_len..headers.length)?;
    let segments = segments(headers, gso);
    let size = segments.unwrap_or(payload.len());
    let start = (at * size).min(payload.len());
    let part = &payload[start..(start + size).min(payload.len())];
    let is_last = start + part.len() == payload.len();
    let length = header_len + part.len();
    let out = out.get_mut(..length)?;
    out[..header_len].copy_from_slice(&packet[..header_len]);
    out[header_len..].copy_from_slice(part);

    if segments.is_some() {
        write_lengths(out, headers, at as u16);
    }
    let layer4 = headers.layer4_start;
    if segments.is_some() && matches!(headers.layer4, Layer4::Tcp { .. }) {
        let sequence = out.get_mut(layer4 + 4..layer4 + 8)?;
        let first = u32::from_be_bytes([sequence[0], sequence[1], sequence[2], sequence[3]]);
        sequence.copy_from_slice(&first.wrapping_add(start as u32).to_be_bytes());
        if !is_last {
            out[layer4 + 13] &= !TCP_FIN_AND_PSH;
        }
        if at > 0 && gso.is_some_and(|gso| gso.ecn != Ecn::Each) {
            out[layer4 + 13] &= !TCP_CWR;
        }
    }
    if segments.is_some() || csum != Csum::Complete {
        let part = Headers { length, ..*headers };
        if let (Some(field), Some(at)) = (full_checksum(out, &part), headers.checksum_at()) {
            out[at..at + 2].copy_from_slice(&field.to_be_bytes());
        }
    }
    Some(length)
}

/// Lengths of IP and UDP, IPv4's identification (`number` on from the first) and header checksum.
fn write_lengths(out: &mut [u8], headers: &Headers, number: u16) {
    let length = out.len();
    if headers.source.is_ipv4() {
        out[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        let identification = u16::from_be_bytes([out[4], out[5]]).wrapping_add(number);
        out[4..6].copy_from_slice(&identification.to_be_bytes());
        out[10..12].fill(0);
        let header_len = usize::from(out[0] & 0x0f) * 4;
        let sum = super::checksum::Sum::default().bytes(&out[..header_len]).complement();
        out[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        out[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
    }
    if headers.protocol == ip::UDP {
        let at = headers.layer4_start;
        out[at + 4..at + 6].copy_from_slice(&((length - at) as u16).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::offload::GsoKind;
    use etherparse::PacketBuilder;

    /// Splits, lets an independent parser verify every checksum, and returns the payloads in order.
    fn split(packet: &[u8], gso: Gso) -> Vec<Vec<u8>> {
        let headers = Headers::parse(packet).expect("headers");
        let mut out = vec![0; 2000];
        (0..count(&headers, packet, Some(gso)))
            .map(|at| {
                let csum = Csum::Partial { start: 0, offset: 0 };
                let len = segment(packet, &headers, csum, Some(gso), at, &mut out).expect("room");
                let sliced = etherparse::PacketHeaders::from_ip_slice(&out[..len]).expect("sliced");
                let ip = sliced.net.expect("ip");
                match sliced.transport.expect("transport") {
                    etherparse::TransportHeader::Tcp(tcp) => {
                        let sum = match &ip {
                            etherparse::NetHeaders::Ipv4(h, _) => {
                                tcp.calc_checksum_ipv4(h, sliced.payload.slice())
                            }
                            etherparse::NetHeaders::Ipv6(h, _) => {
                                tcp.calc_checksum_ipv6(h, sliced.payload.slice())
                            }
                            _ => panic!("no IP"),
                        };
                        assert_eq!(sum.expect("sum"), tcp.checksum);
                        assert_eq!(
                            tcp.sequence_number,
                            1000u32.wrapping_add((at * usize::from(gso.size)) as u32)
                        );
                        assert_eq!(tcp.fin, (at + 1) == count(&headers, packet, Some(gso)));
                    }
                    etherparse::TransportHeader::Udp(udp) => {
                        let etherparse::NetHeaders::Ipv4(h, _) = &ip else { panic!("no IPv4") };
                        let sum = udp.calc_checksum_ipv4(h, sliced.payload.slice()).expect("sum");
                        assert_eq!(sum, udp.checksum);
                    }
                    other => panic!("{other:?}"),
                }
                if let etherparse::NetHeaders::Ipv4(h, _) = &ip {
                    assert_eq!(h.calc_header_checksum(), h.header_checksum);
                }
                sliced.payload.slice().to_vec()
            })
            .collect()
    }

    #[test]
    fn the_parts_are_the_whole_with_right_checksums() {
        let payload: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
        let mut v4 = Vec::new();
        PacketBuilder::ipv4([1; 4], [2; 4], 9)
            .tcp(1, 2, 1000, 9)
            .fin()
            .write(&mut v4, &payload)
            .expect("built");
        let mut v6 = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 9)
            .tcp(1, 2, 1000, 9)
            .fin()
            .write(&mut v6, &payload)
            .expect("built");
        let mut udp = Vec::new();
        PacketBuilder::ipv4([1; 4], [2; 4], 9).udp(1, 2).write(&mut udp, &payload).expect("built");
        for (packet, kind) in [(v4, GsoKind::Tcp4), (v6, GsoKind::Tcp6), (udp, GsoKind::Udp)] {
            let parts = split(&packet, Gso::new(kind, 1448));
            assert_eq!(parts.len(), 4);
            assert_eq!(parts.concat(), payload);
        }
    }

    /// RFC 3168, section 6.1.2; RFC 9768, where it is a bit of a counter.
    #[test]
    fn cwr_is_the_first_parts_alone_unless_each_carries_it() {
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4([1; 4], [2; 4], 9).tcp(1, 2, 1000, 9);
        builder.write(&mut packet, &[7; 30]).expect("built");
        packet[20 + 13] |= TCP_CWR;
        let headers = Headers::parse(&packet).expect("headers");
        for (ecn, expected) in [
            (Ecn::Unsaid, [true, false, false]),
            (Ecn::First, [true, false, false]),
            (Ecn::Each, [true; 3]),
        ] {
            let gso = Some(Gso { ecn, ..Gso::new(GsoKind::Tcp4, 10) });
            let mut out = [0; 100];
            let found = [0, 1, 2].map(|at| {
                segment(&packet, &headers, Csum::Complete, gso, at, &mut out).expect("room");
                out[20 + 13] & TCP_CWR != 0
            });
            assert_eq!(found, expected, "{ecn:?}");
        }
    }

    #[test]
    fn what_cannot_be_split_stays_as_it_is() {
        let mut whole = Vec::new();
        PacketBuilder::ipv4([1; 4], [2; 4], 9)
            .udp(1, 2)
            .write(&mut whole, &[7; 99])
            .expect("built");
        let later = |length: usize| {
            let mut packet = whole[..length].to_vec();
            packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            packet[7] = 5;
            packet
        };
        let partial = Csum::Partial { start: 20, offset: 6 };
        let cut = Some(Gso::new(GsoKind::Udp, 10));
        let nothing = Some(Gso::new(GsoKind::Udp, 0));
        // The second has no room for a UDP header: later fragments show none.
        for (packet, csum, gso) in [
            (later(120), partial, cut),
            (later(23), partial, None),
            (later(23), Csum::Complete, cut),
            (whole.clone(), Csum::Complete, nothing),
        ] {
            let headers = Headers::parse(&packet).expect("headers");
            assert_eq!(count(&headers, &packet, gso), 1);
            let mut out = vec![0; packet.len()];
            let length = segment(&packet, &headers, csum, gso, 0, &mut out).expect("room");
            assert_eq!(out[..length], packet);
        }
    }
}
