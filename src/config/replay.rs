//! `[replay]`: what `vipa replay` cannot ask a kernel for.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use hashbrown::HashMap;

use super::address::{self, Place};
use super::mistake::Mistakes;
use super::reader::{Table, Value, string, strings};
use super::rules;
use super::{Nic, Replay, ReplayNic};
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::Family;

/// The table; its defaults where it is left out.
pub(super) fn read(table: Option<Table<'_>>, nics: &[Nic], mistakes: &mut Mistakes<'_>) -> Replay {
    let mut replay = Replay::default();
    let Some(mut table) = table else { return replay };
    if let Some(value) = table.get("ephemeral") {
        let wanted = "a range of ports, such as \"32768-60999\"";
        if let Some(ports) = rules::ports(value, "ephemeral", wanted, mistakes) {
            replay.ephemeral = ports;
        }
    }
    let mut names: HashMap<&str, usize, foldhash::fast::RandomState> = HashMap::default();
    for mut table in Table::all_of(table.get("nic"), "[[replay.nic]]", mistakes) {
        let wanted = "the name of a [[nic]]";
        let value = table.required("name", wanted, mistakes);
        let name = value.and_then(|value| string(value, "name", wanted, mistakes));
        if let (Some(value), Some(name)) = (value, name) {
            // Of a wrong [[nic]] name has been complained already.
            if !nics.iter().any(|nic| nic.name == name || nic.name.is_empty()) {
                mistakes.error(value.span(), format!("{name:?} is no [[nic]]"), wanted);
            }
            match names.get(name) {
                Some(first) => {
                    let wanted = format!("each card once; it stands in line {first}");
                    mistakes.error(value.span(), format!("{name:?} is given twice"), wanted);
                }
                None => {
                    names.insert(name, mistakes.line(value.span().start));
                }
            }
        }
        replay.nics.push(read_nic(&mut table, name.unwrap_or_default(), mistakes));
        table.finish(mistakes);
    }
    table.finish(mistakes);
    replay
}

fn read_nic(table: &mut Table<'_>, name: &str, mistakes: &mut Mistakes<'_>) -> ReplayNic {
    ReplayNic {
        name: name.to_owned(),
        mac: read_mac(table.get("mac"), "mac", mistakes),
        next_hop_mac: read_mac(table.get("next-hop-mac"), "next-hop-mac", mistakes),
        addresses: read_addresses(table.get("addresses"), mistakes),
        mtu: table.integer("mtu", MTU, ReplayNic::DEFAULT_MTU, mistakes),
    }
}

/// From IPv4's least (RFC 791) to what a length field of 16 bits says.
const MTU: RangeInclusive<u32> = 68..=65_535;

fn read_mac(value: Option<&Value<'_>>, key: &str, mistakes: &mut Mistakes<'_>) -> Option<MacAddr> {
    let value = value?;
    let wanted = "the MAC address of one card, such as \"02:00:00:00:00:01\"";
    let text = string(value, key, wanted, mistakes)?;
    let found = match parse_mac(text) {
        Some(mac) if mac.0[0] & 1 != 0 => format!("{text:?} is a group's address"),
        Some(mac) => return Some(mac),
        None => format!("`{key}` is {text:?}"),
    };
    mistakes.error(value.span(), found, wanted);
    None
}

fn parse_mac(text: &str) -> Option<MacAddr> {
    let mut octets = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut octets {
        let part = parts.next().filter(|part| part.len() == 2)?;
        let is_hex = part.bytes().all(|byte| byte.is_ascii_hexdigit());
        *octet = u8::from_str_radix(part, 16).ok().filter(|_| is_hex)?;
    }
    parts.next().is_none().then_some(MacAddr(octets))
}

fn read_addresses(value: Option<&Value<'_>>, mistakes: &mut Mistakes<'_>) -> Vec<(IpAddr, u8)> {
    let Some(value) = value else { return Vec::new() };
    let wanted = "addresses with their prefix lengths, such as [\"10.1.1.2/24\"]";
    let mut addresses = Vec::new();
    for (text, span) in strings(value, "addresses", wanted, true, mistakes) {
        let Some((address, length)) = text.split_once('/') else {
            mistakes.error(span, format!("{text:?} has no prefix length"), wanted);
            continue;
        };
        let parsed = address::parse(address, Place::Card, span.clone(), mistakes);
        let Some(address) = parsed else { continue };
        let bits = Family::of(address).bits();
        match length.parse::<u8>().ok().filter(|length| (1..=bits).contains(length)) {
            Some(length) => addresses.push((address, length)),
            None => {
                let found = format!("{length:?} is not a prefix length of 1 to {bits}");
                mistakes.error(span, found, wanted);
            }
        }
    }
    addresses
}
