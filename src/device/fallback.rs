//! Sending with less offload: a device that refuses a super-packet or a partial checksum gets whole packets
//! from then on, split and summed in software.

use std::io;

use super::Device;
use crate::forward::frame::Frame;
use crate::wire::ethernet::MacAddr;
use crate::wire::offload::Offload;
use crate::wire::packet::Headers;
use crate::wire::segment;

/// A device and what it was found to take.
#[derive(Debug)]
pub struct Outlet {
    /// The device.
    pub device: Box<dyn Device>,
    /// False once it refused a frame with offload.
    pub is_offloading: bool,
}

/// How a frame was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// As it was.
    Whole,
    /// In software-made packets; true: the device refused offload just now, for the first time.
    Split(bool),
}

impl Outlet {
    /// An outlet that has not refused anything yet.
    pub fn new(device: Box<dyn Device>) -> Outlet {
        Outlet { device, is_offloading: true }
    }

    /// Sends `frame`; `scratch` holds each packet of one that has to be split.
    ///
    /// # Errors
    /// The device's. Of a split frame some packets may have been sent.
    pub fn send(
        &mut self,
        frame: &mut Frame,
        to: MacAddr,
        scratch: &mut Frame,
    ) -> io::Result<Sent> {
        let needs_offload = frame.offload.is_needed();
        if self.is_offloading || !needs_offload {
            match self.device.send(frame, to) {
                Ok(()) => return Ok(Sent::Whole),
                Err(error) if needs_offload && is_refusal(&error) => {}
                Err(error) => return Err(error),
            }
        }
        // A device that refuses the parts as well is in other trouble: it keeps its offload.
        self.send_split(frame, to, scratch)?;
        let is_new = std::mem::replace(&mut self.is_offloading, false);
        Ok(Sent::Split(is_new))
    }

    /// Sends several frames as they are; tells how many of the first were sent, and of how many that was tried ([`Device::send_some`]).
    pub fn send_some(&mut self, frames: &mut [Frame], to: &[MacAddr]) -> (usize, usize) {
        if self.is_offloading { self.device.send_some(frames, to) } else { (0, 0) }
    }

    fn send_split(&mut self, frame: &Frame, to: MacAddr, scratch: &mut Frame) -> io::Result<()> {
        let packet = frame.packet();
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let headers = Headers::parse(packet).map_err(|_| malformed())?;
        let Offload { csum, gso, .. } = frame.offload;
        for at in 0..segment::count(&headers, packet, gso) {
            let length = segment::segment(packet, &headers, csum, gso, at, scratch.space(0))
                .ok_or_else(malformed)?;
            scratch.received(length);
            scratch.offload = Offload::default();
            self.device.send(scratch, to)?;
        }
        Ok(())
    }
}

/// What kernels say to offload that a device or its driver cannot do.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::fault::Refusing;
    use crate::device::memory::Memory;
    use crate::forward::frame::Ingress;
    use crate::wire::offload::{Csum, Gso, GsoKind};

    #[test]
    fn a_device_that_refuses_offload_gets_every_byte_in_small_packets() {
        for errno in [libc::EINVAL, libc::EIO, libc::EMSGSIZE] {
            let payload: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
            let mut packet = Vec::new();
            etherparse::PacketBuilder::ipv4([1; 4], [2; 4], 9)
                .tcp(1, 2, 3, 4)
                .write(&mut packet, &payload)
                .expect("built");
            let offload = Offload {
                csum: Csum::Partial { start: 20, offset: 16 },
                gso: Some(Gso::new(GsoKind::Tcp4, 1460)),
                ..Offload::default()
            };
            let (memory, log) = Memory::new();
            let mut outlet = Outlet::new(Box::new(Refusing::new(memory, errno)));
            let mut scratch = Frame::new();
            let mut outcomes = Vec::new();
            for _ in 0..2 {
                let mut frame = Frame::holding(&packet, offload, Ingress::Tun);
                outcomes
                    .push(outlet.send(&mut frame, MacAddr::default(), &mut scratch).expect("sent"));
            }
            assert_eq!(outcomes, [Sent::Split(true), Sent::Split(false)]);
            let sent = log.sent();
            assert_eq!(sent.len(), 14);
            let received: Vec<u8> = sent[..7].iter().flat_map(|p| p[40..].to_vec()).collect();
            assert_eq!(received, payload);
        }
    }
}
