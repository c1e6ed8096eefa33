//! Reads a packet with etherparse and with pnet, and lets both, or a naive sum, recompute every checksum.

use std::net::IpAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use pnet::packet::ip::IpNextHeaderProtocol;
use pnet::packet::{icmp, icmpv6, ipv4, ipv6, tcp, udp};

/// How much was looked at.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    pub(crate) frames: usize,
    pub(crate) checksums: usize,
}

impl Judged {
    /// Is `packet`, from its IP header on, well-formed and are its checksums right? (Those of layer 4 lie in the
    /// first fragment and cover all: they are looked at in whole packets.)
    pub(crate) fn judge(&mut self, packet: &[u8]) -> Result<(), String> {
        self.frames += 1;
        let sliced = SlicedPacket::from_ip(packet).map_err(|error| error.to_string())?;
        let (ends, is_fragment) = match &sliced.net {
            Some(NetSlice::Ipv4(v4)) => {
                let header = v4.header().to_header();
                self.check(
                    "IPv4 (etherparse)",
                    header.header_checksum,
                    header.calc_header_checksum(),
                )?;
                let pnet = ipv4::Ipv4Packet::new(packet).ok_or("no IPv4 to pnet")?;
                self.check("IPv4 (pnet)", pnet.get_checksum(), ipv4::checksum(&pnet))?;
                let ends = (IpAddr::from(header.source), IpAddr::from(header.destination));
                let pnets = (pnet.get_source().into(), pnet.get_destination().into());
                (agree(ends, pnets)?, v4.is_payload_fragmented())
            }
            Some(NetSlice::Ipv6(v6)) => {
                let header = v6.header().to_header();
                let pnet = ipv6::Ipv6Packet::new(packet).ok_or("no IPv6 to pnet")?;
                let ends = (IpAddr::from(header.source), IpAddr::from(header.destination));
                let pnets = (pnet.get_source().into(), pnet.get_destination().into());
                (agree(ends, pnets)?, v6.is_payload_fragmented())
            }
            _ => return Err("no IP".to_owned()),
        };
        if is_fragment {
            return Ok(());
        }
        let ip = sliced.net.as_ref().and_then(NetSlice::ip_payload_ref).ok_or("no payload")?;
        self.layer4(ends, ip.ip_number.0, ip.payload)?;
        self.transport(&sliced, ends)
    }

    /// etherparse's own arithmetic.
    fn transport(
        &mut self,
        sliced: &SlicedPacket<'_>,
        ends: (IpAddr, IpAddr),
    ) -> Result<(), String> {
        match (&sliced.transport, ends) {
            (Some(TransportSlice::Tcp(tcp)), (IpAddr::V4(a), IpAddr::V4(b))) => {
                let header = tcp.to_header();
                let sum = header.calc_checksum_ipv4_raw(a.octets(), b.octets(), tcp.payload());
                self.check("TCP (etherparse)", header.checksum, sum.map_err(|e| e.to_string())?)
            }
            (Some(TransportSlice::Tcp(tcp)), (IpAddr::V6(a), IpAddr::V6(b))) => {
                let header = tcp.to_header();
                let sum = header.calc_checksum_ipv6_raw(a.octets(), b.octets(), tcp.payload());
                self.check("TCP (etherparse)", header.checksum, sum.map_err(|e| e.to_string())?)
            }
            (Some(TransportSlice::Udp(udp)), (IpAddr::V4(a), IpAddr::V4(b))) => {
                let header = udp.to_header();
                if header.checksum == 0 {
                    return Ok(());
                }
                let sum = header.calc_checksum_ipv4_raw(a.octets(), b.octets(), udp.payload());
                self.check("UDP (etherparse)", header.checksum, sum.map_err(|e| e.to_string())?)
            }
            (Some(TransportSlice::Udp(udp)), (IpAddr::V6(a), IpAddr::V6(b))) => {
                let header = udp.to_header();
                let sum = header.calc_checksum_ipv6_raw(a.octets(), b.octets(), udp.payload());
                self.check("UDP (etherparse)", header.checksum, sum.map_err(|e| e.to_string())?)
            }
            _ => Ok(()),
        }
    }

