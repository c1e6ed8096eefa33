//! Source addresses (FIG. 4 of US 5,923,854) and rewritten flows, through the real program: `vipa run` on
//! the host of a private network, watched from the router's wires. Needs root and what tools/packages.txt
//! names.

mod applied;
mod fixture;
mod ping;
mod program;
mod restart;
mod rewritten;
mod sources;
mod wire;
