//! Classic BPF programs (socket filters): what a NIC's packet sockets hear, and which worker hears it.
//!
//! They hear what the forwarder [`Claims`]. What may be a reply to a rewritten flow, sent to us at an address that
//! these carry: TCP and UDP to a reserved port, echo replies with a reserved identifier, other protocols, which
//! have no port to choose. What is asked of a virtual service and what its servers answer. And for all of these
//! addresses ICMP errors and fragments. What of it is the kernel's turns out in the pipeline.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use crate::forward::claims::{Claim, Claims};
use crate::wire::ip::{self, Family};

/// One instruction, as the kernel takes it.
pub type Instruction = libc::sock_filter;

/// Offsets from the network header on, whatever lies in front of it.
pub(super) const NET: u32 = libc::SKF_NET_OFF as u32;
const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
const PACKET_HOST: u32 = libc::PACKET_HOST as u32;

pub(super) const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
pub(super) const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
pub(super) const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
pub(super) const LOAD_BYTE_X: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
pub(super) const LOAD_HALF_X: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
const TO_X: u32 = libc::BPF_MISC | libc::BPF_TAX;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const SHIFT_LEFT: u32 = libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K;
const MODULO: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
const XOR_X: u32 = libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X;
const STORE: u32 = libc::BPF_ST;
const LOAD_STORED: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_MEM;
pub(super) const IMMEDIATE_X: u32 = libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM;
pub(super) const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
pub(super) const GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
pub(super) const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
pub(super) const BITS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
pub(super) const ALWAYS: u32 = libc::BPF_JMP | libc::BPF_JA;
pub(super) const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const RETURN_A: u32 = libc::BPF_RET | libc::BPF_A;

/// A program in the making: jumps name labels, which are resolved at the end with long jumps only.
#[derive(Default)]
struct Program {
    code: Vec<(u32, u32, Option<Label>)>,
    labels: Vec<(Label, usize)>,
    places: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Take,
    Drop,
    /// By the port that replies were given.
    ByPort,
    /// By the client that asks.
    ByClient,
    /// Any other place.
    Place(usize),
}

impl Program {
    fn push(&mut self, code: u32, k: u32) {
        self.code.push((code, k, None));
    }

    /// Goes to `label` if the accumulator compares true with `k`.
    fn jump_if(&mut self, code: u32, k: u32, label: Label) {
        self.code.push((code, k, Some(label)));
    }

    /// Goes to `label` if it compares false.
    fn jump_unless(&mut self, code: u32, k: u32, label: Label) {
        // Over the jump if true.
        self.code.push((code | NEGATED, k, Some(label)));
    }

    /// A label that nothing has yet.
    fn place(&mut self) -> Label {
        self.places += 1;
        Label::Place(self.places)
    }

