//! The file in which the flow table lives, so that the next forwarder goes on where this one died.
//!
//! A file on tmpfs, mapped shared: its pages outlive the process, not the boot. One page of header, then for
//! each worker its words; what they mean is the flow table's business (`forward::flow`), which drops
//! entries that were torn by the death of their writer.
//!
//! ```text
//! word   0  magic, the last to be written: without it nothing else counts
//!        1  layout version of the words
//!      2–3  hash seed
//!      4–5  boot id
//!        6  inode of the network namespace
//!        7  workers
//!        8  words of each worker
//!     9–10  name of the adapter, filled up with zeroes
//!       11  checksum of 1 to 10
//! 4096 …    worker 0, worker 1 …, each from the beginning of a page
//! ```
//!
//! What does not fit (another layout, boot, namespace, number or size) is discarded, in words, and a new file
//! takes its place under the same name. The room is reserved at once: a full tmpfs is an error at start, not
//! a SIGBUS later. There is no lock: who calls holds the adapter's ([`super::lock`]). Only our own user can
//! open the file, and so nobody else can shorten it under the mapping.
#![allow(unsafe_code)] // Maps a file.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::forward::view::WorkerId;

const MAGIC: u64 = u64::from_be_bytes(*b"vipaflow");
const PAGE: usize = 4096;
/// A huge page, where pages have 4 KB.
const HUGE_PAGE: usize = 2 << 20;
const MADV_COLLAPSE: libc::c_int = 25; // linux/mman.h
const HEADER_WORDS: usize = 12;
const ADAPTER_WORDS: usize = 2; // IFNAMSIZ is 16

/// What the words are, as the caller's code has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Version of the words' meaning.
    pub version: u64,
    /// How many workers.
    pub workers: u8,
    /// Words of 8 bytes for each.
    pub words_per_worker: usize,
}

/// What became of the file that was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adopted {
    /// None was there.
    Fresh,
    /// Its words are in use.
    Adopted,
    /// It does not fit; the table starts empty.
    Discarded(Misfit),
}

/// Why a file was discarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Its writer died before the header was complete, or it is no flow file.
    Torn,
    /// Its size is not what its header, or ours, asks for.
    Size {
        /// Bytes it has.
        found: u64,
        /// Bytes it should have.
        wanted: u64,
    },
    /// Another binary wrote it.
    Version {
        /// Layout version found.
        found: u64,
        /// Layout version of this binary.
        wanted: u64,
    },
    /// It is of another boot of this machine, or of another machine.
    Boot,
    /// It is of another network namespace.
    Namespace,
    /// It is another adapter's.
    Adapter,
    /// It is of another number of workers.
    Workers {
        /// Workers found.
        found: u64,
        /// Workers wanted.
        wanted: u64,
    },
    /// It has another capacity.
    Capacity {
        /// Words of a worker found.
        found: u64,
        /// Words of a worker wanted.
        wanted: u64,
    },
    /// Others than our user could write to it.
    Writable,
}

/// Why there is no flow file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no regular file of our user: nothing that we touch.
    #[error("{}: {found}; wanted: a regular file of our own user, or none", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// No room for it.
    #[error("{}: no room for {bytes} bytes of flow table", path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Bytes wanted.
        bytes: u64,
    },
    /// Anything else that the kernel refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The file, mapped for as long as this process lives.
#[derive(Debug)]
pub struct FlowFile {
    words: &'static [AtomicU64],
    layout: Layout,
    seed: [u64; 2],
}

