//! Keeps the lowest file descriptors free for the TUN.
//!
//! The kernel closes a dead process's descriptors in the order of their numbers, and each packet socket takes
//! it tens of milliseconds. A TUN behind a dozen of them would hold its carrier, and with it all traffic, for a
//! quarter of a second; in front of them it goes at once.

use std::fs::File;
use std::io;

/// Descriptors that hold numbers for others.
#[derive(Debug)]
pub struct Reserve(Vec<File>);

impl Reserve {
    /// Takes the `count` lowest numbers that are free now.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn take(count: u8) -> io::Result<Reserve> {
        let files: io::Result<Vec<File>> = (0..count).map(|_| File::open("/dev/null")).collect();
        let mut files = files?;
        files.reverse();
        Ok(Reserve(files))
    }

    /// Frees the lowest of the numbers: what is opened next gets it. Without effect once all are used.
    pub fn give(&mut self) {
        drop(self.0.pop());
    }
}
