//! What returns waits out its hold-down before it carries flows again, so that one that flaps does not drag flows along; each time that
//! it fails again soon it waits twice as long. NICs and next hops alike. Pure: time is a parameter.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::health::Health;
use crate::config::Config;
use crate::forward::view::{NicId, NicState};
use crate::link::mirror::Mirror;
use crate::path::paths::Paths;
use crate::path::{Hop, State};

/// Failing again within so many hold-downs of its return is flapping …
const SOON: u32 = 10;
/// … and doubles the hold-down, this often at most …
const DOUBLINGS: u32 = 6;
/// … and to no more than this, or to the hold-down itself where that is longer.
const LONGEST: Duration = Duration::from_secs(300);

/// Hold-down of all NICs and next hops.
#[derive(Debug)]
pub struct HoldDown {
    nics: Vec<Track>,
    hops: BTreeMap<Hop, Track>,
}

/// One NIC or next hop.
#[derive(Clone, Copy, Debug)]
struct Track {
    hold_down: Duration,
    /// Index of the device when it was last seen to work, without a break since.
    up_since: Option<(u32, Instant)>,
    /// The first look at it is still to come.
    is_new: bool,
    /// Until then.
    held_until: Option<Instant>,
    /// It came back from its last hold-down then.
    returned: Option<Instant>,
    /// How often in a row it failed again soon.
    flaps: u32,
}

impl HoldDown {
    /// Nothing has been seen yet: what is up at the first look is not held down.
    pub fn new(config: &Config) -> HoldDown {
        let nics = config.nics.iter().map(|nic| Track::new(nic.hold_down)).collect();
        HoldDown { nics, hops: BTreeMap::new() }
    }

    /// Takes the hold-downs of another configuration, in which NICs keep their places; what is known of them stays.
    pub fn reconfigure(&mut self, config: &Config) {
        for (at, nic) in config.nics.iter().enumerate() {
            match self.nics.get_mut(at) {
                Some(track) => track.hold_down = nic.hold_down,
                None => self.nics.push(Track::new(nic.hold_down)),
            }
        }
        for (hop, track) in &mut self.hops {
            track.hold_down =
                config.nics.get(hop.0.index()).map_or(track.hold_down, |nic| nic.hold_down);
        }
        self.nics.truncate(config.nics.len());
    }

    /// Looks at the NICs and the paths behind them, and says which carry traffic now.
    pub fn observe(
        &mut self,
        config: &Config,
        mirror: &Mirror,
        paths: &Paths,
        now: Instant,
    ) -> Health {
        let links: Vec<(NicState, u32)> = config
            .nics
            .iter()
            .zip((0..).map(NicId))
            .map(|(nic, id)| match mirror.link(&nic.name) {
                None => (NicState::Missing, 0),
                Some((index, link)) if !link.is_up => (NicState::Down, index),
                Some((index, link)) if !link.has_carrier => (NicState::NoCarrier, index),
                Some((index, _)) if is_deserted(paths, id) => (NicState::NoPath, index),
                Some((index, _)) => (NicState::Live, index),
            })
            .collect();
        let states = self.nics.iter_mut().zip(&links).zip((0..).map(NicId));
        let states =
            states.map(|((track, (state, index)), id)| match track.observe(*state, *index, now) {
                NicState::Live if is_waking(paths, id) => NicState::HeldDown,
                state => state,
            });
        let states = states.collect();
        let is_watched = |hop: &Hop| paths.iter().any(|(watched, ..)| watched == *hop);
        self.hops.retain(|hop, _| is_watched(hop));
        let mut hops = BTreeMap::new();
        for (hop, state, _) in paths.iter() {
            let Some(nic) = config.nics.get(hop.0.index()) else { continue };
            let track = self.hops.entry(hop).or_insert_with(|| Track::new(nic.hold_down));
            let seen = if state == State::Dead { NicState::NoPath } else { NicState::Live };
            let is_held = track.observe(seen, 0, now) != NicState::Live;
            hops.insert(hop, is_held || state == State::Waking);
        }
        Health::with_hops(states, &hops)
    }

    /// When the next hold-down ends.
    pub fn next_end(&self) -> Option<Instant> {
        let tracks = self.nics.iter().chain(self.hops.values());
        tracks.filter_map(|track| track.held_until).min()
    }
}

