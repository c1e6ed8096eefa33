//! A monitor with readings and time by hand.

#![allow(clippy::unwrap_used)]

use std::time::UNIX_EPOCH;

use super::*;
use crate::balance::policy::Policy;
use crate::balance::score::Score;
use crate::balance::service::{Choose, Mode, OnDeath, WhenNone};
use crate::forward::preferred::{Fate, Source};
use crate::forward::publish::{Reader, channel};
use crate::forward::view::WorkerId;
use crate::wire::ip::TCP;

const VIPA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 10));

fn status(name: &str, role: Option<Role>) -> status::Settings {
    let second = Duration::from_secs(1);
    status::Settings {
        name: name.into(),
        role,
        every: Every::Period(second),
        timeout: second,
        kind: status::Kind::Ping,
    }
}

fn server(name: &str, last: u8) -> service::Server {
    service::Server {
        name: name.into(),
        address: IpAddr::from([10, 2, 0, last]),
        port: Some(80),
        is_local: false,
        weight: 1,
        capacity: None,
        place: (0, 0),
    }
}

/// Three servers, whose clients are counted; no hysteresis.
fn web() -> Settings {
    Settings {
        name: "web".into(),
        address: VIPA,
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
        statuses: vec![status("clients", Some(Role::Clients))],
        servers: vec![server("a", 1), server("b", 2), server("c", 3)],
    }
}

struct Lab {
    monitor: Monitor,
    reader: Reader<PreferredTable>,
    now: Instant,
}

impl Lab {
    fn new(services: &[Settings]) -> Lab {
        let (publisher, mut readers) = channel(1, Arc::new(PreferredTable::default()));
        let world = World { vipas: vec![VIPA, IpAddr::from([203, 0, 113, 12])], workers: 1 };
        let now = Instant::now();
        let mut monitor = Monitor::new(world, publisher);
        monitor.configure(services, now).unwrap();
        Lab { monitor, reader: readers.pop().unwrap(), now }
    }

    /// `web`, with these clients of `a`, `b` and `c`.
    fn with_clients(settings: Settings, clients: [f64; 3]) -> Lab {
        let mut lab = Lab::new(&[settings]);
        for (server, clients) in ["a", "b", "c"].into_iter().zip(clients) {
            lab.read(server, "clients", Some(clients));
        }
        lab
    }

    fn key(&self, server: &str, status: &str) -> Key {
        self.monitor.watch(server, status).unwrap().key
    }

    fn read(&mut self, server: &str, status: &str, value: Option<f64>) -> Next {
        let key = self.key(server, status);
        let result = match value {
            Some(value) => Ok(Reading { value: Some(value), ..Reading::default() }),
            None => Err(Failure::Timeout),
        };
        self.monitor.take(key, result, self.now)
    }

    fn fail(&mut self, server: &str) {
        for _ in 0..3 {
            self.read(server, "clients", None);
        }
    }

    fn change(&mut self, change: Change) {
        self.monitor.change(&change, &[], self.now).unwrap();
    }

    fn refused(&mut self, change: Change) -> String {
        let before = self.table().generation;
        let nics = [IpAddr::from([10, 1, 1, 2])];
        let why = self.monitor.change(&change, &nics, self.now).unwrap_err();
        assert_eq!(self.table().generation, before);
        why
    }

    fn table(&mut self) -> Arc<PreferredTable> {
        self.reader.get().clone()
    }

    fn id(&self, server: &str) -> ServerId {
        self.monitor.watches_of(server).unwrap()[0].key.server
    }

    /// Where a worker sends what comes for `web`.
    fn choice(&mut self) -> Choice {
        let table = self.table();
        let id = table.find(VIPA, TCP, 80).unwrap();
        table.service(id).unwrap().choice.clone()
    }

    /// The name of the preferred server.
    fn preferred(&mut self) -> String {
        let Choice::Preferred(id) = self.choice() else { panic!("{:?}", self.choice()) };
        let mut watches = self.monitor.watches().into_iter();
        watches.find(|watch| watch.key.server == id).unwrap().instance.server.to_string()
    }

    fn fate(&mut self, server: &str) -> Fate {
        let id = self.id(server);
        self.table().server(id).unwrap().fate
    }

    fn give(&mut self, server: &str, connections: u64) {
        let id = self.id(server);
        let counters = self.table().server(id).unwrap().counters.clone();
        (0..connections).for_each(|_| counters.of(WorkerId(0)).unwrap().began());
    }

    /// What was taken away and has no connections is forgotten.
    fn wait_for_retired(&mut self) {
        self.now += Duration::from_secs(2);
        self.monitor.tick(self.now);
    }

    fn report(&self) -> ServiceStatus {
        self.monitor.report(self.now, UNIX_EPOCH + Duration::from_secs(1000)).services.remove(0)
    }

    fn states(&self) -> Vec<String> {
        self.report().servers.into_iter().map(|server| server.state).collect()
    }
}

/// A server more of the service `web`.
fn adding(name: &str, address: &str) -> Change {
    Change::Add {
        service: "web".to_owned(),
        name: name.to_owned(),
        address: address.to_owned(),
        weight: 1,
        capacity: None,
    }
}

