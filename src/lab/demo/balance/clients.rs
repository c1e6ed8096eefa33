//! Clients that keep asking, each time over a new connection.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::server::Answer;
use crate::engine::heartbeat::monotonic_ns;
use crate::lab::{Error, Namespace, syscall};

/// Clients, …
const CLIENTS: u32 = 32;
/// … each of which asks this often, if it is answered in time: five hundred requests a second.
const EVERY: Duration = Duration::from_millis(64);
/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(4);

/// Nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.
pub(super) type Nanos = u64;

/// One request and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// When it began: before its connection was opened.
    pub(super) from: Nanos,
    /// When it ended.
    pub(super) to: Nanos,
    /// Who answered, or why nobody did.
    pub(super) outcome: Result<Served, String>,
}

/// Who answered.
#[derive(Clone, Debug)]
pub(super) struct Served {
    /// Name of the server.
    pub(super) server: String,
    /// When it accepted the connection.
    pub(super) accepted: Nanos,
}

/// The clients at work; dropped, they stop.
#[derive(Debug)]
pub(super) struct Clients {
    requests: Arc<Mutex<Vec<Request>>>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// They begin at once, from `namespace`, to ask at `address`.
    ///
    /// # Errors
    /// When the system has no threads left.
    pub(super) fn start(namespace: &Namespace, address: SocketAddr) -> Result<Clients, Error> {
        let mut clients = Clients {
            requests: Arc::default(),
            is_over: Arc::default(),
            threads: Vec::with_capacity(CLIENTS as usize),
        };
        for number in 0..CLIENTS {
            let (requests, is_over) = (clients.requests.clone(), clients.is_over.clone());
            let first = Instant::now() + EVERY * number / CLIENTS;
            let client = move || keep_asking(number, address, first, &requests, &is_over);
            clients.threads.push(namespace.spawn("client", client)?);
        }
        Ok(clients)
    }

    /// All requests that ended, in the order in which they did.
    pub(super) fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        lock(&self.requests)
    }

    /// Begins no more requests, and waits for those that are under way.
    pub(super) fn stop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It cannot have panicked.
            let _ = thread.join();
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop();
    }
}

fn keep_asking(
    client: u32,
    address: SocketAddr,
    mut next: Instant,
    requests: &Mutex<Vec<Request>>,
    is_over: &AtomicBool,
) {
    // Elsewhere they would not share the forwarder's processors; where that is refused, they do.
    let _ = syscall::give_way();
    for number in 0_u64.. {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let from = monotonic_ns();
        let outcome = ask(address, &format!("/{client}/{number}")).map_err(|e| e.to_string());
        lock(requests).push(Request { from, to: monotonic_ns(), outcome });
        // What was missed is not made up for.
        next = (next + EVERY).max(Instant::now());
    }
}

fn ask(address: SocketAddr, what: &str) -> io::Result<Served> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let request = format!("GET {what} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("answered {response:?}"));
    let (head, body) = response.split_once("\r\n\r\n").ok_or_else(wrong)?;
    let answer: Answer = serde_json::from_str(body)?;
    if !head.starts_with("HTTP/1.1 200 ") || answer.asked != what {
        return Err(wrong());
    }
    Ok(Served { server: answer.server, accepted: answer.accepted })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
