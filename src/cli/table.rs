//! A status as text for a reader at a terminal.

use std::fmt::Write;

use crate::admin::{Checked, Status};
use crate::balance::monitor::{ServiceStatus, ValueStatus};
use crate::forward::verdict::DropReason;

/// Routes and neighbours shown; `--json` has more.
const SHOWN: usize = 16;

/// The whole page.
pub(super) fn render(status: &Status) -> String {
    let mut page = String::new();
    head(&mut page, status);
    nics(&mut page, status);
    services(&mut page, status);
    routes(&mut page, status);
    neighbours(&mut page, status);
    announcements(&mut page, status);
    paths(&mut page, status);
    rip(&mut page, status);
    rules(&mut page, status);
    workers(&mut page, status);
    router(&mut page, status);
    drops(&mut page, status.drops.iter().map(|(name, frames)| (name.as_str(), *frames)));
    page
}

fn head(page: &mut String, status: &Status) {
    let _ = writeln!(
        page,
        "{}  {}\nvipa {}, pid {}, up {}, view {}\nconfiguration {}",
        status.adapter,
        status.vipas.join("  "),
        status.version,
        status.pid,
        uptime(status.uptime_seconds),
        status.generation,
        status.config,
    );
    if let Some(withdrawing) = status.withdrawing {
        let _ = writeln!(
            page,
            "withdrawing: the neighbours were told {} times that the VIPAs are gone; stops in {:.1} s",
            withdrawing.told, withdrawing.ends_in_seconds
        );
    }
}

fn nics(page: &mut String, status: &Status) {
    let titles = ["NIC", "state", "sent", "", "heard", "", "mtu", "metric", "weight", "addresses"];
    let rows = status.nics.iter().map(|nic| {
        let state = match (nic.state.as_str(), nic.is_live) {
            ("held_down", true) => "held down, in use".to_owned(),
            (state, _) => state.replace('_', " "),
        };
        vec![
            nic.name.clone(),
            state,
            count(nic.sent.frames),
            bytes(nic.sent.bytes),
            count(nic.received.frames),
            bytes(nic.received.bytes),
            nic.mtu.to_string(),
            nic.metric.to_string(),
            nic.weight.to_string(),
            nic.addresses.join("  "),
        ]
    });
    columns(page, &titles, rows);
    for nic in status.nics.iter().filter(|nic| nic.lost > 0) {
        let _ =
            writeln!(page, "{}: {} frames came too fast and were lost", nic.name, count(nic.lost));
    }
    for nic in status.nics.iter().filter(|nic| nic.offload_refused > 0) {
        let _ = writeln!(page, "{} refused offload {} times", nic.name, count(nic.offload_refused));
    }
}

/// Switches shown of each service; `--json` has more.
const SWITCHES: usize = 3;

fn services(page: &mut String, status: &Status) {
    for service in &status.balance.services {
        head_of_service(page, service);
        let titles =
            ["server", "address", "state", "since", "share", "score", "has", "was given", "values"];
        let rows = service.servers.iter().map(|server| {
            let values: Vec<String> = server.values.iter().map(value).collect();
            vec![
                server.name.clone(),
                server.address.clone(),
                server.state.clone(),
                uptime(server.since_seconds),
                format!("{:.0}%", server.share * 100.0),
                server.score.map_or("-".to_owned(), number),
                count(server.connections),
                count(server.given),
                values.join("  "),
            ]
        });
        columns(page, &titles, rows);
        for server in &service.servers {
            let why = server.no_score.iter().chain(Some(&server.why).filter(|why| !why.is_empty()));
            for why in why {
                let _ = writeln!(page, "{} is {}: {why}", server.name, server.state);
            }
        }
        let skipped = service.switches.len().saturating_sub(SWITCHES);
        for switch in service.switches.iter().skip(skipped) {
            let ago = uptime(switch.ago_seconds);
            let _ =
                writeln!(page, "{ago} ago from {} to {}: {}", switch.from, switch.to, switch.why);
        }
    }
}

fn head_of_service(page: &mut String, service: &ServiceStatus) {
    let configured = match &service.configured_policy {
        Some(configured) => format!(" (configured: {configured})"),
        None => String::new(),
    };
    let _ = writeln!(
        page,
        "\nservice {}  {} {}, {}: {}{configured}, {} → {}",
        service.name,
        service.address,
        service.protocol,
        service.mode,
        service.policy,
        service.choose,
        service.choice,
    );
    if let Some(when_none) = &service.when_none {
        let _ = writeln!(page, "no server is left: {when_none}");
    }
}

