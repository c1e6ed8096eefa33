//! The small ones of `wire`: checksum arithmetic against the naive sum, the virtio header, prefixes as text,
//! Ethernet.

use std::net::IpAddr;

use vipa::wire::checksum::{Difference, Sum};
use vipa::wire::ethernet::{self, MacAddr};
use vipa::wire::ip::{Prefix, PrefixError};
use vipa::wire::offload::{Csum, HEADER_LEN, Offload};

use super::input::Input;

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => sum(input.rest()),
        1 => difference(&mut input),
        2 => virtio(&mut input),
        _ => prefix(input.rest()),
    }
}

/// RFC 1071, word by word.
fn naive(bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(0, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, is_over) = u16::overflowing_add(sum, word);
        sum + u16::from(is_over)
    })
}

fn sum(bytes: &[u8]) {
    let sum = Sum::default().bytes(bytes);
    assert_eq!(sum.fold() % 0xffff, naive(bytes) % 0xffff);
    assert_eq!(sum.fold() == 0, bytes.iter().all(|byte| *byte == 0));
    assert_eq!(sum.complement(), !sum.fold());
    let (front, back) = bytes.split_at(bytes.len() / 4 * 2);
    assert_eq!(Sum::default().bytes(front).bytes(back).fold(), sum.fold());
}

/// What an edit makes of a checksum is what a sum over all would be.
fn difference(input: &mut Input<'_>) {
    let addresses: [[u8; 16]; 2] = std::array::from_fn(|_| std::array::from_fn(|_| input.byte()));
    let is_v6 = input.byte() & 1 != 0;
    let [removed, added] = addresses.map(|a| match a.first_chunk::<4>() {
        Some(four) if !is_v6 => IpAddr::from(*four),
        _ => IpAddr::from(a),
    });
    let (word, other) = (input.word(), input.word());
    let rest = Sum::default().bytes(input.rest());
    let before = rest.address(removed).word(word);
    let after = rest.address(added).word(other);
    let change = Difference::default().address(removed, added).word(word, other);
    let complete = change.apply_complete(before.complement());
    assert_eq!(complete % 0xffff, after.complement() % 0xffff);
    assert_eq!(change.apply_partial(before.fold()) % 0xffff, after.fold() % 0xffff);
}

fn virtio(input: &mut Input<'_>) {
    let front = input.pick(&[0, ethernet::HEADER_LEN]);
    let header: [u8; HEADER_LEN] = std::array::from_fn(|_| input.byte());
    let Ok(offload) = Offload::parse(&header, front) else { return };
    let headers_len = usize::from(input.byte());
    let Csum::Partial { start, .. } = offload.csum else {
        let emitted = offload.emit(front, headers_len);
        assert_eq!(Offload::parse(&emitted, front), Ok(offload));
        return;
    };
    // A header that begins within the Ethernet header is moved behind it.
    assert!(usize::from(start) + front <= usize::from(u16::MAX));
    assert_eq!(Offload::parse(&offload.emit(front, headers_len), front), Ok(offload));
    let macs = [MacAddr(std::array::from_fn(|_| input.byte())), MacAddr([2; 6])];
    let ethernet = ethernet::header(macs[0], macs[1], ethernet::IPV6);
    assert_eq!(
        (&ethernet[..6], &ethernet[6..]),
        (&macs[0].0[..], &[2, 2, 2, 2, 2, 2, 0x86, 0xdd][..])
    );
    assert_eq!(macs[0].to_string().len(), 17);
}

fn prefix(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text.parse::<Prefix>() {
        Ok(prefix) => {
            assert_eq!(prefix.to_string().parse(), Ok(prefix));
            assert!(prefix.contains(prefix.address()));
            assert_eq!(Prefix::new(prefix.address(), prefix.length()), Some(prefix));
        }
        Err(PrefixError::HostBits(_, prefix)) => assert_eq!(prefix.to_string().parse(), Ok(prefix)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
