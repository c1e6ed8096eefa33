//! What a packet costs in the pipeline alone: `cargo bench --bench pipeline [-- --quick] [--only PART]`. With `--gate` the tests see to it
//! that a packet does not come to take more instructions.
//!
//! `process_batch` over packets in memory, no device and no kernel, in parts: `memory` of a million flows; `flows`, packets of open
//! flows in random order at growing numbers of flows, by kind; `new` flows and open ones among them; `updates`, open ones while the
//! preferred servers change a hundred times a second; `growth` with services, servers, routes and NICs; `workers`, two of them pinned
//! to processors of their own; `instructions` and last-level misses of a packet, by valgrind. Times have the writing of each packet into
//! its frame in them, instructions do not. Medians of several rounds; `target/bench/pipeline.json`.

#[path = "../common.rs"]
mod common;
mod count;
mod host;
mod updates;
mod workers;

use serde_json::{Map, Value, json};
use vipa::wire::ip::Family;

use crate::common::median;
use crate::host::{Host, Kind, Setup, resident};

/// What there is to measure, and how long.
struct Measure {
    is_quick: bool,
    rounds: usize,
    packets: u32,
}

/// A part's name and what it finds.
type Part = (&'static str, fn(&Measure) -> Value);

const PARTS: [Part; 7] = [
    ("memory", memory),
    ("flows", flows),
    ("new", new_flows),
    ("updates", |measure| updates::rate(measure.rounds, measure.packets)),
    ("growth", growth),
    ("workers", |measure| workers::scaling(measure.rounds, measure.packets)),
    ("instructions", |measure| count::table(if measure.is_quick { 10_000 } else { 1_000_000 })),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|word| word == "--count") {
        return count::counted(&arguments[at + 1..]);
    }
    if arguments.iter().any(|word| word == "--gate") {
        return count::gate();
    }
    let (mut is_quick, mut only) = (false, None);
    let mut rest = arguments.iter().map(String::as_str);
    while let Some(word) = rest.next() {
        match word {
            // Cargo says that.
            "--bench" => {}
            "--quick" => is_quick = true,
            "--only" => {
                let name = rest.next().unwrap_or_default();
                let names = PARTS.map(|(name, _)| name);
                assert!(names.contains(&name), "--only takes one of {names:?}");
                only = Some(name);
            }
            _ => panic!("{word}: only --quick and --only PART are known"),
        }
    }
    let (rounds, packets) = if is_quick { (3, 400_000) } else { (7, 2_000_000) };
    let measure = Measure { is_quick, rounds, packets };
    let mut told = Map::new();
    for (name, part) in PARTS.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        told.insert((*name).to_owned(), part(&measure));
    }
    let place = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&place).expect("target takes directories");
    let text = serde_json::to_string_pretty(&told).expect("numbers");
    std::fs::write(place.join("pipeline.json"), text).expect("target takes files");
}

fn memory(_: &Measure) -> Value {
    let of = |family| {
        let before = resident();
        let host = Host::full(Setup::of(Kind::Service, family, 1_000_000));
        let bytes = resident() - before;
        let flows = host.state.flows.served();
        println!("{family:?}: {flows} open flows in {:.1} MB", bytes as f64 / 1e6);
        json!({ "family": format!("{family:?}"), "flows": flows, "bytes": bytes })
    };
    Family::BOTH.map(of).to_vec().into()
}

/// Nanoseconds of an open flow's packet.
fn established(host: &mut Host, flows: u32, measure: &Measure) -> f64 {
    median((0..measure.rounds).map(|_| host.established(measure.packets, flows)).collect())
}

