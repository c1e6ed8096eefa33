//! A configuration file → [`Config`]: each section read and checked, every mistake noted.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use hashbrown::HashMap;
use toml::de::DeTable;

use super::address::{self, Place};
use super::mistake::{Errors, Mistakes, Warning};
use super::reader::{Table, Value, string, strings};
use super::{
    Adapter, Config, Forwarder, Forwards, Nic, Source, announce, path as paths, reload, replay,
    rip, rules, secret, service,
};
use crate::forward::view::XdpHook;
use crate::wire::ip::Family;

/// A configuration is text by hand; what is larger was named by mistake.
const LARGEST_FILE: u64 = 1 << 20;
/// More have no place in what the workers keep of each.
pub(super) const MOST_NICS: usize = crate::engine::statistics::NICS;
/// Sections that a later version has.
const NOT_YET: [&str; 3] = ["dns", "admin", "monitor"];

impl Config {
    /// Reads and checks the file `path`; what depends on the host is left unasked.
    ///
    /// # Errors
    /// The file cannot be read, or every mistake that it holds.
    pub fn load(path: &Path) -> Result<(Config, Vec<Warning>), Errors> {
        Config::load_for(path, None)
    }

    /// Reads and checks the file `path` for a host that `forwards`, or does not.
    ///
    /// # Errors
    /// The file cannot be read, or every mistake that it holds.
    pub fn load_for(
        path: &Path,
        forwards: Option<Forwards<'_>>,
    ) -> Result<(Config, Vec<Warning>), Errors> {
        read(path, forwards, None)
    }

    /// Reads the file of this configuration again, for the forwarder that runs by it: besides being right, nothing may have changed that
    /// needs a restart. NICs keep their places.
    ///
    /// # Errors
    /// As [`Config::load_for`].
    pub fn reload(&self, forwards: Option<Forwards<'_>>) -> Result<(Config, Vec<Warning>), Errors> {
        read(&self.file, forwards, Some(self))
    }

    /// Checks `text`, which was read from `path`.
    ///
    /// # Errors
    /// Every mistake in it; where it is no TOML, those of the syntax alone.
    pub fn parse(text: &str, path: &Path) -> Result<(Config, Vec<Warning>), Errors> {
        Config::parse_for(text, path, None, None)
    }

    pub(super) fn parse_for(
        text: &str,
        path: &Path,
        forwards: Option<Forwards<'_>>,
        running: Option<&Config>,
    ) -> Result<(Config, Vec<Warning>), Errors> {
        let mut mistakes = Mistakes::new(text);
        let (document, syntax) = DeTable::parse_recoverable(text);
        mistakes.hide(secret::of_document(document.get_ref()));
        let mut is_readable = true;
        for error in &syntax {
            let is_duplicate = error.message() == "duplicate key";
            is_readable &= is_duplicate;
            let wanted = if is_duplicate { "a key once in each table" } else { "TOML" };
            let start = error.span().map_or(0, |span| span.start);
            mistakes.hide([secret::of_line(text, start)]);
            mistakes.error(error.span().unwrap_or(0..0), error.message(), wanted);
        }
        let config =
            is_readable.then(|| read_file(document.get_ref(), path, forwards, &mut mistakes));
        let mut config = config.flatten();
        if let (Some(config), Some(running)) = (&mut config, running) {
            reload::follow(running, config, document.get_ref(), &mut mistakes);
        }
        let warnings = mistakes.finish(path)?;
        match config {
            Some(config) => Ok((config, warnings)),
            // Nothing is left out without a mistake; should that ever fail, it is told as one.
            None => Err(Errors::Unreadable {
                path: path.to_owned(),
                source: io::Error::new(io::ErrorKind::InvalidData, "it is not complete"),
            }),
        }
    }
}

fn read(
    path: &Path,
    forwards: Option<Forwards<'_>>,
    running: Option<&Config>,
) -> Result<(Config, Vec<Warning>), Errors> {
    let unreadable = |source| Errors::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LARGEST_FILE {
        let reason = format!("it is larger than {} KiB", LARGEST_FILE >> 10);
        return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, reason)));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Config::parse_for(&text, path, forwards, running),
        Err(error) => Err(not_utf8(&error, path)),
    }
}

