//! What only the socket knows of a packet that this host sends: plain data, found out by the engine.

use std::sync::Arc;

/// Owner, mark and cgroup of a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketFacts {
    /// The user who made it.
    pub user: u32,
    /// SO_MARK.
    pub mark: u32,
    /// Path of its cgroup below the root of cgroup2; `None`: none of those that a rule names.
    pub cgroup: Option<Arc<str>>,
}

/// How far a frame's socket is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Socket {
    /// Nobody has asked yet.
    #[default]
    Unasked,
    /// It cannot be found: a raw socket, one that is gone, or nobody there to ask (replay).
    Unknown,
    /// It was found.
    Known(SocketFacts),
}
