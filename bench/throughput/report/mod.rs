//! What was measured, and what is told of it. Pure: no clock, no files.

mod aims;
mod check;
mod html;
mod json;
mod svg;
mod table;

use aims::verdicts;
pub(crate) use check::check;
pub(crate) use html::html;
pub(crate) use json::json;
pub(crate) use svg::svg;
pub(crate) use table::{number, table};

/// Client and server on one cable, in words.
const NO_DIRECTOR: &str = "no director";

/// All of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    /// UTC.
    pub(crate) date: String,
    /// What to type for it.
    pub(crate) command: String,
    /// Kernel, processor, …: name and value.
    pub(crate) machine: Vec<(String, String)>,
    /// How many times each subject had its turn.
    pub(crate) rounds: usize,
    /// What a reader has to know.
    pub(crate) notes: Vec<String>,
    pub(crate) scenes: Vec<Scene>,
}

/// One network, and who was measured in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scene {
    pub(crate) name: String,
    /// Its way, for the reader.
    pub(crate) path: String,
    pub(crate) subjects: Vec<Told>,
    pub(crate) rows: Vec<Row>,
}

/// A subject, for the reader.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Told {
    pub(crate) name: String,
    /// What it is, and with which settings.
    pub(crate) what: String,
}

/// One figure of each subject.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// Unique in its scene.
    pub(crate) id: String,
    /// Rows of one panel are shown together.
    pub(crate) panel: String,
    /// Which one of the panel; empty for its bars.
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) shown: Shown,
    /// Is more better?
    pub(crate) is_more_better: bool,
    /// In the order of the subjects.
    pub(crate) cells: Vec<Cell>,
    /// With no director between: the median.
    pub(crate) ceiling: Option<f64>,
}

/// How a row is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Bar,
    /// In words, beside the bar of its panel.
    Beside,
    /// One point of several on a line.
    Point,
}

/// What a subject reached: a value a round, or why there is none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
    Values(Vec<f64>),
    Missing(String),
}

impl Cell {
    pub(crate) fn median(&self) -> Option<f64> {
        match self {
            Cell::Values(values) => median(values),
            Cell::Missing(_) => None,
        }
    }

    /// Least and greatest.
    pub(crate) fn spread(&self) -> Option<(f64, f64)> {
        let Cell::Values(values) = self else { return None };
        let least = values.iter().copied().reduce(f64::min)?;
        Some((least, values.iter().copied().reduce(f64::max)?))
    }
}

impl Row {
    /// A subject's median over that of the first subject. Of what is lost there is none: next to nothing is no measure.
    pub(crate) fn ratio(&self, subject: usize) -> Option<f64> {
        if self.shown == Shown::Beside {
            return None;
        }
        let first = self.cells.first()?.median().filter(|first| *first > 0.0)?;
        Some(self.cells.get(subject)?.median()? / first)
    }
}

impl Scene {
    /// Panels in order, each with its rows.
    pub(crate) fn panels(&self) -> Vec<(&str, Vec<&Row>)> {
        let mut panels: Vec<(&str, Vec<&Row>)> = Vec::new();
        for row in &self.rows {
            match panels.iter_mut().find(|(title, _)| *title == row.panel) {
                Some((_, rows)) => rows.push(row),
                None => panels.push((&row.panel, vec![row])),
            }
        }
        panels
    }

    /// Is it generator or sink, and not the subject, that a figure tells of? They are where nothing is lost of what is sent without a
    /// limit, and where there is hardly more with no director between.
    pub(crate) fn is_generators(&self, row: &Row, subject: usize) -> bool {
        let median = |row: &Row| row.cells.get(subject).and_then(Cell::median);
        let Some(reached) = median(row).filter(|_| row.is_more_better && row.shown == Shown::Bar)
        else {
            return false;
        };
        let lost = self.rows.iter().find(|other| other.panel == row.panel && other.name == "lost");
        lost.and_then(median).is_some_and(|lost| lost < 1.0)
            || row.ceiling.is_some_and(|ceiling| reached >= 0.9 * ceiling)
    }

    /// A subject's place.
    pub(crate) fn place(&self, subject: &str) -> Option<usize> {
        self.subjects.iter().position(|told| told.name == subject)
    }
}

