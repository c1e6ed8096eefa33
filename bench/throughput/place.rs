//! The networks of namespaces. New ones for each turn: nothing of one subject is left for the next.
//!
//! ```text
//! egress                      host ══ two NICs ══ router ── client          (lab::topology)
//!
//! balance   client ── eth1  director  eth2 ── server 1
//!                                     eth3 ── server 2
//!           10.7.0.2   10.7.0.1   10.8.N.1   10.8.N.2       2001:db8:7::/64, 2001:db8:8N::/64
//!
//! bare      client ── server 1
//! ```
//!
//! In *balance* with the mode `direct` each server has a cable to the client as well, for its answers.

use std::net::IpAddr;
use std::process::Stdio;

use vipa::lab::topology::{Network, client_address, vipas};
use vipa::lab::{Hop, Namespace, veth};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::ip::Family;

use crate::Error;

/// How the servers answer, and whether somebody at layer 2 stands between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Through the director.
    Routed,
    /// Past it.
    Direct,
    /// Through it; it is no more than a wire, so the client's neighbour is the server.
    Wire,
}

/// Who speaks with whom, over which address.
#[derive(Debug)]
pub(crate) struct Place {
    /// Who connects and generates.
    pub(crate) client: Namespace,
    /// Where the subject runs.
    pub(crate) director: Namespace,
    /// Who answers; the first one alone but for new connections.
    pub(crate) servers: Vec<Namespace>,
    /// Devices of client and servers, for offloads.
    devices: Vec<(Namespace, String)>,
    /// Device that the client's frames leave by, and whom they are for.
    pub(crate) link: (String, MacAddr),
    egress: Option<Network>,
}

impl Place {
    /// The client's VIPAs and routes are not there yet where the subject brings them.
    pub(crate) fn egress() -> Result<Place, Error> {
        let network = Network::new(2)?;
        let devices = vec![(network.client.clone(), "c0".to_owned())];
        Ok(Place {
            client: network.host.clone(),
            director: network.host.clone(),
            servers: vec![network.client.clone()],
            devices,
            link: (String::new(), MacAddr::default()),
            egress: Some(network),
        })
    }

    /// Client and server on one cable.
    pub(crate) fn bare() -> Result<Place, Error> {
        let (client, server) = (Namespace::new("client")?, Namespace::new("server 1")?);
        quiet(&client)?;
        quiet(&server)?;
        veth((&client, "c0"), (&server, "eth0"))?;
        give(&client, "c0", ["10.7.0.2/16", "2001:db8:7::2/64"])?;
        give(&server, "eth0", ["10.7.0.1/16", "2001:db8:7::1/64"])?;
        sources(&client)?;
        back(&server, ["10.7.0.2", "2001:db8:7::2"])?;
        own_vipas(&server)?;
        towards_vipas(&client, ["10.7.0.1", "2001:db8:7::1"])?;
        let link = ("c0".to_owned(), server.mac("eth0")?);
        let devices = vec![(client.clone(), "c0".to_owned()), (server.clone(), "eth0".to_owned())];
        let director = server.clone();
        Ok(Place { client, director, servers: vec![server], devices, link, egress: None })
    }

    pub(crate) fn balance(shape: Shape) -> Result<Place, Error> {
        let (client, director) = (Namespace::new("client")?, Namespace::new("director")?);
        quiet(&client)?;
        quiet(&director)?;
        veth((&client, "c0"), (&director, "eth1"))?;
        give(&client, "c0", ["10.7.0.2/16", "2001:db8:7::2/64"])?;
        let mut devices = vec![(client.clone(), "c0".to_owned())];
        if shape != Shape::Wire {
            give(&director, "eth1", ["10.7.0.1/16", "2001:db8:7::1/64"])?;
            director.sysctl("net/ipv4/ip_forward", 1)?;
            director.sysctl("net/ipv6/conf/all/forwarding", 1)?;
            back(&director, ["10.7.0.2", "2001:db8:7::2"])?;
        }
        sources(&client)?;
        towards_vipas(&client, ["10.7.0.1", "2001:db8:7::1"])?;
        let mut servers = Vec::new();
        for number in 1..=2 {
            let server = Namespace::new(&format!("server {number}"))?;
            quiet(&server)?;
            let port = format!("eth{}", number + 1);
            veth((&director, port.as_str()), (&server, "eth0"))?;
            devices.push((server.clone(), "eth0".to_owned()));
            let near = [format!("10.8.{number}.1/24"), format!("2001:db8:8{number}::1/64")];
            let far = [format!("10.8.{number}.2/24"), format!("2001:db8:8{number}::2/64")];
            give(&server, "eth0", far.each_ref().map(String::as_str))?;
            if shape != Shape::Wire {
                give(&director, &port, near.each_ref().map(String::as_str))?;
            }
            if shape == Shape::Direct {
                let cable = format!("d{number}");
                veth((&client, cable.as_str()), (&server, "c0"))?;
                devices
                    .extend([(client.clone(), cable.clone()), (server.clone(), "c0".to_owned())]);
                let ends = |last| {
                    [format!("10.9.{number}.{last}/24"), format!("2001:db8:9{number}::{last}/64")]
                };
                give(&client, &cable, ends(1).each_ref().map(String::as_str))?;
                give(&server, "c0", ends(2).each_ref().map(String::as_str))?;
                let far = [format!("10.9.{number}.1"), format!("2001:db8:9{number}::1")];
                back(&server, far.each_ref().map(String::as_str))?;
                for prefix in ["10.7.0.0/16", "2001:db8:7::/64"] {
                    let via = &far[usize::from(prefix.contains("::"))];
                    server.route(prefix, &[Hop::via(via)], None)?;
                }
            } else {
                let near = near.each_ref().map(|near| near.split_once('/').unwrap_or_default().0);
                for (prefix, via) in ["0.0.0.0/0", "::/0"].into_iter().zip(near) {
                    server.route(prefix, &[Hop::via(via)], None)?;
                }
                if shape == Shape::Wire {
                    neighbours(&server, "eth0", near, client.mac("c0")?)?;
                    if number == 1 {
                        let to = server.mac("eth0")?;
                        neighbours(&client, "c0", ["10.7.0.1", "2001:db8:7::1"], to)?;
                    }
                }
            }
            if shape != Shape::Routed {
                own_vipas(&server)?;
            }
            servers.push(server);
        }
        let to = match shape {
            Shape::Wire => servers[0].mac("eth0")?,
            Shape::Routed | Shape::Direct => director.mac("eth1")?,
        };
        Ok(Place { client, director, servers, devices, link: ("c0".to_owned(), to), egress: None })
    }