fn not_utf8(error: &std::string::FromUtf8Error, path: &Path) -> Errors {
    let valid = error.utf8_error().valid_up_to();
    let text = String::from_utf8_lossy(error.as_bytes());
    let mut mistakes = Mistakes::new(&text);
    mistakes.hide([secret::of_line(&text, valid)]);
    mistakes.error(valid..valid + 1, "this is not UTF-8", "text in UTF-8");
    match mistakes.finish(path) {
        Err(errors) => errors,
        Ok(_) => Errors::Unreadable {
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"),
        },
    }
}

fn read_file(
    entries: &DeTable<'_>,
    path: &Path,
    forwards: Option<Forwards<'_>>,
    mistakes: &mut Mistakes<'_>,
) -> Option<Config> {
    let mut file = Table::new(entries, 0..0, "the file");
    let adapter = file
        .required("virtual", "the virtual adapter's table, [virtual]", mistakes)
        .and_then(|value| Table::of(value, "[virtual]", mistakes))
        .map(|table| read_adapter(table, mistakes));
    let forwarder =
        read_forwarder(optional(&mut file, "forwarder", "[forwarder]", mistakes), mistakes);
    let vipas = adapter.as_ref().map_or(&[][..], |adapter| &adapter.addresses);
    let nics = read_nics(&mut file, adapter.as_ref(), mistakes);
    let mut source = read_source(
        optional(&mut file, "source", "[source]", mistakes),
        forwarder.workers,
        vipas,
        mistakes,
    );
    let services = service::read(file.get("service"), vipas, &source.rules, mistakes);
    let to_direct = service::rules_for_direct(&services, &source.rules);
    source.rules.extend(to_direct);
    let replay = replay::read(optional(&mut file, "replay", "[replay]", mistakes), &nics, mistakes);
    let rip = rip::read(optional(&mut file, "rip", "[rip]", mistakes), &nics, forwards, mistakes);
    let announce =
        announce::read(optional(&mut file, "announce", "[announce]", mistakes), mistakes);
    let watch = paths::read(optional(&mut file, "path", "[path]", mistakes), mistakes);
    for section in NOT_YET {
        if file.get(section).is_some() {
            let found = format!("`{section}` is not in this version of vipa");
            mistakes.error(file.key_span(section), found, "leave it out");
        }
    }
    file.finish(mistakes);
    if mistakes.has_errors() {
        return None;
    }
    Some(Config {
        file: path.to_owned(),
        adapter: adapter?,
        forwarder,
        nics,
        source,
        rip,
        services,
        announce,
        path: watch,
        replay,
    })
}

/// The table `key`, empty where it is left out.
fn optional<'t>(
    file: &mut Table<'t>,
    key: &'static str,
    title: &'static str,
    mistakes: &mut Mistakes<'_>,
) -> Option<Table<'t>> {
    file.get(key).and_then(|value| Table::of(value, title, mistakes))
}

fn read_adapter(mut table: Table<'_>, mistakes: &mut Mistakes<'_>) -> Adapter {
    let wanted = "the name of the adapter, such as \"vipa0\"";
    let name = table
        .required("name", wanted, mistakes)
        .and_then(|value| device_name(value, wanted, mistakes))
        .unwrap_or_default();
    let addresses = read_vipas(&mut table, mistakes);
    let adapter = Adapter {
        name,
        addresses,
        table: table.integer("table", 1..=u32::MAX, 923, mistakes),
        // The kernel's own rules: `local` at 0, `main` at 32766. Ours lie between them.
        preference: table.integer("preference", 1..=32_666, 9230, mistakes),
        is_protected: table.boolean("protect", true, mistakes),
    };
    let wanted = "a routing table that nothing else uses, such as 923";
    // One for each further address, and one for this host's own use of services.
    let more = u32::try_from(adapter.addresses.len()).unwrap_or(u32::MAX);
    let last = adapter.table.checked_add(more);
    if (253..=255).contains(&adapter.table) {
        let found = format!("`table` is {}, one of the kernel's own", adapter.table);
        mistakes.error(table.value_span("table"), found, wanted);
    } else if last.is_none_or(|last| adapter.table < 253 && last >= 253) {
        let found = format!(
            "`table` is {}, with too few tables behind it: {more} are wanted",
            adapter.table
        );
        mistakes.error(table.value_span("table"), found, wanted);
    }
    table.finish(mistakes);
    adapter
}

