//! A busy host: the lab's network, and beside it a management NIC that holds the default route of main, an
//! operator behind it, and the real vipa. `ip` and `nft` are the witnesses of what stands.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use vipa::lab::topology::{Network, client_address, vipas};
use vipa::lab::{Forwarder, Hop, Namespace, Scratch, veth};
use vipa::wire::ip::Family;

/// Longer than anything here takes; a condition that holds ends the wait at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
pub(crate) const VIPA: &str = env!("CARGO_BIN_EXE_vipa");
/// Bytes that go each way in an exchange.
const EXCHANGE: usize = 300_000;

pub(crate) struct Host {
    pub(crate) forwarder: Forwarder,
    pub(crate) network: Network,
    pub(crate) operator: Namespace,
    pub(crate) scratch: Scratch,
    pub(crate) config: PathBuf,
}

impl Host {
    /// Not started yet; with rules that the forwarder applies, so that all of it is set up.
    pub(crate) fn new() -> Host {
        let network = Network::new(2).expect("a network (these tests need root)");
        let operator = Namespace::new("operator").expect("a namespace");
        let host = &network.host;
        veth((&operator, "m0"), (host, "mgmt")).expect("a cable");
        operator.address("192.168.9.1/24", "m0").expect("an address");
        host.address("192.168.9.2/24", "mgmt").expect("an address");
        host.route("0.0.0.0/0", &[Hop::via("192.168.9.1").dev("mgmt")], None).expect("a route");
        host.sysctl("net/ipv4/conf/mgmt/rp_filter", 1).expect("it can be set");
        host.sysctl("net/ipv4/conf/eth1/rp_filter", 1).expect("it can be set");
        host.sysctl("net/ipv4/ip_local_reserved_ports", 8080).expect("it can be set");
        let scratch = Scratch::new().expect("a directory");
        let config = scratch.path().join("vipa.toml");
        network.write_config(&config, 7443).expect("a file");
        let forwarder =
            Forwarder::new(host, Path::new(VIPA), &config, scratch.path()).expect("a directory");
        Host { forwarder, network, operator, scratch, config }
    }

    pub(crate) fn started() -> Host {
        let mut host = Host::new();
        host.start();
        host
    }

