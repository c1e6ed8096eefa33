//! Captures as files, byte by byte: pcapng by vipa's own writer, pcap of every kind by hand.

use vipa::capture::{Link, Writer};

/// Where a packet comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Tun,
    Nic(u32),
}

/// 2023-11-14, in nanoseconds since 1970.
pub(crate) const BEGIN: u64 = 1_700_000_000_000_000_000;
pub(crate) const MILLISECOND: u64 = 1_000_000;

/// Adds the Ethernet header with which a frame comes in by a NIC: from its next hop, to it.
pub(crate) fn ethernet(nic: u32, packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] };
    let nic = nic as u8;
    let mut frame = vec![2, 0, 0, 0, 0, nic, 2, 0, 0, 0, 1, nic];
    frame.extend(kind);
    frame.extend_from_slice(packet);
    frame
}

/// A pcapng of vipa0, eth1 and eth2, with packets at these nanoseconds after the beginning.
pub(crate) fn pcapng(packets: &[(At, u64, Vec<u8>)]) -> Vec<u8> {
    let interfaces = [("vipa0", Link::Ip), ("eth1", Link::Ethernet), ("eth2", Link::Ethernet)];
    let mut writer = Writer::new(Vec::new(), interfaces);
    for (at, time, packet) in packets {
        let written = match at {
            At::Tun => writer.write(0, BEGIN + time, packet),
            At::Nic(nic) => writer.write(*nic, BEGIN + time, packet),
        };
        written.expect("a Vec takes all");
    }
    writer.finish().expect("a Vec takes all")
}

/// How a pcap is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pcap {
    pub(crate) is_big_endian: bool,
    pub(crate) is_nanoseconds: bool,
    /// LINKTYPE: 1 Ethernet, 101 raw IP.
    pub(crate) link: u32,
    /// Bytes kept of a packet.
    pub(crate) snap: usize,
}

impl Pcap {
    /// A pcap with a packet each millisecond.
    pub(crate) fn file(self, packets: &[Vec<u8>]) -> Vec<u8> {
        let word = |value: u32| {
            if self.is_big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
        };
        let half = |value: u16| {
            if self.is_big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
        };
        let magic = if self.is_nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 };
        let mut file = word(magic).to_vec();
        file.extend([half(2), half(4)].concat());
        for value in [0, 0, self.snap as u32, self.link] {
            file.extend(word(value));
        }
        for (at, packet) in packets.iter().enumerate() {
            let unit = if self.is_nanoseconds { 1 } else { 1000 };
            let kept = &packet[..packet.len().min(self.snap)];
            let fraction = (at as u64 * MILLISECOND / unit) as u32;
            for value in
                [(BEGIN / 1_000_000_000) as u32, fraction, kept.len() as u32, packet.len() as u32]
            {
                file.extend(word(value));
            }
            file.extend_from_slice(kept);
        }
        file
    }
}
