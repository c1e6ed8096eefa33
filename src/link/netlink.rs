//! Route netlink: one socket that asks (requests with their acknowledgement, dumps), one that listens.
//!
//! The kernel answers a request within the send, so nothing here waits for long; a receive timeout is the
//! last resort. A listener that was overrun (ENOBUFS) has lost events: the caller must dump anew.

#![allow(unsafe_code)] // setsockopt: netlink-sys knows neither SO_RCVBUFFORCE nor SO_RCVTIMEO

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Bytes of one receive: dumps come in pieces of at most 32 KB.
const BUFFER: usize = 64 * 1024;
/// Receive buffer of the listener: room for some ten thousand events.
const EVENT_BUFFER: libc::c_int = 8 << 20;
/// A dump that keeps being disturbed is taken as it is after so many tries.
const DUMP_TRIES: usize = 8;

/// The dump was changed while it was read: what it says may be inconsistent.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The acknowledgement carries attributes behind the (capped) request.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// Attribute of an acknowledgement: the reason in words.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Control messages of netlink itself.
const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of a netlink header.
const HEADER: usize = 16;
/// RTM_NEWNETCONF and RTM_DELNETCONF: a setting below `net.ipv4.conf` or `net.ipv6.conf` changed.
const NETCONF: [u16; 2] = [80, 81];

/// RTNLGRP numbers: links, neighbours, then addresses, routes, rules and settings of each family.
const GROUPS: [u32; 10] = [1, 3, 5, 7, 8, 24, 9, 11, 19, 25];

/// What a request may do to what exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Delete, or set what exists.
    Change,
    /// Add; an equal thing is an error (EEXIST).
    Add,
    /// Add beside what exists (IPv6: one more next hop).
    Append,
    /// Add, or replace what has the same key.
    Replace,
}

impl Mode {
    fn flags(self) -> u16 {
        const NLM_F_APPEND: u16 = 0x800;
        match self {
            Mode::Change => 0,
            Mode::Add => NLM_F_CREATE | NLM_F_EXCL,
            Mode::Append => NLM_F_CREATE | NLM_F_APPEND,
            Mode::Replace => NLM_F_CREATE | NLM_F_REPLACE,
        }
    }
}

/// A message of the kernel about its state.
#[derive(Clone, Debug)]
pub enum Notice {
    /// An object, new, changed or gone.
    Route {
        /// The message.
        message: Box<RouteNetlinkMessage>,
        /// It took the place of the object with the same key.
        is_replace: bool,
        /// The port of the socket whose request it follows from; 0: nobody's.
        asked_by: u32,
    },
    /// A per-device kernel setting changed; which one, netlink tells only in part.
    Setting,
}

/// The socket that asks.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    port: u32,
}

