//! `vipa server …` and `vipa policy`: what an operator changes while the services run.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Failure, forwarder, output, table};
use crate::admin::Checked;
use crate::balance::monitor::Change;

/// A reading takes at most a minute, and another may have to end before it.
const PATIENCE: Duration = Duration::from_secs(130);

/// `vipa server`.
#[derive(Clone, Debug, Args)]
pub struct Server {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    forwarder: Forwarder,
}

/// Which forwarder is meant.
#[derive(Clone, Debug, Args)]
struct Forwarder {
    /// The adapter, where this network namespace has several.
    #[arg(long, value_name = "NAME", global = true)]
    adapter: Option<String>,
    /// Where state is kept [default: $RUNTIME_DIRECTORY, else /run/vipa].
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
}

/// A server is SERVICE/SERVER, or SERVER alone where only one service has it.
#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Give a service another server; it gets connections after its first good readings.
    Add {
        /// The service.
        service: String,
        /// The server's name.
        name: String,
        /// Its address and port, as in the configuration.
        address: String,
        /// Its share among servers that are equal otherwise.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=1000))]
        weight: u16,
        /// What it can bear.
        #[arg(long)]
        capacity: Option<f64>,
    },
    /// Take a server away; the connections that it has go on.
    Remove {
        /// The server.
        server: String,
    },
    /// Give a server no new connections.
    Drain {
        /// The server.
        server: String,
    },
    /// Treat a server as it is read: takes `drain` and `down` back.
    Up {
        /// The server.
        server: String,
    },
    /// Treat a server as if it were dead: the service's `on-death` holds for its connections.
    Down {
        /// The server.
        server: String,
    },
    /// Give a server another weight.
    Weight {
        /// The server.
        server: String,
        /// From 0 (no new connections) to 1000.
        #[arg(value_parser = clap::value_parser!(u16).range(0..=1000))]
        weight: u16,
    },
    /// Read every status object of a server now, those that are read on demand as well.
    Check {
        /// The server.
        server: String,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Hand a value over, for a status object of the kind `push`; as whoever runs the forwarder, as all of these.
    Push {
        /// The server.
        server: String,
        /// The status object.
        status: String,
        /// A number, or words such as "75% up".
        #[arg(allow_hyphen_values = true)]
        line: String,
    },
}

/// `vipa policy`.
#[derive(Clone, Debug, Args)]
pub struct Policy {
    /// The service.
    service: String,
    /// A policy's name, or an expression over the service's status objects; the lowest wins.
    #[arg(allow_hyphen_values = true)]
    policy: String,
    #[command(flatten)]
    forwarder: Forwarder,
}

/// Asks the forwarder for it, and tells what it says.
pub(super) fn run(arguments: &Server) -> Result<ExitCode, Failure> {
    let forwarder = &arguments.forwarder;
    let change = match arguments.action.clone() {
        Action::Add { service, name, address, weight, capacity } => {
            Change::Add { service, name, address, weight, capacity }
        }
        Action::Remove { server } => Change::Remove(server),
        Action::Drain { server } => Change::Drain(server),
        Action::Up { server } => Change::Up(server),
        Action::Down { server } => Change::Down(server),
        Action::Weight { server, weight } => Change::Weight(server, weight),
        Action::Check { server, json } => return check(forwarder, &server, json),
        Action::Push { server, status, line } => {
            let request =
                json!({"command": "push", "server": server, "status": status, "line": line});
            ask(forwarder, &request)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    apply(forwarder, &change)
}

/// Asks for another policy.
pub(super) fn policy(arguments: &Policy) -> Result<ExitCode, Failure> {
    let (service, policy) = (arguments.service.clone(), arguments.policy.clone());
    apply(&arguments.forwarder, &Change::Policy { service, policy })
}

fn apply(forwarder: &Forwarder, change: &Change) -> Result<ExitCode, Failure> {
    ask(forwarder, &json!({"command": "change", "change": change}))?;
    Ok(ExitCode::SUCCESS)
}

/// Exit status 1 if any reading failed.
fn check(forwarder: &Forwarder, server: &str, is_json: bool) -> Result<ExitCode, Failure> {
    let answer = ask(forwarder, &json!({"command": "check", "server": server}))?;
    let checked: Checked = serde_json::from_str(&answer).map_err(|error| not_understood(&error))?;
    let text = if is_json { format!("{answer}\n") } else { table::readings(&checked) };
    output::print(&text)?;
    let has_failed = checked.readings.iter().any(|reading| reading.error.is_some());
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The line of its answer, unless that is a refusal.
fn ask(which: &Forwarder, request: &Value) -> Result<String, Failure> {
    let adapter = which.adapter.clone();
    let state = which.state.as_deref();
    let answer = forwarder::ask_within(PATIENCE, state, adapter, &request.to_string())?;
    let value: Value = serde_json::from_str(&answer).map_err(|error| not_understood(&error))?;
    match value.get("error").and_then(Value::as_str) {
        Some(error) => Err(Failure::failed(error)),
        None => Ok(answer),
    }
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::failed(format!("the forwarder's answer is not understood: {error}"))
}
