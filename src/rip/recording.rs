//! What the daemons heard, what happened to them and what they made of it, line by line (JSON), and the same again from such a file: a
//! recording of a host that behaves strangely is a test of the core.
//!
//! A recording begins with the daemon. Signatures are taken off before a message is written, and what was refused for its signature
//! is not written at all, so no secret is in it.

mod replay;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::auth::{Algorithm, Key};
use super::daemon::{Daemon, Datagram, Input, Interface, Rejects, Send};
use super::{Advertise, NicSettings, Settings};
use crate::forward::view::NicId;
use crate::wire::ip::{Family, Prefix};

pub use replay::{Difference, Replayed, replay};

/// Bytes of a recording at most.
pub const LARGEST: u64 = 64 << 20;

/// A line: when, of which daemon, and what.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    /// Nanoseconds since the start.
    at: u64,
    family: Family,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum What {
    /// The first line of a daemon.
    Start(Start),
    // What goes in …
    Interfaces(Vec<Interface>),
    Forwarding(bool),
    Heard {
        nic: NicId,
        source: SocketAddr,
        ttl: u8,
        is_multicast: bool,
        message: Heard,
    },
    Tick {},
    Withdraw {},
    // … and what comes out.
    Sent {
        nic: NicId,
        from: Option<IpAddr>,
        to: SocketAddr,
        message: String,
    },
    /// The ways of a learned route; none: it is gone.
    Route {
        prefix: String,
        ways: Vec<(NicId, IpAddr)>,
    },
    /// So often by now.
    Rejected {
        neighbour: IpAddr,
        reason: String,
        times: u64,
    },
    /// That was all that came out so far.
    Turn {},
    /// The file is full.
    End {},
}

/// A message in hexadecimal, or why its signature was not believed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Heard {
    Bytes(String),
    Refused(String),
}

/// `[rip]` without its keys, and what else a daemon begins with.
#[derive(Debug, Serialize, Deserialize)]
struct Start {
    vipa: String,
    seed: u64,
    vipas: Vec<IpAddr>,
    versions: (bool, bool, bool),
    update: Duration,
    timeout: Duration,
    garbage: Duration,
    advertise: Advertise,
    metric: u8,
    accept: Vec<String>,
    routes: usize,
    nics: Vec<NicSettings>,
    is_signed: bool,
}

impl Start {
    fn new(settings: &Settings, vipas: &[IpAddr], seed: u64) -> Start {
        Start {
            vipa: env!("CARGO_PKG_VERSION").to_owned(),
            seed,
            vipas: vipas.to_vec(),
            versions: (settings.is_v1, settings.is_v2, settings.is_ng),
            update: settings.update,
            timeout: settings.timeout,
            garbage: settings.garbage,
            advertise: settings.advertise,
            metric: settings.metric,
            accept: settings.accept.iter().map(Prefix::to_string).collect(),
            routes: settings.most_routes,
            nics: settings.nics.clone(),
            is_signed: !settings.keys.is_empty(),
        }
    }

    /// With a key that stands for those that are not told: the core asks only whether there are any.
    fn settings(&self) -> Option<Settings> {
        let key =
            Key { id: 0, algorithm: Algorithm::Md5, secret: Vec::new(), from: None, until: None };
        Some(Settings {
            is_v1: self.versions.0,
            is_v2: self.versions.1,
            is_ng: self.versions.2,
            update: self.update,
            timeout: self.timeout,
            garbage: self.garbage,
            advertise: self.advertise,
            metric: self.metric,
            accept: self.accept.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?,
            most_routes: self.routes,
            nics: self.nics.clone(),
            keys: if self.is_signed { vec![key] } else { Vec::new() },
            record: None,
        })
    }
}

/// Ways of routes, and rejections, as last written of a daemon.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    version: u64,
    ways: BTreeMap<Prefix, Vec<(NicId, IpAddr)>>,
    rejects: Rejects,
}

/// Writes a recording.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    began: Instant,
    /// Of the turn that goes on.
    lines: Vec<u8>,
    left: u64,
    known: BTreeMap<Family, Known>,
}

