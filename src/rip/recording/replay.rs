//! A recording again: what went in goes into a new core, and what comes out must be what came out.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead};
use std::time::{Duration, Instant};

use super::{Heard, Known, Line, What, from_hex, hex};
use crate::rip::Reject;
use crate::rip::daemon::{Daemon, Datagram, Input, Send};
use crate::wire::ip::{Family, Prefix};

/// What was replayed without a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Inputs of all daemons.
    pub inputs: u64,
    /// Messages that they sent.
    pub sent: u64,
    /// Changes of a learned route.
    pub routes: u64,
    /// Counts of rejections.
    pub rejected: u64,
    /// The last line is not whole: what follows from the lines before it was not looked at.
    pub is_cut: bool,
}

/// Where the core does not do what it did.
#[derive(Debug, thiserror::Error)]
pub enum Difference {
    /// The file could not be read.
    #[error("line {line}: {source}")]
    Unreadable {
        /// From 1.
        line: usize,
        /// The reason.
        source: io::Error,
    },
    /// No line of a recording.
    #[error("line {line}: {why}")]
    NoLine {
        /// From 1.
        line: usize,
        /// The reason.
        why: String,
    },
    /// Other than what was recorded.
    #[error("line {line}: recorded was {recorded}, now it is {now}")]
    Other {
        /// From 1; past the last one: at the end.
        line: usize,
        /// What should be.
        recorded: String,
        /// What is.
        now: String,
    },
}

/// A daemon anew.
struct Again {
    daemon: Daemon,
    sends: VecDeque<Send>,
    recorded: Known,
}

/// Replays a whole recording.
///
/// # Errors
/// The first line that is none, or that does not follow.
pub fn replay(mut recording: impl BufRead) -> Result<Replayed, Difference> {
    // Any moment does; the recording counts from it.
    let began = Instant::now();
    let (mut daemons, mut done) = (BTreeMap::new(), Replayed::default());
    let mut number = 0;
    loop {
        number += 1;
        let mut text = Vec::new();
        let length = recording
            .read_until(b'\n', &mut text)
            .map_err(|source| Difference::Unreadable { line: number, source })?;
        if length == 0 {
            break;
        }
        if text.last() != Some(&b'\n') {
            done.is_cut = true;
            return Ok(done);
        }
        step(&text, number, began, &mut daemons, &mut done)?;
    }
    for again in daemons.values_mut() {
        again.has_no_more(number)?;
    }
    Ok(done)
}

fn step(
    text: &[u8],
    number: usize,
    began: Instant,
    daemons: &mut BTreeMap<Family, Again>,
    done: &mut Replayed,
) -> Result<(), Difference> {
    let wrong = |why: String| Difference::NoLine { line: number, why };
    let line: Line = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
    if let What::End {} = line.what {
        return Ok(());
    }
    let now = began + Duration::from_nanos(line.at);
    if let What::Start(start) = &line.what {
        let settings = start.settings().ok_or_else(|| wrong("`accept` has no prefixes".into()))?;
        let daemon = Daemon::new(line.family, settings, &start.vipas, start.seed, now);
        let (sends, recorded) = (VecDeque::new(), Known::default());
        daemons.insert(line.family, Again { daemon, sends, recorded });
        return Ok(());
    }
    let again = daemons.get_mut(&line.family).ok_or_else(|| wrong("before its start".into()))?;
    let other = |recorded: &dyn std::fmt::Debug, now: &dyn std::fmt::Debug| Difference::Other {
        line: number,
        recorded: format!("{recorded:?}"),
        now: format!("{now:?}"),
    };
    let input = match &line.what {
        What::Interfaces(interfaces) => Input::Interfaces(interfaces),
        What::Forwarding(is_forwarding) => Input::Forwarding(*is_forwarding),
        What::Tick {} => Input::Tick,
        What::Withdraw {} => Input::Withdraw,
        What::Heard { nic, source, ttl, is_multicast, message } => {
            let bytes;
            let message = match message {
                Heard::Bytes(text) => {
                    bytes = from_hex(text).ok_or_else(|| wrong("`bytes` is no hex".into()))?;
                    Ok(&bytes[..])
                }
                Heard::Refused(name) => {
                    let is_it = |reject: &Reject| reject.name() == name;
                    let reject = Reject::OF_SIGNATURES.into_iter().find(is_it);
                    Err(reject.ok_or_else(|| wrong(format!("no reason: {name}")))?)
                }
            };
            let (nic, source) = (*nic, *source);
            let datagram =
                Datagram { nic, source, ttl: *ttl, is_multicast: *is_multicast, message };
            again.take(Input::Heard(datagram), now);
            done.inputs += 1;
            return Ok(());
        }
        What::Sent { nic, from, to, message } => {
            done.sent += 1;
            let message = from_hex(message).ok_or_else(|| wrong("`message` is no hex".into()))?;
            let recorded = Send { nic: *nic, from: *from, to: *to, message };
            let sent = again.sends.pop_front();
            return match sent {
                Some(sent) if sent == recorded => Ok(()),
                sent => Err(other(&shown(&recorded), &sent.as_ref().map(shown))),
            };
        }
        What::Route { prefix, ways } => {
            done.routes += 1;
            let prefix: Prefix =
                prefix.parse().map_err(|_| wrong(format!("no prefix: {prefix}")))?;
            let now = again.daemon.learned_of(&prefix);
            if now != *ways {
                return Err(other(&(prefix, ways), &now));
            }
            again.recorded.ways.insert(prefix, now);
            return Ok(());
        }
        What::Rejected { neighbour, reason, times } => {
            done.rejected += 1;
            let rejects = again.daemon.rejects();
            let of = |((from, reject), _): &(&(_, Reject), _)| {
                from == neighbour && reject.name() == reason
            };
            return match rejects.iter().find(of) {
                Some((key, now)) if now == times => {
                    again.recorded.rejects.insert(*key, *now);
                    Ok(())
                }
                now => Err(other(&(neighbour, reason, times), &now)),
            };
        }
        What::Turn {} => return again.has_no_more(number),
        // Looked at above.
        What::Start(_) | What::End {} => return Ok(()),
    };
    again.take(input, now);
    done.inputs += 1;
    Ok(())
}

fn shown(send: &Send) -> (u8, String, String) {
    (send.nic.0, send.to.to_string(), hex(&send.message))
}

impl Again {
    fn take(&mut self, input: Input<'_>, now: Instant) {
        self.daemon.take(input, now);
        self.sends.extend(self.daemon.take_sends());
    }

    /// Nothing has come out but what was recorded.
    fn has_no_more(&mut self, line: usize) -> Result<(), Difference> {
        let other = |recorded: String, now: String| Difference::Other { line, recorded, now };
        if let Some(send) = self.sends.front() {
            return Err(other("nothing more".into(), format!("{:?}", shown(send))));
        }
        let recorded = &mut self.recorded;
        if recorded.version != self.daemon.version() {
            recorded.version = self.daemon.version();
            recorded.ways.retain(|_, ways| !ways.is_empty());
            let learned: BTreeMap<_, _> =
                self.daemon.learned().map(|l| (l.prefix, l.ways.to_vec())).collect();
            if recorded.ways != learned {
                return Err(other(format!("{:?}", recorded.ways), format!("{learned:?}")));
            }
        }
        if recorded.rejects != *self.daemon.rejects() {
            let now = format!("{:?}", self.daemon.rejects());
            return Err(other(format!("{:?}", recorded.rejects), now));
        }
        Ok(())
    }
}
