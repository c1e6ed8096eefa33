//! `vipa run CONFIG`: the forwarder.

use std::process::ExitCode;

use super::{Failure, Run, failure};

/// Runs until SIGTERM or SIGINT.
pub(super) fn run(arguments: &Run) -> Result<ExitCode, Failure> {
    let _config = failure::load(&arguments.config)?;
    Err(Failure::failed("run is not in this build"))
}
