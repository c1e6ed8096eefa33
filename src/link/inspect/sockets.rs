//! The sockets of this network namespace, by NETLINK_SOCK_DIAG (sock_diag(7)), and whose they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::{Finding, FindingKind, native};
use crate::config::Config;
use crate::link::nft::socket::Requests;
use crate::wire::ip::{Family, TCP, UDP};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of `struct inet_diag_req_v2` behind its first eight.
const SOCKET_ID: usize = 48;

const ESTABLISHED: u32 = 1;
const TIME_WAIT: u32 = 6;
const CLOSED: u32 = 7;
const LISTEN: u32 = 10;
const NEW_SYN_RECEIVED: u32 = 12;

/// A socket as the kernel describes it.
#[derive(Clone, Debug)]
struct Socket {
    protocol: u8,
    local: SocketAddr,
    inode: u32,
}

/// Ports of `range` that a TCP listener or a UDP socket of this network namespace has, either family.
/// Sorted, each once.
///
/// # Errors
/// `NotFound` where the kernel lacks `tcp_diag` or `udp_diag`.
pub fn ports_in_use(range: RangeInclusive<u16>) -> io::Result<Vec<u16>> {
    let mut sockets = read(TCP, 1 << LISTEN)?;
    sockets.extend(read(UDP, u32::MAX)?);
    Ok(ports(&sockets, &range))
}

/// Ports of `range` that TCP connections of this network namespace have at this end: those from before the
/// range was reserved, or from a listener that is gone. Looks at every connection of the host.
///
/// # Errors
/// `NotFound` where the kernel lacks `tcp_diag`.
pub fn ports_of_connections(range: RangeInclusive<u16>) -> io::Result<Vec<u16>> {
    let no_connection = [TIME_WAIT, CLOSED, LISTEN, NEW_SYN_RECEIVED];
    let states = no_connection.iter().fold(u32::MAX, |states, state| states & !(1 << state));
    Ok(ports(&read(TCP, states)?, &range))
}

fn ports(sockets: &[Socket], range: &RangeInclusive<u16>) -> Vec<u16> {
    let ports = sockets.iter().map(|socket| socket.local.port());
    let ports: BTreeSet<u16> = ports.filter(|port| *port != 0 && range.contains(port)).collect();
    ports.into_iter().collect()
}

/// UDP servers whose answers change, and sockets in the reserved range.
pub(super) fn inspect(config: &Config) -> io::Result<Vec<Finding>> {
    let unconnected = read(UDP, 1 << CLOSED)?;
    let connected = read(UDP, 1 << ESTABLISHED)?;
    let listeners = read(TCP, 1 << LISTEN)?;
    let everybody: Vec<Socket> =
        [&unconnected[..], &connected, &listeners].concat().into_iter().filter(is_bound).collect();
    let owners = Owners::read(&everybody);
    let ephemeral = ephemeral_range();
    let mut findings = Vec::new();
    for socket in unconnected.iter().filter(|socket| is_bound(socket)) {
        let name = owners.name(socket);
        if socket.local.ip().is_unspecified() {
            let text = format!(
                "{name} is on the wildcard address: asked on a NIC's address it answers from the VIPA, \
                 unless it uses IP_PKTINFO"
            );
            findings.push(Finding { kind: FindingKind::WildcardUdp, text });
        }
        if ephemeral.as_ref().is_some_and(|range| range.contains(&socket.local.port())) {
            let text = format!(
                "{name} has a port of ip_local_port_range: if it is a server, its answers look like a \
                 client's datagrams and rules apply to them"
            );
            findings.push(Finding { kind: FindingKind::EphemeralUdp, text });
        }
    }
    let range = &config.source.ports;
    for socket in everybody.iter().filter(|socket| range.contains(&socket.local.port())) {
        let name = owners.name(socket);
        let text = format!("{name} has a reserved port ([source] ports): vipa leaves it out");
        findings.push(Finding { kind: FindingKind::ReservedPort, text });
    }
    for port in ports_of_connections(range.clone())? {
        if !listeners.iter().any(|listener| listener.local.port() == port) {
            let text = format!(
                "a TCP connection has the reserved port {port} ([source] ports): on an address that \
                 rewritten flows carry it hears nothing any more"
            );
            findings.push(Finding { kind: FindingKind::ReservedPort, text });
        }
    }
    Ok(findings)
}

fn is_bound(socket: &Socket) -> bool {
    socket.local.port() != 0
}

/// `ip_local_port_range` of this network namespace.
fn ephemeral_range() -> Option<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut bounds = text.split_whitespace().map(str::parse);
    Some(bounds.next()?.ok()?..=bounds.next()?.ok()?)
}

/// Sockets of both families in one of these states (a mask of TCP's state numbers).
fn read(protocol: u8, states: u32) -> io::Result<Vec<Socket>> {
    let mut requests = Requests::open(netlink_sys::protocols::NETLINK_SOCK_DIAG)?;
    let mut sockets = Vec::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut request = vec![family, protocol, 0, 0];
        request.extend(states.to_ne_bytes());
        request.extend([0; SOCKET_ID]);
        requests.dump(SOCK_DIAG_BY_FAMILY, &request, |kind, payload| {
            if kind == SOCK_DIAG_BY_FAMILY {
                sockets.extend(socket(protocol, payload));
            }
        })?;
    }
    Ok(sockets)
}

/// Reads a `struct inet_diag_msg`.
fn socket(protocol: u8, payload: &[u8]) -> Option<Socket> {
    let family = match i32::from(*payload.first()?) {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return None,
    };
    let port = u16::from_be_bytes(*payload.get(4..)?.first_chunk()?);
    let address = payload.get(8..)?;
    let address: IpAddr = match family {
        Family::V4 => (*address.first_chunk::<4>()?).into(),
        Family::V6 => (*address.first_chunk::<16>()?).into(),
    };
    Some(Socket { protocol, local: SocketAddr::new(address, port), inode: native(payload, 68)? })
}

/// Names of the programs that have sockets, where /proc lets us see them.
#[derive(Debug)]
struct Owners(BTreeMap<u32, String>);

impl Owners {
    fn read(sockets: &[Socket]) -> Owners {
        let wanted: BTreeSet<u32> = sockets.iter().map(|socket| socket.inode).collect();
        let mut owners = BTreeMap::new();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let path = process.path();
            let Some(number) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok())
            else {
                continue;
            };
            for file in fs::read_dir(path.join("fd")).into_iter().flatten().flatten() {
                let inode = fs::read_link(file.path()).ok().and_then(|link| {
                    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
                });
                if let Some(inode) = inode.filter(|inode| wanted.contains(inode)) {
                    let program = fs::read_to_string(path.join("comm")).unwrap_or_default();
                    owners
                        .entry(inode)
                        .or_insert_with(|| format!("{} (process {number})", program.trim()));
                }
            }
        }
        Owners(owners)
    }

    fn name(&self, socket: &Socket) -> String {
        let protocol = if socket.protocol == TCP { "TCP listener" } else { "UDP socket" };
        match self.0.get(&socket.inode) {
            Some(owner) => format!("the {protocol} {} of {owner}", socket.local),
            None => format!("the {protocol} {}", socket.local),
        }
    }
}
