//! What FRR and BIRD said to a host with RIP, and what the core makes of it: captures/CASE.pcapng are the frames that came in by its eth1,
//! as `record` recorded them. Behind the router are 70 networks of each family, which are gone in the end.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use vipa::capture::Reader;
use vipa::forward::view::NicId;
use vipa::rip::auth::{Algorithm, Key, Keyring};
use vipa::rip::daemon::{Daemon, Datagram, Interface};
use vipa::rip::{Advertise, Reject, Settings};
use vipa::wire::ip::Family;
use vipa::wire::rip::{Command, Message, Version};

use crate::folder;

const NETWORKS: u8 = 70;
const ETH1: NicId = NicId(0);

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The host and what happened to it.
struct Host {
    daemons: Vec<(Family, Daemon)>,
    keys: Keyring,
    /// When the capture begins: as an instant, in nanoseconds since 1970.
    began: Option<(Instant, u64)>,
    /// A line for each datagram.
    told: String,
    /// Most routes that were known at a time.
    peak: usize,
    /// What was answered to whom: a request's answers.
    answers: usize,
}

impl Host {
    fn new(settings: Settings) -> Host {
        let vipas = [address("203.0.113.10"), address("2001:db8:ffff::10")];
        let now = Instant::now();
        let daemons = Family::BOTH.into_iter().map(|family| {
            let mut daemon = Daemon::new(family, settings.clone(), &vipas, 1, now);
            let all = [("10.1.1.2", 24), ("2001:db8:1::2", 64), ("fe80::ff:fe00:1", 64)];
            let addresses = all.map(|(text, length)| (address(text), length));
            let interface = Interface {
                nic: ETH1,
                is_live: true,
                has_carrier: true,
                is_waking: false,
                silent: Vec::new(),
                ifindex: 2,
                addresses: addresses.into_iter().filter(|a| Family::of(a.0) == family).collect(),
                mtu: 1500,
            };
            daemon.interface_timer(&[interface], now);
            daemon.take_sends();
            (family, daemon)
        });
        let (daemons, keys) = (daemons.collect(), Keyring::new(settings.keys, settings.timeout));
        let told = String::new();
        Host { daemons, keys, began: Some((now, 0)), told, peak: 0, answers: 0 }
    }

    fn hear_all(&mut self, case: &str) {
        let path = folder().join("captures").join(case).with_extension("pcapng");
        let file = File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut capture = Reader::new(file).expect("a capture");
        let mut began = None;
        while let Some(packet) = capture.next_packet().expect("a whole capture") {
            let first = *began.get_or_insert(packet.time);
            self.hear(packet.bytes, packet.time - first, packet.time / 1_000_000_000);
        }
    }

    fn hear(&mut self, frame: &[u8], after: u64, wall: u64) {
        let sliced = SlicedPacket::from_ethernet(frame).expect("a frame");
        let (source, destination, ttl): (IpAddr, IpAddr, u8) = match &sliced.net {
            Some(NetSlice::Ipv4(v4)) => {
                let header = v4.header();
                (header.source_addr().into(), header.destination_addr().into(), header.ttl())
            }
            Some(NetSlice::Ipv6(v6)) => {
                let header = v6.header();
                let ends = (header.source_addr().into(), header.destination_addr().into());
                (ends.0, ends.1, header.hop_limit())
            }
            other => panic!("no IP: {other:?}"),
        };
        let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("no UDP") };
        let family = Family::of(source);
        let (began, _) = self.began.expect("begun");
        let now = began + Duration::from_nanos(after);
        let found = self.daemons.iter_mut().find(|(of, _)| *of == family);
        let (_, daemon) = found.expect("a daemon of each family");
        while daemon.next_deadline() <= now {
            daemon.tick(daemon.next_deadline());
        }
        daemon.take_sends();
        let message = match family {
            Family::V4 => self.keys.verify(udp.payload(), source, wall),
            Family::V6 => Ok(Cow::Borrowed(udp.payload())),
        };
        let (before, refused) = (daemon.learned().count(), total(daemon));
        let is_multicast = destination.is_multicast() || destination == address("10.1.1.255");
        let port = SocketAddr::new(source, udp.source_port());
        let body = message.as_deref().map_err(|reject| *reject);
        daemon.receive(Datagram { nic: ETH1, source: port, ttl, is_multicast, message: body }, now);
        let sends = daemon.take_sends();
        let of = |command| sends.iter().filter(|s| s.to == port && s.message[0] == command).count();
        let (back, answers) = (of(1), of(2));
        self.answers += answers;
        let known = daemon.learned().count();
        self.peak = self.peak.max(known);
        let what = body.map_or_else(|reject| reject.name().to_owned(), |body| name(body, family));
        let way = if is_multicast { "to all" } else { "to us" };
        let _ = write!(self.told, "{source} {way}, hop limit {ttl}: {what}");
        let _ = match (known, answers, total(daemon) - refused) {
            (_, 0, 0) if known == before => writeln!(self.told),
            (_, 0, 0) => writeln!(self.told, " -> {known} routes"),
            (_, _, 0) => writeln!(self.told, " -> {answers} answers, {back} questions"),
            (_, _, n) => writeln!(self.told, " -> {n} refused, {known} routes"),
        };
    }

    fn rejects(&self) -> Vec<Reject> {
        self.daemons.iter().flat_map(|(_, d)| d.rejects().keys().map(|(_, r)| *r)).collect()
    }

    /// Networks behind the router that are known.
    fn known(&self) -> usize {
        self.daemons.iter().map(|(_, daemon)| daemon.learned().count()).sum()
    }
}

