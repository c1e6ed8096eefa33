//! Every fuzz target's check over its committed corpus, without a fuzzer. See ARCHITECTURE.md, Fuzzing.

mod checks;

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of the largest file of a corpus: they are to stay small.
const LARGEST: u64 = 1024;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name in UTF-8"))
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn every_target_holds_over_its_corpus() {
    for (name, check) in checks::TARGETS {
        let corpus = folder().join("corpus").join(name);
        let inputs = names(&corpus);
        assert!(!inputs.is_empty(), "the corpus of {name} is empty");
        for input in inputs {
            let path = corpus.join(&input);
            let data = fs::read(&path).expect("an input");
            assert!(data.len() as u64 <= LARGEST, "{} is large", path.display());
            // Printed only if the check fails.
            eprintln!("{}", path.display());
            check(&data);
        }
    }
}

#[test]
fn every_target_can_be_fuzzed() {
    let known: Vec<String> = checks::TARGETS.iter().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names(&folder().join("corpus")), known);
    let sources: Vec<String> = known.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names(&folder().join("targets")), sources);
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("the manifest");
    for name in known {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is no [[bin]]");
    }
}
