//! `agent-check`: the agent beside a server says how it wants to be treated, in HAProxy's words. Any agent that serves
//! HAProxy serves here: one connection a check, a line sent where one is wanted, one line back.

use super::answer::{told, wrong};
use super::stream::Stream;
use super::{Failure, Instance, Pending, StatusObject, at_port, words};

/// Bytes of the longest line that is read.
const LONGEST: usize = 4096;

/// What an agent asks for.
#[derive(Debug)]
pub(super) struct AgentCheck {
    /// Where the agent listens, at the server's address.
    pub(super) port: Option<u16>,
    /// What it is sent first, as it stands.
    pub(super) send: String,
}

impl StatusObject for AgentCheck {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(async {
            let mut stream = Stream::connect(at_port(instance, self.port), None).await?;
            if !self.send.is_empty() {
                stream.send(self.send.as_bytes()).await?;
            }
            let line = read_line(&mut stream).await?;
            words::read(&line, false)
        })
    }
}

async fn read_line(stream: &mut Stream) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    loop {
        let more = stream.read_more(&mut bytes).await?;
        let text = || String::from_utf8_lossy(&bytes).into_owned();
        match bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            Some(end) if end <= LONGEST => return Ok(text()),
            None if bytes.is_empty() && more == 0 => return Err(wrong("", "a line")),
            None if bytes.len() <= LONGEST && more == 0 => {
                return Err(told(format!("{:?} without an end", text()), "a line"));
            }
            None if bytes.len() <= LONGEST => {}
            _ => return Err(Failure::TooMuch(LONGEST)),
        }
    }
}
