//! The difference between plan and mirror, as steps for the kernel: add before delete, and delete nothing
//! that is not ours. No difference, no step: applying twice is applying once.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::mirror::{Address, KernelHop, KernelRoute, KernelRule, Mirror, RouteKind};
use super::plan::routes::{FALLBACK_METRIC, PlannedHop, PlannedRoute};
use super::plan::rules::{Action, Rule, preferences};
use super::plan::{AdapterPlan, ManagedNeighbour, NicAddress, Plan, own};
use super::saved::Saved;
use super::{LOCAL_TABLE, MAIN_TABLE, PROTOCOL};
use crate::wire::ip::{Family, Prefix};

/// One request to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sets MTU and IFF_UP of the adapter.
    SetLink {
        /// The adapter.
        name: String,
        /// Its index.
        ifindex: u32,
        /// Bytes.
        mtu: u32,
    },
    /// Gives the adapter, or a NIC, a VIPA.
    AddAddress {
        /// The NIC; `None`: the adapter.
        nic: Option<String>,
        /// Its index.
        ifindex: u32,
        /// The VIPA.
        address: IpAddr,
    },
    /// Takes an address that is no VIPA any more from the adapter, or a VIPA from a NIC.
    DeleteAddress {
        /// The NIC; `None`: the adapter.
        nic: Option<String>,
        /// Its index.
        ifindex: u32,
        /// The address.
        address: IpAddr,
    },
    /// Adds a route, or replaces the one of this prefix and metric.
    PutRoute(PlannedRoute),
    /// IPv6: adds one more next hop to a route; the route named has this next hop alone.
    AppendHop(PlannedRoute),
    /// Deletes a route of ours, or the next hops of it that are named.
    DeleteRoute(KernelRoute),
    /// Adds a policy rule.
    AddRule(Rule),
    /// Deletes a policy rule of ours.
    DeleteRule(Rule),
    /// Has the kernel keep a gateway resolved.
    Manage(ManagedNeighbour),
    /// Leaves a gateway to the kernel's own judgement again.
    Release {
        /// The NIC's index.
        ifindex: u32,
        /// The gateway.
        address: IpAddr,
    },
}

impl Step {
    /// Does it take something away?
    pub fn is_removal(&self) -> bool {
        use Step::{DeleteAddress, DeleteRoute, DeleteRule, Release};
        matches!(self, DeleteAddress { .. } | DeleteRoute(_) | DeleteRule(_) | Release { .. })
    }

    /// May a start succeed without it? The kernel's fallback and resolved gateways only make things better;
    /// a NIC may go away at any moment.
    pub fn is_optional(&self) -> bool {
        match self {
            Step::PutRoute(route) | Step::AppendHop(route) => route.metric == FALLBACK_METRIC,
            Step::Manage(_) | Step::Release { .. } => true,
            Step::AddAddress { nic, .. } => nic.is_some(),
            other => other.is_removal(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::SetLink { name, mtu, .. } => write!(f, "link {name} mtu {mtu} up"),
            Step::AddAddress { nic: None, address, .. } => write!(f, "address {address}"),
            Step::AddAddress { nic: Some(nic), address, .. } => {
                write!(f, "address {address} dev {nic}")
            }
            Step::DeleteAddress { nic: None, address, .. } => {
                write!(f, "delete address {address}")
            }
            Step::DeleteAddress { nic: Some(nic), address, .. } => {
                write!(f, "delete address {address} dev {nic}")
            }
            Step::PutRoute(route) | Step::AppendHop(route) => write!(f, "{route}"),
            Step::DeleteRoute(route) => {
                write!(
                    f,
                    "delete route {} table {} metric {}",
                    route.prefix, route.table, route.metric
                )
            }
            Step::AddRule(rule) => write!(f, "{rule}"),
            Step::DeleteRule(rule) => write!(f, "delete {rule}"),
            Step::Manage(n) => write!(f, "neighbour {} dev {} managed", n.address, n.nic),
            Step::Release { address, .. } => write!(f, "neighbour {address} no longer managed"),
        }
    }
}

/// Where things of ours may stand, now and from earlier runs.
#[derive(Clone, Debug, Default)]
pub struct Ours {
    /// Name of the adapter.
    pub adapter: String,
    /// Routing tables.
    pub tables: Vec<u32>,
    /// First preferences.
    pub preferences: Vec<u32>,
    /// VIPAs.
    pub addresses: Vec<IpAddr>,
    /// Families whose rule of the `local` table was moved ([`own`]).
    pub moved_local: Vec<Family>,
}

impl Ours {
    /// What the saved file knows.
    pub fn of(saved: &Saved) -> Ours {
        Ours {
            adapter: saved.adapter.clone(),
            tables: saved.tables.clone(),
            preferences: saved.preferences.clone(),
            addresses: saved.addresses.clone(),
            moved_local: saved.moved_local.clone(),
        }
    }

