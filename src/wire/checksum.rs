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
        // 33 bits are left; then 32, since what carries has left little; then both halves, and what they carry.
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
        (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
    }

    /// The complement: what a complete checksum field holds.
    pub fn complement(self) -> u16 {
        !self.fold()
    }
}

/// What an edit adds to and takes from the words under a checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(Sum);

impl Difference {
    /// A word was replaced.
    pub fn word(self, removed: u16, added: u16) -> Difference {
        Difference(self.0.word(!removed).word(added))
    }

    /// An address was replaced by one of the same family.
    pub fn address(self, removed: IpAddr, added: IpAddr) -> Difference {
        // The complement of a whole address is the sum of its words' complements, modulo 0xffff.
        let removed = !Sum::default().address(removed).fold();
        Difference(self.0.word(removed).address(added))
    }

    /// Two words were replaced.
    #[inline(always)]
    pub fn pair(self, removed: u32, added: u32) -> Difference {
        // 2^16 is 1 in this arithmetic.
        Difference(Sum(self.0.0 + u64::from(!removed) + u64::from(added)))
    }

    /// Four words were replaced.
    #[inline(always)]
    pub fn quad(self, removed: u64, added: u64) -> Difference {
        let (high, low) = ((removed >> 32) as u32, removed as u32);
        self.pair(high, (added >> 32) as u32).pair(low, added as u32)
    }

    /// RFC 1624, equation 3: `~(~old + ~removed + added)`.
    #[inline(always)]
    pub fn apply_complete(self, field: u16) -> u16 {
        self.0.word(!field).complement()
    }

    /// The same for an uncomplemented sum: `old + ~removed + added`.
    #[inline(always)]
    pub fn apply_partial(self, field: u16) -> u16 {
        self.0.word(field).fold()
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