    /// Of the scene *egress*.
    pub(crate) fn network(&self) -> Option<&Network> {
        self.egress.as_ref()
    }

    /// Whom the client asks.
    pub(crate) fn target(&self, family: Family) -> IpAddr {
        match self.egress {
            Some(_) => client_address(family),
            None => vipas(family)[0],
        }
    }

    /// How many addresses new connections come from.
    pub(crate) fn sources(&self) -> u32 {
        if self.egress.is_some() { 1 } else { 200 }
    }

    /// One of these, from 1.
    pub(crate) fn source(&self, family: Family, number: u32) -> IpAddr {
        match (&self.egress, family) {
            (Some(_), _) => vipas(family)[0],
            (None, Family::V4) => IpAddr::from([10, 6, 0, number as u8]),
            (None, Family::V6) => {
                IpAddr::from([0x2001, 0xdb8, 7, 1, 0, 0, 0, u16::from(number as u8)])
            }
        }
    }

    /// Checksum offload of client and servers. Off, the kernel of the receiver verifies each packet, and none is longer than an MTU.
    pub(crate) fn offload(&self, on: bool) -> Result<(), Error> {
        match &self.egress {
            Some(network) => network.tx_checksum(on)?,
            None => {
                for (namespace, device) in &self.devices {
                    namespace.tx_checksum(device, on)?;
                }
            }
        }
        Ok(())
    }
}

/// `ip WORDS` in a namespace.
pub(crate) fn ip(namespace: &Namespace, words: &str) -> Result<(), Error> {
    let mut command = namespace.command("ip");
    let output = command.args(words.split_whitespace()).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim()).into())
}

fn quiet(namespace: &Namespace) -> Result<(), Error> {
    for scope in ["all", "default"] {
        namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), 0)?;
        namespace.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), 0)?;
    }
    Ok(())
}

fn give(namespace: &Namespace, device: &str, addresses: [&str; 2]) -> Result<(), Error> {
    addresses.iter().try_for_each(|address| namespace.address(address, device))?;
    Ok(())
}

/// Whole prefixes are the client's own, for many source ports.
fn sources(client: &Namespace) -> Result<(), Error> {
    client.sysctl("net/ipv6/ip_nonlocal_bind", 1)?;
    ip(client, "route add local 10.6.0.0/24 dev lo")?;
    ip(client, "-6 route add local 2001:db8:7:1::/64 dev lo")
}

/// The way to those prefixes.
fn back(namespace: &Namespace, via: [&str; 2]) -> Result<(), Error> {
    namespace.route("10.6.0.0/24", &[Hop::via(via[0])], None)?;
    namespace.route("2001:db8:7:1::/64", &[Hop::via(via[1])], None)?;
    Ok(())
}

fn towards_vipas(client: &Namespace, via: [&str; 2]) -> Result<(), Error> {
    for (family, via) in Family::BOTH.into_iter().zip(via) {
        let prefix = format!("{}/{}", vipas(family)[0], family.bits());
        client.route(&prefix, &[Hop::via(via)], None)?;
    }
    Ok(())
}

/// The first VIPA of each family, on `lo`.
pub(crate) fn own_vipas(namespace: &Namespace) -> Result<(), Error> {
    for family in Family::BOTH {
        namespace.address(&format!("{}/{}", vipas(family)[0], family.bits()), "lo")?;
    }
    Ok(())
}

fn neighbours(
    namespace: &Namespace,
    device: &str,
    whose: [&str; 2],
    is: MacAddr,
) -> Result<(), Error> {
    for address in whose {
        ip(namespace, &format!("neigh replace {address} lladdr {is} dev {device} nud permanent"))?;
    }
    Ok(())
}
