//! What the demo of a service found: one JSON object, or a table.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::clients::{Nanos, Request};
use super::script::Act;

/// Failed requests that are told of one by one.
const TOLD: u64 = 5;

/// The whole demo. Field names are what `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) ok: bool,
    pub(super) requests: u64,
    /// Not those of the next field.
    pub(super) failed: u64,
    /// Open on the killed server, or sent to it before its failure was known.
    pub(super) failed_on_killed_server: u64,
    /// Requests that each one answered.
    pub(super) per_server: BTreeMap<String, u64>,
    pub(super) switches: Vec<Switch>,
    /// Why it is not ok.
    #[serde(skip)]
    pub(super) complaints: Vec<String>,
    /// All that the forwarder said, if it is not ok.
    #[serde(skip)]
    pub(super) last_words: String,
}

/// The new connections went to another server.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Switch {
    /// When it was decided, since the clients began.
    pub(super) at_ms: f64,
    pub(super) from: String,
    pub(super) to: String,
    /// In the forwarder's words.
    pub(super) why: String,
    /// From the status reading that caused it, or the operator's order, until `to` accepted the first new connection.
    pub(super) effect_ms: Option<f64>,
    /// What brought it about: `load`, `kill`, `policy`, `return`, `drain`; null: nothing of the script.
    pub(super) provoked_by: Option<&'static str>,
    /// From that until a status object had read it; null where it was an order.
    pub(super) noticed_ms: Option<f64>,
}

/// An act of the script as it took place.
#[derive(Clone, Debug)]
pub(super) struct Happened {
    pub(super) act: Act,
    pub(super) at: Nanos,
    /// The server that it happened to; of another policy, the one that was preferred.
    pub(super) server: String,
    /// Switches that the forwarder had told of before.
    pub(super) switches: usize,
}

impl Happened {
    fn has_provoked(&self, switch: &Seen) -> bool {
        let moved = if self.act == Act::Return { &switch.to } else { &switch.from };
        *moved == self.server
    }
}

/// A switch as the forwarder tells of it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// When the reading arrived that caused it, or not long before.
    pub(super) at: Nanos,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) why: String,
}

/// All that was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Play {
    /// When the clients began.
    pub(super) began: Nanos,
    /// Switches before that.
    pub(super) earlier: usize,
    pub(super) happened: Vec<Happened>,
    pub(super) switches: Vec<Seen>,
}

impl Play {
    /// Of the switches since the clients began, in order.
    pub(super) fn switches(&self, requests: &[Request]) -> Vec<Switch> {
        let provoked: Vec<Option<usize>> =
            (0..self.happened.len()).map(|act| self.provoked(act)).collect();
        let tell = |at: usize| {
            let switch = &self.switches[at];
            let cause = provoked.iter().position(|of| *of == Some(at));
            let cause = cause.map(|act| &self.happened[act]);
            let fact = cause.filter(|cause| !cause.act.is_order());
            let order = cause.filter(|cause| cause.act.is_order());
            let since = order.map_or(switch.at, |order| order.at);
            let accepted = self.first_accepted(at, since, requests);
            Switch {
                at_ms: milliseconds(switch.at.saturating_sub(self.began)),
                from: switch.from.clone(),
                to: switch.to.clone(),
                why: switch.why.clone(),
                effect_ms: accepted.map(|accepted| milliseconds(accepted - since)),
                provoked_by: cause.map(|cause| cause.act.name()),
                noticed_ms: fact.map(|fact| milliseconds(switch.at.saturating_sub(fact.at))),
            }
        };
        (self.earlier..self.switches.len()).map(tell).collect()
    }

