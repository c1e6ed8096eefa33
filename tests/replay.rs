//! `vipa replay` as a user runs it: captures in, captures and a report out.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Output};

use etherparse::PacketBuilder;
use serde_json::Value;
use vipa::capture::{Link, Reader, Writer};
use vipa::wire::checksum::Sum;
use vipa::wire::packet::{Headers, full_checksum};

const CONFIG: &str = r#"
[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "203.0.113.11", "2001:db8::10", "2001:db8::11"]
[forwarder]
workers = 4
[[nic]]
name = "eth1"
gateway = ["10.1.1.1", "fe80::1"]
[[nic]]
name = "eth2"
[source]
ports = "61000-61099"
[[source.rule]]
protocol = "tcp"
port = 443
destination = "0.0.0.0/0"
use = "203.0.113.11"
[[source.rule]]
protocol = "udp"
port = 443
use = "2001:db8::11"
[[source.rule]]
protocol = "tcp"
port = 25
use = "physical"
"#;

const VIPA: [u8; 4] = [203, 0, 113, 10];
const SECOND: [u8; 4] = [203, 0, 113, 11];
const PEER: [u8; 4] = [192, 0, 2, 1];
const DEVICES: [(&str, Link); 3] =
    [("vipa0", Link::Ip), ("eth1", Link::Ethernet), ("eth2", Link::Ethernet)];
const TUN: u32 = 0;
const ETH1: u32 = 1;
/// Millisecond, in nanoseconds.
const MS: u64 = 1_000_000;

/// A directory of its own for each test, gone with it.
struct Place(PathBuf);

/// A replay that was run.
struct Replayed {
    output: Output,
    /// Device, nanoseconds, bytes.
    packets: Vec<(String, u64, Vec<u8>)>,
    bytes: Vec<u8>,
}

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("vipa-replay-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Place(path)
    }

    fn vipa(&self, config: &str, arguments: &[&str]) -> Output {
        std::fs::write(self.0.join("vipa.toml"), config).unwrap();
        Command::new(env!("CARGO_BIN_EXE_vipa"))
            .args(["replay", "--config", "vipa.toml"])
            .args(arguments)
            .current_dir(&self.0)
            .output()
            .unwrap()
    }

    /// Replays `capture`.
    fn replay(&self, config: &str, capture: &[u8], arguments: &[&str]) -> Replayed {
        std::fs::write(self.0.join("in"), capture).unwrap();
        let _ = std::fs::remove_file(self.0.join("out"));
        let output = self.vipa(config, &[&["in", "out", "--json"], arguments].concat());
        let bytes = std::fs::read(self.0.join("out")).unwrap_or_default();
        let packets = if bytes.is_empty() { Vec::new() } else { packets(&bytes) };
        Replayed { output, packets, bytes }
    }

    /// Replays a capture that is right.
    fn replay_well(&self, config: &str, capture: &[u8]) -> (Value, Vec<(String, u64, Vec<u8>)>) {
        let replayed = self.replay(config, capture, &[]);
        assert!(replayed.output.status.success(), "{:?}", replayed.output);
        (replayed.report(), replayed.packets)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Replayed {
    /// The report, in which every packet has one fate.
    fn report(&self) -> Value {
        let report: Value = serde_json::from_slice(&self.output.stdout).unwrap();
        let number = |key: &str| report[key].as_u64().unwrap();
        let fates = ["transmitted", "delivered", "left_to_kernel", "snapped", "other_interfaces"];
        let drops = report["dropped"].as_object().unwrap().values();
        let sum = fates.map(number).iter().sum::<u64>()
            + drops.map(|count| count.as_u64().unwrap()).sum::<u64>();
        assert_eq!(sum, number("packets"), "{report}");
        let out = number("transmitted") + number("delivered");
        assert_eq!(self.packets.len() as u64, out);
        report
    }

    fn told(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }
}

fn packets(file: &[u8]) -> Vec<(String, u64, Vec<u8>)> {
    let mut reader = Reader::new(file).unwrap();
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet().unwrap() {
        let name = packet.interface.name.clone().unwrap();
        packets.push((name, packet.time, packet.bytes.to_vec()));
    }
    packets
}

/// A capture of (device, time, packet).
fn capture(packets: &[(u32, u64, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), DEVICES);
    for (device, time, packet) in packets {
        writer.write(*device, *time, packet).unwrap();
    }
    writer.finish().unwrap()
}

fn pcap(link: u32, packets: &[(u32, &[u8])]) -> Vec<u8> {
    let words = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, link];
    let mut file: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
    for (original, bytes) in packets {
        let words = [1, 2, bytes.len() as u32, *original];
        file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        file.extend_from_slice(bytes);
    }
    file
}

