//! When a stream got something new, kept as the intervals in which it did not.

/// Microseconds since the traffic began.
pub type Micros = u64;

/// Shorter silences are not kept: they are what pacing and scheduling make anyway.
const SHORTEST: Micros = 200;

/// The silences of one stream.
#[derive(Clone, Debug)]
pub struct Progress {
    last: Micros,
    silences: Vec<(Micros, Micros)>,
}

impl Progress {
    /// Of a stream that begins at `now`.
    pub(super) fn new(now: Micros) -> Progress {
        Progress { last: now, silences: Vec::new() }
    }

    /// Something new arrived.
    pub(super) fn mark(&mut self, now: Micros) {
        if now.saturating_sub(self.last) >= SHORTEST {
            self.silences.push((self.last, now));
        }
        self.last = self.last.max(now);
    }

    /// The longest part of `from..to` in which nothing new arrived; 0 if that is under 0.2 ms.
    pub fn longest_silence(&self, from: Micros, to: Micros) -> Micros {
        let begin = self.silences.partition_point(|&(_, end)| end <= from);
        let open = (self.last, Micros::MAX);
        self.silences[begin..]
            .iter()
            .chain([&open])
            .map(|&(start, end)| end.min(to).saturating_sub(start.max(from)))
            .max()
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_counts_as_far_as_it_lies_in_the_window() {
        let mut progress = Progress::new(0);
        for now in [1_000, 2_000, 10_000, 10_100, 11_000] {
            progress.mark(now);
        }
        assert_eq!(progress.longest_silence(0, 11_000), 8_000);
        assert_eq!(progress.longest_silence(5_000, 11_000), 5_000);
        assert_eq!(progress.longest_silence(0, 4_000), 2_000);
        assert_eq!(progress.longest_silence(10_000, 10_100), 0);
    }

    #[test]
    fn a_silence_that_goes_on_counts_to_the_end_of_the_window() {
        let mut progress = Progress::new(0);
        progress.mark(1_000);
        assert_eq!(progress.longest_silence(0, 500_000), 499_000);
        assert_eq!(progress.longest_silence(200_000, 500_000), 300_000);
    }
}
