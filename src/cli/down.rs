//! `vipa down [CONFIG]`: the operator deletes the adapter (V1: nobody else ever does).

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::{Down, Failure, failure, forwarder, output, plan, target};
use crate::engine::lock::{self, Lock};
use crate::engine::pidfd;
use crate::state::{Kept, State};

/// How long a forwarder may take to end once it is told to.
const PATIENCE: Duration = Duration::from_secs(10);
/// While the lock's holder is coming or going.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Holds the adapter's lock while it is taken down, so that no forwarder starts in between.
pub(super) fn run(arguments: &Down) -> Result<ExitCode, Failure> {
    crate::log::start(arguments.verbose);
    let state = State::locate(arguments.state.as_deref())?;
    let named = match &arguments.config {
        Some(path) => Some(failure::load(path)?.adapter.name),
        None => arguments.adapter.clone(),
    };
    let Some(adapter) = target::adapter(named, &state, &[Kept::Saved])? else {
        let directory = state.directory().display();
        return output::print(&format!(
            "nothing is set up: {directory} holds no state of this namespace\n"
        ));
    };
    let lock = if arguments.stop { stop(&adapter)? } else { acquire(&adapter)? };
    let Some(_lock) = lock else {
        return Err(Failure::failed(format!(
            "a forwarder runs on {adapter}: stop it first, or say `vipa down --stop`"
        )));
    };
    let report = plan::take_down(state.directory(), &adapter)?;
    output::print(&format!("{report}\n"))
}

/// Ends the forwarder of `adapter`, if one runs, and takes its lock.
fn stop(adapter: &str) -> Result<Option<Lock>, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(lock) = acquire(adapter)? {
            return Ok(Some(lock));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        let Some((pid, process)) = forwarder::holder(adapter)? else {
            std::thread::sleep(BETWEEN_LOOKS);
            continue;
        };
        pidfd::signal(&process, libc::SIGTERM).map_err(|error| {
            Failure::failed(format!(
                "the forwarder of {adapter} (pid {pid}) cannot be told: {error}"
            ))
        })?;
        if !pidfd::wait(&process, deadline.saturating_duration_since(Instant::now()))? {
            return Err(Failure::failed(format!(
                "the forwarder of {adapter} (pid {pid}) did not end within {} s",
                PATIENCE.as_secs()
            )));
        }
    }
}

/// Takes the lock; `None`: another process has it.
fn acquire(adapter: &str) -> Result<Option<Lock>, Failure> {
    match Lock::take(adapter) {
        Ok(lock) => Ok(Some(lock)),
        Err(lock::Error::Held { .. }) => Ok(None),
        Err(error) => Err(Failure::failed(error.to_string())),
    }
}
