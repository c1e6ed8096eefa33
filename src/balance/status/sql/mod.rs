//! `sql`: the first value of a query to PostgreSQL, such as the sessions of an instance. The connection is kept.
//!
//! Our own, since a query and a login take little of what a client library brings (tokio-postgres: 38 crates more and
//! half a megabyte), and since a query that is given up has to end: the connection is closed, and the server told at the
//! login how long a statement may take.

mod message;
mod password;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::task::spawn_blocking;

pub use message::{Message, parse, value};
pub use password::{Proof, Scram, md5};

use super::answer::{told, unreached, wrong};
use super::stream::Stream;
use super::tls::{Tls, Trust};
use super::{Failure, Instance, Pending, Reading, Secret, StatusObject, at_port};

/// Bytes that a whole answer may have.
const MOST: usize = 256 << 10;

/// What is asked, and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// In place of the server's port.
    pub port: Option<u16>,
    /// A statement that yields a number, or true or false.
    pub query: String,
    /// Who asks.
    pub user: String,
    /// `None`: the server asks for none.
    pub password: Option<Secret>,
    /// Its name.
    pub database: String,
    /// `Some`: TLS is spoken, to a server of this name (`None`: its address).
    pub tls: Option<(Trust, Option<String>)>,
}

/// The first value of a query.
#[derive(Debug)]
pub(super) struct Sql {
    query: Query,
    tls: Option<Tls>,
    timeout: Duration,
    /// Taken while it is used.
    kept: Option<(SocketAddr, Session)>,
}

/// A connection, and what has come on it that was not looked at yet.
#[derive(Debug)]
struct Session {
    stream: Stream,
    bytes: Vec<u8>,
}

impl Sql {
    /// A statement that takes longer than `timeout` is ended by the server, too.
    pub(super) fn new(query: &Query, timeout: Duration) -> Sql {
        let tls = query.tls.as_ref().map(|(trust, name)| Tls::new(trust, name.as_deref()));
        Sql { query: query.clone(), tls, timeout, kept: None }
    }

    async fn ask(&mut self, instance: &Instance) -> Result<f64, Failure> {
        let to = at_port(instance, self.query.port);
        if let Some((at, mut session)) = self.kept.take()
            && at == to
            && let Ok(value) = session.ask(&self.query.query).await
        {
            self.kept = Some((to, session));
            return value;
        }
        // The server ended the old one, or there is none.
        let mut session = self.enter(to).await?;
        let value = session.ask(&self.query.query).await?;
        self.kept = Some((to, session));
        value
    }

    async fn enter(&self, to: SocketAddr) -> Result<Session, Failure> {
        let mut stream = Stream::connect(to, None).await?;
        if let Some(tls) = &self.tls {
            stream.send(&message::TLS_REQUEST).await?;
            let answer = stream.read_u8().await.map_err(|error| unreached(&error))?;
            if answer != b'S' {
                return Err(wrong(&char::from(answer).to_string(), "a server that speaks TLS"));
            }
            stream = stream.encrypt(to, tls).await?;
        }
        let mut session = Session { stream, bytes: Vec::new() };
        let timeout = format!("-c statement_timeout={}", self.timeout.as_millis().max(1));
        session
            .send(&message::startup(&[
                ("user", &self.query.user),
                ("database", &self.query.database),
                ("application_name", "vipa"),
                ("options", &timeout),
            ]))
            .await?;
        self.authenticate(&mut session).await?;
        Ok(session)
    }

