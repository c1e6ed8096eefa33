//! What is on the router's wires: every packet of every port towards the host, as pnet captures and
//! etherparse reads it, two programs that share nothing with the forwarder.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use pnet::datalink::{self, Channel, Config, DataLinkReceiver};
use vipa::lab::topology::{Network, client_address};
use vipa::wire::ip::{Family, ICMP, TCP, UDP};

use crate::fixture::wait_until;

/// A packet between router and host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Which of the router's ports, from 1.
    pub(crate) nic: u8,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// TCP, UDP or ICMP (also for ICMPv6 echo).
    pub(crate) protocol: u8,
    /// Port or echo identifier.
    pub(crate) source_port: u16,
    /// Port; 0 for an echo.
    pub(crate) destination_port: u16,
    pub(crate) is_reset: bool,
}

/// A capture that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Wire {
    seen: Arc<Mutex<Vec<Seen>>>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Captures when this returns.
    pub(crate) fn tap(network: &Network) -> Wire {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let is_over = Arc::new(AtomicBool::new(false));
        let tapped = Arc::new(AtomicUsize::new(0));
        let mut threads = Vec::new();
        for nic in network.nics() {
            let (seen, is_over, tapped) = (seen.clone(), is_over.clone(), tapped.clone());
            let listen = move || {
                let mut receiver = capture(nic, Duration::from_millis(20));
                tapped.fetch_add(1, Ordering::Release);
                while !is_over.load(Ordering::Relaxed) {
                    if let Some(packet) = receiver.next().ok().and_then(|bytes| read(nic, bytes)) {
                        seen.lock().unwrap_or_else(PoisonError::into_inner).push(packet);
                    }
                }
            };
            threads.push(network.router.spawn("capture", listen).expect("a thread"));
        }
        let ports = threads.len();
        wait_until("the capture begins", || tapped.load(Ordering::Acquire) == ports);
        Wire { seen, is_over, threads }
    }

    /// All so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the host sent to the client so far, of a protocol, to this port (0: echo requests).
    pub(crate) fn sent(&self, protocol: u8, to: u16) -> Vec<Seen> {
        let is_client = |address| Family::BOTH.iter().any(|f| client_address(*f) == address);
        let mut seen = self.seen();
        seen.retain(|s| {
            is_client(s.destination) && s.protocol == protocol && s.destination_port == to
        });
        seen
    }

    /// Waits until the host sent such a packet, and asserts that all such packets came from `source`,
    /// returning the first.
    pub(crate) fn came_from(&self, protocol: u8, to: u16, source: IpAddr) -> Seen {
        let family = Family::of(source);
        let of_family = || {
            let mut sent = self.sent(protocol, to);
            sent.retain(|s| Family::of(s.source) == family);
            sent
        };
        wait_until(&format!("the wire saw a packet to port {to}"), || !of_family().is_empty());
        let sent = of_family();
        let other = sent.iter().find(|s| s.source != source);
        assert_eq!(other, None, "all packets of {protocol} to port {to} come from {source}");
        sent[0]
    }

    /// Nobody sent a reset.
    pub(crate) fn assert_no_reset(&self) {
        let reset = self.seen().into_iter().find(|s| s.is_reset);
        assert_eq!(reset, None, "a reset was on the wire");
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What arrives at, and leaves by, the port of the router towards a NIC; to be called in the router's network.
pub(crate) fn capture(nic: u8, read_timeout: Duration) -> Box<dyn DataLinkReceiver> {
    let name = format!("r{nic}");
    let port = datalink::interfaces().into_iter().find(|i| i.name == name);
    let config = Config {
        read_buffer_size: 128 << 10,
        read_timeout: Some(read_timeout),
        ..Config::default()
    };
    match datalink::channel(&port.expect("the router has this port"), config) {
        Ok(Channel::Ethernet(_, receiver)) => receiver,
        _ => panic!("no capture on {name}"),
    }
}

pub(crate) fn read(nic: u8, bytes: &[u8]) -> Option<Seen> {
    let packet = SlicedPacket::from_ethernet(bytes).ok()?;
    let (source, destination) = match packet.net? {
        NetSlice::Ipv4(ip) => {
            (IpAddr::from(ip.header().source_addr()), ip.header().destination_addr().into())
        }
        NetSlice::Ipv6(ip) => {
            (IpAddr::from(ip.header().source_addr()), ip.header().destination_addr().into())
        }
        NetSlice::Arp(_) => return None,
    };
    let (protocol, source_port, destination_port, is_reset) = match packet.transport? {
        TransportSlice::Tcp(tcp) => (TCP, tcp.source_port(), tcp.destination_port(), tcp.rst()),
        TransportSlice::Udp(udp) => (UDP, udp.source_port(), udp.destination_port(), false),
        TransportSlice::Icmpv4(icmp) => match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(echo) => (ICMP, echo.id, 0, false),
            _ => return None,
        },
        TransportSlice::Icmpv6(icmp) => match icmp.icmp_type() {
            Icmpv6Type::EchoRequest(echo) => (ICMP, echo.id, 0, false),
            _ => return None,
        },
        TransportSlice::Igmp(_) => return None,
    };
    Some(Seen { nic, source, destination, protocol, source_port, destination_port, is_reset })
}
