//! The virtual adapter's device: a persistent multi-queue TUN with a vnet header.

use std::io;

/// Creates the persistent adapter `name` with the features that the forwarder needs, or adopts one that
/// exists, and detaches from it: it stays, without carrier.
pub fn create(name: &str) -> io::Result<()> {
    open_queue(name)?.persist()
}

/// Attaches one queue to the adapter `name` (creating a device that goes with its last queue, if none exists).
pub fn open_queue(name: &str) -> io::Result<tun_rs::SyncDevice> {
    tun_rs::DeviceBuilder::new()
        .name(name)
        .inherit_enable_state()
        .with(|b| {
            b.offload(true).multi_queue(true);
        })
        .build_sync()
}