impl FlowFile {
    /// Maps the file at `path` for `adapter`, adopting what is in it if it fits, and making it anew if not.
    pub fn open(path: &Path, adapter: &str, layout: Layout) -> Result<(FlowFile, Adopted), Error> {
        let failed = |source| Error::Io { path: path.to_owned(), source };
        let identity = Identity::current(adapter, layout).map_err(failed)?;
        let misfit = match open_existing(path)? {
            None => None,
            Some(file) => match adopt(&file, &identity).map_err(|e| no_room(path, layout, e))? {
                Ok((words, seed)) => {
                    return Ok((FlowFile { words, layout, seed }, Adopted::Adopted));
                }
                Err(misfit) => Some(misfit),
            },
        };
        if misfit.is_some() {
            // Not shortened and filled again: should some process still map it, it keeps what it has.
            fs::remove_file(path).map_err(failed)?;
        }
        let (words, seed) = create(path, &identity).map_err(|e| no_room(path, layout, e))?;
        Ok((FlowFile { words, layout, seed }, misfit.map_or(Adopted::Fresh, Adopted::Discarded)))
    }

    /// The words of `worker`, zero in a new file. Live as long as the process: the mapping is never undone,
    /// since workers read it until the very end. Asked for twice they are the same words.
    pub fn words(&self, worker: WorkerId) -> Option<&'static [AtomicU64]> {
        if worker.0 >= self.layout.workers {
            return None;
        }
        let start = (PAGE + usize::from(worker.0) * self.layout.bytes_per_worker()) / 8;
        self.words.get(start..start + self.layout.words_per_worker)
    }

    /// The seed of the table's hash: secret, and the same for as long as the file is adopted.
    pub fn seed(&self) -> [u64; 2] {
        self.seed
    }
}

impl Layout {
    fn bytes_per_worker(self) -> usize {
        (self.words_per_worker * 8).next_multiple_of(PAGE)
    }

    fn bytes(self) -> usize {
        PAGE + usize::from(self.workers) * self.bytes_per_worker()
    }
}

/// All of the header that does not change from one start to the next.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    layout: Layout,
    boot: [u64; 2],
    namespace: u64,
    adapter: [u64; ADAPTER_WORDS],
}

impl Identity {
    fn current(adapter: &str, layout: Layout) -> io::Result<Identity> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let boot = u128::from_str_radix(&boot.trim().replace('-', ""), 16)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "boot_id is no UUID"))?;
        let mut name = [0; 8 * ADAPTER_WORDS];
        name.get_mut(..adapter.len())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "adapter name too long"))?
            .copy_from_slice(adapter.as_bytes());
        let name = u128::from_be_bytes(name);
        Ok(Identity {
            layout,
            boot: halves(boot),
            // Of this thread: a process may have threads in several.
            namespace: fs::metadata("/proc/thread-self/ns/net")?.ino(),
            adapter: halves(name),
        })
    }

    /// Words 1 to 11 of the header.
    fn header(&self, seed: [u64; 2]) -> [u64; HEADER_WORDS - 1] {
        let mut header = [0; HEADER_WORDS - 1];
        header[0] = self.layout.version;
        header[1..3].copy_from_slice(&seed);
        header[3..5].copy_from_slice(&self.boot);
        header[5] = self.namespace;
        header[6] = u64::from(self.layout.workers);
        header[7] = self.layout.words_per_worker as u64;
        header[8..10].copy_from_slice(&self.adapter);
        header[10] = checksum(&header[..10]);
        header
    }

    /// Does a file with this header fit? Its seed, if so. The version comes first: of another layout we know
    /// no more than that.
    fn fits(&self, words: &[AtomicU64]) -> Result<[u64; 2], Misfit> {
        let mut header = [0; HEADER_WORDS];
        for (to, from) in header.iter_mut().zip(words) {
            *to = from.load(Ordering::Relaxed);
        }
        fence(Ordering::Acquire);
        let [magic, header @ ..] = header;
        if magic != MAGIC || header[10] != checksum(&header[..10]) {
            return Err(Misfit::Torn);
        }
        let seed = [header[1], header[2]];
        let wanted = self.header(seed);
        if header[0] != wanted[0] {
            return Err(Misfit::Version { found: header[0], wanted: wanted[0] });
        }
        if header[3..5] != wanted[3..5] {
            return Err(Misfit::Boot);
        }
        if header[5] != wanted[5] {
            return Err(Misfit::Namespace);
        }
        if header[6] != wanted[6] {
            return Err(Misfit::Workers { found: header[6], wanted: wanted[6] });
        }
        if header[7] != wanted[7] {
            return Err(Misfit::Capacity { found: header[7], wanted: wanted[7] });
        }
        if header[8..10] != wanted[8..10] {
            return Err(Misfit::Adapter);
        }
        Ok(seed)
    }
}

