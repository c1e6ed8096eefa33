//! Who is measured: each started on the director (or the host), and gone when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use vipa::lab::topology::vipas;
use vipa::lab::{Forwarder, Process, Scratch};
use vipa::wire::ip::Family;

use crate::place::{Place, Shape, own_vipas};
use crate::plain;
use crate::work::{BULK, IPERF, SHORT, UDP};
use crate::{Error, Scene};

const READY: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Kernel,
    Vipa,
    Rewritten,
    PlainOut,
    Nftables,
    HaProxy,
    AfPacket,
    AfXdp,
    PlainWire,
    Nat,
    NatXdp,
    Direct,
}

impl Subject {
    /// The first one is what the others are compared with.
    pub(crate) fn of(scene: Scene) -> Vec<Subject> {
        match scene {
            Scene::Egress => {
                vec![Subject::Kernel, Subject::Vipa, Subject::Rewritten, Subject::PlainOut]
            }
            Scene::Balance => vec![
                Subject::Nftables,
                Subject::HaProxy,
                Subject::AfPacket,
                Subject::AfXdp,
                Subject::PlainWire,
                Subject::Nat,
                Subject::NatXdp,
                Subject::Direct,
            ],
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Subject::Kernel => "kernel routes",
            Subject::Vipa => "vipa",
            Subject::Rewritten => "vipa rewritten",
            Subject::Nftables => "nftables",
            Subject::HaProxy => "HAProxy",
            Subject::AfPacket => "testpmd af_packet",
            Subject::AfXdp => "testpmd af_xdp",
            Subject::PlainOut | Subject::PlainWire => "plain copy",
            Subject::Nat => "vipa nat",
            Subject::NatXdp => "vipa nat xdp",
            Subject::Direct => "vipa direct",
        }
    }

    /// What it is, with which settings; the program's own words for its version.
    pub(crate) fn what(self) -> String {
        let version = |program: &str, argument: &str| {
            let output = Command::new(program).arg(argument).output();
            let said = output.map(|output| [output.stdout, output.stderr].concat());
            let said = String::from_utf8_lossy(&said.unwrap_or_default()).into_owned();
            said.lines().next().unwrap_or_default().trim().to_owned()
        };
        match self {
            Subject::Kernel => {
                "the VIPA on lo, two equal-cost default routes with dead-link detection".to_owned()
            }
            Subject::Vipa => "vipa run, one worker, the VIPA on its adapter".to_owned(),
            Subject::Rewritten => "the same; a source rule that the forwarder applies gives iperf3 the other VIPA".to_owned(),
            Subject::Nftables => format!(
                "DNAT in prerouting, the kernel's own forwarding and connection tracking ({})",
                version("nft", "--version")
            ),
            Subject::HaProxy => {
                format!("mode tcp, its defaults: a thread a processor ({})", version("haproxy", "-v"))
            }
            Subject::AfPacket | Subject::AfXdp => {
                let driver = if self == Subject::AfPacket { "net_af_packet" } else { "net_af_xdp" };
                format!(
                    "DPDK's testpmd, {driver}, --forward-mode=io, --no-huge, one forwarding core that polls: a wire, \
                     nothing is looked up or rewritten; client and servers without offloads, which it does not know"
                )
            }
            Subject::PlainOut => {
                "read from a TUN, sent by a packet socket, nothing in between; by one NIC; what comes in the kernel takes".to_owned()
            }
            Subject::PlainWire => {
                "read from one packet socket, sent by another, nothing in between: a wire; of new connections half go to the second server"
                    .to_owned()
            }
            Subject::Nat => "vipa run, one worker, a service of mode nat: both ends rewritten".to_owned(),
            Subject::NatXdp => {
                "the same, with xdp = \"native\": frames by AF_XDP from the driver's hook; neighbours on veth then send no longer packets than 1,500 bytes".to_owned()
            }
            Subject::Direct => {
                "vipa run, one worker, a service of mode direct: another MAC address, servers answer past it".to_owned()
            }
        }
    }

    pub(crate) fn shape(self) -> Shape {
        match self {
            Subject::AfPacket | Subject::AfXdp | Subject::PlainWire => Shape::Wire,
            Subject::Direct => Shape::Direct,
            _ => Shape::Routed,
        }
    }

