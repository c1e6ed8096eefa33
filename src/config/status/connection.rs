//! How a status object reaches a server: a port, a request over HTTP, and with TLS whom it believes.

use std::path::PathBuf;

use crate::balance::status::Secret;
use crate::balance::status::http::{Request, Url, is_header};
use crate::balance::status::tls::{self, Trust};
use crate::config::mistake::Mistakes;
use crate::config::reader::Table;

/// `url`, `method`, `host`, `headers`, `limit`, `ca` and `verify`.
pub(super) fn read_request(
    table: &mut Table<'_>,
    most: u32,
    mistakes: &mut Mistakes<'_>,
) -> Option<Request> {
    let wanted = "a URL, such as \"http://{server}/stats\"";
    let url = table.required_text("url", wanted, mistakes).and_then(|(text, span)| {
        let url = Url::parse(&text);
        url.map_err(|why| mistakes.error(span, format!("`url` is {text:?}: {why}"), wanted)).ok()
    });
    let method = table.one_of("method", &["GET", "HEAD", "POST", "OPTIONS"], mistakes);
    let host = read_host(table, mistakes);
    let headers = table.pairs("headers", "headers: { Accept = \"text/plain\" }", mistakes);
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
        mistakes.error(table.value_span("url"), found, "https, or neither `ca` nor `verify`");
    }
    Some(request)
}

/// `ca` and `verify`.
fn read_trust(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Trust {
    let is_verified = table.boolean("verify", true, mistakes);
    let wanted = "the absolute path of a PEM file";
    let Some(path) = table.text("ca", wanted, mistakes) else {
        return if is_verified { Trust::System } else { Trust::All };
    };
    let span = table.value_span("ca");
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

/// `tls`, with `host`, `ca` and `verify`.
pub(super) fn read_tls(
    table: &mut Table<'_>,
    mistakes: &mut Mistakes<'_>,
) -> Option<(Trust, Option<String>)> {
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
pub(super) fn read_secret(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<Secret> {
    let password = table.text("password", "a password", mistakes);
    let wanted = "the absolute path of a file that holds a password";
    let file = table.text("password-file", wanted, mistakes);
    let span = table.value_span("password-file");
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
    let host = table.text("host", wanted, mistakes);
    if let Some(host) = host.as_ref().filter(|host| !tls::is_name(host)) {
        mistakes.error(table.value_span("host"), format!("`host` is {host:?}"), wanted);
    }
    host
}

pub(super) fn read_port(table: &mut Table<'_>, mistakes: &mut Mistakes<'_>) -> Option<u16> {
    table.get("port").map(|_| table.integer("port", 1..=65_535, 1, mistakes) as u16)
}
