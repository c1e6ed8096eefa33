//! Who is around the host, and what they are told: the watch over the paths (V9), RIP (V6–V8), announcements, and the leave.

use std::sync::Arc;
use std::time::Instant;

use super::{Prepared, Router, SPEAKER};
use crate::engine::leave::Asked;
use crate::link::mirror::Changed;
use crate::link::{Error, Result};
use crate::path::Probe;
use crate::path::watcher::Watcher;
use crate::rip::speaker::Speaker;

impl Router {
    /// What those around have said.
    pub(super) fn hear(&mut self, pending: &mut Changed, now: Instant) {
        for (hop, state) in self.watcher.iter().flat_map(Watcher::reports) {
            pending.network |= self.prepared.network.report(hop, state);
        }
        if let Some(speaker) = &mut self.speaker {
            speaker.turn(now);
            if let Some((learned, since)) = speaker.news(now) {
                self.prepared.network.set_learned(learned);
                self.learned_since = Some(since);
                pending.network = true;
            }
            if let Some(counts) = speaker.counts() {
                self.prepared.statistics.rip.store(Some(Arc::new(counts)));
            }
        }
        self.announcements.turn(now);
        self.tell_announced(now);
    }

    /// The next hops of now are watched.
    pub(super) fn watch(&mut self, now: Instant) -> Result<()> {
        let prepared = &mut self.prepared;
        let settings = &prepared.config.path;
        if settings.probe == Probe::Off {
            return Ok(());
        }
        let targets = prepared.network.targets(now);
        if targets == self.watched {
            return Ok(());
        }
        if self.watcher.is_none() {
            let waker = Arc::clone(&prepared.waker);
            let news = move || drop(waker.wake());
            let ports = prepared.config.source.ports.clone();
            let statistics = Arc::clone(&prepared.statistics);
            let watcher = Watcher::start(settings.clone(), ports, statistics, news);
            self.watcher = Some(watcher.map_err(Error::Poll)?);
        }
        self.watcher.iter().for_each(|watcher| watcher.follow(targets.clone()));
        self.watched = targets;
        Ok(())
    }

    /// FIG. 3A: what the interfaces are now.
    pub(super) fn speak(&mut self, now: Instant) {
        let Some(speaker) = &mut self.speaker else { return };
        let prepared = &self.prepared;
        speaker.follow(prepared.network.interfaces(), prepared.poll.registry(), now);
    }

    /// The VIPAs in the NICs' own subnets, where they are now.
    pub(super) fn announce(&mut self, now: Instant) {
        let prepared = &self.prepared;
        self.announcements.follow(prepared.network.scene(), prepared.poll.registry(), now);
        self.tell_announced(now);
    }

    fn tell_announced(&mut self, now: Instant) {
        if let Some(counts) = self.announcements.counts(now) {
            self.prepared.statistics.announced.store(Some(Arc::new(counts)));
        }
    }

    /// Tells the neighbours that the VIPAs leave, if they are to be told now. When there is something to do next; now: it is over.
    pub(super) fn take_leave(&mut self, asked: &Asked, now: Instant) -> Instant {
        let Some(speaker) = self.speaker.as_mut().filter(|_| asked.is_polite) else {
            if asked.is_polite {
                tracing::info!("no RIP is spoken: there is nobody to tell");
            }
            return now;
        };
        while let Some(at) = asked.next_telling(self.farewells) {
            if at > now {
                return at.min(asked.end);
            }
            speaker.withdraw(now);
            self.farewells += 1;
            self.prepared.statistics.farewells.add(1);
            tracing::info!(
                time = self.farewells,
                ends_in = ?asked.end.saturating_duration_since(now),
                "withdrawing: the neighbours are told that the VIPAs are gone"
            );
        }
        asked.end
    }
}

impl Prepared {
    pub(super) fn names(&self) -> Vec<String> {
        self.config.nics.iter().map(|nic| nic.name.clone()).collect()
    }

    /// RIP, if it is to be spoken, with what has been learned so far.
    pub(super) fn speaker(&self, now: Instant) -> Option<Speaker> {
        let settings = self.config.rip.as_ref()?;
        let inherited = self.network.mirror().learned().to_vec();
        let vipas = &self.config.adapter.addresses;
        Some(Speaker::new(settings, self.names(), vipas, inherited, SPEAKER, now))
    }
}
