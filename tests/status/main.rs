//! Status objects against the programs that they are for, and against servers, agents and programs that are up to no
//! good. Each test has a network of its own. Needs root and what tools/packages.txt names.

mod bad;
#[path = "../common/bind.rs"]
mod bind;
mod fixture;
#[path = "../common/nginx.rs"]
mod nginx;
#[path = "../common/postgres.rs"]
mod postgres;

mod agents;
mod databases;
mod distance;
mod names;
mod programs;
mod sites;
