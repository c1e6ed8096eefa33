//! The control socket end to end, with a made-up view and no forwarder.

#![allow(clippy::unwrap_used)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::{Admin, Draining, Running, Status, ask, start};
use crate::balance::schedule::Balance;
use crate::config::Config;
use crate::engine::leave::Leave;
use crate::engine::statistics::{RouterStatistics, WorkerStatistics};
use crate::forward::publish::channel;
use crate::forward::route::{NextHop, Route, RouteTable};
use crate::forward::source::SourcePolicy;
use crate::forward::verdict::DropReason;
use crate::forward::view::{Neighbours, NetView, NicId, NicState, NicView};
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::{Family, Prefix};

const CONFIG: &str = r#"
[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "2001:db8::10"]
[[nic]]
name = "eth1"
[[nic]]
name = "eth2"
[[source.rule]]
protocol = "tcp"
port = 443
use = "203.0.113.10"
[[source.rule]]
user = 26
use = "physical"
apply = "forwarder"
[[source.rule]]
user = 26
use = "2001:db8::10"
"#;
/// Behind [`CONFIG`].
const SERVICE: &str = r#"
[[service]]
name = "web"
address = "203.0.113.10:80"
hysteresis = "0%"
[[service.status]]
name = "clients"
role = "clients"
kind = "push"
[[service.server]]
name = "a"
address = "10.2.0.1:80"
[[service.server]]
name = "b"
address = "10.2.0.2:80"
"#;
const PATIENCE: Duration = Duration::from_secs(10);

/// All tests have monitor threads; the one that counts wake-ups wants to be alone with its own.
static TOGETHER: RwLock<()> = RwLock::new(());

fn together() -> RwLockReadGuard<'static, ()> {
    TOGETHER.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn nic(name: &str, ifindex: u32, state: NicState) -> NicView {
    NicView {
        name: name.to_owned(),
        ifindex,
        mac: MacAddr([2, 0, 0, 0, 0, ifindex as u8]),
        mtu: 1500,
        weight: 1,
        metric: 1,
        xdp: None,
        is_live: state == NicState::Live,
        state,
        addresses: vec![("10.1.1.2".parse().unwrap(), 24)],
    }
}

fn view() -> NetView {
    let gateway = "10.1.1.1".parse().unwrap();
    let mut neighbours = Neighbours::default();
    neighbours.insert((NicId(0), gateway), MacAddr([2, 0, 0, 0, 1, 1]));
    NetView {
        generation: 7,
        nics: [nic("eth1", 3, NicState::Live), nic("eth2", 0, NicState::Missing)].into(),
        routes: RouteTable::new(vec![Route {
            prefix: Prefix::default_route(Family::V4),
            next_hops: vec![NextHop { nic: NicId(0), gateway: Some(gateway) }],
        }]),
        neighbours,
        claims: crate::forward::claims::Claims::default(),
        source: SourcePolicy::default(),
    }
}

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vipa-admin-{name}-{}.sock", std::process::id()))
}

/// Nobody takes what it hands over.
fn reloader() -> crate::engine::message::Reloader {
    let poll = mio::Poll::new().unwrap();
    let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
    crate::engine::message::Reloader::new(Arc::new(waker)).0
}

fn leave() -> Leave {
    let poll = mio::Poll::new().unwrap();
    Leave::new(Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap()))
}

fn admin(socket: &Path) -> Admin {
    admin_of(CONFIG, socket)
}

fn admin_of(config: &str, socket: &Path) -> Admin {
    let config = Config::parse(config, Path::new("vipa.toml")).unwrap().0;
    let (publisher, _) = channel(0, Arc::default());
    Admin {
        balance: Balance::of(&config, publisher).unwrap(),
        config: Arc::new(ArcSwap::from_pointee(config)),
        cell: Arc::new(ArcSwap::from_pointee(view())),
        workers: vec![Arc::default(), Arc::default()],
        router: Arc::new(RouterStatistics::default()),
        started: Instant::now(),
        leave: leave(),
        reloader: reloader(),
        turn: Arc::default(),
        socket: socket.to_owned(),
    }
}

