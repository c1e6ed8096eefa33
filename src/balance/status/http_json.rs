//! `http-json`: a value out of a JSON document, named by a JSON pointer (RFC 6901).

use serde_json::Value;

use super::answer::{finite, told, wrong};
use super::http::{Client, Request};
use super::http_status::good_status;
use super::{Failure, Instance, Pending, Reading, StatusObject};

/// The value that the pointer names.
#[derive(Debug)]
pub(super) struct HttpJson {
    client: Client,
    pointer: String,
}

impl HttpJson {
    pub(super) fn new(request: &Request, pointer: &str) -> HttpJson {
        HttpJson { client: Client::new(request), pointer: pointer.to_owned() }
    }
}

impl StatusObject for HttpJson {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(async {
            let response = self.client.ask(instance).await?;
            good_status(&response, &[200..=299])?;
            let value = select(&response.body, &self.pointer)?;
            Ok(Reading { value: Some(value), ..Reading::default() })
        })
    }
}

/// May `text` be a JSON pointer?
pub fn is_pointer(text: &str) -> bool {
    let escapes = |text: &str| text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    text.is_empty() || (text.starts_with('/') && escapes(text))
}

/// What `pointer` names in `document`: a number, a number in quotes, or true (1) and false (0).
///
/// # Errors
/// It is no JSON, has no such value, or that is nothing of these.
pub fn select(document: &[u8], pointer: &str) -> Result<f64, Failure> {
    let text = || String::from_utf8_lossy(document);
    let parsed: Value =
        serde_json::from_slice(document).map_err(|_| wrong(&text(), "a JSON document"))?;
    match parsed.pointer(pointer) {
        Some(Value::Number(number)) => finite(&number.to_string()),
        Some(Value::String(number)) => finite(number),
        Some(Value::Bool(is_true)) => Ok(f64::from(u8::from(*is_true))),
        Some(other) => Err(wrong(&other.to_string(), format!("a number at {pointer:?}"))),
        None => Err(told("a document without it", format!("a number at {pointer:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_by_their_pointer() {
        let document = br#"{"active":7,"pools":[{"a/b":"2.5"}],"is_full":true,"m~n":-1e3,"":0}"#;
        for (pointer, value) in [
            ("/active", 7.0),
            ("/pools/0/a~1b", 2.5),
            ("/is_full", 1.0),
            ("/m~0n", -1000.0),
            ("/", 0.0),
        ] {
            assert!(is_pointer(pointer));
            assert_eq!(select(document, pointer), Ok(value), "{pointer}");
        }
        assert_eq!(select(b"12", ""), Ok(12.0));
    }

    #[test]
    fn everything_else_is_told() {
        for document in [
            &b"{}"[..],
            b"",
            b"<html>",
            b"{\"active\":null}",
            b"{\"active\":[1]}",
            b"{\"active\":\"many\"}",
            b"{\"active\":\"NaN\"}",
            b"{\"active\":NaN}",
            b"{\"active\":1e999}",
            b"{\"active\":1",
            b"\xff\xfe",
        ] {
            let failure = select(document, "/active").expect_err("no number");
            assert!(matches!(failure, Failure::Answer { .. }), "{failure}");
        }
        let deep = "[".repeat(100_000);
        assert!(select(deep.as_bytes(), "/0").is_err());
    }

    #[test]
    fn what_is_a_pointer() {
        assert!(is_pointer("") && is_pointer("/a/0/~0~1"));
        assert!(!is_pointer("active") && !is_pointer("/a~2") && !is_pointer("/a~"));
    }

    proptest! {
        #[test]
        fn any_document_and_pointer_are_taken_or_refused(document: Vec<u8>, pointer: String) {
            if let Ok(value) = select(&document, &pointer) {
                prop_assert!(value.is_finite());
            }
        }
    }
}
