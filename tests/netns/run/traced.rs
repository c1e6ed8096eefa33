//! A debugger that holds a thread of another process.
#![allow(unsafe_code)] // ptrace and waitpid: no safe wrapper is at hand.

use std::fs;
use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

/// Stops the thread `name` of the process `pid` and holds it until the process is dead. Only the thread that
/// attached may wait for it, so that is a thread of its own; it ends with the process.
pub(super) fn hold(pid: u32, name: &str) -> JoinHandle<()> {
    let task = task(pid, name);
    let (held, is_held) = mpsc::channel();
    let tracer = thread::spawn(move || {
        ptrace(libc::PTRACE_SEIZE, task);
        ptrace(libc::PTRACE_INTERRUPT, task);
        assert!(is_alive_after_wait(task), "it stops, and does not end");
        held.send(()).expect("the test waits");
        assert!(!is_alive_after_wait(task), "nothing but its end is told while it is held");
    });
    is_held.recv().expect("the thread is held");
    tracer
}

fn task(pid: u32, name: &str) -> i32 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
    let is_named = |path: &std::path::Path| {
        fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let task = tasks.map(|entry| entry.path()).find(|path| is_named(path)).expect("such a thread");
    task.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number")
}

fn ptrace(request: libc::c_uint, task: i32) {
    // SAFETY: neither of the two requests in use touches memory.
    let result = unsafe { libc::ptrace(request, task, 0, 0) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Waits for the next news of a held thread.
fn is_alive_after_wait(task: i32) -> bool {
    let mut status = 0;
    // SAFETY: the status is written to an integer that lives.
    let told = unsafe { libc::waitpid(task, &raw mut status, libc::__WALL) };
    assert_eq!(told, task, "{}", io::Error::last_os_error());
    libc::WIFSTOPPED(status)
}
