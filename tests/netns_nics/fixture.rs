//! A host under `vipa run`, conversations with its client, and taps that tell by which NIC each flow goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use pnet::datalink::{self, Channel, DataLinkReceiver};
use serde_json::Value;
use vipa::lab::topology::{Network, client_address, nic_name, vipas};
use vipa::lab::{Forwarder, Namespace, Scratch};
use vipa::wire::ip::Family;

/// Longer than anything here takes; a condition that holds ends the wait at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
const PORT: u16 = 7;

/// The network of the demo, and a forwarder on its host.
pub(crate) struct Host {
    pub(crate) forwarder: Forwarder,
    pub(crate) network: Network,
    _scratch: Scratch,
}

impl Host {
    /// With this many NICs, each with what `keys` adds to its `[[nic]]`, and `rest` as the end of the
    /// configuration. Nothing is started.
    pub(crate) fn new(nics: u8, keys: impl Fn(u8) -> String, rest: &str) -> Host {
        let network = Network::new(nics).expect("a network (these tests need root)");
        let scratch = Scratch::new().expect("a directory");
        let all: Vec<String> = Family::BOTH.into_iter().flat_map(vipas).map(quoted).collect();
        let mut text = format!("[virtual]\nname = \"vipa0\"\naddresses = [{}]\n", all.join(", "));
        for nic in network.nics() {
            let _ = write!(text, "\n[[nic]]\nname = \"eth{nic}\"\n{}\n", keys(nic));
        }
        text.push_str(rest);
        let config = scratch.path().join("vipa.toml");
        std::fs::write(&config, text).expect("a configuration");
        let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
        let forwarder = Forwarder::new(&network.host, program, &config, scratch.path());
        Host { forwarder: forwarder.expect("its directory"), network, _scratch: scratch }
    }

    /// As [`Host::new`] with the gateways of the network; the forwarder runs.
    pub(crate) fn start(nics: u8, keys: impl Fn(u8) -> String) -> Host {
        let mut host = Host::new(nics, |nic| format!("{}\n{}", gateways(nic), keys(nic)), "");
        host.run();
        host
    }

    pub(crate) fn run(&mut self) {
        self.forwarder.start_and_wait(PATIENCE).expect("vipa run");
    }

    pub(crate) fn status(&self) -> Value {
        self.forwarder.status().expect("a status")
    }

    /// What the status says of a NIC.
    pub(crate) fn nic(&self, nic: u8) -> Value {
        let status = self.status();
        let all = status["nics"].as_array().expect("NICs").clone();
        all.into_iter().find(|n| n["name"] == nic_name(nic).as_str()).expect("the NIC")
    }

    pub(crate) fn waits_for_state(&self, nic: u8, state: &str) {
        eventually(&format!("eth{nic} is {state}"), || self.nic(nic)["state"] == state);
    }

    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        self.status()["drops"][reason].as_u64().expect("a count")
    }

    /// Frames that the forwarder sent by each NIC.
    pub(crate) fn sent(&self, nic: u8) -> u64 {
        self.nic(nic)["sent"]["frames"].as_u64().expect("a count")
    }

    /// Opens a connection from the host, with any source address.
    pub(crate) fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.network.host.run(|| TcpStream::connect_timeout(&to, PATIENCE))
    }
}

fn quoted(address: IpAddr) -> String {
    format!("\"{address}\"")
}

