//! Services and servers that come and go with a reload while clients ask (L8, L9, L15).

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use vipa::lab::Namespace;
use vipa::lab::topology::vipas;
use vipa::wire::ip::Family;

use super::farm::{BULK, Server, WEB, address, endpoint, wait_for_servers, who};
use crate::fixture::{Bench, PATIENCE, Setup, wait_until};

fn at(port: u16) -> SocketAddr {
    SocketAddr::new(vipas(Family::V4)[0], port)
}

/// A `[[service]]` of the first VIPA, asked for its servers' answers as the fixture asks for those of others.
fn service(port: u16, to: u16, policy: &str, servers: &[u8]) -> String {
    let mut text = format!(
        "\n[[service]]\nname = \"p{port}\"\naddress = \"{}\"\nprotocol = \"tcp\"\n{policy}\n\
         [[service.status]]\nname = \"alive\"\nrole = \"response-time\"\nkind = \"tcp\"\nport = 8080\nevery = \"200ms\"\n",
        at(port)
    );
    for number in servers {
        let end = endpoint(address(*number, Family::V4), to);
        text += &format!("[[service.server]]\nname = \"s{number}\"\naddress = \"{end}\"\n");
    }
    text
}

/// One request of one connection; its answer.
fn request(stream: &mut TcpStream, is_last: bool) -> io::Result<String> {
    let connection = if is_last { "close" } else { "keep-alive" };
    let request = format!("GET /who HTTP/1.1\r\nHost: vipa\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    loop {
        let length = stream.read(&mut piece)?;
        answer.extend_from_slice(&piece[..length]);
        let text = String::from_utf8_lossy(&answer).into_owned();
        // The answer is so short that its end comes with its beginning.
        if length == 0 || !is_last && text.contains(":8080") {
            return Ok(text);
        }
    }
}

