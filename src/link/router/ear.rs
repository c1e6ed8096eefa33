//! Which socket brings the news of nftables: another one after what it heard was lost.

use std::io;
use std::os::fd::RawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::NFTABLES;

#[derive(Debug, Default)]
pub(super) struct Ear(Option<RawFd>);

impl Ear {
    /// Listens to this socket, if it does not yet.
    pub(super) fn listen(&mut self, registry: &Registry, fd: Option<RawFd>) -> io::Result<()> {
        if fd == self.0 {
            return Ok(());
        }
        // The one before is closed. Until it is heard, it is not.
        self.0 = None;
        if let Some(fd) = fd {
            registry.register(&mut SourceFd(&fd), NFTABLES, Interest::READABLE)?;
        }
        self.0 = fd;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;

    use mio::{Events, Poll};

    use super::*;
    use crate::link::router::TICK;

    #[test]
    fn a_socket_that_could_not_be_listened_to_is_tried_again() {
        let (mut poll, mut ear) = (Poll::new().expect("a poll"), Ear::default());
        let (mut there, here) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert!(ear.listen(poll.registry(), Some(-1)).is_err());
        assert!(ear.listen(poll.registry(), Some(-1)).is_err(), "it is not taken for heard");
        let fd = Some(here.as_raw_fd());
        ear.listen(poll.registry(), fd).expect("it is open");
        ear.listen(poll.registry(), fd).expect("it is heard already");
        there.write_all(b"news").expect("it is open");
        let mut events = Events::with_capacity(1);
        poll.poll(&mut events, Some(TICK)).expect("it can be asked");
        assert!(events.iter().any(|event| event.token() == NFTABLES));
    }
}
