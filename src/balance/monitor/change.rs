//! What changes while the services run (L8, L9): a file read anew, applied as the difference to what it said before;
//! servers that come, go, drain; another policy. What stays keeps its health, its place and its connections.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Monitor, Server, Service, Watch};
use crate::balance::candidate::Check;
use crate::balance::policy::{NoScore, Policy};
use crate::balance::score::Score;
use crate::balance::service::{self, Settings, WhenNone, check_name, parse_endpoint};
use crate::balance::status::{self, Administrative};
use crate::forward::preferred::{Choice, ServerId, ServiceId};

/// Names that are told of where one is wrong.
const LISTED: usize = 16;

/// What an operator asks for; names as on the command line: a server is `SERVICE/SERVER`, or `SERVER` where only one
/// service has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Another server for a service.
    Add {
        /// Name of the service.
        service: String,
        /// Its name.
        name: String,
        /// As in the configuration.
        address: String,
        /// As in the configuration.
        weight: u16,
        /// As in the configuration.
        capacity: Option<f64>,
    },
    /// A server less; its connections go on.
    Remove(String),
    /// No new connections for a server.
    Drain(String),
    /// A server is treated as it is read.
    Up(String),
    /// A server is treated as if it were dead.
    Down(String),
    /// Another weight for a server.
    Weight(String, u16),
    /// Another policy for a service: a name, or an expression.
    Policy {
        /// Name of the service.
        service: String,
        /// What is preferred.
        policy: String,
    },
}

impl Monitor {
    /// Takes the services of a configuration: at first all of them, later what differs from what it said before. One that is elsewhere,
    /// or reached in another way, is another service.
    ///
    /// # Errors
    /// The process has had more services or servers than it can count; nothing has changed.
    pub fn configure(&mut self, services: &[Settings], now: Instant) -> Result<(), String> {
        let servers: usize = services.iter().map(|service| service.servers.len() + 1).sum();
        self.room_for(services.len(), servers)?;
        let mut before = std::mem::take(&mut self.services);
        for filed in services {
            let at = before.iter().position(|service| service.settings.is_in_place_of(filed));
            let service = match at {
                Some(at) => self.reconfigure(before.swap_remove(at), filed, now),
                None => self.begin(filed, now),
            };
            self.services.push(service);
        }
        before.into_iter().for_each(|gone| self.retire_service(gone, now));
        self.renew(now);
        Ok(())
    }

    /// This host's VIPAs are others now, from the next table on. Those before come back.
    pub fn set_vipas(&mut self, vipas: &[IpAddr]) -> Vec<IpAddr> {
        std::mem::replace(&mut self.world.vipas, vipas.to_vec())
    }

    /// What would have to be heard beside what is heard now, were `change` done; `None`: nothing.
    ///
    /// # Errors
    /// Why it cannot be done.
    pub fn would_serve(
        &self,
        change: &Change,
        nics: &[IpAddr],
    ) -> Result<Option<Settings>, String> {
        let Change::Add { service, name, address, weight, capacity } = change else {
            return Ok(None);
        };
        let at = self.service(service)?;
        let server = self.new_server(at, name, address, (*weight, *capacity), nics)?;
        let settings = &self.services[at].settings;
        // Its answers to clients, or those to this host itself.
        let is_heard = settings.keeps_client() || server.is_local;
        Ok(is_heard.then(|| Settings { servers: vec![server], ..settings.clone() }))
    }

    /// Does what an operator asks for.
    ///
    /// # Errors
    /// Why it is not done, for a person; nothing has changed.
    pub fn change(&mut self, change: &Change, nics: &[IpAddr], now: Instant) -> Result<(), String> {
        match change {
            Change::Add { service, name, address, weight, capacity } => {
                let at = self.service(service)?;
                let server = self.new_server(at, name, address, (*weight, *capacity), nics)?;
                self.room_for(0, 1)?;
                let id = self.next_server();
                let service = &mut self.services[at];
                let checks = service.statuses.len();
                service.settings.servers.push(server.clone());
                service.servers.push(Server::new(id, server, (checks, self.world.workers), now));
            }
            Change::Remove(server) => {
                let (at, place) = self.server(server)?;
                let service = &mut self.services[at];
                let gone = service.servers.remove(place);
                service.settings.servers.remove(place);
                let (id, settings) = (service.id, service.settings.clone());
                self.retire_servers((id, &settings), vec![gone], now);
            }
            Change::Drain(server) => self.set_operator(server, Administrative::Drain)?,
            Change::Up(server) => self.set_operator(server, Administrative::Ready)?,
            Change::Down(server) => self.set_operator(server, Administrative::Maintenance)?,
            Change::Weight(server, weight) => {
                let (at, place) = self.server(server)?;
                let service = &mut self.services[at];
                service.settings.servers[place].weight = *weight;
                service.servers[place].settings.weight = *weight;
                service.servers[place].candidate.weight = *weight;
            }
            Change::Policy { service, policy } => {
                let at = self.service(service)?;
                self.services[at].settings.policy = self.services[at].policy(policy)?;
            }
        }
        self.renew(now);
        Ok(())
    }

