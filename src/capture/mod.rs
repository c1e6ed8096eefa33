//! Capture files: pcap and pcapng in, pcapng out.
//!
//! [`Reader`] streams packets out of either format ([`pcap`], [`pcapng`]) over one buffer of fixed size;
//! [`Writer`] streams them into pcapng. Neither allocates for a packet. A file that breaks off or contradicts
//! itself ends in an [`Error`] that names the byte where the record begins that cannot be read.
//!
//! Formats: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng; the numbers of link types are those of
//! <https://www.tcpdump.org/linktypes.html>.

mod pcap;
mod pcapng;
mod reader;
mod source;
#[cfg(test)]
mod tests;
mod writer;

use std::io;

pub use reader::Reader;
pub use writer::Writer;

/// Packets are at most this long: libpcap's own limit.
pub const MAX_PACKET: u32 = 262_144;
/// Blocks that we have to read whole are at most this long.
const MAX_BLOCK: u32 = 1 << 20;

/// What a packet of an interface begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// LINKTYPE_ETHERNET.
    Ethernet,
    /// LINKTYPE_RAW, LINKTYPE_IPV4 or LINKTYPE_IPV6: the IP header.
    Ip,
    /// Any other, by its number.
    Other(u16),
}

impl Link {
    /// By the number that stands in the file. Some programs write the DLT_RAW of their system (12, 14) in place of
    /// LINKTYPE_RAW.
    fn of(number: u16) -> Link {
        match number {
            1 => Link::Ethernet,
            12 | 14 | 101 | 228 | 229 => Link::Ip,
            other => Link::Other(other),
        }
    }

    fn number(self) -> u16 {
        match self {
            Link::Ethernet => 1,
            Link::Ip => 101,
            Link::Other(number) => number,
        }
    }
}

/// Where packets were captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name of the device (`if_name`); pcap has none.
    pub name: Option<String>,
    /// What its packets begin with.
    pub link: Link,
}

/// A packet of a capture.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Number of the section of the file, from 0: interfaces are counted anew in each.
    pub section: u32,
    /// Number of the interface in its section.
    pub number: u32,
    /// The interface.
    pub interface: &'a Interface,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Bytes it had before the capture cut it.
    pub original_length: u32,
    /// The bytes that are there.
    pub bytes: &'a [u8],
}

impl Packet<'_> {
    /// Was it cut by the capture's snap length?
    pub fn is_snapped(&self) -> bool {
        (self.bytes.len() as u64) < u64::from(self.original_length)
    }
}

/// Why a capture cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What stands there is no capture, or no further one.
    #[error("at byte {offset}: {fault}")]
    Malformed {
        /// Where the record or block begins.
        offset: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The file does not let itself be read.
    #[error("at byte {offset}: cannot be read: {source}")]
    Io {
        /// So far it could be.
        offset: u64,
        /// The system's reason.
        source: io::Error,
    },
}

/// What is wrong with a capture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its first bytes are those of another kind of file.
    #[error("neither pcap nor pcapng (it begins with {0:#010x})")]
    Magic(u32),
    /// A version of the format that is unknown here.
    #[error("{format} of version {major}.{minor}, which is not known here")]
    Version {
        /// pcap or pcapng.
        format: &'static str,
        /// The major version.
        major: u16,
        /// The minor version.
        minor: u16,
    },
    /// The file breaks off.
    #[error("the file ends {there} bytes into {what}")]
    Truncated {
        /// What it breaks off in.
        what: &'static str,
        /// How much of that is there.
        there: usize,
    },
    /// Nothing of that length is in a capture.
    #[error("{what} of {length} bytes, more than {most}")]
    TooLong {
        /// Packet or block.
        what: &'static str,
        /// Bytes it is said to have.
        length: u32,
        /// The limit.
        most: u32,
    },
    /// A block's length is none.
    #[error(
        "a block of {0} bytes; a length is a multiple of four and large enough for what is in it"
    )]
    BlockLength(u32),
    /// The length stands at both ends of a block.
    #[error("a block whose length is {first} at its beginning and {last} at its end")]
    Trailer {
        /// At the beginning.
        first: u32,
        /// At the end.
        last: u32,
    },
    /// A section whose byte order cannot be told.
    #[error("a section header without byte-order magic ({0:#010x})")]
    ByteOrder(u32),
    /// A packet of an interface that the section does not describe.
    #[error("a packet of interface {number}, of {known} that are described")]
    Interface {
        /// The interface.
        number: u32,
        /// How many there are.
        known: usize,
    },
    /// More than anybody has.
    #[error("more than {0} interfaces in a section")]
    TooManyInterfaces(usize),
    /// A part says it is longer than the block it stands in.
    #[error("{what} of {length} bytes in a block with room for {room}")]
    Overflow {
        /// A packet or an option.
        what: &'static str,
        /// Bytes it is said to have.
        length: u32,
        /// Bytes there are.
        room: usize,
    },
}
