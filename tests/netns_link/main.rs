//! The network side against the real kernel: each test in a network namespace of its own. Needs root, `ip`
//! and `nsenter`.

mod fixture;
mod reload;
mod rules;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vipa::engine::message::{Command as Told, HeldFlow, Request};
use vipa::engine::statistics::RouterStatistics;
use vipa::forward::source::{Rule, Target};
use vipa::forward::view::{NicId, NicState, WorkerId};
use vipa::link::down::down;
use vipa::link::router::Router;

use crate::fixture::{PATIENCE, Running, eventually, everything, in_namespace, ip, sysctl};

#[test]
fn down_leaves_the_host_as_it_was() {
    in_namespace("down", |fixture| {
        let settings = [
            "ipv4/conf/eth1/rp_filter",
            "ipv4/conf/eth2/ignore_routes_with_linkdown",
            "ipv6/conf/eth1/ignore_routes_with_linkdown",
            "ipv4/ip_local_reserved_ports",
        ];
        fs::write("/proc/sys/net/ipv4/conf/eth1/rp_filter", "1\n").expect("it can be set");
        fs::write("/proc/sys/net/ipv4/ip_local_reserved_ports", "8080\n").expect("it can be set");
        let (before, values) = (everything(), settings.map(sysctl));
        let mut config = fixture.config();
        config.source.rules =
            vec![Rule { protocol: Some(6), target: Target::Physical, ..Rule::default() }];
        drop(fixture.run(config.clone()));
        assert_eq!(settings.map(sysctl), ["2", "1", "1", "8080,61000-65535"]);
        eventually("it stays, for the kernel", || ip("link show vipa0").contains("NO-CARRIER"));
        let stands = everything();
        // Again, as after a crash: nothing changes, and the originals stay the originals.
        drop(fixture.run(config));
        assert_eq!(everything(), stands);
        fixture.down();
        assert_eq!(everything(), before);
        assert_eq!(settings.map(sysctl), values);
        assert!(fs::read_dir(&fixture.state).expect("it is there").next().is_none());
        let report = down(&fixture.state, None).expect("twice is no error");
        assert!(report.adapters.is_empty());
    });
}

#[test]
fn a_second_prepare_changes_nothing() {
    in_namespace("adopt", |fixture| {
        let (prepared, _) = fixture.prepare(fixture.config());
        let stands = everything();
        drop(prepared);
        let index = ip("-o link show vipa0");
        let (_prepared, statistics) = fixture.prepare(fixture.config());
        assert_eq!(everything(), stands);
        assert_eq!(ip("-o link show vipa0"), index);
        assert_eq!((statistics.repaired.get(), statistics.kernel_errors.get()), (0, 0));
    });
}

#[test]
fn packets_go_the_way_they_should() {
    in_namespace("ways", |fixture| {
        let running = fixture.run(fixture.config());
        let way = |to: &str| ip(&format!("route get {to}")).lines().next().unwrap_or("").to_owned();
        for (to, expected) in [
            ("198.51.100.1", "dev vipa0 table 923 src 203.0.113.10"),
            ("10.1.1.77", "dev vipa0 table 923 src 203.0.113.10"),
            ("10.20.3.4", "dev vipa0 table 923 src 203.0.113.10"),
            ("198.51.100.1 from 203.0.113.11", "dev vipa0"),
            ("198.51.100.1 from 10.1.1.2", "via 192.168.9.1 dev mgmt"),
            ("10.1.1.77 from 10.1.1.2", "dev eth1"),
            ("10.1.1.77 oif eth1", "dev eth1 src 10.1.1.2"),
            ("192.168.9.7", "dev mgmt src 192.168.9.2"),
            ("172.17.0.9", "dev docker0 src 172.17.0.1"),
            ("224.0.0.5 oif eth1", "dev eth1"),
            ("2001:db8:77::1", "dev vipa0 table 923 proto 118 src 2001:db8::10"),
            ("2001:db8:1::77", "dev vipa0 table 923 proto 118 src 2001:db8::10"),
            ("2001:db8:1::77 from 2001:db8:1::2", "dev eth1"),
            ("2001:db8:77::1 from 2001:db8::10", "dev vipa0"),
        ] {
            assert!(way(to).contains(expected), "{to}: {} (wanted {expected})", way(to));
        }
        assert!(
            !Command::new("ip")
                .args(["route", "get", "10.66.0.1"])
                .output()
                .expect("ip is installed")
                .status
                .success(),
            "unreachable stays unreachable"
        );
        drop(running);
        // Without a forwarder the kernel carries on, with the VIPA as source.
        eventually("the fallback is used", || {
            let now = way("198.51.100.1");
            now.contains("dev eth") && now.contains("src 203.0.113.10")
        });
        let now = way("2001:db8:77::1");
        assert!(now.contains("dev eth") && now.contains("src 2001:db8::10"), "{now}");
    });
}

