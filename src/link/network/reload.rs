//! Another configuration of the same adapter: it is taken, and settled, or gone back from. What stands is only known again once all
//! of one has been settled.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::{Network, refuse_clash};
use crate::config::Config;
use crate::link::kernel::{Ours, foreign_route, rules_difference};
use crate::link::plan::policy_rules;
use crate::link::plan::rules::all_tables;
use crate::link::sysctl::{self, Sysctl, Wanted};
use crate::link::{Error, Result, dump};
use crate::path::Probe;
use crate::path::paths::Paths;

impl Network {
    /// Takes another configuration of the same adapter. What is known of NICs and paths that are in both stays; nothing is set up
    /// before [`Network::settle_anew`].
    ///
    /// # Errors
    /// A table that it needs belongs to somebody else. Then it goes on by the configuration of before.
    pub fn follow(&mut self, config: Arc<Config>, now: Instant) -> Result<()> {
        self.absorb()?;
        let before = &self.config;
        let is_known: HashSet<u32> = all_tables(before).into_iter().collect();
        let tables = self.saved.tables.iter().copied().chain(all_tables(&config));
        let unread = self.mirror.follow(tables);
        if !unread.is_empty() || before.nics != config.nics {
            // Of NICs that are gone what is to be taken away is still to be seen.
            let nics = before.nics.iter().chain(&config.nics);
            self.mirror.watch(nics.filter(|nic| !nic.is_gone()).map(|nic| nic.name.as_str()));
            self.read()?;
        }
        for table in all_tables(&config).into_iter().filter(|table| !is_known.contains(table)) {
            if let Some(prefix) = foreign_route(&self.mirror, table) {
                return Err(Error::ForeignTable { table, route: prefix.to_string() });
            }
        }
        let mut saved = self.saved.clone();
        saved.follow(&config);
        refuse_clash(&saved)?;
        // Not before: what is saved as ours is not asked for again.
        self.saved = saved;
        self.go_by(config);
        self.observe(now);
        Ok(())
    }

    /// Takes the configuration of before one that was refused: it has all that it needs, but for what [`Network::settle_anew`] sets up.
    ///
    /// # Errors
    /// The kernel does not say what the other one has set up.
    pub fn go_back(&mut self, before: Arc<Config>, now: Instant) -> Result<()> {
        self.go_by(before);
        self.absorb()?;
        self.observe(now);
        Ok(())
    }

    /// Goes by this configuration from now on.
    pub fn go_by(&mut self, config: Arc<Config>) {
        self.hold_down.reconfigure(&config);
        if config.path.probe == Probe::Off {
            self.paths = Paths::default();
        }
        self.reached = None;
        self.config = config;
    }

    /// Takes other services, where all else is as before ([`is_served_alike`](crate::link::plan::is_served_alike)). Of the host only policy rules follow from these.
    ///
    /// # Errors
    /// The kernel refused one. Then those of before are to be taken again.
    pub fn serve(&mut self, config: Arc<Config>) -> Result<()> {
        self.config = config;
        self.absorb()?;
        let rules = policy_rules(&self.config, &self.mirror);
        let steps = rules_difference(&rules, &self.mirror, &Ours::of(&self.saved));
        let done = self.apply(&steps, true);
        if let Some(stands) = &mut self.stands {
            // Of what was refused some may stand: none is taken for sure.
            stands.rules = if done.is_ok() { rules } else { Vec::new() };
        }
        let seen = self.absorb();
        done.and(seen)
    }

    /// Makes the kernel's state the plan's after [`Network::follow`]. Settings that the plan of before wanted alone are given back by
    /// [`Network::let_go`].
    ///
    /// # Errors
    /// Something that is necessary was refused. Then the configuration of before is to be gone back to and settled.
    pub fn settle_anew(&mut self) -> Result<()> {
        let before = self.stands.take().map_or_else(Vec::new, |plan| plan.sysctls);
        self.disown(before);
        let done = self.settle_strictly();
        if done.is_err() {
            // What was done until then is to be seen, so that it can be undone.
            self.stands = None;
            let refused = self.plan();
            self.disown(refused.sysctls);
            let seen =
                self.absorb().and_then(|()| dump::addresses(&mut self.netlink, &mut self.mirror));
            return done.and(seen);
        }
        done
    }

    /// These settings are to be given back, unless they are wanted in the end.
    fn disown(&mut self, settings: Vec<Sysctl>) {
        for one in settings {
            if !self.unwanted.contains(&one) {
                self.unwanted.push(one);
            }
        }
    }

    fn settle_strictly(&mut self) -> Result<()> {
        self.store()?;
        self.ensure_sysctls(true)?;
        self.settle(true).map(|_| ())
    }

    /// Lets go of what only configurations of before needed: settings are given back, NICs watched no more. After a configuration that
    /// was refused that is all of it; else ports that were reserved stay so, since flows of before may have them. Where it is not known
    /// what stands it waits for the next [`Network::settle`].
    pub fn let_go(&mut self, is_refused: bool) {
        self.unwanted.retain(|old| is_refused || matches!(old.wanted, Wanted::Exactly(_)));
        self.is_letting_go = true;
        self.give_back();
    }

    pub(super) fn give_back(&mut self) {
        let Some(stands) = self.stands.as_ref().filter(|_| self.is_letting_go) else { return };
        self.is_letting_go = false;
        let nics = self.config.nics.iter().filter(|nic| !nic.is_gone());
        self.mirror.watch(nics.map(|nic| nic.name.as_str()));
        let is_wanted = |old: &Sysctl| stands.sysctls.iter().any(|new| new.path == old.path);
        let mut unwanted = std::mem::take(&mut self.unwanted);
        unwanted.retain(|old| !is_wanted(old));
        let adapter = &self.config.adapter.name;
        if let Err(error) = sysctl::give_back(&unwanted, adapter, &mut self.saved) {
            tracing::warn!(%error, "a setting that is not wanted any more could not be given back");
        }
    }
}
