//! Either format as one stream of packets.

use std::io::Read;

use super::pcap::Pcap;
use super::pcapng::PcapNg;
use super::source::Source;
use super::{Error, Packet};

/// Reads a capture, packet by packet. Its memory is fixed, whatever the length of the file.
#[derive(Debug)]
pub struct Reader<R> {
    source: Source<R>,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Pcap(Pcap),
    PcapNg(PcapNg),
}

impl<R: Read> Reader<R> {
    /// Reads the beginning of a capture, which tells its format.
    ///
    /// # Errors
    /// It cannot be read, or is no capture.
    pub fn new(input: R) -> Result<Reader<R>, Error> {
        let mut source = Source::new(input);
        if !source.fill(4)? {
            return Err(source.truncated("the header of a capture"));
        }
        let format = if source.here().starts_with(&super::pcapng::SECTION_HEADER) {
            Format::PcapNg(PcapNg::begin(&mut source)?)
        } else {
            Format::Pcap(Pcap::begin(&mut source)?)
        };
        Ok(Reader { source, format })
    }

    /// The next packet; `None` at the end. After an error there is nothing more to be had.
    ///
    /// # Errors
    /// The file cannot be read any further.
    #[inline]
    pub fn next_packet(&mut self) -> Result<Option<Packet<'_>>, Error> {
        match &mut self.format {
            Format::Pcap(pcap) => pcap.next_packet(&mut self.source),
            Format::PcapNg(pcapng) => pcapng.next_packet(&mut self.source),
        }
    }

    /// Bytes of the file that have been used.
    pub fn offset(&self) -> u64 {
        self.source.offset()
    }
}

/// Numbers in the byte order of the file, or of the section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Big,
    Little,
}

impl Order {
    #[inline]
    pub(super) fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Order::Big => u32::from_be_bytes(bytes),
            Order::Little => u32::from_le_bytes(bytes),
        }
    }

    #[inline]
    pub(super) fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Order::Big => u16::from_be_bytes(bytes),
            Order::Little => u16::from_le_bytes(bytes),
        }
    }

    /// The number at `at`; 0 where `bytes` has none, which the caller has ruled out.
    #[inline]
    pub(super) fn u32_at(self, bytes: &[u8], at: usize) -> u32 {
        bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |four| self.u32(*four))
    }

    /// The same for 16 bits.
    #[inline]
    pub(super) fn u16_at(self, bytes: &[u8], at: usize) -> u16 {
        bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |two| self.u16(*two))
    }
}
