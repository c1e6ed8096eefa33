//! Policies (L7): what makes one server better than another.
//!
//! A policy gives each server a score, and the lowest wins. A new one takes a name in `NAMED` and a function
//! such as [`least_loaded`], which finds what it compares by *role*: what a status object's value means, whatever
//! its name and kind. No policy knows of weights: [`weigh`] sees to them.

use std::fmt;

use super::score::Score;
use super::status::Role;

/// What is preferred.
#[derive(Clone, Debug, PartialEq)]
pub enum Policy {
    /// The one with the fewest pending requests, where they are read, else the fewest clients.
    LeastLoaded,
    /// The one that answers soonest.
    FastestResponse,
    /// The one that gets most done.
    GreatestThroughput,
    /// The one that has done least so far.
    FewestProcessed,
    /// The nearest.
    Closest,
    /// The one that can bear most.
    GreatestCapacity,
    /// The one with the lowest value of an expression.
    Score(Score),
}

/// Why a server has no score.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoScore {
    /// The service has no status object of this role.
    #[error("no status object has the role {0:?}")]
    NoRole(&'static str),
    /// It was not read yet, or says nothing.
    #[error("{0} has no value")]
    NoValue(String),
    /// The expression has no value here.
    #[error("the score is {0}")]
    Expression(String),
}

/// What is known of one server.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Of each status object of the service, what its value means.
    pub roles: &'a [Option<Role>],
    /// Of each, its value.
    pub values: &'a [Option<f64>],
    /// The server's own `capacity`.
    pub capacity: Option<f64>,
}

impl Facts<'_> {
    /// The value of the first status object of `role`; `None`: the service has none.
    fn role(&self, role: Role) -> Option<Result<f64, NoScore>> {
        let at = self.roles.iter().position(|of| *of == Some(role))?;
        let value = self.values.get(at).copied().flatten();
        Some(value.ok_or_else(|| NoScore::NoValue(role.name().to_owned())))
    }

    fn required(&self, role: Role) -> Result<f64, NoScore> {
        self.role(role).unwrap_or(Err(NoScore::NoRole(role.name())))
    }
}

