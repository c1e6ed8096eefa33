//! Services of a configuration, good and bad.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use crate::balance::policy::Policy;
use crate::balance::service::{Choose, Mode, OnDeath, Settings, WhenNone};
use crate::config::Config;
use crate::wire::ip::{TCP, UDP};

const HEAD: &str = r#"[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "203.0.113.11", "203.0.113.12", "2001:db8::10", "2001:db8::11"]
[[nic]]
name = "eth1"
"#;

/// A service with as little as there may be; the lines of `more` belong to it.
fn service(more: &str) -> String {
    let mut more = more.to_owned();
    for (key, line) in [("name", "name = 'web'"), ("address", "address = '203.0.113.10:80'")] {
        if !more.lines().take_while(|line| !line.starts_with('[')).any(|line| line.starts_with(key))
        {
            more = format!("{line}\n{more}");
        }
    }
    for (table, text) in [
        (
            "[[service.status]]",
            "[[service.status]]\nname = 'clients'\nrole = 'clients'\nkind = 'push'\n",
        ),
        ("[[service.server]]", "[[service.server]]\nname = 'a'\naddress = '10.2.0.2:80'\n"),
    ] {
        if !more.contains(table) {
            more = format!("{more}\n{text}");
        }
    }
    format!("[[service]]\n{more}\n")
}

fn read(services: &[&str]) -> Vec<Settings> {
    let all: String = services.iter().map(|more| service(more)).collect();
    let (config, warnings) =
        Config::parse(&format!("{HEAD}{all}"), Path::new("vipa.toml")).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    config.services
}

/// Text at the place of the mistake, what was found, and what was wanted, of the only mistake.
fn mistake(services: &[&str]) -> (String, String, String) {
    let all: String = services.iter().map(|more| service(more)).collect();
    let text = format!("{HEAD}{all}");
    let errors = Config::parse(&text, Path::new("vipa.toml")).unwrap_err();
    let [mistake] = errors.mistakes() else { panic!("{errors}") };
    let line = text.lines().nth(mistake.line - 1).unwrap();
    let rest = line.chars().skip(mistake.column - 1).collect();
    (rest, mistake.found.clone(), mistake.wanted.clone())
}

fn found(services: &[&str]) -> String {
    mistake(services).1
}

#[test]
fn what_is_left_out_has_its_default() {
    let [web] = &read(&[""])[..] else { panic!("one service") };
    assert_eq!((&*web.name, web.show_address()), ("web", "203.0.113.10:80".to_owned()));
    assert_eq!((web.protocol, web.port()), (TCP, Some(80)));
    assert_eq!(web.mode, Mode::Nat { sources: Vec::new(), keeps_client: false });
    assert_eq!((&web.policy, web.choose), (&Policy::LeastLoaded, Choose::Preferred));
    assert_eq!((web.hysteresis, web.rise, web.fall), (0.1, 2, 3));
    assert_eq!((web.when_none, web.on_death), (WhenNone::Refuse, OnDeath::Reset));
    assert_eq!(web.slow_start, Duration::ZERO);
    let [a] = &web.servers[..] else { panic!("one server") };
    assert_eq!((&*a.name, a.address, a.port), ("a", IpAddr::from([10, 2, 0, 2]), Some(80)));
    assert_eq!((a.weight, a.capacity, a.is_local, a.place), (1, None, false, (17, 11)));
}

