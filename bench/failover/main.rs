//! How long do a pulled cable, a path that dies behind a live link, and a start interrupt traffic to a VIPA, next to what others
//! need in vipa's place? `cargo bench --bench failover [-- --rounds N] [--quick] [--subject A,B] [--failure F]`, as root.
//!
//! ```text
//! client ── router ══ two links ══ host with the VIPA
//! ```
//!
//! In vipa's place: routing daemons (FRR, BIRD), the kernel's equal-cost routes alone, and keepalived (VRRP; its network: `vrrp.rs`).
//! What is not installed is named as missing. Who is out for longer than 20 s (RIP alone: 260 s) is out for ever: it is said so.
//!
//! Each round has namespaces of its own. The router runs FRR 10.3 (Debian trixie's, which tools/frr-trixie fetches and unpacks below
//! `target`; bookworm's has no BFD with RIP); beside the ports in the hash of its equal-cost routes it has the kernel's defaults. A
//! request each millisecond over UDP is answered from the VIPA, and one TCP connection says 1 kB every two, over a link that was
//! chosen by counters, both ways: this one then fails. What is lost is counted by request. Details and what others measured:
//! `trial.rs`. The raw figures are in `target/bench/failover.json`.

mod daemon;
mod subject;
mod traffic;
mod trial;
mod vrrp;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::json;
use vipa::lab;

use crate::subject::{SUBJECTS, Subject};
use crate::trial::{Failure, Outcome, Round};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Rounds of RIP alone, all at the same time: each takes some four minutes.
const SLOW_ROUNDS: usize = 3;

struct Arguments {
    rounds: usize,
    subjects: Vec<Subject>,
    failures: Vec<Failure>,
}

fn main() -> Result<(), Error> {
    let arguments = arguments()?;
    let frr = frr()?;
    lab::enter()?;
    let frr = match frr {
        Ok(root) => daemon::mount_root(&root).map(|()| root).map_err(|e| e.to_string()),
        Err(why) => Err(why),
    };
    let frr_root = frr.as_deref().ok();
    println!(
        "{:<11} {:>7} {:<7} {:>13} {:>11} {:>13} {:>13} {:>15} {:>4} {:>4}",
        "", "rounds", "", "gap", "lost", "TCP stall", "back: lost", "link back", "TCP", "late"
    );
    let mut results = Vec::new();
    for subject in &arguments.subjects {
        if let Some(why) = subject.missing(&frr) {
            println!("{:<11} missing: {why}", subject.name);
            results.push(json!({ "subject": subject.name, "missing": why }));
            continue;
        }
        let rounds = rounds(subject, &arguments, frr_root)?;
        print(subject, &rounds);
        let one = |round: &Round| {
            let outcomes: Vec<_> = round.outcomes.iter().map(Outcome::json).collect();
            json!({ "start_ms": round.start, "late": round.late, "failures": outcomes })
        };
        let rounds: Vec<_> = rounds.iter().map(one).collect();
        results.push(json!({ "subject": subject.name, "rounds": rounds }));
    }
    println!("median / worst, in ms; `TCP`: connections lost; `late`: late turns of vipa's loops");
    let router = if frr.is_ok() { "FRR 10.3" } else { "BIRD 2, since FRR 10.3 is missing" };
    println!(
        "the router runs {router} (beside `rip`: BIRD 2; beside `kernel` and `vrrp`: nothing)"
    );
    let directory = target().join("bench");
    fs::create_dir_all(&directory)?;
    let file = directory.join("failover.json");
    let text = serde_json::to_string_pretty(&json!({ "router": router, "subjects": results }))?;
    fs::write(&file, text)?;
    println!("each round: {}", file.display());
    Ok(())
}

fn arguments() -> Result<Arguments, Error> {
    let (subjects, failures) = (SUBJECTS.to_vec(), Failure::ALL.to_vec());
    let mut arguments = Arguments { rounds: 10, subjects, failures };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {} // cargo's own
            "--quick" => arguments.rounds = 2,
            "--rounds" => {
                let number = words.next().and_then(|text| text.parse().ok()).filter(|n| *n > 0);
                arguments.rounds = number.ok_or("--rounds takes a number")?;
            }
            "--subject" => {
                let names = words.next().unwrap_or_default();
                let find = |name: &str| SUBJECTS.into_iter().find(|one| one.name == name);
                let all: Vec<&str> = SUBJECTS.iter().map(|one| one.name).collect();
                let chosen = names.split(',').map(|name| find(name).ok_or(name));
                let chosen: Result<Vec<_>, _> = chosen.collect();
                arguments.subjects = chosen
                    .map_err(|name| format!("no subject {name:?}; there are {}", all.join(", ")))?;
            }
            "--failure" => {
                let name = words.next().unwrap_or_default();
                arguments.failures.retain(|failure| failure.name() == name);
                if arguments.failures.is_empty() {
                    return Err(format!("no failure {name:?}; there are carrier, grey").into());
                }
            }
            other => return Err(format!("unknown argument {other:?}").into()),
        }
    }
    Ok(arguments)
}