#[test]
fn what_others_remove_is_put_back() {
    in_namespace("repair", |fixture| {
        let running = fixture.run(fixture.config());
        running.survives("ip rule flush", || {
            // It takes the kernel's own two with it, which are not ours to put back.
            ip("rule flush");
            ip("rule add lookup main pref 32766");
            ip("rule add lookup default pref 32767");
        });
        running.survives("ip -6 rule del", || {
            ip("-6 rule del pref 9320");
        });
        running.survives("IPv4 VIPA", || {
            ip("addr del 203.0.113.10/32 dev vipa0");
        });
        running.survives("IPv6 VIPA", || {
            ip("-6 addr del 2001:db8::10/128 dev vipa0");
        });
        running.survives("all VIPAs", || {
            ip("addr flush dev vipa0");
        });
        running.survives("IPv4 routes", || {
            ip("route flush table 923");
        });
        running.survives("IPv6 routes", || {
            ip("-6 route flush table 923");
        });
        running.survives("a throw", || {
            ip("route del throw 172.17.0.0/16 table 923 metric 10");
        });
        running.survives("the adapter set down", || {
            ip("link set vipa0 down");
        });
        running.survives("its MTU", || {
            ip("link set vipa0 mtu 1400");
            eventually("the MTU", || ip("link show vipa0").contains("mtu 1500"));
            ip("rule del pref 9232 from 203.0.113.10");
        });
        let settings = ["ipv4/conf/eth1/rp_filter", "ipv4/conf/vipa0/ignore_routes_with_linkdown"];
        for setting in settings {
            fs::write(format!("/proc/sys/net/{setting}"), "0\n").expect("it can be set");
            eventually(setting, || sysctl(setting) != "0");
        }
        assert_eq!(running.attachments.load(Ordering::Acquire), 1);
    });
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    in_namespace("undo", |fixture| {
        // Rules are the last that a start sets up; the kernel takes none for such a name.
        let (before, rp_filter) = (everything(), sysctl("ipv4/conf/eth1/rp_filter"));
        let mut config = fixture.config();
        config.nics[0].name = "a-name-that-is-too-long-for-a-device".into();
        let statistics = Arc::new(RouterStatistics::default());
        let error = Router::prepare(Arc::new(config), fixture.state.clone(), statistics)
            .expect_err("the kernel refuses the name");
        assert!(error.to_string().contains("the kernel refused `rule 9231"), "{error}");
        assert!(!error.to_string().contains('\n'));
        assert_eq!(everything(), before);
        assert_eq!(sysctl("ipv4/conf/eth1/rp_filter"), rp_filter);
        assert!(fs::read_dir(&fixture.state).expect("it is there").next().is_none());
    });
}

