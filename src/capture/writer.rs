//! pcapng out: one section in little endian, one interface a device, nanoseconds.

use std::io::{self, Write};

use super::Link;
use super::pcapng::{BYTE_ORDER, ENHANCED_PACKET, IF_NAME, IF_TSRESOL, INTERFACE, SECTION_HEADER};

/// Bytes are handed on when there are so many.
const FULL: usize = 1 << 20;
/// An enhanced packet block without its packet.
const PACKET_BLOCK: usize = 32;

/// Writes a capture. Its memory is fixed.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// A capture of these interfaces, whose numbers are their positions.
    pub fn new<'a>(output: W, interfaces: impl IntoIterator<Item = (&'a str, Link)>) -> Writer<W> {
        let mut writer = Writer { output, buffer: Vec::with_capacity(FULL + (FULL >> 1)) };
        writer.section();
        for (name, link) in interfaces {
            writer.interface(name, link);
        }
        writer
    }

    /// A packet of interface `number` at `time`, nanoseconds since 1970.
    ///
    /// # Errors
    /// What was written before cannot be handed on.
    #[inline]
    pub fn write(&mut self, number: u32, time: u64, packet: &[u8]) -> io::Result<()> {
        // A packet is far shorter than 4 GiB.
        let length = packet.len() as u32;
        let padding = packet.len().next_multiple_of(4) - packet.len();
        let total = (PACKET_BLOCK + packet.len() + padding) as u32;
        let words =
            [ENHANCED_PACKET, total, number, (time >> 32) as u32, time as u32, length, length];
        let mut header = [0; 28];
        for (at, word) in words.into_iter().enumerate() {
            header[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        self.buffer.extend_from_slice(&header);
        self.buffer.extend_from_slice(packet);
        self.buffer.extend_from_slice(&[0; 3][..padding]);
        self.buffer.extend_from_slice(&total.to_le_bytes());
        if self.buffer.len() >= FULL { self.hand_on() } else { Ok(()) }
    }

    /// Hands on what is left.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.hand_on()?;
        self.output.flush()?;
        Ok(self.output)
    }

    #[cold]
    fn hand_on(&mut self) -> io::Result<()> {
        self.output.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn section(&mut self) {
        let mut body = Vec::from(BYTE_ORDER.to_le_bytes());
        body.extend([1, 0, 0, 0]);
        // The section's length, which nobody has to know.
        body.extend([0xff; 8]);
        self.block(u32::from_le_bytes(SECTION_HEADER), &body);
    }

    fn interface(&mut self, name: &str, link: Link) {
        let mut body = Vec::from(link.number().to_le_bytes());
        // Reserved, and a snap length of 0: packets are whole.
        body.extend([0; 6]);
        option(&mut body, IF_NAME, name.as_bytes());
        option(&mut body, IF_TSRESOL, &[9]);
        option(&mut body, 0, &[]);
        self.block(INTERFACE, &body);
    }

    fn block(&mut self, kind: u32, body: &[u8]) {
        let total = (body.len() as u32 + 12).to_le_bytes();
        self.buffer.extend_from_slice(&kind.to_le_bytes());
        self.buffer.extend_from_slice(&total);
        self.buffer.extend_from_slice(body);
        self.buffer.extend_from_slice(&total);
    }
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}