/// What a status object tells, in a word.
fn value(value: &ValueStatus) -> String {
    let told = match (&value.error, value.value) {
        (Some(_), _) => "failed".to_owned(),
        (None, Some(value)) => number(value),
        (None, None) => "-".to_owned(),
    };
    let words = if value.words.is_empty() { "" } else { " " };
    format!("{} {told}{words}{}", value.name, value.words)
}

/// To four digits.
fn number(number: f64) -> String {
    let rounded: f64 = format!("{number:.3e}").parse().unwrap_or(number);
    rounded.to_string()
}

/// What was read of a server just now.
pub(super) fn readings(checked: &Checked) -> String {
    let mut page = String::new();
    let rows = checked.readings.iter().map(|reading| {
        let value = reading.value.map_or("-".to_owned(), number);
        let said = reading.error.clone().unwrap_or_else(|| reading.words.clone());
        vec![reading.name.clone(), value, said]
    });
    columns(&mut page, &["status", "value", ""], rows);
    page.trim_start().to_owned()
}

fn routes(page: &mut String, status: &Status) {
    let rows = status.routes.iter().take(SHOWN).map(|route| {
        let hops = route.next_hops.iter().map(|hop| match &hop.gateway {
            Some(gateway) => format!("{} via {gateway}", hop.nic),
            None => hop.nic.clone(),
        });
        let hops: Vec<String> = hops.collect();
        let to = if hops.is_empty() { "the kernel's own way".to_owned() } else { hops.join("  ") };
        vec![route.prefix.clone(), to]
    });
    columns(page, &["route", "to"], rows);
    and_more(page, status.route_count);
}

fn neighbours(page: &mut String, status: &Status) {
    let rows = status.neighbours.iter().take(SHOWN).map(|neighbour| {
        vec![neighbour.address.clone(), neighbour.nic.clone(), neighbour.mac.clone()]
    });
    columns(page, &["neighbour", "NIC", "MAC"], rows);
    and_more(page, status.neighbour_count);
}

fn announcements(page: &mut String, status: &Status) {
    let rows = status.announcements.vipas.iter().map(|one| {
        let conflict = match &one.conflict {
            None => "nobody".to_owned(),
            Some(other) => format!(
                "{}, heard by {}, {} times in {} s",
                other.mac,
                other.nic,
                count(other.claims),
                count(other.seconds),
            ),
        };
        let nic = one.nic.clone().unwrap_or_else(|| "no NIC".to_owned());
        vec![one.vipa.clone(), one.subnet.clone(), nic, count(one.announced), conflict]
    });
    columns(page, &["VIPA", "in", "answered for by", "announced", "also claimed by"], rows);
    for (reason, times) in &status.announcements.rejected {
        let _ = writeln!(page, "not taken: {reason}, {} times", count(*times));
    }
}

fn paths(page: &mut String, status: &Status) {
    let titles = ["path", "by", "state", "deaths", "asked", "answered", "round trip"];
    let rows = status.paths.next_hops.iter().take(SHOWN).map(|path| {
        vec![
            path.address.clone(),
            path.nic.clone(),
            path.state.clone(),
            count(path.deaths),
            count(path.sent),
            count(path.heard),
            path.round_trip_us.map_or_else(|| "-".to_owned(), |us| format!("{us} us")),
        ]
    });
    columns(page, &titles, rows);
    and_more(page, status.paths.next_hops.len());
    for (reason, times) in &status.paths.rejected {
        let _ = writeln!(page, "not taken: {reason}, {} times", count(*times));
    }
}

fn rip(page: &mut String, status: &Status) {
    let rip = &status.rip;
    if !rip.is_spoken {
        return;
    }
    let _ = writeln!(
        page,
        "\nRIP     sent {}, unsent {}, heard {}, routes learned {}",
        count(rip.sent),
        count(rip.unsent),
        count(rip.heard),
        count(rip.learned),
    );
    let rows = rip.rejected.iter().take(SHOWN);
    let rows = rows.map(|r| vec![r.neighbour.clone(), r.reason.clone(), count(r.count)]);
    columns(page, &["refused from", "because", "times"], rows);
    and_more(page, rip.rejected.len());
}

