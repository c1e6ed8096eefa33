//! One end of a TCP connection: sends its own content at a pace, verifies what comes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mio::net::TcpStream;

use super::pattern::{LONGEST_RUN, Pattern};
use super::progress::{Micros, Progress};

/// As fast as it goes.
pub(super) const UNLIMITED: u64 = u64::MAX;

/// One direction of a connection, as its sender and its receiver know it.
#[derive(Debug)]
pub(super) struct Direction {
    /// Bytes handed to the kernel.
    pub(super) sent: u64,
    /// The sender has closed it.
    pub(super) is_sent: bool,
    /// Bytes that arrived.
    pub(super) received: u64,
    /// Of these, other than they should be.
    pub(super) corrupted: u64,
    /// The receiver saw the end.
    pub(super) is_received: bool,
    /// Why it broke.
    pub(super) failure: Option<String>,
    /// When something new arrived.
    pub(super) progress: Progress,
}

impl Direction {
    fn new(now: Micros) -> Direction {
        Direction {
            sent: 0,
            is_sent: false,
            received: 0,
            corrupted: 0,
            is_received: false,
            failure: None,
            progress: Progress::new(now),
        }
    }

    /// Everything that was sent arrived as it was, and the end too.
    pub(super) fn is_whole(&self) -> bool {
        self.is_sent && self.is_received && self.received == self.sent && self.failure.is_none()
    }
}

/// A direction, shared by its two ends and by who watches.
#[derive(Clone, Debug)]
pub(super) struct Shared(Arc<Mutex<Direction>>);

impl Shared {
    pub(super) fn new(now: Micros) -> Shared {
        Shared(Arc::new(Mutex::new(Direction::new(now))))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Direction> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One end.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) socket: TcpStream,
    outgoing: Shared,
    incoming: Shared,
    /// Which content: differs for each direction of each connection.
    outgoing_stream: u64,
    incoming_stream: u64,
    /// Bytes that may be sent now.
    tokens: u64,
    is_readable: bool,
    is_writable: bool,
    /// The peer's end of stream has reached the kernel: reading goes on until it is seen.
    is_closing: bool,
    is_sent: bool,
    is_received: bool,
}

impl Endpoint {
    pub(super) fn new(
        socket: std::net::TcpStream,
        outgoing: (u64, Shared),
        incoming: (u64, Shared),
    ) -> io::Result<Endpoint> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok(Endpoint {
            socket: TcpStream::from_std(socket),
            outgoing: outgoing.1,
            incoming: incoming.1,
            outgoing_stream: outgoing.0,
            incoming_stream: incoming.0,
            tokens: 0,
            is_readable: true,
            is_writable: true,
            is_closing: false,
            is_sent: false,
            is_received: false,
        })
    }

    /// What the poller said.
    pub(super) fn note(&mut self, event: &mio::event::Event) {
        self.is_readable |= event.is_readable() || event.is_error();
        self.is_writable |= event.is_writable();
        self.is_closing |= event.is_read_closed() || event.is_error();
    }

    /// Lets it send `rate` bytes a second for the time that passed.
    pub(super) fn refill(&mut self, rate: u64, passed: Duration) {
        if rate == UNLIMITED {
            self.tokens = UNLIMITED;
            return;
        }
        let earned = (u128::from(rate) * passed.as_micros() / 1_000_000) as u64;
        let most = (rate / 50).max(2 * quantum(rate)); // 20 ms: what was missed longer ago is forgotten
        self.tokens = self.tokens.saturating_add(earned).min(most);
    }

    /// Is there something to do without waiting?
    pub(super) fn has_work(&self, rate: u64) -> bool {
        (self.is_readable && !self.is_received)
            || (self.is_writable && !self.is_sent && self.tokens >= quantum(rate))
    }

    /// Both directions ended, well or not.
    pub(super) fn is_done(&self) -> bool {
        self.is_sent && self.is_received
    }

    /// Reads what is there, up to one buffer, and verifies it.
    pub(super) fn receive(&mut self, pattern: &Pattern, buffer: &mut [u8], now: Micros) {
        if !self.is_readable || self.is_received {
            return;
        }
        match self.socket.read(buffer) {
            Ok(0) => {
                self.is_received = true;
                self.incoming.lock().is_received = true;
            }
            Ok(length) => {
                self.is_readable = length == buffer.len() || self.is_closing;
                let mut incoming = self.incoming.lock();
                let data = &buffer[..length];
                incoming.corrupted += pattern.wrong(self.incoming_stream, incoming.received, data);
                incoming.received += length as u64;
                incoming.progress.mark(now);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => self.is_readable = false,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => self.fail(&e),
        }
    }

    /// Sends what its tokens allow, if that is enough for a large frame.
    pub(super) fn send(&mut self, pattern: &Pattern, rate: u64) {
        if !self.is_writable || self.is_sent || self.tokens < quantum(rate) {
            return;
        }
        let sent = self.outgoing.lock().sent;
        let length = self.tokens.min(LONGEST_RUN as u64) as usize;
        match self.socket.write(pattern.run(self.outgoing_stream, sent, length)) {
            Ok(written) => {
                self.is_writable = written == length;
                if self.tokens != UNLIMITED {
                    self.tokens -= written as u64;
                }
                self.outgoing.lock().sent += written as u64;
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => self.is_writable = false,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => self.fail(&e),
        }
    }

    /// Sends no more; the peer will see the end.
    pub(super) fn close(&mut self) {
        if self.is_sent {
            return;
        }
        match self.socket.shutdown(Shutdown::Write) {
            Ok(()) => {
                self.is_sent = true;
                self.outgoing.lock().is_sent = true;
            }
            Err(e) => self.fail(&e),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        for direction in [&self.outgoing, &self.incoming] {
            direction.lock().failure.get_or_insert_with(|| error.to_string());
        }
        self.is_sent = true;
        self.is_received = true;
    }
}

/// How much must be allowed before it is sent: two milliseconds' worth, so that frames grow large while
/// a silence stays short.
fn quantum(rate: u64) -> u64 {
    (rate / 500).clamp(16 * 1024, 64 * 1024)
}
