//! Services under load: `cargo bench --bench services [-- --flood --rounds N --syns N --gigabit]`, as root.
//!
//! *Effect*: how long it takes from a status until the new server has its first connection. One client connects again and again to
//! a service with two servers; a value pushed through the control socket, then one that an HTTP server answers, makes the other
//! server the preferred one, a hundred times each. From just before the message, or the answer, is written until the server's accept(2)
//! returns, the client's next connection and this machine's scheduler included.
//!
//! *Flood* (with `--flood` this alone): one TCP stream of a client through a service, and SYNs from spoofed sources for another service of
//! the same VIPA, so many a second, put onto the link in front of one of the host's NICs by a packet socket, while new clients ask that one
//! too; in turn, round by round, with the forwarder having to see to them, and with nftables dropping them at that NIC's ingress. What
//! counts is the ratio of the medians. Told of each round as well: how long new clients took to connect, median and worst, and the
//! forwarder's memory. All of it, the servers, the router and who floods, shares the processors of one machine. With `--gigabit` the client
//! sends by a link of 1 Gbit/s.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use pnet::datalink::{self, Channel, DataLinkSender};
use serde_json::{Value, json};
use vipa::lab::topology::{Network, vipas};
use vipa::lab::{self, Forwarder, Hop, Namespace, veth};
use vipa::wire::ip::Family;

use crate::common::median;

type Error = Box<dyn std::error::Error + Send + Sync>;

const READY: Duration = Duration::from_secs(10);
const PUSHED_PORT: u16 = 80;
const ASKED_PORT: u16 = 81;
const BULK_PORT: u16 = 82;
const SERVER_PORT: u16 = 8080;
const BULK_SERVER_PORT: u16 = 8081;
const STATUS_PORT: u16 = 9000;
const SWITCHES: usize = 100;
const PAUSE: Duration = Duration::from_millis(20);
const CLIENTS: usize = 8;
/// A flood is known as one within half a second.
const WARM_UP: Duration = Duration::from_millis(1000);
const MEASURED: Duration = Duration::from_millis(1500);

