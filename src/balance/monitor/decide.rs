//! The policy applied to what is known of a service's servers: which of them have the new connections (L10, L15).

use std::time::Instant;

use super::{Monitor, REMEMBERED, Service, Switch};
use crate::balance::candidate::{Check, State};
use crate::balance::maglev;
use crate::balance::policy::{Facts, prefer, shares, weigh};
use crate::balance::service::{Choose, OnDeath, WhenNone};
use crate::forward::preferred::{Choice, Fate, ServerId};

/// A server that may have new connections; without a score, if what its score is made of was not read yet.
#[derive(Clone, Copy, Debug)]
struct Contender {
    id: ServerId,
    score: Option<f64>,
}

impl Monitor {
    /// Decides anew for one service, and notes in the table what became different.
    pub(super) fn decide(&mut self, at: usize, now: Instant) {
        let service = &mut self.services[at];
        for server in &mut service.servers {
            server.score = service.settings.score(&service.roles, server, now);
        }
        let contenders = contenders(service);
        let is_none_left = contenders.is_empty();
        let (choice, spread) = if is_none_left {
            (when_none(service), service.spread.clone())
        } else if service.settings.choose == Choose::Weighted {
            weighted(service, &contenders)
        } else {
            (preferred(service, &contenders), Vec::new())
        };
        let id = service.id;
        let is_other = choice != service.choice;
        if is_other || is_none_left != service.is_none_left {
            service.switch((choice.clone(), is_none_left, spread), now);
        }
        if !is_none_left {
            service.last = Some(choice.clone());
        }
        service.is_chosen |= service.is_read();
        if is_other {
            self.table.set_choice(id, choice);
            self.is_changed = true;
        }
        self.set_fates(at);
    }

    fn set_fates(&mut self, at: usize) {
        let service = &self.services[at];
        for server in &service.servers {
            // What is the last resort goes on, dead or not.
            let is_last = service.is_none_left && goes_to(&service.choice, server.id);
            let fate = match service.settings.on_death {
                _ if is_last || !server.candidate.state().is_dead() => Fate::Kept,
                OnDeath::Reset => Fate::Reset,
                OnDeath::Reselect => Fate::Reselect,
            };
            if self.table.server(server.id).is_some_and(|of| of.fate != fate) {
                self.table.set_fate(server.id, fate);
                (self.is_changed, self.has_fates) = (true, true);
            }
        }
    }
}

impl crate::balance::service::Settings {
    /// A server's score with regard to its weight; `None`: not read yet.
    fn score(
        &self,
        roles: &[Option<crate::balance::status::Role>],
        server: &super::Server,
        now: Instant,
    ) -> Option<Result<f64, String>> {
        let candidate = &server.candidate;
        let given = server.counters.created();
        let value = |at: usize| {
            let (value, _) = candidate.checks[at].value()?;
            let is_load = roles[at].is_some_and(crate::balance::status::Role::is_load);
            let since = given.wrapping_sub(server.given_when_read[at]);
            // A counter that went back was counted anew.
            let since = if is_load && since < 1 << 32 { since as f64 } else { 0.0 };
            Some(value + since)
        };
        let values: Vec<Option<f64>> = (0..roles.len()).map(value).collect();
        let facts = Facts { roles, values: &values, capacity: server.settings.capacity };
        let score = self.policy.score(&facts).map_err(|error| error.to_string());
        if score.is_err() && candidate.checks.iter().any(|check| !check.is_read()) {
            return None;
        }
        let weight = candidate.weight(self.slow_start, now);
        Some(score.and_then(|score| {
            let score = weigh(score, weight);
            if score.is_finite() {
                Ok(score)
            } else {
                Err("its score is no finite number".to_owned())
            }
        }))
    }
}

