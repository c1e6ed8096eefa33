//! TCP segments that follow each other are put together into one super-packet (generic receive offload): sent once, cut again by the card
//! that it leaves by, taken whole by a neighbour on veth. The kernel has done so with what packet sockets hear, if the card's GRO is on;
//! what comes by XDP comes as it was on the wire.
//!
//! It is the inverse of [`crate::wire::segment`], as Linux has it: what is cut again is what came, to the last bit. (But for the
//! identification of datagrams that may not be fragmented, which says nothing: RFC 6864 section 4.1.) So only what is equal in all of its
//! headers is put together, nothing waits for more than its batch, and nothing overtakes its own flow. A super-packet gets a new checksum
//! where it is cut; so a segment whose checksum nobody has verified stays alone, and a damaged one damaged. IPv4's own is verified here.

use super::frame::Frame;
use super::verdict::Verdict;
use crate::wire::checksum::{Difference, Sum};
use crate::wire::ip;
use crate::wire::offload::{Csum, Gso, GsoKind, Offload};

/// Super-packets that may grow at a time: flows whose segments are mixed.
const OPEN: usize = 8;
/// Bytes of the longest: what IPv4's header can say.
const LONGEST: usize = 65_535;

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Puts together what can be of frames that have their verdicts. Those that are left lie in front, in their order; says how many. What is in
/// the others is of no use any more.
pub fn merge(frames: &mut [Frame]) -> usize {
    let mut open = [None; OPEN];
    let mut oldest = OPEN - 1;
    let mut left = 0;
    for at in 0..frames.len() {
        match Segment::of(&frames[at]) {
            Seen::Nothing => {}
            Seen::Unclear => open = [None; OPEN],
            Seen::Tcp { flow } => close(&mut open, flow),
            Seen::Data(segment) => {
                let train = open.iter_mut().flatten().find(|train| train.flow == segment.flow);
                if let Some(train) = train {
                    let (before, rest) = frames.split_at_mut(at);
                    if train.append(&mut before[train.at], &rest[0], &segment) {
                        if train.is_over {
                            close(&mut open, segment.flow);
                        }
                        continue;
                    }
                }
                close(&mut open, segment.flow);
                if !segment.has_push {
                    let free = open.iter().position(Option::is_none).unwrap_or_else(|| {
                        oldest = (oldest + 1) % OPEN;
                        oldest
                    });
                    open[free] = Some(Train::new(left, &segment));
                }
            }
        }
        if left < at {
            frames.swap(left, at);
        }
        left += 1;
    }
    left
}

fn close(open: &mut [Option<Train>; OPEN], flow: u32) {
    for train in open {
        if train.is_some_and(|train| train.flow == flow) {
            *train = None;
        }
    }
}

/// What a frame is to others.
enum Seen {
    /// No TCP: no segment overtakes it.
    Nothing,
    /// It may be of any flow.
    Unclear,
    /// TCP that stays alone.
    Tcp {
        flow: u32,
    },
    Data(Segment),
}

/// A segment with data that can be put together with others.
struct Segment {
    /// Of its addresses and ports. Others may have the same: those of two flows do not follow each other, and that is found.
    flow: u32,
    /// Bytes of IP's header.
    ip: usize,
    /// Bytes of both headers.
    headers: usize,
    /// Bytes of data.
    payload: usize,
    sequence: u32,
    has_push: bool,
}

impl Segment {
    #[inline(always)]
    fn of(frame: &Frame) -> Seen {
        let packet = frame.packet();
        // Version and length of the header; more fragments, and the fragment's place.
        let (ip, protocol, length) = match packet {
            [0x45, _, h, l, _, _, flags, place, _, protocol, ..] => {
                let is_fragment = flags & 0x3f != 0 || *place != 0;
                (20, if is_fragment { None } else { Some(*protocol) }, [*h, *l])
            }
            [first, _, _, _, h, l, protocol, ..] if first >> 4 == 6 => {
                (40, Some(*protocol), [*h, *l])
            }
            _ => return Seen::Unclear,
        };
        let said = usize::from(u16::from_be_bytes(length)) + if ip == 40 { 40 } else { 0 };
        match protocol {
            Some(ip::TCP) if said == packet.len() => {}
            Some(ip::UDP | ip::ICMP | ip::ICMPV6) => return Seen::Nothing,
            _ => return Seen::Unclear,
        }
        let Some(tcp) = packet.get(ip..).and_then(|tcp| tcp.first_chunk::<20>()) else {
            return Seen::Unclear;
        };
        let addresses = packet[addresses_at(ip)..ip].as_chunks::<4>().0;
        let [ports, sequence, ..] = tcp.as_chunks::<4>().0 else { return Seen::Unclear };
        let flow = addresses.iter().fold(u32::from_ne_bytes(*ports), |flow, word| {
            flow.rotate_left(5) ^ u32::from_ne_bytes(*word)
        });
        // Whose header is damaged may be of any flow.
        if ip == 20 && Sum::default().bytes(&packet[..ip]).fold() != 0xffff {
            return Seen::Unclear;
        }
        let headers = ip + usize::from(tcp[12] >> 4) * 4;
        let is_sent = matches!(frame.verdict, Verdict::Transmit { .. } | Verdict::Deliver);
        let is_plain = tcp[13] & !PSH == ACK && headers >= ip + 20 && headers < packet.len();
        let Offload { csum, is_verified, gso } = frame.offload;
        let is_right = match csum {
            Csum::Complete => is_verified,
            Csum::Partial { start, offset } => usize::from(start) == ip && offset == 16,
        };
        if !is_sent || !is_plain || gso.is_some() || !is_right {
            return Seen::Tcp { flow };
        }
        Seen::Data(Segment {
            flow,
            ip,
            headers,
            payload: packet.len() - headers,
            sequence: u32::from_be_bytes(*sequence),
            has_push: tcp[13] & PSH != 0,
        })
    }
}

