//! How fast is it, next to what one would otherwise run, on the same machine in the same minutes?
//! `cargo bench --bench throughput [-- --quick] [--rounds N] [--seconds S] [--scene egress|balance] [--subject A,B] [--work ID,ID]`, as root.
//!
//! Two scenes (`place.rs`): *egress*, a host with two NICs and its VIPA; *balance*, a director between a client and servers. Who is
//! measured is in `subject.rs`, at what in `work.rs`. Subjects take turns, round by round, so that all share the noise of the machine;
//! each turn has new namespaces. What counts is the ratio of the medians to the first subject. Before each turn's figures some data go
//! through with checksums that the kernel verifies, since veth forgives wrong ones. In each round client and server are measured on one
//! cable as well: what no subject can exceed. A program that only copies frames (`plain.rs`) is the yardstick for those in user space.
//!
//! Tables go to stdout, progress to stderr, and all of it to `target/bench/throughput.{json,html,svg}`. `--shortest` is for tests: one
//! round of moments, nothing about speed; it looks at what it has written (in `target/bench/shortest`).

mod answer;
mod bulk;
mod flood;
mod latency;
mod machine;
mod place;
mod plain;
mod raw;
#[allow(dead_code, unused_imports)] // Its tests are run by tests/throughput.rs.
mod report;
mod short;
mod subject;
mod work;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vipa::lab;
use vipa::wire::ip::Family;

use crate::answer::Answerers;
use crate::place::Place;
use crate::report::{Cell, Report, Row, Told};
use crate::subject::Subject;
use crate::work::{Length, Span, Work};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scene {
    Egress,
    Balance,
}

impl Scene {
    const ALL: [Scene; 2] = [Scene::Egress, Scene::Balance];

    fn name(self) -> &'static str {
        match self {
            Scene::Egress => "egress",
            Scene::Balance => "balance",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Scene::Egress => "host with the VIPA ═ two NICs ═ router ─ client",
            Scene::Balance => "client ─ director ─ servers",
        }
    }
}

struct Arguments {
    rounds: usize,
    span: Span,
    scenes: Vec<Scene>,
    subjects: Vec<String>,
    works: Vec<String>,
    is_shortest: bool,
}

/// What was found, by scene, subject and id of the figure.
#[derive(Default)]
struct Found {
    values: BTreeMap<(Scene, &'static str, String), Cell>,
    ceilings: BTreeMap<String, Vec<f64>>,
    /// What went wrong; a subject that is not installed is none of it.
    failures: Vec<String>,
}

fn main() -> Result<(), Error> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [first, rest @ ..] = &words[..]
        && first == "--plain"
    {
        return plain::run(rest);
    }
    let arguments = arguments()?;
    lab::enter()?;
    let began = Instant::now();
    let mut found = Found::default();
    for round in 1..=arguments.rounds {
        if arguments.scenes.contains(&Scene::Balance) {
            eprint!(
                "{:>4.0} s  round {round}/{}  ",
                began.elapsed().as_secs_f64(),
                arguments.rounds
            );
            ceilings(&arguments, &mut found);
        }
        let baseline = machine::baseline(arguments.span.measured.min(Duration::from_millis(500)))?;
        for scene in &arguments.scenes {
            for subject in chosen(*scene, &arguments) {
                eprint!(
                    "{:>4.0} s  round {round}/{}  {} {:<18}",
                    began.elapsed().as_secs_f64(),
                    arguments.rounds,
                    scene.name(),
                    subject.name()
                );
                turn(*scene, subject, &arguments, baseline, &mut found);
                eprintln!();
            }
        }
    }
    let report = told(&arguments, &found);
    print!("{}", report::table(&report));
    write(&report, arguments.is_shortest)?;
    for failure in &found.failures {
        eprintln!("failed: {failure}");
    }
    if found.failures.is_empty() { Ok(()) } else { Err("not everything could be measured".into()) }
}

