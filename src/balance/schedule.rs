//! The monitor at work: each status object of each server is read on its own period, or when somebody asks (L2).
//!
//! One task for each, on the runtime of the monitor's thread. The first reading comes at once; the next after a part
//! of the period, by lot, so that what began together does not go on together; from then on each period differs a
//! little. A reading that takes longer than its timeout is dropped, and one that waits holds up nobody else.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use hashbrown::HashMap;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

use super::maglev::mix;
use super::monitor::{BalanceStatus, Change, Key, Monitor, Next, Watch, World};
use super::service::Settings;
use super::status::{Failure, Kind, Reading, Sources, build, push::Pushed};
use super::table::Named;
use crate::config::Config;
use crate::forward::preferred::PreferredTable;
use crate::forward::publish::Publisher;

/// A period is longer or shorter by at most this share of it.
const JITTER: f64 = 0.05;

/// A monitor and the tasks that read for it. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Balance(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    monitor: Mutex<Monitor>,
    tasks: Mutex<Tasks>,
    pushed: Arc<Pushed>,
    /// Something may have changed that [`Monitor::tick`] looks at.
    changed: Arc<Notify>,
    /// What is served became less, without anybody asking for it.
    ended: Notify,
    alarm: Alarm,
}

/// Wakes the workers: what becomes of a connection is theirs to see to, and an idle one brings them no packet.
#[derive(Default)]
struct Alarm(OnceLock<Box<dyn Fn() + Send + Sync>>);

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Alarm")
    }
}

impl Inner {
    /// Has the monitor do something, and wakes the workers if any connection has another fate by it.
    fn with<T>(&self, what: impl FnOnce(&mut Monitor) -> T) -> T {
        let mut monitor = lock(&self.monitor);
        let done = what(&mut monitor);
        let (is_urgent, has_ended) = (monitor.take_fates(), monitor.take_ended());
        drop(monitor);
        if has_ended {
            self.ended.notify_one();
        }
        if let (true, Some(wake)) = (is_urgent, self.alarm.0.get()) {
            wake();
        }
        done
    }
}

type Tasks = HashMap<Key, Task, foldhash::fast::RandomState>;
type Answer = Result<Reading, Failure>;

/// One status object of one server; dropping it ends its reading.
#[derive(Debug)]
struct Task {
    watch: Watch,
    desk: Arc<Desk>,
    handle: AbortHandle,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Where a reading is asked for.
#[derive(Debug, Default)]
struct Desk {
    asked: Notify,
    waiting: Mutex<Vec<oneshot::Sender<Answer>>>,
}

impl Balance {
    /// A monitor of a configuration's services, not yet at work. The readers of `publisher` find their table.
    ///
    /// # Errors
    /// There are more servers than fit.
    pub fn of(config: &Config, publisher: Publisher<PreferredTable>) -> Result<Balance, String> {
        let vipas = config.adapter.addresses.clone();
        let world = World { vipas, workers: config.forwarder.workers };
        let mut monitor = Monitor::new(world, publisher);
        monitor.configure(&config.services, Instant::now())?;
        Ok(Balance::new(monitor))
    }

    /// A monitor, not yet at work.
    pub fn new(monitor: Monitor) -> Balance {
        Balance(Arc::new(Inner {
            monitor: Mutex::new(monitor),
            tasks: Mutex::default(),
            pushed: Arc::default(),
            changed: Arc::default(),
            ended: Notify::new(),
            alarm: Alarm::default(),
        }))
    }

    /// `wake` is called when a table was published by which somebody's connections have another fate, and only then:
    /// other tables are read with the next packet, which is soon enough. Only the first that is given counts.
    pub fn wakes(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.alarm.0.set(Box::new(wake));
    }

    /// Goes to work, on the runtime that this is called in.
    pub fn start(&self) {
        self.attend();
        let inner = Arc::downgrade(&self.0);
        tokio::spawn(tick(inner, self.0.changed.clone()));
    }

    /// Takes the services of a configuration, and the VIPAs: what differs from what it said before.
    ///
    /// # Errors
    /// Why not; nothing has changed.
    pub fn configure(&self, vipas: &[IpAddr], services: &[Settings]) -> Result<(), String> {
        self.0.with(|monitor| {
            let before = monitor.set_vipas(vipas);
            let done = monitor.configure(services, Instant::now());
            if done.is_err() {
                monitor.set_vipas(&before);
            }
            done
        })?;
        self.attend();
        Ok(())
    }

    /// All that is to be heard now ([`Monitor::served`]).
    pub fn served(&self) -> Vec<Settings> {
        lock(&self.0.monitor).served()
    }

    /// What would have to be heard beside that were `change` done ([`Monitor::would_serve`]).
    ///
    /// # Errors
    /// Why it cannot be done.
    pub fn would_serve(
        &self,
        change: &Change,
        nics: &[IpAddr],
    ) -> Result<Option<Settings>, String> {
        lock(&self.0.monitor).would_serve(change, nics)
    }

    /// Waits until something that was taken away has lost its last connection: [`Balance::served`] is less then.
    pub async fn ended(&self) {
        self.0.ended.notified().await;
    }

    /// Does what an operator asks for. `nics` are the addresses of this host's NICs.
    ///
    /// # Errors
    /// Why it is not done; nothing has changed.
    pub fn change(&self, change: &Change, nics: &[IpAddr]) -> Result<(), String> {
        self.0.with(|monitor| monitor.change(change, nics, Instant::now()))?;
        self.attend();
        Ok(())
    }

