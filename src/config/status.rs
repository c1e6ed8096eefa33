//! `[[service.status]]`: what is read of each server.

use std::time::Duration;

use super::mistake::Mistakes;
use super::reader::{Table, string};
use crate::balance::policy::Role;
use crate::balance::status::Settings;

/// One table; `None` without a name.
pub(super) fn read(mut table: Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<Settings> {
    let wanted = "a name, such as \"clients\"";
    let name = table.required("name", wanted, mistakes);
    let name = name.and_then(|value| string(value, "name", wanted, mistakes));
    let role = table.get("role").and_then(|value| string(value, "role", "a role", mistakes));
    let times = Duration::from_millis(1)..=Duration::from_secs(86_400);
    let every = table.duration("every", times.clone(), Duration::from_secs(1), mistakes);
    let timeout = table.duration("timeout", times, Duration::from_secs(1), mistakes);
    table.get("kind");
    table.finish(mistakes);
    let role = role.and_then(|role| role.parse::<Role>().ok());
    Some(Settings { name: name?.into(), role, every: Some(every), timeout })
}