    /// What is to be read of `server`, a name as in [`Change`].
    ///
    /// # Errors
    /// There is no such server.
    pub fn watches_of(&self, server: &str) -> Result<Vec<Watch>, String> {
        let (at, place) = self.server(server)?;
        let id = self.services[at].servers[place].id;
        Ok(self.watches().into_iter().filter(|watch| watch.key.server == id).collect())
    }

    /// What is to be read by one status object of `server`, a name as in [`Change`].
    ///
    /// # Errors
    /// There is no such status object.
    pub fn watch(&self, server: &str, status: &str) -> Result<Watch, String> {
        let mut watches = self.watches_of(server)?;
        let at = watches.iter().position(|watch| *watch.settings.name == *status);
        let Some(at) = at else {
            let names: Vec<&str> = watches.iter().map(|watch| &*watch.settings.name).collect();
            let names = names.join(", ");
            return Err(format!("{server} has no status object {status:?}; it has {names}"));
        };
        Ok(watches.swap_remove(at))
    }

    /// Everything anew: the table, states, decisions.
    fn renew(&mut self, now: Instant) {
        self.rebuild();
        for at in 0..self.services.len() {
            for place in 0..self.services[at].servers.len() {
                self.settle(at, place, now);
            }
            self.decide(at, now);
        }
        self.publish();
    }

    fn begin(&mut self, filed: &Settings, now: Instant) -> Service {
        let id = ServiceId(self.next.service as u16);
        self.next.service += 1;
        let mut service = Service {
            id,
            filed: filed.clone(),
            settings: Settings { servers: Vec::new(), statuses: Vec::new(), ..filed.clone() },
            statuses: Vec::new(),
            roles: Vec::new(),
            servers: Vec::new(),
            sorry: None,
            choice: Choice::Wait,
            is_none_left: true,
            is_chosen: false,
            last: None,
            spread: Vec::new(),
            why: "no server has been read yet".to_owned(),
            switches: std::collections::VecDeque::new(),
        };
        self.set_statuses(&mut service, &filed.statuses);
        self.set_servers(&mut service, &filed.servers, now);
        service.sorry = matches!(filed.when_none, WhenNone::Sorry(_)).then(|| self.next_server());
        service
    }

    /// What the file says otherwise than before is taken; what an operator changed and the file did not stays.
    fn reconfigure(&mut self, mut service: Service, filed: &Settings, now: Instant) -> Service {
        let before = std::mem::replace(&mut service.filed, filed.clone());
        let settings = &mut service.settings;
        settings.choose = filed.choose;
        settings.hysteresis = filed.hysteresis;
        settings.on_death = filed.on_death;
        settings.rise = filed.rise;
        settings.fall = filed.fall;
        settings.slow_start = filed.slow_start;
        if settings.when_none != filed.when_none {
            self.retire_sorry(&service, now);
            service.settings.when_none = filed.when_none;
            service.sorry =
                matches!(filed.when_none, WhenNone::Sorry(_)).then(|| self.next_server());
        }
        if before.policy != filed.policy {
            service.settings.policy = filed.policy.clone();
        }
        if before.statuses != filed.statuses {
            self.set_statuses(&mut service, &filed.statuses);
            // An operator's policy goes on if it finds what it needs.
            let text = service.settings.policy.to_string();
            service.settings.policy = service.policy(&text).unwrap_or_else(|why| {
                let (service, back) = (&filed.name, &filed.policy);
                tracing::warn!(%service, policy = text, why, %back, "the policy no longer fits: back to the file's");
                filed.policy.clone()
            });
        }
        service.settings.servers.clear();
        let gone =
            |server: &service::Server| !filed.servers.iter().any(|of| of.name == server.name);
        let removed = before.servers.iter().filter(|server| gone(server));
        let removed: Vec<_> = removed.map(|server| server.name.clone()).collect();
        let is_gone = |server: &mut Server| removed.contains(&server.settings.name);
        let gone: Vec<Server> = service.servers.extract_if(.., is_gone).collect();
        self.retire_servers((service.id, &service.settings), gone, now);
        let is_new = |server: &&service::Server| {
            let was = before.servers.iter().find(|was| was.name == server.name);
            was.is_none_or(|was| !was.is_as(server))
        };
        let changed: Vec<_> = filed.servers.iter().filter(is_new).cloned().collect();
        self.set_servers(&mut service, &changed, now);
        // In the file's order, and those behind that the file does not have.
        let rank = |server: &Server| {
            let place = filed.servers.iter().position(|of| of.name == server.settings.name);
            place.unwrap_or(filed.servers.len())
        };
        service.servers.sort_by_key(rank);
        service.settings.servers =
            service.servers.iter().map(|server| server.settings.clone()).collect();
        service
    }

