//! Source addresses (FIG. 4 of US 5,923,854) and rewritten flows, watched from the router's wires.

mod applied;
mod kinds;
mod program;
mod restart;
mod rewritten;
mod sources;
