//! A NIC through packet sockets (C2): whole super-packets out and in by `PACKET_VNET_HDR`, never split here, and no checksum
//! computed.
//!
//! Two sockets send. Super-packets have one of their own with a small send buffer, so that a bulk flow on a
//! slow NIC queues for milliseconds and not for its whole window, and leaves room for everyone else's frames.
//! Two receive, one a family, and hear what the forwarder owns alone ([`super::filter`]); where that is nothing
//! there are none. What [`super::xdp`] leads past them comes in here as well, copied and its checksum verified.
#![allow(unsafe_code)] // Packet sockets: no safe wrapper knows their addresses and options.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::filter::{self, Instruction};
use super::{Device, MARK, ReceiveError, xdp};
use crate::forward::claims::Claims;
use crate::forward::frame::{Frame, HEADROOM, Ingress};
use crate::forward::view::NicId;
use crate::wire::ethernet::{self, MacAddr};
use crate::wire::ip::Family;
use crate::wire::offload::{HEADER_LEN, Offload};

/// Bytes the kernel may hold for the socket of super-packets (it counts double what is set here).
const BULK_BUFFER: libc::c_int = 160 << 10;
/// The same for all other frames.
const SMALL_BUFFER: libc::c_int = 256 << 10;
/// Room for replies: the default drops a sixth of 64 KB frames.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// Frames that one system call may carry.
const AT_ONCE: usize = 64;
/// After so many frames by one way in the next one is asked, however many more there are.
const IN_A_ROW: usize = 64;
/// Of frames longer than this fewer are taken at once: what is received should still be in the cache when it is sent.
const SHORT: usize = 2048;

/// What a port hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hearing {
    /// What the forwarder owns; nothing: no socket.
    pub claims: Claims,
    /// How many workers share the NIC; each hears what is its own ([`filter::worker`]), by the order in which their
    /// sockets join the fan-out group.
    pub workers: u8,
    /// Number of the group, never used before while sockets of it are open; 15 bits.
    pub group: u16,
}

/// A NIC as one worker has it.
#[derive(Debug)]
pub struct NicPort {
    nic: NicId,
    mac: MacAddr,
    small: OwnedFd,
    bulk: OwnedFd,
    receivers: Vec<Receiver>,
    /// The receiver to ask next, and how many frames it gave in a row.
    turn: usize,
    in_a_row: usize,
    /// How many frames it is asked for.
    at_once: usize,
}

/// What frames come in by.
#[derive(Debug)]
enum Receiver {
    Packets(OwnedFd),
    Xdp(xdp::Queue),
}

impl NicPort {
    /// Opens the sockets on the device of this index; the `queues` that XDP leads frames to are asked as well.
    ///
    /// # Errors
    /// No permission, or the device is gone.
    pub fn open(
        nic: NicId,
        ifindex: u32,
        mac: MacAddr,
        hearing: &Hearing,
        queues: Vec<xdp::Queue>,
    ) -> io::Result<NicPort> {
        let mut receivers: Vec<Receiver> = queues.into_iter().map(Receiver::Xdp).collect();
        if !hearing.claims.is_empty() {
            for family in Family::BOTH {
                receivers.push(Receiver::Packets(receiver(family, ifindex, hearing)?));
            }
        }
        Ok(NicPort {
            nic,
            mac,
            small: sender(ifindex, SMALL_BUFFER)?,
            bulk: sender(ifindex, BULK_BUFFER)?,
            receivers,
            turn: 0,
            in_a_row: 0,
            at_once: 1,
        })
    }
}

impl NicPort {
    fn next_receiver(&mut self) {
        (self.turn, self.in_a_row) = ((self.turn + 1) % self.receivers.len(), 0);
    }

    /// The receiver whose turn it is gave so many frames: after none, or enough in a row, it is the next one's turn. True if it gave any.
    fn gave(&mut self, count: usize) -> bool {
        self.in_a_row += count;
        if count == 0 || self.in_a_row >= IN_A_ROW {
            self.next_receiver();
        }
        count > 0
    }
}

