//! An IP packet's headers, read once: what the forwarder wants to know of IPv4 (RFC 791), IPv6 with its
//! extension headers (RFC 8200), TCP, UDP and ICMP. Nothing is copied but what is returned.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::ip::{self, Family};
use super::offload::Csum;

/// Which part of a datagram a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole,
    /// The first part: layer 4 header and ports are here.
    First,
    /// A later part: no ports.
    Later,
}

/// What tells flows between two hosts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer4 {
    /// TCP's ports and flags.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// The flag byte, RFC 9293 section 3.1.
        flags: TcpFlags,
    },
    /// UDP's ports.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP or ICMPv6 echo.
    Echo {
        /// Request, or reply.
        is_request: bool,
        /// RFC 792, RFC 4443 section 4: the identifier.
        identifier: u16,
    },
    /// Any other ICMP or ICMPv6 message.
    Icmp {
        /// Its type.
        kind: u8,
    },
    /// Ports that stay as they are when addresses are rewritten: those of SCTP, whose CRC covers them but no
    /// address (RFC 9260 section 6.8), of DCCP and of UDP-Lite.
    Kept {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// An SCTP INIT or a DCCP-Request: it asks for an association.
        opens: bool,
    },
    /// A protocol without ports, or a later fragment.
    Other,
}

/// TCP's flag byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;

    /// ACK, and nothing that begins or ends a connection.
    pub fn is_data(self) -> bool {
        self.0 & (Self::SYN | Self::FIN | Self::RST | Self::ACK) == Self::ACK
    }

    /// The first segment of a connection: SYN without ACK or RST.
    pub fn is_bare_syn(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }

    /// Any segment with SYN.
    pub fn is_syn(self) -> bool {
        self.0 & Self::SYN != 0
    }

    /// FIN.
    pub fn is_fin(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// RST.
    pub fn is_rst(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// ACK.
    pub fn is_ack(self) -> bool {
        self.0 & Self::ACK != 0
    }
}

/// The headers of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IANA number of what follows the last extension header.
    pub protocol: u8,
    /// Whole, or which fragment.
    pub fragment: Fragment,
    /// What the fragments of a datagram have in common (RFC 791 identification, RFC 8200 section 4.5); 0 if
    /// it is whole.
    pub fragment_id: u32,
    /// Bytes from the IP header to layer 4.
    pub layer4_start: usize,
    /// Ports and the like.
    pub layer4: Layer4,
    /// Bytes of the packet; what lies behind is padding of the link.
    pub length: usize,
}

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The version is neither 4 nor 6.
    #[error("neither IPv4 nor IPv6")]
    NotIp,
    /// Shorter than its headers say, or a field contradicts another.
    #[error("truncated or contradictory headers")]
    Malformed,
}

impl Headers {
    /// Reads the headers of `packet`, which begins with its IP header.
    ///
    /// # Errors
    /// See [`ParseError`].
    pub fn parse(packet: &[u8]) -> Result<Headers, ParseError> {
        parse(packet, Extent::All)
    }

    /// Reads the headers of the packet that this one, an ICMP error, quotes: `Some` if at least eight bytes
    /// of its layer 4 are there (RFC 792; RFC 4443 section 2.4 c) and it is of this family. They count from
    /// [`Headers::quote_start`], and their `length` is what is there of the packet. A redirect is about a way and
    /// not about a flow: who sends it knows only the addresses on the wire, and so does who heeds it, the kernel.
    pub fn quoted(&self, packet: &[u8]) -> Option<Headers> {
        let is_redirect = self.layer4 == Layer4::Icmp { kind: 5 } && self.family() == Family::V4;
        if !self.is_icmp_error() || is_redirect || self.fragment == Fragment::Later {
            return None;
        }
        let quote = packet.get(self.quote_start()..self.length)?;
        parse(quote, Extent::Beginning)
            .ok()
            .filter(|quoted| quoted.fragment != Fragment::Later && quoted.family() == self.family())
    }

    /// Where an ICMP error's quote begins.
    pub fn quote_start(&self) -> usize {
        self.layer4_start + 8
    }

