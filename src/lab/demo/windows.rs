//! Which stretch of time an event is judged by. A *gap* is the longest silence in the window after an event,
//! less the longest in the second before (before the first of events less than 3 s apart); a window ends
//! at the next event.

use crate::lab::traffic::{Micros, Progress};

const BASELINE: Micros = 1_000_000;
const APART: Micros = 3_000_000;

/// From, to.
pub(super) type Span = (Micros, Micros);

/// What one event is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// After the event.
    pub(super) after: Span,
    /// Before it all began.
    pub(super) baseline: Span,
}

impl Window {
    /// Did nothing new arrive in all of it?
    pub(super) fn is_silent(&self, progress: &Progress) -> bool {
        let (from, to) = self.after;
        progress.longest_silence(from, to) >= to - from
    }

    /// The gap of a stream.
    pub(super) fn gap(&self, progress: &Progress) -> Micros {
        let longest = |(from, to)| progress.longest_silence(from, to);
        longest(self.after).saturating_sub(longest(self.baseline))
    }
}

/// The windows of events at these times, with how long each is watched, in order.
pub(super) fn windows(events: &[(Micros, Micros)]) -> Vec<Window> {
    let mut first = 0; // of the events less than 3 s apart
    let mut windows = Vec::with_capacity(events.len());
    for (number, &(event, length)) in events.iter().enumerate() {
        if number == 0 || event - events[number - 1].0 >= APART {
            first = event;
        }
        let next = events.get(number + 1).map_or(Micros::MAX, |(next, _)| *next);
        windows.push(Window {
            after: (event, next.min(event + length)),
            baseline: (first.saturating_sub(BASELINE), first),
        });
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Micros = 1_000_000;

    fn of_two_seconds(events: &[Micros]) -> Vec<Window> {
        let events: Vec<_> = events.iter().map(|event| (*event, 2 * S)).collect();
        windows(&events)
    }

    #[test]
    fn a_window_ends_after_its_time_or_at_the_next_event() {
        let windows = of_two_seconds(&[5 * S, 6 * S, 9 * S]);
        let after: Vec<Span> = windows.iter().map(|w| w.after).collect();
        assert_eq!(after, [(5 * S, 6 * S), (6 * S, 8 * S), (9 * S, 11 * S)]);
    }

    #[test]
    fn events_close_together_share_the_calm_before_the_first() {
        let windows = of_two_seconds(&[5 * S, 7 * S, 9 * S, 12 * S]);
        let before: Vec<Span> = windows.iter().map(|w| w.baseline).collect();
        assert_eq!(before, [(4 * S, 5 * S), (4 * S, 5 * S), (4 * S, 5 * S), (11 * S, 12 * S)]);
    }
}
