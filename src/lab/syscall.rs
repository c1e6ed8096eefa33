//! The lab's system calls that std has no safe name for.
//!
//! Unsafe because namespaces, mounts, the parent-death signal, ethtool, priorities and timers exist as C calls alone.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// What [`unshare`] makes new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unshare {
    /// The calling thread's network.
    Network,
    /// Network and mounts.
    NetworkAndMounts,
    /// Network, mounts and users, in which the caller may be root.
    All,
}

/// Moves the calling thread into new namespaces (unshare(2)).
pub(super) fn unshare(what: Unshare) -> io::Result<()> {
    let flags = match what {
        Unshare::Network => libc::CLONE_NEWNET,
        Unshare::NetworkAndMounts => libc::CLONE_NEWNET | libc::CLONE_NEWNS,
        Unshare::All => libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWUSER,
    };
    // SAFETY: takes flags alone and touches no memory of ours.
    done(unsafe { libc::unshare(flags) })
}

/// Moves the calling thread into the network namespace behind `namespace` (setns(2)).
pub(super) fn join_network(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call; no memory of ours is touched.
    done(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Keeps what is mounted from now on to ourselves.
pub(super) fn make_mounts_private() -> io::Result<()> {
    mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE, c"")
}

/// Covers `target` with an empty file system in memory.
pub(super) fn mount_tmpfs(target: &CStr) -> io::Result<()> {
    mount(c"tmpfs", target, c"tmpfs", libc::MS_NOSUID | libc::MS_NODEV, c"mode=0755,size=256m")
}

fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: libc::c_ulong,
    data: &CStr,
) -> io::Result<()> {
    // SAFETY: all pointers are to NUL-terminated strings that live through the call.
    done(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast::<libc::c_void>(),
        )
    })
}

/// Effective user and group.
pub(super) fn effective_ids() -> (u32, u32) {
    // SAFETY: both calls only return a number and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Makes `command`'s child start inside `namespace`, if one is given, and die with the thread that
/// starts it.
pub(super) fn tie_child(command: &mut Command, namespace: Option<Arc<OwnedFd>>) {
    let parent = std::process::id();
    let prepare = move || {
        if let Some(namespace) = &namespace {
            // SAFETY: as in `join_network`; setns is async-signal-safe.
            done(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })?;
        }
        // SAFETY: prctl with PR_SET_PDEATHSIG takes a number.
        done(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        // SAFETY: getppid only returns a number.
        if unsafe { libc::getppid() }.cast_unsigned() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH)); // it died before the line above
        }
        Ok(())
    };
    // SAFETY: between fork and exec `prepare` makes system calls alone: it neither allocates nor locks.
    unsafe { command.pre_exec(prepare) };
}

/// Lets others go first from now on: the calling thread, and those that it starts (setpriority(2)).
pub(super) fn give_way() -> io::Result<()> {
    // SAFETY: takes numbers alone; 0 is the calling thread.
    done(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) })
}

/// Switches checksum offload on transmit for `device` in the network of `socket` (ethtool(8) `-K tx`).
/// The kernel lets TSO follow.
pub(super) fn set_tx_checksum(socket: BorrowedFd<'_>, device: &str, on: bool) -> io::Result<()> {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let mut value = EthtoolValue { command: ETHTOOL_STXCSUM, data: u32::from(on) };
    // SAFETY: ifreq is plain data for which all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `request` is a whole ifreq whose data pointer leads to a live ethtool_value.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) })
}

/// struct ethtool_value.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// A timer that becomes readable at every period, whatever the poller's own resolution (timerfd).
#[derive(Debug)]
pub(super) struct Ticker(File);

impl Ticker {
    /// Ticks every `period` (under one second) from now on.
    pub(super) fn new(period: Duration) -> io::Result<Ticker> {
        // SAFETY: takes flags alone.
        let fd: RawFd = unsafe {
            libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC)
        };
        done(fd)?;
        // SAFETY: the descriptor is new, open and owned by nobody else.
        let ticker = Ticker(File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        let every = libc::timespec { tv_sec: 0, tv_nsec: period.subsec_nanos().into() };
        let times = libc::itimerspec { it_interval: every, it_value: every };
        // SAFETY: `times` lives through the call; a null old value is allowed.
        done(unsafe { libc::timerfd_settime(fd, 0, &raw const times, std::ptr::null_mut()) })?;
        Ok(ticker)
    }

    /// Periods that ended since the last call.
    pub(super) fn ticks(&mut self) -> u64 {
        let mut count = [0; 8];
        match self.0.read(&mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }
}

impl AsRawFd for Ticker {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
