//! What rewritten flows leave in sets: who is held, and whose replies are ours.

use std::net::IpAddr;

use super::expression::octets;
use super::table::{Content, INET, NETDEV, Set, TYPE_IPV4, TYPE_IPV6, TYPE_PORT, TYPE_PROTOCOL};
use crate::engine::message::HeldFlow;
use crate::wire::ip::{Family, ICMP, ICMPV6};

/// A set whose elements come and go with rewritten flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// In the egress hold: the flow as the application sends it.
    Sent(Family),
    /// In prerouting: its replies, where the reserved ports do not tell them.
    Replies(Family),
}

impl Place {
    pub(super) const ALL: [Place; 4] = [
        Place::Sent(Family::V4),
        Place::Sent(Family::V6),
        Place::Replies(Family::V4),
        Place::Replies(Family::V6),
    ];

    pub(super) fn set(self) -> &'static str {
        match self {
            Place::Sent(Family::V4) => "rewritten4",
            Place::Sent(Family::V6) => "rewritten6",
            Place::Replies(Family::V4) => "replies4",
            Place::Replies(Family::V6) => "replies6",
        }
    }

    /// The family of its table.
    pub(super) fn table(self) -> u8 {
        match self {
            Place::Sent(_) => NETDEV,
            Place::Replies(_) => INET,
        }
    }

    pub(super) fn definition(self) -> Set {
        let address = |family| if family == Family::V4 { (TYPE_IPV4, 4) } else { (TYPE_IPV6, 16) };
        let (parts, key_length) = match self {
            Place::Sent(family) => {
                let (kind, bytes) = address(family);
                (vec![TYPE_PROTOCOL, kind, TYPE_PORT, kind, TYPE_PORT], 3 * 4 + 2 * bytes)
            }
            Place::Replies(family) => {
                let (kind, bytes) = address(family);
                (vec![TYPE_PROTOCOL, kind, kind, TYPE_PORT], 2 * 4 + 2 * bytes)
            }
        };
        Set {
            name: self.set(),
            key_type: parts.iter().fold(0, |all, part| all << 6 | part),
            key_length,
            flags: 0,
            content: Content::Flows(self),
        }
    }
}

/// What a flow leaves in each place, each part of a key in whole words of 4 bytes.
pub(super) fn keys_of(flow: &HeldFlow) -> impl Iterator<Item = (Place, Vec<u8>)> + use<> {
    let sent = flow_key(flow).map(|(family, key)| (Place::Sent(family), key));
    let replies = reply_key(flow).map(|(family, key)| (Place::Replies(family), key));
    sent.into_iter().chain(replies)
}

fn protocol_of(flow: &HeldFlow, family: Family) -> u8 {
    match (flow.protocol, family) {
        (ICMP | ICMPV6, Family::V4) => ICMP,
        (ICMP | ICMPV6, Family::V6) => ICMPV6,
        (protocol, _) => protocol,
    }
}

/// The family of a flow and the key of its replies: protocol . remote . local . id. `None` if the reserved
/// ports tell them.
fn reply_key(flow: &HeldFlow) -> Option<(Family, Vec<u8>)> {
    let wire = flow.wire?;
    let family = Family::of(flow.destination);
    if Family::of(wire.address) != family {
        return None;
    }
    let mut key = vec![protocol_of(flow, family), 0, 0, 0];
    key.extend(octets(flow.destination));
    key.extend(octets(wire.address));
    key.extend(wire.port.to_be_bytes());
    key.extend([0; 2]);
    Some((family, key))
}

/// The family of a flow and its key: protocol . source . source port . destination . destination port.
/// `None` if the two addresses are of two families.
pub(super) fn flow_key(flow: &HeldFlow) -> Option<(Family, Vec<u8>)> {
    let family = Family::of(flow.source);
    if Family::of(flow.destination) != family {
        return None;
    }
    let protocol = protocol_of(flow, family);
    let mut key = vec![protocol, 0, 0, 0];
    for (address, port) in
        [(flow.source, flow.source_port), (flow.destination, flow.destination_port)]
    {
        key.extend(octets(address));
        key.extend(port.to_be_bytes());
        key.extend([0; 2]);
    }
    Some((family, key))
}

/// The flow that [`flow_key`] made `key` of; its source on the wire is not in it.
pub(super) fn flow_of(family: Family, key: &[u8]) -> Option<HeldFlow> {
    let length = usize::from(family.bits()) / 8;
    let key = Some(key).filter(|key| key.len() == 4 + 2 * (length + 4))?;
    let (protocol, rest) = key.split_at_checked(4)?;
    let (source, destination) = rest.split_at_checked(length + 4)?;
    let part = |bytes: &[u8]| {
        let (address, port) = bytes.split_at_checked(length)?;
        let address: IpAddr = match family {
            Family::V4 => <[u8; 4]>::try_from(address).ok()?.into(),
            Family::V6 => <[u8; 16]>::try_from(address).ok()?.into(),
        };
        Some((address, u16::from_be_bytes(*port.first_chunk()?)))
    };
    let ((source, source_port), (destination, destination_port)) =
        (part(source)?, part(destination)?);
    let protocol = protocol[0];
    Some(HeldFlow { protocol, source, source_port, destination, destination_port, wire: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::TCP;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_flow_is_read_back_from_its_key() {
        for (source, destination, length) in
            [("203.0.113.10", "10.2.0.2", 20), ("2001:db8::10", "2001:db8:2::2", 44)]
        {
            let flow = HeldFlow {
                protocol: TCP,
                source: address(source),
                source_port: 40_000,
                destination: address(destination),
                destination_port: 443,
                wire: None,
            };
            let (family, key) = flow_key(&flow).expect("one family");
            assert_eq!(key.len(), length);
            assert_eq!(flow_of(family, &key), Some(flow));
            assert_eq!(flow_of(family, &key[1..]), None);
            assert_eq!(flow_key(&HeldFlow { destination: family_other(family), ..flow }), None);
        }
    }

    fn family_other(family: Family) -> IpAddr {
        match family {
            Family::V4 => Family::V6.unspecified(),
            Family::V6 => Family::V4.unspecified(),
        }
    }
}
