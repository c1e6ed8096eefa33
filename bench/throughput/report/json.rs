//! The report as JSON: every round's values, and what was made of them.

use serde_json::{Value, json};

use super::{Cell, Report, Row, Scene, verdicts};

/// One object.
pub(crate) fn json(report: &Report) -> Value {
    let machine: serde_json::Map<String, Value> =
        report.machine.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let aims: Vec<Value> = verdicts(report)
        .into_iter()
        .map(|verdict| {
            let (value, is_reached) = verdict.reached.unzip();
            json!({ "work": verdict.work, "who": verdict.who, "aim": verdict.aim, "value": value,
                "reached": is_reached, "limits": verdict.limits })
        })
        .collect();
    json!({
        "date": report.date,
        "command": report.command,
        "machine": machine,
        "rounds": report.rounds,
        "scenes": report.scenes.iter().map(scene).collect::<Vec<_>>(),
        "aims": aims,
        "notes": report.notes,
    })
}

fn scene(scene: &Scene) -> Value {
    let subjects: Vec<Value> =
        scene.subjects.iter().map(|told| json!({ "name": told.name, "what": told.what })).collect();
    let figures: Vec<Value> = scene
        .rows
        .iter()
        .map(|row| {
            let cells: serde_json::Map<String, Value> = scene
                .subjects
                .iter()
                .enumerate()
                .map(|(at, told)| (told.name.clone(), cell(row, at)))
                .collect();
            json!({ "id": row.id, "work": row.panel, "what": row.name, "unit": row.unit,
                "more_is_better": row.is_more_better, "no_director": row.ceiling,
                "subjects": cells })
        })
        .collect();
    json!({ "name": scene.name, "path": scene.path, "subjects": subjects, "figures": figures })
}

fn cell(row: &Row, at: usize) -> Value {
    match row.cells.get(at) {
        Some(cell @ Cell::Values(values)) => {
            let (least, most) = cell.spread().unzip();
            json!({ "rounds": values, "median": cell.median(), "least": least, "most": most,
                "ratio": row.ratio(at) })
        }
        Some(Cell::Missing(why)) => json!({ "missing": why }),
        None => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn each_round_the_median_and_the_ratio_are_told() {
        let told = json(&report());
        let figure = &told["scenes"][0]["figures"][0];
        assert_eq!(figure["id"], "tcp1-up");
        let expected = json!({ "rounds": [18.0, 19.0], "median": 18.5, "least": 18.0,
            "most": 19.0, "ratio": 0.925 });
        assert_eq!(figure["subjects"]["vipa nat"], expected);
        assert_eq!(figure["subjects"]["HAProxy"]["missing"], "\"x\" is not installed");
        assert_eq!(told["aims"][0]["reached"], true);
    }
}
