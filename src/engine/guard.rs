//! The guard: a tiny child that gives the traffic back to the kernel when the forwarder dies or hangs.
//!
//! # Theory of operation
//!
//! Without a reader the adapter has no carrier, and the kernel takes the second route of each pair
//! (`ignore_routes_with_linkdown`). Two things stand between a forwarder that no longer forwards and that:
//!
//! * The kernel holds the loss of carrier back for up to a second (linkwatch), until somebody asks for
//!   the link with RTM_GETLINK. The dead cannot ask.
//! * A forwarder that hangs or is stopped still holds the TUN. The carrier stays, the route stays, and
//!   what is sent is queued until it is dropped: worse than death.
//!
//! So each forwarder has one child. It holds a *pidfd* of its parent (readable once the whole process is
//! gone, and immune to reuse of the number), the reading end of a *pipe* whose writing end the parent never
//! uses, the *heartbeat page* ([`HeartbeatPage`]), a netlink socket in the same network namespace, and
//! nothing else. It sleeps on pidfd and pipe, and looks up five times a second:
//!
//! ```text
//!            ┌────────── 200 ms, or when a busy worker's stamp gets 200 ms old ──────────┐
//!            ▼                                                                            │
//!  poll(pidfd, pipe) ── readable, closed ─► the parent is gone ───────┐                   │
//!            │ time is up                                             │                   │
//!      page, /proc/PARENT/task/* ─── nothing wrong ───────────────────┼───────────────────┘
//!            │ a symptom                                              │
//!      look again in 30 ms ─ the same symptom ─► SIGKILL (pidfd) ─────┤
//!                                                                     ▼
//!                      RTM_GETLINK until the link no longer runs, IPv6 routes forgotten, exit
//! ```
//!
//! A symptom is a worker that has been busy for 200 ms without a new stamp, a task that is stopped (`T`,
//! `t`) and has not run since, or a core being written (the descriptors stay open until the last byte is).
//! From the moment of the hang this makes at most 200 + 30 ms, then what it takes the kernel to
//! end the process: traffic is back within 300 ms, 500 ms are promised. A guard that was itself kept from
//! running, or whose machine slept, does not take its late look for a confirmation, nor a worker for hung that waits for a
//! processor: where the machine is so busy, one that does hang is found as much later. See [`symptom`].
//!
//! Traps, each of which has a line below:
//!
//! * Each packet socket of a process that is killed takes the kernel tens of milliseconds, and the pidfd is
//!   not readable before all are gone. The TUN, the lock and the pipe go first ([`super::descriptors`]): so
//!   the guard knows of the death by the pipe.
//! * A killed process of which a debugger traces a thread stays a zombie until the debugger waits for it,
//!   and its pidfd is not readable for as long; its descriptors are closed all the same. So the guard asks
//!   for the link after its kill without waiting for the pidfd, and takes a process of zombies for gone.
//! * The guard runs in a session of its own and ignores SIGINT, SIGTERM, SIGHUP and SIGQUIT: Ctrl-C reaches
//!   the whole foreground group, and the guard has to survive its parent by a moment. For the same reason
//!   the systemd unit has KillMode=process.
//! * Both descriptors are close-on-exec in the parent and made inheritable in the forked child only, so
//!   that no other child of the parent inherits them. All others are close-on-exec: a guard that held
//!   the TUN would keep its carrier.
//! * A child that another thread has forked but that has not yet called exec holds the TUN for a moment
//!   longer than its parent: the guard asks again for half a second until the link no longer runs.
//! * The parent's number is read from the pidfd's own fdinfo: right in any PID namespace whose /proc this is.
//! * IPv6 sockets remember their route, and no loss of carrier makes them forget it ([`forget_cached_routes`]).
//! * RTM_GETLINK acts on linkwatch since Linux 6.8; before, the loss of carrier may take its second.
//! * The parent may die at any moment from before its fork on. The pidfd was opened before, so the guard
//!   finds it readable and leaves: no guard outlives its forwarder by more than half a second.
#![allow(unsafe_code)] // pidfd calls, and what has to happen between fork and exec.

