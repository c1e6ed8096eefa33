//! What is told of services and servers in `vipa status`. Fields are only ever added.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Monitor, Server, Service};
use crate::balance::candidate::State;
use crate::balance::service::{Choose, Mode, WhenNone};
use crate::balance::table::Named;
use crate::wire::ip::UDP;

/// All services, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BalanceStatus {
    /// Number of the table that was published last.
    pub generation: u32,
    /// Readings taken since the forwarder started.
    pub readings: u64,
    /// Those of them that failed.
    pub failed_readings: u64,
    /// Every `[[service]]`, in the order of the configuration.
    pub services: Vec<ServiceStatus>,
}

/// One `[[service]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// VIPA and ports, as in the configuration.
    pub address: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// `nat`, `nat, keep-client` or `direct`.
    pub mode: String,
    /// A policy's name, or an expression.
    pub policy: String,
    /// What the configuration says, where an operator wanted another.
    pub configured_policy: Option<String>,
    /// `preferred` or `weighted`.
    pub choose: String,
    /// Who has the new connections: a server, several, the sorry server's address, or `none`.
    pub choice: String,
    /// No server is left: `refuse`, `last` or `sorry` holds. Null while there are some.
    pub when_none: Option<String>,
    /// Why the choice is this one.
    pub why: String,
    /// Every server.
    pub servers: Vec<ServerStatus>,
    /// The last 64 changes of the choice, the oldest first.
    pub switches: Vec<SwitchStatus>,
}

/// One server of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// Its address, and its port, if it has one of its own.
    pub address: String,
    /// `up`, `failing`, `starting`, `full`, `drain`, `maint` or `down`.
    pub state: String,
    /// Why, where it is not `up`.
    pub why: String,
    /// How long it has been so.
    pub since_seconds: f64,
    /// What the operator wants: `ready`, `drain` or `maint`.
    pub administrative: String,
    /// Its weight now: configured, times its agents', less in a slow start.
    pub weight: f64,
    /// What the policy makes of its values, with its weight; the lowest wins. Null: it has none.
    pub score: Option<f64>,
    /// Why it has no score.
    pub no_score: Option<String>,
    /// Share of the new connections that it gets, 0 to 1.
    pub share: f64,
    /// Connections that it has.
    pub connections: u64,
    /// Connections that it was given since the forwarder started.
    pub given: u64,
    /// What each status object tells.
    pub values: Vec<ValueStatus>,
}

/// What one status object tells of one server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ValueStatus {
    /// Its name.
    pub name: String,
    /// The last value.
    pub value: Option<f64>,
    /// How long ago it was asked, with success or without. Null: never.
    pub age_seconds: Option<f64>,
    /// Why the last reading failed.
    pub error: Option<String>,
    /// What its agent said and did not take back, in HAProxy's words.
    pub words: String,
}

/// A change of a service's choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SwitchStatus {
    /// When: milliseconds since 1970.
    pub at_ms: u64,
    /// How long ago.
    pub ago_seconds: f64,
    /// Who had the new connections.
    pub from: String,
    /// Who has them since.
    pub to: String,
    /// Why.
    pub why: String,
}

impl Monitor {
    /// What is told of it. `wall` is the time of day `now`.
    pub fn report(&self, now: Instant, wall: SystemTime) -> BalanceStatus {
        BalanceStatus {
            generation: self.published().generation,
            readings: self.readings.0,
            failed_readings: self.readings.1,
            services: self
                .services
                .iter()
                .map(|service| self.service_status(service, now, wall))
                .collect(),
        }
    }

    /// What the workers have, with names and reasons.
    pub fn named(&self) -> Named {
        let servers = self.services.iter().flat_map(|service| &service.servers);
        let mut names: Named = Named {
            table: self.published().clone(),
            names: servers.map(|server| (server.id, server.settings.name.to_string())).collect(),
            reasons: self.services.iter().map(|s| (s.id, s.why.clone())).collect(),
        };
        let sorry = self.services.iter().filter_map(|service| service.sorry);
        names.names.extend(sorry.map(|id| (id, "the sorry server".to_owned())));
        names
    }

    fn service_status(&self, service: &Service, now: Instant, wall: SystemTime) -> ServiceStatus {
        let settings = &service.settings;
        let none = match settings.when_none {
            WhenNone::Refuse => "refuse",
            WhenNone::Last => "last",
            WhenNone::Sorry(_) => "sorry",
        };
        let (policy, configured) = (settings.policy.to_string(), service.filed.policy.to_string());
        ServiceStatus {
            name: settings.name.to_string(),
            address: settings.show_address(),
            protocol: if settings.protocol == UDP { "udp" } else { "tcp" }.to_owned(),
            mode: match settings.mode {
                Mode::Nat { keeps_client: true, .. } => "nat, keep-client",
                Mode::Nat { .. } => "nat",
                Mode::Direct => "direct",
            }
            .to_owned(),
            configured_policy: (policy != configured).then_some(configured),
            policy,
            choose: if settings.choose == Choose::Weighted { "weighted" } else { "preferred" }
                .to_owned(),
            choice: service.show(),
            when_none: service.is_none_left.then(|| none.to_owned()),
            why: service.why.clone(),
            servers: service
                .servers
                .iter()
                .map(|server| self.server_status(service, server, now))
                .collect(),
            switches: service
                .switches
                .iter()
                .map(|switch| {
                    let ago = now.saturating_duration_since(switch.at);
                    SwitchStatus {
                        at_ms: milliseconds(wall, ago),
                        ago_seconds: ago.as_secs_f64(),
                        from: switch.from.clone(),
                        to: switch.to.clone(),
                        why: switch.why.clone(),
                    }
                })
                .collect(),
        }
    }

    fn server_status(&self, service: &Service, server: &Server, now: Instant) -> ServerStatus {
        use crate::forward::preferred::Choice;
        let names: Vec<&str> = service.statuses.iter().map(|(_, status)| &*status.name).collect();
        let candidate = &server.candidate;
        let settings = &server.settings;
        let age = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        ServerStatus {
            name: settings.name.to_string(),
            address: match settings.port {
                Some(port) => std::net::SocketAddr::from((settings.address, port)).to_string(),
                None => settings.address.to_string(),
            },
            state: candidate.state().name().to_owned(),
            why: candidate.why(&names),
            since_seconds: age(candidate.since()),
            administrative: candidate.operator.word().to_owned(),
            weight: candidate.weight(service.settings.slow_start, now),
            score: server.score.as_ref().and_then(|score| score.as_ref().ok().copied()),
            // Where it is down, that says all.
            no_score: match &server.score {
                Some(Err(error)) if candidate.state() != State::Down => Some(error.clone()),
                _ => None,
            },
            share: match &service.choice {
                Choice::Preferred(id) => f64::from(u8::from(*id == server.id)),
                Choice::Weighted(ids) => {
                    ids.iter().filter(|id| **id == server.id).count() as f64
                        / ids.len().max(1) as f64
                }
                Choice::Refuse | Choice::Wait => 0.0,
            },
            connections: server.counters.active(),
            given: server.counters.created(),
            values: candidate
                .checks
                .iter()
                .zip(names)
                .map(|(check, name)| ValueStatus {
                    name: name.to_owned(),
                    value: check.value().map(|(value, _)| value),
                    age_seconds: check.read_at().map(age),
                    error: check.failure().map(ToString::to_string),
                    words: check.words().to_string(),
                })
                .collect(),
        }
    }
}

fn milliseconds(wall: SystemTime, ago: Duration) -> u64 {
    let since = wall.checked_sub(ago).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
