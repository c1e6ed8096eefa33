//! A counter's rate: what it grew by in a second since it was read last.

use std::time::Instant;

/// Remembers a counter from one reading to the next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate(Option<(f64, Instant)>);

impl Rate {
    /// A second's growth, `None` at the first reading. A counter that is less than it was began anew at zero, as
    /// Prometheus takes it.
    pub(super) fn of(&mut self, count: f64, now: Instant) -> Option<f64> {
        let (before, then) = self.0.replace((count, now))?;
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        if seconds <= 0.0 {
            // Twice at one moment: the older one is the better base.
            self.0 = Some((before, then));
            return None;
        }
        let grown = if count < before { count } else { count - before };
        Some(grown / seconds)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_by_the_second_and_outlives_a_restart() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rate.of(100.0, start), None);
        assert_eq!(rate.of(100.0, start), None);
        assert_eq!(rate.of(300.0, after(2)), Some(100.0));
        assert_eq!(rate.of(300.0, after(3)), Some(0.0));
        assert_eq!(rate.of(40.0, after(5)), Some(20.0));
    }
}