/// Opens the file if there is one, and only if it is ours.
fn open_existing(path: &Path) -> Result<Option<File>, Error> {
    let foreign = |found: &str| Error::Foreign { path: path.to_owned(), found: found.to_owned() };
    let failed = |source| Error::Io { path: path.to_owned(), source };
    // O_NONBLOCK: not to be caught by a device or a FIFO of this name.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) => match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::NotFound, _) => return Ok(None),
            (_, Some(libc::ELOOP)) => return Err(foreign("a symbolic link")),
            (io::ErrorKind::IsADirectory, _) => return Err(foreign("a directory")),
            _ => return Err(failed(error)),
        },
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(foreign("no regular file"));
    }
    // SAFETY: no memory involved, cannot fail.
    let user = unsafe { libc::geteuid() };
    if metadata.uid() != user {
        return Err(foreign(&format!("a file of user {}", metadata.uid())));
    }
    Ok(Some(file))
}

type Mapped = (&'static [AtomicU64], [u64; 2]);

/// Maps the file if it fits.
fn adopt(file: &File, identity: &Identity) -> io::Result<Result<Mapped, Misfit>> {
    let metadata = file.metadata()?;
    if metadata.mode() & 0o077 != 0 {
        return Ok(Err(Misfit::Writable));
    }
    let (found, wanted) = (metadata.len(), identity.layout.bytes() as u64);
    if found < PAGE as u64 {
        return Ok(Err(Misfit::Size { found, wanted }));
    }
    let header = Mapping::new(file, PAGE)?;
    let seed = match identity.fits(header.words()) {
        Ok(seed) => seed,
        Err(misfit) => return Ok(Err(misfit)),
    };
    if found != wanted {
        return Ok(Err(Misfit::Size { found, wanted }));
    }
    reserve(file, 0..identity.layout.bytes())?; // it may have holes
    // As it is: connections wait for it.
    Ok(Ok((Mapping::at_huge_page(file, identity.layout.bytes())?.leak(), seed)))
}

/// Makes a new file; leaves none behind if that fails.
fn create(path: &Path, identity: &Identity) -> io::Result<Mapped> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    fill(&file, identity).inspect_err(|_| {
        let _ = fs::remove_file(path); // the error that is told is the first
    })
}

fn fill(file: &File, identity: &Identity) -> io::Result<Mapped> {
    let bytes = identity.layout.bytes();
    file.set_len(bytes as u64)?;
    // A huge page takes the place of one small page at least, and faster than of many.
    for start in (0..bytes).step_by(HUGE_PAGE) {
        reserve(file, start..start + PAGE)?;
    }
    let mapping = Mapping::at_huge_page(file, bytes)?;
    mapping.collapse();
    reserve(file, 0..bytes)?;
    let seed = random()?;
    let words = mapping.leak();
    for (word, value) in words[1..].iter().zip(identity.header(seed)) {
        word.store(value, Ordering::Relaxed);
    }
    words[0].store(MAGIC, Ordering::Release);
    Ok((words, seed))
}

/// Puts every page of these bytes of the file in place.
fn reserve(file: &File, bytes: Range<usize>) -> io::Result<()> {
    let (start, length) = (bytes.start as libc::off_t, bytes.len() as libc::off_t);
    loop {
        // SAFETY: no memory involved. Returns the error, does not set errno.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), start, length) } {
            0 => return Ok(()),
            libc::EINTR => {} // tmpfs gives up at any signal, and undoes what it did
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn random() -> io::Result<[u64; 2]> {
    let mut seed = [0u64; 2];
    let length = size_of_val(&seed);
    // SAFETY: writes `length` bytes to `seed`. So few are never cut short.
    let got = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), length, 0) };
    if got == length as isize { Ok(seed) } else { Err(io::Error::last_os_error()) }
}

