//! `vipa replay --config CONFIG IN OUT`: a capture through the real forwarder.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::{Failure, Replay, failure, output, table};
use crate::capture::Reader;
use crate::config::Config;
use crate::forward::view::NicId;
use crate::replay::{self, Progress, Report};

/// Needs no privilege. Exit status 1 also for a capture that breaks off: what was before that has been replayed.
pub(super) fn run(arguments: &Replay) -> Result<ExitCode, Failure> {
    let config = failure::load(&arguments.config)?;
    let unnamed = arguments.nic.as_deref().map(|name| find_nic(&config, name)).transpose()?;
    let began = Instant::now();
    let named = |path: &Path, error: &dyn std::fmt::Display| {
        Failure::failed(format!("{}: {error}", path.display()))
    };
    let (from, to) = (&arguments.input, &arguments.output);
    let file = File::open(from).map_err(|error| named(from, &error))?;
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    if is_same_file(from, to) {
        let path = to.display();
        return Err(Failure::bad_use(format!("{path} is both IN and OUT: it would be lost")));
    }
    let reader = Reader::new(file).map_err(|error| named(from, &error))?;
    let out = File::create(to).map_err(|error| named(to, &error))?;
    let mut display = Display::new(size);
    let result = replay::run(&config, reader, out, unnamed, |progress| display.show(progress));
    display.end();
    let mut report = result.map_err(|error| match error {
        replay::Error::Output(error) => named(to, &error),
        replay::Error::UnnamedNic => Failure::bad_use(format!("{}: {error}", from.display())),
    })?;
    report.seconds = began.elapsed().as_secs_f64();
    report.packets_per_second = report.packets as f64 / report.seconds.max(f64::MIN_POSITIVE);
    let text = if arguments.json {
        let json = serde_json::to_string(&report)
            .map_err(|error| Failure::failed(format!("the report cannot be told: {error}")))?;
        format!("{json}\n")
    } else {
        summary(&report)
    };
    let printed = output::print(&text)?;
    match &report.error {
        Some(error) => Err(named(from, error)),
        None => Ok(printed),
    }
}

fn find_nic(config: &Config, name: &str) -> Result<NicId, Failure> {
    let ids = (0..).map(NicId).zip(&config.nics);
    let found = ids.into_iter().find(|(_, nic)| nic.name == name);
    found.map(|(id, _)| id).ok_or_else(|| {
        let names: Vec<&str> = config.nics.iter().map(|nic| nic.name.as_str()).collect();
        let names = names.join(", ");
        Failure::bad_use(format!(
            "--in {name} is no [[nic]]; {} has {names}",
            config.file.display()
        ))
    })
}

/// Would writing to `b` destroy `a`? A device is not changed by being opened.
fn is_same_file(a: &Path, b: &Path) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => {
            (a.dev(), a.ino()) == (b.dev(), b.ino()) && !b.file_type().is_char_device()
        }
        _ => false,
    }
}

/// One line on a terminal, renewed about once a second; elsewhere nothing.
struct Display {
    size: u64,
    is_shown: bool,
    shown: Instant,
    has_line: bool,
}

impl Display {
    fn new(size: u64) -> Display {
        let is_shown = io::stderr().is_terminal();
        Display { size, is_shown, shown: Instant::now(), has_line: false }
    }

    fn show(&mut self, progress: Progress) {
        if !self.is_shown || self.shown.elapsed() < Duration::from_secs(1) {
            return;
        }
        self.shown = Instant::now();
        self.has_line = true;
        let packets = table::count(progress.packets);
        let part = progress.offset.saturating_mul(100).checked_div(self.size);
        let part = part.map_or_else(String::new, |percent| format!("  {percent} %"));
        eprint!("\r{packets} packets{part}\x1b[K");
    }

    /// The line makes room for what comes.
    fn end(&self) {
        if self.has_line {
            eprint!("\r\x1b[K");
        }
    }
}

fn summary(report: &Report) -> String {
    let mut page = String::new();
    let count = table::count;
    // Writing into a String cannot fail.
    let _ = writeln!(
        page,
        "{} packets in {:.2} s, {} a second\n\ntransmitted {}, delivered {}, answered {}, dropped {}, left to the kernel {}",
        count(report.packets),
        report.seconds,
        count(report.packets_per_second as u64),
        count(report.transmitted),
        count(report.delivered),
        count(report.answered),
        count(report.drops()),
        count(report.left_to_kernel),
    );
    let _ = writeln!(
        page,
        "flows {}, rewritten at the end {}",
        count(report.flows),
        count(report.flows_rewritten)
    );
    for (number, what) in [
        (report.snapped, "packets were cut by the capture, and not run"),
        (report.other_interfaces, "packets of interfaces that are no device of the configuration"),
        (report.completed_checksums, "partial checksums completed"),
        (report.wrong_checksums_in, "packets with a wrong checksum, which was left wrong"),
    ] {
        if number > 0 {
            let _ = writeln!(page, "{} {what}", count(number));
        }
    }
    let rows = report.received.iter().map(|(name, received)| {
        let sent = report.per_nic.get(name).copied().unwrap_or(report.delivered);
        vec![name.clone(), count(*received), count(sent)]
    });
    table::columns(&mut page, &["device", "in", "out"], rows);
    table::drops(&mut page, report.dropped.iter().map(|(name, number)| (*name, *number)));
    page
}