fn total(daemon: &Daemon) -> u64 {
    daemon.rejects().values().sum()
}

fn name(body: &[u8], family: Family) -> String {
    match Message::parse(body, family) {
        Err(error) => error.to_string(),
        Ok(message) => {
            let version = match message.version {
                Version::V1 => "RIPv1",
                Version::V2 => "RIPv2",
                Version::Ng => "RIPng",
            };
            let command = match message.command {
                Command::Request => "request",
                Command::Response => "response",
            };
            format!("{version} {command} of {}", message.len())
        }
    }
}

fn key(id: u8, algorithm: Algorithm, secret: &str) -> Vec<Key> {
    vec![Key { id, algorithm, secret: secret.into(), from: None, until: None }]
}

fn heard(case: &str, settings: Settings) -> Host {
    let mut host = Host::new(Settings { advertise: Advertise::All, ..settings });
    host.hear_all(case);
    host
}

fn of_version(v1: bool) -> Settings {
    // RFC 2453 section 3.8: nothing is forgotten by itself within the few seconds of a capture.
    Settings { is_v1: v1, is_v2: !v1, ..Settings::default() }
}

fn signed(keys: Vec<Key>) -> Settings {
    Settings { keys, is_ng: false, ..Settings::default() }
}

/// All 70 networks were known, each by the router, and in the end none of them is.
fn is_whole(host: &Host) {
    assert!(host.peak >= usize::from(NETWORKS), "{}", host.told);
    assert_eq!(host.known(), 0, "{}", host.told);
}

#[test]
fn frr_version_1() {
    let host = heard("frr-v1", of_version(true));
    is_whole(&host);
    assert!(host.answers > 0 && host.rejects().is_empty(), "{}", host.told);
    insta::assert_snapshot!(host.told);
}

#[test]
fn frr_version_2_and_ng() {
    let host = heard("frr-v2", of_version(false));
    is_whole(&host);
    assert!(host.answers > 1 && host.rejects().is_empty(), "{}", host.told);
    insta::assert_snapshot!(host.told);
}

#[test]
fn frr_md5() {
    let host = heard("frr-md5", signed(key(1, Algorithm::Md5, "a-secret")));
    is_whole(&host);
    // FRR asks unsigned; RIPng is not spoken.
    assert_eq!(host.rejects(), [Reject::Unsigned, Reject::Version]);
    insta::assert_snapshot!(host.told);
}

#[test]
fn bird_version_1_asks_and_tells_nothing() {
    let host = heard("bird-v1", of_version(true));
    assert!(host.answers > 0 && host.rejects().is_empty(), "{}", host.told);
    insta::assert_snapshot!(host.told);
}

#[test]
fn bird_version_2_and_ng() {
    let host = heard("bird-v2", of_version(false));
    is_whole(&host);
    assert!(host.answers > 1 && host.rejects().is_empty(), "{}", host.told);
    insta::assert_snapshot!(host.told);
}

#[test]
fn bird_md5() {
    let host = heard("bird-md5", signed(key(1, Algorithm::Md5, "a-secret")));
    is_whole(&host);
    assert!(host.answers > 0, "its request is signed");
    assert_eq!(host.rejects(), [Reject::Version]);
    insta::assert_snapshot!(host.told);
}

#[test]
fn bird_hmac_sha_256() {
    let host = heard("bird-sha", signed(key(9, Algorithm::HmacSha256, "a-secret")));
    is_whole(&host);
    assert!(host.answers > 0, "its request is signed");
    assert_eq!(host.rejects(), [Reject::Version]);
    insta::assert_snapshot!(host.told);
}

#[test]
fn with_another_secret_or_number_or_algorithm_nothing_is_believed() {
    let of = |case: &str, id, algorithm, secret: &str| {
        let host = heard(case, signed(key(id, algorithm, secret)));
        assert_eq!((host.peak, host.answers), (0, 0), "{}", host.told);
        host.rejects().into_iter().filter(|reject| *reject != Reject::Version).collect::<Vec<_>>()
    };
    assert_eq!(of("bird-md5", 1, Algorithm::Md5, "another"), [Reject::Digest]);
    assert_eq!(of("bird-md5", 2, Algorithm::Md5, "a-secret"), [Reject::KeyId]);
    assert_eq!(of("bird-sha", 9, Algorithm::HmacSha512, "a-secret"), [Reject::Digest]);
    assert_eq!(of("bird-v2", 1, Algorithm::Md5, "a-secret"), [Reject::Unsigned]);
    assert_eq!(of("frr-md5", 1, Algorithm::Md5, "A-secret"), [Reject::Unsigned, Reject::Digest]);
    // Nor is a signature where there are no keys.
    let host = heard("bird-md5", of_version(false));
    assert!(host.rejects().contains(&Reject::Signed), "{}", host.told);
}

#[test]
fn what_was_captured_is_not_believed_again() {
    let settings = signed(key(9, Algorithm::HmacSha256, "a-secret"));
    let mut host = Host::new(settings);
    host.hear_all("bird-sha");
    assert!(!host.rejects().contains(&Reject::Replayed));
    host.hear_all("bird-sha");
    assert!(host.rejects().contains(&Reject::Replayed), "{}", host.told);
    assert_eq!(host.known(), 0);
}
