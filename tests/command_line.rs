//! The commands that need no privilege, run as a user runs them: what they print where, and how they exit.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use vipa::admin::{self, Admin};
use vipa::balance::schedule::Balance;
use vipa::config::Config;
use vipa::engine::leave::Leave;
use vipa::engine::lock::Lock;
use vipa::engine::statistics::WorkerStatistics;
use vipa::forward::route::{NextHop, Route, RouteTable};
use vipa::forward::source::SourcePolicy;
use vipa::forward::verdict::DropReason;
use vipa::forward::view::{NetView, NicId, NicState, NicView};
use vipa::state::{Kept, State};
use vipa::wire::ethernet::MacAddr;

/// A directory of its own for each test, gone with it.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("vipa-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Place(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn state(&self) -> State {
        State::locate(Some(&self.0)).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn vipa(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vipa"))
        .args(arguments)
        .env_remove("RUNTIME_DIRECTORY")
        .output()
        .unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// An adapter name that no other test and no forwarder of this machine has.
fn adapter(letter: char) -> String {
    format!("{letter}{}", std::process::id())
}

/// Nobody takes what it hands over.
fn reloader() -> vipa::engine::message::Reloader {
    let poll = mio::Poll::new().unwrap();
    let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
    vipa::engine::message::Reloader::new(Arc::new(waker)).0
}

fn leave() -> Leave {
    let poll = mio::Poll::new().unwrap();
    Leave::new(Arc::new(mio::Waker::new(poll.registry(), mio::Token(0)).unwrap()))
}

fn config(adapter: &str) -> String {
    format!(
        "[virtual]\nname = \"{adapter}\"\naddresses = [\"203.0.113.10\"]\n[[nic]]\nname = \"eth1\"\n"
    )
}

#[test]
fn bad_use_exits_2() {
    for arguments in [
        &["reboot"][..],
        &["run"],
        &["check"],
        &["status", "--colour"],
        &["drain", "--wait", "3"],
        &["drain", "--wait", "2h"],
        &["drain", "vipa.toml", "--adapter", "vipa0"],
        &[],
    ] {
        let output = vipa(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(vipa(&["--version"]).status.code(), Some(0));
    let help = stdout(&vipa(&["--help"]));
    assert!(help.contains("status") && !help.contains("guard"), "{help}");
}

#[test]
fn check_exits_0_or_2_with_every_mistake_on_stderr() {
    let place = Place::new("check");
    let good = place.file("good.toml", &config("vipa0"));
    let output = vipa(&["check", text(&good)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));

    let bad = place.file("bad.toml", &config("vipa0").replace("203.0.113.10", "127.0.0.1"));
    std::fs::write(&bad, std::fs::read_to_string(&bad).unwrap() + "speed = 10\n").unwrap();
    for command in ["check", "run", "down"] {
        let output = vipa(&[command, text(&bad)]);
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        let told = stderr(&output);
        assert!(told.contains(&format!("{}:3:14", text(&bad))), "{told}");
        assert!(told.contains(&format!("{}:6:1", text(&bad))), "{told}");
    }
    assert_eq!(vipa(&["check", "/nonexistent"]).status.code(), Some(2));
}

#[test]
fn a_warning_is_told_and_stops_nothing() {
    let place = Place::new("warning");
    let rule = "[[source.rule]]\nprotocol = \"udp\"\nport = 520\nuse = \"physical\"\n";
    let path = place.file("rule.toml", &(config("vipa0") + rule));
    let output = vipa(&["check", text(&path)]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).starts_with("warning: this rule can never match"), "{output:?}");
}

#[test]
fn without_a_forwarder_status_fails_in_one_line_and_down_has_nothing_to_do() {
    let place = Place::new("nothing");
    let output = vipa(&["status", "--json", "--state", text(&place.0)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert_eq!(stderr(&output).lines().count(), 1);
    let output = vipa(&["status", "--adapter", "vipa7", "--state", text(&place.0)]);
    assert!(stderr(&output).contains("no forwarder runs on vipa7"), "{output:?}");
    for named in [&[][..], &["--adapter", "vipa7"]] {
        let output = vipa(&[&["down", "--state", text(&place.0)], named].concat());
        assert_eq!(output.status.code(), Some(0));
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.starts_with("nothing ") && told.lines().count() == 1, "{told}");
    }
}

#[test]
fn where_an_adapter_must_be_named_all_are_told() {
    let place = Place::new("several");
    for adapter in ["vipa0", "vipa1"] {
        std::fs::write(place.state().path(adapter, Kept::Saved), "{}").unwrap();
    }
    for command in ["down", "status"] {
        let output = vipa(&[command, "--state", text(&place.0)]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("vipa0, vipa1"), "{output:?}");
    }
}

#[test]
fn down_refuses_while_a_forwarder_runs() {
    let place = Place::new("refuse");
    let adapter = adapter('r');
    let saved = place.state().path(&adapter, Kept::Saved);
    std::fs::write(&saved, "{}").unwrap();
    let _lock = Lock::take(&adapter).unwrap();
    let output = vipa(&["down", "--state", text(&place.0)]);
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(told.contains(&adapter) && told.contains("--stop"), "{told}");
    assert_eq!(told.lines().count(), 1);
    assert!(saved.exists());
}

/// This test is also the process that holds the lock, where the environment says so.
#[test]
fn down_stop_ends_the_forwarder() {
    const HOLD: &str = "VIPA_TEST_HOLDS";
    if let Ok(adapter) = std::env::var(HOLD) {
        let _lock = Lock::take(&adapter).unwrap();
        println!("held");
        std::thread::park_timeout(std::time::Duration::from_secs(60));
        return;
    }
    let place = Place::new("stop");
    let adapter = adapter('s');
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "down_stop_ends_the_forwarder", "--nocapture"])
        .env(HOLD, &adapter)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("held")));
    let config = place.file("vipa.toml", &config(&adapter));
    vipa(&["down", text(&config), "--stop", "--state", text(&place.0)]);
    assert!(Lock::take(&adapter).is_ok());
    assert_eq!(holder.wait().unwrap().signal(), Some(15));
}