    fn label(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    /// Each conditional jump becomes two instructions: a short one and a long one.
    fn finish(self) -> Vec<Instruction> {
        let size = |code: &(u32, u32, Option<Label>)| {
            if code.2.is_some() && code.0 != ALWAYS { 2 } else { 1 }
        };
        let starts: Vec<usize> = self
            .code
            .iter()
            .scan(0, |at, code| {
                let start = *at;
                *at += size(code);
                Some(start)
            })
            .collect();
        let labels: BTreeMap<Label, usize> = self.labels.into_iter().collect();
        let target = |label: Label| {
            let at = labels.get(&label).copied().unwrap_or(0);
            starts.get(at).copied().unwrap_or(0)
        };
        let mut out: Vec<Instruction> = Vec::new();
        for (code, k, label) in &self.code {
            let instruction = |code: u32, jt, jf, k| Instruction { code: code as u16, jt, jf, k };
            match label {
                None => out.push(instruction(*code, 0, 0, *k)),
                Some(label) => {
                    if *code != ALWAYS {
                        let (jt, jf) = if code & NEGATED == 0 { (0, 1) } else { (1, 0) };
                        out.push(instruction(code & !NEGATED, jt, jf, *k));
                    }
                    let distance = target(*label) - out.len() - 1;
                    out.push(instruction(ALWAYS, 0, 0, distance as u32));
                }
            }
        }
        out
    }
}

const NEGATED: u32 = 1 << 20;

/// The longest program that the kernel takes.
const LONGEST: usize = 4096;
/// An IPv6 packet with extension headers: the pipeline walks them.
const EXTENSIONS: [u8; 5] = [0, 43, 44, 51, 60];

/// What is owned of one address, as far as it lies behind it.
#[derive(Clone, Debug, Default)]
struct Owned {
    tcp: Vec<RangeInclusive<u16>>,
    udp: Vec<RangeInclusive<u16>>,
    /// Identifiers of echo replies, and with them every protocol without ports.
    echo: Option<RangeInclusive<u16>>,
}

impl Owned {
    fn add(&mut self, claim: &Claim) {
        let ports = claim.ports.0..=claim.ports.1;
        match claim.protocol {
            ip::TCP => self.tcp.push(ports),
            ip::UDP => self.udp.push(ports),
            _ => {}
        }
    }
}

/// By destination: what is owned of each address.
fn destinations(claims: &Claims) -> BTreeMap<IpAddr, Owned> {
    let mut owned: BTreeMap<IpAddr, Owned> = BTreeMap::new();
    let both = |one: &mut Owned, ports: &RangeInclusive<u16>| {
        one.tcp.push(ports.clone());
        one.udp.push(ports.clone());
    };
    for address in &claims.owned {
        let one = owned.entry(*address).or_default();
        both(one, &claims.reserved);
        one.echo = Some(claims.reserved.clone());
    }
    for (address, ports) in &claims.sources {
        both(owned.entry(*address).or_default(), ports);
    }
    for claim in &claims.services {
        owned.entry(claim.address).or_default().add(claim);
    }
    owned
}

/// By source: servers that answer to the client's own address.
fn sources(claims: &Claims) -> BTreeMap<IpAddr, Owned> {
    let mut owned: BTreeMap<IpAddr, Owned> = BTreeMap::new();
    claims.servers.iter().for_each(|claim| owned.entry(claim.address).or_default().add(claim));
    owned
}

/// Where a family's headers have what is asked for.
struct Layout {
    source: u32,
    destination: u32,
    protocol: u32,
}

fn layout(family: Family) -> Layout {
    match family {
        Family::V4 => Layout { source: 12, destination: 16, protocol: 9 },
        Family::V6 => Layout { source: 8, destination: 24, protocol: 6 },
    }
}

/// What a socket of `family` hears. Where that needs a longer program than the kernel takes it is all that is sent to
/// this host, and the pipeline leaves the rest to the kernel.
pub fn heard(family: Family, claims: &Claims) -> Vec<Instruction> {
    let program = exactly(family, claims);
    if program.len() <= LONGEST {
        return program;
    }
    let mut p = Program::default();
    p.push(LOAD_WORD, PACKET_TYPE);
    p.jump_unless(EQUAL, PACKET_HOST, Label::Drop);
    p.label(Label::Take);
    p.push(RETURN, u32::MAX);
    p.label(Label::Drop);
    p.push(RETURN, 0);
    p.finish()
}

fn exactly(family: Family, claims: &Claims) -> Vec<Instruction> {
    let mut p = Program::default();
    p.push(LOAD_WORD, PACKET_TYPE);
    p.jump_unless(EQUAL, PACKET_HOST, Label::Drop);
    by_address(p, family, claims, Part::All)
}

/// Of what [`heard`] lets through, that which is the forwarder's whatever is in it: whole datagrams of TCP and, if it `has_udp`, UDP to
/// services and to addresses given wholly, without options of IP. For packets to this host, with their headers in one piece. `None` if
/// there are none such, or that needs a longer program than the kernel takes.
pub(super) fn taken(family: Family, claims: &Claims, has_udp: bool) -> Option<Vec<Instruction>> {
    let Claims { mut services, sources, .. } = claims.clone();
    services.retain(|claim| has_udp || claim.protocol != ip::UDP);
    let all = services.iter().map(|claim| &claim.address);
    let is_any = all.chain(sources.iter().map(|(a, _)| a)).any(|a| Family::of(*a) == family);
    let wholly = Claims { services, sources, ..Claims::default() };
    let program = by_address(Program::default(), family, &wholly, Part::Ports { has_udp });
    (is_any && program.len() <= LONGEST).then_some(program)
}

/// What of an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Everything that may be ours.
    All,
    /// What has a port in it, of TCP or also of UDP.
    Ports { has_udp: bool },
}

