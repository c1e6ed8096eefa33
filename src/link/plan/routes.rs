//! Routes of our tables: for each prefix behind a NIC a *pair*, first through the adapter, then, for when no
//! forwarder runs, through the NICs themselves; and a `throw` for each prefix that is the kernel's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::own;
use super::rules::{default_vipa, never_ours, tables};
use crate::config::Config;
use crate::forward::view::NicId;
use crate::link::health::Health;
use crate::link::mirror::{KernelRoute, Mirror, RouteKind};
use crate::link::{MAIN_TABLE, PROTOCOL};
use crate::rip::Learned;
use crate::wire::ip::{Family, Prefix};

/// Metric of the routes through the adapter, and of throws.
pub const ADAPTER_METRIC: u32 = 10;
/// Metric of the kernel's fallback.
pub const FALLBACK_METRIC: u32 = 100;

/// A way over a NIC: what the kernel's main table or the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Way {
    /// By this NIC.
    pub nic: NicId,
    /// To this gateway; `None`: on the link.
    pub gateway: Option<IpAddr>,
}

/// Where which prefix leads.
pub type Reaches = BTreeMap<Prefix, Reach>;

/// Where a prefix leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Over these NICs, not empty; shared by learned routes that have the same.
    Nics(Arc<[Way]>),
    /// The kernel's business: its route leaves by a device that is no NIC of vipa.
    Elsewhere,
}

/// Every prefix that concerns vipa, of the families that have a VIPA. The default is there if a NIC has a
/// gateway; a default over another device stays out, since our NICs' gateways are there to be used.
pub fn reaches(config: &Config, mirror: &Mirror) -> Reaches {
    let mut reaches = BTreeMap::new();
    for family in Family::BOTH.into_iter().filter(|f| default_vipa(config, *f).is_some()) {
        let default = Prefix::default_route(family);
        let ways = default_ways(config, mirror, family);
        if !ways.is_empty() {
            reaches.insert(default, Reach::Nics(ways.into()));
        }
        let prefixes: BTreeSet<Prefix> = mirror
            .routes(MAIN_TABLE)
            .map(|route| route.prefix)
            .filter(|prefix| prefix.family() == family && *prefix != default)
            .filter(|prefix| !is_never_ours(*prefix))
            .collect();
        for prefix in prefixes {
            if let Some(reach) = reach(config, mirror, prefix) {
                reaches.insert(prefix, reach);
            }
        }
    }
    learn(config, mirror, &mut reaches);
    reaches
}

/// What neighbours told, where neither the configuration nor the kernel knows better: both are nearer to the operator.
fn learn(config: &Config, mirror: &Mirror, reaches: &mut Reaches) {
    let is_ours = |prefix: Prefix| {
        default_vipa(config, prefix.family()).is_some()
            && !(prefix.length() > 0 && is_never_ours(prefix))
            && !config.adapter.addresses.iter().any(|vipa| Prefix::host(*vipa) == prefix)
    };
    let (mut told, mut ways): (&[_], Arc<[Way]>) = (&[], Arc::new([]));
    for learned in mirror.learned().iter().filter(|learned| is_ours(learned.prefix)) {
        if !std::ptr::eq(told, &*learned.ways) {
            let way = |(nic, gateway): &(NicId, IpAddr)| Way { nic: *nic, gateway: Some(*gateway) };
            (told, ways) = (&learned.ways, learned.ways.iter().map(way).collect());
        }
        if !ways.is_empty() {
            reaches.entry(learned.prefix).or_insert_with(|| Reach::Nics(Arc::clone(&ways)));
        }
    }
}