    pub(crate) fn start(&mut self) {
        self.forwarder.start_and_wait(PATIENCE).expect("vipa run starts");
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    /// `vipa ARGUMENTS` in the host's network.
    pub(crate) fn vipa(&self, arguments: &[&str]) -> Output {
        let mut command = self.network.host.command(VIPA);
        command.args(arguments).env("RUNTIME_DIRECTORY", self.state()).env_remove("NOTIFY_SOCKET");
        command.output().expect("vipa can be started")
    }

    pub(crate) fn down(&self, arguments: &[&str]) {
        let output = self.vipa(&[&["down"], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Sends the forwarder a signal, and waits until it has ended of itself.
    pub(crate) fn signal(&mut self, signal: &str) {
        let pid = self.forwarder.pid().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status().expect("kill exists");
        assert!(sent.success());
        let mut status = None;
        eventually("the forwarder ends", || {
            status = self.forwarder.ended();
            status.is_some()
        });
        assert!(status.is_some_and(|s| s.success()), "{status:?}: {}", self.forwarder.log());
    }

    /// A program in the host's network; it must succeed.
    pub(crate) fn tool(&self, command: &str) -> String {
        run(&self.network.host, command)
    }

    /// Frames that the forwarder took from the adapter.
    pub(crate) fn forwarded(&self) -> u64 {
        let status = self.forwarder.status().expect("it answers");
        status["workers"][0]["from_tun"]["frames"].as_u64().expect("a number")
    }

    /// Bytes that left by the NICs of vipa.
    pub(crate) fn sent_by_nics(&self) -> u64 {
        ["eth1", "eth2"].map(|nic| self.sent_by(nic)).iter().sum()
    }

    pub(crate) fn sent_by(&self, device: &str) -> u64 {
        self.network.host.counters(device).expect("it exists").tx_bytes
    }

    /// TCP from the host to `to` in `there`, data both ways: the source is the VIPA and the bytes leave by a
    /// NIC of vipa; and from `there` to the VIPA.
    pub(crate) fn reaches(&self, there: &Namespace, to: IpAddr) {
        let [vipa, _] = vipas(Family::of(to));
        let before = self.sent_by_nics();
        let seen = exchange(&self.network.host, there, SocketAddr::new(to, 7001));
        assert_eq!(seen, vipa, "the source on the wire");
        exchange(there, &self.network.host, SocketAddr::new(vipa, 7002));
        let sent = self.sent_by_nics() - before;
        assert!(sent >= 2 * EXCHANGE as u64, "only {sent} bytes left by NICs");
    }

    /// [`Host::reaches`] a routed host and one on the link, both families.
    pub(crate) fn reaches_all(&self) {
        for family in Family::BOTH {
            self.reaches(&self.network.client, client_address(family));
        }
        for on_link in ["10.1.1.1", "2001:db8:2::1"] {
            self.reaches(&self.network.router, on_link.parse().expect("an address"));
        }
    }

    /// An operator's with the management NIC, and two with NICs' addresses.
    pub(crate) fn physical_conversations(&self) -> Vec<Conversation> {
        let host = &self.network.host;
        let to = |text: &str| text.parse::<SocketAddr>().expect("an address");
        vec![
            Conversation::open(&self.operator, host, to("192.168.9.2:2222")),
            Conversation::open(&self.network.router, host, to("10.1.1.2:2222")),
            Conversation::open(&self.network.router, host, to("[2001:db8:2::2]:2222")),
        ]
    }

    /// Those of everybody.
    pub(crate) fn conversations(&self) -> Vec<Conversation> {
        let mut all = self.physical_conversations();
        all.extend(self.conversations_of_vipas());
        all
    }

    /// To a VIPA and from it, both families.
    pub(crate) fn conversations_of_vipas(&self) -> Vec<Conversation> {
        let (host, client) = (&self.network.host, &self.network.client);
        let mut all = Vec::new();
        for family in Family::BOTH {
            let [vipa, _] = vipas(family);
            all.push(Conversation::open(client, host, SocketAddr::new(vipa, 2222)));
            all.push(Conversation::open(host, client, (client_address(family), 2223).into()));
        }
        all
    }

    /// All that vipa could change on this host.
    pub(crate) fn everything(&self) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        for question in [
            "ip rule show",
            "ip -6 rule show",
            "ip -d route show table all",
            "ip -6 -d route show table all",
            "ip -o addr show",
            "ip -o link show",
            "nft -s list ruleset",
        ] {
            for line in self.tool(question).lines() {
                let line = line.replace(" linkdown", "").replace(" dead", "");
                // A device made anew has another index; learned neighbours' lives are their own.
                let line = line
                    .trim_start_matches(|c: char| c.is_ascii_digit() && question.contains("-o"));
                lines.insert(format!("{question}: {}", line.trim()));
            }
        }
        let mut settings = Vec::new();
        self.network.host.run(|| {
            read_tree(Path::new("/proc/sys/net/ipv4"), &mut settings);
            read_tree(Path::new("/proc/sys/net/ipv6"), &mut settings);
        });
        lines.extend(settings);
        lines
    }

    /// What differs from `before`; nothing, if all is well.
    pub(crate) fn changes_since(&self, before: &BTreeSet<String>) -> Vec<String> {
        let now = self.everything();
        let gone = before.difference(&now).map(|line| format!("- {line}"));
        let new = now.difference(before).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }

    pub(crate) fn is_as(&self, before: &BTreeSet<String>) {
        let mut changes = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(2); // a device's end is told after the fact
        while Instant::now() < deadline {
            changes = self.changes_since(before);
            if changes.is_empty() {
                return;
            }
        }
        panic!("not as it was:\n{}\n{}", changes.join("\n"), self.forwarder.log());
    }
}

fn read_tree(directory: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_tree(&path, lines);
        } else if let Ok(value) = fs::read_to_string(&path) {
            lines.push(format!("{} = {}", path.display(), value.trim()));
        }
    }
}

pub(crate) fn run(namespace: &Namespace, command: &str) -> String {
    let mut words = command.split(' ');
    let program = words.next().expect("a program");
    script(namespace, program, &words.collect::<Vec<_>>())
}

/// A program with its arguments as they are; it must succeed.
pub(crate) fn script(namespace: &Namespace, program: &str, arguments: &[&str]) -> String {
    let output = namespace.command(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("it speaks UTF-8")
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Data both ways over a new connection; the source that the server saw.
pub(crate) fn exchange(from: &Namespace, server: &Namespace, to: SocketAddr) -> IpAddr {
    let (mut near, mut far) = connect(from, server, to);
    let source = far.peer_addr().expect("it is connected").ip();
    send(&mut near, &mut far);
    send(&mut far, &mut near);
    source
}

fn send(from: &mut TcpStream, to: &mut TcpStream) {
    thread::scope(|scope| {
        scope.spawn(|| from.write_all(&[7; EXCHANGE]).expect("it can be sent"));
        to.read_exact(&mut vec![0; EXCHANGE]).expect("all of it arrives");
    });
}

fn connect(from: &Namespace, server: &Namespace, to: SocketAddr) -> (TcpStream, TcpStream) {
    let listener = server.run(|| TcpListener::bind(to)).unwrap_or_else(|e| panic!("{to}: {e}"));
    let near = from
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))
        .unwrap_or_else(|e| panic!("from {} to {to}: {e}", from.name()));
    let (far, _) = listener.accept().expect("it is there");
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        stream.set_write_timeout(Some(PATIENCE)).expect("a time limit");
        stream.set_nodelay(true).expect("it can be set");
    }
    (near, far)
}

