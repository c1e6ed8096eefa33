//! PostgreSQL's messages (protocol 3.0, its manual's chapter "Frontend/Backend Protocol"), as far as one query takes
//! them. Pure: bytes in, bytes out.

use super::super::Failure;
use super::super::answer::{finite, told, wrong};

/// Bytes of the largest message that is read.
pub(super) const LARGEST: usize = 64 << 10;
const WANTED: &str = "PostgreSQL";

/// Asks whether TLS may follow; answered by one byte, `S` or `N`.
pub(super) const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// What the server says, of what matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The user is let in.
    Authenticated,
    /// The password, as it is.
    WantsPassword,
    /// The password, hashed with this salt.
    WantsMd5([u8; 4]),
    /// One of these SASL mechanisms, separated by NUL.
    WantsSasl(&'a [u8]),
    /// The server's part of it.
    SaslContinue(&'a [u8]),
    /// Its last part.
    SaslFinal(&'a [u8]),
    /// The first value of a row; `None`: NULL, or a row without columns.
    Row(Option<&'a [u8]>),
    /// It waits for a query.
    Ready,
    /// It complains.
    Error(String),
    /// What needs no answer.
    Other,
}

/// The first message in `bytes`, and how long it is; `None`: it has not come whole.
///
/// # Errors
/// It is none, or too long.
pub fn parse(bytes: &[u8]) -> Result<Option<(Message<'_>, usize)>, Failure> {
    let not_ours = || wrong(&String::from_utf8_lossy(bytes), WANTED);
    let Some(kind) = bytes.first() else { return Ok(None) };
    if !kind.is_ascii_alphanumeric() {
        return Err(not_ours());
    }
    let Some(length) = bytes.get(1..5).and_then(<[u8]>::first_chunk::<4>) else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    if length < 4 {
        return Err(not_ours());
    }
    if length > LARGEST {
        // Letters of another protocol, read as a length.
        let is_text = bytes[1..5].iter().all(u8::is_ascii_graphic);
        return Err(if is_text { not_ours() } else { Failure::TooMuch(LARGEST) });
    }
    let Some(body) = bytes.get(5..1 + length) else { return Ok(None) };
    let message = match kind {
        b'R' => authentication(body).ok_or_else(not_ours)?,
        b'D' => Message::Row(first_value(body).ok_or_else(not_ours)?),
        b'Z' => Message::Ready,
        b'E' => Message::Error(complaint(body)),
        _ => Message::Other,
    };
    Ok(Some((message, 1 + length)))
}

fn authentication(body: &[u8]) -> Option<Message<'_>> {
    let (code, rest) = body.split_first_chunk::<4>()?;
    Some(match u32::from_be_bytes(*code) {
        0 => Message::Authenticated,
        3 => Message::WantsPassword,
        5 => Message::WantsMd5(*rest.first_chunk()?),
        10 => Message::WantsSasl(rest),
        11 => Message::SaslContinue(rest),
        12 => Message::SaslFinal(rest),
        other => Message::Error(format!("authentication {other} is asked for")),
    })
}

#[allow(clippy::option_option)] // no row; a row whose first value is NULL
fn first_value(body: &[u8]) -> Option<Option<&[u8]>> {
    let (columns, rest) = body.split_first_chunk::<2>()?;
    if *columns == [0, 0] {
        return Some(None);
    }
    let (length, rest) = rest.split_first_chunk::<4>()?;
    match u32::from_be_bytes(*length) {
        u32::MAX => Some(None),
        length => Some(Some(rest.get(..length as usize)?)),
    }
}

/// The field M of an error; without it, whatever came.
fn complaint(body: &[u8]) -> String {
    let mut fields = body.split(|byte| *byte == 0).filter_map(<[u8]>::split_first);
    let message = fields.find(|(kind, _)| **kind == b'M');
    String::from_utf8_lossy(message.map_or(body, |(_, text)| text)).into_owned()
}

/// The value of a result: a number, or true (1) and false (0).
///
/// # Errors
/// It is neither.
pub fn value(text: Option<&[u8]>) -> Result<f64, Failure> {
    match text {
        None => Err(told("NULL", "a number")),
        Some(b"t") => Ok(1.0),
        Some(b"f") => Ok(0.0),
        Some(text) => finite(&String::from_utf8_lossy(text)),
    }
}

/// The first message of a connection, with parameters by name.
pub(super) fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = vec![0, 3, 0, 0];
    for (name, value) in parameters {
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    framed(None, &body)
}

/// A message: its letter and its body.
pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    framed(Some(kind), body)
}

/// A query.
pub(super) fn query(text: &str) -> Vec<u8> {
    message(b'Q', &[text.as_bytes(), &[0]].concat())
}

fn framed(kind: Option<u8>, body: &[u8]) -> Vec<u8> {
    let mut message: Vec<u8> = kind.into_iter().collect();
    message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    message.extend_from_slice(body);
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_come_whole_or_not_yet() {
        let bytes = message(b'D', b"\0\x02\0\0\0\x0242\0\0\0\x01x");
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Ok(None), "{end} bytes");
        }
        assert_eq!(parse(&bytes), Ok(Some((Message::Row(Some(b"42")), bytes.len()))));
    }

    #[test]
    fn each_message() {
        for (kind, body, wanted) in [
            (b'R', &b"\0\0\0\0"[..], Message::Authenticated),
            (b'R', b"\0\0\0\x03", Message::WantsPassword),
            (b'R', b"\0\0\0\x05salt", Message::WantsMd5(*b"salt")),
            (b'R', b"\0\0\0\x0aA\0B\0\0", Message::WantsSasl(b"A\0B\0\0")),
            (b'R', b"\0\0\0\x0br=1", Message::SaslContinue(b"r=1")),
            (b'R', b"\0\0\0\x0cv=1", Message::SaslFinal(b"v=1")),
            (b'R', b"\0\0\0\x07", Message::Error("authentication 7 is asked for".into())),
            (b'D', b"\0\x01\xff\xff\xff\xff", Message::Row(None)),
            (b'D', b"\0\0", Message::Row(None)),
            (b'Z', b"I", Message::Ready),
            (b'E', b"SFATAL\0C28P01\0Mno such user\0\0", Message::Error("no such user".into())),
            (b'S', b"a\0b\0", Message::Other),
        ] {
            let bytes = message(kind, body);
            assert_eq!(parse(&bytes), Ok(Some((wanted, bytes.len()))));
        }
    }

    #[test]
    fn what_is_no_postgresql_is_told() {
        for bytes in [&b"HTTP/1.1 400 Bad Request"[..], b"\x15\x03\x01", b"R\0\0\0\x03", b"SSH-2.0"]
        {
            assert!(matches!(parse(bytes), Err(Failure::Answer { .. })), "{bytes:?}");
        }
        for body in [&b"\0"[..], b"\0\x01\0\0\0\x09x"] {
            assert!(matches!(parse(&message(b'D', body)), Err(Failure::Answer { .. })));
        }
        assert_eq!(parse(b"D\0\xff\0\0"), Err(Failure::TooMuch(LARGEST)));
    }

    #[test]
    fn values() {
        assert_eq!(
            (value(Some(b"12.5")), value(Some(b"t")), value(Some(b"f"))),
            (Ok(12.5), Ok(1.0), Ok(0.0))
        );
        for text in [None, Some(&b"NaN"[..]), Some(b"Infinity"), Some(b""), Some(b"many")] {
            assert!(value(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(kind: u8, body: Vec<u8>, tail: Vec<u8>) {
            let _ = parse(&tail);
            let whole = message(kind, &body);
            if let Ok(Some((_, length))) = parse(&whole) {
                prop_assert_eq!(length, whole.len());
            }
        }
    }
}
