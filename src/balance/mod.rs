//! Load balancing (US 6,327,622): status objects read facts from each instance of an application, a monitor gathers
//! them, a policy picks the preferred server, an updater writes the lookup table. One thread, which may wait; what
//! it decides the forwarder reads as a [`crate::forward::preferred::PreferredTable`].

pub mod candidate;
pub mod host;
pub mod maglev;
pub mod monitor;
pub mod policy;
pub mod schedule;
pub mod score;
pub mod service;
pub mod status;
pub mod table;
