//! The step into a private world: own network, own mounts, an empty `/run`.

use std::fs::{self, OpenOptions};
use std::io;

use super::Error;
use super::error::Step;
use super::syscall::{self, Unshare};

/// Gives this process a network and mounts of its own, with an empty `/run`: as root directly, otherwise
/// in a user namespace, where the system lets it. To be called first, before any thread is started.
///
/// # Errors
/// [`Error::Missing`] says in one line what the system lacks.
pub fn enter() -> Result<(), Error> {
    let threads = fs::read_dir("/proc/self/task").step(|| "/proc/self/task".to_owned())?.count();
    if threads > 1 {
        return Err(Error::Missing(format!("{threads} threads run already; it must be the first")));
    }
    let (user, group) = syscall::effective_ids();
    match syscall::unshare(Unshare::NetworkAndMounts) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => become_root_of_our_own(user, group)?,
        Err(e) => return Err(missing("network and mount namespaces", &e)),
    }
    syscall::make_mounts_private()
        .and_then(|()| syscall::mount_tmpfs(c"/run"))
        .map_err(|e| missing("a private mount on /run (CAP_SYS_ADMIN)", &e))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map_err(|e| missing("/dev/net/tun, readable and writable", &e))?;
    Ok(())
}

/// A user namespace in which we are root; only this user and group exist there.
fn become_root_of_our_own(user: u32, group: u32) -> Result<(), Error> {
    syscall::unshare(Unshare::All)
        .map_err(|e| missing("root (or user namespaces for everyone)", &e))?;
    fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {user} 1")))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {group} 1")))
        .map_err(|e| missing("root (or a user namespace that may map its users)", &e))
}

fn missing(what: &str, error: &io::Error) -> Error {
    Error::Missing(format!("it needs {what}: {error}"))
}
