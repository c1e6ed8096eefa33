//! Kernel settings below `/proc/sys/net`. The original of each is saved, on disk, before it is first
//! changed, and written back by `vipa down`.
//!
//! `/proc/sys/net` shows the network namespace of the calling thread.

use std::fmt;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::mirror::Mirror;
use super::saved::{Original, Saved};
use crate::wire::ip::Family;

/// Does the host forward IPv4?
pub const FORWARDING_V4: &str = "net/ipv4/ip_forward";
/// Does the host forward IPv6?
pub const FORWARDING_V6: &str = "net/ipv6/conf/all/forwarding";

/// What a setting should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This text.
    Exactly(&'static str),
    /// These ports among others.
    Reserved(RangeInclusive<u16>),
}

/// A setting and what it should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Below `/proc/sys`.
    pub path: String,
    /// The device that it belongs to, with its index: a device made anew has settings of its own.
    pub device: Option<(String, u32)>,
    /// What it should say.
    pub wanted: Wanted,
}

impl Sysctl {
    /// A setting of a device; `family` is `ipv4` or `ipv6`.
    pub fn of_device(
        family: &str,
        device: &str,
        ifindex: u32,
        key: &str,
        value: &'static str,
    ) -> Sysctl {
        Sysctl {
            path: format!("net/{family}/conf/{device}/{key}"),
            device: Some((device.to_owned(), ifindex)),
            wanted: Wanted::Exactly(value),
        }
    }

    /// The device's index, if it belongs to one.
    pub fn ifindex(&self) -> Option<u32> {
        self.device.as_ref().map(|(_, index)| *index)
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.path)?;
        match &self.wanted {
            Wanted::Exactly(value) => write!(f, "= {value}"),
            Wanted::Reserved(ports) => write!(f, "+= {}-{}", ports.start(), ports.end()),
        }
    }
}