fn main() -> Result<(), Error> {
    let rounds = argument("--rounds").unwrap_or(5) as usize;
    let rates = argument("--syns").map_or(vec![10_000, 30_000, 100_000], |syns| vec![syns]);
    lab::enter()?;
    let network = Network::new(2)?;
    let servers = [place(&network, 1)?, place(&network, 2)?];
    let values = Values(Arc::new(Mutex::new((9, None))));
    let servers = servers.map(|place| Server::start(place, &values));
    let [first, second] = servers;
    let servers = [first?, second?];
    let directory = Path::new("/run"); // ours alone after `enter`
    let config = directory.join("vipa.toml");
    std::fs::write(&config, config_of())?;
    let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
    let mut forwarder = Forwarder::new(&network.host, program, &config, directory)?;
    forwarder.start_and_wait(READY)?;
    let mut control = Control::connect(directory)?;
    control.push(0, 5)?;
    control.push(1, 9)?;
    while forwarder.status()?["balance"]["services"]
        .as_array()
        .is_none_or(|services| services.iter().any(|service| service["choice"] == "none"))
    {
        thread::sleep(PAUSE);
    }

    if !std::env::args().any(|argument| argument == "--flood") {
        println!("from the status to the new server's first connection, ms, of {SWITCHES}");
        println!("{:<12} {:>8} {:>8}", "", "median", "worst");
        let push = |server_is_second: bool, control: &mut Control| -> Result<Instant, Error> {
            let written = Instant::now();
            control.push(1, if server_is_second { 1 } else { 9 })?;
            Ok(written)
        };
        let took =
            effects(&network.client, PUSHED_PORT, &servers, |second| push(second, &mut control))?;
        show("pushed", took);
        let took = effects(&network.client, ASKED_PORT, &servers, |second| {
            Ok(values.change(if second { 1 } else { 9 }))
        })?;
        show("http-json", took);
    }
    drop(control);

    println!(
        "\none TCP stream through a service while it is flooded with SYNs, Gbit/s; {rounds} rounds of {MEASURED:?}"
    );
    println!(
        "{:>8} {:>5} {:>9} {:>9} {:>9} {:>8} {:>10} {:>10} {:>12} {:>9} {:>7}",
        "SYN/s",
        "round",
        "no flood",
        "dropped",
        "served",
        "sent/s",
        "half-open",
        "connected",
        "in ms, worst",
        "RSS KiB",
        "more"
    );
    network.router.run(|| {
        std::process::Command::new("ip")
            .args(["route", "add", "blackhole", "198.18.0.0/15"])
            .status()
    })?;
    let attacker = Attacker::new(&network)?;
    if std::env::args().any(|argument| argument == "--gigabit") {
        network.client.tbf("c0", 1_000_000_000, 256 << 10, 1 << 20)?;
    }
    for rate in rates {
        let mut columns: [Vec<f64>; 3] = Default::default();
        for round in 1..=rounds {
            let none = stream(&network, &servers[0])?;
            drop_syns(&network.host, true)?;
            let flood = attacker.start(rate);
            let clients = Clients::start(&network.client);
            let dropped = stream(&network, &servers[0])?;
            clients.stop();
            flood.stop();
            drop_syns(&network.host, false)?;
            let before = resident(&forwarder)?;
            let flood = attacker.start(rate);
            let clients = Clients::start(&network.client);
            let served = stream(&network, &servers[0])?;
            let status = forwarder.status()?;
            let (connected, asked) = clients.stop();
            let sent = flood.stop();
            let worker = &status["workers"][0];
            let after = resident(&forwarder)?;
            let ms = connected.iter().map(|took| took.as_secs_f64() * 1e3).collect::<Vec<_>>();
            let worst = ms.iter().copied().fold(0.0, f64::max);
            println!(
                "{rate:>8} {round:>5} {none:>9.2} {dropped:>9.2} {served:>9.2} {sent:>8.0} {:>10} {:>10} {:>12} {after:>9} {:>7}",
                worker["flows_half_open"],
                format!("{}/{asked}", ms.len()),
                format!("{:.0}, {worst:.0}", median(ms)),
                format!("{:+}", after as i64 - before as i64),
            );
            for (column, value) in columns.iter_mut().zip([none, dropped, served]) {
                column.push(value);
            }
        }
        let [none, dropped, served] = columns.map(median);
        println!(
            "{rate:>8} {:>5} {none:>9.2} {dropped:>9.2} {served:>9.2}   {:.3} of dropped",
            "med.",
            served / dropped
        );
    }
    let status = forwarder.status()?;
    let (worker, drops) = (&status["workers"][0], &status["drops"]);
    println!("evicted {}; drops {}", worker["flows_evicted"], told(drops));
    Ok(())
}

fn argument(name: &str) -> Option<u64> {
    let mut args = std::env::args().skip_while(|arg| arg != name).skip(1);
    args.next().and_then(|text| text.parse().ok()).filter(|n| *n > 0)
}

fn show(what: &str, took: Vec<Duration>) {
    let ms: Vec<f64> = took.iter().map(|took| took.as_secs_f64() * 1e3).collect();
    let worst = ms.iter().copied().fold(0.0, f64::max);
    println!("{what:<12} {:>8.2} {worst:>8.2}", median(ms));
}

/// Those that are not zero.
fn told(drops: &Value) -> Value {
    let Some(drops) = drops.as_object() else { return Value::Null };
    drops.iter().filter(|(_, count)| **count != 0).map(|(a, b)| (a.clone(), b.clone())).collect()
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 1, 2, 10 + number])
}

fn vipa(port: u16) -> SocketAddr {
    SocketAddr::new(vipas(Family::V4)[0], port)
}

/// A network for a server on the link behind eth2.
fn place(network: &Network, number: u8) -> Result<Namespace, Error> {
    let namespace = Namespace::new(&format!("server {number}"))?;
    let port = format!("s{number}");
    veth((&namespace, "eth0"), (network.cables(), port.as_str()))?;
    network.cables().enslave(&port, "b2")?;
    namespace.address(&format!("{}/24", address(number)), "eth0")?;
    namespace.route("0.0.0.0/0", &[Hop::via("10.1.2.1")], None)?;
    Ok(namespace)
}

