//! ICMP echoes as `ping` and `hops` send and hear them (RFC 792, RFC 4443), over raw sockets. The messages are pure.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;

use super::Failure;
use super::answer::{room, unreached};
use crate::wire::checksum::Sum;

/// Bytes of the largest message that is looked at; a quote may be as long as its link allows.
const LARGEST: usize = 2048;
/// What our echoes carry behind their header: a number that tells them from others'.
const PAYLOAD: usize = 8;

/// Our echoes to one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Identifier of ICMP.
    pub id: u16,
    /// Says that an echo is ours.
    pub nonce: [u8; PAYLOAD],
    /// Is it ICMPv6?
    pub is_v6: bool,
}

/// What became of an echo; each with its sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It was answered.
    Reply(u16),
    /// It had no hop left.
    Exceeded(u16),
}

impl Echo {
    /// To `to`, different from all others.
    pub fn new(to: IpAddr) -> Echo {
        use std::hash::{BuildHasher, Hasher, RandomState};
        let unforeseen = RandomState::new().build_hasher().finish();
        Echo { id: unforeseen as u16, nonce: unforeseen.to_ne_bytes(), is_v6: to.is_ipv6() }
    }

    /// An echo request. The checksum of ICMPv6 is the kernel's, which knows the addresses.
    pub fn request(&self, sequence: u16) -> Vec<u8> {
        let mut message = vec![if self.is_v6 { 128 } else { 8 }, 0, 0, 0];
        message.extend_from_slice(&self.id.to_be_bytes());
        message.extend_from_slice(&sequence.to_be_bytes());
        message.extend_from_slice(&self.nonce);
        if !self.is_v6 {
            let sum = Sum::default().bytes(&message).complement();
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        message
    }

    /// What a raw socket heard, if it is about one of ours: in IPv4 with its IP header, in IPv6 without.
    pub fn hear(&self, message: &[u8]) -> Option<Heard> {
        let message = if self.is_v6 { message } else { behind_header(message)? };
        let (header, rest) = message.split_first_chunk::<8>()?;
        let (reply, exceeded, request) = if self.is_v6 { (129, 3, 128) } else { (0, 11, 8) };
        if header[0] == reply {
            let is_ours = header[4..6] == self.id.to_be_bytes() && rest == self.nonce;
            return is_ours.then(|| Heard::Reply(u16::from_be_bytes([header[6], header[7]])));
        }
        if (header[0], header[1]) != (exceeded, 0) {
            return None;
        }
        // Quoted: our IP header and at least eight bytes of the echo. What is in front of it in IPv6 we did not send.
        let quoted = if self.is_v6 { rest.get(40..)? } else { behind_header(rest)? };
        let quoted = quoted.first_chunk::<8>()?;
        let is_ours = quoted[..2] == [request, 0] && quoted[4..6] == self.id.to_be_bytes();
        is_ours.then(|| Heard::Exceeded(u16::from_be_bytes([quoted[6], quoted[7]])))
    }
}

/// What is behind an IPv4 header.
fn behind_header(packet: &[u8]) -> Option<&[u8]> {
    let first = packet.first()?;
    (first >> 4 == 4).then(|| packet.get(usize::from(first & 0xf) * 4..)).flatten()
}

/// A raw socket for ICMP.
#[derive(Debug)]
pub(super) struct EchoSocket {
    /// A raw socket is spoken to as one of UDP is; tokio knows no other datagram socket.
    socket: UdpSocket,
    echo: Echo,
    to: SocketAddr,
}

impl EchoSocket {
    /// Needs CAP_NET_RAW. With `only_peer` it hears what the address itself sends and nothing else.
    pub(super) fn open(to: IpAddr, only_peer: bool) -> Result<EchoSocket, Failure> {
        let open = || -> io::Result<UdpSocket> {
            let (domain, protocol) = match to {
                IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
                IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
            };
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            if only_peer {
                socket.connect(&SocketAddr::new(to, 0).into())?;
            }
            UdpSocket::from_std(socket.into())
        };
        room()?;
        let socket = open().map_err(|error| unreached(&error))?;
        Ok(EchoSocket { socket, echo: Echo::new(to), to: SocketAddr::new(to, 0) })
    }

