//! The line that an agent answers with: HAProxy's agent-check grammar (its configuration manual, "agent-check"), and
//! beside its words a number, which is the value. Programs, files and what is pushed speak the same language.
//!
//! One line, ended by CR or LF; words parted by spaces, tabs and commas, in any order and in either case; what follows
//! a `#` is for people. Of two words of one kind the last one counts.

use super::answer::{finite, wrong};
use super::{Administrative, Failure, Reading, Words};
use crate::log::limited;

/// What should have come.
const WANTED: &str = "a number, or words such as \"up\", \"75%\", \"drain\"";
/// HAProxy's largest weight is 256 times that of the configuration.
const LARGEST_SHARE: f64 = 256.0;

/// What a line says, and the first word of it that is none of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Line<'a> {
    /// All that was understood.
    pub reading: Reading,
    /// The first word that was not.
    pub unknown: Option<&'a str>,
    /// How many words of the grammar there are; numbers are none.
    pub known: usize,
}

/// Reads a line, up to its end or its `#`. Words of a later grammar do no harm beside known ones; a line without any
/// is not of ours, whatever number it holds: "HTTP/1.1 200 OK".
///
/// # Errors
/// A number that is not finite.
pub fn parse(line: &str) -> Result<Line<'_>, Failure> {
    let line = line.split(['\r', '\n', '#']).next().unwrap_or_default();
    let mut said = Line { reading: Reading::default(), unknown: None, known: 0 };
    for word in line.split([' ', '\t', ',']).filter(|word| !word.is_empty()) {
        if understand(word, &mut said.reading.words) {
            said.known += 1;
        } else if word.parse::<f64>().is_ok() {
            said.reading.value = Some(finite(word)?);
        } else {
            said.unknown = said.unknown.or(Some(word));
        }
    }
    Ok(said)
}

/// The reading of the first line of `text`; words that are not ours are logged.
///
/// # Errors
/// None of its words is ours, or a number is not finite; with `needs_word`: it has no word at all.
pub fn read(text: &str, needs_word: bool) -> Result<Reading, Failure> {
    let said = parse(text)?;
    match said.unknown {
        Some(word) if said.known == 0 => return Err(wrong(word, WANTED)),
        Some(word) => limited!(warn, word = %word.escape_debug(), "an agent says an unknown word"),
        None if needs_word && said.reading == Reading::default() => return Err(wrong("", WANTED)),
        None => {}
    }
    Ok(said.reading)
}

