//! A network with servers in it, and a reader that does what the monitor does: reads on one thread, and gives a reading
//! up when its time is over.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use vipa::balance::status::http::{Request, Url};
use vipa::balance::status::tls::Trust;
use vipa::balance::status::{
    Every, Failure, Instance, Kind, Reading, Settings, Sources, StatusObject, build,
};
use vipa::lab::{Namespace, Process, Scratch};

/// Within this a server starts, or a condition comes true.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Given to readings that have to come to something.
pub(crate) const LONG: Duration = Duration::from_secs(30);
/// Given to readings that never will.
pub(crate) const SHORT: Duration = Duration::from_millis(300);

/// Tries until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A network of its own with a directory; what was started in it ends with it.
pub(crate) struct Site {
    pub(crate) network: Namespace,
    pub(crate) files: Scratch,
    processes: Vec<Process>,
}

impl Site {
    pub(crate) fn new(name: &str) -> Site {
        let network = Namespace::new(name).expect("a network");
        let files = Scratch::new().expect("a directory");
        Site { network, files, processes: Vec::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a directory takes files");
        path.display().to_string()
    }

    /// Starts a program; what it says is in the file "log".
    pub(crate) fn start(&mut self, program: &str, arguments: &[&str]) -> usize {
        let mut command = self.network.command(program);
        command.args(arguments);
        let process = Process::start(&mut command, &self.path("log"));
        let process = process.unwrap_or_else(|e| panic!("{program} (tools/packages.txt): {e}"));
        self.processes.push(process);
        self.processes.len() - 1
    }

    pub(crate) fn kill(&mut self, process: usize) {
        self.processes[process].kill();
    }

    /// Runs a program to its end, which has to be a good one.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        done(self.network.command(program).args(arguments))
    }

    /// Waits until `address` takes connections.
    pub(crate) fn listens(&self, address: &str) {
        let address: SocketAddr = address.parse().expect("an address");
        wait_until(&format!("{address} listens; {}", self.log()), || {
            self.network.run(|| TcpStream::connect_timeout(&address, PATIENCE)).is_ok()
        });
    }

    pub(crate) fn connect(&self, address: &str) -> TcpStream {
        self.network.run(|| TcpStream::connect(address)).expect("a connection")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A server that hands each connection to `serve`; returns where it listens.
    pub(crate) fn serve(&self, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
        let listener = self.network.run(|| TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let serve = std::sync::Arc::new(serve);
        // Ends with the process: accept(2) waits for the next client.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serve = serve.clone();
                thread::spawn(move || serve(stream));
            }
        });
        address
    }

    /// A server that answers the first bytes of each connection with these, and closes.
    pub(crate) fn answer(&self, answer: impl Into<Vec<u8>>) -> SocketAddr {
        let answer = answer.into();
        self.serve(move |mut stream| {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&answer);
        })
    }

    /// A reader of this kind, of the server at `address`.
    pub(crate) fn reader(&self, kind: Kind, address: impl ToString) -> Reader {
        self.reader_of(kind, address, &Sources::default())
    }

    pub(crate) fn reader_of(
        &self,
        kind: Kind,
        address: impl ToString,
        sources: &Sources,
    ) -> Reader {
        self.reader_with(&settings(kind), address, sources)
    }

    pub(crate) fn reader_with(
        &self,
        settings: &Settings,
        address: impl ToString,
        sources: &Sources,
    ) -> Reader {
        let address = address.to_string().parse().expect("an address");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Reader {
            network: self.network.clone(),
            runtime: runtime.expect("a runtime"),
            object: build(settings, sources),
            instance: Instance::new("web", "a", address),
            timeout: settings.timeout,
        }
    }
}

/// With a timeout that never is the reason.
pub(crate) fn settings(kind: Kind) -> Settings {
    Settings { name: "value".into(), role: None, every: Every::Demand, timeout: LONG, kind }
}

pub(crate) fn done(command: &mut Command) -> String {
    let output =
        command.output().unwrap_or_else(|e| panic!("{command:?} (tools/packages.txt): {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}{errors}", output.status);
    said
}

/// Reads one status object as the monitor does.
pub(crate) struct Reader {
    network: Namespace,
    runtime: Runtime,
    object: Box<dyn StatusObject>,
    pub(crate) instance: Instance,
    pub(crate) timeout: Duration,
}

impl Reader {
    pub(crate) fn within(mut self, timeout: Duration) -> Reader {
        self.timeout = timeout;
        self
    }

    pub(crate) fn read(&mut self) -> Result<Reading, Failure> {
        let Reader { network, runtime, object, instance, timeout } = self;
        network.run(|| {
            runtime.block_on(async {
                let reading = tokio::time::timeout(*timeout, object.read(instance)).await;
                reading.unwrap_or(Err(Failure::Timeout))
            })
        })
    }

    /// The value, which has to be there.
    pub(crate) fn value(&mut self) -> f64 {
        let reading = self.read().expect("a reading");
        reading.value.expect("a value")
    }

    /// Lets what the runtime has left to do be done, for a moment.
    pub(crate) fn turn(&mut self) {
        self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(1)).await });
    }
}

/// GET of `url`, 4096 bytes at most.
pub(crate) fn get(url: &str) -> Request {
    Request {
        url: Url::parse(url).expect("a URL"),
        method: "GET".to_owned(),
        host: None,
        headers: Vec::new(),
        most: 4096,
        trust: Trust::System,
    }
}

/// A certificate for 127.0.0.1 and www.example.com, signed by itself, and its key: their paths.
pub(crate) fn certificate(site: &Site) -> [String; 2] {
    let [certificate, key] =
        ["certificate.pem", "key.pem"].map(|name| site.path(name).display().to_string());
    let request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let kind = ["-nodes", "-days", "2", "-addext", "basicConstraints=critical,CA:FALSE"];
    let names = ["-subj", "/CN=vipa", "-addext", "subjectAltName=IP:127.0.0.1,DNS:www.example.com"];
    let files = ["-keyout", &key, "-out", &certificate];
    site.run("openssl", &[&request[..], &kind, &names, &files].concat());
    [certificate, key]
}

/// nginx with these `server` blocks, in a directory of this name.
pub(crate) fn nginx(site: &mut Site, name: &str, servers: &str) {
    let home = site.path(name);
    std::fs::create_dir(&home).expect("a directory");
    site.processes.push(crate::nginx::start(&site.network, &home, servers));
}

/// Is a process with this in its command line alive?
pub(crate) fn is_running(text: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("proc").filter_map(Result::ok);
    processes.map(|entry| entry.path()).any(|path| command_line(&path).contains(text))
}

fn command_line(process: &Path) -> String {
    let bytes = std::fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}
