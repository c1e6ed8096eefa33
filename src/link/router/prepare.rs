//! The first part of a start: everything is set up while the adapter has no carrier, or what was set up is undone.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;
use mio::unix::SourceFd;
use mio::{Interest, Poll, Waker};

use super::ear::Ear;
use super::{ANNOUNCEMENTS, NETLINK, Prepared, Router, TICK, WAKER};
use crate::announce;
use crate::config::Config;
use crate::engine::message::{Plane, Reload, Request};
use crate::engine::statistics::RouterStatistics;
use crate::forward::view::{NetCell, NetView};
use crate::link::net_view::{Surroundings, draft};
use crate::link::network::Network;
use crate::link::ports::Ports;
use crate::link::resolve::{Known, Requested};
use crate::link::socket_facts::Sockets;
use crate::link::tables::Tables;
use crate::link::{Error, Result, down, plan};

impl Router {
    /// Creates or adopts the adapter and sets up everything around it, in the network namespace of the
    /// calling thread. If it fails, what it set up is taken away again, except where an earlier run left its
    /// work: that stands as it stood.
    pub fn prepare(
        config: Arc<Config>,
        state: PathBuf,
        statistics: Arc<RouterStatistics>,
    ) -> Result<Prepared> {
        let (network, is_adopted) =
            Network::open(Arc::clone(&config), &state, Arc::clone(&statistics))?;
        let prepared = set_up(Arc::clone(&config), network, statistics);
        if prepared.is_err() && !is_adopted {
            undo(&state, &config.adapter.name);
        }
        prepared
    }
}

impl Prepared {
    /// The view with which the cell begins.
    pub fn first_view(&self) -> NetView {
        self.draft.view(1)
    }

    /// Wakes the router after a request was put into its channel.
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// The router for workers that read `cell`, which holds [`Prepared::first_view`].
    pub fn start(
        self,
        cell: NetCell,
        requests: Receiver<Request>,
        reloads: Receiver<Reload>,
        plane: Box<dyn Plane>,
    ) -> Router {
        let vipas = &self.config.adapter.addresses;
        let speaker = self.speaker(Instant::now());
        let (settings, names) = (self.config.announce, self.names());
        let announcements = announce::speaker::Speaker::new(settings, vipas, names, ANNOUNCEMENTS);
        Router {
            followed: Arc::clone(&self.config),
            prepared: self,
            cell,
            requests,
            reloads,
            plane,
            generation: 1,
            attached: None,
            next_tick: Instant::now() + TICK,
            fights: Vec::new(),
            settle_at: None,
            trouble: None,
            watcher: None,
            watched: Vec::new(),
            speaker,
            announcements,
            farewells: 0,
            learned_since: None,
        }
    }
}

fn set_up(
    config: Arc<Config>,
    mut network: Network,
    statistics: Arc<RouterStatistics>,
) -> Result<Prepared> {
    let poll = Poll::new().map_err(Error::Poll)?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER).map_err(Error::Poll)?);
    poll.registry()
        .register(&mut SourceFd(&network.fd()), NETLINK, Interest::READABLE)
        .map_err(Error::Poll)?;
    network.ensure_adapter()?;
    network.ensure_sysctls(true)?;
    if config.rip.is_some() {
        network.inherit();
    }
    network.settle(true)?;
    let ports = Ports::of(&config);
    let mut requested = Requested::default();
    let now = Instant::now();
    for ((ifindex, address), neighbour) in &network.mirror().neighbours {
        // What the kernel knows at the start, connections of before may need at once.
        let nic = plan::routes::nic_of(&config, network.mirror(), *ifindex);
        if let (Some(nic), Some(_)) = (nic, neighbour.usable()) {
            requested.ask((nic, *address), Known::Yes, now);
        }
    }
    let around = Surroundings {
        reaches: &network.reaches(),
        health: network.health(),
        ephemeral: &ports.ephemeral,
        listening: &ports.listening,
        kept: &[],
    };
    let draft = draft(&config, network.mirror(), around, |hop| requested.contains(hop));
    let tables = Tables::open(&config, &draft, &ports.listening)?;
    let mut ear = Ear::default();
    ear.listen(poll.registry(), tables.fd()).map_err(Error::Poll)?;
    let sockets = Sockets::of(&config);
    Ok(Prepared {
        config,
        network,
        tables,
        ports,
        sockets,
        requested,
        draft,
        kept: Vec::new(),
        poll,
        ear,
        waker,
        statistics,
    })
}

/// A start that failed leaves the host as it was.
fn undo(state: &Path, adapter: &str) {
    match down::down(state, Some(adapter)) {
        Ok(report) => {
            for failure in report.failed {
                tracing::error!(failure, "could not be undone");
            }
        }
        Err(error) => tracing::error!(%error, "could not be undone"),
    }
}
