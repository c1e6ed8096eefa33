//! The bytes of a file through a buffer of fixed size, and how far into the file they lie.

use std::io::{self, Read};

use super::{Error, Fault, MAX_BLOCK};

/// Bytes that have been read and not been taken.
#[derive(Debug)]
pub(super) struct Source<R> {
    input: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Of `start`, in the file.
    offset: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(input: R) -> Source<R> {
        let buffer = vec![0; MAX_BLOCK as usize].into_boxed_slice();
        Source { input, buffer, start: 0, end: 0, offset: 0 }
    }

    /// Where in the file the next byte lies.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// All that is here without reading.
    pub(super) fn here(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Reads until `length` bytes are here, at most [`MAX_BLOCK`]; false if the file ends before.
    #[inline]
    pub(super) fn fill(&mut self, length: usize) -> Result<bool, Error> {
        if self.end - self.start >= length {
            return Ok(true);
        }
        self.read(length)
    }

    #[cold]
    fn read(&mut self, length: usize) -> Result<bool, Error> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        while self.end < length {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let offset = self.offset + self.end as u64;
                    return Err(Error::Io { offset, source });
                }
            }
        }
        Ok(true)
    }

    /// The next `length` bytes, which [`Source::fill`] has brought here.
    #[inline]
    pub(super) fn take(&mut self, length: usize) -> &[u8] {
        let from = self.start;
        self.start = (from + length).min(self.end);
        self.offset += (self.start - from) as u64;
        &self.buffer[from..self.start]
    }

    /// Passes over `length` bytes; false if the file ends before.
    pub(super) fn skip(&mut self, mut length: u64) -> Result<bool, Error> {
        while length > 0 {
            if !self.fill(1)? {
                return Ok(false);
            }
            let step = usize::try_from(length).unwrap_or(usize::MAX).min(self.end - self.start);
            self.take(step);
            length -= step as u64;
        }
        Ok(true)
    }

    /// What begins here is wrong.
    #[cold]
    pub(super) fn malformed(&self, fault: Fault) -> Error {
        Error::Malformed { offset: self.offset, fault }
    }

    /// The file ends within `what`, which begins here.
    #[cold]
    pub(super) fn truncated(&self, what: &'static str) -> Error {
        self.malformed(Fault::Truncated { what, there: self.here().len() })
    }
}
