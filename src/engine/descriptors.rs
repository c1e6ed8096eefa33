//! Descriptors of the process: how many it may have, whose they are when they are few, and who gets which numbers.
//!
//! `vipa run` raises the soft limit (RLIMIT_NOFILE) to the hard one; programs that status objects start get back what was found. What
//! the forwarder may come to need, for NICs that come back and clients of the control socket, stays free of status objects: numbers are
//! given from the lowest on, so these may have none above the limit less that many.
//!
//! A few descriptors get high numbers, so that the kernel releases them first when the process is killed: a dying process's files
//! are released one after the other, the highest number first (their release is queued in the order of the numbers and done from the
//! end), and each packet socket takes the kernel tens of milliseconds. A TUN behind a dozen of them would keep its carrier, and with it
//! all traffic, for a quarter of a second. So the adapter's queues come last into the high numbers, after the guard's lifeline and the
//! lock.
#![allow(unsafe_code)] // getrlimit, setrlimit and prlimit.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Child;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::balance::status::Kind;
use crate::config::Config;

/// Of the process itself: files, channels, the guard, clients of the control socket.
const BASE: u64 = 64;
/// A worker's, beside its NICs.
const EACH_WORKER: u64 = 6;
/// Of a NIC for each worker: two packet sockets to send and two to hear, and as many again while they are opened anew.
const EACH_PORT: u64 = 8;
/// Of a NIC for RIP, announcements and the watch over paths.
const EACH_NIC: u64 = 8;
/// Of a NIC with XDP: a socket a queue, the program and what belongs to it.
const EACH_XDP: u64 = 64 + 4;
/// Of a program while it runs.
const PROGRAM: u64 = 4;

/// The soft limit that the process was started with.
static FOUND: OnceLock<u64> = OnceLock::new();
/// Descriptors that are the forwarder's alone.
static RESERVED: AtomicU64 = AtomicU64::new(0);

/// RLIMIT_NOFILE: one more than the highest number that a descriptor may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What holds.
    pub soft: u64,
    /// What it may be raised to.
    pub hard: u64,
}

/// Descriptors that a configuration can come to need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// The forwarder's.
    pub forwarder: u64,
    /// Those of status objects.
    pub status: u64,
}