#[test]
fn every_key_is_read() {
    let services = read(&[
        r#"
name = "dns.1"
address = "[2001:db8::10]:*"
protocol = "udp"
mode = "direct"
score = "clients * 2"
choose = "weighted"
when-none = "last"
on-death = "reselect"
hysteresis = "2.5%"
rise = 4
fall = 1
slow-start = "30s"
[[service.server]]
name = "a"
address = "2001:db8:2::2"
weight = 0
capacity = 1.5
[[service.server]]
name = "b"
address = "2001:db8:2::3"
"#,
        r#"
address = "203.0.113.11:1000-2000"
source = ["203.0.113.12"]
when-none = "10.9.9.9:80"
[[service.server]]
name = "here"
address = "203.0.113.10:8080"
"#,
    ]);
    let [dns, web] = &services[..] else { panic!("two services") };
    assert_eq!((dns.show_address(), dns.protocol), ("[2001:db8::10]:*".to_owned(), UDP));
    assert_eq!((&dns.mode, dns.policy.to_string()), (&Mode::Direct, "clients * 2".to_owned()));
    assert_eq!((dns.choose, dns.when_none), (Choose::Weighted, WhenNone::Last));
    assert_eq!((dns.on_death, dns.hysteresis), (OnDeath::Reselect, 0.025));
    assert_eq!((dns.rise, dns.fall, dns.slow_start), (4, 1, Duration::from_secs(30)));
    assert_eq!((dns.servers[0].weight, dns.servers[0].capacity), (0, Some(1.5)));
    assert_eq!(dns.servers[0].port, None);
    assert_eq!(web.ports, 1000..=2000);
    let sources = vec![IpAddr::from([203, 0, 113, 12])];
    assert_eq!(web.mode, Mode::Nat { sources, keeps_client: false });
    assert_eq!(web.when_none, WhenNone::Sorry("10.9.9.9:80".parse().unwrap()));
    assert!(web.servers[0].is_local);
}

#[test]
fn an_address_is_a_vipa_with_ports() {
    for (address, wanted) in [
        ("203.0.113.99:80", "203.0.113.99 is no VIPA"),
        ("203.0.113.10", "`address` is \"203.0.113.10\""),
        ("203.0.113.10:0", "`address` is \"203.0.113.10:0\""),
        ("203.0.113.10:80-79", "`address` is \"203.0.113.10:80-79\""),
        ("203.0.113.10:65536", "`address` is \"203.0.113.10:65536\""),
        ("2001:db8::10:80", "`address` is \"2001:db8::10:80\""),
        ("[203.0.113.10]:80", "`address` is \"[203.0.113.10]:80\""),
    ] {
        let (at, found, _) = mistake(&[&format!("address = '{address}'")]);
        assert_eq!((at, &*found), (format!("'{address}'"), wanted));
    }
}

#[test]
fn a_server_is_an_address_with_or_without_a_port() {
    let server = |address: &str, wanted: &str| {
        let more = format!("[[service.server]]\nname = 'a'\naddress = '{address}'");
        let (at, found, _) = mistake(&[&more]);
        assert_eq!((at, &*found), (format!("'{address}'"), wanted));
    };
    server("10.2.0.2:0", "`address` is \"10.2.0.2:0\"");
    server("server.example:80", "`address` is \"server.example:80\"");
    server("127.0.0.1:80", "127.0.0.1 is loopback");
    server("[2001:db8::2]:80", "2001:db8::2 and the service's 203.0.113.10 are of two families");
    server("203.0.113.10:80", "that is where the service \"web\" is itself");
    server("203.0.113.10", "that is where the service \"web\" is itself");
    let more = "[[service.server]]\nname = 'a'\naddress = '10.2.0.2:80'\nfarm = 'x'";
    assert_eq!(found(&[more]), "`farm` is not in this version of vipa");
}

#[test]
fn no_server_is_another_service() {
    let first = "[[service.server]]\nname = 'a'\naddress = '203.0.113.11:443'";
    let wanted = "that is where the service \"other\" is itself";
    assert_eq!(found(&[first, "name = 'other'\naddress = '203.0.113.11:400-500'"]), wanted);
    // Of another protocol it may.
    read(&[first, "name = 'other'\naddress = '203.0.113.11:400-500'\nprotocol = 'udp'"]);
    let sorry = "when-none = '203.0.113.11:443'";
    assert_eq!(found(&[sorry, "name = 'other'\naddress = '203.0.113.11:443'"]), wanted);
}

