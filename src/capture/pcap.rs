//! pcap: one header, then records; one interface without a name.

use std::io::Read;

use super::reader::Order;
use super::source::Source;
use super::{Error, Fault, Interface, Link, MAX_PACKET, Packet};

const HEADER: usize = 24;
const RECORD: usize = 16;
const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;

#[derive(Debug)]
pub(super) struct Pcap {
    order: Order,
    /// Nanoseconds of the unit in which parts of a second are told.
    unit: u64,
    interface: Interface,
}

impl Pcap {
    pub(super) fn begin<R: Read>(source: &mut Source<R>) -> Result<Pcap, Error> {
        let here = source.here();
        let known =
            [Order::Big, Order::Little].into_iter().find_map(|order| match order.u32_at(here, 0) {
                MICROSECONDS => Some((order, 1_000)),
                NANOSECONDS => Some((order, 1)),
                _ => None,
            });
        let Some((order, unit)) = known else {
            return Err(source.malformed(Fault::Magic(Order::Big.u32_at(here, 0))));
        };
        if !source.fill(HEADER)? {
            return Err(source.truncated("the header of a capture"));
        }
        let header = source.here();
        let (major, minor) = (order.u16_at(header, 4), order.u16_at(header, 6));
        if major != 2 {
            return Err(source.malformed(Fault::Version { format: "pcap", major, minor }));
        }
        // The upper half tells of a frame check sequence, which lies behind the packet's own length.
        let link = Link::of(order.u32_at(header, 20) as u16);
        source.take(HEADER);
        Ok(Pcap { order, unit, interface: Interface { name: None, link } })
    }

    #[inline]
    pub(super) fn next_packet<'a, R: Read>(
        &'a self,
        source: &'a mut Source<R>,
    ) -> Result<Option<Packet<'a>>, Error> {
        if !source.fill(RECORD)? {
            return if source.here().is_empty() {
                Ok(None)
            } else {
                Err(source.truncated("the header of a packet"))
            };
        }
        let header = source.here();
        let number = |at| self.order.u32_at(header, at);
        let (seconds, part, length) = (number(0), number(4), number(8));
        let original_length = number(12);
        if length > MAX_PACKET {
            let fault = Fault::TooLong { what: "a packet", length, most: MAX_PACKET };
            return Err(source.malformed(fault));
        }
        let length = length as usize;
        if !source.fill(RECORD + length)? {
            return Err(source.truncated("a packet"));
        }
        Ok(Some(Packet {
            section: 0,
            number: 0,
            interface: &self.interface,
            time: u64::from(seconds) * 1_000_000_000 + u64::from(part) * self.unit,
            original_length,
            bytes: &source.take(RECORD + length)[RECORD..],
        }))
    }
}