mod carrier;
pub mod symptom;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use self::carrier::Link;
use self::symptom::{Judge, Sight, Verdict};
use super::heartbeat::{HeartbeatPage, monotonic_ns};
use super::{descriptors, pidfd};
use crate::link::forget_cached_routes;

/// The hidden subcommand by which the binary becomes a guard: `main` gives what follows it to
/// [`guard_main`], before it does anything else.
pub const SUBCOMMAND: &str = "guard";

/// A look that comes later than planned by more than this is late (see [`Judge::judge`]).
const LATE: Duration = Duration::from_millis(40);
/// How long the guard asks for the link after the parent's end.
const ASKING: Duration = Duration::from_millis(500);
/// Between two questions.
const BETWEEN_QUESTIONS: Duration = Duration::from_millis(2);

/// The parent's end: a guard that runs. Dropping it ends the watch, as the end of this process does.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pidfd: OwnedFd,
    /// Closed by the death of this process.
    _lifeline: PipeWriter,
}

impl Guard {
    /// Starts a guard of this process for the adapter `adapter`, from this very binary, even if its file was
    /// replaced since.
    pub fn spawn(adapter: &str, page: &HeartbeatPage) -> io::Result<Guard> {
        Self::spawn_program(Path::new("/proc/self/exe"), adapter, page)
    }

    /// Like [`spawn`](Self::spawn), from the `vipa` binary at `program`: for a process that is no `vipa`.
    pub fn spawn_program(program: &Path, adapter: &str, page: &HeartbeatPage) -> io::Result<Guard> {
        let (end_of_parent, lifeline) = descriptors::high(io::pipe)?;
        let parent = pidfd::open(std::process::id())?;
        let inherited = [parent.as_raw_fd(), page.as_fd().as_raw_fd(), end_of_parent.as_raw_fd()];
        let mut command = Command::new(program);
        command
            .args([SUBCOMMAND, adapter])
            .args(inherited.map(|fd| fd.to_string()))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // SAFETY: between fork and exec; only async-signal-safe calls, no allocation.
        unsafe { command.pre_exec(move || become_guard(inherited)) };
        let child = command.spawn()?;
        let pidfd = pidfd::open(child.id())?; // its number is not reused before it is reaped
        Ok(Guard { child, pidfd, _lifeline: lifeline })
    }

    /// Becomes readable when the guard is gone: reap it, and spawn another.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Number of the guard's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has. Never waits.
    pub fn try_reap(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }
}