#[test]
fn direct_leaves_the_packet_as_it_is() {
    let direct = |more: &str| found(&[&format!("mode = 'direct'\n{more}")]);
    let server =
        |address: &str| direct(&format!("[[service.server]]\nname='a'\naddress='{address}'"));
    assert_eq!(server("10.2.0.2:81"), "mode \"direct\" leaves the packet as it is, and its port");
    let wanted = "203.0.113.11 is a VIPA of this host, and mode \"direct\" is for others";
    assert_eq!(server("203.0.113.11:80"), wanted);
    assert_eq!(direct("source = ['203.0.113.12']"), "`source` with mode \"direct\"");
    assert_eq!(direct("keep-client = true"), "`keep-client` with mode \"direct\"");
    assert_eq!(found(&["mode = 'tunnel'"]), "`mode` \"tunnel\" is not in this version of vipa");
}

#[test]
fn what_nat_has_wholly_is_nobody_elses() {
    let wrong = |source: &str, wanted: &str| {
        let (at, found, _) = mistake(&[&format!("source = ['203.0.113.12', '{source}']")]);
        assert_eq!((at, &*found), (format!("'{source}']"), wanted));
    };
    wrong("203.0.113.99", "203.0.113.99 is no VIPA");
    wrong("2001:db8::11", "2001:db8::11 and the service's 203.0.113.10 are of two families");
    wrong("203.0.113.10", "203.0.113.10 is the default source of what this host sends");
    let source = "source = ['203.0.113.12']";
    read(&[
        source,
        "name = 'low'\naddress = '203.0.113.12:443'",
        "name = 'too'\naddress = '203.0.113.11:80'\nsource = ['203.0.113.12']",
    ]);
    for address in ["203.0.113.12:*", "203.0.113.12:8080", "203.0.113.12:1-1024"] {
        let other = format!("name = 'all'\naddress = '{address}'");
        let wanted = format!("203.0.113.12 has ports of the service \"all\", {address}");
        assert_eq!(found(&[source, &other]), wanted);
    }
    let here =
        format!("{source}\n[[service.server]]\nname = 'here'\naddress = '203.0.113.12:8080'");
    assert_eq!(found(&[&here]), "on 203.0.113.12 is the server \"here\"");
    let both = format!("{source}\nkeep-client = true");
    assert_eq!(found(&[&both]), "`source` with `keep-client`");
}

#[test]
fn what_a_source_rule_uses_is_not_nats() {
    let rule = "[[source.rule]]\nuse = '203.0.113.12'\nprotocol = 'tcp'\n";
    let text = format!("{HEAD}{rule}{}", service("source = ['203.0.113.12']"));
    let errors = Config::parse(&text, Path::new("vipa.toml")).unwrap_err();
    assert_eq!(errors.mistakes()[0].found, "203.0.113.12 is what a [[source.rule]] uses");
}

#[test]
fn nothing_is_given_twice() {
    assert_eq!(found(&["", "address = '203.0.113.11:80'"]), "\"web\" is given twice");
    let wanted = "203.0.113.10:1-100 and the 203.0.113.10:80 of \"web\" overlap";
    let (at, found_it, line) = mistake(&["", "name = 'x'\naddress = '203.0.113.10:1-100'"]);
    assert_eq!((&*at, &*found_it), ("address = '203.0.113.10:1-100'", wanted));
    assert_eq!(line, "each port for one service; that one stands in line 7");
    read(&["", "name = 'x'\naddress = '203.0.113.10:80'\nprotocol = 'udp'"]);
    let server = "[[service.server]]\nname = 'a'\naddress = '10.2.0.2:80'\n";
    let again = format!("{server}{}", server.replace("'a'", "'b'"));
    assert_eq!(found(&[&again]), "two servers of one address and port");
    let again = format!("{server}{}", server.replace(":80", ":81"));
    assert_eq!(found(&[&again]), "\"a\" is given twice");
    let status = "[[service.status]]\nname = 'clients'\nkind = 'push'\n";
    let text = format!("score = 'clients'\n{status}{status}");
    assert_eq!(found(&[&text]), "two status objects have the name \"clients\"");
}

