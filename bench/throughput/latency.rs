//! Round trips: 64 bytes over one TCP connection, asked at fixed times.
//!
//! A question whose time came while the last answer was still awaited counts from its time on, not from when it was at last sent: what
//! stalls is not left out.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use vipa::wire::ip::Family;

use crate::Error;
use crate::place::Place;
use crate::work::{ECHO, Span};

const EVERY: Duration = Duration::from_micros(250);
const PATIENCE: Duration = Duration::from_secs(5);

/// Microseconds: p50, p99, p99.9, max.
pub(crate) fn round_trips(place: &Place, span: &Span) -> Result<[f64; 4], Error> {
    let histogram = place.client.run(|| ask(place, span))?;
    let at = |share| histogram.value_at_quantile(share) as f64 / 1e3;
    Ok([at(0.5), at(0.99), at(0.999), histogram.max() as f64 / 1e3])
}

fn ask(place: &Place, span: &Span) -> Result<Histogram<u64>, Error> {
    let target = SocketAddr::new(place.target(Family::V4), ECHO);
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Up to a minute, to a thousandth.
    let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    let (mut question, mut answer) = ([0x5a; 64], [0; 64]);
    let start = Instant::now();
    let mut due = start;
    while due < start + span.warm_up + span.measured {
        let now = Instant::now();
        let is_late = now > due;
        if !is_late {
            thread::sleep(due - now);
        }
        let from = if is_late { due } else { Instant::now() };
        question[..8].copy_from_slice(&(due - start).as_nanos().to_be_bytes()[8..]);
        stream.write_all(&question)?;
        stream.read_exact(&mut answer)?;
        if answer != question {
            return Err("an answer is another one's".into());
        }
        if due >= start + span.warm_up {
            let took = u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX);
            histogram.saturating_record(took);
        }
        due += EVERY;
    }
    Ok(histogram)
}