    /// Did we set up this rule?
    pub fn has_rule(&self, held: &KernelRule) -> bool {
        let is_in_place = self
            .preferences
            .iter()
            .any(|first| preferences(*first).contains(&held.rule.preference));
        held.protocol == PROTOCOL && !held.has_more && (is_in_place || self.leads_to_us(&held.rule))
    }

    /// Does the rule lead to one of our tables?
    pub fn leads_to_us(&self, rule: &Rule) -> bool {
        matches!(rule.action, Action::Lookup(table) if self.has_table(table))
    }

    /// Did we set up this route?
    pub fn has_route(&self, held: &KernelRoute) -> bool {
        held.protocol == PROTOCOL && self.has_table(held.table)
    }

    fn has_table(&self, table: u32) -> bool {
        table != MAIN_TABLE && self.tables.contains(&table)
    }
}

/// What is to be done so that the kernel's state, as the mirror has it, is the plan's. Routes stand before
/// rules lead to them.
pub fn difference(plan: &Plan, mirror: &Mirror, ours: &Ours) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut removals = Vec::new();
    link(&plan.adapter, mirror, ours, &mut steps, &mut removals);
    nic_addresses(&plan.nic_addresses, mirror, ours, &mut steps, &mut removals);
    let mut surplus = routes(plan, mirror, ours, &mut steps, &mut removals);
    rules(&plan.rules, mirror, ours, &mut steps, &mut removals);
    neighbours(plan, mirror, &mut steps, &mut removals);
    // After the rules that led to them.
    removals.append(&mut surplus);
    in_order(steps, removals)
}

/// The same of policy rules alone.
pub fn rules_difference(planned: &[Rule], mirror: &Mirror, ours: &Ours) -> Vec<Step> {
    let (mut steps, mut removals) = (Vec::new(), Vec::new());
    rules(planned, mirror, ours, &mut steps, &mut removals);
    in_order(steps, removals)
}

fn in_order(mut steps: Vec<Step>, mut removals: Vec<Step>) -> Vec<Step> {
    steps.append(&mut removals);
    // Without the `local` table's rule the host is deaf, and thousands of routes may have to come.
    let is_for_local = |step: &Step| matches!(step, Step::AddRule(rule) if rule.action == Action::Lookup(LOCAL_TABLE));
    steps.sort_by_key(|step| !is_for_local(step));
    steps
}

/// Plan and mirror side by side, both in the order of their keys: tables may be large. Routes that nobody planned come out.
fn routes(
    plan: &Plan,
    mirror: &Mirror,
    ours: &Ours,
    steps: &mut Vec<Step>,
    removals: &mut Vec<Step>,
) -> Vec<Step> {
    let mut tables: Vec<u32> = ours.tables.clone();
    tables.extend(plan.routes.iter().map(|route| route.table).filter(|t| !ours.has_table(*t)));
    tables.sort_unstable();
    tables.dedup();
    let mut held: Vec<_> =
        tables.into_iter().map(|table| (table, mirror.groups(table).peekable())).collect();
    let mut surplus = Vec::new();
    let mut gone = |routes: &[KernelRoute]| {
        let routes = routes.iter().filter(|route| ours.has_route(route));
        surplus.extend(routes.cloned().map(Step::DeleteRoute));
    };
    for route in &plan.routes {
        let Some((_, groups)) = held.iter_mut().find(|(table, _)| *table == route.table) else {
            continue;
        };
        let key = (route.prefix, route.metric);
        while let Some((_, routes)) = groups.next_if(|(held, _)| *held < key) {
            gone(routes);
        }
        let routes = groups.next_if(|(held, _)| *held == key).map_or(&[][..], |(_, routes)| routes);
        match route.prefix.family() {
            Family::V4 => route_v4(route, routes, steps, removals),
            Family::V6 => route_v6(route, routes, steps, removals),
        }
    }
    held.into_iter().flat_map(|(_, groups)| groups).for_each(|(_, routes)| gone(routes));
    surplus
}

