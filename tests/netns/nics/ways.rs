//! By which NIC each flow goes: the router's ports, read when a test asks, so that what is told belongs to what
//! was done since the last time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use pnet::datalink::DataLinkReceiver;
use vipa::lab::topology::{Network, client_address, vipas};
use vipa::wire::ip::{Family, ICMP};

use crate::fixture::{Bench, PATIENCE, Peer, unbound};
use crate::wire::{capture, read};

/// TCP connections from the host that speak only when they are told to.
pub(crate) struct Conversations(Vec<BufReader<TcpStream>>);

impl Conversations {
    /// With the client, in both families, as many of each.
    pub(crate) fn open(bench: &Bench, each: usize) -> Conversations {
        let peer = Peer::listen(&bench.network.client, 7);
        let mut streams = Vec::new();
        for family in Family::BOTH {
            let to = peer.address(family);
            for _ in 0..each {
                let stream = bench.network.host.run(|| TcpStream::connect_timeout(&to, PATIENCE));
                let stream = stream.expect("a connection");
                let local = stream.local_addr().expect("bound");
                assert_eq!(local.ip(), vipas(family)[0]);
                stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
                stream.set_nodelay(true).expect("no delay");
                let mut stream = BufReader::new(stream);
                let mut greeting = String::new();
                stream.read_line(&mut greeting).expect("the peer tells our address");
                assert_eq!(greeting.trim(), local.to_string());
                streams.push(stream);
            }
        }
        Conversations(streams)
    }

    /// Every one of them is alive: a question and its answer.
    pub(crate) fn talk(&mut self) {
        for stream in &mut self.0 {
            let mut answer = [0; 5];
            stream.get_mut().write_all(b"there").expect("to send");
            stream.read_exact(&mut answer).expect("an answer: the connection lives");
            assert_eq!(&answer, b"there");
        }
    }
}

/// By which NIC each source port came.
pub(crate) type Ways = BTreeMap<(Family, u16), BTreeSet<u8>>;

/// What arrives at the router's ports.
pub(crate) struct Taps(Vec<(u8, Box<dyn DataLinkReceiver>)>);

impl Taps {
    pub(crate) fn new(network: &Network) -> Taps {
        let tap = |nic| (nic, network.router.run(|| capture(nic, Duration::from_millis(1))));
        Taps(network.nics().map(tap).collect())
    }

    /// What has come from VIPAs, TCP or UDP, since it was last asked.
    pub(crate) fn take(&mut self) -> Ways {
        let mut ways = Ways::new();
        for (nic, receiver) in &mut self.0 {
            while let Ok(frame) = receiver.next() {
                let Some(seen) = read(*nic, frame).filter(|seen| seen.protocol != ICMP) else {
                    continue;
                };
                let family = Family::of(seen.source);
                if vipas(family).contains(&seen.source) {
                    ways.entry((family, seen.source_port)).or_default().insert(*nic);
                }
            }
        }
        ways
    }
}

/// One datagram of each of so many flows, to the client; how many of them each NIC took.
pub(crate) fn spread(bench: &Bench, taps: &mut Taps, family: Family, flows: usize) -> [usize; 9] {
    let to = SocketAddr::new(client_address(family), 9);
    let listener = bench.network.client.run(|| UdpSocket::bind(to)).expect("a socket");
    listener.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    taps.take();
    let mut sockets = Vec::new();
    for _ in 0..flows {
        let socket = bench.network.host.run(|| UdpSocket::bind(unbound(family)));
        let socket = socket.expect("a socket");
        socket.send_to(b"one", to).expect("to send");
        let (_, from) = listener.recv_from(&mut [0; 16]).expect("a datagram");
        assert_eq!(from.ip(), vipas(family)[0]);
        sockets.push(socket);
    }
    let mut counts = [0; 9];
    let ways = taps.take();
    // Other connections may have words of their own, a delayed acknowledgement for one.
    for socket in &sockets {
        let port = socket.local_addr().expect("bound").port();
        let nics = ways.get(&(family, port)).unwrap_or_else(|| panic!("{port}: {ways:?}"));
        assert_eq!(nics.len(), 1, "a flow takes one way: {ways:?}");
        nics.iter().for_each(|nic| counts[usize::from(*nic)] += 1);
    }
    counts
}
