//! Netlink sockets with raw bytes: requests and their answers, nf_tables batches, and the news of what
//! others change.
//!
//! `unsafe` here: `setsockopt` with options that netlink-sys does not know, and `if_nametoindex`.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::{Socket, SocketAddr};

use super::message::{self, ACK, DONE, DUMP, DUMP_INTERRUPTED, Message, REQUEST, Writer};

/// Larger than any datagram that the kernel builds for a dump.
const RECEIVE: usize = 256 * 1024;
/// A batch is one datagram, and must fit the socket's send buffer.
const SEND_BUFFER: libc::c_int = 8 << 20;
/// Dumps that changed while they were read are read again, so often at most.
const DUMP_TRIES: usize = 16;

/// Asks the kernel, and waits for its answer.
#[derive(Debug)]
pub(crate) struct Requests {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    /// A socket of this netlink protocol.
    pub(crate) fn open(protocol: isize) -> io::Result<Requests> {
        let mut socket = Socket::new(protocol)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        // Refused in a user namespace: the ordinary limit holds then, and suffices for all but huge batches.
        if set_option(&socket, libc::SO_SNDBUFFORCE, &SEND_BUFFER).is_err() {
            set_option(&socket, libc::SO_SNDBUF, &SEND_BUFFER)?;
        }
        Ok(Requests { socket, port, sequence: 0, buffer: vec![0; RECEIVE] })
    }

    /// The port number by which the kernel knows this socket.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Sends one request (`payload`: family header and attributes) and hands each answer's type and
    /// payload to `each`.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        payload: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        for _ in 0..DUMP_TRIES {
            let mut answers = Vec::new();
            if self.ask(kind, DUMP, payload, |m| answers.push((m.kind, m.payload.to_vec())))? {
                answers.iter().for_each(|(kind, payload)| each(*kind, payload));
                return Ok(());
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the dump changed each time it was read"))
    }

    /// Sends one request and returns its answer.
    pub(crate) fn get(&mut self, kind: u16, payload: &[u8]) -> io::Result<Vec<u8>> {
        let mut answer = None;
        self.ask(kind, ACK, payload, |m| answer = Some(m.payload.to_vec()))?;
        answer.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no answer by netlink"))
    }

    /// False: what was read is inconsistent and must be read again.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &[u8],
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<bool> {
        let sequence = self.next_sequence(1);
        let mut writer = Writer::default();
        writer.begin(kind, REQUEST | flags, sequence);
        writer.raw(payload);
        writer.end();
        self.socket.send(writer.bytes(), 0)?;
        let mut is_consistent = true;
        loop {
            let length = receive(&self.socket, &mut self.buffer, 0)?;
            for m in message::messages(&self.buffer[..length]).filter(|m| m.sequence == sequence) {
                is_consistent &= m.flags & DUMP_INTERRUPTED == 0;
                match m.errno() {
                    Some(0) => return Ok(is_consistent),
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    None if m.kind == DONE => return Ok(is_consistent),
                    None => each(&m),
                }
            }
        }
    }

    /// Begins a batch of nf_tables messages: all of it happens, or nothing.
    pub(super) fn batch(&mut self) -> Batch {
        let mut batch = Batch { first: self.sequence.wrapping_add(1), ..Batch::default() };
        batch.border(BATCH_BEGIN);
        batch
    }

