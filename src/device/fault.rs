//! A device that refuses what a driver may refuse, wrapped around another one.

use std::io;
use std::os::fd::RawFd;

use super::{Device, ReceiveError};
use crate::forward::frame::Frame;
use crate::wire::ethernet::MacAddr;

/// Answers every frame that needs offload with an error.
#[derive(Debug)]
pub struct Refusing<D> {
    inner: D,
    errno: i32,
}

impl<D: Device> Refusing<D> {
    /// Refuses with `errno`.
    pub fn new(inner: D, errno: i32) -> Refusing<D> {
        Refusing { inner, errno }
    }
}

impl<D: Device> Device for Refusing<D> {
    fn receive(&mut self, frame: &mut Frame) -> Result<(), ReceiveError> {
        self.inner.receive(frame)
    }

    fn send(&mut self, frame: &mut Frame, to: MacAddr) -> io::Result<()> {
        if frame.offload.is_needed() {
            return Err(io::Error::from_raw_os_error(self.errno));
        }
        self.inner.send(frame, to)
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.inner.descriptors()
    }
}