fn no_room(path: &Path, layout: Layout, source: io::Error) -> Error {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::NoRoom { path, bytes: layout.bytes() as u64 }
        }
        _ => Error::Io { path, source },
    }
}

/// FNV-1a, 64 bits: it finds a torn header, no more is asked of it.
fn checksum(words: &[u64]) -> u64 {
    words.iter().flat_map(|word| word.to_ne_bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn halves(value: u128) -> [u64; 2] {
    [(value >> 64) as u64, value as u64]
}

/// A shared mapping of whole pages from the file's beginning.
struct Mapping {
    start: *mut AtomicU64,
    bytes: usize,
}

impl Mapping {
    /// The file must have `bytes` bytes.
    fn new(file: &File, bytes: usize) -> io::Result<Mapping> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        Mapping::made(start, bytes)
    }

    /// The same, beginning where a huge page may: those that the file has are mapped as such.
    fn at_huge_page(file: &File, bytes: usize) -> io::Result<Mapping> {
        // Room in which a huge page's beginning is found. The mapping takes its place there.
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address that the kernel chooses; nobody may read it.
        let room = unsafe {
            libc::mmap(ptr::null_mut(), bytes + HUGE_PAGE, libc::PROT_NONE, private, -1, 0)
        };
        let room = Mapping::made(room, bytes + HUGE_PAGE)?;
        let before = room.start.cast::<u8>().align_offset(HUGE_PAGE);
        let start = room.start.cast::<u8>().wrapping_add(before).cast::<libc::c_void>();
        let (protection, shared) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: takes the place of a part of `room`, which nothing but this function knows.
        let start = unsafe { libc::mmap(start, bytes, protection, shared, file.as_raw_fd(), 0) };
        let mapping = Mapping::made(start, bytes)?;
        // What is left of the room on both sides is address space alone.
        std::mem::forget(room);
        Ok(mapping)
    }

    /// Puts its pages together to huge ones as far as the kernel has them, whatever the tmpfs was mounted with (Linux 6.1): where each look-up
    /// is of another page, finding a small one costs as much as the read.
    fn collapse(&self) {
        let bytes = self.bytes / HUGE_PAGE * HUGE_PAGE;
        // SAFETY: whole pages of this mapping; what they hold stays as it is.
        unsafe { libc::madvise(self.start.cast(), bytes, MADV_COLLAPSE) };
    }

    /// What mmap returned.
    fn made(start: *mut libc::c_void, bytes: usize) -> io::Result<Mapping> {
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { start: start.cast(), bytes })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `bytes` bytes are mapped, page-aligned, backed by the file, for as long as `self` lives;
        // all access is atomic, also that of another process.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes / 8) }
    }

    fn leak(self) -> &'static [AtomicU64] {
        // SAFETY: as in `words`, and never unmapped from here on.
        let words = unsafe { std::slice::from_raw_parts(self.start, self.bytes / 8) };
        std::mem::forget(self);
        words
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; what `words` lent has ended.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::Torn => f.write_str("its header is torn"),
            Misfit::Size { found, wanted } => write!(f, "it has {found} bytes, not {wanted}"),
            Misfit::Version { found, wanted } => {
                let age = if found > wanted { "a newer" } else { "an older" };
                write!(f, "it was written by {age} version (layout {found}, not {wanted})")
            }
            Misfit::Boot => f.write_str("it was written before this boot"),
            Misfit::Namespace => f.write_str("it is of another network namespace"),
            Misfit::Adapter => f.write_str("it is another adapter's"),
            Misfit::Workers { found, wanted } => {
                write!(f, "it is for {found} workers, not {wanted}")
            }
            Misfit::Capacity { found, wanted } => {
                write!(f, "it has {found} words for a worker, not {wanted}")
            }
            Misfit::Writable => f.write_str("others could write to it"),
        }
    }
}

#[cfg(test)]
mod tests;
