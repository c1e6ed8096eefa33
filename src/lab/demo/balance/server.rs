//! A server of the demo: a process of its own, so that it can be killed.
//!
//! Whatever it is asked for over HTTP, it answers with an [`Answer`], after a pause: who it is, when it accepted the connection, and what
//! its status objects read: how many have a session with it, and how long it takes. Who asks for [`SESSION`] has a session until
//! the connection ends.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::engine::heartbeat::monotonic_ns;
use crate::lab::syscall;

/// What is asked for to have a session.
pub(super) const SESSION: &str = "/session";
/// Bytes of the longest request.
const LONGEST: usize = 4096;
/// Of so many requests, the last ones, the time is told.
const TIMED: usize = 15;

/// What is answered, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Name of the server.
    pub(super) server: String,
    /// What it was asked for.
    pub(super) asked: String,
    /// When it accepted the connection: nanoseconds of CLOCK_MONOTONIC.
    pub(super) accepted: u64,
    /// Sessions that there are.
    sessions: usize,
    /// How long a request takes: the median of the last ones.
    response_ms: f64,
}

#[derive(Debug)]
struct Server {
    name: String,
    pause: Duration,
    sessions: AtomicUsize,
    /// What the last requests took.
    times: Mutex<VecDeque<Duration>>,
}

/// Serves on `address` until it is killed, with this long a pause before each answer.
///
/// # Errors
/// The address cannot be listened on.
pub fn serve(name: &str, address: SocketAddr, pause: Duration) -> io::Result<()> {
    // Elsewhere it would not share the forwarder's processors.
    syscall::give_way()?;
    let listener = TcpListener::bind(address)?;
    let server = Arc::new(Server {
        name: name.to_owned(),
        pause,
        sessions: AtomicUsize::new(0),
        times: Mutex::default(),
    });
    loop {
        let (stream, _) = listener.accept()?;
        let (server, accepted) = (Arc::clone(&server), monotonic_ns());
        thread::Builder::new().spawn(move || {
            let mut has_session = false;
            // A client that goes is nobody's mistake.
            let _ = server.talk(stream, accepted, &mut has_session);
            server.sessions.fetch_sub(usize::from(has_session), Ordering::Relaxed);
        })?;
    }
}

impl Server {
    fn talk(&self, mut stream: TcpStream, accepted: u64, has_session: &mut bool) -> io::Result<()> {
        stream.set_nodelay(true)?;
        while let Some(head) = read_head(&mut stream)? {
            let began = Instant::now();
            thread::sleep(self.pause);
            let asked = head.split(' ').nth(1).unwrap_or_default();
            if asked == SESSION && !*has_session {
                *has_session = true;
                self.sessions.fetch_add(1, Ordering::Relaxed);
            }
            let answer = Answer {
                server: self.name.clone(),
                asked: asked.to_owned(),
                accepted,
                sessions: self.sessions.load(Ordering::Relaxed),
                response_ms: self.took(began.elapsed()),
            };
            let body = serde_json::to_string(&answer)?;
            let length = body.len();
            let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
            stream.write_all(response.as_bytes())?;
            if head.to_ascii_lowercase().contains("connection: close") {
                break;
            }
        }
        Ok(())
    }

    /// Takes the time of one more request; the median in milliseconds.
    fn took(&self, time: Duration) -> f64 {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() == TIMED {
            times.pop_front();
        }
        times.push_back(time);
        let mut sorted: Vec<Duration> = times.iter().copied().collect();
        sorted.sort_unstable();
        sorted[sorted.len() / 2].as_secs_f64() * 1e3
    }
}

/// A request up to its empty line; `None`: the client has closed.
fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => return Ok(None),
            _ if head.len() >= LONGEST => return Err(io::ErrorKind::InvalidData.into()),
            length => head.extend_from_slice(&piece[..length]),
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}