#[test]
fn the_least_loaded_server_is_preferred_as_soon_as_it_is_known() {
    let mut lab = Lab::new(&[web()]);
    assert_eq!(lab.choice(), Choice::Wait);
    lab.read("b", "clients", Some(5.0));
    assert_eq!(lab.preferred(), "b");
    lab.read("a", "clients", Some(3.0));
    lab.read("c", "clients", Some(4.0));
    assert_eq!(lab.preferred(), "a");
    let generation = lab.table().generation;
    // Nothing that matters has changed: nothing is published.
    lab.read("a", "clients", Some(2.0));
    assert_eq!(lab.table().generation, generation);
    lab.read("a", "clients", Some(4.5));
    assert_eq!(lab.preferred(), "c");
    assert_eq!(lab.table().generation, generation + 1);
    let switches: Vec<_> =
        lab.report().switches.into_iter().map(|s| (s.from, s.to, s.why)).collect();
    let wanted = [
        ("none", "b", "b is up"),
        ("b", "a", "least-loaded: 4 against 6"),
        ("a", "c", "least-loaded: 5 against 5.5"),
    ];
    assert_eq!(switches, wanted.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())));
}

#[test]
fn the_table_says_all_that_a_worker_needs() {
    let direct = Settings {
        name: "dns".into(),
        ports: 53..=53,
        mode: Mode::Direct,
        servers: vec![service::Server { port: None, ..server("d", 9) }],
        ..web()
    };
    let given = Settings {
        name: "given".into(),
        ports: 1..=9,
        mode: Mode::Nat { sources: vec![IpAddr::from([203, 0, 113, 12])], keeps_client: false },
        when_none: WhenNone::Sorry("10.9.9.9:81".parse().unwrap()),
        servers: vec![service::Server { address: VIPA, is_local: true, ..server("e", 0) }],
        ..web()
    };
    let kept = Settings {
        name: "kept".into(),
        ports: 10..=20,
        mode: Mode::Nat { sources: Vec::new(), keeps_client: true },
        servers: Vec::new(),
        ..web()
    };
    let mut lab = Lab::new(&[web(), direct, given, kept]);
    let table = lab.table();
    let sources = |port| {
        let id = table.find(VIPA, TCP, port).unwrap();
        match &table.service(id).unwrap().mode {
            crate::forward::preferred::Mode::Nat { sources } => Some(sources.to_vec()),
            crate::forward::preferred::Mode::Direct => None,
        }
    };
    let reserved = Source { address: VIPA, ports: None };
    assert_eq!(sources(80), Some(vec![reserved]));
    assert_eq!(sources(53), None);
    let wholly = sources(5).unwrap().remove(0);
    assert_eq!(wholly.address, IpAddr::from([203, 0, 113, 12]));
    let ports = wholly.ports.unwrap();
    assert_eq!((ports.len(), ports[0]), (64_512, 1024));
    assert_eq!(sources(10), Some(Vec::new()));
    assert!(table.find(VIPA, TCP, 21).is_none());
    let server = |name| table.server(lab.id(name)).unwrap().clone();
    assert_eq!((server("a").port, server("d").port), (Some(80), None));
    assert!(server("e").is_local && !server("a").is_local);
    // Nobody waits for servers that are not there.
    let choice = |port| table.service(table.find(VIPA, TCP, port).unwrap()).unwrap().choice.clone();
    assert_eq!(choice(10), Choice::Refuse);
    lab.fail("e");
    let table = lab.table();
    let id = table.find(VIPA, TCP, 5).unwrap();
    let Choice::Preferred(sorry) = table.service(id).unwrap().choice.clone() else {
        panic!("sorry")
    };
    let sorry = table.server(sorry).unwrap();
    assert_eq!((sorry.address, sorry.port), (IpAddr::from([10, 9, 9, 9]), Some(81)));
}

#[test]
fn a_failure_moves_new_connections_at_once_and_ends_the_old_ones_later() {
    let mut lab = Lab::with_clients(web(), [1.0, 5.0, 9.0]);
    let next = lab.read("a", "clients", None);
    assert_eq!(next, Next::After(Duration::from_millis(100)), "it is asked again soon");
    assert_eq!((lab.preferred(), lab.fate("a")), ("b".to_owned(), Fate::Kept));
    assert_eq!(
        lab.report().switches.last().unwrap().why,
        "a is failing: clients: no answer in time"
    );
    lab.read("a", "clients", None);
    assert_eq!(lab.fate("a"), Fate::Kept);
    let next = lab.read("a", "clients", None);
    assert_eq!((next, lab.fate("a")), (Next::After(Duration::from_secs(1)), Fate::Reset));
    lab.read("a", "clients", Some(0.0));
    assert_eq!((lab.preferred(), lab.fate("a")), ("b".to_owned(), Fate::Reset));
    lab.read("a", "clients", Some(0.0));
    assert_eq!((lab.preferred(), lab.fate("a")), ("a".to_owned(), Fate::Kept));
}

#[test]
fn on_death_may_reselect() {
    let mut lab =
        Lab::with_clients(Settings { on_death: OnDeath::Reselect, ..web() }, [1.0, 2.0, 3.0]);
    lab.fail("a");
    assert_eq!(lab.fate("a"), Fate::Reselect);
}

#[test]
fn servers_that_fail_are_better_than_none() {
    let mut lab = Lab::with_clients(web(), [1.0, 5.0, 9.0]);
    for server in ["a", "b", "c"] {
        lab.read(server, "clients", None);
    }
    assert_eq!(lab.preferred(), "a");
    lab.read("c", "clients", Some(9.0));
    assert_eq!(lab.preferred(), "c");
}

