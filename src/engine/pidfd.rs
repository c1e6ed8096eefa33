//! Processes held by a descriptor: no signal goes to one that got the number later (pidfd_open(2)).
#![allow(unsafe_code)] // Three system calls that std does not have.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

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

/// Waits until the process has ended; `false` if it has not within `patience`.
///
/// # Errors
/// Those of the system.
pub fn wait(pidfd: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        let left = libc::c_int::try_from(left).unwrap_or(libc::c_int::MAX);
        let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which outlives the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, left) };
        if ready >= 0 {
            return Ok(ready > 0);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_told_to_end_and_waited_for() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("a process");
        let process = open(child.id()).expect("it runs");
        assert!(!wait(&process, Duration::from_millis(1)).expect("a wait"));
        signal(&process, libc::SIGTERM).expect("told");
        assert!(wait(&process, Duration::from_secs(10)).expect("a wait"));
        assert_eq!(child.wait().expect("reaped").signal(), Some(libc::SIGTERM));
        signal(&process, libc::SIGTERM).expect("nobody to tell is no error");
        let gone = open(child.id()).expect_err("it has ended");
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    }
}
