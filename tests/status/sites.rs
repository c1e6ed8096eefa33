//! `http`, `http-json`, `prometheus` and `tcp` with nginx; files and mail.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use vipa::balance::status::http::Request;
use vipa::balance::status::http_status::Expected;
use vipa::balance::status::prometheus::Selection;
use vipa::balance::status::template::Template;
use vipa::balance::status::tls::Trust;
use vipa::balance::status::{Failure, Kind, Sources, maildir};

use crate::fixture::{Reader, Site, certificate, get, nginx, wait_until};

const SERVERS: [&str; 3] = ["127.0.0.1:8001", "127.0.0.1:8002", "[::1]:8003"];

fn number_after(request: Request, text: &str) -> Kind {
    let expected =
        Expected { status: vec![200..=200], body: None, number_after: Some(text.to_owned()) };
    Kind::Http { request, expected }
}

fn good(request: Request, body: Option<&str>) -> Kind {
    let body = body.map(str::to_owned);
    Kind::Http { request, expected: Expected { status: vec![200..=399], body, number_after: None } }
}

/// The patent's first example: which server has the fewest clients? Of nginx itself.
#[test]
fn the_clients_of_three_nginx_are_counted() {
    let mut site = Site::new("nginx");
    for (n, address) in SERVERS.iter().enumerate() {
        let server =
            format!("server {{ listen {address}; location = /status {{ stub_status; }} }}");
        nginx(&mut site, &format!("nginx{n}"), &server);
        site.listens(address);
    }
    let clients: Vec<Vec<TcpStream>> = [(0, 4), (1, 1), (2, 7)]
        .map(|(n, count)| (0..count).map(|_| site.connect(SERVERS[n])).collect())
        .into();
    let request = || get("http://{server}/status");
    let mut readers: Vec<Reader> = SERVERS
        .iter()
        .map(|server| site.reader(number_after(request(), "Active connections:"), server))
        .collect();
    // One more than the clients is our own.
    for (reader, clients) in readers.iter_mut().zip(&clients) {
        let wanted = clients.len() as f64 + 1.0;
        wait_until("nginx has accepted all", || reader.value() == wanted);
    }
    // The connection is kept: nginx counts the requests of one.
    let handled = |reader: &mut Reader| reader.value();
    let mut accepted = site.reader(number_after(request(), "requests"), SERVERS[0]);
    let first = handled(&mut accepted);
    for _ in 0..10 {
        assert_eq!(handled(&mut accepted), first, "no connection was opened since");
    }
    drop(clients);
    for reader in &mut readers {
        wait_until("its clients have gone", || reader.value() <= 2.0);
    }
}