fn link(
    plan: &AdapterPlan,
    mirror: &Mirror,
    ours: &Ours,
    steps: &mut Vec<Step>,
    removals: &mut Vec<Step>,
) {
    let Some((ifindex, link)) = mirror.link(&plan.name) else { return };
    if !link.is_up || link.mtu != plan.mtu {
        steps.push(Step::SetLink { name: plan.name.clone(), ifindex, mtu: plan.mtu });
    }
    let held: Vec<IpAddr> = mirror
        .addresses
        .iter()
        .filter(|a| a.ifindex == ifindex && a.prefix_length == Family::of(a.address).bits())
        .filter(|a| a.address.is_ipv4() || a.is_deprecated)
        .map(|a| a.address)
        .collect();
    let missing = plan.addresses.iter().filter(|a| !held.contains(a));
    steps.extend(missing.map(|address| Step::AddAddress { nic: None, ifindex, address: *address }));
    let is_surplus = |a: &&IpAddr| ours.addresses.contains(a) && !plan.addresses.contains(a);
    let surplus = held.iter().filter(is_surplus);
    removals.extend(surplus.map(|address| Step::DeleteAddress {
        nic: None,
        ifindex,
        address: *address,
    }));
}

/// VIPAs on NICs. One that an operator gave to a NIC with its subnet is there already, and stays as it is.
fn nic_addresses(
    plan: &[NicAddress],
    mirror: &Mirror,
    ours: &Ours,
    steps: &mut Vec<Step>,
    removals: &mut Vec<Step>,
) {
    let is_host = |a: &Address| a.prefix_length == Family::of(a.address).bits();
    for NicAddress { nic, ifindex, address } in plan {
        let is_held = |a: &Address| {
            (a.ifindex, a.address) == (*ifindex, *address)
                && (!is_host(a) || a.address.is_ipv4() || a.is_deprecated)
        };
        if !mirror.addresses.iter().any(is_held) {
            steps.push(Step::AddAddress {
                nic: Some(nic.clone()),
                ifindex: *ifindex,
                address: *address,
            });
        }
    }
    let is_planned =
        |a: &Address| plan.iter().any(|p| (p.ifindex, p.address) == (a.ifindex, a.address));
    removals.extend(given(mirror, ours).filter(|a| !is_planned(a)).map(|a| taken(mirror, a)));
}

/// VIPAs that NICs have from us.
fn given<'a>(mirror: &'a Mirror, ours: &'a Ours) -> impl Iterator<Item = &'a Address> {
    let adapter = mirror.link(&ours.adapter).map(|(index, _)| index);
    mirror.addresses.iter().filter(move |a| {
        a.is_ours && Some(a.ifindex) != adapter && ours.addresses.contains(&a.address)
    })
}

fn taken(mirror: &Mirror, given: &Address) -> Step {
    let Address { ifindex, address, .. } = *given;
    let nic = mirror.links.get(&ifindex).map(|link| link.name.clone());
    Step::DeleteAddress { nic, ifindex, address }
}

/// IPv4: one entry with all its next hops, replaced as a whole and at once.
fn route_v4(
    route: &PlannedRoute,
    held: &[KernelRoute],
    steps: &mut Vec<Step>,
    removals: &mut Vec<Step>,
) {
    if let [only] = held
        && is_right(route, only)
    {
        return;
    }
    let (right, wrong): (Vec<_>, Vec<_>) = held.iter().partition(|held| is_right(route, held));
    if right.is_empty() {
        steps.push(Step::PutRoute(route.clone()));
        return; // it takes the place of one; if there were more, they go next time
    }
    let surplus = wrong.into_iter().filter(|held| held.protocol == PROTOCOL);
    removals.extend(surplus.cloned().map(Step::DeleteRoute));
}

