//! Starts that fail or are refused; what others remove is put back (V1, V2, B1).

use std::time::Duration;

use vipa::wire::ip::Family;

use crate::fixture::{
    Bench, Conversation, PROGRAM, Peer, Setup, changes, everything, number, wait_until,
};

#[test]
fn a_start_that_fails_takes_back_what_it_did() {
    let mut bench = Bench::prepare(&Setup::new(1));
    bench.run(
        &bench.network.host,
        "ip",
        &["route", "add", "192.0.2.0/24", "dev", "eth1", "table", "923"],
    );
    let before = everything(&bench.network.host);
    let error =
        bench.forwarder.start_and_wait(Duration::from_secs(10)).expect_err("the table is in use");
    assert!(error.to_string().contains("923"), "{error}");
    assert_eq!(changes(&bench.network.host, &before), [""; 0]);
}

#[test]
fn what_others_remove_is_put_back_under_traffic() {
    for protect in ["true", "false"] {
        let setup = Setup::new(2).second_vipa("protocol = \"tcp\"\nport = \"7001\"");
        let mut bench = Bench::prepare(&setup);
        let config = bench.scratch.path().join("vipa.toml");
        let text = std::fs::read_to_string(&config).expect("the configuration");
        let text =
            text.replacen("name = \"vipa0\"", &format!("name = \"vipa0\"\nprotect = {protect}"), 1);
        std::fs::write(&config, text).expect("a file");
        bench.start_forwarder();
        // Without protection the kernel may answer a reply to a rewritten flow before the rules are back.
        let ports: &[u16] = if protect == "true" { &[7000, 7001] } else { &[7000] };
        let peers: Vec<Peer> =
            ports.iter().map(|port| Peer::listen(&bench.network.client, *port)).collect();
        let flows: Vec<Conversation> = peers
            .iter()
            .flat_map(|peer| {
                Family::BOTH.map(|f| Conversation::open(&bench.network.host, peer.address(f)))
            })
            .collect();
        let host = &bench.network.host;
        let whole = everything(host);
        for removal in [
            "nft flush ruleset",
            "ip rule del pref 9320",
            "ip -6 rule del pref 9320",
            "ip addr del 203.0.113.11/32 dev vipa0",
            "ip route flush table 923",
            "ip -6 route flush table 923",
            "sysctl -qw net.ipv4.conf.vipa0.ignore_routes_with_linkdown=0",
        ] {
            flows.iter().for_each(|flow| flow.goes_on(3));
            let words: Vec<&str> = removal.split(' ').collect();
            bench.run(host, words[0], &words[1..]);
            wait_until(removal, || changes(host, &whole).is_empty());
            flows.iter().for_each(|flow| flow.goes_on(3));
        }
        let repaired = number(&bench.status()["router"]["repaired"]);
        assert!(repaired >= 6, "{repaired} repairs were counted");
        flows.into_iter().for_each(Conversation::finish);
    }
}

#[test]
fn an_adapter_that_others_delete_is_made_anew() {
    let bench = Bench::start(&Setup::new(1));
    let peer = Peer::listen(&bench.network.client, 7000);
    let flow = Conversation::open(&bench.network.host, peer.address(Family::V4));
    bench.run(&bench.network.host, "ip", &["link", "del", "vipa0"]);
    let before = bench.carried();
    flow.goes_on(20);
    wait_until("the workers carry it again", || bench.carried() > before + 10);
    flow.finish();
}

