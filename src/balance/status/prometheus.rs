//! `prometheus`: a metric by name and labels out of what exporters show (Prometheus text format 0.0.4, OpenMetrics
//! 1.0), or the rate of a counter.

use std::time::Instant;

use super::answer::{finite_value, told, wrong};
use super::http::{Client, Request};
use super::http_status::good_status;
use super::rate::Rate;
use super::{Failure, Instance, Pending, Reading, StatusObject};

/// Which series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Name of the metric.
    pub metric: String,
    /// Labels that a series has to have; it may have others.
    pub labels: Vec<(String, String)>,
    /// The value is what it grew by in a second.
    pub is_rate: bool,
}

/// The sum of the series selected.
#[derive(Debug)]
pub(super) struct Prometheus {
    client: Client,
    selection: Selection,
    rate: Rate,
}

impl Prometheus {
    pub(super) fn new(request: &Request, selection: &Selection) -> Prometheus {
        let client = Client::new(request);
        Prometheus { client, selection: selection.clone(), rate: Rate::default() }
    }
}

impl StatusObject for Prometheus {
    fn read<'a>(&'a mut self, instance: &'a Instance) -> Pending<'a> {
        Box::pin(async {
            let response = self.client.ask(instance).await?;
            good_status(&response, &[200..=299])?;
            let body = std::str::from_utf8(&response.body).map_err(|_| {
                wrong(&String::from_utf8_lossy(&response.body), "metrics, as text in UTF-8")
            })?;
            let sum = self.selection.sum(body)?;
            let value = match self.selection.is_rate {
                true => self.rate.of(sum, Instant::now()),
                false => Some(sum),
            };
            Ok(Reading { value, ..Reading::default() })
        })
    }
}

impl Selection {
    /// The sum of all series with this name and these labels.
    ///
    /// # Errors
    /// There is none, the sum is not finite, or a line with this name is none of the format.
    pub fn sum(&self, text: &str) -> Result<f64, Failure> {
        let mut sum = None;
        for line in text.lines() {
            let Some(rest) = line.trim_start().strip_prefix(self.metric.as_str()) else { continue };
            if !rest.starts_with([' ', '\t', '{']) {
                continue; // a longer name
            }
            let value = self.value(rest).ok_or_else(|| wrong(line, "a line of metrics"))?;
            if let Some(value) = value {
                sum = Some(sum.unwrap_or(0.0) + value);
            }
        }
        match sum {
            Some(sum) => finite_value(sum),
            None if text.trim().is_empty() => Err(wrong("", "metrics")),
            None => Err(told("no such metric", self.to_string())),
        }
    }

    /// What stands behind a name: labels, a value and perhaps more. `None`: it is none of the format;
    /// `Some(None)`: other labels.
    fn value(&self, rest: &str) -> Option<Option<f64>> {
        let rest = rest.trim_start();
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest)?,
            None => (Vec::new(), rest),
        };
        let word = rest.split_ascii_whitespace().next()?;
        // The format's own words for what is not finite are those that Rust reads: NaN, +Inf, -Inf.
        let value = word.parse::<f64>().ok()?;
        let has = |(name, wanted): &(String, String)| {
            let found = labels.iter().find(|(label, _)| label == name);
            // A label that is not there is one without a value.
            found.map_or("", |(_, value)| value.as_str()) == wanted
        };
        Some(self.labels.iter().all(has).then_some(value))
    }
}

impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let labels: Vec<_> =
            self.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        match labels.as_slice() {
            [] => f.write_str(&self.metric),
            labels => write!(f, "{}{{{}}}", self.metric, labels.join(",")),
        }
    }
}

/// Labels up to their closing brace, and what follows it.
fn labels(text: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let mut labels = Vec::new();
    let mut rest = text.trim_start();
    loop {
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, quoted) = rest.split_once('=')?;
        let mut value = String::new();
        let mut letters = quoted.trim_start().strip_prefix('"')?.chars();
        loop {
            match letters.next()? {
                '"' => break,
                '\\' => value.push(match letters.next()? {
                    'n' => '\n',
                    other => other,
                }),
                other => value.push(other),
            }
        }
        labels.push((name.trim(), value));
        rest = letters.as_str().trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
}

/// May it be a metric's name?
pub fn is_metric(name: &str) -> bool {
    is_label(&name.replace(':', "_"))
}

/// May it be a label's name?
pub fn is_label(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: &str = r#"# HELP node_load1 1m load average.
# TYPE node_load1 gauge
node_load1 0.21
node_load15 0.5
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400",}    3 1395066363000
  http_requests_total { code = "200" , method="get" } 1e3 # {trace="x"} 5
escaped{path="C:\\DIR\\FILE.TXT",error="Cannot find file:\n\"FILE.TXT\" }"} 1.458255915e9
nothing NaN
bucket{le="+Inf"} +Inf
# EOF
"#;

    fn sum(metric: &str, labels: &[(&str, &str)]) -> Result<f64, Failure> {
        let labels = labels.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Selection { metric: metric.to_owned(), labels, is_rate: false }.sum(PAGE)
    }

    #[test]
    fn by_name_and_labels() {
        assert_eq!(sum("node_load1", &[]), Ok(0.21));
        assert_eq!(sum("http_requests_total", &[]), Ok(2030.0));
        assert_eq!(sum("http_requests_total", &[("code", "200")]), Ok(2027.0));
        assert_eq!(sum("http_requests_total", &[("code", "200"), ("method", "get")]), Ok(1000.0));
        assert_eq!(sum("http_requests_total", &[("code", "400"), ("zone", "")]), Ok(3.0));
        let escaped = "Cannot find file:\n\"FILE.TXT\" }";
        assert_eq!(sum("escaped", &[("error", escaped)]), Ok(1_458_255_915.0));
    }

    #[test]
    fn what_is_not_there_or_not_finite_is_told() {
        let told =
            sum("http_requests_total", &[("code", "500")]).expect_err("no series").to_string();
        assert_eq!(told, "answered no such metric, wanted http_requests_total{code=\"500\"}");
        for metric in ["node_load", "nothing", "bucket", "absent"] {
            assert!(sum(metric, &[]).is_err(), "{metric}");
        }
        let selection = Selection { metric: "a".into(), labels: Vec::new(), is_rate: false };
        for text in ["", "a", "a{", "a{b=\"c} 1", "a{b} 1", "a one", "a{b=\"c\\", "<html>"] {
            assert!(selection.sum(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names() {
        assert!(is_metric("node:load_1") && is_label("_a1"));
        assert!(!is_metric("1a") && !is_metric("") && !is_label("a:b") && !is_label("a-b"));
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "(a|b|[a{}=,\\\\\" 1.#\n]|\\PC)*") {
            let labels = vec![("b".to_owned(), "a".to_owned())];
            let selection = Selection { metric: "a".into(), labels, is_rate: false };
            if let Ok(sum) = selection.sum(&text) {
                prop_assert!(sum.is_finite());
            }
        }
    }
}
