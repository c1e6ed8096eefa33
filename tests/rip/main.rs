//! RIP by the book: the sentences of the RFCs and what obeys them (`conformance`), what FRR and BIRD really say (`captures`), and a
//! host's life between both, again (`recordings`). No network and no privilege; `record` made the inputs.

mod captures;
mod conformance;
mod recordings;

use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rip")
}
