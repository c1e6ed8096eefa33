//! TCP segments that we originate: resets (RFC 9293 section 3.10.7.1), and the numbers in others' segments.

use std::net::IpAddr;

use super::checksum::Sum;
use super::ip;
use super::packet::{Headers, Layer4};

/// Bytes of a reset over IPv4.
pub const RESET_V4: usize = 20 + 20;
/// The same over IPv6.
pub const RESET_V6: usize = 40 + 20;
/// Hops that a reset may go.
const HOPS: u8 = 64;

const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A reset: from whom to whom, and by which numbers the receiver knows it for one of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// Address and port that it comes from.
    pub source: (IpAddr, u16),
    /// Address and port that it goes to, of the same family.
    pub destination: (IpAddr, u16),
    /// Its sequence number: what the receiver expects next.
    pub sequence: u32,
    /// What it acknowledges; `None`: nothing.
    pub acknowledgement: Option<u32>,
}

impl Reset {
    /// The answer to a segment that belongs to no connection, or `None`: to a reset there is none.
    pub fn answering(packet: &[u8], headers: &Headers) -> Option<Reset> {
        let Layer4::Tcp { source, destination, flags } = headers.layer4 else { return None };
        let Numbers { sequence, acknowledgement } = Numbers::of(packet, headers)?;
        if flags.is_rst() {
            return None;
        }
        let payload = headers.length.checked_sub(headers.headers_len(packet))? as u32;
        let length = payload + u32::from(flags.is_syn()) + u32::from(flags.is_fin());
        let (sequence, acknowledgement) = match acknowledgement {
            Some(acknowledgement) => (acknowledgement, None),
            None => (0, Some(sequence.wrapping_add(length))),
        };
        Some(Reset {
            source: (headers.destination, destination),
            destination: (headers.source, source),
            sequence,
            acknowledgement,
        })
    }

    /// Writes it to the start of `buffer`. Returns its length, or `None` if there is no room.
    pub fn write(&self, buffer: &mut [u8]) -> Option<usize> {
        let ip_length = if self.source.0.is_ipv4() { 20 } else { 40 };
        let packet = buffer.get_mut(..ip_length + 20)?;
        packet.fill(0);
        let length = packet.len();
        let (header, segment) = packet.split_at_mut(ip_length);
        match (self.source.0, self.destination.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                header[0] = 0x45;
                header[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                // RFC 6864: it is never fragmented, so its identification says nothing.
                header[6] = 0x40;
                header[8] = HOPS;
                header[9] = ip::TCP;
                header[12..16].copy_from_slice(&from.octets());
                header[16..20].copy_from_slice(&to.octets());
                let sum = Sum::default().bytes(header).complement();
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                header[0] = 0x60;
                header[5] = 20;
                header[6] = ip::TCP;
                header[7] = HOPS;
                header[8..24].copy_from_slice(&from.octets());
                header[24..40].copy_from_slice(&to.octets());
            }
            _ => return None,
        }
        segment[..2].copy_from_slice(&self.source.1.to_be_bytes());
        segment[2..4].copy_from_slice(&self.destination.1.to_be_bytes());
        segment[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        segment[8..12].copy_from_slice(&self.acknowledgement.unwrap_or(0).to_be_bytes());
        segment[12] = 5 << 4;
        segment[13] = RST | if self.acknowledgement.is_some() { ACK } else { 0 };
        let pseudo = Sum::pseudo_header(self.source.0, self.destination.0, ip::TCP, 20);
        let sum = pseudo.bytes(segment).complement();
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        Some(length)
    }
}

/// The numbers of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Of its first byte.
    pub sequence: u32,
    /// What its sender expects next, where it says so.
    pub acknowledgement: Option<u32>,
}

impl Numbers {
    /// Those of a whole TCP segment; `None` of anything else.
    #[inline]
    pub fn of(packet: &[u8], headers: &Headers) -> Option<Numbers> {
        let Layer4::Tcp { flags, .. } = headers.layer4 else { return None };
        let fields: &[u8; 12] = packet.get(headers.layer4_start..)?.first_chunk()?;
        let word = |at: usize| {
            u32::from_be_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]])
        };
        Some(Numbers { sequence: word(4), acknowledgement: flags.is_ack().then(|| word(8)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::full_checksum;
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

    fn segment(v6: bool, ack: Option<u32>, syn: bool, payload: &[u8]) -> Vec<u8> {
        let step = if v6 {
            PacketBuilder::ipv6([1; 16], [2; 16], 9)
        } else {
            PacketBuilder::ipv4([1; 4], [2; 4], 9)
        };
        let mut step = step.tcp(1000, 80, 7, 9);
        if let Some(ack) = ack {
            step = step.ack(ack);
        }
        if syn {
            step = step.syn();
        }
        let mut bytes = Vec::new();
        step.write(&mut bytes, payload).expect("a segment");
        bytes
    }

    fn answered(v6: bool, ack: Option<u32>, syn: bool, payload: &[u8]) -> (u32, u32, bool) {
        let packet = segment(v6, ack, syn, payload);
        let headers = Headers::parse(&packet).expect("headers");
        let reset = Reset::answering(&packet, &headers).expect("an answer");
        let mut buffer = [0xee; 100];
        let length = reset.write(&mut buffer).expect("room");
        let headers = Headers::parse(&buffer[..length]).expect("a packet");
        assert_eq!(headers.ports(), (80, 1000));
        let at = headers.checksum_at().expect("a checksum");
        let field = u16::from_be_bytes([buffer[at], buffer[at + 1]]);
        assert_eq!(full_checksum(&buffer[..length], &headers), Some(field));
        let sliced = SlicedPacket::from_ip(&buffer[..length]).expect("a packet");
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("TCP") };
        assert!(tcp.rst() && !tcp.syn());
        (tcp.sequence_number(), tcp.acknowledgment_number(), tcp.ack())
    }

    /// RFC 9293 section 3.10.7.1.
    #[test]
    fn a_reset_has_the_numbers_that_its_receiver_expects() {
        for v6 in [false, true] {
            assert_eq!(answered(v6, None, true, b""), (0, 8, true));
            assert_eq!(answered(v6, Some(55), false, b"xyz"), (55, 0, false));
            assert_eq!(answered(v6, None, false, b"xyz"), (0, 10, true));
        }
    }

    #[test]
    fn a_reset_is_never_answered_and_a_short_buffer_takes_none() {
        let mut packet = segment(false, Some(1), false, b"");
        packet[33] |= RST;
        let headers = Headers::parse(&packet).expect("headers");
        assert_eq!(Reset::answering(&packet, &headers), None);
        let reset = Reset {
            source: (IpAddr::from([1; 4]), 1),
            destination: (IpAddr::from([2; 4]), 2),
            sequence: 1,
            acknowledgement: None,
        };
        assert_eq!(reset.write(&mut [0; RESET_V4 - 1]), None);
    }
}