    /// Judges all of it.
    pub(super) fn report(&self, requests: &[Request]) -> Report {
        let switches = self.switches(requests);
        let mut complaints = Vec::new();
        for happened in &self.happened {
            let name = happened.act.name();
            let provoked = switches.iter().find(|switch| switch.provoked_by == Some(name));
            match provoked.map(|switch| switch.effect_ms) {
                Some(Some(_)) => {}
                Some(None) => complaints.push(format!("{name}: nobody went to the new server")),
                None => complaints.push(format!("{name} at {}: no switch", happened.server)),
            }
        }
        let killed = self.killed(requests);
        let is_of_killed = |request: &Request| {
            killed.is_some_and(|(killed, over)| request.to >= killed && request.from < over)
        };
        let mut per_server = BTreeMap::new();
        let (mut failed, mut failed_on_killed_server) = (0, 0);
        for request in requests {
            match &request.outcome {
                Ok(served) => *per_server.entry(served.server.clone()).or_insert(0) += 1,
                Err(_) if is_of_killed(request) => failed_on_killed_server += 1,
                Err(why) => {
                    failed += 1;
                    let at = milliseconds(request.from.saturating_sub(self.began));
                    if failed <= TOLD {
                        complaints.push(format!("a request at {at} ms: {why}"));
                    }
                }
            }
        }
        if failed > TOLD {
            complaints.push(format!("{} more requests", failed - TOLD));
        }
        let elsewhere = self.elsewhere(requests);
        if elsewhere > 0 {
            complaints.push(format!("{elsewhere} requests did not go to the preferred server"));
        }
        Report {
            ok: complaints.is_empty(),
            requests: requests.len() as u64,
            failed,
            failed_on_killed_server,
            per_server,
            switches,
            complaints,
            last_words: String::new(),
        }
    }

    /// Which switch an act provoked: the first that fits, up to the next act.
    fn provoked(&self, act: usize) -> Option<usize> {
        let happened = &self.happened[act];
        let next = self.happened.get(act + 1);
        let end = next.map_or(self.switches.len(), |next| next.switches);
        let mut after = happened.switches..end;
        after.find(|at| self.switches.get(*at).is_some_and(|switch| happened.has_provoked(switch)))
    }

    /// When the server that switch `at` prefers accepted a connection, the first after `since`, and before it was left again.
    fn first_accepted(&self, at: usize, since: Nanos, requests: &[Request]) -> Option<Nanos> {
        let to = &self.switches[at].to;
        let until = self.switches.get(at + 1).map_or(Nanos::MAX, |next| next.at);
        let served = requests.iter().filter_map(|request| request.outcome.as_ref().ok());
        let accepted = served.filter(|served| served.server == *to).map(|served| served.accepted);
        accepted.filter(|accepted| (since..=until).contains(accepted)).min()
    }

    /// From SIGKILL until the first connection went to another server for that.
    fn killed(&self, requests: &[Request]) -> Option<(Nanos, Nanos)> {
        let act = self.happened.iter().position(|happened| happened.act == Act::Kill)?;
        let switch = self.provoked(act)?;
        let over = self.first_accepted(switch, self.switches[switch].at, requests)?;
        Some((self.happened[act].at, over))
    }

    /// Requests that began when a switch had taken effect and before the next, and went to another server.
    fn elsewhere(&self, requests: &[Request]) -> usize {
        let mut count = 0;
        for (at, switch) in self.switches.iter().enumerate().skip(self.earlier) {
            let Some(from) = self.first_accepted(at, switch.at, requests) else { continue };
            let until = self.switches.get(at + 1).map_or(Nanos::MAX, |next| next.at);
            let is_elsewhere = |request: &&Request| {
                request.from > from
                    && request
                        .outcome
                        .as_ref()
                        .is_ok_and(|served| served.accepted < until && served.server != switch.to)
            };
            count += requests.iter().filter(is_elsewhere).count();
        }
        count
    }
}

impl Report {
    /// Something else went wrong.
    pub(super) fn complain(&mut self, complaint: String) {
        self.complaints.push(complaint);
        self.ok = false;
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ms: Option<f64>| ms.map_or("never".to_owned(), |ms| format!("{ms:.1} ms"));
        let noticed =
            self.noticed_ms.map(|ms| format!("read after {ms:.1} ms, ")).unwrap_or_default();
        let effect = ms(self.effect_ms);
        write!(f, "{} to {}: {} ({noticed}effect {effect})", self.from, self.to, self.why)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let served: Vec<String> =
            self.per_server.iter().map(|(server, count)| format!("{server} {count}")).collect();
        writeln!(
            f,
            "{} requests: {}; {} failed on the killed server, {} elsewhere",
            self.requests,
            served.join(", "),
            self.failed_on_killed_server,
            self.failed
        )?;
        for complaint in &self.complaints {
            writeln!(f, "NOT OK: {complaint}")?;
        }
        if self.ok {
            writeln!(f, "ok: each new connection went to the preferred server")?;
        }
        Ok(())
    }
}

