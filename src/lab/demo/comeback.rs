//! When a NIC whose path healed carries traffic again, each way.

use crate::lab::Counters;
use crate::lab::traffic::Micros;

/// What probes and RIP make between two looks is far less; one connection's data is far more.
const TRAFFIC: u64 = 4 * 1024;

/// The watch over one NIC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Comeback {
    since: Micros,
    before: Counters,
    /// From `since` until outgoing traffic was seen.
    pub(super) outgoing: Option<Micros>,
    /// The same of incoming traffic.
    pub(super) incoming: Option<Micros>,
}

impl Comeback {
    /// Nothing counts that was carried before `since`.
    pub(super) fn new(since: Micros, before: Counters) -> Comeback {
        Comeback { since, before, outgoing: None, incoming: None }
    }

    /// What the NIC has carried so far; to be told every few hundredths of a second.
    pub(super) fn look(&mut self, now: Micros, counters: Counters) {
        let took = now.saturating_sub(self.since);
        if counters.tx_bytes.saturating_sub(self.before.tx_bytes) >= TRAFFIC {
            self.outgoing.get_or_insert(took);
        }
        if counters.rx_bytes.saturating_sub(self.before.rx_bytes) >= TRAFFIC {
            self.incoming.get_or_insert(took);
        }
        self.before = counters;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trickle_is_no_traffic_and_the_first_time_counts() {
        let at = |tx_bytes, rx_bytes| Counters { tx_bytes, rx_bytes, ..Counters::default() };
        let mut comeback = Comeback::new(1_000, at(500, 500));
        for step in 1..100 {
            comeback.look(1_000 + step, at(500 + step * 1_000, 500 + step * 1_000));
        }
        assert_eq!((comeback.outgoing, comeback.incoming), (None, None));
        comeback.look(3_000, at(1_000_000, 100_000));
        comeback.look(4_000, at(2_000_000, 1_000_000));
        assert_eq!((comeback.outgoing, comeback.incoming), (Some(2_000), Some(3_000)));
    }
}
