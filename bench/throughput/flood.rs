//! Small UDP frames as fast as one thread can: sent by a packet socket, many with one system call; counted where they arrive.
//!
//! What arrives at the server is counted by its device and dropped at its ingress by nftables, so that the sink costs next to nothing.
//! One in 256 goes on to a socket, which verifies it: frames have a whole checksum from the start, so that the kernel does that too.
#![allow(unsafe_code)] // sendmmsg exists as a C call alone.

use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use vipa::lab::Namespace;
use vipa::wire::ethernet::MacAddr;
use vipa::wire::ip::Family;

use crate::place::Place;
use crate::raw::{bind, packet_socket};
use crate::work::{Span, UDP};
use crate::{Error, machine};

/// With the four bytes of the checksum that a NIC adds, an IPv4 frame has 64 bytes.
const PAYLOAD: &[u8; 18] = b"vipa throughput 64";
const FLOWS: u16 = 256;
const AT_ONCE: usize = 64;
const SAMPLE: u64 = 256;
/// Something has to arrive within this.
const PATIENCE: Duration = Duration::from_secs(3);

/// Of the time that was measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flood {
    /// Frames a second.
    pub(crate) delivered: f64,
    /// Percent of what was sent.
    pub(crate) lost: f64,
    /// Nanoseconds that the machine's processors were busy for a delivered frame, generator and sink among them.
    pub(crate) busy: f64,
}

/// Saturates the way to the first server.
pub(crate) fn flood(
    place: &Place,
    family: Family,
    span: &Span,
    baseline: f64,
) -> Result<Flood, Error> {
    let server = &place.servers[0];
    sink(server, true)?;
    let socket = server.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, UDP)))?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let client = &place.client;
    let ifindex = client.index(&place.link.0)?.cast_signed();
    let ends = (place.source(family, 1), place.target(family));
    let frames = frames(client.mac(&place.link.0)?, place.link.1, ends)?;
    let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = server.counters("eth0")?.rx_frames;

    let (flood, intact, damaged) = thread::scope(|scope| -> Result<_, Error> {
        let generator = scope.spawn(|| client.run(|| generate(ifindex, &frames, &sent, &is_over)));
        let verifier = scope.spawn(|| verify(&socket, &is_over));
        let look = || -> Result<_, Error> {
            let frames = server.counters("eth0")?.rx_frames;
            Ok((Instant::now(), frames, sent.load(Relaxed), machine::busy()?))
        };
        thread::sleep(span.warm_up);
        let before = look();
        thread::sleep(span.measured);
        let mut after = look();
        // A machine that does something else has its time.
        let deadline = Instant::now() + PATIENCE;
        while let (Ok((_, from, ..)), Ok((_, to, ..))) = (&before, &after)
            && from == to
            && Instant::now() < deadline
        {
            thread::sleep(span.warm_up);
            after = look();
        }
        is_over.store(true, Relaxed);
        generator.join().map_err(|_| "the generator panicked")??;
        let (intact, damaged) = verifier.join().map_err(|_| "the sink panicked")?;
        let (before, after) = (before?, after?);
        let seconds = (after.0 - before.0).as_secs_f64();
        let (delivered, sent) = ((after.1 - before.1) as f64, (after.2 - before.2) as f64);
        let busy = after.3.saturating_sub(before.3).as_secs_f64() - baseline * seconds;
        let flood = Flood {
            delivered: delivered / seconds,
            lost: (100.0 * (1.0 - delivered / sent.max(1.0))).max(0.0),
            busy: busy.max(0.0) * 1e9 / delivered.max(1.0),
        };
        Ok((flood, intact, damaged))
    })?;

    let all = server.counters("eth0")?.rx_frames - start;
    sink(server, false)?;
    let expected = all / SAMPLE;
    if damaged > 0 || intact < expected * 3 / 4 {
        return Err(format!(
            "of {all} datagrams about {expected} were looked at: {intact} arrived as they were sent, {damaged} changed"
        )
        .into());
    }
    if flood.delivered < 1.0 {
        return Err("no datagram arrived".into());
    }
    Ok(flood)
}

fn sink(server: &Namespace, on: bool) -> Result<(), Error> {
    let rules = if on {
        format!(
            "table netdev sink {{ chain in {{ type filter hook ingress device eth0 priority 0; policy accept; \
             udp dport {UDP} numgen inc mod {SAMPLE} 0 accept; udp dport {UDP} drop; }}; }}"
        )
    } else {
        "delete table netdev sink".to_owned()
    };
    let output = server
        .command("nft")
        .arg(rules)
        .output()
        .map_err(|why| format!("the sink needs nft (Debian: nftables): {why}"))?;
    let why = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("nft: {}", why.trim()).into()) }
}

/// One of each flow.
fn frames(from: MacAddr, to: MacAddr, ends: (IpAddr, IpAddr)) -> Result<Vec<Vec<u8>>, Error> {
    let one = |flow| {
        let ethernet = etherparse::PacketBuilder::ethernet2(from.0, to.0);
        let builder = match ends {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                ethernet.ipv4(source.octets(), target.octets(), 64)
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                ethernet.ipv6(source.octets(), target.octets(), 64)
            }
            _ => return Err("two families".into()),
        };
        let mut bytes = Vec::new();
        builder.udp(20_000 + flow, UDP).write(&mut bytes, PAYLOAD)?;
        Ok(bytes)
    };
    (0..FLOWS).map(one).collect()
}

/// On the first processor, until it is over.
fn generate(
    ifindex: i32,
    frames: &[Vec<u8>],
    sent: &AtomicU64,
    is_over: &AtomicBool,
) -> Result<(), io::Error> {
    machine::keep_to(0);
    let socket = packet_socket(0)?;
    bind(&socket, ifindex, 0)?;
    let mut parts: Vec<libc::iovec> = frames
        .iter()
        .map(|frame| libc::iovec {
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: all zeros is a valid mmsghdr.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    while !is_over.load(Relaxed) {
        for batch in messages.chunks_mut(AT_ONCE) {
            let (fd, length) = (socket.as_raw_fd(), batch.len() as libc::c_uint);
            // SAFETY: `batch` has `length` messages, whose parts point into frames that outlive the call and are only read.
            let count = unsafe { libc::sendmmsg(fd, batch.as_mut_ptr(), length, 0) };
            if count < 0 {
                let error = io::Error::last_os_error();
                if error.raw_os_error() != Some(libc::ENOBUFS) {
                    return Err(error);
                }
            }
            sent.fetch_add(u64::try_from(count).unwrap_or(0), Relaxed);
        }
    }
    Ok(())
}

/// Intact ones, and changed ones.
fn verify(socket: &UdpSocket, is_over: &AtomicBool) -> (u64, u64) {
    let (mut intact, mut damaged) = (0, 0);
    let mut buffer = [0; 64];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) if buffer[..length] == PAYLOAD[..] => intact += 1,
            Ok(_) => damaged += 1,
            // What was under way has arrived.
            Err(_) if is_over.load(Relaxed) => return (intact, damaged),
            Err(_) => {}
        }
    }
}
