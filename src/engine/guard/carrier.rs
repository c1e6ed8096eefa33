//! Asks the kernel for one link (RTM_GETLINK, rtnetlink(7)), which makes it act on a loss of carrier that
//! it holds back. Written by hand: 16 bytes of the answer are of interest, whatever else it holds.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const NLM_F_REQUEST: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFF_RUNNING: u32 = 0x40;
const ENODEV: i32 = 19;
/// Longest name of a device, without the closing zero.
const LONGEST_NAME: usize = 15;

/// A link known by its name, through a socket of its own.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Link {
    pub(super) fn open(name: &str) -> io::Result<Link> {
        if name.is_empty() || name.len() > LONGEST_NAME || name.contains('\0') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no name of a device"));
        }
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Link { socket, request: request(name), answer: vec![0; 4096] })
    }

    /// Does the link run (up, with carrier, as far as the kernel's routes know)? `false` also when there is
    /// no such link. IFF_LOWER_UP would not do: it falls before the routes hear of it.
    pub(super) fn is_running(&mut self) -> io::Result<bool> {
        self.socket.send(&self.request, 0)?;
        // The answer stands when send returns. What does not fit is cut off.
        let length = self.socket.recv(&mut &mut self.answer[..], libc::MSG_DONTWAIT)?;
        is_running(&self.answer[..length.min(self.answer.len())])
    }
}

fn request(name: &str) -> Vec<u8> {
    let attribute_length = 4 + name.len() + 1;
    let length = 32 + attribute_length.next_multiple_of(4);
    let mut request = Vec::with_capacity(length);
    request.extend_from_slice(&(length as u32).to_ne_bytes());
    request.extend_from_slice(&RTM_GETLINK.to_ne_bytes());
    request.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request.resize(32, 0); // sequence, port, struct ifinfomsg
    request.extend_from_slice(&(attribute_length as u16).to_ne_bytes());
    request.extend_from_slice(&IFLA_IFNAME.to_ne_bytes());
    request.extend_from_slice(name.as_bytes());
    request.resize(length, 0);
    request
}

fn is_running(answer: &[u8]) -> io::Result<bool> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "an answer that is no link");
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let word = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    match kind {
        Some(RTM_NEWLINK) => {
            let flags = word(24).map(u32::from_ne_bytes).ok_or_else(malformed)?;
            Ok(flags & IFF_RUNNING != 0)
        }
        Some(NLMSG_ERROR) => match word(16).map(i32::from_ne_bytes).ok_or_else(malformed)? {
            error if error == -ENODEV => Ok(false),
            error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        },
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_understands_the_question() {
        assert!(Link::open("lo").unwrap().is_running().is_ok());
        assert!(!Link::open("no-such-link").unwrap().is_running().unwrap());
    }

    #[test]
    fn a_cut_answer_is_an_error() {
        let mut answer = vec![0; 28];
        answer[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        assert!(!is_running(&answer).unwrap());
        for length in 0..28 {
            assert!(is_running(&answer[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn names_that_no_device_can_have_are_refused() {
        for name in ["", "a-name-that-is-too-long", "a\0b"] {
            assert!(Link::open(name).is_err());
        }
    }
}
