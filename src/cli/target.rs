//! Which adapter a command means.

use super::Failure;
use crate::state::{Kept, State};

/// The adapter `named`, else the only one of this namespace of which any of `kept` is there; `None` where
/// there is none.
pub(super) fn adapter(
    named: Option<String>,
    state: &State,
    kept: &[Kept],
) -> Result<Option<String>, Failure> {
    if named.is_some() {
        return Ok(named);
    }
    let directory = state.directory().display();
    let mut adapters = state
        .adapters()
        .map_err(|error| Failure::failed(format!("{directory} cannot be read: {error}")))?;
    adapters.retain(|adapter| kept.iter().any(|kept| state.path(adapter, *kept).exists()));
    match adapters.len() {
        0 | 1 => Ok(adapters.pop()),
        _ => Err(Failure::bad_use(format!(
            "this namespace has several adapters ({}): say which by --adapter",
            adapters.join(", ")
        ))),
    }
}