fn view() -> NetView {
    let nic = |name: &str, ifindex, state| NicView {
        name: name.to_owned(),
        ifindex,
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        weight: 1,
        metric: 1,
        xdp: None,
        is_live: state == NicState::Live,
        state,
        addresses: vec![("10.1.1.2".parse().unwrap(), 24), ("2001:db8:1::2".parse().unwrap(), 64)],
    };
    let gateway = "10.1.1.1".parse().unwrap();
    let hop = NextHop { nic: NicId(0), gateway: Some(gateway) };
    NetView {
        generation: 3,
        nics: [nic("eth1", 2, NicState::Live), nic("eth2", 3, NicState::NoCarrier)].into(),
        routes: RouteTable::new(vec![
            Route { prefix: "0.0.0.0/0".parse().unwrap(), next_hops: vec![hop] },
            Route { prefix: "172.17.0.0/16".parse().unwrap(), next_hops: vec![] },
        ]),
        neighbours: [((NicId(0), gateway), MacAddr([2, 0, 0, 0, 0, 9]))].into_iter().collect(),
        claims: vipa::forward::claims::Claims::default(),
        source: SourcePolicy::default(),
    }
}

/// What a forwarder without workers would answer with.
fn admin_of(config: &str, adapter: &str, place: &Place) -> Admin {
    let config = Config::parse(config, Path::new("vipa.toml")).unwrap().0;
    let (publisher, _) = vipa::forward::publish::channel(0, Arc::default());
    Admin {
        balance: Balance::of(&config, publisher).unwrap(),
        config: Arc::new(arc_swap::ArcSwap::from_pointee(config)),
        cell: Arc::new(arc_swap::ArcSwap::from_pointee(view())),
        workers: Vec::new(),
        router: Arc::default(),
        started: Instant::now(),
        leave: leave(),
        reloader: reloader(),
        turn: Arc::default(),
        socket: place.state().path(adapter, Kept::Socket),
    }
}

