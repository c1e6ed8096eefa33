//! The report as one picture: a panel a work, a bar a subject, a dot a round.

use std::fmt::Write as _;

use super::{Cell, Report, Row, Scene, Shown, escape, number};

const WIDTH: f64 = 1020.0;
const MARGIN: f64 = 20.0;
const PANEL: f64 = 478.0;
const GAP: f64 = 24.0;
/// Where bars begin within a panel, and how long the longest is.
const BARS: f64 = 128.0;
const LENGTH: f64 = 176.0;
const LINE: f64 = 22.0;
const HEAD: f64 = 30.0;
/// Of why there is no bar; the page has all of it.
const LETTERS: usize = 56;
/// What stands below the bars of a panel.
const FOOT: f64 = 20.0;

const STYLE: &str = "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:11.5px;fill:#1f2937}\
.h{font-size:17px;font-weight:650}.t{font-size:13px;font-weight:600}.m{fill:#6b7280}.e{text-anchor:end}\
.n{font-style:italic;fill:#9ca3af}.d{fill:#111827;fill-opacity:.55}.w{stroke:#111827;stroke-opacity:.55;stroke-width:1}\
.c{stroke:#b45309;stroke-width:1;stroke-dasharray:3 3}.g{stroke:#e5e7eb;stroke-width:1}";

