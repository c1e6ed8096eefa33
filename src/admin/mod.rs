//! What an operator sees of a running forwarder: the control socket, on the monitor thread.
//!
//! A Unix socket (mode 0600) takes JSON lines: `{"command":"status"}` is answered by one line, a
//! [`Status`]; `{"command":"explain","question":{…}}` by an [`Explanation`](crate::explain::Explanation);
//! `{"command":"drain","wait_ms":3000}` by a [`Draining`], and then the forwarder ends; what is asked of services and servers is in
//! `services.rs`. The thread is a tokio current-thread runtime that sleeps until somebody connects or a server is to be asked; it reads
//! counters and the published view, and holds up neither router nor workers.

mod client;
mod drain;
mod server;
mod services;
mod status;
#[cfg(test)]
mod tests;

pub use client::ask;
pub use drain::Draining;
pub use server::{Running, start};
pub use services::{Checked, ReadingStatus};
pub use status::{
    NeighbourStatus, NextHopStatus, NicStatus, RejectedStatus, RipStatus, RouteStatus,
    RouterStatus, RuleStatus, Status, TrafficStatus, WithdrawingStatus, WorkerStatus, rules,
};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crate::balance::schedule::Balance;
use crate::config::Config;
use crate::engine::leave::Leave;
use crate::engine::statistics::{RouterStatistics, WorkerStatistics};
use crate::forward::view::NetCell;

/// What the monitor thread may look at.
#[derive(Clone, Debug)]
pub struct Admin {
    /// As it was read at start.
    pub config: Arc<Config>,
    /// What the router publishes.
    pub cell: NetCell,
    /// One for each worker, in the order of their numbers.
    pub workers: Vec<Arc<WorkerStatistics>>,
    /// What the router counts.
    pub router: Arc<RouterStatistics>,
    /// The monitor of the servers; it goes to work on this thread.
    pub balance: Balance,
    /// When the forwarder started.
    pub started: Instant,
    /// How it is told to leave.
    pub leave: Leave,
    /// Path of the control socket.
    pub socket: PathBuf,
}