#[test]
fn status_prints_a_page_or_one_json_object() {
    let place = Place::new("status");
    let adapter = adapter('t');
    let worker = Arc::new(WorkerStatistics::default());
    worker.from_tun.add(64_000);
    worker.nic(NicId(0)).sent.add(1_234_567);
    worker.count_drop(DropReason::NoLiveNic);
    let admin = admin_of(&config(&adapter), &adapter, &place);
    let _running = admin::start(Admin { workers: vec![worker], ..admin }).unwrap();

    let output = vipa(&["status", "--json", "--state", text(&place.0)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 1);
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["adapter"], adapter.as_str());
    assert_eq!(told["nics"][1]["state"], "no_carrier");
    assert_eq!(told["drops"]["no_live_nic"], 1);
    assert_eq!(told["drops"]["malformed"], 0);

    let output = vipa(&["status", "--state", text(&place.0)]);
    let page = stdout(&output);
    for part in [
        adapter.as_str(),
        "eth2  no carrier",
        "1.2 MB",
        "10.1.1.2/24  2001:db8:1::2/64",
        "eth1 via 10.1.1.1",
        "the kernel's own way",
        "No NIC that the route allows is live.",
    ] {
        assert!(page.contains(part), "{part:?} is not in\n{page}");
    }
    assert!(!page.contains("malformed"));
    assert!(page.lines().all(|line| line == line.trim_end()));
}