    /// pnet's arithmetic, and a naive one for what pnet does not know.
    fn layer4(&mut self, ends: (IpAddr, IpAddr), protocol: u8, bytes: &[u8]) -> Result<(), String> {
        const SCTP: u8 = 132;
        let short = || format!("protocol {protocol} is too short");
        match (IpNextHeaderProtocol(protocol), ends) {
            (IpNextHeaderProtocol(6), (IpAddr::V4(a), IpAddr::V4(b))) => {
                let packet = tcp::TcpPacket::new(bytes).ok_or_else(short)?;
                self.check("TCP (pnet)", packet.get_checksum(), tcp::ipv4_checksum(&packet, &a, &b))
            }
            (IpNextHeaderProtocol(6), (IpAddr::V6(a), IpAddr::V6(b))) => {
                let packet = tcp::TcpPacket::new(bytes).ok_or_else(short)?;
                self.check("TCP (pnet)", packet.get_checksum(), tcp::ipv6_checksum(&packet, &a, &b))
            }
            (IpNextHeaderProtocol(17), (IpAddr::V4(a), IpAddr::V4(b))) => {
                let packet = udp::UdpPacket::new(bytes).ok_or_else(short)?;
                if packet.get_checksum() == 0 {
                    return Ok(());
                }
                self.check("UDP (pnet)", packet.get_checksum(), udp::ipv4_checksum(&packet, &a, &b))
            }
            (IpNextHeaderProtocol(17), (IpAddr::V6(a), IpAddr::V6(b))) => {
                let packet = udp::UdpPacket::new(bytes).ok_or_else(short)?;
                self.check("UDP (pnet)", packet.get_checksum(), udp::ipv6_checksum(&packet, &a, &b))
            }
            (IpNextHeaderProtocol(1), (IpAddr::V4(_), _)) => {
                let packet = icmp::IcmpPacket::new(bytes).ok_or_else(short)?;
                self.check("ICMP (pnet)", packet.get_checksum(), icmp::checksum(&packet))?;
                self.quoted(packet.get_icmp_type().0, bytes)
            }
            (IpNextHeaderProtocol(58), (IpAddr::V6(a), IpAddr::V6(b))) => {
                let packet = icmpv6::Icmpv6Packet::new(bytes).ok_or_else(short)?;
                let sum = icmpv6::checksum(&packet, &a, &b);
                self.check("ICMPv6 (pnet)", packet.get_checksum(), sum)
            }
            (IpNextHeaderProtocol(SCTP), _) => {
                let (head, rest) = bytes.split_at_checked(12).ok_or_else(short)?;
                let field = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
                let sum = crc32c(&[&head[..8], &[0; 4], rest].concat());
                self.checksums += 1;
                if field == sum {
                    Ok(())
                } else {
                    Err(format!("SCTP's CRC is {field:x}, not {sum:x}"))
                }
            }
            (_, _) if protocol == 136 || protocol == 33 => {
                // UDP-Lite and DCCP of these cases cover all of it.
                self.checksums += 1;
                let sum = naive(ends, protocol, bytes);
                if sum == 0xffff {
                    Ok(())
                } else {
                    Err(format!("protocol {protocol}: sum {sum:x}"))
                }
            }
            _ => Ok(()),
        }
    }

    /// The header that an ICMP error quotes is right as well.
    fn quoted(&mut self, kind: u8, bytes: &[u8]) -> Result<(), String> {
        let Some(quote) = bytes.get(8..).filter(|_| [3, 4, 5, 11, 12].contains(&kind)) else {
            return Ok(());
        };
        let length = quote.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
        let Some(header) = quote.get(..length).filter(|header| header.len() >= 20) else {
            return Ok(());
        };
        self.checksums += 1;
        match sum(header) {
            0xffff => Ok(()),
            sum => Err(format!("the quoted header's sum is {sum:x}")),
        }
    }

    fn check(&mut self, what: &str, field: u16, computed: u16) -> Result<(), String> {
        self.checksums += 1;
        // 0 and 0xffff are one number.
        if field % 0xffff == computed % 0xffff {
            Ok(())
        } else {
            Err(format!("{what}: {field:04x} is there, {computed:04x} would be right"))
        }
    }
}

fn agree(one: (IpAddr, IpAddr), other: (IpAddr, IpAddr)) -> Result<(IpAddr, IpAddr), String> {
    if one == other {
        Ok(one)
    } else {
        Err(format!("{one:?} to one parser, {other:?} to the other"))
    }
}

fn naive(ends: (IpAddr, IpAddr), protocol: u8, bytes: &[u8]) -> u16 {
    let octets = |address| match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let length = (bytes.len() as u32).to_be_bytes();
    sum(&[&octets(ends.0)[..], &octets(ends.1), &length, &[0, 0, 0, protocol], bytes].concat())
}

/// RFC 1071, word by word.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// RFC 9260 appendix A, bit by bit.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
    !bytes
        .iter()
        .fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}
