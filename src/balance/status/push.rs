//! `push`: the application hands its value over itself; nobody asks it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::Notify;

use super::{Failure, Instance, Pending, Reading, StatusObject, words};

/// What was handed over, by service, server and name of the status object.
#[derive(Debug, Default)]
pub struct Pushed {
    values: Mutex<HashMap<Key, (Reading, Instant), foldhash::fast::RandomState>>,
    arrived: Notify,
}

type Key = (Arc<str>, Arc<str>, Arc<str>);

impl Pushed {
    /// Takes a line over: a number, or words of an agent. Whoever takes it has to know that there is such a status
    /// object: what is handed over for another one stays here unread.
    ///
    /// # Errors
    /// The line is neither.
    pub fn hand_over(
        &self,
        (service, server, name): (&str, &str, &str),
        line: &str,
        now: Instant,
    ) -> Result<(), Failure> {
        let reading = words::read(line, true)?;
        self.values().insert((service.into(), server.into(), name.into()), (reading, now));
        self.arrived.notify_one();
        Ok(())
    }

    /// Returns when something was handed over since the last time: so a decision need not wait for the next period.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// A server is gone: so is what it handed over.
    pub fn forget(&self, service: &str, server: &str) {
        self.values().retain(|(of, at, _), _| (&**of, &**at) != (service, server));
    }

    fn values(
        &self,
    ) -> MutexGuard<'_, HashMap<Key, (Reading, Instant), foldhash::fast::RandomState>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last one handed over, while it is young.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) name: Arc<str>,
    pub(super) most_age: Duration,
    pub(super) pushed: Arc<Pushed>,
}

impl Push {
    fn last(&self, instance: &Instance, now: Instant) -> Result<Reading, Failure> {
        let key = (instance.service.clone(), instance.server.clone(), self.name.clone());
        match self.pushed.values().get(&key) {
            Some((reading, at)) if now.saturating_duration_since(*at) <= self.most_age => {
                Ok(*reading)
            }
            _ => Err(Failure::Stale),
        }
    }
}

impl StatusObject for Push {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(std::future::ready(self.last(instance, Instant::now())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::status::tests::{block_on, instance};

    #[test]
    fn what_was_handed_over_counts_until_it_is_stale() {
        let pushed = Arc::new(Pushed::default());
        let most_age = Duration::from_secs(3);
        let push = Push { name: "clients".into(), most_age, pushed: pushed.clone() };
        let (now, instance) = (Instant::now(), instance("127.0.0.1:1"));
        let key = ("web", "a", "clients");
        assert_eq!(push.last(&instance, now), Err(Failure::Stale), "nothing yet");
        pushed.hand_over(("web", "b", "clients"), "1", now).expect("a number");
        pushed.hand_over(("web", "a", "pending"), "2", now).expect("a number");
        assert_eq!(push.last(&instance, now), Err(Failure::Stale), "of others");
        pushed.hand_over(key, "17 up", now).expect("a line");
        let reading = push.last(&instance, now + most_age).expect("still young");
        assert_eq!((reading.value, reading.words.is_up), (Some(17.0), Some(true)));
        let late = now + most_age + Duration::from_nanos(1);
        assert_eq!(push.last(&instance, late), Err(Failure::Stale));
        for line in ["NaN", "", "many"] {
            assert!(pushed.hand_over(key, line, late).is_err(), "{line}");
        }
        assert_eq!(push.last(&instance, late), Err(Failure::Stale), "bad lines do not count");
        pushed.hand_over(key, "18", late).expect("a number");
        assert_eq!(push.last(&instance, late).expect("it is back").value, Some(18.0));
        pushed.forget("web", "a");
        assert_eq!(push.last(&instance, late), Err(Failure::Stale));
        block_on(pushed.arrived());
    }
}
