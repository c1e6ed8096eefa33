//! A host with two NICs on one link and a third on another, and VIPAs in the subnet of the first two.
//!
//! ```text
//!               switch                 host
//!  alice  a0 ──┌───────┐── h1 ── eth1  10.1.1.2   2001:db8:1::2
//!  .1 ::1      │  lan  │── h2 ── eth2  10.1.1.3   2001:db8:1::3    VIPAs 10.1.1.50, .51
//!  bob    b0 ──│       │               and eth3, on a cable to carol    2001:db8:1::50, ::51
//!  .9 ::9      └───────┘
//! ```
//!
//! alice is the gateway.

use std::fs;
use std::path::{Path, PathBuf};

use vipa::lab::{End, Forwarder, Namespace, Process, Scratch, veth};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::ip::Family;

use crate::fixture::{PATIENCE, PROGRAM, run, wait_until};

/// The VIPAs in the subnet of eth1 and eth2.
pub(crate) fn vipa(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.1.1.50",
        Family::V6 => "2001:db8:1::50",
    }
}

/// The Ethernet address of a NIC of the host.
pub(crate) fn mac(nic: u8) -> MacAddr {
    MacAddr([2, 0, 0, 1, nic, 2])
}

pub(crate) struct Link {
    pub(crate) alice: Namespace,
    pub(crate) bob: Namespace,
    pub(crate) host: Namespace,
    pub(crate) switch: Namespace,
    pub(crate) forwarder: Forwarder,
    pub(crate) scratch: Scratch,
    _carol: Namespace,
}

impl Link {
    /// Not started yet; `more` stands at the end of the configuration.
    pub(crate) fn new(more: &str) -> Link {
        let namespace = |name| Namespace::new(name).expect("these tests need root");
        let [alice, bob, carol, host, switch] =
            ["alice", "bob", "carol", "host", "switch"].map(namespace);
        for one in [&alice, &bob, &carol, &host, &switch] {
            tune(one);
        }
        for nic in [1, 2] {
            let (plug, name) = (format!("h{nic}"), format!("eth{nic}"));
            veth((&switch, plug.as_str()), End::new(&host, &name).mac(mac(nic))).expect("a cable");
            give(&host, &name, 1, nic + 1);
        }
        veth((&carol, "c0"), End::new(&host, "eth3").mac(mac(3))).expect("a cable");
        give(&host, "eth3", 2, 2);
        give(&carol, "c0", 2, 1);
        for (one, port, device, last) in [(&alice, "a", "a0", 1), (&bob, "b", "b0", 9)] {
            veth((&switch, port), (one, device)).expect("a cable");
            give(one, device, 1, last);
        }
        switch.bridge("lan", &["h1", "h2", "a", "b"]).expect("a bridge");
        let scratch = Scratch::new().expect("a scratch directory");
        let config = scratch.path().join("vipa.toml");
        fs::write(&config, configuration(more)).expect("a scratch directory takes files");
        let forwarder = Forwarder::new(&host, Path::new(PROGRAM), &config, scratch.path())
            .expect("a forwarder to start");
        Link { alice, bob, host, switch, forwarder, scratch, _carol: carol }
    }

    pub(crate) fn started(more: &str) -> Link {
        let mut link = Link::new(more);
        link.start();
        link
    }