    /// Until the server waits for a query.
    async fn authenticate(&self, session: &mut Session) -> Result<(), Failure> {
        let user = &self.query.user;
        let mut scram: Option<Scram> = None;
        let mut proof: Option<Proof> = None;
        let mut is_proved = true;
        loop {
            let answer = match session.next().await? {
                Heard::Ready => return Ok(()),
                Heard::Error(error) => return Err(wrong(&error, "to be let in")),
                Heard::Row(_) | Heard::Other => continue,
                // Whoever was asked for SCRAM and is let in without proof is not spoken to.
                Heard::Authenticated if is_proved => continue,
                Heard::Authenticated => return Err(told("no proof", "SCRAM to its end")),
                Heard::WantsPassword => [self.password()?.as_bytes(), &[0]].concat(),
                Heard::WantsMd5(salt) => {
                    let hashed = md5(user, self.password()?, salt);
                    [hashed.as_bytes(), &[0]].concat()
                }
                Heard::WantsSasl(mechanisms) => {
                    let is_known = |name: &[u8]| name == password::SCRAM.as_bytes();
                    if !mechanisms.split(|byte| *byte == 0).any(is_known) {
                        return Err(wrong(&String::from_utf8_lossy(&mechanisms), password::SCRAM));
                    }
                    is_proved = false;
                    let first = scram.insert(Scram::new(user, &nonce())).first();
                    let length = (first.len() as u32).to_be_bytes();
                    [password::SCRAM.as_bytes(), &[0], &length, first.as_bytes()].concat()
                }
                Heard::SaslContinue(said) => {
                    let Some(scram) = scram.take() else { return Err(told("SCRAM", "a login")) };
                    let secret = self.password()?.to_owned();
                    // Thousands of hashes: not on the thread that all others wait for.
                    let hashed = spawn_blocking(move || scram.last(&secret, &said)).await;
                    let hashed = hashed.map_err(|error| Failure::Unreached(error.to_string()))?;
                    let (last, expected) = hashed?;
                    proof = Some(expected);
                    last.into_bytes()
                }
                Heard::SaslFinal(said) => {
                    let Some(proof) = proof.take() else { return Err(told("SCRAM", "a login")) };
                    proof.check(&said)?;
                    is_proved = true;
                    continue;
                }
            };
            session.send(&message::message(b'p', &answer)).await?;
        }
    }

    fn password(&self) -> Result<&str, Failure> {
        let password = self.query.password.as_ref().map(Secret::expose);
        password.ok_or_else(|| told("a wish for a password", "none, since `password` is not given"))
    }
}

impl StatusObject for Sql {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(async {
            let value = self.ask(instance).await?;
            Ok(Reading { value: Some(value), ..Reading::default() })
        })
    }
}

/// [`Message`], with what it holds its own.
enum Heard {
    Authenticated,
    WantsPassword,
    WantsMd5([u8; 4]),
    WantsSasl(Vec<u8>),
    SaslContinue(Vec<u8>),
    SaslFinal(Vec<u8>),
    Row(Option<Vec<u8>>),
    Ready,
    Error(String),
    Other,
}

impl Session {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.send(bytes).await
    }

    /// The first value of the query's first row; the outer error: the connection is of no use any more.
    async fn ask(&mut self, query: &str) -> Result<Result<f64, Failure>, Failure> {
        self.send(&message::query(query)).await?;
        let (mut result, mut come) = (None, 0);
        loop {
            let heard = self.next().await?;
            match heard {
                Heard::Row(value) => {
                    come += value.as_ref().map_or(0, Vec::len) + 16;
                    if come > MOST {
                        return Err(Failure::TooMuch(MOST));
                    }
                    result.get_or_insert_with(|| message::value(value.as_deref()));
                }
                Heard::Error(error) => result = Some(Err(wrong(&error, "a value"))),
                Heard::Ready => break,
                _ => {}
            }
        }
        Ok(result.unwrap_or_else(|| Err(told("no row", "a value"))))
    }

    async fn next(&mut self) -> Result<Heard, Failure> {
        loop {
            if let Some((message, length)) = parse(&self.bytes)? {
                let heard = match message {
                    Message::Authenticated => Heard::Authenticated,
                    Message::WantsPassword => Heard::WantsPassword,
                    Message::WantsMd5(salt) => Heard::WantsMd5(salt),
                    Message::WantsSasl(said) => Heard::WantsSasl(said.to_vec()),
                    Message::SaslContinue(said) => Heard::SaslContinue(said.to_vec()),
                    Message::SaslFinal(said) => Heard::SaslFinal(said.to_vec()),
                    Message::Row(value) => Heard::Row(value.map(<[u8]>::to_vec)),
                    Message::Ready => Heard::Ready,
                    Message::Error(error) => Heard::Error(error),
                    Message::Other => Heard::Other,
                };
                self.bytes.drain(..length);
                return Ok(heard);
            }
            if self.stream.read_more(&mut self.bytes).await? == 0 {
                let found = if self.bytes.is_empty() { "nothing" } else { "half a message" };
                return Err(told(found, "PostgreSQL"));
            }
        }
    }
}

/// Printable, and never the same again.
fn nonce() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let number = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", number(), number())
}
