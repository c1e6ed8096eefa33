//! Another process, held by a pidfd: no signal goes to one that got its number later.
//!
//! Unsafe for a system call that std does not have: poll.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::engine::pidfd;

/// A process of this PID namespace.
#[derive(Debug)]
pub(super) struct Process {
    pid: libc::pid_t,
    descriptor: OwnedFd,
}

impl Process {
    /// The process `pid`, or `None` if there is none (any more).
    pub(super) fn open(pid: libc::pid_t) -> io::Result<Option<Process>> {
        let Ok(number) = u32::try_from(pid) else { return Ok(None) };
        match pidfd::open(number) {
            Ok(descriptor) => Ok(Some(Process { pid, descriptor })),
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
        pidfd::signal(&self.descriptor, libc::SIGTERM)
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
