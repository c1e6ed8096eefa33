//! The report as a page of its own: the picture, the aims, every figure, what was run and where.

use std::fmt::Write as _;

use super::{Cell, Report, Row, Scene, escape, number, svg, verdicts};

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1f2937;--soft:#6b7280;--line:#e5e7eb;--paper:#fff;--ours:#0d9488;--bad:#b45309}
@media(prefers-color-scheme:dark){:root{--ink:#e5e7eb;--soft:#9ca3af;--line:#374151;--paper:#111827;--ours:#2dd4bf;--bad:#fbbf24}}
body{font:15px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;color:var(--ink);background:var(--paper);
max-width:1060px;margin:2.5rem auto;padding:0 1.2rem}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.2rem;margin:2.4rem 0 .6rem}p,li{max-width:76ch}
.soft{color:var(--soft)}figure{margin:1.6rem 0;border:1px solid var(--line);border-radius:10px;overflow:hidden;background:#fff}
figure svg{display:block;width:100%;height:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:13.5px;margin:.6rem 0 1.4rem}
th,td{text-align:left;padding:.32rem .7rem .32rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft)}.r{text-align:right}td.ours{color:var(--ours);font-weight:600}
.yes{color:var(--ours);font-weight:600}.no{color:var(--bad);font-weight:600}
code{font:13px/1.5 ui-monospace,'DejaVu Sans Mono',monospace}";

/// A whole document, XML as well as HTML; it asks for nothing from elsewhere.
pub(crate) fn html(report: &Report) -> String {
    let mut body = String::new();
    let machine: Vec<&str> = report.machine.iter().map(|(_, value)| value.as_str()).collect();
    let _ = writeln!(
        body,
        "<h1>vipa beside others</h1>\n<p class=\"soft\">{} · {} · {} round{} · <code>{}</code></p>",
        escape(&report.date),
        escape(&machine.join(" · ")),
        report.rounds,
        if report.rounds == 1 { "" } else { "s" },
        escape(&report.command),
    );
    let _ = writeln!(body, "<figure>\n{}</figure>", svg(report));
    aims(&mut body, report);
    let _ = writeln!(body, "<h2>How to read it</h2>\n<ul>");
    for note in &report.notes {
        let _ = writeln!(body, "<li>{}</li>", escape(note));
    }
    body.push_str("</ul>\n");
    for scene in &report.scenes {
        let (name, path) = (escape(&scene.name), escape(&scene.path));
        let _ = writeln!(body, "<h2>{name}</h2>\n<p class=\"soft\">{path}</p>\n<table>");
        for told in &scene.subjects {
            let (name, what) = (escape(&told.name), escape(&told.what));
            let _ = writeln!(body, "<tr><td>{name}</td><td>{what}</td></tr>");
        }
        body.push_str("</table>\n");
        figures(&mut body, scene);
    }
    format!(
        "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/><title>vipa beside others</title>\n\
         <style>{STYLE}</style></head>\n<body>\n{body}</body>\n</html>\n"
    )
}

fn aims(body: &mut String, report: &Report) {
    let verdicts = verdicts(report);
    if verdicts.is_empty() {
        return;
    }
    body.push_str("<h2>What is aimed at</h2>\n<table><tr><th>work</th><th></th><th>aim</th><th class=\"r\">reached</th><th></th><th>beside it</th></tr>\n");
    for verdict in verdicts {
        let (value, word, class) = match &verdict.reached {
            Some((value, true)) => (value.as_str(), "yes", "yes"),
            Some((value, false)) => (value.as_str(), "not yet", "no"),
            None => ("–", "not measured", "soft"),
        };
        let _ = writeln!(
            body,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"r\">{}</td><td class=\"{class}\">{word}</td><td class=\"soft\">{}</td></tr>",
            escape(&verdict.work),
            escape(&verdict.who),
            escape(&verdict.aim),
            escape(value),
            escape(&verdict.limits),
        );
    }
    body.push_str("</table>\n");
}

fn figures(body: &mut String, scene: &Scene) {
    body.push_str("<table><tr><th>work</th><th>subject</th><th class=\"r\">median</th><th class=\"r\">least – greatest</th><th class=\"r\">ratio</th></tr>\n");
    for row in &scene.rows {
        let name = if row.name.is_empty() { String::new() } else { format!(", {}", row.name) };
        let mut work = format!("{}{name}, {}", row.panel, row.unit);
        if let Some(ceiling) = row.ceiling {
            let _ = write!(work, " (no director: {})", number(ceiling));
        }
        for (at, told) in scene.subjects.iter().enumerate() {
            let class = if told.name.starts_with("vipa") { " class=\"ours\"" } else { "" };
            let _ = write!(
                body,
                "<tr><td>{}</td><td{class}>{}</td>",
                if at == 0 { escape(&work) } else { String::new() },
                escape(&told.name)
            );
            values(body, row, at);
            body.push_str("</tr>\n");
        }
    }
    body.push_str("</table>\n");
}

fn values(body: &mut String, row: &Row, at: usize) {
    let cell = match row.cells.get(at) {
        Some(Cell::Missing(why)) => {
            let _ = write!(body, "<td class=\"soft\" colspan=\"3\">{}</td>", escape(why));
            return;
        }
        Some(cell) => cell,
        None => return,
    };
    let (median, (least, most)) = (cell.median().unwrap_or(0.0), cell.spread().unwrap_or_default());
    let ratio = row.ratio(at).map_or(String::new(), |ratio| format!("{ratio:.2}"));
    let _ = write!(
        body,
        "<td class=\"r\">{}</td><td class=\"r soft\">{} – {}</td><td class=\"r\">{ratio}</td>",
        number(median),
        number(least),
        number(most)
    );
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn the_page_has_the_picture_the_aims_every_figure_and_what_was_run() {
        let text = html(&report());
        for wanted in [
            "<svg ",
            "at least × 0.9",
            "18.0 – 19.0",
            "vipa nat &amp; more",
            "&quot;x&quot; is not installed",
            "cargo bench",
            "a &amp; b",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
    }

    #[test]
    fn nothing_is_asked_for_from_elsewhere() {
        let text = html(&report());
        let text = text.replace("http://www.w3.org/", "");
        assert!(
            !text.contains("http") && !text.contains("src=") && !text.contains("url("),
            "{text}"
        );
    }
}
