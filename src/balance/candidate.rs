//! May a server have new connections, and what becomes of those that it has? What is known of one server, and who
//! wants what of it, kept apart: its status objects (L3), the words of agents among them, and the operator.
//!
//! A status object is *good* until a reading fails; then it is *failing*, and its server gets no new connections as long as another
//! can have them; after `fall` failures in a row it is *bad*, and its server down. `rise` good readings in a row make it good again. Of a new
//! one the first good reading decides by itself. A server is up if every status object is good, whatever an agent says; an
//! agent's "down" makes it down until an agent says "up".

use std::time::{Duration, Instant};

use super::status::{Administrative, Failure, Reading, Words};

/// How readings count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Good ones in a row until a bad status object is good.
    pub rise: u32,
    /// Failed ones in a row until a good one is bad.
    pub fall: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// Never read with success; so many failures in a row.
    Unread(u32),
    Good,
    /// So many failures in a row.
    Failing(u32),
    /// So many good readings in a row since.
    Bad(u32),
}

/// What one status object tells of a server.
#[derive(Clone, Debug)]
pub struct Check {
    health: Health,
    /// The last value, and when it was read.
    value: Option<(f64, Instant)>,
    /// When it was read last, with success or without.
    read: Option<Instant>,
    failure: Option<Failure>,
    /// All that its agent ever said and did not take back.
    words: Words,
}

impl Default for Check {
    fn default() -> Check {
        Check {
            health: Health::Unread(0),
            value: None,
            read: None,
            failure: None,
            words: Words::default(),
        }
    }
}

impl Check {
    /// Takes a reading, or why there is none. A value that is not finite is a failure.
    pub fn take(&mut self, result: Result<Reading, Failure>, counts: Counts, now: Instant) {
        let result = result.and_then(|reading| match reading.value {
            Some(value) if !value.is_finite() => Err(Failure::Answer {
                found: value.to_string(),
                wanted: "a finite number".to_owned(),
            }),
            _ => Ok(reading),
        });
        self.read = Some(now);
        self.health = match (&result, self.health) {
            (Ok(_), Health::Bad(good)) if good + 1 < counts.rise => Health::Bad(good + 1),
            (Ok(_), _) => Health::Good,
            (Err(_), Health::Good) if counts.fall > 1 => Health::Failing(1),
            (Err(_), Health::Failing(failed)) if failed + 1 < counts.fall => {
                Health::Failing(failed + 1)
            }
            (Err(_), Health::Unread(failed)) if failed + 1 < counts.fall => {
                Health::Unread(failed + 1)
            }
            (Err(_), _) => Health::Bad(0),
        };
        match result {
            Ok(reading) => {
                self.failure = None;
                // An instance that says nothing but that it is full, say, has not taken its last value back.
                if let Some(value) = reading.value {
                    self.value = Some((value, now));
                }
                let (said, words) = (reading.words, &mut self.words);
                words.weight = said.weight.or(words.weight);
                words.most_connections = said.most_connections.or(words.most_connections);
                words.administrative = said.administrative.or(words.administrative);
                words.is_up = said.is_up.or(words.is_up);
            }
            Err(failure) => self.failure = Some(failure),
        }
    }

    /// The last value, and when it was read; `None` where the last reading failed or there was none.
    pub fn value(&self) -> Option<(f64, Instant)> {
        // A first failure leaves it: the server is still one of the last resort.
        self.value.filter(|_| !matches!(self.health, Health::Bad(_)))
    }

    /// Was it ever read?
    pub fn is_read(&self) -> bool {
        self.read.is_some()
    }

    /// When it was read last, with success or without.
    pub fn read_at(&self) -> Option<Instant> {
        self.read
    }

    /// Why the last reading failed.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// What its agent said.
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// Is a count under way, so that the next reading should come soon?
    pub fn is_undecided(&self) -> bool {
        matches!(self.health, Health::Unread(1..) | Health::Failing(_) | Health::Bad(1..))
    }
}

/// What a server may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// New connections.
    Up,
    /// New connections where no other server can have them: its last reading failed.
    Failing,
    /// None: not every status object has been read.
    Starting,
    /// None: it has as many as its agent allows.
    Full,
    /// No new ones: the operator or an agent wants it so, or its weight is 0.
    Drain,
    /// None: it is down for maintenance, as the operator or an agent wants it.
    Maintenance,
    /// None.
    Down,
}

