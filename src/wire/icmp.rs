//! ICMP errors that we originate (RFC 792, RFC 1191; RFC 4443): the packet complained of becomes the quote.

use std::net::IpAddr;

use super::checksum::Sum;
use super::ip;
use super::packet::Headers;

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// Larger than the next link takes: fragmentation needed, packet too big.
    TooBig {
        /// Bytes that it takes.
        mtu: u32,
    },
    /// Its time to live, or hop limit, ran out on the way.
    TimeExceeded,
    /// Nobody listens there.
    PortUnreachable,
}

/// Bytes in front of the quote: IP and ICMP headers.
pub const HEADERS_V4: usize = 20 + 8;
/// The same for IPv6.
pub const HEADERS_V6: usize = 40 + 8;
/// RFC 1812 section 4.3.2.3: as much as fits into 576 bytes.
const LARGEST_V4: usize = 576;
/// RFC 4443 section 2.4 (c): as much as fits into the smallest MTU.
const LARGEST_V6: usize = 1280;
/// Hops that an error may go.
const HOPS: u8 = 64;

/// Makes of the packet at the start of `buffer`, whose headers are `headers`, an error about it, from `from`
/// (of its family) to its source. Returns the error's length, or `None` if the buffer has no room for its
/// headers and eight bytes of layer 4 behind those that it quotes.
pub fn complain(
    buffer: &mut [u8],
    headers: &Headers,
    complaint: Complaint,
    from: IpAddr,
) -> Option<usize> {
    let (front, largest) = match from {
        IpAddr::V4(_) => (HEADERS_V4, LARGEST_V4),
        IpAddr::V6(_) => (HEADERS_V6, LARGEST_V6),
    };
    let length = buffer.len().min(largest).min(front + headers.length);
    let quoted = length.checked_sub(front)?;
    if quoted < (headers.layer4_start + 8).min(headers.length) {
        return None;
    }
    buffer.copy_within(..quoted, front);
    let (header, rest) = buffer[..length].split_at_mut(front - 8);
    match (from, headers.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.fill(0);
            header[0] = 0x45;
            header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            header[8] = HOPS;
            header[9] = ip::ICMP;
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let sum = Sum::default().bytes(header).complement();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            rest[..8].copy_from_slice(&match complaint {
                Complaint::TooBig { mtu } => {
                    let [a, b] = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
                    [3, 4, 0, 0, 0, 0, a, b]
                }
                Complaint::TimeExceeded => [11, 0, 0, 0, 0, 0, 0, 0],
                Complaint::PortUnreachable => [3, 3, 0, 0, 0, 0, 0, 0],
            });
            let sum = Sum::default().bytes(rest).complement();
            rest[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            header.fill(0);
            header[0] = 0x60;
            header[4..6].copy_from_slice(&(rest.len() as u16).to_be_bytes());
            header[6] = ip::ICMPV6;
            header[7] = HOPS;
            header[8..24].copy_from_slice(&from.octets());
            header[24..40].copy_from_slice(&to.octets());
            rest[..8].copy_from_slice(&match complaint {
                Complaint::TooBig { mtu } => {
                    let [a, b, c, d] = mtu.to_be_bytes();
                    [2, 0, 0, 0, a, b, c, d]
                }
                Complaint::TimeExceeded => [3, 0, 0, 0, 0, 0, 0, 0],
                Complaint::PortUnreachable => [1, 4, 0, 0, 0, 0, 0, 0],
            });
            let pseudo = Sum::pseudo_header(from.into(), to.into(), ip::ICMPV6, rest.len() as u32);
            let sum = pseudo.bytes(rest).complement();
            rest[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        _ => return None,
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::full_checksum;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn udp(v6: bool, payload: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let payload = vec![7; payload];
        let step = if v6 {
            PacketBuilder::ipv6([1; 16], [2; 16], 9)
        } else {
            PacketBuilder::ipv4([1; 4], [2; 4], 9)
        };
        step.udp(5, 53).write(&mut bytes, &payload).expect("a packet");
        bytes
    }

    proptest! {
        #[test]
        fn an_error_quotes_the_packet_and_its_checksums_are_right(
            v6: bool, is_too_big: bool, payload in 0usize..3000, mtu in 68u32..9000,
        ) {
            let packet = udp(v6, payload);
            let headers = Headers::parse(&packet).expect("headers");
            let mut buffer = packet.clone();
            buffer.resize(packet.len() + 48, 0);
            let complaint =
                if is_too_big { Complaint::TooBig { mtu } } else { Complaint::TimeExceeded };
            let from = if v6 { IpAddr::from([9; 16]) } else { IpAddr::from([9; 4]) };
            let length = complain(&mut buffer, &headers, complaint, from).expect("room");
            let error = &buffer[..length];
            let largest = if v6 { 1280 } else { 576 };
            prop_assert!(length <= largest);
            let outer = Headers::parse(error).expect("an error");
            prop_assert_eq!((outer.source, outer.destination), (from, headers.source));
            prop_assert!(outer.is_icmp_error());
            let at = outer.checksum_at().expect("a checksum");
            let field = u16::from_be_bytes([error[at], error[at + 1]]);
            prop_assert_eq!(full_checksum(error, &outer), Some(field));
            if !v6 { prop_assert_eq!(Sum::default().bytes(&error[..20]).complement(), 0); }
            let quoted = outer.quoted(error).expect("a quote");
            prop_assert_eq!((quoted.source, quoted.ports()), (headers.source, (5, 53)));
            let quote = &error[outer.quote_start()..];
            prop_assert_eq!(quote, &packet[..quote.len()]);
            if is_too_big {
                let said = if v6 { &error[44..48] } else { &error[26..28] };
                let said = said.iter().fold(0, |all, byte| all << 8 | u32::from(*byte));
                prop_assert_eq!(said, mtu);
            }
        }
    }

    #[test]
    fn without_room_there_is_no_error() {
        let mut packet = udp(false, 0);
        let headers = Headers::parse(&packet).expect("headers");
        let from = IpAddr::from([9; 4]);
        assert_eq!(complain(&mut packet, &headers, Complaint::TimeExceeded, from), None);
    }
}
