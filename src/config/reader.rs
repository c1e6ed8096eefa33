//! Reads a TOML table key by key and goes on after a mistake, so that all mistakes of a file are found
//! in one go (serde stops at its first).

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use serde_spanned::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::mistake::Mistakes;

/// A value and where it stands.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;
/// Bytes of the file.
pub(super) type Span = Range<usize>;

/// One table. Each key is taken by name; [`Table::finish`] complains of those that nobody asked for.
#[derive(Debug)]
pub(super) struct Table<'t> {
    entries: &'t DeTable<'t>,
    span: Span,
    title: &'static str,
    known: Vec<&'static str>,
}

impl<'t> Table<'t> {
    /// The table `title` of the file; `span` is where it begins.
    pub(super) fn new(entries: &'t DeTable<'t>, span: Span, title: &'static str) -> Table<'t> {
        Table { entries, span, title, known: Vec::new() }
    }

    /// `value` as a table, or a complaint.
    pub(super) fn of(
        value: &'t Value<'t>,
        title: &'static str,
        mistakes: &mut Mistakes<'_>,
    ) -> Option<Table<'t>> {
        match value.get_ref() {
            DeValue::Table(entries) => Some(Table::new(entries, value.span(), title)),
            other => {
                mistakes.error(value.span(), is_a(title, other), format!("a table: {title}"));
                None
            }
        }
    }

