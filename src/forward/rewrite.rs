//! Applies an [`Edit`] to a packet in place: addresses, ports and every checksum that covers them,
//! complete or partial, by what changed alone (RFC 1624).

use std::net::IpAddr;

use crate::wire::checksum::{Difference, Sum};
use crate::wire::ip;
use crate::wire::offload::Csum;
use crate::wire::packet::{Headers, Layer4};

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its port; of an echo the identifier; 0 where the protocol has none.
    pub port: u16,
}

/// What to write into a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Replace the source.
    Source(Endpoint),
    /// Replace the destination.
    Destination(Endpoint),
    /// Replace both.
    Both {
        /// The new source.
        source: Endpoint,
        /// The new destination.
        destination: Endpoint,
    },
}

/// Applies `edit` to `packet`, whose headers are `headers` and whose checksum is in the state `csum`.
/// The new address is of the packet's family. A UDP checksum of zero (none, RFC 768; in tunnels over IPv6
/// RFC 6935) stays zero.
pub fn apply(packet: &mut [u8], headers: &Headers, csum: Csum, edit: Edit) {
    let (removed, added, is_source) = match edit {
        Edit::Source(new) => (end(headers, true), new, true),
        Edit::Destination(new) => (end(headers, false), new, false),
        Edit::Both { source, destination } => {
            apply(packet, headers, csum, Edit::Source(source));
            (end(headers, false), destination, false)
        }
    };
    write_address(packet, added.address, is_source);
    let address = Difference::default().address(removed.address, added.address);
    if removed.address.is_ipv4() {
        // The header checksum is always complete; bytes 10 and 11 exist, the headers were parsed.
        update(packet, 10, |field| address.apply_complete(field));
    }
    let Some(at) = headers.checksum_at() else { return };
    let port_at = port_offset(headers, is_source);
    if let Some(port_at) = port_at {
        put(packet, port_at, added.port);
    }
    if packet.len() < at + 2 {
        // Beyond what an ICMP error quotes.
        return;
    }
    let is_udp = matches!(headers.layer4, Layer4::Udp { .. });
    if is_udp && get(packet, at) == 0 && csum == Csum::Complete {
        return;
    }
    // RFC 792: the checksum of ICMP covers no pseudo-header.
    let covered = if headers.protocol == ip::ICMP { Difference::default() } else { address };
    update(packet, at, |field| match csum {
        Csum::Partial { .. } => covered.apply_partial(field),
        Csum::Complete => {
            let covered = match port_at {
                Some(_) => covered.word(removed.port, added.port),
                None => covered,
            };
            match covered.apply_complete(field) {
                0 if is_udp => 0xffff,
                field => field,
            }
        }
    });
}

/// Applies `outer` to an ICMP error, whose checksum is in the state `csum`, and `inner` to the packet that it
/// quotes: addresses, ports and checksums inside and outside, as far as they are there (RFC 5508 section 4.2).
pub fn apply_to_error(
    packet: &mut [u8],
    (headers, csum): (&Headers, Csum),
    quoted: &Headers,
    (outer, inner): (Edit, Edit),
) {
    /// Bytes of layer 4 that an edit may change, and of a TCP header without options.
    const WITHIN: usize = 20;
    let start = headers.quote_start();
    let end = (start + quoted.layer4_start + WITHIN).min(headers.length);
    let quote = &mut packet[start..end];
    let is_short = quote.len() < quoted.layer4_start + WITHIN;
    let length = match quoted.layer4 {
        // A field of a header that is not all there is left alone.
        Layer4::Tcp { .. } if is_short => quoted.layer4_start + 8,
        _ => quote.len(),
    };
    let before = Sum::default().bytes(quote).fold();
    apply(&mut quote[..length], quoted, Csum::Complete, inner);
    let after = Sum::default().bytes(quote).fold();
    apply(packet, headers, csum, outer);
    if csum == Csum::Complete
        && let Some(at) = headers.checksum_at()
    {
        let quote = Difference::default().word(before, after);
        update(packet, at, |field| quote.apply_complete(field));
    }
}

/// Lowers the time to live, or hop limit, by one; false, and nothing changed, if none is left to go on.
pub fn lower_ttl(packet: &mut [u8], headers: &Headers) -> bool {
    let at = if headers.source.is_ipv4() { 8 } else { 7 };
    if packet[at] <= 1 {
        return false;
    }
    let before = get(packet, 8);
    packet[at] -= 1;
    if headers.source.is_ipv4() {
        let change = Difference::default().word(before, get(packet, 8));
        update(packet, 10, |field| change.apply_complete(field));
    }
    true
}

fn end(headers: &Headers, is_source: bool) -> Endpoint {
    let (source_port, destination_port) = headers.ports();
    if is_source {
        Endpoint { address: headers.source, port: source_port }
    } else {
        Endpoint { address: headers.destination, port: destination_port }
    }
}

