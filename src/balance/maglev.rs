//! New connections spread over servers by weight: Maglev's lookup table (Eisenbud and others, "Maglev: A Fast and
//! Reliable Software Network Load Balancer", NSDI 2016, section 3.4), with weights.
//!
//! Each server has an order of its own in which it wants the table's places, told by its key alone. In turns, each takes the
//! next place on its list that is free; a server with a share below 1 sits out as many turns as it has less. When
//! one goes, its places are shared out among the others, and nearly all the other places stay.

/// Places of a table for up to [`FEW`] servers: a prime, at least a hundred for each (so the largest and the smallest
/// share differ by a hundredth at most).
const SMALL: usize = 4093;
const FEW: usize = 40;
/// Places for more servers.
const LARGE: usize = 65_521;

/// A table for servers of these keys and shares, as places among `servers`; empty if there is none with a share. Of the shares only
/// their proportions count; those that are not above 0 get no place.
pub fn table(servers: &[(u64, f64)]) -> Vec<u16> {
    let most = servers
        .iter()
        .map(|(_, share)| *share)
        .filter(|share| share.is_finite())
        .fold(0.0, f64::max);
    if most <= 0.0 {
        return Vec::new();
    }
    let size = if servers.len() <= FEW { SMALL } else { LARGE };
    let mut turns: Vec<Turn> = servers
        .iter()
        .enumerate()
        .filter(|(_, (_, share))| *share > 0.0 && share.is_finite())
        .map(|(at, (key, share))| Turn::new(at as u16, *key, share / most, size))
        .collect();
    const FREE: u16 = u16::MAX;
    let mut table = vec![FREE; size];
    let mut left = size;
    loop {
        for turn in &mut turns {
            turn.credit += turn.share;
            if turn.credit < 1.0 {
                continue;
            }
            turn.credit -= 1.0;
            // There is a free place, and the list holds every place once.
            while table[turn.next] != FREE {
                turn.advance(size);
            }
            table[turn.next] = turn.server;
            left -= 1;
            if left == 0 {
                return table;
            }
        }
    }
}

struct Turn {
    server: u16,
    /// Above 0, at most 1.
    share: f64,
    /// What it has saved of a place.
    credit: f64,
    /// The place it wants next.
    next: usize,
    skip: usize,
}

impl Turn {
    fn new(server: u16, key: u64, share: f64, size: usize) -> Turn {
        let size = size as u64;
        let (offset, skip) = (mix(key) % size, mix(key ^ 0x9e37_79b9_7f4a_7c15) % (size - 1) + 1);
        Turn {
            server,
            share: share.max(1e-3),
            credit: 0.0,
            next: offset as usize,
            skip: skip as usize,
        }
    }

    fn advance(&mut self, size: usize) {
        self.next = (self.next + self.skip) % size;
    }
}

/// A name as a key: the same in every run and on every host (FNV-1a; Fowler, Noll, Vo).
pub fn key(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Spreads every bit over all (the finalizer of SplitMix64; Steele, Lea, Flood 2014).
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn servers(shares: &[f64]) -> Vec<(u64, f64)> {
        let named = shares.iter().enumerate();
        named.map(|(at, share)| (key(&format!("10.2.0.{at}:80")), *share)).collect()
    }

    fn counts(table: &[u16], servers: usize) -> Vec<usize> {
        (0..servers).map(|at| table.iter().filter(|of| usize::from(**of) == at).count()).collect()
    }

    #[test]
    fn sizes_are_primes() {
        for size in [SMALL, LARGE] {
            assert!((2..size).take_while(|n| n * n <= size).all(|n| size % n != 0), "{size}");
        }
    }

    #[test]
    fn equal_servers_have_equal_parts() {
        let counts = counts(&table(&servers(&[1.0; 7])), 7);
        assert_eq!(counts.iter().sum::<usize>(), SMALL);
        assert!(counts.iter().all(|count| (584..=585).contains(count)), "{counts:?}");
    }

    #[test]
    fn parts_follow_the_shares() {
        let counts = counts(&table(&servers(&[1.0, 0.5, 0.25, 0.0])), 4);
        assert_eq!(counts[3], 0);
        for (count, wanted) in counts.iter().zip([4.0, 2.0, 1.0]) {
            let wanted = wanted / 7.0 * SMALL as f64;
            assert!((*count as f64 - wanted).abs() < 3.0, "{counts:?}");
        }
    }

    #[test]
    fn nobody_with_a_share_is_no_table() {
        for shares in [&[][..], &[0.0, 0.0], &[-1.0], &[f64::NAN], &[f64::INFINITY]] {
            assert!(table(&servers(shares)).is_empty(), "{shares:?}");
        }
    }

    #[test]
    fn many_servers_have_a_larger_table() {
        let table = table(&servers(&[1.0; 1024]));
        assert_eq!(table.len(), LARGE);
        assert!(counts(&table, 1024).iter().all(|count| (63..=64).contains(count)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Section 5.3 of the paper: at a hundred places for each server, hardly any other place moves.
        #[test]
        fn a_server_that_goes_moves_hardly_anything_but_its_own(
            shares in prop::collection::vec(1u8..=8, 3..20), gone: prop::sample::Index,
        ) {
            let mut shares: Vec<f64> = shares.into_iter().map(f64::from).collect();
            let gone = gone.index(shares.len());
            let before = table(&servers(&shares));
            shares[gone] = 0.0;
            let after = table(&servers(&shares));
            let kept = |(a, b): (&u16, &u16)| usize::from(*a) == gone || a == b;
            let moved = SMALL - before.iter().zip(&after).filter(|pair| kept(*pair)).count();
            prop_assert!(moved < SMALL / 8, "{} of {}", moved, SMALL);
            prop_assert!(after.iter().all(|of| usize::from(*of) != gone));
        }

        #[test]
        fn a_table_is_full_and_the_same_each_time(shares in prop::collection::vec(0.0f64..1.0, 1..60)) {
            let servers = servers(&shares);
            let first = table(&servers);
            prop_assert!(first.iter().all(|at| shares.get(usize::from(*at)).is_some_and(|share| *share > 0.0)));
            prop_assert_eq!(first, table(&servers));
        }
    }
}