fn by_address(mut p: Program, family: Family, claims: &Claims, part: Part) -> Vec<Instruction> {
    let Layout { source, destination, .. } = layout(family);
    // The end that is ours has its port at 2, a server at 0.
    let mut blocks = Vec::new();
    for (at, port_at, all) in
        [(destination, 2, destinations(claims)), (source, 0, self::sources(claims))]
    {
        for (address, owned) in all.into_iter().filter(|(a, _)| Family::of(*a) == family) {
            let (found, next) = (p.place(), p.place());
            compare(&mut p, at, address, next);
            p.jump_if(ALWAYS, 0, found);
            p.label(next);
            blocks.push((found, port_at, owned));
        }
    }
    p.jump_if(ALWAYS, 0, Label::Drop);
    for (label, port_at, owned) in blocks {
        p.label(label);
        of_address(&mut p, family, port_at, &owned, part);
    }
    p.label(Label::Take);
    p.push(RETURN, u32::MAX);
    p.label(Label::Drop);
    p.push(RETURN, 0);
    p.finish()
}

/// What an ARP socket hears: those who say that they have one of `senders`. It runs on what is behind the Ethernet header (RFC 826).
pub fn arp_senders(senders: &[Ipv4Addr]) -> Vec<Instruction> {
    const SENDER: u32 = 14;
    let mut p = Program::default();
    p.push(LOAD_WORD, NET + SENDER);
    for sender in senders {
        p.jump_if(EQUAL, u32::from(*sender), Label::Take);
    }
    p.push(RETURN, 0);
    p.label(Label::Take);
    p.push(RETURN, u32::MAX);
    p.finish()
}

/// Goes to `other` unless the address at `at` is `address`.
fn compare(p: &mut Program, at: u32, address: IpAddr, other: Label) {
    let words: Vec<u32> = match address {
        IpAddr::V4(a) => vec![u32::from(a)],
        IpAddr::V6(a) => {
            let bits = u128::from(a);
            (0..4).map(|word| (bits >> (96 - 32 * word)) as u32).collect()
        }
    };
    for (number, word) in words.iter().enumerate() {
        p.push(LOAD_WORD, NET + at + 4 * number as u32);
        p.jump_unless(EQUAL, *word, other);
    }
}

/// What is heard of an address.
fn of_address(p: &mut Program, family: Family, port_at: u32, owned: &Owned, part: Part) {
    match part {
        Part::All => layer4_start_to_x(p, family),
        Part::Ports { .. } => usual_start_to_x(p, family),
    }
    if family == Family::V4 {
        p.push(LOAD_HALF, NET + 6);
        p.jump_if(BITS, 0x3fff, if part == Part::All { Label::Take } else { Label::Drop });
    }
    let (tcp, udp) = (p.place(), p.place());
    p.push(LOAD_BYTE, NET + layout(family).protocol);
    p.jump_if(EQUAL, u32::from(ip::TCP), tcp);
    p.jump_if(EQUAL, u32::from(ip::UDP), udp);
    match part {
        Part::All => without_ports(p, family, owned),
        Part::Ports { .. } => p.push(RETURN, 0),
    }
    p.label(tcp);
    within(p, port_at, &owned.tcp);
    p.label(udp);
    let has_udp = part != Part::Ports { has_udp: false };
    within(p, port_at, if has_udp { &owned.udp } else { &[] });
}