/// The middle one; of two, what is between them.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len() % 2 == 1 { upper } else { (upper + sorted[sorted.len() / 2 - 1]) / 2.0 })
}

/// Text as XML takes it.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            letter if letter.is_control() && letter != '\n' => escaped.push(' '),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn row(id: &str, cells: Vec<Cell>) -> Row {
        Row {
            id: id.to_owned(),
            panel: format!("panel <{id}>"),
            name: String::new(),
            unit: "Gbit/s".to_owned(),
            shown: Shown::Bar,
            is_more_better: true,
            cells,
            ceiling: Some(30.0),
        }
    }

    /// A scene with three subjects, the last of which is missing.
    pub(crate) fn report() -> Report {
        let told = |name: &str| Told { name: name.to_owned(), what: format!("{name} & more") };
        let missing = || Cell::Missing("\"x\" is not installed".to_owned());
        let values = |values: &[f64]| Cell::Values(values.to_vec());
        let rows = vec![
            row("tcp1-up", vec![values(&[20.0, 10.0, 30.0]), values(&[18.0, 19.0]), missing()]),
            Row {
                id: "lost".to_owned(),
                name: "lost".to_owned(),
                panel: "panel <tcp1-up>".to_owned(),
                unit: "%".to_owned(),
                shown: Shown::Beside,
                is_more_better: false,
                ceiling: None,
                ..row("", vec![values(&[0.0]), values(&[12.5]), missing()])
            },
            Row {
                shown: Shown::Point,
                name: "p50".to_owned(),
                unit: "µs".to_owned(),
                ..row("rtt", vec![values(&[50.0]), values(&[70.0]), missing()])
            },
            Row {
                shown: Shown::Point,
                name: "max".to_owned(),
                unit: "µs".to_owned(),
                panel: "panel <rtt>".to_owned(),
                ..row("rtt-max", vec![values(&[900.0]), values(&[5000.0]), missing()])
            },
        ];
        let subjects = vec![told("nftables"), told("vipa nat"), told("HAProxy")];
        let path = "client → director".to_owned();
        Report {
            date: "2026-01-02".to_owned(),
            command: "cargo bench".to_owned(),
            machine: vec![("processor".to_owned(), "two <of a kind>".to_owned())],
            rounds: 3,
            notes: vec!["a & b".to_owned()],
            scenes: vec![Scene { name: "balance".to_owned(), path, subjects, rows }],
        }
    }

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_ratio_is_that_of_the_medians_to_the_first() {
        let row = row("a", vec![Cell::Values(vec![9.0, 10.0, 90.0]), Cell::Values(vec![5.0])]);
        assert_eq!(row.ratio(0), Some(1.0));
        assert_eq!(row.ratio(1), Some(0.5));
        assert_eq!(row.ratio(2), None);
    }

    #[test]
    fn there_is_no_ratio_to_what_is_missing_or_zero() {
        let missing = Cell::Missing("not there".to_owned());
        let value = || Cell::Values(vec![5.0]);
        assert_eq!(row("a", vec![missing, value()]).ratio(1), None);
        assert_eq!(row("a", vec![Cell::Values(vec![0.0]), value()]).ratio(1), None);
    }

    #[test]
    fn spread_is_the_least_and_the_greatest() {
        assert_eq!(Cell::Values(vec![3.0, 1.0, 2.0]).spread(), Some((1.0, 3.0)));
        assert_eq!(Cell::Missing(String::new()).spread(), None);
    }

    #[test]
    fn what_loses_nothing_or_is_near_the_ceiling_is_the_generators_figure() {
        let mut scene = report().scenes.remove(0);
        let found = |scene: &Scene| [0, 1, 2].map(|at| scene.is_generators(&scene.rows[0], at));
        assert_eq!(found(&scene), [true, false, false], "the first loses nothing");
        scene.rows[0].ceiling = Some(20.0);
        assert_eq!(found(&scene), [true, true, false], "18.5 of 20");
        assert!(!scene.is_generators(&scene.rows[2], 0), "a time is no throughput");
    }

    #[test]
    fn rows_of_one_panel_are_together() {
        let report = report();
        let panels = report.scenes[0].panels();
        let sizes: Vec<usize> = panels.iter().map(|(_, rows)| rows.len()).collect();
        assert_eq!(sizes, [2, 2]);
    }
}
