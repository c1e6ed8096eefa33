//! Status objects (L1–L3): each reads one application-specific fact of one instance.
//!
//! One of your own is a type with [`StatusObject`]; programs in any language are `kind = "exec"`.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

/// The instance that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Name of its virtual service.
    pub service: Arc<str>,
    /// Name of its server.
    pub server: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// The value, finite; `None`: the instance said nothing but that it lives, or how it wants to be treated.
    pub value: Option<f64>,
    /// What an agent asked for (HAProxy's agent-check grammar).
    pub words: Words,
}

/// An agent's words beside its value; each `None` where it did not speak of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Words {
    /// Share of its configured weight, 0 to 1 and above ("75%"). 0: no new connections.
    pub weight: Option<f64>,
    /// "maxconn:N".
    pub most_connections: Option<u32>,
    /// "ready", "drain" or "maint": the administrative state that the agent asks for.
    pub administrative: Option<Administrative>,
    /// "up" or "down" ("failed", "stopped"): the operational state that it asks for.
    pub is_up: Option<bool>,
}

/// How the operator, or an agent, wants a server to be treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Administrative {
    /// It serves.
    #[default]
    Ready,
    /// No new connections; those that it has go on.
    Drain,
    /// Down for maintenance.
    Maintenance,
}

/// Why nothing was read: the instance is down, or what it said is of no use (L3).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No answer within the status object's timeout.
    #[error("no answer in time")]
    Timeout,
    /// It cannot be reached.
    #[error("not reached: {0}")]
    Unreached(String),
    /// It answered with something else than was asked for.
    #[error("answered {found}, wanted {wanted}")]
    Answer {
        /// What came, shortened.
        found: String,
        /// What should have come.
        wanted: String,
    },
    /// It answered more than is read.
    #[error("answered more than {0} bytes")]
    TooMuch(usize),
    /// It handed nothing over for too long (`push`).
    #[error("stale")]
    Stale,
}

/// What a reading comes to, some time later.
pub type Pending<'a> = Pin<Box<dyn Future<Output = Result<Reading, Failure>> + Send + 'a>>;

/// Reads one fact of one instance. The monitor calls it each period, or on demand, never twice at a time, and drops
/// the future when the status object's timeout is over: what it holds has to end with it.
pub trait StatusObject: Send + std::fmt::Debug {
    /// Reads it once.
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a>;
}

/// How a status object is to be read, as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Its name, once in a service.
    pub name: Arc<str>,
    /// What its value means.
    pub role: Option<super::policy::Role>,
    /// How often; `None`: on demand.
    pub every: Option<std::time::Duration>,
    /// How long one reading may take.
    pub timeout: std::time::Duration,
}
