//! Questions to a neighbour, one at a time, and what follows from its answers and its silence. Pure: time is a parameter.

use std::time::{Duration, Instant};

use super::{Settings, State};

/// The questions to one next hop.
#[derive(Debug)]
pub struct Prober {
    interval: Duration,
    fall: u8,
    rise: u8,
    state: State,
    /// Answers in a row while it is not up, questions without an answer while it is.
    in_a_row: u8,
    /// When the question was asked that has no answer yet.
    asked: Option<Instant>,
    next: Instant,
    round_trip: Option<Duration>,
}

impl Prober {
    /// Asks at once. If it `has_answered` before, silence means something from the start.
    pub fn new(settings: &Settings, has_answered: bool, now: Instant) -> Prober {
        Prober {
            interval: settings.interval,
            fall: settings.fall,
            rise: settings.rise,
            state: if has_answered { State::Up } else { State::Unknown },
            in_a_row: 0,
            asked: None,
            next: now,
            round_trip: None,
        }
    }

    /// What is known of the path.
    pub fn state(&self) -> State {
        self.state
    }

    /// How long the last answer took.
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// When [`Prober::tick`] has something to do.
    pub fn next_deadline(&self) -> Instant {
        self.next
    }

    /// True: a question is to be asked now. False: it is not time. Answers that have come in are to be told first.
    pub fn tick(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        if self.asked.replace(now).is_some() {
            self.unanswered();
        }
        // From now, not from when it was due: questions that were not asked are not asked all at once.
        self.next = now + self.interval;
        true
    }

    /// Did the last question get no answer so far? The next then goes to all, since the neighbour may have another Ethernet address.
    pub fn is_doubtful(&self) -> bool {
        self.state != State::Up || self.in_a_row > 0
    }

    fn unanswered(&mut self) {
        match self.state {
            State::Up => {
                self.in_a_row += 1;
                if self.in_a_row >= self.fall {
                    (self.state, self.in_a_row) = (State::Dead, 0);
                }
            }
            _ => self.in_a_row = 0,
        }
    }

    /// It answered. One answer counts for one question.
    pub fn answered(&mut self, now: Instant) {
        let Some(asked) = self.asked.take() else { return };
        self.round_trip = Some(now.duration_since(asked));
        let needed = match self.state {
            State::Up => {
                self.in_a_row = 0;
                return;
            }
            State::Unknown => 1,
            _ => self.rise,
        };
        self.in_a_row += 1;
        if self.in_a_row >= needed {
            (self.state, self.in_a_row) = (State::Up, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(300);

    /// Asks once an interval; true: an answer came.
    fn play(prober: &mut Prober, start: Instant, answers: &[bool]) -> Vec<State> {
        let mut now = start.max(prober.next_deadline());
        let mut states = Vec::new();
        for is_answered in answers {
            assert!(prober.tick(now));
            assert!(!prober.tick(now), "one question at a time");
            if *is_answered {
                prober.answered(now + INTERVAL / 10);
            }
            states.push(prober.state());
            now += INTERVAL;
        }
        states
    }

    fn prober(has_answered: bool) -> (Prober, Instant) {
        let now = Instant::now();
        (Prober::new(&Settings::default(), has_answered, now), now)
    }

    #[test]
    fn who_never_answered_is_never_dead() {
        let (mut prober, now) = prober(false);
        assert_eq!(play(&mut prober, now, &[false; 9]), [State::Unknown; 9]);
        assert_eq!(play(&mut prober, now, &[true]), [State::Up]);
    }

    #[test]
    fn three_questions_without_an_answer_are_a_dead_path_and_three_answers_one_that_healed() {
        use State::{Dead, Up};
        let (mut prober, now) = prober(false);
        let seen = play(&mut prober, now, &[true, false, false, true, false, false, false, false]);
        // That the last question has no answer is known when the next is asked.
        assert_eq!(seen, [Up, Up, Up, Up, Up, Up, Up, Dead]);
        let seen = play(&mut prober, now, &[true, true, false, true, true, true, false]);
        assert_eq!(seen, [Dead, Dead, Dead, Dead, Dead, Up, Up]);
    }

    #[test]
    fn after_a_loss_of_carrier_silence_counts_at_once() {
        let (mut prober, now) = prober(true);
        assert_eq!(play(&mut prober, now, &[false; 4])[3], State::Dead);
    }

    #[test]
    fn answers_to_nothing_and_twice_do_not_count() {
        let (mut prober, now) = prober(true);
        play(&mut prober, now, &[false; 4]);
        for _ in 0..9 {
            prober.answered(now);
        }
        assert_eq!(prober.state(), State::Dead);
    }

    #[test]
    fn a_sleep_is_not_made_up_for() {
        let (mut prober, now) = prober(true);
        assert!(prober.tick(now));
        let later = now + 100 * INTERVAL;
        assert!(prober.tick(later) && !prober.tick(later));
        assert_eq!(prober.state(), State::Up, "one question went without an answer, not a hundred");
    }
}
