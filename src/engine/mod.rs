//! Carries batches between devices and the pipeline, and what workers and router say to each other.

pub mod message;
pub mod statistics;
