//! Frames that wait: for a next hop's MAC address, for what their socket knows, until the egress hold knows their
//! flow, or for the first fragment of their datagram. A few for each cause, not many in all, none for long.

use crate::forward::flow::{Key, Millis};
use crate::forward::frame::Frame;
use crate::forward::socket::Socket;
use crate::forward::verdict::Wait;

/// Frames kept in all.
const CAPACITY: usize = 256;
/// Frames kept for one next hop: many clients may turn to a new server at once. (The kernel keeps about a hundred.)
const PER_NEIGHBOUR: usize = 96;
/// Frames kept for next hops in all: a scan of a subnet leaves room for other causes.
const NEIGHBOURS: usize = 192;
/// Frames kept for another cause: of one flow.
const PER_FLOW: usize = 16;
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
            Wait::Neighbour { .. } => PER_NEIGHBOUR,
            Wait::Hold(_) | Wait::Socket(_) => PER_FLOW,
        };
        let is_for_hop = |waiter: &Waiter| matches!(waiter.cause, Wait::Neighbour { .. });
        let is_crowded = is_for_hop(&waiter)
            && self.queue.iter().filter(|other| is_for_hop(other)).count() >= NEIGHBOURS;
        let has_room = same < most && !is_crowded && self.queue.len() < CAPACITY;
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::forward::flow::Side;
    use crate::forward::frame::Ingress;
    use crate::forward::rewrite::Endpoint;
    use crate::forward::view::NicId;
    use crate::wire::offload::Offload;

    #[test]
    fn first_packets_of_many_clients_wait_for_a_new_server_and_leave_room_for_other_next_hops() {
        let mut waiting = Waiting::default();
        let mut taken = |last: u8| {
            let address = IpAddr::from([10, 0, 0, last]);
            let frame = Frame::holding(&[0; 40], Offload::default(), Ingress::Tun);
            let cause = Wait::Neighbour { nic: NicId(0), address };
            waiting.push(Waiter { frame, cause, since: Millis(0) })
        };
        assert_eq!((0..200).filter(|_| taken(1)).count(), 96);
        assert_eq!((0..64).filter(|_| taken(2)).count(), 64);
        assert!((0..64).any(|_| taken(3)));
        assert!(!taken(1));
        assert_eq!((4..250).filter(|last| taken(*last)).count(), 31, "a scan: 192 in all");
        let frame = Frame::holding(&[0; 40], Offload::default(), Ingress::Tun);
        let one = Endpoint { address: IpAddr::from([10, 0, 0, 1]), port: 1 };
        let cause = Wait::Socket(Key::new(one, one, 6, Side::Tun));
        assert!(waiting.push(Waiter { frame, cause, since: Millis(0) }), "another cause");
    }
}
