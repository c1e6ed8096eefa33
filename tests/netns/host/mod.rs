//! A busy host from the first start to `vipa down`: its connections, and all that could be changed on it.

mod busy;
mod idle;
mod life;
mod refused;
mod witness;
