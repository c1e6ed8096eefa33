//! The pipeline as the pure thing it is: packets in, verdicts and packets out (V4, V5, V9, C3).

mod errors;
mod explain;
mod fixture;
mod flows;
mod kinds;
mod services;

#[path = "../common/packets.rs"]
mod packets;
