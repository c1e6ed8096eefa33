//! The expressions of an nf_tables rule: small steps over registers, in the order in which they run. The
//! first that does not match ends the rule.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::message::Writer;
use crate::wire::ip::{Family, Prefix};

/// A register of 16 bytes, for what is looked at at once.
const REGISTER: u32 = 1;
/// The first of sixteen registers of 4 bytes; a concatenated key begins here.
const KEY: u32 = 8;
const VERDICT_REGISTER: u32 = 0;

/// What `meta` may be asked for.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum Meta {
    Protocol = 1,
    Mark = 3,
    InputName = 6,
    SocketUser = 10,
    NetfilterProtocol = 15,
    Layer4 = 16,
}

/// A field of a packet: (base, offset, length).
type Field = (u32, u32, u32);
/// Source port; identifier of ICMP is [`ICMP_IDENTIFIER`].
pub(super) const SOURCE_PORT: Field = (2, 0, 2);
/// Destination port.
pub(super) const DESTINATION_PORT: Field = (2, 2, 2);
/// First byte of ICMP and ICMPv6.
pub(super) const ICMP_TYPE: Field = (2, 0, 1);
/// Identifier of an ICMP or ICMPv6 echo.
pub(super) const ICMP_IDENTIFIER: Field = (2, 4, 2);
/// Type of the first chunk of SCTP.
pub(super) const SCTP_CHUNK: Field = (2, 12, 1);
const TCP_FLAGS: Field = (2, 13, 1);
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The source address's field.
pub(super) fn source(family: Family) -> Field {
    match family {
        Family::V4 => (1, 12, 4),
        Family::V6 => (1, 8, 16),
    }
}

/// The destination address's field.
pub(super) fn destination(family: Family) -> Field {
    match family {
        Family::V4 => (1, 16, 4),
        Family::V6 => (1, 24, 16),
    }
}

/// An address as the wire has it.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// What a rule ends with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict<'a> {
    Drop,
    Accept,
    Return,
    Goto(&'a str),
}

#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Comparison {
    Equal = 0,
    AtMost = 3,
    AtLeast = 5,
}

/// The expressions of one rule, being written.
#[derive(Debug, Default)]
pub(super) struct Expressions(Writer);

impl Expressions {
    /// `meta KEY VALUE`
    pub(super) fn meta(mut self, key: Meta, value: &[u8]) -> Self {
        self.load_meta(key, REGISTER);
        self.compare(Comparison::Equal, value);
        self
    }

    /// `meta KEY & MASK VALUE`, of numbers in the machine's byte order.
    pub(super) fn meta_masked(mut self, key: Meta, mask: u32, value: u32) -> Self {
        self.load_meta(key, REGISTER);
        if mask != u32::MAX {
            self.mask(&mask.to_ne_bytes());
        }
        self.compare(Comparison::Equal, &value.to_ne_bytes());
        self
    }

    /// `meta KEY @SET`, or `meta KEY != @SET`
    pub(super) fn meta_in(mut self, key: Meta, set: &str, is_in: bool) -> Self {
        self.load_meta(key, REGISTER);
        self.lookup(set, REGISTER, is_in);
        self
    }

    /// The upper protocol is `number`.
    pub(super) fn protocol(self, number: u8) -> Self {
        self.meta(Meta::Layer4, &[number])
    }

    /// The field is `value`.
    pub(super) fn field(mut self, field: Field, value: &[u8]) -> Self {
        self.load(field, REGISTER);
        self.compare(Comparison::Equal, value);
        self
    }

    /// The field is in the set, or is not.
    pub(super) fn field_in(mut self, field: Field, set: &str, is_in: bool) -> Self {
        self.load(field, REGISTER);
        self.lookup(set, REGISTER, is_in);
        self
    }

    /// The field of two bytes lies in `range`.
    pub(super) fn within(mut self, field: Field, range: &RangeInclusive<u16>) -> Self {
        if range.start() == range.end() {
            return self.field(field, &range.start().to_be_bytes());
        }
        self.load(field, REGISTER);
        self.compare(Comparison::AtLeast, &range.start().to_be_bytes());
        self.compare(Comparison::AtMost, &range.end().to_be_bytes());
        self
    }

