//! Writes changes of one table into a batch: from what stands to what should.

use std::collections::BTreeSet;
use std::ops::Deref;

use super::flows::{Place, keys_of};
use super::message::{APPEND, CREATE, Writer};
use super::present::{COMMENT, Present};
use super::socket::{Batch, Step};
use super::table::{Content, Hook, Set, TYPE_DEVICE, TYPE_MARK, Table};
use crate::engine::message::HeldFlow;

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
pub(super) const NEWSETELEM: u16 = 12;
pub(super) const DELSETELEM: u16 = 14;
pub(super) const DESTROYSETELEM: u16 = 30;

/// User data by which the nft program shows a set's keys as the machine orders them: type 0, 4 bytes, 1.
const HOST_ORDER: [u8; 6] = {
    let [a, b, c, d] = 1u32.to_ne_bytes();
    [0, 4, a, b, c, d]
};
/// Elements of one message: 400 of the longest are 24 KB, well below the 64 KB of an attribute.
const MESSAGE_ELEMENTS: usize = 400;
/// Elements of one transaction: 120 KB, below the send buffer that every user namespace has.
pub(super) const BATCH_ELEMENTS: usize = 2_000;

/// Keys of flows, by place.
#[derive(Debug, Default)]
pub(super) struct FlowKeys([Vec<Vec<u8>>; Place::ALL.len()]);

impl FlowKeys {
    pub(super) fn of(flows: impl Iterator<Item = HeldFlow>) -> FlowKeys {
        let mut keys = FlowKeys::default();
        for (place, key) in flows.flat_map(|flow| keys_of(&flow)) {
            keys.at(place).push(key);
        }
        keys
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Place, &[Vec<u8>])> {
        Place::ALL.into_iter().zip(&self.0).map(|(place, keys)| (place, keys.as_slice()))
    }

    pub(super) fn at(&mut self, place: Place) -> &mut Vec<Vec<u8>> {
        let at = Place::ALL.iter().position(|other| *other == place).unwrap_or(0);
        &mut self.0[at]
    }
}

/// Changes to the flows' sets that follow the transaction which makes the sets.
#[derive(Debug, Default)]
pub(super) struct Later {
    pub(super) add: FlowKeys,
    pub(super) remove: FlowKeys,
}

impl Later {
    pub(super) fn is_empty(&self) -> bool {
        [&self.add, &self.remove].iter().all(|keys| keys.0.iter().all(Vec::is_empty))
    }
}

/// Writes changes of one table into a batch.
pub(super) struct Edit<'a> {
    pub(super) batch: &'a mut Batch,
    pub(super) name: &'a str,
    pub(super) family: u8,
}

