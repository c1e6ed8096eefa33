//! Open flows while another thread publishes the preferred servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vipa::forward::preferred::{Choice, PreferredTable, ServerId, ServiceId};
use vipa::forward::publish;
use vipa::wire::ip::Family;

use crate::common::median;
use crate::host::{BATCH, Host, Kind, Setup};

const FLOWS: u32 = 100_000;

/// The rate with a hundred updates a second in shares of that without; the two take turns.
pub(crate) fn rate(rounds: usize, packets: u32) -> Value {
    let setup = Setup::of(Kind::Service, Family::V4, FLOWS);
    let mut host = Host::full(setup);
    let first = Arc::new(host.preferred.clone());
    let (mut publisher, mut readers) = publish::channel(1, Arc::clone(&first));
    let mut reader = readers.remove(0);
    let is_publishing = Arc::new(AtomicBool::new(false));
    let is_over = Arc::new(AtomicBool::new(false));
    let (on, over) = (Arc::clone(&is_publishing), Arc::clone(&is_over));
    let writer = std::thread::spawn(move || {
        let mut table = PreferredTable::clone(&first);
        while !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(10));
            if on.load(Ordering::Relaxed) {
                table.generation += 1;
                let id = ServerId((table.generation % u32::from(setup.servers)) as u16);
                table.set_choice(ServiceId(0), Choice::Preferred(id));
                publisher.publish(Arc::new(table.clone()));
            }
        }
    });
    let ratios = (0..rounds.max(5)).map(|_| {
        let [without, with] = [false, true].map(|is_on| {
            is_publishing.store(is_on, Ordering::Relaxed);
            let start = Instant::now();
            for _ in 0..packets / BATCH as u32 {
                host.fill_established(FLOWS);
                host.run_with(BATCH, reader.get());
            }
            start.elapsed().as_secs_f64()
        });
        without / with
    });
    let ratio = median(ratios.collect());
    is_over.store(true, Ordering::Relaxed);
    writer.join().expect("it only publishes");
    println!("with 100 updates of the table a second: {ratio:.3} of the rate without");
    json!({ "rate": ratio })
}
