//! How much a worker says by itself: a token bucket for ICMP errors and one for resets, as Linux has for what it says
//! (`icmp_msgs_per_sec`, `icmp_msgs_burst`). So that nobody can make this host flood a third with answers by sending
//! in its name.
//!
//! As there, path MTU discovery is not limited (RFC 1191 section 5 and RFC 8201 live on it), nor what this host is told
//! itself. Resets of a dead server's connections are not answers: [`super::service::bury`] never asks here.

use super::flow::Millis;

/// Tokens that a bucket gets in a millisecond: 1,000 in a second.
const RATE: u64 = 1;
/// Tokens that it holds at most.
const BURST: u64 = 50;

/// What may be said at once, and goes on to be allowed.
#[derive(Debug)]
pub struct Bucket {
    tokens: u64,
    filled: Millis,
}

impl Default for Bucket {
    /// A full one.
    fn default() -> Bucket {
        Bucket { tokens: BURST, filled: Millis(0) }
    }
}

impl Bucket {
    /// May one more be sent now?
    pub fn take(&mut self, now: Millis) -> bool {
        let passed = now.0.saturating_sub(self.filled.0);
        self.tokens = passed.saturating_mul(RATE).saturating_add(self.tokens).min(BURST);
        self.filled = now.max(self.filled);
        let may_send = self.tokens > 0;
        self.tokens -= u64::from(may_send);
        may_send
    }
}

/// One worker's.
#[derive(Debug, Default)]
pub struct Answers {
    /// For ICMP errors.
    pub errors: Bucket,
    /// For resets, so that a flood of the one does not silence the other.
    pub resets: Bucket,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_followed_by_one_each_millisecond() {
        let mut bucket = Bucket::default();
        let sent = |bucket: &mut Bucket, now| (0..200).filter(|_| bucket.take(Millis(now))).count();
        assert_eq!(sent(&mut bucket, 5_000), 50);
        assert_eq!(sent(&mut bucket, 5_001), 1);
        assert_eq!(sent(&mut bucket, 5_011), 10);
        assert_eq!(sent(&mut bucket, 9_000), 50, "it holds no more");
        assert_eq!(sent(&mut bucket, 8_000), 0, "a clock that goes back gives nothing");
        assert_eq!(sent(&mut bucket, 9_001), 1);
        assert_eq!(sent(&mut bucket, u64::MAX), 50);
    }
}