/// The setting's text; `None` where the kernel has no such setting (a device that went, IPv6 left out).
pub fn read(path: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(file(path)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Does this host forward for others?
pub fn forwards(family: Family) -> bool {
    let path = match family {
        Family::V4 => FORWARDING_V4,
        Family::V6 => FORWARDING_V6,
    };
    matches!(read(path), Ok(Some(text)) if text != "0")
}

/// Has this host a device of this name?
pub fn has_device(name: &str) -> bool {
    let path = format!("net/ipv4/conf/{name}/forwarding");
    matches!(read(&path), Ok(Some(_)))
}

/// Writes a setting; that it is gone is no error.
pub fn write(path: &str, value: &str) -> io::Result<()> {
    match fs::write(file(path), format!("{value}\n")) {
        Err(e) if is_absent(&e) => Ok(()),
        other => other,
    }
}

fn file(path: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(path)
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// One setting that was put right, or could not be.
#[derive(Debug)]
pub struct Corrected {
    /// The setting.
    pub sysctl: Sysctl,
    /// What it said before.
    pub found: String,
    /// Whether it says it now.
    pub result: io::Result<()>,
}

/// Makes all settings say what they should, saving originals before the first change. `adapter` is ours: its
/// settings go with it and are not saved.
pub fn ensure(wanted: &[Sysctl], adapter: &str, saved: &mut Saved) -> io::Result<Vec<Corrected>> {
    let mut wrong = Vec::new();
    for sysctl in wanted {
        let Some(found) = read(&sysctl.path)? else { continue };
        let right = match &sysctl.wanted {
            Wanted::Exactly(value) => (*value).to_owned(),
            Wanted::Reserved(ports) => merged(&found, ports),
        };
        let is_right = match &sysctl.wanted {
            Wanted::Exactly(value) => found == *value,
            Wanted::Reserved(ports) => covers(&parse(&found), ports),
        };
        if !is_right {
            wrong.push((sysctl, found, right));
        }
    }
    let is_ours = |s: &Sysctl| s.device.as_ref().is_some_and(|(name, _)| name == adapter);
    for (sysctl, found, _) in wrong.iter().filter(|(s, ..)| !is_ours(s)) {
        saved.remember(sysctl, found);
    }
    saved.store()?;
    Ok(wrong
        .into_iter()
        .map(|(sysctl, found, right)| Corrected {
            result: write(&sysctl.path, &right),
            sysctl: sysctl.clone(),
            found,
        })
        .collect())
}

/// Writes back the originals of `unwanted`, settings that are as we wanted them at any time, and forgets them. What others have set
/// meanwhile stays. Of `adapter`, which is ours, nothing is saved: its settings are given what every new device has.
pub fn give_back(unwanted: &[Sysctl], adapter: &str, saved: &mut Saved) -> io::Result<()> {
    let is_of = |one: &Sysctl, o: &Original| o.path == one.path && o.ifindex == one.ifindex();
    for sysctl in unwanted {
        let original = match saved.sysctls.iter().find(|original| is_of(sysctl, original)) {
            Some(original) => Some(original.original.clone()),
            None if sysctl.device.as_ref().is_some_and(|(name, _)| name == adapter) => {
                read(&sysctl.path.replacen(&format!("/{adapter}/"), "/default/", 1))?
            }
            None => None,
        };
        let (Some(original), Some(now)) = (original, read(&sysctl.path)?) else { continue };
        // A NIC may have been wanted in one way, and then in another.
        let is_ours = unwanted
            .iter()
            .filter(|one| one.path == sysctl.path)
            .any(|one| matches!(&one.wanted, Wanted::Exactly(ours) if now == *ours));
        match &sysctl.wanted {
            Wanted::Exactly(_) if is_ours => write(&sysctl.path, &original)?,
            Wanted::Exactly(_) => {}
            Wanted::Reserved(ports) => write(&sysctl.path, &without(&now, ports, &original))?,
        }
    }
    saved.forget(|original| unwanted.iter().any(|sysctl| is_of(sysctl, original)));
    saved.store()
}

/// Writes the originals back; goes on where one fails and tells of it. A setting of a device that is gone,
/// or was made anew since, has nothing to be put back.
pub fn restore(saved: &Saved, mirror: &Mirror) -> Vec<(String, io::Error)> {
    let mut failed = Vec::new();
    for original in &saved.sysctls {
        let is_there = match (&original.device, original.ifindex) {
            (Some(name), Some(index)) => mirror.link(name).is_some_and(|(i, _)| i == index),
            _ => true,
        };
        if !is_there {
            continue;
        }
        let value = match &original.reserved {
            Some((first, last)) => {
                let ours = *first..=*last;
                read(&original.path)
                    .map(|now| now.map(|now| without(&now, &ours, &original.original)))
            }
            None => Ok(Some(original.original.clone())),
        };
        let result = match value {
            Ok(Some(value)) => write(&original.path, &value),
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = result {
            failed.push((original.path.clone(), e));
        }
    }
    failed
}

/// `61000-65535,80` as ranges, in order, joined where they touch. What is no range is left out.
fn parse(text: &str) -> Vec<RangeInclusive<u16>> {
    let mut ranges: Vec<(u16, u16)> = text
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        })
        .filter(|(first, last)| first <= last)
        .collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined.into_iter().map(|(first, last)| first..=last).collect()
}

fn format(ranges: &[RangeInclusive<u16>]) -> String {
    let one = |r: &RangeInclusive<u16>| {
        if r.start() == r.end() {
            r.start().to_string()
        } else {
            format!("{}-{}", r.start(), r.end())
        }
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(",")
}

fn covers(ranges: &[RangeInclusive<u16>], ports: &RangeInclusive<u16>) -> bool {
    ranges.iter().any(|r| r.start() <= ports.start() && ports.end() <= r.end())
}

fn merged(text: &str, ports: &RangeInclusive<u16>) -> String {
    let all = format!("{text},{}-{}", ports.start(), ports.end());
    format(&parse(&all))
}

/// What is reserved now, less what we added: what others reserved since stays.
fn without(now: &str, ours: &RangeInclusive<u16>, original: &str) -> String {
    let original = parse(original);
    let is_original = |port: u16| original.iter().any(|r| r.contains(&port));
    let kept = parse(now)
        .into_iter()
        .flatten()
        .filter(|port| !ours.contains(port) || is_original(*port))
        .map(|port| port.to_string())
        .collect::<Vec<_>>()
        .join(",");
    format(&parse(&kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_are_merged_and_taken_out_again() {
        assert_eq!(merged("", &(61000..=65535)), "61000-65535");
        assert_eq!(merged("80,60990-61005", &(61000..=65535)), "80,60990-65535");
        assert_eq!(without("80,60990-65535", &(61000..=65535), "80,60990-61005"), "80,60990-61005");
        assert_eq!(without("80,8080,61000-65535", &(61000..=65535), ""), "80,8080");
        assert_eq!(without("61000-65535", &(61000..=65535), ""), "");
    }

    #[test]
    fn ranges_that_touch_are_one() {
        assert!(covers(&parse("61000-62000,62001-65535"), &(61000..=65535)));
        assert!(!covers(&parse("61000-62000,62002-65535"), &(61000..=65535)));
        assert!(covers(&parse("0-65535"), &(1..=65535)));
    }
}
