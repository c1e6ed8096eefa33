//! An AF_XDP socket that receives: one queue of a device, in memory that the kernel writes frames to (if_xdp.h).
#![allow(unsafe_code)] // AF_XDP exists as C calls and memory shared with the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Room for a frame.
const CHUNK: u32 = 2048;
/// Frames that the kernel may hold for us: as many bytes as a packet socket has.
const CHUNKS: u32 = 4096;

/// The socket and its memory.
#[derive(Debug)]
pub(super) struct Socket {
    socket: OwnedFd,
    /// Chunks that the kernel may fill; each element is where one lies in `memory`.
    fill: Ring<u64>,
    received: Ring<libc::xdp_desc>,
    memory: Mapping,
    /// Frames lost, as of when that was last asked.
    lost: u64,
}

impl Socket {
    /// Bound to a queue of the device; it hears nothing until a program leads frames to it. One socket has a queue, at a time.
    pub(super) fn bind(ifindex: u32, queue: u32) -> io::Result<Socket> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::socket(libc::AF_XDP, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let memory = Mapping::new((CHUNK * CHUNKS) as usize, None)?;
        let region = libc::xdp_umem_reg {
            addr: memory.start.as_ptr() as u64,
            len: memory.length as u64,
            chunk_size: CHUNK,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set(&socket, libc::XDP_UMEM_REG, &region)?;
        set(&socket, libc::XDP_UMEM_FILL_RING, &CHUNKS)?;
        // Nothing is sent this way, but there has to be one.
        set(&socket, libc::XDP_UMEM_COMPLETION_RING, &1_u32)?;
        set(&socket, libc::XDP_RX_RING, &CHUNKS)?;
        // SAFETY: so it says in if_xdp.h.
        let offsets: libc::xdp_mmap_offsets = unsafe { get(&socket, libc::XDP_MMAP_OFFSETS)? };
        let fill_at = libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t;
        let mut fill = Ring::map(&socket, &offsets.fr, fill_at)?;
        let received = Ring::map(&socket, &offsets.rx, libc::XDP_PGOFF_RX_RING)?;
        (0..CHUNKS).for_each(|chunk| fill.put(u64::from(chunk * CHUNK)));
        fill.publish();
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            // Every driver can.
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: ifindex,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is a sockaddr_xdp of `length` bytes and lives through the call.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Socket { socket, fill, received, memory, lost: 0 })
    }

    /// Frames that there was no room for since it was last asked.
    pub(super) fn take_lost(&mut self) -> u64 {
        // SAFETY: so it says in if_xdp.h.
        let counts = unsafe { get::<libc::xdp_statistics>(&self.socket, libc::XDP_STATISTICS) };
        let lost = counts.map_or(self.lost, |counts| counts.rx_dropped + counts.rx_ring_full);
        lost.saturating_sub(std::mem::replace(&mut self.lost, lost))
    }

    /// Hands each frame that is there to `take`, as long as that wants more, and its memory back to the kernel.
    pub(super) fn receive(&mut self, mut take: impl FnMut(&[u8]) -> bool) {
        let mut is_wanted = true;
        while is_wanted && let Some(frame) = self.received.get() {
            let (at, length) = (frame.addr as usize, frame.len as usize);
            is_wanted = take(self.memory.bytes(at, length));
            self.fill.put(frame.addr - frame.addr % u64::from(CHUNK));
        }
        self.received.release();
        self.fill.publish();
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A ring of [`CHUNKS`] elements that the kernel is at the other end of.
#[derive(Debug)]
struct Ring<T> {
    mapping: Mapping,
    producer: usize,
    consumer: usize,
    elements: usize,
    /// Our end.
    at: u32,
    /// The other end, as it was when we last looked.
    seen: u32,
    kind: std::marker::PhantomData<T>,
}

impl<T: Copy> Ring<T> {
    fn map(
        socket: &OwnedFd,
        offsets: &libc::xdp_ring_offset,
        place: libc::off_t,
    ) -> io::Result<Ring<T>> {
        let elements = offsets.desc as usize;
        let length = elements + CHUNKS as usize * size_of::<T>();
        Ok(Ring {
            mapping: Mapping::new(length, Some((socket.as_raw_fd(), place)))?,
            producer: offsets.producer as usize,
            consumer: offsets.consumer as usize,
            elements,
            at: 0,
            seen: 0,
            kind: std::marker::PhantomData,
        })
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the kernel says that a ring's index lies there, aligned, in memory that lives as long as we do.
        unsafe { self.mapping.start.byte_add(offset).cast().as_ref() }
    }

    fn element(&self, at: u32) -> NonNull<T> {
        let offset = self.elements + (at % CHUNKS) as usize * size_of::<T>();
        // SAFETY: as many elements as we asked for lie there.
        unsafe { self.mapping.start.byte_add(offset).cast() }
    }

    /// The next one that the kernel has put there.
    fn get(&mut self) -> Option<T> {
        if self.at == self.seen {
            self.seen = self.index(self.producer).load(Ordering::Acquire);
        }
        // SAFETY: what lies before the producer's index was written before it, and stays until it is released.
        let element = (self.at != self.seen).then(|| unsafe { self.element(self.at).read() })?;
        self.at = self.at.wrapping_add(1);
        Some(element)
    }

    /// What was got is the kernel's to overwrite.
    fn release(&self) {
        self.index(self.consumer).store(self.at, Ordering::Release);
    }

    /// Puts one there. The ring has room for every chunk that there is.
    fn put(&mut self, element: T) {
        // SAFETY: no more is put there than there are chunks, so this place is ours.
        unsafe { self.element(self.at).write(element) };
        self.at = self.at.wrapping_add(1);
    }

    /// What was put is the kernel's.
    fn publish(&self) {
        self.index(self.producer).store(self.at, Ordering::Release);
    }
}

/// Memory of our own, or of the socket.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: nobody else has the memory; the kernel's part in it is not bound to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(length: usize, of: Option<(RawFd, libc::off_t)>) -> io::Result<Mapping> {
        let (fd, offset, flags) = match of {
            None => (-1, 0, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
            Some((fd, offset)) => (fd, offset, libc::MAP_SHARED | libc::MAP_POPULATE),
        };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel finds a place where nothing is.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, offset) };
        match NonNull::new(start.cast::<u8>()) {
            Some(place) if start != libc::MAP_FAILED => Ok(Mapping { start: place, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What the kernel has written; nothing, if that lies elsewhere.
    fn bytes(&self, at: usize, length: usize) -> &[u8] {
        if at.checked_add(length).is_none_or(|end| end > self.length) {
            return &[];
        }
        // SAFETY: within the mapping; the kernel writes to a chunk only while it is in the fill ring, and this one is not.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(at), length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrowed from it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// A structure of the kernel's, of numbers alone.
///
/// # Safety
/// The option yields a `T`, and all bytes zero are one.
unsafe fn get<T>(socket: &OwnedFd, option: libc::c_int) -> io::Result<T> {
    // SAFETY: the caller says so.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut length = size_of::<T>() as libc::socklen_t;
    let (fd, place) = (socket.as_raw_fd(), (&raw mut value).cast());
    // SAFETY: `value` is writable for `length` bytes.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_XDP, option, place, &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let (fd, length) = (socket.as_raw_fd(), size_of::<T>() as libc::socklen_t);
    // SAFETY: `value` is readable for `length` bytes.
    let result =
        unsafe { libc::setsockopt(fd, libc::SOL_XDP, option, (&raw const *value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