    /// The tables of `[[title]]`, or a complaint; none where `value` is left out.
    pub(super) fn all_of(
        value: Option<&'t Value<'t>>,
        title: &'static str,
        mistakes: &mut Mistakes<'_>,
    ) -> Vec<Table<'t>> {
        let Some(value) = value else { return Vec::new() };
        match value.get_ref() {
            DeValue::Array(elements) => {
                elements.iter().filter_map(|element| Table::of(element, title, mistakes)).collect()
            }
            other => {
                // `[[service.status]]` makes a table of `service` where no `[[service]]` stands before it.
                let is_list = |value: &Value<'_>| value.get_ref().is_array() && is_headed(value);
                let part = other.as_table().and_then(|table| table.iter().find(|of| is_list(of.1)));
                let found = match part {
                    Some((part, _)) => {
                        let name = title.trim_matches(['[', ']']);
                        format!("`{name}.{}` stands before any {title}", part.get_ref())
                    }
                    None => is_a(title, other),
                };
                let wanted = format!("{title}, with two brackets, once for each");
                mistakes.error(value.span(), found, wanted);
                Vec::new()
            }
        }
    }

    /// Where the table begins.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// The value of `key`, if it is there.
    pub(super) fn get(&mut self, key: &'static str) -> Option<&'t Value<'t>> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.entries.get(key)
    }

    /// Where `key` stands, or the table if it is left out.
    pub(super) fn key_span(&self, key: &str) -> Span {
        self.entries.get_key_value(key).map_or(self.span(), |(key, _)| key.span())
    }

    /// Where the value of `key` stands, or the table if it is left out.
    pub(super) fn value_span(&mut self, key: &'static str) -> Span {
        self.get(key).map_or(self.span(), Value::span)
    }

    /// The value of `key`, or a complaint that it is missing.
    pub(super) fn required(
        &mut self,
        key: &'static str,
        wanted: &str,
        mistakes: &mut Mistakes<'_>,
    ) -> Option<&'t Value<'t>> {
        let value = self.get(key);
        if value.is_none() {
            let found = format!("{} has no `{key}`", self.title);
            mistakes.error(self.span(), found, format!("`{key}`: {wanted}"));
        }
        value
    }

    /// A whole number within `range`, or `default` where it is left out or wrong.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u32>,
        default: u32,
        mistakes: &mut Mistakes<'_>,
    ) -> u32 {
        let Some(value) = self.get(key) else { return default };
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let DeValue::Integer(integer) = value.get_ref() else {
            mistakes.error(value.span(), is_a(key, value.get_ref()), wanted);
            return default;
        };
        match self::integer(integer) {
            Some(number) if range.contains(&number) => number,
            _ => {
                mistakes.error(value.span(), format!("`{key}` is {integer}"), wanted);
                default
            }
        }
    }

    /// `true` or `false`, or `default` where it is left out or wrong.
    pub(super) fn boolean(
        &mut self,
        key: &'static str,
        default: bool,
        mistakes: &mut Mistakes<'_>,
    ) -> bool {
        let Some(value) = self.get(key) else { return default };
        match value.get_ref() {
            DeValue::Boolean(answer) => *answer,
            other => {
                mistakes.error(value.span(), is_a(key, other), "true or false");
                default
            }
        }
    }

    /// A length of time within `range`, or `default` where it is left out or wrong.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
        default: Duration,
        mistakes: &mut Mistakes<'_>,
    ) -> Duration {
        let Some(value) = self.get(key) else { return default };
        let (shortest, longest) = (show_duration(*range.start()), show_duration(*range.end()));
        let wanted = format!(
            "a time from {shortest} to {longest}, in quotes, whole, and with its unit: \"200ms\", \"3s\", \"1m\""
        );
        let Some(text) = string(value, key, &wanted, mistakes) else { return default };
        match parse_duration(text) {
            Some(duration) if range.contains(&duration) => duration,
            _ => {
                mistakes.error(value.span(), format!("`{key}` is {text:?}"), wanted);
                default
            }
        }
    }

    /// One of `words`, or the first of them where it is left out or wrong.
    pub(super) fn one_of(
        &mut self,
        key: &'static str,
        words: &[&'static str],
        mistakes: &mut Mistakes<'_>,
    ) -> &'static str {
        let default = words.first().copied().unwrap_or_default();
        let Some(value) = self.get(key) else { return default };
        let wanted = list_of(words);
        let Some(text) = string(value, key, &wanted, mistakes) else { return default };
        words.iter().copied().find(|word| *word == text).unwrap_or_else(|| {
            mistakes.error(value.span(), format!("`{key}` is {text:?}"), wanted);
            default
        })
    }

    /// Text, or a complaint that there is none, and where it stands.
    pub(super) fn required_text(
        &mut self,
        key: &'static str,
        wanted: &str,
        mistakes: &mut Mistakes<'_>,
    ) -> Option<(String, Span)> {
        let value = self.required(key, wanted, mistakes)?;
        Some((string(value, key, wanted, mistakes)?.to_owned(), value.span()))
    }

    /// Text that is not empty; `None` where it is left out.
    pub(super) fn text(
        &mut self,
        key: &'static str,
        wanted: &str,
        mistakes: &mut Mistakes<'_>,
    ) -> Option<String> {
        let value = self.get(key)?;
        let text = string(value, key, wanted, mistakes)?;
        if text.is_empty() {
            mistakes.error(value.span(), format!("`{key}` is empty"), wanted);
            return None;
        }
        Some(text.to_owned())
    }

    /// A table of texts, with where each stands.
    pub(super) fn pairs(
        &mut self,
        key: &'static str,
        wanted: &str,
        mistakes: &mut Mistakes<'_>,
    ) -> Vec<(String, String, Span)> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let DeValue::Table(entries) = value.get_ref() else {
            mistakes.error(value.span(), is_a(key, value.get_ref()), wanted);
            return Vec::new();
        };
        let mut pairs = Vec::new();
        for (name, value) in entries {
            let name_text: &str = name.get_ref();
            if let Some(text) = string(value, name_text, wanted, mistakes) {
                pairs.push((name_text.to_owned(), text.to_owned(), name.span()));
            }
        }
        pairs
    }

    /// Complains of every key that was never asked for.
    pub(super) fn finish(self, mistakes: &mut Mistakes<'_>) {
        for (key, value) in self.entries {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let elsewhere = if is_headed(value) { titles_of(name) } else { String::new() };
            let wanted = match nearest(name, &self.known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None if !elsewhere.is_empty() => format!("did you mean {elsewhere}?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            mistakes.error(key.span(), format!("{} has no key `{name}`", self.title), wanted);
        }
    }
}

/// Tables whose names alone do not say where they belong.
const TITLES: [&str; 12] = [
    "[[nic]]",
    "[[source.rule]]",
    "[[service]]",
    "[[service.status]]",
    "[[service.server]]",
    "[rip]",
    "[[rip.nic]]",
    "[[rip.key]]",
    "[path]",
    "[path.bfd]",
    "[path.bfd.key]",
    "[[replay.nic]]",
];

/// The tables of this name, wherever they belong; empty: there is none.
fn titles_of(name: &str) -> String {
    let is_it = |title: &&str| title.trim_matches(['[', ']']).rsplit('.').next() == Some(name);
    TITLES.into_iter().filter(is_it).collect::<Vec<_>>().join(" or ")
}

/// Is it a table, or several, as a header begins one?
fn is_headed(value: &Value<'_>) -> bool {
    match value.get_ref() {
        DeValue::Table(_) => true,
        DeValue::Array(elements) => {
            !elements.is_empty() && elements.iter().all(|element| element.get_ref().is_table())
        }
        _ => false,
    }
}

/// The number, if it is one of 32 bits.
pub(super) fn integer(integer: &DeInteger<'_>) -> Option<u32> {
    let parsed = i128::from_str_radix(integer.as_str(), integer.radix());
    parsed.ok().and_then(|number| u32::try_from(number).ok())
}

/// `value` as a string, or a complaint.
pub(super) fn string<'t>(
    value: &'t Value<'t>,
    key: &str,
    wanted: &str,
    mistakes: &mut Mistakes<'_>,
) -> Option<&'t str> {
    let text = value.get_ref().as_str();
    if text.is_none() {
        mistakes.error(value.span(), is_a(key, value.get_ref()), wanted);
    }
    text
}

