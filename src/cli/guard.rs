//! `vipa guard`: the child that the forwarder starts to watch over it.

use std::process::ExitCode;

use super::{Failure, Guard};

/// Runs until the forwarder ends.
pub(super) fn run(_arguments: &Guard) -> Result<ExitCode, Failure> {
    Err(Failure::failed("guard is not in this build"))
}
