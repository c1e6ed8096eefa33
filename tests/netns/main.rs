//! `vipa run` through the real program, on the host of a private network: which source addresses leave it, its
//! NICs, its life and its host's, its guard. Needs root and what tools/packages.txt names.

#[path = "../common/bind.rs"]
mod bind;
mod fixture;
mod gap;
#[path = "../common/nginx.rs"]
mod nginx;
mod ping;
#[path = "../common/postgres.rs"]
mod postgres;
mod wire;

mod announce;
mod flows;
mod host;
mod nics;
mod paths;
mod rip;
mod run;
mod services;
