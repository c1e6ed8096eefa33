//! Instructions and last-level misses of a packet, by valgrind's cachegrind over this same program: two runs that differ in nothing but
//! that one processes the packets that both write. Repeatable to a few instructions, whatever else the machine does.

use std::env;
use std::process::Command;

use serde_json::{Value, json};
use vipa::wire::ip::Family;

use crate::host::{BATCH, Host, Kind, Setup};

/// The last level of a machine of today: 8 MB, 16 ways, lines of 64 bytes.
const LAST_LEVEL: &str = "8388608,16,64";
const PACKETS: u32 = 64 * 2_000;

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

fn cost(kind: Kind, family: Family, flows: u32) -> Cost {
    let [written, processed] = ["write", "process"].map(|what| run(what, kind, family, flows));
    let each = |of: fn(&[u64; 2]) -> u64| {
        (of(&processed) as f64 - of(&written) as f64) / f64::from(PACKETS)
    };
    Cost { instructions: each(|one| one[0]), misses: each(|one| one[1]) }
}

/// Instructions and last-level misses of a whole run of this program.
fn run(what: &str, kind: Kind, family: Family, flows: u32) -> [u64; 2] {
    let program = env::current_exe().expect("this program has a file");
    let file = env::temp_dir().join(format!("vipa-cachegrind-{}", std::process::id()));
    let output = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=yes", &format!("--LL={LAST_LEVEL}")])
        .arg(format!("--cachegrind-out-file={}", file.display()))
        .arg(program)
        .args(["--count", what, kind.name(), &format!("{family:?}"), &flows.to_string()])
        .output()
        .expect("valgrind is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = std::fs::read_to_string(&file).expect("cachegrind writes its file");
    let _ = std::fs::remove_file(&file);
    // events: Ir I1mr ILmr Dr D1mr DLmr Dw D1mw DLmw
    let events: Vec<&str> = words(&text, "events:");
    let totals: Vec<u64> = words(&text, "summary:").iter().filter_map(|n| n.parse().ok()).collect();
    let total = |name| {
        let at = events.iter().position(|event| *event == name).expect("it counts that");
        totals[at]
    };
    [total("Ir"), total("ILmr") + total("DLmr") + total("DLmw")]
}

fn words<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_default().split_whitespace().collect()
}

/// What valgrind counts: `write|process KIND FAMILY FLOWS`.
pub(crate) fn counted(arguments: &[String]) {
    let [what, kind, family, flows] = arguments else { panic!("four arguments: {arguments:?}") };
    let kind = Kind::ALL.into_iter().find(|one| one.name() == kind).expect("a kind");
    let family = Family::BOTH.into_iter().find(|one| format!("{one:?}") == *family);
    let flows = flows.parse().expect("a number of flows");
    let mut host = Host::full(Setup::of(kind, family.expect("a family"), flows));
    for _ in 0..PACKETS / BATCH as u32 {
        host.fill_established(flows);
        if what == "process" {
            host.run(BATCH);
        }
    }
}
