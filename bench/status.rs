//! What status objects cost the monitor's thread: `cargo bench --bench status`.
//!
//! 50 services of 20 servers with 3 status objects each, every one read once a second over a connection that is kept:
//! 3,000 connections to nginx, 3,000 requests a second. What is told: the processor time of that one thread, as a share
//! of a core, and the readings that came to a value. Needs root (a network of its own) and nginx.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::LocalSet;
use vipa::balance::status::http::{Request, Url};
use vipa::balance::status::http_status::Expected;
use vipa::balance::status::prometheus::Selection;
use vipa::balance::status::tls::Trust;
use vipa::balance::status::{Every, Instance, Kind, Settings, Sources, build};
use vipa::lab::{Namespace, Process, Scratch};

const SERVERS: u32 = 50 * 20;
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
        let local = LocalSet::new();
        local.block_on(&runtime.expect("a runtime"), measure());
    });
}

async fn measure() {
    let readings = Rc::new(Cell::new((0u32, 0u32)));
    for server in 0..SERVERS {
        let last = server.to_be_bytes();
        // All of 127/8 is this network's own: each server has its address, and nginx is behind them all.
        let address = SocketAddr::from(([127, 1, last[2], last[3]], 8000));
        for (number, kind) in kinds().into_iter().enumerate() {
            let settings = Settings {
                name: "value".into(),
                role: None,
                every: Every::Period(EVERY),
                timeout: EVERY,
                kind,
            };
            let mut object = build(&settings, &Sources::default());
            let instance = Instance::new("web", "a", address);
            let readings = readings.clone();
            // Spread over the second, as the monitor's jitter does.
            let offset = EVERY * (server * 3 + number as u32) / (SERVERS * 3);
            tokio::task::spawn_local(async move {
                let mut due = tokio::time::Instant::now() + offset;
                loop {
                    tokio::time::sleep_until(due).await;
                    let read = tokio::time::timeout(EVERY, object.read(&instance)).await;
                    let is_good = matches!(read, Ok(Ok(reading)) if reading.value.is_some());
                    let (good, bad) = readings.get();
                    readings.set(if is_good { (good + 1, bad) } else { (good, bad + 1) });
                    due += EVERY;
                }
            });
        }
    }
    tokio::time::sleep(WARM_UP).await;
    readings.set((0, 0));
    let (began, before) = (Instant::now(), processor_time());
    tokio::time::sleep(MEASURED).await;
    let (elapsed, used) = (began.elapsed(), processor_time() - before);
    let (good, bad) = readings.get();
    println!(
        "{:.1} % of a core, {good} readings in {:.1} s ({:.0} µs each), {bad} failed",
        used.as_secs_f64() / elapsed.as_secs_f64() * 100.0,
        elapsed.as_secs_f64(),
        used.as_secs_f64() * 1e6 / f64::from(good + bad),
    );
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