impl Device for NicPort {
    fn receive(&mut self, frame: &mut Frame) -> Result<(), ReceiveError> {
        for _ in 0..self.receivers.len() {
            let socket = match &self.receivers[self.turn] {
                Receiver::Packets(socket) => socket,
                Receiver::Xdp(queue) => {
                    if receive_by_xdp(queue, self.nic, std::slice::from_mut(frame)) == 1 {
                        return Ok(());
                    }
                    self.next_receiver();
                    continue;
                }
            };
            match receive(socket, frame.space(HEADROOM)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.next_receiver(),
                // ENETDOWN is said once when the NIC goes down; the socket works again when it is back.
                Err(error) => return Err(ReceiveError::Refused(error)),
                Ok(length) => {
                    return accept(self.nic, frame, length).map_err(ReceiveError::Refused);
                }
            }
        }
        Err(ReceiveError::Empty)
    }

    fn receive_some(
        &mut self,
        frames: &mut [Frame],
        refused: &mut dyn FnMut(io::Error),
    ) -> Result<usize, ReceiveError> {
        let wanted = self.at_once.min(frames.len());
        for _ in 0..self.receivers.len() {
            let socket = match &self.receivers[self.turn] {
                Receiver::Packets(socket) => socket,
                Receiver::Xdp(queue) => {
                    let room = frames.len().min(AT_ONCE);
                    let count = receive_by_xdp(queue, self.nic, &mut frames[..room]);
                    if self.gave(count) {
                        return Ok(count);
                    }
                    continue;
                }
            };
            let mut lengths = [0; AT_ONCE];
            let lengths = &mut lengths[..wanted];
            // A super-packet comes by itself, and without what many take.
            let received = match (frames.first_mut(), &mut *lengths) {
                (Some(frame), [length]) => receive(socket, frame.space(HEADROOM)).map(|received| {
                    *length = received;
                    1
                }),
                _ => receive_many(socket, frames, lengths),
            };
            let count = match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.next_receiver();
                    continue;
                }
                Err(error) => {
                    refused(error);
                    return Ok(0);
                }
                Ok(count) => count,
            };
            self.gave(count);
            let mut accepted = 0;
            for at in 0..count {
                match accept(self.nic, &mut frames[at], lengths[at]) {
                    Ok(()) => {
                        frames.swap(accepted, at);
                        accepted += 1;
                    }
                    Err(error) => refused(error),
                }
            }
            let is_short = lengths[..count].iter().all(|length| *length <= SHORT);
            self.at_once = if is_short { (self.at_once * 2).min(AT_ONCE) } else { 1 };
            return Ok(accepted);
        }
        Err(ReceiveError::Empty)
    }

    fn send(&mut self, frame: &mut Frame, to: MacAddr) -> io::Result<()> {
        let socket = if frame.offload.gso.is_some() { &self.bulk } else { &self.small };
        send(socket, dress(frame, self.mac, to))
    }

    fn send_some(&mut self, frames: &mut [Frame], to: &[MacAddr]) -> (usize, usize) {
        let short = frames.iter().take_while(|frame| frame.offload.gso.is_none()).count();
        let count = short.min(to.len()).min(AT_ONCE);
        if count < 2 {
            return (0, 0);
        }
        let mac = self.mac;
        let mut parts = [EMPTY; AT_ONCE];
        for ((frame, to), part) in frames[..count].iter_mut().zip(to).zip(&mut parts) {
            let bytes = dress(frame, mac, *to);
            *part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        }
        let call = |fd, messages, count| {
            // SAFETY: that of `many`.
            unsafe { libc::sendmmsg(fd, messages, count, libc::MSG_NOSIGNAL) }
        };
        // SAFETY: each part is a frame of `frames`, which is borrowed until the call is over; the kernel only reads them.
        let sent = unsafe { many(&self.small, &mut parts[..count], call, &mut []) };
        (sent.unwrap_or(0), count)
    }

    fn take_lost(&mut self) -> u64 {
        let lost = |receiver: &Receiver| match receiver {
            Receiver::Packets(socket) => dropped(socket),
            Receiver::Xdp(queue) => queue.take_lost(),
        };
        self.receivers.iter().map(lost).sum()
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let descriptor = |receiver: &Receiver| match receiver {
            Receiver::Packets(socket) => socket.as_raw_fd(),
            Receiver::Xdp(queue) => queue.descriptor(),
        };
        self.receivers.iter().map(descriptor).collect()
    }
}