fn config_of() -> String {
    let vipa = vipas(Family::V4)[0];
    let mut text = format!("[virtual]\nname = \"vipa0\"\naddresses = [\"{vipa}\"]\n");
    for nic in 1..=2 {
        text += &format!("[[nic]]\nname = \"eth{nic}\"\ngateway = [\"10.1.{nic}.1\"]\n");
    }
    let push = "kind = \"push\"\nmax-age = \"1h\"".to_owned();
    let json = format!(
        "kind = \"http-json\"\nurl = \"http://{{host}}:{STATUS_PORT}/\"\nselect = \"/load\"\nevery = \"50ms\""
    );
    let alive = "kind = \"tcp\"\nevery = \"1s\"".to_owned();
    let services = [
        ("pushed", PUSHED_PORT, SERVER_PORT, push),
        ("asked", ASKED_PORT, SERVER_PORT, json),
        ("bulk", BULK_PORT, BULK_SERVER_PORT, alive),
    ];
    for (name, port, to, status) in services {
        text += &format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vipa}:{port}\"\nprotocol = \"tcp\"\nmode = \"nat\"\nscore = \"load\"\n\
             [[service.status]]\nname = \"load\"\n{status}\n"
        );
        // All the bulk has one.
        for number in 1..=(if name == "bulk" { 1 } else { 2 }) {
            text += &format!(
                "[[service.server]]\nname = \"s{number}\"\naddress = \"{}:{to}\"\n",
                address(number)
            );
        }
    }
    text
}

/// The operator's connection.
struct Control(BufReader<UnixStream>);

impl Control {
    fn connect(directory: &Path) -> Result<Control, Error> {
        let entries = std::fs::read_dir(directory.join("state"))?.filter_map(Result::ok);
        let mut paths = entries.map(|entry| entry.path());
        let socket = paths.find(|path| path.extension().is_some_and(|e| e == "sock"));
        Ok(Control(BufReader::new(UnixStream::connect(socket.ok_or("no control socket")?)?)))
    }

    fn push(&mut self, server: usize, load: u32) -> Result<(), Error> {
        let server = format!("pushed/s{}", server + 1);
        let request = json!({"command": "push", "server": server, "status": "load", "line": load.to_string()});
        self.0.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut answer = String::new();
        self.0.read_line(&mut answer)?;
        if answer.contains("error") { Err(answer.into()) } else { Ok(()) }
    }
}

/// What the servers' HTTP answers say: the first always 5, the second what is wanted.
#[derive(Clone)]
struct Values(Arc<Mutex<(u8, Answered)>>);

/// Is told when the next answer was about to be written.
type Answered = Option<mpsc::Sender<Instant>>;

impl Values {
    /// From the next answer on; when that was written.
    fn change(&self, load: u8) -> Instant {
        let (sender, receiver) = mpsc::channel();
        *self.0.lock().expect("no panic") = (load, Some(sender));
        receiver.recv().expect("somebody asks")
    }
}

/// One server: who connects is noted, bulk is swallowed, and its load is told.
struct Server {
    accepted: mpsc::Receiver<Instant>,
    swallowed: Arc<AtomicU64>,
}

impl Server {
    fn start(place: Namespace, values: &Values) -> Result<Server, Error> {
        let listen = |port| place.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
        let (web, bulk, status) =
            (listen(SERVER_PORT)?, listen(BULK_SERVER_PORT)?, listen(STATUS_PORT)?);
        let (sender, accepted) = mpsc::channel();
        thread::spawn(move || {
            while let Ok((mut stream, _)) = web.accept() {
                let _ = sender.send(Instant::now());
                let _ = stream.write_all(b"1");
                // Who closes first is left with TIME-WAIT: the client, so that no port of the VIPA's is in it.
                let _ = stream.set_read_timeout(Some(PAUSE));
                let _ = stream.read(&mut [0]);
            }
        });
        let swallowed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&swallowed);
        thread::spawn(move || {
            for mut stream in bulk.incoming().map_while(Result::ok) {
                let count = Arc::clone(&count);
                thread::spawn(move || {
                    let mut block = vec![0; 1 << 20];
                    while let Ok(length @ 1..) = stream.read(&mut block) {
                        count.fetch_add(length as u64, Relaxed);
                    }
                });
            }
        });
        let is_second = place.run(|| TcpListener::bind((address(2), 0))).is_ok();
        let values = values.clone();
        thread::spawn(move || {
            for stream in status.incoming().map_while(Result::ok) {
                let values = values.clone();
                thread::spawn(move || tell(stream, is_second, &values));
            }
        });
        Ok(Server { accepted, swallowed })
    }
}

