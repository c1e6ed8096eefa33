//! `[[service.status]]`: what is read of each server of a service. The keys that each kind has are in [`kind`].

mod connection;
mod kind;
#[cfg(test)]
mod tests;

use std::time::Duration;

use super::mistake::Mistakes;
use super::reader::{Table, Value, string};
use crate::balance::status::{Every, Role, Settings};

const DAY: Duration = Duration::from_secs(24 * 3600);
const SECOND: Duration = Duration::from_secs(1);
/// A reading that takes longer is given up, where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(3);

const KINDS: [&str; 17] = [
    "agent-check",
    "dns",
    "exec",
    "file",
    "fixed",
    "flows",
    "hops",
    "host",
    "http",
    "http-json",
    "maildir",
    "ping",
    "prometheus",
    "push",
    "redis",
    "sql",
    "tcp",
];

/// The status objects of one service, in order; none where `value` is left out.
pub(super) fn read(value: Option<&Value<'_>>, mistakes: &mut Mistakes<'_>) -> Vec<Settings> {
    let mut all: Vec<Settings> = Vec::new();
    for mut table in Table::all_of(value, "[[service.status]]", mistakes) {
        let Some(settings) = read_one(&mut table, mistakes) else { continue };
        if all.iter().any(|other| other.name == settings.name) {
            let found = format!("two status objects have the name {:?}", settings.name);
            mistakes.error(table.value_span("name"), found, "a name of its own for each");
        }
        if settings.role.is_some() && all.iter().any(|other| other.role == settings.role) {
            let found = "two status objects have this role";
            mistakes.error(table.value_span("role"), found, "each role once, or none");
        }
        table.finish(mistakes);
        all.push(settings);
    }
    all
}

fn read_one(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<Settings> {
    let name = read_name(table, mistakes);
    let roles = Role::NAMES.map(|(word, _)| word);
    let role = table.get("role").is_some().then(|| table.one_of("role", &roles, mistakes));
    let role = role.and_then(|role| Role::NAMES.iter().find(|(word, _)| *word == role));
    let every = read_every(table, mistakes);
    let timeout = match every {
        Every::Period(period) => period.min(PATIENCE),
        Every::Demand => PATIENCE,
    };
    let shortest = Duration::from_millis(10);
    let timeout = table.duration("timeout", shortest..=Duration::from_secs(60), timeout, mistakes);
    let kind = table.required("kind", "what is read, such as \"http-json\"", mistakes)?;
    let _ = string(kind, "kind", "what is read, such as \"http-json\"", mistakes)?;
    let before = mistakes.errors();
    let chosen = table.one_of("kind", &KINDS, mistakes);
    if mistakes.errors() > before {
        return None; // its other keys are those of no kind
    }
    let kind = kind::read(chosen, table, every, mistakes);
    Some(Settings {
        name: name?.into(),
        role: role.map(|(_, role)| *role),
        every,
        timeout,
        kind: kind?,
    })
}

fn read_name(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<String> {
    let wanted = "a name of letters, digits, `_` and `-` that begins with a letter, at most 32";
    let value = table.required("name", wanted, mistakes)?;
    let name = string(value, "name", wanted, mistakes)?;
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= 32
        && name.chars().all(is_letter)
    {
        return Some(name.to_owned());
    }
    mistakes.error(value.span(), format!("the name is {name:?}"), wanted);
    None
}

fn read_every(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Every {
    let is_demand =
        table.get("every").is_some_and(|value| value.get_ref().as_str() == Some("demand"));
    match is_demand {
        true => Every::Demand,
        false => {
            let range = Duration::from_millis(50)..=30 * DAY;
            Every::Period(table.duration("every", range, SECOND, mistakes))
        }
    }
}