fn read_vipas(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Vec<IpAddr> {
    let wanted = "a list of IPv4 and IPv6 addresses, such as [\"203.0.113.10\", \"2001:db8::10\"]";
    let Some(value) = table.required("addresses", wanted, mistakes) else { return Vec::new() };
    let listed = strings(value, "addresses", wanted, false, mistakes);
    if listed.is_empty() && value.get_ref().as_array().is_some_and(|array| array.is_empty()) {
        mistakes.error(value.span(), "`addresses` is empty", "at least one address");
    }
    let mut seen: HashMap<IpAddr, usize, foldhash::fast::RandomState> = HashMap::default();
    let mut addresses = Vec::new();
    for (text, span) in listed {
        let Some(address) = address::parse(text, Place::Vipa, span.clone(), mistakes) else {
            continue;
        };
        if let Some(first) = seen.insert(address, span.start) {
            let wanted = format!("each address once; it stands in line {}", mistakes.line(first));
            mistakes.error(span, format!("{address} is listed twice"), wanted);
            seen.insert(address, first);
            continue;
        }
        addresses.push(address);
    }
    addresses
}

fn read_forwarder(table: Option<Table<'_>>, mistakes: &mut Mistakes<'_>) -> Forwarder {
    let Some(mut table) = table else { return Forwarder { workers: 1, flows: 65_536 } };
    let forwarder = Forwarder {
        workers: table.integer("workers", 1..=64, 1, mistakes) as u8,
        flows: table.integer("flows", 1024..=1 << 24, 65_536, mistakes),
    };
    if table.one_of("offload", &["auto", "off", "tc"], mistakes) == "tc" {
        let found = "`offload` \"tc\" is not in this version of vipa";
        mistakes.error(table.value_span("offload"), found, "\"auto\" or \"off\"");
    }
    table.finish(mistakes);
    forwarder
}

fn read_nics(
    file: &mut Table<'_>,
    adapter: Option<&Adapter>,
    mistakes: &mut Mistakes<'_>,
) -> Vec<Nic> {
    let value = file.required("nic", "at least one network card, [[nic]]", mistakes);
    let has_services = file.get("service").is_some();
    let tables = Table::all_of(value, "[[nic]]", mistakes);
    if let (Some(value), Some(tables)) = (value, value.and_then(|value| value.get_ref().as_array()))
        && !(1..=MOST_NICS).contains(&tables.len())
    {
        let found = format!("there are {} [[nic]]", tables.len());
        mistakes.error(value.span(), found, "from 1 to 64");
    }
    let vipas = adapter.map_or(&[][..], |adapter| &adapter.addresses);
    let mut names: HashMap<String, usize, foldhash::fast::RandomState> = HashMap::default();
    let mut nics = Vec::new();
    for mut table in tables {
        let wanted = "the name of a network card, such as \"eth1\"";
        let value = table.required("name", wanted, mistakes);
        let name = value.and_then(|value| device_name(value, wanted, mistakes));
        if let (Some(value), Some(name)) = (value, &name) {
            if adapter.is_some_and(|adapter| adapter.name == *name) {
                let found = format!("{name:?} is the virtual adapter");
                mistakes.error(value.span(), found, wanted);
            }
            if let Some(first) = names.get(name) {
                let wanted = format!("each [[nic]] once; it stands in line {first}");
                mistakes.error(value.span(), format!("{name:?} is given twice"), wanted);
            } else {
                names.insert(name.clone(), mistakes.line(value.span().start));
            }
        }
        nics.push(Nic {
            name: name.unwrap_or_default(),
            gateways: read_gateways(&mut table, vipas, mistakes),
            weight: table.integer("weight", 1..=1000, 1, mistakes) as u16,
            metric: table.integer("metric", 0..=u32::MAX, 1, mistakes),
            hold_down: table.duration(
                "hold-down",
                Duration::ZERO..=Duration::from_secs(3600),
                Duration::from_secs(3),
                mistakes,
            ),
            xdp: read_xdp(&mut table, has_services, mistakes),
        });
        table.finish(mistakes);
    }
    nics
}

fn read_xdp(
    table: &mut Table<'_>,
    has_services: bool,
    mistakes: &mut Mistakes<'_>,
) -> Option<XdpHook> {
    let hook = match table.one_of("xdp", &["off", "native", "generic"], mistakes) {
        "native" => XdpHook::Native,
        "generic" => XdpHook::Generic,
        _ => return None,
    };
    if !has_services {
        let found = "XDP takes frames for services, and there is no [[service]]";
        mistakes.warn(table.value_span("xdp"), found, "a [[service]], or leave this out");
    }
    Some(hook)
}

fn read_gateways(
    table: &mut Table<'_>,
    vipas: &[IpAddr],
    mistakes: &mut Mistakes<'_>,
) -> Vec<IpAddr> {
    let Some(value) = table.get("gateway") else { return Vec::new() };
    let wanted = "an address, or a list with one of each family";
    let mut gateways: Vec<IpAddr> = Vec::new();
    for (text, span) in strings(value, "gateway", wanted, true, mistakes) {
        let Some(gateway) = address::parse(text, Place::Gateway, span.clone(), mistakes) else {
            continue;
        };
        if vipas.contains(&gateway) {
            mistakes.error(span, format!("{gateway} is a VIPA"), "the address of a router");
        } else if gateways.iter().any(|other| Family::of(*other) == Family::of(gateway)) {
            let found = format!("{gateway} is a second gateway of its family");
            mistakes.error(span, found, wanted);
        } else {
            gateways.push(gateway);
        }
    }
    gateways
}

fn read_source(
    table: Option<Table<'_>>,
    workers: u8,
    vipas: &[IpAddr],
    mistakes: &mut Mistakes<'_>,
) -> Source {
    let default = Source {
        sourcevipa: true,
        ports: 61_000..=65_535,
        hold: Duration::from_secs(60),
        is_bound_forwarded: false,
        rules: Vec::new(),
    };
    let Some(mut table) = table else { return default };
    let hold = Duration::from_secs(1)..=Duration::from_secs(3600);
    let source = Source {
        sourcevipa: table.boolean("sourcevipa", default.sourcevipa, mistakes),
        ports: read_reserved_ports(&mut table, workers, mistakes).unwrap_or(default.ports),
        hold: table.duration("hold", hold, default.hold, mistakes),
        is_bound_forwarded: table.one_of("bound", &["bypass", "forward"], mistakes) == "forward",
        rules: rules::read(table.get("rule"), vipas, mistakes),
    };
    table.finish(mistakes);
    source
}

/// `[source] ports`: unprivileged, enough for each worker to own one, and not so many that the kernel has
/// none left for sockets that name no port.
fn read_reserved_ports(
    table: &mut Table<'_>,
    workers: u8,
    mistakes: &mut Mistakes<'_>,
) -> Option<RangeInclusive<u16>> {
    const MOST: usize = 32_768;
    let value = table.get("ports")?;
    let wanted = "a range of ports from 1024 to 65535, such as \"61000-65535\"";
    let ports = rules::ports(value, "ports", wanted, mistakes)?;
    let found = format!("`ports` are {}-{}", ports.start(), ports.end());
    if *ports.start() < 1024 {
        mistakes.error(value.span(), found, wanted);
    } else if ports.len() < usize::from(workers) {
        let wanted = format!("at least one port for each of the {workers} workers");
        mistakes.error(value.span(), found, wanted);
    } else if ports.len() > MOST {
        let found = format!("{found}, {} of them", ports.len());
        mistakes.error(value.span(), found, format!("at most {MOST}: other sockets need the rest"));
    }
    Some(ports)
}

/// A name that the kernel takes for a device (`dev_valid_name`) and that is safe in paths of files.
fn device_name(value: &Value<'_>, wanted: &str, mistakes: &mut Mistakes<'_>) -> Option<String> {
    const LONGEST: usize = 15;
    let name = string(value, "name", wanted, mistakes)?;
    let fault = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > LONGEST {
        format!("is {} bytes long", name.len())
    } else if let Some(c) =
        name.chars().find(|c| c.is_whitespace() || c.is_control() || "/:%".contains(*c))
    {
        format!("holds {c:?}")
    } else if matches!(name, "." | ".." | "all" | "default" | "lo") {
        let meant = if name == "lo" { "the loopback device" } else { "something else" };
        mistakes.error(
            value.span(),
            format!("the name {name:?} means {meant} to the kernel"),
            wanted,
        );
        return None;
    } else {
        return Some(name.to_owned());
    };
    let wanted = format!("a device name of 1 to {LONGEST} bytes without spaces, `/`, `:` and `%`");
    mistakes.error(value.span(), format!("the name {name:?} {fault}"), wanted);
    None
}
