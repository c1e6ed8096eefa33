//! What all kinds say of what they read: numbers that are finite, answers shortened for a log line.

use std::fmt::Write as _;
use std::io;

use super::Failure;
use crate::engine::descriptors;

/// Characters of an answer that are shown.
const SHOWN: usize = 60;

/// `found` came where `wanted` should have.
pub(super) fn wrong(found: &str, wanted: impl Into<String>) -> Failure {
    Failure::Answer { found: shorten(found), wanted: wanted.into() }
}

/// `found`, in our own words, where `wanted` should have come.
pub(super) fn told(found: impl Into<String>, wanted: impl Into<String>) -> Failure {
    Failure::Answer { found: found.into(), wanted: wanted.into() }
}

/// It cannot be reached, or went away.
pub(super) fn unreached(error: &io::Error) -> Failure {
    Failure::Unreached(without_number(&error.to_string()))
}

/// There is a descriptor for a status object.
pub(super) fn room() -> Result<(), Failure> {
    descriptors::for_status().map_err(Failure::Unreached)
}

/// The value that `text` is.
pub(super) fn finite(text: &str) -> Result<f64, Failure> {
    let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| wrong(text, "a finite number"))
}

/// The value, if it is finite.
pub(super) fn finite_value(value: f64) -> Result<f64, Failure> {
    if value.is_finite() { Ok(value) } else { Err(told(value.to_string(), "a finite number")) }
}

/// The beginning of an answer in quotes, fit for one line of a terminal.
fn shorten(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        return "nothing".to_owned();
    }
    let mut shown = String::from('"');
    for (count, c) in text.chars().enumerate() {
        if count == SHOWN {
            shown.push('…');
            break;
        }
        let _ = write!(shown, "{}", c.escape_debug());
    }
    shown.push('"');
    shown
}

/// "Connection refused (os error 111)" without the bracket.
fn without_number(text: &str) -> String {
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_short_and_stay_in_their_line() {
        assert_eq!(shorten(" \r\n"), "nothing");
        assert_eq!(shorten("a \"b\"\n\u{1b}[31m"), r#""a \"b\"\n\u{1b}[31m""#);
        let long = shorten(&"ä".repeat(1000));
        assert_eq!(long.chars().count(), SHOWN + 3);
    }

    #[test]
    fn errors_of_the_system_are_words() {
        let error = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        assert_eq!(unreached(&error), Failure::Unreached("Connection refused".to_owned()));
    }

    #[test]
    fn only_finite_numbers_are_values() {
        assert_eq!(finite(" 1e3\n"), Ok(1000.0));
        for text in ["", "NaN", "inf", "1e999", "12 apples"] {
            assert!(finite(text).is_err(), "{text}");
        }
        assert!(finite_value(f64::NEG_INFINITY).is_err());
    }
}
