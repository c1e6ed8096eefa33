//! Eight long TCP connections with verified content in both directions, and a UDP echo of 1 kHz.
//!
//! Two threads carry it all, one in the client's network and one in the host's. Half of the connections
//! are opened by the client to the first VIPA; two by the host, which must come from the first VIPA;
//! and two, to [`REWRITTEN_PORT`], that a source rule gives the second one. IPv4 and IPv6 take turns.

mod echo;
mod pattern;
mod progress;
mod side;
mod stream;

pub use echo::Asked;
pub use progress::{Micros, Progress};

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::Step;
use super::topology::{Network, client_address, vipas};
use super::{Error, Namespace};
use crate::wire::ip::Family;
use echo::{Echo, SharedAsked};
use pattern::Pattern;
use side::{Orders, Side};
use stream::{Endpoint, Shared, UNLIMITED};

/// Destination port of the connections that are under a source rule.
pub const REWRITTEN_PORT: u16 = 7443;
/// How many connections there are.
pub const CONNECTIONS: u64 = 8;
const FIRST_PORT: u16 = 7001;
const ECHO_PORT: u16 = 7007;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opened by the client to the first VIPA.
    FromClient,
    /// Opened by the host, from the first VIPA.
    FromHost,
    /// Opened by the host, from the second VIPA by a rule.
    Rewritten,
}

/// Which way, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the host.
    In,
    /// From it.
    Out,
}

/// A connection as who watches sees it.
#[derive(Debug)]
struct Connection {
    role: Role,
    to_host: Shared,
    to_client: Shared,
}

/// The running traffic.
#[derive(Debug)]
pub struct Traffic {
    connections: Vec<Connection>,
    asked: SharedAsked,
    orders: Arc<Orders>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

/// What became of it all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Why connections were lost, one line for each.
    pub lost: Vec<String>,
    /// Bytes that arrived, both ways.
    pub bytes: u64,
    /// Of these, other than they were sent.
    pub corrupted: u64,
    /// Bytes that were sent, both ways.
    pub sent: u64,
}