/// Where the port that is to change lies; an echo has one identifier for both ends.
fn port_offset(headers: &Headers, is_source: bool) -> Option<usize> {
    match headers.layer4 {
        Layer4::Tcp { .. } | Layer4::Udp { .. } => {
            Some(headers.layer4_start + if is_source { 0 } else { 2 })
        }
        Layer4::Echo { is_request, .. } => {
            (is_request == is_source).then_some(headers.layer4_start + 4)
        }
        Layer4::Icmp { .. } | Layer4::Kept { .. } | Layer4::Other => None,
    }
}

fn write_address(packet: &mut [u8], address: IpAddr, is_source: bool) {
    match address {
        IpAddr::V4(a) => {
            let at = if is_source { 12 } else { 16 };
            packet[at..at + 4].copy_from_slice(&a.octets());
        }
        IpAddr::V6(a) => {
            let at = if is_source { 8 } else { 24 };
            packet[at..at + 16].copy_from_slice(&a.octets());
        }
    }
}

#[inline(always)]
fn get(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

#[inline(always)]
fn put(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[inline(always)]
fn update(packet: &mut [u8], at: usize, change: impl FnOnce(u16) -> u16) {
    let field = change(get(packet, at));
    put(packet, at, field);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::full_checksum;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    enum Kind {
        Tcp,
        Udp,
        Echo,
    }

    fn build(
        kind: Kind,
        v6: bool,
        ends: ([u8; 16], [u8; 16]),
        ports: (u16, u16),
        payload: &[u8],
    ) -> Vec<u8> {
        let (a, b) = ends;
        let four = |x: [u8; 16]| [x[0], x[1], x[2], x[3]];
        let ip = if v6 {
            PacketBuilder::ipv6(a, b, 64)
        } else {
            PacketBuilder::ipv4(four(a), four(b), 64)
        };
        let mut bytes = Vec::new();
        let written = match (kind, v6) {
            (Kind::Tcp, _) => ip.tcp(ports.0, ports.1, 7, 9).ack(3).write(&mut bytes, payload),
            (Kind::Udp, _) => ip.udp(ports.0, ports.1).write(&mut bytes, payload),
            (Kind::Echo, false) => ip.icmpv4_echo_request(ports.0, 1).write(&mut bytes, payload),
            (Kind::Echo, true) => ip.icmpv6_echo_request(ports.0, 1).write(&mut bytes, payload),
        };
        written.expect("a packet");
        bytes
    }

    /// The field as a sender that leaves the rest to the device writes it.
    fn make_partial(packet: &mut [u8], headers: &Headers) -> Csum {
        let at = headers.checksum_at().expect("a checksum");
        let len = (headers.length - headers.layer4_start) as u32;
        let pseudo = Sum::pseudo_header(headers.source, headers.destination, headers.protocol, len);
        put(packet, at, pseudo.fold());
        Csum::Partial {
            start: headers.layer4_start as u16,
            offset: (at - headers.layer4_start) as u16,
        }
    }

    /// What a device does with a partial checksum: it sums all from the start on, pseudo-header sum included.
    fn complete(packet: &mut [u8], csum: Csum) {
        let Csum::Partial { start, offset } = csum else { return };
        let field = Sum::default().bytes(&packet[usize::from(start)..]).complement();
        put(packet, usize::from(start + offset), if field == 0 { 0xffff } else { field });
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Tcp), Just(Kind::Udp), Just(Kind::Echo)]
    }

    proptest! {
        #[test]
        fn rewriting_equals_full_recomputation(
            kind in kinds(), v6: bool, partial: bool, is_source: bool,
            ends: ([u8; 16], [u8; 16]), ports: (u16, u16),
            new: [u8; 16], new_port: u16, payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut packet = build(kind, v6, ends, ports, &payload);
            let headers = Headers::parse(&packet).expect("headers");
            // RFC 792: nothing is left for a device to add.
            let partial = partial && (v6 || !matches!(kind, Kind::Echo));
            let csum = if partial { make_partial(&mut packet, &headers) } else { Csum::Complete };
            let address = if v6 { IpAddr::from(new) } else { IpAddr::from([new[0], new[1], new[2], new[3]]) };
            let endpoint = Endpoint { address, port: new_port };
            let edit = if is_source { Edit::Source(endpoint) } else { Edit::Destination(endpoint) };
            apply(&mut packet, &headers, csum, edit);
            complete(&mut packet, csum);

            let after = Headers::parse(&packet).expect("headers after");
            let changed = if is_source { after.source } else { after.destination };
            prop_assert_eq!(changed, address);
            let at = after.checksum_at().expect("a checksum");
            let field = get(&packet, at);
            let wanted = full_checksum(&packet, &after).expect("a checksum");
            // 0 and 0xffff are the same number; TCP and ICMP may carry either.
            prop_assert_eq!(field % 0xffff, wanted % 0xffff);
            if matches!(kind, Kind::Udp) { prop_assert_ne!(field, 0); }
            if !v6 { prop_assert_eq!(Sum::default().bytes(&packet[..20]).complement(), 0); }
        }
    }

    #[test]
    fn a_udp_packet_without_checksum_stays_without() {
        for v6 in [false, true] {
            let mut packet = build(Kind::Udp, v6, ([1; 16], [2; 16]), (5, 6), b"x");
            let headers = Headers::parse(&packet).expect("headers");
            let at = headers.checksum_at().expect("a checksum");
            put(&mut packet, at, 0);
            let address = if v6 { IpAddr::from([9; 16]) } else { IpAddr::from([9; 4]) };
            let new = Endpoint { address, port: 61000 };
            apply(&mut packet, &headers, Csum::Complete, Edit::Source(new));
            assert_eq!((get(&packet, at), get(&packet, at - 6)), (0, 61000));
        }
    }

    /// The error that a router sends about `packet`, with `quoted` bytes of layer 4.
    fn error_about(packet: &[u8], v6: bool, quoted: usize) -> Vec<u8> {
        let headers = Headers::parse(packet).expect("headers");
        let quote = &packet[..(headers.layer4_start + quoted).min(packet.len())];
        let mut bytes = Vec::new();
        if v6 {
            PacketBuilder::ipv6([9; 16], headers_octets(headers.source), 60)
                .icmpv6_raw(1, 4, [0; 4])
                .write(&mut bytes, quote)
        } else {
            let IpAddr::V4(to) = headers.source else { panic!("IPv4") };
            PacketBuilder::ipv4([9; 4], to.octets(), 60)
                .icmpv4_raw(3, 1, [0; 4])
                .write(&mut bytes, quote)
        }
        .expect("an error");
        bytes
    }

    fn headers_octets(address: IpAddr) -> [u8; 16] {
        let IpAddr::V6(address) = address else { panic!("IPv6") };
        address.octets()
    }

    proptest! {
        /// An error about a packet that went out rewritten becomes the error that there would have been about
        /// the packet as the application sent it, to the last bit.
        #[test]
        fn a_rewritten_error_is_the_error_about_the_original(
            kind in kinds(), v6: bool, ends: ([u8; 16], [u8; 16]), ports: (u16, u16), new: [u8; 16],
            new_port: u16, payload in proptest::collection::vec(any::<u8>(), 0..60), quoted in 8usize..80,
        ) {
            let original = build(kind, v6, ends, ports, &payload);
            let headers = Headers::parse(&original).expect("headers");
            let address = if v6 { IpAddr::from(new) } else { IpAddr::from([new[0], new[1], new[2], new[3]]) };
            let wire = Endpoint { address, port: new_port };
            let mut sent = original.clone();
            apply(&mut sent, &headers, Csum::Complete, Edit::Source(wire));

            let mut error = error_about(&sent, v6, quoted);
            let outer = Headers::parse(&error).expect("an error");
            let inside = outer.quoted(&error).expect("a quote");
            prop_assert_eq!((inside.source, inside.ports().0), (address, new_port));
            let socket = Endpoint { address: headers.source, port: headers.ports().0 };
            let edits = (Edit::Destination(Endpoint { port: 0, ..socket }), Edit::Source(socket));
            apply_to_error(&mut error, (&outer, Csum::Complete), &inside, edits);

            let mut wanted = error_about(&original, v6, quoted);
            // The identification and what follows from it are the builder's own.
            if !v6 { wanted[4..6].copy_from_slice(&error[4..6]); }
            let parsed = Headers::parse(&error).expect("an error");
            let at = parsed.checksum_at().expect("a checksum");
            prop_assert_eq!(Some(get(&error, at)), full_checksum(&error, &parsed));
            if quoted >= 20 || !matches!(kind, Kind::Tcp) {
                // 0 and 0xffff are the same number in the quoted checksum.
                let start = parsed.quote_start();
                let inner_at = inside.checksum_at().map(|at| at + start).filter(|at| at + 2 <= error.len());
                if let Some(at) = inner_at && get(&error, at) % 0xffff == get(&wanted, at) % 0xffff {
                    let field = get(&wanted, at);
                    put(&mut error, at, field);
                }
                prop_assert_eq!(&error[start..], &wanted[start..]);
            }
            prop_assert_eq!(parsed.destination, headers.source);
        }

        #[test]
        fn a_lowered_ttl_keeps_the_header_checksum_right(v6: bool, ttl: u8) {
            let mut packet = build(Kind::Udp, v6, ([1; 16], [2; 16]), (5, 6), b"x");
            packet[if v6 { 7 } else { 8 }] = ttl;
            if !v6 {
                packet[10..12].fill(0);
                let sum = Sum::default().bytes(&packet[..20]).complement();
                put(&mut packet, 10, sum);
            }
            let headers = Headers::parse(&packet).expect("headers");
            let before = packet.clone();
            let went = lower_ttl(&mut packet, &headers);
            prop_assert_eq!(went, ttl > 1);
            if !went {
                prop_assert_eq!(packet, before);
            } else {
                prop_assert_eq!(packet[if v6 { 7 } else { 8 }], ttl - 1);
                if !v6 { prop_assert_eq!(Sum::default().bytes(&packet[..20]).complement(), 0); }
            }
        }
    }
}