/// What an earlier run had learned by RIP: fallback routes of ours that neither the configuration nor the kernel's routes explain.
pub fn inherited(config: &Config, mirror: &Mirror) -> Vec<Learned> {
    let explained = reaches(config, mirror);
    let is_inherited = |route: &&KernelRoute| {
        route.protocol == PROTOCOL
            && route.metric == FALLBACK_METRIC
            && !explained.contains_key(&route.prefix)
    };
    let learned = |route: &KernelRoute| {
        let ways = ways_of(config, mirror, route).into_iter();
        let ways = ways.filter_map(|way| Some((way.nic, way.gateway?))).collect();
        Learned { prefix: route.prefix, ways }
    };
    mirror.routes(config.adapter.table).filter(is_inherited).map(learned).collect()
}

/// Every NIC and gateway that a prefix leads over, some of them often.
pub fn next_hops(reaches: &Reaches) -> impl Iterator<Item = (NicId, IpAddr)> {
    let (mut last, none): (&[Way], &[Way]) = (&[], &[]);
    let ways = reaches.values().flat_map(move |reach| match reach {
        Reach::Nics(ways) if !std::ptr::eq(last, &**ways) => {
            last = ways;
            ways
        }
        _ => none,
    });
    ways.filter_map(|way| Some((way.nic, way.gateway?)))
}

fn is_never_ours(prefix: Prefix) -> bool {
    never_ours(prefix.family())
        .any(|none| none.contains(prefix.address()) && prefix.length() >= none.length())
}

/// The gateways of the configuration; for a NIC that names none of the family, the kernel's default routes
/// over it.
fn default_ways(config: &Config, mirror: &Mirror, family: Family) -> Vec<Way> {
    let learned = kernel_ways(config, mirror, Prefix::default_route(family));
    let mut ways = Vec::new();
    for (nic, id) in config.nics.iter().zip((0..).map(NicId)) {
        let mut gateways =
            nic.gateways.iter().filter(|gateway| Family::of(**gateway) == family).peekable();
        if gateways.peek().is_some() {
            ways.extend(gateways.map(|gateway| Way { nic: id, gateway: Some(*gateway) }));
        } else {
            ways.extend(learned.iter().filter(|way| way.nic == id));
        }
    }
    ways
}

/// The kernel's best route for a prefix decides whose it is. If it leaves by a NIC, all NICs that have a
/// route for the prefix share it: the kernel's metrics only tell which of a NIC's own routes is the best.
fn reach(config: &Config, mirror: &Mirror, prefix: Prefix) -> Option<Reach> {
    let adapter = mirror.link(&config.adapter.name).map(|(index, _)| index);
    let best = mirror
        .routes_of(MAIN_TABLE, prefix)
        .find(|route| !route.next_hops.iter().any(|hop| Some(hop.ifindex) == adapter))?;
    let ways = ways_of(config, mirror, best);
    Some(if ways.is_empty() {
        Reach::Elsewhere
    } else {
        Reach::Nics(kernel_ways(config, mirror, prefix).into())
    })
}

/// Does main's best default route leave by no NIC?
pub fn is_default_foreign(config: &Config, mirror: &Mirror, family: Family) -> bool {
    reach(config, mirror, Prefix::default_route(family)) == Some(Reach::Elsewhere)
}

