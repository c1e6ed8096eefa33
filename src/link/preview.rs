//! What would stand on this host, and what the forwarder would know of it (`vipa check`). Reads only.

use std::time::Instant;

use super::health::Health;
use super::hold_down::HoldDown;
use super::mirror::Mirror;
use super::net_view::{Surroundings, draft};
use super::netlink::Netlink;
use super::plan::homes::homes;
use super::plan::routes::reaches;
use super::plan::rules::all_tables;
use super::plan::{Plan, plan};
use super::{Error, Result, announced, dump, ports};
use crate::config::Config;
use crate::forward::view::NetView;
use crate::path::paths::Paths;

/// What `vipa check --plan` shows. Reads only.
pub fn preview(config: &Config) -> Result<Plan> {
    let (mirror, health) = survey(config)?;
    Ok(plan(config, &mirror, &health))
}

/// What the forwarder would know of the network. Reads only.
pub fn preview_view(config: &Config) -> Result<NetView> {
    let (mirror, health) = survey(config)?;
    let reaches = &reaches(config, &mirror);
    let around =
        Surroundings { reaches, health: &health, ephemeral: &(0..=0), listening: &[], kept: &[] };
    Ok(draft(config, &mirror, around, |_| false).view(0))
}

/// The network namespace of the calling thread as it is.
fn survey(config: &Config) -> Result<(Mirror, Health)> {
    let mut netlink = Netlink::open().map_err(|source| Error::Netlink { what: "open", source })?;
    let mut mirror = Mirror::new(all_tables(config));
    mirror.ephemeral = ports::ephemeral();
    mirror.arp_ignore = announced::arp_ignore_of_all();
    dump::everything(&mut netlink, &mut mirror)?;
    let now = Instant::now();
    let mut health = HoldDown::new(config).observe(config, &mirror, &Paths::default(), now);
    health.homes = homes(config, &mirror, &health, &announced::left_homes(config, &mirror));
    Ok((mirror, health))
}
