//! A host in a network namespace of its own, a router that runs on it, and `ip` as an independent witness.

#![allow(unsafe_code)] // unshare: the namespace of one thread

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use vipa::config::Config;
use vipa::device::tun::TunQueue;
use vipa::engine::leave::Leave;
use vipa::engine::message::{Command as Told, Plane, Reloader, Request};
use vipa::engine::statistics::RouterStatistics;
use vipa::forward::view::{NetCell, NetView, NicId, NicState, WorkerId};
use vipa::link::down::down;
use vipa::link::router::{Prepared, Router};

/// Longer than anything here takes; a condition that holds ends the wait at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const CONFIG: &str = r#"
[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "203.0.113.11", "2001:db8::10"]
protect = false
[[nic]]
name = "eth1"
gateway = ["10.1.1.1", "2001:db8:1::1"]
hold-down = "300ms"
[[nic]]
name = "eth2"
gateway = ["10.1.2.1", "2001:db8:2::1"]
hold-down = "300ms"
"#;

/// Runs `test` in a thread with a network namespace and mounts of its own.
pub(crate) fn in_namespace(name: &str, test: impl FnOnce(&Fixture) + Send + 'static) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let state = std::env::temp_dir().join(format!("vipa-link-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&state);
    let at = state.clone();
    let result = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // SAFETY: it changes the namespaces of this thread, and nothing of other threads.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
            assert_eq!(result, 0, "these tests need root: {}", std::io::Error::last_os_error());
            let fixture = Fixture { state: at };
            fixture.build();
            test(&fixture);
        })
        .expect("a thread can be made")
        .join();
    let _ = fs::remove_dir_all(&state);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) struct Fixture {
    pub(crate) state: PathBuf,
}

pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("ip is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("ip speaks UTF-8")
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}\n{}", everything());
        thread::sleep(Duration::from_millis(2));
    }
}

/// All that vipa could have changed, as `ip` shows it, in an order of its own.
pub(crate) fn everything() -> String {
    let mut lines = BTreeSet::new();
    for question in [
        "rule show",
        "-6 rule show",
        "-d route show table 923",
        "-6 -d route show table 923",
        "-d route show table 924",
        "-6 -d route show table 926",
        "-d route show table main",
        "-6 route show table main",
        "-o addr show",
    ] {
        // A table into which nothing was ever put is an error to `ip`.
        let answer =
            Command::new("ip").args(question.split(' ')).output().expect("ip is installed");
        for line in String::from_utf8_lossy(&answer.stdout).lines() {
            // Carrier comes and goes with the router; it is looked at elsewhere.
            let line = line.replace(" linkdown", "").replace(" dead", "");
            // A device made anew has another index.
            let line =
                line.trim_start_matches(|c: char| question.contains("addr") && c.is_ascii_digit());
            lines.insert(format!("{question}: {}", line.trim()));
        }
    }
    lines.into_iter().collect::<Vec<_>>().join("\n")
}

pub(crate) fn sysctl(path: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/{path}")).expect(path).trim().to_owned()
}

impl Fixture {
    /// Two NICs, a management NIC that holds the default route, a bridge as containers have it.
    fn build(&self) {
        // No link-local addresses: they settle in their own time.
        fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1\n").expect("it can be set");
        for (nic, peer) in [("eth1", "p1"), ("eth2", "p2"), ("mgmt", "pm")] {
            ip(&format!("link add {nic} type veth peer name {peer}"));
            ip(&format!("link set {nic} up"));
            ip(&format!("link set {peer} up"));
        }
        ip("link set lo up");
        ip("addr add 10.1.1.2/24 dev eth1");
        ip("addr add 10.1.2.2/24 dev eth2");
        ip("-6 addr add 2001:db8:1::2/64 dev eth1 nodad");
        ip("-6 addr add 2001:db8:2::2/64 dev eth2 nodad");
        ip("addr add 192.168.9.2/24 dev mgmt");
        ip("route add default via 192.168.9.1 dev mgmt");
        ip("link add docker0 type bridge");
        ip("link set docker0 up");
        ip("addr add 172.17.0.1/16 dev docker0");
        ip("route add 10.20.0.0/16 via 10.1.1.1 dev eth1");
        ip("route add unreachable 10.66.0.0/16");
    }

    pub(crate) fn config(&self) -> Config {
        Config::parse(CONFIG, Path::new("test.toml")).expect("it is right").0
    }