/// To a hundredth.
fn milliseconds(time: Nanos) -> f64 {
    (time as f64 / 1e4).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::super::clients::Served;
    use super::*;

    const MS: Nanos = 1_000_000;

    /// Times in milliseconds; accepted after one.
    fn request(from: Nanos, to: Nanos, server: Option<&str>) -> Request {
        let accepted = (from + 1) * MS;
        let served = |server: &str| Served { server: server.to_owned(), accepted };
        let outcome = server.map(served).ok_or_else(|| "refused".to_owned());
        Request { from: from * MS, to: to * MS, outcome }
    }

    fn seen(at: Nanos, from: &str, to: &str) -> Seen {
        Seen { at: at * MS, from: from.to_owned(), to: to.to_owned(), why: "because".to_owned() }
    }

    fn happened(act: Act, at: Nanos, server: &str, switches: usize) -> Happened {
        Happened { act, at: at * MS, server: server.to_owned(), switches }
    }

    /// `a` is preferred, killed at 100, known at 150; then `b`, until another policy is ordered at 200.
    fn play() -> Play {
        Play {
            began: 0,
            earlier: 1,
            happened: vec![happened(Act::Kill, 100, "a", 1), happened(Act::Swap, 200, "b", 2)],
            switches: vec![seen(0, "none", "a"), seen(150, "a", "b"), seen(201, "b", "c")],
        }
    }

    fn requests() -> Vec<Request> {
        vec![
            request(50, 52, Some("a")),
            request(99, 101, None),
            request(149, 150, None),
            request(152, 155, Some("b")),
            request(160, 162, Some("b")),
            request(203, 206, Some("c")),
        ]
    }

    #[test]
    fn what_was_open_on_the_killed_server_or_sent_to_it_is_counted_apart() {
        let report = play().report(&requests());
        assert!(report.ok, "{:?}", report.complaints);
        assert_eq!((report.requests, report.failed, report.failed_on_killed_server), (6, 0, 2));
        assert_eq!(report.per_server.values().sum::<u64>(), 4);
        for (from, to) in [(90, 99), (154, 156)] {
            let mut requests = requests();
            requests.push(request(from, to, None));
            let report = play().report(&requests);
            assert!(!report.ok);
            assert_eq!((report.failed, report.failed_on_killed_server), (1, 2), "{from} to {to}");
        }
    }

    #[test]
    fn an_effect_is_measured_from_the_reading_or_from_the_order() {
        let switches = play().switches(&requests());
        let told = |of: &Switch| (of.provoked_by, of.effect_ms, of.noticed_ms);
        assert_eq!(told(&switches[0]), (Some("kill"), Some(3.0), Some(50.0)));
        assert_eq!(told(&switches[1]), (Some("policy"), Some(4.0), None));
        assert_eq!(switches.len(), 2, "what was before the clients is not told");
    }

    #[test]
    fn without_the_switch_that_was_provoked_it_is_not_ok() {
        let mut play = play();
        play.switches.truncate(2);
        assert!(!play.report(&requests()[..5]).ok);
        // Nobody is killed in it, so that nothing that failed was to be expected.
        play.switches.truncate(1);
        let report = play.report(&requests()[..3]);
        assert_eq!((report.failed, report.failed_on_killed_server), (2, 0));
    }

    #[test]
    fn a_switch_without_effect_or_to_another_server_is_not_ok() {
        assert!(!play().report(&requests()[..5]).ok);
        let mut requests = requests();
        requests.push(request(180, 182, Some("a")));
        let report = play().report(&requests);
        assert!(!report.ok);
        assert_eq!(report.complaints, ["1 requests did not go to the preferred server"]);
    }
}