/// Ways of the kernel's routes for `prefix`: of each NIC those of its lowest metric, in order of NICs.
fn kernel_ways(config: &Config, mirror: &Mirror, prefix: Prefix) -> Vec<Way> {
    let mut found: Vec<Way> = Vec::new();
    for route in mirror.routes_of(MAIN_TABLE, prefix) {
        let taken: BTreeSet<NicId> = found.iter().map(|way| way.nic).collect();
        found.extend(
            ways_of(config, mirror, route).into_iter().filter(|way| !taken.contains(&way.nic)),
        );
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn ways_of(config: &Config, mirror: &Mirror, route: &KernelRoute) -> Vec<Way> {
    if route.kind != RouteKind::Unicast {
        return Vec::new();
    }
    let way = |hop: &crate::link::mirror::KernelHop| {
        let nic = nic_of(config, mirror, hop.ifindex)?;
        Some(Way { nic, gateway: hop.gateway })
    };
    route.next_hops.iter().filter_map(way).collect()
}

/// The `[[nic]]` that this device is.
pub fn nic_of(config: &Config, mirror: &Mirror, ifindex: u32) -> Option<NicId> {
    let name = &mirror.links.get(&ifindex)?.name;
    let position = config.nics.iter().position(|nic| nic.name == *name)?;
    u8::try_from(position).ok().map(NicId)
}

/// A next hop of a route of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedHop {
    /// Name of the device.
    pub device: String,
    /// Its index; 0 while it does not exist.
    pub ifindex: u32,
    /// To this gateway; `None`: on the link.
    pub gateway: Option<IpAddr>,
    /// Its share, from 1.
    pub weight: u16,
    /// No route of the NIC covers the gateway: the kernel is to take our word for it.
    pub is_onlink: bool,
}

/// A route of one of our tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRoute {
    /// Which of them.
    pub table: u32,
    /// What it covers.
    pub prefix: Prefix,
    /// [`ADAPTER_METRIC`] or [`FALLBACK_METRIC`].
    pub metric: u32,
    /// The table's VIPA, except without next hops.
    pub source: Option<IpAddr>,
    /// Empty: a throw, or behind all else what says that there is no way.
    pub next_hops: Arc<[PlannedHop]>,
}

/// What tells a route from others, in the order of [`routes`].
pub type RouteKey = (Prefix, u32, u32);

impl PlannedRoute {
    /// Prefix, table and metric.
    pub fn key(&self) -> RouteKey {
        (self.prefix, self.table, self.metric)
    }

    /// What it does.
    pub fn kind(&self) -> RouteKind {
        match self.metric {
            _ if !self.next_hops.is_empty() => RouteKind::Unicast,
            FALLBACK_METRIC => RouteKind::UNREACHABLE,
            _ => RouteKind::Throw,
        }
    }
}

impl fmt::Display for PlannedRoute {
    /// As `ip route` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix.family() == Family::V6 {
            write!(f, "-6 ")?;
        }
        write!(f, "route ")?;
        match self.kind() {
            RouteKind::Unicast => {}
            RouteKind::Throw => write!(f, "throw ")?,
            RouteKind::Other(_) => write!(f, "unreachable ")?,
        }
        match self.prefix.length() {
            0 => write!(f, "default")?,
            _ => write!(f, "{}", self.prefix)?,
        }
        for hop in self.next_hops.iter() {
            let is_alone = self.next_hops.len() == 1;
            if !is_alone {
                write!(f, " nexthop")?;
            }
            if let Some(gateway) = hop.gateway {
                write!(f, " via {gateway}")?;
            }
            write!(f, " dev {}", hop.device)?;
            if !is_alone {
                write!(f, " weight {}", hop.weight)?;
            }
            if hop.is_onlink {
                write!(f, " onlink")?;
            }
        }
        write!(f, " table {}", self.table)?;
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        write!(f, " metric {}", self.metric)
    }
}

/// All routes of our tables, in the order of their keys: the same in each, but for the preferred source.
pub fn routes(
    config: &Config,
    mirror: &Mirror,
    reaches: &Reaches,
    health: &Health,
) -> Vec<PlannedRoute> {
    let adapter: Arc<[PlannedHop]> = Arc::new([PlannedHop {
        device: config.adapter.name.clone(),
        ifindex: mirror.link(&config.adapter.name).map_or(0, |(index, _)| index),
        gateway: None,
        weight: 1,
        is_onlink: false,
    }]);
    let nothing: Arc<[PlannedHop]> = Arc::new([]);
    let mut tables = tables(config);
    tables.sort_unstable();
    let mut routes = Vec::new();
    let (mut last, mut next_hops): (&[Way], _) = (&[], Arc::clone(&nothing));
    for (prefix, reach) in reaches {
        let prefix = *prefix;
        if let Reach::Nics(ways) = reach
            && !std::ptr::eq(last, &**ways)
        {
            (last, next_hops) = (ways, fallback(config, mirror, health, ways).into());
        }
        let of_family = tables.iter().filter(|(_, vipa)| Family::of(*vipa) == prefix.family());
        for (table, vipa) in of_family.copied() {
            let route = |metric, source, next_hops| PlannedRoute {
                table,
                prefix,
                metric,
                source,
                next_hops,
            };
            if *reach == Reach::Elsewhere {
                routes.push(route(ADAPTER_METRIC, None, Arc::clone(&nothing)));
                continue;
            }
            routes.push(route(ADAPTER_METRIC, Some(vipa), Arc::clone(&adapter)));
            if !next_hops.is_empty() {
                routes.push(route(FALLBACK_METRIC, Some(vipa), Arc::clone(&next_hops)));
            }
        }
    }
    let own = own_use(config, &adapter);
    if !own.is_empty() {
        routes.extend(own);
        routes.sort_by_key(PlannedRoute::key);
    }
    routes
}