/// A TCP connection that carries data the whole time: numbered words one way, and each of them back.
pub(crate) struct Conversation {
    to: SocketAddr,
    answered: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Conversation {
    pub(crate) fn open(from: &Namespace, server: &Namespace, to: SocketAddr) -> Conversation {
        let (near, far) = connect(from, server, to);
        let (answered, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, over) = (Arc::clone(&answered), Arc::clone(&is_over));
        let asks = thread::spawn(move || ask(near, &count, &over));
        let conversation = Conversation {
            to,
            answered,
            is_over,
            threads: vec![asks, thread::spawn(move || echo(far))],
        };
        conversation.goes_on("at its beginning");
        conversation
    }

    /// New words are sent from now on and come back.
    pub(crate) fn goes_on(&self, when: &str) {
        // One may be under way already.
        let wanted = self.answered.load(Ordering::Acquire) + 3;
        let start = Instant::now();
        while self.answered.load(Ordering::Acquire) < wanted {
            let lives = !self.threads.iter().any(JoinHandle::is_finished);
            assert!(lives && start.elapsed() < PATIENCE, "{}: lost {when}", self.to);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            let result = thread.join();
            if !thread::panicking() {
                result.expect("no panic").unwrap_or_else(|e| panic!("{}: {e}", self.to));
            }
        }
    }
}

pub(crate) fn all_go_on(conversations: &[Conversation], when: &str) {
    conversations.iter().for_each(|conversation| conversation.goes_on(when));
}

fn ask(mut stream: TcpStream, answered: &AtomicU64, is_over: &AtomicBool) -> io::Result<()> {
    let mut number = 0_u64;
    while !is_over.load(Ordering::Acquire) {
        stream.write_all(&number.to_be_bytes())?;
        let mut back = [0; 8];
        stream.read_exact(&mut back)?;
        if u64::from_be_bytes(back) != number {
            return Err(io::Error::other("another word came back"));
        }
        number += 1;
        answered.store(number, Ordering::Release);
        thread::sleep(Duration::from_millis(2)); // paces it
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut word = [0; 256];
    loop {
        match stream.read(&mut word)? {
            0 => return Ok(()),
            length => stream.write_all(&word[..length])?,
        }
    }
}
