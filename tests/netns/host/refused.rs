//! What cannot be run is refused with nothing touched; what fills up later costs nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vipa::lab::topology::vipas;
use vipa::wire::ip::Family;

use super::busy::Host;
use crate::fixture::{Bench, Conversation, Peer, Setup, number, wait_until};

/// All that could be changed, once addresses have stopped to be tried out.
fn settled(host: &Host) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    wait_until("addresses settle", || {
        all = host.everything();
        !all.iter().any(|line| line.contains("tentative")) && host.changes_since(&all).is_empty()
    });
    all
}

#[test]
fn a_configuration_with_mistakes_is_told_all_of_them_at_once_and_nothing_is_touched() {
    let host = Host::new();
    let before = settled(&host);
    let path = host.bench.scratch.path().join("mistakes.toml");
    let text = "\
[virtual]
name = \"vipa0\"
addresses = [\"203.0.113.10\", \"203.0.113.10\", \"127.0.0.1\"]
colour = \"blue\"

[forwarder]
workers = 65

[[nic]]
name = \"eth1\"
weight = 0

[[source.rule]]
protocol = \"tcp\"
use = \"198.51.100.1\"
";
    fs::write(&path, text).expect("a file");
    let output = host.vipa(&["run", path.to_str().expect("a path")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let told = String::from_utf8_lossy(&output.stderr);
    for (place, found, wanted) in [
        ("3:30", "203.0.113.10", "twice"),
        ("3:46", "127.0.0.1", "loopback"),
        ("4:1", "colour", "known"),
        ("7:11", "65", "64"),
        ("11:10", "0", "1000"),
        ("15:7", "198.51.100.1", "virtual"),
    ] {
        let at = format!("mistakes.toml:{place}");
        assert!(told.contains(&at), "{at} of {found}: {told}");
        assert!(told.contains(found) && told.contains(wanted), "{found}, {wanted}: {told}");
    }
    host.is_as(&before);
    assert_eq!(fs::read_dir(host.state()).expect("the directory").count(), 0, "no state is kept");
}

/// A file system of its own for a directory, gone with it.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn over(directory: &Path, size: &str) -> Tmpfs {
        let options = format!("size={size}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "none"]).arg(directory);
        assert!(mount.status().expect("mount of util-linux").success(), "these tests need root");
        Tmpfs(directory.to_owned())
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let error =
            fs::write(self.0.join("filler"), vec![0xaa; 64 << 20]).expect_err("it is small");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_tmpfs_is_an_error_at_start_and_nothing_is_touched() {
    let host = Host::new();
    let before = settled(&host);
    let _small = Tmpfs::over(&host.state(), "256k");
    let config = host.bench.scratch.path().join("vipa.toml");
    let output = host.vipa(&["run", config.to_str().expect("a path")]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = told.lines().filter(|line| line.starts_with("vipa: ")).collect();
    assert_eq!(errors.len(), 1, "{told}");
    assert!(errors[0].contains(".flows") && errors[0].contains("no room for"), "{told}");
    host.is_as(&before);
}

#[test]
fn a_tmpfs_that_fills_up_costs_no_connection_and_no_restart() {
    let mut bench =
        Bench::prepare(&Setup::new(2).second_vipa("protocol = \"tcp\"\nport = \"7001\""));
    let small = Tmpfs::over(&bench.scratch.path().join("state"), "16m");
    bench.start_forwarder();
    let peers = [7000, 7001].map(|port| Peer::listen(&bench.network.client, port));
    let open = |bench: &Bench| -> Vec<Conversation> {
        let to = peers.iter().flat_map(|peer| Family::BOTH.map(|family| peer.address(family)));
        to.map(|to| Conversation::open(&bench.network.host, to)).collect()
    };
    let mut flows = open(&bench);
    small.fill();
    flows.extend(open(&bench));
    flows.iter().for_each(|flow| flow.goes_on(10));
    bench.forwarder.kill();
    bench.start_forwarder();
    flows.extend(open(&bench));
    flows.iter().for_each(|flow| flow.goes_on(10));
    let rewritten = flows.iter().filter(|flow| {
        let family = Family::of(flow.seen.ip());
        flow.seen.ip() == vipas(family)[1]
    });
    assert_eq!(rewritten.count(), 6, "those under the rule");
    wait_until("the forwarder counts them", || {
        number(&bench.status()["workers"][0]["flows_rewritten"]) >= 6
    });
    flows.into_iter().for_each(Conversation::finish);
}
