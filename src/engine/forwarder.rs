//! `vipa run`, put together: takes the lock, starts guard, router, workers and monitor, then waits for a
//! signal, for the guard's end, or for the watchdog's hour.
//!
//! The order of the start: what can be refused comes first and changes nothing. Then the guard, before there
//! is anything to guard. Then the network is set up while the adapter has no carrier, and the kernel's own
//! routes carry the traffic. The workers attach last.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook_mio::v1_0::Signals;

use super::descriptors;
use super::flow_file::{Adopted, FlowFile, Layout};
use super::guard::Guard;
use super::heartbeat::{HeartbeatPage, monotonic_ns};
use super::leave::{self, Leave};
use super::lock::{self, Lock};
use super::message::Reloader;
use super::plane::{Supplies, Workers};
use super::statistics::{RouterStatistics, WorkerStatistics};
use super::watchdog::{self, Watchdog};
use super::worker::RouterHandle;
use crate::admin::{self, Admin};
use crate::balance::host;
use crate::balance::schedule::Balance;
use crate::config::Config;
use crate::forward::flow::LAYOUT;
use crate::forward::publish;
use crate::forward::view::{NetCell, WorkerId};
use crate::link;
use crate::link::router::Router;
use crate::privilege;
use crate::state::{Kept, State};

/// Requests of workers that may wait for the router.
const REQUESTS: usize = 65_536;
/// A guard that ends at once is not started again more often than this.
const GUARD_PAUSE: Duration = Duration::from_secs(1);
/// Past this without a sign of life from a worker the watchdog is not fed …
const SILENCE: Duration = Duration::from_secs(1);
/// … nor past this without a turn of the router, which makes one every five seconds.
const ROUTER_SILENCE: Duration = Duration::from_secs(8);

const SIGNALS: Token = Token(0);
const GUARD: Token = Token(1);
const NEWS: Token = Token(2);

