//! `flows`: what our own flow table knows of a server, without asking it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use hashbrown::HashMap;

use super::rate::Rate;
use super::{Failure, Instance, Pending, Reading, StatusObject};
use crate::engine::statistics::ServerStatistics;

/// What a server's flows are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Connections that it has now.
    Active,
    /// New ones in a second.
    Created,
    /// Bytes in a second, both ways.
    Bytes,
    /// Connections in a second that were refused, or never answered.
    Failed,
}

/// Where the counters of each server are: the data plane puts them here, status objects look them up.
#[derive(Debug, Default)]
pub struct FlowFacts(
    RwLock<HashMap<Key, Arc<[Arc<ServerStatistics>]>, foldhash::fast::RandomState>>,
);

type Key = (Arc<str>, Arc<str>);

impl FlowFacts {
    /// `server` of `service` is counted by these, one for each worker.
    pub fn put(
        &self,
        service: &Arc<str>,
        server: &Arc<str>,
        counters: Arc<[Arc<ServerStatistics>]>,
    ) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert((service.clone(), server.clone()), counters);
    }

    /// A server is gone.
    pub fn forget(&self, service: &Arc<str>, server: &Arc<str>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.remove(&(service.clone(), server.clone()));
    }

    /// What all workers together count.
    fn count(&self, instance: &Instance, measure: Measure) -> Option<u64> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let workers = all.get(&(instance.service.clone(), instance.server.clone()))?;
        let one = |worker: &Arc<ServerStatistics>| match measure {
            Measure::Active => worker.active.get(),
            Measure::Created => worker.created.get(),
            Measure::Bytes => worker.bytes.get(),
            Measure::Failed => worker.failed.get(),
        };
        Some(workers.iter().map(one).fold(0, u64::wrapping_add))
    }
}

/// Reads them.
#[derive(Debug)]
pub(super) struct Flows {
    pub(super) measure: Measure,
    pub(super) facts: Arc<FlowFacts>,
    pub(super) rate: Rate,
}

impl Flows {
    fn value(&mut self, instance: &Instance, now: Instant) -> Result<Reading, Failure> {
        let count = self.facts.count(instance, self.measure);
        let missing = || Failure::Unreached("the forwarder counts no flows of it yet".to_owned());
        let count = count.ok_or_else(missing)? as f64;
        let value = match self.measure {
            Measure::Active => Some(count),
            _ => self.rate.of(count, now),
        };
        Ok(Reading { value, ..Reading::default() })
    }
}

impl StatusObject for Flows {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(std::future::ready(self.value(instance, Instant::now())))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::balance::status::tests::instance;

    #[test]
    fn all_workers_counters_now_and_by_the_second() {
        let facts = Arc::new(FlowFacts::default());
        let (now, instance) = (Instant::now(), instance("127.0.0.1:1"));
        let flows = |measure| Flows { measure, facts: facts.clone(), rate: Rate::default() };
        let mut active = flows(Measure::Active);
        assert!(matches!(active.value(&instance, now), Err(Failure::Unreached(_))));
        let workers: Arc<[Arc<ServerStatistics>]> = (0..2).map(|_| Arc::default()).collect();
        facts.put(&instance.service, &instance.server, workers.clone());
        let mut rates = [Measure::Created, Measure::Bytes, Measure::Failed].map(flows);
        for rate in &mut rates {
            assert_eq!(rate.value(&instance, now).expect("it counts").value, None);
        }
        for (number, worker) in workers.iter().enumerate() {
            worker.active.set(3 + number as u64);
            worker.created.add(10);
            worker.bytes.add(1000);
            worker.failed.add(1);
        }
        assert_eq!(active.value(&instance, now).expect("it counts").value, Some(7.0));
        let later = now + Duration::from_secs(2);
        let values = rates.map(|mut rate| rate.value(&instance, later).expect("it counts").value);
        assert_eq!(values, [Some(10.0), Some(1000.0), Some(1.0)]);
        facts.forget(&instance.service, &instance.server);
        assert!(active.value(&instance, now).is_err());
    }
}
