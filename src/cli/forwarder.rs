//! The forwarder that runs for an adapter: its process, and what it answers.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use super::{Failure, target};
use crate::admin;
use crate::engine::{lock, pidfd};
use crate::state::{Kept, State};

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The adapter `named`, else the only one of this network namespace; one has to be set up.
pub(super) fn adapter(named: Option<String>, state: &State) -> Result<String, Failure> {
    target::adapter(named, state, &[Kept::Socket, Kept::Saved])?.ok_or_else(|| {
        let directory = state.directory().display();
        Failure::failed(format!(
            "no adapter is set up: {directory} holds no state of this network namespace"
        ))
    })
}

/// Sends a request to the forwarder of `named`, else of the only adapter of this network namespace.
pub(super) fn ask(
    state: Option<&Path>,
    named: Option<String>,
    request: &str,
) -> Result<String, Failure> {
    ask_within(PATIENCE, state, named, request)
}

/// The same, where the answer may take so long.
pub(super) fn ask_within(
    patience: Duration,
    state: Option<&Path>,
    named: Option<String>,
    request: &str,
) -> Result<String, Failure> {
    let state = State::locate(state)?;
    let adapter = adapter(named, &state)?;
    send(patience, &adapter, &state, request)
}

/// Sends a request to the forwarder of `adapter`.
pub(super) fn ask_of(adapter: &str, state: &State, request: &str) -> Result<String, Failure> {
    send(PATIENCE, adapter, state, request)
}

fn send(
    patience: Duration,
    adapter: &str,
    state: &State,
    request: &str,
) -> Result<String, Failure> {
    let socket = state.path(adapter, Kept::Socket);
    admin::ask(&socket, request, patience).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => none(adapter),
        io::ErrorKind::PermissionDenied => {
            Failure::failed(format!("only root may ask: {}: {error}", socket.display()))
        }
        _ => Failure::failed(format!("{} does not answer: {error}", socket.display())),
    })
}

/// None runs.
pub(super) fn none(adapter: &str) -> Failure {
    Failure::failed(format!(
        "no forwarder runs on {adapter} (if it is set up, the kernel forwards)"
    ))
}

/// The process that holds the lock of `adapter`, and its pidfd. That the lock is still its own once the pidfd
/// is open proves that the pid was not given to another in between.
pub(super) fn holder(adapter: &str) -> Result<Option<(u32, OwnedFd)>, Failure> {
    let pid = || -> Result<Option<u32>, Failure> {
        let Some(holder) = lock::holder(adapter)? else { return Ok(None) };
        let elsewhere =
            || Failure::failed(format!("the forwarder of {adapter} is in another PID namespace"));
        holder.pid.map(Some).ok_or_else(elsewhere)
    };
    let Some(first) = pid()? else { return Ok(None) };
    let process = match pidfd::open(first) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        other => other?,
    };
    Ok((pid()? == Some(first)).then_some((first, process)))
}
