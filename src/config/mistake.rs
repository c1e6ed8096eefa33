//! What is wrong in a configuration file, and where: collected while it is read, told all at once.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::secret;

/// A place in the file, what stands there and what should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was found.
    pub found: String,
    /// What would be right.
    pub wanted: String,
    /// Bytes of the file, as far as they lie in that line.
    span: Range<usize>,
    /// Where that line begins.
    line_start: usize,
}

/// Why a configuration cannot be used.
#[derive(Debug)]
pub enum Errors {
    /// The file cannot be read.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It holds mistakes: all of them, in the order of the file.
    Mistakes(Report),
}

impl Errors {
    /// The mistakes; none if the file could not be read.
    pub fn mistakes(&self) -> &[Mistake] {
        match self {
            Errors::Unreadable { .. } => &[],
            Errors::Mistakes(report) => &report.mistakes,
        }
    }

    /// For a reader at a terminal, if `is_coloured`.
    pub fn render(&self, is_coloured: bool) -> String {
        match self {
            Errors::Unreadable { path, source } => {
                format!("error: {} cannot be read: {source}", path.display())
            }
            Errors::Mistakes(report) => report.render(Level::ERROR, is_coloured),
        }
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Errors {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Errors::Unreadable { source, .. } => Some(source),
            Errors::Mistakes(_) => None,
        }
    }
}

/// Something that is allowed but surely not meant.
#[derive(Clone, Debug)]
pub struct Warning(Report);

impl Warning {
    /// What and where.
    pub fn mistake(&self) -> &Mistake {
        &self.0.mistakes[0]
    }

    /// For a reader at a terminal, if `is_coloured`.
    pub fn render(&self, is_coloured: bool) -> String {
        self.0.render(Level::WARNING, is_coloured)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// Mistakes with the file they are in.
#[derive(Clone, Debug)]
pub struct Report {
    path: PathBuf,
    text: std::sync::Arc<str>,
    mistakes: Vec<Mistake>,
}

impl Report {
    fn render(&self, level: Level<'static>, is_coloured: bool) -> String {
        let renderer = if is_coloured { Renderer::styled() } else { Renderer::plain() };
        let path = self.path.to_string_lossy();
        let rendered = self.mistakes.iter().map(|mistake| {
            let line_start = mistake.line_start;
            let line = self.text[line_start..].lines().next().unwrap_or_default();
            let span = mistake.span.start - line_start..mistake.span.end - line_start;
            let label = AnnotationKind::Primary.span(span).label(&mistake.wanted);
            let snippet =
                Snippet::source(line).line_start(mistake.line).path(&*path).annotation(label);
            renderer.render(&[level.clone().primary_title(&mistake.found).element(snippet)])
        });
        rendered.collect::<Vec<_>>().join("\n\n")
    }
}

/// Collects mistakes and warnings while a file is read.
#[derive(Debug)]
pub(super) struct Mistakes<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
    errors: Vec<Mistake>,
    warnings: Vec<Mistake>,
    /// Bytes of the file that no report shows.
    hidden: Vec<Range<usize>>,
}

impl<'a> Mistakes<'a> {
    pub(super) fn new(text: &'a str) -> Mistakes<'a> {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(newlines.map(|(at, _)| at + 1)).collect();
        let (errors, warnings, hidden) = (Vec::new(), Vec::new(), Vec::new());
        Mistakes { text, line_starts, errors, warnings, hidden }
    }

    /// Of these bytes no report is to show anything.
    pub(super) fn hide(&mut self, bytes: impl IntoIterator<Item = Range<usize>>) {
        self.hidden.extend(bytes);
    }

    /// `found` at `span` is wrong; `wanted` would be right.
    pub(super) fn error(
        &mut self,
        span: Range<usize>,
        found: impl Into<String>,
        wanted: impl Into<String>,
    ) {
        let mistake = self.mistake(span, found.into(), wanted.into());
        self.errors.push(mistake);
    }

    /// `found` at `span` is allowed but surely not meant; `why`.
    pub(super) fn warn(
        &mut self,
        span: Range<usize>,
        found: impl Into<String>,
        why: impl Into<String>,
    ) {
        let mistake = self.mistake(span, found.into(), why.into());
        self.warnings.push(mistake);
    }

    /// The line, from 1, that `offset` lies in.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// Line and column, from 1, of `offset`; the column in characters.
    pub(super) fn place(&self, offset: usize) -> (usize, usize) {
        let offset = floor_boundary(self.text, offset);
        let line = self.line(offset);
        (line, 1 + self.text[self.line_starts[line - 1]..offset].chars().count())
    }

    /// Where byte `at` of `string` stands, which is the value at `span`; all of it, where escapes hide that.
    pub(super) fn within(&self, span: Range<usize>, string: &str, at: usize) -> Range<usize> {
        let written = self.text.get(span.clone()).and_then(|source| source.find(string));
        let Some(begin) = written.filter(|_| !string.is_empty()) else { return span };
        let start = span.start + begin + at;
        // The end of the string is where its closing quote is.
        start..(start + 1).min(span.end)
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// How many were found so far.
    pub(super) fn errors(&self) -> usize {
        self.errors.len()
    }

    /// The warnings, or every error.
    pub(super) fn finish(self, path: &Path) -> Result<Vec<Warning>, Errors> {
        let text: std::sync::Arc<str> = secret::hide(self.text, &self.hidden).into();
        let report = |mut mistakes: Vec<Mistake>| {
            mistakes.sort_by_key(|mistake| mistake.span.start);
            Report { path: path.to_owned(), text: text.clone(), mistakes }
        };
        if !self.errors.is_empty() {
            return Err(Errors::Mistakes(report(self.errors)));
        }
        let mut warnings = self.warnings;
        warnings.sort_by_key(|warning| warning.span.start);
        Ok(warnings.into_iter().map(|warning| Warning(report(vec![warning]))).collect())
    }

    fn mistake(&self, span: Range<usize>, found: String, wanted: String) -> Mistake {
        let start = floor_boundary(self.text, span.start);
        let line = self.line(start);
        let line_start = self.line_starts[line - 1];
        let line_end = line_start + self.text[line_start..].lines().next().map_or(0, str::len);
        let shown = start.min(line_end);
        let end = floor_boundary(self.text, span.end.min(line_end)).max(shown);
        Mistake {
            line,
            column: self.place(start).1,
            found: single_line(&found),
            wanted: single_line(&wanted),
            span: shown..end,
            line_start,
        }
    }
}

/// Text of the file goes into messages: nothing in it may break the line or move the cursor.
fn single_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

fn floor_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}
