//! `sql` with three PostgreSQL servers and real sessions (the patent's own example: the least connected users), and
//! `redis`.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use vipa::balance::status::tls::Trust;
use vipa::balance::status::{Failure, Kind, Secret, Settings, Sources, redis, sql};
use vipa::lab::Process;

use crate::fixture::{LONG, Reader, SHORT, Site, certificate, settings, wait_until};
use crate::postgres;

const SESSIONS: &str = "select count(*) from pg_stat_activity \
                        where backend_type = 'client backend' and pid <> pg_backend_pid()";
const PORTS: [u16; 3] = [5432, 5433, 5434];
/// Every way to prove a password that PostgreSQL has; the user's name is that of the way.
const RULES: &str = "local all all trust\nhost all open 127.0.0.1/32 trust\n\
                     host all plain 127.0.0.1/32 password\nhost all md5 127.0.0.1/32 md5\n\
                     hostssl all tls 127.0.0.1/32 scram-sha-256\n\
                     host all scram 127.0.0.1/32 scram-sha-256\n";

/// A data directory with a role for each of [`RULES`]; the password is "pencil".
fn data(site: &Site) -> PathBuf {
    let roles = "create role open login;\ncreate role plain login password 'pencil';\n\
                 create role scram login password 'pencil';\n\
                 create role tls login password 'pencil';\n\
                 set password_encryption to 'md5';\n\
                 create role md5 login password 'pencil';\n\
                 grant pg_monitor to open, plain, scram, md5, tls;\n";
    postgres::data(&site.network, site.files.path(), RULES, roles)
}

/// A server over `data` on this port.
fn start(site: &Site, data: &Path, port: u16, more: &[&str]) -> Process {
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    let process = postgres::start(&site.network, data, at, more);
    site.listens(&at.to_string());
    process
}

fn query(user: &str, query: &str) -> sql::Query {
    sql::Query {
        port: None,
        query: query.to_owned(),
        user: user.to_owned(),
        password: Some(Secret::new("pencil")),
        database: "postgres".to_owned(),
        tls: None,
    }
}

fn reader(site: &Site, port: u16, query: sql::Query) -> Reader {
    site.reader(Kind::Sql(query), format!("127.0.0.1:{port}"))
}

/// While it starts a server lets nobody in.
fn wait_until_let_in(site: &Site, port: u16) {
    let mut reader = reader(site, port, query("open", "select 1"));
    wait_until("PostgreSQL lets us in", || reader.read().is_ok());
}

#[test]
fn the_sessions_of_three_postgresql_are_counted() {
    let mut site = Site::new("postgresql");
    let first = data(&site);
    let servers = PORTS.map(|port| {
        let copy = postgres::copy(&first, &port.to_string());
        start(&site, &copy, port, &[])
    });
    for (port, sessions) in PORTS.into_iter().zip([3, 1, 2]) {
        wait_until_let_in(&site, port);
        for _ in 0..sessions {
            let url = format!("postgresql://open@127.0.0.1:{port}/postgres");
            site.start("psql", &[&url, "-c", "select pg_sleep(600)"]);
        }
    }
    let mut readers = PORTS.map(|port| reader(&site, port, query("scram", SESSIONS)));
    for (reader, sessions) in readers.iter_mut().zip([3.0, 1.0, 2.0]) {
        wait_until("the sessions are there", || reader.value() == sessions);
    }
    servers.into_iter().for_each(|mut server| postgres::quit(&mut server));
}