impl Edit<'_> {
    fn message(&mut self, kind: u16, flags: u16, attributes: impl FnOnce(&mut Writer)) {
        self.step(kind, flags, Step::Other, attributes);
    }

    fn step(&mut self, kind: u16, flags: u16, step: Step, attributes: impl FnOnce(&mut Writer)) {
        let name = self.name;
        self.batch.add((kind, flags, self.family), step, |w| {
            w.text(1, name);
            attributes(w);
        });
    }

    pub(super) fn delete_table(&mut self) {
        self.message(DELTABLE, 0, |_| {});
    }

    pub(super) fn new_table(&mut self, flags: u32) {
        self.step(NEWTABLE, CREATE, Step::Table(self.family), |w| w.number(2, flags));
    }

    /// Deletes all rules, and the chains and sets that are not wanted as they are.
    pub(super) fn clear(&mut self, present: &Present, wanted: &Table) {
        self.message(DELRULE, 0, |_| {});
        for chain in present.chains.iter().filter(|chain| !wanted.chains.contains(chain)) {
            self.message(DELCHAIN, 0, |w| w.text(3, &chain.name));
        }
        for name in present.sets.keys() {
            if !wanted.sets.iter().any(|set| set.name == name && present.has_set(set)) {
                self.message(DELSET, 0, |w| w.text(2, name));
            }
        }
    }

    /// Makes the sets that are missing, and fills all but the lease.
    pub(super) fn sets(
        &mut self,
        kept: Option<&Present>,
        wanted: &Table,
        flows: &impl Deref<Target = FlowKeys>,
        later: &mut Later,
    ) {
        let mut room = BATCH_ELEMENTS;
        for (id, set) in (1..).zip(&wanted.sets) {
            let found = kept.filter(|k| k.has_set(set)).and_then(|k| k.sets.get(set.name));
            if found.is_none() {
                self.new_set(id, set);
            }
            let none = BTreeSet::new();
            let there = found.map_or(&none, |found| &found.elements);
            match &set.content {
                Content::Exactly(keys) if keys != there => {
                    if !there.is_empty() {
                        self.flush(set.name);
                    }
                    let keys: Vec<Vec<u8>> = keys.iter().cloned().collect();
                    self.elements(NEWSETELEM, set.name, &keys, None);
                }
                Content::Flows(_) if found.is_some_and(|found| found.is_unread) => {}
                Content::Flows(place) => {
                    let keys = flows.all().find(|(other, _)| other == place);
                    let keys: BTreeSet<Vec<u8>> =
                        keys.into_iter().flat_map(|(_, keys)| keys.iter().cloned()).collect();
                    let mut add: Vec<Vec<u8>> = keys.difference(there).cloned().collect();
                    *later.add.at(*place) = add.split_off(add.len().min(room));
                    room -= add.len();
                    self.elements(NEWSETELEM, set.name, &add, None);
                    *later.remove.at(*place) = there.difference(&keys).cloned().collect();
                }
                Content::Exactly(_) | Content::Lease => {}
            }
        }
    }

    fn new_set(&mut self, id: u32, set: &Set) {
        self.message(NEWSET, CREATE, |w| {
            w.text(2, set.name);
            w.number(3, set.flags);
            w.number(4, set.key_type);
            w.number(5, set.key_length);
            w.number(10, id);
            if matches!(set.key_type, TYPE_DEVICE | TYPE_MARK) {
                w.attribute(13, &HOST_ORDER);
            }
        });
    }

    pub(super) fn chains_and_rules(&mut self, kept: Option<&Present>, wanted: &Table) {
        let mut nic = 0;
        for chain in &wanted.chains {
            let step = match &chain.hook {
                Some(Hook { device: Some(_), .. }) => Step::NicChain(nic),
                _ => Step::Other,
            };
            nic += usize::from(step != Step::Other);
            if kept.is_some_and(|kept| kept.chains.contains(chain)) {
                continue;
            }
            self.step(NEWCHAIN, CREATE, step, |w| {
                w.text(3, &chain.name);
                let Some(hook) = &chain.hook else { return };
                w.nest(4, |w| {
                    w.number(1, hook.number);
                    w.number(2, hook.priority as u32);
                    hook.device.iter().for_each(|device| w.text(3, device));
                });
                w.number(5, hook.policy);
                w.text(7, "filter");
            });
        }
        for rule in &wanted.rules {
            self.message(NEWRULE, CREATE | APPEND, |w| {
                w.text(2, &rule.chain);
                w.nest(4, |w| w.raw(&rule.expressions));
                let mut data = vec![COMMENT, rule.comment.len() as u8 + 1];
                data.extend_from_slice(rule.comment.as_bytes());
                data.push(0);
                w.attribute(7, &data);
            });
        }
    }

    pub(super) fn flush(&mut self, set: &str) {
        self.message(DELSETELEM, 0, |w| w.text(2, set));
    }

    /// Adds or deletes elements, in as many messages as their lengths ask for.
    pub(super) fn elements(
        &mut self,
        change: u16,
        set: &str,
        keys: &[Vec<u8>],
        timeout: Option<u64>,
    ) {
        let flags = if change == NEWSETELEM { CREATE } else { 0 };
        for keys in keys.chunks(MESSAGE_ELEMENTS) {
            self.message(change, flags, |w| {
                w.text(2, set);
                w.nest(3, |w| {
                    for key in keys {
                        w.nest(1, |w| {
                            w.nest(1, |w| w.attribute(1, key));
                            timeout.into_iter().for_each(|t| w.long(4, t));
                        });
                    }
                });
            });
        }
    }
}
