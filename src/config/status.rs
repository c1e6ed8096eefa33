//! `[[service.status]]`: what is read of each server of a service.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::mistake::Mistakes;
use super::reader::{Span, Table, Value, is_a, string, strings};
use crate::balance::status::dns::Question;
use crate::balance::status::flows::Measure;
use crate::balance::status::host::Resource;
use crate::balance::status::http::{Request, Url, is_header};
use crate::balance::status::http_status::Expected;
use crate::balance::status::maildir::Count;
use crate::balance::status::prometheus::{Selection, is_label, is_metric};
use crate::balance::status::template::{PLACES, Template};
use crate::balance::status::tls::{self, Trust};
use crate::balance::status::{Every, Kind, Role, Secret, Settings, http_json, redis, sql};

const DAY: Duration = Duration::from_secs(24 * 3600);
const SECOND: Duration = Duration::from_secs(1);
/// A reading that takes longer is given up, where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of a document that are read, where nothing else is said; exporters tell more.
const DOCUMENT: u32 = 64 << 10;
const METRICS: u32 = 1 << 20;

const KINDS: [&str; 17] = [
    "agent-check",
    "dns",
    "exec",
    "file",
    "fixed",
    "flows",
    "hops",
    "host",
    "http",
    "http-json",
    "maildir",
    "ping",
    "prometheus",
    "push",
    "redis",
    "sql",
    "tcp",
];

/// The status objects of one service, in order; none where `value` is left out.
pub(super) fn read(value: Option<&Value<'_>>, mistakes: &mut Mistakes<'_>) -> Vec<Settings> {
    let mut all: Vec<Settings> = Vec::new();
    for mut table in Table::all_of(value, "[[service.status]]", mistakes) {
        let Some(settings) = read_one(&mut table, mistakes) else { continue };
        if all.iter().any(|other| other.name == settings.name) {
            let found = format!("two status objects have the name {:?}", settings.name);
            mistakes.error(value_span(&mut table, "name"), found, "a name of its own for each");
        }
        if settings.role.is_some() && all.iter().any(|other| other.role == settings.role) {
            let found = "two status objects have this role";
            mistakes.error(value_span(&mut table, "role"), found, "each role once, or none");
        }
        table.finish(mistakes);
        all.push(settings);
    }
    all
}