impl Recorder {
    /// Into `path`, which only its owner may read; what was there is lost.
    ///
    /// # Errors
    /// It cannot be written, or is a symbolic link.
    pub fn create(path: &Path, began: Instant) -> io::Result<Recorder> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        let (lines, known) = (Vec::new(), BTreeMap::new());
        Ok(Recorder { file, began, lines, left: LARGEST, known })
    }

    /// A daemon begins, at the moment that the recorder was made for.
    pub fn start(&mut self, family: Family, settings: &Settings, vipas: &[IpAddr], seed: u64) {
        self.known.insert(family, Known::default());
        let start = Start::new(settings, vipas, seed);
        self.write(family, self.began, What::Start(start));
    }

    /// `input` is about to go in.
    pub fn input(&mut self, family: Family, input: Input<'_>, now: Instant) {
        let what = match input {
            Input::Interfaces(interfaces) => What::Interfaces(interfaces.to_vec()),
            Input::Forwarding(is_forwarding) => What::Forwarding(is_forwarding),
            Input::Heard(Datagram { nic, source, ttl, is_multicast, message }) => {
                let message = match message {
                    Ok(bytes) => Heard::Bytes(hex(bytes)),
                    Err(reject) => Heard::Refused(reject.name().to_owned()),
                };
                What::Heard { nic, source, ttl, is_multicast, message }
            }
            Input::Tick => What::Tick {},
            Input::Withdraw => What::Withdraw {},
        };
        self.write(family, now, what);
    }

    /// All of `sends` has come out of `daemon`, and whatever else is new of it.
    pub fn output(&mut self, family: Family, daemon: &Daemon, sends: &[Send], now: Instant) {
        for send in sends {
            let Send { nic, from, to, ref message } = *send;
            self.write(family, now, What::Sent { nic, from, to, message: hex(message) });
        }
        let mut known = self.known.remove(&family).unwrap_or_default();
        if known.version != daemon.version() {
            let ways: BTreeMap<_, _> =
                daemon.learned().map(|l| (l.prefix, l.ways.to_vec())).collect();
            let gone = known.ways.keys().filter(|prefix| !ways.contains_key(prefix));
            let gone = gone.map(|prefix| (*prefix, Vec::new()));
            let is_new = |(prefix, new): &(&Prefix, &Vec<_>)| known.ways.get(prefix) != Some(*new);
            let new = ways.iter().filter(is_new).map(|(prefix, ways)| (*prefix, ways.clone()));
            for (prefix, ways) in gone.chain(new) {
                self.write(family, now, What::Route { prefix: prefix.to_string(), ways });
            }
            (known.version, known.ways) = (daemon.version(), ways);
        }
        for (&(neighbour, reject), &times) in daemon.rejects() {
            if known.rejects.insert((neighbour, reject), times) != Some(times) {
                let reason = reject.name().to_owned();
                self.write(family, now, What::Rejected { neighbour, reason, times });
            }
        }
        self.known.insert(family, known);
        if !self.lines.is_empty() {
            self.write(family, now, What::Turn {});
        }
    }

    /// What was written since the last time goes to the file: an input never without its outputs.
    ///
    /// # Errors
    /// The file takes no more, for whatever reason.
    pub fn end_turn(&mut self) -> io::Result<()> {
        self.file.write_all(&self.lines)?;
        self.left = self.left.saturating_sub(self.lines.len() as u64);
        self.lines.clear();
        if self.left == 0 {
            self.write(Family::V4, self.began, What::End {});
            self.file.write_all(&self.lines)?;
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is full"));
        }
        Ok(())
    }

    fn write(&mut self, family: Family, now: Instant, what: What) {
        let at = now.saturating_duration_since(self.began).as_nanos() as u64;
        // Nothing of it is a map with keys that are no text, and memory takes all.
        if serde_json::to_writer(&mut self.lines, &Line { at, family, what }).is_ok() {
            self.lines.push(b'\n');
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    text.as_bytes().chunks(2).map(|two| pair(two).filter(|_| two.len() == 2)).collect()
}