/// The table of this host's own use of its services: through the adapter, or not at all.
fn own_use(config: &Config, adapter: &Arc<[PlannedHop]>) -> Vec<PlannedRoute> {
    let route = |family, metric, source, next_hops| PlannedRoute {
        table: own::table(config),
        prefix: Prefix::default_route(family),
        metric,
        source,
        next_hops,
    };
    let of_family = |family| {
        let vipa = default_vipa(config, family);
        [
            route(family, ADAPTER_METRIC, vipa, Arc::clone(adapter)),
            route(family, FALLBACK_METRIC, None, Arc::new([])),
        ]
    };
    let wanted = Family::BOTH.into_iter().filter(|family| own::is_wanted(config, *family));
    wanted.flat_map(of_family).collect()
}

/// What the kernel may use by itself: of the usable ways those of the lowest metric; all, if none is usable.
/// It refuses devices that are not up.
fn fallback(config: &Config, mirror: &Mirror, health: &Health, ways: &[Way]) -> Vec<PlannedHop> {
    let metric = |way: &Way| config.nics[way.nic.index()].metric;
    let usable = || ways.iter().filter(|way| health.is_usable(way));
    let lowest = usable().map(metric).min();
    let is_used = |way: &&Way| match lowest {
        Some(lowest) => health.is_usable(way) && metric(way) == lowest,
        None => true,
    };
    let mut hops: Vec<PlannedHop> = ways
        .iter()
        .filter(is_used)
        .filter_map(|way| {
            let nic = &config.nics[way.nic.index()];
            let (ifindex, link) = mirror.link(&nic.name)?;
            link.is_up.then(|| PlannedHop {
                device: nic.name.clone(),
                ifindex,
                gateway: way.gateway,
                weight: nic.weight,
                is_onlink: way.gateway.is_some_and(|g| !is_reachable(mirror, ifindex, g)),
            })
        })
        .collect();
    let greatest = hops.iter().map(|hop| hop.weight).max().unwrap_or(1);
    for hop in &mut hops {
        hop.weight = kernel_weight(hop.weight, greatest);
    }
    if let [only] = hops.as_mut_slice() {
        only.weight = 1;
    }
    hops
}

/// The kernel's shares end at 256; ours are scaled down where one is greater.
fn kernel_weight(weight: u16, greatest: u16) -> u16 {
    if greatest <= 256 {
        return weight.max(1);
    }
    let scaled = u32::from(weight) * 256 / u32::from(greatest);
    u16::try_from(scaled).unwrap_or(256).max(1)
}

/// Does a connected route of the device cover the gateway? Then the kernel finds it by itself.
fn is_reachable(mirror: &Mirror, ifindex: u32, gateway: IpAddr) -> bool {
    if let IpAddr::V6(address) = gateway
        && address.is_unicast_link_local()
    {
        return true;
    }
    mirror.routes(MAIN_TABLE).any(|route| {
        route.kind == RouteKind::Unicast
            && route.prefix.contains(gateway)
            && route.next_hops.iter().any(|h| h.ifindex == ifindex && h.gateway.is_none())
    })
}