#[test]
fn a_device_of_another_kind_with_the_adapters_name_is_named_and_left_alone() {
    in_namespace("kinds", |fixture| {
        for kind in [
            "link add vipa0 type bridge",
            "tuntap add vipa0 mode tap multi_queue",
            "tuntap add vipa0 mode tun",
        ] {
            ip(kind);
            let before = everything();
            let (config, statistics) = (Arc::new(fixture.config()), Arc::default());
            let error = Router::prepare(config, fixture.state.clone(), statistics)
                .expect_err("it is no adapter of vipa's")
                .to_string();
            assert!(
                error.contains("vipa0") && error.contains("no TUN with several queues"),
                "{error}"
            );
            assert_eq!(everything(), before, "{kind}");
            ip("link del vipa0");
        }
        ip("tuntap add vipa0 mode tun multi_queue");
        drop(fixture.run(fixture.config()));
        fixture.down();
    });
}

#[test]
fn a_table_that_others_use_is_refused() {
    in_namespace("foreign", |fixture| {
        ip("route add 10.99.0.0/16 dev eth1 table 923");
        let before = everything();
        let statistics = Arc::new(RouterStatistics::default());
        let config = Arc::new(fixture.config());
        let error = Router::prepare(config, fixture.state.clone(), statistics)
            .expect_err("the table is in use");
        assert!(error.to_string().contains("10.99.0.0/16"), "{error}");
        assert_eq!(everything(), before);
    });
}

#[test]
fn another_table_and_other_vipas_replace_the_former() {
    in_namespace("moved", |fixture| {
        let before = everything();
        drop(fixture.prepare(fixture.config()));
        let mut config = fixture.config();
        config.adapter.table = 924;
        config.adapter.preference = 8000;
        config.adapter.addresses.remove(1);
        drop(fixture.prepare(config));
        assert!(ip("route show table 924").contains("dev vipa0"));
        let now = everything();
        assert!(!now.contains("table 923:"), "{now}");
        assert!(!now.contains("show: 923") && !now.contains("203.0.113.11"), "{now}");
        fixture.down();
        assert_eq!(everything(), before);
        assert!(ip("route show table 924").is_empty());
    });
}

#[test]
fn workers_get_what_they_ask_for() {
    in_namespace("requests", |fixture| {
        let running = fixture.run(fixture.config());
        let address: IpAddr = "10.1.1.77".parse().expect("an address");
        let hop = (NicId(0), address);
        let known =
            || running.cell.load().neighbours.find(hop.0, hop.1).map(|(_, way)| way.destination);
        running.ask(Request::Resolve { nic: NicId(0), address });
        eventually("the kernel is asked", || ip("neigh show dev eth1").contains("10.1.1.77"));
        assert_eq!(known(), None);
        ip("neigh replace 10.1.1.77 dev eth1 lladdr 02:00:00:00:00:77 nud reachable");
        eventually("in the view", || {
            known().is_some_and(|mac| mac.to_string() == "02:00:00:00:00:77")
        });
        // Nobody asked for this one.
        ip("neigh replace 10.1.1.78 dev eth1 lladdr 02:00:00:00:00:78 nud reachable");
        // A gateway fixed by hand stays fixed, a managed one comes back.
        ip("neigh replace 10.1.2.1 dev eth2 lladdr 02:00:00:00:00:01 nud permanent");
        ip("neigh del 10.1.1.1 dev eth1");
        eventually("managed again", || ip("neigh show 10.1.1.1 dev eth1").contains("managed"));
        assert!(ip("neigh show 10.1.2.1 dev eth2").contains("PERMANENT"));
        assert_eq!(running.cell.load().neighbours.len(), 2);
        let flow = held(&running);
        eventually("held", || {
            let told = running.told.lock().expect("nobody panicked");
            matches!(told.as_slice(), [(WorkerId(0), Told::Held(held))] if *held == flow)
        });
        running.ask(Request::Release(flow));
        running.ask(Request::Suspect(NicId(1)));
    });
}

/// Has a flow held, with the VIPA's port 40000.
fn held(running: &Running) -> HeldFlow {
    let flow = HeldFlow {
        protocol: 6,
        source: "203.0.113.10".parse().expect("an address"),
        source_port: 40000,
        destination: "198.51.100.1".parse().expect("an address"),
        destination_port: 80,
        wire: None,
    };
    running.ask(Request::Hold { worker: WorkerId(0), flow });
    flow
}

