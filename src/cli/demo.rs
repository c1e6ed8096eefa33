//! `vipa demo [--balance] [--json]`: the main job, or a service, on a private network on this machine.

use std::process::ExitCode;
use std::time::Duration;

use super::{Demo, DemoServer, Failure};
use crate::lab::demo;

/// Exit status 0 only if no connection was lost and every byte arrived; of a service, if no request failed but on the killed
/// server, and each thing that happened moved the new connections.
pub(super) fn run(arguments: &Demo) -> Result<ExitCode, Failure> {
    let done =
        if arguments.balance { demo::balance(arguments.json) } else { demo::demo(arguments.json) };
    match done {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) => Err(Failure::failed(error.to_string())),
    }
}

/// Serves until it is killed.
pub(super) fn serve(arguments: &DemoServer) -> Result<ExitCode, Failure> {
    let pause = Duration::from_millis(arguments.pause);
    match demo::serve(&arguments.name, arguments.address, pause) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Failure::failed(format!("{}: {error}", arguments.address))),
    }
}
