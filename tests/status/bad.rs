//! Servers that answer garbage, nothing, forever, too much, or a number that is none: the failure says which.

use std::io::Write;
use std::mem::discriminant;
use std::net::TcpStream;
use std::thread;

use vipa::balance::status::dns::Question;
use vipa::balance::status::http_status::Expected;
use vipa::balance::status::prometheus::Selection;
use vipa::balance::status::{Failure, Kind, redis, sql};

use crate::fixture::{SHORT, Site, get};

fn kinds() -> Vec<(&'static str, Kind)> {
    let request = || get("http://{server}/");
    let selection = Selection { metric: "a".into(), labels: Vec::new(), is_rate: false };
    let redis = redis::Query {
        port: None,
        field: "a".into(),
        section: None,
        is_rate: false,
        user: None,
        password: None,
        tls: None,
    };
    let sql = sql::Query {
        port: None,
        query: "select 1".into(),
        user: "a".into(),
        password: None,
        database: "a".into(),
        tls: None,
    };
    let expected = Expected { status: vec![200..=399], body: None, number_after: Some("a".into()) };
    vec![
        ("http", Kind::Http { request: request(), expected }),
        ("http-json", Kind::HttpJson { request: request(), select: "/a".into() }),
        ("prometheus", Kind::Prometheus { request: request(), selection }),
        ("agent-check", Kind::AgentCheck { port: None, send: "hi\n".into() }),
        ("redis", Kind::Redis(redis)),
        ("sql", Kind::Sql(sql)),
    ]
}

fn answered() -> Failure {
    Failure::Answer { found: String::new(), wanted: String::new() }
}

/// All kinds fail with `wanted` at this server, twice in a row.
fn all_fail(site: &Site, address: impl ToString, wanted: &Failure) {
    for (name, kind) in kinds() {
        let mut reader = site.reader(kind, address.to_string());
        if *wanted == Failure::Timeout {
            reader = reader.within(SHORT);
        }
        for _ in 0..2 {
            let failure = reader.read().expect_err(name);
            assert_eq!(discriminant(&failure), discriminant(wanted), "{name}: {failure}");
            assert!(failure.to_string().len() < 400, "{name}: {failure}");
        }
    }
}

