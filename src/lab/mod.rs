//! Private networks of namespaces: what the demo, the tests and the benches stand on.
//!
//! A program that wants a world of its own calls [`enter`] first: from then on it has its own network,
//! mounts and an empty `/run`, and nothing it does reaches the machine. A test thread, which cannot, works
//! with [`Namespace`]s alone and keeps its files in a [`Scratch`] directory. Either way a namespace is held
//! by a file descriptor and has no name in the file system, and children die with the thread that
//! started them: exit, crash and Ctrl-C leave nothing behind.
//!
//! ```no_run
//! use vipa::lab::{self, Hop, Namespace};
//! # fn main() -> Result<(), lab::Error> {
//! let (client, host) = (Namespace::new("client")?, Namespace::new("host")?);
//! lab::veth((&client, "c0"), (&host, "eth1"))?;
//! client.address("10.1.1.1/24", "c0")?;
//! host.address("10.1.1.2/24", "eth1")?;
//! host.route("0.0.0.0/0", &[Hop::via("10.1.1.1").dev("eth1")], None)?;
//! let listener = host.run(|| std::net::TcpListener::bind("10.1.1.2:80"));
//! # Ok(()) }
//! ```
//!
//! [`topology`] is the network most of them want, [`traffic`] what runs over it, [`demo`] the main job
//! shown to a newcomer.

mod enter;
mod error;
mod frame_meter;
mod link;
mod namespace;
mod netlink;
mod process;
mod rip_router;
mod route;
mod scratch;
mod shape;
mod syscall;

pub mod demo;
pub mod topology;
pub mod traffic;

pub use enter::enter;
pub use error::Error;
pub use frame_meter::FrameMeter;
pub use link::{Counters, End, veth};
pub use namespace::Namespace;
pub use process::{Forwarder, Process};
pub use rip_router::RipRouter;
pub use route::Hop;
pub use scratch::Scratch;
