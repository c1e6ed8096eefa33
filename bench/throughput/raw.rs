//! Packet sockets, as the generator of small frames and the plain copy have them.
#![allow(unsafe_code)] // They exist as C calls alone.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// One that hears nothing yet. `flags` beside SOCK_CLOEXEC.
pub(crate) fn packet_socket(flags: libc::c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags;
    // SAFETY: takes numbers alone; protocol 0 hears nothing.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// To a device, and to what it hears there: an ETH_P, 0 for nothing.
pub(crate) fn bind(socket: &OwnedFd, ifindex: i32, protocol: u16) -> io::Result<()> {
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_ifindex = ifindex;
    address.sll_protocol = protocol.to_be();
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: a live sockaddr_ll and its length.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
