//! All that vipa could change on a host, as `ip`, `nft` and /proc/sys tell it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::busy::Host;

const QUESTIONS: [&str; 7] = [
    "ip rule show",
    "ip -6 rule show",
    "ip -d route show table all",
    "ip -6 -d route show table all",
    "ip -o addr show",
    "ip -o link show",
    "nft -s list ruleset",
];

impl Host {
    pub(crate) fn everything(&self) -> BTreeSet<String> {
        let host = &self.bench.network.host;
        let mut lines = BTreeSet::new();
        for question in QUESTIONS {
            let words: Vec<&str> = question.split(' ').collect();
            for line in self.bench.run(host, words[0], &words[1..]).lines() {
                let line = line.replace(" linkdown", "").replace(" dead", "");
                // A device made anew has another index; learned neighbours' lives are their own.
                let line = line
                    .trim_start_matches(|c: char| c.is_ascii_digit() && question.contains("-o"));
                lines.insert(format!("{question}: {}", line.trim()));
            }
        }
        let mut settings = Vec::new();
        host.run(|| {
            read_tree(Path::new("/proc/sys/net/ipv4"), &mut settings);
            read_tree(Path::new("/proc/sys/net/ipv6"), &mut settings);
        });
        assert!(!settings.is_empty(), "/proc/sys tells nothing");
        lines.extend(settings);
        lines
    }

    /// What differs from `before`; nothing, if all is well.
    pub(crate) fn changes_since(&self, before: &BTreeSet<String>) -> Vec<String> {
        let now = self.everything();
        let gone = before.difference(&now).map(|line| format!("- {line}"));
        let new = now.difference(before).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }

    #[track_caller]
    pub(crate) fn is_as(&self, before: &BTreeSet<String>) {
        let deadline = Instant::now() + Duration::from_secs(2); // a device's end is told after the fact
        loop {
            let changes = self.changes_since(before);
            if changes.is_empty() {
                return;
            }
            let log = self.bench.forwarder.log();
            assert!(Instant::now() < deadline, "not as it was:\n{}\n{log}", changes.join("\n"));
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn read_tree(directory: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_tree(&path, lines);
        } else if let Ok(value) = fs::read_to_string(&path) {
            lines.push(format!("{} = {}", path.display(), value.trim()));
        }
    }
}
