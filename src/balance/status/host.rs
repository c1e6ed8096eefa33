//! `host`: how busy is the host that this runs on (proc(5))? For servers on it, and where a monitor runs beside a server.

use std::fs;
use std::time::Duration;

use super::answer::{finite, told, unreached, wrong};
use super::{Failure, Instance, Pending, Reading, StatusObject};

/// Between the two looks that the first reading of the processors takes.
const FIRST_LOOK: Duration = Duration::from_millis(100);

/// What of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Load average over 1, 5 or 15 minutes: the field of /proc/loadavg.
    Load(usize),
    /// Percent of all processors' time that was not idle since the last reading.
    Cpu,
    /// Percent of memory that is not available.
    Memory,
}

/// Reads it.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) resource: Resource,
    /// Busy time and all time, of the reading before.
    pub(super) before: Option<(u64, u64)>,
}

impl StatusObject for Host {
    fn read<'a>(&'a mut self, _: &'a Instance) -> Pending<'a> {
        Box::pin(async {
            let value = match self.resource {
                Resource::Load(field) => load(&file("/proc/loadavg")?, field)?,
                Resource::Memory => memory(&file("/proc/meminfo")?)?,
                Resource::Cpu => self.cpu().await?,
            };
            Ok(Reading { value: Some(value), ..Reading::default() })
        })
    }
}

impl Host {
    async fn cpu(&mut self) -> Result<f64, Failure> {
        let before = match self.before {
            Some(before) => before,
            None => {
                let first = cpu_times(&file("/proc/stat")?)?;
                tokio::time::sleep(FIRST_LOOK).await;
                first
            }
        };
        let now = cpu_times(&file("/proc/stat")?)?;
        self.before = Some(now);
        Ok(busy(before, now))
    }
}

/// These files are made when they are read: nothing waits for a disk.
fn file(path: &str) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| unreached(&error))
}

fn load(text: &str, field: usize) -> Result<f64, Failure> {
    let word = text.split_ascii_whitespace().nth(field);
    finite(word.ok_or_else(|| wrong(text, "load averages"))?)
}

fn memory(text: &str) -> Result<f64, Failure> {
    let kilobytes = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        rest.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<f64>().ok())
    };
    match (kilobytes("MemTotal"), kilobytes("MemAvailable")) {
        (Some(total), Some(available)) if total > 0.0 => Ok((1.0 - available / total) * 100.0),
        _ => Err(told("neither MemTotal nor MemAvailable", "/proc/meminfo")),
    }
}

/// Busy ticks and all ticks of all processors since the start. Guest time is in user time already.
fn cpu_times(text: &str) -> Result<(u64, u64), Failure> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks: Vec<u64> = line
        .unwrap_or_default()
        .split_ascii_whitespace()
        .take(8)
        .map_while(|field| field.parse().ok())
        .collect();
    let [user, nice, system, idle, rest @ ..] = ticks.as_slice() else {
        return Err(wrong(text, "times of the processors"));
    };
    let waiting = rest.first().copied().unwrap_or(0);
    let others: u64 = rest.iter().skip(1).sum();
    let busy = user + nice + system + others;
    Ok((busy, busy + idle + waiting))
}

/// Percent of the time between the two. Idle time may go back a little (proc(5)).
fn busy(before: (u64, u64), now: (u64, u64)) -> f64 {
    let (busy, all) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
    if all == 0 { 0.0 } else { (busy as f64 / all as f64 * 100.0).min(100.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::status::tests::{block_on, instance};

    #[test]
    fn what_proc_says() {
        assert_eq!(load("0.20 0.18 1.12 1/80 11206\n", 2), Ok(1.12));
        assert_eq!(memory("MemTotal: 2000 kB\nMemFree: 1 kB\nMemAvailable:   500 kB\n"), Ok(75.0));
        let first = cpu_times("cpu  10 20 30 400 5 6 7 8 9 10\ncpu0 1 2\n").expect("times");
        assert_eq!(first, (81, 486));
        let second = cpu_times("cpu  60 20 30 450 5 6 7 8 59 10\n").expect("times");
        assert_eq!(busy(first, second), 50.0);
        assert_eq!((busy(second, first), busy(first, first)), (0.0, 0.0));
        for text in ["", "cpu ", "cpu 1 2 x 4", "MemTotal: 0 kB"] {
            assert!(cpu_times(text).is_err() && memory(text).is_err() && load("", 0).is_err());
        }
    }

    #[test]
    fn this_host_is_read() {
        for resource in [Resource::Load(0), Resource::Cpu, Resource::Cpu, Resource::Memory] {
            let mut host = Host { resource, before: None };
            let reading = block_on(host.read(&instance("127.0.0.1:1"))).expect("a host");
            let value = reading.value.expect("a value");
            assert!(value >= 0.0 && (value <= 100.0 || resource == Resource::Load(0)), "{value}");
        }
    }
}
