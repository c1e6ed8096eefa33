//! Ports of this host that matter to the forwarder, read now and then: netlink tells nothing of them.

use std::ops::RangeInclusive;

use super::inspect::{ports_in_use, ports_of_connections};
use super::plan::can_rewrite;
use super::sysctl;
use crate::config::Config;

/// The kernel's own default of `ip_local_port_range`.
const EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// Connections are read but every so many times: the kernel looks through all that the machine has, which takes it some 50 ms where there are
/// a few hundred thousand, and the router does nothing else meanwhile.
const CONNECTIONS_EVERY: u32 = 12;

/// As last read.
#[derive(Debug)]
pub(super) struct Ports {
    /// `ip_local_port_range`.
    pub(super) ephemeral: RangeInclusive<u16>,
    /// Ports of `[source] ports` on which a socket is bound, in order.
    pub(super) listening: Vec<u16>,
    /// `[source] ports`, if any flow can be rewritten.
    reserved: Option<RangeInclusive<u16>>,
    /// Those of them that connections have, and how often all of this was read since.
    connected: Vec<u16>,
    reads: u32,
}

impl Ports {
    pub(super) fn of(config: &Config) -> Ports {
        let reserved = can_rewrite(config).then(|| config.source.ports.clone());
        let (ephemeral, listening, connected) = (EPHEMERAL, Vec::new(), Vec::new());
        let mut ports = Ports { ephemeral, listening, reserved, connected, reads: 0 };
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
        // Connections older than vipa keep their ports too, and those of a listener that is gone.
        let all = ports_in_use(reserved.clone()).and_then(|mut ports| {
            let stays = |port: &u16| ports.contains(port) || self.connected.contains(port);
            if self.reads == 0 || !self.listening.iter().all(stays) {
                self.connected = ports_of_connections(reserved.clone())?;
            }
            ports.extend(&self.connected);
            Ok(ports)
        });
        let mut listening = match all {
            Ok(listening) => listening,
            Err(error) => {
                tracing::debug!(%error, "cannot list this host's sockets");
                return;
            }
        };
        self.reads = (self.reads + 1) % CONNECTIONS_EVERY;
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
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::lab::Namespace;

    #[test]
    fn a_port_is_left_out_for_as_long_as_a_connection_has_it() {
        let place = Namespace::new("ports").expect("a namespace");
        place.run(|| {
            let reserved = Some(61_000..=65_535);
            let (ephemeral, listening, connected) = (EPHEMERAL, Vec::new(), Vec::new());
            let mut ports = Ports { ephemeral, listening, reserved, connected, reads: 0 };
            ports.read();
            assert!(ports.listening.is_empty());
            let listener = TcpListener::bind("127.0.0.1:61001").expect("a listener");
            ports.read();
            assert_eq!(ports.listening, [61_001]);
            let client = TcpStream::connect("127.0.0.1:61001").expect("a connection");
            let (server, _) = listener.accept().expect("the same");
            drop(listener);
            for _ in 0..2 * CONNECTIONS_EVERY {
                ports.read();
                assert_eq!(ports.listening, [61_001]);
            }
            drop(client);
            drop(server);
            ports.read();
            assert_eq!(ports.listening, [61_001], "connections are not read each time");
            (0..=CONNECTIONS_EVERY).for_each(|_| ports.read());
            assert!(ports.listening.is_empty());
        });
    }

    #[test]
    fn the_port_range_is_two_numbers_in_order() {
        assert_eq!(parse("32768\t60999"), Some(32768..=60999));
        assert_eq!(parse("60999 32768"), None);
        assert_eq!(parse("32768"), None);
    }
}