/// IPv6: next hops with a gateway are siblings, those without are routes of their own with the same metric,
/// and a replacement reaches only one of these. So next hops are added and deleted one by one, except where
/// there is but one to replace.
fn route_v6(
    route: &PlannedRoute,
    held: &[KernelRoute],
    steps: &mut Vec<Step>,
    removals: &mut Vec<Step>,
) {
    let Some(first) = held.first() else {
        steps.extend(each_hop(route));
        return;
    };
    if held.iter().all(|held| is_right(route, held)) {
        return;
    }
    let is_compatible = first.kind == RouteKind::Unicast
        && route.kind() == RouteKind::Unicast
        && first.source == route.source
        && held.len() == 1
        && route.next_hops.iter().all(|hop| {
            let same = |h: &&KernelHop| (h.ifindex, h.gateway) == (hop.ifindex, hop.gateway);
            first.next_hops.iter().find(same).is_none_or(|h| has_weight(route, h, hop.weight))
        });
    if !is_compatible {
        // Another kind, source or weight: a replacement where there is one of each, else anew.
        if first.next_hops.len() <= 1 && route.next_hops.len() <= 1 && held.len() == 1 {
            steps.push(Step::PutRoute(route.clone()));
        } else {
            steps.extend(held.iter().cloned().map(Step::DeleteRoute));
            steps.extend(each_hop(route));
        }
        return;
    }
    let is_held = |hop: &PlannedHop| {
        first.next_hops.iter().any(|h| (h.ifindex, h.gateway) == (hop.ifindex, hop.gateway))
    };
    let is_wanted = |held: &KernelHop| {
        route.next_hops.iter().any(|h| (h.ifindex, h.gateway) == (held.ifindex, held.gateway))
    };
    let missing = route.next_hops.iter().filter(|hop| !is_held(hop));
    steps.extend(missing.map(|hop| Step::AppendHop(with_hop(route, hop))));
    for hop in first.next_hops.iter().filter(|hop| !is_wanted(hop)) {
        let surplus = KernelRoute { next_hops: vec![hop.clone()], ..first.clone() };
        removals.push(Step::DeleteRoute(surplus));
    }
}

fn each_hop(route: &PlannedRoute) -> Vec<Step> {
    if route.next_hops.len() <= 1 {
        return vec![Step::PutRoute(route.clone())];
    }
    route.next_hops.iter().map(|hop| Step::AppendHop(with_hop(route, hop))).collect()
}

fn with_hop(route: &PlannedRoute, hop: &PlannedHop) -> PlannedRoute {
    PlannedRoute { next_hops: Arc::new([hop.clone()]), ..route.clone() }
}

/// The kernel tells no weight of a single next hop, nor of one without a gateway in IPv6.
fn has_weight(route: &PlannedRoute, held: &KernelHop, weight: u16) -> bool {
    let is_told = route.next_hops.len() > 1
        && (route.prefix.family() == Family::V4 || held.gateway.is_some());
    !is_told || held.weight == weight
}

/// Is the kernel's route what we want? Only what we set is compared.
fn is_right(route: &PlannedRoute, held: &KernelRoute) -> bool {
    if held.protocol != PROTOCOL {
        return false;
    }
    if route.kind() != RouteKind::Unicast {
        return held.kind == route.kind();
    }
    let is_same_hop = |hop: &PlannedHop, held: &KernelHop| {
        (hop.ifindex, hop.gateway) == (held.ifindex, held.gateway)
            && has_weight(route, held, hop.weight)
    };
    held.kind == RouteKind::Unicast
        && held.source == route.source
        && held.next_hops.len() == route.next_hops.len()
        && route.next_hops.iter().all(|hop| held.next_hops.iter().any(|h| is_same_hop(hop, h)))
}

