//! keepalived in vipa's place: VRRP moves the VIPA between two directors, each of which has one of the two links.
//!
//! ```text
//!                    ┌─ r1 ══ eth1  director 1, priority 150
//!  client ── router ─┼─ r2 ══ eth2  director 2, priority 100
//!                    └─ r0 ── eth0  host with the VIPA on `lo`
//! ```
//!
//! The router's ports are a switch, `lan`. The master answers for the VIPA, and forwards what is sent to it to the host without any
//! state; the host answers the router by itself (direct server return). So a connection outlives the change of directors.

use std::fs;
use std::net::IpAddr;

use vipa::lab::topology::{Network, nic_name, vipas};
use vipa::lab::{Hop, Namespace, Process, Scratch, veth};
use vipa::wire::ip::Family;

use crate::Error;
use crate::daemon::Timers;

const ROUTER: &str = "10.1.0.1";
const HOST: &str = "10.1.0.2";

/// Both directors; dropped, they are killed.
#[derive(Debug)]
pub(crate) struct Directors {
    /// The first is the master while its link is sound.
    namespaces: [Namespace; 2],
    processes: Vec<Process>,
    files: Scratch,
}

impl Directors {
    /// Wires them, and the host, to the router's switch; keepalived is not running yet.
    pub(crate) fn new(network: &Network) -> Result<Directors, Error> {
        let vipa = vipas(Family::V4)[0];
        let (router, host) = (&network.router, &network.host);
        veth((router, "r0"), (host, "eth0"))?;
        router.bridge("lan", &["r0", "r1", "r2"])?;
        router.address(&format!("{ROUTER}/24"), "lan")?;
        router.route(&format!("{vipa}/32"), &[Hop::on("lan")], None)?;
        host.address(&format!("{HOST}/24"), "eth0")?;
        host.route("0.0.0.0/0", &[Hop::via(ROUTER)], None)?;
        // Who answers for the VIPA on the LAN is the master alone.
        host.sysctl("net/ipv4/conf/all/arp_ignore", 1)?;
        host.sysctl("net/ipv4/conf/all/arp_announce", 2)?;
        host.address(&format!("{vipa}/32"), "lo")?;
        let namespaces = [director(network, 1, vipa)?, director(network, 2, vipa)?];
        Ok(Directors { namespaces, processes: Vec::new(), files: Scratch::new()? })
    }

    pub(crate) fn start(&mut self, timers: Timers) -> Result<(), Error> {
        for (nic, namespace) in (1..).zip(&self.namespaces) {
            let file = |name: &str| self.files.path().join(format!("{name}{nic}"));
            fs::write(file("conf"), config(nic, timers))?;
            let mut command = namespace.command("keepalived");
            command.args(["--vrrp", "--dont-fork", "--log-console", "--use-file"]);
            command.arg(file("conf")).arg("--pid").arg(file("pid"));
            command.arg("--vrrp_pid").arg(file("vrrp"));
            self.processes.push(Process::start(&mut command, &file("log"))?);
        }
        Ok(())
    }

    /// The director that has the VIPA while nothing fails.
    pub(crate) fn master(&self) -> &Namespace {
        &self.namespaces[0]
    }

    /// What they said so far.
    pub(crate) fn log(&self) -> String {
        self.processes.iter().map(Process::log).collect()
    }
}

/// In place of the host's NIC `nic`, at the same cable.
fn director(network: &Network, nic: u8, vipa: IpAddr) -> Result<Namespace, Error> {
    let director = Namespace::new(&format!("director{nic}"))?;
    let (name, plug) = (nic_name(nic), format!("h{nic}"));
    let cables = network.cables();
    network.delete_nic(nic)?;
    veth((cables, plug.as_str()), (&director, name.as_str()))?;
    cables.enslave(&plug, &format!("b{nic}"))?;
    cables.link_up(&format!("r{nic}"))?;
    director.address(&format!("10.1.0.{}/24", 10 + nic), &name)?;
    // `pkttype host`: what the switch floods while it has forgotten the master is not for the other one.
    let rules = format!(
        "table netdev direct {{ chain {name} {{ type filter hook ingress device {name} priority 0; \
         meta pkttype host ip daddr {vipa} fwd ip to {HOST} device {name}; }}; }}"
    );
    let output = director.command("nft").arg(&rules).output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("nft {rules}: {why}").into());
    }
    Ok(director)
}

fn config(nic: u8, timers: Timers) -> String {
    let (version, interval) = match timers {
        Timers::Default => (2, "1"),
        Timers::Short => (3, "0.1"),
    };
    format!(
        "global_defs {{\n vrrp_version {version}\n}}\nvrrp_instance vipa {{\n state BACKUP\n interface {}\n \
         virtual_router_id 51\n priority {}\n advert_int {interval}\n virtual_ipaddress {{\n  {}/32\n }}\n}}\n",
        nic_name(nic),
        if nic == 1 { 150 } else { 100 },
        vipas(Family::V4)[0],
    )
}