type Function = fn(&Facts<'_>) -> Result<f64, NoScore>;

/// The named policies.
static NAMED: [(&str, Policy, Function); 6] = [
    ("least-loaded", Policy::LeastLoaded, least_loaded),
    ("fastest-response", Policy::FastestResponse, fastest_response),
    ("greatest-throughput", Policy::GreatestThroughput, greatest_throughput),
    ("fewest-processed", Policy::FewestProcessed, fewest_processed),
    ("closest", Policy::Closest, closest),
    ("greatest-capacity", Policy::GreatestCapacity, greatest_capacity),
];

impl Policy {
    /// The names that the configuration takes.
    pub fn names() -> [&'static str; 6] {
        NAMED.each_ref().map(|(name, ..)| *name)
    }

    /// The policy of this name.
    pub fn named(name: &str) -> Option<Policy> {
        NAMED.iter().find(|(of, ..)| *of == name).map(|(_, policy, _)| policy.clone())
    }

    /// The score of a server without regard to its weight; the lowest wins. Finite.
    ///
    /// # Errors
    /// It has none, and cannot be chosen.
    pub fn score(&self, facts: &Facts<'_>) -> Result<f64, NoScore> {
        if let Policy::Score(expression) = self {
            return expression.value(facts.values);
        }
        let named = NAMED.iter().find(|(_, policy, _)| policy == self);
        named.map_or(Err(NoScore::NoRole("")), |(_, _, function)| function(facts))
    }

    /// Do status objects of these roles, and perhaps each server's own `capacity`, tell all that it compares?
    ///
    /// # Errors
    /// What is missing.
    pub fn fits(&self, roles: &[Option<Role>], is_capacity_stated: bool) -> Result<(), NoScore> {
        let values = vec![Some(1.0); roles.len()];
        let capacity = is_capacity_stated.then_some(1.0);
        match self {
            Policy::Score(_) => Ok(()),
            named => named.score(&Facts { roles, values: &values, capacity }).map(|_| ()),
        }
    }

    /// Does what it compares change with each new connection, so that it has to count those that a server was given since it was
    /// asked?
    pub fn counts_connections(&self, roles: &[Option<Role>]) -> bool {
        let is_load = |at: usize| roles.get(at).copied().flatten().is_some_and(Role::is_load);
        match self {
            Policy::LeastLoaded => true,
            Policy::Score(score) => score.statuses().any(is_load),
            _ => false,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Score(score) => write!(f, "{score}"),
            named => {
                let name = NAMED.iter().find(|(_, policy, _)| policy == named);
                f.write_str(name.map_or("", |(name, ..)| name))
            }
        }
    }
}

/// One more than the load, as IPVS has it: among idle servers the weights decide.
fn least_loaded(facts: &Facts<'_>) -> Result<f64, NoScore> {
    let pending = facts.role(Role::Pending);
    Ok(pending.unwrap_or_else(|| facts.required(Role::Clients))? + 1.0)
}

fn fastest_response(facts: &Facts<'_>) -> Result<f64, NoScore> {
    facts.required(Role::ResponseTime)
}

fn greatest_throughput(facts: &Facts<'_>) -> Result<f64, NoScore> {
    Ok(-facts.required(Role::Throughput)?)
}

fn fewest_processed(facts: &Facts<'_>) -> Result<f64, NoScore> {
    Ok(facts.required(Role::Processed)? + 1.0)
}

fn closest(facts: &Facts<'_>) -> Result<f64, NoScore> {
    facts.required(Role::Distance)
}

/// What is read, or else what is stated.
fn greatest_capacity(facts: &Facts<'_>) -> Result<f64, NoScore> {
    let read = facts.role(Role::Capacity);
    let stated = facts.capacity.ok_or(NoScore::NoValue("capacity".to_owned()));
    Ok(-read.unwrap_or(stated)?)
}

/// A score with regard to the server's weight, which is above 0: twice the weight bears twice the load.
pub fn weigh(score: f64, weight: f64) -> f64 {
    if score < 0.0 { score * weight } else { score / weight }
}

/// Which of the candidates, `(who, score)` in the order of the configuration, is preferred: the one with the lowest
/// score, of equals the first. `current`, if it is among them, stays until another is better by more than the share `hysteresis`
/// of its score.
pub fn prefer<Id: Copy + PartialEq>(
    candidates: &[(Id, f64)],
    current: Option<Id>,
    hysteresis: f64,
) -> Option<Id> {
    let mut best = *candidates.first()?;
    for candidate in candidates {
        if candidate.1 < best.1 {
            best = *candidate;
        }
    }
    let current = candidates.iter().find(|(id, _)| Some(*id) == current);
    Some(match current {
        Some((id, score)) if best.1 >= score - score.abs() * hysteresis => *id,
        _ => best.0,
    })
}

/// No server gets more than so many times what another one gets.
const WIDEST: f64 = 64.0;

/// What share of the new connections each score is worth, the greatest being 1. Scores above 0 are costs: half the score, twice the
/// share. Scores below 0 are merits: twice the merit, twice the share. Where there are both, the distance from the worst counts.
pub fn shares(scores: &[f64]) -> Vec<f64> {
    let lowest = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let worth: Vec<f64> = if lowest >= 0.0 {
        let least = highest / WIDEST;
        // All are 0: all are equal.
        let cost = |score: &f64| if highest > 0.0 { score.max(least) / highest } else { 1.0 };
        scores.iter().map(|score| 1.0 / cost(score)).collect()
    } else if highest <= 0.0 {
        scores.iter().map(|score| score / lowest).collect()
    } else {
        // Halved first: the distance of two finite numbers may not be one.
        scores.iter().map(|score| highest / 2.0 - score / 2.0).collect()
    };
    let most = worth.iter().copied().fold(0.0, f64::max);
    worth
        .iter()
        .map(|worth| if most > 0.0 { (worth / most).max(1.0 / WIDEST) } else { 1.0 })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn score(policy: &str, known: &[(Role, Option<f64>)]) -> Result<f64, NoScore> {
        let roles: Vec<_> = known.iter().map(|(role, _)| Some(*role)).collect();
        let values: Vec<_> = known.iter().map(|(_, value)| *value).collect();
        let facts = Facts { roles: &roles, values: &values, capacity: None };
        Policy::named(policy).unwrap().score(&facts)
    }

    #[test]
    fn each_policy_prefers_what_its_name_says() {
        for (policy, role, better, worse) in [
            ("least-loaded", Role::Clients, 3.0, 4.0),
            ("least-loaded", Role::Pending, 0.0, 1.0),
            ("fastest-response", Role::ResponseTime, 0.2, 0.3),
            ("greatest-throughput", Role::Throughput, 500.0, 400.0),
            ("fewest-processed", Role::Processed, 1e6, 2e6),
            ("closest", Role::Distance, 1.0, 2.0),
            ("greatest-capacity", Role::Capacity, 64.0, 8.0),
        ] {
            let of = |value| score(policy, &[(role, Some(value))]).unwrap();
            assert!(of(better) < of(worse), "{policy}");
            let missing = NoScore::NoValue(role.name().to_owned());
            assert_eq!(score(policy, &[(role, None)]), Err(missing), "{policy}");
        }
        assert!(Policy::named("round-robin").is_none());
        assert!(
            Policy::names().iter().all(|name| Policy::named(name).unwrap().to_string() == *name)
        );
    }

    #[test]
    fn least_loaded_takes_pending_where_it_is_read_at_all() {
        let of = |pending| {
            score("least-loaded", &[(Role::Clients, Some(1.0)), (Role::Pending, pending)])
        };
        assert_eq!(of(Some(7.0)), Ok(8.0));
        assert_eq!(of(None), Err(NoScore::NoValue("pending".to_owned())));
    }

    #[test]
    fn capacity_is_what_is_stated_unless_it_is_read() {
        let facts = |roles, values| Facts { roles, values, capacity: Some(4.0) };
        let policy = Policy::GreatestCapacity;
        assert_eq!(policy.score(&facts(&[], &[])), Ok(-4.0));
        assert_eq!(policy.score(&facts(&[Some(Role::Capacity)], &[Some(9.0)])), Ok(-9.0));
    }

    #[test]
    fn without_its_role_a_policy_has_no_score() {
        let wanted = Err(NoScore::NoRole("response-time"));
        assert_eq!(score("fastest-response", &[(Role::Clients, Some(1.0))]), wanted);
    }

    #[test]
    fn twice_the_weight_bears_twice_the_load() {
        assert_eq!(weigh(8.0, 2.0), weigh(4.0, 1.0));
        assert!(weigh(-4.0, 2.0) < weigh(-4.0, 1.0));
    }

    #[test]
    fn of_equals_the_first_is_preferred_and_the_current_one_stays() {
        let candidates = [('a', 1.0), ('b', 1.0), ('c', 1.0)];
        assert_eq!(prefer(&candidates, None, 0.1), Some('a'));
        assert_eq!(prefer(&candidates, Some('c'), 0.0), Some('c'));
        assert_eq!(prefer(&candidates, Some('z'), 0.1), Some('a'));
        assert_eq!(prefer::<char>(&[], Some('a'), 0.1), None);
    }

    #[test]
    fn small_differences_do_not_move_the_preference() {
        let of = |best, hysteresis| prefer(&[('a', 100.0), ('b', best)], Some('a'), hysteresis);
        assert_eq!(of(90.0, 0.1), Some('a'));
        assert_eq!(of(89.9, 0.1), Some('b'));
        assert_eq!(of(99.9, 0.0), Some('b'));
        // Of merits as well.
        let of = |best| prefer(&[('a', -100.0), ('b', best)], Some('a'), 0.1);
        assert_eq!((of(-110.0), of(-110.1)), (Some('a'), Some('b')));
    }

    #[test]
    fn shares_follow_the_scores() {
        assert_eq!(shares(&[1.0, 2.0, 4.0]), [1.0, 0.5, 0.25]);
        assert_eq!(shares(&[-1.0, -2.0]), [0.5, 1.0]);
        assert_eq!(shares(&[0.0, 0.0]), [1.0, 1.0]);
        assert_eq!(shares(&[0.0, 1.0]), [1.0, 1.0 / 64.0]);
        assert_eq!(shares(&[-1.0, 1.0, 3.0]), [1.0, 0.5, 1.0 / 64.0]);
        assert_eq!(shares(&[]), [0.0; 0]);
    }

    proptest! {
        #[test]
        fn shares_are_within_bounds_and_the_better_has_no_less(
            scores in prop::collection::vec(prop::num::f64::NORMAL | prop::num::f64::ZERO, 1..20),
        ) {
            let shares = shares(&scores);
            prop_assert_eq!(shares.iter().copied().fold(0.0, f64::max), 1.0);
            for (i, a) in scores.iter().enumerate() {
                prop_assert!((1.0 / WIDEST..=1.0).contains(&shares[i]), "{:?}", shares);
                for (j, b) in scores.iter().enumerate() {
                    prop_assert!(a >= b || shares[i] >= shares[j]);
                }
            }
        }

        #[test]
        fn the_preferred_is_never_worse_than_hysteresis_allows(
            scores in prop::collection::vec(-1e6f64..1e6, 1..20),
            current in 0usize..30,
            hysteresis in 0.0f64..1.0,
        ) {
            let candidates: Vec<_> = scores.iter().copied().enumerate().collect();
            let chosen = prefer(&candidates, Some(current), hysteresis).unwrap();
            let best = scores.iter().copied().fold(f64::INFINITY, f64::min);
            let allowed = if chosen == current { scores[chosen].abs() * hysteresis } else { 0.0 };
            prop_assert!(scores[chosen] - allowed <= best);
            // Asked again, it says the same.
            prop_assert_eq!(prefer(&candidates, Some(chosen), hysteresis), Some(chosen));
        }
    }
}
