//! From the configuration to entries of the [`PreferredTable`]. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use super::service::{GIVEN, Mode, Server, Settings};
use crate::config::Config;
use crate::forward::preferred::{
    self, Choice, Fate, PreferredTable, ServerCounters, ServerId, ServiceId,
};
use crate::wire::ip::Family;

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