    pub(crate) fn prepare(&self, config: Config) -> (Prepared, Arc<RouterStatistics>) {
        let statistics = Arc::new(RouterStatistics::default());
        let prepared =
            Router::prepare(Arc::new(config), self.state.clone(), Arc::clone(&statistics))
                .expect("it can be set up");
        (prepared, statistics)
    }

    pub(crate) fn run(&self, config: Config) -> Running {
        let (prepared, statistics) = self.prepare(config);
        self.run_prepared(prepared, statistics)
    }

    pub(crate) fn run_prepared(
        &self,
        prepared: Prepared,
        statistics: Arc<RouterStatistics>,
    ) -> Running {
        let cell: NetCell = Arc::new(ArcSwap::from_pointee(prepared.first_view()));
        let (sender, receiver) = crossbeam_channel::bounded(64);
        let waker = prepared.waker();
        let leave = Leave::new(Arc::clone(&waker));
        let (reloader, reloads) = Reloader::new(Arc::clone(&waker));
        let attachments = Arc::new(AtomicU32::new(0));
        let told = Arc::new(Mutex::new(Vec::new()));
        let plane = TestPlane {
            attachments: Arc::clone(&attachments),
            told: Arc::clone(&told),
            queue: None,
        };
        let router = prepared.start(Arc::clone(&cell), receiver, reloads, Box::new(plane));
        let thread = {
            let leave = leave.clone();
            thread::spawn(move || router.run(&leave).expect("it runs"))
        };
        let running = Running {
            cell,
            sender,
            waker,
            reloader,
            leave,
            attachments,
            told,
            statistics,
            thread: Some(thread),
        };
        eventually("the adapter has carrier", || ip("link show vipa0").contains("LOWER_UP"));
        running
    }

    pub(crate) fn down(&self) {
        let report = down(&self.state, None).expect("it goes down");
        assert!(report.failed.is_empty(), "{:?}", report.failed);
    }
}

pub(crate) struct TestPlane {
    pub(crate) attachments: Arc<AtomicU32>,
    pub(crate) told: Arc<Mutex<Vec<(WorkerId, Told)>>>,
    queue: Option<TunQueue>,
}

impl Plane for TestPlane {
    fn follow(&mut self, _view: &NetView) {}
    fn attach(&mut self) -> std::io::Result<()> {
        self.queue = None;
        self.queue = Some(TunQueue::attach("vipa0")?);
        self.attachments.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
    fn published(&mut self) {}
    fn tell(&mut self, worker: WorkerId, command: Told) {
        self.told.lock().expect("nobody panicked").push((worker, command));
    }
}

pub(crate) struct Running {
    pub(crate) cell: NetCell,
    sender: crossbeam_channel::Sender<Request>,
    waker: Arc<mio::Waker>,
    reloader: Reloader,
    leave: Leave,
    pub(crate) attachments: Arc<AtomicU32>,
    pub(crate) told: Arc<Mutex<Vec<(WorkerId, Told)>>>,
    pub(crate) statistics: Arc<RouterStatistics>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn ask(&self, request: Request) {
        self.sender.send(request).expect("the router listens");
        self.waker.wake().expect("it can be woken");
    }

    /// Has the router go by another configuration.
    pub(crate) fn reload(&self, config: Config) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(self.reloader.apply(Arc::new(config)))
    }

    pub(crate) fn state(&self, nic: u8) -> (NicState, bool) {
        let view = self.cell.load();
        let nic = view.nic(NicId(nic));
        (nic.state, nic.is_live)
    }

    /// Damages something and waits until all is as it was.
    pub(crate) fn survives(&self, what: &str, damage: impl FnOnce()) {
        let before = everything();
        let repaired = self.statistics.repaired.get();
        damage();
        assert_ne!(everything_or_repaired(&before, self, repaired), before, "{what} did nothing");
        eventually(what, || everything() == before);
        assert!(self.statistics.repaired.get() > repaired, "{what}: not counted");
    }
}

/// What stands now; or, if the router was faster than `ip`, a sign that something was damaged.
pub(crate) fn everything_or_repaired(before: &str, running: &Running, repaired: u64) -> String {
    let now = everything();
    if now == before && running.statistics.repaired.get() > repaired {
        return "put back already".into();
    }
    now
}

impl Drop for Running {
    fn drop(&mut self) {
        self.leave.at_once();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !thread::panicking()
        {
            panic!("the router panicked");
        }
    }
}
