//! `dns`: does a name server answer a question (RFC 1035), with what it should, and how long does that take?

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use tokio::net::UdpSocket;

use super::answer::{room, told, unreached, wrong};
use super::{Failure, Instance, Pending, Reading, StatusObject, at_port};

/// Bytes of the largest answer over UDP that is read. We ask without EDNS: 512 come at most.
const LARGEST: usize = 4096;

/// What is asked, and what should be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// In place of the server's port.
    pub port: Option<u16>,
    /// The name as it goes over the wire: labels with their lengths.
    pub name: Vec<u8>,
    /// Record type.
    pub record: u16,
    /// An address that has to be among the answers.
    pub answer: Option<IpAddr>,
}

impl Question {
    /// Record types by their names.
    pub const TYPES: [(&str, u16); 9] = [
        ("A", 1),
        ("AAAA", 28),
        ("NS", 2),
        ("CNAME", 5),
        ("SOA", 6),
        ("PTR", 12),
        ("MX", 15),
        ("TXT", 16),
        ("SRV", 33),
    ];

    /// A name as it goes over the wire; `None`: it is none.
    pub fn name(text: &str) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        let text = text.strip_suffix('.').unwrap_or(text);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            let length =
                u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
            if !label.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
                return None;
            }
            name.push(length);
            name.extend_from_slice(label.as_bytes());
        }
        name.push(0);
        (name.len() <= 255).then_some(name)
    }

    fn ask(&self, id: u16) -> Vec<u8> {
        let mut message = Vec::with_capacity(12 + self.name.len() + 4);
        message.extend_from_slice(&id.to_be_bytes());
        // Recursion desired; one question.
        message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        message.extend_from_slice(&self.name);
        message.extend_from_slice(&self.record.to_be_bytes());
        message.extend_from_slice(&[0, 1]);
        message
    }

    /// Is `message` the answer to it, and a good one? `None`: it is an answer to something else.
    ///
    /// # Errors
    /// It is one, and not a good one.
    pub fn judge(&self, id: u16, message: &[u8]) -> Option<Result<(), Failure>> {
        let asked = self.ask(id);
        let header = message.first_chunk::<12>()?;
        let question = message.get(12..asked.len())?;
        let is_ours = header[..2] == asked[..2]
            && header[2] & 0xf8 == 0x80
            && header[4..6] == [0, 1]
            && question.eq_ignore_ascii_case(&asked[12..]);
        is_ours.then(|| self.judge_ours(header, message.get(asked.len()..).unwrap_or_default()))
    }

    fn judge_ours(&self, header: &[u8; 12], records: &[u8]) -> Result<(), Failure> {
        const CODES: [&str; 6] =
            ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
        let code = usize::from(header[3] & 0xf);
        if code != 0 {
            let name =
                CODES.get(code).map_or_else(|| format!("RCODE {code}"), |name| (*name).to_owned());
            return Err(told(name, "NOERROR"));
        }
        let answers = u16::from_be_bytes([header[6], header[7]]);
        let Some(wanted) = self.answer else {
            return if answers > 0 { Ok(()) } else { Err(told("no record", "a record")) };
        };
        let mut found = String::new();
        let mut rest = records;
        for _ in 0..answers {
            // An answer that was cut short (TC) ends in the middle.
            let Some((record, data, after)) = split_record(rest) else { break };
            let address = match (record, data.len()) {
                (1, 4) => data.first_chunk::<4>().map(|data| IpAddr::from(Ipv4Addr::from(*data))),
                (28, 16) => {
                    data.first_chunk::<16>().map(|data| IpAddr::from(Ipv6Addr::from(*data)))
                }
                _ => None,
            };
            if address == Some(wanted) {
                return Ok(());
            }
            if let Some(address) = address {
                let _ = write!(found, "{address} ");
            }
            rest = after;
        }
        Err(wrong(&found, wanted.to_string()))
    }
}

/// Type and data of the first record, and what follows it.
fn split_record(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let mut rest = bytes;
    loop {
        let (length, after) = rest.split_first()?;
        rest = match length {
            0 => {
                rest = after;
                break;
            }
            // A pointer ends the name.
            192.. => {
                rest = after.get(1..)?;
                break;
            }
            1..64 => after.get(usize::from(*length)..)?,
            _ => return None,
        };
    }
    let fixed = rest.first_chunk::<10>()?;
    let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let (data, after) = rest.get(10..)?.split_at_checked(length)?;
    Some((u16::from_be_bytes([fixed[0], fixed[1]]), data, after))
}

/// Milliseconds until a good answer is there.
#[derive(Debug)]
pub(super) struct Dns {
    pub(super) question: Question,
}

