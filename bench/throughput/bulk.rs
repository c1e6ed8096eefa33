//! Bulk TCP by iperf3, and a transfer whose every byte and checksum is verified.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vipa::lab::Namespace;
use vipa::wire::ip::Family;

use crate::Error;
use crate::place::Place;
use crate::work::{ECHO, IPERF, Length, Span};

const PATIENCE: Duration = Duration::from_secs(10);
const VERIFIED: usize = 1 << 20;

fn iperf(place: &Place, family: Family, more: &[&str]) -> Command {
    let mut command = place.client.command("iperf3");
    let (target, port) = (place.target(family).to_string(), IPERF.to_string());
    command.args(["-c", &target, "-p", &port, "-J", "--connect-timeout", "3000"]).args(more);
    command.stdin(Stdio::null());
    command
}

/// Gbit/s that the receiver got.
pub(crate) fn bulk(
    place: &Place,
    family: Family,
    streams: u32,
    is_down: bool,
    span: &Span,
) -> Result<f64, Error> {
    let (streams, (flag, length)) = (
        streams.to_string(),
        match span.bulk {
            Length::Seconds(seconds) => ("-t", seconds.to_string()),
            Length::Megabytes(megabytes) => ("-n", format!("{megabytes}M")),
        },
    );
    let mut more = vec!["-P", &streams, flag, &length];
    if is_down {
        more.push("-R");
    }
    let mut last = String::new();
    // Its server has one guest at a time, and may not have noticed yet that the last one left.
    for _ in 0..10 {
        let output = iperf(place, family, &more).output()?;
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let rate = told["end"]["sum_received"]["bits_per_second"].as_f64();
        match (rate, told["error"].as_str()) {
            (Some(rate), None) if rate > 0.0 => return Ok(rate / 1e9),
            (_, error) => last = error.unwrap_or("no rate").to_owned(),
        }
        thread::sleep(Duration::from_millis(100));
    }
    Err(format!("iperf3: {last}").into())
}

/// What goes on in the background; dropped, it ends.
#[derive(Debug)]
pub(crate) struct Background(std::process::Child);

impl Background {
    /// One stream of so many bit/s.
    pub(crate) fn start(place: &Place, rate: &str) -> Result<Background, Error> {
        let mut command = iperf(place, Family::V4, &["-t", "60", "-b", rate]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut background = Background(child);
        thread::sleep(Duration::from_millis(300));
        match background.0.try_wait()? {
            Some(_) => Err("the load in the background ended".into()),
            None => Ok(background),
        }
    }

    /// Does it still go on?
    pub(crate) fn is_there(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the way through the subject is open.
pub(crate) fn wait_for(place: &Place, family: Family) -> Result<(), Error> {
    let target = SocketAddr::new(place.target(family), ECHO);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let short = Duration::from_millis(200);
        let connected = place.client.run(|| TcpStream::connect_timeout(&target, short));
        match connected.and_then(|stream| hello(&stream)) {
            Ok(()) => return Ok(()),
            Err(why) if Instant::now() > deadline => {
                return Err(format!("no way to {target}: {why}").into());
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn hello(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    stream.write_all(b"!")?;
    stream.read_exact(&mut [0])
}

/// Some bytes there and back. With offloads off the receivers' kernels verify each checksum.
pub(crate) fn verify(place: &Place, family: Family) -> Result<(), Error> {
    let target = SocketAddr::new(place.target(family), ECHO);
    let stream = place.client.run(|| TcpStream::connect_timeout(&target, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // No period that a segment's length divides.
    let wanted: Vec<u8> = (0..VERIFIED).map(|at| (at % 251 + at / 251) as u8).collect();
    let mut found = vec![0; VERIFIED];
    thread::scope(|scope| -> Result<(), Error> {
        let sending = scope.spawn(|| (&stream).write_all(&wanted));
        (&stream).read_exact(&mut found)?;
        sending.join().map_err(|_| "the sender panicked")??;
        Ok(())
    })?;
    if found != wanted { Err("bytes came back changed".into()) } else { Ok(()) }
}

/// Packets that a namespace received with a wrong checksum.
pub(crate) fn wrong_checksums(namespace: &Namespace) -> Result<u64, Error> {
    let read = || {
        let at = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        Ok::<_, std::io::Error>((at("snmp")?, at("snmp6").unwrap_or_default()))
    };
    let (both, six) = namespace.run(read)?;
    let mut wrong = 0;
    let mut lines = both.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let pairs = names.split_whitespace().zip(values.split_whitespace());
        let of = pairs.filter(|(name, _)| *name == "InCsumErrors");
        wrong += of.filter_map(|(_, value)| value.parse::<u64>().ok()).sum::<u64>();
    }
    let six = six.lines().filter(|line| line.contains("InCsumErrors"));
    let six = six.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Ok(wrong + six.sum::<u64>())
}
