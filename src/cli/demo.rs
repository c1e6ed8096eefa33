//! `vipa demo`.

use crate::lab;

/// Runs the demo; `Ok(false)`: it ran, and not all was well.
pub fn run(json: bool) -> Result<bool, lab::Error> {
    lab::demo::demo(json)
}
