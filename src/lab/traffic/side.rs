//! The thread of one side, client or host: one poll loop for all its ends.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::echo::Echo;
use super::pattern::{LONGEST_RUN, Pattern};
use super::progress::Micros;
use super::stream::Endpoint;
use crate::lab::syscall::Ticker;

const TICKER: Token = Token(usize::MAX - 1);
const ECHO: Token = Token(usize::MAX - 2);
/// Sends and echo questions are due this often.
const TICK: Duration = Duration::from_millis(1);

/// What both sides obey.
#[derive(Debug)]
pub(super) struct Orders {
    /// Time zero of all [`Micros`].
    pub(super) epoch: Instant,
    /// Bytes a second that each end may send; [`super::stream::UNLIMITED`].
    pub(super) rate: AtomicU64,
    /// Close what is sent, wait for what is to come, then end.
    pub(super) is_closing: AtomicBool,
    /// End at once.
    pub(super) is_over: AtomicBool,
}

impl Orders {
    pub(super) fn now(&self) -> Micros {
        self.epoch.elapsed().as_micros() as Micros
    }
}

/// All ends of one side.
#[derive(Debug)]
pub(super) struct Side {
    poll: Poll,
    ticker: Ticker,
    ends: Vec<Endpoint>,
    echo: Echo,
    pattern: Arc<Pattern>,
    orders: Arc<Orders>,
}

impl Side {
    pub(super) fn new(
        mut ends: Vec<Endpoint>,
        mut echo: Echo,
        pattern: Arc<Pattern>,
        orders: Arc<Orders>,
    ) -> io::Result<Side> {
        let poll = Poll::new()?;
        let ticker = Ticker::new(TICK)?;
        let registry = poll.registry();
        registry.register(&mut SourceFd(&ticker.as_raw_fd()), TICKER, Interest::READABLE)?;
        registry.register(echo.socket(), ECHO, Interest::READABLE)?;
        for (number, end) in ends.iter_mut().enumerate() {
            let interest = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut end.socket, Token(number), interest)?;
        }
        Ok(Side { poll, ticker, ends, echo, pattern, orders })
    }

    /// Until all is sent and received after the order to close, or the order to end.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(64);
        let mut buffer = vec![0; LONGEST_RUN];
        let mut refilled = Instant::now();
        let (mut has_work, mut has_echo) = (true, true);
        while !self.is_done() {
            let patience = if has_work || has_echo { Duration::ZERO } else { 50 * TICK };
            match self.poll.poll(&mut events, Some(patience)) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    TICKER => {}
                    ECHO => has_echo = true,
                    Token(number) => self.ends[number].note(event),
                }
            }
            let rate = self.orders.rate.load(Ordering::Relaxed);
            let is_closing = self.orders.is_closing.load(Ordering::Relaxed);
            let ticks = self.ticker.ticks();
            if ticks > 0 {
                let passed = refilled.elapsed();
                refilled += passed;
                self.ends.iter_mut().for_each(|end| end.refill(rate, passed));
                if !is_closing {
                    self.echo.tick(ticks, self.orders.now());
                }
            }
            if has_echo {
                has_echo = self.echo.receive(self.orders.now());
            }
            for end in &mut self.ends {
                end.receive(&self.pattern, &mut buffer, self.orders.now());
                if is_closing {
                    end.close();
                } else {
                    end.send(&self.pattern, rate);
                }
            }
            has_work = self.ends.iter().any(|end| end.has_work(rate));
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.orders.is_over.load(Ordering::Relaxed) || self.ends.iter().all(Endpoint::is_done)
    }
}
