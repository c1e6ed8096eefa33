//! What a neighbour may send to RIP and RIPng, signed or not: any datagrams at all. The table stays within its bound, the VIPAs' own
//! routes stay what they are, and all that is sent is what we would read.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use vipa::forward::view::NicId;
use vipa::rip::auth::{Algorithm, Key, Keyring};
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
        advertise: Advertise::All,
        most_routes: MOST,
        nics: vec![NicSettings::default(); 2],
        keys: if is_signed { vec![key] } else { Vec::new() },
        ..Settings::default()
    }
}

fn interface(number: u8) -> Interface {
    Interface {
        nic: NicId(number),
        has_carrier: true,
        is_waking: false,
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
    let settings = settings(how & 4 != 0);
    let keys = if family == Family::V4 { settings.keys.clone() } else { Vec::new() };
    let mut keys = Keyring::new(keys, settings.timeout);
    let mut daemon = Daemon::new(family, settings, &vipas, 1, now);
    daemon.interface_timer(&[interface(0), interface(1)], now);
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
        let message = match family {
            Family::V4 => keys.verify(payload, source.ip(), 0),
            Family::V6 => Ok(Cow::Borrowed(payload)),
        };
        let message = message.as_deref().map_err(|reject| *reject);
        daemon.receive(Datagram { nic, source, ttl: 255, is_multicast: true, message }, now);
        if daemon.next_deadline() <= now {
            daemon.tick(now);
        }
        hold(&mut daemon, family, &mut keys);
    }
}

fn hold(daemon: &mut Daemon, family: Family, keys: &mut Keyring) {
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
        assert!(Message::parse(&send.message, family).is_ok());
        // Our own signature is one that we would believe.
        if family == Family::V4 {
            let signed = keys.sign(&send.message, 0).into_owned();
            let us = address("10.1.9.9");
            assert_eq!(keys.verify(&signed, us, 0).as_deref(), Ok(&send.message[..]));
        }
    }
}
