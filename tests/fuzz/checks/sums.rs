//! Are a packet's checksums right, as a receiver asks: do all words add up to zero, modulo 0xffff?

use vipa::wire::checksum::Sum;
use vipa::wire::ip;
use vipa::wire::offload::Csum;
use vipa::wire::packet::{Fragment, Headers, Layer4};

use super::offload::pseudo_header;

/// IPv4's own; IPv6 has none.
pub(crate) fn is_ip_right(packet: &[u8], headers: &Headers) -> bool {
    match packet[0] >> 4 {
        4 => is_zero(Sum::default().bytes(&packet[..usize::from(packet[0] & 0x0f) * 4])),
        _ => headers.source.is_ipv6(),
    }
}

/// That of layer 4, complete or partial; `None` where a packet shows none that can be verified, or none is sent.
pub(crate) fn is_layer4_right(packet: &[u8], headers: &Headers, csum: Csum) -> Option<bool> {
    let at = headers.checksum_at()?;
    if headers.fragment != Fragment::Whole || matches!(headers.layer4, Layer4::Kept { .. }) {
        return None;
    }
    let field = u16::from_be_bytes([packet[at], packet[at + 1]]);
    let start = headers.layer4_start;
    let covers = headers.protocol != ip::ICMP;
    let pseudo = if covers { pseudo_header(headers) } else { Sum::default() };
    if let Csum::Partial { start: from, offset } = csum {
        let is_ours = (usize::from(from), usize::from(offset)) == (start, at - start);
        return is_ours.then(|| is_zero(pseudo.word(!field)));
    }
    let is_udp = headers.protocol == ip::UDP;
    if is_udp && field == 0 {
        return headers.source.is_ipv6().then_some(false);
    }
    Some(is_zero(pseudo.bytes(&packet[start..headers.length])))
}

fn is_zero(sum: Sum) -> bool {
    matches!(sum.fold(), 0 | 0xffff)
}
