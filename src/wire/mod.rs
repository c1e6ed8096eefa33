//! Bytes and their meaning: checked views over headers, checksum arithmetic, the virtio header that
//! carries a frame's offload state. Pure, safe, no allocation.

pub mod bfd;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ip;
pub mod neighbour;
pub mod offload;
pub mod packet;
pub mod rip;
pub mod segment;
pub mod tcp;