#[test]
fn when_none_is_left() {
    let end = "10.9.9.9:80";
    for (when_none, shown) in [
        (WhenNone::Refuse, "none"),
        (WhenNone::Last, "b, the last one"),
        (WhenNone::Sorry(end.parse().unwrap()), end),
    ] {
        let mut lab = Lab::with_clients(Settings { when_none, ..web() }, [1.0, 2.0, 3.0]);
        lab.fail("c");
        lab.fail("a");
        assert_eq!(lab.report().when_none, None);
        lab.fail("b");
        let report = lab.report();
        assert_eq!((&*report.choice, &*report.why), (shown, "no server is left"));
        assert!(report.when_none.is_some());
        match when_none {
            WhenNone::Refuse => assert_eq!(lab.choice(), Choice::Refuse),
            WhenNone::Last => {
                // Its connections would end as they begin.
                assert_eq!(
                    (lab.preferred(), lab.fate("b"), lab.fate("a")),
                    ("b".to_owned(), Fate::Kept, Fate::Reset)
                );
            }
            WhenNone::Sorry(_) => {
                let Choice::Preferred(id) = lab.choice() else { panic!("a server") };
                assert_eq!(lab.table().server(id).unwrap().address, IpAddr::from([10, 9, 9, 9]));
            }
        }
        lab.read("c", "clients", Some(3.0));
        lab.read("c", "clients", Some(3.0));
        assert_eq!((lab.preferred(), lab.report().when_none), ("c".to_owned(), None));
        assert_eq!(lab.fate("b"), Fate::Reset);
    }
}

#[test]
fn connections_given_since_a_reading_count() {
    let mut lab = Lab::with_clients(web(), [0.0, 3.0, 8.0]);
    assert_eq!(lab.preferred(), "a");
    lab.give("a", 4);
    assert_eq!(lab.monitor.tick(lab.now), Some(BUSY));
    assert_eq!(lab.preferred(), "b");
    lab.give("b", 2);
    lab.monitor.tick(lab.now);
    assert_eq!(lab.preferred(), "a");
    // Read again, it has fewer than it was given: they ended.
    lab.give("a", 100);
    lab.monitor.tick(lab.now);
    assert_eq!(lab.preferred(), "b");
    lab.read("a", "clients", Some(1.0));
    assert_eq!(lab.preferred(), "a");
    assert_eq!(lab.monitor.tick(lab.now), Some(IDLE));
}

#[test]
fn no_server_is_flooded_between_two_readings() {
    // A thousand connections in one period, ten for each tick.
    let mut lab = Lab::with_clients(web(), [0.0, 0.0, 0.0]);
    for _ in 0..100 {
        let preferred = lab.preferred();
        lab.give(&preferred, 10);
        lab.monitor.tick(lab.now);
    }
    for server in lab.report().servers {
        assert!((320..=350).contains(&server.given), "{}: {}", server.name, server.given);
    }
}

#[test]
fn policies_that_count_nothing_need_no_ticks() {
    let settings = Settings {
        policy: Policy::Closest,
        statuses: vec![status("clients", Some(Role::Distance))],
        ..web()
    };
    let mut lab = Lab::with_clients(settings, [1.0, 2.0, 3.0]);
    lab.give("a", 100);
    lab.monitor.tick(lab.now);
    assert_eq!((lab.preferred(), lab.monitor.tick(lab.now)), ("a".to_owned(), None));
}

#[test]
fn a_server_with_less_weight_or_in_a_slow_start_gets_less() {
    let mut settings = Settings { slow_start: Duration::from_secs(10), ..web() };
    settings.servers[0].weight = 4;
    let mut lab = Lab::with_clients(settings, [7.0, 2.0, 9.0]);
    lab.now += Duration::from_secs(20);
    lab.monitor.tick(lab.now);
    assert_eq!(lab.preferred(), "a");
    lab.change(Change::Weight("a".to_owned(), 2));
    assert_eq!(lab.preferred(), "b");
    // It comes back idle, and is not flooded.
    lab.fail("c");
    lab.read("c", "clients", Some(0.0));
    lab.read("c", "clients", Some(0.0));
    assert_eq!((lab.preferred(), &*lab.report().servers[2].state), ("b".to_owned(), "up"));
    lab.now += Duration::from_secs(5);
    assert_eq!(lab.monitor.tick(lab.now), Some(IDLE));
    assert_eq!(lab.preferred(), "c");
}

#[test]
fn hysteresis_keeps_small_differences_from_moving_the_preference() {
    let mut lab = Lab::with_clients(Settings { hysteresis: 0.1, ..web() }, [99.0, 100.0, 100.0]);
    assert_eq!(lab.preferred(), "a");
    lab.read("b", "clients", Some(90.0));
    assert_eq!(lab.preferred(), "a");
    lab.read("b", "clients", Some(88.0));
    assert_eq!(lab.preferred(), "b");
    assert!(lab.report().switches.len() <= 3);
}