#[test]
fn the_slow_one_of_three_is_told_by_its_response_time() {
    let mut site = Site::new("nginx");
    let slow = site.serve(|mut stream| {
        let mut request = [0; 4096];
        while stream.read(&mut request).is_ok_and(|length| length > 0) {
            thread::sleep(Duration::from_millis(200));
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow";
            if stream.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    for (n, address) in SERVERS.iter().enumerate() {
        let behind = if n == 1 { format!("proxy_pass http://{slow};") } else { String::new() };
        let body = "return 200 \"quick, and all is well\";";
        let location = if behind.is_empty() { body } else { &behind };
        let server = format!("server {{ listen {address}; location / {{ {location} }} }}");
        nginx(&mut site, &format!("nginx{n}"), &server);
        site.listens(address);
    }
    let best = |address: &str| {
        let mut reader = site.reader(good(get("http://{server}/"), None), address);
        (0..5).map(|_| reader.value()).fold(f64::INFINITY, f64::min)
    };
    let times = SERVERS.map(best);
    assert!(times[1] >= 200.0, "in milliseconds: {times:?}");
    assert!(times[0] < times[1] && times[2] < times[1], "{times:?}");

    let mut reader = site.reader(good(get("http://{server}/"), Some("is well")), SERVERS[0]);
    assert!(reader.value() > 0.0);
    let mut reader = site.reader(good(get("http://{server}/"), Some("is well")), SERVERS[1]);
    let failure = reader.read().expect_err("another body");
    assert_eq!(failure.to_string(), "answered \"slow\", wanted \"is well\" in it");
    let mut reader = site.reader(Kind::Tcp { port: None }, SERVERS[2]);
    assert!(reader.value() > 0.0);
    let mut reader = site.reader(Kind::Tcp { port: Some(8001) }, "127.0.0.1:9");
    assert!(reader.value() > 0.0);
}

#[test]
fn documents_and_metrics_that_nginx_serves() {
    let mut site = Site::new("nginx");
    nginx(
        &mut site,
        "nginx",
        "server { listen 127.0.0.1:8001; location = /gone { return 404 \"{\\\"active\\\":1}\"; }\n\
         location = /who { return 200 \"{\\\"host\\\":\\\"$host\\\",\\\"key\\\":\\\"$http_x_key\\\",\\\"as\\\":\\\"$request_method\\\"}\"; } }",
    );
    site.listens(SERVERS[0]);
    let json = |url: &str, select: &str| {
        let kind = Kind::HttpJson { request: get(url), select: select.to_owned() };
        site.reader(kind, SERVERS[0])
    };
    site.write("nginx/stats", "{\"active\": 17, \"pools\": [{\"load\": \"0.5\"}]}");
    let mut active = json("http://{server}/stats", "/active");
    assert_eq!(active.value(), 17.0);
    assert_eq!(json("http://{host}:{port}/stats", "/pools/0/load").value(), 0.5);
    site.write("nginx/stats", "{\"active\": 18}");
    assert_eq!(active.value(), 18.0);
    let failure = json("http://{server}/gone", "/active").read().expect_err("404");
    assert_eq!(failure.to_string(), "answered status 404, wanted status 200-299");
    let failure = json("http://{server}/stats", "/clients").read().expect_err("no such value");
    assert_eq!(
        failure.to_string(),
        "answered a document without it, wanted a number at \"/clients\""
    );

    let request = Request {
        host: Some("www.example.com".to_owned()),
        headers: vec![("X-Key".to_owned(), "a b".to_owned())],
        method: "POST".to_owned(),
        ..get("http://{server}/who")
    };
    let said = "{\"host\":\"www.example.com\",\"key\":\"a b\",\"as\":\"POST\"}";
    assert!(site.reader(good(request, Some(said)), SERVERS[0]).read().is_ok());
    let head = Request { method: "HEAD".to_owned(), ..get("http://{server}/stats") };
    let mut reader = site.reader(good(head, None), SERVERS[0]);
    assert!(reader.value() > 0.0 && reader.value() > 0.0);

    let metrics = |total: u64| {
        format!(
            "# HELP node_load1 1m load average.\n# TYPE node_load1 gauge\nnode_load1 1.25\n\
             node_cpu_seconds_total{{cpu=\"0\",mode=\"idle\"}} 100.5\n\
             node_cpu_seconds_total{{cpu=\"1\",mode=\"idle\"}} 200.5\n\
             node_cpu_seconds_total{{cpu=\"0\",mode=\"user\"}} 7\n\
             http_requests_total{{code=\"200\"}} {total}\n"
        )
    };
    site.write("nginx/metrics", &metrics(1000));
    let metric = |metric: &str, labels: &[(&str, &str)], is_rate| {
        let labels = labels.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let selection = Selection { metric: metric.to_owned(), labels, is_rate };
        site.reader(
            Kind::Prometheus { request: get("http://{server}/metrics"), selection },
            SERVERS[0],
        )
    };
    assert_eq!(metric("node_load1", &[], false).value(), 1.25);
    assert_eq!(metric("node_cpu_seconds_total", &[("mode", "idle")], false).value(), 301.0);
    let mut rate = metric("http_requests_total", &[], true);
    assert_eq!(rate.read().expect("a reading").value, None, "one count is no rate");
    site.write("nginx/metrics", &metrics(2000));
    assert!(rate.value() > 0.0);
    assert_eq!(rate.value(), 0.0);
}

#[test]
fn a_server_that_closed_a_kept_connection_is_asked_by_another() {
    let site = Site::new("kept");
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    // Two answers a connection, then it closes without a word, as servers do after a time.
    let address = site.serve(move |mut stream| {
        counted.fetch_add(1, Ordering::Relaxed);
        for _ in 0..2 {
            if !stream.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{\"a\": 1}");
        }
    });
    let kind = Kind::HttpJson { request: get("http://{server}/"), select: "/a".into() };
    let mut reader = site.reader(kind, address);
    for _ in 0..6 {
        assert_eq!(reader.value(), 1.0);
    }
    assert_eq!(connections.load(Ordering::Relaxed), 3);
    // After another address nothing of the old connection is left.
    reader.instance.address = site.answer("HTTP/1.1 200 OK\r\n\r\n{\"a\": 2}");
    assert_eq!(reader.value(), 2.0);
}

#[test]
fn a_reading_that_was_given_up_leaves_nothing_for_the_next() {
    let site = Site::new("late");
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    // The first connection's answer comes after its reading was given up.
    let address = site.serve(move |mut stream| {
        let number = counted.fetch_add(1, Ordering::Relaxed);
        let _ = stream.read(&mut [0; 4096]);
        if number == 0 {
            let _ = stream.read(&mut [0; 4096]); // until it is closed
        }
        let body = format!("{{\"a\": {number}}}");
        let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n\r\n{body}").as_bytes());
    });
    let kind = Kind::HttpJson { request: get("http://{server}/"), select: "/a".into() };
    let mut reader = site.reader(kind, address).within(crate::fixture::SHORT);
    assert_eq!(reader.read(), Err(Failure::Timeout));
    reader.timeout = crate::fixture::LONG;
    assert_eq!(reader.value(), 1.0);
}

#[test]
fn https_believes_whom_it_is_told_to() {
    let mut site = Site::new("tls");
    let [certificate, key] = certificate(&site);
    for versions in ["TLSv1.2", "TLSv1.3"] {
        let port = if versions == "TLSv1.2" { 8442 } else { 8443 };
        let server = format!(
            "server {{ listen 127.0.0.1:{port} ssl; listen 127.0.0.2:{port} ssl; ssl_protocols {versions};\n\
             ssl_certificate {certificate}; ssl_certificate_key {key};\n\
             location / {{ return 200 \"$ssl_protocol $ssl_server_name $host\"; }} }}"
        );
        nginx(&mut site, versions, &server);
        let server = format!("127.0.0.1:{port}");
        site.listens(&server);
        let read = |address: &str, trust: &Trust, host: Option<&str>, body: &str| {
            let request = Request {
                trust: trust.clone(),
                host: host.map(str::to_owned),
                ..get("https://{server}/")
            };
            let mut reader = site.reader(good(request, Some(body)), address);
            reader.read().and_then(|_| reader.read())
        };
        let ours = Trust::File(PathBuf::from(&certificate));
        let body = format!("{versions}  127.0.0.1");
        assert!(read(&server, &ours, None, &body).is_ok());
        let body = format!("{versions} www.example.com www.example.com");
        assert!(read(&server, &ours, Some("www.example.com"), &body).is_ok());
        let elsewhere = format!("127.0.0.2:{port}");
        assert!(read(&elsewhere, &Trust::All, None, versions).is_ok());
        for (address, trust, host) in [
            (&server, &Trust::System, None),
            (&elsewhere, &ours, None),
            (&server, &ours, Some("www.example.org")),
        ] {
            let failure = read(address, trust, host, versions).expect_err("a wrong certificate");
            let Failure::Unreached(why) = &failure else { panic!("{failure}") };
            assert!(why.contains("certificate"), "{why}");
        }
    }
    // No TLS there.
    let request = Request { trust: Trust::All, ..get("https://{server}/") };
    let failure = site.reader(good(request, None), site.answer("HTTP/1.1 400 No\r\n\r\n")).read();
    assert!(matches!(failure, Err(Failure::Unreached(_))), "{failure:?}");
}

#[test]
fn what_needs_no_server() {
    let site = Site::new("local");
    site.write("load", "3.5 drain\n");
    let path = |path: &str| Template::parse(path).expect("a path");
    let load = site.path("load").display().to_string();
    let mut reader = site.reader(Kind::File { path: path(&load), most_age: None }, "127.0.0.1:9");
    assert_eq!(reader.value(), 3.5);
    site.write("load", "4");
    assert_eq!(reader.value(), 4.0);
    site.write("127.0.0.1", "5");
    let at = format!("{}/{{host}}", site.files.path().display());
    let mut reader = site.reader(Kind::File { path: path(&at), most_age: None }, "127.0.0.1:9");
    assert_eq!(reader.value(), 5.0);

    let sources = Sources::default();
    let push = Kind::Push { most_age: Duration::from_secs(3600) };
    let mut reader = site.reader_of(push, "127.0.0.1:9", &sources);
    assert_eq!(reader.read(), Err(Failure::Stale));
    let key = ("web", "a", "value");
    sources.pushed.hand_over(key, "6", std::time::Instant::now()).expect("a number");
    assert_eq!(reader.value(), 6.0);

    for mailbox in ["ann", "bob"] {
        for part in ["new", "cur", "tmp"] {
            std::fs::create_dir_all(site.path("mail").join(mailbox).join(part))
                .expect("a directory");
        }
    }
    site.write("mail/ann/new/1.host", "12345");
    let mail = site.path("mail").display().to_string();
    let read = |count| {
        let kind = Kind::Maildir { path: path(&mail), count, most: 100 };
        site.reader(kind, "127.0.0.1:9").value()
    };
    use maildir::Count::{Bytes, Mailboxes, Messages};
    assert_eq!([Mailboxes, Messages, Bytes].map(read), [2.0, 1.0, 5.0]);
}
