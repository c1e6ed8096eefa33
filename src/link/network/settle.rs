//! Makes what should stand stand: the adapter, kernel settings, and the difference between plan and mirror, a slice of it a turn.

use std::io;

use super::Network;
use crate::device;
use crate::link::kernel::{Ours, Step, difference};
use crate::link::plan::{ManagedNeighbour, NicAddress, Plan, own, sysctls};
use crate::link::{Error, Result, dump, request, sysctl};
use crate::wire::ip::Family;

/// Steps may call for further steps (routes need the link up); more rounds than this are left to later.
const ROUNDS: usize = 4;
/// Steps done in one turn, so that nothing waits for thousands of them.
const SLICE: usize = 128;
/// Lines told of one batch of repairs.
const LINES: usize = 8;

impl Network {
    /// Makes the adapter if it does not exist; true if it was made.
    pub fn ensure_adapter(&mut self) -> Result<bool> {
        let name = self.config.adapter.name.clone();
        let fail = |source| Error::Adapter { name: name.clone(), source };
        match self.mirror.link(&name) {
            Some((_, link)) if link.is_tun => return Ok(false),
            Some(_) => {
                let why = "a device of this name exists, and is no TUN with several queues: \
                           delete or rename it, or choose another name in [virtual]";
                return Err(fail(io::Error::new(io::ErrorKind::AlreadyExists, why)));
            }
            None => {}
        }
        self.store()?;
        device::tun::create(&name).map_err(fail)?;
        self.probe_links();
        self.absorb()?;
        Ok(true)
    }

    /// Writes down what `vipa down` needs. Before the first change.
    pub(super) fn store(&mut self) -> Result<()> {
        let path = self.saved.file().display().to_string();
        self.saved.store().map_err(|source| Error::State { path, source })
    }

    /// Writes down whose rule of the `local` table is about to be moved.
    fn remember_local(&mut self, plan: &Plan) -> Result<()> {
        let ours = Ours::of(&self.saved);
        let blocked = Family::BOTH.into_iter().filter(|family| {
            own::is_wanted(&self.config, *family)
                && own::Around::of(&self.mirror, *family).is_blocked
        });
        for family in blocked {
            let what = format!("{family:?}: policy rules of others at preferences 0 to 5");
            if self.refused.insert(what.clone()) {
                tracing::warn!(what, "this host's own connections to services keep to the kernel");
            }
        }
        for family in own::moves(&plan.rules) {
            if own::is_vipas(&self.mirror, family, |rule| ours.leads_to_us(rule)) {
                self.saved.remember_local(family);
            }
        }
        self.store()
    }

    /// Settings below `/proc/sys`: puts right what is wrong. At start a refusal is an error.
    pub fn ensure_sysctls(&mut self, is_start: bool) -> Result<()> {
        let wanted = sysctls(&self.config, &self.mirror, &self.health);
        let adapter = &self.config.adapter.name;
        let corrected = sysctl::ensure(&wanted, adapter, &mut self.saved).map_err(|source| {
            Error::State { path: self.saved.file().display().to_string(), source }
        })?;
        for one in corrected {
            let what = one.sysctl.to_string();
            match one.result {
                Err(source) if is_start => return Err(Error::Sysctl { what, source }),
                Err(error) => {
                    self.statistics.kernel_errors.add(1);
                    if self.refused.insert(what.clone()) {
                        tracing::warn!(setting = what, %error, "could not be set");
                    }
                }
                Ok(()) => {
                    let stood = |p: &Plan| p.sysctls.contains(&one.sysctl);
                    if !self.refused.remove(&what) && self.stands.as_ref().is_some_and(stood) {
                        self.statistics.repaired.add(1);
                        tracing::info!(setting = what, found = one.found, "put back");
                    }
                }
            }
        }
        Ok(())
    }

    /// Makes the kernel's state the plan's. True if others had removed or changed what stood. At start what
    /// is necessary and refused is an error; later it is told, and tried again by and by.
    ///
    /// What is more than a turn may do waits: [`Network::has_more`], [`Network::go_on`].
    pub fn settle(&mut self, is_start: bool) -> Result<bool> {
        let is_repair = self.approach(is_start)?;
        if !is_start && self.waiting.is_empty() {
            self.give_back();
        }
        Ok(is_repair)
    }

