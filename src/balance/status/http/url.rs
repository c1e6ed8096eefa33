//! What a URL of a status object may be: `http` or `https`, an address, a path. No names: a check that waits for a name
//! server tells of the name server; the name that the server should be asked for is another key.

use std::net::SocketAddr;

use super::super::template::{PLACES, Template};

/// A URL with places in it, known to be one whatever fills them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url(Template);

/// Its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) is_encrypted: bool,
    pub(super) to: SocketAddr,
    /// `host:port` as it was written.
    pub(super) authority: String,
    /// Path and query.
    pub(super) path: String,
}

impl Url {
    /// Such as `http://{server}/stats`.
    ///
    /// # Errors
    /// In words, what it is not.
    pub fn parse(text: &str) -> Result<Url, String> {
        let template =
            Template::parse(text).map_err(|place| format!("{{{place}}} is none of {PLACES}"))?;
        for server in [SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([0u16; 8], 1))] {
            split(&template.fill_url(server))?;
        }
        Ok(Url(template))
    }

    /// Is TLS spoken?
    pub fn is_encrypted(&self) -> bool {
        self.target(SocketAddr::from(([127, 0, 0, 1], 1))).is_some_and(|target| target.is_encrypted)
    }

    /// For one server.
    pub(super) fn target(&self, server: SocketAddr) -> Option<Target> {
        split(&self.0.fill_url(server)).ok()
    }
}

fn split(url: &str) -> Result<Target, String> {
    let (is_encrypted, rest) = match url.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        _ => return Err("it does not begin with http:// or https://".to_owned()),
    };
    if let Some(c) = url.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(format!("it holds {c:?}"));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') {
        return Err("it holds a user; `headers` may say who asks".to_owned());
    }
    let port = if is_encrypted { 443 } else { 80 };
    let to = authority.parse::<SocketAddr>().ok().or_else(|| {
        let host = authority.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = host.unwrap_or(authority).parse().ok()?;
        Some(SocketAddr::new(host, port))
    });
    let to = to.ok_or_else(|| {
        format!("{authority:?} is no address; a name goes into `host`, behind http://{{server}}")
    })?;
    let path = path.split('#').next().unwrap_or_default();
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok(Target { is_encrypted, to, authority: authority.to_owned(), path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str, server: &str) -> (bool, String, String, String) {
        let url = Url::parse(text).expect("a URL");
        let target = url.target(server.parse().expect("an address")).expect("parts");
        (target.is_encrypted, target.to.to_string(), target.authority, target.path)
    }

    #[test]
    fn parts() {
        let of = |is_encrypted, to: &str, authority: &str, path: &str| {
            (is_encrypted, to.to_owned(), authority.to_owned(), path.to_owned())
        };
        let v6 = "[2001:db8::1]:8080";
        assert_eq!(
            target("http://{server}/a", "10.0.0.1:81"),
            of(false, "10.0.0.1:81", "10.0.0.1:81", "/a")
        );
        assert_eq!(
            target("https://{host}", v6),
            of(true, "[2001:db8::1]:443", "[2001:db8::1]", "/")
        );
        assert_eq!(
            target("http://{host}:9100/m?of={port}#x", v6),
            of(false, "[2001:db8::1]:9100", "[2001:db8::1]:9100", "/m?of=8080")
        );
        assert_eq!(
            target("http://192.0.2.7?a={server}", "10.0.0.1:81"),
            of(false, "192.0.2.7:80", "192.0.2.7", "/?a=10.0.0.1:81")
        );
    }

    #[test]
    fn what_is_none_is_told() {
        for (text, why) in [
            ("ftp://{server}/", "http://"),
            ("{server}/stats", "http://"),
            ("http://www.example.com/", "`host`"),
            ("http://a:b@{server}/", "user"),
            ("http://{server}:80/", "is no address"),
            ("http://{server}/a b", "' '"),
            ("http://{sever}/", "{sever}"),
        ] {
            let told = Url::parse(text).expect_err(text);
            assert!(told.contains(why), "{text}: {told}");
        }
    }
}
