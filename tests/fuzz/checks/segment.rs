//! Segmentation in software: every byte of the payload comes out once, in order, in packets that are right; and the way back.

use vipa::forward::frame::Frame;
use vipa::forward::gro;
use vipa::forward::verdict::Verdict;
use vipa::wire::offload::{Csum, Offload};
use vipa::wire::packet::{Fragment, Headers, Layer4};
use vipa::wire::segment;

use super::input::Input;
use super::{offload, packets, sums};

/// Frames that are put together at most.
const BATCH: usize = 64;

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let mut packet = packets::packet(&mut input);
    let offload = offload::offload(&mut input, &mut packet);
    if let Ok(headers) = Headers::parse(&packet) {
        split(&packet, &headers, offload);
    }
}

fn split(packet: &[u8], headers: &Headers, Offload { csum, gso, .. }: Offload) {
    let mut out = vec![0; packet.len()];
    let (mut payload, mut parts) = (Vec::new(), Vec::new());
    let count = segment::count(headers, packet, gso);
    let before = headers.headers_len(packet);
    let is_stream = matches!(headers.layer4, Layer4::Tcp { .. } | Layer4::Udp { .. });
    let can_be_split = is_stream && headers.fragment == Fragment::Whole;
    assert!(can_be_split || count == 1);
    for at in 0..count {
        let length = segment::segment(packet, headers, csum, gso, at, &mut out).expect("room");
        let part = &out[..length];
        let parsed = Headers::parse(part).expect("a part that parses");
        assert_eq!(parsed.length, length);
        assert_eq!((parsed.source, parsed.destination), (headers.source, headers.destination));
        assert_eq!((parsed.ports(), parsed.fragment), (headers.ports(), headers.fragment));
        if count > 1 {
            assert!(sums::is_ip_right(part, &parsed));
        }
        if count > 1 || csum != Csum::Complete {
            assert_ne!(sums::is_layer4_right(part, &parsed, Csum::Complete), Some(false));
        }
        if let Some(gso) = gso.filter(|gso| can_be_split && gso.size > 0) {
            assert!(length <= before + usize::from(gso.size));
        }
        payload.extend_from_slice(&part[before..]);
        parts.push(part.to_vec());
    }
    assert_eq!(payload, &packet[before..headers.length]);
    put_together(&parts);
}

/// What was cut is put together, as far as it can be, and cut again as it was.
fn put_together(parts: &[Vec<u8>]) {
    let mut frames: Vec<Frame> = parts
        .iter()
        .take(BATCH)
        .map(|part| {
            let mut frame = Frame::new();
            frame.space(0)[..part.len()].copy_from_slice(part);
            frame.received(part.len());
            frame.offload = Offload::found(part);
            frame.verdict = Verdict::Deliver;
            frame
        })
        .collect();
    let left = gro::merge(&mut frames);
    let mut parts = parts.iter();
    for frame in &frames[..left] {
        let Offload { csum, gso, .. } = frame.offload;
        let Ok(headers) = Headers::parse(frame.packet()) else { continue };
        for at in 0..segment::count(&headers, frame.packet(), gso) {
            let part = parts.next().expect("as many as there were");
            let mut out = vec![0; part.len()];
            let cut = segment::segment(frame.packet(), &headers, csum, gso, at, &mut out);
            assert_eq!(cut, Some(headers.length.min(part.len())));
            assert_eq!(&out, part);
        }
    }
}
