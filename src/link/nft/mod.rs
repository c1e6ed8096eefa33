//! nf_tables by hand over netlink: what keeps rewritten flows whole while the kernel forwards, or might
//! answer, in the forwarder's place.
//!
//! [`rules`] says what should stand, [`present`] reads what stands, and [`Nft::ensure`] makes the one the
//! other in a single transaction. [`message`] and [`expression`] write bytes, [`socket`] carries them.
//!
//! Where the kernel can (6.9), the tables belong to our socket: other programs cannot change them, `nft
//! flush ruleset` passes them by, and when we die they stay, orphaned, until the next forwarder adopts
//! them with the flows that they hold. Elsewhere they are ordinary tables; they are watched and put back.

mod edit;
mod expression;
mod flows;
pub mod message;
pub(crate) mod present;
mod rules;
pub(crate) mod socket;
mod table;

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use self::edit::{BATCH_ELEMENTS, DELSETELEM, DESTROYSETELEM, Edit, FlowKeys, Later, NEWSETELEM};
use self::flows::{Place, flow_key, flow_of, keys_of};
use self::message::Writer;
use self::present::Present;
use self::rules::{LEASE, LEASE_KEY};
use self::socket::{Batch, Events, Refused, Requests, Step};
use self::table::{INET, NETDEV, table_name};
use super::plan::can_rewrite;
use crate::config::Config;
use crate::engine::message::HeldFlow;
use crate::forward::applies::Applies;
use crate::forward::claims::Claims;
use crate::forward::rewrite::Endpoint;
use crate::forward::rule::Rule;

const GETGEN: u16 = 16;

const OWNER: u32 = 0x2;
const PERSIST: u32 = 0x4;

/// Tries to make one transaction of what should stand and what stands, while others change it as well.
const TRIES: usize = 40;
/// Refusals after which the trouble is not that others change things at the same time.
const REFUSALS: usize = 5;
/// A forwarder that was killed lets go of its tables as its last files are closed: wait that long.
const OWNER_WAIT: Duration = Duration::from_millis(5);

/// How long replies that nobody claims stay ours after a start.
const ORPHANED: Duration = Duration::from_secs(10);

/// What nftables should hold for the forwarder.
#[derive(PartialEq, Clone, Debug)]
pub struct NftRules {
    /// Names of all `[[nic]]`, whether they exist now or not.
    pub nics: Vec<String>,
    /// What the forwarder owns of what arrives; nothing: no table is needed.
    pub claims: Claims,
    /// This host's own addresses: what servers answer to these is the kernel's.
    pub local: Vec<IpAddr>,
    /// `ip_local_port_range`: UDP from other ports is an answer.
    pub ephemeral: RangeInclusive<u16>,
    /// Source addresses that the stack chooses by itself: what carries another is never held.
    pub sources: Vec<IpAddr>,
    /// `[[source.rule]]`, in order.
    pub rules: Vec<Rule>,
    /// Who applies each of them.
    pub applies: Vec<Applies>,
    /// `bound = "forward"`: sockets bound to a NIC's address are the forwarder's, whoever applies a rule.
    pub is_bound_forwarded: bool,
    /// How long the egress hold lasts beyond the last [`Nft::renew_lease`].
    pub hold: Duration,
}

/// What would be set up for `config`, in words; empty where nothing is ever rewritten.
pub fn outline(config: &Config) -> String {
    if can_rewrite(config) { rules::outline(config) } else { String::new() }
}

/// Our two tables of nf_tables, `inet vipa-<adapter>` and `netdev vipa-<adapter>`.
///
/// Dropping it leaves them as they are: an un-rewritten packet is held, and a reply to a rewritten flow
/// draws no reset, while the next forwarder starts. [`Nft::remove`] lifts them.
#[derive(Debug)]
pub struct Nft {
    table: String,
    requests: Requests,
    events: Events,
    is_protected: bool,
    has_egress: bool,
    knows_destroy: bool,
    spared: BTreeSet<u16>,
    applied: Option<Applied>,
    /// May what stands differ from what was applied, and from the flows below?
    is_stale: bool,
    /// Did others touch our tables since [`Nft::drain_events`] was asked?
    is_touched: bool,
    /// Was something put back that [`Nft::ensure`] has not told yet?
    is_repaired: bool,
    /// Was there ever anything to hold?
    has_held: bool,
    /// Were the flows taken over that a forwarder before us held?
    has_adopted: bool,
    /// Flows held, without their source on the wire, and that.
    flows: HashMap<HeldFlow, Option<Endpoint>, foldhash::fast::RandomState>,
    /// Replies that a forwarder before us took, until the workers have said which of them they know, or this
    /// moment.
    orphans: (Vec<(Place, Vec<u8>)>, Instant),
}

