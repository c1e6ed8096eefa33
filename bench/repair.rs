//! How soon is back what others remove? `cargo bench --bench repair [-- --rounds N]`, as root.
//!
//! A forwarder with a rule that it applies, in namespaces of its own. In each round each thing is removed by the
//! program that an operator would use, and asked for until it is as before; what a question itself takes is in
//! the figure.

use std::path::Path;
use std::time::{Duration, Instant};

use vipa::lab::topology::Network;
use vipa::lab::{self, Forwarder, Namespace};

const READY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(5);

/// What is removed, and what shows it.
const REMOVALS: [(&str, &str); 6] = [
    ("nft flush ruleset", "nft -s list ruleset"),
    ("ip rule del pref 9233", "ip rule show"),
    ("ip -6 rule del pref 9234", "ip -6 rule show"),
    ("ip addr del 203.0.113.11/32 dev vipa0", "ip -br addr show dev vipa0"),
    ("ip route flush table 923", "ip route show table 923"),
    ("ip -6 route flush table 923", "ip -6 route show table 923"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip_while(|arg| arg != "--rounds").skip(1);
    let rounds = args.next().and_then(|text| text.parse().ok()).filter(|n| *n > 0).unwrap_or(10);
    lab::enter()?;
    let network = Network::new(3)?;
    let directory = Path::new("/run"); // ours alone after `enter`
    let config = directory.join("vipa.toml");
    network.write_config(&config, 7001, "")?;
    // Protected tables cannot be flushed: here they are to be.
    let text = std::fs::read_to_string(&config)?;
    let text = text.replacen("name = \"vipa0\"", "name = \"vipa0\"\nprotect = false", 1);
    std::fs::write(&config, text)?;
    let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
    let mut forwarder = Forwarder::new(&network.host, program, &config, directory)?;
    forwarder.start_and_wait(READY)?;

    println!(
        "{:<40} {:>9} {:>9}   milliseconds, {rounds} rounds",
        "removed by", "median", "longest"
    );
    for (removal, question) in REMOVALS {
        let mut took = Vec::new();
        for _ in 0..rounds {
            let before = said(&network.host, question)?;
            said(&network.host, removal)?;
            let gone = Instant::now();
            while said(&network.host, question)? != before {
                if gone.elapsed() > PATIENCE {
                    return Err(format!("{removal}: not back within {PATIENCE:?}").into());
                }
            }
            took.push(gone.elapsed().as_secs_f64() * 1e3);
        }
        took.sort_by(f64::total_cmp);
        let longest = took.last().copied().unwrap_or_default();
        println!("{removal:<40} {:>9.1} {longest:>9.1}", took[took.len() / 2]);
    }
    forwarder.kill();
    Ok(())
}

/// The lines that a program says, in an order of its own.
fn said(host: &Namespace, command: &str) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let mut words = command.split(' ');
    let output = host.command(words.next().unwrap_or_default()).args(words).output()?;
    if !output.status.success() {
        return Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let mut lines: Vec<String> =
        String::from_utf8(output.stdout)?.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    Ok(lines)
}
