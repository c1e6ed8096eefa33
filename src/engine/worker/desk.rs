//! What receiving, sending and waiting need of a worker, apart from the frames: one device's part of a turn, and what is told to the router.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::{BATCH, RouterHandle};
use crate::device::fallback::{Outlet, Sent};
use crate::device::{Device, ReceiveError};
use crate::engine::busy_poll::BusyPoll;
use crate::engine::heartbeat::Heartbeat;
use crate::engine::message::{HeldFlow, Request};
use crate::engine::statistics::WorkerStatistics;
use crate::engine::waiting::{Waiter, Waiting};
use crate::forward::flow::{Key, Millis, Rewritten, Side};
use crate::forward::frame::Frame;
use crate::forward::pipeline::State;
use crate::forward::preferred::{PreferredTable, ServiceId};
use crate::forward::rewrite::Endpoint;
use crate::forward::verdict::{DropReason, Verdict, Wait};
use crate::forward::view::NicId;
use crate::log::limited;
use crate::wire::ethernet::MacAddr;
use crate::wire::ip;

/// A batch ends early when it holds this many bytes: what it reads should still be in the cache when it sends.
const BATCH_BYTES: usize = 192 << 10;

/// A device and whether it may have frames.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) outlet: Outlet,
    pub(super) descriptors: Vec<RawFd>,
    pub(super) is_ready: bool,
}

/// What sending and waiting need, apart from the frames.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) state: State,
    pub(super) router: RouterHandle,
    pub(super) statistics: Arc<WorkerStatistics>,
    pub(super) heartbeat: Heartbeat,
    pub(super) retired: Sender<Box<dyn Device>>,
    pub(super) scratch: Frame,
    pub(super) waiting: Waiting,
    pub(super) seen_generation: u32,
    pub(super) seen_preferred: u32,
    /// Dead servers' flows are looked for from this place of the flow table on.
    pub(super) burial: Option<u32>,
    pub(super) swept: Millis,
    /// Services that are flooded, as was told last.
    pub(super) flooded: Vec<ServiceId>,
    pub(super) next_nic: usize,
    pub(super) busy: BusyPoll,
    pub(super) now: Millis,
}

pub(super) struct Received {
    pub(super) count: usize,
    pub(super) bytes: usize,
    pub(super) outcome: Outcome,
}

pub(super) enum Outcome {
    Going,
    Gone,
}

impl Desk {
    pub(super) fn drop(&self, reason: DropReason) {
        self.statistics.count_drop(reason);
    }

    /// Receives a batch from a device.
    pub(super) fn receive(
        &self,
        nic: Option<NicId>,
        slot: &mut Slot,
        frames: &mut [Frame],
    ) -> Received {
        let mut count = 0;
        let mut bytes = 0;
        let mut refused = 0;
        let mut outcome = Outcome::Going;
        while count < frames.len() && bytes < BATCH_BYTES && refused < BATCH {
            let mut refuse = |error: io::Error| {
                refused += 1;
                self.receive_error(nic, &error);
            };
            match slot.outlet.device.receive_some(&mut frames[count..], &mut refuse) {
                Ok(came) => {
                    let of = &frames[count..count + came];
                    bytes += of.iter().map(|frame| frame.packet().len()).sum::<usize>();
                    count += came;
                }
                Err(ReceiveError::Empty) => {
                    slot.is_ready = false;
                    break;
                }
                Err(ReceiveError::Refused(error)) => refuse(error),
                Err(ReceiveError::Failed(error)) => {
                    tracing::warn!(?nic, %error, "a device is gone");
                    outcome = Outcome::Gone;
                    break;
                }
            }
        }
        let traffic = match nic {
            None => &self.statistics.from_tun,
            Some(nic) => &self.statistics.nic(nic).received,
        };
        traffic.frames.add(count as u64);
        traffic.bytes.add(bytes as u64);
        Received { count, bytes, outcome }
    }

    pub(super) fn receive_error(&self, nic: Option<NicId>, error: &io::Error) {
        match nic {
            None => self.statistics.tun_receive_errors.add(1),
            Some(nic) => {
                self.statistics.nic(nic).receive_errors.add(1);
                if is_gone(error) {
                    self.router.ask(Request::Suspect(nic));
                }
            }
        }
    }

    /// Sends the first of `frames`, those that leave by this NIC one after the other; how many went. The next one has to go by itself.
    pub(super) fn transmit_some(
        &mut self,
        nic: NicId,
        slot: &mut Slot,
        frames: &mut [Frame],
    ) -> usize {
        let mut to = [MacAddr::default(); BATCH];
        let mut count = 0;
        for (frame, to) in frames.iter().zip(&mut to) {
            match frame.verdict {
                Verdict::Transmit { nic: by, destination }
                    if by == nic && frame.offload.gso.is_none() =>
                {
                    *to = destination;
                }
                _ => break,
            }
            count += 1;
        }
        let (sent, tried) = slot.outlet.send_some(&mut frames[..count], &to[..count]);
        let bytes = frames[..sent].iter().map(|frame| frame.packet().len() as u64).sum();
        let counters = &self.statistics.nic(nic).sent;
        counters.frames.add(sent as u64);
        counters.bytes.add(bytes);
        let done = tried.max(1);
        for (frame, to) in frames[sent..done].iter_mut().zip(&to[sent..done]) {
            self.transmit(nic, slot, frame, *to);
        }
        done
    }

