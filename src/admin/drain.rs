//! `{"command":"drain"}`: the forwarder is to take leave of its neighbours, and then to stop.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Admin;
use crate::engine::leave;

/// What a forwarder says that was told to drain. It ends later; who wants to know when waits for its process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Draining {
    /// Name of the virtual adapter.
    pub adapter: String,
    /// Process id of the forwarder, in its own PID namespace.
    pub pid: u32,
    /// It was leaving already, and goes on as it was told first.
    pub was_leaving: bool,
    /// The live NICs by which neighbours are told that the VIPAs are gone; none: there is nobody to tell.
    pub told_by: Vec<String>,
    /// When it is to end; 0 where no RIP is spoken, since nobody has to take another way.
    pub ends_in_seconds: f64,
}

/// Begins to drain, or goes on with it.
pub(super) fn drain(admin: &Admin, wait: Option<Duration>) -> Draining {
    let (asked, is_first) = admin.leave.politely(wait.unwrap_or(leave::WAIT));
    tracing::info!(?wait, "told to drain{}", if is_first { "" } else { " again" });
    let config = admin.config.load();
    let is_polite = asked.is_polite && config.rip.is_some();
    let ends_in = asked.end.saturating_duration_since(Instant::now());
    Draining {
        adapter: config.adapter.name.clone(),
        pid: std::process::id(),
        was_leaving: !is_first,
        told_by: if is_polite { speaking(admin) } else { Vec::new() },
        ends_in_seconds: if is_polite { ends_in.as_secs_f64() } else { 0.0 },
    }
}

fn speaking(admin: &Admin) -> Vec<String> {
    let config = admin.config.load();
    let Some(rip) = &config.rip else { return Vec::new() };
    let is_passive = |at: usize| rip.nics.get(at).is_some_and(|nic| nic.is_passive);
    let view = admin.cell.load();
    let nics = view.nics.iter().enumerate();
    nics.filter(|(at, nic)| nic.is_live && !is_passive(*at))
        .map(|(_, nic)| nic.name.clone())
        .collect()
}