#[test]
fn names_can_be_typed() {
    for (name, wanted) in [
        ("a/b", "the name \"a/b\" holds '/'"),
        ("", "the name is empty"),
        ("größe", "the name \"größe\" holds 'ö'"),
    ] {
        assert_eq!(found(&[&format!("name = '{name}'")]), wanted);
    }
}

#[test]
fn a_policy_needs_its_role() {
    let wanted = "policy \"closest\" without a status object of the role \"distance\"";
    let (at, found_it, _) = mistake(&["policy = 'closest'"]);
    assert_eq!((&*at, &*found_it), ("'closest'", wanted));
    let status = "[[service.status]]\nname = 'x'\nkind = 'tcp'";
    let wanted = "policy \"least-loaded\" without a status object of the role \"clients\"";
    assert_eq!(found(&[status]), wanted);
    let wanted = "policy \"greatest-capacity\", and not every server says its `capacity`";
    assert_eq!(found(&["policy = 'greatest-capacity'"]), wanted);
    let stated = "policy = 'greatest-capacity'\n[[service.server]]\nname = 'a'\naddress = '10.2.0.2:80'\ncapacity = 8";
    assert_eq!(read(&[stated])[0].policy, Policy::GreatestCapacity);
    assert_eq!(
        found(&["policy = 'closest'\nscore = 'clients'"]),
        "`policy` and `score` in one service"
    );
    assert_eq!(found(&["policy = 'best'"]), "`policy` is \"best\"");
}

#[test]
fn a_mistake_in_a_score_has_its_column() {
    let score = |text: &str| {
        let (at, found, _) = mistake(&[&format!("score = {text}")]);
        (at, found)
    };
    let nope = "no status object is called \"nope\"".to_owned();
    assert_eq!(score("'clients + nope'"), ("nope'".to_owned(), nope.clone()));
    assert_eq!(score("'''\nclients +\n  nope'''"), ("nope'''".to_owned(), nope.clone()));
    assert_eq!(score("'clients +'"), ("'".to_owned(), "the expression ends here".to_owned()));
    // Escapes hide the place: the string as a whole.
    assert_eq!(score("\"clients +\\tnope\"").0, "\"clients +\\tnope\"");
}

#[test]
fn numbers_and_shares_have_their_bounds() {
    for (line, wanted) in [
        ("hysteresis = '101%'", "`hysteresis` is \"101%\""),
        ("hysteresis = '10'", "`hysteresis` is \"10\""),
        ("hysteresis = 'NaN%'", "`hysteresis` is \"NaN%\""),
        ("rise = 0", "`rise` is 0"),
        ("fall = 101", "`fall` is 101"),
        ("slow-start = '2h'", "`slow-start` is \"2h\""),
        ("when-none = 'pray'", "`when-none` is \"pray\""),
        ("choose = 'all'", "`choose` is \"all\""),
        ("on-death = 'mourn'", "`on-death` is \"mourn\""),
        ("protocol = 'sctp'", "`protocol` is \"sctp\""),
        ("polcy = 'closest'", "[[service]] has no key `polcy`"),
    ] {
        assert_eq!(found(&[line]), wanted);
    }
    for capacity in ["0", "-1", "nan", "inf"] {
        let server =
            format!("[[service.server]]\nname='a'\naddress='10.2.0.2:80'\ncapacity={capacity}");
        assert_eq!(found(&[&server]), "`capacity` is none", "{capacity}");
    }
}

#[test]
fn a_service_without_servers_is_a_warning_and_without_status_objects_a_mistake() {
    let text = format!("{HEAD}{}", service("").split("[[service.server]]").next().unwrap());
    let (config, warnings) = Config::parse(&text, Path::new("vipa.toml")).unwrap();
    assert!(config.services[0].servers.is_empty());
    assert_eq!(warnings[0].mistake().found, "the service has no [[service.server]]");
    let (head, rest) = service("")
        .split_once("[[service.status]]")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let server = rest.split_once("[[service.server]]").unwrap().1;
    let text = format!("{HEAD}{head}[[service.server]]{server}");
    let errors = Config::parse(&text, Path::new("vipa.toml")).unwrap_err();
    let found: Vec<_> = errors.mistakes().iter().map(|mistake| &*mistake.found).collect();
    assert_eq!(found, ["the service has no [[service.status]]"]);
}

