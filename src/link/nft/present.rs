//! What stands in nftables under our name, read from the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::flows::Place;
use super::message::{self, attributes, find, number, text};
use super::socket::{Requests, family_header, kind};
use super::table::{Chain, Hook, INET, NETDEV, Set, Table};

const GETTABLE: u16 = 1;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;
const GETSET: u16 = 10;
pub(crate) const GETSETELEM: u16 = 13;
/// `NFTNL_UDATA_RULE_COMMENT`: type of the comment in a rule's user data.
pub(super) const COMMENT: u8 = 0;

/// One of our tables as the kernel has it.
#[derive(Debug, Default)]
pub(super) struct Present {
    pub(super) flags: u32,
    pub(super) owner: Option<u32>,
    pub(super) chains: Vec<Chain>,
    /// (chain, comment), in order within a chain.
    pub(super) rules: Vec<(String, String)>,
    pub(super) sets: BTreeMap<String, PresentSet>,
}

/// A set as the kernel has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PresentSet {
    pub(super) key_length: u32,
    pub(super) flags: u32,
    pub(super) elements: BTreeSet<Vec<u8>>,
    /// Was what it holds left unread?
    pub(super) is_unread: bool,
}

impl Present {
    /// Are chains, rules and the kinds of sets as wanted? (What the sets hold is another matter.)
    pub(super) fn is_shaped_as(&self, wanted: &Table) -> bool {
        let chain_rules = |chain: &str| -> Vec<&str> {
            self.rules.iter().filter(|r| r.0 == chain).map(|r| r.1.as_str()).collect()
        };
        let has_rules = wanted.chains.iter().all(|chain| {
            let rules = wanted.rules.iter().filter(|r| r.chain == chain.name);
            rules.map(|r| r.comment.as_str()).eq(chain_rules(&chain.name))
        });
        has_rules
            && self.chains.len() == wanted.chains.len()
            && wanted.chains.iter().all(|chain| self.chains.contains(chain))
            && self.sets.len() == wanted.sets.len()
            && wanted.sets.iter().all(|set| self.has_set(set))
    }

    /// Is there a set of this name and kind?
    pub(super) fn has_set(&self, wanted: &Set) -> bool {
        self.sets
            .get(wanted.name)
            .is_some_and(|s| s.key_length == wanted.key_length && s.flags == wanted.flags)
    }
}

/// Reads the tables `name` of both families; what the sets of flows hold only if `has_flows`.
pub(super) fn read(
    requests: &mut Requests,
    name: &str,
    has_flows: bool,
) -> io::Result<BTreeMap<u8, Present>> {
    let mut tables = BTreeMap::new();
    for family in [INET, NETDEV] {
        if let Some(table) = read_table(requests, family, name, has_flows)? {
            tables.insert(family, table);
        }
    }
    Ok(tables)
}

fn read_table(
    requests: &mut Requests,
    family: u8,
    name: &str,
    has_flows: bool,
) -> io::Result<Option<Present>> {
    let of_table = |extra: Option<(u16, &str)>| {
        let mut writer = message::Writer::default();
        writer.raw(&family_header(family));
        writer.text(1, name);
        extra.into_iter().for_each(|(kind, value)| writer.text(kind, value));
        writer.bytes().to_vec()
    };
    let answer = match requests.get(kind(GETTABLE), &of_table(None)) {
        Ok(answer) => answer,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let answer = answer.get(4..).unwrap_or(&[]);
    let mut table = Present {
        flags: find(answer, 2).and_then(number).unwrap_or(0),
        owner: find(answer, 7).and_then(number),
        ..Present::default()
    };
    // Dumps hand out other tables' objects as well: older kernels know no filter by table.
    requests.dump(kind(GETCHAIN), &of_table(None), |_, payload| {
        let Some(payload) = payload.get(4..) else { return };
        if find(payload, 1).map(text) == Some(name) {
            table.chains.extend(chain(payload));
        }
    })?;
    requests.dump(kind(GETRULE), &of_table(None), |_, payload| {
        let Some(payload) = payload.get(4..) else { return };
        if find(payload, 1).map(text) == Some(name) {
            let chain = find(payload, 2).map_or("", text).to_owned();
            let comment = find(payload, 7).map_or("", comment).to_owned();
            table.rules.push((chain, comment));
        }
    })?;
    requests.dump(kind(GETSET), &of_table(None), |_, payload| {
        let Some(payload) = payload.get(4..) else { return };
        if let Some(set) = find(payload, 2).filter(|_| find(payload, 1).map(text) == Some(name)) {
            let value = |kind| find(payload, kind).and_then(number).unwrap_or(0);
            let found =
                PresentSet { flags: value(3), key_length: value(5), ..PresentSet::default() };
            table.sets.insert(text(set).to_owned(), found);
        }
    })?;
    for (set, found) in &mut table.sets {
        found.is_unread = !has_flows && Place::ALL.iter().any(|place| place.set() == set);
        if found.is_unread {
            continue;
        }
        requests.dump(kind(GETSETELEM), &of_table(Some((2, set))), |_, payload| {
            let list = payload.get(4..).and_then(|p| find(p, 3)).unwrap_or(&[]);
            found.elements.extend(keys(list));
        })?;
    }
    Ok(Some(table))
}

/// The keys of a list of set elements.
pub(crate) fn keys(list: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    attributes(list).filter_map(|(_, element)| Some(find(find(element, 1)?, 1)?.to_vec()))
}

fn chain(payload: &[u8]) -> Option<Chain> {
    let hook = find(payload, 4).map(|hook| Hook {
        number: find(hook, 1).and_then(number).unwrap_or(u32::MAX),
        priority: find(hook, 2).and_then(number).unwrap_or(0) as i32,
        device: find(hook, 3).map(|name| text(name).to_owned()),
        policy: find(payload, 5).and_then(number).unwrap_or(0),
    });
    Some(Chain { name: text(find(payload, 3)?).to_owned(), hook })
}

fn comment(user_data: &[u8]) -> &str {
    match user_data {
        [COMMENT, length, rest @ ..] => text(rest.get(..usize::from(*length)).unwrap_or(&[])),
        _ => "",
    }
}
