//! What bpf(2) is asked for: a map of sockets, a program, and its link to a device.
#![allow(unsafe_code)] // bpf(2) exists as a raw system call alone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::program::Instruction;
use crate::forward::view::XdpHook;

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROGRAM_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;

const TYPE_XSKMAP: u32 = 17;
const TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
const GENERIC: u32 = 1 << 1;
const NATIVE: u32 = 1 << 2;
/// Helpers that only GPL programs may call are not called.
const LICENSE: &[u8] = b"Dual MIT/GPL\0";

/// A map from a queue of the device to its socket (XSKMAP).
#[derive(Debug)]
pub(super) struct Sockets(OwnedFd);

impl Sockets {
    /// Room for so many queues.
    pub(super) fn new(queues: u32) -> io::Result<Sockets> {
        #[repr(C)]
        struct Attributes {
            kind: u32,
            key_size: u32,
            value_size: u32,
            entries: u32,
        }
        let mut attributes =
            Attributes { kind: TYPE_XSKMAP, key_size: 4, value_size: 4, entries: queues };
        descriptor(bpf(MAP_CREATE, &mut attributes)?).map(Sockets)
    }

    /// Frames of `queue` may be led to `socket` from now on.
    pub(super) fn set(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        #[repr(C)]
        struct Attributes {
            map: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let value = socket.as_raw_fd().cast_unsigned();
        let mut attributes = Attributes {
            map: self.0.as_raw_fd().cast_unsigned(),
            key: address(&queue),
            value: address(&value),
            flags: 0,
        };
        bpf(MAP_UPDATE, &mut attributes).map(drop)
    }
}

impl AsFd for Sockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Hands a program to the kernel, which verifies it.
pub(super) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        attach: u32,
    }
    let mut attributes = Attributes {
        kind: TYPE_XDP,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: *b"vipa\0\0\0\0\0\0\0\0\0\0\0\0",
        ifindex: 0,
        attach: ATTACH_XDP,
    };
    descriptor(bpf(PROGRAM_LOAD, &mut attributes)?)
}

/// A program at work on a device; dropped it works there no more, also if this process is killed.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

impl Link {
    pub(super) fn new(program: &OwnedFd, ifindex: u32, hook: XdpHook) -> io::Result<Link> {
        #[repr(C)]
        struct Attributes {
            program: u32,
            ifindex: u32,
            attach: u32,
            flags: u32,
        }
        let mut attributes = Attributes {
            program: program.as_raw_fd().cast_unsigned(),
            ifindex,
            attach: ATTACH_XDP,
            flags: match hook {
                XdpHook::Generic => GENERIC,
                XdpHook::Native => NATIVE,
            },
        };
        descriptor(bpf(LINK_CREATE, &mut attributes)?).map(Link)
    }

    /// Another program in its place, from one frame to the next.
    pub(super) fn update(&self, program: &OwnedFd) -> io::Result<()> {
        #[repr(C)]
        struct Attributes {
            link: u32,
            program: u32,
            flags: u32,
            before: u32,
        }
        let mut attributes = Attributes {
            link: self.0.as_raw_fd().cast_unsigned(),
            program: program.as_raw_fd().cast_unsigned(),
            flags: 0,
            before: 0,
        };
        bpf(LINK_UPDATE, &mut attributes).map(drop)
    }
}

fn address<T>(value: &T) -> u64 {
    std::ptr::from_ref(value) as u64
}

fn bpf<A>(command: libc::c_int, attributes: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: all attributes of this file are those that their command reads, in C's layout; what they point to lives in the caller.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
