//! Another host claims a VIPA (RFC 5227 section 2.4), or says what is no claim.

use std::time::Duration;

use etherparse::{EtherType, Ethernet2Header, PacketBuilder};
use pnet::datalink::{self, Channel, Config};
use vipa::lab::{Namespace, veth};
use vipa::wire::ethernet::MacAddr;
use vipa::wire::ip::Family;
use vipa::wire::neighbour::{Advertisement, Arp};

use super::announcements;
use super::link::{Capture, Link, vipa};
use crate::fixture::{number, run, wait_until};

fn claims(link: &Link, family: Family) -> u64 {
    link.announced(family)["conflict"]["claims"].as_u64().unwrap_or(0)
}

/// A host on the link that has the VIPAs as well.
fn rival(link: &Link) -> (Namespace, String) {
    let rival = Namespace::new("rival").expect("root");
    rival.sysctl("net/ipv6/conf/default/accept_dad", 0).expect("it can be set");
    veth((&link.switch, "r"), (&rival, "r0")).expect("a cable");
    link.switch.enslave("r", "lan").expect("a bridge");
    rival.address("10.1.1.50/24", "r0").expect("an address");
    rival.address("2001:db8:1::50/64", "r0").expect("an address");
    let mac = rival.mac("r0").expect("a device").to_string();
    (rival, mac)
}

#[test]
fn another_host_with_the_vipa_is_reported_and_not_fought_and_its_end_is_announced() {
    let link = Link::started("[announce]\ninterval = \"1s\"\n");
    let capture = Capture::on(&link.bob, "b0", &link.scratch);
    let asking = Capture::on(&link.alice, "a0", &link.scratch);
    let (rival, mac) = rival(&link);
    for family in Family::BOTH {
        wait_until("it is seen", || link.announced(family)["conflict"]["mac"] == mac.as_str());
    }
    let page =
        run(&link.host, crate::fixture::PROGRAM, &["status", "--state", state(&link).as_str()]);
    assert!(page.contains(&mac), "{page}");
    let log = link.forwarder.log();
    let told = |line: &&str| line.contains("another host claims") && line.contains(&mac);
    assert_eq!(log.lines().filter(told).count(), 2, "{log}");
    let defended = Family::BOTH.map(|family| capture.announcements(family).len());
    // It goes on answering whenever it is asked.
    for family in Family::BOTH {
        wait_until("it is asked", || claims(&link, family) > 3);
    }
    let now = Family::BOTH.map(|family| capture.announcements(family).len());
    assert_eq!(now, defended, "not a frame more though an interval is a second");
    let one = link.announced(Family::V4);
    assert!(number(&one["conflict"]["seconds"]) >= 8, "{one}");

    rival.delete_address("10.1.1.50/24", "r0").expect("it has it");
    rival.delete_address("2001:db8:1::50/64", "r0").expect("it has it");
    for (family, at) in Family::BOTH.into_iter().zip([0, 1]) {
        wait_until("it is over", || link.announced(family)["conflict"].is_null());
        wait_until("it is announced again", || capture.announcements(family).len() > now[at]);
    }
    assert!(link.forwarder.log().contains("no other host claims"));
    drop(asking);
}

fn state(link: &Link) -> String {
    link.scratch.path().join("state").display().to_string()
}

/// Puts a frame on the link.
fn put(namespace: &Namespace, device: &'static str, frame: &[u8]) {
    namespace.run(|| {
        let interfaces = datalink::interfaces();
        let interface = interfaces.iter().find(|i| i.name == device).expect("a device");
        let config = Config { read_timeout: Some(Duration::from_millis(10)), ..Config::default() };
        let Ok(Channel::Ethernet(mut sender, _)) = datalink::channel(interface, config) else {
            panic!("no channel")
        };
        sender.send_to(frame, None).expect("room").expect("sent");
    });
}

const STRANGER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x77]);

fn arp(bytes: &[u8]) -> Vec<u8> {
    let head =
        Ethernet2Header { source: STRANGER.0, destination: [0xff; 6], ether_type: EtherType::ARP };
    [&head.to_bytes()[..], bytes].concat()
}

