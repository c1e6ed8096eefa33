//! What the host tells its neighbours, as it is on the router's wires.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use vipa::lab::topology::Network;
use vipa::wire::ip::Family;
use vipa::wire::rip::{Command, Item, Message};
use vipa::wire::{bfd, rip};

use crate::fixture::wait_until;
use crate::wire::capture;

/// A UDP datagram of the host's NICs.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// Which NIC, from 1.
    pub(crate) nic: u8,
    pub(crate) source: SocketAddr,
    to_port: u16,
    payload: Vec<u8>,
}

impl Told {
    /// The metric at which it tells of `vipa`; none: it does not.
    pub(crate) fn metric(&self, vipa: IpAddr) -> Option<u32> {
        let family = Family::of(vipa);
        let port = if family == Family::V4 { rip::PORT } else { rip::NG_PORT };
        if self.to_port != port || Family::of(self.source.ip()) != family {
            return None;
        }
        let message = Message::parse(&self.payload, family).expect("what we tell is RIP");
        if message.command != Command::Response {
            return None;
        }
        message.items().find_map(|item| match item {
            Ok(Item::Route(entry)) if entry.address == vipa => Some(entry.metric),
            _ => None,
        })
    }

    /// The state that it tells of a BFD session.
    pub(crate) fn bfd_state(&self) -> Option<bfd::State> {
        let (packet, _) = bfd::parse(&self.payload).ok().filter(|_| self.to_port == bfd::PORT)?;
        Some(packet.state)
    }
}

/// A capture that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Tap {
    told: Arc<Mutex<Vec<Told>>>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tap {
    /// Captures when this returns.
    pub(crate) fn on(network: &Network) -> Tap {
        let told = Arc::new(Mutex::new(Vec::new()));
        let (is_over, tapped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut threads = Vec::new();
        for nic in network.nics() {
            let (told, is_over, tapped) = (told.clone(), is_over.clone(), tapped.clone());
            let listen = move || {
                let mut receiver = capture(nic, Duration::from_millis(20));
                tapped.fetch_add(1, Ordering::Release);
                while !is_over.load(Ordering::Relaxed) {
                    let heard = receiver.next().ok().and_then(|bytes| of_host(nic, bytes));
                    told.lock().unwrap_or_else(PoisonError::into_inner).extend(heard);
                }
            };
            threads.push(network.router.spawn("tap", listen).expect("a thread"));
        }
        let nics = threads.len();
        wait_until("the capture begins", || tapped.load(Ordering::Acquire) == nics);
        Tap { told, is_over, threads }
    }

    /// All so far, in their order on each NIC.
    pub(crate) fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The metrics at which the NIC told of `vipa`, one after the other.
    pub(crate) fn metrics(&self, nic: u8, vipa: IpAddr) -> Vec<u32> {
        let of_nic = self.told().into_iter().filter(|told| told.nic == nic);
        of_nic.filter_map(|told| told.metric(vipa)).collect()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The host's Ethernet addresses end in 2 (see the lab's topology).
fn of_host(nic: u8, bytes: &[u8]) -> Option<Told> {
    if bytes.get(6..12)? != [2, 0, 0, 1, nic, 2] {
        return None;
    }
    let packet = SlicedPacket::from_ethernet(bytes).ok()?;
    let source = match packet.net? {
        NetSlice::Ipv4(ip) => IpAddr::from(ip.header().source_addr()),
        NetSlice::Ipv6(ip) => ip.header().source_addr().into(),
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Udp(udp)) = packet.transport else { return None };
    Some(Told {
        nic,
        source: SocketAddr::new(source, udp.source_port()),
        to_port: udp.destination_port(),
        payload: udp.payload().to_vec(),
    })
}
