//! Gives a few descriptors high numbers, so that the kernel releases them first when the process is killed.
//!
//! A dying process's files are released one after the other, the highest number first (their release is
//! queued in the order of the numbers and done from the end), and each packet socket takes the kernel tens of
//! milliseconds. A TUN behind a dozen of them would keep its carrier, and with it all traffic, for a quarter of
//! a second. So the adapter's queues come last into the high numbers, after the guard's lifeline and the lock.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Numbers from here on are high. A forwarder with 64 NICs and one worker uses fewer below.
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

    #[test]
    fn what_is_opened_gets_a_high_number() {
        // Other tests of this process may close low ones in between.
        let number = || high(|| File::open("/dev/null")).expect("opened").as_raw_fd();
        assert!((0..100).any(|_| number() >= FLOOR));
    }
}
