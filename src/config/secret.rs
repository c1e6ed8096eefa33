//! What no report may show: the values of secrets, of what may be meant as one, and whatever stands beside a syntax error where one
//! could be.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::reader::nearest;

/// Of a key's table the values that may be shown.
const PLAIN: [&str; 4] = ["id", "algorithm", "from", "until"];

/// Bytes of the file that hold them.
pub(super) fn of_document(document: &DeTable<'_>) -> Vec<Range<usize>> {
    let mut hidden = Vec::new();
    walk(document, false, &mut hidden);
    hidden
}

fn walk(table: &DeTable<'_>, is_of_key: bool, hidden: &mut Vec<Range<usize>>) {
    for (key, value) in table {
        let name: &str = key.get_ref();
        if is_secret(name) || is_of_key && !PLAIN.contains(&name) {
            hidden.push(value.span());
            continue;
        }
        let is_key = name.starts_with("key");
        match value.get_ref() {
            DeValue::Table(inner) => walk(inner, is_key, hidden),
            DeValue::Array(elements) => {
                let tables = elements.iter().filter_map(|element| element.get_ref().as_table());
                tables.for_each(|inner| walk(inner, is_key, hidden));
            }
            _ => {}
        }
    }
}

/// Bytes of the line at `offset` of a file that is no TOML there.
pub(super) fn of_line(text: &str, offset: usize) -> Range<usize> {
    let offset = offset.min(text.len());
    let (before, _) = text.as_bytes().split_at(offset);
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let rest = text.get(start..).unwrap_or_default();
    let line = rest.lines().next().unwrap_or_default();
    let above = text.get(..start).unwrap_or_default();
    let header = above.lines().rev().find(|line| line.trim_start().starts_with('['));
    let is_of_key = header.is_some_and(|header| header.contains("key"));
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let names_one = line.split(|c| !is_word(c)).any(is_secret);
    if line.trim_start().starts_with('[') || !is_of_key && !names_one {
        return start..start;
    }
    let value = line.find('=').map_or(0, |at| at + 1);
    start + value..start + line.len()
}

fn is_secret(name: &str) -> bool {
    name.contains("secret") || nearest(name, &["secret", "password"]).is_some()
}

/// `text` with stars over `hidden`: every line and every byte of the rest stays where it is.
pub(super) fn hide(text: &str, hidden: &[Range<usize>]) -> String {
    let is_hidden = |at: usize| hidden.iter().any(|range| range.contains(&at));
    let mut shown = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        if is_hidden(at) && !c.is_whitespace() {
            shown.extend(std::iter::repeat_n('*', c.len_utf8()));
        } else {
            shown.push(c);
        }
    }
    shown
}
