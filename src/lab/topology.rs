//! The network of the demo: client - router - (several cables) - host.
//!
//! ```text
//!                                     cables
//!  client            router      r1  ┌──────┐  h1      host
//!  10.9.0.2 ── 10.9.0.1  10.1.1.1 ───┤ b1   ├─── eth1  10.1.1.2
//!  2001:db8:9::2         10.1.2.1 ───┤ b2   ├─── eth2  10.1.2.2    VIPAs 203.0.113.10, .11
//!                        10.1.3.1 ───┤ b3   ├─── eth3  10.1.3.2          2001:db8:ffff::10, ::11
//!                                    └──────┘
//! ```
//!
//! A cable is a namespace of its own with a bridge per pair: pulled, both of its ends lose carrier and
//! neither device is set down, as with a real one; and the router's port outlives the host's NIC.
//! The router has static equal-cost routes to the VIPAs, unless it is to learn them, and heeds dead links and neighbours.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use super::error::Error;
use super::{End, Hop, Namespace, process, veth};
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::{Family, Prefix};

/// The client's address of a family.
pub fn client_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 9, 0, 2]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, 2]),
    }
}

/// The host's VIPAs of a family: the default source, and the second one.
pub fn vipas(family: Family) -> [IpAddr; 2] {
    match family {
        Family::V4 => [10, 11].map(|last| IpAddr::from([203, 0, 113, last])),
        Family::V6 => {
            [0x10, 0x11].map(|last| IpAddr::from([0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, last]))
        }
    }
}

/// Name of the host's NIC `nic`, from 1.
pub fn nic_name(nic: u8) -> String {
    format!("eth{nic}")
}

/// The four namespaces, wired.
#[derive(Debug)]
pub struct Network {
    /// The peer of all traffic.
    pub client: Namespace,
    /// Forwards between client and host.
    pub router: Namespace,
    /// Where the forwarder runs. It has addresses on its NICs and no routes beyond.
    pub host: Namespace,
    cables: Namespace,
    nics: u8,
}