fn tell(mut stream: TcpStream, is_second: bool, values: &Values) {
    let _ = stream.set_nodelay(true);
    let mut request = [0; 4096];
    while stream.read(&mut request).is_ok_and(|length| length > 0) {
        let (load, sender) = match &mut *values.0.lock().expect("no panic") {
            (load, answered) if is_second => (*load, answered.take()),
            _ => (5, None),
        };
        let body = format!("{{\"load\": {load}}}");
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let now = Instant::now();
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
        if let Some(sender) = sender {
            let _ = sender.send(now);
        }
    }
}

/// How long each of the switches took that `switch` brings about; it returns when the status was on its way.
fn effects(
    client: &Namespace,
    port: u16,
    servers: &[Server; 2],
    mut switch: impl FnMut(bool) -> Result<Instant, Error>,
) -> Result<Vec<Duration>, Error> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            client.run(|| {
                while !is_over.load(Relaxed) {
                    if let Ok(mut stream) = TcpStream::connect_timeout(&vipa(port), READY) {
                        let _ = stream.set_read_timeout(Some(READY));
                        let _ = stream.read(&mut [0]);
                    }
                }
            });
        });
        let mut measure = || -> Result<Vec<Duration>, Error> {
            let mut took = Vec::new();
            for count in 0..=SWITCHES {
                let to = (count + 1) % 2;
                for server in servers {
                    let _ = server.accepted.try_iter().count();
                }
                let written = switch(to == 1)?;
                let first = loop {
                    let at = servers[to].accepted.recv_timeout(READY)?;
                    if at > written {
                        break at;
                    }
                };
                // The first may only begin from what was before.
                if count > 0 {
                    took.push(first - written);
                }
                thread::sleep(PAUSE);
            }
            Ok(took)
        };
        let took = measure();
        is_over.store(true, Relaxed);
        let _ = connecting.join();
        took
    })
}

/// Gbit/s of one stream from the client to the bulk's server.
fn stream(network: &Network, server: &Server) -> Result<f64, Error> {
    let stream = network.client.run(|| TcpStream::connect_timeout(&vipa(BULK_PORT), READY))?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let block = vec![0x5a; 256 << 10];
            while (&stream).write_all(&block).is_ok() {
                if is_over.load(Relaxed) {
                    break;
                }
            }
        });
        thread::sleep(WARM_UP);
        let (began, before) = (Instant::now(), server.swallowed.load(Relaxed));
        thread::sleep(MEASURED);
        let bytes = server.swallowed.load(Relaxed) - before;
        let seconds = began.elapsed().as_secs_f64();
        is_over.store(true, Relaxed);
        stream.shutdown(Shutdown::Both)?;
        let _ = sending.join();
        Ok(bytes as f64 * 8.0 / seconds / 1e9)
    })
}

/// nftables at eth1's ingress.
fn drop_syns(host: &Namespace, is_on: bool) -> Result<(), Error> {
    let rules = if is_on {
        "table netdev flood { chain ingress { type filter hook ingress device eth1 priority 0; ip saddr 198.18.0.0/15 drop; }; }"
    } else {
        "delete table netdev flood"
    };
    let status = host.command("nft").arg(rules).status()?;
    if status.success() { Ok(()) } else { Err("nft (tools/packages.txt)".into()) }
}