    /// The address field lies in `prefix`.
    pub(super) fn prefix(mut self, field: Field, prefix: Prefix) -> Self {
        if prefix.length() == 0 {
            return self;
        }
        self.load(field, REGISTER);
        if prefix.length() < prefix.family().bits() {
            self.mask(&mask(prefix));
        }
        self.compare(Comparison::Equal, &octets(prefix.address()));
        self
    }

    /// A TCP segment that asks for a connection.
    pub(super) fn bare_syn(mut self) -> Self {
        self.load(TCP_FLAGS, REGISTER);
        self.mask(&[SYN | ACK]);
        self.compare(Comparison::Equal, &[SYN]);
        self
    }

    /// The flow of a TCP or UDP packet, as [`super::flows::flow_key`] has it, is in the set.
    pub(super) fn flow_in(mut self, family: Family, set: &str) -> Self {
        let next = self.load_protocol_and_source(family);
        self.load(SOURCE_PORT, next);
        let next = self.load_destination(family, next + 1);
        self.load(DESTINATION_PORT, next);
        self.lookup(set, KEY, true);
        self
    }

    /// The flow of an ICMP echo is in the set.
    pub(super) fn echo_flow_in(mut self, family: Family, set: &str) -> Self {
        let next = self.load_protocol_and_source(family);
        self.load(ICMP_IDENTIFIER, next);
        let next = self.load_destination(family, next + 1);
        self.set(next, &[0; 4]);
        self.lookup(set, KEY, true);
        self
    }

    /// The flow of a protocol without ports is in the set.
    pub(super) fn portless_flow_in(mut self, family: Family, set: &str) -> Self {
        let next = self.load_protocol_and_source(family);
        self.set(next, &[0; 4]);
        let next = self.load_destination(family, next + 1);
        self.set(next, &[0; 4]);
        self.lookup(set, KEY, true);
        self
    }

    /// The packet is a reply that is in the set: protocol . source . destination . `id`, or 0.
    pub(super) fn reply_in(mut self, family: Family, set: &str, id: Option<Field>) -> Self {
        let next = self.load_protocol_and_source(family);
        let next = self.load_destination(family, next);
        match id {
            Some(id) => self.load(id, next),
            None => self.set(next, &[0; 4]),
        }
        self.lookup(set, KEY, true);
        self
    }

    /// protocol . address . port is in the set, as these fields have them.
    pub(super) fn end_in(mut self, address: Field, port: Field, set: &str) -> Self {
        self.load_meta(Meta::Layer4, KEY);
        self.load(address, KEY + 1);
        self.load(port, KEY + 1 + address.2 / 4);
        self.lookup(set, KEY, true);
        self
    }

    /// The word `value` is in the set, or is not: asks whether a set has its one element.
    pub(super) fn constant_in(mut self, value: &[u8], set: &str, is_in: bool) -> Self {
        self.set(REGISTER, value);
        self.lookup(set, REGISTER, is_in);
        self
    }

    /// Counts what comes so far.
    pub(super) fn counter(mut self) -> Self {
        self.add("counter", |_| {});
        self
    }