impl Netlink {
    /// Opens it in the network namespace of the calling thread.
    pub fn open() -> io::Result<Netlink> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        // Older kernels know none of these three; all they cost is precision.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        let second = libc::timeval { tv_sec: 1, tv_usec: 0 };
        set_option(&socket, libc::SO_RCVTIMEO, &second)?;
        Ok(Netlink { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER), port })
    }

    /// What the kernel tells of its requests carries this number.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Has the kernel do `message`; an error carries the kernel's own words where it has any.
    pub fn request(&mut self, message: RouteNetlinkMessage, mode: Mode) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | mode.flags())?;
        self.collect(|_| {}).map(|_| ())
    }

    /// Asks for one object.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<Notice>> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK)?;
        let mut answers = Vec::new();
        self.collect(|notice| answers.push(notice))?;
        Ok(answers)
    }

    /// All objects of a kind, consistent: a dump that was disturbed is taken again.
    pub fn dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<Notice>> {
        let mut tries = 0;
        loop {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            let mut found = Vec::new();
            let is_disturbed = self.collect(|notice| found.push(notice))?;
            tries += 1;
            if !is_disturbed || tries == DUMP_TRIES {
                return Ok(found);
            }
        }
    }

    /// Asks for all objects of a kind; [`Netlink::more`] brings them.
    pub fn begin_dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<()> {
        self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// The next piece of the dump that was begun, at most 32 KB.
    pub fn more(&mut self) -> io::Result<Piece> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let mut piece = Piece::default();
        for (header, bytes) in Messages(&self.buffer) {
            if header.sequence != self.sequence {
                continue;
            }
            piece.is_disturbed |= header.flags & NLM_F_DUMP_INTR != 0;
            match header.kind {
                NOOP => {}
                ERROR => verdict(header, &bytes[HEADER..])?,
                DONE => {
                    done(&bytes[HEADER..])?;
                    piece.is_last = true;
                }
                _ => piece.notices.extend(notice(header, bytes)),
            }
        }
        Ok(piece)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// Reads answers to the last request until its end; says whether the dump was disturbed.
    fn collect(&mut self, mut each: impl FnMut(Notice)) -> io::Result<bool> {
        let mut is_disturbed = false;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            for (header, bytes) in Messages(&self.buffer) {
                if header.sequence != self.sequence {
                    continue; // the rest of an answer that was given up
                }
                is_disturbed |= header.flags & NLM_F_DUMP_INTR != 0;
                match header.kind {
                    NOOP => {}
                    ERROR => {
                        return verdict(header, &bytes[HEADER..]).map(|()| is_disturbed);
                    }
                    DONE => {
                        return done(&bytes[HEADER..]).map(|()| is_disturbed);
                    }
                    _ => {
                        if let Some(notice) = notice(header, bytes) {
                            each(notice);
                        }
                    }
                }
            }
        }
    }
}

/// A part of a dump.
#[derive(Debug, Default)]
pub struct Piece {
    /// Objects.
    pub notices: Vec<Notice>,
    /// The kernel's state changed meanwhile: the dump may be inconsistent.
    pub is_disturbed: bool,
    /// Nothing follows.
    pub is_last: bool,
}

/// The socket that listens.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

/// What a drained listener brought.
#[derive(Debug, Default)]
pub struct Drained {
    /// In the order of their happening.
    pub notices: Vec<Notice>,
    /// Events were lost: dump anew.
    pub is_overrun: bool,
    /// There may be more to read.
    pub is_unfinished: bool,
}

impl Events {
    /// Subscribes in the network namespace of the calling thread. Do it before the first dump.
    pub fn open() -> io::Result<Events> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        if set_option(&socket, libc::SO_RCVBUFFORCE, &EVENT_BUFFER).is_err() {
            // In a user namespace: as much as `rmem_max` allows.
            set_option(&socket, libc::SO_RCVBUF, &EVENT_BUFFER)?;
        }
        socket.set_non_blocking(true)?;
        Ok(Events { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// For mio.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Reads what is there, at most `limit` datagrams.
    pub fn drain(&mut self, limit: usize) -> io::Result<Drained> {
        let mut drained = Drained::default();
        for _ in 0..limit {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => drained.is_overrun = true,
                Ok(_) => drained.notices.extend(notices(&self.buffer)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(drained),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => drained.is_overrun = true,
                Err(e) => return Err(e),
            }
        }
        drained.is_unfinished = true;
        Ok(drained)
    }
}

/// The fields of a netlink header that matter here.
#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// The messages of one datagram, each whole and in bounds.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (Header, &'a [u8]);

    fn next(&mut self) -> Option<(Header, &'a [u8])> {
        let head: &[u8; HEADER] = self.0.first_chunk()?;
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let length =
            usize::try_from(word(0)).ok().filter(|l| (HEADER..=self.0.len()).contains(l))?;
        let header = Header { kind: half(4), flags: half(6), sequence: word(8), port: word(12) };
        let message = &self.0[..length];
        self.0 = &self.0[length.next_multiple_of(4).min(self.0.len())..];
        Some((header, message))
    }
}

/// What a datagram of the kernel tells; what is not understood is left out.
pub fn notices(datagram: &[u8]) -> impl Iterator<Item = Notice> + '_ {
    Messages(datagram).filter_map(|(header, bytes)| notice(header, bytes))
}

