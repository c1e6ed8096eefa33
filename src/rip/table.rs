//! The daemon's routing table: the VIPAs' routes, the NICs' own, and what neighbours told (RFC 2453 sections 3.6 and 3.8).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Ways;
use crate::forward::view::NicId;
use crate::wire::ip::Prefix;
use crate::wire::rip::INFINITY;

/// Ways that one learned route keeps at most.
const MOST_WAYS: usize = 16;

/// Where a route comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Of the virtual adapter: never inactivated, never changed by an update (FIG. 3A 307, FIG. 3B).
    Virtual,
    /// A network of this NIC.
    Real(NicId),
    /// Heard; all ways have the route's metric.
    Learned(Vec<Way>),
}

/// One way of a learned route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Heard by this NIC.
    pub nic: NicId,
    /// Who told.
    pub neighbour: IpAddr,
    /// To whom it leads: who told, or the next hop that was named.
    pub gateway: IpAddr,
    /// Unreachable from then on, unless heard of again.
    pub expires: Instant,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where from.
    pub origin: Origin,
    /// 1 to 16.
    pub metric: u8,
    /// Route tag.
    pub tag: u16,
    /// Neighbours have not been told yet (the route change flag).
    pub is_changed: bool,
    /// Unreachable; forgotten from then on (the garbage-collection timer).
    pub garbage: Option<Instant>,
}

impl Route {
    fn of(origin: Origin, metric: u8) -> Route {
        Route { origin, metric, tag: 0, is_changed: true, garbage: None }
    }

    /// By NIC and gateway, in order; none where it was not learned or is unreachable.
    /// Those of many routes are the `last` ones.
    pub fn ways(&self, last: &mut Ways) -> Option<Ways> {
        let Origin::Learned(ways) = &self.origin else { return None };
        if self.garbage.is_some() {
            return None;
        }
        let ways = ways.iter().map(|way| (way.nic, way.gateway));
        if !ways.clone().eq(last.iter().copied()) {
            let mut ways: Vec<_> = ways.collect();
            ways.sort_unstable();
            ways.dedup();
            if *ways != **last {
                *last = ways.into();
            }
        }
        Some(Arc::clone(last))
    }

    /// Would what it covers be sent by `nic`? Split horizon asks this (RFC 2453 section 3.4.3).
    pub fn leaves_by(&self, nic: NicId) -> bool {
        match &self.origin {
            Origin::Virtual => false,
            Origin::Real(real) => *real == nic,
            Origin::Learned(ways) => ways.iter().any(|way| way.nic == nic),
        }
    }
}

/// What was heard of a route.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// Where to.
    pub prefix: Prefix,
    /// The neighbour's metric and the NIC's cost, at most 16.
    pub metric: u8,
    /// Route tag.
    pub tag: u16,
    /// By this NIC.
    pub nic: NicId,
    /// From this neighbour.
    pub neighbour: IpAddr,
    /// Leads there.
    pub gateway: IpAddr,
}

/// The table.
#[derive(Debug, Default)]
pub struct Table {
    routes: BTreeMap<Prefix, Route>,
    learned: usize,
    /// Counts changes of what is learned.
    version: u64,
    /// The neighbours do not know all news.
    has_news: bool,
}

