//! Another configuration while traffic runs (L8, L9): what differs changes, all else goes on, and what is wrong changes nothing.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;

use vipa::lab::Namespace;
use vipa::lab::topology::vipas;
use vipa::wire::ip::Family;

use crate::fixture::{
    Bench, Conversation, Peer, Setup, changes, everything, nic_addresses, run, wait_until,
};

const PORT: u16 = 7000;
const REWRITTEN: u16 = 7001;

/// Connections of the host, plain and rewritten ones, and of an operator to the address of its first NIC.
struct Traffic {
    flows: Vec<Conversation>,
    _peers: Vec<Peer>,
}

impl Traffic {
    fn begin(bench: &Bench) -> Traffic {
        let network = &bench.network;
        let peers = vec![
            Peer::listen(&network.client, PORT),
            Peer::listen(&network.client, REWRITTEN),
            Peer::listen(&network.host, 22),
        ];
        let of_host = |peer: &Peer| {
            let address = Family::BOTH.map(|family| peer.address(family));
            (0..8).flat_map(move |_| address).collect::<Vec<_>>()
        };
        let all = [of_host(&peers[0]), of_host(&peers[1])].concat();
        let mut flows: Vec<Conversation> =
            all.into_iter().map(|to| Conversation::open(&network.host, to)).collect();
        for family in Family::BOTH {
            let nic = SocketAddr::new(nic_addresses(network, family)[0], 22);
            flows.push(Conversation::open(&network.router, nic));
        }
        Traffic { flows, _peers: peers }
    }

    #[track_caller]
    fn goes_on(&self) {
        self.flows.iter().for_each(|flow| flow.goes_on(10));
    }

    fn finish(self) {
        self.flows.into_iter().for_each(Conversation::finish);
    }
}

fn strings(value: &serde_json::Value) -> Vec<&str> {
    let all = value.as_array().expect("a list");
    all.iter().map(|one| one.as_str().expect("a string")).collect()
}

fn names(bench: &Bench) -> Vec<String> {
    let status = bench.status();
    let nics = status["nics"].as_array().expect("NICs");
    nics.iter().map(|nic| nic["name"].as_str().expect("a name").to_owned()).collect()
}

/// [`everything`] but for the flows that are held.
fn standing(host: &Namespace) -> BTreeSet<String> {
    everything(host).into_iter().filter(|line| !line.contains(" timeout ")).collect()
}

fn rules(host: &Namespace) -> String {
    run(host, "ip", &["rule"])
}

fn sysctl(host: &Namespace, path: &str) -> String {
    run(host, "cat", &[&format!("/proc/sys/net/{path}")]).trim().to_owned()
}

#[test]
fn nics_addresses_and_rules_come_and_go_and_no_connection_is_lost() {
    let rewritten = format!("protocol = \"tcp\"\nport = \"{REWRITTEN}\"");
    let mut bench = Bench::prepare(&Setup::new(3).second_vipa(&rewritten));
    let host = bench.network.host.clone();
    let before = everything(&host);
    bench.start_forwarder();
    let all = bench.config();
    let traffic = Traffic::begin(&bench);
    traffic.goes_on();

    let started = standing(&host);
    let difference = bench.reload(&all);
    assert_eq!(difference, serde_json::json!({ "added": [], "removed": [], "changed": [] }));
    assert!(standing(&host) == started, "nothing has changed");

    // The last NIC goes, with what stood around it. Nobody sends by it any more: the router's routes are by hand.
    bench.network.pull_cable(3).expect("a cable");
    bench.waits_for_state(3, "no_carrier");
    let (without, last) = all.split_at(all.find("\n[[nic]]\nname = \"eth3\"").expect("eth3"));
    let rest = &last[last.find("\n[source]").expect("a section")..];
    let without = format!("{without}{rest}");
    let difference = bench.reload(&without);
    assert_eq!(strings(&difference["removed"]), ["nic eth3"]);
    assert_eq!(names(&bench), ["eth1", "eth2"]);
    assert!(!rules(&host).contains("oif eth3"), "{}", rules(&host));
    assert_eq!(sysctl(&host, "ipv4/conf/eth3/rp_filter"), "0", "as it was");
    let sent = || host.counters("eth3").expect("a NIC").tx_bytes;
    traffic.goes_on();
    let silent = sent();
    traffic.goes_on();
    assert!(sent() - silent < 6000, "nothing but what the kernel says itself");

    // It comes back, and another one is a mere reserve; by signal it is the same.
    let reserve = all.replacen("name = \"eth2\"", "name = \"eth2\"\nmetric = 2", 1);
    let said = bench.reload_by_signal(&reserve);
    assert!(said.contains("nic eth3") && said.contains("nic eth2: metric"), "{said}");
    assert_eq!(names(&bench), ["eth1", "eth2", "eth3"]);
    assert!(rules(&host).contains("oif eth3"));
    assert_eq!(sysctl(&host, "ipv4/conf/eth3/rp_filter"), "2");
    bench.network.plug_cable(3).expect("a cable");
    bench.waits_for_state(3, "live");
    let carries = |nic: &str, is_used: bool| {
        let sent = || host.counters(nic).expect("a NIC").tx_bytes;
        traffic.goes_on();
        let before = sent();
        traffic.goes_on();
        assert_eq!(sent() - before > 20_000, is_used, "{nic}");
    };
    carries("eth3", true);
    carries("eth2", false);

    // Another address, and no rule: what was rewritten by it goes on.
    let (first, second) = (vipas(Family::V4)[0], vipas(Family::V4)[1]);
    let third = "203.0.113.12";
    let more = all.replacen(&format!("\"{second}\""), &format!("\"{second}\", \"{third}\""), 1);
    let no_rules = more[..more.find("\n[[source.rule]]").expect("rules")].to_owned();
    let difference = bench.reload(&no_rules);
    assert_eq!(strings(&difference["added"]), [&format!("address {third}")]);
    let changed = strings(&difference["changed"]);
    assert!(changed.contains(&"[[source.rule]]"), "{changed:?}");
    traffic.goes_on();
    assert!(run(&host, "ip", &["addr", "show", "vipa0"]).contains(third));
    assert!(rules(&host).contains(&format!("from {third}")));

    // And as it was.
    bench.reload(&all);
    traffic.goes_on();
    let seen: Vec<_> = traffic.flows.iter().map(|flow| flow.seen.ip()).collect();
    assert!(seen.contains(&first) && seen.contains(&second), "{seen:?}");
    assert!(!run(&host, "ip", &["addr", "show", "vipa0"]).contains(third));
    traffic.finish();
    assert!(bench.vipa(&["down", "--stop"]).status.success());
    assert_eq!(
        changes(&host, &before),
        [""; 0],
        "whatever was reloaded, down gives all of it back"
    );
}