    pub(super) fn transmit(&mut self, nic: NicId, slot: &mut Slot, frame: &mut Frame, to: MacAddr) {
        let length = frame.packet().len();
        let counters = self.statistics.nic(nic);
        match slot.outlet.send(frame, to, &mut self.scratch) {
            Ok(sent) => {
                counters.sent.add(length);
                if let Sent::Split(is_new) = sent {
                    counters.split.add(1);
                    counters.offload_refused.add(u64::from(is_new));
                }
            }
            Err(error) if is_gone(&error) => {
                self.drop(DropReason::NicDown);
                self.router.ask(Request::Suspect(nic));
            }
            Err(error) => self.drop(match (error.kind(), error.raw_os_error()) {
                (io::ErrorKind::WouldBlock, _) | (_, Some(libc::ENOBUFS)) => {
                    DropReason::NicQueueFull
                }
                (_, Some(libc::EMSGSIZE)) => DropReason::TooBig,
                _ => DropReason::DeviceRefused,
            }),
        }
    }

    pub(super) fn deliver(&mut self, slot: &mut Slot, frame: &mut Frame) {
        let length = frame.packet().len();
        match slot.outlet.send(frame, MacAddr::default(), &mut self.scratch) {
            Ok(sent) => {
                self.statistics.to_tun.add(length);
                if sent == Sent::Split(true) {
                    self.statistics.tun_offload_refused.add(1);
                }
            }
            Err(_) => self.drop(DropReason::TunRefused),
        }
    }

    /// Keeps a frame and asks for what it waits for.
    pub(super) fn keep(&mut self, frame: &Frame, cause: Wait, since: Millis) {
        let mut copy = Frame::holding(frame.packet(), frame.offload, frame.ingress);
        copy.socket = frame.socket.clone();
        self.statistics.waits.add(1);
        if !self.waiting.push(Waiter { frame: copy, cause, since }) {
            self.drop(DropReason::WaitQueueFull);
            return;
        }
        self.ask(cause);
    }

    /// Has what a frame waits for found out.
    pub(super) fn ask(&self, cause: Wait) {
        match cause {
            Wait::Neighbour { nic, address } => self.router.ask(Request::Resolve { nic, address }),
            Wait::Hold(id) => self.ask_hold(&self.state.flows.rewritten_flow(id)),
            Wait::FirstFragment(_) => {}
            Wait::Socket(key) => {
                let worker = self.state.worker;
                self.router.ask(Request::Socket { worker, key });
            }
        }
    }

    pub(super) fn ask_hold(&self, flow: &Rewritten) {
        let worker = self.state.worker;
        self.router.ask(Request::Hold { worker, flow: held_flow(flow) });
    }

    pub(super) fn held(&mut self, flow: &HeldFlow) {
        let source = Endpoint { address: flow.source, port: flow.source_port };
        let destination = Endpoint { address: flow.destination, port: flow.destination_port };
        let key = Key::new(source, destination, flow.protocol, Side::Tun);
        if let Some((id, _)) = self.state.flows.find(&key) {
            self.state.flows.set_held(id);
        }
    }

    /// Tells the egress hold of flows that ended.
    pub(super) fn release(&mut self) {
        for flow in self.state.released.drain(..) {
            self.router.ask(Request::Release(held_flow(&flow)));
        }
    }

    pub(super) fn gauge(&self) {
        self.statistics.flows.set(u64::from(self.state.flows.len()));
        self.statistics.flows_rewritten.set(u64::from(self.state.flows.rewritten()));
        self.statistics.flows_created.set(self.state.flows.created());
        self.statistics.flows_evicted.set(self.state.flows.evicted());
        self.statistics.flows_half_open.set(u64::from(self.state.flows.half_open()));
    }

    /// Says which services are flooded, where that has changed.
    pub(super) fn tell_floods(&mut self, preferred: &PreferredTable) {
        let services = self.state.floods.services(self.now);
        let flooded: Vec<ServiceId> =
            services.filter_map(|(id, is_flooded)| is_flooded.then_some(id)).collect();
        if flooded == self.flooded {
            return;
        }
        let names = |new: &[ServiceId], old: &[ServiceId]| -> Vec<Arc<str>> {
            let ids = new.iter().filter(|id| !old.contains(id));
            ids.filter_map(|id| Some(Arc::clone(&preferred.service(*id)?.name))).collect()
        };
        for service in names(&flooded, &self.flooded) {
            limited!(warn, %service, "a flood of SYNs: the first of each client is dropped");
        }
        for service in names(&self.flooded, &flooded) {
            limited!(info, %service, "the flood of SYNs is over");
        }
        self.statistics.services_flooded.set(flooded.len() as u64);
        self.flooded = flooded;
    }
}

fn held_flow(flow: &Rewritten) -> HeldFlow {
    let (source, destination) = (flow.original.source(), flow.original.destination());
    let protocol = flow.original.protocol();
    HeldFlow {
        protocol,
        source: source.address,
        source_port: source.port,
        destination: destination.address,
        destination_port: destination.port,
        wire: (!matches!(protocol, ip::TCP | ip::UDP)).then_some(flow.wire),
    }
}

/// What a send says when the NIC itself is gone. (ENOBUFS is a full queue.)
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV))
}
