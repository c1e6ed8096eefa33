//! pcapng: sections of blocks. Each section has its byte order and its own list of interfaces; each interface
//! has a link type, a name and a clock. Blocks of other kinds are passed over.

use std::io::Read;

use super::reader::Order;
use super::source::Source;
use super::{Error, Fault, Interface, Link, MAX_BLOCK, MAX_PACKET, Packet};

/// Type of a section header block, the same in both byte orders.
pub(super) const SECTION_HEADER: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// In the section's own byte order.
pub(super) const BYTE_ORDER: u32 = 0x1a2b_3c4d;
pub(super) const INTERFACE: u32 = 1;
/// Obsolete, and still found.
const PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
pub(super) const ENHANCED_PACKET: u32 = 6;

pub(super) const IF_NAME: u16 = 2;
pub(super) const IF_TSRESOL: u16 = 9;
const IF_TSOFFSET: u16 = 14;

/// Type and length in front, length behind.
const AROUND: usize = 12;
const MOST_INTERFACES: usize = 4096;

#[derive(Debug)]
pub(super) struct PcapNg {
    order: Order,
    /// Number of the section, from 0.
    section: u32,
    described: Vec<Described>,
    /// Of the last packet; a simple packet has none of its own.
    time: u64,
}

#[derive(Debug)]
struct Described {
    interface: Interface,
    clock: Clock,
    /// 0: packets are not cut.
    snap_length: u32,
}

/// How an interface tells the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Clock {
    tick: Tick,
    /// Seconds to add.
    offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tick {
    /// So many nanoseconds each.
    Nanoseconds(u64),
    /// So many in a nanosecond.
    Finer(u64),
    /// 2 to the power of this many in a second.
    Binary(u8),
}

impl Tick {
    fn of(resolution: u8) -> Tick {
        let power = u32::from(resolution & 0x7f);
        if resolution & 0x80 != 0 {
            Tick::Binary(resolution & 0x7f)
        } else if power <= 9 {
            Tick::Nanoseconds(10_u64.pow(9 - power))
        } else {
            Tick::Finer(10_u64.checked_pow(power - 9).unwrap_or(u64::MAX))
        }
    }
}

impl Clock {
    #[inline]
    fn nanoseconds(self, ticks: u64) -> u64 {
        let since = match self.tick {
            Tick::Nanoseconds(each) => ticks.saturating_mul(each),
            Tick::Finer(number) => ticks / number,
            Tick::Binary(power) => {
                let exact = (u128::from(ticks) * 1_000_000_000) >> power;
                u64::try_from(exact).unwrap_or(u64::MAX)
            }
        };
        since.saturating_add_signed(self.offset.saturating_mul(1_000_000_000))
    }
}

/// A whole block that is here to be taken.
#[derive(Clone, Copy, Debug)]
struct Block {
    kind: u32,
    length: usize,
}

impl PcapNg {
    pub(super) fn begin<R: Read>(source: &mut Source<R>) -> Result<PcapNg, Error> {
        let mut pcapng =
            PcapNg { order: Order::Little, section: 0, described: Vec::new(), time: 0 };
        pcapng.read_section(source)?;
        pcapng.section = 0;
        Ok(pcapng)
    }

