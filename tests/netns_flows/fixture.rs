//! What every test here stands on: the lab's network with a forwarder that is the real program, peers that
//! tell by whom they were spoken to, and connections whose every byte is verified.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vipa::lab::topology::{Network, client_address, nic_name, vipas};
use vipa::lab::{Forwarder, Namespace, Scratch};
use vipa::wire::ip::Family;

/// Long enough for a machine that many share; nothing is judged by it but that it happens at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How often a question that may get lost is asked again.
const AGAIN: Duration = Duration::from_millis(250);
/// Bytes of one round of a [`Conversation`]: more than a segment, so that offload has something to do.
const ROUND: usize = 6000;

/// What a configuration says beyond NICs and VIPAs.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) nics: u8,
    pub(crate) workers: u8,
    /// Lines of `[source]`.
    pub(crate) source: &'static str,
    /// `[[source.rule]]` tables, each without its head.
    pub(crate) rules: Vec<String>,
    /// Whether the configuration names each NIC's gateways; else the kernel's routes decide.
    pub(crate) has_gateways: bool,
}

impl Setup {
    pub(crate) fn new(nics: u8) -> Setup {
        Setup { nics, workers: 1, source: "", rules: Vec::new(), has_gateways: true }
    }

    pub(crate) fn workers(self, workers: u8) -> Setup {
        Setup { workers, ..self }
    }

    #[allow(dead_code)] // one of the programs that share the fixture calls it
    pub(crate) fn without_gateways(self) -> Setup {
        Setup { has_gateways: false, ..self }
    }

    pub(crate) fn source(self, source: &'static str) -> Setup {
        Setup { source, ..self }
    }

    /// All that goes to the client, and matches `also`, carries the second VIPA; the forwarder sees to it.
    pub(crate) fn second_vipa(self, also: &str) -> Setup {
        self.second_vipa_by_anyone(&format!("apply = \"forwarder\"\n{also}"))
    }

    /// The same, by the kernel where it can.
    pub(crate) fn second_vipa_by_anyone(mut self, also: &str) -> Setup {
        for family in Family::BOTH {
            self = self.rule(family, also, &vipas(family)[1].to_string());
        }
        self
    }

    /// All that goes to the client, and matches `also`, carries the address of the NIC it leaves by; the
    /// forwarder sees to it.
    #[allow(dead_code)] // one of the programs that share the fixture calls it
    pub(crate) fn physical(self, also: &str) -> Setup {
        self.physical_by_anyone(&format!("apply = \"forwarder\"\n{also}"))
    }

    /// The same, by the kernel where it can.
    #[allow(dead_code)] // one of the programs that share the fixture calls it
    pub(crate) fn physical_by_anyone(mut self, also: &str) -> Setup {
        for family in Family::BOTH {
            self = self.rule(family, also, "physical");
        }
        self
    }

    fn rule(mut self, family: Family, also: &str, to: &str) -> Setup {
        let client = client_address(family);
        let bits = family.bits();
        self.rules.push(format!("destination = \"{client}/{bits}\"\nuse = \"{to}\"\n{also}\n"));
        self
    }

    fn write(&self, path: &Path) {
        let all: Vec<String> =
            Family::BOTH.into_iter().flat_map(vipas).map(|vipa| format!("\"{vipa}\"")).collect();
        let mut text = format!("[virtual]\nname = \"vipa0\"\naddresses = [{}]\n", all.join(", "));
        let _ = write!(text, "\n[forwarder]\nworkers = {}\n", self.workers);
        for nic in 1..=self.nics {
            let name = nic_name(nic);
            let _ = write!(text, "\n[[nic]]\nname = \"{name}\"\nhold-down = \"500ms\"\n");
            if self.has_gateways {
                let _ = writeln!(text, "gateway = [\"10.1.{nic}.1\", \"2001:db8:{nic}::1\"]");
            }
        }
        let _ = write!(text, "\n[source]\n{}\n", self.source);
        for rule in &self.rules {
            let _ = write!(text, "\n[[source.rule]]\n{rule}");
        }
        std::fs::write(path, text).expect("a scratch directory takes files");
    }
}

/// The network and the forwarder on its host.
pub(crate) struct Bench {
    pub(crate) forwarder: Forwarder,
    pub(crate) network: Network,
    #[allow(dead_code)] // kept for its files; other test programs that share the fixture read it
    pub(crate) scratch: Scratch,
}

impl Bench {
    /// The network, with a forwarder that carries packets.
    pub(crate) fn start(setup: &Setup) -> Bench {
        let mut bench = Bench::prepare(setup);
        bench.start_forwarder();
        bench
    }

