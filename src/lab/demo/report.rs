//! What the demo found: one JSON object, or a table.

use std::fmt;

use serde::Serialize;

use crate::lab::topology::nic_name;
use crate::lab::traffic::{CONNECTIONS, Micros, Outcome, Role, Traffic};

use super::script::Act;
use super::windows::{Window, windows};

/// The whole demo. Field names are what `--json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) ok: bool,
    pub(super) connections: u64,
    pub(super) connections_lost: u64,
    pub(super) bytes: u64,
    pub(super) bytes_corrupted: u64,
    pub(super) gbit_per_second: f64,
    pub(super) longest_gap_ms: f64,
    pub(super) longest_gap_ms_rewritten: f64,
    pub(super) events: Vec<Event>,
    /// Data frames that reached the router's side of the client, before the last third.
    pub(super) frames: u64,
    pub(super) mean_frame_bytes: f64,
    /// Why it is not ok.
    #[serde(skip)]
    pub(super) complaints: Vec<String>,
    /// All that the forwarders said, if it is not ok.
    #[serde(skip)]
    pub(super) last_words: String,
}

/// One event and what it cost.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Event {
    pub(super) event: &'static str,
    pub(super) nic: Option<String>,
    /// Worst of all connections but the rewritten, in both directions, and of the echo.
    pub(super) gap_ms: f64,
    /// Worst of the rewritten connections.
    pub(super) gap_ms_rewritten: f64,
    pub(super) udp_lost: u64,
    /// From SIGKILL until a forwarder was ready again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) away_ms: Option<f64>,
    #[serde(skip)]
    pub(super) udp_came_back: bool,
}

/// An event of the script as it took place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Happened {
    pub(super) at: Micros,
    pub(super) act: Act,
    /// When a forwarder was ready after it was killed.
    pub(super) ready: Option<Micros>,
}

/// Bulk data between two moments.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bulk {
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

/// Judges event `number` of those that happened so far, the windows of all of which are known.
pub(super) fn judge(traffic: &Traffic, happened: &[Happened], number: usize) -> Event {
    let times: Vec<Micros> = happened.iter().map(|h| h.at).collect();
    let window: Window = windows(&times)[number];
    let (mut gap, mut gap_rewritten) = (0, 0);
    traffic.each_direction(|role, progress| {
        let worst = if role == Role::Rewritten { &mut gap_rewritten } else { &mut gap };
        *worst = window.gap(progress).max(*worst);
    });
    let (from, to) = window.after;
    let (udp_lost, udp_came_back) = traffic.echo(|asked| {
        gap = window.gap(asked.progress()).max(gap);
        (asked.lost(from, to), asked.is_answered(from, to))
    });
    let Happened { at, act, ready } = happened[number];
    Event {
        event: act.name(),
        nic: act.nic().map(nic_name),
        gap_ms: milliseconds(gap),
        gap_ms_rewritten: milliseconds(gap_rewritten),
        udp_lost,
        away_ms: ready.map(|ready| milliseconds(ready - at)),
        udp_came_back,
    }
}

impl Report {
    pub(super) fn new(outcome: Outcome, events: Vec<Event>, bulk: Bulk, seconds: f64) -> Report {
        let mut complaints = outcome.lost.clone();
        if outcome.corrupted > 0 {
            complaints
                .push(format!("{} bytes arrived other than they were sent", outcome.corrupted));
        }
        if outcome.bytes != outcome.sent {
            complaints.push(format!("{} of {} bytes arrived", outcome.bytes, outcome.sent));
        }
        for event in events.iter().filter(|event| !event.udp_came_back) {
            complaints.push(format!("UDP did not come back after {}", event.title()));
        }
        let worst = |gap: fn(&Event) -> f64| events.iter().map(gap).fold(0.0, f64::max);
        Report {
            ok: complaints.is_empty(),
            connections: CONNECTIONS,
            connections_lost: outcome.lost.len() as u64,
            bytes: outcome.bytes,
            bytes_corrupted: outcome.corrupted,
            gbit_per_second: rounded(outcome.bytes as f64 * 8.0 / seconds / 1e9, 2),
            longest_gap_ms: worst(|event| event.gap_ms),
            longest_gap_ms_rewritten: worst(|event| event.gap_ms_rewritten),
            frames: bulk.frames,
            mean_frame_bytes: rounded(bulk.bytes as f64 / (bulk.frames.max(1)) as f64, 0),
            events,
            complaints,
            last_words: String::new(),
        }
    }

    /// Something else went wrong.
    pub(super) fn complain(&mut self, complaint: String) {
        self.complaints.push(complaint);
        self.ok = false;
    }
}

impl Event {
    /// In words.
    pub(super) fn title(&self) -> String {
        match &self.nic {
            Some(nic) => format!("{nic}: {}", self.event.replace('_', " ")),
            None => self.event.replace('_', " "),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<26} {:>10} {:>16} {:>10} {:>10}",
            "event", "gap (ms)", "rewritten (ms)", "UDP lost", "away (ms)"
        )?;
        for event in &self.events {
            let away = event.away_ms.map(|ms| format!("{ms:.1}")).unwrap_or_default();
            writeln!(
                f,
                "{:<26} {:>10.1} {:>16.1} {:>10} {:>10}",
                event.title(),
                event.gap_ms,
                event.gap_ms_rewritten,
                event.udp_lost,
                away
            )?;
        }
        writeln!(
            f,
            "\n{} of {} connections lived; {:.2} GB arrived at {:.2} Gbit/s, {} bytes corrupted; \
             mean data frame {:.0} bytes",
            self.connections - self.connections_lost.min(self.connections),
            self.connections,
            self.bytes as f64 / 1e9,
            self.gbit_per_second,
            self.bytes_corrupted,
            self.mean_frame_bytes
        )?;
        for complaint in &self.complaints {
            writeln!(f, "NOT OK: {complaint}")?;
        }
        if self.ok {
            writeln!(f, "ok: nothing was lost")?;
        }
        Ok(())
    }
}

/// To 0.1 ms.
fn milliseconds(time: Micros) -> f64 {
    rounded(time as f64 / 1000.0, 1)
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}