    /// It carries nothing but whole packets.
    pub(crate) fn is_without_offloads(self) -> bool {
        matches!(self, Subject::AfPacket | Subject::AfXdp)
    }

    /// Why it cannot be measured on this machine.
    pub(crate) fn missing(self) -> Option<String> {
        let (program, package) = match self {
            Subject::Nftables => ("nft", "nftables"),
            Subject::HaProxy => ("haproxy", "haproxy"),
            Subject::AfPacket | Subject::AfXdp => ("dpdk-testpmd", "dpdk-dev"),
            _ => return None,
        };
        let path = std::env::var("PATH").unwrap_or_default();
        if !path.split(':').any(|place| Path::new(place).join(program).exists()) {
            return Some(format!("{program} is not installed (Debian: {package})"));
        }
        let number = std::thread::available_parallelism().map_or(1, usize::from);
        let is_dpdk = program == "dpdk-testpmd";
        (is_dpdk && number < 2).then(|| "it wants two processors".to_owned())
    }

    pub(crate) fn start(self, place: &Place) -> Result<Running, Error> {
        let files = Scratch::new()?;
        let mut running = Running { _forwarder: None, process: None, files };
        match self {
            Subject::Kernel => {
                place.network().ok_or("no host")?.route_by_kernel()?;
            }
            Subject::Vipa | Subject::Rewritten => {
                let network = place.network().ok_or("no host")?;
                let config = running.files.path().join("vipa.toml");
                // Nothing goes to port 1.
                let rewritten = if self == Subject::Rewritten { IPERF } else { 1 };
                network.write_config(&config, rewritten, "")?;
                running.vipa(place, config)?;
            }
            Subject::Nftables => {
                let mut command = place.director.command("nft");
                let output = command.arg(nftables()).output()?;
                if !output.status.success() {
                    let why = String::from_utf8_lossy(&output.stderr);
                    return Err(format!("nft: {}", why.trim()).into());
                }
            }
            Subject::HaProxy => {
                own_vipas(&place.director)?;
                place.director.sysctl("net/ipv4/tcp_tw_reuse", 1)?;
                place.director.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
                let config = running.files.path().join("haproxy.cfg");
                fs::write(&config, haproxy())?;
                running.run(place.director.command("haproxy").args(["-db", "-f"]).arg(config))?;
            }
            Subject::AfPacket | Subject::AfXdp => {
                let kind = if self == Subject::AfPacket { "net_af_packet" } else { "net_af_xdp" };
                let mut command = place.director.command("dpdk-testpmd");
                // Statistics from time to time keep it from reading, and so from ending with, its standard input.
                command
                    .args(["-l", "0,1", "--no-huge", "-m", "512", "--no-pci", "--no-telemetry"])
                    .arg(format!("--file-prefix=vipa{}", std::process::id()))
                    .arg(format!("--vdev={kind}0,iface=eth1"))
                    .arg(format!("--vdev={kind}1,iface=eth2"))
                    .args(["--", "--forward-mode=io", "--auto-start", "--nb-cores=1"])
                    .args(["--total-num-mbufs=65536", "--stats-period=600"]);
                running.run(&mut command)?;
            }
            Subject::PlainWire => {
                let mut command = place.director.command(std::env::current_exe()?);
                command.arg("--plain");
                for nic in ["eth1", "eth2", "eth3"] {
                    command.arg(place.director.index(nic)?.to_string());
                }
                running.run(command.arg(place.servers[1].mac("eth0")?.to_string()))?;
            }
            Subject::PlainOut => {
                let network = place.network().ok_or("no host")?;
                let mut command = place.director.command(std::env::current_exe()?);
                let (host, nic) = (&place.director, "eth1");
                let (from, to) =
                    (host.mac(nic)?.to_string(), network.router.mac("r1")?.to_string());
                let index = host.index(nic)?.to_string();
                running.run(command.args(["--plain", &index, &from, &to]))?;
                plain::lead_in(&place.director)?;
            }
            Subject::Nat | Subject::NatXdp | Subject::Direct => {
                let config = running.files.path().join("vipa.toml");
                fs::write(&config, services(self))?;
                running.vipa(place, config)?;
            }
        }
        Ok(running)
    }
}