#[test]
fn a_score_joins_several_values() {
    let statuses =
        vec![status("clients", Some(Role::Clients)), status("rtt", Some(Role::ResponseTime))];
    let names: Vec<&str> = statuses.iter().map(|status| &*status.name).collect();
    let policy = Policy::Score(Score::parse("clients * 2 + rtt", &names).unwrap());
    let mut lab = Lab::new(&[Settings { policy, statuses, ..web() }]);
    for (server, clients, rtt) in [("a", 1.0, 10.0), ("b", 5.0, 1.0), ("c", 1.0, 20.0)] {
        lab.read(server, "clients", Some(clients));
        lab.read(server, "rtt", Some(rtt));
    }
    assert_eq!(lab.preferred(), "b");
    lab.read("a", "rtt", Some(1.0));
    assert_eq!(lab.preferred(), "a");
    // It counts connections too, where its expression does.
    lab.give("a", 5);
    lab.monitor.tick(lab.now);
    assert_eq!(lab.preferred(), "b");
}

#[test]
fn a_server_without_a_value_is_no_candidate_and_says_so() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    let key = lab.key("a", "clients");
    let mut fresh = Lab::new(&[web()]);
    assert_eq!(
        fresh.monitor.take(key, Ok(Reading::default()), fresh.now),
        Next::After(Duration::from_secs(1))
    );
    fresh.read("b", "clients", Some(5.0));
    assert_eq!(fresh.preferred(), "b");
    let a = fresh.report().servers.remove(0);
    assert_eq!((&*a.state, a.no_score.as_deref()), ("up", Some("clients has no value")));
    // A number that is none is a failure.
    lab.read("a", "clients", Some(f64::NAN));
    assert_eq!(lab.preferred(), "b");
    assert_eq!(lab.report().servers[0].why, "clients: answered NaN, wanted a finite number");
}

#[test]
fn weighted_spreads_by_score_and_leaves_the_table_alone_while_shares_are_near() {
    let settings = Settings { choose: Choose::Weighted, hysteresis: 0.1, ..web() };
    let mut lab = Lab::with_clients(settings, [0.0, 1.0, 3.0]);
    let shares = |lab: &Lab| -> Vec<f64> {
        lab.report().servers.iter().map(|server| (server.share * 100.0).round()).collect()
    };
    assert_eq!(shares(&lab), [57.0, 29.0, 14.0]);
    assert_eq!(lab.report().choice, "a, b, c");
    let generation = lab.table().generation;
    lab.read("b", "clients", Some(1.05));
    assert_eq!(lab.table().generation, generation);
    lab.read("b", "clients", Some(7.0));
    assert_eq!(shares(&lab), [73.0, 9.0, 18.0]);
    let switches = lab.report().switches.len();
    lab.fail("a");
    assert_eq!(shares(&lab), [0.0, 33.0, 67.0]);
    let last = lab.report().switches.pop().unwrap();
    assert_eq!(
        (&*last.from, &*last.to, lab.report().switches.len()),
        ("a, b, c", "b, c", switches + 1)
    );
}

#[test]
fn an_operator_drains_takes_down_and_brings_back() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    lab.change(Change::Drain("web/a".to_owned()));
    assert_eq!((lab.preferred(), lab.fate("a")), ("b".to_owned(), Fate::Kept));
    assert_eq!(lab.report().switches.last().unwrap().why, "a is drain: the operator");
    // Its health goes on to be known.
    lab.read("a", "clients", Some(0.0));
    assert_eq!(lab.states(), ["drain", "up", "up"]);
    lab.change(Change::Down("a".to_owned()));
    assert_eq!((lab.states()[0].as_str(), lab.fate("a")), ("maint", Fate::Reset));
    lab.change(Change::Up("a".to_owned()));
    assert_eq!((lab.preferred(), lab.fate("a")), ("a".to_owned(), Fate::Kept));
}

#[test]
fn servers_come_and_go_and_the_others_keep_all() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    let (a, b) = (lab.id("a"), lab.id("b"));
    lab.change(adding("d", "10.2.0.4:80"));
    assert_eq!(
        (lab.preferred(), lab.states()),
        ("a".to_owned(), ["up", "up", "up", "starting"].map(str::to_owned).to_vec())
    );
    lab.read("d", "clients", Some(0.0));
    let d = lab.id("d");
    assert_eq!(lab.preferred(), "d");
    lab.change(Change::Remove("web/d".to_owned()));
    assert_eq!((lab.preferred(), lab.id("a"), lab.id("b")), ("a".to_owned(), a, b));
    lab.wait_for_retired();
    assert!(lab.table().server(d).is_none());
    assert_eq!(lab.report().switches.last().unwrap().why, "the preferred server was removed");
    let key = Key { server: d, status: 1 };
    assert_eq!(lab.monitor.take(key, Ok(Reading::default()), lab.now), Next::Never);
    // Its place is never another's.
    lab.change(adding("d", "10.2.0.4:80"));
    assert_ne!(lab.id("d"), d);
}

