//! What a status object is told to read, and how often: `[[service.status]]`.

use std::sync::Arc;
use std::time::Duration;

use super::agent_check::AgentCheck;
use super::blocking::Blocking;
use super::dns::{Dns, Question};
use super::exec::Exec;
use super::file::File;
use super::fixed::Fixed;
use super::flows::{Flows, Measure};
use super::hops::Hops;
use super::host::{Host, Resource};
use super::http::Request;
use super::http_json::HttpJson;
use super::http_status::{Expected, HttpStatus};
use super::maildir::{Count, Maildir};
use super::ping::Ping;
use super::prometheus::{Prometheus, Selection};
use super::push::{Push, Pushed};
use super::rate::Rate;
use super::redis::{self, Redis};
use super::sql::{self, Sql};
use super::tcp::Tcp;
use super::template::Template;
use super::{Role, StatusObject};
use crate::forward::preferred::ServerCounters;

/// One `[[service.status]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// What expressions call its value.
    pub name: Arc<str>,
    /// What policies look for.
    pub role: Option<Role>,
    /// When it is read.
    pub every: Every,
    /// How long a reading may take.
    pub timeout: Duration,
    /// What is read.
    pub kind: Kind,
}

/// When a status object is read (L2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// Again after so long.
    Period(Duration),
    /// When somebody asks.
    Demand,
}

/// What is read, and what that takes.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Milliseconds until a connection stands.
    Tcp {
        /// In place of the server's.
        port: Option<u16>,
    },
    /// Milliseconds until a good response is there, or a number in it.
    Http {
        /// What is asked.
        request: Request,
        /// What is good.
        expected: Expected,
    },
    /// A value in a JSON document.
    HttpJson {
        /// What is asked.
        request: Request,
        /// JSON pointer.
        select: String,
    },
    /// A metric, or a counter's rate.
    Prometheus {
        /// What is asked.
        request: Request,
        /// Which series.
        selection: Selection,
    },
    /// An agent's words.
    AgentCheck {
        /// In place of the server's.
        port: Option<u16>,
        /// What the agent is sent first.
        send: String,
    },
    /// Milliseconds until a name server answers.
    Dns(Question),
    /// What a program says.
    Exec {
        /// The program and its arguments; not empty.
        command: Vec<Template>,
    },
    /// A server's `capacity`.
    Fixed {
        /// For servers that state none.
        value: Option<f64>,
    },
    /// What a file says.
    File {
        /// Where it is.
        path: Template,
        /// Older than this it is stale.
        most_age: Option<Duration>,
    },
    /// What the flow table knows.
    Flows(Measure),
    /// Hops to the server.
    Hops {
        /// Farther is not looked.
        most: u8,
    },
    /// How busy this host is.
    Host(Resource),
    /// What mail there is.
    Maildir {
        /// The top of the tree.
        path: Template,
        /// What is counted.
        count: Count,
        /// Files and directories that are looked at.
        most: usize,
    },
    /// Milliseconds of an ICMP echo.
    Ping,
    /// A field of Redis' INFO.
    Redis(redis::Query),
    /// The first value of a query to PostgreSQL.
    Sql(sql::Query),
    /// What the application hands over.
    Push {
        /// Older than this it is stale.
        most_age: Duration,
    },
}

/// What some kinds read from inside this process.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// For `flows`: what the data plane counts of the server.
    pub counters: Arc<ServerCounters>,
    /// For `push`.
    pub pushed: Arc<Pushed>,
}

/// The status object for one instance; it keeps its connection between readings.
pub fn build(settings: &Settings, sources: &Sources) -> Box<dyn StatusObject> {
    match &settings.kind {
        Kind::Tcp { port } => Box::new(Tcp { port: *port }),
        Kind::Http { request, expected } => Box::new(HttpStatus::new(request, expected)),
        Kind::HttpJson { request, select } => Box::new(HttpJson::new(request, select)),
        Kind::Prometheus { request, selection } => Box::new(Prometheus::new(request, selection)),
        Kind::AgentCheck { port, send } => Box::new(AgentCheck { port: *port, send: send.clone() }),
        Kind::Exec { command } => Box::new(Exec { command: command.clone() }),
        Kind::Dns(question) => Box::new(Dns { question: question.clone() }),
        Kind::Hops { most } => Box::new(Hops { most: *most }),
        Kind::Maildir { path, count, most } => Box::new(Maildir {
            path: path.clone(),
            count: *count,
            most: *most,
            blocking: Blocking::default(),
        }),
        Kind::Ping => Box::new(Ping),
        Kind::Redis(query) => Box::new(Redis::new(query)),
        Kind::Sql(query) => Box::new(Sql::new(query, settings.timeout)),
        Kind::Fixed { value } => Box::new(Fixed { value: *value }),
        Kind::File { path, most_age } => Box::new(File {
            path: path.clone(),
            most_age: *most_age,
            blocking: Blocking::default(),
        }),
        Kind::Flows(measure) => Box::new(Flows {
            measure: *measure,
            counters: sources.counters.clone(),
            rate: Rate::default(),
        }),
        Kind::Host(resource) => Box::new(Host { resource: *resource, before: None }),
        Kind::Push { most_age } => Box::new(Push {
            name: settings.name.clone(),
            most_age: *most_age,
            pushed: sources.pushed.clone(),
        }),
    }
}
