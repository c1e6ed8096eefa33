//! The least that a forwarder in user space does: frames are read and sent, with nothing in between. No lookup, no flow, no statistics:
//! a yardstick for what vipa adds to the system calls, not a bound: XDP saves some of these, and asking on some wake-ups.
//!
//! Packet sockets with virtio headers and the adapter's TUN, as vipa has them; small frames many with one system call, super-packets
//! one at a time. It is this bench's own program again (`--plain`), in the director's namespace. A wire from the client's NIC to the first
//! server's, of new connections half of them to the second one's; or a host's way out by one NIC.
#![allow(unsafe_code)] // Socket options, poll, recvmmsg and sendmmsg exist as C calls alone.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use vipa::lab::Namespace;
use vipa::lab::topology::vipas;
use vipa::wire::ip::Family;

use crate::Error;
use crate::place::{ip, own_vipas};
use crate::raw::{bind, packet_socket};
use crate::work::SHORT as SHORT_PORT;

const AT_ONCE: usize = 64;
/// Of frames longer than this one is taken at a time.
const SHORT: usize = 2048;
const VIRTIO: usize = 10;
const ETHERNET: usize = 14;
const BUFFER: libc::c_int = 8 << 20;
/// Name of the TUN.
pub(crate) const TUN: &str = "plain0";

type Space = Box<[u8; 66 << 10]>;

/// Runs until it is killed: `--plain CLIENT FIRST SECOND MAC`, a wire between devices of these indices, the second server having this MAC
/// address, or `--plain ONE FROM TO`: what the TUN gives goes by this device, from one MAC address to the other.
pub(crate) fn run(words: &[String]) -> Result<(), Error> {
    let spaces: Vec<Space> = (0..AT_ONCE).map(|_| Box::new([0; 66 << 10])).collect();
    match words {
        [client, first, second, to] => {
            let open = |index| socket(index, true);
            wire([open(client)?, open(first)?, open(second)?], mac(to)?, spaces)
        }
        [one, from, to] => way_out(&socket(one, false)?, mac(from)?, mac(to)?, spaces),
        _ => Err("--plain takes three indices and a MAC address, or one and two".into()),
    }
}

fn wire(ends: [OwnedFd; 3], second: [u8; 6], mut spaces: Vec<Space>) -> Result<(), Error> {
    let mut at_once = [1; 3];
    loop {
        wait(&ends.each_ref().map(AsRawFd::as_raw_fd))?;
        for (from, at_once) in at_once.iter_mut().enumerate() {
            for _ in 0..AT_ONCE {
                let mut lengths = [0; AT_ONCE];
                let count = receive(&ends[from], &mut spaces[..*at_once], &mut lengths);
                let frames = spaces[..count].iter_mut().zip(&lengths);
                if from == 0 {
                    send(&ends[1], frames.filter(|(space, _)| !is_second(space)));
                    let others = spaces[..count].iter_mut().zip(&lengths);
                    let others = others.filter(|(space, _)| is_second(space));
                    send(&ends[2], others.map(|(space, length)| (address(space, second), length)));
                } else {
                    send(&ends[0], frames);
                }
                let is_short = lengths[..count].iter().all(|length| *length <= SHORT);
                *at_once = if is_short { (*at_once * 2).min(AT_ONCE) } else { 1 };
                if count == 0 {
                    break;
                }
            }
        }
    }
}

/// The frame, for this MAC address.
fn address(frame: &mut Space, to: [u8; 6]) -> &mut Space {
    frame[VIRTIO..][..6].copy_from_slice(&to);
    frame
}

/// Is it of a new connection whose source address is odd?
fn is_second(frame: &Space) -> bool {
    let packet = &frame[VIRTIO + ETHERNET..];
    // Last byte of the source address, and the destination port, of headers without options.
    let (last, port) = if packet[0] >> 4 == 6 { (23, 42) } else { (15, 22) };
    packet[port..][..2] == SHORT_PORT.to_be_bytes() && packet[last] % 2 == 1
}

fn way_out(
    socket: &OwnedFd,
    from: [u8; 6],
    to: [u8; 6],
    mut spaces: Vec<Space>,
) -> Result<(), Error> {
    let device = tun_rs::DeviceBuilder::new()
        .name(TUN)
        .with(|builder| {
            builder.offload(true);
        })
        .build_sync()?;
    device.set_nonblocking(true)?;
    loop {
        wait(&[device.as_raw_fd()])?;
        let mut lengths = [0; AT_ONCE];
        let mut count = 0;
        for _ in 0..AT_ONCE * AT_ONCE {
            let space = &mut spaces[count];
            let Ok(length) = device.recv(&mut space[ETHERNET..]) else { break };
            space.copy_within(ETHERNET..ETHERNET + VIRTIO, 0);
            // What the header says of places counts from the frame's start.
            for at in [2, 6] {
                let place = u16::from_ne_bytes([space[at], space[at + 1]]);
                if place > 0 || at == 6 {
                    space[at..at + 2].copy_from_slice(&(place + ETHERNET as u16).to_ne_bytes());
                }
            }
            let kind = if space[VIRTIO + ETHERNET] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
            space[VIRTIO..][..6].copy_from_slice(&to);
            space[VIRTIO + 6..][..6].copy_from_slice(&from);
            space[VIRTIO + 12..][..2].copy_from_slice(&kind);
            lengths[count] = length + ETHERNET;
            count += 1;
            if count == AT_ONCE || length > SHORT {
                send(socket, spaces[..count].iter_mut().zip(&lengths));
                count = 0;
            }
        }
        send(socket, spaces[..count].iter_mut().zip(&lengths));
    }
}

