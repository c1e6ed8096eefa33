//! What a neighbour may send to RIP and RIPng, signed or not: any datagrams at all. The table stays within its bound, the VIPAs' own
//! routes stay what they are, and all that is sent is what we would read.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use vipa::forward::view::NicId;
use vipa::rip::auth::{Algorithm, Key};
use vipa::rip::daemon::{Daemon, Datagram, Interface};
use vipa::rip::table::Origin;
use vipa::rip::{Advertise, NicSettings, Settings};
use vipa::wire::ip::{Family, Prefix};
use vipa::wire::rip::Message;

const MOST: usize = 8;

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn settings(is_signed: bool) -> Settings {
    let key = Key {
        id: 1,
        algorithm: Algorithm::Md5,
        secret: b"secret".to_vec(),
        from: None,
        until: None,
    };
    Settings {
        is_v1: !is_signed,
        is_v2: true,
        is_ng: true,
        update: Duration::from_secs(30),
        timeout: Duration::from_secs(180),
        garbage: Duration::from_secs(120),
        advertise: Advertise::All,
        metric: 1,
        accept: Vec::new(),
        most_routes: MOST,
        nics: vec![NicSettings::default(); 2],
        keys: if is_signed { vec![key] } else { Vec::new() },
        has_bfd: true,
    }
}

fn interface(number: u8) -> Interface {
    Interface {
        nic: NicId(number),
        has_carrier: true,
        silent: Vec::new(),
        is_live: true,
        ifindex: u32::from(number) + 1,
        addresses: vec![
            (address(&format!("10.1.{number}.2")), 24),
            (address(&format!("fe80::{number}:2")), 64),
        ],
        mtu: 1500,
    }
}

/// The first byte chooses the family, whether it is signed, and the NIC; then each datagram has its length in two bytes, and how many
/// seconds pass before it in a third.
pub(crate) fn check(data: &[u8]) {
    let Some((&how, mut rest)) = data.split_first() else { return };
    let family = if how & 1 == 0 { Family::V4 } else { Family::V6 };
    let nic = NicId(how >> 1 & 1);
    let vipas = [address("203.0.113.10"), address("2001:db8::10")];
    let mut now = Instant::now();
    let mut daemon = Daemon::new(family, settings(how & 4 != 0), &vipas, 1, now);
    daemon.interface_timer(&[interface(0), interface(1)], now, 0);
    let (neighbour, port) = match family {
        Family::V4 => (address(&format!("10.1.{}.1", nic.0)), 520),
        Family::V6 => (address("fe80::1"), 521),
    };
    while let [high, low, seconds, behind @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        let (payload, next) = behind.split_at(length);
        rest = next;
        now += Duration::from_secs(u64::from(*seconds));
        let source = SocketAddr::new(neighbour, port);
        daemon.receive(Datagram { nic, source, ttl: 255, is_multicast: true, payload }, now, 0);
        if daemon.next_deadline() <= now {
            daemon.tick(now, 0);
        }
        hold(&mut daemon, family);
    }
}

fn hold(daemon: &mut Daemon, family: Family) {
    let table = daemon.table();
    let is_learned = |origin: &Origin| matches!(origin, Origin::Learned(_));
    assert!(table.iter().filter(|(_, route)| is_learned(&route.origin)).count() <= MOST);
    assert!(table.iter().all(|(_, route)| (1..=16).contains(&route.metric)));
    let vipa = match family {
        Family::V4 => Prefix::host(address("203.0.113.10")),
        Family::V6 => Prefix::host(address("2001:db8::10")),
    };
    assert_eq!(table.get(&vipa).map(|route| &route.origin), Some(&Origin::Virtual));
    for send in daemon.take_sends() {
        // A digest at its end is no entry.
        let signed = send.payload.get(4..8) == Some(&[0xff, 0xff, 0, 3]);
        let body = if signed { send.payload.len() - 20 } else { send.payload.len() };
        assert!(Message::parse(&send.payload[..body], family).is_ok());
    }
}