/// Those that are up; if none is, those whose last reading failed.
fn contenders(service: &Service) -> Vec<Contender> {
    for state in [State::Up, State::Failing] {
        let of_state = service.servers.iter().filter(|server| server.candidate.state() == state);
        let contenders: Vec<_> = of_state
            .filter_map(|server| match &server.score {
                Some(Err(_)) => None,
                Some(Ok(score)) => Some(Contender { id: server.id, score: Some(*score) }),
                None => Some(Contender { id: server.id, score: None }),
            })
            .collect();
        if !contenders.is_empty() {
            return contenders;
        }
    }
    Vec::new()
}

fn preferred(service: &Service, contenders: &[Contender]) -> Choice {
    let current = match service.choice {
        Choice::Preferred(id) if !service.is_none_left => Some(id),
        _ => None,
    };
    // Another policy's values have not all arrived: until the preferred server's own does, it stays.
    let is_waiting = |of: &&Contender| Some(of.id) == current && of.score.is_none();
    if let Some(waiting) = contenders.iter().find(is_waiting) {
        return Choice::Preferred(waiting.id);
    }
    let scored: Vec<_> = contenders.iter().filter_map(|of| Some((of.id, of.score?))).collect();
    let best = prefer(&scored, current, service.hysteresis());
    Choice::Preferred(best.unwrap_or(contenders[0].id))
}

/// Servers of a weighted choice and their shares.
type Spread = Vec<(ServerId, f64)>;

/// The table that there is, unless others take part, or a share differs by more than the hysteresis.
fn weighted(service: &Service, contenders: &[Contender]) -> (Choice, Spread) {
    let scores: Vec<f64> = contenders.iter().filter_map(|of| of.score).collect();
    let known = shares(&scores);
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    let mut known = known.into_iter();
    // Without a score yet: as much as the others.
    let share = |of: &Contender| match of.score {
        Some(_) => known.next().unwrap_or(1.0),
        None if mean > 0.0 => mean,
        None => 1.0,
    };
    let shares: Vec<f64> = contenders.iter().map(share).collect();
    let total: f64 = shares.iter().sum();
    let spread: Spread =
        contenders.iter().zip(&shares).map(|(of, share)| (of.id, share / total)).collect();
    let hysteresis = service.hysteresis();
    let is_near = |(new, old): (&(ServerId, f64), &(ServerId, f64))| {
        new.0 == old.0 && (new.1 - old.1).abs() <= old.1 * hysteresis
    };
    let is_same =
        spread.len() == service.spread.len() && spread.iter().zip(&service.spread).all(is_near);
    if is_same && matches!(service.choice, Choice::Weighted(_)) {
        return (service.choice.clone(), service.spread.clone());
    }
    let key = |id: ServerId| {
        let server = service.servers.iter().find(|server| server.id == id);
        server.map_or(0, |server| maglev::key(&server.settings.name))
    };
    let keyed: Vec<(u64, f64)> = spread.iter().map(|(id, share)| (key(*id), *share)).collect();
    let table = maglev::table(&keyed);
    let table = table.into_iter().map(|at| spread[usize::from(at)].0).collect();
    (Choice::Weighted(table), spread)
}

fn when_none(service: &Service) -> Choice {
    // Of none is anything known: to refuse, or to be sorry, would be early.
    if service.servers.iter().any(|server| server.candidate.state() == State::Starting)
        && service.last.is_none()
    {
        return Choice::Wait;
    }
    let last = || service.last.clone().filter(|last| is_there(service, last));
    match service.settings.when_none {
        WhenNone::Refuse => Choice::Refuse,
        WhenNone::Last => last().unwrap_or(Choice::Refuse),
        WhenNone::Sorry(_) => service.sorry.map_or(Choice::Refuse, Choice::Preferred),
    }
}

/// Are all servers of a choice still the service's?
fn is_there(service: &Service, choice: &Choice) -> bool {
    let is_one = |id: &ServerId| service.servers.iter().any(|server| server.id == *id);
    match choice {
        Choice::Preferred(id) => is_one(id),
        Choice::Weighted(ids) => ids.iter().all(is_one),
        Choice::Refuse | Choice::Wait => true,
    }
}

