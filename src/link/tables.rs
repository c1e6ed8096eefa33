//! The nftables rules as the router keeps them: what they should say, which flows are to be held next, and
//! when the lease is due. Where no rule of the configuration can rewrite anything there are none.

use std::collections::HashSet;
use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::net_view::Draft;
use super::nft::{Nft, NftRules};
use super::plan::can_rewrite;
use super::{Error, Result};
use crate::config::Config;
use crate::engine::message::HeldFlow;
use crate::engine::statistics::RouterStatistics;

/// The lease is renewed no more often.
const SHORTEST: Duration = Duration::from_millis(250);

/// Our tables, or their absence.
#[derive(Debug)]
pub(super) struct Tables {
    inner: Option<Inner>,
}

#[derive(Debug)]
struct Inner {
    nft: Nft,
    config: Config,
    /// What was last asked for, with the indices of the NICs: a NIC made anew has lost its chain.
    stands: Option<(NftRules, Vec<u32>)>,
    /// Others may have touched them.
    is_touched: bool,
    next_renewal: Instant,
    add: HashSet<HeldFlow>,
    remove: HashSet<HeldFlow>,
    is_in_trouble: bool,
}

impl Tables {
    /// Sets them up for `draft`, all but the ports that are `listening`; takes away what an earlier run with
    /// other rules left.
    pub(super) fn open(config: &Config, draft: &Draft, listening: &[u16]) -> Result<Tables> {
        if !can_rewrite(config) {
            if let Err(error) = Nft::remove(&config.adapter.name) {
                tracing::debug!(%error, "no nftables here");
            }
            return Ok(Tables { inner: None });
        }
        let adapter = &config.adapter;
        let mut inner = Inner {
            nft: Nft::open(&adapter.name, adapter.is_protected).map_err(Error::Nftables)?,
            config: config.clone(),
            stands: None,
            is_touched: false,
            next_renewal: Instant::now(),
            add: HashSet::new(),
            remove: HashSet::new(),
            is_in_trouble: false,
        };
        let wanted = inner.wanted(draft);
        inner.nft.spare_ports(listening.iter().copied());
        inner.ensure(&wanted.0)?;
        inner.stands = Some(wanted);
        Ok(Tables { inner: Some(inner) })
    }

    /// Makes them say what another configuration wants, where the network is as in `draft`. Where there were some they stay, though it
    /// wants none: flows of before may need them.
    ///
    /// # Errors
    /// nftables refused.
    pub(super) fn follow(
        &mut self,
        config: &Config,
        draft: &Draft,
        listening: &[u16],
    ) -> Result<()> {
        let Some(inner) = &mut self.inner else {
            if can_rewrite(config) {
                *self = Tables::open(config, draft, listening)?;
            }
            return Ok(());
        };
        inner.config = config.clone();
        inner.nft.spare_ports(listening.iter().copied());
        let wanted = inner.wanted(draft);
        if inner.stands.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let done = inner.ensure(&wanted.0);
        // What was refused may stand in part.
        inner.is_touched |= done.is_err();
        inner.stands = done.is_ok().then_some(wanted);
        done
    }

    /// Takes them away, whatever they say.
    ///
    /// # Errors
    /// nftables refused; nobody sees to them any more.
    pub(super) fn withdraw(&mut self) -> Result<()> {
        let Some(inner) = self.inner.take() else { return Ok(()) };
        let name = inner.config.adapter.name.clone();
        // They are nobody's then.
        drop(inner);
        Nft::remove(&name).map_err(Error::Nftables)
    }

    /// Are there any, or may there be?
    pub(super) fn are_kept(&self) -> bool {
        self.inner.is_some()
    }

    /// For mio: readable when nftables changed.
    pub(super) fn fd(&self) -> Option<RawFd> {
        self.inner.as_ref().map(|inner| inner.nft.event_fd()).filter(|fd| *fd >= 0)
    }

