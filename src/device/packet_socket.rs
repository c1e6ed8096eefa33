//! A NIC through packet sockets (C2): whole super-packets out and in by `PACKET_VNET_HDR`, never split,
//! never copied twice by us, no checksum computed.
//!
//! Two sockets send. Super-packets have one of their own with a small send buffer, so that a bulk flow on a
//! slow NIC queues for milliseconds and not for its whole window, and leaves room for everyone else's frames.
//! Two receive, one a family, and hear what the forwarder owns alone ([`super::filter`]); where that is nothing
//! there are none.
#![allow(unsafe_code)] // Packet sockets: no safe wrapper knows their addresses and options.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::filter::{self, Instruction};
use super::{Device, MARK, ReceiveError};
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
    receivers: Vec<OwnedFd>,
    /// The receiver to ask next.
    turn: usize,
}

impl NicPort {
    /// Opens the sockets on the device of this index.
    ///
    /// # Errors
    /// No permission, or the device is gone.
    pub fn open(nic: NicId, ifindex: u32, mac: MacAddr, hearing: &Hearing) -> io::Result<NicPort> {
        let mut receivers = Vec::new();
        if !hearing.claims.is_empty() {
            for family in Family::BOTH {
                receivers.push(receiver(family, ifindex, hearing)?);
            }
        }
        Ok(NicPort {
            nic,
            mac,
            small: sender(ifindex, SMALL_BUFFER)?,
            bulk: sender(ifindex, BULK_BUFFER)?,
            receivers,
            turn: 0,
        })
    }
}

impl Device for NicPort {
    fn receive(&mut self, frame: &mut Frame) -> Result<(), ReceiveError> {
        for _ in 0..self.receivers.len() {
            let socket = &self.receivers[self.turn];
            match receive(socket, frame.space(HEADROOM)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.turn = (self.turn + 1) % self.receivers.len();
                }
                // ENETDOWN is said once when the NIC goes down; the socket works again when it is back.
                Err(error) => return Err(ReceiveError::Refused(error)),
                Ok(length) => {
                    let packet = length.checked_sub(HEADROOM);
                    let header = frame.space(HEADROOM).first_chunk::<HEADER_LEN>().copied();
                    let (Some(packet), Some(header)) = (packet, header) else {
                        return Err(ReceiveError::Refused(io::Error::other("a frame too short")));
                    };
                    let offload = Offload::parse(&header, ethernet::HEADER_LEN)
                        .map_err(|error| ReceiveError::Refused(io::Error::other(error)))?;
                    frame.received(packet);
                    frame.ingress = Ingress::Nic(self.nic);
                    frame.offload = offload;
                    return Ok(());
                }
            }
        }
        Err(ReceiveError::Empty)
    }

    fn send(&mut self, frame: &mut Frame, to: MacAddr) -> io::Result<()> {
        let is_v6 = frame.packet().first().is_some_and(|first| first >> 4 == 6);
        let ether_type = if is_v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        let virtio = frame.offload.emit(ethernet::HEADER_LEN, super::tun::headers_len(frame));
        let socket = if frame.offload.gso.is_some() { &self.bulk } else { &self.small };
        let bytes = frame.with_front(HEADROOM);
        bytes[..HEADER_LEN].copy_from_slice(&virtio);
        bytes[HEADER_LEN..HEADROOM].copy_from_slice(&ethernet::header(to, self.mac, ether_type));
        send(socket, bytes)
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.receivers.iter().map(AsRawFd::as_raw_fd).collect()
    }
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

fn receive(socket: &OwnedFd, space: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `space` is writable for its length.
    let result =
        unsafe { libc::recv(socket.as_raw_fd(), space.as_mut_ptr().cast(), space.len(), 0) };
    check(result)
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
