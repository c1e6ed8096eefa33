//! Packets that no builder makes: shared by test programs.

use vipa::wire::checksum::Sum;

/// Splits a packet into fragments of `size` bytes each (a multiple of eight).
pub(crate) fn fragments(packet: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let v6 = packet[0] >> 4 == 6;
    let start = if v6 { 40 } else { 20 };
    let payload = &packet[start..];
    let parts = payload.chunks(size).enumerate();
    let last = payload.len().div_ceil(size) - 1;
    parts
        .map(|(at, part)| {
            let mut out = packet[..start].to_vec();
            let (offset, more) = ((at * size) as u16, u16::from(at < last));
            if v6 {
                out[4..6].copy_from_slice(&(part.len() as u16 + 8).to_be_bytes());
                let next = std::mem::replace(&mut out[6], 44);
                out.extend([next, 0]);
                out.extend((offset | more).to_be_bytes());
                out.extend(u32::from(id).to_be_bytes());
            } else {
                out[2..4].copy_from_slice(&(part.len() as u16 + 20).to_be_bytes());
                out[4..6].copy_from_slice(&id.to_be_bytes());
                out[6..8].copy_from_slice(&((offset / 8) | (more << 13)).to_be_bytes());
                out[10..12].fill(0);
                let sum = Sum::default().bytes(&out).complement();
                out[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            out.extend_from_slice(part);
            out
        })
        .collect()
}