fn icmpv6(hops: u8, body: &[u8]) -> Vec<u8> {
    let source = "fe80::77".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    let to = "ff02::1".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    let builder =
        PacketBuilder::ethernet2(STRANGER.0, [0x33, 0x33, 0, 0, 0, 1]).ipv6(source, to, hops);
    let head: [u8; 4] = body[4..8].try_into().expect("four bytes");
    let builder = builder.icmpv6_raw(body[0], body[1], head);
    let mut frame = Vec::new();
    builder.write(&mut frame, &body[8..]).expect("a packet");
    frame
}

/// Claims count from the first byte that makes them one; what is none is counted by its reason.
#[test]
fn what_is_malformed_is_counted_and_what_is_a_claim_is_one() {
    let link = Link::started("");
    let v4 = vipa(Family::V4).parse().expect("an address");
    let v6: std::net::Ipv6Addr = vipa(Family::V6).parse().expect("an address");
    let rejected =
        |reason: &str| link.status()["announcements"]["rejected"][reason].as_u64().unwrap_or(0);
    for family in Family::BOTH {
        wait_until("it hears", || announcements(&link, family) > 0);
    }
    let mut reverse = Arp::announcement(STRANGER, v4).bytes();
    reverse[7] = 3;
    put(&link.alice, "a0", &arp(&reverse));
    // eth1 and eth2 hear what is for all.
    wait_until("reverse ARP is counted", || rejected("malformed") == 2);
    let whole = Advertisement::announcement(STRANGER, v6);
    let mut endless = whole.clone();
    endless[25] = 0;
    let mut solicited = whole.clone();
    solicited[4] |= 0x40;
    for (bytes, reason, goal) in [
        (&endless, "malformed", 4),
        (&solicited, "malformed", 6),
        (&whole[..24].to_vec(), "nameless", 2),
    ] {
        put(&link.alice, "a0", &icmpv6(255, bytes));
        wait_until(reason, || rejected(reason) == goal);
    }
    put(&link.alice, "a0", &icmpv6(64, &whole));
    wait_until("it comes from afar", || rejected("hop_limit") == 2);
    // A probe of RFC 5227 is a question, and who speaks of another address does not speak of ours.
    put(&link.alice, "a0", &arp(&Arp::question((STRANGER, [0, 0, 0, 0].into()), v4).bytes()));
    put(&link.alice, "a0", &arp(&Arp::announcement(STRANGER, [10, 1, 1, 77].into()).bytes()));
    for family in Family::BOTH {
        assert!(link.announced(family)["conflict"].is_null());
    }
    put(&link.alice, "a0", &arp(&Arp::announcement(STRANGER, v4).bytes()));
    put(&link.alice, "a0", &icmpv6(255, &whole));
    for family in Family::BOTH {
        wait_until("it is a claim", || {
            link.announced(family)["conflict"]["mac"] == STRANGER.to_string()
        });
    }
}

/// Claims without end: one defence, and everything else goes on.
#[test]
fn a_flood_of_claims_draws_one_defence() {
    let mut link = Link::new("");
    let capture = Capture::on(&link.bob, "b0", &link.scratch);
    link.start();
    wait_until("the first are said", || {
        let said = |family, goal| announcements(&link, family) == goal;
        said(Family::V4, 2) && said(Family::V6, 3)
    });
    let before = Family::BOTH.map(|family| announcements(&link, family));
    let v4 = vipa(Family::V4).parse().expect("an address");
    let v6 = vipa(Family::V6).parse().expect("an address");
    for number in 0..500_u16 {
        let [high, low] = number.to_be_bytes();
        let mac = MacAddr([2, 0, 0, 0, high, low]);
        put(&link.alice, "a0", &arp(&Arp::announcement(mac, v4).bytes()));
        put(&link.alice, "a0", &icmpv6(255, &Advertisement::announcement(mac, v6)));
    }
    for family in Family::BOTH {
        wait_until("it is heard", || claims(&link, family) >= 400);
    }
    let after = Family::BOTH.map(|family| announcements(&link, family));
    assert_eq!(after, before.map(|times| times + 1));
    assert_eq!(Family::BOTH.map(|family| capture.announcements(family).len() as u64), after);
    let lines = link.forwarder.log().lines().filter(|l| l.contains("another host")).count();
    assert!(lines < 40, "{lines} lines");
}