/// What is heard of an address that is neither TCP nor UDP.
fn without_ports(p: &mut Program, family: Family, owned: &Owned) {
    if owned.echo.is_some() {
        p.jump_unless(EQUAL, u32::from(icmp_of(family)), Label::Take);
    } else {
        if family == Family::V6 {
            for header in EXTENSIONS {
                p.jump_if(EQUAL, u32::from(header), Label::Take);
            }
        }
        p.jump_unless(EQUAL, u32::from(icmp_of(family)), Label::Drop);
    }
    p.push(LOAD_BYTE_X, NET);
    let reply = match family {
        Family::V4 => {
            for kind in [3, 4, 5, 11, 12] {
                p.jump_if(EQUAL, kind, Label::Take);
            }
            0
        }
        Family::V6 => {
            p.jump_unless(AT_LEAST, 128, Label::Take);
            129
        }
    };
    p.jump_unless(EQUAL, reply, Label::Drop);
    let echo: Vec<_> = owned.echo.iter().cloned().collect();
    within(p, 4, &echo);
}

/// Takes the packet if the half-word at `at` of layer 4 lies in one of `ranges`, drops it otherwise.
fn within(p: &mut Program, at: u32, ranges: &[RangeInclusive<u16>]) {
    p.push(LOAD_HALF_X, NET + at);
    for range in ranges {
        let next = p.place();
        p.jump_unless(AT_LEAST, u32::from(*range.start()), next);
        p.jump_unless(GREATER, u32::from(*range.end()), Label::Take);
        p.label(next);
    }
    p.push(RETURN, 0);
}

fn icmp_of(family: Family) -> u8 {
    match family {
        Family::V4 => ip::ICMP,
        Family::V6 => ip::ICMPV6,
    }
}

/// What a socket with the program of [`heard`] hears, for those who have no socket. The two change together.
#[derive(Debug)]
pub struct Ears {
    destinations: BTreeMap<IpAddr, Owned>,
    sources: BTreeMap<IpAddr, Owned>,
}

impl Ears {
    /// Ears for these claims.
    pub fn new(claims: &Claims) -> Ears {
        Ears { destinations: destinations(claims), sources: sources(claims) }
    }

    /// Is `packet` heard, which is for this host and begins with its IP header?
    pub fn hear(&self, family: Family, packet: &[u8]) -> bool {
        let Layout { source, destination, .. } = layout(family);
        let address = |at: u32| -> Option<IpAddr> {
            let bytes = packet.get(at as usize..)?;
            Some(match family {
                Family::V4 => IpAddr::from(*bytes.first_chunk::<4>()?),
                Family::V6 => IpAddr::from(*bytes.first_chunk::<16>()?),
            })
        };
        let Some(to) = address(destination) else { return false };
        if let Some(owned) = self.destinations.get(&to) {
            return hears_of(family, packet, 2, owned);
        }
        let from = address(source).unwrap_or(to);
        self.sources.get(&from).is_some_and(|owned| hears_of(family, packet, 0, owned))
    }
}

fn hears_of(family: Family, packet: &[u8], port_at: usize, owned: &Owned) -> bool {
    let half = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let lies_in = |ranges: &[RangeInclusive<u16>], port: Option<u16>| {
        port.is_some_and(|port| ranges.iter().any(|range| range.contains(&port)))
    };
    let (layer4, protocol) = match family {
        Family::V4 if half(6).is_some_and(|fragment| fragment & 0x3fff != 0) => return true,
        Family::V4 => (usize::from(packet[0] & 0x0f) << 2, packet[9]),
        Family::V6 => (40, packet[6]),
    };
    let kind = packet.get(layer4).copied();
    let echo = owned.echo.as_slice();
    match (protocol, family) {
        (ip::TCP, _) => lies_in(&owned.tcp, half(layer4 + port_at)),
        (ip::UDP, _) => lies_in(&owned.udp, half(layer4 + port_at)),
        (ip::ICMP, Family::V4) => match kind {
            Some(3..=5 | 11 | 12) => true,
            Some(0) => lies_in(echo, half(layer4 + 4)),
            _ => false,
        },
        (ip::ICMPV6, Family::V6) => match kind {
            Some(..=127) => true,
            Some(129) => lies_in(echo, half(layer4 + 4)),
            _ => false,
        },
        (protocol, Family::V6) if EXTENSIONS.contains(&protocol) => true,
        _ => owned.echo.is_some(),
    }
}

