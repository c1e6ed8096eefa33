//! An echo request from a raw socket that names no source, and its reply.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type};
use pnet::packet::Packet;
use pnet::packet::icmp::{IcmpPacket, IcmpTypes};
use pnet::packet::icmpv6::{Icmpv6Packet, Icmpv6Types};
use pnet::packet::ip::IpNextHeaderProtocols::{Icmp, Icmpv6};
use pnet::transport::TransportChannelType::Layer4;
use pnet::transport::TransportProtocol::{Ipv4, Ipv6};
use pnet::transport::{icmp_packet_iter, icmpv6_packet_iter, transport_channel};
use vipa::lab::Namespace;

use crate::fixture::PATIENCE;

const AGAIN: Duration = Duration::from_millis(250);
const CONTENT: [u8; 7] = *b"whoami?";

/// Asks `to` with this identifier until its reply is there, with the same identifier and content.
pub(crate) fn ping(namespace: &Namespace, to: IpAddr, identifier: u16) {
    let echo = IcmpEchoHeader { id: identifier, seq: 1 };
    let is_answered = namespace.run(|| match to {
        IpAddr::V4(_) => ping_v4(to, echo),
        IpAddr::V6(_) => ping_v6(to, echo),
    });
    assert!(is_answered, "no echo reply from {to} with identifier {identifier}");
}

fn ping_v4(to: IpAddr, echo: IcmpEchoHeader) -> bool {
    let (mut sender, mut receiver) =
        transport_channel(4096, Layer4(Ipv4(Icmp))).expect("a raw socket (needs root)");
    let request = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &CONTENT);
    let bytes = [request.to_bytes().as_slice(), &CONTENT].concat();
    let mut replies = icmp_packet_iter(&mut receiver);
    is_answered(
        || sender.send_to(IcmpPacket::new(&bytes).expect("a whole packet"), to),
        |timeout| {
            let (reply, from) = replies.next_with_timeout(timeout).ok()??;
            let is_reply = from == to && reply.get_icmp_type() == IcmpTypes::EchoReply;
            Some(is_reply && is_ours(reply.packet(), echo))
        },
    )
}

fn ping_v6(to: IpAddr, echo: IcmpEchoHeader) -> bool {
    let (mut sender, mut receiver) =
        transport_channel(4096, Layer4(Ipv6(Icmpv6))).expect("a raw socket (needs root)");
    // The kernel writes the checksum of ICMPv6.
    let request = Icmpv6Header::new(Icmpv6Type::EchoRequest(echo));
    let bytes = [request.to_bytes().as_slice(), &CONTENT].concat();
    let mut replies = icmpv6_packet_iter(&mut receiver);
    is_answered(
        || sender.send_to(Icmpv6Packet::new(&bytes).expect("a whole packet"), to),
        |timeout| {
            let (reply, from) = replies.next_with_timeout(timeout).ok()??;
            let is_reply = from == to && reply.get_icmpv6_type() == Icmpv6Types::EchoReply;
            Some(is_reply && is_ours(reply.packet(), echo))
        },
    )
}

/// Asks, and asks again, until `hear` has heard the reply; it tells of each packet whether that is the one, or
/// of none in its time.
fn is_answered(
    mut ask: impl FnMut() -> io::Result<usize>,
    mut hear: impl FnMut(Duration) -> Option<bool>,
) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        ask().expect("sent");
        let again = Instant::now() + AGAIN;
        while let Some(is_it) = hear(again.saturating_duration_since(Instant::now())) {
            if is_it {
                return true;
            }
        }
    }
    false
}

fn is_ours(reply: &[u8], echo: IcmpEchoHeader) -> bool {
    reply.get(4..6) == Some(&echo.id.to_be_bytes()) && reply.get(8..15) == Some(&CONTENT)
}