fn status(socket: &Path) -> Status {
    let answer = ask(socket, r#"{"command":"status"}"#, PATIENCE).unwrap();
    serde_json::from_str(&answer).unwrap()
}

fn running(name: &str) -> (Running, PathBuf) {
    let socket = socket(name);
    (start(admin(&socket)).unwrap(), socket)
}

#[test]
fn status_tells_view_and_counters() {
    let _together = together();
    let socket = socket("status");
    let admin = admin(&socket);
    let workers: Vec<Arc<WorkerStatistics>> = admin.workers.clone();
    let (cell, router) = (admin.cell.clone(), admin.router.clone());
    let _running = start(admin).unwrap();

    for worker in &workers {
        worker.from_tun.add(1000);
        worker.nic(NicId(0)).sent.add(1014);
        worker.nic(NicId(0)).offload_refused.add(1);
        worker.flows.set(5);
        worker.count_drop(DropReason::NoRoute);
    }
    router.repaired.add(3);
    let told = status(&socket);
    assert_eq!(told.version, env!("CARGO_PKG_VERSION"));
    assert_eq!((told.adapter.as_str(), told.pid), ("vipa0", std::process::id()));
    assert_eq!((told.generation, told.router.repaired), (7, 3));
    assert_eq!(told.vipas, ["203.0.113.10", "2001:db8::10"]);
    let [first, second] = &told.nics[..] else { panic!("two NICs") };
    assert_eq!((first.name.as_str(), first.state.as_str(), first.is_live), ("eth1", "live", true));
    assert_eq!((first.sent.frames, first.sent.bytes, first.offload_refused), (2, 2028, 2));
    assert_eq!((first.mac.as_str(), first.mtu), ("02:00:00:00:00:03", 1500));
    assert_eq!(first.addresses, ["10.1.1.2/24"]);
    assert_eq!((second.state.as_str(), second.is_live, second.ifindex), ("missing", false, 0));
    let rules: Vec<_> = told
        .rules
        .iter()
        .map(|r| (r.line, &*r.matches, &*r.target, &*r.applied_by, &*r.because))
        .collect();
    let kernels = "by a policy rule when the socket connects";
    let behind = "it can match the same packet as the rule of line 13, which is the forwarder's";
    assert_eq!(
        rules,
        [
            (9, "tcp port 443", "203.0.113.10", "kernel", kernels),
            (13, "all user 26", "physical", "forwarder", "apply = \"forwarder\""),
            (17, "all user 26", "2001:db8::10", "forwarder", behind),
        ]
    );
    assert_eq!(told.routes[0].prefix, "0.0.0.0/0");
    assert_eq!(told.routes[0].next_hops[0].gateway.as_deref(), Some("10.1.1.1"));
    assert_eq!(told.neighbours[0].mac, "02:00:00:00:01:01");
    assert_eq!(told.workers.len(), 2);
    assert_eq!((told.workers[1].worker, told.workers[1].flows, told.workers[1].drops), (1, 5, 1));
    assert_eq!(told.drops.len(), DropReason::ALL.len());
    assert_eq!((told.drops["no_route"], told.drops["malformed"]), (2, 0));

    cell.store(Arc::new(NetView { generation: 8, ..view() }));
    assert_eq!(status(&socket).generation, 8);
}

#[test]
fn the_socket_is_its_owners_and_goes_with_the_forwarder() {
    let _together = together();
    let (running, socket) = running("mode");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(start(admin(&socket)).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    status(&socket);
    drop(running);
    assert!(!socket.exists());
}

#[test]
fn the_socket_of_a_dead_process_is_replaced() {
    let _together = together();
    let socket = socket("stale");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let _running = start(admin(&socket)).unwrap();
    assert_eq!(status(&socket).generation, 7);
}

#[test]
fn what_is_no_request_is_refused_and_the_next_one_answered() {
    let _together = together();
    let (_running, socket) = running("refuse");
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for request in ["{\"command\":\"reboot\"}", "status", "", "{}", "[[[[", "{\"command\":7}"] {
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        let answer = lines.next().unwrap().unwrap();
        assert!(answer.starts_with("{\"error\":\""), "{request}: {answer}");
    }
    stream.write_all(b"{\"command\":\"status\",\"more\":1}\n").unwrap();
    assert!(lines.next().unwrap().unwrap().contains("\"generation\":7"));
}

#[test]
fn a_line_that_does_not_end_is_refused_and_its_client_let_go() {
    let _together = together();
    let (_running, socket) = running("long");
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may let go before all of it is written.
    let _ = stream.write_all(&[b'x'; 4097]);
    let mut answer = String::new();
    BufReader::new(stream).read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "{\"error\":\"a request has at most 4096 bytes\"}\n");
}

#[test]
fn a_request_without_newline_at_the_end_is_answered() {
    let _together = together();
    let (_running, socket) = running("eof");
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"{\"command\":\"status\"}").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"generation\":7"), "{answer}");
}

