//! What we send, as tshark reads it off the router's wire: RIP of each version, signed and not, BFD, ARP and neighbour solicitations.
//! Nothing is malformed, no checksum wrong, and the fields are what the RFCs want.

use std::path::{Path, PathBuf};

use vipa::lab::Process;

use crate::fixture::{Bench, Setup, wait_until};

/// Everything that a forwarder says on its first wire, until it has said what `wanted` filters.
fn captured(setup: &Setup, wanted: &[&str]) -> (PathBuf, Bench) {
    let mut bench = Bench::prepare(setup);
    // The kernel completes checksums itself: else tshark would find the halves that are left to a card.
    bench.network.tx_checksum(false).expect("ethtool's ioctl");
    let file = bench.scratch.path().join("wire.pcap");
    let log = bench.scratch.path().join("tcpdump");
    let mut command = bench.network.router.command("tcpdump");
    let filter = "udp port 520 or udp port 521 or udp port 3784 or arp or (ip6 and ip6[40] = 135)";
    command.args(["-n", "-U", "--immediate-mode", "-Z", "root", "-i", "r1", "-Q", "in", "-w"]);
    command.arg(&file).arg(filter);
    let mut tcpdump = Process::start(&mut command, &log).expect("tcpdump (tools/packages.txt)");
    wait_until("tcpdump listens", || tcpdump.log().contains("listening"));
    bench.start_forwarder();
    for filter in wanted {
        wait_until(&format!("there is: {filter}"), || !frames(&bench, &file, filter).is_empty());
    }
    tcpdump.kill();
    (file, bench)
}

/// Frames that a display filter lets through, a line each.
fn frames(bench: &Bench, file: &Path, filter: &str) -> Vec<String> {
    fields(bench, file, filter, &["frame.number", "_ws.col.Info", "_ws.expert.message"])
}

