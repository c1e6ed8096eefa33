//! ICMP errors about rewritten flows that are out of the ordinary: in fragments, and redirects, which are none.
//! What differs here from the kernel's own NAT the differential test found first.

use vipa::forward::verdict::{Verdict, Wait};
use vipa::wire::packet::{Headers, full_checksum};

use crate::fixture::*;
use crate::kinds::*;
use crate::packets::fragments;

/// An error that quotes 600 bytes, in three fragments.
fn long_error(v6: bool, ends: (usize, usize), quoted: &[u8]) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    let ip = ip(v6, ends.0, ends.1);
    if v6 {
        ip.icmpv6_raw(1, 4, [0; 4]).write(&mut bytes, &quoted[..600])
    } else {
        ip.icmpv4_raw(3, 3, [0; 4]).write(&mut bytes, &quoted[..600])
    }
    .expect("an error");
    fragments(&bytes, 256, 77)
}

fn assert_right(parts: &[Vec<u8>], quoted: &[u8]) {
    parts.iter().for_each(|part| assert_header_checksum(part));
    let whole = joined(parts);
    let headers = Headers::parse(&whole).expect("headers");
    let at = headers.checksum_at().expect("a checksum");
    let field = u16::from_be_bytes([whole[at], whole[at + 1]]);
    assert_eq!(Some(field), full_checksum(&whole, &headers));
    assert_eq!(&whole[headers.quote_start()..], &quoted[..600]);
}

#[test]
fn the_fragments_of_an_error_from_outside_follow_the_first() {
    for v6 in [false, true] {
        let (mut state, view) = (state(16), ruled());
        let packet = udp(v6, (DEFAULT_AT, 40000), (RULED_AT, 53), &[7; 700]);
        let sent = run_held(&packet, &mut state, &view).packet().to_vec();
        let parts = long_error(v6, (ROUTER_AT, SECOND_AT), &sent);
        // The last comes first, and waits.
        let verdict = run(&parts[2], FROM_NIC, &mut state, &view).verdict;
        assert!(matches!(verdict, Verdict::Wait(Wait::FirstFragment(_))), "{verdict:?}");
        let parts: Vec<_> = parts
            .iter()
            .map(|part| {
                let frame = run(part, FROM_NIC, &mut state, &view);
                assert_eq!(frame.verdict, Verdict::Deliver);
                frame.packet().to_vec()
            })
            .collect();
        assert!(state.fragments.take_news(), "those that wait are to be run again");
        assert_right(&parts, &packet);
        assert_eq!(Headers::parse(&parts[2]).expect("headers").destination, default(v6));
    }
}

#[test]
fn the_fragments_of_an_error_that_this_host_sends_follow_the_first() {
    for v6 in [false, true] {
        let (mut state, view) = (state(16), ruled());
        let out = udp(v6, (DEFAULT_AT, 40000), (RULED_AT, 53), b"question");
        let sent = run_held(&out, &mut state, &view).packet().to_vec();
        let port = Headers::parse(&sent).expect("headers").ports().0;
        let reply = udp(v6, (RULED_AT, 53), (SECOND_AT, port), &[7; 700]);
        let delivered = run(&reply, FROM_NIC, &mut state, &view).packet().to_vec();
        let parts: Vec<_> = long_error(v6, (DEFAULT_AT, RULED_AT), &delivered)
            .iter()
            .map(|part| {
                let frame = run(part, TUN, &mut state, &view);
                assert!(matches!(frame.verdict, Verdict::Transmit { .. }), "{:?}", frame.verdict);
                assert_eq!(source_of(&frame), second(v6));
                frame.packet().to_vec()
            })
            .collect();
        assert_right(&parts, &reply);
    }
}

/// It tells of a better way to the remote, which is the kernel's to take; no socket wants it.
#[test]
fn a_redirect_about_a_rewritten_flow_is_the_kernels() {
    let (mut state, view) = (state(16), ruled());
    let packet = udp(false, (DEFAULT_AT, 40000), (RULED_AT, 53), b"question");
    let sent = run_held(&packet, &mut state, &view).packet().to_vec();
    let mut redirect = Vec::new();
    ip(false, ROUTER_AT, SECOND_AT)
        .icmpv4_raw(5, 1, [10, 1, 1, 77])
        .write(&mut redirect, &sent[..28])
        .expect("a redirect");
    let frame = run(&redirect, FROM_NIC, &mut state, &view);
    assert_eq!((frame.verdict, frame.packet()), (Verdict::Kernel, &redirect[..]));
}
