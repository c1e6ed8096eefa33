//! `vipa demo --json`, the contract of its report. Needs root.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;

#[test]
fn the_demo_loses_nothing_and_reports_every_field() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_vipa")).args(["demo", "--json"]).output().unwrap();
    let (said, complaints) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{complaints}");
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["ok"], true);
    for (field, value) in [("connections", 8), ("connections_lost", 0), ("bytes_corrupted", 0)] {
        assert_eq!(report[field], value, "{field}: {said}");
    }
    for field in [
        "bytes",
        "gbit_per_second",
        "longest_gap_ms",
        "longest_gap_ms_rewritten",
        "longest_gap_ms_path",
        "frames",
    ] {
        assert!(report[field].as_f64().unwrap() > 0.0, "{field}: {said}");
    }
    // C2: what TCP hands over in one piece leaves in one piece.
    assert!(report["mean_frame_bytes"].as_f64().unwrap() > 20_000.0, "{said}");
    let events = report["events"].as_array().unwrap();
    for (kind, count) in [
        ("carrier_lost", 2),
        ("nic_deleted", 1),
        ("nic_created", 1),
        ("forwarder_killed", 2),
        ("path_died", 1),
        ("path_healed", 1),
    ] {
        let seen = events.iter().filter(|event| event["event"] == kind).count();
        assert!(seen >= count, "{kind}: {said}");
    }
    for event in events {
        for field in ["gap_ms", "gap_ms_rewritten", "udp_lost"] {
            assert!(event[field].is_number(), "{field} of {event}");
        }
        let is_of_the_forwarder = event["event"] == "forwarder_killed";
        assert_eq!(event["nic"].is_string(), !is_of_the_forwarder, "{event}");
        assert_eq!(event["away_ms"].is_number(), is_of_the_forwarder, "{event}");
        // V9, both ways: everything left the dead path, and the healed one carries traffic again.
        for (kind, fields) in [
            ("path_died", ["gap_ms_out", "gap_ms_in"]),
            ("path_healed", ["used_ms_out", "used_ms_in"]),
        ] {
            for field in fields {
                assert_eq!(event[field].as_f64().is_some(), event["event"] == kind, "{event}");
                assert!(event[field].as_f64().is_none_or(|ms| ms > 0.0), "{event}");
            }
        }
    }
}

/// The milestones: load, death, another policy, return and drain each move the new connections, and no request pays for it.
#[test]
fn the_demo_of_a_service_fails_no_request_and_reports_every_field() {
    let output = Command::new(env!("CARGO_BIN_EXE_vipa"))
        .args(["demo", "--balance", "--json"])
        .output()
        .unwrap();
    let (said, complaints) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{complaints}");
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["ok"], true);
    assert_eq!(report["failed"], 0, "{said}");
    let count = |field: &str| report[field].as_u64().unwrap();
    // All of the requests were sent somewhere, and each server had its turn.
    let per_server = report["per_server"].as_object().unwrap();
    assert_eq!(per_server.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let served = per_server.values().map(|count| count.as_u64().unwrap());
    assert!(served.clone().all(|count| count > 0), "{said}");
    let counted = served.sum::<u64>() + count("failed_on_killed_server");
    assert_eq!(count("requests"), counted, "{said}");
    let switches = report["switches"].as_array().unwrap();
    let mut before = 0.0;
    for switch in switches {
        let at = switch["at_ms"].as_f64().unwrap();
        assert!(at >= before, "{said}");
        before = at;
        for field in ["from", "to"] {
            assert!(per_server.contains_key(switch[field].as_str().unwrap()), "{switch}");
        }
        assert_ne!(switch["from"], switch["to"], "{switch}");
        assert!(!switch["why"].as_str().unwrap().is_empty(), "{switch}");
        assert!(switch["effect_ms"].as_f64().is_none_or(|ms| ms > 0.0), "{switch}");
    }
    // In the forwarder's own words: the servers' facts, the operator's orders.
    for (act, why) in [
        ("load", "sessions: "),
        ("kill", " is failing: "),
        ("policy", "fastest-response: "),
        ("return", "fastest-response: "),
        ("drain", " is drain: the operator"),
    ] {
        let provoked = |switch: &&Value| switch["provoked_by"] == act;
        let switch = switches.iter().find(provoked).unwrap_or_else(|| panic!("{act}: {said}"));
        assert!(switch["effect_ms"].is_number(), "{switch}");
        let is_order = ["policy", "drain"].contains(&act);
        assert_eq!(switch["noticed_ms"].is_number(), !is_order, "{switch}");
        assert!(switch["why"].as_str().unwrap().contains(why), "{switch}");
    }
}