/// Leads what the host sends into the TUN, once that is there.
pub(crate) fn lead_in(host: &Namespace) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while host.index(TUN).is_err() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    own_vipas(host)?;
    ip(host, &format!("link set {TUN} up"))?;
    for (family, flag) in Family::BOTH.into_iter().zip(["-4", "-6"]) {
        let [vipa, _] = vipas(family);
        ip(host, &format!("{flag} route add default dev {TUN} src {vipa}"))?;
    }
    Ok(())
}

fn mac(text: &str) -> Result<[u8; 6], Error> {
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let mut mac = [0; 6];
    for byte in &mut mac {
        *byte = bytes.next().ok_or("no MAC address")??;
    }
    Ok(mac)
}

fn wait(fds: &[i32]) -> io::Result<()> {
    let poll = |fd: &i32| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
    let mut polled: Vec<libc::pollfd> = fds.iter().map(poll).collect();
    // SAFETY: a live slice and its length.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One that hears everything that comes in, or nothing.
fn socket(index: &str, hears: bool) -> Result<OwnedFd, Error> {
    let socket = packet_socket(libc::SOCK_NONBLOCK)?;
    let set = |level, option, value: libc::c_int| {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        let (fd, value) = (socket.as_raw_fd(), (&raw const value).cast());
        // SAFETY: a live number and its length.
        let result = unsafe { libc::setsockopt(fd, level, option, value, length) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)
        .or_else(|_| set(libc::SOL_SOCKET, libc::SO_RCVBUF, BUFFER))?;
    bind(&socket, index.parse()?, if hears { libc::ETH_P_ALL as u16 } else { 0 })?;
    Ok(socket)
}

fn receive(socket: &OwnedFd, spaces: &mut [Space], lengths: &mut [usize; AT_ONCE]) -> usize {
    let mut parts = spaces
        .iter_mut()
        .map(|space| libc::iovec { iov_base: space.as_mut_ptr().cast(), iov_len: space.len() });
    let mut parts: [libc::iovec; AT_ONCE] = std::array::from_fn(|_| parts.next().unwrap_or(EMPTY));
    let mut messages = messages(&mut parts);
    let length = spaces.len() as libc::c_uint;
    let (fd, first) = (socket.as_raw_fd(), messages.as_mut_ptr());
    // SAFETY: `length` messages of `spaces`, which are borrowed mutably until the call is over.
    let count = unsafe { libc::recvmmsg(fd, first, length, 0, std::ptr::null_mut()) };
    let count = usize::try_from(count).unwrap_or(0);
    for (length, message) in lengths.iter_mut().zip(&messages[..count]) {
        *length = message.msg_len as usize;
    }
    count
}

/// What is refused is lost.
fn send<'a>(socket: &OwnedFd, frames: impl Iterator<Item = (&'a mut Space, &'a usize)>) {
    let mut parts = [EMPTY; AT_ONCE];
    let mut count = 0;
    for ((space, length), part) in frames.zip(&mut parts) {
        *part = libc::iovec { iov_base: space.as_mut_ptr().cast(), iov_len: *length };
        count += 1;
    }
    let mut messages = messages(&mut parts);
    let mut done = 0;
    while done < count {
        let rest = &mut messages[done..count];
        let (fd, length) = (socket.as_raw_fd(), rest.len() as libc::c_uint);
        // SAFETY: `length` messages of frames that outlive the call, borrowed until this function returns, and are only read.
        let sent = unsafe { libc::sendmmsg(fd, rest.as_mut_ptr(), length, 0) };
        done += usize::try_from(sent).unwrap_or(0).max(1);
    }
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

fn messages(parts: &mut [libc::iovec; AT_ONCE]) -> [libc::mmsghdr; AT_ONCE] {
    let mut parts = parts.iter_mut();
    std::array::from_fn(|_| {
        // SAFETY: all zeros is a valid mmsghdr.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = parts.next().map_or(std::ptr::null_mut(), |part| part);
        message.msg_hdr.msg_iovlen = 1;
        message
    })
}