    pub(super) fn next_packet<'a, R: Read>(
        &'a mut self,
        source: &'a mut Source<R>,
    ) -> Result<Option<Packet<'a>>, Error> {
        loop {
            let Some(block) = self.next_block(source)? else { return Ok(None) };
            let at = match block.kind {
                ENHANCED_PACKET => self.enhanced(source, block)?,
                SIMPLE_PACKET => self.simple(source, block)?,
                PACKET => self.obsolete(source, block)?,
                INTERFACE => {
                    self.read_interface(source, block)?;
                    continue;
                }
                _ => {
                    source.take(block.length);
                    continue;
                }
            };
            self.time = at.time;
            let described = &self.described[at.number as usize];
            return Ok(Some(Packet {
                section: self.section,
                number: at.number,
                interface: &described.interface,
                time: at.time,
                original_length: at.original_length,
                bytes: &source.take(block.length)[at.begin..at.begin + at.length],
            }));
        }
    }

    /// The next block that is not the header of a section; `None` at the end of the file.
    #[inline]
    fn next_block<R: Read>(&mut self, source: &mut Source<R>) -> Result<Option<Block>, Error> {
        loop {
            if !source.fill(8)? {
                return if source.here().is_empty() {
                    Ok(None)
                } else {
                    Err(source.truncated("the header of a block"))
                };
            }
            let here = source.here();
            if here.starts_with(&SECTION_HEADER) {
                self.read_section(source)?;
                continue;
            }
            let kind = self.order.u32_at(here, 0);
            let length = self.order.u32_at(here, 4);
            let is_ours = matches!(kind, ENHANCED_PACKET | SIMPLE_PACKET | PACKET | INTERFACE);
            if length > MAX_BLOCK && !is_ours {
                self.pass_over(source, length)?;
                continue;
            }
            self.complete(source, length)?;
            return Ok(Some(Block { kind, length: length as usize }));
        }
    }

    /// A block of `length` bytes is here, with its length at both ends.
    #[inline]
    fn complete<R: Read>(&self, source: &mut Source<R>, length: u32) -> Result<(), Error> {
        if (length as usize) < AROUND || !length.is_multiple_of(4) {
            return Err(source.malformed(Fault::BlockLength(length)));
        }
        if length > MAX_BLOCK {
            let fault = Fault::TooLong { what: "a block", length, most: MAX_BLOCK };
            return Err(source.malformed(fault));
        }
        if !source.fill(length as usize)? {
            return Err(source.truncated("a block"));
        }
        let last = self.order.u32_at(source.here(), length as usize - 4);
        if last != length {
            return Err(source.malformed(Fault::Trailer { first: length, last }));
        }
        Ok(())
    }

    /// A block too long to be of any use here.
    fn pass_over<R: Read>(&self, source: &mut Source<R>, length: u32) -> Result<(), Error> {
        if !length.is_multiple_of(4) {
            return Err(source.malformed(Fault::BlockLength(length)));
        }
        let offset = source.offset();
        if source.skip(u64::from(length))? {
            return Ok(());
        }
        // Truncated: what there was of it, at most the `length` that it should have had.
        let there = usize::try_from(source.offset() - offset).unwrap_or(usize::MAX);
        let fault = Fault::Truncated { what: "a block", there };
        Err(Error::Malformed { offset, fault })
    }

    fn read_section<R: Read>(&mut self, source: &mut Source<R>) -> Result<(), Error> {
        if !source.fill(12)? {
            return Err(source.truncated("the header of a section"));
        }
        let here = source.here();
        let magic = |order: Order| order.u32_at(here, 8);
        self.order = if magic(Order::Little) == BYTE_ORDER {
            Order::Little
        } else if magic(Order::Big) == BYTE_ORDER {
            Order::Big
        } else {
            return Err(source.malformed(Fault::ByteOrder(magic(Order::Big))));
        };
        let length = self.order.u32_at(here, 4);
        if (length as usize) < 16 + AROUND {
            return Err(source.malformed(Fault::BlockLength(length)));
        }
        self.complete(source, length)?;
        let here = source.here();
        let (major, minor) = (self.order.u16_at(here, 12), self.order.u16_at(here, 14));
        if major != 1 {
            return Err(source.malformed(Fault::Version { format: "pcapng", major, minor }));
        }
        source.take(length as usize);
        self.described.clear();
        self.section = self.section.wrapping_add(1);
        Ok(())
    }

    fn read_interface<R: Read>(
        &mut self,
        source: &mut Source<R>,
        block: Block,
    ) -> Result<(), Error> {
        if block.length < AROUND + 8 {
            return Err(source.malformed(Fault::BlockLength(block.length as u32)));
        }
        if self.described.len() >= MOST_INTERFACES {
            return Err(source.malformed(Fault::TooManyInterfaces(MOST_INTERFACES)));
        }
        let here = source.here();
        let link = Link::of(self.order.u16_at(here, 8));
        let snap_length = self.order.u32_at(here, 12);
        let mut name = None;
        // Without `if_tsresol` it is microseconds.
        let mut clock = Clock { tick: Tick::of(6), offset: 0 };
        let mut options = &here[16..block.length - 4];
        while options.len() >= 4 {
            let (code, length) = (self.order.u16_at(options, 0), self.order.u16_at(options, 2));
            if code == 0 {
                break;
            }
            let room = options.len() - 4;
            let Some(value) = options[4..].get(..usize::from(length)) else {
                let length = u32::from(length);
                return Err(source.malformed(Fault::Overflow { what: "an option", length, room }));
            };
            match (code, value) {
                (IF_NAME, [_, ..]) => {
                    let text = String::from_utf8_lossy(value);
                    name = Some(text.trim_end_matches('\0').to_owned());
                }
                (IF_TSRESOL, [resolution, ..]) => clock.tick = Tick::of(*resolution),
                (IF_TSOFFSET, [..]) if value.len() == 8 => {
                    let words = [self.order.u32_at(value, 0), self.order.u32_at(value, 4)];
                    let [high, low] = match self.order {
                        Order::Big => words,
                        Order::Little => [words[1], words[0]],
                    };
                    clock.offset = (u64::from(high) << 32 | u64::from(low)).cast_signed();
                }
                _ => {}
            }
            options = &options[(4 + usize::from(length).next_multiple_of(4)).min(options.len())..];
        }
        source.take(block.length);
        self.described.push(Described { interface: Interface { name, link }, clock, snap_length });
        Ok(())
    }

    #[inline]
    fn enhanced<R: Read>(&self, source: &Source<R>, block: Block) -> Result<Place, Error> {
        let number = self.order.u32_at(source.here(), 8);
        self.with_time(source, block, number)
    }

    fn obsolete<R: Read>(&self, source: &Source<R>, block: Block) -> Result<Place, Error> {
        let number = u32::from(self.order.u16_at(source.here(), 8));
        self.with_time(source, block, number)
    }

    /// The two kinds of packet blocks whose packet begins at byte 28.
    #[inline]
    fn with_time<R: Read>(
        &self,
        source: &Source<R>,
        block: Block,
        number: u32,
    ) -> Result<Place, Error> {
        let here = source.here();
        let Some(room) = block.length.checked_sub(AROUND + 20) else {
            return Err(source.malformed(Fault::BlockLength(block.length as u32)));
        };
        let described = self.described(source, number)?;
        let word = |at| self.order.u32_at(here, at);
        let ticks = u64::from(word(12)) << 32 | u64::from(word(16));
        let length = fits(source, word(20), room)?;
        let time = described.clock.nanoseconds(ticks);
        Ok(Place { number, time, original_length: word(24), begin: 28, length })
    }

    fn simple<R: Read>(&self, source: &Source<R>, block: Block) -> Result<Place, Error> {
        let Some(room) = block.length.checked_sub(AROUND + 4) else {
            return Err(source.malformed(Fault::BlockLength(block.length as u32)));
        };
        let described = self.described(source, 0)?;
        let original_length = self.order.u32_at(source.here(), 8);
        let captured = match described.snap_length {
            0 => original_length,
            most => original_length.min(most),
        };
        let length = fits(source, captured, room)?;
        Ok(Place { number: 0, time: self.time, original_length, begin: 12, length })
    }

    #[inline]
    fn described<R: Read>(&self, source: &Source<R>, number: u32) -> Result<&Described, Error> {
        let known = self.described.len();
        let described = self.described.get(number as usize);
        described.ok_or_else(|| source.malformed(Fault::Interface { number, known }))
    }
}

