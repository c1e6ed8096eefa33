//! Frames that wait: for a next hop's MAC address, for what their socket knows, until the egress hold knows their
//! flow, or for the first fragment of their datagram. A few for each cause, not many in all, none for long.

use crate::forward::flow::{Key, Millis};
use crate::forward::frame::Frame;
use crate::forward::socket::Socket;
use crate::forward::verdict::Wait;

/// Frames kept in all.
const CAPACITY: usize = 256;
/// Frames kept for one cause: as many as the kernel's own neighbour queue held for long.
const PER_CAUSE: usize = 16;
/// Later fragments kept of one datagram: it has 45 of an Ethernet's size at most.
const PER_DATAGRAM: usize = 64;
/// How long a frame may wait, in milliseconds; the kernel's three probes take three seconds.
pub const PATIENCE: u64 = 3_000;

/// A frame that waits.
#[derive(Debug)]
pub struct Waiter {
    /// The frame, untouched.
    pub frame: Frame,
    /// For what.
    pub cause: Wait,
    /// Since when.
    pub since: Millis,
}

/// The queue.
#[derive(Debug, Default)]
pub struct Waiting {
    queue: Vec<Waiter>,
}

impl Waiting {
    /// Does none wait?
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Does a later fragment wait for its first?
    pub fn has_fragments(&self) -> bool {
        self.queue.iter().any(|waiter| matches!(waiter.cause, Wait::FirstFragment(_)))
    }

    /// Keeps a frame; says whether there was room.
    pub fn push(&mut self, waiter: Waiter) -> bool {
        let same = self.queue.iter().filter(|other| other.cause == waiter.cause).count();
        let most = match waiter.cause {
            Wait::FirstFragment(_) => PER_DATAGRAM,
            Wait::Neighbour { .. } | Wait::Hold(_) | Wait::Socket(_) => PER_CAUSE,
        };
        let has_room = same < most && self.queue.len() < CAPACITY;
        if has_room {
            self.queue.push(waiter);
        }
        has_room
    }

    /// Tells the frames that wait for it what is known of their socket.
    pub fn answer(&mut self, key: &Key, socket: &Socket) {
        for waiter in self.queue.iter_mut().filter(|w| w.cause == Wait::Socket(*key)) {
            waiter.frame.socket.clone_from(socket);
        }
    }

    /// Takes all of them, in the order in which they came.
    pub fn take(&mut self) -> Vec<Waiter> {
        std::mem::take(&mut self.queue)
    }
}