    /// Sends a batch. The kernel works on it inside of `send`, so that every answer is there afterwards.
    ///
    /// # Errors
    /// The first message that the kernel refused, and why.
    pub(super) fn commit(&mut self, mut batch: Batch) -> Result<(), Refused> {
        batch.border(BATCH_END);
        self.next_sequence(batch.steps.len() as u32);
        if batch.writer.is_overlong() {
            let error =
                io::Error::new(io::ErrorKind::InvalidInput, "a netlink attribute over 64 KB");
            return Err(Refused { step: Step::Other, error });
        }
        let other = |error| Refused { step: Step::Other, error };
        self.socket.send(batch.writer.bytes(), 0).map_err(other)?;
        let mut refused = None;
        loop {
            let length = match receive(&self.socket, &mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // More refusals than the receive buffer holds; the first ones were read or will be.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    refused.get_or_insert(other(e));
                    continue;
                }
                Err(e) => return Err(other(e)),
            };
            for m in message::messages(&self.buffer[..length]) {
                let step = batch.steps.get(m.sequence.wrapping_sub(batch.first) as usize);
                if let (Some(&step), Some(errno)) = (step, m.errno().filter(|&e| e != 0)) {
                    let error = io::Error::from_raw_os_error(errno);
                    refused.get_or_insert(Refused { step, error });
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    fn next_sequence(&mut self, count: u32) -> u32 {
        let next = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        next
    }
}

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;

/// The type of an nf_tables message on the wire.
pub(crate) const fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

/// `struct nfgenmsg`.
pub(crate) const fn family_header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

/// What a message of a batch is about, where its refusal means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing in particular.
    Other,
    /// The table of this family.
    Table(u8),
    /// The base chain on the NIC of this position.
    NicChain(usize),
}

/// The first message of a batch that the kernel refused.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) step: Step,
    pub(super) error: io::Error,
}

/// Messages that take effect together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    writer: Writer,
    first: u32,
    steps: Vec<Step>,
}

impl Batch {
    /// Adds a message of nf_tables.
    pub(super) fn add(
        &mut self,
        (message, flags, family): (u16, u16, u8),
        step: Step,
        attributes: impl FnOnce(&mut Writer),
    ) {
        let sequence = self.next(step);
        self.writer.begin(kind(message), REQUEST | flags, sequence);
        self.writer.raw(&family_header(family));
        attributes(&mut self.writer);
        self.writer.end();
    }

    /// Does it hold no message?
    pub(super) fn is_empty(&self) -> bool {
        self.steps.len() <= 1
    }

    fn border(&mut self, kind: u16) {
        let sequence = self.next(Step::Other);
        self.writer.begin(kind, REQUEST, sequence);
        let [high, low] = SUBSYSTEM.to_be_bytes();
        self.writer.raw(&[0, 0, high, low]);
        self.writer.end();
    }

    fn next(&mut self, step: Step) -> u32 {
        self.steps.push(step);
        self.first.wrapping_add(self.steps.len() as u32 - 1)
    }
}

const GROUP_NFTABLES: u32 = 7;

/// Hears what others change in nf_tables.
#[derive(Debug)]
pub(super) struct Events {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Events {
    /// Hears all changes but those that the socket `own` asks for: these wake nobody.
    pub(super) fn open(own: u32) -> io::Result<Events> {
        let mut socket = Socket::new(netlink_sys::protocols::NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        // The filter reads nlmsg_pid, which is in the machine's order, as if it were big-endian.
        let own = u32::from_be_bytes(own.to_ne_bytes());
        let mut code = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 12),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, own),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ];
        let program = libc::sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
        set_option(&socket, libc::SO_ATTACH_FILTER, &program)?;
        socket.add_membership(GROUP_NFTABLES)?;
        Ok(Events { socket, buffer: vec![0; 32 * 1024] })
    }

    /// Readable when there is news.
    pub(super) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Reads all there is. True if a message names a table `table`, or if news was lost.
    pub(super) fn drain(&mut self, table: &str) -> bool {
        let mut is_touched = false;
        loop {
            match receive(&self.socket, &mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(length) => {
                    is_touched |= message::messages(&self.buffer[..length])
                        .filter(|m| m.kind != kind(NEWGEN))
                        .filter_map(|m| message::find(m.payload.get(4..)?, 1))
                        .any(|name| message::text(name) == table);
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => is_touched = true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return is_touched,
            }
        }
    }
}

/// `NFT_MSG_NEWGEN`: its first attribute is a number, where all others name their table.
const NEWGEN: u16 = 15;

/// The kernel's index of the device `name` in this network namespace; 0 if there is none.
pub(super) fn interface_index(name: &str) -> u32 {
    let Ok(name) = CString::new(name) else { return 0 };
    // SAFETY: the pointer is to a NUL-terminated string that outlives the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

fn receive(socket: &Socket, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    let room = buffer.len();
    let mut rest = &mut *buffer;
    match socket.recv(&mut rest, flags | libc::MSG_TRUNC)? {
        length if length > room => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a netlink datagram beyond the buffer"))
        }
        length => Ok(length),
    }
}

fn set_option<T>(socket: &Socket, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is the plain C value that `option` takes, and its size is told.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