#[test]
fn what_is_wrong_changes_nothing_and_is_told() {
    let mut bench = Bench::prepare(&Setup::new(2));
    let host = bench.network.host.clone();
    run(&host, "ip", &["route", "add", "192.0.2.0/24", "dev", "eth1", "table", "924"]);
    bench.start_forwarder();
    let right = bench.config();
    let peer = Peer::listen(&bench.network.client, PORT);
    let flow = Conversation::open(&host, peer.address(Family::V4));
    flow.goes_on(5);
    let (before, generation) = (standing(&host), bench.status()["generation"].clone());

    let unknown = right.replacen("hold-down", "hold-up", 1);
    let line = 1 + right[..right.find("hold-down").expect("a key")].matches('\n').count();
    bench.write_config(&unknown);
    let output = bench.vipa(&["reload"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains(&format!("vipa.toml:{line}:1")) && said.contains("hold-up"), "{said}");
    let mut check = host.command(crate::fixture::PROGRAM);
    let check = check.arg("check").arg(bench.scratch.path().join("vipa.toml")).output();
    assert_eq!(said, String::from_utf8_lossy(&check.expect("it runs").stderr), "as check says it");

    let larger = right.replacen("workers = 1", "workers = 1\nflows = 131072", 1);
    bench.write_config(&larger);
    let output = bench.vipa(&["reload"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("needs a restart") && said.contains("vipa.toml:7:9"), "{said}");
    let said = bench.reload_by_signal(&larger);
    assert!(said.contains("not reloaded, nothing has changed"), "{said}");
    wait_until("the log says why", || bench.forwarder.log().contains("needs a restart"));

    // Right, and the host does not take it: a table that the rule needs belongs to somebody else.
    let rule = format!(
        "\n[[source.rule]]\nprotocol = \"tcp\"\nport = \"80\"\nuse = \"{}\"\n",
        vipas(Family::V4)[1]
    );
    bench.write_config(&format!("{right}{rule}"));
    let output = bench.vipa(&["reload"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("nothing has changed") && said.contains("924"), "{said}");

    assert!(standing(&host) == before, "nothing has changed");
    flow.goes_on(5);
    assert_eq!(
        bench.reload(&right),
        serde_json::json!({ "added": [], "removed": [], "changed": [] })
    );
    assert_eq!(bench.status()["generation"], generation, "no view was published");
    flow.finish();
}

/// nftables is asked when the network has been looked at already: what was taken in by then is given back.
#[test]
fn what_the_host_refuses_midway_is_put_back() {
    let bench = Bench::start(&Setup::new(2));
    let host = &bench.network.host;
    let right = bench.config();
    let peer = Peer::listen(&bench.network.client, PORT);
    let flow = Conversation::open(host, peer.address(Family::V4));
    flow.goes_on(5);
    // Another program has a table of our name.
    let mut other = host
        .command("nft")
        .arg("-i")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("nft (tools/packages.txt)");
    let said = other.stdin.as_mut().expect("a pipe");
    said.write_all(b"add table inet vipa-vipa0 { flags owner; }\n").expect("it reads");
    let has_table = || run(host, "nft", &["list", "tables"]).contains("inet vipa-vipa0");
    wait_until("its table stands", has_table);
    let before = standing(host);

    let (second, third) = (vipas(Family::V4)[1], "203.0.113.12");
    let rule = format!(
        "\n[[source.rule]]\nprotocol = \"tcp\"\napply = \"forwarder\"\nuse = \"{third}\"\n"
    );
    let more = right.replacen(&format!("\"{second}\""), &format!("\"{second}\", \"{third}\""), 1);
    let more = more.replacen("name = \"eth2\"", "name = \"eth2\"\nmetric = 2", 1);
    bench.write_config(&format!("{more}{rule}"));
    let output = bench.vipa(&["reload"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("another program"), "{said}");
    assert!(standing(host) == before, "nothing has changed");
    assert_eq!(bench.nic(2)["metric"], 1);
    flow.goes_on(5);

    other.kill().expect("a child");
    other.wait().expect("a child");
    wait_until("its table is gone", || !has_table());
    bench.reload(&format!("{more}{rule}"));
    assert!(has_table() && run(host, "ip", &["addr", "show", "vipa0"]).contains(third));
    assert_eq!(bench.nic(2)["metric"], 2);
    flow.goes_on(5);
    flow.finish();
}
