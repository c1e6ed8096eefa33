//! What is recorded replays; what was changed since is told; no secret, no stranger, no end of the disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use crate::lab::Scratch;
use crate::rip::Reject;
use crate::rip::auth::Keyring;
use crate::wire::rip::{Command, Told, Version, header, put, request_for_all};

const FAMILY: Family = Family::V4;
const SECRET: &str = "tell-nobody";
/// In place of the true bound, for time's sake.
const FULL: u64 = 1 << 20;

fn interface(is_live: bool) -> Interface {
    Interface {
        nic: NicId(0),
        is_live,
        has_carrier: true,
        is_waking: false,
        silent: Vec::new(),
        ifindex: 3,
        addresses: vec![("10.1.1.2".parse().expect("an address"), 24)],
        mtu: 1500,
    }
}

fn settings() -> Settings {
    let key = Key {
        id: 1,
        algorithm: Algorithm::Password,
        secret: SECRET.into(),
        from: None,
        until: None,
    };
    Settings { keys: vec![key], advertise: Advertise::All, ..Settings::default() }
}

fn response(count: u8, metric: u8) -> Vec<u8> {
    let mut message = header(Command::Response, Version::V2).to_vec();
    for n in 0..count {
        let prefix = format!("10.9.{n}.0/24").parse().expect("a prefix");
        put(&mut message, Version::V2, Told { prefix, tag: 0, metric });
    }
    message
}

/// A daemon's life, as the speaker drives it; `most` inputs that are heard.
fn record(path: &Path, most: usize) -> io::Result<()> {
    let began = Instant::now();
    let mut recorder = Recorder::create(path, began)?;
    recorder.left = FULL;
    let vipas = ["203.0.113.10".parse().expect("an address")];
    let mut daemon = Daemon::new(FAMILY, settings(), &vipas, 7, began);
    recorder.start(FAMILY, &settings(), &vipas, 7);
    let mut keys = Keyring::new(settings().keys, settings().timeout);
    let mut feed = |input: Input<'_>, after: u64| {
        let now = began + Duration::from_millis(after);
        recorder.input(FAMILY, input, now);
        daemon.take(input, now);
        let sends = daemon.take_sends();
        recorder.output(FAMILY, &daemon, &sends, now);
        recorder.end_turn()
    };
    feed(Input::Interfaces(&[interface(true)]), 1)?;
    let theirs: [&[u8]; 3] = [&response(9, 2), &request_for_all(Version::V2), &response(3, 16)];
    let signed: Vec<Vec<u8>> = theirs.iter().map(|m| keys.sign(m, 0).into_owned()).collect();
    let strange = [signed[0].clone(), signed[1].clone(), signed[2].clone(), theirs[0].to_vec()];
    let source: SocketAddr = "10.1.1.1:520".parse().expect("a socket address");
    for (bytes, after) in strange.iter().cycle().take(most).zip(0..) {
        let message = keys.verify(bytes, source.ip(), 0);
        let message = message.as_deref().map_err(|reject| *reject);
        let (nic, ttl, is_multicast) = (NicId(0), 1, true);
        feed(Input::Heard(Datagram { nic, source, ttl, is_multicast, message }), 10 + after)?;
    }
    for after in [30_000, 60_000, 240_000] {
        feed(Input::Tick, after)?;
    }
    feed(Input::Forwarding(false), 240_001)?;
    feed(Input::Interfaces(&[interface(false)]), 250_000)?;
    feed(Input::Withdraw, 250_001)
}

fn again(text: &str) -> Result<Replayed, Difference> {
    replay(text.as_bytes())
}

#[test]
fn what_was_recorded_happens_again() {
    let scratch = Scratch::new().expect("a scratch directory");
    let path = scratch.path().join("rip.jsonl");
    record(&path, 8).expect("room on the disk");
    let text = fs::read_to_string(&path).expect("the recording");
    let replayed = again(&text).unwrap_or_else(|difference| panic!("{difference}"));
    assert_eq!(replayed.inputs, 1 + 8 + 3 + 3);
    assert!(replayed.sent > 10 && replayed.routes > 9, "{replayed:?}");
    assert_eq!(replayed.rejected, 2, "unsigned, twice");
}

