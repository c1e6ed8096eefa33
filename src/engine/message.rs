//! What workers and the router say to each other, over bounded channels (crossbeam) with a `mio::Waker`
//! beside each. Never a packet on its fast path.

use std::net::IpAddr;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use mio::Waker;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::forward::flow::Key;
use crate::forward::rewrite::Endpoint;
use crate::forward::socket::Socket;
use crate::forward::view::{NetView, NicId, WorkerId};

/// A rewritten flow as the application sends it, before the rewrite: what the egress hold must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeldFlow {
    /// IANA protocol number.
    pub protocol: u8,
    /// Source address, before the rewrite.
    pub source: IpAddr,
    /// Source port (ICMP echo: identifier), before the rewrite.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port (ICMP echo: 0).
    pub destination_port: u16,
    /// Its source on the wire, if the kernel has to be told by it which replies are none of its own: the
    /// protocol has no port out of the reserved range.
    pub wire: Option<Endpoint>,
}

/// A worker asks the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The MAC address of this next hop is wanted; answered by a new view.
    Resolve {
        /// Behind this NIC.
        nic: NicId,
        /// The next hop.
        address: IpAddr,
    },
    /// Put the flow into the egress hold's set, then answer [`Command::Held`].
    Hold {
        /// Who asks.
        worker: WorkerId,
        /// The flow.
        flow: HeldFlow,
    },
    /// What does the socket know that sends packets with this key? Answered by [`Command::Socket`].
    Socket {
        /// Who asks.
        worker: WorkerId,
        /// The packets.
        key: Key,
    },
    /// The flow is gone: take it out of the set.
    Release(HeldFlow),
    /// A send to this NIC failed as if it were gone: look at its link now.
    Suspect(NicId),
}

/// The router tells a worker (views go through the `NetCell`).
#[derive(Debug)]
pub enum Command {
    /// The flow is in the egress hold's set (or cannot be, and goes without).
    Held(HeldFlow),
    /// What is known of the socket that sends packets with this key.
    Socket(Key, Socket),
}

/// The router is to go by another configuration.
#[derive(Debug)]
pub struct Reload {
    /// The whole of it; of the services that which is to be heard.
    pub config: Arc<Config>,
    /// That it stands, or why everything is as it was.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// Hands configurations to the router.
#[derive(Clone, Debug)]
pub struct Reloader {
    orders: Sender<Reload>,
    router: Arc<Waker>,
}

impl Reloader {
    /// For a router that `router` wakes, and what it is to take them from.
    pub fn new(router: Arc<Waker>) -> (Reloader, Receiver<Reload>) {
        let (orders, taken) = crossbeam_channel::unbounded();
        (Reloader { orders, router }, taken)
    }

    /// Has the router go by `config`, and waits until it does.
    ///
    /// # Errors
    /// Why not; then it goes by what it had.
    pub async fn apply(&self, config: Arc<Config>) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let is_sent =
            self.orders.send(Reload { config, answer }).is_ok() && self.router.wake().is_ok();
        let gone = || Err("the router has ended".to_owned());
        if is_sent { answered.await.unwrap_or_else(|_| gone()) } else { gone() }
    }
}

/// The data plane as the router sees it; all calls come from the router thread.
pub trait Plane: Send {
    /// Opens, replaces and closes the NICs' packet sockets, and XDP, so that they match `view`: by `ifindex`, and
    /// their filters by [`NetView::claims`]. Called before each publication.
    fn follow(&mut self, view: &NetView);
    /// Attaches the workers to the adapter, which gets carrier from it. Called last at start, and again
    /// when the adapter had to be made anew.
    fn attach(&mut self) -> std::io::Result<()>;
    /// A new view stands in the cell: wakes the workers.
    fn published(&mut self);
    /// Hands `command` to a worker and wakes it.
    fn tell(&mut self, worker: WorkerId, command: Command);
}
