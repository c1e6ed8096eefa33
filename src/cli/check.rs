//! `vipa check CONFIG [--plan]`: is it right, what would it set up, and what on this host would change?

use std::process::ExitCode;

use super::{Check, Failure, failure, output, plan};
use crate::balance::host;
use crate::config::Config;
use crate::engine::descriptors::{Limit, Need};
use crate::link;

/// Reads the configuration; nothing is changed.
pub(super) fn run(arguments: &Check) -> Result<ExitCode, Failure> {
    let config = failure::load_anywhere(&arguments.config)?;
    let notes = look_at_servers(&config)?;
    if let Some(shortage) = Need::of(&config).shortage(Limit::of_process().hard) {
        eprintln!("warning: {shortage}");
    }
    let mut text = String::new();
    if arguments.plan {
        text = plan::describe(&config)?;
    }
    if text.is_empty() {
        text = format!("{} is right\n", arguments.config.display());
    }
    for note in notes {
        text.push_str(&note);
        text.push('\n');
    }
    output::print(&text)
}

/// Servers that cannot be on this host, with exit status 2; else what is to know of the services. What could not be looked at is told on
/// stderr.
fn look_at_servers(config: &Config) -> Result<Vec<String>, Failure> {
    if config.services.is_empty() {
        return Ok(Vec::new());
    }
    let view = match link::preview_view(config) {
        Ok(view) => view,
        Err(error) => {
            eprintln!("warning: whether every server is reached was not checked: {error}");
            return Ok(Vec::new());
        }
    };
    let outlook = host::look(config, &view);
    if let Some(unchecked) = outlook.unchecked {
        eprintln!("warning: {unchecked}");
    }
    if outlook.mistakes.is_empty() {
        return Ok(outlook.notes);
    }
    let file = config.file.display();
    let mistakes = outlook.mistakes.iter().map(|wrong| format!("error: {file}, {wrong}"));
    Err(Failure::wrong_here(mistakes.collect::<Vec<_>>().join("\n")))
}
