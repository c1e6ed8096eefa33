//! A packet socket on one device: whole packets in and out, without the link's header.
//!
//! `unsafe` here: a raw socket's calls, and keeping a thread on one processor.
#![allow(unsafe_code)]

use std::io::{Error, ErrorKind};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// For what must happen.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes that may wait to be read.
const ROOM: libc::c_int = 16 << 20;

pub(crate) struct PacketSocket {
    socket: OwnedFd,
    ifindex: u32,
    mac: [u8; 6],
    buffer: Vec<u8>,
}

impl PacketSocket {
    /// On the device `ifindex` of the calling thread's network; what is sent goes to `mac`.
    pub(crate) fn open(ifindex: u32, mac: [u8; 6]) -> Result<PacketSocket, Error> {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain integers.
        let socket = unsafe {
            libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, all.into())
        };
        if socket < 0 {
            return Err(Error::last_os_error());
        }
        // SAFETY: the kernel made it for us, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let socket = PacketSocket { socket, ifindex, mac, buffer: vec![0; 1 << 17] };
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM)?;
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        let address = socket.address(0);
        let length = mem::size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is a whole sockaddr_ll, and lives through the call.
        let result = unsafe { libc::bind(socket.fd(), (&raw const address).cast(), length) };
        if result < 0 { Err(Error::last_os_error()) } else { Ok(socket) }
    }

    pub(crate) fn send(&self, packet: &[u8]) {
        let ethertype = if packet[0] >> 4 == 4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
        let address = self.address(ethertype as u16);
        let length = mem::size_of_val(&address) as libc::socklen_t;
        // SAFETY: pointer and length are those of a slice; the address is a whole sockaddr_ll.
        let sent = unsafe {
            let data = packet.as_ptr().cast();
            libc::sendto(self.fd(), data, packet.len(), 0, (&raw const address).cast(), length)
        };
        assert_eq!(sent, packet.len() as isize, "a packet is sent: {}", Error::last_os_error());
    }

    /// The next IP packet that the other end of the cable sent.
    pub(crate) fn receive(&mut self) -> Vec<u8> {
        let until = Instant::now() + DEADLINE;
        loop {
            // SAFETY: pointer and length are those of the buffer.
            let length = unsafe {
                let data = self.buffer.as_mut_ptr().cast();
                libc::recv(self.fd(), data, self.buffer.len(), libc::MSG_DONTWAIT)
            };
            if length > 0 && matches!(self.buffer[0] >> 4, 4 | 6) {
                return self.buffer[..length as usize].to_vec();
            }
            if length < 0 {
                let error = Error::last_os_error();
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "reading a packet: {error}");
                let left = until.saturating_duration_since(Instant::now());
                assert!(
                    !left.is_zero(),
                    "the kernel sent nothing for {DEADLINE:?}, not even the mark"
                );
                let mut wanted = libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one whole pollfd, which lives through the call.
                unsafe { libc::poll(&raw mut wanted, 1, left.as_millis() as libc::c_int + 1) };
            }
        }
    }

    fn fd(&self) -> libc::c_int {
        self.socket.as_raw_fd()
    }

    fn set(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<(), Error> {
        let length = mem::size_of_val(&value) as libc::socklen_t;
        // SAFETY: the value is a whole int, and lives through the call.
        let result =
            unsafe { libc::setsockopt(self.fd(), level, name, (&raw const value).cast(), length) };
        if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    }

    fn address(&self, ethertype: u16) -> libc::sockaddr_ll {
        let mut address = [0; 8];
        address[..6].copy_from_slice(&self.mac);
        libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: if ethertype == 0 { libc::ETH_P_ALL as u16 } else { ethertype }.to_be(),
            sll_ifindex: self.ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: address,
        }
    }
}

/// Keeps the calling thread on the processor that it runs on: what it sends over veth is then worked through in
/// the order in which it was sent, also where the kernel puts work off.
pub(crate) fn stay_on_this_processor() {
    // SAFETY: the set is a whole cpu_set_t and lives through the call; 0 is the calling thread.
    let result = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(libc::sched_getcpu() as usize, &mut set);
        libc::sched_setaffinity(0, mem::size_of_val(&set), &raw const set)
    };
    assert_eq!(result, 0, "a thread stays on one processor: {}", Error::last_os_error());
}
