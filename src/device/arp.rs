//! ARP by one NIC.
//!
//! Unsafe for packet sockets, which the standard library does not know.

#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::filter::{self, Instruction};
use super::packet_socket::attach;
use crate::wire::ethernet::MacAddr;
use crate::wire::neighbour::{ARP, Arp};

const BROADCAST: MacAddr = MacAddr([0xff; 6]);

/// The socket. Closed when dropped.
#[derive(Debug)]
pub(crate) struct ArpSocket {
    socket: OwnedFd,
    ifindex: u32,
}

impl ArpSocket {
    /// Of the device with this index.
    pub(crate) fn open(ifindex: u32) -> io::Result<ArpSocket> {
        ArpSocket::with(ifindex, None)
    }

    /// The same; hears only those that say of themselves that they have one of `senders`, however much else is asked on the link.
    pub(crate) fn of_senders(ifindex: u32, senders: &[Ipv4Addr]) -> io::Result<ArpSocket> {
        ArpSocket::with(ifindex, Some(&filter::arp_senders(senders)))
    }

    fn with(ifindex: u32, filter: Option<&[Instruction]>) -> io::Result<ArpSocket> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers; the descriptor is new and nobody else's. Without a protocol it hears nothing before it is bound.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let socket = ArpSocket { socket: unsafe { OwnedFd::from_raw_fd(fd) }, ifindex };
        if let Some(filter) = filter {
            attach(&socket.socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, filter)?;
        }
        let name = socket.name(MacAddr::default());
        // SAFETY: a whole sockaddr_ll and its size.
        let bound = unsafe { libc::bind(fd, (&raw const name).cast(), LINK_NAME) };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Sends to `to`; `None`: to all.
    pub(crate) fn send(&self, arp: &Arp, to: Option<MacAddr>) -> io::Result<()> {
        let (name, bytes) = (self.name(to.unwrap_or(BROADCAST)), arp.bytes());
        // SAFETY: the bytes and their number; a whole sockaddr_ll and its size.
        let sent = unsafe {
            let name = (&raw const name).cast();
            libc::sendto(self.fd(), bytes.as_ptr().cast(), bytes.len(), 0, name, LINK_NAME)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// What came next; `None`: no question or answer of IPv4. True: it came to this host alone.
    pub(crate) fn receive(&self) -> io::Result<(Option<Arp>, bool)> {
        let mut buffer = [0u8; 64];
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut name: libc::sockaddr_ll = unsafe { zeroed() };
        let mut size = LINK_NAME;
        // SAFETY: buffer and name live until it returns, with their sizes.
        let length = unsafe {
            let name = (&raw mut name).cast();
            libc::recvfrom(
                self.fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                name,
                &raw mut size,
            )
        };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        Ok((Arp::parse(&buffer[..length]), name.sll_pkttype == libc::PACKET_HOST))
    }

    fn name(&self, to: MacAddr) -> libc::sockaddr_ll {
        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut name: libc::sockaddr_ll = unsafe { zeroed() };
        name.sll_family = libc::AF_PACKET as u16;
        name.sll_protocol = ARP.to_be();
        name.sll_ifindex = self.ifindex as i32;
        name.sll_halen = 6;
        name.sll_addr[..6].copy_from_slice(&to.0);
        name
    }
}

const LINK_NAME: u32 = size_of::<libc::sockaddr_ll>() as u32;
