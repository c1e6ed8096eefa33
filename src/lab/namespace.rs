//! A network namespace held by file descriptor alone: it goes when the last holder goes.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::panic;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use netlink_packet_route::RouteNetlinkMessage;

use super::Error;
use super::error::Step;
use super::netlink::Netlink;
use super::syscall::{self, Unshare};

/// A network of its own, with `lo` up. Clones are the same network.
#[derive(Clone)]
pub struct Namespace(Arc<Network>);

struct Network {
    name: String,
    file: Arc<OwnedFd>,
    netlink: Mutex<Netlink>,
    /// Carries device ioctls into this network; a Unix socket, so that nobody takes it for a server.
    control: UnixDatagram,
}

impl Namespace {
    /// A new network; `name` is for messages alone.
    ///
    /// # Errors
    /// Needs CAP_SYS_ADMIN (root, or after [`super::enter`]).
    pub fn new(name: &str) -> Result<Namespace, Error> {
        let make = || -> io::Result<Network> {
            syscall::unshare(Unshare::Network)?;
            Ok(Network {
                name: name.to_owned(),
                file: Arc::new(fs::File::open("/proc/thread-self/ns/net")?.into()),
                netlink: Mutex::new(Netlink::new()?),
                control: UnixDatagram::unbound()?,
            })
        };
        let network = joined(thread::scope(|scope| scope.spawn(make).join()))
            .step(|| format!("a new network namespace for {name} (needs root)"))?;
        let namespace = Namespace(Arc::new(network));
        namespace.link_up("lo")?;
        Ok(namespace)
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Runs `work` on a thread inside this network; sockets opened there stay in it.
    ///
    /// # Panics
    /// If `work` does, or if the kernel refuses the move (it does not, to the one who made the namespace).
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            self.join();
            work()
        };
        joined(thread::scope(|scope| scope.spawn(inside).join()))
    }

    /// Starts a thread that lives inside this network.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>, Error> {
        let namespace = self.clone();
        let inside = move || {
            namespace.join();
            work()
        };
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(inside)
            .step(|| format!("a thread in {}", self.0.name))
    }

    /// A command whose child runs inside this network and is killed when the thread that started it ends.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        syscall::tie_child(&mut command, Some(Arc::clone(&self.0.file)));
        command
    }

    /// Writes `value` to `/proc/sys/<path>` of this network (`net/ipv4/ip_forward`).
    ///
    /// # Errors
    /// When the kernel has no such setting or does not take the value.
    pub fn sysctl(&self, path: &str, value: impl fmt::Display) -> Result<(), Error> {
        let value = value.to_string();
        self.run(|| fs::write(format!("/proc/sys/{path}"), &value))
            .step(|| format!("{}: {path} = {value}", self.0.name))
    }

    /// The number that the system knows this network by.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn inode(&self) -> Result<u64, Error> {
        use std::os::unix::fs::MetadataExt;
        let path = format!("/proc/self/fd/{}", self.as_raw_fd());
        Ok(fs::metadata(path).step(|| format!("inode of {}", self.0.name))?.ino())
    }

    /// Moves the calling thread, one of our own, inside.
    fn join(&self) {
        syscall::join_network(self.0.file.as_fd())
            .unwrap_or_else(|e| panic!("cannot move into network {}: {e}", self.0.name));
    }

    /// One request to the kernel about this network.
    pub(super) fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.0.netlink.lock().unwrap_or_else(PoisonError::into_inner).request(message, flags)
    }

    /// A socket of this network for device ioctls.
    pub(super) fn control(&self) -> &UnixDatagram {
        &self.0.control
    }
}

impl AsRawFd for Namespace {
    /// The namespace itself, as setns(2) and IFLA_NET_NS_FD want it.
    fn as_raw_fd(&self) -> RawFd {
        self.0.file.as_raw_fd()
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Namespace").field(&self.0.name).finish()
    }
}

fn joined<T>(result: thread::Result<T>) -> T {
    result.unwrap_or_else(|cause| panic::resume_unwind(cause))
}
