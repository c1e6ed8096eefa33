//! `vipa run CONFIG`: the forwarder.

use std::process::ExitCode;

use super::{Failure, Run, failure};
use crate::engine::forwarder;
use crate::state::State;

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(arguments: &Run) -> Result<ExitCode, Failure> {
    let config = failure::load_here(&arguments.config)?;
    crate::log::start(arguments.verbose);
    let state = State::locate(arguments.state.as_deref())?;
    forwarder::run(config, &state, arguments.withdraw)
        .map_err(|error| Failure::failed(error.to_string()))?;
    Ok(ExitCode::SUCCESS)
}
