//! Each of recordings/ happens again. To see whether another one does, put it there.

use std::fs::{self, File};
use std::io::BufReader;

use vipa::rip::recording::replay;

use crate::folder;

#[test]
fn every_recording_happens_again() {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder().join("recordings")).expect("the folder") {
        let path = entry.expect("a file").path();
        let file = File::open(&path).expect("a recording");
        let replayed = replay(BufReader::new(file));
        let replayed = replayed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(replayed.inputs > 0 && replayed.sent > 0, "{}: {replayed:?}", path.display());
        names.push(path.file_name().expect("a name").to_owned());
    }
    assert!(names.iter().any(|name| name == "frr-and-bird.jsonl"), "{names:?}");
}

#[test]
fn the_host_between_frr_and_bird_saw_what_it_was_recorded_for() {
    let path = folder().join("recordings/frr-and-bird.jsonl");
    let text = fs::read_to_string(path).expect("the recording");
    assert!(!text.contains("a-secret") && !text.contains("612d736563726574"));
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a line")).collect();
    let of = |kind: &str| lines.iter().filter(|line| !line[kind].is_null()).collect::<Vec<_>>();
    let (routes, heard) = (of("route"), of("heard"));
    // Both neighbours' networks, by both families; lost and found by one, lost by the other.
    let ways = |prefix: &str| -> Vec<usize> {
        let of_prefix = routes.iter().filter(|line| line["route"]["prefix"] == prefix);
        of_prefix.map(|line| line["route"]["ways"].as_array().expect("ways").len()).collect()
    };
    for prefix in ["10.71.2.0/24", "2001:db8:7102::/64"] {
        assert_eq!(ways(prefix), [1, 0, 1], "{prefix} of FRR");
    }
    for prefix in ["10.72.2.0/24", "2001:db8:7202::/64"] {
        assert_eq!(ways(prefix), [1, 0], "{prefix} of BIRD");
    }
    assert!(heard.iter().any(|line| line["heard"]["message"]["refused"] == "unsigned"));
    assert_eq!(of("forwarding").len(), 1);
    assert!(of("interfaces").len() >= 6);
}
