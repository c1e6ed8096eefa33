//! `exec`: any program of the user's. It is given what is asked in its environment and in places of its arguments, and
//! says a number or an agent's words in the first line of its output.
//!
//! No shell is between. The program has a process group of its own, which is killed as a whole: when the program has
//! ended, so that nothing stays that it started, and when the reading is given up.
#![allow(unsafe_code)] // kill(2) of a process group, which std does not have; a descriptor for tokio to watch.

use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe;

use super::answer::{room, told, unreached, wrong};
use super::template::Template;
use super::{Failure, Instance, Pending, Reading, StatusObject, words};
use crate::engine::{descriptors, pidfd};

/// Bytes of output that are read.
const MOST: usize = 4096;
/// Bytes asked for at a time.
const PIECE: usize = 1024;

/// Runs a program each time.
#[derive(Debug)]
pub(super) struct Exec {
    /// The program and its arguments.
    pub(super) command: Vec<Template>,
}

impl StatusObject for Exec {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(self.run(instance))
    }
}

impl Exec {
    async fn run(&self, instance: &Instance) -> Result<Reading, Failure> {
        let (group, mut output) = self.start(instance)?;
        let mut said = Vec::new();
        // What it started may hold its output open, and it may close that long before it ends: its end counts.
        poll_fn(|context| {
            if let Poll::Ready(Err(failure)) = poll_output(&mut output, &mut said, context) {
                return Poll::Ready(Err(failure));
            }
            group.poll_ended(context).map_err(|error| unreached(&error))
        })
        .await?;
        drain(output, &mut said)?;
        judge(group.finish().map_err(|error| unreached(&error))?, &said)
    }

    fn start(&self, instance: &Instance) -> Result<(Group, pipe::Receiver), Failure> {
        let mut words = self.command.iter().map(|word| word.fill(instance.address));
        let program = words.next().unwrap_or_default();
        let mut command = Command::new(&program);
        command
            .args(words)
            .env("VIPA_SERVICE", &*instance.service)
            .env("VIPA_SERVER", &*instance.server)
            .env("VIPA_ADDRESS", instance.address.ip().to_string())
            .env("VIPA_PORT", instance.address.port().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        let failed = |error: io::Error| match unreached(&error) {
            Failure::Unreached(why) => Failure::Unreached(format!("{program}: {why}")),
            other => other,
        };
        room()?;
        let mut child = command.spawn().map_err(failed)?;
        descriptors::as_found(&child);
        let output = child.stdout.take();
        let group = Group::new(child).map_err(failed)?;
        let output = output.ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        let output = pipe::Receiver::from_owned_fd(OwnedFd::from(output)).map_err(failed)?;
        Ok((group, output))
    }
}

/// Reads all there is; ready at the end of the output.
fn poll_output(
    output: &mut pipe::Receiver,
    said: &mut Vec<u8>,
    context: &mut Context<'_>,
) -> Poll<Result<(), Failure>> {
    loop {
        let mut piece = [0; PIECE];
        let mut buffer = ReadBuf::new(&mut piece);
        ready!(Pin::new(&mut *output).poll_read(context, &mut buffer))
            .map_err(|error| unreached(&error))?;
        if buffer.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
        take(buffer.filled(), said)?;
    }
}

/// What it wrote before it ended and the runtime has not heard of yet.
fn drain(output: pipe::Receiver, said: &mut Vec<u8>) -> Result<(), Failure> {
    let mut output = output.into_nonblocking_fd().map(File::from).map_err(|e| unreached(&e))?;
    let mut piece = [0; PIECE];
    loop {
        match output.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => take(&piece[..length], said)?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(unreached(&error)),
        }
    }
}

fn take(piece: &[u8], said: &mut Vec<u8>) -> Result<(), Failure> {
    if said.len() + piece.len() > MOST {
        return Err(Failure::TooMuch(MOST));
    }
    said.extend_from_slice(piece);
    Ok(())
}

fn judge(status: ExitStatus, said: &[u8]) -> Result<Reading, Failure> {
    let said = String::from_utf8_lossy(said);
    if status.success() {
        return words::read(&said, true);
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("its end by signal {signal}"),
        _ => "an unknown end".to_owned(),
    };
    let said = said.lines().next().unwrap_or_default();
    let found = if said.is_empty() {
        how
    } else {
        match wrong(said, "") {
            Failure::Answer { found, .. } => format!("{how} and {found}"),
            _ => how,
        }
    };
    Err(told(found, "exit status 0"))
}

/// A program and all that it started; dropped, they are killed.
#[derive(Debug)]
struct Group {
    child: Option<Child>,
    /// Readable when the program has ended. Its number is nobody else's until it is waited for.
    process: Option<AsyncFd<OwnedFd>>,
}

impl Group {
    fn new(child: Child) -> io::Result<Group> {
        let mut group = Group { child: Some(child), process: None };
        if let Some(child) = &group.child {
            let process = pidfd::open(child.id())?;
            // SAFETY: an `OwnedFd` is open as long as it lives, and always the same descriptor.
            let registered = unsafe { AsyncFd::register(process) };
            group.process = Some(registered.map_err(|error| error.into_parts().1)?);
        }
        Ok(group)
    }

    /// Ready when the program has ended.
    fn poll_ended(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.process {
            Some(process) => process.poll_read_ready(context).map_ok(|_| ()),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Kills what the program left behind; it has ended.
    fn finish(mut self) -> io::Result<ExitStatus> {
        let Some(mut child) = self.child.take() else { return Err(io::ErrorKind::NotFound.into()) };
        kill(&child);
        child.wait()
    }
}

/// Not waited for yet, the child has its number, and the group is its own.
fn kill(child: &Child) {
    if let Ok(group) = libc::pid_t::try_from(child.id()) {
        // SAFETY: no memory involved.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill(&child);
        // It is dead in a moment, but for a program that hangs in the kernel: nobody waits here.
        let (process, runtime) = (self.process.take(), tokio::runtime::Handle::try_current());
        if !matches!(child.try_wait(), Ok(Some(_)))
            && let (Some(process), Ok(runtime)) = (process, runtime)
        {
            runtime.spawn(async move {
                let _ = process.readable().await;
                let _ = child.try_wait();
            });
        }
    }
}