impl State {
    /// Its name in status.
    pub fn name(self) -> &'static str {
        match self {
            State::Up => "up",
            State::Failing => "failing",
            State::Starting => "starting",
            State::Full => "full",
            State::Drain => "drain",
            State::Maintenance => "maint",
            State::Down => "down",
        }
    }

    /// Is it dead to the connections that it has?
    pub fn is_dead(self) -> bool {
        matches!(self, State::Down | State::Maintenance)
    }
}

/// One server of a service.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What each status object of the service tells, in their order.
    pub checks: Vec<Check>,
    /// What the operator wants.
    pub operator: Administrative,
    /// Its configured weight.
    pub weight: u16,
    /// Connections that it has now.
    pub connections: u64,
    /// Its readings were good once: another policy's status objects, not read yet, make it no newcomer.
    is_proven: bool,
    /// Since when its readings have been good.
    up_since: Option<Instant>,
    state: State,
    since: Instant,
}

impl Candidate {
    /// One of which nothing is known.
    pub fn new(checks: usize, weight: u16, now: Instant) -> Candidate {
        Candidate {
            checks: vec![Check::default(); checks],
            operator: Administrative::Ready,
            weight,
            connections: 0,
            is_proven: false,
            up_since: None,
            state: State::Starting,
            since: now,
        }
    }

    /// What it may have, as of the last [`Candidate::settle`].
    pub fn state(&self) -> State {
        self.state
    }

    /// Since when.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Works out its state anew. The one that it had, if that is another.
    pub fn settle(&mut self, now: Instant) -> Option<State> {
        let operational = self.operational();
        match operational {
            State::Up => {
                self.is_proven = true;
                self.up_since = self.up_since.or(Some(now));
            }
            State::Down => {
                self.is_proven = false;
                self.up_since = None;
            }
            _ => {}
        }
        let state = match (self.administrative(), operational) {
            (Administrative::Maintenance, _) => State::Maintenance,
            (_, State::Down) => State::Down,
            (Administrative::Drain, _) => State::Drain,
            (Administrative::Ready, _) if self.share() <= 0.0 => State::Drain,
            (Administrative::Ready, State::Up | State::Failing) if self.is_full() => State::Full,
            (Administrative::Ready, operational) => operational,
        };
        if state == self.state {
            return None;
        }
        self.since = now;
        Some(std::mem::replace(&mut self.state, state))
    }

    /// Up, failing, starting or down: what was read, and what agents say.
    fn operational(&self) -> State {
        let any = |is: fn(&Health) -> bool| self.checks.iter().any(|check| is(&check.health));
        let says_down = |check: &Check| check.words.is_up == Some(false);
        if any(|health| matches!(health, Health::Bad(_))) || self.checks.iter().any(says_down) {
            State::Down
        } else if any(|health| matches!(health, Health::Unread(_))) && !self.is_proven {
            State::Starting
        } else if any(|health| matches!(health, Health::Failing(_) | Health::Unread(1..))) {
            State::Failing
        } else {
            State::Up
        }
    }

    /// The strictest that the operator or an agent wants.
    fn administrative(&self) -> Administrative {
        let agents = self.checks.iter().filter_map(|check| check.words.administrative);
        agents.fold(self.operator, |strictest, wanted| match (strictest, wanted) {
            (Administrative::Maintenance, _) | (_, Administrative::Maintenance) => {
                Administrative::Maintenance
            }
            (Administrative::Drain, _) | (_, Administrative::Drain) => Administrative::Drain,
            _ => Administrative::Ready,
        })
    }

    fn is_full(&self) -> bool {
        let allowed = self.checks.iter().filter_map(|check| check.words.most_connections).min();
        allowed.is_some_and(|allowed| self.connections >= u64::from(allowed))
    }

    /// Its weight: the configured one, times what its agents make of it.
    fn share(&self) -> f64 {
        let agents = self.checks.iter().filter_map(|check| check.words.weight);
        agents.fold(f64::from(self.weight), |weight, share| weight * share)
    }

