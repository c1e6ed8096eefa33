//! Processes held by a descriptor: no signal goes to one that got the number later (pidfd_open(2)).
#![allow(unsafe_code)] // Two system calls that std does not have.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The process `pid`; readable when it has ended. Close-on-exec.
///
/// # Errors
/// ESRCH if there is none (any more); those of the system.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory involved.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal; a process that has ended needs none.
///
/// # Errors
/// Those of the system.
pub fn signal(pidfd: &OwnedFd, signal: libc::c_int) -> io::Result<()> {
    let no_siginfo = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo means that of kill(2).
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_siginfo, 0)
    };
    match io::Error::last_os_error() {
        error if sent < 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}
