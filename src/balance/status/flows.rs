//! `flows`: what our own flow table knows of a server, without asking it.

use std::sync::Arc;
use std::time::Instant;

use super::rate::Rate;
use super::{Instance, Pending, Reading, StatusObject};
use crate::forward::preferred::ServerCounters;

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

/// Reads them.
#[derive(Debug)]
pub(super) struct Flows {
    pub(super) measure: Measure,
    /// Where the data plane counts them.
    pub(super) counters: Arc<ServerCounters>,
    pub(super) rate: Rate,
}

impl Flows {
    fn value(&mut self, now: Instant) -> Reading {
        let counters = &self.counters;
        let value = match self.measure {
            Measure::Active => Some(counters.active() as f64),
            Measure::Created => self.rate.of(counters.created() as f64, now),
            Measure::Bytes => self.rate.of(counters.bytes() as f64, now),
            Measure::Failed => self.rate.of(counters.failed() as f64, now),
        };
        Reading { value, ..Reading::default() }
    }
}

impl StatusObject for Flows {
    fn read<'a>(&'a mut self, _: &'a Instance) -> Pending<'a> {
        Box::pin(std::future::ready(Ok(self.value(Instant::now()))))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::forward::view::WorkerId;

    #[test]
    fn all_workers_counters_now_and_by_the_second() {
        let counters = Arc::new(ServerCounters::new(2));
        let now = Instant::now();
        let flows = |measure| Flows { measure, counters: counters.clone(), rate: Rate::default() };
        let mut rates = [Measure::Created, Measure::Bytes, Measure::Failed].map(flows);
        for rate in &mut rates {
            assert_eq!(rate.value(now).value, None);
        }
        for worker in [0, 1] {
            let worker = counters.of(WorkerId(worker)).expect("a worker");
            (0..10).for_each(|_| worker.began());
            worker.carried(1000);
            worker.ended(true);
        }
        assert_eq!(flows(Measure::Active).value(now).value, Some(18.0));
        let later = now + Duration::from_secs(2);
        let values = rates.map(|mut rate| rate.value(later).value);
        assert_eq!(values, [Some(10.0), Some(1000.0), Some(1.0)]);
    }
}