/// Into the first of `frames`, as long as they have room; how many came.
fn receive_by_xdp(queue: &xdp::Queue, nic: NicId, frames: &mut [Frame]) -> usize {
    let mut count = 0;
    if frames.is_empty() {
        return 0;
    }
    queue.receive(|bytes| {
        let Some(frame) = frames.get_mut(count) else { return false };
        if let Some(space) = frame.space(ethernet::HEADER_LEN).get_mut(..bytes.len()) {
            space.copy_from_slice(bytes);
            frame.received(bytes.len().saturating_sub(ethernet::HEADER_LEN));
            frame.ingress = Ingress::Nic(nic);
            frame.offload = Offload::found(frame.packet());
            count += 1;
        }
        count < frames.len()
    });
    count
}

/// What was received into the frame's headroom and behind it becomes its packet.
fn accept(nic: NicId, frame: &mut Frame, length: usize) -> io::Result<()> {
    let packet = length.checked_sub(HEADROOM);
    let header = frame.space(HEADROOM).first_chunk::<HEADER_LEN>().copied();
    let (Some(packet), Some(header)) = (packet, header) else {
        return Err(io::Error::other("a frame too short"));
    };
    let offload = Offload::parse(&header, ethernet::HEADER_LEN).map_err(io::Error::other)?;
    frame.received(packet);
    frame.ingress = Ingress::Nic(nic);
    frame.offload = offload;
    Ok(())
}

/// The frame with its virtio and Ethernet headers in front.
fn dress(frame: &mut Frame, from: MacAddr, to: MacAddr) -> &mut [u8] {
    let is_v6 = frame.packet().first().is_some_and(|first| first >> 4 == 6);
    let ether_type = if is_v6 { ethernet::IPV6 } else { ethernet::IPV4 };
    let virtio = frame.offload.emit(ethernet::HEADER_LEN, super::tun::headers_len(frame));
    let bytes = frame.with_front(HEADROOM);
    bytes[..HEADER_LEN].copy_from_slice(&virtio);
    bytes[HEADER_LEN..HEADROOM].copy_from_slice(&ethernet::header(to, from, ether_type));
    bytes
}

fn sender(ifindex: u32, buffer: libc::c_int) -> io::Result<OwnedFd> {
    let socket = packet_socket()?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_MARK, &(MARK as libc::c_int))?;
    // Also below the kernel's minimum of other sockets and above `wmem_max`; refused in a user namespace.
    set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &buffer)
        .or_else(|_| set(&socket, libc::SOL_SOCKET, libc::SO_SNDBUF, &buffer))?;
    bind(&socket, ifindex, 0)?;
    Ok(socket)
}

fn receiver(family: Family, ifindex: u32, hearing: &Hearing) -> io::Result<OwnedFd> {
    let socket = packet_socket()?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER)
        .or_else(|_| set(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BUFFER))?;
    let program = filter::heard(family, &hearing.claims);
    attach(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    let protocol = match family {
        Family::V4 => ethernet::IPV4,
        Family::V6 => ethernet::IPV6,
    };
    // Bound last: not a single frame comes in unfiltered.
    bind(&socket, ifindex, protocol)?;
    if hearing.workers > 1 {
        let group = u32::from(hearing.group << 1) | u32::from(family == Family::V6);
        let fanout = (group | libc::PACKET_FANOUT_CBPF << 16) as libc::c_int;
        set(&socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &fanout)?;
        let program = filter::worker(family, &hearing.claims, hearing.workers);
        attach(&socket, libc::SOL_PACKET, libc::PACKET_FANOUT_DATA, &program)?;
    }
    Ok(socket)
}

