//! A NIC that returns waits out its hold-down before it carries flows again, so that one that flaps does not
//! drag flows along. Pure: time is a parameter.

use std::time::{Duration, Instant};

use crate::config::Config;
use crate::forward::view::NicState;
use crate::link::mirror::Mirror;

/// Hold-down of all NICs.
#[derive(Debug)]
pub struct HoldDown {
    nics: Vec<Track>,
}

/// One NIC.
#[derive(Clone, Copy, Debug)]
struct Track {
    hold_down: Duration,
    /// Index of the device when it was last seen up with carrier, without a break since.
    up_since: Option<(u32, Instant)>,
    /// The first look at it is still to come.
    is_new: bool,
    /// Until then.
    held_until: Option<Instant>,
}

impl HoldDown {
    /// Nothing has been seen yet: what is up at the first look is not held down.
    pub fn new(config: &Config) -> HoldDown {
        let track = |nic: &crate::config::Nic| Track {
            hold_down: nic.hold_down,
            up_since: None,
            is_new: true,
            held_until: None,
        };
        HoldDown { nics: config.nics.iter().map(track).collect() }
    }

    /// Looks at the NICs and says what state each is in now.
    pub fn observe(&mut self, config: &Config, mirror: &Mirror, now: Instant) -> Vec<NicState> {
        let links = config.nics.iter().map(|nic| mirror.link(&nic.name));
        self.nics
            .iter_mut()
            .zip(links)
            .map(|(track, link)| {
                let (state, index) = match link {
                    None => (NicState::Missing, 0),
                    Some((index, link)) if !link.is_up => (NicState::Down, index),
                    Some((index, link)) if !link.has_carrier => (NicState::NoCarrier, index),
                    Some((index, _)) => (NicState::Live, index),
                };
                track.observe(state, index, now)
            })
            .collect()
    }

    /// When the next hold-down ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.nics.iter().filter_map(|track| track.held_until).min()
    }
}

impl Track {
    fn observe(&mut self, state: NicState, ifindex: u32, now: Instant) -> NicState {
        let was_new = std::mem::replace(&mut self.is_new, false);
        if state != NicState::Live {
            self.up_since = None;
            self.held_until = None;
            return state;
        }
        match self.up_since {
            Some((index, _)) if index == ifindex => {}
            _ => {
                self.up_since = Some((ifindex, now));
                self.held_until =
                    (!was_new && !self.hold_down.is_zero()).then(|| now + self.hold_down);
            }
        }
        self.held_until = self.held_until.filter(|end| now < *end);
        if self.held_until.is_some() { NicState::HeldDown } else { NicState::Live }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(3);

    fn track() -> Track {
        Track { hold_down: HOLD, up_since: None, is_new: true, held_until: None }
    }

    #[test]
    fn what_is_up_at_the_first_look_is_live_at_once() {
        assert_eq!(track().observe(NicState::Live, 2, Instant::now()), NicState::Live);
    }

    #[test]
    fn a_nic_that_returns_waits() {
        let (mut track, start) = (track(), Instant::now());
        track.observe(NicState::Live, 2, start);
        assert_eq!(track.observe(NicState::NoCarrier, 2, start), NicState::NoCarrier);
        assert_eq!(track.observe(NicState::Live, 2, start), NicState::HeldDown);
        let almost = start + HOLD - Duration::from_millis(1);
        assert_eq!(track.observe(NicState::Live, 2, almost), NicState::HeldDown);
        assert_eq!(track.held_until, Some(start + HOLD));
        assert_eq!(track.observe(NicState::Live, 2, start + HOLD), NicState::Live);
        assert_eq!(track.held_until, None);
    }

    #[test]
    fn a_loss_while_held_down_starts_the_wait_anew() {
        let (mut track, start) = (track(), Instant::now());
        track.observe(NicState::Missing, 0, start);
        let second = Duration::from_secs(1);
        assert_eq!(track.observe(NicState::Live, 2, start), NicState::HeldDown);
        track.observe(NicState::Down, 2, start + second);
        track.observe(NicState::Live, 2, start + 2 * second);
        assert_eq!(track.observe(NicState::Live, 2, start + 4 * second), NicState::HeldDown);
        assert_eq!(track.observe(NicState::Live, 2, start + 5 * second), NicState::Live);
    }

    #[test]
    fn a_device_made_anew_between_two_looks_waits_too() {
        let (mut track, start) = (track(), Instant::now());
        track.observe(NicState::Live, 2, start);
        assert_eq!(track.observe(NicState::Live, 7, start), NicState::HeldDown);
    }
}