#[test]
fn a_second_forwarder_is_refused_in_one_line() {
    let bench = Bench::start(&Setup::new(1));
    let config = bench.scratch.path().join("vipa.toml");
    let output = bench.vipa(&["run", config.to_str().expect("a path")]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    let pid = bench.forwarder.pid().expect("it runs").to_string();
    assert!(
        told.contains("vipa0") && told.contains(&pid) && told.trim().lines().count() == 1,
        "{told}"
    );
}

#[test]
fn a_second_adapter_with_the_first_ones_table_is_refused() {
    let bench = Bench::start(&Setup::new(1));
    let before = everything(&bench.network.host);
    for (change, what) in
        [("", "table 923"), ("\ntable = 940", "preferences among the hundred from 9230 on")]
    {
        let config = bench.scratch.path().join("second.toml");
        let text = bench.config().replace("\"vipa0\"", &format!("\"vipa1\"{change}"));
        std::fs::write(&config, text).expect("a file");
        let output = bench.vipa(&["run", config.to_str().expect("a path")]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("vipa0") && told.contains(what), "{told}");
    }
    assert_eq!(changes(&bench.network.host, &before), [""; 0]);
}

#[test]
fn without_privileges_one_line_names_what_is_missing() {
    use std::os::unix::process::CommandExt;
    let bench = Bench::prepare(&Setup::new(1));
    // A copy that nobody may read from the build's own directories.
    let program = bench.scratch.path().join("vipa");
    std::fs::copy(PROGRAM, &program).expect("a copy");
    let config = bench.scratch.path().join("vipa.toml");
    bench.run(
        &bench.network.host,
        "chmod",
        &["-R", "a+rX", bench.scratch.path().to_str().expect("a path")],
    );
    let output = bench
        .network
        .host
        .command("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .arg(&program)
        .arg("run")
        .arg(&config)
        .process_group(0)
        .output()
        .expect("setpriv of util-linux");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("CAP_NET_ADMIN") && told.contains("CAP_NET_RAW"), "{told}");
    assert_eq!(told.trim().lines().count(), 1, "{told}");
}

#[test]
fn check_plan_changes_nothing_and_names_what_would_differ() {
    let setup = Setup::new(1)
        .second_vipa_by_anyone("protocol = \"udp\"\nport = \"53\"")
        .second_vipa("")
        .second_vipa_by_anyone("protocol = \"tcp\"\nuser = \"root\"");
    let bench = Bench::prepare(&setup);
    let host = &bench.network.host;
    let server = host.run(|| std::net::UdpSocket::bind("0.0.0.0:5353")).expect("a socket");
    for rule in [
        "add table ip t",
        "add chain ip t post { type nat hook postrouting priority 0; }",
        "add rule ip t post oifname eth1 masquerade",
    ] {
        bench.run(host, "nft", &[rule]);
    }
    let before = everything(host);
    let config = bench.scratch.path().join("vipa.toml");
    let output = bench.run(host, PROGRAM, &["check", "--plan", config.to_str().expect("a path")]);
    assert!(output.contains("5353"), "the wildcard socket: {output}");
    assert!(output.contains("eth1") && output.contains("post"), "the nftables rule: {output}");
    assert!(output.contains("table 923") && output.contains("rule 9233"), "{output}");
    for wanted in [
        "rule 9240: from 0.0.0.0/32 to 10.9.0.2/32 iif lo ipproto 17 sport 32768-60999 dport 53-53 lookup 924",
        "udp to 10.9.0.2/32 port 53 carries 203.0.113.11, by the kernel (by a policy rule",
        "all to 10.9.0.2/32 carries 203.0.113.11, by the forwarder (apply = \"forwarder\")",
        "user 0 carries 203.0.113.11, by the forwarder (it can match the same packet as the rule of line",
    ] {
        assert!(output.contains(wanted), "{wanted} is not in {output}");
    }
    for family in ["inet", "netdev"] {
        assert!(output.contains(&format!("table {family} vipa-vipa0: ")), "{output}");
    }
    assert_eq!(changes(host, &before), [""; 0]);
    drop(server);
}

#[test]
fn a_flow_file_that_does_not_fit_is_replaced_and_said_so() {
    let mut bench = Bench::start(&Setup::new(1).second_vipa("protocol = \"tcp\"\nport = \"7001\""));
    bench.forwarder.kill();
    let state = bench.scratch.path().join("state");
    let file = std::fs::read_dir(state)
        .expect("the state directory")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "flows"))
        .expect("a flow file");
    let whole = std::fs::read(&file).expect("a file");
    // Layout version (word 1) of an older and of a newer binary; a torn header; a file cut short.
    let with_version = |version: u64| {
        let mut bytes = whole.clone();
        bytes[8..16].copy_from_slice(&version.to_ne_bytes());
        bytes
    };
    let mut torn = whole.clone();
    torn[20] ^= 0xff;
    for bytes in [with_version(0), with_version(99), torn, whole[..5000].to_vec()] {
        std::fs::write(&file, bytes).expect("a file");
        let said = bench.forwarder.log().matches("does not fit").count();
        bench.start_forwarder();
        assert_eq!(bench.forwarder.log().matches("does not fit").count(), said + 1);
        bench.forwarder.kill();
    }
}
