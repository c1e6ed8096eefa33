//! Counts the data frames that leave by a device, whole as the kernel hands them over: up to 64 KB each.
//!
//! Unsafe because packet sockets, their filter and their statistics exist as C calls alone.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::error::Step;
use super::{Error, Namespace};

/// Frames up to this length are acknowledgements, echoes and the like.
const SMALL: u32 = 200;

/// A packet socket that nobody reads: its filter takes data frames, the kernel counts them.
#[derive(Debug)]
pub struct FrameMeter(OwnedFd);

impl FrameMeter {
    /// Counts what leaves by `device` from now on.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn new(namespace: &Namespace, device: &str) -> Result<FrameMeter, Error> {
        let index = namespace.index(device)?;
        namespace
            .run(|| open(index.cast_signed()))
            .step(|| format!("counting frames on {device} of {}", namespace.name()))
    }

    /// Data frames since the last call.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn take(&self) -> Result<u64, Error> {
        // SAFETY: all zeros is a valid tpacket_stats.
        let mut statistics: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: pointer and length describe a live structure of the kind that the kernel fills.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        checked(result).step(|| "frame counter".to_owned())?;
        Ok(statistics.tp_packets.into()) // those for which there was no room are among them
    }
}

fn open(index: i32) -> io::Result<FrameMeter> {
    // Protocol 0: nothing arrives before the filter stands and the device is named.
    // SAFETY: takes numbers alone.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    checked(fd)?;
    // SAFETY: the descriptor is new, open and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    attach_filter(&socket)?;
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    // SAFETY: pointer and length describe a live sockaddr_ll.
    let result = unsafe {
        libc::bind(
            fd,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    checked(result)?;
    Ok(FrameMeter(socket))
}

/// Takes one byte of each outgoing frame longer than [`SMALL`].
fn attach_filter(socket: &OwnedFd) -> io::Result<()> {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let packet_type = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE).cast_unsigned();
    let mut program = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, packet_type),
        instruction(libc::BPF_JMP | libc::BPF_JEQ, 0, 3, libc::PACKET_OUTGOING.into()),
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGT, 0, 1, SMALL),
        instruction(libc::BPF_RET, 0, 0, 1),
        instruction(libc::BPF_RET, 0, 0, 0),
    ];
    let filter =
        libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    // SAFETY: the program lives through the call, which copies it.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
