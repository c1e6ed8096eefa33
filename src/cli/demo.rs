//! `vipa demo [--json]`: the main job on a private network on this machine.

use std::process::ExitCode;

use super::{Demo, Failure};
use crate::lab;

/// Exit status 0 only if no connection was lost and every byte arrived.
pub(super) fn run(arguments: &Demo) -> Result<ExitCode, Failure> {
    match lab::demo::demo(arguments.json) {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) => Err(Failure::failed(error.to_string())),
    }
}
