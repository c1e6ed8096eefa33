//! The judge: Linux's own source NAT, in a namespace that stands as a router between two cables.
//!
//! ```text
//! inside: the host's packets ── in0 [ nftables: snat to the second VIPA ] out0 ── outside: remotes and routers
//! ```
//!
//! The host is a neighbour of the router, not the router itself, so that what is un-NATed can be captured on a
//! real device and any packet at all can be sent. What that costs: a router lowers the time to live by one, so one
//! more goes in; and connection tracking puts fragments together before NAT and splits them again after, so that
//! fragments are compared when joined.

use std::collections::HashMap;
use std::process::Stdio;

use vipa::lab::{self, Hop, Namespace};

use crate::addresses::{Way, bystander, default_vipa, flow_of, remotes, router, second_vipa};
use crate::bytes::change_ttl;
use crate::packet::{Ends, Layer4, Shape};
use crate::socket::PacketSocket;

/// Of the packet that closes a batch: not a flow's.
const MARKED: u16 = 0;

pub(crate) struct Kernel {
    _router: Namespace,
    _world: Namespace,
    inside: PacketSocket,
    outside: PacketSocket,
    batches: u16,
}

impl Kernel {
    /// Fails where the kernel lacks something: the judgement is never skipped.
    pub(crate) fn new() -> Kernel {
        let (router, world) = (namespace("judge"), namespace("world"));
        for (own, far) in [("in0", "inside"), ("out0", "outside")] {
            lab::veth((&router, own), (&world, far)).expect("a cable");
            // The kernel's own noise (neighbours, multicast) is none of the flows'.
            world.sysctl(&format!("net/ipv6/conf/{far}/disable_ipv6"), 1).expect("a setting");
        }
        set_up(&router, &world);
        let open = |device: &str, own: &str| {
            let ifindex = world.index(device).expect("a device");
            let mac = router.mac(own).expect("a device").0;
            world.run(|| PacketSocket::open(ifindex, mac)).expect("a packet socket")
        };
        let (inside, outside) = (open("inside", "in0"), open("outside", "out0"));
        Kernel { _router: router, _world: world, inside, outside, batches: 0 }
    }

    /// Sends packets into the router and returns what came out of it, flow by flow.
    pub(crate) fn pass(&mut self, way: Way, packets: &[Vec<u8>]) -> HashMap<u16, Vec<Vec<u8>>> {
        self.batches += 1;
        let mark = mark(way, self.batches);
        let (from, to) = match way {
            Way::Out => (&self.inside, &mut self.outside),
            Way::In => (&self.outside, &mut self.inside),
        };
        for packet in packets.iter().chain([&mark]) {
            let mut packet = packet.clone();
            change_ttl(&mut packet, 1);
            from.send(&packet);
        }
        let mut out: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
        // One processor and one queue: what came before the mark has gone, or never will.
        loop {
            let packet = to.receive();
            if packet == mark {
                return out;
            }
            if let Some(flow) = flow_of(&packet, way).filter(|flow| *flow != MARKED) {
                out.entry(flow).or_default().push(packet);
            }
        }
    }
}

/// The last packet of a batch: from and to bystanders, so that it goes through as it is.
fn mark(way: Way, batch: u16) -> Vec<u8> {
    let far = router(false, MARKED);
    let (source, destination) = match way {
        Way::Out => (bystander(false), far),
        Way::In => (far, bystander(false)),
    };
    let shape = Shape {
        layer4: Layer4::Other { protocol: 253 },
        payload: batch.to_be_bytes().to_vec(),
        ttl: 9,
        tos: 0,
        id: batch,
        may_fragment: true,
        options: vec![],
        extensions: vec![],
        is_wrong: false,
        is_zero: false,
        is_partial: false,
        split: None,
    };
    shape.build(Ends { source: (source, 0), destination: (destination, 0) }).0
}

fn namespace(name: &str) -> Namespace {
    Namespace::new(name).expect("a namespace (needs root)")
}

fn set_up(router: &Namespace, world: &Namespace) {
    let set = |path: &str, value: u32| {
        router.sysctl(path, value).unwrap_or_else(|e| panic!("the judge needs {path}: {e}"));
    };
    for scope in ["all", "in0", "out0"] {
        set(&format!("net/ipv4/conf/{scope}/rp_filter"), 0);
        set(&format!("net/ipv6/conf/{scope}/accept_dad"), 0);
        set(&format!("net/ipv6/conf/{scope}/forwarding"), 1);
    }
    set("net/ipv4/ip_forward", 1);
    router.address("10.1.1.2/24", "out0").expect("an address");
    router.address("2001:db8:1::2/64", "out0").expect("an address");
    router.route("0.0.0.0/0", &[Hop::via("10.1.1.1").dev("out0")], None).expect("a route");
    router.route("::/0", &[Hop::via("2001:db8:1::1").dev("out0")], None).expect("a route");
    let mut neighbours =
        vec![("10.1.1.1".to_owned(), "out0"), ("2001:db8:1::1".to_owned(), "out0")];
    for address in [false, true].into_iter().flat_map(|v6| [default_vipa(v6), bystander(v6)]) {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        router.route(&format!("{address}/{bits}"), &[Hop::on("in0")], None).expect("a route");
        neighbours.push((address.to_string(), "in0"));
    }
    for (address, device) in neighbours {
        let mac = world.mac(if device == "in0" { "inside" } else { "outside" }).expect("a device");
        let [a, b, c, d, e, f] = mac.0;
        let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        command(router, "ip", &["neigh", "replace", &address, "lladdr", &mac, "dev", device]);
    }
    let rules: String = [(false, "ip", "icmp"), (true, "ip6", "icmpv6")]
        .map(|(is_v6, family, icmp)| {
            let (second, remotes, default) =
                (second_vipa(is_v6), remotes(is_v6), default_vipa(is_v6));
            let matched = format!("oifname out0 {family} saddr {default} {family} daddr {remotes}");
            // Protocols whose port can be chosen get one; the others keep theirs, as with us.
            format!(
                "table {family} judge {{ chain out {{ type nat hook postrouting priority srcnat;
                    {matched} meta l4proto {{ tcp, udp, {icmp} }} snat to {second} fully-random
                    {matched} snat to {second}
                }}
                }}
"
            )
        })
        .concat();
    command(router, "nft", &[&rules]);
    // Tracking would leave what has a wrong checksum alone, and so would NAT: this way it is translated.
    set("net/netfilter/nf_conntrack_checksum", 0);
}

fn command(namespace: &Namespace, program: &str, arguments: &[&str]) {
    let output = namespace.command(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("the judge needs {program}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the judge needs {program} {arguments:?}: {error}");
}
