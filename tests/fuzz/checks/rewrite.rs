//! Edits in place: addresses and ports are the new ones, nothing else but checksums changes, checksums that were
//! right are right, and the opposite edit undoes it all.

use std::net::IpAddr;

use vipa::forward::rewrite::{self, Edit, Endpoint};
use vipa::wire::ip::Family;
use vipa::wire::packet::{Headers, Layer4};

use super::input::Input;
use super::{offload, packets, sums};

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (choice, port) = (input.byte(), input.word());
    let (source, destination) = (address(&mut input), address(&mut input));
    let mut packet = packets::packet(&mut input);
    let csum = offload::offload(&mut input, &mut packet).csum;
    let Ok(headers) = Headers::parse(&packet) else { return };
    packet.truncate(headers.length);
    let of_family = |(four, six): ([u8; 4], [u8; 16])| match headers.family() {
        Family::V4 => IpAddr::from(four),
        Family::V6 => IpAddr::from(six),
    };
    let new = Endpoint { address: of_family(source), port };
    let is_source = choice & 1 != 0;
    let edit = if is_source { Edit::Source(new) } else { Edit::Destination(new) };
    match (choice & 6, headers.quoted(&packet)) {
        (0, Some(quoted)) => error(packet, &headers, &quoted, new, of_family(destination)),
        (2, _) => ttl(packet, &headers),
        _ => {
            let mut edited = packet.clone();
            rewrite::apply(&mut edited, &headers, csum, edit);
            let after = Headers::parse(&edited).expect("an edited packet parses");
            same_but(&headers, &after, new, is_source);
            sums_stay((&packet, &headers), (&edited, &after), csum);
            let (was_source, was_destination) = headers.ports();
            let back = if is_source {
                Edit::Source(Endpoint { address: headers.source, port: was_source })
            } else {
                Edit::Destination(Endpoint { address: headers.destination, port: was_destination })
            };
            rewrite::apply(&mut edited, &after, csum, back);
            assert_eq!(Headers::parse(&edited), Ok(headers));
            let changed = packet.iter().zip(&edited).filter(|(a, b)| a != b).count();
            // At most two checksums, where all ones and zero were taken for one another.
            assert!(changed <= 4);
        }
    }
}

fn address(input: &mut Input<'_>) -> ([u8; 4], [u8; 16]) {
    let [a, b] = input.word().to_be_bytes();
    ([10, 1, a, b], [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b])
}

fn same_but(before: &Headers, after: &Headers, new: Endpoint, is_source: bool) {
    let (mut source, mut destination) = (before.source, before.destination);
    let (mut ports, found) = (before.ports(), after.ports());
    let has_port = match before.layer4 {
        Layer4::Tcp { .. } | Layer4::Udp { .. } => true,
        // One identifier for both ends, on the asking side.
        Layer4::Echo { is_request, .. } => is_request == is_source,
        _ => false,
    };
    if is_source {
        source = new.address;
        ports.0 = if has_port { new.port } else { ports.0 };
    } else {
        destination = new.address;
        ports.1 = if has_port { new.port } else { ports.1 };
    }
    assert_eq!((after.source, after.destination, found), (source, destination, ports));
    assert_eq!((after.protocol, after.fragment), (before.protocol, before.fragment));
    assert_eq!((after.length, after.layer4_start), (before.length, before.layer4_start));
}

fn sums_stay(
    (packet, before): (&[u8], &Headers),
    (edited, after): (&[u8], &Headers),
    csum: vipa::wire::offload::Csum,
) {
    assert_eq!(sums::is_ip_right(packet, before), sums::is_ip_right(edited, after));
    let was = sums::is_layer4_right(packet, before, csum);
    let is = sums::is_layer4_right(edited, after, csum);
    assert!(was != Some(true) || is == Some(true), "{was:?} became {is:?}");
    assert_eq!(was.is_none(), is.is_none());
}

fn ttl(mut packet: Vec<u8>, headers: &Headers) {
    let before = packet.clone();
    let at = if headers.family() == Family::V4 { 8 } else { 7 };
    let is_lowered = rewrite::lower_ttl(&mut packet, headers);
    assert_eq!(is_lowered, before[at] > 1);
    assert_eq!(packet[at], before[at] - u8::from(is_lowered));
    let was_right = sums::is_ip_right(&before, headers);
    assert_eq!(sums::is_ip_right(&packet, headers), was_right);
    assert_eq!(Headers::parse(&packet), Ok(*headers));
}

fn error(packet: Vec<u8>, headers: &Headers, quoted: &Headers, new: Endpoint, outer: IpAddr) {
    let mut edited = packet.clone();
    let outer = Endpoint { address: outer, port: 0 };
    let edits = (Edit::Destination(outer), Edit::Source(new));
    rewrite::apply_to_error(&mut edited, (headers, Default::default()), quoted, edits);
    let after = Headers::parse(&edited).expect("an edited error parses");
    assert_eq!((after.source, after.destination), (headers.source, outer.address));
    let about = after.quoted(&edited).expect("its quote is still there");
    same_but(quoted, &about, new, true);
    sums_stay((&packet, headers), (&edited, &after), Default::default());
}