    /// An ICMP message about another packet.
    pub fn is_icmp_error(&self) -> bool {
        match (self.layer4, self.family()) {
            // Unreachable, source quench, redirect, time exceeded, parameter problem.
            (Layer4::Icmp { kind }, Family::V4) => matches!(kind, 3..=5 | 11 | 12),
            (Layer4::Icmp { kind }, Family::V6) => (1..=127).contains(&kind),
            _ => false,
        }
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.source)
    }

    /// Source and destination port; of an echo the identifier stands on the asking side, 0 on the other.
    pub fn ports(&self) -> (u16, u16) {
        match self.layer4 {
            Layer4::Tcp { source, destination, .. }
            | Layer4::Udp { source, destination }
            | Layer4::Kept { source, destination, .. } => (source, destination),
            Layer4::Echo { is_request: true, identifier } => (identifier, 0),
            Layer4::Echo { is_request: false, identifier } => (0, identifier),
            Layer4::Icmp { .. } | Layer4::Other => (0, 0),
        }
    }

    /// Bytes from the IP header through layer 4's header, as `packet` has them.
    pub fn headers_len(&self, packet: &[u8]) -> usize {
        self.layer4_start
            + match self.layer4 {
                Layer4::Tcp { .. } => {
                    usize::from(packet.get(self.layer4_start + 12).map_or(5, |b| b >> 4)) * 4
                }
                Layer4::Udp { .. } | Layer4::Echo { .. } | Layer4::Icmp { .. } => 8,
                Layer4::Kept { .. } | Layer4::Other => 0,
            }
    }

    /// Where layer 4's checksum field lies, from the IP header on, if the protocol has one that we update.
    pub fn checksum_at(&self) -> Option<usize> {
        let offset = match self.layer4 {
            Layer4::Tcp { .. } => 16,
            Layer4::Udp { .. } => 6,
            Layer4::Echo { .. } | Layer4::Icmp { .. } => 2,
            Layer4::Kept { .. } if self.protocol != ip::SCTP => 6,
            Layer4::Kept { .. } | Layer4::Other => return None,
        };
        Some(self.layer4_start + offset)
    }
}

/// How much of a packet is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    /// What an ICMP error quotes: IP's headers and at least eight bytes.
    Beginning,
}

fn parse(packet: &[u8], extent: Extent) -> Result<Headers, ParseError> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => parse_v4(packet, extent),
        Some(6) => parse_v6(packet, extent),
        Some(_) => Err(ParseError::NotIp),
        None => Err(ParseError::Malformed),
    }
}

fn parse_v4(packet: &[u8], extent: Extent) -> Result<Headers, ParseError> {
    let header: &[u8; 20] = packet.first_chunk().ok_or(ParseError::Malformed)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let length = extent.of(packet, usize::from(u16::from_be_bytes([header[2], header[3]])))?;
    if header_len < 20 || length < header_len {
        return Err(ParseError::Malformed);
    }
    let offset_and_flags = u16::from_be_bytes([header[6], header[7]]);
    let fragment = match (offset_and_flags & 0x1fff, offset_and_flags & 0x2000 != 0) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    };
    let address = |at: usize| {
        IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]))
    };
    let protocol = header[9];
    let fragment_id = match fragment {
        Fragment::Whole => 0,
        _ => u32::from(u16::from_be_bytes([header[4], header[5]])),
    };
    Ok(Headers {
        source: address(12),
        destination: address(16),
        protocol,
        fragment,
        fragment_id,
        layer4_start: header_len,
        layer4: parse_layer4((protocol, ip::ICMP), fragment, extent, &packet[header_len..length])?,
        length,
    })
}

impl Extent {
    /// The length of a packet that says it has `length` bytes.
    fn of(self, packet: &[u8], length: usize) -> Result<usize, ParseError> {
        match self {
            Extent::All if packet.len() < length => Err(ParseError::Malformed),
            _ => Ok(length.min(packet.len())),
        }
    }
}

/// Hop-by-hop options, routing and destination options have the same shape (RFC 8200 section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

