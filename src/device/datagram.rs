//! Datagrams by one NIC: UDP and ICMPv6 sockets bound to a device, told of each datagram's hop limit.
//!
//! Unsafe for what the standard library has no call for: binding to a device, the ancillary data of `recvmsg` and `sendmsg`.

#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void};

use crate::wire::ip::Family;

const CONTROL: usize = 128;
const ICMP6_FILTER: c_int = 1;

/// The socket. Closed when dropped.
#[derive(Debug)]
pub(crate) struct DatagramSocket {
    socket: UdpSocket,
    family: Family,
}

/// What came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    /// Bytes of it.
    pub(crate) length: usize,
    /// From there.
    pub(crate) source: SocketAddr,
    /// Time to live or hop limit; 0 where the kernel did not say.
    pub(crate) ttl: u8,
    /// To a group or, in IPv4, by broadcast.
    pub(crate) is_multicast: bool,
}

impl DatagramSocket {
    /// UDP, bound to `port`. What it sends has the hop limit `hops`.
    pub(crate) fn udp(
        family: Family,
        name: &str,
        port: u16,
        hops: u8,
    ) -> io::Result<DatagramSocket> {
        let domain = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
        let socket = DatagramSocket::open(domain, libc::SOCK_DGRAM, 0, name)?;
        socket.set_hops(hops)?;
        if family == Family::V6 {
            set(socket.fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
        }
        bind(socket.fd(), SocketAddr::new(family.unspecified(), port))?;
        Ok(socket)
    }

    /// ICMPv6, messages of `kind` alone; the kernel makes the checksums and verifies them.
    pub(crate) fn icmpv6(name: &str, kind: u8) -> io::Result<DatagramSocket> {
        let (raw, protocol) = (libc::SOCK_RAW, libc::IPPROTO_ICMPV6);
        let socket = DatagramSocket::open(libc::AF_INET6, raw, protocol, name)?;
        socket.set_hops(255)?;
        // Our own kernel is not meant when all are asked.
        set(socket.fd(), libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, 0)?;
        // A set bit blocks its kind (RFC 3542 section 3.2).
        let mut filter = [u32::MAX; 8];
        filter[usize::from(kind >> 5)] &= !(1 << (kind & 31));
        set_value(socket.fd(), libc::IPPROTO_ICMPV6, ICMP6_FILTER, &filter)?;
        Ok(socket)
    }

    fn open(domain: c_int, kind: c_int, protocol: c_int, name: &str) -> io::Result<DatagramSocket> {
        let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers; the descriptor is new and nobody else's.
        let fd = unsafe { libc::socket(domain, kind, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        set_bytes(fd, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, name.as_bytes())?;
        let family = if domain == libc::AF_INET { Family::V4 } else { Family::V6 };
        Ok(DatagramSocket { socket: owned.into(), family })
    }

    fn set_hops(&self, hops: u8) -> io::Result<()> {
        let (fd, hops) = (self.fd(), c_int::from(hops));
        match self.family {
            Family::V4 => {
                set(fd, libc::IPPROTO_IP, libc::IP_RECVTTL, 1)?;
                set(fd, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
                set(fd, libc::IPPROTO_IP, libc::IP_TTL, hops)?;
                // Internetwork control (RFC 4594).
                set(fd, libc::IPPROTO_IP, libc::IP_TOS, 0xc0)
            }
            Family::V6 => {
                let level = libc::IPPROTO_IPV6;
                set(fd, level, libc::IPV6_RECVHOPLIMIT, 1)?;
                set(fd, level, libc::IPV6_RECVPKTINFO, 1)?;
                set(fd, level, libc::IPV6_MULTICAST_HOPS, hops)?;
                set(fd, level, libc::IPV6_UNICAST_HOPS, hops)?;
                set(fd, level, libc::IPV6_TCLASS, 0xc0)
            }
        }
    }

    /// Hears and speaks to `group` by the device with this index, and may broadcast. What it sends it does not hear itself.
    pub(crate) fn join(&self, group: IpAddr, ifindex: u32) -> io::Result<()> {
        let fd = self.fd();
        match group {
            IpAddr::V4(group) => {
                set(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, 0)?;
                set(fd, libc::SOL_SOCKET, libc::SO_BROADCAST, 1)?;
                // SAFETY: all-zero is a valid ip_mreqn.
                let mut membership: libc::ip_mreqn = unsafe { zeroed() };
                membership.imr_multiaddr.s_addr = u32::from_ne_bytes(group.octets());
                membership.imr_ifindex = ifindex as c_int;
                set_value(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &membership)?;
                set_value(fd, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &membership)
            }
            IpAddr::V6(group) => {
                let level = libc::IPPROTO_IPV6;
                set(fd, level, libc::IPV6_MULTICAST_LOOP, 0)?;
                set(fd, level, libc::IPV6_MULTICAST_IF, ifindex as c_int)?;
                let membership = libc::ipv6_mreq {
                    ipv6mr_multiaddr: libc::in6_addr { s6_addr: group.octets() },
                    ipv6mr_interface: ifindex,
                };
                set_value(fd, level, libc::IPV6_ADD_MEMBERSHIP, &membership)
            }
        }
    }

    /// Room for bursts.
    pub(crate) fn set_receive_buffer(&self, bytes: c_int) {
        // Refused in a user namespace: the default then has to do.
        let _ = set(self.fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes);
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    /// One datagram, into `buffer`.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Heard> {
        // SAFETY: all-zero is valid for these.
        let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) =
            unsafe { (zeroed(), zeroed()) };
        let mut control = [0u64; CONTROL / 8];
        let mut part =
            libc::iovec { iov_base: buffer.as_mut_ptr().cast::<c_void>(), iov_len: buffer.len() };
        message.msg_name = (&raw mut name).cast::<c_void>();
        message.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast::<c_void>();
        message.msg_controllen = CONTROL;
        // SAFETY: `message` points to buffers that live until it returns, with their sizes.
        let length = unsafe { libc::recvmsg(self.fd(), &raw mut message, 0) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        let source = address(&name).ok_or(io::ErrorKind::InvalidData)?;
        let mut heard = Heard { length: length as usize, source, ttl: 0, is_multicast: false };
        look(&message, &mut heard);
        Ok(heard)
    }

    /// Sends from `source`, an address of the NIC, where one is given.
    pub(crate) fn send(
        &self,
        payload: &[u8],
        to: SocketAddr,
        source: Option<IpAddr>,
    ) -> io::Result<()> {
        match (source, to) {
            (Some(IpAddr::V4(source)), SocketAddr::V4(to)) => {
                // SAFETY: all-zero is a valid in_pktinfo.
                let mut packet: libc::in_pktinfo = unsafe { zeroed() };
                packet.ipi_spec_dst.s_addr = u32::from_ne_bytes(source.octets());
                let name = v4(to.ip().octets(), to.port());
                self.send_with(payload, name, libc::IPPROTO_IP, libc::IP_PKTINFO, packet)
            }
            (Some(IpAddr::V6(source)), SocketAddr::V6(to)) => {
                let ipi6_addr = libc::in6_addr { s6_addr: source.octets() };
                let packet = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 };
                self.send_with(payload, v6(to), libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, packet)
            }
            _ => self.socket.send_to(payload, to).map(drop),
        }
    }

    /// To the socket address `name`, with one piece of ancillary data.
    fn send_with<N, P>(
        &self,
        payload: &[u8],
        mut name: N,
        level: c_int,
        kind: c_int,
        packet: P,
    ) -> io::Result<()> {
        // SAFETY: all-zero is valid for it.
        let mut message: libc::msghdr = unsafe { zeroed() };
        let mut part = libc::iovec {
            iov_base: payload.as_ptr().cast_mut().cast::<c_void>(),
            iov_len: payload.len(),
        };
        let mut control = [0u64; CONTROL / 8];
        message.msg_name = (&raw mut name).cast::<c_void>();
        message.msg_namelen = size_of::<N>() as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast::<c_void>();
        let size = size_of::<P>() as u32;
        // SAFETY: CMSG_SPACE computes, and is less than CONTROL for both kinds of packet information; the first header and its data
        // lie within `control`, which is aligned for it.
        let sent = unsafe {
            message.msg_controllen = libc::CMSG_SPACE(size) as usize;
            let head = libc::CMSG_FIRSTHDR(&raw const message);
            (*head).cmsg_level = level;
            (*head).cmsg_type = kind;
            (*head).cmsg_len = libc::CMSG_LEN(size) as usize;
            libc::CMSG_DATA(head).cast::<P>().write_unaligned(packet);
            libc::sendmsg(self.fd(), &raw const message, 0)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// What the ancillary data tell.
fn look(message: &libc::msghdr, heard: &mut Heard) {
    // SAFETY: the kernel filled `msg_control` and its length; the macros stay within it.
    let mut head = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !head.is_null() {
        // SAFETY: not null, so it is a whole header within the buffer, and its data lie behind it.
        let (level, kind, data) =
            unsafe { ((*head).cmsg_level, (*head).cmsg_type, libc::CMSG_DATA(head)) };
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                // SAFETY: both carry an int.
                let value = unsafe { data.cast::<c_int>().read_unaligned() };
                heard.ttl = u8::try_from(value).unwrap_or(0);
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // SAFETY: it carries an in_pktinfo.
                let packet = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                heard.is_multicast = packet.ipi_addr.s_addr != packet.ipi_spec_dst.s_addr;
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                // SAFETY: it carries an in6_pktinfo.
                let packet = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                heard.is_multicast = packet.ipi6_addr.s6_addr[0] == 0xff;
            }
            _ => {}
        }
        // SAFETY: as for the first.
        head = unsafe { libc::CMSG_NXTHDR(message, head) };
    }
}

fn v4(octets: [u8; 4], port: u16) -> libc::sockaddr_in {
    // SAFETY: all-zero is a valid sockaddr_in.
    let mut name: libc::sockaddr_in = unsafe { zeroed() };
    name.sin_family = libc::AF_INET as u16;
    name.sin_port = port.to_be();
    name.sin_addr.s_addr = u32::from_ne_bytes(octets);
    name
}

fn v6(to: SocketAddrV6) -> libc::sockaddr_in6 {
    // SAFETY: all-zero is a valid sockaddr_in6.
    let mut name: libc::sockaddr_in6 = unsafe { zeroed() };
    name.sin6_family = libc::AF_INET6 as u16;
    name.sin6_port = to.port().to_be();
    name.sin6_addr.s6_addr = to.ip().octets();
    name.sin6_scope_id = to.scope_id();
    name
}

fn address(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is one, and the storage is large enough and aligned.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in>() };
            let ip = IpAddr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddr::new(ip, u16::from_be(name.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { &*(&raw const *name).cast::<libc::sockaddr_in6>() };
            let port = u16::from_be(name.sin6_port);
            let ip = name.sin6_addr.s6_addr.into();
            Some(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn bind(fd: RawFd, to: SocketAddr) -> io::Result<()> {
    let result = match to {
        SocketAddr::V4(to) => {
            let name = v4(to.ip().octets(), to.port());
            let size = size_of::<libc::sockaddr_in>() as u32;
            // SAFETY: a whole sockaddr_in and its size.
            unsafe { libc::bind(fd, (&raw const name).cast(), size) }
        }
        SocketAddr::V6(to) => {
            let name = v6(to);
            let size = size_of::<libc::sockaddr_in6>() as u32;
            // SAFETY: a whole sockaddr_in6 and its size.
            unsafe { libc::bind(fd, (&raw const name).cast(), size) }
        }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set(fd: RawFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    set_value(fd, level, option, &value)
}

fn set_value<T>(fd: RawFd, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let size = size_of::<T>() as u32;
    // SAFETY: a whole T and its size; the kernel only reads.
    let result = unsafe { libc::setsockopt(fd, level, option, (&raw const *value).cast(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_bytes(fd: RawFd, level: c_int, option: c_int, value: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes and their number; the kernel only reads.
    let result =
        unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), value.len() as u32) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
