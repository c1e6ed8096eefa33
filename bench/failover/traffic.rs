//! Requests every millisecond, a TCP connection beside them, and what of it came back: all over one chosen link.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vipa::lab::Namespace;
use vipa::lab::topology::{Network, client_address, nic_name, vipas};
use vipa::wire::ip::Family;

use crate::Error;

const PORT: u16 = 7002;
const EVERY: Duration = Duration::from_millis(1);
/// TCP says so much …
const BLOCK: usize = 1024;
/// … this often.
const BLOCK_EVERY: Duration = Duration::from_millis(2);
/// Further flows, so that a link that carries traffic again is seen to, whichever flows it gets.
const SIDE_FLOWS: usize = 15;
const SIDE_EVERY: Duration = Duration::from_millis(10);
/// Flows tried until one goes by the wanted link both ways.
const TRIES: usize = 64;
/// What a flow that is tried says.
const TRIAL: usize = 20;
/// A request that was not answered so long after is lost; the last ones are not judged.
const LATEST: Duration = Duration::from_millis(300);
/// TCP has so long to bring back all that was said.
const TCP_PATIENCE: Duration = Duration::from_secs(20);

fn vipa() -> SocketAddr {
    SocketAddr::new(vipas(Family::V4)[0], PORT)
}

/// A link that the traffic goes by, and that is to fail: by the NIC at its far end, seen from the router.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) namespace: Namespace,
    /// The number of NIC and cable.
    pub(crate) nic: u8,
}

impl Link {
    /// Frames that the NIC has received and sent.
    pub(crate) fn frames(&self) -> Result<[u64; 2], Error> {
        let counters = self.namespace.counters(&nic_name(self.nic))?;
        Ok([counters.rx_frames, counters.tx_frames])
    }
}

/// Answers on the VIPA, over UDP and TCP. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Server {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// The VIPA need not be there yet.
    pub(crate) fn start(host: &Namespace) -> Result<Server, Error> {
        host.sysctl("net/ipv4/ip_nonlocal_bind", 1)?;
        let (udp, tcp) = host.run(|| {
            let udp = UdpSocket::bind(vipa())?;
            udp.set_read_timeout(Some(Duration::from_millis(100)))?;
            let tcp = TcpListener::bind(vipa())?;
            tcp.set_nonblocking(true)?;
            Ok::<_, io::Error>((udp, tcp))
        })?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, over_too) = (Arc::clone(&is_over), Arc::clone(&is_over));
        let threads = vec![
            thread::spawn(move || {
                let mut buffer = [0; 2048];
                while !over.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                        let _ = udp.send_to(&buffer[..length], from);
                    }
                }
            }),
            thread::spawn(move || {
                while !over_too.load(Ordering::Relaxed) {
                    match tcp.accept() {
                        Ok((stream, _)) => drop(thread::spawn(move || repeat(stream))),
                        Err(_) => thread::sleep(Duration::from_millis(5)),
                    }
                }
            }),
        ];
        Ok(Server { is_over, threads })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn repeat(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    // A peer that is gone without a word does not hold this thread for ever.
    stream.set_read_timeout(Some(Duration::from_secs(600)))?;
    let mut buffer = [0; 64 << 10];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

/// Time until the VIPA answers for the first time, counted from `start`; asked every millisecond.
pub(crate) fn first_answer(
    client: &Namespace,
    limit: Duration,
    start: impl FnOnce() -> Result<(), Error>,
) -> Result<Option<Duration>, Error> {
    let socket = client.run(udp)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let asker = socket.try_clone()?;
    let is_over = Arc::new(AtomicBool::new(false));
    let over = Arc::clone(&is_over);
    let asking = thread::spawn(move || {
        let mut pace = Pace::new(EVERY);
        while !over.load(Ordering::Relaxed) {
            let _ = asker.send_to(&[0; 8], vipa());
            pace.wait();
        }
    });
    let answered = thread::spawn(move || {
        let began = Instant::now();
        let mut buffer = [0; 64];
        while began.elapsed() < limit {
            if socket.recv_from(&mut buffer).is_ok() {
                return Some(Instant::now());
            }
        }
        None
    });
    let started = Instant::now();
    let result = start();
    let answered = if result.is_ok() { answered.join().unwrap_or(None) } else { None };
    is_over.store(true, Ordering::Relaxed);
    let _ = asking.join();
    result?;
    Ok(answered.map(|at| at.saturating_duration_since(started)))
}

fn udp() -> io::Result<UdpSocket> {
    UdpSocket::bind(SocketAddr::new(client_address(Family::V4), 0))
}

/// Equal steps from the beginning on; a late one is made up for.
struct Pace {
    next: Instant,
    every: Duration,
}

impl Pace {
    fn new(every: Duration) -> Pace {
        Pace { next: Instant::now(), every }
    }

    fn wait(&mut self) {
        self.next += self.every;
        thread::sleep(self.next.saturating_duration_since(Instant::now()));
    }
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    began: Instant,
    is_over: AtomicBool,
    answers: AtomicU64,
    /// Bytes that came back over TCP.
    returned: AtomicU64,
}

/// Under way.
#[derive(Debug)]
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    sender: JoinHandle<Vec<Instant>>,
    receiver: JoinHandle<Vec<u64>>,
    side: JoinHandle<()>,
    writer: JoinHandle<io::Result<u64>>,
    reader: JoinHandle<(Vec<Instant>, io::Result<()>)>,
    stream: TcpStream,
}