impl Network {
    /// With this many NICs on the host (1 to 9), all of them with carrier.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub fn new(nics: u8) -> Result<Network, Error> {
        let network = Network {
            client: Namespace::new("client")?,
            router: Namespace::new("router")?,
            host: Namespace::new("host")?,
            cables: Namespace::new("cables")?,
            nics,
        };
        network.tune()?;
        veth((&network.client, "c0"), (&network.router, "c0"))?;
        for (namespace, last) in [(&network.router, 1), (&network.client, 2)] {
            namespace.address(&format!("10.9.0.{last}/24"), "c0")?;
            namespace.address(&format!("2001:db8:9::{last}/64"), "c0")?;
        }
        network.client.route("0.0.0.0/0", &[Hop::via("10.9.0.1")], None)?;
        network.client.route("::/0", &[Hop::via("2001:db8:9::1")], None)?;
        for nic in 1..=nics {
            let port = format!("r{nic}");
            veth((&network.cables, port.as_str()), (&network.router, port.as_str()))?;
            network.router.address(&format!("10.1.{nic}.1/24"), &port)?;
            network.router.address(&format!("2001:db8:{nic}::1/64"), &port)?;
            network.cables.bridge(&format!("b{nic}"), &[&port])?;
            network.create_nic(nic)?;
        }
        for family in Family::BOTH {
            for vipa in vipas(family) {
                network.equal_cost(&network.router, &vipa.to_string(), family, 2, None)?;
            }
        }
        Ok(network)
    }

    /// The router forgets its static routes to the VIPAs: it will be told.
    ///
    /// # Errors
    /// When they are gone.
    pub fn forget_vipas(&self) -> Result<(), Error> {
        let vipas = Family::BOTH.into_iter().flat_map(vipas);
        vipas.map(Prefix::host).try_for_each(|vipa| self.router.delete_route(&vipa.to_string()))
    }

    /// The router's ports towards the host.
    pub fn ports(&self) -> Vec<String> {
        self.nics().map(|nic| format!("r{nic}")).collect()
    }

    /// Where the cables lie; for counters on the way.
    pub fn cables(&self) -> &Namespace {
        &self.cables
    }

    /// All NICs of the host.
    pub fn nics(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.nics
    }

    /// Pulls the cable of `nic`: both ends lose carrier.
    ///
    /// # Errors
    /// When the NIC was deleted.
    pub fn pull_cable(&self, nic: u8) -> Result<(), Error> {
        self.cables.link_down(&format!("h{nic}"))?;
        self.cables.link_down(&format!("r{nic}"))
    }

    /// Plugs the cable of `nic` in again.
    ///
    /// # Errors
    /// When the NIC was deleted.
    pub fn plug_cable(&self, nic: u8) -> Result<(), Error> {
        self.cables.link_up(&format!("h{nic}"))?;
        self.cables.link_up(&format!("r{nic}"))
    }

    /// Makes the path of `nic` dead both ways; both ends keep their carrier.
    ///
    /// # Errors
    /// When there is no such cable.
    pub fn break_path(&self, nic: u8) -> Result<(), Error> {
        self.cables.release(&format!("r{nic}"))
    }

    /// Undoes [`Network::break_path`].
    ///
    /// # Errors
    /// When there is no such cable.
    pub fn mend_path(&self, nic: u8) -> Result<(), Error> {
        self.cables.enslave(&format!("r{nic}"), &format!("b{nic}"))
    }

    /// Takes `nic` out of the host while it runs; the router's port loses carrier.
    ///
    /// # Errors
    /// When it was deleted before.
    pub fn delete_nic(&self, nic: u8) -> Result<(), Error> {
        self.cables.link_down(&format!("r{nic}"))?;
        self.host.delete_link(&nic_name(nic))
    }

    /// Puts `nic` into the host, with its addresses and a cable.
    ///
    /// # Errors
    /// When it is there.
    pub fn create_nic(&self, nic: u8) -> Result<(), Error> {
        let (name, plug, port) = (nic_name(nic), format!("h{nic}"), format!("r{nic}"));
        let end = End::new(&self.host, &name).mac(MacAddr([2, 0, 0, 1, nic, 2]));
        veth((&self.cables, plug.as_str()), end)?;
        self.host.address(&format!("10.1.{nic}.2/24"), &name)?;
        self.host.address(&format!("2001:db8:{nic}::2/64"), &name)?;
        self.cables.enslave(&plug, &format!("b{nic}"))?;
        self.cables.link_up(&port)
    }

    /// Checksum offload of everything that sends: client, router and host. Off, the kernel of the
    /// receiver verifies each packet. A NIC that is missing is left out.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn tx_checksum(&self, on: bool) -> Result<(), Error> {
        self.client.tx_checksum("c0", on)?;
        self.router.tx_checksum("c0", on)?;
        for nic in self.nics() {
            self.router.tx_checksum(&format!("r{nic}"), on)?;
            if self.host.index(&nic_name(nic)).is_ok() {
                self.host.tx_checksum(&nic_name(nic), on)?;
            }
        }
        Ok(())
    }

    /// What a host without a forwarder has: the VIPAs on `lo`, and default routes over all NICs that heed
    /// dead links. To be called again after a NIC was deleted or created: the kernel forgets the route.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn route_by_kernel(&self) -> Result<(), Error> {
        for family in Family::BOTH {
            let bits = family.bits();
            for vipa in vipas(family) {
                self.host.address(&format!("{vipa}/{bits}"), "lo")?;
            }
            let default = format!("{}/0", family.unspecified());
            let [vipa, _] = vipas(family).map(|v| v.to_string());
            self.equal_cost(&self.host, &default, family, 1, Some(&vipa))?;
        }
        Ok(())
    }

    /// Writes a configuration for the forwarder: all NICs with their gateways, both VIPAs of each family,
    /// and the second one for TCP to `rewritten_port` of the client; and `more`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_config(&self, path: &Path, rewritten_port: u16, more: &str) -> Result<(), Error> {
        let all: Vec<String> =
            Family::BOTH.into_iter().flat_map(vipas).map(|vipa| format!("\"{vipa}\"")).collect();
        let mut text = format!("[virtual]\nname = \"vipa0\"\naddresses = [{}]\n", all.join(", "));
        for nic in self.nics() {
            let _ = write!(
                text,
                "\n[[nic]]\nname = \"{}\"\ngateway = [\"10.1.{nic}.1\", \"2001:db8:{nic}::1\"]\nhold-down = \"2s\"\n",
                nic_name(nic)
            );
        }
        let _ = write!(text, "\n{more}\n\n[source]\nsourcevipa = true\n");
        for family in Family::BOTH {
            let (client, [_, second]) = (client_address(family), vipas(family));
            let _ = write!(
                text,
                "\n[[source.rule]]\nprotocol = \"tcp\"\ndestination = \"{client}/{}\"\nport = \"{rewritten_port}\"\nuse = \"{second}\"\napply = \"forwarder\"\n",
                family.bits()
            );
        }
        process::write_file(path, &text)
    }

    fn equal_cost(
        &self,
        namespace: &Namespace,
        prefix: &str,
        family: Family,
        far_end: u8,
        source: Option<&str>,
    ) -> Result<(), Error> {
        let letter = if far_end == 2 { "r" } else { "eth" };
        let hops: Vec<(String, String)> = self
            .nics()
            .map(|nic| (format!("{letter}{nic}"), nic))
            .filter(|(device, _)| namespace.index(device).is_ok())
            .map(|(device, nic)| match family {
                Family::V4 => (device, format!("10.1.{nic}.{far_end}")),
                Family::V6 => (device, format!("2001:db8:{nic}::{far_end}")),
            })
            .collect();
        let hops: Vec<Hop<'_>> =
            hops.iter().map(|(device, via)| Hop::via(via).dev(device)).collect();
        namespace.route(prefix, &hops, source)
    }

    /// Settings that devices made later inherit.
    fn tune(&self) -> Result<(), Error> {
        for namespace in [&self.client, &self.router, &self.host, &self.cables] {
            for scope in ["all", "default"] {
                // No second of waiting for duplicates that cannot be.
                namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), 0)?;
                namespace.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), 0)?;
            }
        }
        for namespace in [&self.router, &self.host] {
            for scope in ["all", "default"] {
                for family in ["ipv4", "ipv6"] {
                    let path = format!("net/{family}/conf/{scope}/ignore_routes_with_linkdown");
                    namespace.sysctl(&path, 1)?;
                }
            }
            namespace.sysctl("net/ipv4/fib_multipath_use_neigh", 1)?;
            namespace.sysctl("net/ipv4/fib_multipath_hash_policy", 1)?;
            namespace.sysctl("net/ipv6/fib_multipath_hash_policy", 1)?;
        }
        for family in ["ipv4", "ipv6"] {
            // Of addresses, protocol and ports, read from the packet. By policy 1 it would heed the sending socket's own hash, which veth
            // hands on as no wire does, and which TCP changes at each of its timeouts.
            self.router.sysctl(&format!("net/{family}/fib_multipath_hash_policy"), 3)?;
            self.router.sysctl(&format!("net/{family}/fib_multipath_hash_fields"), 0x37)?;
        }
        self.router.sysctl("net/ipv4/ip_forward", 1)?;
        self.router.sysctl("net/ipv6/conf/all/forwarding", 1)?;
        if Path::new("/proc/sys/net/bridge").exists() {
            for family in ["ip", "ip6", "arp"] {
                self.cables.sysctl(&format!("net/bridge/bridge-nf-call-{family}tables"), 0)?;
            }
        }
        Ok(())
    }
}
