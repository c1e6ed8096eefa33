//! From the configuration to entries of the [`PreferredTable`]. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use super::service::{GIVEN, Mode, Server, Settings};
use crate::config::Config;
use crate::forward::preferred::{
    self, Choice, Fate, PreferredTable, ServerCounters, ServerId, ServiceId,
};
use crate::wire::ip::Family;

/// A table with what only people need: names and reasons.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// The table.
    pub table: Arc<PreferredTable>,
    /// Names of servers.
    pub names: HashMap<ServerId, String, foldhash::fast::RandomState>,
    /// Why each service's choice is what it is.
    pub reasons: HashMap<ServiceId, String, foldhash::fast::RandomState>,
}

impl Named {
    /// The server's name; empty: it has none.
    pub fn name(&self, id: ServerId) -> String {
        self.names.get(&id).cloned().unwrap_or_default()
    }

    /// Why the service's choice is this one; empty: nobody says.
    pub fn why(&self, id: ServiceId) -> &str {
        self.reasons.get(&id).map_or("", String::as_str)
    }

    /// That of [`assumed`].
    pub fn assumed(config: &Config) -> Named {
        let servers = config.services.iter().flat_map(|service| &service.servers);
        let ids = (0..).map(ServerId);
        let reason = "nobody was asked: the first that may have connections".to_owned();
        let services = (0..config.services.len()).map(|at| ServiceId(at as u16));
        Named {
            table: Arc::new(assumed(config)),
            names: ids.zip(servers).map(|(id, server)| (id, server.name.to_string())).collect(),
            reasons: services.map(|id| (id, reason.clone())).collect(),
        }
    }
}

/// The entry of a service, where `vipas` are this host's, the first of a family its default source.
pub fn service(vipas: &[IpAddr], settings: &Settings, choice: Choice) -> preferred::Service {
    let given: Arc<[u16]> = GIVEN.collect();
    let source = |address, ports| preferred::Source { address, ports };
    let mode = match &settings.mode {
        Mode::Direct => preferred::Mode::Direct,
        Mode::Nat { keeps_client: true, .. } => preferred::Mode::Nat { sources: [].into() },
        Mode::Nat { sources, .. } if sources.is_empty() => {
            let family = Family::of(settings.address);
            let default = vipas.iter().find(|vipa| Family::of(**vipa) == family);
            let default = default.copied().unwrap_or(settings.address);
            preferred::Mode::Nat { sources: [source(default, None)].into() }
        }
        Mode::Nat { sources, .. } => preferred::Mode::Nat {
            sources: sources.iter().map(|a| source(*a, Some(Arc::clone(&given)))).collect(),
        },
    };
    preferred::Service {
        name: Arc::clone(&settings.name),
        address: settings.address,
        ports: settings.ports.clone(),
        protocol: settings.protocol,
        mode,
        choice,
    }
}

/// The entry of a server that serves, of the service at place `id`.
pub fn server(server: &Server, id: ServiceId, counters: Arc<ServerCounters>) -> preferred::Server {
    preferred::Server {
        service: id,
        address: server.address,
        port: server.port,
        is_local: server.is_local,
        fate: Fate::Kept,
        counters,
    }
}

/// The table where nobody asks the servers, as in replay: each serves, and the first that may is preferred.
pub fn assumed(config: &Config) -> PreferredTable {
    let mut services = Vec::new();
    let mut servers = Vec::new();
    for (at, settings) in config.services.iter().enumerate() {
        let id = ServiceId(at as u16);
        let first = settings.servers.iter().position(|server| server.weight > 0);
        let choice = first.map_or(Choice::Refuse, |first| {
            Choice::Preferred(ServerId((servers.len() + first) as u16))
        });
        services.push(Some(service(&config.adapter.addresses, settings, choice)));
        let counters = || Arc::new(ServerCounters::new(1));
        servers.extend(settings.servers.iter().map(|one| Some(server(one, id, counters()))));
    }
    PreferredTable::new(services, servers)
}
