//! Log lines: to stderr, one line an event, with its cause.
//!
//! What a packet or a flapping link can trigger goes through `limited!`, so that a
//! flood of events is no flood of lines; what was left out is counted in the next line.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Lines of one place in the code that may come at once.
const BURST: u32 = 10;
/// How often one more may come after them.
const INTERVAL: Duration = Duration::from_secs(1);

/// Starts logging: at the level that `VIPA_LOG` names (`info`, `vipa::link=debug`), or at info, raised by
/// each `-v`. Without times where the journal adds its own. Called once, by the command that runs.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let wished = std::env::var("VIPA_LOG").ok().filter(|wish| !wish.is_empty());
    let builder = EnvFilter::builder().with_default_directive(level.into());
    let (filter, refused) = match wished.as_deref().map(|wish| builder.clone().parse(wish)) {
        None => (builder.parse_lossy(""), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (builder.parse_lossy(""), Some(error)),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    // A second start (a test, a command within a command) keeps the first.
    let _ = if is_journal() { lines.without_time().try_init() } else { lines.try_init() };
    if let Some(error) = refused {
        tracing::warn!(%error, "VIPA_LOG is not understood and has no effect");
    }
}

/// Is stderr the journal's stream? (systemd.exec(5), `$JOURNAL_STREAM`: device and inode.)
fn is_journal() -> bool {
    let stderr = std::io::stderr();
    if stderr.is_terminal() {
        return false;
    }
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Some((device, inode)) = stream.split_once(':') else { return false };
    let Ok(copy) = stderr.as_fd().try_clone_to_owned() else { return false };
    std::fs::File::from(copy).metadata().is_ok_and(|metadata| {
        device.parse() == Ok(metadata.dev()) && inode.parse() == Ok(metadata.ino())
    })
}

/// Limits one place in the code: ten lines at once, then one a second (GCRA: one word says when the next
/// would be due if they came evenly).
#[derive(Debug)]
pub struct RateLimit {
    /// Nanoseconds of the clock at which the burst is whole again.
    due: AtomicU64,
    suppressed: AtomicU64,
}

impl RateLimit {
    /// With its whole burst.
    pub const fn new() -> RateLimit {
        RateLimit { due: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// May a line come `now` (on any clock that does not go back)? If so: how many did not, since the
    /// last that did.
    pub fn admit(&self, now: Duration) -> Option<u64> {
        let interval = INTERVAL.as_nanos() as u64;
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let horizon = now.saturating_add(interval * u64::from(BURST - 1));
        let admitted = self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| {
            (due <= horizon).then(|| due.max(now).saturating_add(interval))
        });
        match admitted {
            Ok(_) => Some(self.suppressed.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.suppressed.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// [`RateLimit::admit`] by the clock of the process.
    pub fn admit_now(&self) -> Option<u64> {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        self.admit(START.elapsed())
    }
}

impl Default for RateLimit {
    fn default() -> RateLimit {
        RateLimit::new()
    }
}

/// `limited!(warn, nic = name, "carrier lost")`: a log line, but not more than [`RateLimit`] lets through
/// here; `suppressed` in the next line counts those left out.
macro_rules! limited {
    ($level:ident, $($event:tt)+) => {{
        static LIMIT: $crate::log::RateLimit = $crate::log::RateLimit::new();
        match LIMIT.admit_now() {
            Some(0) => ::tracing::$level!($($event)+),
            Some(suppressed) => ::tracing::$level!(suppressed, $($event)+),
            None => {}
        }
    }};
}
pub(crate) use limited;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_a_second_and_the_rest_is_counted() {
        let limit = RateLimit::new();
        let start = Duration::from_secs(1000);
        let passed = (0..100).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(passed, 10);
        assert_eq!(limit.admit(start + Duration::from_millis(999)), None);
        assert_eq!(limit.admit(start + Duration::from_secs(1)), Some(91));
        assert_eq!(limit.admit(start + Duration::from_secs(1)), None);
        let later = start + Duration::from_secs(60);
        assert_eq!(limit.admit(later), Some(1));
        assert_eq!((0..100).filter(|_| limit.admit(later).is_some()).count(), 9);
    }

    #[test]
    fn the_macro_takes_fields_and_a_message() {
        for nic in 0..20 {
            limited!(debug, nic, cause = "test", "link lost");
        }
    }
}
