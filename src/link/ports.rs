//! Ports of this host that matter to the forwarder, read now and then: netlink tells nothing of them.

use std::ops::RangeInclusive;

use super::inspect::{ports_in_use, ports_of_connections};
use super::plan::can_rewrite;
use super::sysctl;
use crate::config::Config;

/// The kernel's own default of `ip_local_port_range`.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// As last read.
#[derive(Debug)]
pub(super) struct Ports {
    /// `ip_local_port_range`.
    pub(super) ephemeral: RangeInclusive<u16>,
    /// Ports of `[source] ports` on which a socket is bound, in order.
    pub(super) listening: Vec<u16>,
    /// `[source] ports`, if any flow can be rewritten.
    reserved: Option<RangeInclusive<u16>>,
}

impl Ports {
    pub(super) fn of(config: &Config) -> Ports {
        let reserved = can_rewrite(config).then(|| config.source.ports.clone());
        let mut ports = Ports { ephemeral: EPHEMERAL, listening: Vec::new(), reserved };
        ports.read();
        ports
    }

    /// Another configuration, by which flows are rewritten that were not, may need them.
    pub(super) fn follow(&mut self, config: &Config) {
        if self.reserved.is_none() && can_rewrite(config) {
            self.reserved = Some(config.source.ports.clone());
            self.read();
        }
    }

    /// Reads both anew; what cannot be read stays as it was.
    pub(super) fn read(&mut self) {
        if let Some(range) = ephemeral() {
            self.ephemeral = range;
        }
        let Some(reserved) = &self.reserved else { return };
        // Connections older than vipa keep their ports too.
        let both = |range: &RangeInclusive<u16>| -> std::io::Result<Vec<u16>> {
            Ok([ports_in_use(range.clone())?, ports_of_connections(range.clone())?].concat())
        };
        let mut listening = match both(reserved) {
            Ok(listening) => listening,
            Err(error) => {
                tracing::debug!(%error, "cannot list this host's sockets");
                return;
            }
        };
        listening.sort_unstable();
        listening.dedup();
        for port in listening.iter().filter(|port| self.listening.binary_search(port).is_err()) {
            tracing::warn!(port, "a socket is bound to a port of [source] ports: it is left out");
        }
        self.listening = listening;
    }
}

/// `ip_local_port_range`, if it can be read.
pub(super) fn ephemeral() -> Option<RangeInclusive<u16>> {
    sysctl::read("net/ipv4/ip_local_port_range").ok().flatten().and_then(|text| parse(&text))
}

fn parse(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_range_is_two_numbers_in_order() {
        assert_eq!(parse("32768\t60999"), Some(32768..=60999));
        assert_eq!(parse("60999 32768"), None);
        assert_eq!(parse("32768"), None);
    }
}
