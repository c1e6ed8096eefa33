//! `vipa status [--json]`: what a running forwarder tells over its control socket.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::{Failure, StatusOf, output, table, target};
use crate::admin::{self, Status};
use crate::state::{Kept, State};

/// How long the forwarder may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Shows what the forwarder of this network namespace tells of itself.
pub(super) fn run(arguments: &StatusOf) -> Result<ExitCode, Failure> {
    let adapter = arguments.adapter.clone();
    let answer = ask(arguments.state.as_deref(), adapter, r#"{"command":"status"}"#)?;
    let text = if arguments.json {
        format!("{answer}\n")
    } else {
        let status: Status = serde_json::from_str(&answer).map_err(|error| {
            Failure::failed(format!("the forwarder's answer is not understood: {error}"))
        })?;
        table::render(&status)
    };
    output::print(&text)
}

/// Sends a request to the forwarder of `named`, else of the only adapter of this network namespace.
pub(super) fn ask(
    state: Option<&Path>,
    named: Option<String>,
    request: &str,
) -> Result<String, Failure> {
    let state = State::locate(state)?;
    let kept = [Kept::Socket, Kept::Saved];
    let Some(adapter) = target::adapter(named, &state, &kept)? else {
        let directory = state.directory().display();
        return Err(Failure::failed(format!(
            "no adapter is set up: {directory} holds no state of this network namespace"
        )));
    };
    let socket = state.path(&adapter, Kept::Socket);
    admin::ask(&socket, request, PATIENCE).map_err(|error| {
        Failure::failed(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                format!("no forwarder runs on {adapter} (if it is set up, the kernel forwards)")
            }
            _ => format!("{} does not answer: {error}", socket.display()),
        })
    })
}
