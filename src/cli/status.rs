//! `vipa status [--json]`: what a running forwarder tells over its control socket.

use std::process::ExitCode;

use super::{Failure, StatusOf, forwarder, output, table};
use crate::admin::Status;

/// Shows what the forwarder of this network namespace tells of itself.
pub(super) fn run(arguments: &StatusOf) -> Result<ExitCode, Failure> {
    let adapter = arguments.adapter.clone();
    let answer = forwarder::ask(arguments.state.as_deref(), adapter, r#"{"command":"status"}"#)?;
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