fn tcp(from: ([u8; 4], u16), to: ([u8; 4], u16), syn: bool) -> Vec<u8> {
    let step = PacketBuilder::ipv4(from.0, to.0, 64).tcp(from.1, to.1, 1, 100);
    let step = if syn { step.syn() } else { step.ack(1) };
    let mut bytes = Vec::new();
    step.write(&mut bytes, b"payload").unwrap();
    bytes
}

fn udp6(from: ([u8; 16], u16), to: ([u8; 16], u16)) -> Vec<u8> {
    let mut bytes = Vec::new();
    PacketBuilder::ipv6(from.0, to.0, 64).udp(from.1, to.1).write(&mut bytes, b"odd").unwrap();
    bytes
}

fn v6(text: &str) -> [u8; 16] {
    text.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

/// As it comes in by a NIC.
fn ethernet(packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1, 1];
    frame.extend(ether_type);
    frame.extend(packet);
    frame
}

fn is_right(packet: &[u8]) -> bool {
    let headers = Headers::parse(packet).unwrap();
    let at = headers.checksum_at().unwrap();
    let field = u16::from_be_bytes([packet[at], packet[at + 1]]);
    full_checksum(packet, &headers) == Some(field)
}

/// Where the packets of the host go out under another source, and which: by a first replay.
fn wire_end(place: &Place, first: &[u8]) -> (IpAddr, u16) {
    let (report, out) = place.replay_well(CONFIG, &capture(&[(TUN, MS, first.to_vec())]));
    assert_eq!((&report["transmitted"], &report["flows_rewritten"]), (&1.into(), &1.into()));
    let headers = Headers::parse(&out[0].2[14..]).unwrap();
    (headers.source, headers.ports().0)
}

fn octets(address: IpAddr) -> [u8; 4] {
    let IpAddr::V4(address) = address else { panic!("{address}") };
    address.octets()
}

#[test]
fn a_rewritten_flow_goes_out_and_its_reply_comes_back() {
    let place = Place::new("rewritten");
    let first = tcp((VIPA, 40_000), (PEER, 443), true);
    let (address, port) = wire_end(&place, &first);
    assert_eq!(address, IpAddr::from(SECOND));
    assert!((61_000..=61_099).contains(&port));

    let reply = tcp((PEER, 443), (SECOND, port), false);
    let plain = tcp((VIPA, 40_001), (PEER, 80), true);
    let (report, out) = place.replay_well(
        CONFIG,
        &capture(&[
            (TUN, MS, first),
            (TUN, MS + 1, plain.clone()),
            (ETH1, 2 * MS + 7, ethernet(&reply)),
        ]),
    );
    let numbers = ["packets", "transmitted", "delivered", "answered", "flows", "flows_rewritten"];
    assert_eq!(numbers.map(|key| report[key].as_u64().unwrap()), [3, 2, 1, 0, 2, 1]);
    assert_eq!(report["received"], serde_json::json!({"eth1": 1, "eth2": 0, "vipa0": 2}));
    assert_eq!(report["error"], Value::Null);
    assert!(report["packets_per_second"].as_f64().unwrap() > 0.0);

    let sent = &out[0].2;
    let number = if out[0].0 == "eth1" { 1 } else { 2 };
    assert_eq!(report["per_nic"][&out[0].0].as_u64().unwrap(), {
        out.iter().filter(|(name, ..)| *name == out[0].0).count() as u64
    });
    assert_eq!(sent[..14], [2, 0, 0, 0, 1, number, 2, 0, 0, 0, 0, number, 8, 0]);
    assert!(is_right(&sent[14..]));
    assert_eq!(Headers::parse(&sent[14..]).unwrap().destination, IpAddr::from(PEER));
    assert_eq!(out[1].2[14..], plain, "a flow that needs no rewriting is left as it is");

    let (name, time, delivered) = &out[2];
    assert_eq!((name.as_str(), *time), ("vipa0", 2 * MS + 7));
    let headers = Headers::parse(delivered).unwrap();
    assert_eq!((headers.destination, headers.ports()), (VIPA.into(), (443, 40_000)));
    assert!(is_right(delivered));
}

