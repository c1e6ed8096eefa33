//! `[path]`: is anybody there behind a NIC?

use std::time::Duration;

use super::mistake::Mistakes;
use super::reader::{Table, string};
use crate::path::bfd::Key;
use crate::path::{Probe, Settings, bfd};

const FASTEST: Duration = Duration::from_millis(10);
const SLOWEST: Duration = Duration::from_secs(60);

/// The table; left out: neighbours are asked by the defaults.
pub(super) fn read(table: Option<Table<'_>>, mistakes: &mut Mistakes<'_>) -> Settings {
    let default = Settings::default();
    let Some(mut table) = table else { return default };
    let times = FASTEST..=SLOWEST;
    let bfd = table.get("bfd").and_then(|value| Table::of(value, "[path.bfd]", mistakes));
    let settings = Settings {
        probe: match table.one_of("probe", &["neighbour", "bfd", "off"], mistakes) {
            "bfd" => Probe::Bfd,
            "off" => Probe::Off,
            _ => Probe::Neighbour,
        },
        interval: table.duration("interval", times, default.interval, mistakes),
        fall: table.integer("fall", 1..=100, default.fall.into(), mistakes) as u8,
        rise: table.integer("rise", 1..=100, default.rise.into(), mistakes) as u8,
        bfd: bfd.map_or(default.bfd, |table| read_bfd(table, mistakes)),
    };
    if table.get("bfd").is_some() && settings.probe != Probe::Bfd {
        let found = "[path.bfd] is of no use: BFD is spoken with `probe = \"bfd\"` alone";
        mistakes.warn(
            table.key_span("bfd"),
            found,
            "`probe = \"bfd\"` in [path], or leave this out",
        );
    }
    table.finish(mistakes);
    settings
}

fn read_bfd(mut table: Table<'_>, mistakes: &mut Mistakes<'_>) -> bfd::Settings {
    let default = bfd::Settings::default();
    let time = |table: &mut Table<'_>, key, default, mistakes: &mut Mistakes<'_>| {
        table.duration(key, FASTEST..=SLOWEST, default, mistakes)
    };
    let key = table.get("key").and_then(|value| Table::of(value, "[path.bfd.key]", mistakes));
    let settings = bfd::Settings {
        transmit: time(&mut table, "transmit", default.transmit, mistakes),
        receive: time(&mut table, "receive", default.receive, mistakes),
        multiplier: table.integer("multiplier", 1..=255, default.multiplier.into(), mistakes) as u8,
        key: key.map(|table| read_key(table, mistakes)),
    };
    table.finish(mistakes);
    settings
}

fn read_key(mut table: Table<'_>, mistakes: &mut Mistakes<'_>) -> Key {
    let wanted = "the secret, as text of 1 to 20 bytes";
    let value = table.required("secret", wanted, mistakes);
    let secret = value.and_then(|value| string(value, "secret", wanted, mistakes));
    if let (Some(value), Some(secret)) = (value, secret)
        && !(1..=20).contains(&secret.len())
    {
        // The secret itself is not shown.
        mistakes.error(value.span(), format!("`secret` has {} bytes", secret.len()), wanted);
    }
    let names = ["keyed-sha-1", "meticulous-keyed-sha-1"];
    let key = Key {
        id: table.integer("id", 0..=255, 1, mistakes) as u8,
        secret: secret.unwrap_or_default().as_bytes().to_vec(),
        is_meticulous: table.one_of("algorithm", &names, mistakes) == names[1],
    };
    table.finish(mistakes);
    key
}
