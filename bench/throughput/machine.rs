//! The machine: what it is, how busy its processors were, and which of them a thread keeps to.
#![allow(unsafe_code)] // sched_setaffinity exists as a C call alone.

use std::fs;
use std::time::{Duration, Instant};

use crate::Error;

/// Ticks of /proc/stat in a second (USER_HZ, the same on every Linux).
const TICKS: f64 = 100.0;

/// Time that all processors together were busy, from the machine's start on.
pub(crate) fn busy() -> Result<Duration, Error> {
    let text = fs::read_to_string("/proc/stat")?;
    let ticks: Vec<u64> = text
        .lines()
        .next()
        .into_iter()
        .flat_map(|line| line.split_whitespace().skip(1).map_while(|word| word.parse().ok()))
        .collect();
    // user, nice, system, idle, iowait, irq, softirq; a guest's time is in user's, stolen time is not ours.
    let [user, nice, system, _, _, irq, softirq, ..] = ticks[..] else {
        return Err("/proc/stat is not as expected".into());
    };
    Ok(Duration::from_secs_f64((user + nice + system + irq + softirq) as f64 / TICKS))
}

/// The share of one processor that the machine is busy with while nothing is measured.
pub(crate) fn baseline(over: Duration) -> Result<f64, Error> {
    let (began, before) = (Instant::now(), busy()?);
    std::thread::sleep(over);
    Ok((busy()?.saturating_sub(before)).as_secs_f64() / began.elapsed().as_secs_f64())
}

/// Keeps the calling thread to one processor.
pub(crate) fn keep_to(processor: usize) {
    // SAFETY: all zeros is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is live and has room for this number.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: the set lives through the call; 0 is the calling thread. Where it is refused the thread goes where it likes.
    let _ = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

/// Name and value, for the reader.
pub(crate) fn kind() -> Vec<(String, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
        value.unwrap_or("unknown").to_owned()
    };
    let information = read("/proc/cpuinfo");
    let number = information.lines().filter(|line| line.starts_with("processor")).count();
    let is_virtual = information.contains(" hypervisor");
    let model = field(&information, "model name");
    let release = read("/proc/sys/kernel/osrelease");
    let version: Vec<&str> = release.trim().split('.').take(2).collect();
    let kilobytes = field(&read("/proc/meminfo"), "MemTotal");
    let kilobytes: f64 = kilobytes.trim_end_matches(" kB").parse().unwrap_or(0.0);
    let place = if is_virtual { "virtual machine" } else { "machine" };
    vec![
        ("processor".to_owned(), format!("{place} with {number} processors ({model})")),
        ("system".to_owned(), format!("Linux {}", version.join("."))),
        ("memory".to_owned(), format!("{:.0} GB", kilobytes / 1e6)),
    ]
}
