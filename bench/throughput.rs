//! How fast is one TCP stream out of the VIPA through the forwarder, next to the kernel's own routes in the
//! same namespaces? `cargo bench --bench throughput [-- --rounds N]`, as root.
//!
//! Host, router and client are namespaces; the stream goes from the host's VIPA over one of three veth NICs to
//! the router and on to the client. In turn, round by round: with the forwarder, and with it killed, when the
//! kernel takes the second route of each pair. What counts is the ratio of the medians: both share the noise
//! of the machine.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use vipa::lab::topology::{Network, client_address};
use vipa::lab::{self, Error, Forwarder, Namespace};
use vipa::wire::ip::Family;

use crate::common::median;

const WARM_UP: Duration = Duration::from_millis(300);
const MEASURED: Duration = Duration::from_millis(1500);
const READY: Duration = Duration::from_secs(10);
const PORT: u16 = 7000;
const REWRITTEN_PORT: u16 = 7001;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds = rounds();
    lab::enter()?;
    let network = Network::new(3)?;
    let directory = Path::new("/run"); // ours alone after `enter`
    let config = directory.join("vipa.toml");
    network.write_config(&config, REWRITTEN_PORT, "")?;
    let program = Path::new(env!("CARGO_BIN_EXE_vipa"));
    let mut forwarder = Forwarder::new(&network.host, program, &config, directory)?;

    println!("one TCP stream, host → router → client, Gbit/s; {rounds} rounds of {MEASURED:?}");
    println!("{:>5} {:>10} {:>10} {:>10}", "round", "kernel", "vipa", "rewritten");
    let mut columns: [Vec<f64>; 3] = Default::default();
    for round in 1..=rounds {
        forwarder.start_and_wait(READY)?;
        let vipa = stream(&network, PORT)?;
        let rewritten = stream(&network, REWRITTEN_PORT)?;
        forwarder.kill();
        let kernel = stream(&network, PORT)?;
        println!("{round:>5} {kernel:>10.2} {vipa:>10.2} {rewritten:>10.2}");
        for (column, value) in columns.iter_mut().zip([kernel, vipa, rewritten]) {
            column.push(value);
        }
    }
    let [kernel, vipa, rewritten] = columns.map(median);
    println!("{:>5} {kernel:>10.2} {vipa:>10.2} {rewritten:>10.2}", "median");
    println!("ratio {:>10} {:>10.3} {:>10.3}", "1", vipa / kernel, rewritten / kernel);
    Ok(())
}

fn rounds() -> usize {
    let mut args = std::env::args().skip_while(|arg| arg != "--rounds").skip(1);
    args.next().and_then(|text| text.parse().ok()).filter(|n| *n > 0).unwrap_or(5)
}

/// Gbit/s of one stream from the host to the client's `port`.
fn stream(network: &Network, port: u16) -> Result<f64, Box<dyn std::error::Error>> {
    let address = SocketAddr::new(client_address(Family::V4), port);
    let listener = network.client.run(|| TcpListener::bind(address))?;
    let host: &Namespace = &network.host;
    thread::scope(|scope| {
        let sender = scope.spawn(move || -> Result<(), Error> {
            host.run(|| {
                let Ok(mut stream) = TcpStream::connect_timeout(&address, READY) else { return };
                let block = vec![0x5a; 256 << 10];
                // Ends when the receiver closes.
                while stream.write_all(&block).is_ok() {}
            });
            Ok(())
        });
        let (mut stream, _) = listener.accept()?;
        let mut block = vec![0; 1 << 20];
        let start = Instant::now();
        let (mut bytes, mut from) = (0_u64, None);
        while start.elapsed() < WARM_UP + MEASURED {
            let count = stream.read(&mut block)?;
            if from.is_none() && start.elapsed() >= WARM_UP {
                from = Some(Instant::now());
            } else if from.is_some() {
                bytes += count as u64;
            }
        }
        let seconds = from.map_or(MEASURED, |from| from.elapsed()).as_secs_f64();
        drop(stream);
        let _ = sender.join();
        Ok(bytes as f64 * 8.0 / seconds / 1e9)
    })
}
