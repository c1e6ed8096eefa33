//! An HTTP/1.1 response (RFC 9112) as it comes in: head, body by length, in chunks or until the end. Pure: bytes in.

use super::super::Failure;
use super::super::answer::{told, wrong};

/// Bytes of the largest head that is read.
const LARGEST_HEAD: usize = 16 << 10;
const MOST_HEADERS: usize = 64;
/// What should have come.
const WANTED: &str = "an HTTP response";

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// At most as many bytes as were allowed.
    pub body: Vec<u8>,
}

/// Collects a response from what has come so far.
#[derive(Debug)]
pub struct Incoming {
    is_head: bool,
    most: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Head,
    Body { status: u16, keeps: bool, start: usize, body: Body },
}

#[derive(Debug)]
enum Body {
    Length(usize),
    Chunked(Chunks),
    UntilClose,
}

/// What there is, and what not yet.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// More has to come.
    More,
    /// All of it; may the connection be used again?
    Done(Response, bool),
}

impl Incoming {
    /// The answer to a HEAD (`is_head`) or to another request, with a body of at most `most` bytes.
    pub fn new(is_head: bool, most: usize) -> Incoming {
        Incoming { is_head, most, state: State::Head }
    }

    /// Goes on with all that came since the request: `bytes`. `is_closed`: nothing follows.
    ///
    /// # Errors
    /// It is no response, breaks off, or is larger than allowed.
    pub fn advance(&mut self, bytes: &[u8], is_closed: bool) -> Result<Progress, Failure> {
        if matches!(self.state, State::Head) {
            match self.head(bytes)? {
                Some(state) => self.state = state,
                None if is_closed => return Err(broken_off(bytes)),
                None => return Ok(Progress::More),
            }
        }
        let State::Body { status, keeps, start, body } = &mut self.state else {
            return Ok(Progress::More);
        };
        let (status, rest) = (*status, bytes.get(*start..).unwrap_or_default());
        let response = |body: &[u8]| Response { status, body: body.to_vec() };
        match body {
            Body::Length(length) => match rest.get(..*length) {
                // What follows was not asked for.
                Some(body) => Ok(Progress::Done(response(body), *keeps && rest.len() == *length)),
                None if is_closed => Err(broken_off(rest)),
                None => Ok(Progress::More),
            },
            Body::Chunked(chunks) => match chunks.advance(rest, self.most)? {
                true => {
                    let keeps = *keeps && rest.len() == chunks.at;
                    Ok(Progress::Done(response(&chunks.body), keeps))
                }
                false if is_closed => Err(broken_off(rest)),
                false => Ok(Progress::More),
            },
            Body::UntilClose if rest.len() > self.most => Err(Failure::TooMuch(self.most)),
            Body::UntilClose if is_closed => Ok(Progress::Done(response(rest), false)),
            Body::UntilClose => Ok(Progress::More),
        }
    }

    fn head(&self, bytes: &[u8]) -> Result<Option<State>, Failure> {
        let mut start = 0;
        loop {
            let rest = bytes.get(start..).unwrap_or_default();
            let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
            let mut parsed = httparse::Response::new(&mut headers);
            let length = match parsed.parse(rest) {
                Ok(httparse::Status::Complete(length)) => length,
                Ok(httparse::Status::Partial) if bytes.len() > LARGEST_HEAD => {
                    return Err(Failure::TooMuch(LARGEST_HEAD));
                }
                Ok(httparse::Status::Partial) => return Ok(None),
                Err(httparse::Error::TooManyHeaders) => return Err(Failure::TooMuch(LARGEST_HEAD)),
                Err(_) => return Err(wrong(&String::from_utf8_lossy(first_line(rest)), WANTED)),
            };
            start += length;
            let status = parsed.code.unwrap_or(0);
            // Early words before the response (RFC 9110 section 15.2); 101 was not asked for.
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let (body, keeps) = self.framing(status, parsed.version == Some(1), parsed.headers)?;
            return Ok(Some(State::Body { status, keeps, start, body }));
        }
    }

