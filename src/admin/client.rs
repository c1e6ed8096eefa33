//! Asks a forwarder over its control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// An answer is never larger.
const LARGEST_ANSWER: u64 = 16 << 20;

/// Sends the line `request` to the control socket `socket` and returns the line of its answer, without
/// the newline.
///
/// # Errors
/// `ConnectionRefused` or `NotFound`: no forwarder listens there. `TimedOut`: it did not answer within
/// `patience`. `UnexpectedEof`: it ended before its answer did.
pub fn ask(socket: &Path, request: &str, patience: Duration) -> io::Result<String> {
    let deadline = Instant::now() + patience;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut reader = BufReader::new(stream).take(LARGEST_ANSWER);
    while answer.last() != Some(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        reader.get_ref().get_ref().set_read_timeout(Some(left))?;
        let piece = match reader.fill_buf() {
            Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(piece) => piece,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = piece.iter().position(|byte| *byte == b'\n').map_or(piece.len(), |at| at + 1);
        answer.extend_from_slice(&piece[..end]);
        reader.consume(end);
    }
    answer.pop();
    String::from_utf8(answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