impl StatusObject for Dns {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(async {
            let to = at_port(instance, self.question.port);
            let any: SocketAddr = match to {
                SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                SocketAddr::V6(_) => ([0u16; 8], 0).into(),
            };
            // A port of its own each time, and connected: others cannot easily answer in its place.
            room()?;
            let socket = UdpSocket::bind(any).await.map_err(|error| unreached(&error))?;
            socket.connect(to).await.map_err(|error| unreached(&error))?;
            let id = unforeseen();
            let asked = Instant::now();
            socket.send(&self.question.ask(id)).await.map_err(|error| unreached(&error))?;
            let mut message = [0; LARGEST];
            let length = socket.recv(&mut message).await.map_err(|error| unreached(&error))?;
            let elapsed = asked.elapsed();
            let judged = self.question.judge(id, &message[..length]);
            let shown = || String::from_utf8_lossy(&message[..length]);
            judged.unwrap_or_else(|| Err(wrong(&shown(), "an answer to the question")))?;
            Ok(Reading { value: Some(elapsed.as_secs_f64() * 1000.0), ..Reading::default() })
        })
    }
}

/// A number that nobody can tell before.
fn unforeseen() -> u16 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question(answer: Option<&str>) -> Question {
        Question {
            port: None,
            name: Question::name("www.example.com").expect("a name"),
            record: 1,
            answer: answer.map(|answer| answer.parse().expect("an address")),
        }
    }

    /// An answer to it with the flags and code of `code`, and these records.
    fn answer(question: &Question, code: u8, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut message = question.ask(7);
        message[2] = 0x85;
        message[3] = 0x80 | code;
        message[7] = records.len() as u8;
        for (record, data) in records {
            message.extend_from_slice(&[0xc0, 12]);
            message.extend_from_slice(&record.to_be_bytes());
            message.extend_from_slice(&[0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
            message.extend_from_slice(data);
        }
        message
    }

    #[test]
    fn names() {
        assert_eq!(Question::name("a.bc."), Some(b"\x01a\x02bc\0".to_vec()));
        assert_eq!(Question::name("."), Some(vec![0]));
        let long = "a".repeat(64);
        let longest = ["a".repeat(63).as_str()].repeat(4).join(".");
        for text in ["a..b", ".a", "a b", "ä", &long, &longest] {
            assert_eq!(Question::name(text), None, "{text}");
        }
    }

    #[test]
    fn good_answers() {
        let any = question(None);
        assert_eq!(any.judge(7, &answer(&any, 0, &[(5, b"\0")])), Some(Ok(())));
        let one = question(Some("192.0.2.7"));
        let records: [(u16, &[u8]); 3] =
            [(5, b"\x01a\0"), (1, &[192, 0, 2, 1]), (1, &[192, 0, 2, 7])];
        assert_eq!(one.judge(7, &answer(&one, 0, &records)), Some(Ok(())));
        let mut loud = answer(&any, 0, &[(1, &[1, 2, 3, 4])]);
        loud[12..28].make_ascii_uppercase();
        assert_eq!(any.judge(7, &loud), Some(Ok(())));
    }

    #[test]
    fn others_are_told() {
        let any = question(None);
        let told = |question: &Question, message: &[u8]| {
            question.judge(7, message).expect("ours").expect_err("no good one").to_string()
        };
        assert_eq!(told(&any, &answer(&any, 3, &[])), "answered NXDOMAIN, wanted NOERROR");
        assert_eq!(told(&any, &answer(&any, 9, &[])), "answered RCODE 9, wanted NOERROR");
        assert_eq!(told(&any, &answer(&any, 0, &[])), "answered no record, wanted a record");
        let one = question(Some("192.0.2.7"));
        let message = answer(&one, 0, &[(1, &[192, 0, 2, 1])]);
        assert_eq!(told(&one, &message), "answered \"192.0.2.1\", wanted 192.0.2.7");
        assert_eq!(told(&one, &message[..message.len() - 1]), "answered nothing, wanted 192.0.2.7");
    }

    #[test]
    fn what_answers_something_else_is_passed_over() {
        let any = question(None);
        let good = answer(&any, 0, &[(1, &[1, 2, 3, 4])]);
        assert_eq!(any.judge(8, &good), None);
        assert_eq!(any.judge(7, &any.ask(7)), None, "the question itself");
        for at in [2, 13, 29] {
            let mut other = good.clone();
            other[at] ^= 1 << 6;
            assert_eq!(any.judge(7, &other), None, "byte {at}");
        }
        assert_eq!(any.judge(7, b"garbage"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(tail: Vec<u8>, cut: prop::sample::Index) {
            let one = question(Some("192.0.2.7"));
            let mut message = answer(&one, 0, &[(1, &[192, 0, 2, 1]), (1, &[1]), (28, &[2; 16])]);
            message.truncate(cut.index(message.len()));
            message.extend_from_slice(&tail);
            let _ = one.judge(7, &message);
        }
    }
}