fn arguments() -> Result<Arguments, Error> {
    let seconds = |seconds: u32| Span {
        warm_up: Duration::from_millis(300),
        measured: Duration::from_secs(seconds.into()),
        bulk: Length::Seconds(seconds),
    };
    let mut arguments = Arguments {
        rounds: 5,
        span: seconds(1),
        scenes: Scene::ALL.to_vec(),
        subjects: Vec::new(),
        works: Vec::new(),
        is_shortest: false,
    };
    let list = |text: Option<String>| -> Vec<String> {
        text.unwrap_or_default().split(',').map(str::to_owned).collect()
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--bench" => {} // cargo's own
            "--quick" => {
                arguments.rounds = 1;
                arguments.span.measured = Duration::from_millis(600);
            }
            "--shortest" => {
                arguments.is_shortest = true;
                arguments.rounds = 1;
                arguments.span = Span {
                    warm_up: Duration::from_millis(50),
                    measured: Duration::from_millis(150),
                    bulk: Length::Megabytes(8),
                };
            }
            "--rounds" | "--seconds" => {
                let number = words.next().and_then(|text| text.parse().ok()).filter(|n| *n > 0);
                let number: u32 = number.ok_or_else(|| format!("{word} takes a number"))?;
                match word.as_str() {
                    "--rounds" => arguments.rounds = number as usize,
                    _ => arguments.span = seconds(number),
                }
            }
            "--scene" => {
                let name = words.next().unwrap_or_default();
                arguments.scenes.retain(|scene| scene.name() == name);
                if arguments.scenes.is_empty() {
                    return Err(format!("no scene {name:?}; there are egress, balance").into());
                }
            }
            "--subject" => {
                arguments.subjects = list(words.next());
                let all = || Scene::ALL.into_iter().flat_map(Subject::of).map(Subject::name);
                if let Some(name) = arguments.subjects.iter().find(|name| all().all(|n| n != *name))
                {
                    let all: Vec<&str> = all().collect();
                    return Err(format!("no subject {name:?}; there are {}", all.join(", ")).into());
                }
            }
            "--work" => arguments.works = list(words.next()),
            other => return Err(format!("unknown argument {other:?}").into()),
        }
    }
    for scene in &arguments.scenes {
        if chosen(*scene, &arguments).is_empty() || works(*scene, &arguments).is_empty() {
            return Err(format!("nothing is left to measure in {}", scene.name()).into());
        }
    }
    Ok(arguments)
}

fn chosen(scene: Scene, arguments: &Arguments) -> Vec<Subject> {
    let is_chosen = |subject: &Subject| {
        arguments.subjects.is_empty()
            || arguments.subjects.iter().any(|name| name == subject.name())
    };
    Subject::of(scene).into_iter().filter(is_chosen).collect()
}

fn works(scene: Scene, arguments: &Arguments) -> Vec<Work> {
    let is_chosen = |work: &Work| {
        let figures = work.figures(scene);
        arguments.works.is_empty()
            || figures
                .iter()
                .any(|figure| arguments.works.iter().any(|id| figure.id.starts_with(id)))
    };
    Work::of(scene).into_iter().filter(is_chosen).collect()
}

/// Client and server on one cable, once.
fn ceilings(arguments: &Arguments, found: &mut Found) {
    eprint!("no director");
    let mut measured = || -> Result<(), Error> {
        let baseline = machine::baseline(Duration::from_millis(200))?;
        let place = Place::bare()?;
        let _answerers = Answerers::start(&place)?;
        bulk::wait_for(&place, Family::V4)?;
        for work in works(Scene::Balance, arguments) {
            let values = work.measure(&place, &arguments.span, baseline)?;
            for (figure, value) in work.figures(Scene::Balance).into_iter().zip(values) {
                eprint!(" {} {}", figure.id, report::number(value));
                found.ceilings.entry(figure.id).or_default().push(value);
            }
        }
        Ok(())
    };
    if let Err(why) = measured() {
        found.failures.push(format!("no director: {why}"));
    }
    eprintln!();
}

/// All of a subject's figures once.
fn turn(scene: Scene, subject: Subject, arguments: &Arguments, baseline: f64, found: &mut Found) {
    let works = works(scene, arguments);
    if let Some(why) = subject.missing() {
        eprint!(" missing: {why}");
        works.iter().for_each(|work| found.lacks(scene, subject, *work, &why));
        return;
    }
    let mut done = 0;
    let mut all = || -> Result<(), Error> {
        let place = match scene {
            Scene::Egress => Place::egress()?,
            Scene::Balance => Place::balance(subject.shape())?,
        };
        let answerers = Answerers::start(&place)?;
        place.offload(false)?;
        let running = subject.start(&place)?;
        let said = |why: Error| -> Error {
            format!("{why}\nit said last: {}", running.last_words()).into()
        };
        for family in Family::BOTH {
            bulk::wait_for(&place, family).map_err(said)?;
            bulk::verify(&place, family).map_err(said)?;
        }
        place.offload(!subject.is_without_offloads())?;
        for work in &works {
            if let Some(why) = work.impossible(subject) {
                found.lacks(scene, subject, *work, why);
            } else {
                let values = work.measure(&place, &arguments.span, baseline).map_err(|why| {
                    format!("{work:?}: {why}\nit said last: {}", running.last_words())
                })?;
                for (figure, value) in work.figures(scene).into_iter().zip(values) {
                    eprint!(" {} {}", figure.id, report::number(value));
                    found.add(scene, subject, figure.id, value);
                }
            }
            done += 1;
        }
        for namespace in place.servers.iter().chain([&place.client]) {
            let wrong = bulk::wrong_checksums(namespace)?;
            if wrong > 0 {
                return Err(format!("{wrong} wrong checksums at {}", namespace.name()).into());
            }
        }
        drop(answerers);
        Ok(())
    };
    if let Err(why) = all() {
        let why = why.to_string();
        eprint!(" failed: {why}");
        found.failures.push(format!("{}, {}: {why}", scene.name(), subject.name()));
        works[done..].iter().for_each(|work| found.lacks(scene, subject, *work, &why));
    }
}