fn goes_to(choice: &Choice, id: ServerId) -> bool {
    match choice {
        Choice::Preferred(of) => *of == id,
        Choice::Weighted(ids) => ids.contains(&id),
        Choice::Refuse | Choice::Wait => false,
    }
}

impl Service {
    /// Has every status object of each of its servers been read, with success or without?
    fn is_read(&self) -> bool {
        let mut checks = self.servers.iter().flat_map(|server| &server.candidate.checks);
        !self.servers.is_empty() && checks.all(Check::is_read)
    }

    /// By what share others have to be better. Whoever happened to be read first is nobody's preference.
    fn hysteresis(&self) -> f64 {
        if self.is_chosen { self.settings.hysteresis } else { 0.0 }
    }

    /// Takes another choice, and remembers why.
    fn switch(&mut self, (choice, is_none_left, spread): (Choice, bool, Spread), now: Instant) {
        let from = self.show();
        let why = self.reason(&choice, is_none_left);
        self.choice = choice;
        self.is_none_left = is_none_left;
        self.spread = spread;
        let to = self.show();
        if from == to {
            // The same servers in other parts.
            return;
        }
        self.why.clone_from(&why);
        crate::log::limited!(info, service = %self.settings.name, from, to, why, "new connections go elsewhere");
        if self.switches.len() == REMEMBERED {
            self.switches.pop_front();
        }
        self.switches.push_back(Switch { at: now, from, to, why });
    }

    /// Who has the new connections, in a word.
    pub(super) fn show(&self) -> String {
        let name = |id: ServerId| {
            let server = self.servers.iter().find(|server| server.id == id);
            server.map_or_else(
                || "one that is gone".to_owned(),
                |server| server.settings.name.to_string(),
            )
        };
        match (&self.choice, self.settings.when_none) {
            (Choice::Refuse | Choice::Wait, _) => "none".to_owned(),
            (Choice::Preferred(id), WhenNone::Sorry(end)) if self.sorry == Some(*id) => {
                end.to_string()
            }
            (Choice::Preferred(id), _) if self.is_none_left => {
                format!("{}, the last one", name(*id))
            }
            (Choice::Preferred(id), _) => name(*id),
            (Choice::Weighted(_), _) => {
                let names = self.spread.iter().map(|(id, _)| name(*id));
                let names = names.collect::<Vec<_>>().join(", ");
                if self.is_none_left { format!("{names}, the last ones") } else { names }
            }
        }
    }

    /// Why the choice is now this one; the old one is still in place.
    fn reason(&self, choice: &Choice, is_none_left: bool) -> String {
        let names: Vec<&str> = self.statuses.iter().map(|(_, status)| &*status.name).collect();
        let of = |id: ServerId| self.servers.iter().find(|server| server.id == id);
        if is_none_left {
            return "no server is left".to_owned();
        }
        let was = match self.choice {
            _ if self.is_none_left => None,
            Choice::Preferred(id) => Some(id),
            _ => None,
        };
        let (was, is) = match (was, choice) {
            (Some(was), Choice::Preferred(is)) => (of(was), of(*is)),
            (None, Choice::Preferred(is)) => {
                let name = of(*is).map_or("it", |server| &*server.settings.name);
                return format!("{name} is up");
            }
            _ => return "others take part".to_owned(),
        };
        let Some(was) = was else { return "the preferred server was removed".to_owned() };
        let state = was.candidate.state();
        if state != State::Up {
            let why = was.candidate.why(&names);
            return format!("{} is {}: {why}", was.settings.name, state.name());
        }
        match (&was.score, is.map(|is| &is.score)) {
            (Some(Err(error)), _) => format!("{}: {error}", was.settings.name),
            (Some(Ok(was)), Some(Some(Ok(is)))) => {
                format!("{}: {} against {}", self.settings.policy, rounded(*is), rounded(*was))
            }
            _ => self.settings.policy.to_string(),
        }
    }
}

/// To four digits.
fn rounded(number: f64) -> f64 {
    format!("{number:.3e}").parse().unwrap_or(number)
}
