//! An offload state out of the fuzzer's bytes.

use vipa::wire::checksum::Sum;
use vipa::wire::offload::{Csum, Ecn, Gso, GsoKind, Offload};
use vipa::wire::packet::{Headers, Layer4};

use super::input::Input;

/// Any state at all, right or not. One whose checksum is partial as it should be has its packet's field set.
pub(crate) fn offload(input: &mut Input<'_>, packet: &mut [u8]) -> Offload {
    let choice = input.byte();
    let csum = match choice & 3 {
        2 => partial(packet).unwrap_or_default(),
        3 => Csum::Partial { start: input.word(), offset: input.word() },
        _ => Csum::Complete,
    };
    let gso = (choice & 0x0c == 0x0c).then(|| gso(input));
    Offload { csum, gso, is_verified: choice & 0x10 != 0 }
}

pub(crate) fn gso(input: &mut Input<'_>) -> Gso {
    let kind = input.pick(&[GsoKind::Tcp4, GsoKind::Tcp6, GsoKind::Udp]);
    let ecn = input.pick(&[Ecn::Unsaid, Ecn::First, Ecn::Each]);
    Gso { kind, size: input.word(), ecn }
}

/// What the kernel hands out with a checksum that is still to be made: the pseudo-header's sum in the field.
fn partial(packet: &mut [u8]) -> Option<Csum> {
    let headers = Headers::parse(packet).ok()?;
    if !matches!(headers.layer4, Layer4::Tcp { .. } | Layer4::Udp { .. }) {
        return None;
    }
    let (at, start) = (headers.checksum_at()?, headers.layer4_start);
    let field = pseudo_header(&headers).fold();
    packet[at..at + 2].copy_from_slice(&field.to_be_bytes());
    Some(Csum::Partial { start: start as u16, offset: (at - start) as u16 })
}

pub(crate) fn pseudo_header(headers: &Headers) -> Sum {
    let length = (headers.length - headers.layer4_start) as u32;
    Sum::pseudo_header(headers.source, headers.destination, headers.protocol, length)
}