#[test]
fn drain_fails_where_none_runs_and_where_one_does_not_stop() {
    let place = Place::new("drain");
    let adapter = adapter('d');
    let drain = |more: &[&str]| {
        vipa(&[&["drain", "--adapter", &adapter, "--state", text(&place.0)], more].concat())
    };
    let output = drain(&[]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(stderr(&output).contains(&format!("no forwarder runs on {adapter}")), "{output:?}");

    // It answers, and that is all that it does.
    let _lock = Lock::take(&adapter).unwrap();
    let admin = admin_of(&config(&adapter), &adapter, &place);
    let leave = admin.leave.clone();
    let _running = admin::start(admin).unwrap();
    let output = drain(&["--wait", "0s", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&told["stopped"], &told["told_by"]), (&false.into(), &serde_json::json!([])));
    assert_eq!(told["pid"], std::process::id());
    assert!(stderr(&output).contains("was told to stop and has not"), "{output:?}");
    assert!(leave.asked().is_some());
}

#[test]
fn explain_names_rule_source_nic_and_next_hop() {
    let place = Place::new("explain");
    let text = config("vipa0").replace("[[nic]]", "[[nic]]\ngateway = \"10.1.1.1\"")
        + "[[source.rule]]\nuser = \"0\"\nport = 443\nprotocol = \"tcp\"\nuse = \"physical\"\napply = \"forwarder\"\n\
           [[source.rule]]\nport = 443\nprotocol = \"tcp\"\nuse = \"203.0.113.10\"\n\
           [[replay.nic]]\nname = \"eth1\"\naddresses = [\"10.1.1.2/24\"]\n";
    let path = place.file("vipa.toml", &text);
    let text_path = self::text(&path);
    let explain = |more: &[&str]| {
        let question = ["explain", "--config", text_path, "--protocol", "tcp", "--from"];
        let ends = ["203.0.113.10:40000", "--to", "192.0.2.1:443"];
        vipa(&[&question[..], &ends, more].concat())
    };
    let output = explain(&["--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let told: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&told["nic"], &told["next_hop"]), (&"eth1".into(), &"10.1.1.1".into()));
    assert_eq!((&told["source"], &told["applied_by"]), (&"203.0.113.10".into(), &"nobody".into()));
    assert_eq!(told["rule"]["line"], 13, "{told}");
    assert_eq!(told["unknown"], serde_json::json!([7]), "{told}");
    let told: serde_json::Value =
        serde_json::from_str(&stdout(&explain(&["--user", "root", "--json"]))).unwrap();
    assert_eq!((&told["source"], &told["is_rewritten"]), (&"10.1.1.2".into(), &true.into()));
    let page = stdout(&explain(&["--user", "0"]));
    for part in ["420", "435", "vipa.toml:7", "10.1.1.1", "forwarder"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let dead = stdout(&explain(&["--down", "eth1"]));
    assert!(dead.contains("no_live_nic"), "{dead}");
    for wrong in [&["--down", "eth9"][..], &["--user", "nobody-of-this-name"]] {
        let output = explain(wrong);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{wrong:?}");
    }
}

#[test]
fn explain_names_the_first_server_where_nobody_was_asked() {
    let place = Place::new("explain-service");
    let text = config("vipa0").replace("[[nic]]", "[[nic]]\ngateway = \"10.1.1.1\"")
        + "[[service]]\nname = \"web\"\naddress = \"203.0.113.10:80\"\nscore = \"up\"\n\
           [[service.status]]\nname = \"up\"\nkind = \"tcp\"\n\
           [[service.server]]\nname = \"a\"\naddress = \"10.1.1.80:8080\"\n\
           [[replay.nic]]\nname = \"eth1\"\naddresses = [\"10.1.1.2/24\"]\n";
    let path = place.file("vipa.toml", &text);
    let config = self::text(&path);
    let ends = ["--from", "192.0.2.1:40000", "--to", "203.0.113.10:80"];
    let question = [&["explain", "--config", config, "--protocol", "tcp"][..], &ends].concat();
    let page = stdout(&vipa(&question));
    for part in [
        "service    web",
        "server     a, 10.1.1.80:8080",
        "next hop   10.1.1.80",
        "192.0.2.1 becomes 203.0.113.10: nobody was asked",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
}

#[test]
fn servers_and_policies_are_changed_and_shown() {
    let place = Place::new("server");
    let adapter = adapter('u');
    let text_of = format!(
        r#"{}
[[service]]
name = "web"
address = "203.0.113.10:80"
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
"#,
        config(&adapter)
    );
    let _running = admin::start(admin_of(&text_of, &adapter, &place)).unwrap();
    let done = |arguments: &[&str]| {
        let output = vipa(&[arguments, &["--state", text(&place.0)]].concat());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    };
    let refused = |arguments: &[&str], wanted: &str| {
        let output = vipa(&[arguments, &["--state", text(&place.0)]].concat());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_eq!(stderr(&output).trim_end(), wanted, "{arguments:?}");
    };
    done(&["server", "push", "a", "clients", "3"]);
    done(&["server", "push", "web/b", "clients", "50 75% ready"]);
    done(&["server", "add", "web", "c", "10.2.0.3:80", "--weight", "2"]);
    done(&["server", "push", "c", "clients", "9"]);
    done(&["server", "drain", "a"]);
    let checked = done(&["server", "check", "b"]);
    assert_eq!(checked, "status   value\nclients     50  75% ready\n");
    let page = done(&["status"]);
    let head = "service web  203.0.113.10:80 tcp, nat: least-loaded, preferred → c\n";
    assert!(page.contains(head), "{page}");
    assert!(page.contains("a is drain: the operator\n"), "{page}");
    assert!(page.contains("clients 50 75% ready"), "{page}");
    done(&["policy", "web", "-clients"]);
    done(&["server", "weight", "c", "1"]);
    done(&["server", "up", "a"]);
    let page = done(&["status"]);
    let head = "nat: -clients (configured: least-loaded), preferred → b\n";
    assert!(page.contains(head), "{page}");
    done(&["server", "down", "b"]);
    assert!(done(&["status"]).contains("preferred → c\n"));
    done(&["server", "remove", "c"]);
    let told: serde_json::Value = serde_json::from_str(&done(&["status", "--json"])).unwrap();
    let web = &told["balance"]["services"][0];
    assert_eq!(
        (web["choice"].as_str(), web["servers"][1]["state"].as_str()),
        (Some("a"), Some("maint"))
    );
    refused(&["server", "drain", "c"], "vipa: there is no server \"c\"; there is a, b");
    refused(
        &["server", "push", "a", "clients", "many"],
        "vipa: answered \"many\", wanted a number, or words such as \"up\", \"75%\", \"drain\"",
    );
    let known = "least-loaded, fastest-response, greatest-throughput, fewest-processed, closest, greatest-capacity";
    let wanted = format!(
        "vipa: \"best\" is no policy ({known}), and no expression: at byte 0, no status object is called \"best\": wanted one of clients"
    );
    refused(&["policy", "web", "best"], &wanted);
    let output = vipa(&["server", "weight", "a", "1001", "--state", text(&place.0)]);
    assert_eq!(output.status.code(), Some(2));
}