fn packet_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a system call without pointers; protocol 0 hears nothing.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind(socket: &OwnedFd, ifindex: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: all bytes zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a sockaddr_ll of `length` bytes and lives through the call.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    check(result as isize).map(|_| ())
}

fn set(socket: &OwnedFd, level: i32, option: i32, value: &libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let value = (value as *const libc::c_int).cast();
    // SAFETY: `value` points to `length` readable bytes.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) };
    check(result as isize).map(|_| ())
}

pub(super) fn attach(
    socket: &OwnedFd,
    level: i32,
    option: i32,
    program: &[Instruction],
) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    let length = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let value = (&raw const program).cast();
    // SAFETY: `program` names `len` instructions that the kernel only reads, during the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) };
    check(result as isize).map(|_| ())
}

/// Frames that the socket had no room for since it was last asked.
fn dropped(socket: &OwnedFd) -> u64 {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    let (level, option) = (libc::SOL_PACKET, libc::PACKET_STATISTICS);
    let value = (&raw mut statistics).cast();
    // SAFETY: `value` is writable for `length` bytes. It cannot fail on a packet socket; if it did, nothing was counted.
    unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value, &raw mut length) };
    statistics.tp_drops.into()
}

fn receive(socket: &OwnedFd, space: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `space` is writable for its length.
    let result =
        unsafe { libc::recv(socket.as_raw_fd(), space.as_mut_ptr().cast(), space.len(), 0) };
    check(result)
}

/// Into the first of `frames`, as many as there are `lengths` at most; how many came.
fn receive_many(
    socket: &OwnedFd,
    frames: &mut [Frame],
    lengths: &mut [usize],
) -> io::Result<usize> {
    let mut parts = [EMPTY; AT_ONCE];
    let count = lengths.len().min(frames.len());
    for (frame, part) in frames[..count].iter_mut().zip(&mut parts) {
        let space = frame.space(HEADROOM);
        *part = libc::iovec { iov_base: space.as_mut_ptr().cast(), iov_len: space.len() };
    }
    let call = |fd, messages, count| {
        // SAFETY: that of `many`; without a timeout.
        unsafe { libc::recvmmsg(fd, messages, count, 0, std::ptr::null_mut()) }
    };
    // SAFETY: each part is the space of a frame of `frames`, which is borrowed mutably until the call is over.
    unsafe { many(socket, &mut parts[..count], call, lengths) }
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// A message for each of `parts` by one system call; how many were carried, and in `lengths` the bytes of each.
///
/// # Safety
/// Each part is memory that lives through the call, writable where the call receives.
unsafe fn many(
    socket: &OwnedFd,
    parts: &mut [libc::iovec],
    call: impl FnOnce(RawFd, *mut libc::mmsghdr, libc::c_uint) -> libc::c_int,
    lengths: &mut [usize],
) -> io::Result<usize> {
    // SAFETY: all bytes zero is a valid mmsghdr.
    let mut messages: [libc::mmsghdr; AT_ONCE] = unsafe { std::mem::zeroed() };
    let count = parts.len().min(AT_ONCE);
    for (message, part) in messages.iter_mut().zip(parts) {
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
    }
    let result = call(socket.as_raw_fd(), messages.as_mut_ptr(), count as libc::c_uint);
    let carried = check(result as isize)?;
    for (length, message) in lengths.iter_mut().zip(&messages[..carried.min(count)]) {
        *length = message.msg_len as usize;
    }
    Ok(carried)
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let flags = libc::MSG_NOSIGNAL;
    // SAFETY: `bytes` is readable for its length.
    let result =
        unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    check(result).map(|_| ())
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