#[test]
fn a_login_by_every_way_and_a_session_that_is_kept() {
    let site = Site::new("postgresql");
    let data = data(&site);
    let [certificate, key] = certificate(&site);
    let (user, group) = postgres::user();
    for file in [&certificate, &key] {
        chown(file, Some(user), Some(group)).expect("root's right");
    }
    let port = PORTS[0];
    let certificates = [format!("ssl_cert_file={certificate}"), format!("ssl_key_file={key}")];
    let tls = ["ssl=on", &certificates[0], &certificates[1]];
    let mut process = start(&site, &data, port, &tls);
    wait_until_let_in(&site, port);

    for user in ["open", "plain", "md5", "scram"] {
        let mut pid = reader(&site, port, query(user, "select pg_backend_pid()"));
        let first = pid.value();
        for _ in 0..3 {
            assert_eq!(pid.value(), first, "{user}: one session");
        }
        if user == "open" {
            continue;
        }
        let wrong = sql::Query { password: Some(Secret::new("pen")), ..query(user, "select 1") };
        let failure = reader(&site, port, wrong).read().expect_err("a wrong password").to_string();
        assert!(failure.contains("password authentication failed"), "{user}: {failure}");
        let none = sql::Query { password: None, ..query(user, "select 1") };
        let failure = reader(&site, port, none).read().expect_err("no password").to_string();
        assert!(failure.contains("`password` is not given"), "{user}: {failure}");
    }

    let believing =
        |trust: Trust| sql::Query { tls: Some((trust, None)), ..query("tls", "select 1") };
    let ours = Trust::File(certificate.clone().into());
    assert_eq!(reader(&site, port, believing(ours)).value(), 1.0);
    assert_eq!(reader(&site, port, believing(Trust::All)).value(), 1.0);
    let failure = reader(&site, port, believing(Trust::System)).read().expect_err("unknown");
    assert!(failure.to_string().contains("certificate"), "{failure}");
    let failure = reader(&site, port, query("tls", "select 1")).read().expect_err("in the clear");
    assert!(failure.to_string().contains("pg_hba.conf"), "{failure}");

    for (text, wanted) in [
        ("select true", Ok(1.0)),
        ("select 1.5::numeric, 2", Ok(1.5)),
        ("select 3; select 4", Ok(3.0)),
        ("select generate_series(7, 2000)", Ok(7.0)),
        ("select null", Err("answered NULL, wanted a number")),
        ("select 1 where false", Err("answered no row, wanted a value")),
        ("select 'NaN'::float8", Err("answered \"NaN\", wanted a finite number")),
        ("select 'infinity'::float8", Err("answered \"Infinity\", wanted a finite number")),
        ("select 'many'", Err("answered \"many\", wanted a finite number")),
        ("selec", Err("answered \"syntax error at or near \\\"selec\\\"\", wanted a value")),
        ("select generate_series(1, 1000000)", Err("answered more than 262144 bytes")),
        ("select repeat('1', 100000)", Err("answered more than 65536 bytes")),
    ] {
        let mut reader = reader(&site, port, query("open", text));
        for _ in 0..2 {
            let read = reader.read().map(|reading| reading.value.expect("a value"));
            let read = read.map_err(|failure| failure.to_string());
            assert_eq!(read, wanted.map_err(str::to_owned), "{text}");
        }
    }

    // One that takes too long ends there, too, whoever waits for it still.
    let kind = Kind::Sql(query("open", "select pg_sleep(601)"));
    let settings = Settings { timeout: SHORT, ..settings(kind) };
    let address = format!("127.0.0.1:{port}");
    let mut stuck = site.reader_with(&settings, &address, &Sources::default());
    assert_eq!(stuck.read(), Err(Failure::Timeout));
    let asleep = "select count(*) from pg_stat_activity where query = 'select pg_sleep(601)' \
                  and state = 'active'";
    let mut asleep = reader(&site, port, query("scram", asleep));
    wait_until("the server gives it up", || asleep.value() == 0.0);
    let mut stuck = stuck.within(LONG);
    let failure = stuck.read().expect_err("too long").to_string();
    assert!(failure.contains("due to statement timeout"), "{failure}");

    // The server ends our session, then itself; both times the next reading is good.
    let mut pid = reader(&site, port, query("open", "select pg_backend_pid()"));
    let first = pid.value();
    let end = format!("select pg_terminate_backend({first})");
    assert_eq!(reader(&site, port, query("open", &end)).value(), 1.0);
    assert_ne!(pid.value(), first);
    postgres::quit(&mut process);
    assert!(matches!(pid.read(), Err(Failure::Unreached(_))), "it is gone");
    let mut process = start(&site, &data, port, &tls);
    wait_until_let_in(&site, port);
    assert!(pid.value() > 0.0);
    postgres::quit(&mut process);
}

