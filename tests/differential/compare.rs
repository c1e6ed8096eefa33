//! Do two sides agree? But for the source port or identifier that each chose, and the checksums that follow from it,
//! every bit has to be the same. (The IPv4 identification might differ, and does not.) Checksums are not left out but
//! computed anew over all that they cover, on both sides; one that came in wrong has to be wrong by the same amount.
//!
//! Where the kernel is the odd one its function is named.

use crate::bytes::{get, put};
use crate::generate::Step;
use crate::judge::{Given, Half};
use crate::packet::{SCTP, TCP, join, part};

const SIDES: [&str; 2] = ["ours", "kernel"];
const DCCP: u8 = 33;

/// Compares what came out of a step, ours and the kernel's; the two datagrams, if any was to come out.
pub(crate) fn verdict(
    step: &Step,
    halves: &[Half; 2],
    given: &[Given; 2],
    out: &[Vec<Vec<u8>>; 2],
) -> Result<Option<[Vec<u8>; 2]>, String> {
    if let Step::ErrorBack(complaint) | Step::ErrorOut(complaint) = step
        && complaint.is_redirect()
    {
        // nf_nat_icmp_reply_translation(): the sender knows nothing of what was translated.
        let is_none = out.iter().all(Vec::is_empty);
        return if is_none { Ok(None) } else { Err("a redirect went through".into()) };
    }
    let whole = |side: usize| join(&out[side]).map_err(|e| format!("{}: {e}", SIDES[side]));
    let wholes = [whole(0)?, whole(1)?];
    let fragments = |frames: &[Vec<u8>]| {
        let mut parts: Vec<_> = frames.iter().map(|frame| part(frame).0).collect();
        parts.sort();
        parts
    };
    if fragments(&out[0]) != fragments(&given[0].frames) {
        return Err("our fragments are others than we were given".into());
    }
    for (side, whole) in wholes.iter().enumerate() {
        let Given { layout, whole: before, .. } = &given[side];
        // l4proto_manip_pkt() no longer knows DCCP, whose checksum covers the addresses: what leaves it is wrong.
        let is_let_off = side == 1 && layout.protocol == DCCP;
        if whole.len() == before.len() && !is_let_off && layout.error(whole) != layout.error(before)
        {
            return Err(format!("{}: wrong checksum", SIDES[side]));
        }
    }
    match step {
        Step::Out(_) | Step::Back(_) => same_packet(step, given, wholes.clone())?,
        Step::ErrorBack(_) | Step::ErrorOut(_) => same_error(step, halves, given, wholes.clone())?,
    }
    Ok(Some(wholes))
}

/// Equal but for source port or identifier on the way out, and the checksum, which is right on both sides.
fn same_packet(step: &Step, given: &[Given; 2], mut wholes: [Vec<u8>; 2]) -> Result<(), String> {
    let layout = given[0].layout;
    let chosen = matches!(layout.protocol, 1 | 6 | 17 | 58).then_some(layout.source_port).flatten();
    if let (Step::Out(_), Some(at)) = (step, chosen) {
        wholes.iter_mut().for_each(|whole| put(whole, at, 0));
    }
    let is_masked = matches!(step, Step::Out(_)) || layout.protocol == DCCP;
    if let (true, Some((at, _))) = (is_masked, layout.checksum) {
        wholes.iter_mut().for_each(|whole| put(whole, at, 0));
    }
    same(&wholes)
}

/// Equal but for the ports in the quote on the way out; and what is quoted is, as far as it goes, what the one who
/// gets the error sent.
fn same_error(
    step: &Step,
    halves: &[Half; 2],
    given: &[Given; 2],
    mut wholes: [Vec<u8>; 2],
) -> Result<(), String> {
    let start = given[0].layout.layer4 + 8;
    for (side, whole) in wholes.iter_mut().enumerate() {
        let half = &halves[side];
        let known = match step {
            Step::ErrorBack(_) => half.sent.as_ref(),
            _ => half.came.as_ref(),
        };
        let known = known.expect("it was sent before");
        let mut wanted = known.frame.clone();
        let quote_len = given[side].quoted;
        let layer4 = quote_len.saturating_sub(known.layer4);
        let quote = whole.get_mut(start..start + quote_len).ok_or("the quote was cut")?;
        // tcp_manip_pkt(): a header that is not all there keeps its checksum, that of the wire.
        let kept = match known.protocol {
            TCP if layer4 < 20 => known.layer4 + 16..quote_len,
            _ => 0..0,
        };
        kept.clone().for_each(|at| wanted[at] = given[side].whole[start + at]);
        let is_kernels = side == 1;
        // sctp_manip_pkt(): computes the CRC of what is quoted, as if that were all.
        if known.protocol == SCTP && is_kernels && layer4 >= 12 {
            quote[known.layer4 + 8..known.layer4 + 12]
                .copy_from_slice(&wanted[known.layer4 + 8..known.layer4 + 12]);
        }
        // DCCP: see verdict().
        if known.protocol == DCCP && is_kernels {
            put(quote, known.layer4 + 6, get(&wanted, known.layer4 + 6));
        }
        if *quote != wanted[..quote_len] {
            return Err(format!(
                "{}: quotes {:02x?}\n  and not {:02x?}",
                SIDES[side],
                quote,
                &wanted[..quote_len]
            ));
        }
        kept.for_each(|at| quote[at] = 0);
        // Was right (see verdict()), and follows from what was put right just now.
        put(whole, start - 6, 0);
    }
    if let Step::ErrorOut(_) = step {
        // Each side's own ports and the checksum over them: the same as on the wire, which was just seen.
        let quoted = given[0].quoted;
        let [ours, kernel] = &mut wholes;
        kernel[start..start + quoted].copy_from_slice(&ours[start..start + quoted]);
    }
    same(&wholes)
}

fn same([ours, kernel]: &[Vec<u8>; 2]) -> Result<(), String> {
    if ours == kernel {
        return Ok(());
    }
    let at = ours.iter().zip(kernel).position(|(a, b)| a != b);
    Err(format!("{} and {} bytes, different from {at:?}", ours.len(), kernel.len()))
}
