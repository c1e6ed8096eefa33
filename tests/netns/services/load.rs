//! Clients that ask a service again and again, each time by a new connection, and note what became of each.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vipa::lab::Namespace;

use crate::fixture::{PATIENCE, wait_until};

/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(2);

/// One request, by a connection of its own.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) to: SocketAddr,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// The number of the server that answered.
    pub(crate) answer: io::Result<u8>,
}

/// Clients at work.
pub(crate) struct Load {
    clients: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<Request>>,
    /// Requests of each client that came to an end.
    counts: Vec<AtomicUsize>,
    is_over: AtomicBool,
}

impl Load {
    /// So many clients for each of these services.
    pub(crate) fn start(place: &Namespace, services: &[SocketAddr], clients: usize) -> Load {
        let clients: Vec<_> = services.iter().flat_map(|to| vec![*to; clients]).collect();
        let counts = clients.iter().map(|_| AtomicUsize::new(0)).collect();
        let shared = Arc::new(Shared { counts, ..Shared::default() });
        let clients = clients.into_iter().enumerate().map(|(client, to)| {
            let shared = Arc::clone(&shared);
            place.spawn("client", move || shared.ask_on(client, to)).expect("a thread")
        });
        Load { clients: clients.collect(), shared }
    }

    /// Waits until so many more requests have come to an end.
    #[track_caller]
    pub(crate) fn goes_on(&self, more: usize) {
        let goal = self.count() + more;
        wait_until(&format!("{more} requests more"), || self.count() >= goal);
    }

    /// Waits until all requests that are under way have come to an end.
    #[track_caller]
    pub(crate) fn turns(&self) {
        let before = self.shared.counts();
        wait_until("each client has had an answer", || {
            self.shared.counts().iter().zip(&before).all(|(now, before)| now > before)
        });
    }

    fn count(&self) -> usize {
        self.shared.counts().iter().sum()
    }

    /// Waits until there were so many requests, and ends.
    #[track_caller]
    pub(crate) fn finish(self, requests: usize) -> Vec<Request> {
        self.goes_on(requests.saturating_sub(self.count()));
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().expect("no panic"));
        std::mem::take(&mut *self.shared.requests.lock().expect("no panic"))
    }
}

impl Shared {
    fn counts(&self) -> Vec<usize> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    fn ask_on(&self, client: usize, to: SocketAddr) {
        let mut requests = Vec::new();
        while !self.is_over.load(Ordering::Relaxed) {
            let began = Instant::now();
            let answer = ask(to);
            requests.push(Request { to, began, ended: Instant::now(), answer });
            self.counts[client].fetch_add(1, Ordering::Relaxed);
            thread::sleep(PAUSE);
        }
        self.requests.lock().expect("no panic").append(&mut requests);
    }
}

/// Who answers by a new connection.
fn ask(to: SocketAddr) -> io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /who HTTP/1.1\r\nHost: vipa\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let wrong = || io::Error::other(format!("an answer that is none: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(wrong)?;
    let mut words = body.split(' ');
    let number = words.next().and_then(|word| word.parse().ok());
    let is_whole = head.starts_with("HTTP/1.1 200") && words.count() == 2;
    number.filter(|_| is_whole).ok_or_else(wrong)
}