fn understand(word: &str, words: &mut Words) -> bool {
    match word.to_ascii_lowercase().as_str() {
        "up" => words.is_up = Some(true),
        "down" | "fail" | "failed" | "stopped" => words.is_up = Some(false),
        "ready" => words.administrative = Some(Administrative::Ready),
        "drain" => words.administrative = Some(Administrative::Drain),
        "maint" => words.administrative = Some(Administrative::Maintenance),
        lower => {
            if let Some(number) = lower.strip_prefix("maxconn:") {
                let Ok(number) = number.parse() else { return false };
                words.most_connections = Some(number);
            } else if let Some(percent) = lower.strip_suffix('%') {
                let percent = percent.strip_prefix("weight:").unwrap_or(percent);
                if !percent.bytes().all(|byte| byte.is_ascii_digit()) {
                    return false;
                }
                let Ok(percent) = percent.parse::<f64>() else { return false };
                words.weight = Some((percent / 100.0).min(LARGEST_SHARE));
            } else {
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(line: &str) -> Words {
        let reading = read(line, true).expect("a line of ours");
        assert_eq!(reading.value, None, "{line}");
        reading.words
    }

    #[test]
    fn the_line_of_haproxys_own_test() {
        let wanted = Words {
            weight: Some(0.75),
            most_connections: Some(30),
            administrative: Some(Administrative::Maintenance),
            is_up: Some(false),
        };
        for line in [
            "75%,maxconn:30,maint,down\n",
            "down maint\tmaxconn:30 75%\r\n",
            " ,, DOWN,Maint  MAXCONN:30\tweight:75% # the disk is full, up again at ten\n",
        ] {
            assert_eq!(words(line), wanted, "{line}");
        }
    }

    #[test]
    fn each_word() {
        let none = Words::default();
        for (line, wanted) in [
            ("up", Words { is_up: Some(true), ..none }),
            ("down", Words { is_up: Some(false), ..none }),
            ("fail", Words { is_up: Some(false), ..none }),
            ("failed", Words { is_up: Some(false), ..none }),
            ("stopped#by hand", Words { is_up: Some(false), ..none }),
            ("ready", Words { administrative: Some(Administrative::Ready), ..none }),
            ("drain", Words { administrative: Some(Administrative::Drain), ..none }),
            ("maint", Words { administrative: Some(Administrative::Maintenance), ..none }),
            ("0%", Words { weight: Some(0.0), ..none }),
            ("150%", Words { weight: Some(1.5), ..none }),
            ("99999999999999999999%", Words { weight: Some(256.0), ..none }),
            ("maxconn:0", Words { most_connections: Some(0), ..none }),
        ] {
            assert_eq!(words(line), wanted, "{line}");
        }
    }

    #[test]
    fn of_two_words_of_a_kind_the_last_counts() {
        let said = words("up,10%,drain,maxconn:1,down,20%,ready,maxconn:2");
        let wanted = Words {
            weight: Some(0.2),
            most_connections: Some(2),
            administrative: Some(Administrative::Ready),
            is_up: Some(false),
        };
        assert_eq!(said, wanted);
    }

    #[test]
    fn only_the_first_line_counts() {
        assert_eq!(words("up\ndown\n"), Words { is_up: Some(true), ..Words::default() });
        assert_eq!(words("up\rdown\n"), Words { is_up: Some(true), ..Words::default() });
    }

    #[test]
    fn a_number_is_the_value() {
        let reading = read("12.5 up 50%", true).expect("a line of ours");
        assert_eq!((reading.value, reading.words.is_up), (Some(12.5), Some(true)));
        assert_eq!(read("-3e2\n", true).expect("a number").value, Some(-300.0));
    }

    #[test]
    fn what_is_not_finite_is_no_value() {
        for line in ["NaN", "up inf", "-Infinity", "1e999"] {
            let failure = read(line, true).expect_err(line);
            assert!(matches!(failure, Failure::Answer { .. }), "{failure}");
        }
    }

    #[test]
    fn unknown_words_do_no_harm_beside_known_ones() {
        let said = parse("75%,agitated,up").expect("a line");
        assert_eq!((said.known, said.unknown), (2, Some("agitated")));
        assert_eq!(read("12 agitated up", true).expect("a line").value, Some(12.0));
        for line in [
            "HTTP/1.1 200 OK",
            "5 apples",
            "agitated",
            "50percent",
            "%",
            "maxconn:",
            "maxconn:-1",
            "-5%",
            "1.5%",
            "+5%",
        ] {
            let failure = read(line, true).expect_err(line);
            assert!(failure.to_string().contains(WANTED), "{failure}");
        }
    }

    #[test]
    fn nothing_is_told_apart_from_a_comment_where_that_matters() {
        for line in ["", "\n", "  # all is well", "#"] {
            assert_eq!(read(line, false).expect("HAProxy takes it"), Reading::default());
            assert!(read(line, true).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text: String) {
            if let Ok(reading) = read(&text, true) {
                prop_assert!(reading.value.is_none_or(f64::is_finite));
                prop_assert!(reading.words.weight.is_none_or(|share| (0.0..=256.0).contains(&share)));
            }
        }

        #[test]
        fn any_words_in_any_order_mean_the_same(
            order in Just(vec!["75%", "maxconn:30", "maint", "down", "7"]).prop_shuffle(),
            separators in prop::collection::vec("[ \t,]{1,3}", 5),
        ) {
            let line: String = order.iter().zip(&separators).flat_map(|(a, b)| [a, b.as_str()]).collect();
            prop_assert_eq!(read(&line, true), read("75%,maxconn:30,maint,down 7", true));
        }
    }
}
