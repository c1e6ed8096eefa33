//! When a worker with nothing to do asks its devices again rather than sleep. Pure; times are nanoseconds of one clock.
//!
//! To be woken costs some tens of microseconds on a virtual machine, and whoever wakes it pays as well. So after frames it asks on for a
//! moment: what it sent is about to be answered. It gives the processor away between two questions; where somebody else took it,
//! the moment is over, and for a while there is none: what it would gain they would lose.
//!
//! After bulk it asks on in any case, a number of times: the sender is about to have more.

/// How long after frames it asks on.
const MOMENT: u64 = 20_000;
/// A processor that was given away for longer than this was wanted.
const WANTED: u64 = 5_000;
/// How long it then does without.
const PAUSE: u64 = 1_000_000;
/// A turn that moved this many bytes was bulk, and is followed by so many turns.
const BULK: usize = 32 << 10;
const BULK_TURNS: usize = 64;

/// What a worker remembers of its last turns.
#[derive(Debug, Default)]
pub(super) struct BusyPoll {
    until: u64,
    paused_until: u64,
    bulk_turns: usize,
}

impl BusyPoll {
    /// A turn moved so many bytes, and is over now.
    pub(super) fn moved(&mut self, bytes: usize, now: u64) {
        if bytes > 0 {
            self.until = now + MOMENT;
        }
        self.bulk_turns =
            if bytes >= BULK { BULK_TURNS } else { self.bulk_turns.saturating_sub(1) };
    }

    /// The processor was given away from `then` to `now`.
    pub(super) fn gave_way(&mut self, then: u64, now: u64) {
        if now.saturating_sub(then) > WANTED {
            self.paused_until = now + PAUSE;
            self.until = now;
        }
    }

    /// Does it ask on?
    pub(super) fn is_on(&self, now: u64) -> bool {
        self.is_bulk() || (now < self.until && now >= self.paused_until)
    }

    /// Is it asking on because of bulk? Its devices are then asked without having said that they have frames.
    pub(super) fn is_bulk(&self) -> bool {
        self.bulk_turns > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_on_for_a_moment_after_frames() {
        let mut busy = BusyPoll::default();
        assert!(!busy.is_on(0));
        busy.moved(60, 1_000);
        assert!(busy.is_on(1_000) && busy.is_on(MOMENT));
        assert!(!busy.is_on(1_000 + MOMENT));
        busy.moved(0, MOMENT);
        assert!(!busy.is_on(1_000 + MOMENT), "a turn without frames prolongs nothing");
    }

    #[test]
    fn where_others_want_the_processor_it_does_without_for_a_while() {
        let mut busy = BusyPoll::default();
        busy.moved(60, 1_000);
        busy.gave_way(1_000, 1_000 + WANTED);
        assert!(busy.is_on(1_000 + WANTED), "nobody took it");
        busy.gave_way(1_000, 1_001 + WANTED);
        let taken = 1_001 + WANTED;
        assert!(!busy.is_on(taken));
        busy.moved(60, taken + PAUSE - 1);
        assert!(!busy.is_on(taken + PAUSE - 1));
        assert!(busy.is_on(taken + PAUSE), "the while is over, the moment is not");
    }

    #[test]
    fn after_bulk_it_asks_a_number_of_times_whoever_else_wants_the_processor() {
        let mut busy = BusyPoll::default();
        busy.moved(BULK, 0);
        for _ in 1..BULK_TURNS {
            busy.gave_way(0, 1_000_000);
            busy.moved(0, 1_000_000);
            assert!(busy.is_on(1_000_000) && busy.is_bulk());
        }
        busy.moved(0, 1_000_000);
        assert!(!busy.is_on(1_000_000) && !busy.is_bulk());
    }
}
