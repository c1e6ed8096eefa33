//! More routes than a turn of the router sets: they come into the kernel's table, and go.

use std::net::UdpSocket;

use vipa::lab::Namespace;
use vipa::wire::ip::Prefix;
use vipa::wire::rip::{self, Command, MOST_ENTRIES, Told, Version};

use crate::fixture::{Bench, Setup, wait_until};

const ROUTES: u32 = 1000;

/// As a neighbour on the router's first link, all of them at this metric.
fn tell(router: &Namespace, metric: u8) {
    let socket = router.run(|| UdpSocket::bind("10.1.1.1:520")).expect("no other RIP there");
    let all: Vec<u32> = (0..ROUTES).collect();
    for part in all.chunks(MOST_ENTRIES) {
        let mut message = rip::header(Command::Response, Version::V2).to_vec();
        for number in part {
            let address = std::net::Ipv4Addr::from((100 << 24) + (64 << 16) + number * 256);
            let prefix = Prefix::new(address.into(), 24).expect("a length of IPv4");
            rip::put(&mut message, Version::V2, Told { prefix, tag: 0, metric });
        }
        socket.send_to(&message, "10.1.1.2:520").expect("a neighbour");
    }
}

/// Routes of the kind that are told, in vipa's table of the kernel: with their pairs.
fn held(bench: &Bench) -> usize {
    let shown = bench.run(&bench.network.host, "ip", &["-4", "route", "show", "table", "923"]);
    shown.lines().filter(|line| line.starts_with("100.")).count()
}

#[test]
fn a_thousand_routes_come_into_the_kernel_s_table_and_go() {
    let mut bench = Bench::prepare(&Setup::new(1).rip("versions = [2]\n"));
    bench.start_forwarder();
    let both = 2 * usize::try_from(ROUTES).expect("few");
    wait_until("RIP is spoken", || bench.status()["rip"]["sent"].as_u64() > Some(0));
    tell(&bench.network.router, 1);
    wait_until("all are learned", || bench.status()["rip"]["learned"] == ROUTES);
    wait_until("all are there, and all their pairs", || held(&bench) == both);
    assert_eq!(bench.status()["router"]["kernel_errors"], 0);
    assert_eq!(bench.status()["router"]["repaired"], 0, "what is set for the first time");

    bench.run(&bench.network.host, "ip", &["route", "flush", "table", "923"]);
    wait_until("they are put back", || held(&bench) == both);
    wait_until("that is counted", || {
        bench.status()["router"]["repaired"].as_u64() > Some(u64::from(ROUTES))
    });

    tell(&bench.network.router, 16);
    wait_until("all are gone", || held(&bench) == 0);
}