/// KiB of the forwarder's memory that are in use.
fn resident(forwarder: &Forwarder) -> Result<u64, Error> {
    let pid = forwarder.pid().ok_or("it runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// New clients: each connects, has a byte, and comes again.
struct Clients {
    is_over: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<(Vec<Duration>, usize)>>,
}

impl Clients {
    fn start(place: &Namespace) -> Clients {
        let is_over = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS).map(|_| {
            let (shared, place) = (Arc::clone(&is_over), place.clone());
            thread::spawn(move || place.run(|| Clients::come_again(&shared)))
        });
        Clients { threads: threads.collect(), is_over }
    }

    /// How long each took to connect that did, and how often it was tried.
    fn come_again(is_over: &AtomicBool) -> (Vec<Duration>, usize) {
        let (mut connected, mut asked) = (Vec::new(), 0);
        while !is_over.load(Relaxed) {
            asked += 1;
            let timeout = Duration::from_secs(8);
            let began = Instant::now();
            let byte =
                TcpStream::connect_timeout(&vipa(PUSHED_PORT), timeout).and_then(|mut stream| {
                    let took = began.elapsed();
                    stream.set_read_timeout(Some(timeout))?;
                    stream.read_exact(&mut [0]).map(|()| took)
                });
            match byte {
                Ok(took) => connected.push(took),
                Err(error) => eprintln!("a new client: {error}"),
            }
            thread::sleep(Duration::from_millis(20));
        }
        (connected, asked)
    }

    fn stop(self) -> (Vec<Duration>, usize) {
        self.is_over.store(true, Relaxed);
        let all = self.threads.into_iter().map(|thread| thread.join().expect("no panic"));
        let add = |a: (Vec<_>, _), b: (Vec<_>, _)| ([a.0, b.0].concat(), a.1 + b.1);
        all.fold(Default::default(), add)
    }
}

/// Who floods, on the link of eth1.
struct Attacker(Namespace);

struct Flood {
    is_over: Arc<AtomicBool>,
    began: Instant,
    thread: thread::JoinHandle<u64>,
}

impl Attacker {
    fn new(network: &Network) -> Result<Attacker, Error> {
        let namespace = Namespace::new("attacker")?;
        veth((&namespace, "eth0"), (network.cables(), "x1"))?;
        network.cables().enslave("x1", "b1")?;
        Ok(Attacker(namespace))
    }

    /// So many SYNs a second, in portions of a millisecond.
    fn start(&self, rate: u64) -> Flood {
        let is_over = Arc::new(AtomicBool::new(false));
        let (shared, place) = (Arc::clone(&is_over), self.0.clone());
        let thread = thread::spawn(move || {
            place.run(|| {
                let Some(mut link) = link() else { return 0 };
                let (began, mut sent) = (Instant::now(), 0);
                while !shared.load(Relaxed) {
                    let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
                    // What it is behind by more than 20 ms is not caught up: it would be a burst.
                    sent = sent.max(due.saturating_sub(rate / 50));
                    while sent < due {
                        let _ = link.send_to(&syn(sent as u32), None);
                        sent += 1;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                sent
            })
        });
        Flood { is_over, began: Instant::now(), thread }
    }
}

impl Flood {
    /// SYNs a second.
    fn stop(self) -> f64 {
        self.is_over.store(true, Relaxed);
        let seconds = self.began.elapsed().as_secs_f64();
        self.thread.join().expect("no panic") as f64 / seconds
    }
}

fn link() -> Option<Box<dyn DataLinkSender>> {
    let interface = datalink::interfaces().into_iter().find(|i| i.name == "eth0")?;
    match datalink::channel(&interface, datalink::Config::default()).ok()? {
        Channel::Ethernet(sender, _) => Some(sender),
        _ => None,
    }
}

/// Another spoofed source, port and sequence number for each number.
fn syn(number: u32) -> Vec<u8> {
    let mixed = number.wrapping_mul(0x9e37_79b9);
    let [_, a, b, c] = (mixed >> 8).to_be_bytes();
    let source = [198, 18 + (a & 1), b, c];
    let port = 1024 + (number.wrapping_mul(0x85eb_ca6b) >> 17) as u16;
    let IpAddr::V4(vipa) = vipas(Family::V4)[0] else { return Vec::new() };
    let mut bytes = Vec::with_capacity(64);
    let step = etherparse::PacketBuilder::ethernet2([2, 9, 9, 9, 9, 9], [2, 0, 0, 1, 1, 2]);
    let step = step.ipv4(source, vipa.octets(), 64).tcp(port, PUSHED_PORT, mixed, 64240).syn();
    let _ = step.write(&mut bytes, &[]);
    bytes
}