/// A segment, or a super-packet already, that others may follow.
#[derive(Clone, Copy)]
struct Train {
    flow: u32,
    /// Place of its frame.
    at: usize,
    ip: usize,
    headers: usize,
    /// Bytes of data in each segment; of the last one it may be fewer.
    size: usize,
    segments: u16,
    /// Sequence number that follows.
    next: u32,
    is_over: bool,
}

impl Train {
    fn new(at: usize, first: &Segment) -> Train {
        let &Segment { flow, ip, headers, payload, sequence, .. } = first;
        let next = sequence.wrapping_add(payload as u32);
        Train { flow, at, ip, headers, size: payload, segments: 1, next, is_over: false }
    }

    /// Appends the data of a segment, if it is the next one. `frame` is the train's.
    fn append(&mut self, frame: &mut Frame, next: &Frame, segment: &Segment) -> bool {
        let length = frame.packet().len();
        let is_next = segment.sequence == self.next
            && (segment.ip, segment.headers) == (self.ip, self.headers)
            && segment.payload <= self.size
            && length + segment.payload <= LONGEST
            && next.verdict == frame.verdict
            && self.is_alike(frame.packet(), next.packet());
        if !is_next || !frame.append(&next.packet()[self.headers..]) {
            return false;
        }
        if self.segments == 1 {
            self.become_super_packet(frame, length);
        }
        self.write_length(frame, length);
        if segment.has_push {
            frame.packet_mut()[self.ip + 13] |= PSH;
        }
        self.segments += 1;
        self.next = self.next.wrapping_add(segment.payload as u32);
        self.is_over = segment.has_push || segment.payload < self.size;
        true
    }

    /// Are all of the headers what segments of one super-packet have in common, and the identification the next one?
    fn is_alike(&self, first: &[u8], next: &[u8]) -> bool {
        let same = |from: usize, to: usize| first[from..to] == next[from..to];
        let is_ip_alike = if self.ip == 20 {
            let is_whole_by_rule = first[6] & 0x40 != 0;
            let follows = field(next, 4) == field(first, 4).wrapping_add(self.segments);
            same(1, 2) && same(6, 10) && same(12, 24) && (is_whole_by_rule || follows)
        } else {
            same(0, 4) && same(6, 44)
        };
        let tcp = self.ip;
        // Acknowledgement, length, window, what is urgent, options. Flags are known to be equal but for PSH.
        is_ip_alike
            && same(tcp + 8, tcp + 13)
            && same(tcp + 14, tcp + 16)
            && same(tcp + 18, self.headers)
    }

    /// The checksum is left to whoever cuts it.
    fn become_super_packet(&self, frame: &mut Frame, length: usize) {
        let kind = if self.ip == 20 { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
        // Both are far below 64 KiB.
        let (size, start) = (self.size as u16, self.ip as u16);
        let packet = frame.packet_mut();
        let pseudo = Sum::default()
            .bytes(&packet[addresses_at(self.ip)..self.ip])
            .word(ip::TCP.into())
            .word((length - self.ip) as u16);
        put(packet, self.ip + 16, pseudo.fold());
        frame.offload = Offload {
            csum: Csum::Partial { start, offset: 16 },
            gso: Some(Gso::new(kind, size)),
            ..Offload::default()
        };
    }

    /// It has grown: the lengths that IP's header and both checksums tell of. `before`: bytes of it then.
    fn write_length(&self, frame: &mut Frame, before: usize) {
        let packet = frame.packet_mut();
        let after = packet.len();
        let grown = Difference::default().word(before as u16, after as u16);
        if self.ip == 20 {
            put(packet, 2, after as u16);
            let sum = grown.apply_complete(field(packet, 10));
            put(packet, 10, sum);
        } else {
            put(packet, 4, (after - self.ip) as u16);
        }
        let sum = grown.apply_partial(field(packet, self.ip + 16));
        put(packet, self.ip + 16, sum);
    }
}

/// Where the addresses are, of a header of so many bytes.
fn addresses_at(ip: usize) -> usize {
    if ip == 20 { 12 } else { 8 }
}

fn field(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

fn put(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests;
