//! `vipa down`: takes away all that stands in this network namespace and puts every original back. It needs
//! the saved file alone, works from any half-set-up state, and twice in a row.

use std::fmt;
use std::io;
use std::path::Path;

use super::kernel::{Ours, Step, local_back, takedown};
use super::mirror::Mirror;
use super::netlink::{Netlink, errno};
use super::nft::Nft;
use super::saved::Saved;
use super::{Error, Result, dump, request, sysctl};
use crate::wire::ip::Family;

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    /// Adapters taken down; empty: there was nothing.
    pub adapters: Vec<String>,
    /// Rules, routes and neighbours taken away.
    pub removed: usize,
    /// Settings put back.
    pub restored: usize,
    /// What could not be done, each in one line; the saved file then stays for another try.
    pub failed: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.adapters.is_empty() {
            return write!(f, "nothing of vipa stands in this network namespace");
        }
        write!(
            f,
            "{} is gone: {} rules and routes removed, {} settings restored",
            self.adapters.join(", "),
            self.removed,
            self.restored
        )
    }
}

/// Takes down `adapter`, or every one of this network namespace, from the saved files in `state`. Goes on
/// where one thing fails.
pub fn down(state: &Path, adapter: Option<&str>) -> Result<Report> {
    let saved = Saved::find(state, adapter)
        .map_err(|source| Error::State { path: state.display().to_string(), source })?;
    let mut report = Report::default();
    for saved in saved {
        one(&saved, &mut report)?;
        report.adapters.push(saved.adapter);
    }
    Ok(report)
}

fn one(saved: &Saved, report: &mut Report) -> Result<()> {
    let failures = report.failed.len();
    let mut netlink = Netlink::open().map_err(|source| Error::Netlink { what: "open", source })?;
    let ours = Ours::of(saved);
    let mut mirror = Mirror::new(ours.tables.iter().copied());
    dump::everything(&mut netlink, &mut mirror)?;
    let mut note = |what: String, result: io::Result<()>| match result {
        Ok(()) => report.removed += 1,
        Err(error) => report.failed.push(format!("{what}: {error}")),
    };
    // Add, look whether it stands, delete.
    for _ in 0..2 {
        let back: Vec<Step> =
            Family::BOTH.into_iter().filter_map(|f| local_back(&mirror, &ours, f)).collect();
        for step in &back {
            note(step.to_string(), remove(&mut netlink, step));
        }
        if !back.is_empty() {
            dump::everything(&mut netlink, &mut mirror)?;
        }
    }
    for step in takedown(&mirror, &ours) {
        note(step.to_string(), remove(&mut netlink, &step));
    }
    let adapter = &saved.adapter;
    if let Err(error) = Nft::remove(adapter) {
        report.failed.push(format!("nftables: {error}"));
    }
    if let Some((ifindex, link)) = mirror.link(adapter)
        && link.is_tun
        && let Err(error) = delete_link(&mut netlink, ifindex)
    {
        report.failed.push(format!("link {adapter}: {error}"));
    }
    let failed = sysctl::restore(saved, &mirror);
    report.restored += saved.sysctls.len() - failed.len();
    report.failed.extend(failed.into_iter().map(|(path, error)| format!("{path}: {error}")));
    if report.failed.len() == failures {
        let path = saved.file().display().to_string();
        saved.remove().map_err(|source| Error::State { path, source })?;
    }
    Ok(())
}

/// Sends a step that takes something away; that it is gone already is no error.
fn remove(netlink: &mut Netlink, step: &Step) -> io::Result<()> {
    let (message, mode) = request::of(step);
    match netlink.request(message, mode) {
        Err(e) if request::is_settled(step, &e) => Ok(()),
        other => other,
    }
}

/// Deletes a device; that it is gone already is no error.
fn delete_link(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    let (message, mode) = request::delete_link(ifindex);
    match netlink.request(message, mode) {
        Err(e) if errno(&e) == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}
