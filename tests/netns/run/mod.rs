//! What it sets up and takes down, what it puts back, who is refused, its guard, the networks around.

mod guard;
mod life;
mod neighbours;
mod nics;
mod published;
mod reload;
mod servers;
mod traced;
