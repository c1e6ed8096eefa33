//! `hops`: how many hops away is the server? 1: on a network of this host's. Echoes with every number of hops leave at
//! once, and the least that is answered is the distance; as with traceroute, routers may keep silent.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::echo::{EchoSocket, Heard};
use super::{Failure, Instance, Pending, Reading, StatusObject};

/// How long a round waits for the first answer.
const ROUND: Duration = Duration::from_millis(500);
/// How long it waits for the others, at least: they went the same way.
const GRACE: Duration = Duration::from_millis(100);
/// Rounds before an answer is believed though routers before it kept silent: each may lose an echo.
const ROUNDS: u16 = 2;

/// Looks for the distance each time.
#[derive(Debug)]
pub(super) struct Hops {
    /// Farther is not looked.
    pub(super) most: u8,
}

impl StatusObject for Hops {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(async {
            let socket = EchoSocket::open(instance.address.ip(), false)?;
            let mut distances = Distances::default();
            // The reading's timeout ends it where nothing ever answers.
            for round in 1.. {
                let sent = Instant::now();
                for hops in distances.open(self.most) {
                    socket.send(u16::from(hops), Some(hops)).await?;
                }
                let mut until = sent + ROUND;
                while !distances.is_certain() {
                    let Ok(heard) = timeout_at(until, socket.hear()).await else { break };
                    let is_first = distances.reached.is_none();
                    distances.hear(heard?, self.most);
                    if is_first && distances.reached.is_some() {
                        until = Instant::now() + GRACE.max(sent.elapsed() * 2);
                    }
                }
                if let Some(hops) =
                    distances.reached.filter(|_| distances.is_certain() || round >= ROUNDS)
                {
                    return Ok(Reading { value: Some(f64::from(hops)), ..Reading::default() });
                }
            }
            Err(Failure::Timeout)
        })
    }
}

/// What is known of each number of hops.
#[derive(Debug, Default)]
struct Distances {
    /// The least that is known to be enough.
    reached: Option<u8>,
    /// Bit n: n hops are known to be too few.
    short: [u128; 2],
}

impl Distances {
    fn is_short(&self, hops: u8) -> bool {
        self.short[usize::from(hops / 128)] & (1 << (hops % 128)) != 0
    }

    /// Those of which nothing is known, below what is known to be enough.
    fn open(&self, most: u8) -> Vec<u8> {
        let end = self.reached.map_or(most, |reached| reached - 1);
        (1..=end).filter(|hops| !self.is_short(*hops)).collect()
    }

    fn is_certain(&self) -> bool {
        self.reached.is_some_and(|reached| (1..reached).all(|hops| self.is_short(hops)))
    }

    fn hear(&mut self, heard: Heard, most: u8) {
        let (sequence, is_enough) = match heard {
            Heard::Reply(sequence) => (sequence, true),
            Heard::Exceeded(sequence) => (sequence, false),
        };
        let Some(hops) = u8::try_from(sequence).ok().filter(|hops| (1..=most).contains(hops))
        else {
            return;
        };
        if is_enough {
            self.reached = Some(self.reached.map_or(hops, |reached| reached.min(hops)));
        } else {
            self.short[usize::from(hops / 128)] |= 1 << (hops % 128);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_that_is_answered_is_the_distance() {
        let mut distances = Distances::default();
        assert_eq!(distances.open(4), [1, 2, 3, 4]);
        for heard in [Heard::Reply(9), Heard::Reply(4), Heard::Exceeded(1), Heard::Reply(0)] {
            distances.hear(heard, 9);
        }
        assert_eq!((distances.reached, distances.is_certain()), (Some(4), false));
        assert_eq!(distances.open(9), [2, 3], "those that may have been lost");
        distances.hear(Heard::Exceeded(2), 9);
        distances.hear(Heard::Reply(3), 9);
        assert_eq!((distances.reached, distances.is_certain()), (Some(3), true));
        distances.hear(Heard::Exceeded(200), 255);
        assert!(distances.is_short(200) && !distances.is_short(72));
    }
}
