//! One forwarder per adapter: a multi-queue TUN would let a second one attach without a word.
//!
//! The lock is an abstract unix socket named after the adapter: scoped by the network namespace, as the
//! adapter is, and gone with the process, however it ends. It listens, so that whoever finds it taken can ask
//! the kernel for the holder's pid (SO_PEERCRED, unix(7)); nothing is ever accepted.
#![allow(unsafe_code)] // SO_PEERCRED and a connect that never waits; std offers neither.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use super::descriptors::high;

/// How long a process that was killed may hold the lock: its memory goes before its descriptors.
const PATIENCE: Duration = Duration::from_millis(300);
const BETWEEN_TRIES: Duration = Duration::from_millis(2);

/// The right to forward for one adapter; given back when dropped.
#[derive(Debug)]
pub struct Lock {
    _listener: UnixListener,
}

/// Why the lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("{adapter} is served already, by {}", process(*.pid))]
    Held {
        /// The adapter.
        adapter: String,
        /// Who has it, if the kernel says (not if it lives in another PID namespace).
        pid: Option<u32>,
    },
    /// The socket could not be made.
    #[error("cannot lock {adapter}: {source}")]
    Io {
        /// The adapter.
        adapter: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Who has the lock of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its pid, if the kernel says.
    pub pid: Option<u32>,
}

impl Lock {
    /// Takes the lock of `adapter` in this network namespace, or says who has it: a holder that was killed
    /// is given a moment to let go.
    pub fn take(adapter: &str) -> Result<Lock, Error> {
        let failed = |source| Error::Io { adapter: adapter.to_owned(), source };
        let address = SocketAddr::from_abstract_name(name(adapter)).map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match high(|| UnixListener::bind_addr(&address)) {
                Ok(listener) => return Ok(Lock { _listener: listener }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(failed(error)),
            }
            let holder = holder(adapter).map_err(failed)?;
            if Instant::now() >= deadline {
                let pid = holder.and_then(|holder| holder.pid);
                return Err(Error::Held { adapter: adapter.to_owned(), pid });
            }
            std::thread::sleep(BETWEEN_TRIES);
        }
    }
}

/// Does a forwarder run for `adapter`?
pub fn is_held(adapter: &str) -> io::Result<bool> {
    Ok(holder(adapter)?.is_some())
}

/// Who holds the lock of `adapter`; `None`: nobody.
pub fn holder(adapter: &str) -> io::Result<Option<Holder>> {
    let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory involved; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_UNIX, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    match connect(socket.as_raw_fd(), &name(adapter)) {
        Ok(()) => Ok(Some(Holder { pid: peer(socket.as_raw_fd())? })),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Ok(None),
            // As many have asked before us as the queue of what is never accepted holds.
            io::ErrorKind::WouldBlock => Ok(Some(Holder { pid: None })),
            _ => Err(error),
        },
    }
}

fn name(adapter: &str) -> Vec<u8> {
    [b"vipa/", adapter.as_bytes()].concat()
}

fn connect(socket: RawFd, name: &[u8]) -> io::Result<()> {
    // SAFETY: all zeroes are a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let Some(path) = address.sun_path.get_mut(1..=name.len()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "name too long"));
    };
    for (to, from) in path.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    let length = mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    // SAFETY: `address` lives, and `length` does not exceed it: `path` was within.
    let result =
        unsafe { libc::connect(socket, (&raw const address).cast(), length as libc::socklen_t) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The pid of the process that listens at the other end; `None` if it has none in our PID namespace.
fn peer(socket: RawFd) -> io::Result<Option<u32>> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `credentials`.
    let result = unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u32::try_from(credentials.pid).ok().filter(|pid| *pid > 0))
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Abstract names are shared with all of this network namespace: each test has one of its own.
    fn adapter(test: &str) -> String {
        format!("{test}-{}", std::process::id())
    }

    #[test]
    fn a_second_one_is_told_who_has_it() {
        let adapter = adapter("second");
        assert!(!is_held(&adapter).unwrap());
        let lock = Lock::take(&adapter).unwrap();
        let refused = Lock::take(&adapter).unwrap_err();
        let pid = std::process::id();
        assert_eq!(refused.to_string(), format!("{adapter} is served already, by process {pid}"));
        assert!(is_held(&adapter).unwrap());
        drop(lock);
        assert!(!is_held(&adapter).unwrap());
        Lock::take(&adapter).unwrap();
    }

    #[test]
    fn each_adapter_has_its_own() {
        let _one = Lock::take(&adapter("one")).unwrap();
        let _other = Lock::take(&adapter("other")).unwrap();
    }

    #[test]
    fn being_asked_often_does_not_block_or_free_it() {
        let adapter = adapter("often");
        let _lock = Lock::take(&adapter).unwrap();
        for _ in 0..5_000 {
            assert!(is_held(&adapter).unwrap());
        }
        assert!(matches!(Lock::take(&adapter), Err(Error::Held { .. })));
    }
}
