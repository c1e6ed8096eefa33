//! How a command fails: an exit status and what is told of it.

use std::fmt;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use crate::config::{Config, Errors, Nic, Warning};
use crate::link::sysctl;
use crate::wire::ip::Family;

/// A command did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// Exit status 1: it was tried and failed. `message` is one line: what failed, and why.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure { status: 1, message: format!("vipa: {}", message.into()) }
    }

    /// Exit status 2: nothing was tried, the command line asks for what cannot be.
    pub fn bad_use(message: impl Into<String>) -> Failure {
        Failure { status: 2, message: format!("vipa: {}", message.into()) }
    }

    /// Exit status 2: the configuration cannot be on this host. `mistakes` has a line for each.
    pub fn wrong_here(mistakes: String) -> Failure {
        Failure { status: 2, message: mistakes }
    }

    /// The status that the process ends with.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<Errors> for Failure {
    /// Exit status 2, with every mistake.
    fn from(errors: Errors) -> Failure {
        Failure { status: 2, message: errors.render(is_coloured()) }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::failed(error.to_string())
    }
}

/// The configuration of `path`; its warnings go to stderr.
pub(super) fn load(path: &Path) -> Result<Config, Failure> {
    warned(Config::load(path)?)
}

/// The same, for the host that it is read on.
pub(super) fn load_here(path: &Path) -> Result<Config, Failure> {
    warned(Config::load_for(path, Some(&|_, family| Some(sysctl::forwards(family))))?)
}

/// The same, for this host if it has any of the NICs.
pub(super) fn load_anywhere(path: &Path) -> Result<Config, Failure> {
    let is_here = |nics: &[Nic]| nics.iter().any(|nic| sysctl::has_device(&nic.name));
    let forwards = |nics: &[Nic], family: Family| is_here(nics).then(|| sysctl::forwards(family));
    warned(Config::load_for(path, Some(&forwards))?)
}

fn warned((config, warnings): (Config, Vec<Warning>)) -> Result<Config, Failure> {
    for warning in warnings {
        eprintln!("{}\n", warning.render(is_coloured()));
    }
    Ok(config)
}

/// <https://no-color.org>: colour where a person reads, unless told otherwise.
fn is_coloured() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
