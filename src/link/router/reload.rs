//! Another configuration while the router runs (L8, L9): all of it, or nothing.
//!
//! What the router does is a function of configuration and network, and only its difference to what stands is ever done. So
//! a reload is a change of the configuration and the same act as ever, but for what remembers: NICs keep their places, and with them
//! their health and their paths; RIP goes on with what it has learned; addresses that rewritten flows may carry stay owned.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use mio::Interest;
use mio::unix::SourceFd;

use super::{NFTABLES, Router};
use crate::config::Config;
use crate::link::mirror::Changed;
use crate::link::socket_facts::Sockets;
use crate::link::{Error, Result};
use crate::rip;

impl Router {
    pub(super) fn take_reloads(&mut self, pending: &mut Changed, now: Instant) {
        while let Ok(reload) = self.reloads.try_recv() {
            let before = Arc::clone(&self.prepared.config);
            let done = self.follow(reload.config, now);
            if done.is_err() {
                tracing::warn!("the configuration could not be applied: back to the one before");
                if let Err(error) = self.follow(before, now) {
                    // As with any trouble, the next turns go on trying.
                    self.complain(&error);
                }
            }
            pending.add(Changed::EVERYTHING);
            let _ = reload.answer.send(done.map_err(|error| error.to_string()));
        }
    }

    /// What may be refused comes first; then the workers, the kernel, the neighbours.
    fn follow(&mut self, config: Arc<Config>, now: Instant) -> Result<()> {
        let prepared = &mut self.prepared;
        let owned = prepared.draft.view(1).claims.owned;
        let before = std::mem::replace(&mut prepared.config, Arc::clone(&config));
        prepared.network.follow(Arc::clone(&config), now)?;
        prepared.ports.follow(&config);
        if before.source.rules != config.source.rules {
            prepared.sockets = Sockets::of(&config);
        }
        let is_here = |address: &IpAddr| {
            config.adapter.addresses.contains(address)
                || prepared.network.mirror().addresses.iter().any(|own| own.address == *address)
        };
        prepared.kept.extend(owned);
        prepared.kept.sort_unstable();
        prepared.kept.dedup();
        prepared.kept.retain(is_here);
        let next = prepared.compute();
        let had_tables = prepared.tables.fd().is_some();
        prepared.tables.follow(&config, &next, &prepared.ports.listening)?;
        if let (false, Some(fd)) = (had_tables, prepared.tables.fd()) {
            let registry = prepared.poll.registry();
            registry
                .register(&mut SourceFd(&fd), NFTABLES, Interest::READABLE)
                .map_err(Error::Poll)?;
            prepared.tables.renew_lease();
        }
        if next != prepared.draft {
            prepared.draft = next;
            self.publish();
        }
        let prepared = &mut self.prepared;
        prepared.network.ensure_adapter()?;
        prepared.network.settle_anew()?;
        let followed = std::mem::replace(&mut self.followed, Arc::clone(&config));
        self.follow_paths(&followed);
        self.watch(now)?;
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
            // The sockets first: two cannot be bound to one port.
            self.speaker = None;
            self.speaker = self.prepared.speaker(now);
        }
    }
}
