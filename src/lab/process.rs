//! Programs inside a network: started, waited for, killed, and never left behind.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::error::Step;
use super::{Error, Namespace};
use crate::admin;

/// How long the forwarder may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A running program, with what it says on stderr in a file. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it says on stderr is appended to the file `log`. It dies with the calling
    /// thread if it comes from [`Namespace::command`].
    ///
    /// # Errors
    /// When the program or the file cannot be opened.
    pub fn start(command: &mut Command, log: &Path) -> Result<Process, Error> {
        let step = || format!("starting {}", command.get_program().display());
        let file = OpenOptions::new().create(true).append(true).open(log).step(step)?;
        let program = format!("starting {}", command.get_program().display());
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(file))
            .spawn()
            .step(|| program)?;
        Ok(Process { child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL; it is gone when this returns.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// All it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `vipa run CONFIG` inside a network, to be killed and started again.
#[derive(Debug)]
pub struct Forwarder {
    namespace: Namespace,
    program: PathBuf,
    config: PathBuf,
    directory: PathBuf,
    readiness: UnixDatagram,
    process: Option<Process>,
}

impl Forwarder {
    /// Not started yet. `program` is a vipa; `directory` holds its state, its log and the socket by which it
    /// says that it is ready (sd_notify(3)).
    ///
    /// # Errors
    /// When the directory cannot be written to.
    pub fn new(
        namespace: &Namespace,
        program: &Path,
        config: &Path,
        directory: &Path,
    ) -> Result<Forwarder, Error> {
        let state = directory.join("state");
        fs::create_dir_all(&state).step(|| format!("directory {}", state.display()))?;
        let socket = directory.join("ready");
        let readiness =
            UnixDatagram::bind(&socket).step(|| format!("socket {}", socket.display()))?;
        Ok(Forwarder {
            namespace: namespace.clone(),
            program: program.to_owned(),
            config: config.to_owned(),
            directory: directory.to_owned(),
            readiness,
            process: None,
        })
    }

    /// Starts it; [`Forwarder::ready_before`] tells when it carries packets. The calling thread must live
    /// as long as the forwarder is to.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(&mut self) -> Result<(), Error> {
        while self.next_is_ready(Instant::now()).is_some() {} // said by the one before
        let mut command = self.namespace.command(&self.program);
        command
            .arg("run")
            .arg(&self.config)
            .env("RUNTIME_DIRECTORY", self.directory.join("state"))
            .env("NOTIFY_SOCKET", self.directory.join("ready"));
        self.process = Some(Process::start(&mut command, &self.directory.join("log"))?);
        Ok(())
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started, ends, or is not ready in time; with the last it said.
    pub fn start_and_wait(&mut self, limit: Duration) -> Result<(), Error> {
        self.start()?;
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let slice = Instant::now() + Duration::from_millis(50);
            if self.ready_before(slice.min(deadline)).is_some() {
                return Ok(());
            }
            if let Some(status) = self.process.as_mut().and_then(Process::ended) {
                return Err(self.failed(&format!("vipa run ended ({status})")));
            }
        }
        Err(self.failed(&format!("vipa run was not ready within {limit:?}")))
    }

    /// Waits until `deadline` for the word that it is ready, and tells when that came.
    pub fn ready_before(&mut self, deadline: Instant) -> Option<Instant> {
        loop {
            match self.next_is_ready(deadline)? {
                true => return Some(Instant::now()),
                false => continue,
            }
        }
    }

    /// All that it has told its service manager since it was last heard (sd_notify(3)), a line each. Where nobody listens it waits, once
    /// it has told a handful.
    pub fn told(&self) -> Vec<String> {
        let mut told = Vec::new();
        let mut message = [0; 512];
        let soon = Some(Duration::from_micros(1));
        while self.readiness.set_read_timeout(soon).is_ok()
            && let Ok(length) = self.readiness.recv(&mut message)
        {
            let text = String::from_utf8_lossy(&message[..length]);
            told.extend(text.lines().map(str::to_owned));
        }
        told
    }

    /// SIGKILL; it is gone when this returns.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(Process::ended)
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// What `vipa status --json` would print.
    ///
    /// # Errors
    /// When it does not answer within two seconds.
    pub fn status(&self) -> Result<Value, Error> {
        self.ask(&json!({"command": "status"}))
    }

    /// Asks it over its control socket; a refusal is an answer too.
    ///
    /// # Errors
    /// When it does not answer within two seconds.
    pub fn ask(&self, request: &Value) -> Result<Value, Error> {
        let ask = || -> io::Result<Value> {
            let answer = admin::ask(&self.control_socket()?, &request.to_string(), PATIENCE)?;
            Ok(serde_json::from_str(&answer)?)
        };
        ask().step(|| format!("asking the forwarder {request}"))
    }

    /// All that the forwarders said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn control_socket(&self) -> io::Result<PathBuf> {
        for entry in fs::read_dir(self.directory.join("state"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "sock") {
                return Ok(path);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// `None`: nothing came in time.
    fn next_is_ready(&self, deadline: Instant) -> Option<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.readiness.set_read_timeout(Some(left.max(Duration::from_micros(1)))).ok()?;
        let mut message = [0; 512];
        let length = self.readiness.recv(&mut message).ok()?;
        Some(message[..length].split(|&b| b == b'\n').any(|line| line == b"READY=1"))
    }

    fn failed(&self, what: &str) -> Error {
        let log = self.log();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        let said: String = last.iter().rev().map(|line| format!("\n    {line}")).collect();
        Error::Program(format!("{what}; it said last:{said}"))
    }
}

/// Writes a file for a program to read.
///
/// # Errors
/// When the directory cannot be written to.
pub(super) fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    File::create(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .step(|| format!("writing {}", path.display()))
}
