//! New connections: each asks once, is answered, and closes; many at a time, from ever other addresses and ports.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};
use vipa::wire::ip::Family;

use crate::Error;
use crate::place::Place;
use crate::work::{SHORT, Span};

const AT_ONCE: usize = 64;
/// One that is not over by then has failed.
const PATIENCE: Duration = Duration::from_millis(900);
/// Ports of a source address, below those that vipa keeps for itself.
const PORTS: std::ops::Range<u32> = 1024..61_000;

/// Of the time that was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Short {
    /// Connections a second that were answered.
    pub(crate) rate: f64,
    /// Percent that were refused, broke, were answered wrongly, or not in time.
    pub(crate) failed: f64,
}

struct Asking {
    stream: TcpStream,
    question: u64,
    is_asked: bool,
    began: Instant,
}

pub(crate) fn short(place: &Place, family: Family, span: &Span) -> Result<Short, Error> {
    place.client.run(|| connect_all(place, family, span))
}

fn connect_all(place: &Place, family: Family, span: &Span) -> Result<Short, Error> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(AT_ONCE);
    let mut slots: Vec<Option<Asking>> = (0..AT_ONCE).map(|_| None).collect();
    let mut next = 0;
    for (at, slot) in slots.iter_mut().enumerate() {
        *slot = Some(begin(place, family, &poll, at, &mut next)?);
    }
    let start = Instant::now();
    let (mut from, mut answered, mut failed) = (None, 0_u64, 0_u64);
    let mut looked = start;
    while start.elapsed() < span.warm_up + span.measured {
        match poll.poll(&mut events, Some(Duration::from_millis(100))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        let now = Instant::now();
        if from.is_none() && now - start >= span.warm_up {
            (from, answered, failed) = (Some(now), 0, 0);
        }
        for event in events.iter() {
            let Token(at) = event.token();
            let Some(asking) = slots[at].as_mut() else { continue };
            match asking.go_on() {
                None => continue,
                Some(true) => answered += 1,
                Some(false) => failed += 1,
            }
            slots[at] = None;
            slots[at] = Some(begin(place, family, &poll, at, &mut next)?);
        }
        if now - looked > Duration::from_millis(100) {
            looked = now;
            for (at, slot) in slots.iter_mut().enumerate() {
                if slot.as_ref().is_some_and(|asking| now - asking.began > PATIENCE) {
                    failed += 1;
                    *slot = None;
                    *slot = Some(begin(place, family, &poll, at, &mut next)?);
                }
            }
        }
    }
    let seconds = from.map_or(span.measured, |from| from.elapsed()).as_secs_f64();
    if answered == 0 {
        return Err(format!("no connection was answered, {failed} failed").into());
    }
    let failed = 100.0 * failed as f64 / (answered + failed) as f64;
    Ok(Short { rate: answered as f64 / seconds, failed })
}

fn begin(
    place: &Place,
    family: Family,
    poll: &Poll,
    at: usize,
    next: &mut u32,
) -> Result<Asking, Error> {
    let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let target = SocketAddr::new(place.target(family), SHORT);
    let addresses = place.sources();
    let mut last = None;
    // A port may be in TIME-WAIT still.
    for _ in 0..1000 {
        let number = *next;
        *next += 1;
        let ports = PORTS.end - PORTS.start;
        let port = PORTS.start + (number / addresses) % ports;
        let source = place.source(family, 1 + number % addresses);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        let bound = socket.bind(&SocketAddr::new(source, port as u16).into());
        let connecting = bound.and_then(|()| socket.connect(&target.into()));
        match connecting {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => last = Some(error),
            _ => {
                let mut stream = TcpStream::from_std(socket.into());
                let both = Interest::READABLE | Interest::WRITABLE;
                poll.registry().register(&mut stream, Token(at), both)?;
                let question = u64::from(number);
                return Ok(Asking { stream, question, is_asked: false, began: Instant::now() });
            }
        }
    }
    let why = last.map_or(String::new(), |error| error.to_string());
    Err(format!("no source port is left: {why}").into())
}

impl Asking {
    /// `None`: not over yet; else whether it was answered rightly.
    fn go_on(&mut self) -> Option<bool> {
        if !self.is_asked {
            if !matches!(self.stream.take_error(), Ok(None)) {
                return Some(false);
            }
            match self.stream.write(&self.question.to_be_bytes()) {
                Ok(8) => self.is_asked = true,
                Err(error) if is_early(&error) => return None,
                _ => return Some(false),
            }
        }
        let mut answer = [0; 8];
        match self.stream.read(&mut answer) {
            Ok(8) => Some(u64::from_be_bytes(answer) == self.question),
            Err(error) if is_early(&error) => None,
            _ => Some(false),
        }
    }
}

fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}