/// Some next hop behind the NIC answered once, and none does now.
fn is_deserted(paths: &Paths, nic: NicId) -> bool {
    all_are(paths, nic, |state| state == State::Dead)
}

/// Some answer again, and none is to be used yet.
fn is_waking(paths: &Paths, nic: NicId) -> bool {
    all_are(paths, nic, |state| matches!(state, State::Dead | State::Waking))
}

/// Of the next hops behind the NIC that ever answered.
fn all_are(paths: &Paths, nic: NicId, is_such: impl Fn(State) -> bool) -> bool {
    let mut known =
        paths.iter().filter(|(hop, state, _)| hop.0 == nic && *state != State::Unknown).peekable();
    known.peek().is_some() && known.all(|(_, state, _)| is_such(state))
}

impl Track {
    fn new(hold_down: Duration) -> Track {
        Track {
            hold_down,
            up_since: None,
            is_new: true,
            held_until: None,
            returned: None,
            flaps: 0,
        }
    }

    fn observe(&mut self, state: NicState, ifindex: u32, now: Instant) -> NicState {
        let was_new = std::mem::replace(&mut self.is_new, false);
        if state != NicState::Live {
            if self.up_since.take().is_some() && self.held_until.is_none() {
                self.failed(now);
            }
            self.held_until = None;
            return state;
        }
        match self.up_since {
            Some((index, _)) if index == ifindex => {}
            _ => {
                self.up_since = Some((ifindex, now));
                let wait = self.wait();
                self.held_until = (!was_new && !wait.is_zero()).then(|| now + wait);
            }
        }
        if self.held_until.is_some_and(|end| end <= now) {
            (self.held_until, self.returned) = (None, Some(now));
        }
        if self.held_until.is_some() { NicState::HeldDown } else { NicState::Live }
    }

    fn failed(&mut self, now: Instant) {
        let is_soon =
            self.returned.take().is_some_and(|at| now.duration_since(at) < self.hold_down * SOON);
        self.flaps = if is_soon { (self.flaps + 1).min(DOUBLINGS) } else { 0 };
    }

    fn wait(&self) -> Duration {
        (self.hold_down * (1 << self.flaps)).min(LONGEST.max(self.hold_down))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(3);

    fn track() -> Track {
        Track::new(HOLD)
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

    #[test]
    fn what_answers_again_waits_out_its_hold_down_and_is_used_when_bfd_is_up() {
        let (config, mirror) =
            (crate::link::plan::tests::config(), crate::link::plan::tests::mirror());
        let hop: Hop = (NicId(0), "10.1.1.1".parse().expect("an address"));
        let (mut hold_down, mut paths) = (HoldDown::new(&config), Paths::default());
        let start = Instant::now();
        paths.follow(&std::collections::BTreeSet::from([hop]), start);
        let mut look = |state, seconds| {
            paths.report(hop, state);
            let now = start + Duration::from_secs(seconds);
            let health = hold_down.observe(&config, &mirror, &paths, now);
            (health.state(hop.0), health.resting.contains(&hop))
        };
        assert_eq!(look(State::Up, 0), (NicState::Live, false));
        assert_eq!(look(State::Dead, 1), (NicState::NoPath, true));
        assert_eq!(look(State::Waking, 2), (NicState::HeldDown, true));
        assert_eq!(look(State::Waking, 60), (NicState::HeldDown, true), "BFD is not up");
        assert_eq!(look(State::Up, 60), (NicState::Live, false), "it has waited already");
    }

    #[test]
    fn one_that_flaps_waits_twice_as_long_each_time_until_it_stays() {
        let (mut track, mut now) = (track(), Instant::now());
        track.observe(NicState::Live, 2, now);
        let second = Duration::from_secs(1);
        let mut waits = Vec::new();
        for stays in [1, 1, 1, 1, 1, 1, 1, 1, 1, 31, 1].map(Duration::from_secs) {
            now += stays;
            track.observe(NicState::NoPath, 2, now);
            now += second;
            assert_eq!(track.observe(NicState::Live, 2, now), NicState::HeldDown);
            let until = track.held_until.expect("it is held down");
            waits.push((until - now).as_secs());
            now = until;
            assert_eq!(track.observe(NicState::Live, 2, now), NicState::Live);
        }
        assert_eq!(waits, [3, 6, 12, 24, 48, 96, 192, 192, 192, 3, 6]);
    }
}