impl Traffic {
    /// Opens all connections and starts to send, as fast as it goes. With `is_rewritten`, connections under
    /// the rule must come from the second VIPA.
    ///
    /// # Errors
    /// When a connection cannot be opened or comes from another address than it should.
    pub fn start(network: &Network, is_rewritten: bool) -> Result<Traffic, Error> {
        let orders = Arc::new(Orders {
            epoch: Instant::now(),
            rate: AtomicU64::new(UNLIMITED),
            is_closing: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        let mut connections = Vec::new();
        let (mut at_client, mut at_host) = (Vec::new(), Vec::new());
        for number in 0..CONNECTIONS {
            let family = Family::BOTH[(number % 2) as usize];
            let role = match number / 2 {
                0 | 1 => Role::FromClient,
                2 => Role::FromHost,
                _ => Role::Rewritten,
            };
            let (client, host) = open(network, number as u16, family, role, is_rewritten)?;
            let (to_host, to_client) = (Shared::new(orders.now()), Shared::new(orders.now()));
            let (up, down) = ((2 * number, to_host.clone()), (2 * number + 1, to_client.clone()));
            let step = || format!("connection {number}");
            at_client.push(Endpoint::new(client, up.clone(), down.clone()).step(step)?);
            at_host.push(Endpoint::new(host, down, up).step(step)?);
            connections.push(Connection { role, to_host, to_client });
        }
        let asked = SharedAsked::new(orders.now());
        let (asker, answerer) = echo_sockets(network, asked.clone())?;
        let pattern = Arc::new(Pattern::new());
        let mut threads = Vec::new();
        let sides = [(&network.client, at_client, asker), (&network.host, at_host, answerer)];
        for (namespace, ends, echo) in sides {
            let side = Side::new(ends, echo, Arc::clone(&pattern), Arc::clone(&orders))
                .step(|| format!("traffic of the {}", namespace.name()))?;
            threads.push(namespace.spawn(namespace.name(), move || side.run())?);
        }
        Ok(Traffic { connections, asked, orders, threads })
    }

    /// Now, on the clock of everything here.
    pub fn now(&self) -> Micros {
        self.orders.now()
    }

    /// When that is for the rest of the program.
    pub fn instant(&self, at: Micros) -> Instant {
        self.orders.epoch + Duration::from_micros(at)
    }

    /// Paces the bulk to this many bytes a second, all connections and both directions together; `None`:
    /// as fast as it goes.
    pub fn set_rate(&self, bytes_per_second: Option<u64>) {
        let each = bytes_per_second.map_or(UNLIMITED, |all| all / (2 * CONNECTIONS));
        self.orders.rate.store(each, Ordering::Relaxed);
    }

    /// Bytes that arrived so far, both ways.
    pub fn received(&self) -> u64 {
        self.received_by_client()
            + self.connections.iter().map(|c| c.to_host.lock().received).sum::<u64>()
    }

    /// Bytes that arrived so far at the client.
    pub fn received_by_client(&self) -> u64 {
        self.connections.iter().map(|c| c.to_client.lock().received).sum()
    }

    /// What became of the UDP echo so far.
    pub fn echo<T>(&self, look: impl FnOnce(&Asked) -> T) -> T {
        look(&self.asked.lock())
    }

    /// Calls `look` with the progress of each direction of each connection.
    pub fn each_direction(&self, mut look: impl FnMut(Role, Direction, &Progress)) {
        for connection in &self.connections {
            look(connection.role, Direction::In, &connection.to_host.lock().progress);
            look(connection.role, Direction::Out, &connection.to_client.lock().progress);
        }
    }

    /// Closes all connections, waits up to `limit` until what was sent has arrived, and counts.
    pub fn finish(&mut self, limit: Duration) -> Outcome {
        self.orders.is_closing.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.orders.is_over.store(true, Ordering::Relaxed);
        let mut outcome = Outcome::default();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(e)) => outcome.lost.push(format!("a side of the traffic failed: {e}")),
                Err(_) => outcome.lost.push("a side of the traffic panicked".to_owned()),
            }
        }
        for (number, connection) in self.connections.iter().enumerate() {
            let mut broken = None;
            for (to, direction) in
                [("host", &connection.to_host), ("client", &connection.to_client)]
            {
                let direction = direction.lock();
                outcome.bytes += direction.received;
                outcome.corrupted += direction.corrupted;
                outcome.sent += direction.sent;
                if !direction.is_whole() {
                    let why = direction.failure.as_deref().unwrap_or("it did not end in time");
                    broken.get_or_insert_with(|| {
                        format!(
                            "connection {number} ({:?}) to the {to}: {} of {} bytes arrived; {why}",
                            connection.role, direction.received, direction.sent
                        )
                    });
                }
            }
            outcome.lost.extend(broken);
        }
        outcome
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.orders.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Opens connection `number`: the client's socket and the host's.
fn open(
    network: &Network,
    number: u16,
    family: Family,
    role: Role,
    is_rewritten: bool,
) -> Result<(TcpStream, TcpStream), Error> {
    let client = client_address(family);
    let [first, second] = vipas(family);
    match role {
        Role::FromClient => {
            let to = SocketAddr::new(first, FIRST_PORT + number);
            connect(&network.client, &network.host, to, client)
        }
        Role::FromHost => {
            let to = SocketAddr::new(client, FIRST_PORT + number);
            connect(&network.host, &network.client, to, first).map(|(host, client)| (client, host))
        }
        Role::Rewritten => {
            let to = SocketAddr::new(client, REWRITTEN_PORT);
            let from = if is_rewritten { second } else { first };
            connect(&network.host, &network.client, to, from).map(|(host, client)| (client, host))
        }
    }
}

/// A connection from `opener` to `server`, who must see it come from `from`: the opener's socket first.
fn connect(
    opener: &Namespace,
    server: &Namespace,
    to: SocketAddr,
    from: IpAddr,
) -> Result<(TcpStream, TcpStream), Error> {
    let step = || format!("connection to {to}");
    let listener = server.run(|| TcpListener::bind(to)).step(step)?;
    let opened = opener.run(|| TcpStream::connect_timeout(&to, CONNECT_LIMIT)).step(step)?;
    listener.set_nonblocking(true).step(step)?;
    let deadline = Instant::now() + CONNECT_LIMIT;
    let (accepted, peer) = loop {
        match listener.accept() {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => break result.step(step)?,
        }
    };
    if peer.ip() != from {
        return Err(Error::Traffic(format!(
            "the connection to {to} comes from {}; it should from {from}",
            peer.ip()
        )));
    }
    Ok((opened, accepted))
}

fn echo_sockets(network: &Network, asked: SharedAsked) -> Result<(Echo, Echo), Error> {
    let [vipa, _] = vipas(Family::V4);
    let server = SocketAddr::new(vipa, ECHO_PORT);
    let client = SocketAddr::new(client_address(Family::V4), 0);
    let step = || format!("echo on {server}");
    let answerer = network.host.run(|| UdpSocket::bind(server)).step(step)?;
    let asker = network
        .client
        .run(|| {
            let socket = UdpSocket::bind(client)?;
            socket.connect(server)?;
            Ok(socket)
        })
        .step(step)?;
    for socket in [&answerer, &asker] {
        socket.set_nonblocking(true).step(step)?;
    }
    let [asker, answerer] = [asker, answerer].map(mio::net::UdpSocket::from_std);
    Ok((Echo::Asker(asker, asked), Echo::Answerer(answerer)))
}
