//! A device in memory, for tests: what is put in is received, what is sent is kept.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Device, ReceiveError};
use crate::forward::frame::{Frame, Ingress};
use crate::wire::ethernet::MacAddr;
use crate::wire::offload::Offload;

/// The device.
#[derive(Debug)]
pub struct Memory {
    log: Log,
}

/// The test's end of a [`Memory`] device.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    incoming: VecDeque<(Vec<u8>, Offload, Ingress)>,
    sent: Vec<Vec<u8>>,
    sent_count: usize,
    is_counting_only: bool,
}

impl Memory {
    /// A device and the test's end of it.
    pub fn new() -> (Memory, Log) {
        let log = Log::default();
        (Memory { log: log.clone() }, log)
    }

    /// Another device over the same content.
    pub fn over(log: &Log) -> Memory {
        Memory { log: log.clone() }
    }
}

impl Log {
    fn content(&self) -> std::sync::MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a frame in, to be received.
    pub fn push(&self, packet: &[u8], offload: Offload, ingress: Ingress) {
        self.content().incoming.push_back((packet.to_vec(), offload, ingress));
    }

    /// What was sent so far.
    pub fn sent(&self) -> Vec<Vec<u8>> {
        self.content().sent.clone()
    }

    /// How many frames were sent so far.
    pub fn sent_count(&self) -> usize {
        self.content().sent_count
    }

    /// From now on sent frames are counted and not kept, so that the device allocates nothing.
    pub fn count_only(&self) {
        self.content().is_counting_only = true;
    }
}

impl Device for Memory {
    fn receive(&mut self, frame: &mut Frame) -> Result<(), ReceiveError> {
        let (packet, offload, ingress) =
            self.log.content().incoming.pop_front().ok_or(ReceiveError::Empty)?;
        frame.space(0)[..packet.len()].copy_from_slice(&packet);
        frame.received(packet.len());
        frame.offload = offload;
        frame.ingress = ingress;
        Ok(())
    }

    fn send(&mut self, frame: &mut Frame, _to: MacAddr) -> io::Result<()> {
        let mut content = self.log.content();
        content.sent_count += 1;
        if !content.is_counting_only {
            content.sent.push(frame.packet().to_vec());
        }
        Ok(())
    }

    fn descriptors(&self) -> Vec<RawFd> {
        Vec::new()
    }
}
