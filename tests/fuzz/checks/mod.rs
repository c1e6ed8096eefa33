//! What each fuzz target checks: one file a target, with a function `check` that panics on a finding. The targets
//! (../targets) and the normal tests (../main.rs) call the same.
#![allow(dead_code)] // Each target uses its own part alone.

pub(crate) mod announce;
pub(crate) mod answers;
pub(crate) mod bfd;
pub(crate) mod capture;
pub(crate) mod config;
pub(crate) mod fields;
pub(crate) mod flows;
pub(crate) mod input;
pub(crate) mod neighbour;
pub(crate) mod netlink;
pub(crate) mod network;
pub(crate) mod nft;
pub(crate) mod offload;
pub(crate) mod packet;
pub(crate) mod packets;
pub(crate) mod pipeline;
pub(crate) mod rewrite;
pub(crate) mod rip;
pub(crate) mod segment;
pub(crate) mod sums;

/// Panics on a finding.
pub(crate) type Check = fn(&[u8]);

/// Name, as in ../Cargo.toml, and check of each target.
pub(crate) const TARGETS: &[(&str, Check)] = &[
    ("announce", announce::check),
    ("answers", answers::check),
    ("bfd", bfd::check),
    ("capture", capture::check),
    ("config", config::check),
    ("fields", fields::check),
    ("flows", flows::check),
    ("neighbour", neighbour::check),
    ("netlink", netlink::check),
    ("nft", nft::check),
    ("packet", packet::check),
    ("pipeline", pipeline::check),
    ("rewrite", rewrite::check),
    ("rip", rip::check),
    ("segment", segment::check),
];