    /// Adds servers, or changes those of the same names.
    fn set_servers(&mut self, service: &mut Service, servers: &[service::Server], now: Instant) {
        for settings in servers {
            let end = |server: &service::Server| (server.address, server.port);
            let same = |server: &&mut Server| server.settings.name == settings.name;
            match service.servers.iter_mut().find(same) {
                Some(server) if end(&server.settings) == end(settings) => {
                    server.settings = settings.clone();
                    server.candidate.weight = settings.weight;
                }
                other => {
                    // Elsewhere it is another server, of which nothing is known.
                    let replaced = other.map(|server| server.id);
                    let is_gone = |server: &mut Server| Some(server.id) == replaced;
                    let gone = service.servers.extract_if(.., is_gone).collect();
                    self.retire_servers((service.id, &service.settings), gone, now);
                    let id = self.next_server();
                    let checks = service.statuses.len();
                    service.servers.push(Server::new(
                        id,
                        settings.clone(),
                        (checks, self.world.workers),
                        now,
                    ));
                }
            }
        }
        service.settings.servers =
            service.servers.iter().map(|server| server.settings.clone()).collect();
    }

    /// Other status objects; those that are as they were keep what they told.
    fn set_statuses(&mut self, service: &mut Service, statuses: &[status::Settings]) {
        let before = std::mem::take(&mut service.statuses);
        let mut kept = Vec::new();
        for settings in statuses {
            let same = before.iter().position(|(_, of)| **of == *settings);
            kept.push(same);
            service.statuses.push(match same {
                Some(at) => before[at].clone(),
                None => {
                    self.next.status += 1;
                    (self.next.status, Arc::new(settings.clone()))
                }
            });
        }
        service.roles = statuses.iter().map(|status| status.role).collect();
        service.settings.statuses = statuses.to_vec();
        for server in &mut service.servers {
            let checks = &server.candidate.checks;
            let check =
                |at: &Option<usize>| at.map_or_else(Check::default, |at| checks[at].clone());
            let given = |at: &Option<usize>| at.map_or(0, |at| server.given_when_read[at]);
            let (checks, given) =
                (kept.iter().map(check).collect(), kept.iter().map(given).collect());
            server.candidate.checks = checks;
            server.given_when_read = given;
        }
    }

    fn set_operator(&mut self, server: &str, wanted: Administrative) -> Result<(), String> {
        let (at, place) = self.server(server)?;
        self.services[at].servers[place].candidate.operator = wanted;
        Ok(())
    }

    fn new_server(
        &self,
        at: usize,
        name: &str,
        address: &str,
        (weight, capacity): (u16, Option<f64>),
        nics: &[IpAddr],
    ) -> Result<service::Server, String> {
        check_name(name)?;
        let service = &self.services[at];
        let wanted = "wanted: a server's address, such as \"10.2.0.2:80\"";
        let (ip, port) = parse_endpoint(address)
            .ok_or_else(|| format!("the address is {address:?}; {wanted}"))?;
        if let Some(fault) = crate::config::fault_of_server(ip) {
            return Err(format!("{ip} is {fault}; {wanted}"));
        }
        if nics.contains(&ip) {
            return Err(format!(
                "{ip} is a NIC's address of this host: name a server here by a VIPA, with another port"
            ));
        }
        let all: Vec<Settings> =
            self.services.iter().map(|service| service.settings.clone()).collect();
        service
            .settings
            .fits((ip, port), &all, &self.world.vipas)
            .map_err(|unfit| unfit.to_string())?;
        let servers = &service.settings.servers;
        if servers.iter().any(|server| *server.name == *name) {
            return Err(format!("{} has a server {name:?} already", service.settings.name));
        }
        if let Some(same) =
            servers.iter().find(|server| (server.address, server.port) == (ip, port))
        {
            return Err(format!("the server {:?} is there already", same.name));
        }
        if weight > 1000
            || capacity.is_some_and(|capacity| !capacity.is_finite() || capacity <= 0.0)
        {
            return Err("a weight is at most 1000, a capacity a number above 0".to_owned());
        }
        if let (Some(status), None) = (service.settings.wants_capacity(), capacity) {
            return Err(format!(
                "the status object {:?} tells a server's capacity: say it (--capacity)",
                status.name
            ));
        }
        let is_local = self.world.vipas.contains(&ip);
        Ok(service::Server {
            name: name.into(),
            address: ip,
            port,
            is_local,
            weight,
            capacity,
            place: (0, 0),
        })
    }

