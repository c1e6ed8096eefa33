//! Where the commands meet `link`: what would be set up, what on this host would change, and down.

use std::path::Path;

use super::Failure;
use crate::config::Config;

/// What `run` would set up on this host now, and the sockets and netfilter rules that would behave
/// differently: text for a reader.
pub(super) fn describe(_config: &Config) -> Result<String, Failure> {
    Ok(String::new())
}

/// Deletes `adapter` and restores what is saved of it in `state`. Whoever calls holds its lock.
pub(super) fn take_down(_state: &Path, adapter: &str) -> Result<(), Failure> {
    Err(Failure::failed(format!("{adapter} is not taken down: this build has no link room")))
}
