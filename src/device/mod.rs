//! Where packets come in and go out: the TUN and the NICs' packet sockets.
