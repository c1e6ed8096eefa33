//! Netlink messages as bytes (RFC 3549): a writer of headers and nested attributes, and a reader that
//! trusts no length. Pure; the kernel's byte order rules headers, nf_tables wants its integers big-endian.

/// Bytes of `struct nlmsghdr`.
pub const HEADER: usize = 16;
/// The message is a request.
pub(crate) const REQUEST: u16 = 0x1;
/// An answer is wanted even on success.
pub(crate) const ACK: u16 = 0x4;
/// The dump changed while it was read; it must be asked for again.
pub(crate) const DUMP_INTERRUPTED: u16 = 0x10;
/// All objects are wanted.
pub(crate) const DUMP: u16 = 0x300;
/// Make the object if it is not there.
pub(crate) const CREATE: u16 = 0x400;
/// Behind the rules that are there (`NEWRULE`).
pub(crate) const APPEND: u16 = 0x800;
/// Type of an error or, with error 0, of an acknowledgement.
pub(crate) const ERROR: u16 = 2;
/// Type of a dump's last message.
pub(crate) const DONE: u16 = 3;

const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const ALIGNMENT: usize = 4;

/// Appends messages and attributes to a buffer.
///
/// An attribute's length is 16 bits wide: one that does not fit makes the whole buffer unusable
/// ([`Writer::is_overlong`]), as its length would lie.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    message: usize,
    is_overlong: bool,
}

impl Writer {
    /// Begins a message; [`Writer::end`] must follow.
    pub(crate) fn begin(&mut self, kind: u16, flags: u16, sequence: u32) {
        self.message = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
    }

    /// Ends the message: writes its length.
    pub(crate) fn end(&mut self) {
        let length = (self.bytes.len() - self.message) as u32;
        self.bytes[self.message..self.message + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Bytes as they are: a family header, or attributes written before.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// An attribute of these bytes.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
    }

    /// An attribute of a text, with its NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }

    /// A big-endian integer of 32 bits.
    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// A big-endian integer of 64 bits.
    pub(crate) fn long(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute of attributes.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Writer)) {
        let start = self.open(kind | NESTED);
        inner(self);
        self.close(start);
    }

    /// Was an attribute longer than its length field can say?
    pub(crate) fn is_overlong(&self) -> bool {
        self.is_overlong
    }

    /// What was written so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.is_overlong = true,
        }
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// The errno of an ERROR message; 0 acknowledges.
    pub fn errno(&self) -> Option<i32> {
        let code = self.payload.first_chunk::<4>()?;
        (self.kind == ERROR).then(|| i32::from_ne_bytes(*code).saturating_neg())
    }
}

/// The messages of a datagram, up to the first whose length cannot be.
pub fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<HEADER>()?;
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = word(0) as usize;
        let payload = rest.get(HEADER..length)?;
        let message = Message { kind: half(4), flags: half(6), sequence: word(8), payload };
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or(&[]);
        Some(message)
    })
}

/// Attributes as (type, value), up to the first whose length cannot be.
pub fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The value of the first attribute of type `kind`.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|a| a.0 == kind).map(|a| a.1)
}

/// A big-endian integer of 32 bits.
pub fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|b| u32::from_be_bytes(*b))
}

/// A text up to its NUL; empty if it is not UTF-8.
pub fn text(value: &[u8]) -> &str {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_its_length_and_aligned_attributes() {
        let mut writer = Writer::default();
        writer.begin(0x0a00, REQUEST | ACK, 7);
        writer.raw(&[1, 0, 0, 0]);
        writer.text(1, "abcd");
        writer.number(2, 6);
        writer.end();
        let mut wanted = Vec::new();
        wanted.extend_from_slice(&40u32.to_ne_bytes());
        wanted.extend_from_slice(&0x0a00u16.to_ne_bytes());
        wanted.extend_from_slice(&5u16.to_ne_bytes());
        wanted.extend_from_slice(&7u32.to_ne_bytes());
        wanted.extend_from_slice(&[0; 4]);
        wanted.extend_from_slice(&[1, 0, 0, 0]);
        wanted.extend_from_slice(&9u16.to_ne_bytes());
        wanted.extend_from_slice(&1u16.to_ne_bytes());
        wanted.extend_from_slice(b"abcd\0\0\0\0");
        wanted.extend_from_slice(&8u16.to_ne_bytes());
        wanted.extend_from_slice(&2u16.to_ne_bytes());
        wanted.extend_from_slice(&[0, 0, 0, 6]);
        assert_eq!(writer.bytes(), wanted);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::default();
        for sequence in [1, 2] {
            writer.begin(9, 0, sequence);
            writer.nest(4, |w| {
                w.text(1, "cmp");
                w.nest(2, |w| w.long(3, 5));
            });
            writer.end();
        }
        let read: Vec<Message<'_>> = messages(writer.bytes()).collect();
        assert_eq!(read.iter().map(|m| m.sequence).collect::<Vec<u32>>(), [1, 2]);
        let nest = find(read[1].payload, 4).expect("the nest was written");
        assert_eq!(find(nest, 1).map(text), Some("cmp"));
        let inner = find(nest, 2).expect("the inner nest was written");
        assert_eq!(find(inner, 3), Some(&5u64.to_be_bytes()[..]));
    }

    #[test]
    fn an_attribute_of_more_than_64_kb_is_noticed() {
        let mut writer = Writer::default();
        writer.nest(1, |w| w.attribute(2, &[0; 40_000]));
        assert!(!writer.is_overlong());
        writer.nest(1, |w| (0..2).for_each(|_| w.attribute(2, &[0; 40_000])));
        assert!(writer.is_overlong());
    }

    #[test]
    fn lengths_that_cannot_be_end_the_reading() {
        assert_eq!(attributes(&[3, 0, 1, 0, 9, 9, 9, 9]).count(), 0);
        assert_eq!(attributes(&[200, 0, 1, 0, 9, 9, 9, 9]).count(), 0);
        assert_eq!(attributes(&[5, 0, 1, 0, 9]).count(), 1);
        assert_eq!(messages(&[0; 16]).count(), 0);
        assert_eq!(messages(&[255; 40]).count(), 0);
        assert_eq!(messages(&[16, 0, 0]).count(), 0);
    }

    #[test]
    fn an_error_tells_its_errno() {
        let mut writer = Writer::default();
        writer.begin(ERROR, 0, 3);
        writer.raw(&(-2i32).to_ne_bytes());
        writer.end();
        assert_eq!(messages(writer.bytes()).next().and_then(|m| m.errno()), Some(2));
    }
}
