//! Classic BPF programs (socket filters): what a NIC's packet sockets hear, and which worker hears it.
//!
//! They hear what may be a reply to a rewritten flow, sent to us at an address that these carry: TCP and UDP to
//! a reserved port, echo replies with a reserved identifier, ICMP errors, fragments, and other protocols, which
//! have no port to choose. What of it is the kernel's turns out in the pipeline.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use crate::wire::ip::{self, Family};

/// One instruction, as the kernel takes it.
pub type Instruction = libc::sock_filter;

/// Offsets from the network header on, whatever lies in front of it.
const NET: u32 = libc::SKF_NET_OFF as u32;
const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
const PACKET_HOST: u32 = libc::PACKET_HOST as u32;

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const LOAD_BYTE_X: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_IND;
const LOAD_HALF_X: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
const TO_X: u32 = libc::BPF_MISC | libc::BPF_TAX;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const SHIFT_LEFT: u32 = libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K;
const MODULO: u32 = libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K;
const IMMEDIATE_X: u32 = libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const BITS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const ALWAYS: u32 = libc::BPF_JMP | libc::BPF_JA;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const RETURN_A: u32 = libc::BPF_RET | libc::BPF_A;

/// A program in the making: jumps name labels, which are resolved at the end with long jumps only.
#[derive(Default)]
struct Program {
    code: Vec<(u32, u32, Option<Label>)>,
    labels: Vec<(Label, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Ours,
    Ports,
    Take,
    Drop,
    /// The next address to compare.
    Next(usize),
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
        let target = |label: Label| {
            let at = self.labels.iter().find(|(l, _)| *l == label).map_or(0, |(_, at)| *at);
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

/// What a socket of `family` hears: replies to `owned` addresses in `ports`. Nothing if none is owned.
pub fn replies(family: Family, owned: &[IpAddr], ports: &RangeInclusive<u16>) -> Vec<Instruction> {
    let mut p = Program::default();
    p.push(LOAD_WORD, PACKET_TYPE);
    p.jump_unless(EQUAL, PACKET_HOST, Label::Drop);
    let (destination, protocol_at) = match family {
        Family::V4 => (16, 9),
        Family::V6 => (24, 6),
    };
    for (number, address) in owned.iter().filter(|a| Family::of(**a) == family).enumerate() {
        let words: Vec<u32> = match address {
            IpAddr::V4(a) => vec![u32::from(*a)],
            IpAddr::V6(a) => {
                let bits = u128::from(*a);
                (0..4).map(|word| (bits >> (96 - 32 * word)) as u32).collect()
            }
        };
        for (at, word) in words.iter().enumerate() {
            p.push(LOAD_WORD, NET + destination + 4 * at as u32);
            p.jump_unless(EQUAL, *word, Label::Next(number));
        }
        p.jump_if(ALWAYS, 0, Label::Ours);
        p.label(Label::Next(number));
    }
    p.jump_if(ALWAYS, 0, Label::Drop);

    p.label(Label::Ours);
    layer4_start_to_x(&mut p, family);
    if family == Family::V4 {
        p.push(LOAD_HALF, NET + 6);
        p.jump_if(BITS, 0x3fff, Label::Take);
    }
    p.push(LOAD_BYTE, NET + protocol_at);
    p.jump_if(EQUAL, u32::from(ip::TCP), Label::Ports);
    p.jump_if(EQUAL, u32::from(ip::UDP), Label::Ports);
    // Extension headers as well: the pipeline walks them.
    p.jump_unless(EQUAL, u32::from(icmp_of(family)), Label::Take);
    p.push(LOAD_BYTE_X, NET);
    match family {
        Family::V4 => {
            for kind in [3, 4, 5, 11, 12] {
                p.jump_if(EQUAL, kind, Label::Take);
            }
            p.jump_unless(EQUAL, 0, Label::Drop);
        }
        Family::V6 => {
            p.jump_unless(AT_LEAST, 128, Label::Take);
            p.jump_unless(EQUAL, 129, Label::Drop);
        }
    }
    p.push(LOAD_HALF_X, NET + 4);
    within(&mut p, ports);
    p.label(Label::Ports);
    p.push(LOAD_HALF_X, NET + 2);
    within(&mut p, ports);
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

fn icmp_of(family: Family) -> u8 {
    match family {
        Family::V4 => ip::ICMP,
        Family::V6 => ip::ICMPV6,
    }
}

/// Does a socket with the program of [`replies`] hear `packet`, which is for this host and begins with its IP
/// header? The same choice for those who have no socket; the two change together.
pub fn hears(family: Family, packet: &[u8], owned: &[IpAddr], ports: &RangeInclusive<u16>) -> bool {
    let destination = match family {
        Family::V4 => {
            packet.get(16..20).and_then(|b| b.first_chunk::<4>().copied()).map(IpAddr::from)
        }
        Family::V6 => {
            packet.get(24..40).and_then(|b| b.first_chunk::<16>().copied()).map(IpAddr::from)
        }
    };
    if !destination.is_some_and(|address| owned.contains(&address)) {
        return false;
    }
    let half = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let is_reserved = |port: Option<u16>| port.is_some_and(|port| ports.contains(&port));
    let (layer4, protocol) = match family {
        Family::V4 if half(6).is_some_and(|fragment| fragment & 0x3fff != 0) => return true,
        Family::V4 => (usize::from(packet[0] & 0x0f) << 2, packet[9]),
        Family::V6 => (40, packet[6]),
    };
    let kind = packet.get(layer4).copied();
    match (protocol, family) {
        (ip::TCP | ip::UDP, _) => is_reserved(half(layer4 + 2)),
        (ip::ICMP, Family::V4) => match kind {
            Some(3..=5 | 11 | 12) => true,
            Some(0) => is_reserved(half(layer4 + 4)),
            _ => false,
        },
        (ip::ICMPV6, Family::V6) => match kind {
            Some(..=127) => true,
            Some(129) => is_reserved(half(layer4 + 4)),
            _ => false,
        },
        _ => true,
    }
}

/// Which of `workers` hears a reply: the one that gave out its port or identifier. All that does not show one
/// goes to the first, which hands on what is not its own.
pub fn worker(family: Family, workers: u8) -> Vec<Instruction> {
    let mut p = Program::default();
    layer4_start_to_x(&mut p, family);
    if family == Family::V4 {
        p.push(LOAD_HALF, NET + 6);
        p.jump_if(BITS, 0x1fff, Label::Drop);
    }
    p.push(LOAD_BYTE, NET + if family == Family::V4 { 9 } else { 6 });
    p.jump_if(EQUAL, u32::from(ip::TCP), Label::Ports);
    p.jump_if(EQUAL, u32::from(ip::UDP), Label::Ports);
    p.jump_unless(EQUAL, u32::from(icmp_of(family)), Label::Drop);
    p.push(LOAD_BYTE_X, NET);
    p.jump_unless(EQUAL, if family == Family::V4 { 0 } else { 129 }, Label::Drop);
    p.push(LOAD_HALF_X, NET + 4);
    p.push(MODULO, u32::from(workers));
    p.push(RETURN_A, 0);
    p.label(Label::Ports);
    p.push(LOAD_HALF_X, NET + 2);
    p.push(MODULO, u32::from(workers));
    p.push(RETURN_A, 0);
    p.label(Label::Drop);
    p.push(RETURN, 0);
    p.finish()
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

/// Takes the packet if the accumulator lies in `ports`.
fn within(p: &mut Program, ports: &RangeInclusive<u16>) {
    p.jump_unless(AT_LEAST, u32::from(*ports.start()), Label::Drop);
    p.jump_if(GREATER, u32::from(*ports.end()), Label::Drop);
    p.push(RETURN, u32::MAX);
}

#[cfg(test)]
mod tests;