fn connect(from: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A client that asks, each time over a connection of its own.
struct Asking {
    asked: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<String>>,
}

impl Asking {
    fn begin(client: &Namespace, to: SocketAddr) -> Asking {
        let (asked, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, over, client) = (asked.clone(), is_over.clone(), client.clone());
        let thread = thread::spawn(move || {
            let mut failed = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let answer = connect(&client, to).and_then(|mut stream| request(&mut stream, true));
                match answer {
                    Ok(answer) if answer.starts_with("HTTP/1.1 200") => {}
                    other => failed.push(format!("{other:?}")),
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
            failed
        });
        Asking { asked, is_over, thread }
    }

    #[track_caller]
    fn goes_on(&self) {
        let goal = self.asked.load(Ordering::Relaxed) + 20;
        wait_until("it is answered", || self.asked.load(Ordering::Relaxed) >= goal);
    }

    /// How often it asked; no request failed.
    fn finish(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        let failed = self.thread.join().expect("no panic");
        assert!(failed.is_empty(), "{failed:?}");
        self.asked.load(Ordering::Relaxed)
    }
}

#[test]
fn services_and_servers_come_and_go_and_no_request_fails() {
    let bench = Bench::start(&Setup::new(2));
    let (_one, _two) = (Server::start(&bench, 1), Server::start(&bench, 2));
    let client = bench.network.client.clone();
    let without = bench.config();
    let fastest = "policy = \"fastest-response\"";
    let web = |policy: &str, servers: &[u8]| service(80, WEB, policy, servers);
    let bulk = service(BULK, BULK, fastest, &[1]);

    // The first services of all.
    let difference = bench.reload(&format!("{without}{}{bulk}", web(fastest, &[1])));
    assert_eq!(difference["added"], serde_json::json!(["service p80", "service p5201"]));
    wait_for_servers(&bench);
    assert_eq!(who(&bench, &client, at(80)).0, 1);

    let vipa = vipas(Family::V4)[0].to_string();
    let transfer = client
        .command("iperf3")
        .args(["-c", &vipa, "-p", &BULK.to_string(), "-t", "8", "-J"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("iperf3 (tools/packages.txt)");
    let asking = Asking::begin(&client, at(80));
    asking.goes_on();

    // A service more, a server more.
    let more = service(81, WEB, fastest, &[2]);
    let said = bench.reload_by_signal(&format!("{without}{}{bulk}{more}", web(fastest, &[1, 2])));
    assert!(said.contains("service p81") && said.contains("server p80/s2"), "{said}");
    asking.goes_on();
    wait_for_servers(&bench);
    assert_eq!(who(&bench, &client, at(81)).0, 2);

    // Another policy, which prefers one server for certain; another weight; the order of services.
    let weighted = "choose = \"weighted\"\nscore = \"alive + 1.0\"";
    let text = format!("{without}{more}{}{bulk}", web(weighted, &[1, 2]));
    assert_eq!(bench.reload(&text)["changed"], serde_json::json!(["service p80: policy, choose"]));
    let served = |number: u8| (0..200).any(|_| who(&bench, &client, at(80)).0 == number);
    assert!(served(1) && served(2), "both have their share");
    asking.goes_on();

    // A server less, with a connection open: that goes on.
    let mut on_two = (0..200)
        .map(|_| connect(&client, at(80)).expect("a connection"))
        .find_map(|mut stream| {
            let answer = request(&mut stream, false).expect("an answer");
            answer.contains("\r\n\r\n2 ").then_some(stream)
        })
        .expect("one is the second server's");
    let mut on_more = connect(&client, at(81)).expect("a connection");
    request(&mut on_more, false).expect("an answer");
    let difference = bench.reload(&format!("{without}{}{bulk}", web(weighted, &[1])));
    assert_eq!(difference["removed"], serde_json::json!(["service p81", "server p80/s2"]));
    asking.goes_on();
    assert_eq!(who(&bench, &client, at(80)).0, 1);
    for stream in [&mut on_two, &mut on_more] {
        let answer = request(stream, false).expect("it goes on");
        assert!(answer.contains("\r\n\r\n2 "), "{answer}");
    }
    // The service takes no new one, and its port is not yet the host's own.
    let refused = connect(&client, at(81)).expect_err("it is gone").kind();
    assert_eq!(refused, io::ErrorKind::ConnectionRefused);
    let listen = || TcpListener::bind(at(81));
    let listener = bench.network.host.run(listen).expect("nobody has the port");
    thread::spawn(move || while listener.accept().is_ok() {});
    assert_eq!(
        connect(&client, at(81)).expect_err("not yet").kind(),
        io::ErrorKind::ConnectionRefused
    );
    request(&mut on_more, true).expect("its last answer");
    // That of one that has no connection is.
    let text = format!("{without}{}{bulk}", web(weighted, &[1]));
    bench.reload(&format!("{text}{}", service(82, WEB, fastest, &[2])));
    assert_eq!(bench.reload(&text)["removed"], serde_json::json!(["service p82"]));
    let listener = bench.network.host.run(|| TcpListener::bind(at(82))).expect("a free port");
    thread::spawn(move || while listener.accept().is_ok() {});
    wait_until("the port is the host's", || connect(&client, at(82)).is_ok());

    assert!(asking.finish() > 100);
    let output = transfer.wait_with_output().expect("it ends");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success() && said["error"].is_null(), "{said}");
    // And none at all.
    bench.reload(&without);
    assert_eq!(bench.status()["balance"]["services"], serde_json::json!([]));
}

#[test]
fn a_server_added_by_hand_that_sees_the_client_is_answered_through_here() {
    let keeps = "mode = \"nat\"\nkeep-client = true\npolicy = \"fastest-response\"";
    let bench = Bench::start(&Setup::new(2));
    bench.reload(&format!("{}{}", bench.config(), service(80, WEB, keeps, &[1])));
    let servers = [1, 2].map(|number| Server::start(&bench, number));
    for server in &servers {
        let back = vipa::lab::Hop::via("10.1.2.2");
        server.namespace.route("10.9.0.0/24", &[back], None).expect("a route");
    }
    wait_for_servers(&bench);
    let client = bench.network.client.clone();
    assert_eq!(who(&bench, &client, at(80)).0, 1);
    let second = endpoint(address(2, Family::V4), WEB);
    let ask = |arguments: &[&str]| {
        let output = bench.vipa(arguments);
        assert!(output.status.success(), "{output:?}");
    };
    ask(&["server", "add", "p80", "s2", &second]);
    ask(&["server", "check", "s2"]);
    ask(&["server", "drain", "s1"]);
    wait_for_servers(&bench);
    let (number, seen, _) = who(&bench, &client, at(80));
    assert_eq!((number, seen), (2, vipa::lab::topology::client_address(Family::V4)));
}