/// A subject at work.
#[derive(Debug)]
pub(crate) struct Running {
    _forwarder: Option<Forwarder>,
    process: Option<Process>,
    files: Scratch,
}

impl Running {
    fn vipa(&mut self, place: &Place, config: PathBuf) -> Result<(), Error> {
        let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
        let mut forwarder = Forwarder::new(&place.director, program, &config, self.files.path())?;
        forwarder.start_and_wait(READY)?;
        self._forwarder = Some(forwarder);
        Ok(())
    }

    fn run(&mut self, command: &mut Command) -> Result<(), Error> {
        self.process = Some(Process::start(command, &self.files.path().join("log"))?);
        Ok(())
    }

    /// What it said last.
    pub(crate) fn last_words(&self) -> String {
        let said = fs::read_to_string(self.files.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = said.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// Address of a server as the director sees it.
fn server(family: Family, number: u8) -> String {
    match family {
        Family::V4 => format!("10.8.{number}.2"),
        Family::V6 => format!("2001:db8:8{number}::2"),
    }
}

fn nftables() -> String {
    let mut text = String::new();
    for (family, name) in Family::BOTH.into_iter().zip(["ip", "ip6"]) {
        let (vipa, [one, two]) = (vipas(family)[0], [1, 2].map(|number| server(family, number)));
        text += &format!(
            "table {name} balance {{ chain pre {{ type nat hook prerouting priority dstnat; \
             {name} daddr {vipa} tcp dport {SHORT} dnat to numgen inc mod 2 map {{ 0 : {one}, 1 : {two} }}; \
             {name} daddr {vipa} dnat to {one}; }}; }};"
        );
    }
    text
}

fn haproxy() -> String {
    let mut text = "global\n maxconn 2000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n"
        .to_owned();
    for family in Family::BOTH {
        let (vipa, [one, two]) = (vipas(family)[0], [1, 2].map(|number| server(family, number)));
        let (first, last) = (BULK.start(), BULK.end());
        text += &format!(
            "listen bulk{family:?}\n bind {vipa}:{first}-{last}\n server s1 {one}:+0\n\
             listen short{family:?}\n bind {vipa}:{SHORT}\n balance roundrobin\n server s1 {one}:{SHORT}\n server s2 {two}:{SHORT}\n"
        );
    }
    text
}

fn services(subject: Subject) -> String {
    let all: Vec<String> =
        Family::BOTH.into_iter().flat_map(vipas).map(|vipa| format!("\"{vipa}\"")).collect();
    let mut text = format!("[virtual]\nname = \"vipa0\"\naddresses = [{}]\n", all.join(", "));
    for nic in 1..=3 {
        let xdp = if subject == Subject::NatXdp { "xdp = \"native\"\n" } else { "" };
        text += &format!("[[nic]]\nname = \"eth{nic}\"\n{xdp}");
    }
    let is_nat = subject != Subject::Direct;
    let mode = if is_nat { "nat" } else { "direct" };
    for family in Family::BOTH {
        let [vipa, source] = vipas(family);
        let vipa = if family == Family::V6 { format!("[{vipa}]") } else { vipa.to_string() };
        let (first, last) = (BULK.start(), BULK.end());
        let source = if is_nat { format!("source = [\"{source}\"]\n") } else { String::new() };
        let works = [
            ("bulk", format!("{first}-{last}"), "tcp", 1, String::new()),
            ("udp", UDP.to_string(), "udp", 1, String::new()),
            ("short", SHORT.to_string(), "tcp", 2, format!("choose = \"weighted\"\n{source}")),
        ];
        for (name, ports, protocol, servers, more) in works {
            text += &format!(
                "[[service]]\nname = \"{name}{family:?}\"\naddress = \"{vipa}:{ports}\"\nprotocol = \"{protocol}\"\nmode = \"{mode}\"\n\
                 score = \"load\"\n{more}[[service.status]]\nname = \"load\"\nkind = \"fixed\"\nvalue = 1\n"
            );
            for number in 1..=servers {
                let address = server(family, number);
                text +=
                    &format!("[[service.server]]\nname = \"s{number}\"\naddress = \"{address}\"\n");
            }
        }
    }
    text
}
