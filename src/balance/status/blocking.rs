//! Work that may wait for a disk, on a thread of its own: never two at a time for one status object, so that a disk
//! that hangs costs one thread and no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::{JoinHandle, spawn_blocking};

use super::answer::room;
use super::{Failure, Reading};

/// The thread, while it runs.
#[derive(Debug, Default)]
pub(super) struct Blocking(Option<JoinHandle<Result<Reading, Failure>>>);

/// Says to the work that nobody waits for it any more.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Has it been given up?
    pub(super) fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Stops the work when whoever waited for it is gone.
struct Waits(Stop);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl Blocking {
    /// What `work` comes to. Work of before that was given up and has not ended yet is waited for first.
    pub(super) async fn run(
        &mut self,
        work: impl FnOnce(&Stop) -> Result<Reading, Failure> + Send + 'static,
    ) -> Result<Reading, Failure> {
        if let Some(before) = &mut self.0 {
            let _ = before.await;
            self.0 = None;
        }
        room()?;
        let stop = Stop::default();
        let _waits = Waits(stop.clone());
        let result = self.0.insert(spawn_blocking(move || work(&stop))).await;
        self.0 = None;
        result.unwrap_or_else(|error| Err(Failure::Unreached(error.to_string())))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::balance::status::tests::block_on;

    #[test]
    fn work_that_is_given_up_hears_of_it_and_ends_before_the_next() {
        let (said, heard) = mpsc::channel();
        block_on(async {
            let mut blocking = Blocking::default();
            let first = blocking.run(move |stop| {
                while !stop.is_stopped() {
                    std::thread::yield_now();
                }
                said.send("stopped").expect("the test waits");
                Ok(Reading::default())
            });
            assert!(timeout(Duration::from_millis(1), first).await.is_err());
            let second = blocking.run(move |stop| {
                assert!(!stop.is_stopped());
                assert_eq!(heard.try_recv(), Ok("stopped"));
                Ok(Reading { value: Some(1.0), ..Reading::default() })
            });
            assert_eq!(second.await.expect("a reading").value, Some(1.0));
        });
    }
}