/// A whole document; it asks for nothing from elsewhere.
pub(crate) fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = MARGIN;
    for scene in &report.scenes {
        let _ = writeln!(
            body,
            "<text class=\"h\" x=\"{MARGIN}\" y=\"{:.0}\">{}</text>\
             <text class=\"m\" x=\"{MARGIN}\" y=\"{:.0}\">{}</text>",
            y + 16.0,
            escape(&scene.name),
            y + 35.0,
            escape(&scene.path),
        );
        y = panels(&mut body, scene, y + 54.0) + 16.0;
    }
    let told = |name: &str| {
        let found = report.machine.iter().find(|(of, _)| of == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    let lines = [
        format!(
            "Bar: median of {} round{}; dots: each round; line: least to greatest; ×: ratio to the first; dashed: no director between; ◂: generator or sink is the limit.",
            report.rounds,
            if report.rounds == 1 { "" } else { "s" }
        ),
        format!("{} · {} · {}", report.date, told("processor"), told("system")),
        report.command.clone(),
    ];
    for line in lines {
        let _ = writeln!(
            body,
            "<text class=\"m\" x=\"{MARGIN}\" y=\"{:.0}\">{}</text>",
            y + 8.0,
            escape(&line)
        );
        y += 17.0;
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" width=\"{WIDTH}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"throughput\">\n<style>{STYLE}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// Two abreast; returns where they end.
fn panels(body: &mut String, scene: &Scene, top: f64) -> f64 {
    let height = HEAD + LINE * scene.subjects.len() as f64 + FOOT;
    let panels = scene.panels();
    for (number, (title, rows)) in panels.iter().enumerate() {
        let x = MARGIN + (PANEL + GAP) * (number % 2) as f64;
        let y = top + (height + 6.0) * (number / 2) as f64;
        let _ = writeln!(body, "<g transform=\"translate({x:.0} {y:.0})\">");
        let (unit, is_more_better) =
            rows.first().map_or(("", true), |row| (row.unit.as_str(), row.is_more_better));
        let better = if is_more_better { "more is better" } else { "less is better" };
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        let is_line = rows.iter().any(|row| row.shown == Shown::Point);
        let unit = if is_line {
            format!("{}, {unit}", names.join(" · "))
        } else {
            format!("{unit}, {better}")
        };
        let _ = writeln!(
            body,
            "<text class=\"t\" x=\"0\" y=\"14\">{}</text><text class=\"m e\" x=\"{PANEL}\" y=\"14\">{}</text>\
             <line class=\"g\" x1=\"0\" x2=\"{PANEL}\" y1=\"21\" y2=\"21\"/>",
            escape(title),
            escape(&unit),
        );
        if is_line {
            points(body, scene, rows);
        } else {
            bars(body, scene, rows);
        }
        body.push_str("</g>\n");
    }
    top + (height + 6.0) * panels.len().div_ceil(2) as f64
}

fn name(body: &mut String, scene: &Scene, at: usize, y: f64) {
    let weight =
        if scene.subjects[at].name.starts_with("vipa") { " style=\"font-weight:650\"" } else { "" };
    let _ = write!(
        body,
        "<text class=\"e\" x=\"{:.0}\" y=\"{:.0}\"{weight}>{}</text>",
        BARS - 8.0,
        y + 15.0,
        escape(&scene.subjects[at].name)
    );
}

fn missing(body: &mut String, why: &str, y: f64) {
    let mut short: String = why.chars().take(LETTERS).collect();
    if short.len() < why.len() {
        short.push('…');
    }
    let _ = writeln!(
        body,
        "<text class=\"n\" x=\"{BARS}\" y=\"{:.0}\">{}</text>",
        y + 15.0,
        escape(&short)
    );
}

fn colour(scene: &Scene, at: usize) -> &'static str {
    match at {
        _ if scene.subjects[at].name.starts_with("vipa") => "#0d9488",
        0 => "#64748b",
        _ => "#a8b3c2",
    }
}

fn bars(body: &mut String, scene: &Scene, rows: &[&Row]) {
    let Some(row) = rows.iter().find(|row| row.shown == Shown::Bar) else { return };
    let greatest = row.cells.iter().filter_map(|cell| Some(cell.spread()?.1));
    let scale = LENGTH / greatest.chain(row.ceiling).fold(f64::MIN_POSITIVE, f64::max);
    for (at, cell) in row.cells.iter().enumerate() {
        let y = HEAD + LINE * at as f64;
        name(body, scene, at, y);
        let values = match cell {
            Cell::Values(values) => values,
            Cell::Missing(why) => {
                missing(body, why, y);
                continue;
            }
        };
        let (median, (least, most)) =
            (cell.median().unwrap_or(0.0), cell.spread().unwrap_or_default());
        let middle = y + 11.0;
        let _ = write!(
            body,
            "<rect x=\"{BARS}\" y=\"{:.1}\" width=\"{:.1}\" height=\"16\" rx=\"2\" fill=\"{}\"/>\
             <line class=\"w\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\"/>",
            y + 3.0,
            median * scale,
            colour(scene, at),
            BARS + least * scale,
            BARS + most * scale,
        );
        for value in values {
            let x = BARS + value * scale;
            let _ = write!(body, "<circle class=\"d\" cx=\"{x:.1}\" cy=\"{middle:.1}\" r=\"2\"/>");
        }
        let beside = rows.iter().filter(|row| row.shown == Shown::Beside);
        let beside = beside.filter_map(|row| {
            let value = number(row.cells.get(at)?.median()?);
            Some(format!(" · {} {value} {}", row.name, row.unit))
        });
        let ratio = row.ratio(at).map_or(String::new(), |ratio| format!(" × {ratio:.2}"));
        let limit = if scene.is_generators(row, at) { " ◂" } else { "" };
        let _ = writeln!(
            body,
            "<text x=\"{:.0}\" y=\"{:.0}\">{}<tspan class=\"m\">{ratio}{}{limit}</tspan></text>",
            BARS + LENGTH + 8.0,
            y + 15.0,
            number(median),
            escape(&beside.collect::<String>())
        );
    }
    if let Some(ceiling) = row.ceiling {
        let (x, bottom) = (BARS + ceiling * scale, HEAD + LINE * row.cells.len() as f64);
        let _ = writeln!(
            body,
            "<line class=\"c\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"24\" y2=\"{bottom:.0}\"/>\
             <text class=\"m e\" x=\"{:.0}\" y=\"{:.0}\" style=\"font-size:10px\">no director: {}</text>",
            x.max(BARS + 90.0),
            bottom + 11.0,
            number(ceiling),
        );
    }
}

/// All rows of a panel on one logarithmic line a subject.
fn points(body: &mut String, scene: &Scene, rows: &[&Row]) {
    let all = || {
        let cells = rows.iter().flat_map(|row| &row.cells);
        cells.filter_map(Cell::median).filter(|value| *value > 0.0)
    };
    let decade = |value: f64| value.log10();
    let from = all().fold(f64::INFINITY, f64::min).log10().floor();
    let to = all().fold(1.0, f64::max).log10().ceil();
    if !from.is_finite() || to <= from {
        for (at, cell) in rows.first().into_iter().flat_map(|row| row.cells.iter().enumerate()) {
            let y = HEAD + LINE * at as f64;
            name(body, scene, at, y);
            missing(body, if let Cell::Missing(why) = cell { why } else { "–" }, y);
        }
        return;
    }
    let x = |value: f64| BARS + (decade(value.max(1e-9)) - from) / (to - from) * LENGTH;
    let bottom = HEAD + LINE * scene.subjects.len() as f64;
    let step = if to - from > 4.0 { 2 } else { 1 };
    for power in (from as i32..=to as i32).step_by(step) {
        let at = x(10_f64.powi(power));
        let _ = writeln!(
            body,
            "<line class=\"g\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"24\" y2=\"{bottom:.0}\"/>\
             <text class=\"m\" x=\"{at:.1}\" y=\"{:.0}\" style=\"font-size:10px;text-anchor:middle\">{}</text>",
            bottom + 11.0,
            escape(&tick(power, rows[0].unit.as_str())),
        );
    }
    for at in 0..scene.subjects.len() {
        let y = HEAD + LINE * at as f64;
        name(body, scene, at, y);
        if let Some(Cell::Missing(why)) = rows.first().and_then(|row| row.cells.get(at)) {
            missing(body, why, y);
            continue;
        }
        let known = rows.iter().filter_map(|row| Some((row, row.cells.get(at)?.median()?)));
        let known: Vec<_> = known.collect();
        let (Some((_, first)), Some((_, last))) = (known.first(), known.last()) else { continue };
        let (middle, colour) = (y + 11.0, colour(scene, at));
        let _ = write!(
            body,
            "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            x(*first),
            x(*last)
        );
        let mut words = String::new();
        for (number_of, (_, value)) in known.iter().enumerate() {
            let radius = [5.0, 4.0, 3.0, 2.0].get(number_of).copied().unwrap_or(2.0);
            let _ = write!(
                body,
                "<circle cx=\"{:.1}\" cy=\"{middle}\" r=\"{radius}\" fill=\"{colour}\" stroke=\"#fff\" stroke-width=\"1\"/>",
                x(*value)
            );
            let dot = if words.is_empty() { "" } else { " · " };
            let _ = write!(words, "{dot}{}", number(*value));
        }
        let _ = writeln!(
            body,
            "<text x=\"{:.0}\" y=\"{:.0}\" style=\"font-size:10.5px\">{}</text>",
            BARS + LENGTH + 8.0,
            y + 15.0,
            escape(&words)
        );
    }
}

/// A power of ten.
fn tick(power: i32, unit: &str) -> String {
    match (unit, power) {
        ("µs", 0..3) => format!("{} µs", 10_u32.pow(power.unsigned_abs())),
        ("µs", 3..6) => format!("{} ms", 10_u32.pow(power.unsigned_abs() - 3)),
        ("µs", 6..9) => format!("{} s", 10_u32.pow(power.unsigned_abs() - 6)),
        _ => format!("{}", 10_f64.powi(power)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn every_subject_and_work_is_in_the_picture_and_text_is_escaped() {
        let text = svg(&report());
        for wanted in ["nftables", "vipa nat", "panel &lt;tcp1-up&gt;", "two &lt;of a kind&gt;"] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
        assert!(text.contains("&quot;x&quot; is not installed"));
        assert!(text.contains("lost 12.5 %"), "loss is never hidden");
        assert_eq!(text.matches("<g ").count(), text.matches("</g>").count());
    }

    #[test]
    fn the_longest_bar_is_what_the_scale_goes_by() {
        let text = svg(&report());
        // The medians 20 and 18.5 beside a ceiling of 30.
        let width = |value: f64| format!("width=\"{:.1}\"", value / 30.0 * LENGTH);
        assert!(text.contains(&width(20.0)) && text.contains(&width(18.5)), "{text}");
    }

    #[test]
    fn where_nothing_was_measured_there_is_a_picture_too() {
        let mut report = report();
        for row in &mut report.scenes[0].rows {
            row.cells.fill(Cell::Missing("gone".to_owned()));
            row.ceiling = None;
        }
        let text = svg(&report);
        assert!(text.contains("gone") && !text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn nothing_is_asked_for_from_elsewhere() {
        let text = svg(&report()).replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("http") && !text.contains("url("), "{text}");
    }
}
