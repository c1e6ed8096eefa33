//! rfc2453.toml and rfc2080.toml: what they name is there. A function that is renamed, a test that goes, makes these fail.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::folder;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    sentence: Vec<Sentence>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sentence {
    section: String,
    text: String,
    /// What obeys it, "file: name".
    #[serde(default)]
    code: Vec<String>,
    /// What shows that, "file: name".
    #[serde(default)]
    test: Vec<String>,
    /// Why that is all there is.
    why: Option<String>,
}

/// The tables, and the sections that have such sentences.
const TABLES: [(&str, &[&str]); 2] = [
    (
        "rfc2453.toml",
        &[
            "3.5", "3.6", "3.7", "3.8", "3.9.1", "3.9.2", "3.10", "3.10.1", "3.10.2", "4.1", "4.2",
            "4.3", "4.4", "4.5", "4.6",
        ],
    ),
    ("rfc2080.toml", &["2.3", "2.4.1", "2.4.2", "2.5", "2.5.1", "2.5.2", "2.6"]),
];

fn sentences(table: &str) -> Vec<Sentence> {
    let text = fs::read_to_string(folder().join(table)).expect(table);
    let document: Document = toml::from_str(&text).unwrap_or_else(|e| panic!("{table}: {e}"));
    document.sentence
}

/// Reads a source file once.
#[derive(Default)]
struct Sources(BTreeMap<String, String>);

impl Sources {
    /// The file and the name that "file: name" names.
    fn open<'a>(&mut self, reference: &'a str) -> (&str, &'a str) {
        let (file, name) = reference.split_once(": ").unwrap_or_else(|| panic!("{reference:?}"));
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let read = || fs::read_to_string(path).unwrap_or_else(|e| panic!("{reference}: {e}"));
        (self.0.entry(file.to_owned()).or_insert_with(read), name)
    }

    /// Is there a function, type or constant of that name?
    fn defines(&mut self, reference: &str) -> bool {
        let (source, name) = self.open(reference);
        let is_whole = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        ["fn ", "struct ", "enum ", "const "].iter().any(|kind| {
            let definition = format!("{kind}{name}");
            source
                .match_indices(&definition)
                .any(|(at, _)| is_whole(&source[at + definition.len()..]))
        })
    }

    /// Is it a test that runs?
    fn tests(&mut self, reference: &str) -> bool {
        let (source, name) = self.open(reference);
        let lines: Vec<&str> = source.lines().map(str::trim).collect();
        let definition = format!("fn {name}() {{");
        let at = lines.iter().position(|line| *line == definition);
        at.is_some_and(|at| at > 0 && lines[at - 1] == "#[test]")
    }
}

#[test]
fn every_sentence_has_code_and_a_test_that_exist_or_a_reason() {
    let mut sources = Sources::default();
    for (table, _) in TABLES {
        for sentence in sentences(table) {
            let place = format!("{table}, {}: {}", sentence.section, sentence.text);
            let is_shown = !sentence.code.is_empty() && !sentence.test.is_empty();
            assert!(is_shown || sentence.why.is_some(), "{place}");
            assert_eq!(sentence.code.is_empty(), sentence.test.is_empty(), "{place}");
            for code in &sentence.code {
                assert!(sources.defines(code), "{code} is not there\n{place}");
            }
            for test in &sentence.test {
                assert!(sources.tests(test), "{test} is no test\n{place}");
            }
        }
    }
}

#[test]
fn the_tables_have_each_section_in_the_order_of_the_text_and_each_sentence_once() {
    for (table, sections) in TABLES {
        let sentences = sentences(table);
        let mut found: Vec<&str> = sentences.iter().map(|s| s.section.as_str()).collect();
        found.dedup();
        assert_eq!(found, sections, "{table}");
        let mut texts: Vec<(&str, &str)> =
            sentences.iter().map(|s| (s.section.as_str(), s.text.as_str())).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), sentences.len(), "{table}: one is there twice");
        for sentence in &sentences {
            let lower = sentence.text.to_lowercase();
            let mut words = lower.split(|c: char| !c.is_alphabetic());
            let speaks = words.any(|word| ["must", "should", "may"].contains(&word));
            assert!(speaks, "{table}: {}", sentence.text);
        }
    }
    // As many as the text has; two drawings in section 3.6 of RFC 2453 name bytes that are zero, as sentences of section 4 do.
    assert_eq!(TABLES.map(|(table, _)| sentences(table).len()), [78, 41]);
}