    /// Can it count so many more?
    ///
    /// # Errors
    /// No.
    fn room_for(&self, services: usize, servers: usize) -> Result<(), String> {
        const PLACES: usize = 1 << 16;
        if self.next.service + services > PLACES || self.next.server + servers > PLACES {
            return Err(
                "this process has had 65,536 servers and can count no more: restart it".to_owned()
            );
        }
        Ok(())
    }

    /// There is room for it.
    fn next_server(&mut self) -> ServerId {
        let id = ServerId(self.next.server as u16);
        self.next.server += 1;
        id
    }

    fn service(&self, name: &str) -> Result<usize, String> {
        let at = self.services.iter().position(|service| *service.settings.name == *name);
        at.ok_or_else(|| {
            let names = self.services.iter().map(|service| &*service.settings.name);
            match names.collect::<Vec<_>>().join(", ") {
                names if names.is_empty() => format!("there is no service {name:?}, nor any other"),
                names => format!("there is no service {name:?}; there is {names}"),
            }
        })
    }

    fn server(&self, name: &str) -> Result<(usize, usize), String> {
        let (service, server) = match name.split_once('/') {
            Some((service, server)) => (Some(self.service(service)?), server),
            None => (None, name),
        };
        let named = |(at, of): (usize, &Service)| {
            let place = of.servers.iter().position(|of| *of.settings.name == *server)?;
            service.is_none_or(|wanted| wanted == at).then_some((at, place))
        };
        let mut found = self.services.iter().enumerate().filter_map(named);
        match (found.next(), found.next()) {
            (Some(place), None) => Ok(place),
            (None, _) => {
                let of = self.services.iter().enumerate();
                let of = of.filter(|(at, _)| service.is_none_or(|wanted| wanted == *at));
                let names = of.flat_map(|(_, of)| of.servers.iter().map(|s| &*s.settings.name));
                let mut names: Vec<&str> = names.take(LISTED + 1).collect();
                if names.len() > LISTED {
                    names[LISTED] = "…";
                }
                Err(match names.as_slice() {
                    [] => format!("there is no server {name:?}, nor any other"),
                    names => format!("there is no server {name:?}; there is {}", names.join(", ")),
                })
            }
            (Some((first, _)), Some((second, _))) => {
                let name = |at: usize| &self.services[at].settings.name;
                let (first, second) = (name(first), name(second));
                Err(format!(
                    "several services have a server {server:?}: say {first}/{server} or {second}/{server}"
                ))
            }
        }
    }
}

impl Service {
    /// `text` as a policy for its status objects: a name, or an expression.
    fn policy(&self, text: &str) -> Result<Policy, String> {
        let Some(policy) = Policy::named(text) else {
            let names: Vec<&str> = self.statuses.iter().map(|(_, status)| &*status.name).collect();
            return Score::parse(text, &names).map(Policy::Score).map_err(|wrong| {
                format!(
                    "{text:?} is no policy ({}), and no expression: at byte {}, {wrong}",
                    Policy::names().join(", "),
                    wrong.at
                )
            });
        };
        let stated = self.settings.servers.iter().all(|server| server.capacity.is_some());
        match policy.fits(&self.roles, stated) {
            Ok(()) => Ok(policy),
            Err(NoScore::NoRole(role)) => Err(format!(
                "{text} needs a status object of the role {role:?}, and {} has none",
                self.settings.name
            )),
            Err(error) => Err(format!("{text}: {error}")),
        }
    }
}