fn fields(bench: &Bench, file: &Path, filter: &str, names: &[&str]) -> Vec<String> {
    let mut arguments = vec!["-n", "-r", file.to_str().expect("a path in UTF-8")];
    for check in ["ip.check_checksum:TRUE", "udp.check_checksum:TRUE"] {
        arguments.extend(["-o", check]);
    }
    arguments.extend(["-Y", filter, "-T", "fields"]);
    names.iter().for_each(|name| arguments.extend(["-e", name]));
    // The last frame may be half written: it is there the next time.
    let output = bench.network.router.command("tshark").args(&arguments).output();
    let output = output.unwrap_or_else(|e| panic!("tshark (tools/packages.txt): {e}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!complaint.contains("isn't a valid display filter"), "{complaint}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Warnings and errors of tshark's experts; theirs are 0x600000 and 0x800000.
fn has_no_complaint(bench: &Bench, file: &Path) {
    let bad = "_ws.malformed || _ws.expert.severity >= 0x600000 || ip.checksum.status == 0 \
               || udp.checksum.status == 0 || icmpv6.checksum.status == 0";
    assert_eq!(frames(bench, file, bad), [""; 0]);
}

fn all_are(bench: &Bench, file: &Path, filter: &str, names: &[&str], wanted: &[&str]) {
    let mut found = fields(bench, file, filter, names);
    found.sort();
    found.dedup();
    assert_eq!(found, wanted, "{filter}");
}

#[test]
fn tshark_reads_rip_of_each_version_and_our_questions_to_the_neighbours() {
    let rip = "versions = [1, 2, \"ng\"]\nadvertise = \"virtual+real\"";
    let kinds = [
        "rip.version == 1 && rip.command == 1",
        "rip.version == 1 && rip.command == 2",
        "rip.version == 2 && rip.command == 1",
        "rip.version == 2 && rip.command == 2",
        "ripng.cmd == 1",
        "ripng.cmd == 2",
        "arp.opcode == 1 && arp.dst.proto_ipv4 == 10.1.1.1 && arp.src.proto_ipv4 == 10.1.1.2",
        "icmpv6.nd.ns.target_address == 2001:db8:1::1",
    ];
    let (file, bench) = captured(&Setup::new(2).rip(rip), &kinds);
    has_no_complaint(&bench, &file);
    let of = |filter: &str, names: &[&str], wanted: &[&str]| {
        all_are(&bench, &file, filter, names, wanted);
    };
    let ends = ["ip.src", "ip.dst", "udp.srcport", "udp.dstport"];
    of("rip.version == 1", &ends, &["10.1.1.2\t10.1.1.255\t520\t520"]);
    of("rip.version == 2", &ends, &["10.1.1.2\t224.0.0.9\t520\t520"]);
    // The VIPA's host route with its reserve, and the other NIC's network.
    let routes = ["rip.ip", "rip.metric"];
    let first = "203.0.113.10,203.0.113.11";
    let told = fields(&bench, &file, "rip.version == 2 && rip.command == 2", &routes);
    assert!(told.iter().all(|line| line.contains(first)), "{told:?}");
    assert!(told.iter().any(|line| line.starts_with("10.1.2.0,")), "{told:?}");
    // Without a mask the other NIC's network is understood as well: it lies in ours.
    let told = fields(&bench, &file, "rip.version == 1 && rip.command == 2", &routes);
    assert!(told.iter().all(|line| line.contains(first)), "{told:?}");
    of("ripng", &["ipv6.dst", "ipv6.hlim", "udp.srcport"], &["ff02::9\t255\t521"]);
    let source = fields(&bench, &file, "ripng", &["ipv6.src"]);
    assert!(source.iter().all(|source| source.starts_with("fe80::")), "{source:?}");
    // RFC 4861 section 4.3.
    of("icmpv6.type == 135", &["ipv6.hlim", "icmpv6.code"], &["255\t0"]);
}

#[test]
fn tshark_reads_our_signatures_and_bfd() {
    let rip = "[[rip.key]]\nid = 7\nalgorithm = \"md5\"\nsecret = \"a secret\"";
    let path = "probe = \"bfd\"\n[path.bfd.key]\nid = 3\nalgorithm = \"meticulous-keyed-sha-1\"\n\
                secret = \"a secret\"";
    let kinds = ["rip.auth.type == 3 && rip.command == 2", "bfd && ip", "bfd && ipv6"];
    let (file, bench) = captured(&Setup::new(1).rip(rip).path(path), &kinds);
    has_no_complaint(&bench, &file);
    let of = |filter: &str, names: &[&str], wanted: &[&str]| {
        all_are(&bench, &file, filter, names, wanted);
    };
    of("rip", &["rip.key_id", "rip.auth_data_len"], &["7\t16"]);
    // RFC 5881 section 5, RFC 5880 section 4.4.
    let names =
        ["ip.ttl", "ipv6.hlim", "bfd.version", "bfd.flags.a", "bfd.auth.type", "bfd.auth.key"];
    of("bfd", &names, &["\t255\t1\t1\t5\t3", "255\t\t1\t1\t5\t3"]);
}

#[test]
fn tshark_reads_rfc_4822_as_it_reads_bird_s() {
    let rip = "[[rip.key]]\nid = 7\nalgorithm = \"hmac-sha-256\"\nsecret = \"a secret\"";
    let (file, bench) = captured(&Setup::new(1).rip(rip), &["rip.command == 2"]);
    // tshark 4.0 takes a trailer that is longer than MD5's for one more entry, whoever sent it.
    let theirs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rip/captures/bird-sha.pcapng");
    let experts = |file: &Path| {
        let bad = "rip && (_ws.malformed || _ws.expert.severity >= 0x600000) && udp.dstport == 520 \
                   && ip.dst == 224.0.0.9";
        let experts = fields(&bench, file, bad, &["_ws.expert.message"]);
        // Checksums in the capture of BIRD were still to be completed by its card.
        let last = |line: &String| line.rsplit(',').next().unwrap_or_default().to_owned();
        let mut experts: Vec<String> = experts.iter().map(last).collect();
        experts.dedup();
        experts
    };
    let wrong = fields(&bench, &file, "udp.checksum.status == 0", &["frame.number"]);
    assert_eq!(wrong, [""; 0]);
    assert_eq!(experts(&file), ["Unknown address family 65535"]);
    assert_eq!(experts(&theirs), experts(&file));
    all_are(&bench, &file, "rip", &["rip.key_id", "rip.auth_data_len"], &["7\t32"]);
    let digests = fields(&bench, &file, "rip.command == 2", &["udp.length", "rip.digest_offset"]);
    for line in digests {
        let mut numbers = line.split('\t').map(|text| text.parse::<u32>().expect("a number"));
        let (length, digest) =
            (numbers.next().expect("a length"), numbers.next().expect("a place"));
        assert_eq!(length, 8 + digest + 4 + 32, "trailer and digest are the rest");
    }
}