/// In the forked child, before exec.
fn become_guard(inherited: [RawFd; 3]) -> io::Result<()> {
    // SAFETY: plain system calls. The child is no group leader, so that setsid cannot fail.
    unsafe {
        libc::setsid();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
            libc::signal(signal, libc::SIG_IGN); // stays over exec
        }
        for fd in inherited {
            if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// The child's end: `guard ADAPTER PIDFD MEMFD PIPE`, only ever called by [`Guard::spawn`]. Returns when the
/// parent is gone.
pub fn guard_main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.collect();
    let number = |arg: &OsStr| arg.to_str()?.parse::<RawFd>().ok().filter(|fd| *fd > 2);
    let parsed = match args.as_slice() {
        [adapter, rest @ ..] => adapter
            .to_str()
            .zip(rest.iter().map(|arg| number(arg)).collect::<Option<Vec<_>>>().and_then(distinct)),
        _ => None,
    };
    let Some((adapter, inherited)) = parsed else {
        say("vipa guard is started by vipa run, not by hand");
        return ExitCode::from(2);
    };
    close_all_but(inherited);
    // SAFETY: inherited for us, and nobody else in this process knows them.
    let [pidfd, memfd, pipe] = inherited.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    match stand_guard(adapter, &Parent { pidfd, pipe }, memfd) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("guard of {adapter}: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn distinct(fds: Vec<RawFd>) -> Option<[RawFd; 3]> {
    let fds: [RawFd; 3] = fds.try_into().ok()?;
    let [a, b, c] = fds;
    (a != b && b != c && a != c).then_some(fds)
}

/// What the guard holds of its parent.
struct Parent {
    pidfd: OwnedFd,
    pipe: OwnedFd,
}

fn stand_guard(adapter: &str, parent: &Parent, memfd: OwnedFd) -> io::Result<()> {
    // SAFETY: a constant C string; only what `ps` shows.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"vipa-guard".as_ptr()) };
    let mut link = Link::open(adapter)?;
    let page = HeartbeatPage::inherited(File::from(memfd))?;
    let Some(pid) = pid_of(&parent.pidfd)? else {
        return hand_over(&mut link); // gone before we came to look
    };
    let verdict = watch(parent, pid, &page)?;
    if let Verdict::Kill(_) = verdict {
        pidfd::signal(&parent.pidfd, libc::SIGKILL)?;
    }
    let outcome = hand_over(&mut link);
    // Last of all: stderr may be a pipe that nobody empties.
    if let Verdict::Kill(symptom) = verdict {
        say(&format!("guard: killed the forwarder of {adapter} (pid {pid}): {symptom}"));
    }
    outcome
}

/// Watches the parent until it is gone or has to go.
fn watch(parent: &Parent, pid: u32, page: &HeartbeatPage) -> io::Result<Verdict> {
    let mut judge = Judge::default();
    let mut wait = Duration::ZERO;
    loop {
        let planned = monotonic_ns() + wait.as_nanos() as u64;
        if ends_within(parent, wait)? {
            return Ok(Verdict::Gone);
        }
        let now = monotonic_ns();
        let is_late = now.saturating_sub(planned) > LATE.as_nanos() as u64;
        let sight = Sight::of(pid, page)?;
        match judge.judge(&sight, now, is_late) {
            Verdict::LookAgain(after) => wait = after,
            verdict => return Ok(verdict),
        }
    }
}

/// Asks for the link until the kernel has acted on the loss of carrier.
fn hand_over(link: &mut Link) -> io::Result<()> {
    let end = monotonic_ns() + ASKING.as_nanos() as u64;
    while link.is_running()? {
        if monotonic_ns() > end {
            // A new forwarder may have attached already; nothing is wrong then.
            return Ok(());
        }
        std::thread::sleep(BETWEEN_QUESTIONS);
    }
    forget_cached_routes()
}

/// Closes what else was inherited, should some code have forgotten close-on-exec.
fn close_all_but(mut kept: [RawFd; 3]) {
    kept.sort_unstable();
    let [a, b, c] = kept.map(|fd| fd as u32);
    for (first, last) in [(3, a - 1), (a + 1, b - 1), (b + 1, c - 1), (c + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: nothing in this process uses a descriptor above 2 yet. A kernel without the call
            // (before 5.9) leaves them open.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

/// The number of the pidfd's process in the PID namespace of /proc; `None` once it is gone.
fn pid_of(pidfd: &OwnedFd) -> io::Result<Option<u32>> {
    let fdinfo = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = fdinfo.lines().find_map(|line| line.strip_prefix("Pid:")).map(str::trim);
    match pid.and_then(|pid| pid.parse::<i64>().ok()) {
        Some(-1) => Ok(None),
        Some(pid) if pid > 0 => Ok(Some(pid as u32)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the forwarder is not to be found in this /proc",
        )),
    }
}

fn ends_within(parent: &Parent, wait: Duration) -> io::Result<bool> {
    let entry =
        |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // POLLHUP comes unasked when the pipe's other end is closed.
    let mut poll = [entry(&parent.pidfd), entry(&parent.pipe)];
    // SAFETY: two pollfds, and they live.
    match unsafe { libc::poll(poll.as_mut_ptr(), 2, wait.as_millis() as libc::c_int) } {
        -1 => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            error => Err(error),
        },
        ready => Ok(ready > 0),
    }
}

/// One line on stderr, or nothing: a closed stderr is no reason to die.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
