//! How a forwarder ends: at once, or after it took leave of its neighbours (`vipa drain`, `vipa run --withdraw`).
//!
//! The main thread asks for it (signals), and the monitor (the control socket). The router looks in every turn, and does it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mio::Waker;

/// So long the neighbours have to take another way before we stop, where nobody says otherwise.
pub const WAIT: Duration = Duration::from_secs(3);
/// And no longer than this, whoever asks.
pub const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// They are told so often, since a datagram may be lost …
const TIMES: u32 = 3;
/// … and no further apart than this.
const APART: Duration = Duration::from_secs(1);

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The neighbours are told first.
    pub is_polite: bool,
    /// Since then.
    pub since: Instant,
    /// Then it ends.
    pub end: Instant,
}

impl Asked {
    /// When the neighbours are to be told for the time after `told` times; `None`: they have been told.
    pub fn next_telling(&self, told: u32) -> Option<Instant> {
        let apart = APART.min((self.end - self.since) / TIMES);
        (self.is_polite && told < TIMES).then(|| self.since + apart * told)
    }
}

/// Shared by all who may ask and the one who does it.
#[derive(Clone, Debug)]
pub struct Leave {
    asked: Arc<Mutex<Option<Asked>>>,
    router: Arc<Waker>,
}

impl Leave {
    /// Nobody has asked yet; `router` wakes the one who does it.
    pub fn new(router: Arc<Waker>) -> Leave {
        Leave { asked: Arc::default(), router }
    }

    /// What is to be done now.
    pub fn asked(&self) -> Option<Asked> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The neighbours are to be told, and it is to end `wait` later. If it is leaving already, that stands. Returns what holds, and
    /// whether it is by this.
    pub fn politely(&self, wait: Duration) -> (Asked, bool) {
        let since = Instant::now();
        let end = since + wait.min(LONGEST_WAIT);
        self.ask(|asked| asked.unwrap_or(Asked { is_polite: true, since, end }))
    }

    /// It is to end now. Neighbours that are being told are told what is left to tell.
    pub fn at_once(&self) {
        let end = Instant::now();
        self.ask(|asked| {
            let asked = asked.unwrap_or(Asked { is_polite: false, since: end, end });
            Asked { end: asked.end.min(end), ..asked }
        });
    }

    fn ask(&self, what: impl FnOnce(Option<Asked>) -> Asked) -> (Asked, bool) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *asked;
        let now = what(before);
        *asked = Some(now);
        drop(asked);
        // Were it to fail, the router would look at its next turn.
        let _ = self.router.wake();
        (now, before.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leave() -> Leave {
        let poll = mio::Poll::new().expect("a poll");
        Leave::new(Arc::new(Waker::new(poll.registry(), mio::Token(0)).expect("a waker")))
    }

    fn tellings(asked: &Asked) -> Vec<Duration> {
        (0..9).map_while(|told| asked.next_telling(told)).map(|at| at - asked.since).collect()
    }

    #[test]
    fn the_neighbours_are_told_three_times_a_second_apart_or_sooner() {
        let times = |wait| tellings(&leave().politely(Duration::from_millis(wait)).0);
        let apart = |ms: u64| [0, 1, 2].map(|n| Duration::from_millis(n * ms));
        assert_eq!(times(60_000), apart(1000));
        assert_eq!(times(600), apart(200));
        assert_eq!(times(0), apart(0));
    }

    #[test]
    fn who_asks_again_changes_nothing() {
        let leave = leave();
        assert_eq!(leave.asked(), None);
        let (first, is_first) = leave.politely(Duration::from_secs(60));
        assert!(is_first);
        assert_eq!(leave.politely(Duration::ZERO), (first, false));
        assert_eq!(leave.asked(), Some(first));
    }

    #[test]
    fn a_signal_cuts_the_wait_short_and_what_is_left_to_tell_is_told() {
        let leave = leave();
        let (first, _) = leave.politely(Duration::from_secs(60));
        leave.at_once();
        let asked = leave.asked().expect("it was asked");
        assert!(asked.end < first.end && asked.is_polite);
        assert!(tellings(&asked).iter().all(|at| *at <= asked.end - asked.since));
        assert_eq!(tellings(&asked).len(), 3);
    }

    #[test]
    fn at_once_tells_nobody() {
        let leave = leave();
        leave.at_once();
        assert_eq!(tellings(&leave.asked().expect("it was asked")), []);
        assert!(!leave.politely(Duration::from_secs(60)).1, "it ends already");
    }
}