#[test]
fn ipv6_goes_both_ways_too() {
    let place = Place::new("ipv6");
    let (host, peer) = (v6("2001:db8::10"), v6("2001:db8:9::1"));
    let first = udp6((host, 40_000), (peer, 443));
    let (address, port) = wire_end(&place, &first);
    assert_eq!(address, IpAddr::from(v6("2001:db8::11")));
    let reply = ethernet(&udp6((peer, 443), (v6("2001:db8::11"), port)));
    let (report, out) = place.replay_well(CONFIG, &capture(&[(TUN, 0, first), (ETH1, 0, reply)]));
    assert_eq!(report["delivered"], 1);
    assert_eq!(out[0].2[12..14], [0x86, 0xdd]);
    assert!(is_right(&out[0].2[14..]) && is_right(&out[1].2));
    assert_eq!(Headers::parse(&out[1].2).unwrap().ports(), (443, 40_000));
}

#[test]
fn what_the_kernel_takes_by_itself_is_left_to_it() {
    let place = Place::new("kernel");
    let first = tcp((VIPA, 40_000), (PEER, 443), true);
    let (_, port) = wire_end(&place, &first);
    let reply = tcp((PEER, 443), (SECOND, port), false);
    let mut to_a_group = ethernet(&reply);
    to_a_group[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    let packets = [
        (TUN, 0, first),
        (ETH1, 0, ethernet(&reply)),
        // To the VIPA itself, to a port that is not reserved, to a group, and to a card of another host.
        (ETH1, 0, ethernet(&tcp((PEER, 443), (VIPA, port), false))),
        (ETH1, 0, ethernet(&tcp((PEER, 443), (SECOND, 80), false))),
        (ETH1, 0, to_a_group),
    ];
    let (report, out) = place.replay_well(CONFIG, &capture(&packets));
    assert_eq!((&report["left_to_kernel"], &report["delivered"]), (&3.into(), &1.into()));
    assert_eq!(out.len(), 2);
    // A card whose MAC address is told takes frames to that address alone.
    let told = format!("{CONFIG}[[replay.nic]]\nname = \"eth1\"\nmac = \"02:00:00:00:00:99\"\n");
    let (report, _) = place.replay_well(&told, &capture(&packets));
    assert_eq!((&report["left_to_kernel"], &report["delivered"]), (&4.into(), &0.into()));
}

#[test]
fn the_replay_table_stands_for_the_kernel() {
    let place = Place::new("table");
    let mail = capture(&[(TUN, 0, tcp((VIPA, 40_000), (PEER, 25), true))]);
    let (report, _) = place.replay_well(CONFIG, &mail);
    assert_eq!(report["dropped"]["no_source_address"], 1, "no card has an address: {report}");
    let told = format!(
        "{CONFIG}
[[replay.nic]]
name = \"eth1\"
addresses = [\"10.1.1.2/24\"]
[[replay.nic]]
name = \"eth2\"
mac = \"02:aa:00:00:00:01\"
next-hop-mac = \"02:bb:00:00:00:01\"
addresses = \"10.1.2.2/24\"
"
    );
    let packets = [
        (TUN, 0, tcp((VIPA, 40_000), ([10, 1, 1, 9], 25), true)),
        (TUN, 0, tcp((VIPA, 40_000), ([10, 1, 2, 9], 25), true)),
    ];
    let (report, out) = place.replay_well(&told, &capture(&packets));
    assert_eq!(report["per_nic"], serde_json::json!({"eth1": 1, "eth2": 1}));
    let source = |frame: &[u8]| octets(Headers::parse(&frame[14..]).unwrap().source);
    assert_eq!(source(&out[0].2), [10, 1, 1, 2]);
    assert_eq!(source(&out[1].2), [10, 1, 2, 2]);
    assert_eq!(out[1].2[..12], [2, 0xbb, 0, 0, 0, 1, 2, 0xaa, 0, 0, 0, 1]);
}

#[test]
fn partial_checksums_are_completed_and_wrong_ones_stay_wrong() {
    let place = Place::new("checksums");
    let mut partial = tcp((VIPA, 40_000), (PEER, 443), true);
    let length = partial.len() as u32 - 20;
    let sum = Sum::pseudo_header(VIPA.into(), PEER.into(), 6, length).fold();
    partial[36..38].copy_from_slice(&sum.to_be_bytes());
    let mut untouched = partial.clone();
    untouched[22..24].copy_from_slice(&80_u16.to_be_bytes());
    let mut wrong = tcp((VIPA, 40_001), (PEER, 443), true);
    wrong[40] ^= 0xff;
    let packets = [(TUN, 0, partial), (TUN, 0, untouched), (TUN, 0, wrong)];
    let (report, out) = place.replay_well(CONFIG, &capture(&packets));
    assert_eq!(report["completed_checksums"], 2);
    assert_eq!(report["wrong_checksums_in"], 1);
    assert_eq!(report["transmitted"], 3);
    assert_eq!(report["flows_rewritten"], 2);
    let right: Vec<bool> = out.iter().map(|(_, _, frame)| is_right(&frame[14..])).collect();
    assert_eq!(right, [true, true, false]);
}

#[test]
fn a_super_packet_passes_whole_and_what_lies_behind_a_packet_is_left_out() {
    let place = Place::new("super");
    let mut large = Vec::new();
    let step = PacketBuilder::ipv4(VIPA, PEER, 64).tcp(40_000, 443, 1, 100);
    step.write(&mut large, &[7; 30_000]).unwrap();
    let sum = Sum::pseudo_header(VIPA.into(), PEER.into(), 6, large.len() as u32 - 20).fold();
    large[36..38].copy_from_slice(&sum.to_be_bytes());
    let mut padded = tcp((VIPA, 40_001), (PEER, 80), true);
    let length = padded.len();
    padded.resize(100_000, 0xee);
    let (report, out) = place.replay_well(CONFIG, &capture(&[(TUN, 0, large), (TUN, 0, padded)]));
    assert_eq!((&report["transmitted"], &report["completed_checksums"]), (&2.into(), &1.into()));
    assert_eq!(out[0].2.len(), 14 + 40 + 30_000);
    assert!(is_right(&out[0].2[14..]));
    assert_eq!(out[1].2.len(), 14 + length);
}

#[test]
fn packets_of_one_moment_keep_their_order_and_the_clock_never_goes_back() {
    let place = Place::new("order");
    let first = tcp((VIPA, 40_000), (PEER, 443), true);
    let (_, port) = wire_end(&place, &first);
    let reply = ethernet(&tcp((PEER, 443), (SECOND, port), false));
    let second = tcp((VIPA, 40_000), (PEER, 443), false);
    // The first packet waits for its next hop and for the hold while the others are run.
    let packets = [
        (TUN, 5 * MS, first),
        (TUN, 5 * MS, second.clone()),
        (ETH1, 5 * MS, reply),
        (TUN, MS, second),
    ];
    let (report, out) = place.replay_well(CONFIG, &capture(&packets));
    assert_eq!((&report["transmitted"], &report["delivered"]), (&3.into(), &1.into()));
    let order: Vec<_> = out.iter().map(|(name, time, _)| (name == "vipa0", time / MS)).collect();
    assert_eq!(order, [(false, 5), (false, 5), (true, 5), (false, 1)]);
    let ports = |at: usize| Headers::parse(&out[at].2[14..]).unwrap().ports();
    assert_eq!([ports(0), ports(1), ports(3)], [(port, 443); 3], "one flow");
}

#[test]
fn flows_time_out_by_the_clock_of_the_capture() {
    let place = Place::new("clock");
    let first = tcp((VIPA, 40_000), (PEER, 443), true);
    let (_, port) = wire_end(&place, &first);
    let reply = ethernet(&tcp((PEER, 443), (SECOND, port), false));
    for (seconds, delivered) in [(60, 1), (200, 0)] {
        let packets = [(TUN, MS, first.clone()), (ETH1, seconds * 1000 * MS, reply.clone())];
        let (report, _) = place.replay_well(CONFIG, &capture(&packets));
        assert_eq!(report["delivered"], delivered);
        assert_eq!(report["dropped"]["no_flow"], 1 - delivered);
    }
}

#[test]
fn packets_that_are_not_right_are_counted_under_their_names() {
    let place = Place::new("bad");
    let whole = tcp((VIPA, 40_000), (PEER, 80), true);
    let mut lies = whole.clone();
    lies[3] += 40;
    let vlan = [&[0; 12][..], &[0x81, 0, 0, 5, 8, 0], &whole].concat();
    let packets = [
        (TUN, 0, lies),
        (TUN, 0, vec![0x50; 40]),
        (TUN, 0, vec![]),
        (TUN, 0, tcp((VIPA, 1), ([224, 0, 0, 9], 2), true)),
        (ETH1, 0, vec![0; 13]),
        (ETH1, 0, vlan),
        (ETH1, 0, ethernet(&whole)[..14].to_vec()),
        (TUN, 0, whole.clone()),
    ];
    let (report, _) = place.replay_well(CONFIG, &capture(&packets));
    let dropped = |reason: &str| report["dropped"][reason].as_u64().unwrap();
    let reasons = ["malformed", "not_ip", "multicast"];
    assert_eq!(reasons.map(dropped), [4, 2, 1], "{report}");
    assert_eq!(report["transmitted"], 1, "what is right goes on");

    // Cut by the capture.
    let cut = pcap(101, &[(whole.len() as u32, &whole[..30]), (whole.len() as u32, &whole)]);
    let (report, _) = place.replay_well(CONFIG, &cut);
    assert_eq!((&report["snapped"], &report["transmitted"]), (&1.into(), &1.into()));
}

#[test]
fn a_capture_without_names_comes_in_by_the_nic_that_is_told() {
    let place = Place::new("unnamed");
    let first = tcp((VIPA, 40_000), (PEER, 443), true);
    let (report, _) = place.replay_well(CONFIG, &pcap(101, &[(0, &first)]));
    assert_eq!(report["received"]["vipa0"], 1, "raw IP is the adapter's");

    let frame = ethernet(&tcp((PEER, 443), (SECOND, 61_000), false));
    let unnamed = pcap(1, &[(0, &frame)]);
    let told = place.replay(CONFIG, &unnamed, &["--in", "eth2"]);
    assert_eq!(told.report()["received"]["eth2"], 1);
    assert_eq!(told.report()["dropped"]["no_flow"], 1);

    let untold = place.replay(CONFIG, &unnamed, &[]);
    assert_eq!(untold.output.status.code(), Some(2));
    assert!(untold.told().contains("--in"), "{}", untold.told());
    let unknown = place.replay(CONFIG, &unnamed, &["--in", "eth9"]);
    assert_eq!(unknown.output.status.code(), Some(2));
    assert!(unknown.told().contains("eth1, eth2"), "{}", unknown.told());

    // A device that is none of the configuration's, and a link type that nobody knows here.
    let mut writer =
        Writer::new(Vec::new(), [("eth9", Link::Ethernet), ("vipa0", Link::Other(113))]);
    writer.write(0, 0, &frame).unwrap();
    writer.write(1, 0, &frame).unwrap();
    let (report, _) = place.replay_well(CONFIG, &writer.finish().unwrap());
    assert_eq!(report["other_interfaces"], 2);
}

/// Some thousand packets of many flows, both ways, over many minutes; some find no port, others time out.
fn traffic() -> Vec<u8> {
    let packet = |n: u32| {
        let [_, _, high, low] = (n % 11).to_be_bytes();
        let peer = [198, 18, high, low];
        let port = [443, 80, 25][(n % 3) as usize];
        let time = u64::from(n) * 97 * MS;
        match n % 5 {
            4 => (
                ETH1,
                time,
                ethernet(&tcp((peer, 443), (SECOND, 61_000 + (n % 100) as u16), false)),
            ),
            _ => (TUN, time, tcp((VIPA, 33_000 + (n % 2000) as u16), (peer, port), n % 7 < 4)),
        }
    };
    capture(&(0..6000).map(packet).collect::<Vec<_>>())
}

#[test]
fn the_same_input_yields_the_same_output_to_the_byte() {
    let place = Place::new("same");
    let traffic = traffic();
    let (a, b) = (place.replay(CONFIG, &traffic, &[]), place.replay(CONFIG, &traffic, &[]));
    let mut reports = [a.report(), b.report()];
    for report in &mut reports {
        report["seconds"] = Value::Null;
        report["packets_per_second"] = Value::Null;
    }
    assert_eq!(reports[0], reports[1]);
    assert!(reports[0]["transmitted"].as_u64().unwrap() > 1000, "{}", reports[0]);
    assert!(reports[0]["delivered"].as_u64().unwrap() > 0, "{}", reports[0]);
    assert_eq!(a.bytes, b.bytes);
}

#[test]
fn a_capture_that_breaks_off_is_replayed_up_to_there() {
    let place = Place::new("broken");
    let whole = capture(&[
        (TUN, 0, tcp((VIPA, 40_000), (PEER, 80), true)),
        (TUN, 0, tcp((VIPA, 40_000), (PEER, 80), false)),
    ]);
    let replayed = place.replay(CONFIG, &whole[..whole.len() - 10], &[]);
    assert_eq!(replayed.output.status.code(), Some(1));
    assert_eq!(replayed.report()["transmitted"], 1);
    let block = 32 + 48;
    let at = whole.len() - block;
    let wanted = format!("at byte {at}: the file ends {} bytes into a block", block - 10);
    assert_eq!(replayed.report()["error"], wanted);
    assert_eq!(replayed.told(), format!("vipa: in: {wanted}\n"));

    for (file, told) in [
        (&b"#!/bin/sh\n"[..], "at byte 0: neither pcap nor pcapng (it begins with 0x23212f62)"),
        (b"", "at byte 0: the file ends 0 bytes into the header of a capture"),
    ] {
        let replayed = place.replay(CONFIG, file, &[]);
        assert_eq!(replayed.output.status.code(), Some(1));
        assert!(replayed.output.stdout.is_empty());
        assert_eq!(replayed.told(), format!("vipa: in: {told}\n"));
        assert!(!place.0.join("out").exists(), "nothing is written for what is no capture");
    }
    let output = place.vipa(CONFIG, &[".", "out"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("vipa: .: at byte 0: cannot be read: "), "{told}");
}

#[test]
fn the_input_is_never_overwritten() {
    let place = Place::new("same-file");
    let traffic = capture(&[(TUN, 0, tcp((VIPA, 40_000), (PEER, 80), true))]);
    std::fs::write(place.0.join("in"), &traffic).unwrap();
    std::fs::hard_link(place.0.join("in"), place.0.join("link")).unwrap();
    for out in ["in", "./in", "link"] {
        assert_eq!(place.vipa(CONFIG, &["in", out]).status.code(), Some(2));
    }
    assert_eq!(std::fs::read(place.0.join("in")).unwrap(), traffic);
}

#[test]
fn the_summary_is_for_a_reader_and_needs_no_flag() {
    let place = Place::new("summary");
    std::fs::write(place.0.join("in"), traffic()).unwrap();
    let output = place.vipa(CONFIG, &["in", "out"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(page.starts_with("6 000 packets in "), "{page}");
    for row in ["transmitted ", "left to the kernel ", "no_source_address ", "vipa0 "] {
        assert!(page.contains(row), "{row}: {page}");
    }
}

fn tcpdump(place: &Place, arguments: &[&str]) -> Vec<String> {
    let output = Command::new("tcpdump").args(arguments).current_dir(&place.0).output();
    let output = output.expect("tcpdump is needed (tools/test installs it)");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// tcpdump takes files whose interfaces are of one link type.
#[test]
fn others_read_what_is_written_and_write_what_is_read() {
    let place = Place::new("tcpdump");
    let first = tcp((VIPA, 40_000), (PEER, 443), true);
    let (_, port) = wire_end(&place, &first);
    let reply = ethernet(&tcp((PEER, 443), (SECOND, port), false));
    let both = capture(&[(TUN, 1_500_000_001, first), (ETH1, 1_500_000_002, reply)]);
    let (_, out) = place.replay_well(CONFIG, &both);
    let written = |name: &str, device: (&str, Link), packet: &(String, u64, Vec<u8>)| {
        let mut writer = Writer::new(Vec::new(), [device]);
        writer.write(0, packet.1, &packet.2).unwrap();
        std::fs::write(place.0.join(name), writer.finish().unwrap()).unwrap();
    };
    written("nic", ("eth1", Link::Ethernet), &out[0]);
    written("adapter", ("vipa0", Link::Ip), &out[1]);
    let show = ["-n", "-tt", "-v", "--nano", "-r"];
    let nic = tcpdump(&place, &[&show[..], &["nic"]].concat()).join(" ");
    assert!(nic.starts_with("1.500000001 IP "), "{nic}");
    assert!(
        nic.contains(&format!("203.0.113.11.{port} > 192.0.2.1.443: Flags [S], cksum")),
        "{nic}"
    );
    assert!(nic.contains("(correct)"), "{nic}");
    let adapter = tcpdump(&place, &[&show[..], &["adapter"]].concat()).join(" ");
    assert!(adapter.contains("192.0.2.1.443 > 203.0.113.10.40000: Flags [.], cksum"), "{adapter}");
    assert!(adapter.contains("(correct)"), "{adapter}");

    // A pcap of libpcap's own.
    tcpdump(&place, &["-r", "adapter", "-w", "again"]);
    let again = std::fs::read(place.0.join("again")).unwrap();
    assert_eq!(again[..4], 0xa1b2_c3d4_u32.to_le_bytes());
    let (report, _) = place.replay_well(CONFIG, &again);
    assert_eq!((&report["packets"], &report["received"]["vipa0"]), (&1.into(), &1.into()));
}
