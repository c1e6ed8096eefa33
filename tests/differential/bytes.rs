//! Checksums computed anew over all they cover, and integers in packets. Written apart from `src/wire`, whose sums
//! are judged here.

use std::net::IpAddr;

pub(crate) fn get(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

pub(crate) fn put(packet: &mut [u8], at: usize, value: u16) {
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Ones' complement sum of 16-bit words (RFC 1071), folded, not complemented.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for word in part.chunks(2) {
            sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

/// Pseudo-header of RFC 9293 section 3.1 and RFC 8200 section 8.1.
pub(crate) fn pseudo_header(packet: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    let mut bytes = addresses.to_vec();
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// CRC32c as SCTP has it (RFC 9260 appendix A), in the order of the wire.
pub(crate) fn crc32c(bytes: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!crc).to_le_bytes()
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Writes an IPv4 packet's header checksum.
pub(crate) fn seal(packet: &mut [u8]) {
    let length = usize::from(packet[0] & 15) * 4;
    put(packet, 10, 0);
    let field = !sum(&[&packet[..length]]);
    put(packet, 10, field);
}

/// Raises or lowers the time to live, or hop limit.
pub(crate) fn change_ttl(packet: &mut [u8], change: i8) {
    let at = if packet[0] >> 4 == 4 { 8 } else { 7 };
    packet[at] = packet[at].checked_add_signed(change).expect("a time to live within bounds");
    if packet[0] >> 4 == 4 {
        seal(packet);
    }
}

/// Numbers that are the same in every run (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From `range.start` to before `range.end`.
    pub(crate) fn of(&mut self, range: std::ops::Range<usize>) -> usize {
        range.start + (self.next() % (range.end - range.start) as u64) as usize
    }

    pub(crate) fn is(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub(crate) fn word(&mut self) -> u16 {
        self.next() as u16
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.of(0..choices.len())]
    }
}
