//! Another configuration that the host refuses midway: all or nothing.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use vipa::balance::policy::Policy;
use vipa::balance::service::{Choose, Mode, OnDeath, Settings, WhenNone};
use vipa::config::{Config, Nic};
use vipa::forward::rule::{Rule, Target};

use crate::fixture::{Fixture, eventually, everything, in_namespace, ip, sysctl};

/// The kernel takes no policy rule for such a name.
const TOO_LONG: &str = "a-name-that-is-too-long-for-a-device";

/// All that a configuration may change here.
fn all() -> String {
    let nft = Command::new("nft").args(["-s", "list", "ruleset"]).output();
    let nft = String::from_utf8(nft.expect("nft is installed").stdout).expect("UTF-8");
    let nft: Vec<_> = nft.lines().filter(|line| !line.contains("expires")).collect();
    let settings = Command::new("sysctl")
        .args(["-a", "-r", "^net.ipv[46].conf|^net.ipv4.ip_local"])
        .output()
        .expect("sysctl is installed");
    let settings = String::from_utf8_lossy(&settings.stdout).into_owned();
    let settings: Vec<_> = settings.lines().filter(|line| !line.contains("secret")).collect();
    format!("{}\n{}\n{}", everything(), nft.join("\n"), settings.join("\n"))
}

/// What of `before` is gone, and what is new.
fn changes(before: &str) -> Vec<String> {
    let now = all();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (before, now) = (lines(before), lines(&now));
    let gone = before.difference(&now).map(|line| format!("- {line}"));
    gone.chain(now.difference(&before).map(|line| format!("+ {line}"))).collect()
}

fn service() -> Settings {
    Settings {
        name: "web".into(),
        address: "203.0.113.10".parse().expect("an address"),
        ports: 80..=80,
        protocol: 6,
        mode: Mode::Nat { sources: Vec::new(), keeps_client: false },
        policy: Policy::Closest,
        choose: Choose::Preferred,
        hysteresis: 0.0,
        when_none: WhenNone::Refuse,
        on_death: OnDeath::Reset,
        rise: 1,
        fall: 1,
        slow_start: Duration::ZERO,
        statuses: Vec::new(),
        servers: Vec::new(),
    }
}

/// `config` with a bit more of everything.
fn more(config: &Config) -> Config {
    let mut more = config.clone();
    more.adapter.addresses.push("203.0.113.12".parse().expect("an address"));
    more.nics.push(Nic { name: "eth3".into(), gateways: Vec::new(), ..config.nics[0].clone() });
    more.source.rules =
        vec![Rule { protocol: Some(6), target: Target::Physical, ..Rule::default() }];
    more.services = vec![service()];
    more
}

/// What the kernel refuses last of all, when it has taken all the rest.
fn wrong(config: &Config) -> Config {
    let mut wrong = more(config);
    let last = Nic { name: TOO_LONG.into(), ..wrong.nics[2].clone() };
    wrong.nics.push(last);
    wrong
}

/// A setting that says something else and cannot be written.
struct Stuck(&'static str);

impl Stuck {
    fn at(path: &'static str, fixture: &Fixture) -> Stuck {
        let file = fixture.state.join("stuck");
        std::fs::write(&file, "1\n").expect("a file");
        mount(&["--make-rprivate", "/"]);
        mount(&["--bind", file.to_str().expect("a path"), path]);
        mount(&["-o", "remount,ro,bind", path]);
        Stuck(path)
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

fn mount(arguments: &[&str]) {
    let status = Command::new("mount").args(arguments).status().expect("mount of util-linux");
    assert!(status.success(), "mount {arguments:?}");
}

fn add_nics(names: &[(&str, &str)]) {
    for (nic, peer) in names {
        ip(&format!("link add {nic} type veth peer name {peer}"));
        ip(&format!("link set {nic} up"));
        ip(&format!("link set {peer} up"));
    }
}

#[test]
fn what_the_kernel_refuses_at_last_leaves_everything_as_it_was() {
    in_namespace("refused", |fixture| {
        add_nics(&[("eth3", "p3"), ("eth4", "p4")]);
        ip("addr add 10.1.3.2/24 dev eth3");
        let running = fixture.run(fixture.config());
        let before = all();
        let refuse = |config: &Config| {
            let why = running.reload(wrong(config)).expect_err("the kernel refuses the name");
            assert!(why.contains("the kernel refused `rule 9231"), "{why}");
        };
        let view = running.cell.load_full();
        refuse(&fixture.config());
        assert_eq!(changes(&before), [""; 0], "nothing is left of it when it is told");
        assert_eq!(running.cell.load().generation, view.generation, "and no worker knew of it");

        // What stands by an earlier reload is as little touched.
        let config = more(&fixture.config());
        running.reload(config.clone()).expect("nothing is wrong with it");
        assert_eq!(sysctl("ipv4/conf/eth3/rp_filter"), "2");
        let before = all();
        let mut other = config.clone();
        other.nics[2].name = "eth4".into();
        refuse(&other);
        assert_eq!(changes(&before), [""; 0]);
        // And what was refused may come right.
        running.reload(other).expect("nothing is wrong with it");
        assert_eq!(sysctl("ipv4/conf/eth4/rp_filter"), "2");
        assert_eq!(sysctl("ipv4/conf/eth3/rp_filter"), "0", "as it was");
        drop(running);
        fixture.down();
    });
}

#[test]
fn what_others_put_into_a_table_that_is_had_back_keeps_nothing_from_being_undone() {
    in_namespace("undone", |fixture| {
        add_nics(&[("eth3", "p3")]);
        let mut config = fixture.config();
        config.source.rules = vec![Rule {
            protocol: Some(6),
            target: Target::Vipa(config.adapter.addresses[1]),
            ..Rule::default()
        }];
        let running = fixture.run(config.clone());
        ip("route add blackhole 198.18.0.0/15 table 924 proto static");
        let before = all();
        running.reload(wrong(&config)).expect_err("the kernel refuses the name");
        assert_eq!(changes(&before), [""; 0], "nothing is left of it when it is told");
        drop(running);
        ip("route flush table 924 proto static");
        fixture.down();
    });
}

#[test]
fn what_could_not_be_undone_at_once_is_undone_by_and_by() {
    in_namespace("undone-later", |fixture| {
        add_nics(&[("eth3", "p3")]);
        let config = fixture.config();
        let running = fixture.run(config.clone());
        let stuck = Stuck::at("/proc/sys/net/ipv4/conf/eth2/rp_filter", fixture);
        let before = all();
        // Without the NIC whose setting that is: only going back meets it.
        let mut wrong = wrong(&config);
        wrong.nics[1].name.clear();
        running.reload(wrong).expect_err("the kernel refuses the name");
        eventually("all is as it was", || changes(&before).is_empty());
        assert_eq!(sysctl("ipv4/conf/eth3/rp_filter"), "0");
        drop((running, stuck));
        fixture.down();
    });
}
