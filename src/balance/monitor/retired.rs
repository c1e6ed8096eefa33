//! Services and servers that were taken away while they had connections: those go on. Until the last of them has ended the table knows
//! them, so that it is counted, and what they need to be heard is claimed. A service takes no new one: it is refused.

use std::time::{Duration, Instant};

use super::{Monitor, Server, Service};
use crate::balance::service::{Settings, WhenNone};
use crate::balance::table;
use crate::forward::preferred::{self, Choice, ServerId, ServiceId};

/// A worker may still give one a connection by the table that it reads this very moment.
const LEAST: Duration = Duration::from_secs(2);

/// A service that is gone, or servers of one that is not.
#[derive(Debug)]
pub(super) struct Retired {
    id: ServiceId,
    /// With these servers alone.
    settings: Settings,
    is_whole: bool,
    servers: Vec<(ServerId, preferred::Server)>,
    since: Instant,
}

impl Monitor {
    /// All that is to be heard: the services as they are, and what of earlier ones goes on. A name may stand there several times.
    pub fn served(&self) -> Vec<Settings> {
        let living = self.services.iter().map(|service| &service.settings);
        living.chain(self.retired.iter().map(|retired| &retired.settings)).cloned().collect()
    }

    /// Has anything that was taken away lost its last connection since the last call?
    pub fn take_ended(&mut self) -> bool {
        std::mem::take(&mut self.has_ended)
    }

    /// The service is gone.
    pub(super) fn retire_service(&mut self, service: Service, now: Instant) {
        let sorry =
            service.sorry.filter(|_| matches!(service.settings.when_none, WhenNone::Sorry(_)));
        let ids = service.servers.iter().map(|server| server.id).chain(sorry);
        let servers = ids.filter_map(|id| Some((id, self.table.server(id)?.clone()))).collect();
        let (id, settings) = (service.id, service.settings);
        self.retired.push(Retired { id, settings, is_whole: true, servers, since: now });
    }

    /// These servers of the service are gone.
    pub(super) fn retire_servers(
        &mut self,
        (id, settings): (ServiceId, &Settings),
        servers: Vec<Server>,
        now: Instant,
    ) {
        if servers.is_empty() {
            return;
        }
        let own = servers.iter().map(|server| server.settings.clone()).collect();
        let known = |server: Server| Some((server.id, self.table.server(server.id)?.clone()));
        let servers = servers.into_iter().filter_map(known).collect();
        let settings = Settings { servers: own, ..settings.clone() };
        self.retired.push(Retired { id, settings, is_whole: false, servers, since: now });
    }

    /// The service is to have another sorry server, or none.
    pub(super) fn retire_sorry(&mut self, service: &Service, now: Instant) {
        let known = |id: ServerId| Some((id, self.table.server(id)?.clone()));
        let servers: Vec<_> = service.sorry.and_then(known).into_iter().collect();
        if servers.is_empty() {
            return;
        }
        let settings = Settings { servers: Vec::new(), ..service.settings.clone() };
        self.retired.push(Retired {
            id: service.id,
            settings,
            is_whole: false,
            servers,
            since: now,
        });
    }

    /// Forgets what has no connection left; true if there was any.
    pub(super) fn forget_retired(&mut self, now: Instant) -> bool {
        let before = self.retired.len();
        self.retired.retain(|retired| {
            now.duration_since(retired.since) < LEAST
                || retired.servers.iter().any(|(_, server)| server.counters.active() > 0)
        });
        let has_ended = self.retired.len() != before;
        self.has_ended |= has_ended;
        has_ended
    }

    /// Puts them into a table. A service that is there now comes before one of its ports that is gone.
    pub(super) fn put_retired(
        &self,
        services: &mut [Option<preferred::Service>],
        servers: &mut [Option<preferred::Server>],
    ) {
        for retired in &self.retired {
            for (id, server) in &retired.servers {
                servers[usize::from(id.0)] = Some(server.clone());
            }
            let is_replaced =
                self.services.iter().any(|service| service.settings.overlaps(&retired.settings));
            if retired.is_whole && !is_replaced {
                let entry = table::service(&self.world.vipas, &retired.settings, Choice::Refuse);
                services[usize::from(retired.id.0)] = Some(entry);
            }
        }
    }
}