    pub(crate) fn start(&mut self) {
        self.forwarder.start_and_wait(PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    }

    pub(crate) fn status(&self) -> serde_json::Value {
        self.forwarder.status().unwrap_or_else(|e| panic!("{e}\n{}", self.forwarder.log()))
    }

    /// What the status says of the VIPA of a family.
    pub(crate) fn announced(&self, family: Family) -> serde_json::Value {
        let vipas = self.status()["announcements"]["vipas"].clone();
        let all = vipas.as_array().cloned().unwrap_or_default();
        let found = all.iter().find(|one| one["vipa"] == vipa(family));
        // Nothing is told of it before the first is said.
        found.cloned().unwrap_or_default()
    }

    /// Waits until alice and bob have the VIPAs at this NIC.
    #[track_caller]
    pub(crate) fn waits_for_caches(&self, nic: u8) {
        for (one, device) in [(&self.alice, "a0"), (&self.bob, "b0")] {
            for family in Family::BOTH {
                let wanted = Some(mac(nic).to_string());
                wait_until(&format!("{}'s cache has eth{nic}", one.name()), || {
                    cached(one, device, vipa(family)) == wanted
                });
            }
        }
    }

    #[track_caller]
    pub(crate) fn waits_for_home(&self, nic: u8) {
        for family in Family::BOTH {
            wait_until(&format!("eth{nic} is home"), || {
                self.announced(family)["nic"] == format!("eth{nic}")
            });
        }
    }

    /// Forgets what alice and bob know.
    pub(crate) fn flush_caches(&self) {
        for (one, device) in [(&self.alice, "a0"), (&self.bob, "b0")] {
            run(one, "ip", &["neigh", "flush", "dev", device]);
            run(one, "ip", &["-6", "neigh", "flush", "dev", device]);
        }
    }

    pub(crate) fn arp_ignore(&self, device: &str) -> String {
        setting(&self.host, &format!("net/ipv4/conf/{device}/arp_ignore"))
    }

    /// `vipa down` in the host's network.
    pub(crate) fn down(&self) {
        let mut command = self.host.command(PROGRAM);
        command.arg("down").env("RUNTIME_DIRECTORY", self.scratch.path().join("state"));
        let output = command.output().expect("vipa can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The Ethernet address that a host has for `address`.
pub(crate) fn cached(namespace: &Namespace, device: &str, address: &str) -> Option<String> {
    let shown = run(namespace, "ip", &["neigh", "show", "to", address, "dev", device]);
    let mut words = shown.split_whitespace();
    words.find(|word| *word == "lladdr").and_then(|_| words.next()).map(str::to_owned)
}

pub(crate) fn setting(namespace: &Namespace, path: &str) -> String {
    run(namespace, "cat", &[&format!("/proc/sys/{path}")]).trim().to_owned()
}

/// The device's addresses on a link, in both families.
fn give(namespace: &Namespace, device: &str, link: u8, last: u8) {
    namespace.address(&format!("10.1.{link}.{last}/24"), device).expect("an address");
    namespace.address(&format!("2001:db8:{link}::{last}/64"), device).expect("an address");
}

/// Settings that devices made later inherit.
fn tune(namespace: &Namespace) {
    for scope in ["all", "default"] {
        // No second of waiting for duplicates that cannot be.
        for path in ["ipv6/conf/%/accept_dad", "ipv4/conf/%/rp_filter"] {
            let path = format!("net/{}", path.replace('%', scope));
            namespace.sysctl(&path, 0).expect("it can be set");
        }
    }
    if Path::new("/proc/sys/net/bridge").exists() {
        for family in ["ip", "ip6", "arp"] {
            let path = format!("net/bridge/bridge-nf-call-{family}tables");
            namespace.sysctl(&path, 0).expect("it can be set");
        }
    }
}

fn configuration(more: &str) -> String {
    let nic = |name: &str, gateways: &str| {
        format!("[[nic]]\nname = \"{name}\"\nhold-down = \"300ms\"\n{gateways}\n")
    };
    let lan = "gateway = [\"10.1.1.1\", \"2001:db8:1::1\"]";
    let nics: String = [("eth1", lan), ("eth2", lan), ("eth3", "")]
        .map(|(name, gateways)| nic(name, gateways))
        .concat();
    format!(
        "[virtual]\nname = \"vipa0\"\naddresses = [\"10.1.1.50\", \"10.1.1.51\", \
         \"2001:db8:1::50\", \"2001:db8:1::51\"]\n{nics}{more}"
    )
}

/// tcpdump on a device, until it is dropped.
pub(crate) struct Capture {
    file: PathBuf,
    namespace: Namespace,
    process: Process,
}

impl Capture {
    /// Captures ARP and neighbour discovery when this returns.
    pub(crate) fn on(namespace: &Namespace, device: &str, scratch: &Scratch) -> Capture {
        let file = scratch.path().join(format!("{device}.pcap"));
        let log = scratch.path().join(format!("{device}.tcpdump"));
        let mut command = namespace.command("tcpdump");
        command.args(["-i", device, "--immediate-mode", "-U", "-w"]).arg(&file);
        command.args(["-Z", "root", "arp or icmp6"]);
        let process = Process::start(&mut command, &log).expect("tcpdump of tools/packages.txt");
        wait_until("the capture begins", || process.log().contains("listening on"));
        Capture { file, namespace: namespace.clone(), process }
    }

    /// All so far that matches `filter`, a line each, with Ethernet addresses.
    pub(crate) fn lines(&self, filter: &str) -> Vec<String> {
        assert!(self.process.pid() > 0);
        let file = self.file.to_str().expect("a path");
        let said = run(&self.namespace, "tcpdump", &["-ennr", file, filter]);
        said.lines().map(str::to_owned).collect()
    }

    /// Announcements of the VIPA by NICs of the host: ARP with sender and target the same, advertisements to all that nobody asked for.
    pub(crate) fn announcements(&self, family: Family) -> Vec<String> {
        self.lines(&match family {
            Family::V4 => {
                format!("arp and {FROM_HOST} and arp[14:4] = 0x0a010132 and arp[24:4] = 0x0a010132")
            }
            Family::V6 => format!(
                "icmp6 and {FROM_HOST} and ip6[40] = 136 and ip6[44] & 0xc0 = 0 and ip6[60:4] = 0x50"
            ),
        })
    }

    /// Answers to questions for the VIPA.
    pub(crate) fn answers(&self, family: Family) -> Vec<String> {
        self.lines(match family {
            Family::V4 => "arp and arp[6:2] = 2 and arp[14:4] = 0x0a010132",
            Family::V6 => "icmp6 and ip6[40] = 136 and ip6[44] & 0x40 != 0 and ip6[60:4] = 0x50",
        })
    }
}

/// From a NIC of the host, by its Ethernet address.
const FROM_HOST: &str = "ether[6:4] = 0x02000001";
