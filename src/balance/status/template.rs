//! Text with places for what is asked: `{server}` is the server's address and port, `{host}` its address, `{port}` its
//! port.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// The names of the places.
pub const PLACES: &str = "{server}, {host} and {port}";

/// Such a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Server,
    Host,
    Port,
}

impl Template {
    /// Other braces stay as they are: `{"a":1}` is text.
    ///
    /// # Errors
    /// A place, `{word}`, that is none of ours: the word.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            plain.push_str(&rest[..at]);
            rest = &rest[at..];
            let end = rest[1..].find(|c: char| !c.is_ascii_lowercase()).map(|end| end + 1);
            let word = end.filter(|end| *end > 1 && rest[*end..].starts_with('}'));
            let piece = match word.map(|end| &rest[1..end]) {
                None => {
                    plain.push('{');
                    rest = &rest[1..];
                    continue;
                }
                Some("server") => Piece::Server,
                Some("host") => Piece::Host,
                Some("port") => Piece::Port,
                Some(unknown) => return Err(unknown.to_owned()),
            };
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(piece);
            rest = &rest[word.map_or(1, |end| end + 1)..];
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Template(pieces))
    }

    /// With everything in its place; addresses of IPv6 stand bare.
    pub fn fill(&self, server: SocketAddr) -> String {
        self.filled(server, |host| host.to_string())
    }

    /// The same for a URL, in which an address of IPv6 has brackets (RFC 3986 section 3.2.2).
    pub fn fill_url(&self, server: SocketAddr) -> String {
        self.filled(server, |host| match host {
            IpAddr::V4(host) => host.to_string(),
            IpAddr::V6(host) => format!("[{host}]"),
        })
    }

    fn filled(&self, server: SocketAddr, host: impl Fn(IpAddr) -> String) -> String {
        let mut text = String::new();
        for piece in &self.0 {
            let _ = match piece {
                Piece::Text(plain) => write!(text, "{plain}"),
                Piece::Server => write!(text, "{server}"),
                Piece::Host => write!(text, "{}", host(server.ip())),
                Piece::Port => write!(text, "{}", server.port()),
            };
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filled(text: &str, server: &str) -> (String, String) {
        let template = Template::parse(text).expect("a template");
        let server = server.parse().expect("an address");
        (template.fill(server), template.fill_url(server))
    }

    #[test]
    fn places_are_filled() {
        let both = |text: &str| (text.to_owned(), text.to_owned());
        assert_eq!(filled("{server}", "10.0.0.1:80"), both("10.0.0.1:80"));
        assert_eq!(filled("{server}/a", "[2001:db8::1]:80"), both("[2001:db8::1]:80/a"));
        assert_eq!(filled("a{port}b{port}", "10.0.0.1:80"), both("a80b80"));
        let (bare, url) = filled("{host}:9100", "[2001:db8::1]:80");
        assert_eq!((bare.as_str(), url.as_str()), ("2001:db8::1:9100", "[2001:db8::1]:9100"));
    }

    #[test]
    fn other_braces_are_text() {
        let text = "{\"a\":{1}} {} {{host} {Host} {";
        assert_eq!(filled(text, "10.0.0.1:80").0, "{\"a\":{1}} {} {10.0.0.1 {Host} {");
    }

    #[test]
    fn an_unknown_place_is_named() {
        assert_eq!(Template::parse("http://{sever}/"), Err("sever".to_owned()));
    }

    proptest! {
        #[test]
        fn text_without_braces_stays(text in "[^{]*") {
            prop_assert_eq!(filled(&text, "10.0.0.1:80"), (text.clone(), text));
        }
    }
}