    /// Ends the rule; its bytes are the value of `NFTA_RULE_EXPRESSIONS`.
    pub(super) fn then(mut self, verdict: Verdict<'_>) -> Vec<u8> {
        let (code, chain): (i32, _) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Goto(chain) => (-4, Some(chain)),
            Verdict::Return => (-5, None),
        };
        self.add("immediate", |w| {
            w.number(1, VERDICT_REGISTER);
            w.nest(2, |w| {
                w.nest(2, |w| {
                    w.number(1, code as u32);
                    chain.into_iter().for_each(|chain| w.text(2, chain));
                });
            });
        });
        self.0.bytes().to_vec()
    }

    fn load_protocol_and_source(&mut self, family: Family) -> u32 {
        self.load_meta(Meta::Layer4, KEY);
        self.load(source(family), KEY + 1);
        KEY + 1 + u32::from(family.bits()) / 32
    }

    fn load_destination(&mut self, family: Family, register: u32) -> u32 {
        self.load(destination(family), register);
        register + u32::from(family.bits()) / 32
    }

    fn load_meta(&mut self, key: Meta, register: u32) {
        self.add("meta", |w| {
            w.number(1, register);
            w.number(2, key as u32);
        });
    }

    fn load(&mut self, (base, offset, length): Field, register: u32) {
        self.add("payload", |w| {
            w.number(1, register);
            w.number(2, base);
            w.number(3, offset);
            w.number(4, length);
        });
    }

    fn set(&mut self, register: u32, value: &[u8]) {
        self.add("immediate", |w| {
            w.number(1, register);
            w.nest(2, |w| w.attribute(1, value));
        });
    }

    fn mask(&mut self, mask: &[u8]) {
        self.add("bitwise", |w| {
            w.number(1, REGISTER);
            w.number(2, REGISTER);
            w.number(3, mask.len() as u32);
            w.nest(4, |w| w.attribute(1, mask));
            w.nest(5, |w| w.attribute(1, &vec![0; mask.len()]));
        });
    }

    fn compare(&mut self, comparison: Comparison, value: &[u8]) {
        self.add("cmp", |w| {
            w.number(1, REGISTER);
            w.number(2, comparison as u32);
            w.nest(3, |w| w.attribute(1, value));
        });
    }

    fn lookup(&mut self, set: &str, register: u32, is_in: bool) {
        self.add("lookup", |w| {
            w.text(1, set);
            w.number(2, register);
            if !is_in {
                w.number(5, 1);
            }
        });
    }

    fn add(&mut self, name: &str, data: impl FnOnce(&mut Writer)) {
        self.0.nest(1, |w| {
            w.text(1, name);
            w.nest(2, data);
        });
    }
}

fn mask(prefix: Prefix) -> Vec<u8> {
    let ones = IpAddr::from([0xff; 16]);
    let ones = if prefix.family() == Family::V4 { IpAddr::from([0xff; 4]) } else { ones };
    octets(crate::wire::ip::masked(ones, prefix.length()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::nft::message::{attributes, find, number, text};

    fn names(expressions: &[u8]) -> Vec<&str> {
        attributes(expressions).filter_map(|(_, e)| find(e, 1)).map(text).collect()
    }

    #[test]
    fn a_prefix_is_masked_unless_it_is_a_host_or_everything() {
        let of = |text: &str| {
            let prefix: Prefix = text.parse().expect("a prefix");
            Expressions::default().prefix(destination(prefix.family()), prefix).then(Verdict::Drop)
        };
        assert_eq!(names(&of("10.0.0.0/9")), ["payload", "bitwise", "cmp", "immediate"]);
        assert_eq!(names(&of("10.0.0.1/32")), ["payload", "cmp", "immediate"]);
        assert_eq!(names(&of("::/0")), ["immediate"]);
        let bytes = of("10.128.0.0/9");
        let bitwise = attributes(&bytes).nth(1).and_then(|(_, e)| find(e, 2)).expect("bitwise");
        let mask = find(bitwise, 4).and_then(|data| find(data, 1));
        assert_eq!(mask, Some(&[0xff, 0x80, 0, 0][..]));
    }

    #[test]
    fn a_flow_fills_consecutive_registers() {
        for (family, wanted) in [(Family::V4, [8, 9, 10, 11, 12]), (Family::V6, [8, 9, 13, 14, 18])]
        {
            let bytes = Expressions::default().flow_in(family, "s").then(Verdict::Drop);
            let registers: Vec<u32> = attributes(&bytes)
                .take(5)
                .filter_map(|(_, e)| number(find(find(e, 2)?, 1)?))
                .collect();
            assert_eq!(registers, wanted);
        }
    }

    #[test]
    fn a_verdict_names_its_chain() {
        let bytes = Expressions::default().then(Verdict::Goto("first4"));
        let data = attributes(&bytes).next().and_then(|(_, e)| find(e, 2)).expect("immediate");
        let verdict = find(data, 2).and_then(|d| find(d, 2)).expect("verdict");
        assert_eq!(find(verdict, 1).and_then(number), Some(-4i32 as u32));
        assert_eq!(find(verdict, 2).map(text), Some("first4"));
    }
}
