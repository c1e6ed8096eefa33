//! What a table of nf_tables is to be: sets, chains and rules, as data.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::expression::octets;
use super::flows::Place;
use crate::wire::ip::Family;

/// `NFPROTO_INET`.
pub(super) const INET: u8 = 1;
/// `NFPROTO_NETDEV`.
pub(super) const NETDEV: u8 = 5;

// Types by which the nft program shows a key; six bits each in a concatenation.
pub(super) const TYPE_IPV4: u32 = 7;
pub(super) const TYPE_IPV6: u32 = 8;
pub(super) const TYPE_PROTOCOL: u32 = 12;
pub(super) const TYPE_PORT: u32 = 13;
pub(super) const TYPE_MARK: u32 = 19;
pub(super) const TYPE_DEVICE: u32 = 41;

/// A table as it should be.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) family: u8,
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<Chain>,
    pub(super) rules: Vec<NftRule>,
}

/// A named set.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) key_type: u32,
    pub(super) key_length: u32,
    pub(super) flags: u32,
    pub(super) content: Content,
}

/// What a set should hold.
#[derive(Debug)]
pub(super) enum Content {
    /// These keys.
    Exactly(BTreeSet<Vec<u8>>),
    /// What rewritten flows leave in this place.
    Flows(Place),
    /// The lease.
    Lease,
}

/// A chain; one with a hook is a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    pub(super) hook: Option<Hook>,
}

/// Where packets enter a base chain, and what becomes of those that no rule decides about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) number: u32,
    pub(super) priority: i32,
    pub(super) device: Option<String>,
    pub(super) policy: u32,
}

/// `NF_ACCEPT`, as a policy.
pub(super) const ACCEPT: u32 = 1;

/// Name of both tables.
pub(super) fn table_name(adapter: &str) -> String {
    format!("vipa-{adapter}")
}

/// A rule; its comment ends with a fingerprint of the expressions, by which it is recognised.
#[derive(Debug)]
pub(super) struct NftRule {
    pub(super) chain: String,
    pub(super) comment: String,
    pub(super) expressions: Vec<u8>,
}

impl Table {
    /// One with nothing in it.
    pub(super) fn new(family: u8) -> Table {
        Table { family, sets: Vec::new(), chains: Vec::new(), rules: Vec::new() }
    }

    pub(super) fn set(
        &mut self,
        name: &'static str,
        key_type: u32,
        keys: impl Iterator<Item = Vec<u8>>,
    ) {
        const SERVICE_V4: u32 = (TYPE_PROTOCOL << 6 | TYPE_IPV4) << 6 | TYPE_PORT;
        const SERVICE_V6: u32 = (TYPE_PROTOCOL << 6 | TYPE_IPV6) << 6 | TYPE_PORT;
        let key_length = match key_type {
            TYPE_IPV4 => 4,
            TYPE_PORT => 2,
            SERVICE_V4 => 4 + 4 + 4,
            SERVICE_V6 => 4 + 16 + 4,
            _ => 16,
        };
        let content = Content::Exactly(keys.collect());
        self.sets.push(Set { name, key_type, key_length, flags: 0, content });
    }

    pub(super) fn addresses(&mut self, v4: &'static str, v6: &'static str, addresses: &[IpAddr]) {
        let keys = |family| {
            addresses.iter().filter(move |a| Family::of(**a) == family).map(|a| octets(*a))
        };
        self.set(v4, TYPE_IPV4, keys(Family::V4));
        self.set(v6, TYPE_IPV6, keys(Family::V6));
    }

    pub(super) fn chain(&mut self, name: &str) {
        self.chains.push(Chain { name: name.to_owned(), hook: None });
    }

    pub(super) fn base(&mut self, name: &str, hook: Hook) {
        self.chains.push(Chain { name: name.to_owned(), hook: Some(hook) });
    }

    pub(super) fn rule(&mut self, chain: &str, what: &str, expressions: Vec<u8>) {
        let print = fingerprint(&expressions);
        let comment = if what.is_empty() {
            format!("#{print:016x}")
        } else {
            format!("{what} #{print:016x}")
        };
        self.rules.push(NftRule { chain: chain.to_owned(), comment, expressions });
    }
}

/// A device name as a set's key has it: 16 bytes.
pub(super) fn device_key(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(16, 0);
    key
}

/// FNV-1a: the same in every build, as it is compared with what another build left in the kernel.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