/// Where in its block a packet lies, and what is said of it.
struct Place {
    number: u32,
    time: u64,
    original_length: u32,
    begin: usize,
    length: usize,
}

#[inline]
fn fits<R: Read>(source: &Source<R>, length: u32, room: usize) -> Result<usize, Error> {
    let what = "a packet";
    if length > MAX_PACKET {
        return Err(source.malformed(Fault::TooLong { what, length, most: MAX_PACKET }));
    }
    if length as usize > room {
        return Err(source.malformed(Fault::Overflow { what, length, room }));
    }
    Ok(length as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(resolution: u8, offset: i64) -> Clock {
        Clock { tick: Tick::of(resolution), offset }
    }

    #[test]
    fn every_clock_yields_nanoseconds() {
        assert_eq!(clock(6, 0).nanoseconds(1_500_001), 1_500_001_000);
        assert_eq!(clock(9, 0).nanoseconds(7), 7);
        assert_eq!(clock(0, 0).nanoseconds(3), 3_000_000_000);
        assert_eq!(clock(12, 0).nanoseconds(5_999), 5);
        assert_eq!(clock(0x80 | 10, 0).nanoseconds(512), 500_000_000);
        assert_eq!(clock(6, -1).nanoseconds(1_000_002), 2_000);
        assert_eq!(clock(6, 2).nanoseconds(1), 2_000_001_000);
    }

    #[test]
    fn no_clock_overflows() {
        for resolution in 0..=u8::MAX {
            for offset in [i64::MIN, 0, i64::MAX] {
                clock(resolution, offset).nanoseconds(u64::MAX);
            }
        }
    }
}
