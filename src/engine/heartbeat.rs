//! The page on which each worker says "busy" or "polling", and which the guard reads.
//!
//! One page of shared memory (a sealed memfd), one cache line a worker, one word of it in use: 0 while
//! the worker polls, else the time at which it last showed that it gets on. A worker that polls may sleep
//! for hours; one that is busy stamps at least once a batch.
#![allow(unsafe_code)] // A shared mapping and the memfd under it; no crate of ours maps memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::forward::view::WorkerId;

/// Most workers that a page has room for.
pub const MAX_WORKERS: usize = 64;

const WORDS_PER_LINE: usize = 8; // a cache line of 64 bytes: no worker's stamp slows another's
const WORDS: usize = MAX_WORKERS * WORDS_PER_LINE;
const BYTES: usize = WORDS * size_of::<u64>();
const POLLING: u64 = 0;

/// The shared page of all workers' heartbeats.
#[derive(Clone, Debug)]
pub struct HeartbeatPage {
    mapping: Arc<Mapping>,
}

/// One worker's line of the page.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    mapping: Arc<Mapping>,
    word: usize,
}

/// A worker that is busy, as seen on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Which one.
    pub worker: WorkerId,
    /// Its last stamp, nanoseconds of CLOCK_MONOTONIC.
    pub since: u64,
}

#[derive(Debug)]
struct Mapping {
    words: &'static [AtomicU64], // unmapped by Drop: never handed out with this lifetime
    memfd: File,
}

impl HeartbeatPage {
    /// A new page on which every worker polls.
    pub fn new() -> io::Result<HeartbeatPage> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"vipa-heartbeat".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is new and nobody else's.
        let memfd = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        memfd.set_len(BYTES as u64)?;
        // Sealed against shrinking: no reader can meet SIGBUS.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: plain fcntl on a descriptor that we own.
        if unsafe { libc::fcntl(memfd.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Self::map(memfd)
    }

    /// The page behind a descriptor that was inherited: how the guard comes by it.
    pub(super) fn inherited(memfd: File) -> io::Result<HeartbeatPage> {
        if memfd.metadata()?.len() != BYTES as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no heartbeat page"));
        }
        Self::map(memfd)
    }

    fn map(memfd: File) -> io::Result<HeartbeatPage> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), BYTES, protection, libc::MAP_SHARED, memfd.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: BYTES bytes are mapped there, page-aligned, zeroed, and stay so until Mapping is
        // dropped; all access is atomic.
        let words = unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), WORDS) };
        Ok(HeartbeatPage { mapping: Arc::new(Mapping { words, memfd }) })
    }

    /// The line of `worker`, to be given to its thread. Panics on a worker beyond [`MAX_WORKERS`], which
    /// the configuration does not allow.
    pub fn worker(&self, worker: WorkerId) -> Heartbeat {
        let word = usize::from(worker.0) * WORDS_PER_LINE;
        assert!(word < WORDS, "at most {MAX_WORKERS} workers");
        Heartbeat { mapping: self.mapping.clone(), word }
    }

    /// Every worker that is busy now, with its last stamp.
    pub fn busy(&self) -> impl Iterator<Item = Busy> {
        self.mapping.words.iter().step_by(WORDS_PER_LINE).enumerate().filter_map(
            |(worker, word)| {
                let since = word.load(Ordering::Relaxed);
                (since != POLLING).then_some(Busy { worker: WorkerId(worker as u8), since })
            },
        )
    }

    /// How long ago the worker that is busy for longest gave its last stamp; zero if all poll.
    pub fn longest_silence(&self, now_ns: u64) -> Duration {
        let nanos = self.busy().map(|busy| now_ns.saturating_sub(busy.since)).max();
        Duration::from_nanos(nanos.unwrap_or(0))
    }
}

impl AsFd for HeartbeatPage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mapping.memfd.as_fd()
    }
}

impl Heartbeat {
    /// I work, and at `now_ns` (CLOCK_MONOTONIC, see [`monotonic_ns`]) I got on. To be called after each
    /// poll and at least once a batch.
    #[inline]
    pub fn busy(&self, now_ns: u64) {
        // Relaxed: the word says nothing about other memory.
        self.mapping.words[self.word].store(now_ns.max(1), Ordering::Relaxed);
    }

    /// I am about to wait for work.
    #[inline]
    pub fn polling(&self) {
        self.mapping.words[self.word].store(POLLING, Ordering::Relaxed);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; nobody can hold the words any more.
        unsafe { libc::munmap(self.words.as_ptr().cast_mut().cast(), BYTES) };
    }
}

/// CLOCK_MONOTONIC in nanoseconds: the clock of all stamps. It stands still while the machine sleeps.
#[inline]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_seen_through_the_inherited_descriptor() {
        let page = HeartbeatPage::new().unwrap();
        let seen = page.as_fd().try_clone_to_owned().unwrap();
        let seen = HeartbeatPage::inherited(File::from(seen)).unwrap();
        assert_eq!(seen.busy().count(), 0);
        let last = page.worker(WorkerId(63));
        page.worker(WorkerId(2)).busy(0);
        last.busy(1_000);
        let busy: Vec<_> = seen.busy().collect();
        assert_eq!(
            busy,
            [Busy { worker: WorkerId(2), since: 1 }, Busy { worker: WorkerId(63), since: 1_000 }]
        );
        assert_eq!(seen.longest_silence(5_001), Duration::from_nanos(5_000));
        last.polling();
        assert_eq!(seen.busy().count(), 1);
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let error = HeartbeatPage::inherited(File::open("/dev/null").unwrap()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
