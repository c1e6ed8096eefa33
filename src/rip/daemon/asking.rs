//! Whom we asked for its whole table (RFC 2453 section 3.9.1), and who answered.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::NEIGHBOURS;
use crate::forward::view::NicId;

/// A neighbour whose end of the link comes up later than ours hears nothing of the first request: all there are asked again, so often …
const REQUESTS: u8 = 5;
/// … and at this distance, until one answers.
const AGAIN: Duration = Duration::from_secs(1);

/// Pure.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// NICs by which nobody has answered yet: when to ask again, and how often still.
    silent: Vec<(NicId, Instant, u8)>,
    answered: BTreeSet<(NicId, IpAddr)>,
}

impl Asking {
    /// Everybody behind `nic`, which has come up, was asked at `now`.
    pub(super) fn begin(&mut self, nic: NicId, now: Instant) {
        self.answered.retain(|(answered, _)| *answered != nic);
        self.silent.push((nic, now + AGAIN, REQUESTS));
    }

    /// Forgets the NICs that are not live.
    pub(super) fn retain(&mut self, is_live: impl Fn(NicId) -> bool) {
        self.silent.retain(|(nic, ..)| is_live(*nic));
        self.answered.retain(|(nic, _)| is_live(*nic));
    }

    /// `neighbour` has told us alone what it knows. What it tells everybody may be no more than news.
    pub(super) fn answers(&mut self, nic: NicId, neighbour: IpAddr) {
        self.silent.retain(|(silent, ..)| *silent != nic);
        if self.answered.len() < NEIGHBOURS {
            self.answered.insert((nic, neighbour));
        }
    }

    /// A router that asks has come up just now (FRR's does so a second after its link): did our request reach it too early?
    pub(super) fn owes_an_answer(&self, nic: NicId, neighbour: IpAddr) -> bool {
        self.answered.len() < NEIGHBOURS && !self.answered.contains(&(nic, neighbour))
    }

    /// When [`Asking::due`] is.
    pub(super) fn next(&self) -> Option<Instant> {
        self.silent.iter().map(|(_, at, _)| *at).min()
    }

    /// The NICs by which all are to be asked again now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<NicId> {
        let due = self.silent.iter_mut().filter(|(_, at, _)| *at <= now);
        let nics = due.map(|(nic, at, left)| {
            (*at, *left) = (now + AGAIN, *left - 1);
            *nic
        });
        let nics = nics.collect();
        self.silent.retain(|(.., left)| *left > 0);
        nics
    }
}
