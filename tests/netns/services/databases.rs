//! Three PostgreSQL servers with real sessions behind one address: who comes goes to the one with the least connected
//! users, the patent's own example (US 6,327,622, column 10).

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use vipa::lab::topology::vipas;
use vipa::lab::{Namespace, Process};
use vipa::wire::ip::Family;

use super::farm::{address, endpoint, place};
use crate::fixture::{Bench, Setup, listens, wait_until};
use crate::postgres;

const PORT: u16 = 5432;
const SESSIONS: &str = "select count(*) from pg_stat_activity \
                        where backend_type = 'client backend' and pid <> pg_backend_pid()";
const RULES: &str = "local all all trust\nhost all all 0.0.0.0/0 trust\n";
const NUMBERS: [u8; 3] = [1, 2, 3];

/// A server that is asked to end: killed, it would leave its memory in the kernel.
struct Database(Process);

impl Drop for Database {
    fn drop(&mut self) {
        postgres::quit(&mut self.0);
    }
}

/// A user who stays connected.
struct Session {
    psql: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
    /// The server's number, and its process for this session.
    at: (u8, u32),
}

impl Session {
    fn open(place: &Namespace, at: SocketAddr) -> Session {
        let url = format!("postgresql://ann@{at}/postgres");
        let mut command = place.command("psql");
        command.args(["-X", "-A", "-t", "-q", &url]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut psql = command.spawn().expect("psql (tools/packages.txt)");
        let say = psql.stdin.take().expect("a pipe");
        let hear = BufReader::new(psql.stdout.take().expect("a pipe"));
        let mut session = Session { psql, say, hear, at: (0, 0) };
        session.at = session.who();
        session
    }

    fn who(&mut self) -> (u8, u32) {
        let question = "select host(inet_server_addr()) || ' ' || pg_backend_pid();\n";
        self.say.write_all(question.as_bytes()).expect("psql lives");
        let mut line = String::new();
        self.hear.read_line(&mut line).expect("psql answers");
        let (server, pid) = line.trim().split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        let is_it = |number: &&u8| address(**number, Family::V4).to_string() == server;
        let number = NUMBERS.iter().find(is_it).unwrap_or_else(|| panic!("{line:?}"));
        (*number, pid.parse().expect("a number"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

/// The sessions of each server as they were read last, and the number of the preferred one.
fn status(bench: &Bench) -> ([Option<f64>; 3], Option<u8>) {
    let status = bench.status();
    let service = &status["balance"]["services"][0];
    let read = [0, 1, 2].map(|at| service["servers"][at]["values"][0]["value"].as_f64());
    (read, service["choice"].as_str().and_then(|name| name.strip_prefix('s')?.parse().ok()))
}

#[test]
fn sessions_go_to_the_postgresql_with_the_fewest_and_stay() {
    let vipa = SocketAddr::new(vipas(Family::V4)[0], PORT);
    let servers = NUMBERS.map(|number| {
        let at = endpoint(address(number, Family::V4), PORT);
        format!("[[service.server]]\nname = \"s{number}\"\naddress = \"{at}\"\n")
    });
    let bench = Bench::start(&Setup::new(2).whole_service(&format!(
        "name = \"database\"\naddress = \"{vipa}\"\nprotocol = \"tcp\"\nmode = \"nat\"\npolicy = \"least-loaded\"\n{}\
         [[service.status]]\nname = \"users\"\nrole = \"clients\"\nkind = \"sql\"\nuser = \"monitor\"\n\
         database = \"postgres\"\nquery = \"{SESSIONS}\"\nevery = \"100ms\"\ntimeout = \"10s\"\n",
        servers.concat()
    )));
    let places = NUMBERS.map(|number| place(&bench, number));
    let roles =
        "create role ann login;\ncreate role monitor login;\ngrant pg_monitor to monitor;\n";
    let first = postgres::data(&places[0], bench.scratch.path(), RULES, roles);
    let _databases = NUMBERS.map(|number| {
        let place = &places[usize::from(number) - 1];
        let at = SocketAddr::new(address(number, Family::V4), PORT);
        let data = postgres::copy(&first, &format!("data{number}"));
        let mut process = postgres::start(place, &data, at, &[]);
        listens(place, &mut process, &[at]);
        Database(process)
    });
    let client = &bench.network.client;
    let direct = |number| Session::open(client, SocketAddr::new(address(number, Family::V4), PORT));

    wait_until("all are read", || status(&bench).0.iter().all(Option::is_some));
    let mut others = vec![direct(1), direct(1), direct(1), direct(2)];
    let mut counts = [3, 1, 0];
    let mut sessions: Vec<Session> = Vec::new();
    let settled = |counts: &[i32; 3]| {
        let mut preferred = 0;
        wait_until(&format!("they are read as {counts:?}"), || {
            let (read, choice) = status(&bench);
            preferred = choice.unwrap_or(0);
            read == counts.map(|count| Some(f64::from(count)))
        });
        preferred
    };
    for _ in 0..6 {
        let preferred = settled(&counts);
        let session = Session::open(client, vipa);
        assert_eq!(session.at.0, preferred);
        let at = usize::from(session.at.0) - 1;
        assert_eq!(counts[at], *counts.iter().min().expect("three"), "{counts:?}, to {preferred}");
        counts[at] += 1;
        sessions.push(session);
    }
    // More users for the preferred one, who came by another way.
    let before = settled(&counts);
    for _ in 0..3 {
        others.push(direct(before));
        counts[usize::from(before) - 1] += 1;
    }
    assert_ne!(settled(&counts), before);
    let session = Session::open(client, vipa);
    assert_ne!(session.at.0, before);
    sessions.push(session);
    for session in &mut sessions {
        assert_eq!(session.who(), session.at, "a session stays where it is");
    }
}