    /// Reads every status object of a server now, and tells each one's name and what came.
    ///
    /// # Errors
    /// There is no such server, or it was removed meanwhile.
    pub async fn check(&self, server: &str) -> Result<Vec<(String, Answer)>, String> {
        let watches = lock(&self.0.monitor).watches_of(server)?;
        let waiting: Vec<_> = watches.iter().map(|watch| self.ask(watch.key)).collect();
        let mut answers = Vec::new();
        for (watch, waiting) in watches.iter().zip(waiting) {
            let gone = || format!("{server} is not read any more");
            let answer = waiting.ok_or_else(gone)?.await.map_err(|_| gone())?;
            answers.push((watch.settings.name.to_string(), answer));
        }
        Ok(answers)
    }

    /// Takes what an application hands over: a number, or words of an agent, for the status object `status`, of the kind
    /// `push`, of `server`.
    ///
    /// # Errors
    /// There is no such status object, or the line is neither.
    pub fn push(&self, server: &str, status: &str, line: &str) -> Result<(), String> {
        let watch = lock(&self.0.monitor).watch(server, status)?;
        if !matches!(watch.settings.kind, Kind::Push { .. }) {
            return Err(format!("{status} of {server} is read, not pushed: it is of another kind"));
        }
        let instance = &watch.instance;
        let key = (&*instance.service, &*instance.server, &*watch.settings.name);
        self.0
            .pushed
            .hand_over(key, line, Instant::now())
            .map_err(|failure| failure.to_string())?;
        // It counts now, not a period later.
        if let Some(task) = lock(&self.0.tasks).get(&watch.key) {
            task.desk.asked.notify_one();
        }
        Ok(())
    }

    /// What is told of it.
    pub fn report(&self) -> BalanceStatus {
        lock(&self.0.monitor).report(Instant::now(), SystemTime::now())
    }

    /// The table that the workers have now.
    pub fn published(&self) -> Arc<PreferredTable> {
        lock(&self.0.monitor).published().clone()
    }

    /// The same with names and reasons.
    pub fn named(&self) -> Named {
        lock(&self.0.monitor).named()
    }

    /// Asks for a reading; `None`: nobody reads it.
    fn ask(&self, key: Key) -> Option<oneshot::Receiver<Answer>> {
        let tasks = lock(&self.0.tasks);
        let desk = &tasks.get(&key)?.desk;
        let (sender, receiver) = oneshot::channel();
        lock(&desk.waiting).push(sender);
        desk.asked.notify_one();
        Some(receiver)
    }

    /// Begins to read what is to be read, ends what is not, and lets go on what is as it was.
    fn attend(&self) {
        let wanted = lock(&self.0.monitor).watches();
        let mut tasks = lock(&self.0.tasks);
        let mut before = std::mem::take(&mut *tasks);
        for watch in wanted {
            let kept =
                before.remove(&watch.key).filter(|task| task.watch.instance == watch.instance);
            let task = kept.unwrap_or_else(|| self.begin(watch));
            tasks.insert(task.watch.key, task);
        }
        for gone in before.values() {
            let instance = &gone.watch.instance;
            let is_gone = !tasks.values().any(|task| task.watch.instance == *instance);
            if is_gone {
                self.0.pushed.forget(&instance.service, &instance.server);
            }
        }
        self.0.changed.notify_one();
    }

    fn begin(&self, watch: Watch) -> Task {
        let desk = Arc::new(Desk::default());
        let read =
            read(Arc::downgrade(&self.0), watch.clone(), desk.clone(), self.0.pushed.clone());
        Task { watch, desk, handle: tokio::spawn(read).abort_handle() }
    }
}

/// Reads one status object of one server until nobody wants it any more.
async fn read(inner: Weak<Inner>, watch: Watch, desk: Arc<Desk>, pushed: Arc<Pushed>) {
    let sources = Sources { counters: watch.counters.clone(), pushed };
    let mut object = build(&watch.settings, &sources);
    for count in 0.. {
        let reading = tokio::time::timeout(watch.settings.timeout, object.read(&watch.instance));
        let answer = reading.await.unwrap_or(Err(Failure::Timeout));
        let Some(inner) = inner.upgrade() else { return };
        let next = inner.with(|monitor| monitor.take(watch.key, answer.clone(), Instant::now()));
        drop(inner);
        for waiting in lock(&desk.waiting).drain(..) {
            let _ = waiting.send(answer.clone());
        }
        let asked = desk.asked.notified();
        match next {
            Next::Never => return,
            Next::Asked => asked.await,
            Next::After(period) => {
                let wait = period.mul_f64(part(watch.key, count));
                let _ = tokio::time::timeout(wait, asked).await;
            }
        }
    }
}

/// Which part of a period to wait after so many readings: of the first any, later about the whole.
fn part(key: Key, count: u64) -> f64 {
    let lot = mix(mix(u64::from(key.status) << 16 | u64::from(key.server.0)) ^ count);
    let lot = (lot >> 11) as f64 / (1u64 << 53) as f64;
    if count == 0 { lot } else { 1.0 - JITTER + 2.0 * JITTER * lot }
}

/// Calls [`Monitor::tick`] when it wants to be called.
async fn tick(inner: Weak<Inner>, changed: Arc<Notify>) {
    loop {
        let Some(inner) = inner.upgrade() else { return };
        let (next, is_empty) =
            inner.with(|monitor| (monitor.tick(Instant::now()), monitor.is_empty()));
        drop(inner);
        match next {
            Some(next) => tokio::time::sleep(next).await,
            None if is_empty => changed.notified().await,
            // A reading may say how many connections a server takes at most: that is looked for now and then.
            None => {
                let _ = tokio::time::timeout(Duration::from_secs(1), changed.notified()).await;
            }
        }
    }
}

/// No panic is survived, so that nothing is ever poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
