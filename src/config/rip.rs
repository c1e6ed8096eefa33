//! `[rip]`: the routing daemon.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use toml::de::DeValue;
use toml::value::Datetime;

use super::mistake::Mistakes;
use super::reader::{Span, Table, Value, integer, is_a, string, strings};
use super::{Forwards, Nic};
use crate::rip::auth::{Algorithm, Key, Keyring};
use crate::rip::{Advertise, Horizon, NicSettings, Settings};
use crate::wire::ip::{Family, Prefix};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

/// The table; `None` where it is left out: then no RIP is spoken.
pub(super) fn read(
    table: Option<Table<'_>>,
    nics: &[Nic],
    forwards: Option<Forwards<'_>>,
    mistakes: &mut Mistakes<'_>,
) -> Option<Settings> {
    let mut table = table?;
    let default = Settings::default();
    let (is_v1, is_v2, is_ng) = read_versions(&mut table, mistakes);
    let time = |table: &mut Table<'_>, key, default, mistakes: &mut Mistakes<'_>| {
        table.duration(key, SECOND..=HOUR, default, mistakes)
    };
    let settings = Settings {
        is_v1,
        is_v2,
        is_ng,
        update: time(&mut table, "update", default.update, mistakes),
        timeout: time(&mut table, "timeout", default.timeout, mistakes),
        garbage: time(&mut table, "garbage", default.garbage, mistakes),
        advertise: match table.one_of("advertise", &["virtual", "virtual+real", "all"], mistakes) {
            "virtual+real" => Advertise::VirtualAndReal,
            "all" => Advertise::All,
            _ => Advertise::Virtual,
        },
        // One more is told, in reserve; 16 is infinity.
        metric: table.integer("metric", 1..=14, default.metric.into(), mistakes) as u8,
        accept: read_accept(&mut table, mistakes),
        most_routes: table.integer("routes", 0..=1_000_000, default.most_routes as u32, mistakes)
            as usize,
        nics: read_nics(&mut table, nics, mistakes),
        keys: read_keys(&mut table, mistakes),
        record: read_record(&mut table, mistakes),
    };
    if settings.timeout <= settings.update {
        let span = table.key_span("timeout");
        let found =
            format!("`timeout` is {:?}, and `update` {:?}", settings.timeout, settings.update);
        mistakes.error(span, found, "a timeout that is longer than an update, such as six of them");
    }
    if settings.is_v1 && !settings.keys.is_empty() {
        let found = "version 1 cannot be signed, and there are keys";
        mistakes.error(table.key_span("versions"), found, "versions without 1, or no [[rip.key]]");
    }
    if let (Advertise::All, Some(forwards)) = (settings.advertise, forwards) {
        ask_host(&settings, &table, |family| forwards(nics, family), mistakes);
    }
    table.finish(mistakes);
    Some(settings)
}

/// A host that does not forward would draw traffic to it that it drops.
fn ask_host(
    settings: &Settings,
    table: &Table<'_>,
    forwards: impl Fn(Family) -> Option<bool>,
    mistakes: &mut Mistakes<'_>,
) {
    let spoken = [(Family::V4, settings.is_v1 || settings.is_v2), (Family::V6, settings.is_ng)];
    for (family, _) in spoken.into_iter().filter(|(_, is_spoken)| *is_spoken) {
        let span = table.key_span("advertise");
        let (name, setting) = match family {
            Family::V4 => ("IPv4", "net.ipv4.ip_forward"),
            Family::V6 => ("IPv6", "net.ipv6.conf.all.forwarding"),
        };
        match forwards(family) {
            Some(true) => {}
            Some(false) => {
                let found =
                    format!("`advertise` is \"all\", and this host does not forward {name}");
                let wanted = format!("{setting}=1, or \"virtual\" or \"virtual+real\"");
                mistakes.error(span, found, wanted);
            }
            None => {
                let found = format!(
                    "`advertise` is \"all\": whether the host forwards {name} is not known"
                );
                let why =
                    format!("it has to have {setting}=1; none of the [[nic]] is on this machine");
                mistakes.warn(span, found, why);
            }
        }
    }
}