#[test]
fn flushed_nftables_rules_come_back_with_the_flows_held() {
    in_namespace("nft", |fixture| {
        let ruleset = || {
            let output = Command::new("nft").args(["list", "ruleset"]).output();
            let text = String::from_utf8(output.expect("nft is installed").stdout);
            // The lease runs out a little every moment.
            let text = text.expect("nft speaks UTF-8");
            text.lines().filter(|l| !l.contains("expires")).collect::<Vec<_>>().join("\n")
        };
        let mut config = fixture.config();
        config.source.rules =
            vec![Rule { protocol: Some(6), target: Target::Physical, ..Rule::default() }];
        let running = fixture.run(config);
        held(&running);
        eventually("held", || ruleset().contains("40000"));
        let before = ruleset();
        assert!(before.contains("vipa-vipa0") && before.contains("10.1.2.2"), "{before}");
        let repaired = running.statistics.repaired.get();
        let flush = Command::new("nft").args(["flush", "ruleset"]).status();
        assert!(flush.expect("nft is installed").success());
        eventually("put back", || ruleset() == before);
        eventually("counted", || running.statistics.repaired.get() > repaired);
        // A NIC made anew has lost its chain, and gets another one.
        ip("link del eth2");
        ip("link add eth2 type veth peer name p2");
        ip("link set eth2 up");
        ip("addr add 10.1.2.2/24 dev eth2");
        ip("-6 addr add 2001:db8:2::2/64 dev eth2 nodad");
        eventually("the chain of the new NIC", || ruleset() == before);
        drop(running);
        assert_eq!(ruleset(), before, "it stays while no forwarder runs");
        fixture.down();
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn a_connection_to_a_physical_address_lives_through_it_all() {
    in_namespace("operator", |fixture| {
        // The operator sits behind eth1, in a namespace of its own.
        let operator = Command::new("unshare").args(["-n", "sleep", "60"]).spawn();
        let mut operator = operator.expect("unshare is installed");
        let pid = operator.id();
        let own = fs::read_link("/proc/thread-self/ns/net").expect("it can be read");
        eventually("its namespace", || {
            fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|theirs| theirs != own)
        });
        ip(&format!("link set p1 netns {pid}"));
        let there = |command: &str| {
            let status = Command::new("nsenter")
                .args([&format!("--net=/proc/{pid}/ns/net"), "--"])
                .args(command.split(' '))
                .status();
            assert!(status.expect("nsenter is installed").success(), "{command}");
        };
        there("ip addr add 10.1.1.1/24 dev p1");
        there("ip link set p1 up");
        let listener = std::net::TcpListener::bind("10.1.1.2:2222").expect("it can listen");
        let mut client = Command::new("nsenter")
            .args([&format!("--net=/proc/{pid}/ns/net"), "--", "bash", "-c"])
            .arg("exec 3<>/dev/tcp/10.1.1.2/2222; while read -u3 line; do echo $line >&3; done")
            .spawn()
            .expect("nsenter is installed");
        let (mut stream, _) = listener.accept().expect("it connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("it can be set");
        let mut reader = BufReader::new(stream.try_clone().expect("it can be cloned"));
        let mut echo = |word: &str| {
            writeln!(stream, "{word}").expect("the connection lives");
            let mut line = String::new();
            reader.read_line(&mut line).expect("the connection lives");
            assert_eq!(line.trim(), word);
        };
        echo("before");
        let running = fixture.run(fixture.config());
        echo("running");
        drop(running);
        echo("stopped");
        drop(fixture.run(fixture.config()));
        echo("again");
        fixture.down();
        echo("down");
        for child in [&mut client, &mut operator] {
            child.kill().expect("it is ours");
            child.wait().expect("it ends");
        }
    });
}

#[test]
fn a_deleted_adapter_is_made_anew_and_attached() {
    in_namespace("adapter", |fixture| {
        let running = fixture.run(fixture.config());
        let before = everything();
        ip("link del vipa0");
        eventually("workers attached again", || running.attachments.load(Ordering::Acquire) == 2);
        eventually("all is as it was", || {
            everything() == before && ip("link show vipa0").contains("LOWER_UP")
        });
    });
}

#[test]
fn a_nic_comes_and_goes() {
    in_namespace("nic", |fixture| {
        let running = fixture.run(fixture.config());
        let fallback = || {
            let routes = ip("route show table 923 default metric 100");
            (routes.contains("dev eth1"), routes.contains("dev eth2"))
        };
        assert_eq!(
            (running.state(0), running.state(1)),
            ((NicState::Live, true), (NicState::Live, true))
        );
        assert_eq!(fallback(), (true, true));
        ip("link set p1 down");
        eventually("no carrier", || running.state(0) == (NicState::NoCarrier, false));
        eventually("out of the fallback", || fallback() == (false, true));
        ip("link set p1 up");
        eventually("held down", || running.state(0) == (NicState::HeldDown, false));
        // The last one dies: what is held down is better than nothing.
        ip("link set p2 down");
        eventually("pressed into service", || running.state(0).1);
        eventually("live", || running.state(0) == (NicState::Live, true));
        ip("link del eth1");
        eventually("missing", || running.state(0) == (NicState::Missing, false));
        ip("link add eth1 type veth peer name p1");
        ip("link set p1 up");
        ip("link set eth1 up mtu 1400");
        ip("addr add 10.1.1.2/24 dev eth1");
        eventually("back", || running.state(0).0 == NicState::HeldDown);
        eventually("the fallback is whole", || fallback() == (true, false));
        eventually("its settings are made", || sysctl("ipv4/conf/eth1/rp_filter") == "2");
        eventually("the adapter is as narrow", || ip("link show vipa0").contains("mtu 1400"));
        // The kernel drops a whole IPv4 multipath route with one of its devices, and says nothing.
        ip("link set p2 up");
        eventually("whole again", || fallback() == (true, true));
        ip("link del eth2");
        eventually("the other one stays", || fallback() == (true, false));
        eventually("its address is known", || {
            let view = running.cell.load();
            view.nic(NicId(0)).addresses == [("10.1.1.2".parse().expect("an address"), 24)]
        });
        drop(running);
        fixture.down();
    });
}

#[test]
fn events_that_were_lost_are_made_up_for_by_reading_all_anew() {
    in_namespace("overrun", |fixture| {
        let (prepared, statistics) = fixture.prepare(fixture.config());
        // Nobody reads while these happen: far more than the socket holds.
        let batch = fixture.state.join("batch");
        let mut lines = String::new();
        for verb in ["add", "del"] {
            for n in 0..30_000 {
                let (a, b) = (n / 250, n % 250);
                lines.push_str(&format!("route {verb} 11.{a}.{b}.0/24 via 10.1.1.1 dev eth1\n"));
            }
        }
        lines.push_str("route add 12.1.0.0/16 via 10.1.2.1 dev eth2\nroute del 10.20.0.0/16\n");
        fs::write(&batch, lines).expect("a file");
        ip(&format!("-batch {}", batch.display()));
        assert_eq!(statistics.resyncs.get(), 0);

        let running = fixture.run_prepared(prepared, statistics);
        eventually("the view is what the kernel has", || {
            let view = running.cell.load();
            let has = |prefix: &str| {
                let prefix = prefix.parse().expect("a prefix");
                view.routes.routes().iter().any(|route| route.prefix == prefix)
            };
            has("12.1.0.0/16") && !has("10.20.0.0/16") && !has("11.0.0.0/24")
        });
        assert!(running.statistics.resyncs.get() >= 1, "events were lost");
        ip("route add 12.2.0.0/16 via 10.1.2.1 dev eth2");
        eventually("it hears of what comes after", || {
            let prefix = "12.2.0.0/16".parse().expect("a prefix");
            running.cell.load().routes.routes().iter().any(|route| route.prefix == prefix)
        });
    });
}
