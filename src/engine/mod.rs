//! Carries batches between devices and the pipeline, and what workers and router say to each other.

mod busy_poll;
pub mod descriptors;
pub mod flow_file;
pub mod forwarder;
pub mod guard;
pub mod heartbeat;
pub mod leave;
pub mod lock;
pub mod message;
pub mod pidfd;
pub mod plane;
pub mod statistics;
pub mod waiting;
pub mod watchdog;
pub mod worker;
