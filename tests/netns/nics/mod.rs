//! By which NIC flows go: spread, moved and taken back.

mod life;
mod ways;