fn parse_v6(packet: &[u8], extent: Extent) -> Result<Headers, ParseError> {
    let header: &[u8; 40] = packet.first_chunk().ok_or(ParseError::Malformed)?;
    let length = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let length = extent.of(packet, length)?;
    let packet = &packet[..length];
    let address = |bytes: &[u8]| {
        let mut octets = [0; 16];
        octets.copy_from_slice(bytes);
        let address = Ipv6Addr::from(octets);
        // An IPv4-mapped one is an IPv4 host's, in a socket's eyes (RFC 4291 section 2.5.5.2), and would find
        // that host's flows; no packet may have it.
        match address.to_ipv4_mapped() {
            Some(_) => Err(ParseError::Malformed),
            None => Ok(IpAddr::V6(address)),
        }
    };
    let mut protocol = header[6];
    let mut at = 40;
    let mut fragment = Fragment::Whole;
    let mut fragment_id = 0;
    while fragment != Fragment::Later {
        let extension = |len: usize| packet.get(at..at + len).ok_or(ParseError::Malformed);
        match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                let bytes = extension(8)?;
                protocol = bytes[0];
                at += (usize::from(bytes[1]) + 1) * 8;
            }
            AUTHENTICATION => {
                let bytes = extension(8)?;
                protocol = bytes[0];
                at += (usize::from(bytes[1]) + 2) * 4;
            }
            FRAGMENT => {
                let bytes = extension(8)?;
                protocol = bytes[0];
                let offset_and_more = u16::from_be_bytes([bytes[2], bytes[3]]);
                fragment = match (offset_and_more & !7, offset_and_more & 1 != 0) {
                    (0, false) => fragment,
                    (0, true) => Fragment::First,
                    _ => Fragment::Later,
                };
                fragment_id = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
                at += 8;
            }
            _ => break,
        }
    }
    if at > length {
        return Err(ParseError::Malformed);
    }
    Ok(Headers {
        source: address(&header[8..24])?,
        destination: address(&header[24..40])?,
        protocol,
        fragment,
        fragment_id: if fragment == Fragment::Whole { 0 } else { fragment_id },
        layer4_start: at,
        layer4: parse_layer4((protocol, ip::ICMPV6), fragment, extent, &packet[at..])?,
        length,
    })
}

/// `icmp` is the number that the family's ICMP has: that of the other one means nothing here.
fn parse_layer4(
    (protocol, icmp): (u8, u8),
    fragment: Fragment,
    extent: Extent,
    bytes: &[u8],
) -> Result<Layer4, ParseError> {
    if fragment == Fragment::Later {
        return Ok(Layer4::Other);
    }
    let at_least = |len: usize| {
        let len = if extent == Extent::Beginning { 8 } else { len };
        bytes.get(..len).ok_or(ParseError::Malformed)
    };
    let word = |b: &[u8], at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
    match protocol {
        ip::TCP => {
            let b = at_least(20)?;
            let (source, destination) = (word(b, 0), word(b, 2));
            if extent == Extent::Beginning {
                return Ok(Layer4::Tcp { source, destination, flags: TcpFlags(0) });
            }
            let header_len = usize::from(b[12] >> 4) * 4;
            if header_len < 20 || bytes.len() < header_len {
                return Err(ParseError::Malformed);
            }
            Ok(Layer4::Tcp { source, destination, flags: TcpFlags(b[13]) })
        }
        ip::UDP => {
            let b = at_least(8)?;
            Ok(Layer4::Udp { source: word(b, 0), destination: word(b, 2) })
        }
        _ if protocol == icmp => {
            let b = at_least(8)?;
            let (request, reply) = if icmp == ip::ICMP { (8, 0) } else { (128, 129) };
            Ok(if b[0] == request || b[0] == reply {
                Layer4::Echo { is_request: b[0] == request, identifier: word(b, 4) }
            } else {
                Layer4::Icmp { kind: b[0] }
            })
        }
        ip::SCTP | ip::DCCP | ip::UDP_LITE => {
            let b = at_least(if protocol == ip::UDP_LITE { 8 } else { 12 })?;
            let opens = match protocol {
                // The type of the first chunk, RFC 9260 section 3.2.
                ip::SCTP => bytes.get(12) == Some(&1),
                // RFC 4340 section 5.1.
                ip::DCCP => bytes.get(8).is_some_and(|kind| kind & 0x1e == 0),
                _ => false,
            };
            Ok(Layer4::Kept { source: word(b, 0), destination: word(b, 2), opens })
        }
        _ => Ok(Layer4::Other),
    }
}

