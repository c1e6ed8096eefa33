//! Reads the kernel's state into the mirror, all that is asked for at once.

use super::mirror::Mirror;
use super::netlink::{Netlink, errno};
use super::{Error, Result, request};
use crate::wire::ip::Family;

/// Reads everything.
pub(super) fn everything(netlink: &mut Netlink, mirror: &mut Mirror) -> Result<()> {
    mirror.clear();
    for (what, message) in [
        ("links", request::links()),
        ("addresses", request::addresses()),
        ("IPv4 rules", request::rules(Family::V4)),
        ("IPv6 rules", request::rules(Family::V6)),
        ("neighbours", request::neighbours()),
    ] {
        let found = match netlink.dump(&message) {
            // A kernel without IPv6 has no rules for it.
            Err(e) if errno(&e) == Some(libc::EOPNOTSUPP) => continue,
            other => other.map_err(|source| Error::Netlink { what, source })?,
        };
        for notice in found {
            mirror.apply(notice);
        }
    }
    for table in mirror.tables().collect::<Vec<_>>() {
        for family in Family::BOTH {
            routes(netlink, mirror, table, family)?;
        }
    }
    Ok(())
}

/// Of one table.
pub(super) fn routes(
    netlink: &mut Netlink,
    mirror: &mut Mirror,
    table: u32,
    family: Family,
) -> Result<()> {
    let found = match netlink.dump(&request::routes(table, family)) {
        // Nothing was ever put into this table.
        Err(e) if errno(&e) == Some(libc::ENOENT) => Vec::new(),
        Err(e) if errno(&e) == Some(libc::EOPNOTSUPP) => Vec::new(),
        other => other.map_err(|source| Error::Netlink { what: "routes", source })?,
    };
    mirror.clear_routes(table, family);
    for notice in found {
        mirror.apply(notice);
    }
    Ok(())
}

/// The addresses of all devices.
pub(super) fn addresses(netlink: &mut Netlink, mirror: &mut Mirror) -> Result<()> {
    let found = netlink
        .dump(&request::addresses())
        .map_err(|source| Error::Netlink { what: "addresses", source })?;
    mirror.addresses.clear();
    for notice in found {
        mirror.apply(notice);
    }
    Ok(())
}
