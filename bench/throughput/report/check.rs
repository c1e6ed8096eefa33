//! Is a written report whole? For those who run the harness without looking at it.

use serde_json::Value;

/// What is wrong with a report as JSON; empty if nothing is.
pub(crate) fn check(told: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for field in ["date", "command"] {
        if told[field].as_str().is_none_or(str::is_empty) {
            wrong.push(format!("no {field}"));
        }
    }
    let scenes = told["scenes"].as_array().map_or(&[][..], Vec::as_slice);
    if scenes.is_empty() {
        wrong.push("no scenes".to_owned());
    }
    for scene in scenes {
        let (subjects, figures) = (scene["subjects"].as_array(), scene["figures"].as_array());
        let (Some(subjects), Some(figures)) = (subjects, figures) else {
            wrong.push(format!("{}: no subjects or no figures", scene["name"]));
            continue;
        };
        if subjects.is_empty() || figures.is_empty() {
            wrong.push(format!("{}: no subjects or no figures", scene["name"]));
        }
        for figure in figures {
            for subject in subjects {
                let cell = &figure["subjects"][subject["name"].as_str().unwrap_or_default()];
                let is_told = cell["median"].as_f64().is_some_and(|median| median >= 0.0)
                    && cell["rounds"].as_array().is_some_and(|rounds| !rounds.is_empty());
                let is_missing = cell["missing"].as_str().is_some_and(|why| !why.is_empty());
                if is_told == is_missing {
                    let (scene, id, name) = (&scene["name"], &figure["id"], &subject["name"]);
                    wrong.push(format!("{scene}: {id} of {name} is neither told nor missing"));
                }
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::super::{json, tests::report};
    use super::*;

    #[test]
    fn a_whole_report_is_taken() {
        assert_eq!(check(&json(&report())), [""; 0]);
    }

    #[test]
    fn a_figure_that_is_not_there_and_not_named_missing_is_noticed() {
        let mut told = json(&report());
        told["scenes"][0]["figures"][0]["subjects"]["HAProxy"] = Value::Null;
        told["scenes"][0]["figures"][1]["subjects"]["vipa nat"]["median"] = Value::Null;
        let wrong = check(&told);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].contains("HAProxy") && wrong[1].contains("vipa nat"), "{wrong:?}");
    }

    #[test]
    fn nothing_is_no_report() {
        assert!(!check(&Value::Null).is_empty());
    }
}
