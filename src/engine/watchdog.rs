//! systemd's service notification (sd_notify(3)): readiness, and the watchdog that restarts a forwarder
//! whose router no longer turns. Does nothing where systemd does not ask for it.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;

/// systemd expects a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchdog {
    timeout: Duration,
}

/// All is set up and the workers are attached: what is ordered after us may start.
pub fn ready() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Ready])
}

/// The configuration is being read again, until [`ready`] (`Type=notify-reload`).
pub fn reloading() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Reloading, NotifyState::monotonic_usec_now()?])
}

/// We have begun to stop.
pub fn stopping() -> io::Result<()> {
    sd_notify::notify(&[NotifyState::Stopping])
}

impl Watchdog {
    /// The watchdog that systemd has set for this process (WATCHDOG_USEC, WATCHDOG_PID); `None`: none.
    pub fn from_env() -> Option<Watchdog> {
        sd_notify::watchdog_enabled().filter(|timeout| !timeout.is_zero()).map(Self::new)
    }

    fn new(timeout: Duration) -> Watchdog {
        Watchdog { timeout }
    }

    /// How often to [`ping`](Self::ping): a third of what systemd waits, so that one may come late.
    pub fn interval(self) -> Duration {
        self.timeout / 3
    }

    /// A sign of life. Only to be given while every worker's heartbeat is fine
    /// ([`HeartbeatPage::longest_silence`](super::heartbeat::HeartbeatPage::longest_silence)).
    pub fn ping(self) -> io::Result<()> {
        sd_notify::notify(&[NotifyState::Watchdog])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pings_fit_into_the_timeout() {
        let watchdog = Watchdog::new(Duration::from_secs(3));
        assert!(watchdog.interval() * 2 < Duration::from_secs(3));
    }
}