#[test]
fn what_cannot_be_is_refused_and_nothing_changes() {
    let other = Settings { name: "other".into(), ports: 81..=81, ..web() };
    let mut lab = Lab::new(&[web(), other]);
    let add = |name: &str, address: &str| Change::Add {
        service: "web".to_owned(),
        name: name.to_owned(),
        address: address.to_owned(),
        weight: 1,
        capacity: None,
    };
    for (change, wanted) in [
        (add("a", "10.2.0.9:80"), "web has a server \"a\" already"),
        (add("d", "10.2.0.1:80"), "the server \"a\" is there already"),
        (add("d d", "10.2.0.9:80"), "the name \"d d\" holds ' '"),
        (add("d", "ten"), "the address is \"ten\""),
        (add("d", "224.0.0.1:80"), "224.0.0.1 is multicast"),
        (add("d", "203.0.113.10:81"), "that is where the service \"other\" is itself"),
        (add("d", "10.1.1.2:80"), "10.1.1.2 is a NIC's address of this host"),
        (
            add("d", "[2001:db8::2]:80"),
            "2001:db8::2 and the service's 203.0.113.10 are of two families",
        ),
        (
            Change::Drain("a".to_owned()),
            "several services have a server \"a\": say web/a or other/a",
        ),
        (Change::Drain("web/z".to_owned()), "there is no server \"web/z\""),
        (Change::Remove("nope/a".to_owned()), "there is no service \"nope\"; there is web, other"),
    ] {
        let why = lab.refused(change.clone());
        assert!(why.starts_with(wanted), "{change:?}: {why}");
    }
    for (policy, wanted) in [
        ("closest", "closest needs a status object of the role \"distance\", and web has none"),
        ("greatest-capacity", "greatest-capacity: capacity has no value"),
        ("nope", "\"nope\" is no policy (least-loaded, fastest-response"),
        ("clients +", "\"clients +\" is no policy"),
    ] {
        let policy = Change::Policy { service: "web".to_owned(), policy: policy.to_owned() };
        let why = lab.refused(policy);
        assert!(why.starts_with(wanted), "{why}");
    }
}

#[test]
fn a_policy_is_swapped_while_it_runs() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    lab.change(Change::Policy { service: "web".to_owned(), policy: "-clients".to_owned() });
    assert_eq!(lab.preferred(), "c");
    let report = lab.report();
    assert_eq!(
        (&*report.policy, report.configured_policy.as_deref()),
        ("-clients", Some("least-loaded"))
    );
    assert_eq!(report.switches.last().unwrap().why, "-clients: -3 against -1");
}

#[test]
fn other_status_objects_refuse_nobody_and_lose_no_health() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    lab.fail("c");
    let key = lab.key("a", "clients");
    let with_time = Settings {
        policy: Policy::FastestResponse,
        statuses: vec![
            status("time", Some(Role::ResponseTime)),
            status("clients", Some(Role::Clients)),
        ],
        ..web()
    };
    lab.monitor.configure(std::slice::from_ref(&with_time), lab.now).unwrap();
    // Until the new ones have been read, the preferred server stays.
    assert_eq!(
        (lab.preferred(), lab.states()),
        ("a".to_owned(), ["up", "up", "down"].map(str::to_owned).to_vec())
    );
    assert_eq!(lab.key("a", "clients"), key, "what is as it was goes on");
    lab.read("b", "time", Some(0.5));
    assert_eq!(lab.preferred(), "a");
    lab.read("a", "time", Some(0.7));
    assert_eq!(lab.preferred(), "b");
    // Another period is another status object.
    let mut faster = with_time;
    faster.statuses[1].every = Every::Period(Duration::from_millis(100));
    lab.monitor.configure(&[faster], lab.now).unwrap();
    assert_ne!(lab.key("a", "clients"), key);
    assert_eq!(lab.preferred(), "b");
}

#[test]
fn a_file_read_anew_changes_what_it_says_otherwise_and_nothing_else() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    let ids = ["a", "b", "c"].map(|server| lab.id(server));
    lab.change(Change::Policy { service: "web".to_owned(), policy: "-clients".to_owned() });
    lab.change(Change::Drain("b".to_owned()));
    lab.change(adding("d", "10.2.0.4:80"));
    lab.change(Change::Remove("a".to_owned()));
    lab.read("d", "clients", Some(10.0));
    let generation = lab.table().generation;
    let mut filed = web();
    // Lines moved, nothing else.
    filed.servers[1].place = (7, 7);
    lab.monitor.configure(&[filed.clone()], lab.now).unwrap();
    assert_eq!(lab.states(), ["drain", "up", "up"]);
    assert_eq!((lab.preferred(), lab.id("b"), lab.id("c")), ("d".to_owned(), ids[1], ids[2]));
    assert_eq!(lab.table().generation, generation + 1);

    filed.servers[1].weight = 5;
    filed.servers[2].address = IpAddr::from([10, 2, 0, 33]);
    filed.servers.push(server("e", 5));
    filed.policy = Policy::LeastLoaded;
    filed.fall = 1;
    lab.monitor.configure(&[filed.clone()], lab.now).unwrap();
    let names: Vec<_> = lab.report().servers.into_iter().map(|s| (s.name, s.state)).collect();
    let wanted = [("b", "drain"), ("c", "starting"), ("e", "starting"), ("d", "up")];
    assert_eq!(names, wanted.map(|(name, state)| (name.to_owned(), state.to_owned())));
    assert_ne!(lab.id("c"), ids[2]);
    assert_eq!((lab.id("b"), lab.report().servers[0].weight), (ids[1], 5.0));
    // The file never said but "least-loaded".
    assert_eq!(lab.report().policy, "-clients");
    filed.policy = Policy::Score(Score::parse("clients", &["clients"]).unwrap());
    filed.servers.remove(2);
    lab.monitor.configure(&[filed], lab.now).unwrap();
    assert_eq!(lab.report().policy, "clients");
    assert!(lab.monitor.watches_of("c").is_err());
    lab.monitor.configure(&[], lab.now).unwrap();
    assert_eq!(lab.choice(), Choice::Refuse, "while a worker may go by the table before");
    lab.wait_for_retired();
    assert!(lab.table().is_empty() && lab.monitor.is_empty());
    assert_eq!(lab.monitor.tick(lab.now), None);
}

