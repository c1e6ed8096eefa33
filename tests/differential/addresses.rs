//! Who is who. Each flow has a remote and a router of its own, so that a packet's far address names its flow.

use std::net::IpAddr;

pub(crate) fn default_vipa(is_v6: bool) -> IpAddr {
    own(is_v6, 10)
}

/// What goes to a remote under a rule carries this one.
pub(crate) fn second_vipa(is_v6: bool) -> IpAddr {
    own(is_v6, 11)
}

/// Has nothing to do with any flow.
pub(crate) fn bystander(is_v6: bool) -> IpAddr {
    own(is_v6, 12)
}

fn own(is_v6: bool, last: u8) -> IpAddr {
    if is_v6 {
        IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)])
    } else {
        IpAddr::from([203, 0, 113, last])
    }
}

pub(crate) fn remote(is_v6: bool, flow: u16) -> IpAddr {
    far(is_v6, 0, flow)
}

/// A router on the way to the remote.
pub(crate) fn router(is_v6: bool, flow: u16) -> IpAddr {
    far(is_v6, 1, flow)
}

fn far(is_v6: bool, net: u8, flow: u16) -> IpAddr {
    if is_v6 {
        IpAddr::from([0x2001, 0xdb8, 0x99, u16::from(net), 0, 0, 0, flow])
    } else {
        let [high, low] = flow.to_be_bytes();
        IpAddr::from([10, 20 + net, high, low])
    }
}

/// All remotes.
pub(crate) fn remotes(is_v6: bool) -> &'static str {
    if is_v6 { "2001:db8:99::/64" } else { "10.20.0.0/16" }
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Out,
    In,
}

/// The flow that a packet belongs to, or `None` if it is none of the test's.
pub(crate) fn flow_of(packet: &[u8], way: Way) -> Option<u16> {
    let far: &[u8] = match (packet[0] >> 4, way) {
        (4, Way::In) => &packet[12..16],
        (4, Way::Out) => &packet[16..20],
        (_, Way::In) => &packet[8..24],
        (_, Way::Out) => &packet[24..40],
    };
    let (net, number) = far.split_at(far.len() - 2);
    let is_far = matches!(net, [10, 20 | 21]) || net.starts_with(&[0x20, 1, 0xd, 0xb8, 0, 0x99]);
    is_far.then(|| u16::from_be_bytes([number[0], number[1]]))
}