/// Which of `workers` hears a packet: of a reply the one that gave out its port or identifier, of what is asked of a
/// service the one that its client belongs to ([`crate::forward::service`]), and so of what a server sends to
/// the client's own address. All else goes to the first, which hands on what is not its own.
pub fn worker(family: Family, claims: &Claims, workers: u8) -> Vec<Instruction> {
    let program = steered(family, claims, workers);
    if program.len() <= LONGEST {
        return program;
    }
    // Too many addresses to tell apart: those that are given wholly, and servers, go by the client.
    let fewer = Claims { sources: Vec::new(), servers: Vec::new(), ..claims.clone() };
    steered(family, &fewer, workers)
}

fn steered(family: Family, claims: &Claims, workers: u8) -> Vec<Instruction> {
    let Layout { source, destination, protocol } = layout(family);
    let mut p = Program::default();
    layer4_start_to_x(&mut p, family);
    if family == Family::V4 {
        p.push(LOAD_HALF, NET + 6);
        p.jump_if(BITS, 0x1fff, Label::Drop);
    }
    let ports = p.place();
    p.push(LOAD_BYTE, NET + protocol);
    p.jump_if(EQUAL, u32::from(ip::TCP), ports);
    p.jump_if(EQUAL, u32::from(ip::UDP), ports);
    p.jump_unless(EQUAL, u32::from(icmp_of(family)), Label::Drop);
    p.push(LOAD_BYTE_X, NET);
    p.jump_unless(EQUAL, if family == Family::V4 { 0 } else { 129 }, Label::Drop);
    p.push(LOAD_HALF_X, NET + 4);
    p.push(MODULO, u32::from(workers));
    p.push(RETURN_A, 0);
    p.label(ports);
    if !claims.owned.is_empty() {
        let next = p.place();
        p.push(LOAD_HALF_X, NET + 2);
        p.jump_unless(AT_LEAST, u32::from(*claims.reserved.start()), next);
        p.jump_unless(GREATER, u32::from(*claims.reserved.end()), Label::ByPort);
        p.label(next);
    }
    let of_family = |address: &IpAddr| Family::of(*address) == family;
    for address in claims.sources.iter().map(|(address, _)| *address).filter(of_family) {
        let next = p.place();
        compare(&mut p, destination, address, next);
        p.jump_if(ALWAYS, 0, Label::ByPort);
        p.label(next);
    }
    let low = if family == Family::V4 { 0 } else { 12 };
    for address in self::sources(claims).into_keys().filter(of_family) {
        let next = p.place();
        compare(&mut p, source, address, next);
        by_client(&mut p, destination + low, 2, workers);
        p.label(next);
    }
    p.label(Label::ByClient);
    by_client(&mut p, source + low, 0, workers);
    p.label(Label::ByPort);
    p.push(LOAD_HALF_X, NET + 2);
    p.push(MODULO, u32::from(workers));
    p.push(RETURN_A, 0);
    p.label(Label::Drop);
    p.push(RETURN, 0);
    p.finish()
}

/// The lowest word of the client's address, at `address`, and its port decide.
fn by_client(p: &mut Program, address: u32, port_at: u32, workers: u8) {
    p.push(LOAD_HALF_X, NET + port_at);
    p.push(STORE, 0);
    p.push(LOAD_WORD, NET + address);
    p.push(TO_X, 0);
    p.push(LOAD_STORED, 0);
    p.push(XOR_X, 0);
    p.push(MODULO, u32::from(workers));
    p.push(RETURN_A, 0);
}

/// Where layer 4 starts without options of IP; a packet that has such is dropped.
fn usual_start_to_x(p: &mut Program, family: Family) {
    let start = match family {
        Family::V4 => {
            p.push(LOAD_BYTE, NET);
            p.jump_unless(EQUAL, 0x45, Label::Drop);
            20
        }
        Family::V6 => 40,
    };
    p.push(IMMEDIATE_X, start);
}

fn layer4_start_to_x(p: &mut Program, family: Family) {
    match family {
        Family::V4 => {
            p.push(LOAD_BYTE, NET);
            p.push(AND, 0x0f);
            p.push(SHIFT_LEFT, 2);
            p.push(TO_X, 0);
        }
        Family::V6 => p.push(IMMEDIATE_X, 40),
    }
}

#[cfg(test)]
pub(super) mod tests;
