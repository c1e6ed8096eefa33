//! Routes that IPv6 sockets remember.
//!
//! A TCP socket keeps the route that it found. IPv4 forgets all of them when a device loses its carrier. IPv6 does not: a connection
//! that goes on by the adapter without a forwarder, or by a NIC without carrier, notices nothing until its third retransmission,
//! after 6 s and more. Any change of the IPv6 rules makes every socket look anew.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use super::MAIN_TABLE;
use super::kernel::Step;
use super::netlink::Netlink;
use super::plan::rules::{Action, Rule};
use super::request;
use crate::wire::ip::{Family, Prefix};

/// Just before the rule of main, which says the same: should it ever stay behind, nothing follows from it.
const PREFERENCE: u32 = 32_765;

/// Makes IPv6 sockets of this network namespace look their routes up anew.
///
/// # Errors
/// Without CAP_NET_ADMIN; a kernel without IPv6 is none.
pub fn forget_cached_routes() -> io::Result<()> {
    forget(&mut Netlink::open()?)
}

pub(super) fn forget(netlink: &mut Netlink) -> io::Result<()> {
    let mut rule = Rule::new(Family::V6, PREFERENCE, Action::Lookup(MAIN_TABLE));
    rule.source = Some(Prefix::host(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    for step in [Step::AddRule(rule.clone()), Step::DeleteRule(rule)] {
        let (message, mode) = request::of(&step);
        match netlink.request(message, mode) {
            Err(e) if request::is_settled(&step, &e) => {}
            Err(e) if super::netlink::errno(&e) == Some(libc::EOPNOTSUPP) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}