/// What was applied last.
#[derive(Clone, Debug, PartialEq)]
struct Applied {
    rules: NftRules,
    /// Indexes that the NICs had then: one of the same name may be another device.
    indexes: Vec<u32>,
    spared: BTreeSet<u16>,
}

impl Nft {
    /// Opens the sockets; changes nothing.
    ///
    /// # Errors
    /// `Unsupported` where the kernel has no nf_tables.
    pub fn open(adapter: &str, is_protected: bool) -> io::Result<Nft> {
        let mut requests =
            Requests::open(netlink_sys::protocols::NETLINK_NETFILTER).map_err(no_nf_tables)?;
        requests.get(socket::kind(GETGEN), &socket::family_header(0)).map_err(no_nf_tables)?;
        let events = Events::open(requests.port())?;
        Ok(Nft {
            table: table_name(adapter),
            requests,
            events,
            is_protected,
            has_egress: true,
            knows_destroy: true,
            spared: BTreeSet::new(),
            applied: None,
            is_stale: true,
            is_touched: false,
            is_repaired: false,
            has_held: false,
            has_adopted: false,
            flows: HashMap::default(),
            orphans: (Vec::new(), Instant::now()),
        })
    }

    /// Makes nftables hold what `rules` asks for, in one transaction, and renews the lease with it. True if
    /// anything was missing or changed. Costs no system call but a few where nothing can have changed.
    ///
    /// # Errors
    /// `Unsupported`, once, where the kernel has no netdev egress hook: the reserved ports are guarded,
    /// nothing is held. `ResourceBusy` where the tables belong to another program that lives.
    pub fn ensure(&mut self, rules: &NftRules) -> io::Result<bool> {
        self.hear();
        let indexes = rules.nics.iter().map(|nic| socket::interface_index(nic)).collect();
        let wanted = Applied { rules: rules.clone(), indexes, spared: self.spared.clone() };
        if self.applied.as_ref() == Some(&wanted) && !self.is_stale {
            return Ok(std::mem::take(&mut self.is_repaired));
        }
        let had_egress = self.has_egress;
        let has_flows = std::mem::take(&mut self.is_stale);
        self.is_touched = false;
        let outcome = self.apply(rules, has_flows);
        // Remembered also where it failed: the other calls put back what they find missing.
        self.applied = Some(wanted);
        self.is_stale |= outcome.is_err();
        let is_changed = outcome? | std::mem::take(&mut self.is_repaired);
        if had_egress && !self.has_egress {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel has no nftables netdev egress hook (CONFIG_NETFILTER_EGRESS, Linux 5.16): \
                 while no forwarder runs, flows that it had rewritten leave un-rewritten",
            ));
        }
        Ok(is_changed)
    }

    /// Ports of the reserved range on which a socket of this host listens: they are left to the kernel,
    /// from the next [`Nft::ensure`] on.
    pub fn spare_ports(&mut self, ports: impl IntoIterator<Item = u16>) {
        self.spared = ports.into_iter().collect();
    }

    /// Lets the hold last for another [`NftRules::hold`] from now.
    pub fn renew_lease(&mut self) -> io::Result<()> {
        let Some(hold) = self.hold_time() else { return Ok(()) };
        if Instant::now() > self.orphans.1 && !self.orphans.0.is_empty() {
            let mut gone = FlowKeys::default();
            for (place, key) in self.orphans.0.drain(..) {
                gone.at(place).push(key);
            }
            self.take_out(&gone)?;
        }
        if !self.has_egress {
            return Ok(());
        }
        let mut batch = self.requests.batch();
        self.write_lease(&mut batch, hold);
        match self.requests.commit(batch) {
            Err(refused) if is_absent(&refused.error) => self.put_back(),
            outcome => outcome.map_err(|refused| refused.error),
        }
    }

    /// Puts flows into the hold's sets and takes others out; one that is in both lists is in afterwards.
    /// What is there already, or gone already, is no error. Any number of flows.
    pub fn hold(&mut self, add: &[HeldFlow], remove: &[HeldFlow]) -> io::Result<()> {
        let mut gone = FlowKeys::default();
        for flow in remove {
            let wire = self.flows.remove(&bare(flow)).flatten().or(flow.wire);
            for (place, key) in keys_of(&HeldFlow { wire, ..*flow }) {
                gone.at(place).push(key);
            }
        }
        for flow in add.iter().filter(|flow| flow_key(flow).is_some()) {
            self.flows.insert(bare(flow), flow.wire);
            self.orphans.0.retain(|orphan| !keys_of(flow).any(|key| key == *orphan));
        }
        if self.hold_time().is_none() {
            return Ok(());
        }
        // The first flow of all brings the hook.
        if let Some(Applied { rules, .. }) = &self.applied
            && !self.has_held
            && !self.flows.is_empty()
        {
            let rules = rules.clone();
            self.is_stale = true;
            self.ensure(&rules)?;
        }
        let new = FlowKeys::of(add.iter().copied());
        let outcome = self.take_out(&gone).and_then(|()| self.put_in(&new));
        match outcome {
            Err(e) if is_absent(&e) => self.put_back(),
            outcome => {
                self.is_stale |= outcome.is_err();
                outcome
            }
        }
    }

    /// The flows held, those taken over from a forwarder before us included.
    pub fn held(&self) -> impl Iterator<Item = HeldFlow> {
        self.flows.iter().map(|(flow, wire)| HeldFlow { wire: *wire, ..*flow })
    }

    /// Readable when others changed nftables: for an edge-triggered poll, then [`Nft::drain_events`].
    pub fn event_fd(&self) -> RawFd {
        self.events.fd()
    }

    /// Reads all news. True if others touched our tables, or if news was lost: [`Nft::ensure`] is due.
    pub fn drain_events(&mut self) -> bool {
        self.hear();
        std::mem::take(&mut self.is_touched)
    }

    /// Deletes both tables, whoever made them. None there is no error.
    ///
    /// # Errors
    /// `PermissionDenied` where they belong to a forwarder that lives.
    pub fn remove(adapter: &str) -> io::Result<()> {
        let open = Requests::open(netlink_sys::protocols::NETLINK_NETFILTER);
        let mut requests = match open.map_err(no_nf_tables) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => return Ok(()),
            requests => requests?,
        };
        if requests.get(socket::kind(GETGEN), &socket::family_header(0)).is_err() {
            return Ok(());
        }
        delete_tables(&mut requests, &table_name(adapter)).map(|_| ())
    }

    fn hear(&mut self) {
        if self.events.drain(&self.table) {
            self.is_touched = true;
            self.is_stale = true;
        }
    }

    /// Duration of the lease; `None` while nothing is held.
    fn hold_time(&self) -> Option<Duration> {
        let rules = &self.applied.as_ref()?.rules;
        (!rules.claims.owned.is_empty()).then_some(rules.hold)
    }

    /// A set was not there: others removed our tables, and the news of it has not been read.
    fn put_back(&mut self) -> io::Result<()> {
        let Some(Applied { rules, .. }) = self.applied.clone() else { return Ok(()) };
        self.is_stale = true;
        self.is_repaired |= self.ensure(&rules)?;
        Ok(())
    }

    /// `has_flows`: what the sets of flows hold may differ from what it should be.
    fn apply(&mut self, rules: &NftRules, has_flows: bool) -> io::Result<bool> {
        if rules.claims.is_empty() {
            return delete_tables(&mut self.requests, &self.table);
        }
        let mut is_anew = false;
        let mut refusals = 0;
        let mut last = None;
        for _ in 0..TRIES {
            let exists = |nic: &&String| socket::interface_index(nic) != 0;
            let nics: Vec<String> = rules.nics.iter().filter(exists).cloned().collect();
            let present = match present::read(&mut self.requests, &self.table, has_flows) {
                Err(e) if is_absent(&e) => continue,
                present => present?,
            };
            if present.values().any(|table| self.is_of_another(table)) {
                last = Some(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    format!("the nftables tables {} belong to another program", self.table),
                ));
                std::thread::sleep(OWNER_WAIT);
                continue;
            }
            self.adopt(&present);
            let (batch, later) = self.difference(&present, rules, &nics, is_anew);
            if batch.is_empty() && later.is_empty() {
                return Ok(false);
            }
            match self.requests.commit(batch) {
                Ok(()) => {
                    self.take_out(&later.remove)?;
                    self.put_in(&later.add)?;
                    return Ok(true);
                }
                Err(refused) => {
                    if !self.learn(&refused, &nics) {
                        refusals += 1;
                    }
                    if refusals == REFUSALS {
                        return Err(refused.error);
                    }
                    is_anew = refusals > 1;
                    last = Some(refused.error);
                }
            }
        }
        Err(last.unwrap_or_else(|| io::ErrorKind::Interrupted.into()))
    }

    /// Learns from a refusal what this kernel lacks. False: nothing.
    fn learn(&mut self, refused: &Refused, nics: &[String]) -> bool {
        let is_unknown =
            matches!(refused.error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL));
        match refused.step {
            Step::Table(INET) if is_unknown && self.is_protected => {
                self.is_protected = false;
                true
            }
            Step::Table(NETDEV) if is_unknown => {
                self.has_egress = false;
                true
            }
            Step::NicChain(nic) => {
                let is_there = socket::interface_index(&nics[nic]) != 0;
                let is_lacking = is_unknown || is_absent(&refused.error) && is_there;
                self.has_egress &= !is_lacking;
                is_lacking || !is_there
            }
            _ => false,
        }
    }

    fn flags(&self) -> u32 {
        if self.is_protected { OWNER | PERSIST } else { 0 }
    }

    fn is_of_another(&self, table: &Present) -> bool {
        table.flags & OWNER != 0 && table.owner != Some(self.requests.port())
    }

    /// Can the table stay, claimed where need be? (One without the persist flag cannot get it.)
    fn can_keep(&self, table: &Present) -> bool {
        table.flags == self.flags() || table.flags == PERSIST
    }

    /// Takes over the flows that a forwarder before us held.
    fn adopt(&mut self, present: &BTreeMap<u8, Present>) {
        if std::mem::replace(&mut self.has_adopted, true) {
            return;
        }
        self.orphans.1 = Instant::now() + ORPHANED;
        for place in Place::ALL {
            let set = present.get(&place.table()).and_then(|table| table.sets.get(place.set()));
            let keys = set.into_iter().flat_map(|set| &set.elements);
            match place {
                Place::Sent(family) => {
                    let flows = keys.filter_map(|key| flow_of(family, key));
                    self.flows.extend(flows.map(|flow| (flow, None)));
                }
                Place::Replies(_) => self.orphans.0.extend(keys.map(|key| (place, key.clone()))),
            }
        }
    }

    /// The transaction that makes of `present` what `rules` want, and flows that are too many for it.
    fn difference(
        &mut self,
        present: &BTreeMap<u8, Present>,
        rules: &NftRules,
        nics: &[String],
        is_anew: bool,
    ) -> (Batch, Later) {
        // Where nothing was ever rewritten nothing is held, and no frame goes through the hook.
        self.has_held |= rules.can_hold() || !self.flows.is_empty();
        let mut batch = self.requests.batch();
        let mut later = Later::default();
        // There may be many, and where the sets stand, unread, nobody asks.
        let flows = LazyCell::new(|| {
            let mut flows = FlowKeys::of(self.held());
            for (place, key) in &self.orphans.0 {
                flows.at(*place).push(key.clone());
            }
            flows
        });
        let mut wanted = vec![rules::reserved_ports(rules, &self.spared)];
        if self.has_egress {
            wanted.push(rules::egress_hold(rules, if self.has_held { nics } else { &[] }));
        }
        for table in &wanted {
            let found = present.get(&table.family);
            let kept = found.filter(|found| !is_anew && self.can_keep(found));
            let mut edit = Edit { batch: &mut batch, name: &self.table, family: table.family };
            if found.is_some() && kept.is_none() {
                edit.delete_table();
            }
            let is_claimed = kept.is_some_and(|k| k.flags == self.flags() || !self.is_protected);
            if !is_claimed {
                edit.new_table(self.flags());
            }
            let is_shaped = kept.is_some_and(|k| k.is_shaped_as(table));
            if let Some(kept) = kept.filter(|_| !is_shaped) {
                edit.clear(kept, table);
            }
            edit.sets(kept, table, &flows, &mut later);
            if !is_shaped {
                edit.chains_and_rules(kept, table);
            }
        }
        let has_lease = present.get(&NETDEV).and_then(|table| table.sets.get(LEASE));
        let has_lease = has_lease.is_some_and(|lease| !lease.elements.is_empty());
        if self.has_egress && !(batch.is_empty() && has_lease) {
            self.write_lease(&mut batch, rules.hold);
        }
        (batch, later)
    }

    fn write_lease(&self, batch: &mut Batch, hold: Duration) {
        let mut edit = Edit { batch, name: &self.table, family: NETDEV };
        edit.flush(LEASE);
        let milliseconds = u64::try_from(hold.as_millis()).unwrap_or(u64::MAX).max(1);
        edit.elements(NEWSETELEM, LEASE, &[LEASE_KEY.to_vec()], Some(milliseconds));
    }

    fn put_in(&mut self, keys: &FlowKeys) -> io::Result<()> {
        self.in_batches(keys, |nft, place, keys| nft.change_flows(NEWSETELEM, place, keys))
    }

    fn take_out(&mut self, keys: &FlowKeys) -> io::Result<()> {
        self.in_batches(keys, Nft::take_out_some)
    }

    fn in_batches(
        &mut self,
        keys: &FlowKeys,
        change: impl Fn(&mut Nft, Place, &[Vec<u8>]) -> io::Result<()>,
    ) -> io::Result<()> {
        for (place, keys) in keys.all() {
            if place.table() == NETDEV && !self.has_egress {
                continue;
            }
            for keys in keys.chunks(BATCH_ELEMENTS) {
                change(self, place, keys)?;
            }
        }
        Ok(())
    }

    /// Kernels before 6.3 cannot delete tolerantly: there, what is in the set is read first.
    fn take_out_some(&mut self, place: Place, keys: &[Vec<u8>]) -> io::Result<()> {
        if self.knows_destroy {
            match self.change_flows(DESTROYSETELEM, place, keys) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                    self.knows_destroy = false;
                }
                outcome => return outcome,
            }
        }
        let mut writer = Writer::default();
        writer.raw(&socket::family_header(place.table()));
        writer.text(1, &self.table);
        writer.text(2, place.set());
        let mut there = BTreeSet::new();
        let kind = socket::kind(present::GETSETELEM);
        self.requests.dump(kind, writer.bytes(), |_, payload| {
            let list = payload.get(4..).and_then(|p| message::find(p, 3)).unwrap_or(&[]);
            there.extend(present::keys(list));
        })?;
        let keys: Vec<Vec<u8>> = keys.iter().filter(|k| there.contains(*k)).cloned().collect();
        self.change_flows(DELSETELEM, place, &keys)
    }

    fn change_flows(&mut self, change: u16, place: Place, keys: &[Vec<u8>]) -> io::Result<()> {
        let mut batch = self.requests.batch();
        let mut edit = Edit { batch: &mut batch, name: &self.table, family: place.table() };
        edit.elements(change, place.set(), keys, None);
        self.requests.commit(batch).map_err(|refused| refused.error)
    }
}

/// A flow without its source on the wire: as the application knows it.
fn bare(flow: &HeldFlow) -> HeldFlow {
    HeldFlow { wire: None, ..*flow }
}

/// Deletes the tables `name` that exist. True if there were any.
fn delete_tables(requests: &mut Requests, name: &str) -> io::Result<bool> {
    let mut is_changed = false;
    for family in [INET, NETDEV] {
        let mut batch = requests.batch();
        Edit { batch: &mut batch, name, family }.delete_table();
        match requests.commit(batch) {
            Ok(()) => is_changed = true,
            Err(refused) if is_absent(&refused.error) => {}
            // A kernel without tables of this family has none to delete.
            Err(refused) if refused.error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(refused) => return Err(refused.error),
        }
    }
    Ok(is_changed)
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

fn no_nf_tables(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL | libc::EAFNOSUPPORT) => {
            io::Error::new(
                io::ErrorKind::Unsupported,
                format!("this kernel has no nf_tables (CONFIG_NF_TABLES): {error}"),
            )
        }
        _ => error,
    }
}