fn read_one(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<Settings> {
    let name = read_name(table, mistakes);
    let roles = Role::NAMES.map(|(word, _)| word);
    let role = table.get("role").is_some().then(|| table.one_of("role", &roles, mistakes));
    let role = role.and_then(|role| Role::NAMES.iter().find(|(word, _)| *word == role));
    let every = read_every(table, mistakes);
    let timeout = match every {
        Every::Period(period) => period.min(PATIENCE),
        Every::Demand => PATIENCE,
    };
    let shortest = Duration::from_millis(10);
    let timeout = table.duration("timeout", shortest..=Duration::from_secs(60), timeout, mistakes);
    let kind = table.required("kind", "what is read, such as \"http-json\"", mistakes)?;
    let _ = string(kind, "kind", "what is read, such as \"http-json\"", mistakes)?;
    let before = mistakes.errors();
    let chosen = table.one_of("kind", &KINDS, mistakes);
    if mistakes.errors() > before {
        return None; // its other keys are those of no kind
    }
    let kind = read_kind(chosen, table, every, mistakes);
    Some(Settings {
        name: name?.into(),
        role: role.map(|(_, role)| *role),
        every,
        timeout,
        kind: kind?,
    })
}

fn read_name(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<String> {
    let wanted = "a name of letters, digits, `_` and `-` that begins with a letter, at most 32";
    let value = table.required("name", wanted, mistakes)?;
    let name = string(value, "name", wanted, mistakes)?;
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= 32
        && name.chars().all(is_letter)
    {
        return Some(name.to_owned());
    }
    mistakes.error(value.span(), format!("the name is {name:?}"), wanted);
    None
}

fn read_every(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Every {
    let is_demand =
        table.get("every").is_some_and(|value| value.get_ref().as_str() == Some("demand"));
    match is_demand {
        true => Every::Demand,
        false => {
            let range = Duration::from_millis(50)..=30 * DAY;
            Every::Period(table.duration("every", range, SECOND, mistakes))
        }
    }
}

fn read_kind(
    kind: &str,
    table: &mut Table<'_>,
    every: Every,
    mistakes: &mut Mistakes<'_>,
) -> Option<Kind> {
    Some(match kind {
        "tcp" => Kind::Tcp { port: read_port(table, mistakes) },
        "http" => {
            let request = read_request(table, DOCUMENT, mistakes);
            let expected = Expected {
                status: read_statuses(table, mistakes),
                body: read_text(table, "body", "text that the body holds", mistakes),
                number_after: read_text(table, "number-after", "text before a number", mistakes),
            };
            Kind::Http { request: request?, expected }
        }
        "http-json" => {
            let request = read_request(table, DOCUMENT, mistakes);
            let wanted = "a JSON pointer, such as \"/active\" or \"/pools/0/clients\"";
            let select = read_required(table, "select", wanted, mistakes);
            let select = select.filter(|(select, span)| {
                let is_pointer = http_json::is_pointer(select);
                if !is_pointer {
                    mistakes.error(span.clone(), format!("`select` is {select:?}"), wanted);
                }
                is_pointer
            });
            Kind::HttpJson { request: request?, select: select?.0 }
        }
        "prometheus" => {
            let request = read_request(table, METRICS, mistakes);
            let selection = read_selection(table, mistakes);
            Kind::Prometheus { request: request?, selection: selection? }
        }
        "agent-check" => {
            let port = read_port(table, mistakes);
            let send = read_text(table, "send", "what the agent is sent", mistakes);
            Kind::AgentCheck { port, send: send.unwrap_or_default() }
        }
        "exec" => Kind::Exec { command: read_command(table, mistakes)? },
        "fixed" => Kind::Fixed { value: read_number(table, "value", mistakes) },
        "file" => {
            let wanted = "an absolute path; it may have {host} in it";
            let path = read_template(table, "path", wanted, mistakes);
            let most_age = table
                .get("max-age")
                .is_some()
                .then(|| table.duration("max-age", SECOND..=30 * DAY, DAY, mistakes));
            Kind::File { path: path?, most_age }
        }
        "flows" => {
            let words = ["active", "created", "bytes", "failed"];
            Kind::Flows(match table.one_of("read", &words, mistakes) {
                "created" => Measure::Created,
                "bytes" => Measure::Bytes,
                "failed" => Measure::Failed,
                _ => Measure::Active,
            })
        }
        "host" => {
            let words = ["load1", "load5", "load15", "cpu", "memory"];
            Kind::Host(match table.one_of("read", &words, mistakes) {
                "load5" => Resource::Load(1),
                "load15" => Resource::Load(2),
                "cpu" => Resource::Cpu,
                "memory" => Resource::Memory,
                _ => Resource::Load(0),
            })
        }
        "dns" => Kind::Dns(read_question(table, mistakes)?),
        "hops" => Kind::Hops { most: table.integer("max", 1..=255, 32, mistakes) as u8 },
        "maildir" => {
            let wanted = "the absolute path of a directory; it may have {host} in it";
            let path = read_template(table, "path", wanted, mistakes);
            let count = match table.one_of("read", &["messages", "mailboxes", "bytes"], mistakes) {
                "mailboxes" => Count::Mailboxes,
                "bytes" => Count::Bytes,
                _ => Count::Messages,
            };
            let most = table.integer("max", 1..=100_000_000, 1_000_000, mistakes) as usize;
            Kind::Maildir { path: path?, count, most }
        }
        "ping" => Kind::Ping,
        "redis" => {
            let wanted = "a field of INFO, such as \"connected_clients\"";
            let field = read_required(table, "field", wanted, mistakes);
            let query = redis::Query {
                port: read_port(table, mistakes),
                field: field?.0,
                section: read_text(table, "section", "a section of INFO", mistakes),
                is_rate: table.boolean("rate", false, mistakes),
                user: read_text(table, "user", "the name of a user", mistakes),
                password: read_secret(table, mistakes),
                tls: read_tls(table, mistakes),
            };
            if query.user.is_some() && query.password.is_none() {
                let found = "a `user` without `password`";
                mistakes.error(value_span(table, "user"), found, "both, or neither");
            }
            Kind::Redis(query)
        }
        "sql" => Kind::Sql(read_query(table, mistakes)?),
        "push" => {
            let default = match every {
                Every::Period(period) => 3 * period,
                Every::Demand => 3 * SECOND,
            };
            let range = Duration::from_millis(50)..=30 * DAY;
            Kind::Push { most_age: table.duration("max-age", range, default, mistakes) }
        }
        _ => return None,
    })
}

/// `url`, `method`, `host`, `headers`, `limit`, `ca` and `verify`.
fn read_request(table: &mut Table<'_>, most: u32, mistakes: &mut Mistakes<'_>) -> Option<Request> {
    let wanted = "a URL, such as \"http://{server}/stats\"";
    let url = read_required(table, "url", wanted, mistakes).and_then(|(text, span)| {
        let url = Url::parse(&text);
        url.map_err(|why| mistakes.error(span, format!("`url` is {text:?}: {why}"), wanted)).ok()
    });
    let method = table.one_of("method", &["GET", "HEAD", "POST", "OPTIONS"], mistakes);
    let host = read_host(table, mistakes);
    let headers = read_pairs(table, "headers", "headers: { Accept = \"text/plain\" }", mistakes);
    for (name, value, span) in &headers {
        let is_ours = ["host", "connection", "content-length", "transfer-encoding"]
            .contains(&name.to_ascii_lowercase().as_str());
        if is_ours || !is_header(name, value) {
            let found = format!("{name:?} cannot be a header here");
            mistakes.error(span.clone(), found, "a header that is not `Host` or about the body");
        }
    }
    let request = Request {
        url: url?,
        method: method.to_owned(),
        host,
        headers: headers.into_iter().map(|(name, value, _)| (name, value)).collect(),
        most: table.integer("limit", 256..=16 << 20, most, mistakes) as usize,
        trust: read_trust(table, mistakes),
    };
    if !request.url.is_encrypted() && (table.get("ca").is_some() || table.get("verify").is_some()) {
        let found = "certificates are spoken of, and `url` is http";
        mistakes.error(value_span(table, "url"), found, "https, or neither `ca` nor `verify`");
    }
    Some(request)
}

/// `ca` and `verify`.
fn read_trust(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Trust {
    let is_verified = table.boolean("verify", true, mistakes);
    let wanted = "the absolute path of a PEM file";
    let Some(path) = read_text(table, "ca", wanted, mistakes) else {
        return if is_verified { Trust::System } else { Trust::All };
    };
    let span = value_span(table, "ca");
    if !is_verified {
        let found = "`ca` says whom to believe, and `verify` to believe all";
        mistakes.error(span, found, "one of the two");
    } else if !path.starts_with('/') {
        mistakes.error(span, format!("`ca` is {path:?}"), wanted);
    } else if let Err(why) = tls::roots(&PathBuf::from(&path)) {
        mistakes.error(span, format!("`ca` cannot be used: {why}"), wanted);
    }
    Trust::File(path.into())
}

/// `status`: "200-399" where it is left out.
fn read_statuses(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Vec<RangeInclusive<u16>> {
    let default = vec![200..=399];
    let wanted = "status codes, such as \"200-299, 401\"";
    let Some(text) = read_text(table, "status", wanted, mistakes) else { return default };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (100 <= first && first <= last && last <= 599).then_some(first..=last)
    };
    match text.split(',').map(range).collect() {
        Some(ranges) => ranges,
        None => {
            let span = value_span(table, "status");
            mistakes.error(span, format!("`status` is {text:?}"), wanted);
            default
        }
    }
}

/// `metric`, `labels` and `rate`.
fn read_selection(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<Selection> {
    let wanted = "the name of a metric, such as \"node_load1\"; labels stand in `labels`";
    let metric = read_required(table, "metric", wanted, mistakes);
    if let Some((metric, span)) = metric.as_ref().filter(|(metric, _)| !is_metric(metric)) {
        mistakes.error(span.clone(), format!("`metric` is {metric:?}"), wanted);
    }
    let labels = read_pairs(table, "labels", "labels: { code = \"200\" }", mistakes);
    for (name, _, span) in labels.iter().filter(|(name, _, _)| !is_label(name)) {
        mistakes.error(span.clone(), format!("{name:?} is no label"), "the name of a label");
    }
    Some(Selection {
        metric: metric?.0,
        labels: labels.into_iter().map(|(name, value, _)| (name, value)).collect(),
        is_rate: table.boolean("rate", false, mistakes),
    })
}

fn read_question(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<Question> {
    let wanted = "a name, such as \"www.example.com\"";
    let name = read_required(table, "query", wanted, mistakes).and_then(|(text, span)| {
        let name = Question::name(&text);
        if name.is_none() {
            mistakes.error(span, format!("`query` is {text:?}"), wanted);
        }
        name
    });
    let names = Question::TYPES.map(|(name, _)| name);
    let record = table.one_of("type", &names, mistakes);
    let record = Question::TYPES.iter().find(|(name, _)| *name == record)?.1;
    let wanted = "an address that has to be among the answers";
    let answer = read_text(table, "answer", wanted, mistakes);
    let parsed = answer.as_ref().and_then(|answer| answer.parse::<IpAddr>().ok());
    let is_of_type = match (record, parsed) {
        (1, Some(address)) => address.is_ipv4(),
        (28, Some(address)) => address.is_ipv6(),
        _ => false,
    };
    if let Some(answer) = answer.filter(|_| !is_of_type) {
        let wanted = "an address of IPv4 for type A, of IPv6 for AAAA, none for others";
        mistakes.error(value_span(table, "answer"), format!("`answer` is {answer:?}"), wanted);
    }
    Some(Question { port: read_port(table, mistakes), name: name?, record, answer: parsed })
}

fn read_query(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<sql::Query> {
    let wanted = "a statement that yields a number: \"select count(*) from pg_stat_activity\"";
    let query = read_required(table, "query", wanted, mistakes);
    let user = read_required(table, "user", "the name of a role", mistakes);
    let database = read_text(table, "database", "the name of a database", mistakes);
    for (key, text) in [("query", &query), ("user", &user)] {
        if let Some((text, span)) = text
            && (text.is_empty() || text.contains('\0'))
        {
            mistakes.error(span.clone(), format!("`{key}` is {text:?}"), wanted);
        }
    }
    let (port, password) = (read_port(table, mistakes), read_secret(table, mistakes));
    let tls = read_tls(table, mistakes);
    let user = user?.0;
    let database = database.unwrap_or_else(|| user.clone());
    Some(sql::Query { port, query: query?.0, user, password, database, tls })
}

/// `tls`, with `host`, `ca` and `verify`.
fn read_tls(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<(Trust, Option<String>)> {
    let is_spoken = table.boolean("tls", false, mistakes);
    let (host, trust) = (read_host(table, mistakes), read_trust(table, mistakes));
    if !is_spoken
        && let Some(key) = ["host", "ca", "verify"].into_iter().find(|key| table.get(key).is_some())
    {
        let span = table.key_span(key);
        mistakes.error(span, format!("`{key}`, and no `tls`"), "`tls = true` beside it");
    }
    is_spoken.then_some((trust, host))
}

/// `password`, or the first line of `password-file`. It is not shown.
fn read_secret(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<Secret> {
    let password = read_text(table, "password", "a password", mistakes);
    let wanted = "the absolute path of a file that holds a password";
    let file = read_text(table, "password-file", wanted, mistakes);
    let span = value_span(table, "password-file");
    match (password, file) {
        (Some(_), Some(_)) => {
            mistakes.error(span, "`password` and `password-file`", "one of the two");
            None
        }
        (password, None) => password.map(|password| Secret::new(&password)),
        (None, Some(file)) if !file.starts_with('/') => {
            mistakes.error(span, format!("`password-file` is {file:?}"), wanted);
            None
        }
        (None, Some(file)) => match tls::read_small(&PathBuf::from(&file)) {
            Ok(text) => Some(Secret::new(text.lines().next().unwrap_or_default())),
            Err(error) => {
                mistakes.error(span, format!("{file:?} cannot be read: {error}"), wanted);
                None
            }
        },
    }
}

fn read_host(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<String> {
    let wanted = "a name, such as \"www.example.com\"";
    let host = read_text(table, "host", wanted, mistakes);
    if let Some(host) = host.as_ref().filter(|host| !tls::is_name(host)) {
        mistakes.error(value_span(table, "host"), format!("`host` is {host:?}"), wanted);
    }
    host
}

fn read_command(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<Vec<Template>> {
    let wanted = "a list: the absolute path of a program, and its arguments, such as [\"/bin/check\", \"{host}\"]";
    let value = table.required("command", wanted, mistakes)?;
    let words = strings(value, "command", wanted, false, mistakes);
    match words.first() {
        Some((program, _)) if program.starts_with('/') => {}
        Some((program, span)) => {
            mistakes.error(span.clone(), format!("the program is {program:?}"), wanted);
        }
        None if value.get_ref().as_array().is_some_and(|array| array.is_empty()) => {
            mistakes.error(value.span(), "`command` is empty", wanted);
        }
        None => {}
    }
    let parsed: Vec<Option<Template>> =
        words.into_iter().map(|(text, span)| template(text, span, mistakes)).collect();
    parsed.into_iter().collect::<Option<Vec<Template>>>().filter(|command| !command.is_empty())
}

fn read_template(
    table: &mut Table<'_>,
    key: &'static str,
    wanted: &str,
    mistakes: &mut Mistakes<'_>,
) -> Option<Template> {
    let (text, span) = read_required(table, key, wanted, mistakes)?;
    if !text.starts_with('/') {
        mistakes.error(span, format!("`{key}` is {text:?}"), wanted);
        return None;
    }
    template(&text, span, mistakes)
}

fn template(text: &str, span: Span, mistakes: &mut Mistakes<'_>) -> Option<Template> {
    let parsed = if text.contains('\0') { Err("\\0".to_owned()) } else { Template::parse(text) };
    parsed.map_err(|place| mistakes.error(span, format!("{{{place}}} is no place"), PLACES)).ok()
}

fn read_port(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<u16> {
    table.get("port").map(|_| table.integer("port", 1..=65_535, 1, mistakes) as u16)
}

fn read_number(
    table: &mut Table<'_>,
    key: &'static str,
    mistakes: &mut Mistakes<'_>,
) -> Option<f64> {
    let value = table.get(key)?;
    let number = match value.get_ref() {
        DeValue::Integer(number) => number.as_str().parse::<f64>().ok(),
        DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
        other => {
            mistakes.error(value.span(), is_a(key, other), "a number");
            return None;
        }
    };
    let finite = number.filter(|number| number.is_finite());
    if finite.is_none() {
        mistakes.error(value.span(), format!("`{key}` is no finite number"), "a number");
    }
    finite
}

fn read_required(
    table: &mut Table<'_>,
    key: &'static str,
    wanted: &str,
    mistakes: &mut Mistakes<'_>,
) -> Option<(String, Span)> {
    let value = table.required(key, wanted, mistakes)?;
    Some((string(value, key, wanted, mistakes)?.to_owned(), value.span()))
}

/// Text that is not empty; `None` where it is left out.
fn read_text(
    table: &mut Table<'_>,
    key: &'static str,
    wanted: &str,
    mistakes: &mut Mistakes<'_>,
) -> Option<String> {
    let value = table.get(key)?;
    let text = string(value, key, wanted, mistakes)?;
    if text.is_empty() {
        mistakes.error(value.span(), format!("`{key}` is empty"), wanted);
        return None;
    }
    Some(text.to_owned())
}

/// A table of texts, with where each stands.
fn read_pairs(
    table: &mut Table<'_>,
    key: &'static str,
    wanted: &str,
    mistakes: &mut Mistakes<'_>,
) -> Vec<(String, String, Span)> {
    let Some(value) = table.get(key) else { return Vec::new() };
    let DeValue::Table(entries) = value.get_ref() else {
        mistakes.error(value.span(), is_a(key, value.get_ref()), wanted);
        return Vec::new();
    };
    let mut pairs = Vec::new();
    for (name, value) in entries {
        let name_text: &str = name.get_ref();
        if let Some(text) = string(value, name_text, wanted, mistakes) {
            pairs.push((name_text.to_owned(), text.to_owned(), name.span()));
        }
    }
    pairs
}

fn value_span(table: &mut Table<'_>, key: &'static str) -> Span {
    table.get(key).map_or(table.span(), Value::span)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use toml::de::DeTable;

    use super::*;

    /// What `text` (the keys of one status object) reads as, or its mistakes: line, column and found.
    fn parse(text: &str) -> Result<Vec<Settings>, Vec<(usize, usize, String)>> {
        let text = format!("[[status]]\n{text}");
        let mut mistakes = Mistakes::new(&text);
        let document = DeTable::parse(&text).expect("TOML");
        let all = read(document.get_ref().get("status"), &mut mistakes);
        match mistakes.finish(Path::new("vipa.toml")) {
            Ok(_) => Ok(all),
            Err(errors) => Err(errors
                .mistakes()
                .iter()
                .map(|mistake| (mistake.line, mistake.column, mistake.found.clone()))
                .collect()),
        }
    }

    fn one(text: &str) -> Settings {
        let mut all = parse(text).unwrap_or_else(|mistakes| panic!("{text}: {mistakes:?}"));
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn the_contracts_example() {
        let settings = one("name = \"clients\"\nrole = \"clients\"\nkind = \"http-json\"\n\
             url = \"http://{server}/stats\"\nselect = \"/active\"\nevery = \"1s\"\n");
        assert_eq!((&*settings.name, settings.role), ("clients", Some(Role::Clients)));
        assert_eq!((settings.every, settings.timeout), (Every::Period(SECOND), SECOND));
        let Kind::HttpJson { request, select } = settings.kind else { panic!("another kind") };
        assert_eq!(request.url, Url::parse("http://{server}/stats").expect("a URL"));
        assert_eq!((select.as_str(), request.method.as_str()), ("/active", "GET"));
        assert_eq!((request.most, request.trust), (64 << 10, Trust::System));
    }

    #[test]
    fn the_status_objects_of_the_readme_are_right() {
        let readme = include_str!("../../README.md");
        let block = readme.split("```toml status\n").nth(1).expect("the README's example");
        let block = block.split("```").next().expect("its end");
        let text = block.replace("[[service.status]]", "[[status]]");
        let all = parse(text.strip_prefix("[[status]]\n").expect("one")).expect("no mistake");
        assert_eq!(all.len(), 5);
        assert_eq!(all[0].timeout, SECOND);
        // The table of kinds has them all.
        for kind in KINDS {
            assert!(readme.contains(&format!("\n| `{kind}` | ")), "{kind}");
        }
    }

    #[test]
    fn periods_and_timeouts() {
        let of = |keys: &str| {
            let settings = one(&format!("name = \"a\"\nkind = \"tcp\"\n{keys}"));
            (settings.every, settings.timeout.as_millis())
        };
        assert_eq!(of(""), (Every::Period(SECOND), 1000));
        assert_eq!(of("every = \"24h\""), (Every::Period(DAY), 3000));
        assert_eq!(of("every = \"demand\""), (Every::Demand, 3000));
        assert_eq!(of("timeout = \"200ms\""), (Every::Period(SECOND), 200));
    }

    #[test]
    fn every_kind_is_read() {
        for (keys, wanted) in [
            ("kind = \"tcp\"\nport = 8080", Kind::Tcp { port: Some(8080) }),
            ("kind = \"ping\"", Kind::Ping),
            ("kind = \"hops\"", Kind::Hops { most: 32 }),
            (
                "kind = \"dns\"\nquery = \"a.bc\"\ntype = \"AAAA\"\nanswer = \"2001:db8::1\"\nport = 53",
                Kind::Dns(Question {
                    port: Some(53),
                    name: b"\x01a\x02bc\0".to_vec(),
                    record: 28,
                    answer: Some(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])),
                }),
            ),
            (
                "kind = \"maildir\"\npath = \"/var/mail\"\nread = \"bytes\"\nmax = 5",
                Kind::Maildir {
                    path: Template::parse("/var/mail").expect("a template"),
                    count: Count::Bytes,
                    most: 5,
                },
            ),
            (
                "kind = \"redis\"\nfield = \"total_commands_processed\"\nsection = \"stats\"\nrate = true\n\
                 user = \"ann\"\npassword = \"x\"\ntls = true\nverify = false",
                Kind::Redis(redis::Query {
                    port: None,
                    field: "total_commands_processed".into(),
                    section: Some("stats".into()),
                    is_rate: true,
                    user: Some("ann".into()),
                    password: Some(Secret::new("x")),
                    tls: Some((Trust::All, None)),
                }),
            ),
            (
                "kind = \"sql\"\nquery = \"select 1\"\nuser = \"ann\"",
                Kind::Sql(sql::Query {
                    port: None,
                    query: "select 1".into(),
                    user: "ann".into(),
                    password: None,
                    database: "ann".into(),
                    tls: None,
                }),
            ),
            ("kind = \"fixed\"", Kind::Fixed { value: None }),
            ("kind = \"fixed\"\nvalue = 1_000", Kind::Fixed { value: Some(1000.0) }),
            ("kind = \"fixed\"\nvalue = 2.5", Kind::Fixed { value: Some(2.5) }),
            ("kind = \"flows\"", Kind::Flows(Measure::Active)),
            ("kind = \"flows\"\nread = \"failed\"", Kind::Flows(Measure::Failed)),
            ("kind = \"host\"\nread = \"load15\"", Kind::Host(Resource::Load(2))),
            ("kind = \"host\"\nread = \"cpu\"", Kind::Host(Resource::Cpu)),
            ("kind = \"push\"", Kind::Push { most_age: 3 * SECOND }),
            ("kind = \"push\"\nmax-age = \"1m\"", Kind::Push { most_age: Duration::from_secs(60) }),
            (
                "kind = \"agent-check\"\nport = 9\nsend = \"hi\\n\"",
                Kind::AgentCheck { port: Some(9), send: "hi\n".into() },
            ),
            (
                "kind = \"exec\"\ncommand = [\"/bin/echo\", \"{host}\"]",
                Kind::Exec {
                    command: ["/bin/echo", "{host}"]
                        .map(|text| Template::parse(text).expect("a template"))
                        .to_vec(),
                },
            ),
            (
                "kind = \"file\"\npath = \"/run/{host}\"\nmax-age = \"5s\"",
                Kind::File {
                    path: Template::parse("/run/{host}").expect("a template"),
                    most_age: Some(Duration::from_secs(5)),
                },
            ),
        ] {
            assert_eq!(one(&format!("name = \"a\"\n{keys}\n")).kind, wanted, "{keys}");
        }
    }

    #[test]
    fn what_http_and_prometheus_are_told() {
        let settings = one(
            "name = \"a\"\nkind = \"http\"\nurl = \"https://{host}:8443/\"\nmethod = \"HEAD\"\n\
             host = \"www.example.com\"\nheaders = { Accept = \"text/plain\" }\nverify = false\n\
             status = \"204, 300-301\"\nbody = \"ok\"\nnumber-after = \"Active connections:\"\nlimit = 1024\n",
        );
        let Kind::Http { request, expected } = settings.kind else { panic!("another kind") };
        assert_eq!((request.method.as_str(), request.most), ("HEAD", 1024));
        assert_eq!(request.host.as_deref(), Some("www.example.com"));
        assert_eq!(request.headers, [("Accept".to_owned(), "text/plain".to_owned())]);
        assert_eq!(request.trust, Trust::All);
        assert_eq!(expected.status, [204..=204, 300..=301]);
        assert_eq!(expected.body.as_deref(), Some("ok"));
        assert_eq!(expected.number_after.as_deref(), Some("Active connections:"));
        let settings =
            one("name = \"a\"\nkind = \"prometheus\"\nurl = \"http://{host}:9100/metrics\"\n\
             metric = \"node_cpu_seconds_total\"\nlabels = { mode = \"idle\" }\nrate = true\n");
        let Kind::Prometheus { request, selection } = settings.kind else { panic!("another kind") };
        assert_eq!(request.most, 1 << 20);
        assert_eq!(selection.to_string(), "node_cpu_seconds_total{mode=\"idle\"}");
        assert!(selection.is_rate);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (keys, line, column, found) in [
            ("kind = \"tcp\"", 1, 1, "[[service.status]] has no `name`"),
            ("name = \"a\"", 1, 1, "[[service.status]] has no `kind`"),
            ("name = \"a\"\nkind = \"tpc\"", 3, 8, "`kind` is \"tpc\""),
            ("name = \"a b\"\nkind = \"tcp\"", 2, 8, "the name is \"a b\""),
            ("name = \"a\"\nkind = \"tcp\"\nrole = \"users\"", 4, 8, "`role` is \"users\""),
            ("name = \"a\"\nkind = \"tcp\"\nurl = \"http://{server}/\"", 4, 1, "no key `url`"),
            ("name = \"a\"\nkind = \"tcp\"\nevery = \"often\"", 4, 9, "`every` is \"often\""),
            ("name = \"a\"\nkind = \"tcp\"\nevery = \"1ms\"", 4, 9, "`every` is \"1ms\""),
            ("name = \"a\"\nkind = \"tcp\"\nport = 0", 4, 8, "`port` is 0"),
            ("name = \"a\"\nkind = \"http\"", 1, 1, "has no `url`"),
            ("name = \"a\"\nkind = \"http\"\nurl = \"http://web/\"", 4, 7, "is no address"),
            ("name = \"a\"\nkind = \"http\"\nurl = \"http://{sever}/\"", 4, 7, "{sever}"),
            (
                "name = \"a\"\nkind = \"http\"\nurl = \"http://{server}/\"\nstatus = \"2xx\"",
                5,
                10,
                "`status` is \"2xx\"",
            ),
            (
                "name = \"a\"\nkind = \"http\"\nurl = \"http://{server}/\"\nheaders = { \"A B\" = \"c\" }",
                5,
                13,
                "\"A B\"",
            ),
            (
                "name = \"a\"\nkind = \"http\"\nurl = \"http://{server}/\"\nverify = false",
                4,
                7,
                "`url` is http",
            ),
            (
                "name = \"a\"\nkind = \"http\"\nurl = \"https://{server}/\"\nca = \"/nonexistent\"",
                5,
                6,
                "`ca` cannot be used",
            ),
            (
                "name = \"a\"\nkind = \"http-json\"\nurl = \"http://{server}/\"\nselect = \"active\"",
                5,
                10,
                "`select` is \"active\"",
            ),
            (
                "name = \"a\"\nkind = \"prometheus\"\nurl = \"http://{server}/\"\nmetric = \"a{b=\\\"c\\\"}\"",
                5,
                10,
                "`metric` is",
            ),
            (
                "name = \"a\"\nkind = \"exec\"\ncommand = \"/bin/true\"",
                4,
                11,
                "`command` is a string",
            ),
            ("name = \"a\"\nkind = \"exec\"\ncommand = []", 4, 11, "`command` is empty"),
            (
                "name = \"a\"\nkind = \"exec\"\ncommand = [\"true\"]",
                4,
                12,
                "the program is \"true\"",
            ),
            (
                "name = \"a\"\nkind = \"exec\"\ncommand = [\"/a\", \"{hots}\"]",
                4,
                18,
                "{hots} is no place",
            ),
            ("name = \"a\"\nkind = \"dns\"\nquery = \"a..b\"", 4, 9, "`query` is \"a..b\""),
            (
                "name = \"a\"\nkind = \"dns\"\nquery = \"a\"\nanswer = \"2001:db8::1\"",
                5,
                10,
                "`answer` is",
            ),
            ("name = \"a\"\nkind = \"maildir\"\npath = \"mail\"", 4, 8, "`path` is \"mail\""),
            ("name = \"a\"\nkind = \"redis\"", 1, 1, "has no `field`"),
            (
                "name = \"a\"\nkind = \"redis\"\nfield = \"b\"\nca = \"/dev/null\"\ntls = true",
                5,
                6,
                "no regular file",
            ),
            ("name = \"a\"\nkind = \"redis\"\nfield = \"b\"\nhost = \"c\"", 5, 1, "no `tls`"),
            (
                "name = \"a\"\nkind = \"redis\"\nfield = \"b\"\nuser = \"c\"",
                5,
                8,
                "without `password`",
            ),
            ("name = \"a\"\nkind = \"sql\"\nuser = \"b\"", 1, 1, "has no `query`"),
            (
                "name = \"a\"\nkind = \"sql\"\nuser = \"b\"\nquery = \"q\"\npassword-file = \"/nonexistent\"",
                6,
                17,
                "cannot be read",
            ),
            (
                "name = \"a\"\nkind = \"sql\"\nuser = \"b\"\nquery = \"q\"\npassword-file = \"/dev/zero\"",
                6,
                17,
                "no regular file",
            ),
            ("name = \"a\"\nkind = \"fixed\"\nvalue = \"1\"", 4, 9, "`value` is a string"),
            ("name = \"a\"\nkind = \"fixed\"\nvalue = inf", 4, 9, "no finite number"),
            ("name = \"a\"\nkind = \"file\"\npath = \"load\"", 4, 8, "`path` is \"load\""),
            (
                "name = \"a\"\nkind = \"tcp\"\n[[status]]\nkind = \"tcp\"\nname = \"a\"",
                6,
                8,
                "two status objects have the name \"a\"",
            ),
            (
                "name = \"a\"\nkind = \"tcp\"\nrole = \"clients\"\n[[status]]\nname = \"b\"\nkind = \"tcp\"\nrole = \"clients\"",
                8,
                8,
                "two status objects have this role",
            ),
        ] {
            let mistakes = parse(keys).expect_err(keys);
            assert_eq!(mistakes.len(), 1, "{keys}: {mistakes:?}");
            let told = &mistakes[0];
            assert_eq!((told.0, told.1), (line, column), "{keys}: {told:?}");
            assert!(told.2.contains(found), "{keys}: {told:?}");
        }
    }
}
