//! Checksums in a capture. It was taken in front of the NIC that completes them or behind it, and does not say;
//! so each is looked at: right, partial, or wrong.

use crate::wire::checksum::Sum;
use crate::wire::offload::Csum;
use crate::wire::packet::{Headers, found_checksum, full_checksum};

/// What a packet's checksums are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Of layer 4. Partial: the field holds the uncomplemented sum of the pseudo-header, and the rest was left to
    /// the NIC.
    pub(super) csum: Csum,
    /// One is neither right nor partial. An edit by difference leaves it as wrong as it is.
    pub(super) is_wrong: bool,
}

/// Looks at the checksums of `packet`, whose headers are `headers`. What cannot be judged counts as right: a
/// fragment, a protocol without one.
pub(super) fn judge(packet: &[u8], headers: &Headers) -> Found {
    let is_header_wrong = headers.source.is_ipv4()
        && Sum::default().bytes(&packet[..headers.layer4_start]).fold() != 0xffff;
    let csum = found_checksum(packet, headers);
    Found { csum: csum.unwrap_or(Csum::Complete), is_wrong: is_header_wrong || csum.is_none() }
}

/// Does for a partial checksum what the NIC would have done.
pub(super) fn complete(packet: &mut [u8]) {
    let Ok(headers) = Headers::parse(packet) else { return };
    if let (Some(field), Some(at)) = (full_checksum(packet, &headers), headers.checksum_at()) {
        packet[at..at + 2].copy_from_slice(&field.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn packets() -> Vec<Vec<u8>> {
        let mut packets = vec![Vec::new(); 6];
        let v4 = || PacketBuilder::ipv4([10, 0, 0, 1], [192, 0, 2, 1], 64);
        let v6 = || PacketBuilder::ipv6([1; 16], [2; 16], 64);
        v4().tcp(1, 2, 3, 4).write(&mut packets[0], b"odd").expect("built");
        v6().tcp(1, 2, 3, 4).write(&mut packets[1], b"payload").expect("built");
        v4().udp(1, 2).write(&mut packets[2], b"payload").expect("built");
        v6().udp(1, 2).write(&mut packets[3], b"odd").expect("built");
        v4().icmpv4_echo_request(1, 2).write(&mut packets[4], b"ping").expect("built");
        v6().icmpv6_echo_request(1, 2).write(&mut packets[5], b"ping").expect("built");
        packets
    }

    const RIGHT: Found = Found { csum: Csum::Complete, is_wrong: false };
    const WRONG: Found = Found { csum: Csum::Complete, is_wrong: true };

    fn judged(packet: &[u8]) -> Found {
        judge(packet, &Headers::parse(packet).expect("headers"))
    }

    #[test]
    fn what_another_builder_computed_is_right_and_any_other_byte_is_wrong() {
        for packet in packets() {
            assert_eq!(judged(&packet), RIGHT);
            let mut damaged = packet.clone();
            *damaged.last_mut().expect("a byte") ^= 0x10;
            assert_eq!(judged(&damaged), WRONG);
        }
    }

    #[test]
    fn the_header_checksum_of_ipv4_counts_as_well() {
        let mut packet = packets().swap_remove(0);
        packet[10] ^= 1;
        assert_eq!(judged(&packet), WRONG);
    }

    #[test]
    fn a_partial_checksum_is_told_and_completed() {
        for whole in packets().into_iter().take(4) {
            let headers = Headers::parse(&whole).expect("headers");
            let at = headers.checksum_at().expect("a checksum");
            let length = (whole.len() - headers.layer4_start) as u32;
            let pseudo =
                Sum::pseudo_header(headers.source, headers.destination, headers.protocol, length);
            let mut packet = whole.clone();
            packet[at..at + 2].copy_from_slice(&pseudo.fold().to_be_bytes());
            let start = headers.layer4_start as u16;
            let csum = Csum::Partial { start, offset: at as u16 - start };
            assert_eq!(judged(&packet), Found { csum, is_wrong: false });
            complete(&mut packet);
            assert_eq!(packet, whole);
        }
    }

    #[test]
    fn udp_without_a_checksum_and_fragments_are_not_judged() {
        let mut packet = packets().swap_remove(2);
        packet[26..28].fill(0);
        assert_eq!(judged(&packet), RIGHT);

        let mut first = packets().swap_remove(2);
        first[6] = 0x20;
        let sum = Sum::default().bytes(&first[..10]).bytes(&first[12..20]).complement();
        first[10..12].copy_from_slice(&sum.to_be_bytes());
        *first.last_mut().expect("a byte") ^= 1;
        assert_eq!(judged(&first), RIGHT);
    }
}
