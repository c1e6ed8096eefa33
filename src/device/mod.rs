//! Where packets come in and go out: the TUN that is the virtual adapter (C1), the NICs' packet sockets (C2) and XDP,
//! and devices for tests.

pub(crate) mod arp;
pub(crate) mod datagram;
pub mod fallback;
pub mod fault;
pub mod filter;
pub mod memory;
pub mod packet_socket;
pub mod tun;
pub mod xdp;

use std::io;
use std::os::fd::RawFd;

use crate::forward::frame::Frame;
use crate::wire::ethernet::MacAddr;

/// SO_MARK of all that our packet sockets send ("vipa"): the egress hold lets it pass.
pub const MARK: u32 = 0x7669_7061;

/// A source and sink of frames. Neither call waits.
pub trait Device: std::fmt::Debug + Send {
    /// Receives one frame.
    ///
    /// # Errors
    /// See [`ReceiveError`].
    fn receive(&mut self, frame: &mut Frame) -> Result<(), ReceiveError>;

    /// Receives into the first of `frames`, and tells how many; none, if all that came was refused. That is told to `refused`.
    ///
    /// # Errors
    /// None is there: [`ReceiveError::Empty`], or the device is gone.
    fn receive_some(
        &mut self,
        frames: &mut [Frame],
        refused: &mut dyn FnMut(io::Error),
    ) -> Result<usize, ReceiveError> {
        let Some(frame) = frames.first_mut() else { return Ok(0) };
        match self.receive(frame) {
            Ok(()) => Ok(1),
            Err(ReceiveError::Refused(error)) => {
                refused(error);
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends one frame as it is; `to` is the MAC address of the next hop, where the device has such. The
    /// frame's packet is left as it was; its headroom is not.
    ///
    /// # Errors
    /// The system call's.
    fn send(&mut self, frame: &mut Frame, to: MacAddr) -> io::Result<()>;

    /// Sends several frames at once, `to` the MAC address of each one's next hop; tells how many of the first were sent, and of how many
    /// that was tried. The others of these are to be sent one by one, to hear what is wrong with them.
    fn send_some(&mut self, frames: &mut [Frame], to: &[MacAddr]) -> (usize, usize) {
        let _ = (frames, to);
        (0, 0)
    }

    /// Frames that came and were lost since this was last asked, since too many waited to be received.
    fn take_lost(&mut self) -> u64 {
        0
    }

    /// What to poll for frames.
    fn descriptors(&self) -> Vec<RawFd>;
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// None is there now.
    #[error("no frame")]
    Empty,
    /// One was there that the kernel or we could not make sense of; others may follow.
    #[error("a frame that cannot be received: {0}")]
    Refused(io::Error),
    /// The device is gone.
    #[error("the device failed: {0}")]
    Failed(io::Error),
}