/// What the layer 4 checksum field of `packet`, which came without a word about it, is found to hold: a whole checksum, or the
/// pseudo-header's sum alone, the rest left to a NIC. `None`: neither, it is wrong. What cannot be judged (a fragment, a protocol without
/// one) counts as whole.
pub fn found_checksum(packet: &[u8], headers: &Headers) -> Option<Csum> {
    // DCCP and UDP-Lite may cover a part only.
    let can_be_judged =
        headers.fragment == Fragment::Whole && !matches!(headers.layer4, Layer4::Kept { .. });
    let (Some(at), true) = (headers.checksum_at(), can_be_judged) else {
        return Some(Csum::Complete);
    };
    let Some(whole) = packet.get(headers.layer4_start..headers.length) else {
        return Some(Csum::Complete);
    };
    let field = u16::from_be_bytes([packet[at], packet[at + 1]]);
    let is_udp = headers.protocol == ip::UDP;
    if is_udp && headers.source.is_ipv4() && field == 0 {
        return Some(Csum::Complete);
    }
    // A datagram may be shorter than what carries it (RFC 768); its own length counts.
    let bytes = match whole.get(4..6) {
        Some(&[high, low]) if is_udp => {
            let length = usize::from(u16::from_be_bytes([high, low]));
            whole.get(..length.max(8)).unwrap_or(whole)
        }
        _ => whole,
    };
    // RFC 792: the checksum of ICMP covers no pseudo-header.
    let pseudo = if headers.protocol == ip::ICMP {
        Sum::default()
    } else {
        // An IP packet is far shorter than 4 GiB.
        let length = bytes.len() as u32;
        Sum::pseudo_header(headers.source, headers.destination, headers.protocol, length)
    };
    if pseudo.bytes(bytes).fold() == 0xffff {
        return Some(Csum::Complete);
    }
    let may_be_partial = matches!(headers.layer4, Layer4::Tcp { .. } | Layer4::Udp { .. })
        && bytes.len() == whole.len();
    // Headers are far shorter than 64 KiB.
    let (start, offset) = (headers.layer4_start as u16, (at - headers.layer4_start) as u16);
    (may_be_partial && field == pseudo.fold()).then_some(Csum::Partial { start, offset })
}

