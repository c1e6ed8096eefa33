//! What workers ask of the router: neighbours to be resolved, flows to be held, sockets of whom only the kernel knows.

use std::time::Instant;

use super::{Prepared, Router};
use crate::config::Config;
use crate::engine::message::{Command, Request};
use crate::forward::socket::Socket;
use crate::forward::view::NicId;
use crate::link::mirror::Changed;
use crate::link::network::Network;
use crate::link::resolve::{Hop, Known};

/// Requests taken in one turn, so that news from the kernel never wait for them.
const BUDGET: usize = 1024;

impl Router {
    /// Takes requests of workers; true if one suspects a NIC.
    pub(super) fn take_requests(&mut self, pending: &mut Changed, now: Instant) -> bool {
        let mut is_suspect = false;
        let mut answers = Vec::new();
        let mut count = 0;
        for request in self.requests.try_iter().take(BUDGET) {
            count += 1;
            match request {
                Request::Resolve { nic, address } => {
                    self.prepared.resolve((nic, address), now);
                    pending.neighbours = true;
                }
                Request::Hold { worker, flow } => {
                    self.prepared.tables.hold(flow);
                    answers.push((worker, flow));
                }
                Request::Socket { worker, key } => {
                    let socket = self.prepared.sockets.ask(&key);
                    let statistics = &self.prepared.statistics;
                    statistics.sockets_asked.add(1);
                    statistics.sockets_unknown.add(u64::from(socket == Socket::Unknown));
                    self.plane.tell(worker, Command::Socket(key, socket));
                }
                Request::Release(flow) => self.prepared.tables.release(flow),
                Request::Suspect(nic) => {
                    tracing::debug!(nic = nic.index(), "a worker suspects the NIC");
                    is_suspect = true;
                }
            }
        }
        self.prepared.tables.commit(&self.prepared.statistics);
        for (worker, flow) in answers {
            self.plane.tell(worker, Command::Held(flow));
        }
        if count == BUDGET {
            // The channel may hold more, and its waker has been heard already.
            let _ = self.prepared.waker.wake();
        }
        is_suspect
    }
}

impl Prepared {
    fn resolve(&mut self, hop: Hop, now: Instant) {
        let known = known(&self.config, &self.network, &hop);
        if self.requested.ask(hop, known, now) {
            self.ask_kernel(&hop);
        }
    }

    /// Neighbours that are still wanted and of which the kernel is no longer sure.
    pub(super) fn ask_again(&mut self, now: Instant) {
        let (config, network) = (&self.config, &self.network);
        let due = self.requested.refresh(now, |hop| known(config, network, hop));
        for hop in due {
            self.ask_kernel(&hop);
        }
    }

    fn ask_kernel(&mut self, hop: &Hop) {
        if let Some(ifindex) = ifindex(&self.config, &self.network, hop.0) {
            self.network.resolve(ifindex, hop.1);
        }
    }
}

fn known(config: &Config, network: &Network, hop: &Hop) -> Known {
    let neighbour = ifindex(config, network, hop.0)
        .and_then(|index| network.mirror().neighbours.get(&(index, hop.1)));
    match neighbour {
        Some(n) if n.is_fixed() => Known::Yes,
        Some(n) if n.usable().is_none() => Known::No,
        Some(n) if n.is_stale() => Known::Stale,
        Some(_) => Known::Yes,
        None => Known::No,
    }
}

fn ifindex(config: &Config, network: &Network, nic: NicId) -> Option<u32> {
    let name = &config.nics.get(nic.index())?.name;
    network.mirror().link(name).map(|(index, _)| index)
}
