//! The guard gives the traffic back to the kernel within 500 ms of anything that keeps a forwarder from
//! forwarding.
//!
//! Each test starts a *forwarder*: this very test binary once more, in a network namespace of its own, where
//! it holds a persistent adapter with a pair of routes of one prefix and runs one worker that does nothing
//! but beat. The two routes have different preferred sources, so that connecting a UDP socket tells which of
//! them the kernel takes. That asks no link for its state: the one who asks would bring the news himself.
#![allow(unsafe_code)] // ptrace, setns, kill.
#![allow(clippy::unwrap_used)] // A test that fails to set up has failed.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vipa::device::tun;
use vipa::engine::guard::Guard;
use vipa::engine::heartbeat::{HeartbeatPage, monotonic_ns};
use vipa::forward::view::WorkerId;

const VIPA: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const NIC: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 2);
const FAR: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 1), 9);
const IS_FORWARDER: &str = "VIPA_TEST_IS_FORWARDER";
const PROMISE: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(10);

/// A forwarder, seen from the test.
struct Forwarder {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
    namespace: File,
    guard: u32,
    worker: i32,
}

impl Forwarder {
    /// Starts one, and waits until the kernel sends through it.
    fn start() -> Forwarder {
        let namespace = "
            ip link add nic0 type veth peer name peer0
            ip address add 10.1.1.2/24 dev nic0
            ip link set nic0 up
            ip link set peer0 up
            exec \"$0\" --exact a_forwarder_that_gets_on_lives --nocapture";
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-euc", namespace])
            .arg(std::env::current_exe().unwrap())
            .env(IS_FORWARDER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let numbers = answer(&mut answers, "ready");
        let [guard, worker] = numbers[..] else { panic!("{numbers:?}") };
        let namespace = File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
        let forwarder = Forwarder { child, answers, namespace, guard: guard as u32, worker };
        forwarder.waits_for_source(VIPA);
        forwarder
    }

    /// Makes it do something.
    fn tell(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    fn signal(&self, signal: i32) {
        kill(self.child.id(), signal);
    }

    /// How long it takes until the kernel gives a socket the source address `wanted`.
    fn waits_for_source(&self, wanted: Ipv4Addr) -> Duration {
        let begin = Instant::now();
        let wait = || {
            enter(&self.namespace);
            while source() != wanted {
                assert!(begin.elapsed() < LONG, "the kernel never took the route of {wanted}");
                std::thread::sleep(Duration::from_millis(1));
            }
            begin.elapsed()
        };
        std::thread::scope(|scope| scope.spawn(wait).join()).unwrap()
    }

    /// The kernel forwards again within what is promised.
    fn is_replaced_by_the_kernel(&self, after: &str) {
        let took = self.waits_for_source(NIC);
        println!("{after}: the kernel forwards after {:.1} ms", took.as_secs_f64() * 1e3);
        assert!(took < PROMISE, "{after}: {took:?}");
    }

    /// Takes note of the dead worker's end, if we trace it: before that, its process cannot be waited for.
    fn lets_go_of_the_traced_worker(&self) {
        let mut status = 0;
        // SAFETY: `status` lives. An error says that it is not traced by us.
        while unsafe { libc::waitpid(self.worker, &mut status, libc::__WALL) } == self.worker
            && !libc::WIFSIGNALED(status)
        {}
    }

    /// It is dead, its guard has gone too, and said `said`.
    fn has_ended_and_its_guard(&mut self, said: &str) {
        assert!(!self.child.wait().unwrap().success());
        wait_until("the guard goes", || !is_alive(self.guard));
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert!(stderr.contains(said), "{stderr:?} lacks {said:?}");
        assert!(stderr.lines().count() <= 1, "{stderr}");
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let was_alive = is_alive(self.child.id());
        let guarded = is_alive(self.guard);
        let _ = self.child.kill();
        self.lets_go_of_the_traced_worker();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let mut stderr = String::new();
            let _ = self.child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut stderr));
            eprintln!("forwarder alive: {was_alive}, guarded: {guarded}, it said: {stderr:?}");
        }
    }
}

