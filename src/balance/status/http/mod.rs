//! An HTTP/1.1 client for status objects: one request at a time over a connection that is kept, answers bounded, and
//! nothing of it left when a reading is given up.

mod response;
mod url;

use std::net::SocketAddr;

pub use response::{Incoming, Progress, Response};
pub use url::Url;

use super::answer::told;
use super::stream::Stream;
use super::tls::{Tls, Trust};
use super::{Failure, Instance};

/// What a client asks for, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Where.
    pub url: Url,
    /// GET, HEAD and so on.
    pub method: String,
    /// The name to ask for: in `Host` and, with TLS, in the certificate. `None`: the address.
    pub host: Option<String>,
    /// Headers beside those that have to be there.
    pub headers: Vec<(String, String)>,
    /// Bytes of the largest body that is read.
    pub most: usize,
    /// With `https`.
    pub trust: Trust,
}

/// Asks one instance again and again.
#[derive(Debug)]
pub(super) struct Client {
    request: Request,
    tls: Tls,
    prepared: Option<Prepared>,
    /// Taken while it is used: given up in the middle it is closed, since what comes next on it is unknown.
    kept: Option<Stream>,
}

/// The request to one server.
#[derive(Debug)]
struct Prepared {
    server: SocketAddr,
    to: SocketAddr,
    is_encrypted: bool,
    bytes: Vec<u8>,
}

/// Why there is no response; with `is_silent`: nothing at all came on the connection.
struct Lost {
    failure: Failure,
    is_silent: bool,
}

impl Client {
    pub(super) fn new(request: &Request) -> Client {
        let tls = match request.url.is_encrypted() {
            true => Tls::new(&request.trust, request.host.as_deref()),
            false => Tls::new(&Trust::All, None),
        };
        Client { request: request.clone(), tls, prepared: None, kept: None }
    }

    /// Asks once. A kept connection that the server has closed meanwhile is replaced by a new one.
    pub(super) async fn ask(&mut self, instance: &Instance) -> Result<Response, Failure> {
        self.prepare(instance.address)?;
        let Some(prepared) = &self.prepared else { return Err(no_url()) };
        let incoming = || Incoming::new(self.request.method == "HEAD", self.request.most);
        if let Some(mut stream) = self.kept.take() {
            match exchange(&mut stream, &prepared.bytes, incoming()).await {
                Ok((response, keeps)) => {
                    self.kept = keeps.then_some(stream);
                    return Ok(response);
                }
                Err(lost) if !lost.is_silent => return Err(lost.failure),
                Err(_) => {}
            }
        }
        let tls = prepared.is_encrypted.then_some(&self.tls);
        let mut stream = Stream::connect(prepared.to, tls).await?;
        match exchange(&mut stream, &prepared.bytes, incoming()).await {
            Ok((response, keeps)) => {
                self.kept = keeps.then_some(stream);
                Ok(response)
            }
            Err(lost) => Err(lost.failure),
        }
    }

    fn prepare(&mut self, server: SocketAddr) -> Result<(), Failure> {
        if self.prepared.as_ref().is_some_and(|prepared| prepared.server == server) {
            return Ok(());
        }
        self.kept = None;
        let target = self.request.url.target(server).ok_or_else(no_url)?;
        let host = self.request.host.as_deref().unwrap_or(&target.authority);
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: vipa/{}\r\n",
            self.request.method,
            target.path,
            env!("CARGO_PKG_VERSION"),
        );
        for (name, value) in &self.request.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let (to, is_encrypted) = (target.to, target.is_encrypted);
        self.prepared = Some(Prepared { server, to, is_encrypted, bytes: head.into_bytes() });
        Ok(())
    }
}

/// May `name` and `value` stand in a request (RFC 9110 section 5)?
pub fn is_header(name: &str, value: &str) -> bool {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !name.is_empty() && name.chars().all(is_token) && !value.chars().any(char::is_control)
}

async fn exchange(
    stream: &mut Stream,
    request: &[u8],
    mut incoming: Incoming,
) -> Result<(Response, bool), Lost> {
    let mut bytes = Vec::new();
    let lost = |failure, bytes: &[u8]| Lost { failure, is_silent: bytes.is_empty() };
    stream.send(request).await.map_err(|failure| lost(failure, &[]))?;
    loop {
        let more = stream.read_more(&mut bytes).await.map_err(|failure| lost(failure, &bytes))?;
        match incoming.advance(&bytes, more == 0) {
            Ok(Progress::Done(response, keeps)) => return Ok((response, keeps)),
            Ok(Progress::More) => {}
            Err(failure) => return Err(lost(failure, &bytes)),
        }
    }
}

/// It was one when the configuration was read.
fn no_url() -> Failure {
    told("no address", "a URL")
}
