//! The XDP program of a NIC: pure, from what the forwarder owns to instructions (RFC 9669).
//!
//! It leads to this NIC's AF_XDP socket what a packet socket would hear and the kernel would be kept from answering
//! ([`filter::taken`]), and passes all else on. There is one description of what is ours: the sockets' classic program, translated here
//! instruction by instruction.

use std::os::fd::RawFd;

use crate::device::filter;
use crate::forward::claims::Claims;
use crate::forward::view::XdpHook;
use crate::wire::ethernet::{self, HEADER_LEN, MacAddr};
use crate::wire::ip::Family;

/// One instruction, as the kernel takes it (RFC 9669, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    pub(super) code: u8,
    /// Destination in the low four bits, source in the high ones.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

/// Room for a frame, with its Ethernet header: longer ones are left to the packet sockets.
const LONGEST: u32 = 1536;

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// The device's index. A bond's program runs at its members, whose frames a socket of the bond does not get.
    pub ifindex: u32,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Bytes of its largest packet. What is longer is to be cut by who sends it, and who would know that only the packet sockets tell.
    pub mtu: u32,
}

/// The classic machine's accumulator. At the end, what becomes of the frame.
const A: u8 = 0;
/// Arguments of a call; the first is the context at the beginning.
const ARGUMENTS: [u8; 3] = [1, 2, 3];
const AT: u8 = 2;
const BEHIND: u8 = 3;
/// The frame's beginning, and then that of its network header.
const HEADER: u8 = 6;
const END: u8 = 7;
/// The queue by which the frame came.
const QUEUE: u8 = 8;

// struct xdp_md.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const INGRESS: i16 = 12;
const RX_QUEUE: i16 = 16;

const XDP_PASS: i32 = 2;
/// bpf_redirect_map.
const REDIRECT_MAP: i32 = 51;
const MAP_BY_DESCRIPTOR: u8 = 1;

const LOAD_BYTE: u8 = 0x71;
const LOAD_HALF: u8 = 0x69;
const LOAD_WORD: u8 = 0x61;
const LOAD_WIDE: u8 = 0x18;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const ADD: u8 = 0x07;
const TO_BIG_ENDIAN: u8 = 0xdc;
const ALWAYS: u8 = 0x05;
const IF_GREATER: u8 = 0x2d;
const IF_AT_MOST: u8 = 0xbd;
const IF_EQUAL: u8 = 0x16;
const IF_NOT_EQUAL: u8 = 0x56;
/// The class of comparisons of 32 bits, where the classic machine has its own.
const COMPARISON: u8 = 0x06;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// The program for a card's hook, which leads to the sockets of the map behind `sockets`. `None` if nothing is taken, or that needs more
/// instructions than the kernel looks at.
///
/// UDP goes this way by the driver's hook alone: in the kernel's, where virtual cards hand over several datagrams as one that is to be cut
/// (UDP_SEGMENT), nothing tells that from a single one.
pub(super) fn program(
    card: Card,
    hook: XdpHook,
    claims: &Claims,
    sockets: RawFd,
) -> Option<Vec<Instruction>> {
    let mut p = Assembler::default();
    p.load(LOAD_WORD, HEADER, ARGUMENTS[0], DATA);
    p.load(LOAD_WORD, END, ARGUMENTS[0], DATA_END);
    p.load(LOAD_WORD, QUEUE, ARGUMENTS[0], RX_QUEUE);
    p.load(LOAD_WORD, A, ARGUMENTS[0], INGRESS);
    p.jump(IF_NOT_EQUAL, A, 0, card.ifindex.cast_signed(), Target::Pass);
    p.reach(HEADER, HEADER_LEN as i32);
    let longest = card.mtu.saturating_add(HEADER_LEN as u32).min(LONGEST);
    p.push(MOVE, AT, HEADER, 0, 0);
    p.push(ADD, AT, 0, 0, longest.cast_signed() + 1);
    p.jump(IF_AT_MOST, AT, END, 0, Target::Pass);
    let [a, b, c, d, e, f] = card.mac.0;
    p.load(LOAD_WORD, A, HEADER, 0);
    p.jump(IF_NOT_EQUAL, A, 0, i32::from_ne_bytes([a, b, c, d]), Target::Pass);
    p.load(LOAD_HALF, A, HEADER, 4);
    p.jump(IF_NOT_EQUAL, A, 0, u16::from_ne_bytes([e, f]).into(), Target::Pass);
    p.load(LOAD_HALF, A, HEADER, 12);
    p.push(ADD, HEADER, 0, 0, HEADER_LEN as i32);
    let families: Vec<_> = Family::BOTH
        .into_iter()
        .filter_map(|family| {
            Some((family, filter::taken(family, claims, hook == XdpHook::Native)?))
        })
        .collect();
    for (family, _) in &families {
        let kind = if *family == Family::V4 { ethernet::IPV4 } else { ethernet::IPV6 };
        p.jump(IF_EQUAL, A, 0, kind.to_be().into(), Target::Packet(*family));
    }
    p.jump(ALWAYS, 0, 0, 0, Target::Pass);
    for (family, classic) in &families {
        p.land(Target::Packet(*family));
        p.reach(HEADER, if *family == Family::V4 { 20 } else { 40 });
        p.translate(classic)?;
    }
    p.land(Target::Take);
    p.push(LOAD_WIDE, ARGUMENTS[0], MAP_BY_DESCRIPTOR, 0, sockets);
    p.push(0, 0, 0, 0, 0);
    p.push(MOVE, ARGUMENTS[1], QUEUE, 0, 0);
    p.push(SET, ARGUMENTS[2], 0, 0, XDP_PASS);
    p.push(CALL, 0, 0, 0, REDIRECT_MAP);
    p.push(EXIT, 0, 0, 0, 0);
    p.land(Target::Pass);
    p.push(SET, A, 0, 0, XDP_PASS);
    p.push(EXIT, 0, 0, 0, 0);
    (!families.is_empty()).then_some(p.code)
}

