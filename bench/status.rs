//! What the monitor costs its thread: `cargo bench --bench status`.
//!
//! 50 services of 20 servers with 3 status objects each, every one read once a second over a connection that is kept:
//! 3,000 connections to nginx, 3,000 requests a second. What is told: the processor time of that one thread, as a share
//! of a core, with all decisions, half of the services by a preferred server and half by weights. Needs root (a network of its own) and nginx.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vipa::balance::monitor::{Monitor, ServiceStatus, World};
use vipa::balance::policy::Policy;
use vipa::balance::schedule::Balance;
use vipa::balance::service::{Choose, Mode, OnDeath, Server, Settings, WhenNone};
use vipa::balance::status::http::{Request, Url};
use vipa::balance::status::http_status::Expected;
use vipa::balance::status::prometheus::Selection;
use vipa::balance::status::tls::Trust;
use vipa::balance::status::{self, Every, Kind, Role};
use vipa::forward::publish::channel;
use vipa::lab::{Namespace, Process, Scratch};

const VIPA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 10));
const SERVICES: u32 = 50;
const SERVERS: u32 = 20;
const EVERY: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_secs(4);
const MEASURED: Duration = Duration::from_secs(10);
/// A page such as an exporter of a small program has.
const METRICS: u32 = 60;

fn main() {
    let network = Namespace::new("servers").expect("a network (needs root)");
    let files = Scratch::new().expect("a directory");
    let _server = nginx(&network, &files);
    network.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(measure());
    });
}

async fn measure() {
    let (publisher, _) = channel(0, Arc::default());
    let world = World { vipas: vec![VIPA], workers: 1 };
    let balance = Balance::new(Monitor::new(world, publisher));
    balance.start();
    let services: Vec<Settings> = (0..SERVICES).map(service).collect();
    balance.configure(&[VIPA], &services).expect("services");
    tokio::time::sleep(WARM_UP).await;
    let before = (Instant::now(), processor_time(), balance.report());
    tokio::time::sleep(MEASURED).await;
    let (elapsed, used, after) =
        (before.0.elapsed(), processor_time() - before.1, balance.report());
    let (readings, failed) =
        (after.readings - before.2.readings, after.failed_readings - before.2.failed_readings);
    let up = |service: &ServiceStatus| service.servers.iter().filter(|of| of.state == "up").count();
    println!(
        "{:.1} % of a core, {readings} readings in {:.1} s ({:.0} µs each), {failed} failed; {} servers up, {} tables published",
        used.as_secs_f64() / elapsed.as_secs_f64() * 100.0,
        elapsed.as_secs_f64(),
        used.as_secs_f64() * 1e6 / readings as f64,
        after.services.iter().map(up).sum::<usize>(),
        after.generation - before.2.generation,
    );
}

fn service(number: u32) -> Settings {
    let status = |(name, role, kind): (&str, Option<Role>, Kind)| status::Settings {
        name: name.into(),
        role,
        every: Every::Period(EVERY),
        timeout: EVERY,
        kind,
    };
    let [http, json, metrics] = kinds();
    let statuses = [
        ("busy", Some(Role::Pending), http),
        ("clients", Some(Role::Clients), json),
        ("metric", None, metrics),
    ];
    // All of 127/8 is this network's own: each server has its address, and nginx is behind them all.
    let server = |of: u32| {
        let last = (number * SERVERS + of).to_be_bytes();
        Server {
            name: of.to_string().into(),
            address: IpAddr::from([127, 1, last[2], last[3]]),
            port: Some(8000),
            is_local: false,
            weight: 1,
            capacity: None,
            place: (0, 0),
        }
    };
    Settings {
        name: number.to_string().into(),
        address: VIPA,
        ports: 1000 + number as u16..=1000 + number as u16,
        protocol: 6,
        mode: Mode::Nat { sources: Vec::new(), keeps_client: false },
        policy: Policy::LeastLoaded,
        choose: if number.is_multiple_of(2) { Choose::Preferred } else { Choose::Weighted },
        hysteresis: 0.1,
        when_none: WhenNone::Refuse,
        on_death: OnDeath::Reset,
        rise: 2,
        fall: 3,
        slow_start: Duration::ZERO,
        statuses: statuses.into_iter().map(status).collect(),
        servers: (0..SERVERS).map(server).collect(),
    }
}

fn kinds() -> [Kind; 3] {
    let request = |path: &str, most| Request {
        url: Url::parse(&format!("http://{{server}}{path}")).expect("a URL"),
        method: "GET".to_owned(),
        host: None,
        headers: Vec::new(),
        most,
        trust: Trust::System,
    };
    let expected = Expected {
        status: vec![200..=399],
        body: None,
        number_after: Some("Active connections:".to_owned()),
    };
    let selection = Selection {
        metric: format!("metric_{}", METRICS - 1),
        labels: vec![("code".to_owned(), "200".to_owned())],
        is_rate: false,
    };
    [
        Kind::Http { request: request("/status", 4096), expected },
        Kind::HttpJson { request: request("/stats", 4096), select: "/active".to_owned() },
        Kind::Prometheus { request: request("/metrics", 1 << 20), selection },
    ]
}

/// Of the calling thread: its user and system time, in ticks of a hundredth of a second (proc(5)).
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("proc");
    let fields = stat.rsplit_once(')').expect("a name").1.split_ascii_whitespace();
    let ticks: u64 =
        fields.skip(11).take(2).map(|field| field.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

fn nginx(network: &Namespace, files: &Scratch) -> Process {
    let at = files.path().display();
    let metrics: String = (0..METRICS)
        .map(|n| format!("# TYPE metric_{n} counter\nmetric_{n}{{code=\"200\",host=\"a\"}} {n}\n"))
        .collect();
    let write = |name: &str, text: &str| std::fs::write(files.path().join(name), text);
    write("metrics", &metrics).expect("a file");
    write("stats", "{\"active\": 17, \"waiting\": 3, \"name\": \"a\"}").expect("a file");
    let config = format!(
        "user root; daemon off; master_process off; pid {at}/pid; error_log {at}/error;\n\
         worker_rlimit_nofile 20000; events {{ worker_connections 10000; }}\n\
         http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         keepalive_requests 100000; root {at};\n\
         server {{ listen 8000; location = /status {{ stub_status; }} }} }}\n"
    );
    write("nginx.conf", &config).expect("a file");
    let path = files.path().join("nginx.conf");
    let mut command = network.command("nginx");
    command.arg("-p").arg(files.path()).arg("-c").arg(path);
    let server = Process::start(&mut command, &files.path().join("log")).expect("nginx");
    let address = SocketAddr::from(([127, 0, 0, 1], 8000));
    let deadline = Instant::now() + Duration::from_secs(20);
    while network.run(|| std::net::TcpStream::connect(address)).is_err() {
        assert!(Instant::now() < deadline, "nginx does not listen: {}", server.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    server
}