    /// Sends an echo that goes `hops` hops at most; `None`: as many as the system's default allows.
    pub(super) async fn send(&self, sequence: u16, hops: Option<u8>) -> Result<(), Failure> {
        let sent = async {
            if let Some(hops) = hops.map(u32::from) {
                let socket = SockRef::from(&self.socket);
                if self.echo.is_v6 {
                    socket.set_unicast_hops_v6(hops)?;
                } else {
                    socket.set_ttl_v4(hops)?;
                }
            }
            let message = self.echo.request(sequence);
            match self.socket.peer_addr() {
                Ok(_) => self.socket.send(&message).await,
                Err(_) => self.socket.send_to(&message, self.to).await,
            }
        };
        sent.await.map(|_| ()).map_err(|error| unreached(&error))
    }

    /// Waits for word of one of them. An answer counts only from where it was sent to.
    pub(super) async fn hear(&self) -> Result<Heard, Failure> {
        let mut message = [0; LARGEST];
        loop {
            let heard = self.socket.recv_from(&mut message).await;
            let (length, from) = heard.map_err(|error| unreached(&error))?;
            match self.echo.hear(&message[..length]) {
                Some(Heard::Reply(_)) if from.ip() != self.to.ip() => {}
                Some(heard) => return Ok(heard),
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;

    fn echo(is_v6: bool) -> Echo {
        Echo { id: 0x1234, nonce: *b"vipa-yes", is_v6 }
    }

    /// `message` as a raw socket hands it over.
    fn heard(is_v6: bool, message: &[u8]) -> Vec<u8> {
        if is_v6 {
            return message.to_vec();
        }
        let mut packet = Vec::new();
        PacketBuilder::ipv4([192, 0, 2, 1], [192, 0, 2, 2], 9)
            .write(&mut packet, etherparse::IpNumber::ICMP, message)
            .expect("a packet");
        packet
    }

    /// A router's complaint about our echo.
    fn exceeded(is_v6: bool, message: &[u8]) -> Vec<u8> {
        let mut quote = Vec::new();
        let number =
            if is_v6 { etherparse::IpNumber::IPV6_ICMP } else { etherparse::IpNumber::ICMP };
        let step = match is_v6 {
            true => PacketBuilder::ipv6([1; 16], [2; 16], 1),
            false => PacketBuilder::ipv4([192, 0, 2, 2], [192, 0, 2, 1], 1),
        };
        step.write(&mut quote, number, message).expect("a packet");
        let kind = if is_v6 { 3 } else { 11 };
        heard(is_v6, &[&[kind, 0, 0, 0, 0, 0, 0, 0], quote.as_slice()].concat())
    }

    #[test]
    fn what_is_about_our_echoes_is_heard() {
        for is_v6 in [false, true] {
            let ours = echo(is_v6);
            let request = ours.request(300);
            let mut reply = request.clone();
            reply[0] = if is_v6 { 129 } else { 0 };
            assert_eq!(ours.hear(&heard(is_v6, &reply)), Some(Heard::Reply(300)));
            assert_eq!(ours.hear(&exceeded(is_v6, &request)), Some(Heard::Exceeded(300)));
            assert_eq!(ours.hear(&exceeded(is_v6, &request[..8])), Some(Heard::Exceeded(300)));
            // Not ours: the request itself, another id, another payload, another error.
            assert_eq!(ours.hear(&heard(is_v6, &request)), None);
            for at in [4, 5, 8, 15] {
                let mut other = reply.clone();
                other[at] ^= 1;
                assert_eq!(ours.hear(&heard(is_v6, &other)), None, "byte {at}");
            }
            let mut unreachable = exceeded(is_v6, &request);
            let kind = if is_v6 { 0 } else { 20 };
            unreachable[kind] = if is_v6 { 1 } else { 3 };
            assert_eq!(ours.hear(&unreachable), None);
        }
    }

    #[test]
    fn the_checksum_is_right_where_it_is_ours() {
        let sum = Sum::default().bytes(&echo(false).request(7)).complement();
        assert_eq!(sum, 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_heard_or_passed_over(is_v6: bool, kind: u8, tail: Vec<u8>) {
            let _ = echo(is_v6).hear(&tail);
            let message = [&[kind, 0, 0, 0], tail.as_slice()].concat();
            let _ = echo(is_v6).hear(&heard(is_v6, &message));
        }
    }
}
