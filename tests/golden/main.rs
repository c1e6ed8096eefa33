//! Golden captures: each folder of tests/replay is a case that `vipa replay` has to reproduce to the byte, counters
//! included; and two parsers that share nothing with vipa read every frame that comes out. tests/replay/README.md
//! tells how to add one.

#![allow(clippy::unwrap_used)] // A case that cannot be read has failed.

mod craft;
mod judge;
mod write;

#[path = "../common/packets.rs"]
mod packets;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;
use vipa::capture::Reader;

const FEWEST: usize = 40;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay")
}

fn cases() -> Vec<PathBuf> {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    cases.sort();
    cases
}

fn name(case: &Path) -> &str {
    case.file_name().unwrap().to_str().unwrap()
}

/// What a replay yields: the capture, and the counters with the exit status, without what a clock tells.
fn replay(case: &Path) -> (Vec<u8>, Value) {
    let input = fs::read_dir(case).unwrap().map(|entry| entry.unwrap().file_name());
    let input =
        input.map(|name| name.into_string().unwrap()).find(|name| name.starts_with("input."));
    let arguments = fs::read_to_string(case.join("arguments")).unwrap_or_default();
    let out = env::temp_dir().join(format!("vipa-golden-{}-{}", name(case), std::process::id()));
    let output = Command::new(env!("CARGO_BIN_EXE_vipa"))
        .args(["replay", "--json", "--config", "vipa.toml"])
        .args(arguments.split_whitespace())
        .arg(input.expect("input.pcap or input.pcapng"))
        .arg(&out)
        .current_dir(case)
        .output()
        .unwrap();
    let mut counters: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}: {output:?}", case.display()));
    let fields = counters.as_object_mut().unwrap();
    for of_a_clock in ["packets_per_second", "seconds"] {
        assert!(fields.remove(of_a_clock).is_some_and(|value| value.is_number()), "{of_a_clock}");
    }
    fields.insert("exit_status".to_owned(), output.status.code().into());
    let capture = fs::read(&out).unwrap();
    fs::remove_file(out).unwrap();
    (capture, counters)
}

#[test]
fn every_case_comes_out_as_it_is_kept_to_the_byte() {
    let is_blessing = env::var_os("VIPA_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let about = fs::read_to_string(case.join("about.txt")).unwrap();
        assert_eq!(about.trim().lines().count(), 1, "{}: one line says what it shows", name(&case));
        let (capture, counters) = replay(&case);
        let (expected, kept) = (case.join("expected.pcapng"), case.join("expected.json"));
        let text = format!("{}\n", serde_json::to_string_pretty(&counters).unwrap());
        if is_blessing {
            fs::write(&expected, &capture).unwrap();
            fs::write(&kept, &text).unwrap();
        }
        if fs::read(&expected).unwrap_or_default() != capture {
            wrong.push(format!("{}: another capture", name(&case)));
        }
        if fs::read_to_string(&kept).unwrap_or_default() != text {
            wrong.push(format!("{}: other counters: {text}", name(&case)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases().len() >= FEWEST, "{} cases", cases().len());
}

/// A checksum that was wrong in stays wrong: the one exception.
#[test]
fn two_independent_parsers_read_every_frame_and_find_every_checksum_right() {
    let mut judged = judge::Judged::default();
    for case in cases() {
        let file = fs::read(case.join("expected.pcapng")).unwrap();
        let kept: Value =
            serde_json::from_slice(&fs::read(case.join("expected.json")).unwrap()).unwrap();
        let mut reader = Reader::new(file.as_slice()).unwrap();
        let mut wrong = 0;
        while let Some(packet) = reader.next_packet().unwrap() {
            let is_adapter = packet.interface.name.as_deref() == Some("vipa0");
            let bytes = if is_adapter { packet.bytes } else { &packet.bytes[14..] };
            if let Err(why) = judged.judge(bytes) {
                wrong += 1;
                let is_known = kept["wrong_checksums_in"].as_u64() >= Some(wrong);
                assert!(is_known, "{}: {why}: {bytes:02x?}", name(&case));
            }
        }
    }
    assert!(judged.frames >= 200 && judged.checksums >= 200, "{judged:?}");
}

#[test]
fn the_crafted_inputs_are_those_that_the_generator_makes() {
    let made = craft::cases();
    assert!(made.len() >= 35, "{} crafted cases", made.len());
    for case in made {
        let folder = folder().join(case.name);
        if env::var_os("VIPA_BLESS").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("about.txt"), format!("{}\n", case.about)).unwrap();
            fs::write(folder.join("vipa.toml"), &case.config).unwrap();
            fs::write(folder.join(case.input), &case.capture).unwrap();
            if !case.arguments.is_empty() {
                fs::write(folder.join("arguments"), case.arguments).unwrap();
            }
        }
        let kept = fs::read(folder.join(case.input)).unwrap_or_default();
        assert_eq!(kept, case.capture, "{}", case.name);
        assert_eq!(fs::read_to_string(folder.join("vipa.toml")).unwrap(), case.config);
    }
}
