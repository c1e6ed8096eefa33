//! `vipa replay` over a generated capture: `cargo bench --bench replay`.
//!
//! A million packets of 64 to 128 bytes, in both directions of four thousand TCP flows, half of which are
//! rewritten; replies are those to rewritten flows, since the kernel takes all others. What is told: packets a
//! second over the whole run of the program, reading and writing included, and its largest resident memory, which
//! is to be the same for a capture of a tenth.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use etherparse::PacketBuilder;
use vipa::capture::{Link, Reader, Writer};
use vipa::config::Config;
use vipa::replay;
use vipa::wire::packet::Headers;

const CONFIG: &str = r#"
[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "203.0.113.11"]
[[nic]]
name = "eth1"
gateway = "10.1.1.1"
[[nic]]
name = "eth2"
gateway = "10.1.2.1"
[[nic]]
name = "eth3"
gateway = "10.1.3.1"
[[source.rule]]
protocol = "tcp"
port = 443
use = "203.0.113.11"
"#;
const PACKETS: u32 = 1_000_000;
const FLOWS: u32 = 4_000;
const INTERFACES: [(&str, Link); 4] = [
    ("vipa0", Link::Ip),
    ("eth1", Link::Ethernet),
    ("eth2", Link::Ethernet),
    ("eth3", Link::Ethernet),
];
/// Nanoseconds between two packets of the capture.
const GAP: u64 = 1_000;
const RUNS: usize = 5;

type End = ([u8; 4], u16);

fn main() {
    let place = std::env::temp_dir().join(format!("vipa-bench-replay-{}", std::process::id()));
    std::fs::create_dir_all(&place).expect("a directory");
    let config = place.join("vipa.toml");
    std::fs::write(&config, CONFIG).expect("the configuration");
    let flows = flows();
    for (packets, name) in [(PACKETS / 10, "tenth.pcapng"), (PACKETS, "whole.pcapng")] {
        let capture = place.join(name);
        std::fs::write(&capture, generate(&flows, packets)).expect("the capture");
        let mut runs: Vec<(f64, u64)> = (0..RUNS).map(|_| run(&config, &capture)).collect();
        runs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let memory = runs.iter().map(|run| run.1).max().unwrap_or(0);
        println!(
            "{packets} packets: median {:.0} a second ({:.0} to {:.0}), {memory} KiB resident at most",
            runs[RUNS / 2].0,
            runs[0].0,
            runs[RUNS - 1].0,
        );
    }
    std::fs::remove_dir_all(&place).expect("it was made above");
}

/// Runs the program; packets a second and its largest resident memory in KiB.
fn run(config: &Path, capture: &Path) -> (f64, u64) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vipa"))
        .arg("replay")
        .arg("--config")
        .arg(config)
        .arg(capture)
        .arg(capture.with_extension("out"))
        .arg("--json")
        .stdout(Stdio::piped())
        .spawn()
        .expect("vipa starts");
    let mut memory = 0;
    while child.try_wait().expect("it is a child").is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()));
        let status = status.unwrap_or_default();
        let highest = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let highest = highest.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        memory = memory.max(highest.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let report: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let all = report["packets"].as_f64().expect("a number");
    let through = report["transmitted"].as_f64().expect("a number")
        + report["delivered"].as_f64().expect("a number");
    assert_eq!(all, through, "every packet went through: {report}");
    (report["packets_per_second"].as_f64().expect("a number"), memory)
}

fn application(flow: u32) -> (End, End) {
    let [_, _, high, low] = (flow / 250).to_be_bytes();
    let port = if flow.is_multiple_of(2) { 443 } else { 80 };
    (
        ([203, 0, 113, 10], 33_000 + (flow % 25_000) as u16),
        ([198, 18 + high, low, 1 + (flow % 250) as u8], port),
    )
}

/// Both ends of each flow, as they are on the wire: what a replay of all first packets yields.
fn flows() -> Vec<(End, End)> {
    let config = Config::parse(CONFIG, Path::new("vipa.toml")).expect("a configuration").0;
    let mut first = Writer::new(Vec::new(), INTERFACES);
    for flow in 0..FLOWS {
        let (from, to) = application(flow);
        first.write(0, u64::from(flow) * GAP, &tcp(from, to, true, 0)).expect("memory");
    }
    let first = Reader::new(first.finish().expect("memory").leak() as &[u8]).expect("a capture");
    let mut out = Vec::new();
    replay::run(&config, first, &mut out, None, |_| {}).expect("memory");
    let mut out = Reader::new(out.as_slice()).expect("a capture");
    let mut flows = Vec::new();
    while let Some(packet) = out.next_packet().expect("a whole capture") {
        let headers = Headers::parse(&packet.bytes[14..]).expect("headers");
        let (from, to) = headers.ports();
        let (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) =
            (headers.source, headers.destination)
        else {
            panic!("no IPv4");
        };
        flows.push(((source.octets(), from), (destination.octets(), to)));
    }
    assert_eq!(flows.len(), FLOWS as usize);
    flows
}

fn generate(flows: &[(End, End)], packets: u32) -> Vec<u8> {
    let mut capture = Writer::new(Vec::new(), INTERFACES);
    for number in 0..packets {
        let flow = number % FLOWS;
        let (inside, outside) = application(flow);
        let time = u64::from(number) * GAP;
        // 64 to 128 bytes with their IP and TCP headers.
        let payload = 24 + (number as usize * 7) % 65;
        let is_reply = number >= FLOWS && flow.is_multiple_of(2) && (number / FLOWS) % 2 == 1;
        if is_reply {
            let (wire, _) = flows[flow as usize];
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1, 1, 8, 0];
            frame.extend(tcp(outside, wire, false, payload));
            capture.write(1 + flow % 3, time, &frame).expect("memory");
        } else {
            let packet = tcp(inside, outside, number < FLOWS, payload);
            capture.write(0, time, &packet).expect("memory");
        }
    }
    capture.finish().expect("memory")
}

fn tcp(from: End, to: End, is_first: bool, payload: usize) -> Vec<u8> {
    let step = PacketBuilder::ipv4(from.0, to.0, 64).tcp(from.1, to.1, 1, 1024);
    let step = if is_first { step.syn() } else { step.ack(1) };
    let mut bytes = Vec::new();
    step.write(&mut bytes, &vec![7; payload]).expect("built");
    bytes
}
