//! Next hops whose MAC addresses workers asked for. Pure: time is a parameter.
//!
//! The kernel does not see what our packet sockets send, so nothing but us keeps its entries fresh. A next
//! hop stays here for a while after it was asked for; then it leaves the view, and whoever still uses it
//! asks again.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::forward::view::NicId;

/// A next hop behind a NIC.
pub type Hop = (NicId, IpAddr);

/// How long a next hop stays after it was last asked for.
const KEPT: Duration = Duration::from_secs(600);
/// The kernel is asked to resolve one next hop no more often.
const PAUSE: Duration = Duration::from_secs(1);
/// An entry that went stale is confirmed no more often.
const REFRESH: Duration = Duration::from_secs(15);
/// At most so many; the one asked for longest ago gives way.
const MOST: usize = 4096;

/// What has been asked for.
#[derive(Debug, Default)]
pub struct Requested {
    hops: HashMap<Hop, Times, foldhash::fast::RandomState>,
}

#[derive(Clone, Copy, Debug)]
struct Times {
    asked: Instant,
    kernel_asked: Option<Instant>,
}

/// What the kernel's table says of a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing that could be used.
    No,
    /// A MAC address that was not confirmed for a while.
    Stale,
    /// A good MAC address.
    Yes,
}

impl Requested {
    /// A worker asks for `hop`; true if the kernel is to resolve it now.
    pub fn ask(&mut self, hop: Hop, known: Known, now: Instant) -> bool {
        if self.hops.len() >= MOST && !self.hops.contains_key(&hop) {
            let oldest = self.hops.iter().min_by_key(|(_, t)| t.asked).map(|(hop, _)| *hop);
            if let Some(oldest) = oldest {
                self.hops.remove(&oldest);
            }
        }
        let times = self.hops.entry(hop).or_insert(Times { asked: now, kernel_asked: None });
        times.asked = now;
        let pause = match known {
            Known::Yes => return false,
            Known::Stale => REFRESH,
            Known::No => PAUSE,
        };
        let is_due = times.kernel_asked.is_none_or(|last| now.duration_since(last) >= pause);
        if is_due {
            times.kernel_asked = Some(now);
        }
        is_due
    }

    /// Is it to be in the view?
    pub fn contains(&self, hop: &Hop) -> bool {
        self.hops.contains_key(hop)
    }

    /// Forgets what nobody asked for in a while, and says which stale entries the kernel is to confirm now.
    pub fn refresh(&mut self, now: Instant, known: impl Fn(&Hop) -> Known) -> Vec<Hop> {
        self.hops.retain(|_, times| now.duration_since(times.asked) < KEPT);
        let is_due = |times: &Times| {
            times.kernel_asked.is_none_or(|last| now.duration_since(last) >= REFRESH)
        };
        let mut due = Vec::new();
        for (hop, times) in &mut self.hops {
            if is_due(times) && known(hop) == Known::Stale {
                times.kernel_asked = Some(now);
                due.push(*hop);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: Hop = (NicId(0), IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7)));

    #[test]
    fn the_kernel_is_not_asked_again_at_once() {
        let (mut requested, now) = (Requested::default(), Instant::now());
        assert!(requested.ask(HOP, Known::No, now));
        assert!(!requested.ask(HOP, Known::No, now + PAUSE / 2));
        assert!(requested.ask(HOP, Known::No, now + PAUSE));
        assert!(!requested.ask(HOP, Known::Yes, now + PAUSE * 9));
    }

    #[test]
    fn a_stale_entry_is_confirmed_now_and_then_while_it_is_asked_for() {
        let (mut requested, now) = (Requested::default(), Instant::now());
        requested.ask(HOP, Known::Yes, now);
        assert_eq!(requested.refresh(now, |_| Known::Stale), [HOP]);
        assert!(requested.refresh(now + REFRESH / 2, |_| Known::Stale).is_empty());
        assert_eq!(requested.refresh(now + REFRESH, |_| Known::Stale), [HOP]);
        assert!(requested.refresh(now + REFRESH * 2, |_| Known::Yes).is_empty());
        assert!(requested.refresh(now + KEPT, |_| Known::Stale).is_empty());
        assert!(!requested.contains(&HOP));
    }

    #[test]
    fn the_set_is_bounded() {
        let (mut requested, now) = (Requested::default(), Instant::now());
        let hop = |i: usize| {
            let bits = 0x0a00_0000 + u32::try_from(i).expect("it is small");
            (NicId(0), IpAddr::V4(bits.into()))
        };
        for i in 0..=MOST {
            let offset = Duration::from_micros(u64::try_from(i).expect("it is small"));
            requested.ask(hop(i), Known::No, now + offset);
        }
        assert_eq!(requested.hops.len(), MOST);
        assert!(!requested.contains(&hop(0)) && requested.contains(&hop(MOST)));
    }
}