fn read_versions(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> (bool, bool, bool) {
    let Some(value) = table.get("versions") else { return (false, true, true) };
    let wanted = "a list of 1, 2 and \"ng\", such as [2, \"ng\"]";
    let DeValue::Array(items) = value.get_ref() else {
        mistakes.error(value.span(), is_a("versions", value.get_ref()), wanted);
        return (false, true, true);
    };
    let mut spoken = (false, false, false);
    for item in items.iter() {
        match item.get_ref() {
            DeValue::Integer(number) if integer(number) == Some(1) => spoken.0 = true,
            DeValue::Integer(number) if integer(number) == Some(2) => spoken.1 = true,
            DeValue::String(name) if name == "ng" => spoken.2 = true,
            DeValue::Integer(number) => {
                mistakes.error(item.span(), format!("there is no version {number}"), wanted);
            }
            other => mistakes.error(item.span(), is_a("a version", other), wanted),
        }
    }
    if items.is_empty() {
        mistakes.error(value.span(), "`versions` is empty", wanted);
    }
    spoken
}

fn read_record(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<PathBuf> {
    let wanted = "an absolute path of a file, which is overwritten";
    let value = table.get("record")?;
    let path = string(value, "record", wanted, mistakes)?;
    if !path.starts_with('/') {
        mistakes.error(value.span(), format!("`record` is {path:?}"), wanted);
    }
    Some(path.into())
}

fn read_accept(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Vec<Prefix> {
    let Some(value) = table.get("accept") else { return Vec::new() };
    let wanted = "a list of prefixes, such as [\"10.0.0.0/8\", \"2001:db8::/32\"]";
    let mut prefixes = Vec::new();
    for (text, span) in strings(value, "accept", wanted, false, mistakes) {
        match text.parse() {
            Ok(prefix) => prefixes.push(prefix),
            Err(error) => mistakes.error(span, format!("{error}"), wanted),
        }
    }
    prefixes
}

fn read_nics(table: &mut Table<'_>, nics: &[Nic], mistakes: &mut Mistakes<'_>) -> Vec<NicSettings> {
    let mut settings = vec![NicSettings::default(); nics.len()];
    let mut seen = vec![false; nics.len()];
    for mut table in Table::all_of(table.get("nic"), "[[rip.nic]]", mistakes) {
        let wanted = "the name of a [[nic]]";
        let value = table.required("name", wanted, mistakes);
        let name = value.and_then(|value| string(value, "name", wanted, mistakes));
        let one = NicSettings {
            cost: table.integer("cost", 1..=15, 1, mistakes) as u8,
            is_passive: table.boolean("passive", false, mistakes),
            horizon: match table.one_of("horizon", &["poisoned", "split", "none"], mistakes) {
                "split" => Horizon::Split,
                "none" => Horizon::None,
                _ => Horizon::Poisoned,
            },
        };
        if let (Some(value), Some(name)) = (value, name) {
            match nics.iter().position(|nic| nic.name == name) {
                Some(at) if seen[at] => {
                    mistakes.error(value.span(), format!("{name:?} is given twice"), wanted);
                }
                Some(at) => (settings[at], seen[at]) = (one, true),
                None => mistakes.error(value.span(), format!("{name:?} is no [[nic]]"), wanted),
            }
        }
        table.finish(mistakes);
    }
    settings
}

fn read_keys(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Vec<Key> {
    let mut keys: Vec<Key> = Vec::new();
    let mut lives = Vec::new();
    for mut table in Table::all_of(table.get("key"), "[[rip.key]]", mistakes) {
        let id = table.integer("id", 0..=255, 1, mistakes) as u8;
        let names = Algorithm::NAMES.map(|(name, _)| name);
        let chosen = table.one_of("algorithm", &names, mistakes);
        let named = Algorithm::NAMES.iter().find(|(name, _)| *name == chosen);
        let algorithm = named.map_or(Algorithm::HmacSha256, |(_, algorithm)| *algorithm);
        let wanted = "the secret, as text";
        let value = table.required("secret", wanted, mistakes);
        let secret = value.and_then(|value| string(value, "secret", wanted, mistakes));
        if let (Some(value), Some(secret)) = (value, secret) {
            let most = match algorithm {
                Algorithm::Password | Algorithm::Md5 => 16,
                _ => 256,
            };
            if secret.is_empty() || secret.len() > most {
                // The secret itself is not shown.
                let found = format!("`secret` has {} bytes", secret.len());
                mistakes.error(value.span(), found, format!("1 to {most} bytes"));
            }
        }
        if keys.iter().any(|key| key.id == id && algorithm != Algorithm::Password) {
            let found = format!("two keys have the id {id}");
            mistakes.error(table.key_span("id"), found, "an id of its own for each key");
        }
        keys.push(Key {
            id,
            algorithm,
            secret: secret.unwrap_or_default().as_bytes().to_vec(),
            from: read_moment(&mut table, "from", mistakes),
            until: read_moment(&mut table, "until", mistakes),
        });
        let [from, until] = ["from", "until"].map(|end| table.get(end).map(Value::span));
        lives.push((from, until));
        table.finish(mistakes);
    }
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    check_lives(&keys, &lives, wall.as_secs(), mistakes);
    keys
}

/// Keys that do not count as of `wall`, with where their ends stand.
fn check_lives(
    keys: &[Key],
    lives: &[(Option<Span>, Option<Span>)],
    wall: u64,
    mistakes: &mut Mistakes<'_>,
) {
    let stopgap = Keyring::new(keys.to_vec(), Duration::ZERO).stopgap(wall);
    for (key, (from, until)) in keys.iter().zip(lives) {
        let (fault, span) = match (key.from, key.until) {
            (Some(begin), Some(end)) if end <= begin => {
                ("never counts: it ends before it begins", until)
            }
            (_, Some(end)) if end <= wall => ("does not count any more", until),
            (Some(begin), _) if begin > wall => ("does not count yet", from),
            _ => continue,
        };
        let Some(span) = span else { continue };
        let why = match stopgap {
            None => "another key counts now".to_owned(),
            Some(id) if id == key.id => {
                "no key counts now: this one, the last to end, is used all the same".to_owned()
            }
            Some(id) => format!("no key counts now: {id}, the last to end, is used all the same"),
        };
        mistakes.warn(span.clone(), format!("the key {} {fault}", key.id), why);
    }
}

/// Seconds since 1970.
fn read_moment(
    table: &mut Table<'_>,
    key: &'static str,
    mistakes: &mut Mistakes<'_>,
) -> Option<u64> {
    let value = table.get(key)?;
    let wanted = "a date and time with its offset, such as 2027-01-31T00:00:00Z";
    let DeValue::Datetime(moment) = value.get_ref() else {
        mistakes.error(value.span(), is_a(key, value.get_ref()), wanted);
        return None;
    };
    let seconds = seconds(moment);
    if seconds.is_none() {
        mistakes.error(value.span(), format!("`{key}` is {moment}"), wanted);
    }
    seconds
}

fn seconds(moment: &Datetime) -> Option<u64> {
    let (date, time) = (moment.date?, moment.time?);
    let offset = match moment.offset? {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes) * 60,
    };
    // Days from 1970 in the Gregorian calendar; the year begins in March, so that the leap day is its last.
    let (year, month, day) = (i64::from(date.year), i64::from(date.month), i64::from(date.day));
    let year = if month <= 2 { year - 1 } else { year };
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * ((month + 9) % 12) + 2) / 5 + day
            - 1
            - 719_468;
    let clock = i64::from(time.hour) * 3600
        + i64::from(time.minute) * 60
        + i64::from(time.second.unwrap_or(0));
    u64::try_from(days * 86_400 + clock - offset).ok()
}
