//! A monitor at work, on a runtime, over sockets of this host.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::*;
use crate::balance::policy::Policy;
use crate::balance::service::{Choose, Mode, OnDeath, Server, WhenNone};
use crate::balance::status::{self, Every, Role};
use crate::forward::preferred::{Choice, Fate, ServerId, ServiceId};
use crate::forward::publish::{Reader, channel};
use crate::wire::ip::TCP;

const HOUR: Duration = Duration::from_secs(3600);

fn status(name: &str, every: Every, kind: Kind) -> status::Settings {
    let role = (name == "clients").then_some(Role::Clients);
    status::Settings { name: name.into(), role, every, timeout: Duration::from_millis(200), kind }
}

fn server(name: &str, end: SocketAddr) -> Server {
    Server {
        name: name.into(),
        address: end.ip(),
        port: Some(end.port()),
        is_local: false,
        weight: 1,
        capacity: None,
        place: (0, 0),
    }
}

fn web(statuses: Vec<status::Settings>, servers: Vec<Server>) -> Settings {
    Settings {
        name: "web".into(),
        address: IpAddr::from([203, 0, 113, 10]),
        ports: 80..=80,
        protocol: TCP,
        mode: Mode::Nat { sources: Vec::new(), keeps_client: false },
        policy: Policy::LeastLoaded,
        choose: Choose::Preferred,
        hysteresis: 0.0,
        when_none: WhenNone::Refuse,
        on_death: OnDeath::Reset,
        rise: 2,
        fall: 3,
        slow_start: Duration::ZERO,
        statuses,
        servers,
    }
}

fn pushed() -> status::Settings {
    status("clients", Every::Period(HOUR), Kind::Push { most_age: HOUR })
}

/// A monitor at work, and what a worker sees of it.
struct Lab {
    balance: Balance,
    reader: Reader<PreferredTable>,
}

impl Lab {
    fn start(settings: Settings) -> Lab {
        let (publisher, mut readers) = channel(1, Arc::default());
        let world = World { vipas: vec![settings.address], workers: 1 };
        let balance = Balance::new(Monitor::new(world, publisher));
        balance.start();
        let vipas = [settings.address];
        balance.configure(&vipas, &[settings]).unwrap();
        Lab { balance, reader: readers.pop().unwrap() }
    }

    fn choice(&mut self) -> Choice {
        self.reader.get().service(ServiceId(0)).unwrap().choice.clone()
    }

