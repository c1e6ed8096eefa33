//! Status objects (L1–L3): each reads one application-specific fact of one instance.
//!
//! One of your own is a type with [`StatusObject`]; programs in any language are `kind = "exec"`. Each kind that vipa
//! brings is a file here; [`settings`] is what one is told, [`build`] makes it.
//!
//! A status object of one's own, which asks a server over UDP how many players it has:
//!
//! ```
//! use std::io::Error;
//! use tokio::net::UdpSocket;
//! use vipa::balance::status::{Failure, Instance, Pending, Reading, StatusObject};
//!
//! #[derive(Debug)]
//! struct Players;
//!
//! impl StatusObject for Players {
//!     fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
//!         Box::pin(async {
//!             let unreached = |error: Error| Failure::Unreached(error.to_string());
//!             let socket = UdpSocket::bind("0.0.0.0:0").await.map_err(unreached)?;
//!             socket.connect(instance.address).await.map_err(unreached)?;
//!             socket.send(b"players?").await.map_err(unreached)?;
//!             let mut answer = [0; 64];
//!             let length = socket.recv(&mut answer).await.map_err(unreached)?;
//!             let text = String::from_utf8_lossy(&answer[..length]);
//!             let players = text.trim().parse().map_err(|_| Failure::Answer {
//!                 found: text.to_string(),
//!                 wanted: "a number of players".to_string(),
//!             })?;
//!             Ok(Reading { value: Some(players), ..Reading::default() })
//!         })
//!     }
//! }
//!
//! // A server to ask:
//! let server = std::net::UdpSocket::bind("127.0.0.1:0")?;
//! let address = server.local_addr()?;
//! std::thread::spawn(move || {
//!     let (_, client) = server.recv_from(&mut [0; 64]).expect("a question");
//!     server.send_to(b"12", client).expect("an answer");
//! });
//!
//! let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! let instance = Instance::new("game", "a", address);
//! let reading = runtime.block_on(Players.read(&instance)).expect("it answers");
//! assert_eq!(reading.value, Some(12.0));
//! # Ok::<(), Error>(())
//! ```

mod agent_check;
mod answer;
mod blocking;
pub mod dns;
pub mod echo;
mod exec;
mod file;
mod fixed;
pub mod flows;
mod hops;
pub mod host;
pub mod http;
pub mod http_json;
pub mod http_status;
pub mod maildir;
mod ping;
pub mod prometheus;
pub mod push;
mod rate;
pub mod redis;
pub mod settings;
pub mod sql;
mod stream;
mod tcp;
pub mod template;
#[cfg(test)]
pub(crate) mod tests;
pub mod tls;
pub mod words;

pub use settings::{Every, Kind, Settings, Sources, build};

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

/// The instance that is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Name of its virtual service.
    pub service: Arc<str>,
    /// Name of its server.
    pub server: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it can bear, as its configuration states.
    pub capacity: Option<f64>,
}

impl Instance {
    /// One that states no capacity.
    pub fn new(service: &str, server: &str, address: SocketAddr) -> Instance {
        Instance { service: service.into(), server: server.into(), address, capacity: None }
    }
}

/// Where the instance is asked: at its own port, or another one.
fn at_port(instance: &Instance, port: Option<u16>) -> SocketAddr {
    let mut address = instance.address;
    address.set_port(port.unwrap_or(address.port()));
    address
}

/// A password: never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides it.
    pub fn new(text: &str) -> Secret {
        Secret(text.to_owned())
    }

    /// For whoever has to send it.
    fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What a value tells, so that policies find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Clients connected.
    Clients,
    /// Requests that wait.
    Pending,
    /// Time that an answer takes.
    ResponseTime,
    /// What it gets done in a time.
    Throughput,
    /// Requests, accesses or messages that it has processed.
    Processed,
    /// How far it is.
    Distance,
    /// What it can bear.
    Capacity,
}

impl Role {
    /// Each with its word in a configuration.
    pub const NAMES: [(&str, Role); 8] = [
        ("clients", Role::Clients),
        ("pending", Role::Pending),
        ("response-time", Role::ResponseTime),
        ("throughput", Role::Throughput),
        ("processed", Role::Processed),
        ("distance", Role::Distance),
        ("hops", Role::Distance),
        ("capacity", Role::Capacity),
    ];

    /// Its word in a configuration.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, role)| *role == self).map_or("", |(name, _)| name)
    }

    /// Does it count connections, so that one given since it was read makes it one more?
    pub fn is_load(self) -> bool {
        matches!(self, Role::Clients | Role::Pending)
    }
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

impl Administrative {
    /// HAProxy's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Administrative::Ready => "ready",
            Administrative::Drain => "drain",
            Administrative::Maintenance => "maint",
        }
    }
}

impl std::fmt::Display for Words {
    /// As HAProxy's grammar has them, in its order.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = [
            self.weight.map(|share| format!("{}%", share * 100.0)),
            self.most_connections.map(|most| format!("maxconn:{most}")),
            self.administrative.map(|wanted| wanted.word().to_owned()),
            self.is_up.map(|is_up| if is_up { "up" } else { "down" }.to_owned()),
        ];
        f.write_str(&all.into_iter().flatten().collect::<Vec<_>>().join(" "))
    }
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
