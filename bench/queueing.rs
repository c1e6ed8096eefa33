//! What does bulk do to a small flow beside it? `cargo bench --bench queueing [-- --rounds N]`, as root.
//!
//! One NIC, limited to 100 Mbit/s (tbf). One TCP stream as fast as it goes, and beside it a question over UDP each
//! millisecond, which the other end answers at once. In turn, round by round: with the forwarder, and with it
//! killed, when the kernel takes the second route of each pair.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vipa::lab::topology::{Network, client_address};
use vipa::lab::{self, Forwarder};
use vipa::wire::ip::Family;

use crate::common::median;

const READY: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(4);
const BULK_PORT: u16 = 7000;
const ECHO_PORT: u16 = 7002;
const RATE: u64 = 100_000_000;
/// What may go at once, and what may wait in the NIC's queue: 20 ms.
const BURST: u32 = 16 << 10;
const LIMIT: u32 = 250_000;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// One round: what the stream reached, and how long answers took.
#[derive(Clone, Copy)]
struct Round {
    megabits: f64,
    median: f64,
    p99: f64,
    lost: f64,
}

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip_while(|arg| arg != "--rounds").skip(1);
    let rounds = args.next().and_then(|text| text.parse().ok()).filter(|n| *n > 0).unwrap_or(3);
    lab::enter()?;
    let network = Network::new(1)?;
    network.host.tbf("eth1", RATE, BURST, LIMIT)?;
    let directory = Path::new("/run"); // ours alone after `enter`
    let config = directory.join("vipa.toml");
    network.write_config(&config, 7001, "")?;
    let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
    let mut forwarder = Forwarder::new(&network.host, program, &config, directory)?;

    println!("{:>14} {:>9} {:>9} {:>9} {:>7}", "", "Mbit/s", "p50 ms", "p99 ms", "lost %");
    let mut all: [Vec<Round>; 2] = Default::default();
    for _ in 0..rounds {
        forwarder.start_and_wait(READY)?;
        let vipa = round(&network)?;
        forwarder.kill();
        let kernel = round(&network)?;
        for (column, (name, round)) in all.iter_mut().zip([("vipa", vipa), ("kernel", kernel)]) {
            print(name, round);
            column.push(round);
        }
    }
    for (rounds, name) in all.iter().zip(["median vipa", "median kernel"]) {
        let of = |field: fn(&Round) -> f64| median(rounds.iter().map(field).collect());
        print(
            name,
            Round {
                megabits: of(|r| r.megabits),
                median: of(|r| r.median),
                p99: of(|r| r.p99),
                lost: of(|r| r.lost),
            },
        );
    }
    Ok(())
}

fn print(name: &str, round: Round) {
    let Round { megabits, median, p99, lost } = round;
    println!("{name:>14} {megabits:>9.1} {median:>9.2} {p99:>9.2} {lost:>7.2}");
}

fn round(network: &Network) -> Result<Round, Error> {
    let to = |port| SocketAddr::new(client_address(Family::V4), port);
    let listener = network.client.run(|| TcpListener::bind(to(BULK_PORT)))?;
    let answerer = network.client.run(|| UdpSocket::bind(to(ECHO_PORT)))?;
    answerer.set_read_timeout(Some(Duration::from_millis(100)))?;
    let asker = network.host.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    network.host.run(|| asker.connect(to(ECHO_PORT)))?;
    asker.set_read_timeout(Some(Duration::from_millis(100)))?;
    let stream = network.host.run(|| TcpStream::connect_timeout(&to(BULK_PORT), READY))?;
    stream.set_write_timeout(Some(Duration::from_millis(100)))?;
    let (mut sink, _) = listener.accept()?;
    sink.set_read_timeout(Some(Duration::from_millis(100)))?;

    let is_over = AtomicBool::new(false);
    let start = Instant::now();
    let millis = || start.elapsed().as_secs_f64() * 1e3;
    thread::scope(|scope| {
        scope.spawn(|| {
            let block = vec![0x5a; 256 << 10];
            while !is_over.load(Ordering::Relaxed) {
                let _ = (&stream).write(&block);
            }
        });
        let received = scope.spawn(|| {
            let (mut block, mut bytes) = (vec![0; 1 << 20], 0_u64);
            while !is_over.load(Ordering::Relaxed) {
                let count = sink.read(&mut block).unwrap_or(0);
                if start.elapsed() > WARM_UP {
                    bytes += count as u64;
                }
            }
            bytes
        });
        scope.spawn(|| {
            let mut question = [0; 64];
            while !is_over.load(Ordering::Relaxed) {
                if let Ok((length, from)) = answerer.recv_from(&mut question) {
                    let _ = answerer.send_to(&question[..length], from);
                }
            }
        });
        let answers = scope.spawn(|| {
            let (mut answer, mut took) = ([0; 8], Vec::new());
            while !is_over.load(Ordering::Relaxed) {
                if let Ok(8) = asker.recv(&mut answer) {
                    let sent = f64::from_be_bytes(answer);
                    if sent > WARM_UP.as_secs_f64() * 1e3 {
                        took.push(millis() - sent);
                    }
                }
            }
            took
        });
        let mut asked = 0_u32;
        while start.elapsed() < WARM_UP + MEASURED {
            let now = millis();
            asked += u32::from(now > WARM_UP.as_secs_f64() * 1e3);
            let _ = asker.send(&now.to_be_bytes());
            thread::sleep(Duration::from_millis(1));
        }
        // What is still under way has its time.
        thread::sleep(Duration::from_millis(300));
        is_over.store(true, Ordering::Relaxed);
        let bytes = received.join().map_err(|_| "the receiver panicked")?;
        let mut took = answers.join().map_err(|_| "the asker panicked")?;
        took.sort_by(f64::total_cmp);
        let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied();
        let seconds = start.elapsed().as_secs_f64() - WARM_UP.as_secs_f64();
        Ok(Round {
            megabits: bytes as f64 * 8.0 / seconds / 1e6,
            median: at(0.5).ok_or("no answer came")?,
            p99: at(0.99).ok_or("no answer came")?,
            lost: 100.0 * (1.0 - took.len() as f64 / f64::from(asked)),
        })
    })
}