/// The checksum of layer 4 as it belongs on the wire, computed anew over all of `packet`.
/// For tests and for what cannot be offloaded: it reads every byte. `None` for protocols whose checksum may
/// cover a part only (DCCP, UDP-Lite), has none that we update, or lies in another fragment.
pub fn full_checksum(packet: &[u8], headers: &Headers) -> Option<u16> {
    if headers.fragment != Fragment::Whole || matches!(headers.layer4, Layer4::Kept { .. }) {
        return None;
    }
    let at = headers.checksum_at()?;
    let bytes = packet.get(headers.layer4_start..headers.length)?;
    let sum = if headers.protocol == ip::ICMP {
        Sum::default()
    } else {
        Sum::pseudo_header(
            headers.source,
            headers.destination,
            headers.protocol,
            u32::try_from(bytes.len()).ok()?,
        )
    };
    let within = at - headers.layer4_start;
    let field = sum.bytes(&bytes[..within]).bytes(&bytes[within + 2..]).complement();
    // RFC 768: a computed zero is sent as all ones.
    Some(if headers.protocol == ip::UDP && field == 0 { 0xffff } else { field })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn built(
        builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        builder.write(&mut bytes, payload).expect("a packet");
        bytes
    }

    #[test]
    fn udp_of_both_families_agrees_with_an_independent_builder() {
        for bytes in [
            built(PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).udp(5, 53), b"question"),
            built(PacketBuilder::ipv6([1; 16], [2; 16], 9).udp(5, 53), b"odd"),
        ] {
            let headers = Headers::parse(&bytes).expect("headers");
            assert_eq!(headers.ports(), (5, 53));
            let at = headers.checksum_at().expect("a checksum");
            let field = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            assert_eq!(full_checksum(&bytes, &headers), Some(field));
        }
    }

    #[test]
    fn padding_of_the_link_is_no_part_of_the_packet() {
        let mut bytes = built(PacketBuilder::ipv4([1; 4], [2; 4], 9).udp(1, 2), b"x");
        bytes.resize(60, 0xee);
        assert_eq!(Headers::parse(&bytes).expect("headers").length, 29);
    }

    #[test]
    fn every_truncation_is_an_error_and_none_panics() {
        let bytes = built(PacketBuilder::ipv6([1; 16], [2; 16], 9).udp(1, 2), b"payload");
        for end in 0..bytes.len() {
            assert_eq!(Headers::parse(&bytes[..end]), Err(ParseError::Malformed), "{end} bytes");
        }
    }

    #[test]
    fn extension_headers_are_walked_and_a_later_fragment_has_no_ports() {
        let udp = built(PacketBuilder::ipv6([1; 16], [2; 16], 9).udp(7, 8), b"0123456789abcdef");
        let mut bytes = udp[..40].to_vec();
        bytes[6] = DESTINATION_OPTIONS;
        bytes.extend([FRAGMENT, 0, 1, 4, 0, 0, 0, 0]);
        bytes.extend([ip::UDP, 0, 0, 1, 0, 0, 0, 9]);
        bytes.extend(&udp[40..]);
        let len = (bytes.len() - 40) as u16;
        bytes[4..6].copy_from_slice(&len.to_be_bytes());
        let headers = Headers::parse(&bytes).expect("headers");
        assert_eq!(
            (headers.ports(), headers.fragment, headers.layer4_start),
            ((7, 8), Fragment::First, 56)
        );
        bytes[51] = 0x09;
        let headers = Headers::parse(&bytes).expect("headers");
        assert_eq!((headers.ports(), headers.fragment), ((0, 0), Fragment::Later));
    }

    #[test]
    fn an_ipv4_mapped_address_is_in_no_ipv6_packet() {
        let mapped = std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
        for (source, destination) in [(mapped, [2; 16]), ([1; 16], mapped)] {
            let bytes = built(PacketBuilder::ipv6(source, destination, 9).udp(1, 2), b"x");
            assert_eq!(Headers::parse(&bytes), Err(ParseError::Malformed));
        }
    }

    #[test]
    fn the_icmp_of_the_other_family_is_no_icmp() {
        let echo = [8, 0, 0, 0, 0, 1, 0, 1];
        let mut v6 = Vec::new();
        PacketBuilder::ipv6([1; 16], [2; 16], 9)
            .icmpv6_raw(3, 0, [0; 4])
            .write(&mut v6, &echo)
            .expect("built");
        assert!(Headers::parse(&v6).expect("headers").is_icmp_error());
        v6[6] = ip::ICMP;
        let headers = Headers::parse(&v6).expect("headers");
        assert_eq!((headers.layer4, headers.checksum_at()), (Layer4::Other, None));
    }

    #[test]
    fn an_error_quotes_packets_of_its_own_family_alone() {
        let v4 = built(PacketBuilder::ipv4([1; 4], [2; 4], 9).udp(1, 2), b"x");
        let v6 = built(PacketBuilder::ipv6([1; 16], [2; 16], 9).udp(1, 2), b"x");
        for (quote, is_there) in [(&v4, true), (&v6, false)] {
            let mut error = Vec::new();
            PacketBuilder::ipv4([3; 4], [1; 4], 9)
                .icmpv4_raw(3, 3, [0; 4])
                .write(&mut error, quote)
                .expect("built");
            let headers = Headers::parse(&error).expect("headers");
            assert_eq!(headers.quoted(&error).is_some(), is_there);
        }
    }
}