impl Limit {
    /// That of this process.
    pub fn of_process() -> Limit {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` lives and is what the call fills. It fails for no resource that exists.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
        Limit { soft: limit.rlim_cur, hard: limit.rlim_max }
    }

    fn set(self) -> io::Result<()> {
        let limit = libc::rlimit { rlim_cur: self.soft, rlim_max: self.hard };
        // SAFETY: `limit` lives.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Need {
    /// What `config` can come to need.
    pub fn of(config: &Config) -> Need {
        let workers = u64::from(config.forwarder.workers);
        let nics = config.nics.len() as u64;
        let xdp = config.nics.iter().filter(|nic| nic.xdp.is_some()).count() as u64 * EACH_XDP;
        let each = |kind: &Kind| if matches!(kind, Kind::Exec { .. }) { PROGRAM } else { 1 };
        let status = config.services.iter().map(|service| {
            let one: u64 = service.statuses.iter().map(|status| each(&status.kind)).sum();
            one * service.servers.len() as u64
        });
        Need {
            forwarder: BASE + workers * EACH_WORKER + nics * (workers * EACH_PORT + EACH_NIC) + xdp,
            status: status.sum(),
        }
    }

    /// What is wrong with a hard limit, if it is too low for that. What the forwarder has open counts beside what stays free for it.
    pub fn shortage(self, hard: u64) -> Option<String> {
        let all = 2 * self.forwarder + self.status;
        (all > hard).then(|| {
            format!(
                "{all} descriptors may be needed, {} of them by status objects, and the hard limit (RLIMIT_NOFILE) is {hard}: \
                 status objects that get none fail",
                self.status
            )
        })
    }
}

/// Raises the soft limit to the hard one.
///
/// # Errors
/// It stays as it is.
pub fn raise() -> io::Result<()> {
    let limit = Limit::of_process();
    FOUND.get_or_init(|| limit.soft);
    Limit { soft: limit.hard, ..limit }.set()
}

/// From now on the forwarder needs so many: status objects leave them alone.
pub fn reserve(need: Need) {
    RESERVED.store(need.forwarder, Ordering::Relaxed);
}

/// A program that was started has the soft limit that this process was started with. (It is given to the child, and not taken by it
/// before it becomes the program: for that the whole process would be forked.)
pub fn as_found(child: &Child) {
    let limit = Limit::of_process();
    let Some(soft) = FOUND.get().copied().filter(|found| *found < limit.soft) else { return };
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: limit.hard };
    // SAFETY: `limit` lives, and nothing is written. A child that has ended is still ours: its number is nobody else's yet.
    unsafe {
        libc::prlimit(child.id() as i32, libc::RLIMIT_NOFILE, &raw const limit, ptr::null_mut())
    };
}

/// May a status object have one more?
///
/// # Errors
/// None is left for it; the words say so.
pub fn for_status() -> Result<(), String> {
    let reserved = RESERVED.load(Ordering::Relaxed);
    if reserved == 0 {
        return Ok(());
    }
    let soft = Limit::of_process().soft;
    // The one that would come next.
    let next = io::stdin().as_fd().try_clone_to_owned().map(|next| next.as_raw_fd() as u64);
    if next.is_ok_and(|next| next < soft.saturating_sub(reserved)) {
        return Ok(());
    }
    Err(format!(
        "no descriptor is left for it (RLIMIT_NOFILE is {soft}, {reserved} are the forwarder's)"
    ))
}

/// Numbers from here on are high. A forwarder with 64 NICs and one worker uses fewer below, if XDP has no more than some dozens of queues.
const FLOOR: i32 = 400;

/// Calls `open` while all numbers below the floor are taken. Where the process may not have that many
/// descriptors (RLIMIT_NOFILE) the numbers are as they come.
///
/// # Errors
/// Those of `open`.
pub fn high<T>(open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut fillers = Vec::new();
    while let Ok(filler) = File::open("/dev/null") {
        if filler.as_raw_fd() >= FLOOR {
            drop(filler);
            let opened = open();
            drop(fillers);
            return opened;
        }
        fillers.push(filler);
    }
    drop(fillers);
    open()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Need {
        let path = std::path::Path::new("vipa.toml");
        let config = Config::parse(text, path).expect("it is right").0;
        Need::of(&config)
    }

    #[test]
    fn need_grows_with_workers_nics_servers_and_status_objects() {
        let nics = "[[nic]]\nname = \"eth1\"\n[[nic]]\nname = \"eth2\"\n";
        let head = "[virtual]\nname = \"vipa0\"\naddresses = [\"203.0.113.10\"]\n";
        let few = of(&format!("{head}{nics}"));
        assert_eq!(few, Need { forwarder: 64 + 6 + 2 * 16, status: 0 });
        let workers = of(&format!("{head}[forwarder]\nworkers = 4\n{nics}"));
        assert_eq!(workers, Need { forwarder: 64 + 24 + 2 * 40, status: 0 });
        let service = "[[service]]\nname = \"web\"\naddress = \"203.0.113.10:80\"\nprotocol = \"tcp\"\npolicy = \"closest\"\n\
             [[service.status]]\nname = \"hops\"\nrole = \"distance\"\nkind = \"hops\"\n\
             [[service.status]]\nname = \"own\"\nkind = \"exec\"\ncommand = [\"/bin/true\"]\n\
             [[service.server]]\nname = \"a\"\naddress = \"10.2.0.1:80\"\n\
             [[service.server]]\nname = \"b\"\naddress = \"10.2.0.2:80\"\n";
        let served = of(&format!("{head}{nics}{service}"));
        assert_eq!(served, Need { status: 2 * 5, ..few });
        assert_eq!(served.shortage(214), None);
        let told = served.shortage(213).expect("one is missing");
        assert!(told.starts_with("214 descriptors") && told.contains("is 213"), "{told}");
    }

    #[test]
    fn what_is_opened_gets_a_high_number() {
        // Other tests of this process may close low ones in between.
        let number = || high(|| File::open("/dev/null")).expect("opened").as_raw_fd();
        assert!((0..100).any(|_| number() >= FLOOR));
    }
}