/// Where a jump goes whose way is not known yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// The frame goes on to the kernel.
    Pass,
    /// It goes to the socket.
    Take,
    /// It holds a packet of this family.
    Packet(Family),
    /// The classic instruction of this number.
    Classic(usize),
}

#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
    jumps: Vec<(usize, Target)>,
}

impl Assembler {
    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, immediate: i32) {
        self.code.push(Instruction { code, registers: from << 4 | to, offset, immediate });
    }

    fn load(&mut self, code: u8, to: u8, from: u8, offset: i16) {
        self.push(code, to, from, offset, 0);
    }

    fn jump(&mut self, code: u8, to: u8, from: u8, immediate: i32, target: Target) {
        self.jumps.push((self.code.len(), target));
        self.push(code, to, from, 0, immediate);
    }

    /// All jumps to `target` come out here.
    fn land(&mut self, target: Target) {
        let here = self.code.len();
        let code = &mut self.code;
        self.jumps.retain(|(at, to)| {
            if *to == target {
                code[*at].offset = (here - at - 1) as i16; // `filter::LONGEST` keeps it in here.
            }
            *to != target
        });
    }

    /// From here on so many bytes behind `from` belong to the frame; a shorter one passes.
    fn reach(&mut self, from: u8, length: i32) {
        self.push(MOVE, BEHIND, from, 0, 0);
        self.push(ADD, BEHIND, 0, 0, length);
        self.jump(IF_GREATER, BEHIND, END, 0, Target::Pass);
    }

    /// A classic program over the packet at `HEADER`. `None` if it does what is not known here.
    ///
    /// Its index register holds constants alone, so that each place in a packet is one: to look at others the verifier wants more rights
    /// than CAP_BPF (CAP_PERFMON).
    fn translate(&mut self, classic: &[filter::Instruction]) -> Option<()> {
        let mut index = 0;
        for (at, filter::Instruction { code, jt, jf, k }) in classic.iter().copied().enumerate() {
            self.land(Target::Classic(at));
            let (code, k) = (u32::from(code), k);
            match code {
                filter::LOAD_BYTE | filter::LOAD_HALF | filter::LOAD_WORD => {
                    self.field(code, k.checked_sub(filter::NET)?)?;
                }
                filter::LOAD_BYTE_X | filter::LOAD_HALF_X => {
                    let offset = index + k.checked_sub(filter::NET)?;
                    self.reach(HEADER, i32::try_from(offset + 2).ok()?);
                    self.field(code, offset)?;
                }
                filter::IMMEDIATE_X => index = k,
                filter::ALWAYS => {
                    let to = Target::Classic(at + 1 + usize::try_from(k).ok()?);
                    self.jump(ALWAYS, 0, 0, 0, to);
                }
                filter::EQUAL | filter::GREATER | filter::AT_LEAST | filter::BITS => {
                    let to = |distance: u8| Target::Classic(at + 1 + usize::from(distance));
                    self.jump(code as u8 & !7 | COMPARISON, A, 0, k.cast_signed(), to(jt));
                    self.jump(ALWAYS, 0, 0, 0, to(jf));
                }
                filter::RETURN => {
                    let to = if k == 0 { Target::Pass } else { Target::Take };
                    self.jump(ALWAYS, 0, 0, 0, to);
                }
                _ => return None,
            }
        }
        Some(())
    }

    /// A number in network byte order, into `A`.
    fn field(&mut self, code: u32, offset: u32) -> Option<()> {
        let (load, bits) = match code {
            filter::LOAD_BYTE | filter::LOAD_BYTE_X => (LOAD_BYTE, 8),
            filter::LOAD_HALF | filter::LOAD_HALF_X => (LOAD_HALF, 16),
            _ => (LOAD_WORD, 32),
        };
        self.load(load, A, HEADER, i16::try_from(offset).ok()?);
        if bits > 8 {
            self.push(TO_BIG_ENDIAN, A, 0, 0, bits);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
