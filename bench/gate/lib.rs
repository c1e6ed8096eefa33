//! What the pipeline is made of, the file of its flows, and nothing else of the crate.
#![deny(unsafe_code)]

#[path = "../../src/forward/mod.rs"]
pub mod forward;
#[path = "../../src/wire/mod.rs"]
pub mod wire;
/// Of it, where the flows lie.
#[path = "../../src/engine"]
pub mod engine {
    pub mod flow_file;
}