fn field(field: &str) -> redis::Query {
    redis::Query {
        port: None,
        field: field.to_owned(),
        section: None,
        is_rate: false,
        user: None,
        password: Some(Secret::new("pencil")),
        tls: None,
    }
}

#[test]
fn fields_of_redis() {
    let mut site = Site::new("redis");
    let at = site.files.path().display().to_string();
    let server = ["--port", "6379", "--bind", "127.0.0.1", "--save", "", "--dir", &at];
    let password = ["--requirepass", "pencil", "--user", "ann", "on", ">eraser", "+info"];
    let process = site.start("redis-server", &[&server[..], &password].concat());
    let address = "127.0.0.1:6379";
    site.listens(address);
    let reader = |query| site.reader(Kind::Redis(query), address);
    let clients: Vec<TcpStream> = (0..5).map(|_| site.connect(address)).collect();
    let mut connected = reader(field("connected_clients"));
    wait_until("Redis has accepted all", || connected.value() == 6.0);
    let section = redis::Query { section: Some("clients".into()), ..field("connected_clients") };
    assert_eq!(reader(section.clone()).value(), 7.0);
    drop(clients);
    wait_until("they are gone", || connected.value() == 1.0);
    // The connection is kept.
    let mut received = reader(field("total_connections_received"));
    let first = received.value();
    assert_eq!((received.value(), received.value()), (first, first));
    let mut rate = reader(redis::Query { is_rate: true, ..field("total_commands_processed") });
    assert_eq!(rate.read().expect("a reading").value, None);
    assert!(rate.value() > 0.0);

    let (user, eraser) = (Some("ann".to_owned()), Some(Secret::new("eraser")));
    let ann = redis::Query { user, password: eraser.clone(), ..field("connected_clients") };
    assert!(reader(ann).value() > 0.0);
    for (query, wanted) in [
        (redis::Query { password: None, ..section.clone() }, "NOAUTH"),
        (redis::Query { password: eraser, ..section.clone() }, "WRONGPASS"),
        (field("no_such_field"), "no such field"),
        (field("redis_version"), "wanted a finite number"),
        (redis::Query { section: Some("memory".into()), ..section }, "no such field"),
    ] {
        let failure = reader(query).read().expect_err(wanted).to_string();
        assert!(failure.contains(wanted), "{failure}");
    }
    drop((received, rate));
    site.kill(process);
    wait_until("it is gone", || matches!(connected.read(), Err(Failure::Unreached(_))));
    site.start("redis-server", &[&server[..], &password].concat());
    site.listens(address);
    assert_eq!(connected.value(), 1.0);
}

#[test]
fn redis_over_tls() {
    let mut site = Site::new("redis");
    let at = site.files.path().display().to_string();
    let [certificate, key] = certificate(&site);
    let files =
        ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-auth-clients", "no"];
    let ports =
        ["--port", "0", "--tls-port", "6380", "--bind", "127.0.0.1", "--save", "", "--dir", &at];
    site.start("redis-server", &[&ports[..], &files].concat());
    site.listens("127.0.0.1:6380");
    let reader = |query| site.reader(Kind::Redis(query), "127.0.0.1:9");
    let ours = (Trust::File(certificate.clone().into()), Some("www.example.com".to_owned()));
    let open = redis::Query { password: None, port: Some(6380), ..field("connected_clients") };
    assert_eq!(reader(redis::Query { tls: Some(ours), ..open.clone() }).value(), 1.0);
    let others = redis::Query { tls: Some((Trust::System, None)), ..open };
    assert!(matches!(reader(others).read(), Err(Failure::Unreached(_))));
}