/// Why the forwarder does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Capabilities and the like, named.
    #[error("{0}")]
    Privilege(String),
    /// Another forwarder has the adapter.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// The network could not be set up or followed.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// The flow table has no room.
    #[error(transparent)]
    Flows(#[from] super::flow_file::Error),
    /// There are more services than fit.
    #[error("{0}")]
    Services(String),
    /// The control socket cannot be opened.
    #[error("control socket: {0}")]
    Control(io::Error),
    /// The system refused something that it never should.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// Runs until SIGTERM, SIGINT or `vipa drain`. The adapter stays up, and the kernel carries its traffic on. If it `is_withdrawing`, the
/// neighbours are told by RIP first at a signal too; a second signal ends the wait.
///
/// # Errors
/// It could not start, or the network could not be followed any more. What a first start set up before it
/// failed has been taken away again.
pub fn run(config: Config, state: &State, is_withdrawing: bool) -> Result<(), Error> {
    let started = Instant::now();
    abort_on_panic();
    if let Err(error) = descriptors::raise() {
        tracing::warn!(%error, "the limit of descriptors (RLIMIT_NOFILE) could not be raised");
    }
    let need = descriptors::Need::of(&config);
    descriptors::reserve(need);
    if let Some(shortage) = need.shortage(descriptors::Limit::of_process().hard) {
        tracing::warn!("{shortage}");
    }
    let missing = privilege::missing(&config, state.directory());
    if !missing.is_empty() {
        return Err(Error::Privilege(privilege::refusal(&missing)));
    }
    state.create().map_err(system("make the state directory"))?;
    let config = Arc::new(config);
    let adapter = config.adapter.name.clone();
    let _lock = Lock::take(&adapter)?;
    let router_statistics = Arc::new(RouterStatistics::default());
    let mut desk = Desk::open(&adapter, Arc::clone(&router_statistics))?;
    let flows = open_flows(&config, state)?;
    let prepared = Router::prepare(
        Arc::clone(&config),
        state.directory().to_owned(),
        Arc::clone(&router_statistics),
    )?;
    let view = prepared.first_view();
    for wrong in host::look(&config, &view).mistakes {
        tracing::error!("{}, {wrong}", config.file.display());
    }
    let cell: NetCell = Arc::new(ArcSwap::from_pointee(view));
    let (publisher, readers) =
        publish::channel(usize::from(config.forwarder.workers), Arc::default());
    // The workers have its first table, in which no server is known yet, before they begin.
    let balance = Balance::of(&config, publisher).map_err(Error::Services)?;
    let (requests, asked) = crossbeam_channel::bounded(REQUESTS);
    let router_waker = prepared.waker();
    let (workers, statistics) = Workers::start(
        Arc::clone(&config),
        Supplies {
            cell: Arc::clone(&cell),
            preferred: readers,
            router: RouterHandle { requests, waker: Arc::clone(&router_waker) },
            statistics: Arc::clone(&router_statistics),
            page: &desk.page,
            words: flows.words,
            is_fresh: flows.is_fresh,
            seed: flows.seed,
            attached: Arc::clone(&desk.news),
        },
    )
    .map_err(system("start the workers"))?;
    balance.wakes(workers.waker());

    let leave = Leave::new(Arc::clone(&router_waker));
    let (reloader, reloads) = Reloader::new(router_waker);
    let router = prepared.start(Arc::clone(&cell), asked, reloads, Box::new(workers));
    let is_over = Arc::new(AtomicBool::new(false));
    let (over, news) = (Arc::clone(&is_over), Arc::clone(&desk.news));
    let thread = start_router(router, leave.clone(), move || {
        over.store(true, Ordering::Release);
        let _ = news.wake();
    })?;
    let end = || match leave.asked() {
        None if is_withdrawing => drop(leave.politely(leave::WAIT)),
        _ => leave.at_once(),
    };
    let monitor = Monitor {
        config,
        cell,
        statistics,
        router_statistics,
        balance,
        started,
        leave: leave.clone(),
        reloader,
    };
    let ended = desk.wait(&is_over, end, || monitor.start(state.path(&adapter, Kept::Socket)));
    let _ = watchdog::stopping();
    leave.at_once();
    let routed = thread.join().unwrap_or(Ok(()));
    routed?;
    ended?;
    tracing::info!(adapter, "stopped: the adapter stays, the kernel forwards");
    Ok(())
}

/// A panic on any thread ends the process: a forwarder that lacks one of its threads is worse than none.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

struct Flows {
    words: Vec<&'static [std::sync::atomic::AtomicU64]>,
    is_fresh: bool,
    seed: u64,
}

fn open_flows(config: &Config, state: &State) -> Result<Flows, Error> {
    let path = state.path(&config.adapter.name, Kept::Flows);
    let workers = config.forwarder.workers;
    let words_per_worker = config.shape(workers).words();
    let layout = Layout { version: u64::from(LAYOUT), workers, words_per_worker };
    let (file, adopted) = FlowFile::open(&path, &config.adapter.name, layout)?;
    match &adopted {
        Adopted::Fresh | Adopted::Adopted => {}
        Adopted::Discarded(why) => {
            tracing::warn!(%why, "the flow table of an earlier run does not fit: rewritten and served flows are lost");
        }
    }
    let words = (0..workers).filter_map(|worker| file.words(WorkerId(worker))).collect();
    let is_fresh = adopted != Adopted::Adopted;
    Ok(Flows { words, is_fresh, seed: file.seed()[0] })
}

fn start_router(
    router: Router,
    leave: Leave,
    ended: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<link::Result<()>>, Error> {
    std::thread::Builder::new()
        .name("router".to_owned())
        .spawn(move || {
            let result = router.run(&leave);
            ended();
            result
        })
        .map_err(system("start the router"))
}

/// What the monitor thread will look at.
struct Monitor {
    config: Arc<Config>,
    cell: NetCell,
    statistics: Vec<Arc<WorkerStatistics>>,
    router_statistics: Arc<RouterStatistics>,
    balance: Balance,
    started: Instant,
    leave: Leave,
    reloader: Reloader,
}

impl Monitor {
    fn start(&self, socket: std::path::PathBuf) -> Result<admin::Running, Error> {
        let config = &self.config;
        tracing::info!(
            adapter = config.adapter.name,
            nics = config.nics.len(),
            workers = config.forwarder.workers,
            after = ?self.started.elapsed(),
            "forwarding"
        );
        admin::start(Admin {
            config: Arc::new(ArcSwap::new(Arc::clone(config))),
            cell: Arc::clone(&self.cell),
            workers: self.statistics.clone(),
            router: Arc::clone(&self.router_statistics),
            balance: self.balance.clone(),
            started: self.started,
            leave: self.leave.clone(),
            reloader: self.reloader.clone(),
            turn: Arc::default(),
            socket,
        })
        .map_err(Error::Control)
    }
}

/// The main thread's: signals, the guard, the watchdog.
struct Desk {
    adapter: String,
    poll: Poll,
    signals: Signals,
    page: HeartbeatPage,
    guard: Option<Guard>,
    guard_due: Option<Instant>,
    watchdog: Option<Watchdog>,
    router: Arc<RouterStatistics>,
    /// The router's turns when they were last seen to have changed, and when that was.
    seen: (u64, Instant),
    /// Woken when the workers are attached and when the router ends.
    news: Arc<Waker>,
}

impl Desk {
    fn open(adapter: &str, router: Arc<RouterStatistics>) -> Result<Desk, Error> {
        let poll = Poll::new().map_err(system("poll"))?;
        let mut signals = Signals::new([libc::SIGTERM, libc::SIGINT, libc::SIGHUP])
            .map_err(system("hear signals"))?;
        poll.registry()
            .register(&mut signals, SIGNALS, Interest::READABLE)
            .map_err(system("hear signals"))?;
        let news = Arc::new(Waker::new(poll.registry(), NEWS).map_err(system("poll"))?);
        let page = HeartbeatPage::new().map_err(system("share memory with the guard"))?;
        let mut desk = Desk {
            adapter: adapter.to_owned(),
            poll,
            signals,
            page,
            guard: None,
            guard_due: None,
            watchdog: Watchdog::from_env(),
            router,
            seen: (0, Instant::now()),
            news,
        };
        desk.spawn_guard().map_err(system("start the guard"))?;
        Ok(desk)
    }

    fn spawn_guard(&mut self) -> io::Result<()> {
        let guard = Guard::spawn(&self.adapter, &self.page)?;
        let fd = guard.fd().as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&fd), GUARD, Interest::READABLE)?;
        self.guard = Some(guard);
        self.guard_due = None;
        Ok(())
    }

    /// Waits for the router's end. `told` is called at each signal to stop; `attached` once, when the workers carry traffic, and what it
    /// returns is kept until the end.
    fn wait(
        &mut self,
        is_over: &AtomicBool,
        told: impl Fn(),
        attached: impl FnOnce() -> Result<admin::Running, Error>,
    ) -> Result<(), Error> {
        let mut events = Events::with_capacity(8);
        let mut attached = Some(attached);
        let mut running: Option<admin::Running> = None;
        // Before that there is nobody to do it.
        let mut is_to_reload = false;
        loop {
            let timeout = self.timeout();
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => other.map_err(system("poll"))?,
            }
            if is_over.load(Ordering::Acquire) {
                return Ok(());
            }
            for event in events.iter() {
                match event.token() {
                    SIGNALS => {
                        for signal in self.signals.pending() {
                            if signal == libc::SIGHUP {
                                tracing::info!(signal, "told to reload");
                                is_to_reload = true;
                            } else {
                                tracing::info!(signal, "told to stop");
                                told();
                            }
                        }
                    }
                    GUARD => self.bury_guard(),
                    _ => {
                        if let Some(attached) = attached.take() {
                            running = Some(attached()?);
                            let _ = watchdog::ready();
                        }
                    }
                }
            }
            if is_to_reload && let Some(running) = &running {
                running.reload();
                is_to_reload = false;
            }
            self.feed_watchdog();
            if self.guard_due.is_some_and(|due| Instant::now() >= due)
                && let Err(error) = self.spawn_guard()
            {
                tracing::error!(%error, "the guard cannot be started");
                self.guard_due = Some(Instant::now() + GUARD_PAUSE);
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let guard = self.guard_due.map(|due| due.saturating_duration_since(Instant::now()));
        let watchdog = self.watchdog.map(Watchdog::interval);
        [guard, watchdog].into_iter().flatten().min()
    }

    fn bury_guard(&mut self) {
        let Some(guard) = &mut self.guard else { return };
        match guard.try_reap() {
            Ok(None) => {}
            ended => {
                tracing::warn!(?ended, "the guard is gone: starting another");
                let fd = guard.fd().as_raw_fd();
                let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
                self.guard = None;
                self.guard_due = Some(Instant::now() + GUARD_PAUSE);
            }
        }
    }

    fn feed_watchdog(&mut self) {
        let Some(watchdog) = self.watchdog else { return };
        let turns = self.router.turns.get();
        if turns != self.seen.0 {
            self.seen = (turns, Instant::now());
        }
        let router_lives = self.seen.1.elapsed() < ROUTER_SILENCE;
        if router_lives && self.page.longest_silence(monotonic_ns()) < SILENCE {
            let _ = watchdog.ping();
        }
    }
}
