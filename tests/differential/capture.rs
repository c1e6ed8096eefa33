//! The second judge: tshark reads what left us and looks for malformed packets and wrong checksums.

use std::path::Path;
use std::process::Command;

use vipa::lab::Scratch;

/// What tshark is to understand. Behind these it would take random bytes for some protocol and find it malformed.
const UNDERSTOOD: &str = "frame eth ethertype ip ipv6 ipv6.hopopts ipv6.routing ipv6.fraghdr ipv6.dstopts ah \
    tcp udp udplite sctp dccp icmp icmpv6 data";
/// A checksum that is wrong. (tshark's 0 is "Bad"; the others are "Good", "Unverified", "Not present", "Illegal".)
const OUTER: &str = "ip.checksum.status==0 || icmp.checksum.status==0 || icmp.ext.checksum.status==0 \
    || icmpv6.checksum.status==0";
const LAYER4: &str = "tcp.checksum.status==0 || udp.checksum.status==0 || sctp.checksum.status==0 \
    || dccp.checksum.status==0 || udplite.checksum_coverage.bad";
/// The same for each protocol that may be quoted with eight bytes of its header: for TCP, UDP and ICMP tshark
/// knows that a quote may end early, for these it does not.
const NEED_ALL: &str = "sctp || udplite || dccp";

/// A directory with tshark's settings, and the capture.
pub(crate) struct Tshark(Scratch);

impl Tshark {
    pub(crate) fn new() -> Tshark {
        let scratch = Scratch::new().expect("a directory");
        let tshark = Tshark(scratch);
        let listed = tshark.run(&["-G", "protocols"]);
        let disabled: String = listed
            .lines()
            .filter_map(|line| line.split('\t').nth(2))
            .filter(|name| !UNDERSTOOD.split_whitespace().any(|known| known == *name))
            .map(|name| format!("{name}\n"))
            .collect();
        assert!(disabled.lines().count() > 100, "tshark lists its protocols: {listed}");
        std::fs::write(tshark.0.path().join("disabled_protos"), disabled).expect("a file");
        tshark
    }

    /// Numbers, from 1, of the frames that are malformed or have a wrong checksum.
    pub(crate) fn flawed(&self, frames: &[Vec<u8>]) -> Vec<usize> {
        self.read(frames, &format!("_ws.malformed || {OUTER} || {LAYER4}"))
    }

    /// The same for errors that quote the beginning of a packet: the checksum of its layer 4 covers more than is
    /// there. That of its IP header is looked at.
    pub(crate) fn flawed_around_quotes(&self, frames: &[Vec<u8>]) -> Vec<usize> {
        self.read(frames, &format!("(_ws.malformed && !({NEED_ALL})) || {OUTER}"))
    }

    fn read(&self, frames: &[Vec<u8>], filter: &str) -> Vec<usize> {
        let capture = self.0.path().join("frames.pcap");
        std::fs::write(&capture, pcap(frames)).expect("a file");
        let read = |filter: &str| {
            let mut arguments = vec!["-n", "-r", path(&capture), "-Y", filter, "-T", "fields"];
            arguments.extend(["-e", "frame.number"]);
            for preference in [
                "ip.check_checksum:TRUE",
                "tcp.check_checksum:TRUE",
                "udp.check_checksum:TRUE",
                "udplite.check_checksum:TRUE",
                "udplite.ignore_checksum_coverage:FALSE",
                // RFC 6935.
                "udp.ignore_ipv6_zero_checksum:TRUE",
                "sctp.checksum:CRC-32C",
            ] {
                arguments.extend(["-o", preference]);
            }
            let number = |line: &str| line.parse().unwrap_or_else(|_| panic!("a number: {line:?}"));
            self.run(&arguments).lines().map(number).collect::<Vec<usize>>()
        };
        assert_eq!(read("ip || ipv6").len(), frames.len(), "tshark reads all frames");
        read(filter)
    }

    fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tshark");
        command.env("WIRESHARK_CONFIG_DIR", self.0.path()).args(arguments);
        let output = command.output().unwrap_or_else(|e| panic!("tshark is needed: {e}"));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tshark {arguments:?}: {error}");
        String::from_utf8(output.stdout).expect("text")
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// A classic capture of Ethernet frames (LINKTYPE_ETHERNET, 1), one every millisecond. (Of bare IP packets tshark
/// takes those that have PPP's address and control bytes in a certain place for PPP.)
fn pcap(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    // Magic, version 2.4, zone, accuracy, most bytes of a frame, link type.
    file.extend(0xa1b2_c3d4u32.to_le_bytes());
    file.extend([2, 0, 4, 0]);
    for word in [0u32, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for (at, packet) in packets.iter().enumerate() {
        let (at, length) = (at as u32, packet.len() as u32 + 14);
        for word in [at / 1000, at % 1000 * 1000, length, length] {
            file.extend(word.to_le_bytes());
        }
        file.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        file.extend(if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
        file.extend(packet);
    }
    file
}