impl Traffic {
    /// Over `link`, both ways.
    pub(crate) fn start(network: &Network, link: &Link) -> Result<Traffic, Error> {
        let socket = flow(network, link, udp_flow)?;
        let stream = flow(network, link, tcp_flow)?;
        let shared = Arc::new(Shared {
            began: Instant::now(),
            is_over: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            returned: AtomicU64::new(0),
        });
        let others: Vec<UdpSocket> =
            (0..SIDE_FLOWS).map(|_| network.client.run(udp)).collect::<Result<_, _>>()?;
        let (asking, hearing) = (socket.try_clone()?, socket);
        hearing.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (writing, reading) = (stream.try_clone()?, stream.try_clone()?);
        let share = || Arc::clone(&shared);
        let (a, b, c, d, e) = (share(), share(), share(), share(), share());
        Ok(Traffic {
            sender: thread::spawn(move || ask(&asking, &a)),
            receiver: thread::spawn(move || hear(&hearing, &b)),
            side: thread::spawn(move || {
                let mut pace = Pace::new(SIDE_EVERY);
                while !c.is_over.load(Ordering::Relaxed) {
                    others.iter().for_each(|one| drop(one.send_to(&[1; 64], vipa())));
                    pace.wait();
                }
            }),
            writer: thread::spawn(move || say(&writing, &d)),
            reader: thread::spawn(move || listen(&reading, &e)),
            stream,
            shared,
        })
    }

    /// Answers so far.
    pub(crate) fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// Bytes so far that TCP brought back.
    pub(crate) fn returned(&self) -> u64 {
        self.shared.returned.load(Ordering::Relaxed)
    }

    /// Ends it, and tells what happened. An error is a fault of the bench; a connection that was lost is part of the record.
    pub(crate) fn finish(self) -> Result<Record, Error> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let panicked = |_| Error::from("a thread of the traffic panicked");
        let sent = self.sender.join().map_err(panicked)?;
        let answers = self.receiver.join().map_err(panicked)?;
        self.side.join().map_err(panicked)?;
        let deadline = Instant::now() + TCP_PATIENCE;
        let is_over = || self.writer.is_finished() && self.reader.is_finished();
        while !is_over() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let is_stuck = !is_over();
        if is_stuck {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        let written = self.writer.join().map_err(panicked)?;
        let (heard, ended) = self.reader.join().map_err(panicked)?;
        let returned = self.shared.returned.load(Ordering::Relaxed);
        let tcp = match (written, ended) {
            _ if is_stuck => {
                Some(format!("{returned} bytes came back, and nothing more in {TCP_PATIENCE:?}"))
            }
            (Err(error), _) | (_, Err(error)) => Some(error.to_string()),
            (Ok(written), _) if written != returned => {
                Some(format!("{returned} of {written} bytes came back"))
            }
            _ => None,
        };
        let mut is_answered = vec![false; sent.len()];
        for number in answers {
            if let Some(slot) = usize::try_from(number).ok().and_then(|at| is_answered.get_mut(at))
            {
                *slot = true;
            }
        }
        Ok(Record { sent, is_answered, heard, lost_connection: tcp })
    }
}

/// Makes flows until one goes by `link` both ways.
fn flow<T>(
    network: &Network,
    link: &Link,
    make: impl Fn(&Namespace) -> io::Result<T>,
) -> Result<T, Error> {
    for _ in 0..TRIES {
        let before = link.frames()?;
        let made = make(&network.client)?;
        let after = link.frames()?;
        if after.iter().zip(before).all(|(after, before)| after - before >= TRIAL as u64 - 2) {
            return Ok(made);
        }
    }
    Err(format!("no flow of {TRIES} goes by link {} both ways", link.nic).into())
}

fn udp_flow(client: &Namespace) -> io::Result<UdpSocket> {
    let socket = client.run(udp)?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut buffer = [0; 64];
    for _ in 0..TRIAL {
        socket.send_to(&u64::MAX.to_be_bytes(), vipa())?;
        let _ = socket.recv_from(&mut buffer);
    }
    Ok(socket)
}