    /// The network, with a forwarder that was not started yet.
    pub(crate) fn prepare(setup: &Setup) -> Bench {
        let network = Network::new(setup.nics).expect("these tests need root");
        let scratch = Scratch::new().expect("a scratch directory");
        let config = scratch.path().join("vipa.toml");
        setup.write(&config);
        let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
        let forwarder = Forwarder::new(&network.host, program, &config, scratch.path())
            .expect("a forwarder to start");
        Bench { forwarder, network, scratch }
    }

    pub(crate) fn start_forwarder(&mut self) {
        self.forwarder.start_and_wait(PATIENCE).unwrap_or_else(|e| panic!("{e}"));
    }

    /// What `vipa status --json` says.
    pub(crate) fn status(&self) -> serde_json::Value {
        self.forwarder.status().unwrap_or_else(|e| panic!("{e}\n{}", self.forwarder.log()))
    }

    /// Frames that the workers took from the adapter.
    pub(crate) fn carried(&self) -> u64 {
        let status = self.status();
        let workers = status["workers"].as_array().expect("workers in the status");
        workers.iter().map(|worker| number(&worker["from_tun"]["frames"])).sum()
    }

    /// Flows that were ever rewritten (the egress hold knows each), and frames that came back for such flows.
    #[allow(dead_code)] // one of the programs that share the fixture calls it
    pub(crate) fn rewritten(&self) -> (u64, u64) {
        (number(&self.status()["router"]["flows_held"]), self.nics("received", "frames"))
    }

    /// Frames dropped for a reason.
    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        number(&self.status()["drops"][reason])
    }

    /// Sum of a count of all NICs, as the forwarder counts: (`"sent"`, `"frames"`).
    pub(crate) fn nics(&self, direction: &str, count: &str) -> u64 {
        let status = self.status();
        let nics = status["nics"].as_array().expect("nics in the status");
        nics.iter().map(|nic| number(&nic[direction][count])).sum()
    }

    /// Frames that left the host by any NIC, as the kernel counts.
    pub(crate) fn left(&self) -> u64 {
        let host = &self.network.host;
        self.network
            .nics()
            .filter_map(|nic| host.counters(&nic_name(nic)).ok())
            .map(|c| c.tx_frames)
            .sum()
    }

    /// Runs a program of the host's network to its end and returns what it said.
    pub(crate) fn run(&self, namespace: &Namespace, program: &str, arguments: &[&str]) -> String {
        let output = namespace
            .command(program)
            .args(arguments)
            .output()
            .unwrap_or_else(|e| panic!("{program} (tools/packages.txt): {e}"));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}{complaint}");
        said
    }
}

pub(crate) fn number(value: &serde_json::Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn nic_addresses(network: &Network, family: Family) -> Vec<IpAddr> {
    let address = |nic: u8| match family {
        Family::V4 => IpAddr::from([10, 1, nic, 2]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, u16::from(nic), 0, 0, 0, 0, 2]),
    };
    network.nics().map(address).collect()
}

/// A port of the client that everyone may speak to, of both families: over TCP it tells by whom it was
/// called and then says all again, over UDP it tells by whom it was asked.
#[derive(Debug)]
pub(crate) struct Peer(pub(crate) u16);

impl Peer {
    pub(crate) fn listen(namespace: &Namespace, port: u16) -> Peer {
        let listen = || {
            let any = SocketAddr::new(Family::V6.unspecified(), port);
            Ok::<_, io::Error>((TcpListener::bind(any)?, UdpSocket::bind(any)?))
        };
        let (tcp, udp) = namespace.run(listen).expect("a free port");
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                thread::spawn(move || repeat(stream));
            }
        });
        thread::spawn(move || {
            let mut question = [0; 2048];
            while let Ok((_, from)) = udp.recv_from(&mut question) {
                let _ = udp.send_to(plain(from).to_string().as_bytes(), from);
            }
        });
        Peer(port)
    }

    pub(crate) fn address(&self, family: Family) -> SocketAddr {
        SocketAddr::new(client_address(family), self.0)
    }
}