/// The table is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Table {
    /// All routes in the order of their prefixes.
    pub fn iter(&self) -> impl Iterator<Item = (&Prefix, &Route)> {
        self.routes.iter()
    }

    /// The route for exactly this prefix.
    pub fn get(&self, prefix: &Prefix) -> Option<&Route> {
        self.routes.get(prefix)
    }

    /// Rises with every change of the ways that are learned.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Is there a route that the neighbours do not know the news of?
    pub fn is_changed(&self) -> bool {
        self.has_news
    }

    /// The neighbours were told.
    pub fn told(&mut self) {
        if std::mem::take(&mut self.has_news) {
            self.routes.values_mut().for_each(|route| route.is_changed = false);
        }
    }

    /// All routes are news.
    pub fn all_changed(&mut self) {
        self.has_news = true;
        self.routes.values_mut().for_each(|route| route.is_changed = true);
    }

    /// FIG. 3A 319: a route of the virtual adapter.
    pub fn put_virtual(&mut self, prefix: Prefix, metric: u8) {
        let is_same = self
            .routes
            .get(&prefix)
            .is_some_and(|route| route.origin == Origin::Virtual && route.metric == metric);
        if !is_same {
            self.put(prefix, Route::of(Origin::Virtual, metric));
        }
    }

    /// The virtual adapter has this address no more: unreachable, and later forgotten.
    pub fn drop_virtual(&mut self, prefix: Prefix, garbage: Instant) {
        let route = self.routes.get_mut(&prefix).filter(|route| route.origin == Origin::Virtual);
        if let Some(route) = route {
            self.has_news |= expire(route, garbage);
        }
    }

    /// Networks of this NIC are so far now.
    pub fn set_real(&mut self, nic: NicId, metric: u8) {
        for route in self.routes.values_mut() {
            if route.origin == Origin::Real(nic)
                && route.garbage.is_none()
                && route.metric != metric
            {
                (route.metric, route.is_changed) = (metric, true);
                self.has_news = true;
            }
        }
    }

    /// FIG. 3A 321: a network of a NIC. A virtual route stays what it is; so does that of a live NIC before it.
    pub fn put_real(&mut self, prefix: Prefix, nic: NicId, metric: u8) {
        if let Some(route) = self.routes.get(&prefix)
            && (route.origin == Origin::Virtual
                || matches!(route.origin, Origin::Real(_)) && route.garbage.is_none())
        {
            return;
        }
        self.put(prefix, Route::of(Origin::Real(nic), metric));
    }

    fn put(&mut self, prefix: Prefix, route: Route) {
        let is_learned = |route: &Route| matches!(route.origin, Origin::Learned(_));
        self.learned += usize::from(is_learned(&route));
        let is_news = is_learned(&route);
        self.has_news |= route.is_changed;
        let old = self.routes.insert(prefix, route);
        let was_learned = old.as_ref().is_some_and(is_learned);
        self.learned -= usize::from(was_learned);
        self.version += u64::from(is_news || was_learned);
    }

    /// FIG. 3A 313: the NIC is not active, its own routes and those by way of it are marked for deletion. `keep` says which of its networks
    /// it still has.
    pub fn fail_nic(&mut self, nic: NicId, keep: impl Fn(&Prefix) -> bool, garbage: Instant) {
        for (prefix, route) in &mut self.routes {
            match &mut route.origin {
                Origin::Real(real) if *real == nic && !keep(prefix) => {
                    self.has_news |= expire(route, garbage);
                }
                Origin::Learned(ways) => {
                    let before = ways.len();
                    if ways.iter().any(|way| way.nic != nic) {
                        ways.retain(|way| way.nic != nic);
                        self.version += u64::from(ways.len() != before);
                    } else if route.garbage.is_none() && ways.iter().any(|way| way.nic == nic) {
                        self.has_news |= expire(route, garbage);
                        self.version += 1;
                    }
                }
                _ => {}
            }
        }
    }

    /// The networks that this NIC has no more.
    pub fn drop_real(&mut self, nic: NicId, keep: impl Fn(&Prefix) -> bool, garbage: Instant) {
        for (prefix, route) in &mut self.routes {
            if matches!(route.origin, Origin::Real(real) if real == nic) && !keep(prefix) {
                self.has_news |= expire(route, garbage);
            }
        }
    }

    /// RFC 2453 section 3.9.2, and FIG. 3B: an update for a virtual route changes nothing; a shorter route replaces a longer one.
    ///
    /// # Errors
    /// The route would be one more than `most`.
    pub fn hear(
        &mut self,
        heard: Heard,
        most: usize,
        expires: Instant,
        garbage: Instant,
    ) -> Result<(), Full> {
        let way =
            Way { nic: heard.nic, neighbour: heard.neighbour, gateway: heard.gateway, expires };
        let is_reachable = heard.metric < INFINITY;
        let Some(route) = self.routes.get_mut(&heard.prefix) else {
            if !is_reachable {
                return Ok(());
            }
            if self.learned >= most {
                return Err(Full);
            }
            self.put(heard.prefix, learned(way, heard));
            return Ok(());
        };
        let Origin::Learned(ways) = &mut route.origin else {
            // The NIC's own network is no longer there, and somebody else knows a way.
            if route.garbage.is_some() && is_reachable && route.origin != Origin::Virtual {
                if self.learned >= most {
                    return Err(Full);
                }
                self.put(heard.prefix, learned(way, heard));
            }
            return Ok(());
        };
        if route.garbage.is_some() {
            if is_reachable {
                self.put(heard.prefix, learned(way, heard));
            }
            return Ok(());
        }
        let known =
            ways.iter().position(|way| way.neighbour == heard.neighbour && way.nic == heard.nic);
        match (known, heard.metric.cmp(&route.metric)) {
            // A shorter way, from whomever: it alone counts.
            (_, std::cmp::Ordering::Less) => self.put(heard.prefix, learned(way, heard)),
            (Some(at), std::cmp::Ordering::Equal) => {
                let is_other = ways[at].gateway != way.gateway;
                ways[at] = way;
                let is_tagged = route.tag != heard.tag;
                route.tag = heard.tag;
                route.is_changed |= is_tagged;
                self.has_news |= is_tagged;
                self.version += u64::from(is_other);
            }
            (None, std::cmp::Ordering::Equal) if ways.len() < MOST_WAYS => {
                ways.push(way);
                self.version += 1;
            }
            // By this way it is longer now; others may still be short.
            (Some(at), std::cmp::Ordering::Greater) if ways.len() > 1 => {
                ways.swap_remove(at);
                self.version += 1;
            }
            (Some(_), std::cmp::Ordering::Greater) if is_reachable => {
                self.put(heard.prefix, learned(way, heard));
            }
            (Some(_), std::cmp::Ordering::Greater) => {
                self.has_news |= expire(route, garbage);
                self.version += 1;
            }
            (None, _) => {}
        }
        Ok(())
    }

    /// RFC 2453 section 3.8: what was not heard of becomes unreachable, and later forgotten.
    pub fn age(&mut self, now: Instant, garbage: Duration) {
        let mut version = self.version;
        for route in self.routes.values_mut() {
            let Origin::Learned(ways) = &mut route.origin else { continue };
            if route.garbage.is_some() || ways.iter().all(|way| now < way.expires) {
                continue;
            }
            version += 1;
            if ways.iter().any(|way| now < way.expires) {
                ways.retain(|way| now < way.expires);
            } else {
                self.has_news |= expire(route, now + garbage);
            }
        }
        let is_over = |route: &Route| route.garbage.is_some_and(|at| at <= now);
        let learned = &mut self.learned;
        self.routes.retain(|_, route| {
            let is_over = is_over(route);
            *learned -= usize::from(is_over && matches!(route.origin, Origin::Learned(_)));
            !is_over
        });
        self.version = version;
    }

    /// When something is due to age.
    pub fn next_deadline(&self) -> Option<Instant> {
        let of = |route: &Route| match (&route.origin, route.garbage) {
            (_, Some(garbage)) => Some(garbage),
            (Origin::Learned(ways), None) => ways.iter().map(|way| way.expires).min(),
            _ => None,
        };
        self.routes.values().filter_map(of).min()
    }
}

fn learned(way: Way, heard: Heard) -> Route {
    Route { tag: heard.tag, ..Route::of(Origin::Learned(vec![way]), heard.metric) }
}

/// RFC 2453 section 3.8: unreachable, told to all, forgotten at `garbage`; true if that is news.
fn expire(route: &mut Route, garbage: Instant) -> bool {
    if route.garbage.is_some() {
        return false;
    }
    (route.metric, route.garbage, route.is_changed) = (INFINITY, Some(garbage), true);
    true
}
