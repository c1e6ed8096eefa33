//! What the pipeline is made of, and nothing else of the crate.
#![deny(unsafe_code)]

#[path = "../../src/forward/mod.rs"]
pub mod forward;
#[path = "../../src/wire/mod.rs"]
pub mod wire;