/// The key `gateway` of a NIC.
pub(crate) fn gateways(nic: u8) -> String {
    format!("gateway = [\"10.1.{nic}.1\", \"2001:db8:{nic}::1\"]")
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A server that sends back what it gets, on a thread that ends with the test's process. Its address.
pub(crate) fn answers(namespace: &Namespace, address: IpAddr) -> SocketAddr {
    let to = SocketAddr::new(address, PORT);
    let listener = namespace.run(|| TcpListener::bind(to)).expect("a listener");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    to
}

/// TCP connections from the host, each with its source port.
pub(crate) struct Conversations(Vec<TcpStream>);

impl Conversations {
    /// With the client, in both families, as many of each.
    pub(crate) fn open(host: &Host, each: usize) -> Conversations {
        let mut streams = Vec::new();
        for family in Family::BOTH {
            let to = answers(&host.network.client, client_address(family));
            for _ in 0..each {
                let stream = host.connect(to).expect("a connection");
                assert_eq!(stream.local_addr().expect("bound").ip(), vipas(family)[0]);
                stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
                stream.set_nodelay(true).expect("no delay");
                streams.push(stream);
            }
        }
        Conversations(streams)
    }

    /// Every one of them is alive.
    pub(crate) fn talk(&mut self) {
        for stream in &mut self.0 {
            said_and_heard(stream);
        }
    }
}

/// One question and its answer.
pub(crate) fn said_and_heard(stream: &mut TcpStream) {
    let mut answer = [0; 5];
    stream.write_all(b"there").expect("to send");
    stream.read_exact(&mut answer).expect("an answer: the connection lives");
    assert_eq!(&answer, b"there");
}

/// By which NIC each source port came.
pub(crate) type Ways = BTreeMap<(Family, u16), BTreeSet<u8>>;

/// What arrives at the router's ports.
pub(crate) struct Taps(Vec<(u8, Box<dyn DataLinkReceiver>)>);

impl Taps {
    pub(crate) fn new(network: &Network) -> Taps {
        let tap = |nic: u8| {
            let open = || {
                let name = format!("r{nic}");
                let all = datalink::interfaces();
                let port = all.iter().find(|i| i.name == name).expect("the router's port");
                let config = datalink::Config {
                    read_buffer_size: 1 << 17,
                    read_timeout: Some(Duration::from_millis(1)),
                    ..datalink::Config::default()
                };
                match datalink::channel(port, config).expect("a packet socket") {
                    Channel::Ethernet(_, receiver) => receiver,
                    _ => panic!("no Ethernet"),
                }
            };
            (nic, network.router.run(open))
        };
        Taps(network.nics().map(tap).collect())
    }

    /// What has come from VIPAs, TCP or UDP, since it was last asked.
    pub(crate) fn take(&mut self) -> Ways {
        let mut ways = Ways::new();
        for (nic, receiver) in &mut self.0 {
            while let Ok(frame) = receiver.next() {
                if let Some(flow) = host_flow(frame) {
                    ways.entry(flow).or_default().insert(*nic);
                }
            }
        }
        ways
    }
}

/// Family and source port of what a VIPA sends.
fn host_flow(frame: &[u8]) -> Option<(Family, u16)> {
    let packet = frame.get(14..)?;
    let (family, source, ports): (Family, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            (Family::V4, source.into(), packet.get(20..22)?)
        }
        6 => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            (Family::V6, source.into(), packet.get(40..42)?)
        }
        _ => return None,
    };
    let port = u16::from_be_bytes(ports.try_into().ok()?);
    vipas(family).contains(&source).then_some((family, port))
}

/// Many datagrams of as many flows, to the client; which NIC each took.
pub(crate) fn spread(host: &Host, taps: &mut Taps, family: Family, flows: usize) -> [usize; 9] {
    let to = SocketAddr::new(client_address(family), 9);
    let listener = host.network.client.run(|| UdpSocket::bind(to)).expect("a socket");
    listener.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    taps.take();
    let mut sockets = Vec::new();
    for _ in 0..flows {
        let any = SocketAddr::new(family.unspecified(), 0);
        let socket = host.network.host.run(|| UdpSocket::bind(any)).expect("a socket");
        socket.send_to(b"one", to).expect("to send");
        let (_, from) = listener.recv_from(&mut [0; 16]).expect("a datagram");
        assert_eq!(from.ip(), vipas(family)[0]);
        sockets.push(socket);
    }
    let mut counts = [0; 9];
    let ways = taps.take();
    for ((_, _), nics) in ways.iter().filter(|((f, _), _)| *f == family) {
        assert_eq!(nics.len(), 1, "a flow takes one way: {ways:?}");
        for nic in nics {
            counts[usize::from(*nic)] += 1;
        }
    }
    assert_eq!(counts.iter().sum::<usize>(), flows, "{counts:?}");
    counts
}