fn rules(
    planned: &[Rule],
    mirror: &Mirror,
    ours: &Ours,
    steps: &mut Vec<Step>,
    removals: &mut Vec<Step>,
) {
    // Another's rule that says the same serves as well; the kernel would not take a second one.
    let is_missing =
        |rule: &&Rule| !mirror.rules.iter().any(|held| held.rule == **rule && !held.has_more);
    let missing = planned.iter().filter(is_missing).cloned();
    let (jumps, others): (Vec<Rule>, Vec<Rule>) =
        missing.partition(|rule| matches!(rule.action, Action::Goto(_) | Action::Nop));
    let mut surplus = Vec::new();
    let mut seen: Vec<&Rule> = Vec::new();
    for held in mirror.rules.iter().filter(|held| ours.has_rule(held)) {
        // Of two equal ones one goes.
        if !planned.contains(&held.rule) || seen.contains(&&held.rule) {
            surplus.push(&held.rule);
        }
        seen.push(&held.rule);
    }
    steps.extend(jumps.into_iter().map(Step::AddRule));
    steps.extend(others.into_iter().map(Step::AddRule));
    removals.extend(surplus.into_iter().cloned().map(Step::DeleteRule));
    local_rule(planned, mirror, ours, steps, removals);
}

/// The rule of the `local` table, which never goes before the mirror shows another: that a step was taken is not
/// enough.
fn local_rule(
    planned: &[Rule],
    mirror: &Mirror,
    ours: &Ours,
    steps: &mut Vec<Step>,
    removals: &mut Vec<Step>,
) {
    for family in Family::BOTH {
        if own::moves(planned).any(|moved| moved == family) {
            removals.extend(own::replaced(mirror, family).map(Step::DeleteRule));
        } else if let Some(step) = local_back(mirror, ours, family) {
            let list = if step.is_removal() { &mut *removals } else { &mut *steps };
            list.push(step);
        }
    }
}

/// The next step by which the `local` table's rule returns to its place, if it was moved from there.
pub fn local_back(mirror: &Mirror, ours: &Ours, family: Family) -> Option<Step> {
    if !ours.moved_local.contains(&family) {
        return None;
    }
    own::back(mirror, family, |rule| ours.leads_to_us(rule)).map(|back| match back {
        own::Back::Add(rule) => Step::AddRule(rule),
        own::Back::Delete(rule) => Step::DeleteRule(rule),
    })
}

fn neighbours(plan: &Plan, mirror: &Mirror, steps: &mut Vec<Step>, removals: &mut Vec<Step>) {
    for neighbour in &plan.neighbours {
        let key = (neighbour.ifindex, neighbour.address);
        if !mirror.neighbours.get(&key).is_some_and(|held| held.is_managed) {
            steps.push(Step::Manage(neighbour.clone()));
        }
    }
    for ((ifindex, address), held) in &mirror.neighbours {
        let is_planned =
            plan.neighbours.iter().any(|n| (n.ifindex, n.address) == (*ifindex, *address));
        if held.is_managed && held.protocol == PROTOCOL && !is_planned {
            removals.push(Step::Release { ifindex: *ifindex, address: *address });
        }
    }
}

/// What `vipa down` does once the `local` table's rule is back ([`local_back`]), before it deletes the adapter: rules first, those that lead to us before those
/// that keep others away, so that no packet loses its way; then routes, then what is left.
pub fn takedown(mirror: &Mirror, ours: &Ours) -> Vec<Step> {
    let mut rules: Vec<&KernelRule> =
        mirror.rules.iter().filter(|held| ours.has_rule(held)).collect();
    rules.sort_by_key(|held| {
        (!ours.leads_to_us(&held.rule), std::cmp::Reverse(held.rule.preference))
    });
    let mut steps: Vec<Step> =
        rules.into_iter().map(|held| Step::DeleteRule(held.rule.clone())).collect();
    for table in &ours.tables {
        let held = mirror.routes(*table).filter(|route| ours.has_route(route));
        steps.extend(held.cloned().map(Step::DeleteRoute));
    }
    for ((ifindex, address), held) in &mirror.neighbours {
        if held.is_managed && held.protocol == PROTOCOL {
            steps.push(Step::Release { ifindex: *ifindex, address: *address });
        }
    }
    steps.extend(given(mirror, ours).map(|given| taken(mirror, given)));
    steps
}

/// A route in our table that is not ours: the table belongs to somebody else.
pub fn foreign_route(mirror: &Mirror, table: u32) -> Option<Prefix> {
    mirror.routes(table).find(|route| route.protocol != PROTOCOL).map(|route| route.prefix)
}

#[cfg(test)]
mod tests;