#[test]
fn a_service_that_is_gone_refuses_and_is_heard_until_its_last_connection_ends() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    let (web_id, a) = (lab.table().find(VIPA, TCP, 80).unwrap(), lab.id("a"));
    lab.give("a", 1);
    let counters = lab.table().server(a).unwrap().counters.clone();
    let other = Settings { name: "other".into(), ports: 81..=81, ..web() };
    lab.monitor.configure(std::slice::from_ref(&other), lab.now).unwrap();
    lab.wait_for_retired();
    assert_eq!((lab.choice(), lab.table().find(VIPA, TCP, 80)), (Choice::Refuse, Some(web_id)));
    let served = |lab: &Lab| -> Vec<String> {
        lab.monitor.served().iter().map(|service| service.name.to_string()).collect()
    };
    assert_eq!(served(&lab), ["other", "web"]);
    assert!(!lab.monitor.take_ended());
    // Back, it is another one: new connections are its own, and the old one's go on.
    lab.monitor.configure(&[other.clone(), web()], lab.now).unwrap();
    assert_ne!(lab.table().find(VIPA, TCP, 80), Some(web_id));
    assert_eq!(lab.choice(), Choice::Wait);
    assert!(lab.table().server(a).is_some());
    counters.of(WorkerId(0)).unwrap().ended(false);
    lab.wait_for_retired();
    assert!(lab.table().server(a).is_none());
    assert!(lab.monitor.take_ended());
    assert_eq!(served(&lab), ["other", "web"]);
}

#[test]
fn a_service_at_another_place_is_another_and_anything_else_is_not() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    let a = lab.id("a");
    let same = Settings { policy: Policy::LeastLoaded, hysteresis: 0.5, fall: 9, ..web() };
    lab.monitor.configure(&[same], lab.now).unwrap();
    assert_eq!((lab.id("a"), lab.preferred()), (a, "a".to_owned()));
    let moved = Settings { ports: 80..=89, ..web() };
    lab.monitor.configure(&[moved], lab.now).unwrap();
    assert_ne!(lab.id("a"), a);
    let direct = Settings { mode: Mode::Direct, ports: 80..=89, ..web() };
    let before = lab.id("a");
    lab.monitor.configure(&[direct], lab.now).unwrap();
    assert_ne!(lab.id("a"), before);
}

#[test]
fn a_server_that_answers_by_way_of_this_host_is_heard_first_and_until_its_last_connection() {
    let keeps = Settings { mode: Mode::Nat { sources: Vec::new(), keeps_client: true }, ..web() };
    let mut lab = Lab::with_clients(keeps, [1.0, 2.0, 3.0]);
    let add = |service: &str| Change::Add {
        service: service.to_owned(),
        name: "d".to_owned(),
        address: "10.2.0.4:80".to_owned(),
        weight: 1,
        capacity: None,
    };
    let more = lab.monitor.would_serve(&add("web"), &[]).unwrap().unwrap();
    assert_eq!(more.servers.iter().map(|server| &*server.name).collect::<Vec<_>>(), ["d"]);
    assert!(lab.monitor.would_serve(&add("mail"), &[]).is_err());
    lab.change(add("web"));
    lab.read("d", "clients", Some(0.0));
    lab.give("d", 1);
    lab.change(Change::Remove("d".to_owned()));
    lab.wait_for_retired();
    let served = lab.monitor.served();
    assert!(served.iter().any(|service| service.servers.iter().any(|server| &*server.name == "d")));
    // Of another mode the servers need no hearing of their own.
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    assert_eq!(lab.monitor.would_serve(&add("web"), &[]), Ok(None));
    let mut here = add("web");
    let Change::Add { address, .. } = &mut here else { unreachable!("it adds") };
    *address = format!("{VIPA}:8081");
    assert!(lab.monitor.would_serve(&here, &[]).unwrap().is_some(), "but one on this host does");
    lab.change(add("web"));
}

#[test]
fn an_operators_policy_that_no_longer_fits_gives_way() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    lab.change(Change::Policy { service: "web".to_owned(), policy: "-clients".to_owned() });
    // Before the others now: the expression still means the same status object.
    let mut filed = web();
    filed.statuses.insert(0, status("time", None));
    lab.monitor.configure(&[filed.clone()], lab.now).unwrap();
    assert_eq!((lab.report().policy, lab.preferred()), ("-clients".to_owned(), "c".to_owned()));
    filed.statuses = vec![status("users", Some(Role::Clients))];
    lab.monitor.configure(&[filed], lab.now).unwrap();
    assert_eq!(lab.report().policy, "least-loaded");
}

#[test]
fn on_demand_is_read_when_asked_and_again_after_a_failure() {
    let mut settings = web();
    settings.statuses[0].every = Every::Demand;
    let mut lab = Lab::new(&[settings]);
    assert_eq!(lab.read("a", "clients", Some(1.0)), Next::Asked);
    for next in [Next::After(SOON), Next::After(SOON), Next::After(AGAIN)] {
        assert_eq!(lab.read("b", "clients", None), next);
    }
}

