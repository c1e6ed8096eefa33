//! Where packets come in and go out: the TUN and the NICs' packet sockets.

pub mod tun;

/// SO_MARK of all that our packet sockets send ("vipa"): the egress hold lets it pass.
pub const MARK: u32 = 0x7669_7061;
