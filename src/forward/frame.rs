//! One frame in a buffer that is made once and used for every frame after: the packet, room in front of it
//! for the headers a device wants, its offload state, and what is to become of it.

use super::socket::Socket;
use super::verdict::{DropReason, Verdict};
use super::view::NicId;
use crate::wire::ethernet;
use crate::wire::icmp;
use crate::wire::offload::{self, Offload};

/// Bytes in front of the packet: a virtio header and an Ethernet header.
pub const HEADROOM: usize = offload::HEADER_LEN + ethernet::HEADER_LEN;
/// Bytes of the largest packet: an IPv6 header and 65,535 bytes behind it.
pub const MAX_PACKET: usize = 40 + 65535;

/// Where a frame came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// From the TUN: this host sends it.
    Tun,
    /// From a NIC: by a packet socket, or by XDP.
    Nic(NicId),
}

/// A frame and its buffer.
#[derive(Debug)]
pub struct Frame {
    buffer: Box<[u8]>,
    length: usize,
    /// Where it came in.
    pub ingress: Ingress,
    /// Its checksum and segments.
    pub offload: Offload,
    /// What is known of the socket that sent it.
    pub socket: Socket,
    /// Written by [`super::pipeline::process_batch`].
    pub verdict: Verdict,
}

impl Default for Frame {
    fn default() -> Frame {
        Frame::new()
    }
}

impl Frame {
    /// An empty frame with room for the largest packet. Its pages are touched as packets need them.
    pub fn new() -> Frame {
        Frame {
            buffer: vec![0; HEADROOM + MAX_PACKET].into_boxed_slice(),
            length: 0,
            ingress: Ingress::Tun,
            offload: Offload::default(),
            socket: Socket::Unasked,
            verdict: Verdict::Drop(DropReason::Malformed),
        }
    }

    /// A frame that holds `packet`, with a buffer of about its size: to be kept a while, or for tests.
    pub fn holding(packet: &[u8], offload: Offload, ingress: Ingress) -> Frame {
        // Room for the headers of an ICMP error about it as well.
        let mut buffer = vec![0; HEADROOM + packet.len() + icmp::HEADERS_V6].into_boxed_slice();
        buffer[HEADROOM..HEADROOM + packet.len()].copy_from_slice(packet);
        Frame {
            buffer,
            length: packet.len(),
            ingress,
            offload,
            socket: Socket::Unasked,
            verdict: Verdict::Drop(DropReason::Malformed),
        }
    }

    /// The packet, from its IP header on.
    #[inline]
    pub fn packet(&self) -> &[u8] {
        &self.buffer[HEADROOM..HEADROOM + self.length]
    }

    /// The packet, to be edited.
    #[inline]
    pub fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[HEADROOM..HEADROOM + self.length]
    }

    /// Cuts to so many bytes, of which it has as many.
    #[inline(always)]
    pub(super) fn cut(&mut self, length: u16) {
        debug_assert!(usize::from(length) <= self.length);
        self.length = length.into();
    }

    /// Appends to the packet; false if there is no room.
    pub(super) fn append(&mut self, bytes: &[u8]) -> bool {
        let end = HEADROOM + self.length;
        let Some(room) = self.buffer.get_mut(end..end + bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.length += bytes.len();
        true
    }

    /// Bytes of the packet.
    #[inline(always)]
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// The first `N` bytes of the room for the packet, whatever its length.
    #[inline(always)]
    pub(super) fn start<const N: usize>(&self) -> Option<&[u8; N]> {
        self.buffer.get(HEADROOM..)?.first_chunk()
    }

    /// The same, to be edited.
    #[inline(always)]
    pub(super) fn start_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.buffer.get_mut(HEADROOM..)?.first_chunk_mut()
    }

    /// Cuts what lies behind the packet's own length (padding of the link).
    #[inline]
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Room for `front` bytes of headers and a packet behind them: for a device to receive into.
    /// `front` is at most [`HEADROOM`].
    pub fn space(&mut self, front: usize) -> &mut [u8] {
        &mut self.buffer[HEADROOM - front..]
    }

    /// Says how many bytes of the packet a device has put behind its headers.
    pub fn received(&mut self, length: usize) {
        self.length = length.min(self.buffer.len() - HEADROOM);
    }

    /// The packet with the last `front` bytes of the headroom: for a device to write its headers and send.
    pub fn with_front(&mut self, front: usize) -> &mut [u8] {
        &mut self.buffer[HEADROOM - front..HEADROOM + self.length]
    }
}
