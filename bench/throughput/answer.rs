//! What answers on the servers: an echo on two ports, and iperf3.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use vipa::lab::{Namespace, Process, Scratch};

use crate::Error;
use crate::place::Place;
use crate::work::{ECHO, IPERF, SHORT};

const WAKER: Token = Token(0);
/// Listeners have the tokens from here on, connections those behind.
const LISTENERS: usize = 1;

/// All that answers; dropped, it ends.
#[derive(Debug)]
pub(crate) struct Answerers {
    echoes: Vec<(Arc<Waker>, Option<JoinHandle<()>>)>,
    _iperf: Process,
    _files: Scratch,
}

impl Answerers {
    pub(crate) fn start(place: &Place) -> Result<Answerers, Error> {
        let files = Scratch::new()?;
        let echoes: Result<Vec<_>, Error> = place.servers.iter().map(echo).collect();
        let mut command = place.servers[0].command("iperf3");
        let iperf = Process::start(
            command.args(["-s", "-p", &IPERF.to_string()]),
            &files.path().join("iperf3"),
        )?;
        Ok(Answerers { echoes: echoes?, _iperf: iperf, _files: files })
    }
}

impl Drop for Answerers {
    fn drop(&mut self) {
        for (waker, thread) in &mut self.echoes {
            let _ = waker.wake();
            thread.take().map(JoinHandle::join);
        }
    }
}

fn echo(server: &Namespace) -> Result<(Arc<Waker>, Option<JoinHandle<()>>), Error> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
    let listen = |port| TcpListener::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
    let listeners = server.run(|| [ECHO, SHORT].map(listen));
    let mut open = Vec::new();
    for listener in listeners {
        open.push(listener?);
    }
    let thread = server.spawn("echo", move || {
        // It ends when it is told to, and with the poll.
        let _ = serve(poll, open);
    })?;
    Ok((waker, Some(thread)))
}

struct Connection {
    stream: TcpStream,
    /// Read, and not yet written.
    pending: Vec<u8>,
}

fn serve(mut poll: Poll, mut listeners: Vec<TcpListener>) -> io::Result<()> {
    let mut events = Events::with_capacity(256);
    let mut connections: HashMap<usize, Connection> = HashMap::new();
    let mut next = LISTENERS + listeners.len();
    for (at, listener) in listeners.iter_mut().enumerate() {
        poll.registry().register(listener, Token(LISTENERS + at), Interest::READABLE)?;
    }
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        }
        for event in events.iter() {
            let Token(token) = event.token();
            if token == WAKER.0 {
                return Ok(());
            }
            if let Some(listener) = listeners.get(token - LISTENERS) {
                while let Ok((mut stream, _)) = listener.accept() {
                    let _ = stream.set_nodelay(true);
                    let both = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, Token(next), both)?;
                    connections.insert(next, Connection { stream, pending: Vec::new() });
                    next += 1;
                }
                continue;
            }
            if connections.get_mut(&token).is_some_and(|connection| !connection.go_on()) {
                connections.remove(&token);
            }
        }
    }
}

impl Connection {
    /// False: it is over.
    fn go_on(&mut self) -> bool {
        let mut block = [0; 16 << 10];
        loop {
            while !self.pending.is_empty() {
                match self.stream.write(&self.pending) {
                    Ok(count) => drop(self.pending.drain(..count)),
                    Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
                }
            }
            match self.stream.read(&mut block) {
                Ok(0) => return false,
                Ok(count) => self.pending.extend_from_slice(&block[..count]),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
}
