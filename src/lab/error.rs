//! What can go wrong in a lab: one line each, naming what was wanted.

use std::io;

/// Why the lab cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system does not let us have a private network; the text says what is missing.
    #[error("no private network here: {0}")]
    Missing(String),
    /// The kernel refused a step.
    #[error("{step}: {source}")]
    Refused {
        /// What was tried, with its objects.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A text given to the lab is no address, prefix or device.
    #[error("{0}")]
    Text(String),
    /// A program did not do in time what it was started for.
    #[error("{0}")]
    Program(String),
    /// The traffic could not be set up, or its threads are gone.
    #[error("traffic: {0}")]
    Traffic(String),
}

/// Names the step that an `io::Error` came from.
pub(crate) trait Step<T> {
    /// The error with `step` in front of it.
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Refused { step: step(), source })
    }
}
