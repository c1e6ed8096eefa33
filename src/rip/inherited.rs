//! Routes that an earlier run of the forwarder learned. The kernel has kept to them since; so do we, until the neighbours tell them anew or
//! have had the time to.

use std::collections::HashSet;
use std::time::Instant;

use super::Learned;
use crate::wire::ip::Prefix;

/// What is left of them.
#[derive(Debug)]
pub struct Inherited {
    routes: Vec<Learned>,
    until: Instant,
}

impl Inherited {
    /// All of them, until then.
    pub fn new(routes: Vec<Learned>, until: Instant) -> Inherited {
        Inherited { routes, until }
    }

    /// When [`Inherited::is_over`] has something to say.
    pub fn next_deadline(&self) -> Option<Instant> {
        (!self.routes.is_empty()).then_some(self.until)
    }

    /// True: those that are left have just come to their end.
    pub fn is_over(&mut self, now: Instant) -> bool {
        let is_over = now >= self.until && !self.routes.is_empty();
        if is_over {
            self.routes.clear();
        }
        is_over
    }

    /// Adds what the neighbours have not told yet to what they have. Who was told of once is inherited no more: what becomes of it is
    /// the neighbours' word.
    pub fn add_to(&mut self, learned: &mut Vec<Learned>) {
        if self.routes.is_empty() {
            return;
        }
        let told: HashSet<Prefix> = learned.iter().map(|new| new.prefix).collect();
        self.routes.retain(|old| !told.contains(&old.prefix));
        learned.extend(self.routes.iter().cloned());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::forward::view::NicId;

    fn learned(prefix: &str, gateway: &str) -> Learned {
        let gateway = gateway.parse().expect("an address");
        Learned { prefix: prefix.parse().expect("a prefix"), ways: [(NicId(0), gateway)].into() }
    }

    #[test]
    fn each_route_holds_until_it_is_told_anew_and_does_not_come_back() {
        let start = Instant::now();
        let [one, other] = ["10.8.0.0/24", "10.9.0.0/24"].map(|p| learned(p, "10.1.1.1"));
        let mut inherited = Inherited::new(vec![one.clone(), other.clone()], start);
        let anew = learned("10.9.0.0/24", "10.1.1.7");
        let mut all = vec![anew.clone()];
        inherited.add_to(&mut all);
        assert_eq!(all, [anew, one.clone()]);
        let mut all = Vec::new();
        inherited.add_to(&mut all);
        assert_eq!(all, [one], "the neighbours took it back");
    }

    #[test]
    fn they_end_once() {
        let start = Instant::now();
        let end = start + Duration::from_secs(60);
        let mut inherited = Inherited::new(vec![learned("10.8.0.0/24", "10.1.1.1")], end);
        assert!(!inherited.is_over(start));
        assert_eq!(inherited.next_deadline(), Some(end));
        assert!(inherited.is_over(end) && !inherited.is_over(end));
        assert_eq!(inherited.next_deadline(), None);
        let mut all = Vec::new();
        inherited.add_to(&mut all);
        assert_eq!(all, []);
    }
}
