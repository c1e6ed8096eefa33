//! What an operator sees of a running forwarder: the control socket, on the monitor thread.
//!
//! A Unix socket (mode 0600) takes JSON lines: `{"command":"status"}` is answered by one line, a
//! [`Status`]; `{"command":"explain","question":{…}}` by an [`Explanation`](crate::explain::Explanation);
//! `{"command":"drain","wait_ms":3000}` by a [`Draining`], and then the forwarder ends; `{"command":"reload"}` by a [`Reloaded`], once
//! what the file says stands; what is asked of services and servers is in
//! `services.rs`. The thread is a tokio current-thread runtime that sleeps until somebody connects or a server is to be asked; it reads
//! counters and the published view, and holds up neither router nor workers.

mod client;
mod drain;
mod reload;
mod server;
mod services;
mod status;
#[cfg(test)]
mod tests;

pub use client::ask;
pub use drain::Draining;
pub use reload::Reloaded;
pub use server::{Running, start};
pub use services::{Checked, ReadingStatus};
pub use status::{
    NeighbourStatus, NextHopStatus, NicStatus, RejectedStatus, RipStatus, RouteStatus,
    RouterStatus, RuleStatus, Status, TrafficStatus, WithdrawingStatus, WorkerStatus, rules,
};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::Mutex;

use crate::balance::schedule::Balance;
use crate::config::Config;
use crate::engine::leave::Leave;
use crate::engine::message::Reloader;
use crate::engine::statistics::{RouterStatistics, WorkerStatistics};
use crate::forward::view::NetCell;

/// What the monitor thread may look at.
#[derive(Clone, Debug)]
pub struct Admin {
    /// As the file said when it was read last: at start, or at a reload.
    pub config: Arc<ArcSwap<Config>>,
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
    /// How the router is told of another configuration.
    pub reloader: Reloader,
    /// Whoever changes what is served waits for whoever does so already.
    pub turn: Arc<Mutex<()>>,
    /// Path of the control socket.
    pub socket: PathBuf,
}