fn repeat(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let from = plain(stream.peer_addr()?);
    stream.write_all(format!("{from}\n").as_bytes())?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

/// An IPv4 address as such, not as the IPv6 socket shows it.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Asks over UDP from a socket bound to `from` until there is an answer: by whom the peer was asked.
pub(crate) fn ask(namespace: &Namespace, from: SocketAddr, to: SocketAddr) -> SocketAddr {
    let socket = namespace.run(|| UdpSocket::bind(from)).expect("the address is the host's");
    ask_by(&socket, to).unwrap_or_else(|| panic!("no answer of {to} to {from}"))
}

/// The same from a socket that is there; `None` without an answer.
pub(crate) fn ask_by(socket: &UdpSocket, to: SocketAddr) -> Option<SocketAddr> {
    socket.set_read_timeout(Some(AGAIN)).expect("not zero");
    let deadline = Instant::now() + PATIENCE;
    let mut answer = [0; 100];
    while Instant::now() < deadline {
        socket.send_to(b"who am I?", to).unwrap_or_else(|e| panic!("asking {to}: {e}"));
        if let Ok((length, from)) = socket.recv_from(&mut answer) {
            assert_eq!(from, to, "the answer comes from whom was asked");
            let text = std::str::from_utf8(&answer[..length]).expect("an address");
            return Some(text.parse().expect("an address"));
        }
    }
    None
}

pub(crate) fn unbound(family: Family) -> SocketAddr {
    SocketAddr::new(family.unspecified(), 0)
}

/// A TCP connection of the host that says its pattern, and verifies what comes back, round after round.
#[derive(Debug)]
pub(crate) struct Conversation {
    /// The socket's own address.
    pub(crate) local: SocketAddr,
    /// Its address as the peer sees it.
    pub(crate) seen: SocketAddr,
    rounds: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Conversation {
    /// From a socket that names no source.
    pub(crate) fn open(host: &Namespace, to: SocketAddr) -> Conversation {
        let stream = host.run(|| TcpStream::connect_timeout(&to, PATIENCE));
        Conversation::over(stream.unwrap_or_else(|e| panic!("connecting to {to}: {e}")))
    }

    /// From a socket bound to `from`.
    pub(crate) fn open_bound(host: &Namespace, from: SocketAddr, to: SocketAddr) -> Conversation {
        let connect = || -> io::Result<TcpStream> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            let stream = runtime.block_on(async {
                let socket = match to {
                    SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
                    SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
                };
                socket.bind(from)?;
                socket.connect(to).await?.into_std()
            })?;
            stream.set_nonblocking(false)?;
            Ok(stream)
        };
        Conversation::over(host.run(connect).unwrap_or_else(|e| panic!("{from} to {to}: {e}")))
    }

    pub(crate) fn over(stream: TcpStream) -> Conversation {
        stream.set_nodelay(true).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a connection");
        stream.set_write_timeout(Some(PATIENCE)).expect("a connection");
        let local = stream.local_addr().expect("a connection");
        let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        let mut line = String::new();
        reader.read_line(&mut line).unwrap_or_else(|e| panic!("no greeting to {local}: {e}"));
        let seen = line.trim().parse().expect("the peer tells our address");
        let (rounds, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let shared = (Arc::clone(&rounds), Arc::clone(&is_over));
        let thread = thread::spawn(move || talk(&stream, &mut reader, &shared.0, &shared.1));
        Conversation { local, seen, rounds, is_over, thread: Some(thread) }
    }

    /// Rounds that came back as they were said.
    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Waits until so many more rounds came back.
    pub(crate) fn goes_on(&self, more: u64) {
        let goal = self.rounds() + more;
        wait_until(&format!("{} goes on", self.local), || {
            let ended = self.thread.as_ref().is_some_and(JoinHandle::is_finished);
            ended || self.rounds() >= goal
        });
        assert!(self.rounds() >= goal, "{} seen as {} is lost", self.local, self.seen);
    }

    /// Ends it; panics with the error that it met on its way.
    pub(crate) fn finish(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(|thread| thread.join().expect("no panic"));
        if let Some(Err(error)) = ended {
            panic!("{} seen as {}: {error}", self.local, self.seen);
        }
    }
}

fn talk(
    mut stream: &TcpStream,
    reader: &mut impl Read,
    rounds: &AtomicU64,
    is_over: &AtomicBool,
) -> io::Result<()> {
    let mut back = vec![0; ROUND];
    while !is_over.load(Ordering::Relaxed) {
        let round = rounds.load(Ordering::Relaxed);
        let said: Vec<u8> = (0..ROUND as u64)
            .map(|at| ((round + at).wrapping_mul(0x9E37_79B9) >> 16) as u8)
            .collect();
        stream.write_all(&said)?;
        reader.read_exact(&mut back)?;
        if back != said {
            return Err(io::Error::other(format!(
                "round {round} came back other than it was said"
            )));
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(2)); // paced, so that the capture sees every packet
    }
    Ok(())
}