/// `value` as a list of strings (with `or_one`: or one string), without those that are none; each has had
/// its complaint.
pub(super) fn strings<'t>(
    value: &'t Value<'t>,
    key: &str,
    wanted: &str,
    or_one: bool,
    mistakes: &mut Mistakes<'_>,
) -> Vec<(&'t str, Span)> {
    match value.get_ref() {
        DeValue::Array(elements) => elements
            .iter()
            .filter_map(|element| Some((string(element, key, wanted, mistakes)?, element.span())))
            .collect(),
        DeValue::String(text) if or_one => vec![(text, value.span())],
        other => {
            mistakes.error(value.span(), is_a(key, other), wanted);
            Vec::new()
        }
    }
}

/// ``"`weight` is a string"``.
pub(super) fn is_a(key: &str, value: &DeValue<'_>) -> String {
    let kind = value.type_str();
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    let quote = if key.starts_with('[') { "" } else { "`" };
    format!("{quote}{key}{quote} is {article} {kind}")
}

/// A time with its unit: `200ms`, `3s`, `1m`, `2h`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(milliseconds).map(Duration::from_millis)
}

fn show_duration(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{}ms", duration.as_millis()),
        seconds if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

fn list_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// The word that `typed` was likely meant to be.
pub(super) fn nearest(typed: &str, words: &[&'static str]) -> Option<&'static str> {
    if typed.len() > 32 {
        return None;
    }
    let typed = typed.to_ascii_lowercase().replace('_', "-");
    let allowed = 1 + typed.len() / 4;
    words
        .iter()
        .copied()
        .map(|word| (edits(&typed, word), word))
        .filter(|(distance, word)| *distance <= allowed && *distance < word.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Letters to insert, delete, replace or swap with their neighbour, from `a` to `b`.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    least = least.min(rows[i - 2][j - 2] + 1);
                }
                least
            };
        }
    }
    rows[a.len()][b.len()]
}
