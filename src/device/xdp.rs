//! Small frames past the kernel's stack (AF_XDP): a program in the NIC's XDP hook leads what is ours alone to a socket, before the
//! kernel has made a packet of it. All else, and all that is longer than the card's MTU, comes by the packet sockets as ever; so does
//! everything where XDP is refused. What is sent goes by the packet sockets in any case.

mod bpf;
mod program;
mod socket;

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

pub use program::Card;
use socket::Socket;

use crate::forward::claims::Claims;
use crate::forward::view::XdpHook;

/// Queues of a NIC that have a socket; what comes by others stays with the packet sockets.
const MOST_QUEUES: u32 = 64;

/// XDP on a device. Dropped, or its process killed, it is gone from there.
#[derive(Debug)]
pub struct Attachment {
    sockets: bpf::Sockets,
    queues: Vec<Queue>,
    /// The program at work, and where.
    link: Option<(XdpHook, bpf::Link)>,
}

/// A queue's socket, as the worker that serves it has it.
#[derive(Clone, Debug)]
pub struct Queue(Arc<Mutex<Socket>>);

impl Attachment {
    /// A socket for each of the device's queues, 8 MB of memory each. Nothing comes there before [`Attachment::take`].
    ///
    /// # Errors
    /// The kernel has no AF_XDP, there is no right to it (CAP_BPF), or another program has the queues ([`is_taken`]).
    pub fn new(ifindex: u32) -> io::Result<Attachment> {
        let sockets = bpf::Sockets::new(MOST_QUEUES)?;
        let mut queues = Vec::new();
        for queue in 0..MOST_QUEUES {
            let socket = match Socket::bind(ifindex, queue) {
                // There is no such queue.
                Err(error) if queue > 0 && error.raw_os_error() == Some(libc::EINVAL) => break,
                bound => bound?,
            };
            sockets.set(queue, socket.as_fd())?;
            queues.push(Queue(Arc::new(Mutex::new(socket))));
        }
        Ok(Attachment { sockets, queues, link: None })
    }

    /// From now on what is the forwarder's alone by these claims comes to the sockets; false if that is nothing, or too much to be told
    /// from all else.
    ///
    /// # Errors
    /// The device has no such hook, another program has it or the other one ([`is_taken`]), or there is no right to it.
    pub fn take(&mut self, card: Card, hook: XdpHook, claims: &Claims) -> io::Result<bool> {
        let sockets = self.sockets.as_fd().as_raw_fd();
        let Some(program) = program::program(card, hook, claims, sockets) else {
            self.link = None;
            return Ok(false);
        };
        let program = bpf::load(&program)?;
        match &self.link {
            Some((at, link)) if *at == hook => link.update(&program)?,
            _ => {
                self.link = None;
                self.link = Some((hook, bpf::Link::new(&program, card.ifindex, hook)?));
            }
        }
        Ok(true)
    }

    /// The queues' sockets, in order.
    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }
}

/// Is it another program that is in the way? For moments also one that was killed.
pub fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

/// What to do about a refusal.
pub fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EAFNOSUPPORT) => {
            "CAP_BPF, bpf(2) and AF_XDP are wanted: the README has the lines for the systemd unit"
        }
        Some(libc::ENOBUFS) => {
            "RLIMIT_MEMLOCK is too low (8 MB for each queue), or CAP_IPC_LOCK is wanted"
        }
        Some(libc::EOPNOTSUPP) => "the driver has no such hook; \"generic\" goes with every card",
        Some(libc::ERANGE) => "the driver wants a smaller MTU, of this end or of the other",
        Some(libc::ENOSPC) => "the card has fewer queues to receive than the other end has to send",
        _ if is_taken(error) => "another program has one of the card's hooks, or its queues",
        _ => "xdp = \"off\" does without",
    }
}

impl Queue {
    /// Hands each Ethernet frame that is there to `take`, as long as that wants more.
    pub fn receive(&self, take: impl FnMut(&[u8]) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).receive(take);
    }

    /// Frames that the socket had no room for since it was last asked.
    pub fn take_lost(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take_lost()
    }

    /// What to poll for frames.
    pub fn descriptor(&self) -> RawFd {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_raw_fd()
    }
}
