//! What the demo shows while it runs: a line a second, a line an event.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use crate::lab::topology::{Network, nic_name};
use crate::lab::traffic::{Micros, Traffic};

use super::report::{Event, Happened};

/// Where the lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Display {
    /// stdout, with the table after them.
    Stdout,
    /// stderr, as stdout is kept for JSON.
    Stderr,
    /// Nowhere: nobody looks.
    Silent,
}

impl Display {
    pub(super) fn new(json: bool) -> Display {
        match (json, io::stderr().is_terminal()) {
            (false, _) => Display::Stdout,
            (true, true) => Display::Stderr,
            (true, false) => Display::Silent,
        }
    }

    /// One line; a reader who has gone away is no reason to stop.
    pub(super) fn line(self, text: fmt::Arguments<'_>) {
        let _ = match self {
            Display::Stdout => writeln!(io::stdout(), "{text}"),
            Display::Stderr => writeln!(io::stderr(), "{text}"),
            Display::Silent => Ok(()),
        };
    }

    /// An event, as it happens.
    pub(super) fn happened(self, since: Micros, event: &Happened) {
        let nic = event.act.nic().map(|nic| format!("{}: ", nic_name(nic))).unwrap_or_default();
        let what = event.act.name().replace('_', " ");
        self.line(format_args!(
            "{:5.1} s  >> {nic}{what}",
            seconds(event.at.saturating_sub(since))
        ));
    }

    /// What it cost, once its window is over.
    pub(super) fn judged(self, event: &Event) {
        let away =
            event.away_ms.map(|ms| format!(", forwarder away {ms:.0} ms")).unwrap_or_default();
        let ways =
            if event.ways().is_empty() { String::new() } else { format!("; {}", event.ways()) };
        self.line(format_args!(
            "         << {}: gap {:.1} ms, rewritten {:.1} ms, {} UDP lost{away}{ways}",
            event.title(),
            event.gap_ms,
            event.gap_ms_rewritten,
            event.udp_lost
        ));
    }
}

/// The line a second: what each NIC carried, both directions, since the last.
#[derive(Debug)]
pub(super) struct Throughput {
    since: Micros,
    /// When the last line was made, and what each NIC had carried: `None` while it is missing.
    last: (Micros, Vec<Option<u64>>),
}

impl Throughput {
    pub(super) fn new(network: &Network, traffic: &Traffic) -> Throughput {
        let now = traffic.now();
        Throughput { since: now, last: (now, carried(network)) }
    }

    /// When the first second began.
    pub(super) fn since(&self) -> Micros {
        self.since
    }

    pub(super) fn show(&mut self, display: Display, network: &Network, traffic: &Traffic) {
        let (then, before) = &self.last;
        let (now, carried) = (traffic.now(), carried(network));
        let mut line = format!("{:5.1} s ", seconds(now.saturating_sub(self.since)));
        for (nic, (before, after)) in network.nics().zip(before.iter().zip(&carried)) {
            let text = match (before, after) {
                (_, None) => "missing".to_owned(),
                (before, Some(after)) => {
                    let bytes = after.saturating_sub(before.unwrap_or(0));
                    let rate = bytes as f64 * 8.0 / 1e9 / seconds(now.saturating_sub(*then).max(1));
                    format!("{rate:5.2} Gbit/s")
                }
            };
            line.push_str(&format!("  {} {text:<12}", nic_name(nic)));
        }
        let answered = traffic.echo(|asked| asked.round_trips(*then, now).len());
        line.push_str(&format!("  echo {answered:>4}/s"));
        display.line(format_args!("{line}"));
        self.last = (now, carried);
    }
}

fn carried(network: &Network) -> Vec<Option<u64>> {
    let counters = |nic| network.host.counters(&nic_name(nic)).ok();
    network.nics().map(|nic| counters(nic).map(|c| c.rx_bytes + c.tx_bytes)).collect()
}

fn seconds(time: Micros) -> f64 {
    time as f64 / 1e6
}
