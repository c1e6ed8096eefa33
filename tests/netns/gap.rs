//! The longest silence of a 1 kHz echo between the client and the VIPA.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vipa::lab::topology::{Network, vipas};
use vipa::wire::ip::Family;

use crate::fixture::wait_until;

/// An echo that runs.
pub(crate) struct Echo {
    answers: Arc<AtomicU64>,
    longest_us: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    asker: Option<JoinHandle<()>>,
}

impl Echo {
    /// Asks the default VIPA of `family` a thousand times a second.
    pub(crate) fn start(network: &Network, family: Family) -> Echo {
        let [vipa, _] = vipas(family);
        let any = SocketAddr::new(family.unspecified(), 0);
        let server = network
            .host
            .run(|| UdpSocket::bind(SocketAddr::new(vipa, 0)))
            .expect("the VIPA is the host's");
        let address = server.local_addr().expect("an address");
        let asker = network.client.run(|| UdpSocket::bind(any)).expect("a socket");
        asker.connect(address).expect("a route");
        let mut echo = Echo {
            answers: Arc::default(),
            longest_us: Arc::default(),
            is_over: Arc::default(),
            asker: None,
        };
        let server_end = Arc::clone(&echo.is_over);
        server.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
        thread::spawn(move || {
            let mut question = [0; 64];
            while !server_end.load(Ordering::Relaxed) {
                if let Ok((length, from)) = server.recv_from(&mut question) {
                    let _ = server.send_to(&question[..length], from);
                }
            }
        });
        let (answers, longest) = (Arc::clone(&echo.answers), Arc::clone(&echo.longest_us));
        let is_over = Arc::clone(&echo.is_over);
        let asker = thread::spawn(move || {
            asker.set_read_timeout(Some(Duration::from_millis(1))).expect("not zero");
            let mut last = None::<Instant>;
            let mut answer = [0; 64];
            while !is_over.load(Ordering::Relaxed) {
                let _ = asker.send(b"echo");
                if asker.recv(&mut answer).is_ok() {
                    let now = Instant::now();
                    if let Some(last) = last {
                        let gap = now.duration_since(last).as_micros() as u64;
                        longest.fetch_max(gap, Ordering::Relaxed);
                    }
                    last = Some(now);
                    answers.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_micros(800));
                }
            }
        });
        echo.asker = Some(asker);
        echo.goes_on();
        echo
    }

    /// Waits for some more answers.
    pub(crate) fn goes_on(&self) {
        let goal = self.answers.load(Ordering::Relaxed) + 50;
        wait_until("the echo goes on", || self.answers.load(Ordering::Relaxed) >= goal);
    }

    /// Waits for some more answers, then tells the longest gap since the last call, and forgets it.
    pub(crate) fn longest_gap(&self) -> Duration {
        self.goes_on();
        Duration::from_micros(self.longest_us.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(asker) = self.asker.take() {
            let _ = asker.join();
        }
    }
}
