//! The host: beside its NICs a management NIC that holds the default route of main, and an operator behind it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output};

use vipa::lab::topology::{client_address, vipas};
use vipa::lab::{Hop, Namespace, veth};
use vipa::wire::ip::Family;

use crate::fixture::{Bench, Conversation, PROGRAM, Peer, ROUND, Setup, nic_addresses, wait_until};

const PORT: u16 = 7001;
/// Rounds of a conversation that say and hear 300 kB.
const EXCHANGE: u64 = 50;

pub(crate) struct Host {
    pub(crate) bench: Bench,
    operator: Namespace,
}

impl Host {
    /// Not started yet; with rules that the forwarder applies, so that all of it is set up.
    pub(crate) fn new() -> Host {
        let rule = "protocol = \"tcp\"\nport = \"7443\"";
        let bench = Bench::prepare(&Setup::new(2).second_vipa(rule));
        let operator = Namespace::new("operator").expect("a namespace");
        let host = &bench.network.host;
        veth((&operator, "m0"), (host, "mgmt")).expect("a cable");
        operator.address("192.168.9.1/24", "m0").expect("an address");
        host.address("192.168.9.2/24", "mgmt").expect("an address");
        let route =
            |to: &str, by, dev| host.route(to, &[Hop::via(by).dev(dev)], None).expect("a route");
        route("0.0.0.0/0", "192.168.9.1", "mgmt");
        // The router's far side, for what is bound to a NIC's address; the client has no route but the default.
        for (family, by) in Family::BOTH.into_iter().zip(["10.1.1.1", "2001:db8:1::1"]) {
            route(&format!("{}/{}", far_side(family), family.bits()), by, "eth1");
        }
        host.sysctl("net/ipv4/conf/mgmt/rp_filter", 1).expect("it can be set");
        host.sysctl("net/ipv4/conf/eth1/rp_filter", 1).expect("it can be set");
        host.sysctl("net/ipv4/ip_local_reserved_ports", 8080).expect("it can be set");
        for namespace in [host, &bench.network.router, &bench.network.client] {
            Peer::listen(namespace, PORT);
        }
        Host { bench, operator }
    }

    pub(crate) fn started() -> Host {
        let mut host = Host::new();
        host.bench.start_forwarder();
        host
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.bench.scratch.path().join("state")
    }

    /// `vipa ARGUMENTS` in the host's network.
    pub(crate) fn vipa(&self, arguments: &[&str]) -> Output {
        let mut command = self.bench.network.host.command(PROGRAM);
        command.args(arguments).env("RUNTIME_DIRECTORY", self.state()).env_remove("NOTIFY_SOCKET");
        command.output().expect("vipa can be started")
    }

    /// What it says, in one line.
    pub(crate) fn down(&self, arguments: &[&str]) -> String {
        let output = self.vipa(&[&["down"], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(told.lines().count(), 1, "{told}");
        told
    }

    /// Sends the forwarder a signal, and waits until it has ended of itself.
    pub(crate) fn signal(&mut self, signal: &str) {
        let forwarder = &mut self.bench.forwarder;
        let pid = forwarder.pid().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status().expect("kill exists");
        assert!(sent.success());
        let mut status = None;
        wait_until("the forwarder ends", || {
            status = forwarder.ended();
            status.is_some()
        });
        assert!(status.is_some_and(|s| s.success()), "{status:?}: {}", forwarder.log());
        assert!(forwarder.log().contains("the kernel forwards"), "{}", forwarder.log());
    }

    /// Bytes that left by the NICs of vipa.
    pub(crate) fn sent_by_nics(&self) -> u64 {
        let sent = |nic| self.bench.network.host.counters(nic).expect("it exists").tx_bytes;
        ["eth1", "eth2"].map(sent).iter().sum()
    }

    /// New TCP connections from the host to `to` in `there`, data both ways: the source is the VIPA and the
    /// bytes leave by a NIC of vipa; and from `there` to the VIPA.
    fn reaches(&self, there: &Namespace, to: IpAddr) {
        let [vipa, _] = vipas(Family::of(to));
        let before = self.sent_by_nics();
        let out = Conversation::open(&self.bench.network.host, SocketAddr::new(to, PORT));
        assert_eq!(out.seen.ip(), vipa, "the source on the wire");
        let back = Conversation::open(there, SocketAddr::new(vipa, PORT));
        for conversation in [out, back] {
            conversation.goes_on(EXCHANGE);
            conversation.finish();
        }
        let sent = self.sent_by_nics() - before;
        assert!(sent >= 2 * EXCHANGE * ROUND as u64, "only {sent} bytes left by NICs");
    }

    /// New connections to and from a routed host and one on the link, both families.
    pub(crate) fn reaches_all(&self) {
        let network = &self.bench.network;
        for family in Family::BOTH {
            self.reaches(&network.client, client_address(family));
        }
        for on_link in ["10.1.1.1", "2001:db8:2::1"] {
            self.reaches(&network.router, on_link.parse().expect("an address"));
        }
    }

    /// An operator's with the management NIC, two with NICs' addresses, and two from these.
    pub(crate) fn physical_conversations(&self) -> Vec<Conversation> {
        let network = &self.bench.network;
        let to = |text: &str| SocketAddr::new(text.parse().expect("an address"), PORT);
        let mut all = vec![
            Conversation::open(&self.operator, to("192.168.9.2")),
            Conversation::open(&network.router, to("10.1.1.2")),
            Conversation::open(&network.router, to("2001:db8:2::2")),
        ];
        for family in Family::BOTH {
            let from = SocketAddr::new(nic_addresses(network, family)[0], 0);
            let to = SocketAddr::new(far_side(family), PORT);
            all.push(Conversation::open_bound(&network.host, from, to));
        }
        all
    }

    /// To a VIPA and from it, both families.
    pub(crate) fn conversations_of_vipas(&self) -> Vec<Conversation> {
        let network = &self.bench.network;
        let mut all = Vec::new();
        for family in Family::BOTH {
            let [vipa, _] = vipas(family);
            all.push(Conversation::open(&network.client, SocketAddr::new(vipa, PORT)));
            let client = SocketAddr::new(client_address(family), PORT);
            all.push(Conversation::open(&network.host, client));
        }
        all
    }
}

/// The router's address on the client's network.
fn far_side(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, 9, 0, 1]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 9, 0, 0, 0, 0, 1]),
    }
}

/// Each of them is alive and carries new words.
#[track_caller]
pub(crate) fn all_go_on(conversations: &[Conversation]) {
    for conversation in conversations {
        conversation.goes_on(3); // one may be under way already
    }
}
