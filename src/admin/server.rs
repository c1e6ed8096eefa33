//! The control socket's server: bounded in clients, in bytes of a request and in patience.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::{RwLock, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::drain::drain;
use super::reload::{self, Refused};
use super::{Admin, Status, services};
use crate::explain::{Question, explain};
use crate::log::limited;

/// Clients served at once; others wait in the backlog.
const CLIENTS: usize = 16;
/// Connections that may wait.
const BACKLOG: u32 = 64;
/// Bytes of a request's line.
const LONGEST_REQUEST: u64 = 4096;
/// How long a client may take to send a line, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last answers may take once the forwarder ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Before the next attempt after accept(2) failed: no descriptors, no memory.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
struct Request {
    command: String,
    question: Option<Question>,
    #[serde(flatten)]
    of_services: services::Asked,
    wait_ms: Option<u64>,
}

#[derive(Serialize)]
struct Refusal<'a> {
    error: &'a str,
    /// The configuration is wrong, not what was to be done with it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_wrong: bool,
}

/// The monitor thread; dropping it ends the thread and removes the socket.
#[derive(Debug)]
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    reload: mpsc::UnboundedSender<()>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
}

impl Running {
    /// Has the configuration file read again.
    pub fn reload(&self) {
        // It fails only where the thread has ended.
        let _ = self.reload.send(());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked: a panic ends the process.
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Opens the control socket, in place of one that a dead process left, and starts the monitor thread.
///
/// # Errors
/// `AddrInUse`: a living process listens there. Otherwise those of socket(2), bind(2) and of starting a
/// thread.
pub fn start(admin: Admin) -> io::Result<Running> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _context = runtime.enter();
        listen(&admin.socket)?
    };
    let (stop, stopped) = oneshot::channel();
    let (reload, reloads) = mpsc::unbounded_channel();
    let socket = admin.socket.clone();
    let thread = std::thread::Builder::new()
        .name("monitor".to_owned())
        .spawn(move || runtime.block_on(serve(listener, Arc::new(admin), stopped, reloads)));
    match thread {
        Ok(thread) => Ok(Running { stop: Some(stop), reload, thread: Some(thread), socket }),
        Err(error) => {
            let _ = std::fs::remove_file(&socket);
            Err(error)
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
        // Its process is dead.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = UnixSocket::new_stream()?;
    // The file takes its mode from the socket's own: there is no moment at which others may connect.
    File::from(socket.as_fd().try_clone_to_owned()?)
        .set_permissions(Permissions::from_mode(0o600))?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

/// Until the handle is dropped; the tasks go with the runtime. Who was asked answers: that it drains may be its last word.
async fn serve(
    listener: UnixListener,
    admin: Arc<Admin>,
    stopped: oneshot::Receiver<()>,
    mut reloads: mpsc::UnboundedReceiver<()>,
) {
    admin.balance.start();
    tokio::spawn(reload::follow(admin.clone()));
    let reloading = admin.clone();
    tokio::spawn(async move {
        while reloads.recv().await.is_some() {
            let _ = reload::reload(&reloading).await;
        }
    });
    let answering = Arc::new(RwLock::new(()));
    tokio::spawn(accept(listener, admin, Arc::clone(&answering)));
    let _ = stopped.await;
    let _ = timeout(LAST_WORDS, answering.write()).await;
}

/// Each answer is given under a lock of `answering` of its own.
async fn accept(listener: UnixListener, admin: Arc<Admin>, answering: Arc<RwLock<()>>) {
    let places = Arc::new(Semaphore::new(CLIENTS));
    while let Ok(place) = places.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (admin, answering) = (admin.clone(), answering.clone());
                tokio::spawn(async move {
                    if let Err(error) = talk(stream, &admin, &answering).await {
                        tracing::debug!(%error, "a client of the control socket went");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                limited!(warn, %error, "the control socket accepts nobody");
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
    }
}

/// Answers each line of `stream` until the client has no more.
async fn talk(stream: UnixStream, admin: &Admin, answering: &RwLock<()>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        let asked = timeout(PATIENCE, next_line(&mut reader, &mut line)).await??;
        let _answering = answering.read().await;
        let (answer, is_last) = match asked {
            Asked::Line => (answer(&line, admin).await, false),
            Asked::TooLong => (refusal("a request has at most 4096 bytes"), true),
            Asked::Nothing => return Ok(()),
        };
        timeout(PATIENCE, write.write_all(answer.as_bytes())).await??;
        if is_last {
            return Ok(());
        }
    }
}

enum Asked {
    Line,
    TooLong,
    Nothing,
}

async fn next_line(reader: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> io::Result<Asked> {
    line.clear();
    reader.take(LONGEST_REQUEST + 1).read_until(b'\n', line).await?;
    Ok(match line.last() {
        None => Asked::Nothing,
        Some(b'\n') => Asked::Line,
        Some(_) if line.len() as u64 > LONGEST_REQUEST => Asked::TooLong,
        Some(_) => Asked::Line,
    })
}

/// One line of JSON.
async fn answer(line: &[u8], admin: &Admin) -> String {
    match serde_json::from_slice::<Request>(line) {
        Err(_) => refusal("a request is a JSON object such as {\"command\":\"status\"}"),
        Ok(request) => match (request.command.as_str(), request.question) {
            ("status", _) => json_line(&Status::of(admin)),
            ("explain", Some(question)) => explained(&question, admin),
            ("drain", _) => json_line(&drain(admin, request.wait_ms.map(Duration::from_millis))),
            ("reload", _) => match reload::reload(admin).await {
                Ok(reloaded) => json_line(&reloaded),
                Err(Refused::Failed(why)) => refusal(&why),
                Err(Refused::Wrong(why)) => json_line(&Refusal { error: &why, is_wrong: true }),
            },
            ("explain", None) => refusal("explain needs a question"),
            (command, _) => match services::answer(command, request.of_services, admin).await {
                Some(Ok(line)) => line,
                Some(Err(error)) => refusal(&error),
                None => refusal(
                    "unknown command; known: change, check, drain, explain, push, reload, status",
                ),
            },
        },
    }
}

fn explained(question: &Question, admin: &Admin) -> String {
    let file = admin.config.load().file.display().to_string();
    match explain(&admin.cell.load(), &admin.balance.named(), question, &file) {
        Ok(explanation) => json_line(&explanation),
        Err(error) => refusal(&error.to_string()),
    }
}

fn refusal(error: &str) -> String {
    json_line(&Refusal { error, is_wrong: false })
}

pub(super) fn json_line(answer: &impl Serialize) -> String {
    let mut line = serde_json::to_string(answer)
        .unwrap_or_else(|_| String::from("{\"error\":\"the answer is no JSON\"}"));
    line.push('\n');
    line
}