    fn approach(&mut self, is_start: bool) -> Result<bool> {
        let mut is_repair = false;
        self.waiting.clear();
        for _ in 0..ROUNDS {
            let plan = self.plan();
            let mut steps = difference(&plan, &self.mirror, &Ours::of(&self.saved));
            if steps.is_empty() {
                self.stands = Some(plan);
                return Ok(is_repair);
            }
            self.remember_local(&plan)?;
            if !is_start && steps.len() > SLICE {
                self.waiting = steps.split_off(SLICE).into();
            }
            is_repair |= self.apply(&steps, is_start)?;
            if !self.waiting.is_empty() {
                self.planned = Some(plan);
                return Ok(is_repair);
            }
            self.stands = Some(plan);
            self.absorb()?;
        }
        if is_start {
            return self.check().map(|()| is_repair);
        }
        Ok(is_repair)
    }

    /// Does anything wait for its turn: steps, routes to be read, or news of these?
    pub fn has_more(&self) -> bool {
        !self.waiting.is_empty() || self.survey.is_under_way() || !self.news.is_nothing()
    }

    /// Does some of what waits. True if others had removed or changed what stood.
    pub fn go_on(&mut self) -> Result<bool> {
        if self.waiting.is_empty() {
            self.news.network |= self.survey.go_on(&mut self.mirror)?;
            return Ok(false);
        }
        let steps: Vec<Step> = self.waiting.drain(..SLICE.min(self.waiting.len())).collect();
        let is_repair = self.apply(&steps, false)?;
        if self.waiting.is_empty() {
            self.stands = self.planned.take();
            // Steps may call for further steps.
            self.news.network = true;
        }
        Ok(is_repair)
    }

    /// After the last round of a start: is there anything necessary that the kernel has not taken?
    fn check(&mut self) -> Result<()> {
        let plan = self.plan();
        let steps = difference(&plan, &self.mirror, &Ours::of(&self.saved));
        match steps.iter().find(|step| !step.is_optional()) {
            None => Ok(()),
            Some(step) => Err(Error::Refused {
                what: step.to_string(),
                source: io::Error::other("it was taken, but does not stand"),
            }),
        }
    }

    pub(super) fn apply(&mut self, steps: &[Step], is_start: bool) -> Result<bool> {
        let mut repaired = 0_u64;
        let mut has_new_address = false;
        for step in steps {
            let (message, mode) = request::of(step);
            let result = self.netlink.request(message, mode);
            match result {
                Ok(()) => {}
                Err(error) if request::is_settled(step, &error) => {
                    // The kernel drops some routes without a word.
                    if let Step::DeleteRoute(route) = step {
                        self.mirror.forget_route(route);
                    }
                }
                Err(source) if is_start && !step.is_optional() => {
                    return Err(Error::Refused { what: step.to_string(), source });
                }
                Err(error) => {
                    self.statistics.kernel_errors.add(1);
                    let name = step.to_string();
                    if self.refused.insert(name.clone()) {
                        tracing::warn!(step = name, %error, "the kernel refused");
                    }
                    continue;
                }
            }
            has_new_address |= matches!(step, Step::AddAddress { .. });
            if let Step::Manage(ManagedNeighbour { ifindex, address, .. })
            | Step::Release { ifindex, address } = step
            {
                self.read_neighbour(*ifindex, *address);
            }
            // Thousands of steps have no use for their names.
            let was_refused = !self.refused.is_empty() && self.refused.remove(&step.to_string());
            if !was_refused && self.stood(step) {
                repaired += 1;
                if repaired <= LINES as u64 {
                    tracing::info!(%step, "put back");
                }
            }
        }
        if has_new_address {
            // The kernel tells of an IPv6 address some time after it is there.
            dump::addresses(&mut self.netlink, &mut self.mirror)?;
        }
        if repaired > LINES as u64 {
            tracing::info!(repaired, "put back, these and more");
        }
        self.statistics.repaired.add(repaired);
        Ok(repaired > 0)
    }

    /// Does the step only bring back what stood?
    fn stood(&self, step: &Step) -> bool {
        let Some(stands) = &self.stands else { return false };
        match step {
            Step::SetLink { mtu, .. } => stands.adapter.mtu == *mtu,
            Step::AddAddress { nic: None, address, .. } => {
                stands.adapter.addresses.contains(address)
            }
            Step::AddAddress { nic: Some(nic), ifindex, address } => {
                let (nic, ifindex, address) = (nic.clone(), *ifindex, *address);
                stands.nic_addresses.contains(&NicAddress { nic, ifindex, address })
            }
            Step::PutRoute(route) => stands.route_at(&route.key()) == Some(route),
            Step::AppendHop(route) => stands
                .route_at(&route.key())
                .is_some_and(|stood| stood.next_hops.contains(&route.next_hops[0])),
            Step::AddRule(rule) => stands.rules.contains(rule),
            Step::Manage(neighbour) => stands.neighbours.contains(neighbour),
            _ => false,
        }
    }
}
