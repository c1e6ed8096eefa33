//! The virtual adapter's device (V1, C1): a persistent multi-queue TUN with a vnet header, TSO and USO.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::{Device, ReceiveError};
use crate::forward::frame::{Frame, Ingress};
use crate::wire::ethernet::MacAddr;
use crate::wire::offload::{HEADER_LEN, Offload};
use crate::wire::packet::Headers;

/// Creates the persistent adapter `name` with the features that the forwarder needs, or adopts one that
/// exists, and detaches from it: it stays, without carrier.
///
/// # Errors
/// /dev/net/tun cannot be opened, or `name` is a device of another kind.
pub fn create(name: &str) -> io::Result<()> {
    open(name)?.persist()
}

fn open(name: &str) -> io::Result<tun_rs::SyncDevice> {
    tun_rs::DeviceBuilder::new()
        .name(name)
        .inherit_enable_state()
        .with(|builder| {
            builder.offload(true).multi_queue(true);
        })
        .build_sync()
}

/// One queue of the adapter.
pub struct TunQueue {
    device: tun_rs::SyncDevice,
}

impl TunQueue {
    /// Attaches a queue to the adapter `name`: with the first of them it gets carrier.
    ///
    /// # Errors
    /// The device cannot be opened or attached to.
    pub fn attach(name: &str) -> io::Result<TunQueue> {
        let device = open(name)?;
        device.set_nonblocking(true)?;
        Ok(TunQueue { device })
    }
}

impl Device for TunQueue {
    fn receive(&mut self, frame: &mut Frame) -> Result<(), ReceiveError> {
        let space = frame.space(HEADER_LEN);
        let length = self.device.recv(space).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => ReceiveError::Empty,
            io::ErrorKind::Interrupted => ReceiveError::Refused(error),
            _ => ReceiveError::Failed(error),
        })?;
        let refused = |text: &str| ReceiveError::Refused(io::Error::other(text.to_owned()));
        let header = space[..length].first_chunk().ok_or_else(|| refused("no vnet header"))?;
        let offload = Offload::parse(header, 0)
            .map_err(|error| ReceiveError::Refused(io::Error::other(error)))?;
        frame.received(length - HEADER_LEN);
        frame.ingress = Ingress::Tun;
        frame.offload = offload;
        Ok(())
    }

    fn send(&mut self, frame: &mut Frame, _to: MacAddr) -> io::Result<()> {
        let header = frame.offload.emit(0, headers_len(frame));
        let bytes = frame.with_front(HEADER_LEN);
        bytes[..HEADER_LEN].copy_from_slice(&header);
        self.device.send(bytes).map(|_| ())
    }

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.device.as_raw_fd()]
    }
}

impl std::fmt::Debug for TunQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TunQueue({})", self.device.as_raw_fd())
    }
}

/// Bytes of a super-packet's headers; 0 for others, which need none.
pub(super) fn headers_len(frame: &Frame) -> usize {
    if frame.offload.gso.is_none() {
        return 0;
    }
    Headers::parse(frame.packet()).map_or(0, |headers| headers.headers_len(frame.packet()))
}
