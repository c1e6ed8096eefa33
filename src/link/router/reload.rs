//! Another configuration while the router runs (L8, L9): all of it, or nothing.
//!
//! What the router does is a function of configuration and network, and only its difference to what stands is ever done. So
//! a reload is a change of the configuration and the same act as ever, but for what remembers: NICs keep their places, and with them
//! their health and their paths; RIP goes on with what it has learned; addresses that rewritten flows may carry stay owned.
//!
//! Workers and neighbours are told when the host has taken all of it. Until then it is undone by the same act, with the configuration
//! of before: nobody has gone by the other one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{Prepared, Router};
use crate::config::Config;
use crate::link::mirror::Changed;
use crate::link::plan::is_served_alike;
use crate::link::socket_facts::Sockets;
use crate::link::{Error, Result};
use crate::rip;

impl Router {
    pub(super) fn take_reloads(&mut self, pending: &mut Changed, now: Instant) {
        while let Ok(reload) = self.reloads.try_recv() {
            let done = if is_served_alike(&self.prepared.config, &reload.config) {
                self.follow_services(reload.config, pending)
            } else {
                pending.add(Changed::EVERYTHING);
                self.follow(reload.config, now)
            };
            let _ = reload.answer.send(done.map_err(|error| error.to_string()));
        }
    }

    /// Another configuration, or after all the one of before.
    fn follow(&mut self, config: Arc<Config>, now: Instant) -> Result<()> {
        let before = Arc::clone(&self.prepared.config);
        let had_tables = self.prepared.tables.are_kept();
        let kept = self.prepared.keep(&config);
        let done = self.go_by(config, now);
        if done.is_err() {
            tracing::warn!("the configuration could not be applied: back to the one before");
            self.prepared.kept = kept;
            if let Err(error) = self.go_back(before, had_tables, now) {
                // As with any trouble, the next turns go on trying.
                self.complain(&error);
            }
        }
        self.prepared.network.let_go(done.is_err());
        done
    }

    /// Other services and nothing else: a server comes or goes while thousands of routes stand.
    fn follow_services(&mut self, config: Arc<Config>, pending: &mut Changed) -> Result<()> {
        let before = Arc::clone(&self.prepared.config);
        let kept = self.prepared.keep(&config);
        let done = self.serve(config);
        if done.is_err() {
            self.prepared.kept = kept;
            if let Err(error) = self.serve(Arc::clone(&before)) {
                self.complain(&error);
                self.prepared.network.go_by(before);
            }
            pending.add(Changed::EVERYTHING);
        }
        done
    }

    fn serve(&mut self, config: Arc<Config>) -> Result<()> {
        let prepared = &mut self.prepared;
        prepared.config = Arc::clone(&config);
        let next = prepared.draft.serving(&config, &prepared.kept);
        prepared.tables.follow(&config, &next, &prepared.ports.listening)?;
        prepared.network.serve(config)?;
        if next != prepared.draft {
            prepared.draft = next;
            self.publish();
        }
        Ok(())
    }

    /// Has the host as it was before the refused configuration, of which nobody else knows. What is refused here too keeps nothing else
    /// from being undone, and is left to the next turns.
    fn go_back(&mut self, before: Arc<Config>, had_tables: bool, now: Instant) -> Result<()> {
        let prepared = &mut self.prepared;
        let refused = std::mem::replace(&mut prepared.config, Arc::clone(&before));
        if refused.source.rules != before.source.rules {
            prepared.sockets = Sockets::of(&before);
        }
        let withdrawn = if had_tables { Ok(()) } else { prepared.tables.withdraw() };
        // The workers go by that draft still.
        let (draft, listening) = (&prepared.draft, &prepared.ports.listening);
        let ruled = prepared.tables.follow(&before, draft, listening);
        let fd = prepared.tables.fd();
        let heard = prepared.ear.listen(prepared.poll.registry(), fd).map_err(Error::Poll);
        let network = &mut prepared.network;
        let settled = network
            .go_back(before, now)
            .and_then(|()| network.ensure_adapter())
            .and_then(|_| network.settle_anew());
        withdrawn.and(ruled).and(heard).and(settled)
    }

    /// What may be refused comes first, then the workers and the neighbours.
    fn go_by(&mut self, config: Arc<Config>, now: Instant) -> Result<()> {
        let prepared = &mut self.prepared;
        let before = std::mem::replace(&mut prepared.config, Arc::clone(&config));
        prepared.network.follow(Arc::clone(&config), now)?;
        prepared.ports.follow(&config);
        if before.source.rules != config.source.rules {
            prepared.sockets = Sockets::of(&config);
        }
        // Rules that keep the kernel from answering stand before a flow can need them.
        let next = prepared.compute();
        prepared.tables.follow(&config, &next, &prepared.ports.listening)?;
        prepared.ear.listen(prepared.poll.registry(), prepared.tables.fd()).map_err(Error::Poll)?;
        prepared.network.ensure_adapter()?;
        prepared.network.settle_anew()?;
        if next != prepared.draft {
            prepared.draft = next;
            self.publish();
        }
        let followed = std::mem::replace(&mut self.followed, Arc::clone(&config));
        self.follow_paths(&followed);
        if let Err(error) = self.watch(now) {
            // It is tried again with the next news.
            self.complain(&error);
        }
        self.follow_rip(&followed, now);
        let (prepared, vipas) = (&self.prepared, &config.adapter.addresses);
        self.announcements.reconfigure(config.announce, vipas, prepared.names(), now);
        self.speak(now);
        self.announce(now);
        Ok(())
    }

    /// Paths are asked in another way only after the asking has begun anew.
    fn follow_paths(&mut self, before: &Config) {
        if before.path != self.prepared.config.path {
            self.watcher = None;
            self.watched.clear();
        }
    }

    /// VIPAs, NICs and costs change while RIP is spoken; anything else as a restart would do it, which inherits what was learned.
    fn follow_rip(&mut self, before: &Config, now: Instant) {
        let prepared = &mut self.prepared;
        let config = &prepared.config;
        let vipas = &config.adapter.addresses;
        let is_same = match (&before.rip, &config.rip) {
            (Some(was), Some(is)) => {
                rip::Settings { nics: Vec::new(), ..was.clone() }
                    == rip::Settings { nics: Vec::new(), ..is.clone() }
            }
            (was, is) => was.is_none() && is.is_none(),
        };
        let is_other = before.nics != config.nics
            || before.rip != config.rip
            || before.adapter.addresses != config.adapter.addresses;
        match (&mut self.speaker, &config.rip) {
            (Some(speaker), Some(settings)) if is_same && is_other => {
                speaker.reconfigure(&settings.nics, prepared.names(), vipas, now);
            }
            (Some(speaker), None) => {
                speaker.withdraw(now);
                prepared.network.set_learned(Vec::new());
            }
            _ => {}
        }
        if !is_same {
            // Its recording ends before another begins in the same file.
            self.speaker = None;
            self.speaker = self.prepared.speaker(now);
        }
    }
}

impl Prepared {
    /// What flows of now may carry is owned on, as long as it is this host's. What was kept so far.
    fn keep(&mut self, config: &Config) -> Vec<IpAddr> {
        let before = self.kept.clone();
        self.kept.extend(self.draft.owned());
        self.kept.sort_unstable();
        self.kept.dedup();
        let addresses = &self.network.mirror().addresses;
        self.kept.retain(|kept| {
            config.adapter.addresses.contains(kept) || addresses.iter().any(|a| a.address == *kept)
        });
        before
    }
}