    /// RFC 9112 section 6.3: how long the body is; and section 9.3: does the connection last?
    fn framing(
        &self,
        status: u16,
        is_1_1: bool,
        headers: &[httparse::Header<'_>],
    ) -> Result<(Body, bool), Failure> {
        let (mut length, mut codings, mut keeps) = (None, None, is_1_1);
        for header in headers {
            let value = || String::from_utf8_lossy(header.value).to_ascii_lowercase();
            if header.name.eq_ignore_ascii_case("content-length") {
                let value = value();
                let bytes = value.trim().parse::<u64>();
                let bytes = bytes.map_err(|_| wrong(&value, "a Content-Length"))?;
                if length.replace(bytes).is_some_and(|before| before != bytes) {
                    return Err(told("two lengths", "one Content-Length"));
                }
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                codings = Some(value());
            } else if header.name.eq_ignore_ascii_case("connection") {
                keeps = if is_1_1 {
                    !value().contains("close")
                } else {
                    value().contains("keep-alive")
                };
            }
        }
        if self.is_head || status == 204 || status == 304 {
            return Ok((Body::Length(0), keeps));
        }
        match (codings, length) {
            (Some(codings), _) if codings.trim_end().ends_with("chunked") => {
                Ok((Body::Chunked(Chunks::default()), keeps && length.is_none()))
            }
            (None, Some(length)) => match usize::try_from(length) {
                Ok(length) if length <= self.most => Ok((Body::Length(length), keeps)),
                _ => Err(Failure::TooMuch(self.most)),
            },
            _ => Ok((Body::UntilClose, false)),
        }
    }
}

/// A chunked body (RFC 9112 section 7.1).
#[derive(Debug, Default)]
struct Chunks {
    /// Read up to here.
    at: usize,
    body: Vec<u8>,
    is_at_end: bool,
}

impl Chunks {
    /// Is it complete?
    fn advance(&mut self, bytes: &[u8], most: usize) -> Result<bool, Failure> {
        loop {
            let rest = bytes.get(self.at..).unwrap_or_default();
            if self.is_at_end {
                // Trailers, until an empty line.
                let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                    return if rest.len() > LARGEST_HEAD {
                        Err(Failure::TooMuch(most))
                    } else {
                        Ok(false)
                    };
                };
                self.at += end + 1;
                if rest[..end].trim_ascii().is_empty() {
                    return Ok(true);
                }
                continue;
            }
            let (head, size) = match httparse::parse_chunk_size(rest) {
                Ok(httparse::Status::Complete(sized)) => sized,
                Ok(httparse::Status::Partial) if rest.len() > LARGEST_HEAD => {
                    return Err(Failure::TooMuch(most));
                }
                Ok(httparse::Status::Partial) => return Ok(false),
                Err(_) => {
                    return Err(wrong(
                        &String::from_utf8_lossy(first_line(rest)),
                        "a chunk's size",
                    ));
                }
            };
            let size = usize::try_from(size).ok().filter(|size| *size <= most - self.body.len());
            let size = size.ok_or(Failure::TooMuch(most))?;
            if size == 0 {
                self.at += head;
                self.is_at_end = true;
                continue;
            }
            let Some(chunk) = rest.get(head..head + size + 2) else { return Ok(false) };
            let (chunk, end) = chunk.split_at(size);
            if end != b"\r\n" {
                return Err(wrong(&String::from_utf8_lossy(end), "the end of a chunk"));
            }
            self.body.extend_from_slice(chunk);
            self.at += head + size + 2;
        }
    }
}

fn first_line(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == b'\n').next().unwrap_or_default()
}

fn broken_off(bytes: &[u8]) -> Failure {
    match bytes {
        [] => wrong("", WANTED),
        _ => told("a response that breaks off", "all of it"),
    }
}

#[cfg(test)]
mod tests {
    use std::mem::discriminant;

    use proptest::prelude::*;

    use super::*;