#[test]
fn a_short_period_is_not_hurried_and_a_long_one_is() {
    let mut settings = web();
    settings.statuses[0].every = Every::Period(Duration::from_millis(20));
    let mut lab = Lab::with_clients(settings.clone(), [1.0, 1.0, 1.0]);
    assert_eq!(lab.read("a", "clients", None), Next::After(Duration::from_millis(20)));
    settings.statuses[0].every = Every::Period(Duration::from_millis(200));
    let mut lab = Lab::with_clients(settings, [1.0, 1.0, 1.0]);
    assert_eq!(lab.read("a", "clients", None), Next::After(HASTIEST));
}

#[test]
fn what_failed_is_not_left_for_a_whole_long_period() {
    let mut settings = web();
    let day = Duration::from_secs(24 * 3600);
    settings.statuses[0].every = Every::Period(day);
    let mut lab = Lab::with_clients(settings, [1.0, 1.0, 1.0]);
    // Undecided until it failed three times, then down.
    for wait in [SOON, SOON, AGAIN, AGAIN] {
        assert_eq!(lab.read("a", "clients", None), Next::After(wait));
    }
    assert_eq!(lab.read("a", "clients", Some(1.0)), Next::After(SOON), "half way up");
    assert_eq!(lab.read("a", "clients", Some(1.0)), Next::After(day));
}

#[test]
fn what_is_told_is_whole() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    lab.now += Duration::from_secs(2);
    let report = lab.report();
    assert_eq!(
        (&*report.address, &*report.mode, &*report.protocol),
        ("203.0.113.10:80", "nat", "tcp")
    );
    assert_eq!((&*report.choice, report.when_none), ("a", None));
    let a = &report.servers[0];
    assert_eq!(
        (&*a.address, a.score, a.share, a.since_seconds),
        ("10.2.0.1:80", Some(2.0), 1.0, 2.0)
    );
    assert_eq!((a.values[0].value, a.values[0].age_seconds), (Some(1.0), Some(2.0)));
    assert_eq!((report.switches[0].at_ms, report.switches[0].ago_seconds), (998_000, 2.0));
    let text = serde_json::to_string(&lab.report()).unwrap();
    assert_eq!(serde_json::from_str::<ServiceStatus>(&text).unwrap(), lab.report());
    for _ in 0..100 {
        lab.read("a", "clients", Some(9.0));
        lab.read("a", "clients", Some(0.0));
    }
    assert_eq!(lab.report().switches.len(), REMEMBERED);
}

/// `web` of which the sorry server has a connection; the server's number.
fn with_a_sorry_connection(mode: Mode) -> (Lab, ServerId) {
    let sorry = WhenNone::Sorry("10.9.9.9:81".parse().unwrap());
    let mut lab = Lab::with_clients(Settings { mode, when_none: sorry, ..web() }, [1.0, 2.0, 3.0]);
    ["a", "b", "c"].into_iter().for_each(|server| lab.fail(server));
    let Choice::Preferred(id) = lab.choice() else { panic!("a server") };
    lab.table().server(id).unwrap().counters.of(WorkerId(0)).unwrap().began();
    (lab, id)
}

#[test]
fn a_sorry_server_that_gives_way_keeps_its_connections() {
    for when_none in
        [WhenNone::Refuse, WhenNone::Last, WhenNone::Sorry("10.9.9.8:81".parse().unwrap())]
    {
        let mode = Mode::Nat { sources: Vec::new(), keeps_client: true };
        let (mut lab, id) = with_a_sorry_connection(mode);
        let before = lab.monitor.services[0].settings.clone();
        let after = Settings { when_none, servers: web().servers, ..before.clone() };
        lab.monitor.configure(&[after], lab.now).unwrap();
        assert_ne!(lab.choice(), Choice::Preferred(id), "it gets no more");
        lab.wait_for_retired();
        let server = lab.table().server(id).unwrap().clone();
        assert_eq!((server.fate, server.counters.active()), (Fate::Kept, 1));
        // What it answers is heard.
        let is_heard =
            |lab: &Lab| lab.monitor.served().iter().any(|of| of.when_none == before.when_none);
        assert!(is_heard(&lab), "{when_none:?}");
        server.counters.of(WorkerId(0)).unwrap().ended(false);
        lab.wait_for_retired();
        assert!(lab.table().server(id).is_none() && !is_heard(&lab));
    }
}

#[test]
fn hysteresis_does_not_keep_the_one_that_was_read_first() {
    let mut lab = Lab::new(&[Settings { hysteresis: 0.9, ..web() }]);
    lab.read("a", "clients", Some(99.0));
    assert_eq!(lab.preferred(), "a", "nobody waits for the others");
    lab.read("b", "clients", Some(59.0));
    assert_eq!(lab.preferred(), "b");
    // One that says nothing in time has had its turn.
    lab.read("c", "clients", None);
    lab.read("a", "clients", Some(19.0));
    assert_eq!(lab.preferred(), "b", "from now on small differences do not count");
    lab.read("c", "clients", Some(14.0));
    assert_eq!(lab.preferred(), "b");
    lab.read("c", "clients", Some(4.0));
    assert_eq!(lab.preferred(), "c");
    // One that comes later is no first choice.
    lab.change(adding("d", "10.2.0.4:80"));
    lab.read("d", "clients", Some(3.0));
    assert_eq!(lab.preferred(), "c");
}

