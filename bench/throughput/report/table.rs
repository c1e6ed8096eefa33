//! The report as text: one table a scene.

use std::fmt::Write as _;

use super::{Cell, NO_DIRECTOR, Report, Row, verdicts};

/// Tables, aims, notes.
pub(crate) fn table(report: &Report) -> String {
    let mut text = String::new();
    for scene in &report.scenes {
        let _ = writeln!(text, "\n{}: {}", scene.name, scene.path);
        let name = scene.subjects.iter().map(|told| told.name.chars().count()).max();
        let width = name.unwrap_or(0) + 2;
        for row in &scene.rows {
            let name = if row.name.is_empty() { String::new() } else { format!(", {}", row.name) };
            let _ = writeln!(text, "  {}{name} ({})", row.panel, row.unit);
            for (at, told) in scene.subjects.iter().enumerate() {
                let is_limit = scene.is_generators(row, at);
                let limit = if is_limit { "  (generator or sink is the limit)" } else { "" };
                let _ = writeln!(text, "    {:<width$}{}{}", told.name, line(row, at), limit);
            }
            if let Some(ceiling) = row.ceiling {
                let _ = writeln!(text, "    {:<width$}{:>9}", NO_DIRECTOR, number(ceiling));
            }
        }
    }
    let verdicts = verdicts(report);
    if !verdicts.is_empty() {
        let _ = writeln!(text, "\naims");
    }
    for verdict in verdicts {
        let reached = match &verdict.reached {
            Some((value, true)) => format!("reached: {value}"),
            Some((value, false)) => format!("not reached: {value}"),
            None => "not measured".to_owned(),
        };
        let (work, who, aim) = (verdict.work, verdict.who, verdict.aim);
        let limits = Some(verdict.limits).filter(|limits| !limits.is_empty());
        let limits = limits.map_or(String::new(), |limits| format!(" ({limits})"));
        let _ = writeln!(text, "  {work}; {who}: {aim}; {reached}{limits}");
    }
    let _ = writeln!(text);
    for note in &report.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

fn line(row: &Row, at: usize) -> String {
    match row.cells.get(at) {
        Some(cell @ Cell::Values(_)) => {
            let (median, (least, most)) =
                (cell.median().unwrap_or(0.0), cell.spread().unwrap_or_default());
            let ratio = row.ratio(at).map_or(String::new(), |ratio| format!("× {ratio:.2}"));
            let spread = format!("{} – {}", number(least), number(most));
            format!("{:>9}  {spread:>19}  {ratio}", number(median))
        }
        Some(Cell::Missing(why)) => format!("    –  {why}"),
        None => String::new(),
    }
}

/// Three digits that matter.
pub(crate) fn number(value: f64) -> String {
    let whole = value.abs();
    if whole >= 1e6 {
        format!("{:.2} M", value / 1e6)
    } else if whole >= 1e4 {
        format!("{:.1} k", value / 1e3)
    } else if whole >= 100.0 {
        format!("{value:.0}")
    } else if whole >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_so() {
        let told = [0.0, 1.234, 12.34, 123.4, 1234.0, 12_345.0, 1_234_567.0].map(number);
        assert_eq!(told, ["0.00", "1.23", "12.3", "123", "1234", "12.3 k", "1.23 M"]);
    }

    #[test]
    fn each_subject_has_its_median_spread_and_ratio_or_why_there_is_none() {
        let text = table(&report());
        let line = |what: &str| text.lines().find(|line| line.contains(what)).unwrap_or_default();
        let words: Vec<&str> = line("vipa nat").split_whitespace().collect();
        assert_eq!(words, ["vipa", "nat", "18.5", "18.0", "–", "19.0", "×", "0.93"]);
        assert!(line("HAProxy").ends_with("\"x\" is not installed"), "{text}");
        assert!(line("no director").ends_with("30.0"), "{text}");
    }
}