    /// What comes of `bytes` that arrive in pieces of `piece` bytes, before the end of the connection.
    fn in_pieces(bytes: &[u8], piece: usize, most: usize) -> Result<(u16, String, bool), Failure> {
        let mut incoming = Incoming::new(false, most);
        let mut come = 0;
        loop {
            come = (come + piece).min(bytes.len());
            let is_closed = come == bytes.len();
            match incoming.advance(&bytes[..come], is_closed && piece == bytes.len()) {
                Ok(Progress::Done(response, keeps)) => {
                    let body = String::from_utf8(response.body).expect("text");
                    return Ok((response.status, body, keeps));
                }
                Ok(Progress::More) if is_closed => {
                    return match incoming.advance(bytes, true)? {
                        Progress::Done(response, keeps) => {
                            let body = String::from_utf8(response.body).expect("text");
                            Ok((response.status, body, keeps))
                        }
                        Progress::More => panic!("nothing follows"),
                    };
                }
                Ok(Progress::More) => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    fn read(text: &str) -> Result<(u16, String, bool), Failure> {
        let whole = in_pieces(text.as_bytes(), text.len().max(1), 100);
        for piece in [1, 2, 7] {
            match in_pieces(text.as_bytes(), piece, 100) {
                // How much of it is shown depends on how much had come.
                Err(failure) => {
                    let whole = whole.as_ref().expect_err(text);
                    assert_eq!(discriminant(&failure), discriminant(whole), "{text:?} by {piece}");
                }
                read => assert_eq!(read, whole, "{text:?} in pieces of {piece}"),
            }
        }
        whole
    }

    fn ok(status: u16, body: &str, keeps: bool) -> Result<(u16, String, bool), Failure> {
        Ok((status, body.to_owned(), keeps))
    }

    #[test]
    fn bodies_by_length_in_chunks_and_until_the_end() {
        let by_length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(read(by_length), ok(200, "hello", true));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                       5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: 1\r\n\r\n";
        assert_eq!(read(chunked), ok(200, "hello!", true));
        assert_eq!(read("HTTP/1.0 500 No\r\n\r\nhello"), ok(500, "hello", false));
        assert_eq!(read("HTTP/1.1 200 OK\nServer: x\n\nhello"), ok(200, "hello", false));
    }

    #[test]
    fn some_have_no_body() {
        assert_eq!(read("HTTP/1.1 204 Nothing\r\n\r\n"), ok(204, "", true));
        let mut incoming = Incoming::new(true, 100);
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n";
        let nothing = Response { status: 200, body: Vec::new() };
        assert_eq!(incoming.advance(head, false), Ok(Progress::Done(nothing, true)));
    }

    #[test]
    fn early_words_are_passed_over() {
        let text = "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n.";
        assert_eq!(read(text), ok(200, ".", true));
    }

    #[test]
    fn whether_the_connection_lasts() {
        let with = |version, header| {
            let text = format!("HTTP/{version} 200 OK\r\n{header}Content-Length: 0\r\n\r\n");
            read(&text).expect("a response").2
        };
        assert!(with("1.1", ""));
        assert!(!with("1.1", "Connection: Close\r\n"));
        assert!(!with("1.0", ""));
        assert!(with("1.0", "Connection: Keep-Alive\r\n"));
        // Two framings at once, or more than was asked for: nothing else is read from there.
        let both =
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        assert_eq!(read(both), ok(200, "", false));
        let more = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc";
        let mut incoming = Incoming::new(false, 100);
        let response = Response { status: 200, body: b"a".to_vec() };
        assert_eq!(incoming.advance(more, false), Ok(Progress::Done(response, false)));
    }

    #[test]
    fn what_is_too_large_is_not_read() {
        let body = "x".repeat(101);
        let texts = [
            format!("HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n{body}"),
            "HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n".to_owned(),
            format!("HTTP/1.1 200 OK\r\n\r\n{body}"),
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n{body}\r\n0\r\n\r\n"
            ),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n".to_owned(),
        ];
        for text in &texts {
            assert_eq!(read(text), Err(Failure::TooMuch(100)), "{text}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(LARGEST_HEAD));
        assert_eq!(in_pieces(endless.as_bytes(), 1000, 100), Err(Failure::TooMuch(LARGEST_HEAD)));
    }

    #[test]
    fn what_is_no_response_or_breaks_off_is_told() {
        for text in [
            "SSH-2.0-OpenSSH\r\n",
            "",
            "HTTP/1.1 200",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
        ] {
            assert!(
                matches!(read(text), Err(Failure::Answer { .. })),
                "{text:?}: {:?}",
                read(text)
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(
            head in prop::sample::select(vec![
                "", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                "HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
            ]),
            tail: Vec<u8>, cut: prop::sample::Index,
        ) {
            let bytes = [head.as_bytes(), &tail].concat();
            let cut = cut.index(bytes.len() + 1);
            let mut incoming = Incoming::new(false, 50);
            if let Ok(Progress::More) = incoming.advance(&bytes[..cut], false)
                && let Ok(Progress::Done(response, _)) = incoming.advance(&bytes, true)
            {
                prop_assert!(response.body.len() <= 50);
            }
        }

        #[test]
        fn a_body_in_chunks_is_the_body(parts in prop::collection::vec("[a-z]{1,20}", 0..5)) {
            let mut text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
            for part in &parts {
                text += &format!("{:x}\r\n{part}\r\n", part.len());
            }
            text += "0\r\n\r\n";
            prop_assert_eq!(in_pieces(text.as_bytes(), 3, 100), ok(200, &parts.concat(), true));
        }
    }
}