#[test]
fn the_readmes_service_is_read_and_its_defaults_are_true() {
    let readme = include_str!("../../../README.md");
    let block = readme.split("```toml service\n").nth(1).unwrap().split("```").next().unwrap();
    let (config, warnings) =
        Config::parse(&format!("{HEAD}{block}"), Path::new("vipa.toml")).unwrap();
    assert!(warnings.is_empty());
    let [web] = &config.services[..] else { panic!("one service") };
    assert_eq!(web.servers.len(), 2);
    let keys = [
        ("choose", "`\"preferred\"`"),
        ("hysteresis", "`\"10%\"`"),
        ("fall`, `rise", "3, 2"),
        ("on-death", "`\"reset\"`"),
        ("when-none", "`\"refuse\"`"),
        ("slow-start", "`\"0s\"`"),
        ("source", "the default VIPA and `[source] ports`"),
        ("keep-client", "`false`"),
    ];
    for (key, default) in keys {
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{key}` |"))).unwrap();
        assert!(row.ends_with(&format!("| {default} |")), "{row}");
    }
    for policy in Policy::names() {
        assert!(readme.contains(&format!("| `{policy}` |")), "{policy}");
    }
}

#[test]
fn a_fixed_value_that_nobody_states_is_a_mistake_at_the_server() {
    let fixed = "[[service.status]]\nname = 'room'\nkind = 'fixed'\n";
    let servers = "[[service.server]]\nname = 'a'\naddress = '10.2.0.2:80'\ncapacity = 2\n\
                   [[service.server]]\nname = 'b'\naddress = '10.2.0.3:80'\n";
    let score = "score = 'room'\n";
    let (at, found, wanted) = mistake(&[&format!("{score}{fixed}{servers}")]);
    assert_eq!(at, "'10.2.0.3:80'");
    assert!(found.contains("\"b\" states no `capacity`") && found.contains("\"room\""), "{found}");
    assert!(wanted.contains("`value`"), "{wanted}");
    read(&[&format!("{score}{fixed}value = 7\n{servers}")]);
}

#[test]
fn what_the_host_sends_a_direct_server_carries_the_cards_address_but_for_rules_of_the_operators() {
    let servers = "[[service.server]]\nname = 'a'\naddress = '10.2.0.2:80'\n\
                   [[service.server]]\nname = 'b'\naddress = '10.2.0.3'\n";
    let direct = service(&format!("mode = 'direct'\n{servers}"));
    let twice = service(
        "name = 'api'\naddress = '203.0.113.10:81'\nmode = 'direct'\n[[service.server]]\nname = 'b'\naddress = '10.2.0.3'\n",
    );
    let own = "[[source.rule]]\ndestination = '0.0.0.0/0'\nport = 53\nprotocol = 'udp'\nuse = '203.0.113.11'\n";
    let text = format!("{HEAD}{own}{direct}{twice}");
    let (config, warnings) = Config::parse(&text, Path::new("vipa.toml")).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let shown: Vec<String> = config.source.rules[1..]
        .iter()
        .map(|rule| {
            let line = text.lines().nth(rule.line as usize - 1).unwrap();
            format!("{:?} {:?}: {line}", rule.destination.unwrap(), rule.target)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "10.2.0.2/32 Physical: address = '10.2.0.2:80'",
            "10.2.0.3/32 Physical: address = '10.2.0.3'",
        ]
    );
    assert_eq!(
        Config::parse(&format!("{HEAD}{}", service("")), Path::new("v")).unwrap().0.source.rules,
        []
    );
}
