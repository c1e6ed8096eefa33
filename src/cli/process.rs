//! Another process, held by a pidfd: no signal goes to one that got its number later.
//!
//! Unsafe for three system calls that std does not have: pidfd_open, pidfd_send_signal and poll.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// A process of this PID namespace.
#[derive(Debug)]
pub(super) struct Process {
    pid: libc::pid_t,
    descriptor: OwnedFd,
}

impl Process {
    /// The process `pid`, or `None` if there is none (any more).
    pub(super) fn open(pid: libc::pid_t) -> io::Result<Option<Process>> {
        // SAFETY: pidfd_open takes two integers and touches no memory.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match checked(raw) {
            Ok(raw) => {
                let raw = RawFd::try_from(raw).map_err(io::Error::other)?;
                // SAFETY: the kernel has just returned it; nobody else owns it.
                let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
                Ok(Some(Process { pid, descriptor }))
            }
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its number.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends it SIGTERM; one that has ended needs none.
    pub(super) fn terminate(&self) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        let descriptor = self.descriptor.as_raw_fd();
        // SAFETY: the descriptor is open while `self` lives; a null siginfo means that of kill(2).
        let sent = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, descriptor, libc::SIGTERM, none, 0)
        };
        match checked(sent) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits until it has ended; `false` if it has not within `patience`.
    pub(super) fn wait(&self, patience: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).as_millis();
            let left = libc::c_int::try_from(left).unwrap_or(libc::c_int::MAX);
            let descriptor = self.descriptor.as_raw_fd();
            let mut poll = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, which outlives the call.
            match checked(unsafe { libc::poll(&raw mut poll, 1, left) }.into()) {
                Ok(ready) => return Ok(ready > 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn checked(returned: libc::c_long) -> io::Result<libc::c_long> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_told_to_end_and_waited_for() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::open(child.id() as libc::pid_t).unwrap().unwrap();
        assert!(!process.wait(Duration::from_millis(1)).unwrap());
        process.terminate().unwrap();
        assert!(process.wait(Duration::from_secs(10)).unwrap());
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
        process.terminate().unwrap();
        assert!(Process::open(child.id() as libc::pid_t).unwrap().is_none());
    }
}
