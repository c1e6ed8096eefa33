//! What goes to stdout.

use std::io::{self, Write};
use std::process::ExitCode;

use super::Failure;

/// Prints `text`, which ends a command that did what was asked.
pub(super) fn print(text: &str) -> Result<ExitCode, Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever read has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Failure::failed(format!("stdout cannot be written: {error}"))),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}
