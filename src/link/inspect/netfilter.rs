//! Netfilter rules of others that compare the outgoing device with a NIC. What the forwarder sends passes
//! no OUTPUT or POSTROUTING on the NIC; what a socket sends leaves, for these rules, by the adapter.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::{Finding, FindingKind, native, nics};
use crate::config::Config;
use crate::link::nft::message::{Writer, attributes, find, number, text};
use crate::link::nft::present::{GETSETELEM, keys};
use crate::link::nft::socket::{Requests, family_header, kind};

const GETRULE: u16 = 7;
/// `NFT_META_OIF`.
const OUTPUT_INDEX: u32 = 5;
/// `NFT_META_OIFNAME`.
const OUTPUT_NAME: u32 = 7;
/// `IFNAMSIZ`.
const NAME_LENGTH: usize = 16;

/// Rules of nftables, those of iptables-nft included, in tables that are not ours.
pub(super) fn nftables(config: &Config) -> io::Result<Vec<Finding>> {
    let mut requests = Requests::open(netlink_sys::protocols::NETLINK_NETFILTER)?;
    let ours = format!("vipa-{}", config.adapter.name);
    let mut rules = Vec::new();
    requests.dump(kind(GETRULE), &family_header(0), |_, payload| {
        let rule = rule(payload).filter(|rule| rule.table != ours && !rule.comparisons.is_empty());
        rules.extend(rule);
    })?;
    let names: Vec<String> = config.nics.iter().map(|nic| nic.name.clone()).collect();
    let indexes = nics(config);
    let mut findings = Vec::new();
    for rule in rules {
        let mut named = Vec::new();
        for comparison in &rule.comparisons {
            let values = match &comparison.with {
                With::Value(value) => vec![value.clone()],
                With::Set(set) => elements(&mut requests, &rule, set, comparison.offset)?,
            };
            for value in values {
                let names = names.iter().filter(|n| comparison.by_name && is_name(&value, n));
                named.extend(names.cloned());
                let index = native(&value, 0).filter(|_| !comparison.by_name);
                named.extend(indexes.iter().filter(|i| Some(i.0) == index).map(|i| i.1.clone()));
            }
        }
        named.sort();
        named.dedup();
        if !named.is_empty() {
            findings.push(Finding {
                kind: FindingKind::NftablesRule,
                text: format!(
                    "the nftables rule {} {} {} handle {} compares the outgoing device with {}: what this \
                     host sends through vipa leaves, for this rule, by {}",
                    family_name(rule.family),
                    rule.table,
                    rule.chain,
                    rule.handle,
                    named.join(", "),
                    config.adapter.name,
                ),
            });
        }
    }
    Ok(findings)
}

/// Tables of the legacy iptables programs: their rules are not ours to read, their names are.
pub(super) fn legacy(config: &Config) -> io::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (program, file) in [("iptables", "ip_tables_names"), ("ip6tables", "ip6_tables_names")] {
        let names = match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let names: Vec<&str> = names.split_whitespace().collect();
        if !names.is_empty() {
            let text = format!(
                "{program}-legacy has the tables {}: a rule there with -o and a NIC does not see what this \
                 host sends through vipa, which leaves, for it, by {}",
                names.join(", "),
                config.adapter.name,
            );
            findings.push(Finding { kind: FindingKind::LegacyIptables, text });
        }
    }
    Ok(findings)
}

/// A rule, and what of it is about the outgoing device.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    family: u8,
    table: String,
    chain: String,
    handle: u64,
    comparisons: Vec<Comparison>,
}

