//! `vipa demo`: real connections to one address live through all that happens to the NICs, to a path behind
//! one, and to the forwarder itself. The router knows the VIPAs by RIP alone. On a private network of this
//! machine; about 33 seconds.

mod balance;
mod comeback;
mod display;
mod report;
mod script;
mod stage;
mod windows;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

pub use balance::{balance, serve};

use super::process::Forwarder;
use super::topology::{Network, vipas};
use super::traffic::{REWRITTEN_PORT, Traffic};
use super::{Error, RipRouter, enter};
use crate::wire::ip::{Family, Prefix};
use display::Display;
use stage::Stage;

const START_LIMIT: Duration = Duration::from_secs(8);
const DRAIN_LIMIT: Duration = Duration::from_secs(4);

/// Runs the demo and prints what it found, as a table or as one JSON object. `Ok(true)`: no connection was
/// lost, no byte corrupted, every byte arrived, and UDP came back after each event.
///
/// # Errors
/// When the system does not let us have a private network, or the forwarder does not start.
pub fn demo(json: bool) -> Result<bool, Error> {
    let display = Display::new(json);
    enter()?;
    let network = Network::new(3)?;
    display.line(format_args!(
        "client - router - eth1, eth2, eth3 of the host, whose VIPAs 203.0.113.10, .11 and \
         2001:db8:ffff::10, ::11 belong to none of them"
    ));
    network.forget_vipas()?;
    let router = RipRouter::start(&network.router, &network.ports())?;
    let forwarder = carry(&network)?;
    wait_for_routes(&network, &router)?;
    display.line(format_args!("by RIP the router knows the VIPAs behind all three"));
    let mut traffic = Traffic::start(&network, true)?;
    let mut stage = Stage::new(display, &network, &traffic, forwarder)?;
    stage.calibrate()?;
    stage.play()?;
    let played = stage.finish();
    let outcome = traffic.finish(DRAIN_LIMIT);
    let report = played.report(&traffic, outcome);
    if json {
        let text = serde_json::to_string(&report).map_err(|e| Error::Program(e.to_string()))?;
        println!("{text}");
        report.complaints.iter().for_each(|complaint| eprintln!("not ok: {complaint}"));
    } else {
        display.line(format_args!("\n{report}"));
    }
    report.last_words.lines().for_each(|line| eprintln!("forwarder: {line}"));
    Ok(report.ok)
}

/// The forwarder on the host, ready.
fn carry(network: &Network) -> Result<Forwarder, Error> {
    let directory = Path::new("/run"); // ours alone, see `enter`
    let config = directory.join("vipa-demo.toml");
    network.write_config(&config, REWRITTEN_PORT, "[rip]")?;
    let mut forwarder = Forwarder::new(&network.host, &own_program()?, &config, directory)?;
    forwarder.start_and_wait(START_LIMIT)?;
    Ok(forwarder)
}

fn own_program() -> Result<PathBuf, Error> {
    Path::new("/proc/self/exe")
        .read_link()
        .map_err(|e| Error::Program(format!("this program's own file: {e}")))
}

/// Until the router knows every VIPA behind every NIC.
fn wait_for_routes(network: &Network, router: &RipRouter) -> Result<(), Error> {
    let deadline = Instant::now() + START_LIMIT;
    for vipa in Family::BOTH.into_iter().flat_map(vipas) {
        while router.ways(Prefix::host(vipa)).len() < network.ports().len() {
            if Instant::now() >= deadline {
                let what = format!("the router did not hear of {vipa} within {START_LIMIT:?}");
                return Err(Error::Program(what));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}
