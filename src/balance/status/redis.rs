//! `redis`: a field of INFO (RESP 2). Three commands need no crate for them.

use std::time::Instant;

use super::answer::{finite, told, wrong};
use super::rate::Rate;
use super::stream::Stream;
use super::tls::{Tls, Trust};
use super::{Failure, Instance, Pending, Reading, StatusObject, at_port};

/// Bytes of an answer that are read; all of INFO is some seven thousand.
const MOST: usize = 64 << 10;

/// What is read, and how the server is entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// In place of the server's port.
    pub port: Option<u16>,
    /// The field, such as `connected_clients`.
    pub field: String,
    /// Only this section is asked for; `None`: the default ones.
    pub section: Option<String>,
    /// The value is what the field grew by in a second.
    pub is_rate: bool,
    /// For AUTH; `None`: the default user.
    pub user: Option<String>,
    /// For AUTH; `None`: it is not said.
    pub password: Option<super::Secret>,
    /// `Some`: TLS is spoken, to a server of this name (`None`: its address).
    pub tls: Option<(Trust, Option<String>)>,
}

/// A field of INFO.
#[derive(Debug)]
pub(super) struct Redis {
    query: Query,
    tls: Option<Tls>,
    rate: Rate,
    /// Taken while it is used.
    kept: Option<(std::net::SocketAddr, Stream)>,
}

impl Redis {
    pub(super) fn new(query: &Query) -> Redis {
        let tls = query.tls.as_ref().map(|(trust, name)| Tls::new(trust, name.as_deref()));
        Redis { query: query.clone(), tls, rate: Rate::default(), kept: None }
    }

    async fn ask(&mut self, instance: &Instance) -> Result<String, Failure> {
        let to = at_port(instance, self.query.port);
        let info: Vec<&str> =
            std::iter::once("INFO").chain(self.query.section.as_deref()).collect();
        if let Some((at, mut stream)) = self.kept.take()
            && at == to
            && let Ok(info) = command(&mut stream, &info).await
        {
            self.kept = Some((to, stream));
            return info;
        }
        let mut stream = Stream::connect(to, self.tls.as_ref()).await?;
        if let Some(password) = &self.query.password {
            let user = self.query.user.as_deref();
            let auth: Vec<&str> =
                ["AUTH"].into_iter().chain(user).chain([password.expose()]).collect();
            command(&mut stream, &auth).await??;
        }
        let info = command(&mut stream, &info).await?;
        self.kept = Some((to, stream));
        info
    }
}

impl StatusObject for Redis {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(async {
            let info = self.ask(instance).await?;
            let value = field(&info, &self.query.field)?;
            let value = match self.query.is_rate {
                true => self.rate.of(value, Instant::now()),
                false => Some(value),
            };
            Ok(Reading { value, ..Reading::default() })
        })
    }
}

/// One command and its answer; the outer error: the connection is of no use any more.
async fn command(stream: &mut Stream, words: &[&str]) -> Result<Result<String, Failure>, Failure> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.send(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    loop {
        let more = stream.read_more(&mut bytes).await?;
        match reply(&bytes)? {
            Some(reply) => return Ok(reply),
            None if bytes.len() > MOST => return Err(Failure::TooMuch(MOST)),
            None if more == 0 => return Err(wrong(&String::from_utf8_lossy(&bytes), "a reply")),
            None => {}
        }
    }
}

/// A reply that has come whole: text, or the server's own complaint. Nothing follows it, since one was asked for.
///
/// # Errors
/// It is none of RESP, or of a type that was not asked for.
pub fn reply(bytes: &[u8]) -> Result<Option<Result<String, Failure>>, Failure> {
    let wanted = "a reply of Redis";
    let not_redis = || wrong(&String::from_utf8_lossy(bytes), wanted);
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return match bytes.first() {
            None | Some(b'+' | b'-' | b'$') => Ok(None),
            Some(_) => Err(not_redis()),
        };
    };
    let (line, rest) = (&bytes[..end], &bytes[end + 2..]);
    let (kind, said) = line.split_first().ok_or_else(not_redis)?;
    let said = String::from_utf8_lossy(said).into_owned();
    let is_whole = rest.is_empty();
    match kind {
        b'+' if is_whole => Ok(Some(Ok(said))),
        b'-' if is_whole => Ok(Some(Err(wrong(&said, "no error")))),
        b'$' => match said.parse::<usize>() {
            Ok(length) if length > MOST => Err(Failure::TooMuch(MOST)),
            Ok(length) if rest.len() < length + 2 => Ok(None),
            Ok(length) if rest.len() == length + 2 && rest.ends_with(b"\r\n") => {
                Ok(Some(Ok(String::from_utf8_lossy(&rest[..length]).into_owned())))
            }
            _ => Err(not_redis()),
        },
        _ => Err(not_redis()),
    }
}

/// `name:value` in a line of INFO.
///
/// # Errors
/// It is not there, or no finite number.
pub fn field(info: &str, name: &str) -> Result<f64, Failure> {
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    match value {
        Some(value) => finite(value),
        None => Err(told("no such field", format!("`{name}` of INFO"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn replies_come_whole_or_not_yet() {
        let text = b"$17\r\n# Clients\r\na:12\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(reply(&text[..end]), Ok(None), "{end} bytes");
        }
        assert_eq!(reply(text), Ok(Some(Ok("# Clients\r\na:12\r\n".to_owned()))));
        assert_eq!(reply(b"+OK\r\n"), Ok(Some(Ok("OK".to_owned()))));
        let refused = reply(b"-NOAUTH Authentication required.\r\n").expect("a reply");
        let told = refused.expect("it is whole").expect_err("a complaint").to_string();
        assert_eq!(told, "answered \"NOAUTH Authentication required.\", wanted no error");
    }

    #[test]
    fn what_is_no_reply_is_told() {
        for bytes in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"SSH",
            b"$x\r\n",
            b"$-1\r\n",
            b"$1\r\nabc\r\n",
            b"$1\r\nab\n",
            b"\r\n",
            b"+OK\r\n+OK\r\n",
            b"*1\r\n",
        ] {
            assert!(matches!(reply(bytes), Err(Failure::Answer { .. })), "{bytes:?}");
        }
        assert_eq!(reply(b"$99999999999\r\n"), Err(Failure::TooMuch(MOST)));
    }

    #[test]
    fn fields_by_their_whole_name() {
        let info = "# Clients\r\nconnected_clients_max:9\r\nconnected_clients:12\r\nmem:1.5K\r\n";
        assert_eq!(field(info, "connected_clients"), Ok(12.0));
        assert!(field(info, "clients").is_err() && field(info, "mem").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(start in "[$+*-]?[0-9]{0,4}(\r\n)?", tail: Vec<u8>) {
            let _ = reply(&[start.as_bytes(), &tail].concat());
        }
    }
}
