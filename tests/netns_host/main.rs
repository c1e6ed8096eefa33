//! `vipa run` on a busy host, with the real binary: first start, kill, restart, down. Each test has its own
//! namespaces. Needs root, `ip`, `nft` and `kill`.

mod fixture;
mod life;
