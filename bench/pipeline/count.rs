//! Instructions and last-level misses of a packet, by valgrind's cachegrind over this same program: two runs that differ in nothing but
//! that one processes the packets that both write. Repeatable to a few instructions, whatever else the machine does.

use std::env;
use std::process::Command;

use serde_json::{Value, json};
use vipa::wire::ip::Family;

use crate::host::{BATCH, Host, Kind, Setup};

/// The last level of a machine of today: 8 MB, 16 ways, lines of 64 bytes.
const LAST_LEVEL: &str = "8388608,16,64";
/// So many that it does not matter what opening the flows took, which differs from run to run with the secrets of hash tables.
const PACKETS: u32 = 64 * 100_000;

/// Flows and packets of the gate: instructions hardly depend on either.
const GATE: (u32, u32) = (1_000, 64 * 200);
/// Instructions that a packet may take, IPv4 and IPv6: some five in a hundred above what it took when they were last set.
const MOST: [(Kind, [f64; 2]); 6] = [
    (Kind::Service, [258.0, 340.0]),
    (Kind::Answers, [260.0, 341.0]),
    (Kind::Turns, [332.0, 414.0]),
    (Kind::Egress, [179.0, 245.0]),
    (Kind::Rewritten, [232.0, 311.0]),
    (Kind::Ingress, [204.0, 284.0]),
];

/// What a packet takes.
struct Cost {
    instructions: f64,
    misses: f64,
}

/// Of each kind with so many open flows.
pub(crate) fn table(flows: u32) -> Value {
    println!(
        "{:<12} {:<3} {:>11} {:>13} {:>16}",
        "", "", "open flows", "instructions", "last-level misses"
    );
    let mut rows = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Large) {
        for family in Family::BOTH {
            let Cost { instructions, misses } = cost(kind, family, flows);
            let name = kind.name();
            println!("{name:<12} {family:<3?} {flows:>11} {instructions:>13.1} {misses:>16.2}");
            rows.push(json!({
                "kind": name, "family": format!("{family:?}"), "flows": flows,
                "instructions": instructions, "last_level_misses": misses,
            }));
        }
    }
    rows.into()
}

/// Fails if a packet of any kind takes more instructions than [`MOST`].
pub(crate) fn gate() {
    let count = |kind, at: usize| {
        move || {
            let family = Family::BOTH[at];
            let [written, processed] =
                ["write", "process"].map(|what| run(what, (kind, family), GATE, false)[0]);
            (processed as f64 - written as f64) / f64::from(GATE.1)
        }
    };
    let mut is_more = false;
    for (kind, most) in MOST {
        let counted = std::thread::scope(|scope| {
            let runs = [0, 1].map(|at| scope.spawn(count(kind, at)));
            runs.map(|run| run.join().expect("it counts"))
        });
        for ((family, counted), most) in Family::BOTH.into_iter().zip(counted).zip(most) {
            println!("{:<12} {family:<3?} {counted:>7.1} of {most:.0}", kind.name());
            is_more |= counted > most;
        }
    }
    assert!(!is_more, "a packet takes more instructions than it may (MOST in {})", file!());
}

fn cost(kind: Kind, family: Family, flows: u32) -> Cost {
    let [written, processed] =
        ["write", "process"].map(|what| run(what, (kind, family), (flows, PACKETS), true));
    let each = |of: fn(&[u64; 2]) -> u64| {
        (of(&processed) as f64 - of(&written) as f64) / f64::from(PACKETS)
    };
    Cost { instructions: each(|one| one[0]), misses: each(|one| one[1]) }
}

/// Instructions and last-level misses, if those are wanted, of a whole run of this program.
fn run(
    what: &str,
    (kind, family): (Kind, Family),
    (flows, packets): (u32, u32),
    with_cache: bool,
) -> [u64; 2] {
    let program = env::current_exe().expect("this program has a file");
    let name = format!("vipa-cachegrind-{}-{what}-{}-{family:?}", std::process::id(), kind.name());
    let file = env::temp_dir().join(name);
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=cachegrind", &format!("--cachegrind-out-file={}", file.display())]);
    if with_cache {
        valgrind.args(["--cache-sim=yes", &format!("--LL={LAST_LEVEL}")]);
    } else {
        valgrind.arg("--cache-sim=no");
    }
    let output = valgrind
        .arg(program)
        .args(["--count", what, kind.name(), &format!("{family:?}")])
        .args([flows.to_string(), packets.to_string()])
        .output()
        .expect("valgrind is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = std::fs::read_to_string(&file).expect("cachegrind writes its file");
    let _ = std::fs::remove_file(&file);
    // events: Ir I1mr ILmr Dr D1mr DLmr Dw D1mw DLmw
    let events: Vec<&str> = words(&text, "events:");
    let totals: Vec<u64> = words(&text, "summary:").iter().filter_map(|n| n.parse().ok()).collect();
    let total = |name| events.iter().position(|event| *event == name).map_or(0, |at| totals[at]);
    [total("Ir"), total("ILmr") + total("DLmr") + total("DLmw")]
}

fn words<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_default().split_whitespace().collect()
}

/// What valgrind counts: `write|process KIND FAMILY FLOWS PACKETS`.
pub(crate) fn counted(arguments: &[String]) {
    let [what, kind, family, flows, packets] = arguments else {
        panic!("five arguments: {arguments:?}")
    };
    let kind = Kind::ALL.into_iter().find(|one| one.name() == kind).expect("a kind");
    let family = Family::BOTH.into_iter().find(|one| format!("{one:?}") == *family);
    let flows = flows.parse().expect("a number of flows");
    let mut host = Host::full(Setup::of(kind, family.expect("a family"), flows));
    let packets: u32 = packets.parse().expect("a number of packets");
    for _ in 0..packets / BATCH as u32 {
        host.fill_established(flows);
        if what == "process" {
            host.run(BATCH);
        }
    }
}
