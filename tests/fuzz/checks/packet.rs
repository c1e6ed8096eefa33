//! A packet's headers: what is read lies within the packet, agrees with an independent parser where that one
//! understands it, and an ICMP error about it is one.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use vipa::wire::icmp::{self, Complaint};
use vipa::wire::ip::{self, Family};
use vipa::wire::packet::{Fragment, Headers, Layer4, full_checksum};

use super::input::Input;
use super::sums;

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (mtu, room, padding) = (input.word(), input.word(), input.byte());
    // Long packets are there for the errors about them; what is in them matters little.
    let mut packet = input.rest().to_vec();
    packet.resize(packet.len() + usize::from(padding & 0x1f) * 64, padding);
    let parsed = Headers::parse(&packet);
    agrees(&packet, parsed.ok().as_ref());
    let Ok(headers) = parsed else { return };
    within(&packet, &headers);
    if let Some(quoted) = headers.quoted(&packet) {
        assert!(headers.is_icmp_error());
        assert!(quoted.fragment != Fragment::Later);
        assert!(headers.quote_start() + quoted.length <= headers.length);
        assert!(quoted.layer4_start <= quoted.length);
    }
    let complaint = match mtu {
        0 => Complaint::TimeExceeded,
        _ => Complaint::TooBig { mtu: u32::from(mtu) },
    };
    complain(&packet, &headers, complaint, usize::from(room % 64));
}

/// Nothing that was read lies behind the packet.
fn within(packet: &[u8], headers: &Headers) {
    assert!(headers.length <= packet.len());
    assert!(headers.layer4_start <= headers.length);
    assert!(headers.headers_len(packet) <= headers.length);
    assert!(headers.checksum_at().is_none_or(|at| at + 2 <= headers.length));
    let field = full_checksum(packet, headers);
    if let Some(is_right) = sums::is_layer4_right(packet, headers, Default::default()) {
        let at = headers.checksum_at().expect("a checksum");
        let found = u16::from_be_bytes([packet[at], packet[at + 1]]);
        // All ones and zero are the same number, but UDP's zero says that there is none (RFC 768).
        let is_same = field.map(|f| f % 0xffff) == Some(found % 0xffff);
        let has_none = headers.protocol == ip::UDP && found == 0;
        assert!(is_same == is_right || has_none);
    }
    // Parsing the packet alone, without what the link appended, yields the same.
    assert_eq!(Headers::parse(&packet[..headers.length]).as_ref(), Ok(headers));
}

/// Where etherparse finds ports, we find the same.
fn agrees(packet: &[u8], headers: Option<&Headers>) {
    let Ok(sliced) = SlicedPacket::from_ip(packet) else { return };
    let (source, destination): (IpAddr, IpAddr) = match &sliced.net {
        // In front of IPv4's payload we read no AH, and take a length of zero at its word.
        Some(NetSlice::Ipv4(ip))
            if ip.extensions().auth.is_none() && ip.header().total_len() > 0 =>
        {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        Some(NetSlice::Ipv6(ip)) if ip.header().payload_length() > 0 => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        _ => return,
    };
    let is_mapped = |a: IpAddr| a.to_canonical() != a;
    if is_mapped(source) || is_mapped(destination) {
        return;
    }
    let (ports, is_tcp) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => ((tcp.source_port(), tcp.destination_port()), true),
        Some(TransportSlice::Udp(udp)) => ((udp.source_port(), udp.destination_port()), false),
        _ => return,
    };
    let headers = headers.expect("etherparse understands the packet");
    assert_eq!((headers.source, headers.destination), (source, destination));
    assert_eq!(headers.ports(), ports);
    assert_eq!(matches!(headers.layer4, Layer4::Tcp { .. }), is_tcp);
}

fn complain(packet: &[u8], headers: &Headers, complaint: Complaint, room: usize) {
    let mut buffer = packet.to_vec();
    buffer.resize(packet.len() + room, 0);
    let (from, front): (IpAddr, usize) = match headers.family() {
        Family::V4 => ([9; 4].into(), icmp::HEADERS_V4),
        Family::V6 => ([9; 16].into(), icmp::HEADERS_V6),
    };
    let Some(length) = icmp::complain(&mut buffer, headers, complaint, from) else {
        let is_full_room = room >= front;
        // A chain of extension headers may leave no room in an error for the ports behind it.
        assert!(!is_full_room || headers.layer4_start + 8 + front > 576);
        return;
    };
    let error = &buffer[..length];
    let about = Headers::parse(error).expect("an error that parses");
    assert_eq!((about.source, about.destination, about.length), (from, headers.source, length));
    assert!(about.is_icmp_error());
    assert!(sums::is_ip_right(error, &about));
    assert_eq!(sums::is_layer4_right(error, &about, Default::default()), Some(true));
    let quote = &error[about.quote_start()..];
    assert_eq!(quote, &packet[..quote.len()]);
    if let Some(quoted) = about.quoted(error) {
        assert_eq!((quoted.source, quoted.destination), (headers.source, headers.destination));
        assert_eq!((quoted.ports(), quoted.layer4_start), (headers.ports(), headers.layer4_start));
    } else {
        let is_short = headers.length < headers.layer4_start + 8;
        assert!(headers.fragment == Fragment::Later || is_short);
    }
}
