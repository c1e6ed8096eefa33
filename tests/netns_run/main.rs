//! `vipa run` and the host it runs on, through the real program: what it sets up and takes down, what it puts
//! back, its NICs, its guard. Needs root and what tools/packages.txt names.

#[path = "../netns_flows/fixture.rs"]
#[allow(dead_code)] // the fixture serves several test programs
mod fixture;

mod gap;
mod guard;
mod life;
mod neighbours;
mod nics;
mod servers;