#[derive(Debug, PartialEq, Eq)]
struct Comparison {
    by_name: bool,
    with: With,
    /// Where in the key of a set the device stands, in bytes.
    offset: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum With {
    Value(Vec<u8>),
    Set(String),
}

fn rule(payload: &[u8]) -> Option<Rule> {
    let (family, payload) = (*payload.first()?, payload.get(4..)?);
    let name = |kind| find(payload, kind).map_or("", text).to_owned();
    let handle =
        find(payload, 3).and_then(|h| h.first_chunk().copied()).map_or(0, u64::from_be_bytes);
    let comparisons = comparisons(find(payload, 4).unwrap_or(&[]));
    Some(Rule { family, table: name(1), chain: name(2), handle, comparisons })
}

/// Follows the outgoing device through the registers of a rule.
fn comparisons(expressions: &[u8]) -> Vec<Comparison> {
    let mut loaded = BTreeMap::new();
    let mut found = Vec::new();
    for (_, expression) in attributes(expressions) {
        let name = find(expression, 1).map_or("", text);
        let data = find(expression, 2).unwrap_or(&[]);
        let value = |kind| find(data, kind).and_then(number);
        match name {
            "meta" => {
                let Some(register) = value(1).map(word) else { continue };
                match value(2) {
                    Some(OUTPUT_NAME) => loaded.insert(register, true),
                    Some(OUTPUT_INDEX) => loaded.insert(register, false),
                    _ => loaded.remove(&register),
                };
            }
            "cmp" => {
                let by_name = value(1).and_then(|register| loaded.get(&word(register)));
                let compared = find(data, 3).and_then(|data| find(data, 1));
                if let (Some(&by_name), Some(value)) = (by_name, compared) {
                    let with = With::Value(value.to_vec());
                    found.push(Comparison { by_name, with, offset: 0 });
                }
            }
            "lookup" => {
                let (Some(set), Some(first)) = (find(data, 1).map(text), value(2).map(word)) else {
                    continue;
                };
                for (&register, &by_name) in loaded.range(first..) {
                    let offset = 4 * (register - first) as usize;
                    found.push(Comparison { by_name, with: With::Set(set.to_owned()), offset });
                }
            }
            "payload" | "ct" | "rt" | "fib" | "immediate" | "exthdr" => {
                if let Some(register) = value(1) {
                    loaded.remove(&word(register));
                }
            }
            _ => {}
        }
    }
    found
}

/// A register as the number of its first word of 4 bytes: 1 to 4 name 16 bytes, 8 to 23 name 4.
fn word(register: u32) -> u32 {
    match register {
        0 => u32::MAX,
        1..=4 => (register - 1) * 4,
        _ => register.saturating_sub(8),
    }
}

/// The part at `offset` of each key of a set.
fn elements(
    requests: &mut Requests,
    rule: &Rule,
    set: &str,
    offset: usize,
) -> io::Result<Vec<Vec<u8>>> {
    let mut writer = Writer::default();
    writer.raw(&family_header(rule.family));
    writer.text(1, &rule.table);
    writer.text(2, set);
    let mut found = Vec::new();
    let outcome = requests.dump(kind(GETSETELEM), writer.bytes(), |_, payload| {
        let list = payload.get(4..).and_then(|p| find(p, 3)).unwrap_or(&[]);
        let parts = keys(list).filter_map(|key| {
            let part = key.get(offset..)?;
            Some(part[..part.len().min(NAME_LENGTH)].to_vec())
        });
        found.extend(parts);
    });
    match outcome {
        // Rule and set are gone since.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        outcome => outcome.map(|()| found),
    }
}

/// Does `value` mean the device `name`? Without its NUL it is the beginning of names ("eth*").
fn is_name(value: &[u8], name: &str) -> bool {
    match value.iter().position(|&b| b == 0) {
        Some(end) => &value[..end] == name.as_bytes(),
        None => name.as_bytes().starts_with(value),
    }
}

fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(name: &str, data: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.nest(1, |w| {
            w.text(1, name);
            w.nest(2, data);
        });
        writer.bytes().to_vec()
    }

    fn meta(register: u32, key: u32) -> Vec<u8> {
        expression("meta", |w| {
            w.number(1, register);
            w.number(2, key);
        })
    }

    #[test]
    fn a_name_ends_with_its_nul_or_is_a_beginning() {
        assert!(is_name(b"eth1\0\0\0", "eth1"));
        assert!(!is_name(b"eth1\0\0\0", "eth10"));
        assert!(!is_name(b"eth\0", "eth1"));
        assert!(is_name(b"eth", "eth1"));
        assert!(!is_name(b"wlan", "eth1"));
    }

    #[test]
    fn a_register_that_was_loaded_anew_is_no_device() {
        let compare = || {
            expression("cmp", |w| {
                w.number(1, 1);
                w.number(2, 0);
                w.nest(3, |w| w.attribute(1, b"eth1\0"));
            })
        };
        assert_eq!(comparisons(&[meta(1, OUTPUT_NAME), compare()].concat()).len(), 1);
        assert_eq!(comparisons(&[meta(1, 6), compare()].concat()).len(), 0);
        let overwritten = [meta(1, OUTPUT_NAME), meta(1, 16), compare()].concat();
        assert_eq!(comparisons(&overwritten).len(), 0);
    }

    #[test]
    fn a_device_is_found_inside_of_a_concatenated_key() {
        let lookup = expression("lookup", |w| {
            w.text(1, "s");
            w.number(2, 1);
        });
        let found = comparisons(&[meta(1, 16), meta(9, OUTPUT_NAME), lookup].concat());
        let with = With::Set("s".to_owned());
        assert_eq!(found, [Comparison { by_name: true, with, offset: 4 }]);
    }
}