fn target() -> PathBuf {
    // Where cargo put the program: target/release/vipa.
    let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
    program.ancestors().nth(2).map_or_else(|| PathBuf::from("target"), Path::to_owned)
}

/// Where trixie's FRR is; or why it is missing. Before this process leaves the machine's network.
fn frr() -> Result<Result<PathBuf, String>, Error> {
    let root = target().join("frr-trixie");
    eprintln!("FRR 10.3: {}", root.display());
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/frr-trixie");
    let output = Command::new("timeout").arg("300").arg(tool).arg(&root).output()?;
    if output.status.success() {
        return Ok(Ok(root));
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(Err(why))
}

fn rounds(
    subject: &Subject,
    arguments: &Arguments,
    frr: Option<&Path>,
) -> Result<Vec<Round>, Error> {
    let (count, failures) = (arguments.rounds, arguments.failures.as_slice());
    if !subject.is_slow() {
        let one = |number| {
            let round = trial::round(subject, failures, frr)?;
            progress(subject, number, count, &round);
            Ok(round)
        };
        return (1..=count).map(one).collect();
    }
    let count = count.min(SLOW_ROUNDS);
    eprintln!("{}: {count} rounds at the same time, each of some four minutes", subject.name);
    thread::scope(|scope| {
        let started: Vec<_> =
            (0..count).map(|_| scope.spawn(|| trial::round(subject, failures, frr))).collect();
        let mut rounds = Vec::new();
        for (number, thread) in (1..).zip(started) {
            let round = thread.join().map_err(|_| "a round panicked")??;
            progress(subject, number, count, &round);
            rounds.push(round);
        }
        Ok(rounds)
    })
}

fn progress(subject: &Subject, number: usize, count: usize, round: &Round) {
    let outcomes = round.outcomes.iter().map(|outcome| {
        format!(
            "{} gap {:.0} lost {} back {} lost {}",
            outcome.failure.name(),
            outcome.missing.gap,
            outcome.missing.lost,
            milliseconds(outcome.back),
            outcome.on_recovery.lost
        )
    });
    let outcomes: Vec<String> = outcomes.collect();
    let start = milliseconds(round.start);
    eprintln!("{} {number}/{count}: start {start}; {}", subject.name, outcomes.join("; "));
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "never".to_owned(), |value| format!("{value:.0}"))
}

fn print(subject: &Subject, rounds: &[Round]) {
    let count = rounds.len();
    let late: u64 = rounds.iter().map(|round| round.late).sum();
    let mut failures: Vec<Failure> = Vec::new();
    failures.extend(rounds[0].outcomes.iter().map(|outcome| outcome.failure));
    for failure in failures {
        let all = || rounds.iter().flat_map(|round| &round.outcomes);
        let of = || all().filter(|outcome| outcome.failure == failure);
        let both = |value: fn(&Outcome) -> Option<f64>| spread(of().map(value).collect());
        let never = of().filter(|outcome| outcome.is_never).count();
        let lost = of().filter(|outcome| outcome.lost_connection.is_some()).count();
        println!(
            "{:<11} {count:>7} {:<7} {:>13} {:>11} {:>13} {:>13} {:>15} {lost:>4} {late:>4}{}",
            subject.name,
            failure.name(),
            both(|outcome| Some(outcome.missing.gap)),
            both(|outcome| Some(outcome.missing.lost as f64)),
            both(|outcome| Some(outcome.stall)),
            both(|outcome| Some(outcome.on_recovery.lost as f64)),
            both(|outcome| outcome.back),
            if never > 0 { format!("  never over: {never}") } else { String::new() },
        );
        for why in of().filter_map(|outcome| outcome.lost_connection.as_ref()) {
            eprintln!("{}: a TCP connection was lost: {why}", subject.name);
        }
        if let Some(most) = subject.hold_down() {
            let most = most.as_secs_f64() * 1e3 + 1000.0;
            let late = of().filter(|outcome| outcome.back.is_none_or(|back| back > most)).count();
            if late > 0 {
                println!("{:<11} {late} times later than the hold-down and 1 s", "");
            }
        }
    }
    let start = spread(rounds.iter().map(|round| round.start).collect());
    println!("{:<11} {count:>7} {:<7} {start:>13}", subject.name, "start");
}

/// Median / worst; what never happened is the worst.
fn spread(mut values: Vec<Option<f64>>) -> String {
    let key = |value: &Option<f64>| value.unwrap_or(f64::INFINITY);
    values.sort_by(|a, b| key(a).total_cmp(&key(b)));
    let [median, worst] = [values.len() / 2, values.len() - 1].map(|at| milliseconds(values[at]));
    format!("{median} / {worst}")
}