#[test]
fn hysteresis_does_not_keep_the_first_shares() {
    let settings = Settings { choose: Choose::Weighted, hysteresis: 9.0, ..web() };
    let statuses = vec![status("clients", Some(Role::Clients)), status("alive", None)];
    let mut lab = Lab::new(&[Settings { statuses, ..settings }]);
    let read = |lab: &mut Lab, server: &str, clients: f64| {
        lab.read(server, "alive", Some(1.0));
        lab.read(server, "clients", Some(clients));
    };
    for (server, clients) in [("a", 9.0), ("b", 9.0)] {
        read(&mut lab, server, clients);
    }
    read(&mut lab, "a", 0.0);
    let share = |lab: &Lab| lab.report().servers[0].share;
    assert!(share(&lab) > 0.9, "{}", share(&lab));
    read(&mut lab, "c", 0.0);
    let before = share(&lab);
    read(&mut lab, "a", 1.0);
    assert!((share(&lab) - before).abs() < f64::EPSILON);
}

#[test]
fn all_that_the_file_says_otherwise_of_a_service_is_taken() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    let filed = Settings {
        choose: Choose::Weighted,
        hysteresis: 0.25,
        when_none: WhenNone::Last,
        on_death: OnDeath::Reselect,
        rise: 7,
        fall: 8,
        slow_start: Duration::from_secs(9),
        ..web()
    };
    lab.monitor.configure(std::slice::from_ref(&filed), lab.now).unwrap();
    assert_eq!(lab.monitor.services[0].settings, filed);
}

#[test]
fn connections_that_were_read_are_not_counted_again_for_another_status_object() {
    let mut lab = Lab::with_clients(web(), [1.0, 3.0, 8.0]);
    lab.give("a", 5);
    lab.read("a", "clients", Some(1.0));
    let mut filed = web();
    filed.statuses.insert(0, status("time", None));
    lab.monitor.configure(&[filed], lab.now).unwrap();
    assert_eq!(lab.preferred(), "a");
}

#[test]
fn more_servers_than_can_be_counted_are_refused_and_nothing_changes() {
    let add = |name: &str, last: u8| Change::Add {
        service: "web".to_owned(),
        name: name.to_owned(),
        address: format!("10.2.0.{last}:80"),
        weight: 1,
        capacity: None,
    };
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    lab.monitor.next.server = (1 << 16) - 1;
    let more = Settings { name: "more".into(), ports: 81..=81, ..web() };
    let why = lab.monitor.configure(&[web(), more], lab.now).unwrap_err();
    assert!(why.contains("65,536"), "{why}");
    assert_eq!(lab.preferred(), "a");
    lab.change(add("d", 4));
    assert!(lab.refused(add("e", 5)).contains("restart it"));
}

#[test]
fn a_weight_or_capacity_that_is_none_is_refused() {
    let mut sized = web();
    sized.statuses[0].kind = status::Kind::Fixed { value: None };
    sized.servers.iter_mut().for_each(|server| server.capacity = Some(1.0));
    let mut lab = Lab::new(&[sized]);
    let add = |weight, capacity| Change::Add {
        service: "web".to_owned(),
        name: "d".to_owned(),
        address: "10.2.0.4:80".to_owned(),
        weight,
        capacity,
    };
    for (weight, capacity) in
        [(1001, Some(1.0)), (1, Some(0.0)), (1, Some(f64::NAN)), (1, Some(f64::INFINITY))]
    {
        let why = lab.refused(add(weight, capacity));
        assert!(why.starts_with("a weight is at most 1000"), "{why}");
    }
    let why = lab.refused(add(1, None));
    assert!(why.contains("capacity: say it"), "{why}");
    lab.change(add(1000, Some(1.0)));
}

#[test]
fn an_operators_weight_is_known_wherever_servers_are() {
    let mut lab = Lab::with_clients(web(), [1.0, 2.0, 3.0]);
    lab.change(Change::Weight("a".to_owned(), 4));
    let service = &lab.monitor.services[0];
    assert_eq!((service.settings.servers[0].weight, service.servers[0].settings.weight), (4, 4));
    // The file says something else of another one.
    let mut filed = web();
    filed.servers[1].weight = 3;
    lab.monitor.configure(&[filed], lab.now).unwrap();
    let weights: Vec<_> = lab.report().servers.iter().map(|server| server.weight).collect();
    assert_eq!(weights, [4.0, 3.0, 1.0]);
}

#[test]
fn a_sorry_server_here_is_reached_here_and_counted_on_over_changes() {
    let when_none = WhenNone::Sorry(std::net::SocketAddr::new(VIPA, 81));
    let mut lab = Lab::with_clients(Settings { when_none, ..web() }, [1.0, 2.0, 3.0]);
    ["a", "b", "c"].into_iter().for_each(|server| lab.fail(server));
    let Choice::Preferred(id) = lab.choice() else { panic!("a server") };
    let sorry = lab.table().server(id).unwrap().clone();
    assert!(sorry.is_local);
    sorry.counters.of(WorkerId(0)).unwrap().began();
    lab.change(Change::Weight("a".to_owned(), 4));
    assert_eq!(lab.table().server(id).unwrap().counters.active(), 1);
    // One that is dead stays so for the workers, who are not woken once more.
    assert_eq!(lab.fate("a"), Fate::Reset);
    lab.monitor.take_fates();
    lab.change(Change::Weight("b".to_owned(), 4));
    assert!(!lab.monitor.take_fates());
}
