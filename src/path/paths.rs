//! What the router keeps of the paths: which next hops there are, and what is known of each. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Hop, State};

/// A next hop that died, and to which no route leads any more, is asked for so long still: the routes that RIP told by it are gone because
/// it is dead, and come back only when it is in use again. Asking no longer would make it pass for alive, or end its BFD session.
const KEPT: Duration = Duration::from_secs(180);
/// Next hops watched at most.
const MOST: usize = 256;

/// All next hops that are watched.
#[derive(Debug, Default)]
pub struct Paths {
    known: BTreeMap<Hop, Known>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    state: State,
    /// It has answered at any time.
    has_answered: bool,
    /// It died, and no route has come back to it since.
    is_awaited: bool,
    /// No route leads to it since.
    left: Option<Instant>,
}

impl Paths {
    /// The next hops to which routes lead now.
    pub fn follow(&mut self, hops: &BTreeSet<Hop>, now: Instant) {
        for hop in hops.iter().take(MOST) {
            let known = self.known.entry(*hop).or_default();
            known.left = None;
            known.is_awaited &= known.state != State::Up;
        }
        self.known.retain(|hop, known| {
            if hops.contains(hop) {
                return true;
            }
            let left = *known.left.get_or_insert(now);
            known.is_awaited && now.duration_since(left) < KEPT
        });
    }

    /// A next hop is in another state now; true if that is news.
    pub fn report(&mut self, hop: Hop, state: State) -> bool {
        let Some(known) = self.known.get_mut(&hop) else { return false };
        known.has_answered |= state == State::Up;
        known.is_awaited |= state == State::Dead;
        std::mem::replace(&mut known.state, state) != state
    }

    /// Each next hop, what is known of it, and whether it ever answered.
    pub fn iter(&self) -> impl Iterator<Item = (Hop, State, bool)> + '_ {
        self.known.iter().map(|(hop, known)| (*hop, known.state, known.has_answered))
    }

    /// When a next hop is forgotten.
    pub fn next_end(&self) -> Option<Instant> {
        self.known.values().filter_map(|known| known.left).map(|left| left + KEPT).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::view::NicId;

    fn hop(nic: u8) -> Hop {
        (NicId(nic), std::net::Ipv4Addr::new(10, 1, nic, 1).into())
    }

    fn states(paths: &Paths) -> Vec<(Hop, State)> {
        paths.iter().map(|(hop, state, _)| (hop, state)).collect()
    }

    #[test]
    fn a_dead_next_hop_is_remembered_without_a_route_and_others_are_not() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        paths.follow(&BTreeSet::from([hop(1), hop(2)]), start);
        assert!(paths.report(hop(1), State::Up) && paths.report(hop(1), State::Dead));
        assert!(!paths.report(hop(1), State::Dead), "no news");
        assert!(paths.report(hop(2), State::Up));
        paths.follow(&BTreeSet::new(), start);
        assert_eq!(states(&paths), [(hop(1), State::Dead)]);
        assert_eq!(paths.next_end(), Some(start + KEPT));
        paths.follow(&BTreeSet::new(), start + KEPT);
        assert_eq!(states(&paths), []);
        assert!(!paths.report(hop(1), State::Up), "nobody asked");
    }

    #[test]
    fn one_that_healed_is_kept_until_its_route_is_back() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        let route = BTreeSet::from([hop(1)]);
        paths.follow(&route, start);
        paths.report(hop(1), State::Dead);
        paths.follow(&BTreeSet::new(), start);
        paths.report(hop(1), State::Waking);
        paths.report(hop(1), State::Up);
        paths.follow(&BTreeSet::new(), start);
        assert_eq!(states(&paths), [(hop(1), State::Up)], "it waits out its hold-down");
        paths.follow(&route, start);
        paths.follow(&BTreeSet::new(), start);
        assert_eq!(states(&paths), [], "as any other whose route is gone");
    }

    #[test]
    fn a_route_that_comes_back_keeps_it() {
        let (mut paths, start) = (Paths::default(), Instant::now());
        paths.follow(&BTreeSet::from([hop(1)]), start);
        paths.report(hop(1), State::Dead);
        paths.follow(&BTreeSet::new(), start);
        paths.follow(&BTreeSet::from([hop(1)]), start + KEPT / 2);
        assert_eq!(paths.next_end(), None);
        assert_eq!(states(&paths), [(hop(1), State::Dead)]);
    }

    #[test]
    fn there_is_a_bound() {
        let mut paths = Paths::default();
        let many = (0..1000u32).map(|n| (NicId(0), std::net::Ipv4Addr::from(n).into())).collect();
        paths.follow(&many, Instant::now());
        assert_eq!(paths.iter().count(), MOST);
    }
}
