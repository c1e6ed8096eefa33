//! `vipa demo --balance`: clients keep asking at a service's address; its three servers are loaded, killed, started again and drained,
//! and the policy changes meanwhile. On a private network of this machine; about 13 seconds.
//!
//! ```text
//!  client ── router ──┬── eth1
//!                     └──┬─ eth2   host: vipa run, 203.0.113.10:80
//!                        ├─ server a  10.1.2.11:8080
//!                        ├─ server b  10.1.2.12:8080
//!                        └─ server c  10.1.2.13:8080
//! ```
//!
//! No sender offloads checksums: the kernel of each receiver verifies what was rewritten.

mod clients;
mod farm;
mod report;
mod script;
mod server;
mod stage;

pub use server::serve;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use super::display::Display;
use super::own_program;
use crate::lab::process::{self, Forwarder};
use crate::lab::topology::{Network, nic_name, vipas};
use crate::lab::{Error, enter};
use crate::wire::ip::Family;
use farm::Farm;
use stage::Stage;

const START_LIMIT: Duration = Duration::from_secs(8);
const NICS: u8 = 2;
/// The NIC on whose link the servers are.
const SERVERS_BEHIND: u8 = 2;
const SERVICE: &str = "web";
const SERVICE_PORT: u16 = 80;
/// As the file has it: how many have a session is what the servers alone know.
const POLICY: &str = "sessions";
/// Period of the status objects.
const EVERY: Duration = Duration::from_millis(100);
/// As the operator wants it later.
const LATER_POLICY: &str = "fastest-response";

/// Runs the demo and prints what it found, as a table or as one JSON object. `Ok(true)`: no request failed but on the killed server,
/// and each thing that happened moved the new connections.
///
/// # Errors
/// When the system does not let us have a private network, or a program does not start.
pub fn balance(json: bool) -> Result<bool, Error> {
    let display = Display::new(json);
    enter()?;
    let network = Network::new(NICS)?;
    let farm = Farm::new(&network, own_program()?)?;
    network.tx_checksum(false)?;
    let forwarder = carry(&network, &farm)?;
    display.line(format_args!(
        "client - router - host - servers {}; clients ask at {}\n\
         preferred by `{POLICY}`, which each server tells of itself: {}\n",
        farm.names().join(", "),
        service_address(),
        farm.describe()
    ));
    let mut stage = Stage::new(display, &network, farm, forwarder);
    if let Err(error) = stage.play() {
        say_last(&stage.last_words());
        return Err(error);
    }
    let report = stage.finish()?;
    if json {
        let text = serde_json::to_string(&report).map_err(|e| Error::Program(e.to_string()))?;
        println!("{text}");
        report.complaints.iter().for_each(|complaint| eprintln!("not ok: {complaint}"));
    } else {
        display.line(format_args!("\n{report}"));
    }
    say_last(&report.last_words);
    Ok(report.ok)
}

fn say_last(words: &str) {
    words.lines().for_each(|line| eprintln!("forwarder: {line}"));
}

/// The forwarder on the host, ready.
fn carry(network: &Network, farm: &Farm) -> Result<Forwarder, Error> {
    let directory = Path::new("/run"); // ours alone, see `enter`
    let file = directory.join("vipa-demo.toml");
    process::write_file(&file, &config(network, farm))?;
    let mut forwarder = Forwarder::new(&network.host, &own_program()?, &file, directory)?;
    forwarder.start_and_wait(START_LIMIT)?;
    Ok(forwarder)
}

/// A VIPA is given to the service wholly: five hundred connections a second would use the same ports again while servers still remember
/// them (TIME_WAIT).
fn config(network: &Network, farm: &Farm) -> String {
    let [vipa, second] = vipas(Family::V4);
    let nic = |nic| format!("[[nic]]\nname = \"{}\"\ngateway = \"10.1.{nic}.1\"\n", nic_name(nic));
    let nics: String = network.nics().map(nic).collect();
    let address = service_address();
    let (every, servers) = (EVERY.as_millis(), farm.config());
    format!(
        r#"
[virtual]
name = "vipa0"
addresses = ["{vipa}", "{second}"]
{nics}
[[service]]
name = "{SERVICE}"
address = "{address}"
protocol = "tcp"
mode = "nat"
score = "{POLICY}"
hysteresis = "50%"
source = ["{second}"]

[[service.status]]
name = "sessions"
kind = "http-json"
url = "http://{{server}}/status"
select = "/sessions"
every = "{every}ms"
timeout = "1s"

[[service.status]]
name = "time"
role = "response-time"
kind = "http-json"
url = "http://{{server}}/status"
select = "/response_ms"
every = "{every}ms"
timeout = "1s"
{servers}"#
    )
}

fn service_address() -> SocketAddr {
    let [vipa, _] = vipas(Family::V4);
    SocketAddr::new(vipa, SERVICE_PORT)
}
