//! The lookup table that the forwarder reads, made of the services as they are.

use std::sync::Arc;

use super::Monitor;
use crate::balance::service::WhenNone;
use crate::balance::table;
use crate::forward::preferred::{self, Fate, PreferredTable, ServerCounters};

impl Monitor {
    /// Makes the table anew: services or servers came, went or became different.
    pub(super) fn rebuild(&mut self) {
        let mut services: Vec<Option<preferred::Service>> = Vec::new();
        services.resize_with(self.next.service, || None);
        let mut servers: Vec<Option<preferred::Server>> = vec![None; self.next.server];
        self.places.clear();
        for (at, service) in self.services.iter().enumerate() {
            let (settings, id) = (&service.settings, service.id);
            let entry = table::service(&self.world.vipas, settings, service.choice.clone());
            services[usize::from(id.0)] = Some(entry);
            for (place, server) in service.servers.iter().enumerate() {
                self.places.insert(server.id, (at, place));
                let before = self.table.server(server.id);
                let entry = table::server(&server.settings, id, Arc::clone(&server.counters));
                servers[usize::from(server.id.0)] = Some(preferred::Server {
                    fate: before.map_or(Fate::Kept, |before| before.fate),
                    ..entry
                });
            }
            if let (Some(sorry), WhenNone::Sorry(end)) = (service.sorry, settings.when_none) {
                let before = self.table.server(sorry).map(|before| Arc::clone(&before.counters));
                let anew = || Arc::new(ServerCounters::new(self.world.workers));
                servers[usize::from(sorry.0)] = Some(preferred::Server {
                    service: id,
                    address: end.ip(),
                    port: Some(end.port()),
                    is_local: self.world.vipas.contains(&end.ip()),
                    fate: Fate::Kept,
                    counters: before.unwrap_or_else(anew),
                });
            }
        }
        self.put_retired(&mut services, &mut servers);
        let generation = self.table.generation;
        self.table = PreferredTable::new(services, servers);
        self.table.generation = generation;
        self.is_changed = true;
    }

    /// Hands the table to the workers, if anything in it changed.
    pub(super) fn publish(&mut self) {
        if std::mem::take(&mut self.is_changed) {
            self.table.generation = self.table.generation.wrapping_add(1);
            self.publisher.publish(Arc::new(self.table.clone()));
        }
    }
}
