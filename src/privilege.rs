//! What `vipa run` may and may not do here, found out before anything is changed.
#![allow(unsafe_code)] // access(2): whether a path can be written to, asked without writing.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::config::Config;

/// Bits of CapEff, capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_NET_BIND_SERVICE: u32 = 10;

/// What `vipa run` lacks for `config` with its state in `state`, in words for one line; empty: nothing.
pub fn missing(config: &Config, state: &Path) -> Vec<&'static str> {
    let mut missing = missing_for_forwarding(state);
    if config.rip.is_some() && !has(CAP_NET_BIND_SERVICE) {
        missing.push("CAP_NET_BIND_SERVICE for [rip]");
    }
    missing
}

fn has(capability: u32) -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective_capabilities(&status) & (1 << capability) != 0
}

fn missing_for_forwarding(state: &Path) -> Vec<&'static str> {
    let checks = [
        (has(CAP_NET_ADMIN), "CAP_NET_ADMIN"),
        (has(CAP_NET_RAW), "CAP_NET_RAW"),
        (can_open_tun(), "access to /dev/net/tun"),
        (
            may_write(Path::new("/proc/sys/net/ipv4/conf/all/rp_filter")),
            "write access to /proc/sys/net",
        ),
        (may_make(state), "a state directory it can write to"),
    ];
    checks.into_iter().filter(|(is_there, _)| !is_there).map(|(_, what)| what).collect()
}

/// The line that refuses to run without `missing`.
pub fn refusal(missing: &[&str]) -> String {
    format!("vipa run needs {}", missing.join(", "))
}

fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Opening it makes no device yet.
fn can_open_tun() -> bool {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").is_ok()
}

/// Can files be made in the directory, or it be made where it lacks?
fn may_make(directory: &Path) -> bool {
    let existing = directory.ancestors().find(|ancestor| ancestor.exists());
    existing.is_some_and(|ancestor| ancestor.is_dir() && may_write(ancestor))
}

/// May this process (its effective user, its capabilities, this mount) write to what stands there?
fn may_write(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: `path` is a C string and lives.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::W_OK, libc::AT_EACCESS) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        let status = "Name:\tvipa\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000003000\n";
        assert_eq!(effective_capabilities(status), 1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW);
        for nonsense in ["", "CapEff:", "CapEff:\tall\n"] {
            assert_eq!(effective_capabilities(nonsense), 0);
        }
    }

    #[test]
    fn a_state_directory_may_be_missing_but_not_impossible() {
        assert!(may_make(&std::env::temp_dir()));
        assert!(may_make(&std::env::temp_dir().join("vipa-not-there/nor-this")));
        assert!(!may_make(Path::new("/dev/null/state")));
    }

    /// Takes all capabilities from this thread.
    fn give_up_capabilities() {
        const VERSION_3: u32 = 0x2008_0522;
        let header = [VERSION_3, 0];
        let none = [0u32; 6];
        // SAFETY: both live, and are as long as version 3 has them.
        let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
        assert_eq!(result, 0);
    }

    #[test]
    fn a_thread_without_capabilities_is_told_which_it_lacks() {
        let state = std::env::temp_dir();
        assert_eq!(missing_for_forwarding(&state), [""; 0]);
        let lacking = std::thread::spawn(move || {
            give_up_capabilities();
            missing_for_forwarding(&state)
        });
        assert!(lacking.join().unwrap().starts_with(&["CAP_NET_ADMIN", "CAP_NET_RAW"]));
    }

    #[test]
    fn all_that_is_missing_is_named_in_one_line() {
        let line = refusal(&["CAP_NET_ADMIN", "access to /dev/net/tun"]);
        assert_eq!(line, "vipa run needs CAP_NET_ADMIN, access to /dev/net/tun");
    }
}
