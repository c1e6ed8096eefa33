//! vipa gives a Linux host an address that belongs to no network card (US 5,923,854) and spreads its
//! traffic over the cards that live.
//!
//! Three floors, imports only downwards:
//!
//! 1. [`wire`]: bytes and their meaning. Pure, safe, no allocation.
//! 2. [`forward`]: one packet in, one verdict out. Pure: no sockets, no clock, no locks.
//! 3. What touches the world: [`device`] (packets), [`link`] (the network around the host), [`engine`]
//!    (carries batches between the two), [`capture`] (files of packets) and [`replay`] (the same forwarder over
//!    them), [`rip`] and [`announce`] (the neighbours), [`admin`], [`cli`], [`config`], [`lab`].
//!
//! Start with [`forward::pipeline`]: it is the story of a packet.

pub mod admin;
pub mod announce;
pub mod balance;
pub mod capture;
pub mod cli;
pub mod config;
pub mod device;
pub mod engine;
pub mod explain;
pub mod forward;
pub mod lab;
pub mod link;
pub mod log;
pub mod path;
pub mod privilege;
pub mod replay;
pub mod rip;
pub mod state;
pub mod wire;