    /// Its weight now: less than its share while it starts slowly, from a tenth on.
    pub fn weight(&self, slow_start: Duration, now: Instant) -> f64 {
        self.share() * self.ramp(slow_start, now)
    }

    /// How far it is in its slow start, 0.1 to 1.
    pub fn ramp(&self, slow_start: Duration, now: Instant) -> f64 {
        let up = self.up_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if slow_start.is_zero() || up >= slow_start {
            return 1.0;
        }
        (up.as_secs_f64() / slow_start.as_secs_f64()).max(0.1)
    }

    /// Why it is in its state, in a few words; `names` are those of the status objects.
    pub fn why(&self, names: &[&str]) -> String {
        let named = || self.checks.iter().zip(names);
        let failed = |is: fn(&Health) -> bool| {
            let (check, name) = named().find(|(check, _)| is(&check.health))?;
            let failure = check.failure.as_ref().map_or(String::new(), ToString::to_string);
            Some(match check.health {
                Health::Bad(good @ 1..) => format!("{name}: {good} good in a row"),
                _ => format!("{name}: {failure}"),
            })
        };
        let agent = |says: &dyn Fn(&Words) -> bool, word: &str| {
            let (_, name) = named().find(|(check, _)| says(&check.words))?;
            Some(format!("{name} says {word:?}"))
        };
        let of_operator = |wanted| (self.operator == wanted).then(|| "the operator".to_owned());
        let of_agent = |wanted, word| agent(&|words| words.administrative == Some(wanted), word);
        let why = match self.state {
            State::Up => None,
            State::Failing => {
                failed(|health| matches!(health, Health::Failing(_) | Health::Unread(1..)))
            }
            State::Starting => {
                failed(|health| matches!(health, Health::Unread(1..))).or_else(|| {
                    let unread =
                        named().filter(|(check, _)| !check.is_read()).map(|(_, name)| *name);
                    Some(format!("not read yet: {}", unread.collect::<Vec<_>>().join(", ")))
                })
            }
            State::Full => Some(format!("it has {} connections", self.connections)),
            State::Drain => of_operator(Administrative::Drain)
                .or_else(|| of_agent(Administrative::Drain, "drain"))
                .or_else(|| agent(&|words| words.weight == Some(0.0), "0%"))
                .or(Some("its weight is 0".to_owned())),
            State::Maintenance => of_operator(Administrative::Maintenance)
                .or_else(|| of_agent(Administrative::Maintenance, "maint")),
            State::Down => failed(|health| matches!(health, Health::Bad(_)))
                .or_else(|| agent(&|words| words.is_up == Some(false), "down")),
        };
        why.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COUNTS: Counts = Counts { rise: 2, fall: 3 };
    const NAMES: [&str; 2] = ["clients", "agent"];

    fn good(value: f64) -> Result<Reading, Failure> {
        Ok(Reading { value: Some(value), ..Reading::default() })
    }

    fn says(words: Words) -> Result<Reading, Failure> {
        Ok(Reading { value: None, words })
    }

    struct Server {
        candidate: Candidate,
        now: Instant,
    }

    impl Server {
        fn new() -> Server {
            let now = Instant::now();
            Server { candidate: Candidate::new(2, 1, now), now }
        }

        /// One whose status objects have been read.
        fn up() -> Server {
            let mut server = Server::new();
            server.take(0, good(1.0));
            assert_eq!(server.take(1, good(1.0)), State::Up);
            server
        }

        fn take(&mut self, at: usize, result: Result<Reading, Failure>) -> State {
            self.candidate.checks[at].take(result, COUNTS, self.now);
            self.settle()
        }

        fn settle(&mut self) -> State {
            self.candidate.settle(self.now);
            self.candidate.state()
        }

        fn why(&self) -> String {
            self.candidate.why(&NAMES)
        }
    }

    #[test]
    fn it_starts_until_every_status_object_was_read() {
        let mut server = Server::new();
        assert_eq!(server.settle(), State::Starting);
        assert_eq!(server.why(), "not read yet: clients, agent");
        assert_eq!(server.take(0, good(1.0)), State::Starting);
        assert_eq!(server.why(), "not read yet: agent");
        assert_eq!(server.take(1, good(1.0)), State::Up);
        assert_eq!(server.why(), "");
    }

    #[test]
    fn the_first_good_reading_decides_by_itself_and_failures_count_from_the_first() {
        let mut server = Server::new();
        server.take(1, good(1.0));
        assert_eq!(server.take(0, Err(Failure::Timeout)), State::Starting);
        assert_eq!(server.why(), "clients: no answer in time");
        assert_eq!(server.take(0, good(1.0)), State::Up);
        let mut server = Server::new();
        for state in [State::Starting, State::Starting, State::Down] {
            assert_eq!(server.take(0, Err(Failure::Timeout)), state);
        }
        assert_eq!(server.why(), "clients: no answer in time");
    }

    #[test]
    fn a_failure_makes_it_a_last_resort_and_as_many_as_fall_says_make_it_down() {
        let mut server = Server::up();
        assert_eq!(server.take(0, Err(Failure::Timeout)), State::Failing);
        assert_eq!(server.why(), "clients: no answer in time");
        assert!(server.candidate.checks[0].is_undecided());
        assert_eq!(server.take(1, good(1.0)), State::Failing);
        assert_eq!(server.take(0, good(1.0)), State::Up);
        // In a row.
        assert_eq!(server.take(0, Err(Failure::Timeout)), State::Failing);
        assert_eq!(server.take(0, Err(Failure::Timeout)), State::Failing);
        assert!(server.candidate.checks[0].value().is_some());
        assert_eq!(server.take(0, Err(Failure::Stale)), State::Down);
        assert_eq!(server.why(), "clients: stale");
        assert!(server.candidate.checks[0].value().is_none());
        assert!(!server.candidate.checks[0].is_undecided());
    }

    #[test]
    fn as_many_good_ones_as_rise_says_make_it_up() {
        let mut server = Server::new();
        server.take(1, good(1.0));
        for _ in 0..3 {
            server.take(0, Err(Failure::Timeout));
        }
        assert_eq!(server.take(0, good(1.0)), State::Down);
        assert_eq!(server.why(), "clients: 1 good in a row");
        assert!(server.candidate.checks[0].is_undecided());
        assert_eq!(server.take(0, Err(Failure::Timeout)), State::Down);
        assert_eq!(server.take(0, good(1.0)), State::Down);
        assert_eq!(server.take(0, good(1.0)), State::Up);
    }

    #[test]
    fn a_hard_check_beats_an_agents_up_and_an_agents_down_beats_good_checks() {
        let mut server = Server::up();
        let up = Words {
            is_up: Some(true),
            administrative: Some(Administrative::Ready),
            ..Words::default()
        };
        for _ in 0..3 {
            server.take(0, Err(Failure::Timeout));
        }
        assert_eq!(server.take(1, says(up)), State::Down);
        server.take(0, good(1.0));
        assert_eq!(server.take(0, good(1.0)), State::Up);
        let down = Words { is_up: Some(false), ..Words::default() };
        assert_eq!(server.take(1, says(down)), State::Down);
        assert_eq!(server.why(), "agent says \"down\"");
        // Only an agent takes back what an agent said: silence does not.
        assert_eq!(server.take(1, says(Words::default())), State::Down);
        assert_eq!(server.take(0, good(1.0)), State::Down);
        assert_eq!(server.take(1, says(up)), State::Up);
    }

    #[test]
    fn operator_agent_and_health_are_kept_apart() {
        let mut server = Server::up();
        let wants = |administrative| {
            says(Words { administrative: Some(administrative), ..Words::default() })
        };
        server.candidate.operator = Administrative::Drain;
        assert_eq!(server.settle(), State::Drain);
        assert_eq!(server.why(), "the operator");
        // An agent's "ready" does not undo what the operator wants.
        assert_eq!(server.take(1, wants(Administrative::Ready)), State::Drain);
        assert_eq!(server.take(1, wants(Administrative::Maintenance)), State::Maintenance);
        assert_eq!(server.why(), "agent says \"maint\"");
        server.candidate.operator = Administrative::Ready;
        assert_eq!(server.settle(), State::Maintenance);
        assert_eq!(server.take(1, wants(Administrative::Drain)), State::Drain);
        assert_eq!(server.why(), "agent says \"drain\"");
        // It dies while it drains, and its health goes on to be known.
        for _ in 0..3 {
            server.take(0, Err(Failure::Timeout));
        }
        assert_eq!(server.settle(), State::Down);
        assert_eq!(server.take(1, wants(Administrative::Ready)), State::Down);
        server.take(0, good(1.0));
        assert_eq!(server.take(0, good(1.0)), State::Up);
    }

    #[test]
    fn without_weight_it_drains() {
        let mut server = Server::up();
        let weight = |share| says(Words { weight: Some(share), ..Words::default() });
        assert_eq!(server.take(1, weight(0.0)), State::Drain);
        assert_eq!(server.why(), "agent says \"0%\"");
        assert_eq!(server.take(1, weight(0.75)), State::Up);
        server.candidate.weight = 4;
        assert_eq!(server.candidate.weight(Duration::ZERO, server.now), 3.0);
        server.candidate.weight = 0;
        assert_eq!(server.settle(), State::Drain);
        assert_eq!(server.why(), "its weight is 0");
    }

    #[test]
    fn it_is_full_with_as_many_connections_as_its_agent_allows() {
        let mut server = Server::up();
        let words = Words { most_connections: Some(30), ..Words::default() };
        server.candidate.connections = 29;
        assert_eq!(server.take(1, says(words)), State::Up);
        server.candidate.connections = 30;
        assert_eq!(server.settle(), State::Full);
        assert_eq!(server.why(), "it has 30 connections");
        assert!(!server.candidate.state().is_dead());
    }

    #[test]
    fn what_is_not_finite_is_a_failure() {
        for value in [f64::NAN, f64::INFINITY] {
            let mut server = Server::up();
            assert_eq!(server.take(0, good(value)), State::Failing);
        }
    }

    #[test]
    fn other_status_objects_do_not_make_it_a_newcomer() {
        let mut server = Server::up();
        server.candidate.checks[0] = Check::default();
        assert_eq!(server.settle(), State::Up);
        assert!(server.candidate.checks[0].value().is_none());
        assert_eq!(server.take(0, Err(Failure::Timeout)), State::Failing);
        server.take(0, Err(Failure::Timeout));
        assert_eq!(server.take(0, Err(Failure::Timeout)), State::Down);
    }

    #[test]
    fn a_slow_start_begins_when_it_comes_up() {
        let slow = Duration::from_secs(10);
        let mut server = Server::up();
        let begin = server.now;
        let ramp = |server: &Server, seconds| {
            server.candidate.ramp(slow, begin + Duration::from_secs(seconds))
        };
        assert_eq!([0, 1, 5, 10, 20].map(|at| ramp(&server, at)), [0.1, 0.1, 0.5, 1.0, 1.0]);
        server.now += Duration::from_secs(20);
        // A first failure is none.
        server.take(0, Err(Failure::Timeout));
        server.take(0, good(1.0));
        assert_eq!(ramp(&server, 20), 1.0);
        for _ in 0..3 {
            server.take(0, Err(Failure::Timeout));
        }
        server.take(0, good(1.0));
        assert_eq!(server.take(0, good(1.0)), State::Up);
        assert_eq!(ramp(&server, 25), 0.5);
    }

    proptest! {
        /// Whatever is read: it is up only if the last reading of each was good, and down only with a reason.
        #[test]
        fn no_sequence_confuses_it(
            steps in prop::collection::vec((0usize..2, prop::bool::ANY), 1..60),
        ) {
            let mut server = Server::new();
            let mut last = [None; 2];
            for (at, is_good) in steps {
                let state = server.take(at, if is_good { good(1.0) } else { Err(Failure::Timeout) });
                last[at] = Some(is_good);
                match state {
                    State::Up => prop_assert_eq!(last, [Some(true); 2]),
                    State::Failing => prop_assert!(last.contains(&Some(false))),
                    State::Starting => prop_assert_ne!(last, [Some(true); 2]),
                    State::Down => {}
                    other => prop_assert!(false, "{:?}", other),
                }
                prop_assert_eq!(server.why().is_empty(), state == State::Up);
            }
        }
    }
}