#[test]
fn a_forwarder_that_gets_on_lives() {
    if std::env::var_os(IS_FORWARDER).is_some() {
        forward();
    }
    let mut forwarder = Forwarder::start();
    // A second of it: ten looks of a guard that would kill at the second.
    for _ in 0..100 {
        forwarder.tell("beats?");
        let beats = answer(&mut forwarder.answers, "beats");
        assert!(beats[0] > 0);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(is_alive(forwarder.guard));
    assert!(forwarder.child.try_wait().unwrap().is_none());
    assert_eq!(forwarder.waits_for_source(VIPA).as_secs(), 0);
}

#[test]
fn a_killed_forwarder_is_replaced() {
    let mut forwarder = Forwarder::start();
    forwarder.signal(libc::SIGKILL);
    forwarder.is_replaced_by_the_kernel("SIGKILL");
    forwarder.has_ended_and_its_guard("");
}

#[test]
fn a_worker_that_hangs_in_a_loop_is_replaced() {
    let mut forwarder = Forwarder::start();
    forwarder.tell("loop");
    forwarder.is_replaced_by_the_kernel("endless loop");
    forwarder.has_ended_and_its_guard("worker 0 was busy for 200 ms without a beat");
}

#[test]
fn a_worker_that_waits_while_busy_is_replaced() {
    let mut forwarder = Forwarder::start();
    forwarder.tell("wait");
    forwarder.is_replaced_by_the_kernel("endless wait");
    forwarder.has_ended_and_its_guard("worker 0 was busy for 200 ms without a beat");
}

#[test]
fn a_stopped_forwarder_is_replaced() {
    let mut forwarder = Forwarder::start();
    forwarder.signal(libc::SIGSTOP);
    forwarder.is_replaced_by_the_kernel("SIGSTOP");
    forwarder.has_ended_and_its_guard("was stopped");
}

#[test]
fn a_forwarder_with_a_task_held_by_a_debugger_is_replaced() {
    let mut forwarder = Forwarder::start();
    forwarder.tell("poll"); // its worker sleeps, as an idle one does: no heartbeat is missed
    answer(&mut forwarder.answers, "polls");
    ptrace(libc::PTRACE_SEIZE, forwarder.worker);
    ptrace(libc::PTRACE_INTERRUPT, forwarder.worker);
    forwarder.is_replaced_by_the_kernel("ptrace");
    // The kernel took over although the debugger, we, still holds the dead process.
    assert!(forwarder.child.try_wait().unwrap().is_none());
    forwarder.lets_go_of_the_traced_worker();
    forwarder.has_ended_and_its_guard("was stopped");
}

#[test]
fn a_killed_forwarder_whose_child_lives_on_is_replaced() {
    let mut forwarder = Forwarder::start();
    forwarder.tell("child");
    let child = answer(&mut forwarder.answers, "child")[0] as u32;
    forwarder.signal(libc::SIGKILL);
    forwarder.is_replaced_by_the_kernel("SIGKILL, with a child");
    let child_lived = is_alive(child);
    kill(child, libc::SIGKILL);
    assert!(child_lived);
    forwarder.has_ended_and_its_guard("");
}

#[test]
fn a_forwarder_that_aborts_is_replaced() {
    let mut forwarder = Forwarder::start();
    forwarder.tell("abort");
    forwarder.is_replaced_by_the_kernel("abort");
    forwarder.has_ended_and_its_guard("");
}

#[test]
fn a_forwarder_whose_core_takes_long_to_write_is_replaced() {
    let mut forwarder = Forwarder::start();
    forwarder.tell("dump core");
    answer(&mut forwarder.answers, "dumps");
    forwarder.is_replaced_by_the_kernel("abort with half a gigabyte of core");
    let directory = core_directory(forwarder.child.id());
    forwarder.has_ended_and_its_guard("");
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_guard_that_dies_is_seen_and_can_be_replaced() {
    let mut forwarder = Forwarder::start();
    kill(forwarder.guard, libc::SIGKILL);
    forwarder.tell("respawn");
    let [dead, new] = answer(&mut forwarder.answers, "respawned")[..] else { panic!() };
    assert_eq!(dead as u32, forwarder.guard);
    assert!(!Path::new(&format!("/proc/{dead}")).exists(), "reaped");
    forwarder.guard = new as u32;
    forwarder.signal(libc::SIGSTOP);
    forwarder.is_replaced_by_the_kernel("SIGSTOP, with a second guard");
    forwarder.has_ended_and_its_guard("was stopped");
}

#[test]
fn a_guard_is_small_and_survives_the_signals_that_end_its_parent() {
    let forwarder = Forwarder::start();
    let guard = forwarder.guard;
    let proc = |file: &str| fs::read_to_string(format!("/proc/{guard}/{file}")).unwrap();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        kill(guard, signal);
    }
    wait_until("the guard has its name", || proc("comm").trim() == "vipa-guard");
    let session = proc("stat").split(' ').nth(5).unwrap().to_owned();
    assert_eq!(session, guard.to_string(), "a session of its own");
    // stdin, stdout, stderr, the pidfd, the pipe, the heartbeats, netlink.
    wait_until("the guard is set up", || open_files(guard).len() == 7);
    assert!(open_files(guard).iter().all(|file| !file.contains("tun")), "{:?}", open_files(guard));
    let status = proc("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    println!("the guard: {} kB resident, {} kB its own", field("VmRSS:"), field("RssAnon:"));
    assert!(field("RssAnon:") < 1024, "{status}");
    assert!(is_alive(guard));
}

#[test]
fn a_guard_whose_parent_is_gone_at_once_goes_too() {
    let mut forwarder = Forwarder::start();
    forwarder.tell("respawn and exit");
    let guard = answer(&mut forwarder.answers, "exits")[0] as u32;
    wait_until("the guard goes", || !is_alive(guard));
    forwarder.has_ended_and_its_guard("");
}

#[test]
fn a_guard_started_by_hand_says_so() {
    for args in [&["guard"][..], &["guard", "vipa0", "x", "y"], &["guard", "vipa0", "5", "5"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_vipa")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(output.stderr, b"vipa guard is started by vipa run, not by hand\n");
    }
}

/// What the forwarder process does; never returns.
fn forward() -> ! {
    static BEATS: AtomicBool = AtomicBool::new(true);
    static POLLS: AtomicBool = AtomicBool::new(false);
    static LOOPS: AtomicBool = AtomicBool::new(false);

    tun::create("vipa0").unwrap();
    for command in [
        "address add 203.0.113.10/32 dev vipa0",
        "link set vipa0 up",
        "route add 198.51.100.0/24 dev vipa0 src 203.0.113.10 metric 10",
        "route add 198.51.100.0/24 via 10.1.1.1 dev nic0 src 10.1.1.2 metric 100",
    ] {
        assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success());
    }
    fs::write("/proc/sys/net/ipv4/conf/vipa0/ignore_routes_with_linkdown", "1").unwrap();
    let page = HeartbeatPage::new().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
    let mut guard = Guard::spawn_program(program, "vipa0", &page).unwrap();
    let _queue = tun::TunQueue::attach("vipa0").unwrap();

    let heartbeat = page.worker(WorkerId(0));
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        heartbeat.busy(monotonic_ns());
        // SAFETY: cannot fail.
        sender.send(unsafe { libc::gettid() }).unwrap();
        while BEATS.load(Ordering::Relaxed) {
            heartbeat.busy(monotonic_ns());
            std::thread::sleep(Duration::from_millis(1));
        }
        if POLLS.load(Ordering::Relaxed) {
            heartbeat.polling();
        }
        loop {
            if !LOOPS.load(Ordering::Relaxed) {
                std::thread::park();
            }
        }
    });
    println!("\nready {} {}", guard.id(), receiver.recv().unwrap());
    let mut child: Option<Child> = None;
    for command in io::stdin().lines() {
        match command.unwrap().as_str() {
            "beats?" => println!("\nbeats {}", page.busy().count()),
            "loop" => {
                LOOPS.store(true, Ordering::Relaxed);
                BEATS.store(false, Ordering::Relaxed);
            }
            "wait" => BEATS.store(false, Ordering::Relaxed),
            "poll" => {
                POLLS.store(true, Ordering::Relaxed);
                BEATS.store(false, Ordering::Relaxed);
                wait_until("the worker polls", || page.busy().count() == 0);
                println!("\npolls");
            }
            "child" => {
                let mut sleep = Command::new("sleep");
                sleep.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                child = Some(sleep.spawn().unwrap());
                println!("\nchild {}", child.as_ref().unwrap().id());
            }
            "abort" => {
                let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                // SAFETY: `none` lives. No core file is left lying about.
                unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
                std::process::abort()
            }
            "dump core" => {
                let directory = core_directory(std::process::id());
                fs::create_dir(&directory).unwrap();
                std::env::set_current_dir(directory).unwrap();
                let all =
                    libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
                // SAFETY: `all` lives.
                unsafe { libc::setrlimit(libc::RLIMIT_CORE, &all) };
                let memory = vec![1u8; 512 << 20];
                std::hint::black_box(&memory);
                println!("\ndumps");
                std::process::abort()
            }
            "respawn" => {
                let dead = guard.id();
                let mut poll =
                    libc::pollfd { fd: guard.fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one pollfd, and it lives.
                assert_eq!(unsafe { libc::poll(&mut poll, 1, 10_000) }, 1);
                assert!(guard.try_reap().unwrap().is_some());
                guard = Guard::spawn_program(program, "vipa0", &page).unwrap();
                println!("\nrespawned {dead} {}", guard.id());
            }
            "respawn and exit" => {
                guard = Guard::spawn_program(program, "vipa0", &page).unwrap();
                println!("\nexits {}", guard.id());
                std::process::exit(3);
            }
            other => panic!("{other}"),
        }
    }
    drop(child);
    std::process::exit(1)
}

/// The numbers behind the line of the forwarder that begins with `word`.
fn answer(lines: &mut impl BufRead, word: &str) -> Vec<i32> {
    for line in lines.lines() {
        let line = line.unwrap();
        if let Some(numbers) = line.strip_prefix(word) {
            return numbers.split_whitespace().map(|number| number.parse().unwrap()).collect();
        }
    }
    panic!("the forwarder ended without saying {word:?}");
}

/// Where the core of a forwarder goes, unless this system has its own ideas.
fn core_directory(pid: u32) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("vipa-core-{pid}"))
}

/// Which source the kernel chooses now towards the far host.
fn source() -> Ipv4Addr {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.connect(FAR).unwrap();
    match socket.local_addr().unwrap().ip() {
        std::net::IpAddr::V4(address) => address,
        other => panic!("{other}"),
    }
}

/// Takes this thread into a network namespace.
fn enter(namespace: &File) {
    // SAFETY: no memory involved; concerns this thread alone.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: no memory involved; the process is one that the test started and has not reaped.
    let result = unsafe { libc::kill(pid as i32, signal) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn ptrace(request: libc::c_uint, task: i32) {
    // SAFETY: neither of the two requests in use touches memory.
    let result = unsafe { libc::ptrace(request, task, 0, 0) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Does it exist, and is it no zombie?
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

fn open_files(pid: u32) -> Vec<String> {
    let Ok(directory) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = directory.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    links.map(|link| link.display().to_string()).collect()
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < LONG, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
