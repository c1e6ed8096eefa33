//! What does a neighbour's table of ten thousand routes cost? `cargo bench --bench routes [-- --routes N]`, as root.
//!
//! BIRD on the router tells them by RIP: once all are new, then with each regular update; then all are withdrawn. What counts is how
//! long vipa's router took until the workers had them all, its longest turn, and whether any turn of a loop came late.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vipa::lab::topology::{Network, nic_name, vipas};
use vipa::lab::{self, Forwarder, Process};
use vipa::wire::ip::Family;

type Error = Box<dyn std::error::Error + Send + Sync>;

const READY: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(60);
/// BIRD's regular updates.
const UPDATE: u64 = 5;

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip_while(|arg| arg != "--routes").skip(1);
    let count = args.next().and_then(|text| text.parse().ok()).filter(|n| *n > 0).unwrap_or(10_000);
    lab::enter()?;
    let network = Network::new(2)?;
    let directory = Path::new("/run"); // ours alone after `enter`
    let config = directory.join("vipa.toml");
    fs::write(&config, config_of(&network))?;
    let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
    let mut forwarder = Forwarder::new(&network.host, program, &config, directory)?;
    forwarder.start_and_wait(READY)?;
    let mut bird = Bird::start(&network, directory)?;
    waits_for(&forwarder, "the router's own networks", |status| learned(status) > 0)?;
    thread::sleep(Duration::from_secs(UPDATE));
    let idle = forwarder.status()?;

    println!(
        "{:<22} {:>7} {:>10} {:>10} {:>14} {:>5}",
        "", "routes", "update ms", "turn ms", "in the kernel", "late"
    );
    let show = |what: &str, status: &Value, took: Option<Duration>| {
        let micros = |part: &str, key: &str| status[part][key].as_f64().unwrap_or_default() / 1e3;
        println!(
            "{what:<22} {:>7} {:>10.1} {:>10.1} {:>14} {:>5}",
            learned(status),
            micros("rip", "longest_update_us"),
            micros("router", "longest_turn_us"),
            took.map_or_else(String::new, |took| format!("{:.2} s", took.as_secs_f64())),
            late(status) - late(&idle),
        );
    };
    show("before", &idle, None);
    bird.tells(count)?;
    let status = waits_for(&forwarder, "all routes", |status| learned(status) >= count)?;
    show("all new", &status, None);
    let began = Instant::now();
    while in_kernel(&network)? < 2 * count {
        if began.elapsed() > PATIENCE {
            return Err(format!("{} routes in the kernel's table", in_kernel(&network)?).into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    show("in the kernel's table", &forwarder.status()?, Some(began.elapsed()));
    thread::sleep(Duration::from_secs(4 * UPDATE));
    show("four regular updates", &forwarder.status()?, None);
    network.host.link_down(&nic_name(1))?;
    thread::sleep(Duration::from_secs(4));
    network.host.link_up(&nic_name(1))?;
    thread::sleep(Duration::from_secs(2 * UPDATE));
    show("a NIC down and up", &forwarder.status()?, None);
    bird.tells(0)?;
    waits_for(&forwarder, "none", |status| learned(status) < 10)?;
    let began = Instant::now();
    while in_kernel(&network)? > count && began.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(50));
    }
    show("all withdrawn", &forwarder.status()?, Some(began.elapsed()));
    forwarder.kill();
    Ok(())
}

fn config_of(network: &Network) -> String {
    let mut text = format!(
        "[virtual]\nname = \"vipa0\"\naddresses = [\"{}\"]\n[rip]\nversions = [2]\n\
         update = \"5s\"\ntimeout = \"30s\"\n",
        vipas(Family::V4)[0]
    );
    for nic in network.nics() {
        let _ = write!(text, "[[nic]]\nname = \"{}\"\nhold-down = \"1s\"\n", nic_name(nic));
    }
    text
}

fn learned(status: &Value) -> u64 {
    status["rip"]["learned"].as_u64().unwrap_or_default()
}

fn late(status: &Value) -> u64 {
    let of = |part: &str| status[part]["late"].as_u64().unwrap_or_default();
    of("router") + of("paths")
}

/// Of vipa's table.
fn in_kernel(network: &Network) -> Result<u64, Error> {
    let mut command = network.host.command("ip");
    let output = command.args(["-4", "route", "show", "table", "923"]).output()?;
    let lines = output.stdout.split(|byte| *byte == b'\n');
    // A next hop of several stands on a line of its own.
    Ok(lines.filter(|line| line.first().is_some_and(|byte| !byte.is_ascii_whitespace())).count()
        as u64)
}

fn waits_for(
    forwarder: &Forwarder,
    what: &str,
    is_so: impl Fn(&Value) -> bool,
) -> Result<Value, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = forwarder.status()?;
        if is_so(&status) {
            return Ok(status);
        }
        if Instant::now() > deadline {
            return Err(format!("not within {PATIENCE:?}: {what}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// On the router.
struct Bird {
    network: vipa::lab::Namespace,
    config: String,
    socket: String,
    _process: Process,
}

impl Bird {
    fn start(network: &Network, directory: &Path) -> Result<Bird, Error> {
        for vipa in vipas(Family::V4) {
            network.router.delete_route(&format!("{vipa}/32"))?;
        }
        let path = |name: &str| directory.join(name).display().to_string();
        let (config, socket) = (path("bird.conf"), path("bird.ctl"));
        fs::write(&config, text(0))?;
        let mut command = network.router.command("bird");
        command.args(["-f", "-c", &config, "-s", &socket]);
        let process = Process::start(&mut command, &directory.join("bird.log"))?;
        let namespace = network.router.clone();
        let bird = Bird { network: namespace, config, socket, _process: process };
        let deadline = Instant::now() + READY;
        while !Path::new(&bird.socket).exists() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(bird)
    }

    /// From now on of so many routes.
    fn tells(&mut self, count: u64) -> Result<(), Error> {
        fs::write(&self.config, text(count))?;
        let mut command: Command = self.network.command("birdc");
        let output = command.args(["-s", &self.socket, "configure"]).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.contains("Reconfig") { Ok(()) } else { Err(said.into()) }
    }
}

fn text(count: u64) -> String {
    let mut text = format!(
        "router id 10.9.0.1;\nprotocol device {{ scan time 1; }}\nprotocol direct {{ ipv4; }}\n\
         protocol kernel {{ ipv4 {{ export where source = RTS_RIP; }}; merge paths yes; }}\n\
         protocol rip {{ ipv4 {{ import all; export all; }}; ecmp yes; \
         interface \"r*\" {{ update time {UPDATE}; timeout time 30; garbage time 20; \
         check link yes; }}; }}\nprotocol static {{ ipv4;\n"
    );
    for number in 0..count {
        // 100.64.0.0/10, and what follows it
        let network = (100 << 24) + (64 << 16) + number * 256;
        let address = std::net::Ipv4Addr::from(network as u32);
        let _ = writeln!(text, "route {address}/24 blackhole;");
    }
    text.push_str("}\n");
    text
}
