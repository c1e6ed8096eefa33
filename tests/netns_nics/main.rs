//! NICs under `vipa run`: flows spread, moved and taken back. Needs root.
#![allow(clippy::unwrap_used)]

mod fixture;
mod life;
