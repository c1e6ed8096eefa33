//! Where a forwarder leaves what outlives it, and the lock that makes it the only one of its adapter.
//!
//! Names hold the adapter and the inode of the network namespace: forwarders of several namespaces share
//! one directory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Where state is kept if neither `--state` nor `$RUNTIME_DIRECTORY` says so.
const DEFAULT_DIRECTORY: &str = "/run/vipa";

/// What is kept for an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The values of the host's settings before vipa changed them.
    Saved,
    /// The flow table.
    Flows,
    /// The control socket.
    Socket,
}

impl Kept {
    const ALL: [Kept; 3] = [Kept::Saved, Kept::Flows, Kept::Socket];

    fn extension(self) -> &'static str {
        match self {
            Kept::Saved => "saved",
            Kept::Flows => "flows",
            Kept::Socket => "sock",
        }
    }
}

/// The state of one network namespace's adapters.
#[derive(Clone, Debug)]
pub struct State {
    directory: PathBuf,
    namespace: u64,
}

impl State {
    /// The state of the calling thread's network namespace in `explicit`, else in the first directory of
    /// `$RUNTIME_DIRECTORY`, else in /run/vipa. Nothing is made yet.
    ///
    /// # Errors
    /// /proc does not name the namespace.
    pub fn locate(explicit: Option<&Path>) -> io::Result<State> {
        let directory = match explicit {
            Some(directory) => directory.to_owned(),
            None => runtime_directory().unwrap_or_else(|| DEFAULT_DIRECTORY.into()),
        };
        let namespace = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
        Ok(State { directory, namespace })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Inode of the network namespace.
    pub fn namespace(&self) -> u64 {
        self.namespace
    }

    /// Makes the directory if it is missing; only its owner may write there.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn create(&self) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.directory)
    }

    /// Where `kept` of `adapter` lies.
    pub fn path(&self, adapter: &str, kept: Kept) -> PathBuf {
        self.directory.join(format!("{adapter}.{}.{}", self.namespace, kept.extension()))
    }

    /// The adapters of this namespace of which anything is kept, sorted. A missing directory holds none.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn adapters(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut adapters = Vec::new();
        for entry in entries {
            if let Some(adapter) = entry?.file_name().to_str().and_then(|name| self.adapter(name)) {
                adapters.push(adapter.to_owned());
            }
        }
        adapters.sort_unstable();
        adapters.dedup();
        Ok(adapters)
    }

    /// The adapter of `<adapter>.<namespace>.<extension>`; its name may hold dots.
    fn adapter<'n>(&self, file_name: &'n str) -> Option<&'n str> {
        let (rest, extension) = file_name.rsplit_once('.')?;
        let (adapter, namespace) = rest.rsplit_once('.')?;
        let is_ours = namespace.parse() == Ok(self.namespace)
            && Kept::ALL.iter().any(|kept| kept.extension() == extension);
        (is_ours && !adapter.is_empty()).then_some(adapter)
    }
}

fn runtime_directory() -> Option<PathBuf> {
    let listed = std::env::var("RUNTIME_DIRECTORY").ok()?;
    listed.split(':').find(|directory| !directory.is_empty()).map(PathBuf::from)
}

/// Held by the only forwarder of an adapter: an abstract socket, which is scoped by network namespace and
/// gone with its process. (A multi-queue TUN would let a second forwarder attach silently.)
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its name")] UnixListener);

impl Lock {
    /// Takes the lock of `adapter`, or `None` where another process holds it.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub fn acquire(adapter: &str) -> io::Result<Option<Lock>> {
        match UnixListener::bind_addr(&lock_address(adapter)?) {
            Ok(listener) => Ok(Some(Lock(listener))),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A connection to the lock that another process holds: the kernel tells whose it is.
#[derive(Debug)]
pub struct Holder(UnixStream);

impl Holder {
    /// Who holds the lock of `adapter`; `None`: nobody.
    ///
    /// # Errors
    /// Those of connect(2).
    pub fn of(adapter: &str) -> io::Result<Option<Holder>> {
        match UnixStream::connect_addr(&lock_address(adapter)?) {
            Ok(stream) => Ok(Some(Holder(stream))),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Holder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn lock_address(adapter: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("vipa/{adapter}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn adapters_of_this_namespace_alone_are_listed() {
        let directory = std::env::temp_dir().join(format!("vipa-state-{}", std::process::id()));
        let state = State::locate(Some(&directory)).unwrap();
        assert_eq!(state.adapters().unwrap(), Vec::<String>::new());
        state.create().unwrap();
        for path in [
            state.path("vipa0", Kept::Saved),
            state.path("vipa0", Kept::Socket),
            state.path("a.b", Kept::Flows),
            directory.join("vipa1.1.saved"),
            directory.join(format!("vipa2.{}.other", state.namespace())),
            directory.join("stray"),
        ] {
            std::fs::write(path, "").unwrap();
        }
        assert_eq!(state.adapters().unwrap(), ["a.b", "vipa0"]);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_lock_has_one_holder_and_goes_with_it() {
        let name = format!("t{}", std::process::id());
        assert!(Holder::of(&name).unwrap().is_none());
        let lock = Lock::acquire(&name).unwrap().unwrap();
        assert!(Lock::acquire(&name).unwrap().is_none());
        assert!(Holder::of(&name).unwrap().is_some());
        drop(lock);
        assert!(Lock::acquire(&name).unwrap().is_some());
    }
}