fn rules(page: &mut String, status: &Status) {
    let rows = status.rules.iter().map(|rule| {
        vec![
            format!("line {}", rule.line),
            rule.matches.clone(),
            rule.target.clone(),
            rule.applied_by.clone(),
            rule.because.clone(),
        ]
    });
    columns(page, &["rule", "of", "carries", "by the", "because"], rows);
}

fn workers(page: &mut String, status: &Status) {
    let titles = [
        "worker",
        "from adapter",
        "",
        "to adapter",
        "",
        "flows",
        "made",
        "rewritten",
        "half-open",
        "flooded",
        "evicted",
        "waits",
        "punts",
        "wake-ups",
    ];
    let rows = status.workers.iter().map(|worker| {
        vec![
            worker.worker.to_string(),
            count(worker.from_tun.frames),
            bytes(worker.from_tun.bytes),
            count(worker.to_tun.frames),
            bytes(worker.to_tun.bytes),
            count(worker.flows),
            count(worker.flows_created),
            count(worker.flows_rewritten),
            count(worker.flows_half_open),
            count(worker.services_flooded),
            count(worker.flows_evicted),
            count(worker.waits),
            count(worker.punts),
            count(worker.wakeups),
        ]
    });
    columns(page, &titles, rows);
}

fn router(page: &mut String, status: &Status) {
    let router = &status.router;
    let _ = writeln!(
        page,
        "\nrouter  views {}, repaired {}, resyncs {}, kernel errors {}, flows held {}, sockets asked {} (unknown {}), late {}",
        count(router.views),
        count(router.repaired),
        count(router.resyncs),
        count(router.kernel_errors),
        count(router.flows_held),
        count(router.sockets_asked),
        count(router.sockets_unknown),
        count(router.late + status.paths.late),
    );
}

/// Only what occurred: `--json` has every reason.
pub(super) fn drops<'a>(page: &mut String, drops: impl Iterator<Item = (&'a str, u64)>) {
    let dropped: Vec<_> = drops.filter(|(_, frames)| *frames > 0).collect();
    if dropped.is_empty() {
        let _ = writeln!(page, "drops   none");
        return;
    }
    let rows = dropped.into_iter().map(|(name, frames)| {
        let reason = DropReason::ALL.iter().find(|reason| reason.name() == name);
        let meaning = reason.map_or("", |reason| reason.meaning());
        vec![name.to_owned(), count(frames), meaning.to_owned()]
    });
    columns(page, &["dropped", "frames", "because"], rows);
}

fn and_more(page: &mut String, total: usize) {
    if total > SHOWN {
        let _ = writeln!(page, "and {} more", total - SHOWN);
    }
}

/// A blank line, titles, rows; nothing where there are no rows. Numbers stand to the right, but not in
/// the first column.
pub(super) fn columns(page: &mut String, titles: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return;
    }
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([titles[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let is_number =
        |cell: &str| cell.starts_with(|c: char| c.is_ascii_digit()) && !cell.contains([':', '/']);
    let is_right: Vec<bool> = (0..titles.len())
        .map(|column| {
            column > 0
                && rows.iter().all(|row| is_number(&row[column]) && !row[column].contains(".."))
        })
        .collect();
    let titles: Vec<String> = titles.iter().map(|title| (*title).to_owned()).collect();
    page.push('\n');
    for row in std::iter::once(&titles).chain(&rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if is_right[column] {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        let _ = writeln!(page, "{}", line.trim_end());
    }
}

/// `1 234 567`
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1.2 GB`
fn bytes(number: u64) -> String {
    let mut scaled = number as f64;
    for unit in ["B", "kB", "MB", "GB", "TB"] {
        if scaled < 999.95 {
            let digits = usize::from(unit != "B");
            return format!("{scaled:.digits$} {unit}");
        }
        scaled /= 1000.0;
    }
    format!("{scaled:.1} PB")
}

fn uptime(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    if days > 0 {
        format!("{days} d {hours} h")
    } else if hours > 0 {
        format!("{hours} h {minutes} min")
    } else if minutes > 0 {
        format!("{minutes} min {rest} s")
    } else {
        format!("{rest} s")
    }
}
