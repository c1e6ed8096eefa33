//! The lookup table that the forwarder reads, made of the services as they are.

use std::sync::Arc;

use super::{Monitor, Service, World};
use crate::balance::service::{Mode, WhenNone};
use crate::forward::preferred::{self, Fate, PreferredTable, Source};
use crate::wire::ip::Family;

/// Ports of a VIPA that is given wholly to nat.
const WHOLLY: std::ops::RangeInclusive<u16> = 1024..=u16::MAX;

impl Monitor {
    /// Makes the table anew: services or servers came, went or became different.
    pub(super) fn rebuild(&mut self) {
        let mut services: Vec<Option<preferred::Service>> = Vec::new();
        services.resize_with(self.next.service, || None);
        let mut servers: Vec<Option<preferred::Server>> = vec![None; self.next.server];
        let (reserved, wholly): (Arc<[u16]>, Arc<[u16]>) =
            (self.world.ports.clone().collect(), WHOLLY.collect());
        self.places.clear();
        for (at, service) in self.services.iter().enumerate() {
            let settings = &service.settings;
            let mode = match &settings.mode {
                Mode::Direct => preferred::Mode::Direct,
                Mode::Nat { keeps_client: true, .. } => {
                    preferred::Mode::Nat { sources: Arc::new([]) }
                }
                Mode::Nat { sources, .. } => preferred::Mode::Nat {
                    sources: nat_sources(sources, service, &self.world, &reserved, &wholly),
                },
            };
            services[usize::from(service.id.0)] = Some(preferred::Service {
                name: settings.name.clone(),
                address: settings.address,
                ports: settings.ports.clone(),
                protocol: settings.protocol,
                mode,
                choice: service.choice.clone(),
            });
            for (place, server) in service.servers.iter().enumerate() {
                self.places.insert(server.id, (at, place));
                let before = self.table.server(server.id);
                servers[usize::from(server.id.0)] = Some(preferred::Server {
                    address: server.settings.address,
                    port: server.settings.port,
                    is_local: server.settings.is_local,
                    fate: before.map_or(Fate::Kept, |before| before.fate),
                });
            }
            if let (Some(id), WhenNone::Sorry(end)) = (service.sorry, settings.when_none) {
                servers[usize::from(id.0)] = Some(preferred::Server {
                    address: end.ip(),
                    port: Some(end.port()),
                    is_local: self.world.vipas.contains(&end.ip()),
                    fate: Fate::Kept,
                });
            }
        }
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

fn nat_sources(
    given: &[std::net::IpAddr],
    service: &Service,
    world: &World,
    reserved: &Arc<[u16]>,
    wholly: &Arc<[u16]>,
) -> Arc<[Source]> {
    if !given.is_empty() {
        return given
            .iter()
            .map(|address| Source { address: *address, ports: wholly.clone() })
            .collect();
    }
    let family = Family::of(service.settings.address);
    let default = world.vipas.iter().find(|vipa| Family::of(**vipa) == family);
    default.iter().map(|address| Source { address: **address, ports: reserved.clone() }).collect()
}