    /// Waits until a worker sees it so; a minute of patience.
    async fn until(&mut self, what: &str, is_so: impl Fn(&PreferredTable) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so(self.reader.get()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.balance.report());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn until_preferred(&mut self, id: u16) {
        let choice = Choice::Preferred(ServerId(id));
        self.until("another is preferred", |table| {
            table.service(ServiceId(0)).unwrap().choice == choice
        })
        .await;
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let end = listener.local_addr().unwrap();
    (listener, end)
}

#[test]
fn what_is_handed_over_decides_at_once() {
    run(async {
        let end = |last| SocketAddr::from(([10, 2, 0, last], 80));
        let mut lab =
            Lab::start(web(vec![pushed()], vec![server("a", end(1)), server("b", end(2))]));
        assert_eq!(lab.choice(), Choice::Wait);
        // Nothing was handed over yet, and nothing will be asked for an hour.
        lab.balance.push("a", "clients", "5").unwrap();
        lab.until_preferred(0).await;
        lab.balance.push("web/b", "clients", "3 up").unwrap();
        lab.balance.push("web/b", "clients", "3").unwrap();
        lab.until_preferred(1).await;
        for (server, status, line, wanted) in [
            ("c", "clients", "1", "there is no server \"c\"; there is a, b"),
            ("api/a", "clients", "1", "there is no service \"api\"; there is web"),
            ("web/c", "clients", "1", "there is no server \"web/c\"; there is a, b"),
            ("a", "users", "1", "a has no status object \"users\"; it has clients"),
            ("a", "clients", "many", "answered \"many\", wanted a number"),
        ] {
            let why = lab.balance.push(server, status, line).unwrap_err();
            assert!(why.starts_with(wanted), "{why}");
        }
    });
}

#[test]
fn a_server_that_dies_is_left_and_one_that_hangs_holds_up_nobody() {
    run(async {
        let (a, at) = listener().await;
        let (_b, bt) = listener().await;
        let tcp = status("up", Every::Period(Duration::from_millis(50)), Kind::Tcp { port: None });
        let settings = web(vec![tcp, pushed()], vec![server("a", at), server("b", bt)]);
        let mut lab = Lab::start(settings);
        lab.balance.push("a", "clients", "1").unwrap();
        lab.balance.push("b", "clients", "2").unwrap();
        lab.until_preferred(0).await;
        drop(a);
        lab.until_preferred(1).await;
        lab.until("its connections end", |table| {
            table.server(ServerId(0)).unwrap().fate == Fate::Reset
        })
        .await;
        let report = lab.balance.report();
        assert_eq!(report.services[0].servers[0].why, "up: not reached: Connection refused");
        let _a = TcpListener::bind(at).await.unwrap();
        lab.until_preferred(0).await;
    });
}

#[test]
fn workers_are_woken_when_somebodys_connections_end_and_not_for_a_score() {
    run(async {
        let end = |last| SocketAddr::from(([10, 2, 0, last], 80));
        let mut lab =
            Lab::start(web(vec![pushed()], vec![server("a", end(1)), server("b", end(2))]));
        let calls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let woken = || calls.load(std::sync::atomic::Ordering::Relaxed);
        let counted = calls.clone();
        lab.balance.wakes(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        for (clients, preferred) in [("5", 0), ("1", 0)] {
            lab.balance.push("a", "clients", clients).unwrap();
            lab.until_preferred(preferred).await;
        }
        lab.balance.push("b", "clients", "0").unwrap();
        lab.until_preferred(1).await;
        lab.balance.change(&Change::Drain("a".to_owned()), &[]).unwrap();
        assert_eq!(woken(), 0, "nobody's connections ended");
        lab.balance.change(&Change::Down("a".to_owned()), &[]).unwrap();
        assert_eq!(lab.reader.get().server(ServerId(0)).unwrap().fate, Fate::Reset);
        assert_eq!(woken(), 1, "after the table was published");
        lab.balance.push("b", "clients", "3").unwrap();
        assert_eq!(lab.balance.check("b").await.unwrap().len(), 1);
        assert_eq!(woken(), 1);
    });
}

#[test]
fn one_that_never_answers_is_down_and_holds_up_nobody() {
    run(async {
        let (_silent, silent) = listener().await;
        let (_other, other) = listener().await;
        let every = Every::Period(Duration::from_millis(50));
        // It takes the connection and says nothing.
        let agent = Kind::AgentCheck { port: None, send: String::new() };
        let hangs =
            web(vec![status("agent", every, agent), pushed()], vec![server("hangs", silent)]);
        let tcp = status("up", every, Kind::Tcp { port: None });
        let works = web(vec![tcp, pushed()], vec![server("works", other)]);
        let works = Settings { name: "fine".into(), ports: 81..=81, ..works };
        let mut lab = Lab::start(hangs.clone());
        lab.balance.configure(&[hangs.address], &[hangs.clone(), works]).unwrap();
        lab.balance.push("hangs", "clients", "1").unwrap();
        lab.balance.push("works", "clients", "1").unwrap();
        let chosen = Choice::Preferred(ServerId(1));
        lab.until("it works", |table| {
            table.service(ServiceId(1)).is_some_and(|of| of.choice == chosen)
        })
        .await;
        lab.until("it is down", |table| {
            table.service(ServiceId(0)).unwrap().choice == Choice::Refuse
        })
        .await;
        assert_eq!(lab.balance.report().services[0].servers[0].why, "agent: no answer in time");
    });
}

#[test]
fn whoever_asks_gets_a_reading_now() {
    run(async {
        let (a, at) = listener().await;
        let tcp = status("up", Every::Demand, Kind::Tcp { port: None });
        let lab = Lab::start(web(vec![tcp, pushed()], vec![server("a", at)]));
        let answers = lab.balance.check("a").await.unwrap();
        let [(up, Ok(_)), (clients, Err(Failure::Stale))] = &answers[..] else {
            panic!("{answers:?}")
        };
        assert_eq!((&**up, &**clients), ("up", "clients"));
        drop(a);
        let answers = lab.balance.check("web/a").await.unwrap();
        assert!(matches!(answers[0].1, Err(Failure::Unreached(_))), "{answers:?}");
        assert_eq!(
            lab.balance.check("b").await.unwrap_err(),
            "there is no server \"b\"; there is a"
        );
    });
}

#[test]
fn tasks_come_and_go_with_what_is_to_be_read() {
    run(async {
        let end = |last| SocketAddr::from(([10, 2, 0, last], 80));
        let settings = web(vec![pushed()], vec![server("a", end(1)), server("b", end(2))]);
        let mut lab = Lab::start(settings.clone());
        let tasks = |lab: &Lab| lock(&lab.balance.0.tasks).len();
        assert_eq!(tasks(&lab), 2);
        lab.balance.push("a", "clients", "1").unwrap();
        lab.balance.push("b", "clients", "2").unwrap();
        lab.until_preferred(0).await;
        let desk = |lab: &Lab| {
            let tasks = lock(&lab.balance.0.tasks);
            tasks.iter().find(|(key, _)| key.server == ServerId(1)).unwrap().1.desk.clone()
        };
        let before = desk(&lab);
        lab.balance.change(&Change::Remove("a".to_owned()), &[]).unwrap();
        assert_eq!(tasks(&lab), 1);
        assert!(Arc::ptr_eq(&desk(&lab), &before), "what stays goes on");
        lab.until_preferred(1).await;
        // Back, it is another, of which nothing was handed over.
        let add = Change::Add {
            service: "web".to_owned(),
            name: "a".to_owned(),
            address: end(1).to_string(),
            weight: 1,
            capacity: None,
        };
        lab.balance.change(&add, &[]).unwrap();
        let answers = lab.balance.check("a").await.unwrap();
        assert!(matches!(answers[0].1, Err(Failure::Stale)), "{answers:?}");
        lab.balance.configure(&[], &[]).unwrap();
        assert_eq!(tasks(&lab), 0);
    });
}

#[test]
fn what_begins_together_does_not_go_on_together() {
    let key = |server| Key { server: ServerId(server), status: 1 };
    let firsts: Vec<f64> = (0..1000).map(|server| part(key(server), 0)).collect();
    for tenth in 0..10 {
        let from = f64::from(tenth) / 10.0;
        let within = firsts.iter().filter(|part| (from..from + 0.1).contains(*part)).count();
        assert!((60..140).contains(&within), "{tenth}: {within}");
    }
    for count in 1..1000 {
        assert!((0.95..1.05).contains(&part(key(1), count)));
    }
    assert_ne!(part(key(1), 1), part(key(1), 2));
}