fn tcp_flow(client: &Namespace) -> io::Result<TcpStream> {
    let stream = client.run(|| TcpStream::connect_timeout(&vipa(), Duration::from_secs(5)))?;
    stream.set_nodelay(true)?;
    let mut block = [0; BLOCK];
    for _ in 0..TRIAL {
        (&stream).write_all(&block)?;
        (&stream).read_exact(&mut block)?;
    }
    Ok(stream)
}

fn ask(socket: &UdpSocket, shared: &Shared) -> Vec<Instant> {
    let mut sent = Vec::with_capacity(1 << 16);
    let mut pace = Pace::new(EVERY);
    while !shared.is_over.load(Ordering::Relaxed) {
        let number = sent.len() as u64;
        sent.push(Instant::now());
        let _ = socket.send_to(&number.to_be_bytes(), vipa());
        pace.wait();
    }
    sent
}

fn hear(socket: &UdpSocket, shared: &Shared) -> Vec<u64> {
    let mut heard = Vec::with_capacity(1 << 16);
    let mut buffer = [0; 64];
    let mut over = None;
    while over.is_none_or(|at: Instant| at.elapsed() < LATEST) {
        if over.is_none() && shared.is_over.load(Ordering::Relaxed) {
            over = Some(Instant::now());
        }
        let Ok((8, _)) = socket.recv_from(&mut buffer) else { continue };
        if let Some(number) = buffer.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)) {
            heard.push(number);
            shared.answers.fetch_add(1, Ordering::Relaxed);
        }
    }
    heard
}

fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9E37_79B9) >> 16) as u8
}

fn say(mut stream: &TcpStream, shared: &Shared) -> io::Result<u64> {
    let mut said = 0;
    let mut pace = Pace::new(BLOCK_EVERY);
    while !shared.is_over.load(Ordering::Relaxed) {
        let block: Vec<u8> = (said..said + BLOCK as u64).map(byte).collect();
        stream.write_all(&block)?;
        said += BLOCK as u64;
        pace.wait();
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(said)
}

/// When something new came back.
fn listen(mut stream: &TcpStream, shared: &Shared) -> (Vec<Instant>, io::Result<()>) {
    let mut heard = vec![shared.began];
    let mut buffer = [0; 64 << 10];
    let mut total = 0_u64;
    let _ = stream.set_read_timeout(Some(Duration::from_secs(600)));
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (heard, Ok(())),
            Ok(length) => {
                if (total..).zip(&buffer[..length]).any(|(at, got)| byte(at) != *got) {
                    let why = format!("other bytes came back than were said, near {total}");
                    return (heard, Err(io::Error::other(why)));
                }
                total += length as u64;
                heard.push(Instant::now());
                shared.returned.store(total, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (heard, Err(error)),
        }
    }
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Record {
    sent: Vec<Instant>,
    is_answered: Vec<bool>,
    heard: Vec<Instant>,
    /// Why the TCP connection is lost, if it is.
    pub(crate) lost_connection: Option<String>,
}

/// Missing answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Missing {
    /// How many.
    pub(crate) lost: usize,
    /// From the last request that was answered before the longest run of missing answers to the first that was answered after it,
    /// ms; 0: nothing was lost.
    pub(crate) gap: f64,
}

impl Record {
    /// Of the requests sent from `from` until `until`.
    pub(crate) fn missing(&self, from: Instant, until: Instant) -> Missing {
        let last = self.sent.last().copied().unwrap_or(until);
        let until = until.min(last.checked_sub(LATEST).unwrap_or(last));
        let mut missing = Missing::default();
        let mut before = None;
        let mut is_run = false;
        for (at, is_answered) in self.sent.iter().zip(&self.is_answered) {
            let is_within = (from..until).contains(at);
            match (*is_answered, is_within) {
                (true, _) => {
                    if is_run {
                        missing.gap = missing.gap.max(since(before, *at));
                    }
                    (before, is_run) = (Some(*at), false);
                    if *at >= until {
                        break;
                    }
                }
                (false, true) => {
                    missing.lost += 1;
                    is_run = true;
                }
                (false, false) => {}
            }
        }
        if is_run && let Some(last) = self.sent.last() {
            missing.gap = missing.gap.max(since(before, *last));
        }
        missing
    }

    /// The longest time in which TCP brought nothing back, ms, as far as a part of it lay between `from` and `until`.
    pub(crate) fn stall(&self, from: Instant, until: Instant) -> f64 {
        let pairs = self.heard.windows(2).filter(|pair| pair[0] < until && pair[1] >= from);
        pairs.map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1e3).fold(0.0, f64::max)
    }
}

fn since(before: Option<Instant>, at: Instant) -> f64 {
    before.map_or(0.0, |before| at.duration_since(before).as_secs_f64() * 1e3)
}
