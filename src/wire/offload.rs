//! `virtio_net_hdr`: the ten bytes in front of a frame that carry its offload state (virtio 1.2,
//! section 5.1.6), in host byte order on TUN and packet sockets.

use super::packet::{Headers, found_checksum};

/// Bytes of the header.
pub const HEADER_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
/// The device has verified the checksum.
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_ECN` and `_ACCECN`, or-ed into the kind. Linux 6.18 does not know the second one: it is only said to who said it.
const GSO_ECN: u8 = 0x80;
const GSO_ACCECN: u8 = 0x10;

/// State of a frame's layer 4 checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Csum {
    /// The field holds what belongs on the wire (or the sender vouches for it).
    #[default]
    Complete,
    /// The field at `start + offset` holds the pseudo-header's sum; all from `start` on is still to be added.
    Partial {
        /// Bytes from the beginning of the IP header.
        start: u16,
        /// Bytes from `start`.
        offset: u16,
    },
}

/// How the device is to split the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams (USO).
    Udp,
}

/// What becomes of TCP's CWR bit where a frame is split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ecn {
    /// Nothing is said of it; it is the first segment's alone.
    #[default]
    Unsaid,
    /// It is set, and the first segment's alone (RFC 3168): a device that would give it to all must not split the frame.
    First,
    /// It is part of a counter that each segment carries (AccECN, RFC 9768).
    Each,
}

/// A frame larger than its NIC's packets: the device splits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// What is inside.
    pub kind: GsoKind,
    /// Bytes of layer 4 payload in each packet.
    pub size: u16,
    /// TCP's CWR bit.
    pub ecn: Ecn,
}

impl Gso {
    /// Of a flow of whose ECN nothing is said.
    pub fn new(kind: GsoKind, size: u16) -> Gso {
        Gso { kind, size, ecn: Ecn::default() }
    }
}

/// A frame's offload state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// Its checksum.
    pub csum: Csum,
    /// A complete checksum was found right on the way in, or such that nobody can find it wrong.
    pub is_verified: bool,
    /// Its segments, if it is to be split.
    pub gso: Option<Gso>,
}

/// A header that names a kind of segmentation unknown to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown GSO kind {0:#x}")]
pub struct UnknownGso(pub u8);

impl Offload {
    /// Reads the header of a frame whose IP header begins `packet_start` bytes behind it (0 on a TUN, 14
    /// on a packet socket). `hdr_len` is ignored: the kernel's value cannot be trusted on forwarded frames.
    ///
    /// # Errors
    /// A kind of segmentation that is none of ours.
    pub fn parse(header: &[u8; HEADER_LEN], packet_start: usize) -> Result<Offload, UnknownGso> {
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let kind = match header[1] & !(GSO_ECN | GSO_ACCECN) {
            0 => None,
            1 => Some(GsoKind::Tcp4),
            4 => Some(GsoKind::Tcp6),
            5 => Some(GsoKind::Udp),
            other => return Err(UnknownGso(other)),
        };
        let csum = if header[0] & NEEDS_CSUM != 0 {
            Csum::Partial { start: word(6).saturating_sub(packet_start as u16), offset: word(8) }
        } else {
            Csum::Complete
        };
        let is_verified = header[0] & DATA_VALID != 0;
        // Where both are set the second one counts, by the patch for Linux that proposes it.
        let ecn = match header[1] {
            bits if bits & GSO_ACCECN != 0 => Ecn::Each,
            bits if bits & GSO_ECN != 0 => Ecn::First,
            _ => Ecn::Unsaid,
        };
        let gso = kind.map(|kind| Gso { kind, size: word(4), ecn });
        Ok(Offload { csum, is_verified, gso })
    }

    /// That of a packet that came without a header, by XDP, which has none: what its checksum field holds tells. A real wire carries
    /// whole checksums alone, but on a veth the neighbour leaves them to the device. One that is wrong is taken for whole: it stays wrong.
    pub fn found(packet: &[u8]) -> Offload {
        let headers = Headers::parse(packet).ok();
        let csum = headers.and_then(|headers| found_checksum(packet, &headers));
        let is_verified = csum == Some(Csum::Complete);
        Offload { csum: csum.unwrap_or_default(), is_verified, gso: None }
    }

    /// Does the device have to cut the frame, or to sum it?
    pub fn is_needed(&self) -> bool {
        self.gso.is_some() || self.csum != Csum::Complete
    }

    /// Writes the header for a frame whose IP header begins `packet_start` bytes behind it and whose
    /// headers, from the IP header through layer 4, take `headers_len` bytes.
    pub fn emit(&self, packet_start: usize, headers_len: usize) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        let mut put = |at: usize, value: usize| {
            header[at..at + 2].copy_from_slice(&(value as u16).to_ne_bytes());
        };
        if let Csum::Partial { start, offset } = self.csum {
            put(6, usize::from(start) + packet_start);
            put(8, usize::from(offset));
        }
        if let Some(gso) = self.gso {
            put(2, headers_len + packet_start);
            put(4, usize::from(gso.size));
        }
        header[0] = if matches!(self.csum, Csum::Partial { .. }) { NEEDS_CSUM } else { 0 };
        header[1] = match self.gso.map(|gso| gso.kind) {
            None => 0,
            Some(GsoKind::Tcp4) => 1,
            Some(GsoKind::Tcp6) => 4,
            Some(GsoKind::Udp) => 5,
        } | match self.gso.map(|gso| gso.ecn) {
            Some(Ecn::First) => GSO_ECN,
            Some(Ecn::Each) => GSO_ACCECN,
            _ => 0,
        };
        header
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::wire::checksum::Sum;
    use crate::wire::ip::{TCP, UDP};

    #[test]
    fn an_ethernet_header_moves_the_checksum_start() {
        let gso = Some(Gso::new(GsoKind::Tcp4, 1448));
        let csum = Csum::Partial { start: 20, offset: 16 };
        let offload = Offload { csum, gso, is_verified: false };
        let on_nic = offload.emit(14, 52);
        assert_eq!(u16::from_ne_bytes([on_nic[6], on_nic[7]]), 34);
        assert_eq!(u16::from_ne_bytes([on_nic[2], on_nic[3]]), 66);
        assert_eq!(Offload::parse(&on_nic, 14), Ok(offload));
    }

    #[test]
    fn what_came_without_a_header_is_told_by_its_checksum() {
        let payload = [1, 2, 3, 4, 5, 6, 7];
        let v4 = || etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [203, 0, 113, 10], 64);
        let v6 = || etherparse::PacketBuilder::ipv6([1; 16], [2; 16], 64);
        let mut packets = [const { Vec::new() }; 4];
        let [tcp, udp, tcp_v6, udp_v6] = &mut packets;
        v4().tcp(1, 2, 3, 4).write(tcp, &payload).expect("a Vec");
        v4().udp(1, 2).write(udp, &payload).expect("a Vec");
        v6().tcp(1, 2, 3, 4).write(tcp_v6, &payload).expect("a Vec");
        v6().udp(1, 2).write(udp_v6, &payload).expect("a Vec");
        let (start, offset) = ([20, 20, 40, 40], [16, 6, 16, 6]);
        for ((whole, start), offset) in packets.iter().zip(start).zip(offset) {
            let mut padded = whole.clone();
            padded.extend([0xaa; 5]);
            let verified = Offload { is_verified: true, ..Offload::default() };
            assert_eq!(Offload::found(&padded), verified, "whole, and padding behind");
            let at = usize::from(start + offset);
            let mut wrong = whole.clone();
            wrong[at] ^= 1;
            assert_eq!(Offload::found(&wrong), Offload::default(), "wrong stays wrong");
            let length = (whole.len() - usize::from(start)) as u32;
            let ends: [IpAddr; 2] = match start {
                20 => [IpAddr::from([10, 0, 0, 1]), IpAddr::from([203, 0, 113, 10])],
                _ => [IpAddr::from([1; 16]), IpAddr::from([2; 16])],
            };
            let protocol = if offset == 16 { TCP } else { UDP };
            let sum = Sum::pseudo_header(ends[0], ends[1], protocol, length).fold();
            let mut partial = whole.clone();
            partial[at..at + 2].copy_from_slice(&sum.to_be_bytes());
            let csum = Csum::Partial { start, offset };
            assert_eq!(Offload::found(&partial), Offload { csum, ..Offload::default() });
            for length in 0..partial.len() {
                assert_eq!(Offload::found(&partial[..length]), Offload::default(), "cut off");
            }
        }
        let [_, mut none, ..] = packets;
        none[26..28].fill(0);
        assert!(Offload::found(&none).is_verified, "UDP without a checksum");
    }

    #[test]
    fn ecn_is_carried_and_an_unknown_kind_is_an_error() {
        let parsed = |kind| {
            let mut header = [0; HEADER_LEN];
            header[1] = kind;
            Offload::parse(&header, 0).map(|offload| (offload, offload.emit(0, 40)[1]))
        };
        for (bits, ecn, emitted) in [
            (0, Ecn::Unsaid, 0),
            (GSO_ECN, Ecn::First, GSO_ECN),
            (GSO_ACCECN, Ecn::Each, GSO_ACCECN),
            (GSO_ECN | GSO_ACCECN, Ecn::Each, GSO_ACCECN),
        ] {
            for (number, kind) in [(1, GsoKind::Tcp4), (4, GsoKind::Tcp6)] {
                let gso = Some(Gso { ecn, ..Gso::new(kind, 0) });
                let offload = Offload { gso, ..Offload::default() };
                assert_eq!(parsed(number | bits), Ok((offload, number | emitted)));
            }
            assert_eq!(parsed(bits).map(|(offload, kind)| (offload.gso, kind)), Ok((None, 0)));
        }
        assert_eq!(parsed(7), Err(UnknownGso(7)));
    }

    #[test]
    fn only_what_the_device_verified_counts_as_verified() {
        let parsed =
            |flags| Offload::parse(&[flags, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0).map(|o| o.is_verified);
        assert_eq!([0, NEEDS_CSUM, DATA_VALID].map(parsed), [Ok(false), Ok(false), Ok(true)]);
    }
}