fn notice(header: Header, bytes: &[u8]) -> Option<Notice> {
    if NETCONF.contains(&header.kind) {
        return Some(Notice::Setting);
    }
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
        Ok(message) => match message.payload {
            NetlinkPayload::InnerMessage(inner) => Some(Notice::Route {
                message: Box::new(inner),
                is_replace: header.flags & NLM_F_REPLACE != 0,
                asked_by: header.port,
            }),
            _ => None,
        },
        Err(error) => {
            tracing::debug!(kind = header.kind, %error, "a netlink message was not understood");
            None
        }
    }
}

/// NLMSG_ERROR: an errno, the request's header, and perhaps the reason in words.
fn verdict(header: Header, payload: &[u8]) -> io::Result<()> {
    let Some(errno) = payload.first_chunk().map(|c| i32::from_ne_bytes(*c).saturating_neg()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if errno == 0 {
        return Ok(());
    }
    let plain = io::Error::from_raw_os_error(errno);
    let words = (header.flags & NLM_F_ACK_TLVS != 0)
        .then(|| payload.get(4 + HEADER..).and_then(reason))
        .flatten();
    Err(match words {
        Some(words) => refusal(errno, &words),
        None => plain,
    })
}

/// The end of a dump carries an errno as well.
fn done(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|c| i32::from_ne_bytes(*c)) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Ok(()),
    }
}

fn reason(mut attributes: &[u8]) -> Option<String> {
    loop {
        let head: &[u8; 4] = attributes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]);
        let value = attributes.get(4..length)?;
        if kind == NLMSGERR_ATTR_MSG {
            let text = String::from_utf8_lossy(value);
            return Some(text.trim_end_matches('\0').to_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// A refusal with its errno and the kernel's words.
#[derive(Debug, thiserror::Error)]
#[error("{source} ({words})")]
struct Refusal {
    source: io::Error,
    words: String,
}

fn refusal(errno: i32, words: &str) -> io::Error {
    let source = io::Error::from_raw_os_error(errno);
    io::Error::new(source.kind(), Refusal { source, words: words.to_owned() })
}

/// The errno of an error of this file, also where it carries the kernel's words.
pub fn errno(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| {
        error.get_ref()?.downcast_ref::<Refusal>().and_then(|r| r.source.raw_os_error())
    })
}

fn set_option<T>(socket: &Socket, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: the fd is open, `value` points at `length` readable bytes, and both options here take
    // exactly the C type (int, timeval) that is handed over.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_torn_datagram_end_at_the_tear() {
        let mut bytes = vec![0; 40];
        bytes[0] = 20; // one message of 20 bytes, then one that claims more than there is
        bytes[20] = 99;
        assert_eq!(Messages(&bytes).count(), 1);
        bytes[0] = 3; // shorter than a header
        assert_eq!(Messages(&bytes).count(), 0);
        assert_eq!(Messages(&bytes[..10]).count(), 0);
    }

    #[test]
    fn a_refusal_keeps_its_errno_beside_the_words() {
        let error = refusal(libc::ENETDOWN, "Device for nexthop is not up");
        assert_eq!(errno(&error), Some(libc::ENETDOWN));
        assert!(error.to_string().contains("Device for nexthop is not up"));
        assert_eq!(errno(&io::Error::from_raw_os_error(libc::EEXIST)), Some(libc::EEXIST));
    }

    #[test]
    fn an_errno_that_cannot_be_is_an_error_all_the_same() {
        let header = Header { kind: ERROR, flags: 0, sequence: 1, port: 0 };
        for code in [i32::MIN, -1, 1] {
            assert!(verdict(header, &code.to_ne_bytes()).is_err(), "{code}");
        }
        assert!(done(&i32::MIN.to_ne_bytes()).is_err());
        assert!(verdict(header, &[0; 4]).is_ok() && verdict(header, &[0; 3]).is_err());
    }
}
