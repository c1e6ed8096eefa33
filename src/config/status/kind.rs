//! The keys of each kind of status object.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::DeValue;

use super::connection::{read_port, read_request, read_secret, read_tls};
use super::{DAY, SECOND};
use crate::balance::status::dns::Question;
use crate::balance::status::flows::Measure;
use crate::balance::status::host::Resource;
use crate::balance::status::http_status::Expected;
use crate::balance::status::maildir::Count;
use crate::balance::status::prometheus::{Selection, is_label, is_metric};
use crate::balance::status::template::{PLACES, Template};
use crate::balance::status::{Every, Kind, http_json, redis, sql};
use crate::config::mistake::Mistakes;
use crate::config::reader::{Span, Table, is_a, strings};

/// Bytes of a document that are read, where nothing else is said; exporters tell more.
const DOCUMENT: u32 = 64 << 10;
const METRICS: u32 = 1 << 20;

/// The kind of this name, which is one of [`super::KINDS`].
pub(super) fn read(
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
                body: table.text("body", "text that the body holds", mistakes),
                number_after: table.text("number-after", "text before a number", mistakes),
            };
            Kind::Http { request: request?, expected }
        }
        "http-json" => {
            let request = read_request(table, DOCUMENT, mistakes);
            let wanted = "a JSON pointer, such as \"/active\" or \"/pools/0/clients\"";
            let select = table.required_text("select", wanted, mistakes);
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
            let send = table.text("send", "what the agent is sent", mistakes);
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
            let field = table.required_text("field", wanted, mistakes);
            let query = redis::Query {
                port: read_port(table, mistakes),
                field: field?.0,
                section: table.text("section", "a section of INFO", mistakes),
                is_rate: table.boolean("rate", false, mistakes),
                user: table.text("user", "the name of a user", mistakes),
                password: read_secret(table, mistakes),
                tls: read_tls(table, mistakes),
            };
            if query.user.is_some() && query.password.is_none() {
                let found = "a `user` without `password`";
                mistakes.error(table.value_span("user"), found, "both, or neither");
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

/// `status`: "200-399" where it is left out.
fn read_statuses(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Vec<RangeInclusive<u16>> {
    let default = vec![200..=399];
    let wanted = "status codes, such as \"200-299, 401\"";
    let Some(text) = table.text("status", wanted, mistakes) else { return default };
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (100 <= first && first <= last && last <= 599).then_some(first..=last)
    };
    match text.split(',').map(range).collect() {
        Some(ranges) => ranges,
        None => {
            let span = table.value_span("status");
            mistakes.error(span, format!("`status` is {text:?}"), wanted);
            default
        }
    }
}

/// `metric`, `labels` and `rate`.
fn read_selection(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<Selection> {
    let wanted = "the name of a metric, such as \"node_load1\"; labels stand in `labels`";
    let metric = table.required_text("metric", wanted, mistakes);
    if let Some((metric, span)) = metric.as_ref().filter(|(metric, _)| !is_metric(metric)) {
        mistakes.error(span.clone(), format!("`metric` is {metric:?}"), wanted);
    }
    let labels = table.pairs("labels", "labels: { code = \"200\" }", mistakes);
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
    let name = table.required_text("query", wanted, mistakes).and_then(|(text, span)| {
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
    let answer = table.text("answer", wanted, mistakes);
    let parsed = answer.as_ref().and_then(|answer| answer.parse::<IpAddr>().ok());
    let is_of_type = match (record, parsed) {
        (1, Some(address)) => address.is_ipv4(),
        (28, Some(address)) => address.is_ipv6(),
        _ => false,
    };
    if let Some(answer) = answer.filter(|_| !is_of_type) {
        let wanted = "an address of IPv4 for type A, of IPv6 for AAAA, none for others";
        mistakes.error(table.value_span("answer"), format!("`answer` is {answer:?}"), wanted);
    }
    Some(Question { port: read_port(table, mistakes), name: name?, record, answer: parsed })
}

fn read_query(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<sql::Query> {
    let wanted = "a statement that yields a number: \"select count(*) from pg_stat_activity\"";
    let query = table.required_text("query", wanted, mistakes);
    let user = table.required_text("user", "the name of a role", mistakes);
    let database = table.text("database", "the name of a database", mistakes);
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
    let (text, span) = table.required_text(key, wanted, mistakes)?;
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
