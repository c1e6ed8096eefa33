//! `vipa check CONFIG [--plan]`: is it right, what would it set up, and what on this host would change?

use std::process::ExitCode;

use super::{Check, Failure, failure, output, plan};

/// Reads the configuration; nothing is changed.
pub(super) fn run(arguments: &Check) -> Result<ExitCode, Failure> {
    let config = failure::load(&arguments.config)?;
    let mut text = String::new();
    if arguments.plan {
        text = plan::describe(&config)?;
    }
    if text.is_empty() {
        text = format!("{} is right\n", arguments.config.display());
    }
    output::print(&text)
}