impl Found {
    fn add(&mut self, scene: Scene, subject: Subject, id: String, value: f64) {
        let cell = self.values.entry((scene, subject.name(), id));
        match cell.or_insert_with(|| Cell::Values(Vec::new())) {
            Cell::Values(values) => values.push(value),
            // It failed before: one round more does not mend that.
            Cell::Missing(_) => {}
        }
    }

    fn lacks(&mut self, scene: Scene, subject: Subject, work: Work, why: &str) {
        for figure in work.figures(scene) {
            let key = (scene, subject.name(), figure.id);
            self.values
                .insert(key, Cell::Missing(why.lines().next().unwrap_or_default().to_owned()));
        }
    }
}

fn told(arguments: &Arguments, found: &Found) -> Report {
    let scenes = arguments.scenes.iter().map(|scene| {
        let subjects = chosen(*scene, arguments);
        let row = |figure: work::Figure| {
            let cells = subjects.iter().map(|subject| {
                let key = (*scene, subject.name(), figure.id.clone());
                let none = || Cell::Missing("not measured".to_owned());
                found.values.get(&key).cloned().unwrap_or_else(none)
            });
            Row {
                cells: cells.collect(),
                ceiling: found
                    .ceilings
                    .get(&figure.id)
                    .filter(|_| *scene == Scene::Balance)
                    .and_then(|values| report::median(values)),
                id: figure.id,
                panel: figure.panel,
                name: figure.name.to_owned(),
                unit: figure.unit.to_owned(),
                shown: figure.shown,
                is_more_better: figure.is_more_better,
            }
        };
        let figures = works(*scene, arguments).into_iter().flat_map(|work| work.figures(*scene));
        report::Scene {
            name: scene.name().to_owned(),
            path: scene.path().to_owned(),
            rows: figures.map(row).collect(),
            subjects: subjects
                .iter()
                .map(|subject| Told { name: subject.name().to_owned(), what: subject.what() })
                .collect(),
        }
    });
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words = if words.is_empty() { String::new() } else { format!(" -- {}", words.join(" ")) };
    Report {
        date: date(),
        command: format!("cargo bench --bench throughput{words}"),
        machine: machine::kind(),
        rounds: arguments.rounds,
        notes: NOTES.map(str::to_owned).to_vec(),
        scenes: scenes.collect(),
    }
}

const NOTES: [&str; 7] = [
    "Client, director and servers are network namespaces of one machine and share its processors: absolute figures say little, ratios say something. \
     Subjects take turns, round by round; the ratio is that of the medians to the first subject.",
    "\"No director\" is client and server on one cable: what generator and sink can do by themselves. A figure near it is theirs, not the subject's.",
    "\"Plain copy\" reads frames and sends them, and does nothing else: a yardstick for programs with a TUN and packet sockets, no bound. \
     In balance it is a wire, as testpmd is, so that the kernel has no second look at what it hears.",
    "The UDP generator is one thread on one processor. On veth the kernel's own path runs on the processor of whoever sends, so with nftables the generator forwards \
     as well: it is the limit there and hardly anything is lost. All others forward on another processor and lose what they cannot carry. \
     The CPU time of the whole machine for a delivered frame, generator and sink among it, is where they can be compared.",
    "Before each turn a transfer is verified byte by byte, and checksums by the receiving kernel, with offloads off; of the UDP datagrams one in 256 is verified.",
    "New connections: one thread keeps 64 of them going, from ever other ports; each asks 8 bytes, is answered, and is closed by the client; spread over two servers \
     (testpmd: one). Round trips: 64 bytes over one TCP connection, 4,000 a second at fixed times; an answer that is late delays no measurement, it counts.",
    "testpmd polls: its processor is busy whether there is anything to do or not. It and its neighbours work without segmentation offload, so its TCP figures are those of packets of 1,500 bytes.",
];

fn date() -> String {
    let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
    output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn write(report: &Report, is_shortest: bool) -> Result<(), Error> {
    // Where cargo put the program: target/release/vipa.
    let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
    let target = program.ancestors().nth(2).map_or_else(|| PathBuf::from("target"), Path::to_owned);
    let place = target.join(if is_shortest { "bench/shortest" } else { "bench" });
    fs::create_dir_all(&place)?;
    let at = |extension: &str| place.join(format!("throughput.{extension}"));
    fs::write(at("json"), serde_json::to_string_pretty(&report::json(report))?)?;
    fs::write(at("html"), report::html(report))?;
    fs::write(at("svg"), report::svg(report))?;
    println!("{}", at("html").display());
    if is_shortest {
        let wrong = report::check(&serde_json::from_slice(&fs::read(at("json"))?)?);
        if !wrong.is_empty() {
            return Err(format!("the report is not whole: {}", wrong.join("; ")).into());
        }
    }
    Ok(())
}