#[test]
fn clients_beyond_those_served_at_once_wait_until_one_goes() {
    let _together = together();
    let (_running, socket) = running("many");
    let mut idle: Vec<UnixStream> =
        (0..16).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let refused = ask(&socket, r#"{"command":"status"}"#, Duration::from_millis(200));
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::TimedOut);
    idle.clear();
    assert_eq!(status(&socket).generation, 7);
}

#[test]
fn dropping_it_does_not_wait_for_clients() {
    let _together = together();
    let (running, socket) = running("drop");
    let _idle = UnixStream::connect(&socket).unwrap();
    status(&socket);
    let begun = Instant::now();
    drop(running);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

/// Numbers of the monitor threads of this process; one that has just been joined may still be among them.
fn monitors() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| task.unwrap().file_name().into_string().unwrap());
    let is_monitor = |task: &String| {
        std::fs::read_to_string(format!("/proc/self/task/{task}/comm"))
            .is_ok_and(|name| name.trim() == "monitor")
    };
    names.filter(is_monitor).collect()
}

/// Is the thread asleep, and how often has it gone to sleep?
fn sleep(task: &str) -> (bool, u64) {
    let status = std::fs::read_to_string(format!("/proc/self/task/{task}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    (field("State").starts_with('S'), field("voluntary_ctxt_switches").parse().unwrap())
}

fn until(mut is_so: impl FnMut() -> bool, otherwise: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{otherwise}");
        std::thread::yield_now();
    }
}

#[test]
fn it_sleeps_while_nobody_asks() {
    let _alone = TOGETHER.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    let others = monitors();
    let (_running, socket) = running("idle");
    status(&socket);
    let all = monitors();
    let mut ours = all.iter().filter(|task| !others.contains(task));
    let (Some(task), None) = (ours.next(), ours.next()) else { panic!("one thread: {all:?}") };

    until(|| sleep(task).0, "it never sleeps");
    let before = sleep(task).1;
    // Half a second in which nothing may happen is what is tested here.
    std::thread::sleep(Duration::from_millis(500));
    let after = sleep(task).1;
    assert!(after - before <= 2, "{before} → {after}");
    status(&socket);
    // Counted as it falls asleep again.
    until(|| sleep(task).1 > after, "it is not the thread that answers");
}

/// Asks until the answer is so; a request is no decision of an instant.
fn until_choice(socket: &Path, wanted: &str) {
    until(|| status(socket).balance.services[0].choice == wanted, wanted);
}

#[test]
fn servers_are_changed_checked_and_handed_values() {
    let _together = together();
    let socket = socket("services");
    let _running = start(admin_of(&format!("{CONFIG}{SERVICE}"), &socket)).unwrap();
    let told = status(&socket);
    let web = &told.balance.services[0];
    assert_eq!((&*web.name, &*web.address, &*web.choice), ("web", "203.0.113.10:80", "none"));
    let done = |request: &str| {
        let answer = ask(&socket, request, PATIENCE).unwrap();
        assert_eq!(answer, r#"{"done":true}"#, "{request}");
    };
    done(r#"{"command":"push","server":"a","status":"clients","line":"3"}"#);
    done(r#"{"command":"push","server":"web/b","status":"clients","line":"5"}"#);
    until_choice(&socket, "a");
    done(r#"{"command":"change","change":{"drain":"a"}}"#);
    until_choice(&socket, "b");
    done(r#"{"command":"change","change":{"up":"web/a"}}"#);
    until_choice(&socket, "a");
    done(r#"{"command":"change","change":{"policy":{"service":"web","policy":"-clients"}}}"#);
    until_choice(&socket, "b");
    let add = r#"{"service":"web","name":"c","address":"10.2.0.3:80","weight":1,"capacity":null}"#;
    done(&format!(r#"{{"command":"change","change":{{"add":{add}}}}}"#));
    done(r#"{"command":"push","server":"c","status":"clients","line":"9"}"#);
    until_choice(&socket, "c");
    let answer = ask(&socket, r#"{"command":"check","server":"c"}"#, PATIENCE).unwrap();
    let checked: super::Checked = serde_json::from_str(&answer).unwrap();
    assert_eq!((&*checked.readings[0].name, checked.readings[0].value), ("clients", Some(9.0)));
    done(r#"{"command":"change","change":{"remove":"c"}}"#);
    until_choice(&socket, "b");
    for (request, error) in [
        (
            r#"{"command":"change","change":{"remove":"c"}}"#,
            "there is no server \"c\"; there is a, b",
        ),
        (r#"{"command":"check","server":"c"}"#, "there is no server \"c\"; there is a, b"),
        (r#"{"command":"check"}"#, "check needs a server"),
        (r#"{"command":"change"}"#, "change needs a change"),
        (r#"{"command":"push","server":"a"}"#, "push needs a server, a status and a line"),
    ] {
        let answer = ask(&socket, request, PATIENCE).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"], error, "{request}");
    }
    // A NIC's address is no server's.
    let add = add.replace("10.2.0.3", "10.1.1.2");
    let request = format!(r#"{{"command":"change","change":{{"add":{add}}}}}"#);
    let answer = ask(&socket, &request, PATIENCE).unwrap();
    assert!(answer.contains("10.1.1.2 is a NIC's address of this host"), "{answer}");
}

#[test]
fn drain_is_asked_for_once_and_status_tells_of_it() {
    let _together = together();
    let socket = socket("drain");
    let speaking = format!("{CONFIG}[rip]\n[[rip.nic]]\nname = \"eth2\"\npassive = true\n");
    let config = Config::parse(&speaking, Path::new("vipa.toml")).unwrap().0;
    let admin = Admin { config: Arc::new(ArcSwap::from_pointee(config)), ..admin(&socket) };
    let (leave, router) = (admin.leave.clone(), admin.router.clone());
    let _running = start(admin).unwrap();
    assert_eq!(status(&socket).withdrawing, None);
    let drain = |request: &str| -> Draining {
        serde_json::from_str(&ask(&socket, request, PATIENCE).unwrap()).unwrap()
    };
    let told = drain(r#"{"command":"drain","wait_ms":60000}"#);
    assert_eq!((told.adapter.as_str(), told.pid), ("vipa0", std::process::id()));
    assert_eq!((told.told_by, told.was_leaving), (vec!["eth1".to_owned()], false));
    assert!((50.0..=60.0).contains(&told.ends_in_seconds));
    router.farewells.add(2);
    let again = drain(r#"{"command":"drain"}"#);
    assert!(again.was_leaving && again.ends_in_seconds > 50.0, "the first wait stands: {again:?}");
    let seen = status(&socket).withdrawing.unwrap();
    assert_eq!(seen.told, 2);
    assert!((50.0..=60.0).contains(&seen.ends_in_seconds));
    assert!(leave.asked().unwrap().is_polite);
}

#[test]
fn who_told_it_to_drain_hears_the_answer_though_it_ends() {
    let _together = together();
    let socket = socket("last-words");
    for _ in 0..20 {
        let admin = admin(&socket);
        let leave = admin.leave.clone();
        let running = start(admin).unwrap();
        let asked = std::thread::spawn({
            let socket = socket.clone();
            move || ask(&socket, r#"{"command":"drain"}"#, PATIENCE)
        });
        while leave.asked().is_none() {
            std::thread::yield_now();
        }
        drop(running);
        let told: Draining = serde_json::from_str(&asked.join().unwrap().unwrap()).unwrap();
        assert_eq!((told.told_by, told.ends_in_seconds), (Vec::<String>::new(), 0.0), "no RIP");
    }
}