/// By kind, family and number of flows; those of one kind and family take turns, so that the ratio is of the same moments.
fn flows(measure: &Measure) -> Value {
    const COMPARED: u32 = 100_000;
    let mut rows = Vec::new();
    println!("{:<12} {:<3} {:>11} {:>8} {:>7} of 100,000's", "", "", "open flows", "ns", "M/s");
    let kinds = Kind::ALL.into_iter().flat_map(|kind| Family::BOTH.map(|family| (kind, family)));
    for (kind, family) in kinds {
        let is_wanted = |flows: &u32| match kind {
            // 64 KB of each handshake's packets take their time.
            Kind::Large => *flows <= COMPARED,
            Kind::Service => !measure.is_quick || *flows <= 1_000_000,
            _ => *flows <= 1_000_000,
        };
        let counts = [1_000, COMPARED, 1_000_000, 10_000_000].into_iter().filter(is_wanted);
        let mut hosts: Vec<_> =
            counts.map(|flows| (flows, Host::full(Setup::of(kind, family, flows)))).collect();
        let rounds: Vec<Vec<f64>> = (0..measure.rounds)
            .map(|_| {
                let one =
                    |(flows, host): &mut (u32, Host)| host.established(measure.packets, *flows);
                hosts.iter_mut().map(one).collect()
            })
            .collect();
        let compared = hosts.iter().position(|(flows, _)| *flows == COMPARED).unwrap_or(0);
        for (at, (flows, _)) in hosts.iter().enumerate() {
            let ns = median(rounds.iter().map(|round| round[at]).collect());
            let ratio = median(rounds.iter().map(|round| round[at] / round[compared]).collect());
            let name = kind.name();
            println!(
                "{name:<12} {family:<3?} {flows:>11} {ns:>8.0} {:>7.2} {ratio:>7.2}",
                1e3 / ns
            );
            rows.push(json!({
                "kind": name, "family": format!("{family:?}"), "flows": flows, "ns": ns,
                "ratio": ratio,
            }));
        }
    }
    rows.into()
}

/// How many flows can begin in a second, and what an open one's packet costs while so many do that are wanted, beside what it costs
/// while none does; the two take turns. Few open flows lie in the processor's nearest caches, from which new ones drive them.
fn new_flows(measure: &Measure) -> Value {
    let rows = [1_000, 100_000, 1_000_000].map(|open| among_new(measure, open));
    let mut next = 0;
    let mut host = Host::new(Setup::of(Kind::Service, Family::V4, 1_000_000));
    let new = (0..measure.rounds).map(|_| host.begin(measure.packets / 4, &mut next));
    let new = 1e9 / median(new.collect());
    println!("new flows: {:.0} thousand a second and nothing else", new / 1e3);
    json!({ "new_per_second": new, "among": rows })
}

fn among_new(measure: &Measure, open: u32) -> Value {
    const RATE: f64 = 500_000.0;
    let mut host = Host::new(Setup::of(Kind::Service, Family::V4, 2_000_000));
    host.open(open);
    let mut next = open;
    let mut one = |rate| host.among_new((measure.packets, rate), open, &mut next);
    one(RATE);
    let rounds: Vec<_> = (0..measure.rounds.max(5)).map(|_| (one(0.0).0, one(RATE))).collect();
    let alone = median(rounds.iter().map(|(alone, _)| *alone).collect());
    let among = median(rounds.iter().map(|(_, (among, _))| *among).collect());
    let rate = median(rounds.iter().map(|(_, (_, rate))| *rate).collect());
    let ratio = median(rounds.iter().map(|(alone, (among, _))| among / alone).collect());
    println!(
        "{open:>9} open ones: {alone:.0} ns a packet; {among:.0} ns, {ratio:.2} of that, while {:.0} thousand new ones come in a second",
        rate / 1e3
    );
    json!({
        "open": open, "ns_alone": alone, "ns_among_new": among, "new_per_second": rate, "ratio": ratio,
    })
}

/// What open and new flows cost as one dimension grows.
fn growth(measure: &Measure) -> Value {
    const OPEN: u32 = 10_000;
    let base = Setup::of(Kind::Service, Family::V4, 1_000_000);
    let mut setups = Vec::new();
    setups.extend(
        [1, 100, 10_000].map(|n| ("services", u32::from(n), Setup { services: n, ..base })),
    );
    setups.extend([4, 100, 1_000].map(|n| ("servers", u32::from(n), Setup { servers: n, ..base })));
    setups.extend([0, 10_000, 1_000_000].map(|n| ("routes", n, Setup { routes: n, ..base })));
    setups.extend([2, 8, 64].map(|n| ("nics", u32::from(n), Setup { nics: n, ..base })));
    println!("{:<9} {:>9} {:>9} {:>9}", "", "", "open ns", "new ns");
    let rows = setups.into_iter().map(|(what, n, setup)| {
        let mut host = Host::new(setup);
        host.open(OPEN);
        let open = established(&mut host, OPEN, measure);
        let mut next = OPEN;
        let rounds = (0..measure.rounds).map(|_| host.begin(measure.packets / 10, &mut next));
        let new = median(rounds.collect());
        println!("{what:<9} {n:>9} {open:>9.0} {new:>9.0}");
        json!({ "what": what, "n": n, "open_ns": open, "new_ns": new })
    });
    rows.collect::<Vec<_>>().into()
}