    /// Takes in what happened to nftables.
    pub(super) fn look(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.is_touched |= inner.nft.drain_events();
        }
    }

    /// Are they to be checked?
    pub(super) fn is_touched(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.is_touched)
    }

    /// Has them checked with the next [`Tables::ensure`], touched or not.
    pub(super) fn suspect(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.is_touched = true;
        }
    }

    /// Would they have to say more than they do?
    pub(super) fn gains(&self, draft: &Draft) -> bool {
        let Some(inner) = &self.inner else { return false };
        let Some((stands, indices)) = &inner.stands else { return true };
        let (wanted, now) = inner.wanted(draft);
        wanted.claims != stands.claims
            || wanted.nics.iter().any(|nic| !stands.nics.contains(nic))
            || now.iter().any(|index| !indices.contains(index))
    }

    /// Makes them say what they should, if that changed or others touched them.
    pub(super) fn ensure(&mut self, draft: &Draft, statistics: &RouterStatistics) {
        let Some(inner) = &mut self.inner else { return };
        let wanted = inner.wanted(draft);
        let is_new = inner.stands.as_ref() != Some(&wanted);
        if !is_new && !inner.is_touched {
            return;
        }
        match inner.nft.ensure(&wanted.0) {
            Ok(is_changed) => {
                inner.is_in_trouble = false;
                inner.is_touched = false;
                inner.stands = Some(wanted);
                if is_changed && !is_new {
                    statistics.repaired.add(1);
                    tracing::info!("nftables rules put back");
                }
            }
            Err(error) => inner.trouble(&error, statistics),
        }
    }

    /// When the lease is to be renewed.
    pub(super) fn next_renewal(&self) -> Option<Instant> {
        self.inner.as_ref().map(|inner| inner.next_renewal)
    }

    /// Tells the kernel that a forwarder lives.
    pub(super) fn renew_lease(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.renew_lease();
        }
    }

    /// Ports on which a socket listens by now: the kernel's again with the next [`Tables::ensure`].
    pub(super) fn spare(&mut self, listening: &[u16]) {
        if let Some(inner) = &mut self.inner {
            inner.nft.spare_ports(listening.iter().copied());
        }
    }

    /// The flow is to be held; the kernel learns of it with [`Tables::commit`].
    pub(super) fn hold(&mut self, flow: HeldFlow) {
        if let Some(inner) = &mut self.inner {
            inner.remove.remove(&flow);
            inner.add.insert(flow);
        }
    }

    /// The flow need not be held any more.
    pub(super) fn release(&mut self, flow: HeldFlow) {
        if let Some(inner) = &mut self.inner {
            inner.add.remove(&flow);
            inner.remove.insert(flow);
        }
    }

    /// Hands what was said since to the kernel, in one transaction.
    pub(super) fn commit(&mut self, statistics: &RouterStatistics) {
        let Some(inner) = &mut self.inner else { return };
        if inner.add.is_empty() && inner.remove.is_empty() {
            return;
        }
        let add: Vec<HeldFlow> = inner.add.drain().collect();
        let remove: Vec<HeldFlow> = inner.remove.drain().collect();
        match inner.nft.hold(&add, &remove) {
            Ok(()) => {
                statistics.flows_held.add(u64::try_from(add.len()).unwrap_or(u64::MAX));
            }
            Err(error) => {
                inner.trouble(&error, statistics);
            }
        }
    }
}

impl Inner {
    fn ensure(&mut self, wanted: &NftRules) -> Result<()> {
        match self.nft.ensure(wanted) {
            // A kernel without the egress hook: all but the hold works.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => tracing::warn!("{error}"),
            other => other.map(|_| ()).map_err(Error::Nftables)?,
        }
        Ok(())
    }

    fn wanted(&self, draft: &Draft) -> (NftRules, Vec<u32>) {
        let config = &self.config;
        let source = draft.source();
        let there = || draft.nics().iter().filter(|nic| nic.ifindex != 0);
        let mut sources: Vec<_> =
            [source.default_v4.map(Into::into), source.default_v6.map(Into::into)]
                .into_iter()
                .flatten()
                .collect();
        if config.source.is_bound_forwarded {
            sources.extend(there().flat_map(|nic| nic.addresses.iter().map(|a| a.0)));
        }
        let nic_addresses = there().flat_map(|nic| nic.addresses.iter().map(|a| a.0));
        let mut local: Vec<_> =
            config.adapter.addresses.iter().copied().chain(nic_addresses).collect();
        local.sort_unstable();
        local.dedup();
        let rules = NftRules {
            local,
            nics: {
                let nics = draft.nics().iter().filter(|nic| !nic.is_gone());
                nics.map(|nic| nic.name.clone()).collect()
            },
            claims: draft.claims(),
            ephemeral: source.ephemeral.clone().unwrap_or(32768..=60999),
            sources,
            rules: config.source.rules.clone(),
            applies: source.applies.clone(),
            is_bound_forwarded: config.source.is_bound_forwarded,
            hold: config.source.hold,
        };
        (rules, there().map(|nic| nic.ifindex).collect())
    }

    fn renew_lease(&mut self) {
        let pause = (self.config.source.hold / 4).max(SHORTEST);
        self.next_renewal = Instant::now() + pause;
        if let Err(error) = self.nft.renew_lease() {
            self.is_touched = true;
            tracing::debug!(%error, "the lease could not be renewed");
        }
    }

    fn trouble(&mut self, error: &std::io::Error, statistics: &RouterStatistics) {
        statistics.kernel_errors.add(1);
        self.is_touched = true;
        if !std::mem::replace(&mut self.is_in_trouble, true) {
            tracing::warn!(%error, "nftables refused");
        }
    }
}
