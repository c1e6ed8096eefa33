//! What the demo found: one JSON object, or a table.

use std::fmt;

use serde::Serialize;

use crate::lab::topology::nic_name;
use crate::lab::traffic::{CONNECTIONS, Direction, Micros, Outcome, Role, Traffic};

use super::comeback::Comeback;
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
    /// Of all events but those of a path, which no link tells of.
    pub(super) longest_gap_ms: f64,
    pub(super) longest_gap_ms_rewritten: f64,
    /// Of the events of a path, all connections.
    pub(super) longest_gap_ms_path: f64,
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
    /// `path_died`: worst of all connections in what the host sends …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gap_ms_out: Option<f64>,
    /// … and in what is sent to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gap_ms_in: Option<f64>,
    /// `path_healed`: until the NIC carried what the host sends again …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) used_ms_out: Option<f64>,
    /// … and what is sent to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) used_ms_in: Option<f64>,
    /// Why it is not ok.
    #[serde(skip)]
    pub(super) complaint: Option<&'static str>,
    #[serde(skip)]
    is_of_path: bool,
}

/// An event of the script as it took place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Happened {
    pub(super) at: Micros,
    pub(super) act: Act,
    /// When a forwarder was ready after it was killed.
    pub(super) ready: Option<Micros>,
    /// What was seen of the NIC since its path healed.
    pub(super) comeback: Option<Comeback>,
}

/// Bulk data between two moments.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bulk {
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

/// Judges event `number` of those that happened so far, the windows of all of which are known.
pub(super) fn judge(traffic: &Traffic, happened: &[Happened], number: usize) -> Event {
    let times: Vec<_> = happened.iter().map(|h| (h.at, h.act.window())).collect();
    let window: Window = windows(&times)[number];
    let (mut gap, mut gap_rewritten, mut gap_out, mut gap_in) = (0, 0, 0, 0);
    let mut is_stuck = false;
    traffic.each_direction(|role, direction, progress| {
        let one = window.gap(progress);
        let of_role = if role == Role::Rewritten { &mut gap_rewritten } else { &mut gap };
        *of_role = one.max(*of_role);
        let of_way = if direction == Direction::In { &mut gap_in } else { &mut gap_out };
        *of_way = one.max(*of_way);
        is_stuck |= window.is_silent(progress);
    });
    let (from, to) = window.after;
    let (udp_lost, udp_came_back) = traffic.echo(|asked| {
        gap = window.gap(asked.progress()).max(gap);
        (asked.lost(from, to), asked.is_answered(from, to))
    });
    let Happened { at, act, ready, comeback } = happened[number];
    let has_died = matches!(act, Act::BreakPath(_));
    let is_used = comeback.is_none_or(|one| one.outgoing.is_some() && one.incoming.is_some());
    let complaint = match (udp_came_back, has_died && is_stuck, is_used) {
        (false, ..) => Some("UDP did not come back"),
        (_, true, _) => Some("a connection stood still until it healed"),
        (.., false) => Some("it was not used again both ways"),
        _ => None,
    };
    Event {
        event: act.name(),
        nic: act.nic().map(nic_name),
        gap_ms: milliseconds(gap),
        gap_ms_rewritten: milliseconds(gap_rewritten),
        udp_lost,
        away_ms: ready.map(|ready| milliseconds(ready - at)),
        gap_ms_out: has_died.then(|| milliseconds(gap_out)),
        gap_ms_in: has_died.then(|| milliseconds(gap_in)),
        used_ms_out: comeback.and_then(|one| one.outgoing).map(milliseconds),
        used_ms_in: comeback.and_then(|one| one.incoming).map(milliseconds),
        complaint,
        is_of_path: act.is_of_path(),
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
        for event in &events {
            complaints.extend(event.complaint.map(|why| format!("{}: {why}", event.title())));
        }
        let worst = |is_of_path: bool, gap: fn(&Event) -> f64| {
            let events = events.iter().filter(|event| event.is_of_path == is_of_path);
            events.map(gap).fold(0.0, f64::max)
        };
        Report {
            ok: complaints.is_empty(),
            connections: CONNECTIONS,
            connections_lost: outcome.lost.len() as u64,
            bytes: outcome.bytes,
            bytes_corrupted: outcome.corrupted,
            gbit_per_second: rounded(outcome.bytes as f64 * 8.0 / seconds / 1e9, 2),
            longest_gap_ms: worst(false, |event| event.gap_ms),
            longest_gap_ms_rewritten: worst(false, |event| event.gap_ms_rewritten),
            longest_gap_ms_path: worst(true, |event| event.gap_ms.max(event.gap_ms_rewritten)),
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

    /// What there is to say of a path; empty for other events.
    pub(super) fn ways(&self) -> String {
        let ms = |time: Option<f64>| time.map_or("never".to_owned(), |ms| format!("{ms:.0} ms"));
        match self.event {
            "path_died" => format!("gap out {}, in {}", ms(self.gap_ms_out), ms(self.gap_ms_in)),
            "path_healed" => {
                format!("used again out {}, in {}", ms(self.used_ms_out), ms(self.used_ms_in))
            }
            _ => String::new(),
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
            let line = format!(
                "{:<26} {:>10.1} {:>16.1} {:>10} {away:>10}  {}",
                event.title(),
                event.gap_ms,
                event.gap_ms_rewritten,
                event.udp_lost,
                event.ways()
            );
            writeln!(f, "{}", line.trim_end())?;
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