#[test]
fn garbage_is_told_as_an_answer_that_is_none() {
    let site = Site::new("garbage");
    let garbage: Vec<u8> = (0..300).map(|n| (n * 89 % 251) as u8).chain([b'\n']).collect();
    all_fail(&site, site.answer(garbage), &answered());
    all_fail(&site, site.answer("SSH-2.0-OpenSSH_9.2\r\n"), &answered());
    all_fail(&site, site.answer("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), &answered());
}

#[test]
fn nothing_is_told_so() {
    let site = Site::new("nothing");
    let address = site.answer("");
    all_fail(&site, address, &answered());
    for (name, kind) in kinds() {
        let failure = site.reader(kind, address).read().expect_err(name);
        assert!(failure.to_string().contains("nothing"), "{name}: {failure}");
    }
}

#[test]
fn forever_is_a_timeout() {
    let site = Site::new("forever");
    // One says nothing, the other a byte now and then; neither closes.
    all_fail(&site, site.serve(hold), &Failure::Timeout);
    let slow = site.serve(|mut stream| {
        for byte in b"HTTP/1.1 200 OK\r\n".iter().cycle() {
            if stream.write_all(&[*byte]).is_err() {
                return;
            }
            thread::sleep(SHORT);
        }
    });
    for (name, kind) in kinds().into_iter().filter(|(name, _)| name.starts_with("http")) {
        let failure = site.reader(kind, slow).within(SHORT).read().expect_err(name);
        assert_eq!(failure, Failure::Timeout, "{name}");
    }
}

fn hold(stream: TcpStream) {
    let mut stream = stream;
    // Until the reader gives it up.
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

#[test]
fn too_much_is_not_read() {
    let site = Site::new("much");
    for (name, start, piece) in [
        ("http", "HTTP/1.1 200 OK\r\n\r\n", "x"),
        ("http", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "400\r\n"),
        ("http", "HTTP/1.1 200 OK\r\nContent-Length: 4097\r\n\r\n", ""),
        ("http", "HTTP/1.1 200 OK\r\n", "X-Header: x\r\n"),
        ("http-json", "HTTP/1.1 200 OK\r\n\r\n[", "1,"),
        ("prometheus", "HTTP/1.1 200 OK\r\n\r\n", "a 1\n"),
        ("agent-check", "", "up "),
        ("redis", "$10000000\r\n", "a"),
        ("sql", "R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I", "D\0\0\0\x08\0\x01\0\x01"),
        ("sql", "R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I", "D\0\0\0\x06\0\0"),
    ] {
        let address = site.serve(move |mut stream| {
            let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
            let piece = piece.repeat(1000);
            let mut is_read = stream.write_all(start.as_bytes()).is_ok();
            while is_read && !piece.is_empty() {
                is_read = stream.write_all(piece.as_bytes()).is_ok();
            }
        });
        let kind = kinds().into_iter().find(|(kind, _)| *kind == name).expect("a kind").1;
        let failure = site.reader(kind, address).read().expect_err(name);
        let is_told = match (&failure, name) {
            (Failure::TooMuch(_), _) => true,
            // Half of a row that is none; a chunk that ends elsewhere.
            (Failure::Answer { .. }, _) => piece.starts_with('D') || piece.starts_with("400"),
            _ => false,
        };
        assert!(is_told, "{name} {start:?} {piece:?}: {failure}");
    }
}

#[test]
fn what_is_not_finite_is_no_value() {
    let site = Site::new("nan");
    for number in ["NaN", "inf", "-Infinity", "1e999"] {
        let http = |body: String| {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        };
        let info = format!("a:{number}\r\n");
        let row = format!("\0\x01\0\0\0{}{number}", number.len() as u8 as char);
        let answers = [
            ("http", http(format!("a: {number}"))),
            ("http-json", http(format!("{{\"a\":\"{number}\"}}"))),
            ("http-json", http(format!("{{\"a\":{number}}}"))),
            ("prometheus", http(format!("a {number}\n"))),
            ("agent-check", format!("{number}\n")),
            ("redis", format!("${}\r\n{info}\r\n", info.len())),
            (
                "sql",
                format!(
                    "R\0\0\0\x08\0\0\0\0Z\0\0\0\x05ID\0\0\0{}{row}Z\0\0\0\x05I",
                    (row.len() + 4) as u8 as char
                ),
            ),
        ];
        for (name, answer) in answers {
            let kind = kinds().into_iter().find(|(kind, _)| *kind == name).expect("a kind").1;
            let failure = site.reader(kind, site.answer(answer)).read().expect_err(name);
            assert!(matches!(failure, Failure::Answer { .. }), "{name} {number}: {failure}");
        }
    }
}

#[test]
fn a_server_that_is_not_there_is_not_reached() {
    let site = Site::new("nobody");
    let tcp = Kind::Tcp { port: None };
    let dns = Kind::Dns(Question { port: None, name: vec![0], record: 2, answer: None });
    for (name, kind) in
        kinds().into_iter().chain([("tcp", tcp), ("dns", dns), ("ping", Kind::Ping)])
    {
        let refused = "not reached: Connection refused";
        if name != "ping" {
            let failure = site.reader(kind.clone(), "127.0.0.1:9").read().expect_err(name);
            assert_eq!(failure.to_string(), refused, "{name}");
        }
        // This network has no way out.
        let failure = site.reader(kind, "192.0.2.1:9").read().expect_err(name);
        assert_eq!(failure.to_string(), "not reached: Network is unreachable", "{name}");
    }
}

#[test]
fn garbage_over_udp_is_told() {
    let site = Site::new("udp");
    let socket = site.network.run(|| std::net::UdpSocket::bind("127.0.0.1:0")).expect("a port");
    let address = socket.local_addr().expect("an address");
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            // The question once more is no answer to it.
            let _ = socket.send_to(&question[..length], from);
        }
    });
    let question = Question { port: None, name: vec![0], record: 2, answer: None };
    let failure = site.reader(Kind::Dns(question), address).read().expect_err("no answer");
    assert!(matches!(failure, Failure::Answer { .. }), "{failure}");
}
