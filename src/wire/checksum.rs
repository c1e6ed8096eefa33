//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624), for the two forms in which a
//! checksum field travels:
//!
//! - *complete*: the field holds the complement of the sum over the data;
//! - *partial* (`VIRTIO_NET_HDR_F_NEEDS_CSUM`): the field holds the **un**complemented sum over the
//!   pseudo-header alone, and whoever sends the frame adds the rest. Ports lie in the rest, so changing
//!   them leaves the field as it is.
//!
//! Mixing them up goes unnoticed on veth and TUN, which trust each other's frames, and breaks every
//! packet on a real wire.

use std::net::IpAddr;

/// Ones' complement sum of 16-bit big-endian words, not yet folded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes; an odd last byte counts as the high half of a word.
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        let mut sum = self.0;
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_be_bytes(*word));
        }
        let (halves, odd) = rest.as_chunks::<2>();
        for half in halves {
            sum += u64::from(u16::from_be_bytes(*half));
        }
        if let [last] = odd {
            sum += u64::from(*last) << 8;
        }
        Sum(sum)
    }

    /// Adds a 16-bit word.
    pub fn word(self, word: u16) -> Sum {
        Sum(self.0 + u64::from(word))
    }

    /// Adds an address.
    pub fn address(self, address: IpAddr) -> Sum {
        match address {
            IpAddr::V4(a) => self.bytes(&a.octets()),
            IpAddr::V6(a) => self.bytes(&a.octets()),
        }
    }

    /// The pseudo-header of RFC 9293 section 3.1 (IPv4) or RFC 8200 section 8.1 (IPv6).
    pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: u32) -> Sum {
        Sum::default()
            .address(source)
            .address(destination)
            .word(u16::from(protocol))
            .bytes(&length.to_be_bytes())
    }

    /// Folded to 16 bits, not complemented: what a partial checksum field holds.
    #[inline(always)]
    pub fn fold(self) -> u16 {
        fold(self.0)
    }

    /// The complement: what a complete checksum field holds.
    pub fn complement(self) -> u16 {
        !self.fold()
    }
}

/// A sum of so many words in one. Each half of what turned round is added to the other, and what the lower ones carry is what the upper
/// ones do: it ends around.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    fold_32((sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32)
}

#[inline(always)]
fn fold_32(sum: u32) -> u16 {
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// What is carried ends around.
#[inline(always)]
fn add(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// What an edit adds to and takes from the words under a checksum: a ones' complement sum, which is 0 only if nothing was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u16);

impl Difference {
    /// A word was replaced.
    #[inline(always)]
    pub fn word(self, removed: u16, added: u16) -> Difference {
        self.and(Difference(!removed)).and(Difference(added))
    }

    /// An address was replaced by one of the same family.
    pub fn address(self, removed: IpAddr, added: IpAddr) -> Difference {
        // The complement of a whole address is the sum of its words' complements, modulo 0xffff.
        let [removed, added] = [removed, added].map(|address| Sum::default().address(address));
        self.word(removed.fold(), added.fold())
    }

    /// Two words were replaced.
    #[inline(always)]
    pub fn pair(self, removed: u32, added: u32) -> Difference {
        // 2^16 is 1 in this arithmetic.
        let (sum, carry) = (!removed).overflowing_add(added);
        self.and(Difference(fold_32(sum + u32::from(carry))))
    }

    /// Four times `N` words were replaced.
    #[inline(always)]
    pub fn words<const N: usize>(self, removed: &[u64; N], added: &[u64; N]) -> Difference {
        let mut sum = 0;
        for (removed, added) in removed.iter().zip(added) {
            sum = add(add(sum, !removed), *added);
        }
        self.and(Difference(fold(sum)))
    }

    /// Both changes.
    #[inline(always)]
    pub fn and(self, other: Difference) -> Difference {
        let (sum, carry) = self.0.overflowing_add(other.0);
        Difference(sum + u16::from(carry))
    }

    /// RFC 1624, equation 3: `~(~old + ~removed + added)`.
    #[inline(always)]
    pub fn apply_complete(self, field: u16) -> u16 {
        !self.apply_partial(!field)
    }

    /// The same for an uncomplemented sum: `old + ~removed + added`.
    #[inline(always)]
    pub fn apply_partial(self, field: u16) -> u16 {
        self.and(Difference(field)).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_1624_example_yields_zero_and_not_minus_zero() {
        // RFC 1624 section 4: 0x5555 becomes 0x3285 under a checksum of 0xdd2f.
        assert_eq!(Difference::default().word(0x5555, 0x3285).apply_complete(0xdd2f), 0x0000);
    }

    #[test]
    fn odd_bytes_are_the_high_half_of_a_word() {
        assert_eq!(Sum::default().bytes(&[0x12, 0x34, 0x56]).fold(), 0x1234 + 0x5600);
    }
}
