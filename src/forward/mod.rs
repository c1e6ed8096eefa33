//! One packet in, one verdict out. Pure: no sockets, no clock (time is a parameter), no locks, no
//! allocation per packet. The same [`pipeline::process_batch`] runs live, in tests and in benchmarks.

pub mod applies;
pub(crate) mod begin;
pub mod claims;
mod fast;
pub mod flood;
pub mod flow;
pub mod fragments;
pub mod frame;
pub mod gro;
pub mod limit;
pub mod pipeline;
pub mod preferred;
pub mod publish;
pub mod rewrite;
pub mod route;
pub mod rule;
pub mod service;
pub mod socket;
pub mod source;
pub mod spread;
pub mod verdict;
pub mod view;

/// What `publish` is made of; its model in `tests/publish.rs` has loom's in their place.
mod atomic {
    pub(super) use std::sync::Arc;
    pub(super) use std::sync::atomic::{AtomicPtr, Ordering};
}