#[test]
fn no_secret_is_in_a_recording_and_only_its_owner_reads_it() {
    let scratch = Scratch::new().expect("a scratch directory");
    let path = scratch.path().join("rip.jsonl");
    fs::write(&path, "of before").expect("a file");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("our own");
    record(&path, 8).expect("room on the disk");
    let text = fs::read_to_string(&path).expect("the recording");
    assert!(text.contains("bytes") && !text.contains("of before"));
    for secret in [SECRET.to_owned(), hex(SECRET.as_bytes())] {
        assert!(!text.contains(&secret));
    }
    let mode = fs::metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let link = scratch.path().join("link");
    symlink(&path, &link).expect("a link");
    assert!(Recorder::create(&link, Instant::now()).is_err(), "it would overwrite another file");
}

#[test]
fn what_is_no_longer_as_it_was_is_told_with_its_line() {
    let scratch = Scratch::new().expect("a scratch directory");
    let path = scratch.path().join("rip.jsonl");
    record(&path, 8).expect("room on the disk");
    let text = fs::read_to_string(&path).expect("the recording");
    // A line less, or another one, of each kind of output.
    for kind in ["\"sent\"", "\"route\"", "\"rejected\""] {
        let at = text.lines().position(|line| line.contains(kind)).expect(kind);
        let lines = |change: &dyn Fn(&str) -> String| -> String {
            let line = |(n, line): (usize, &str)| {
                if n == at { change(line) } else { format!("{line}\n") }
            };
            text.lines().enumerate().map(line).collect()
        };
        assert!(again(&lines(&|_| String::new())).is_err(), "{kind} left out");
        let other = |line: &str| {
            let line = line.replace("10.1.1.1\"", "10.1.1.7\"");
            let line = line.replace("\"message\":\"01", "\"message\":\"02");
            format!("{line}\n")
        };
        match again(&lines(&other)) {
            Err(Difference::Other { line, .. }) => assert_eq!(line, at + 1, "{kind}"),
            result => panic!("{kind}: {result:?}"),
        }
    }
    // An input less.
    let fewer: Vec<&str> = text.lines().filter(|line| !line.contains("\"tick\"")).collect();
    assert!(again(&(fewer.join("\n") + "\n")).is_err());
}

#[test]
fn a_line_that_was_cut_off_ends_a_recording_and_one_that_is_none_is_told() {
    let scratch = Scratch::new().expect("a scratch directory");
    let path = scratch.path().join("rip.jsonl");
    record(&path, 8).expect("room on the disk");
    let text = fs::read_to_string(&path).expect("the recording");
    let cut = again(&text[..text.len() - 3]).expect("the lines before it");
    assert!(cut.is_cut);
    match again(&format!("{text}no line\n")) {
        Err(Difference::NoLine { line, .. }) => assert_eq!(line, text.lines().count() + 1),
        result => panic!("{result:?}"),
    }
    let headless: Vec<&str> = text.lines().skip(1).collect();
    assert!(matches!(again(&headless.join("\n")), Err(Difference::NoLine { line: 1, .. })));
}

#[test]
fn a_recording_that_is_full_ends_whole() {
    let scratch = Scratch::new().expect("a scratch directory");
    let path = scratch.path().join("rip.jsonl");
    let error = record(&path, usize::MAX).expect_err("it is bounded");
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    let size = fs::metadata(&path).expect("a file").len();
    assert!((FULL..FULL + (1 << 16)).contains(&size), "{size}");
    let text = fs::read_to_string(&path).expect("the recording");
    assert!(text.lines().last().expect("a line").contains("\"end\""));
    let replayed = again(&text).unwrap_or_else(|difference| panic!("{difference}"));
    assert!(!replayed.is_cut && replayed.inputs > 1000);
}

#[test]
fn every_reason_that_a_signature_is_refused_for_is_read_back() {
    let names: std::collections::BTreeSet<_> = Reject::OF_SIGNATURES.map(Reject::name).into();
    assert_eq!(names.len(), Reject::OF_SIGNATURES.len());
}
