//! Content whose every byte follows from its stream and its offset, so that a lost, doubled, swapped or
//! changed byte is seen where it arrives. Made once; sending and verifying cost no more than a copy.

/// Bytes until the content repeats: a prime, so that no frame, page or buffer size divides it.
const PERIOD: usize = 1_048_583;
/// The longest run that [`Pattern::run`] hands out.
pub(super) const LONGEST_RUN: usize = 256 * 1024;

/// The content of all streams.
#[derive(Debug)]
pub(super) struct Pattern(Vec<u8>);

impl Pattern {
    pub(super) fn new() -> Pattern {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(PERIOD + LONGEST_RUN + 8);
        while bytes.len() < PERIOD {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend_from_slice(&state.to_ne_bytes());
        }
        bytes.truncate(PERIOD);
        bytes.extend_from_within(..LONGEST_RUN);
        Pattern(bytes)
    }

    /// `length` bytes (at most [`LONGEST_RUN`]) of `stream` from `offset` on.
    pub(super) fn run(&self, stream: u64, offset: u64, length: usize) -> &[u8] {
        // Streams start far from each other, so that bytes of another one are wrong too.
        let start = (stream * 104_729 + offset) % PERIOD as u64;
        &self.0[start as usize..][..length.min(LONGEST_RUN)]
    }

    /// How many bytes of `data` are not what `stream` has from `offset` on. `data` is no longer than
    /// [`LONGEST_RUN`].
    pub(super) fn wrong(&self, stream: u64, offset: u64, data: &[u8]) -> u64 {
        let right = self.run(stream, offset, data.len());
        if right == data {
            return 0;
        }
        right.iter().zip(data).filter(|(a, b)| a != b).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_doubled_or_foreign_run_of_bytes_is_wrong() {
        let pattern = Pattern::new();
        let data = pattern.run(3, 5_000_000, 1448).to_vec();
        assert_eq!(pattern.wrong(3, 5_000_000, &data), 0);
        assert!(pattern.wrong(3, 5_000_000 + 1448, &data) > 1000);
        assert!(pattern.wrong(3, 5_000_000 - 1, &data) > 1000);
        assert!(pattern.wrong(4, 5_000_000, &data) > 1000);
    }

    #[test]
    fn one_flipped_bit_is_one_wrong_byte() {
        let pattern = Pattern::new();
        let offset = PERIOD as u64 * 3 - 700; // across the seam
        let mut data = pattern.run(1, offset, 1448).to_vec();
        assert_eq!(pattern.wrong(1, offset, &data), 0);
        data[1000] ^= 0x10;
        assert_eq!(pattern.wrong(1, offset, &data), 1);
    }
}
