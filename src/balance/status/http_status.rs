//! `http`: is the response as it should be, and how long did it take? Or a number that its body names.

use std::ops::RangeInclusive;
use std::time::Instant;

use super::answer::{finite, told, wrong};
use super::http::{Client, Request, Response};
use super::{Failure, Instance, Pending, Reading, StatusObject};

/// What a good response is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Status codes; 200 to 399 where nothing else is said.
    pub status: Vec<RangeInclusive<u16>>,
    /// What its body has to hold.
    pub body: Option<String>,
    /// The value is the first number behind this text; `None`: it is the response time.
    pub number_after: Option<String>,
}

/// Milliseconds from the request to the last byte of a good response, or a number out of it.
#[derive(Debug)]
pub(super) struct HttpStatus {
    client: Client,
    expected: Expected,
}

impl HttpStatus {
    pub(super) fn new(request: &Request, expected: &Expected) -> HttpStatus {
        HttpStatus { client: Client::new(request), expected: expected.clone() }
    }
}

impl StatusObject for HttpStatus {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(async {
            let asked = Instant::now();
            let response = self.client.ask(instance).await?;
            let elapsed = asked.elapsed();
            let number = self.expected.judge(&response)?;
            let value = number.unwrap_or(elapsed.as_secs_f64() * 1000.0);
            Ok(Reading { value: Some(value), ..Reading::default() })
        })
    }
}

impl Expected {
    /// The number that was asked for, if one was.
    fn judge(&self, response: &Response) -> Result<Option<f64>, Failure> {
        good_status(response, &self.status)?;
        let body = String::from_utf8_lossy(&response.body);
        if let Some(wanted) = self.body.as_ref().filter(|wanted| !body.contains(wanted.as_str())) {
            return Err(wrong(&body, format!("{wanted:?} in it")));
        }
        let Some(text) = &self.number_after else { return Ok(None) };
        let Some((_, rest)) = body.split_once(text.as_str()) else {
            return Err(wrong(&body, format!("a number after {text:?}")));
        };
        number_at(rest).map(Some)
    }
}

/// Is its status one of `wanted`?
pub(super) fn good_status(
    response: &Response,
    wanted: &[RangeInclusive<u16>],
) -> Result<(), Failure> {
    if wanted.iter().any(|range| range.contains(&response.status)) {
        return Ok(());
    }
    let one = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    let wanted: Vec<String> = wanted.iter().map(one).collect();
    Err(told(format!("status {}", response.status), format!("status {}", wanted.join(", "))))
}

/// The number at the start of `text`, behind blanks, colons and quotes.
fn number_at(text: &str) -> Result<f64, Failure> {
    let text = text.trim_start_matches([' ', '\t', ':', '=', '"', '\r', '\n']);
    let end = text.find([' ', '\t', '\r', '\n', ',', ';', '"', '<', '}', ']', ')', '%']);
    finite(&text[..end.unwrap_or(text.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(status: u16, body: &str, expected: &Expected) -> Result<Option<f64>, Failure> {
        expected.judge(&Response { status, body: body.as_bytes().to_vec() })
    }

    #[test]
    fn status_and_body_are_checked() {
        let expected = Expected {
            status: vec![200..=299, 401..=401],
            body: Some("ok".into()),
            number_after: None,
        };
        assert_eq!(judge(204, "it is ok", &expected), Ok(None));
        assert_eq!(judge(401, "ok", &expected), Ok(None));
        let told = judge(503, "ok", &expected).expect_err("a wrong status").to_string();
        assert_eq!(told, "answered status 503, wanted status 200-299, 401");
        let told = judge(200, "no", &expected).expect_err("a wrong body").to_string();
        assert_eq!(told, "answered \"no\", wanted \"ok\" in it");
    }

    #[test]
    fn a_number_out_of_nginxs_page() {
        let page = "Active connections: 291 \nserver accepts handled requests\n 16 16 31 \n\
                    Reading: 6 Writing: 179 Waiting: 106 \n";
        for (text, number) in
            [("Active connections:", 291.0), ("Writing", 179.0), ("requests", 16.0)]
        {
            let expected =
                Expected { status: vec![200..=399], body: None, number_after: Some(text.into()) };
            assert_eq!(judge(200, page, &expected), Ok(Some(number)), "{text}");
        }
        let expected =
            Expected { status: vec![200..=399], body: None, number_after: Some("Load".into()) };
        for body in [page, "Load", "Load: heavy", "Load: NaN", "Load: inf"] {
            assert!(judge(200, body, &expected).is_err(), "{body}");
        }
    }
}
