//! Configurations, good and bad, and what is said of them.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::{Config, Errors, Replay, ReplayNic, Warning};
use crate::forward::rule::{Mark, Target};
use crate::forward::view::XdpHook;
use crate::wire::ethernet::MacAddr;
use crate::wire::ip::Family;

const LEAST: &str = r#"
[virtual]
name = "vipa0"
addresses = ["203.0.113.10"]
[[nic]]
name = "eth1"
"#;

const FULL: &str = r#"
[virtual]
name      = "vipa0"
addresses = ["203.0.113.10", "203.0.113.11", "2001:db8::10"]
table     = 924
preference = 9000
protect   = false

[forwarder]
workers = 4
flows   = 131072
offload = "off"

[[nic]]
name    = "eth1"
gateway = ["10.1.1.1", "fe80::1"]
weight  = 3
metric  = 2
hold-down = "200ms"

[[nic]]
name    = "eth2"
gateway = "10.1.2.1"

[source]
sourcevipa = false
ports = "50000-50099"
hold  = "2m"
bound = "forward"

[[source.rule]]
protocol    = "tcp"
destination = "10.20.0.0/16"
port        = "443"
use         = "203.0.113.11"
apply       = "forwarder"

[[source.rule]]
protocol   = "udp"
port       = "1000-2000"
local-port = 53
use        = "physical"
mark       = "0x10/0xf0"
user       = "root"
cgroup     = "/system.slice/nginx.service/"
"#;

fn parse(text: &str) -> Result<(Config, Vec<Warning>), Errors> {
    Config::parse(text, Path::new("vipa.toml"))
}

/// `(line, column, found)` of each mistake.
fn mistakes(text: &str) -> Vec<(usize, usize, String)> {
    let errors = parse(text).unwrap_err();
    errors.mistakes().iter().map(|m| (m.line, m.column, m.found.clone())).collect()
}

/// The one mistake of [`LEAST`] with `old` replaced by `new`: what was found.
fn only_mistake(text: &str) -> String {
    let all = mistakes(text);
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap().2
}

fn with_rules(rules: &str) -> String {
    let head =
        LEAST.replace("\"203.0.113.10\"", "\"203.0.113.10\", \"203.0.113.11\", \"2001:db8::10\"");
    format!("{head}{rules}")
}

fn warnings(rules: &str) -> Vec<(usize, String)> {
    let (_, warnings) = parse(&with_rules(rules)).unwrap();
    warnings.iter().map(|w| (w.mistake().line, w.mistake().wanted.clone())).collect()
}

#[test]
fn what_is_left_out_has_its_default() {
    let (config, warnings) = parse(LEAST).unwrap();
    assert!(warnings.is_empty());
    assert_eq!((config.adapter.table, config.adapter.preference), (923, 9230));
    assert!(config.adapter.is_protected);
    assert_eq!((config.forwarder.workers, config.forwarder.flows), (1, 65_536));
    assert_eq!(config.nics.len(), 1);
    let nic = &config.nics[0];
    assert_eq!((nic.weight, nic.metric, nic.hold_down), (1, 1, Duration::from_secs(3)));
    assert!(nic.gateways.is_empty());
    assert!(config.source.sourcevipa);
    assert_eq!(config.source.ports, 61_000..=65_535);
    assert_eq!(config.source.hold, Duration::from_secs(60));
    assert!(!config.source.is_bound_forwarded);
    assert!(config.source.rules.is_empty());
    assert_eq!(config.replay, Replay { ephemeral: 32_768..=60_999, nics: Vec::new() });
    assert_eq!(config.file, Path::new("vipa.toml"));
}

#[test]
fn every_key_is_read() {
    let (config, warnings) = parse(FULL).unwrap();
    assert!(warnings.is_empty());
    assert_eq!(config.adapter.addresses.len(), 3);
    assert_eq!((config.adapter.table, config.adapter.preference), (924, 9000));
    assert!(!config.adapter.is_protected);
    assert_eq!((config.forwarder.workers, config.forwarder.flows), (4, 131_072));
    let nic = &config.nics[0];
    assert_eq!(nic.gateways, ["10.1.1.1", "fe80::1"].map(|a| a.parse::<IpAddr>().unwrap()));
    assert_eq!((nic.weight, nic.metric, nic.hold_down), (3, 2, Duration::from_millis(200)));
    assert_eq!(config.nics[1].gateways.len(), 1);
    assert!(!config.source.sourcevipa);
    assert_eq!(config.source.ports, 50_000..=50_099);
    assert_eq!(config.source.hold, Duration::from_secs(120));
    assert!(config.source.is_bound_forwarded);
    let [first, second] = &config.source.rules[..] else { panic!("two rules") };
    assert_eq!(first.protocol, Some(6));
    assert_eq!(first.destination.unwrap().to_string(), "10.20.0.0/16");
    assert_eq!(first.ports, Some(443..=443));
    assert_eq!(first.target, Target::Vipa("203.0.113.11".parse().unwrap()));
    assert_eq!(first.line, 31);
    assert_eq!(
        (second.ports.clone(), second.local_ports.clone()),
        (Some(1000..=2000), Some(53..=53))
    );
    assert_eq!(second.target, Target::Physical);
    assert_eq!(second.mark, Some(Mark { value: 0x10, mask: 0xf0 }));
    assert_eq!(second.user, Some(0));
    assert_eq!(second.cgroup.as_deref(), Some("system.slice/nginx.service"));
    assert_eq!((first.is_for_forwarder, second.is_for_forwarder), (true, false));
    assert_eq!((first.mark, first.user, &first.cgroup), (None, None, &None));
}

#[test]
fn users_and_marks_may_be_numbers() {
    let rule = |body: &str| {
        let text = with_rules(&format!("[[source.rule]]\nuse = 'physical'\n{body}\n"));
        parse(&text).unwrap().0.source.rules.remove(0)
    };
    for (body, user) in
        [("user = 26", 26), ("user = '26'", 26), ("user = 4294967294", u32::MAX - 1)]
    {
        assert_eq!(rule(body).user, Some(user));
    }
    for (body, value, mask) in [
        ("mark = 5", 5, u32::MAX),
        ("mark = 0xff", 255, u32::MAX),
        ("mark = '0x10'", 16, u32::MAX),
        ("mark = '1/0x3'", 1, 3),
        ("mark = 0", 0, u32::MAX),
    ] {
        assert_eq!(rule(body).mark, Some(Mark { value, mask }), "{body}");
    }
}

#[test]
fn ten_mistakes_are_told_in_one_go() {
    let text = r#"[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "203.0.113.300", 7]
tabel = 923

[forwarder]
workers = 99

[[nic]]
name = "eth1"
weight = "heavy"
hold-down = "3 parsecs"

[[nic]]
name = "eth1"

[source]
ports = "65535-61000"

[[source.rule]]
protocol = "tcp"
use = "192.0.2.1"

[rip]
update = "30s"
"#;
    let expected = [
        (3, 30, "\"203.0.113.300\" is not an IP address"),
        (3, 47, "`addresses` is an integer"),
        (4, 1, "[virtual] has no key `tabel`"),
        (7, 11, "`workers` is 99"),
        (11, 10, "`weight` is a string"),
        (12, 13, "`hold-down` is \"3 parsecs\""),
        (15, 8, "\"eth1\" is given twice"),
        (18, 9, "`ports` \"65535-61000\" runs backwards"),
        (22, 7, "`use` is 192.0.2.1, which is no VIPA"),
    ];
    let expected: Vec<_> = expected.map(|(l, c, f)| (l, c, f.to_owned())).into();
    assert_eq!(mistakes(text), expected);

    let rendered = parse(text).unwrap_err().render(false);
    for (line, column, found) in &expected {
        assert!(rendered.contains(&format!("error: {found}\n")), "{rendered}");
        assert!(rendered.contains(&format!("--> vipa.toml:{line}:{column}\n")), "{rendered}");
    }
    assert!(rendered.contains("did you mean `table`?"), "{rendered}");
    assert!(!rendered.contains('\x1b'), "plain");
}

#[test]
fn xdp_is_for_services() {
    let with = |xdp: &str, more: &str| parse(&format!("{LEAST}xdp = \"{xdp}\"\n{more}"));
    let service = "[[service]]\nname = \"web\"\naddress = \"203.0.113.10:80\"\nprotocol = \"tcp\"\n\
                   score = \"load\"\n[[service.status]]\nname = \"load\"\nkind = \"fixed\"\nvalue = 1\n[[service.server]]\nname = \"a\"\naddress = \"10.1.1.9\"\n";
    for (word, hook) in
        [("native", Some(XdpHook::Native)), ("generic", Some(XdpHook::Generic)), ("off", None)]
    {
        let (config, warnings) = with(word, service).unwrap();
        assert_eq!((config.nics[0].xdp, warnings.len()), (hook, 0));
        let (config, warnings) = with(word, "").unwrap();
        assert_eq!((config.nics[0].xdp, warnings.len()), (hook, usize::from(hook.is_some())));
    }
    let found = with("on", "").unwrap_err().render(false);
    assert!(found.contains("`xdp` is \"on\""), "{found}");
}

#[test]
fn a_mistake_is_shown_where_it_stands() {
    let text = LEAST.replace("\"203.0.113.10\"", "\"203.0.113.10/24\"");
    insta::assert_snapshot!(parse(&text).unwrap_err().render(false), @r#"
    error: "203.0.113.10/24" has a prefix length
     --> vipa.toml:4:14
      |
    4 | addresses = ["203.0.113.10/24"]
      |              ^^^^^^^^^^^^^^^^^ a unicast address that other hosts can reach, without prefix length, such as "203.0.113.10"
    "#);
}

#[test]
fn columns_are_characters() {
    let text = LEAST.replace("[\"203.0.113.10\"]", "['203.0.113.10', 'ü', 1]");
    assert_eq!(mistakes(&text).iter().map(|m| m.1).collect::<Vec<_>>(), [30, 35]);
}

#[test]
fn syntax_is_told_with_its_place_and_a_key_given_twice_hides_nothing() {
    let all = mistakes("[virtual]\nname = vipa0\n");
    assert_eq!((all[0].0, all[0].1), (2, 8), "{all:?}");
    let text = LEAST.replace("name = \"eth1\"", "name = \"eth1\"\nname = \"eth2\"\nweight = 0");
    let all = mistakes(&text);
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!((all[0].0, all[0].2.as_str()), (7, "duplicate key"));
    assert_eq!((all[1].0, all[1].2.as_str()), (8, "`weight` is 0"));
}

#[test]
fn an_empty_file_names_what_it_lacks() {
    let found: Vec<String> = mistakes("").into_iter().map(|m| m.2).collect();
    assert_eq!(found, ["the file has no `virtual`", "the file has no `nic`"]);
}

#[test]
fn addresses_that_no_host_can_reach_are_refused() {
    for (address, fault) in [
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("127.0.0.1", "loopback"),
        ("::1", "loopback"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "the broadcast address"),
        ("::ffff:203.0.113.10", "an IPv4 address in IPv6's clothes"),
    ] {
        let text = LEAST.replace("203.0.113.10", address);
        assert_eq!(only_mistake(&text), format!("{address} is {fault}"));
    }
    assert!(only_mistake(&LEAST.replace("203.0.113.10", "fe80::1%eth1")).contains("zone"));
    assert!(only_mistake(&LEAST.replace("[\"203.0.113.10\"]", "[]")).contains("empty"));
    let twice = LEAST.replace("\"203.0.113.10\"", "\"2001:db8::1\", \"2001:DB8:0::1\"");
    assert_eq!(only_mistake(&twice), "2001:db8::1 is listed twice");
}

#[test]
fn gateways_are_routers_one_of_each_family() {
    let gateway = |value: &str| only_mistake(&format!("{LEAST}gateway = {value}"));
    assert_eq!(gateway("\"203.0.113.10\""), "203.0.113.10 is a VIPA");
    assert_eq!(gateway("['10.0.0.1', '10.0.0.2']"), "10.0.0.2 is a second gateway of its family");
    assert_eq!(gateway("'ff02::1'"), "ff02::1 is multicast");
    assert_eq!(gateway("1"), "`gateway` is an integer");
    assert!(parse(&format!("{LEAST}gateway = ['fe80::1', '10.0.0.1']")).is_ok());
}

#[test]
fn device_names_are_those_that_the_kernel_takes() {
    for name in ["", "sixteen-bytes-xx", "a b", "a/b", "a:b", "v%d", "lo", "all", "..", "a\\u0000"]
    {
        let found = only_mistake(&LEAST.replace("eth1", name));
        assert!(found.starts_with("the name "), "{found}");
    }
    let errors = parse(&LEAST.replace("eth1", "lo")).unwrap_err().to_string();
    assert!(errors.contains("the loopback device") && errors.contains("network card"), "{errors}");
    assert!(parse(&LEAST.replace("eth1", "fifteen-bytes-x")).is_ok());
    assert_eq!(only_mistake(&LEAST.replace("eth1", "vipa0")), "\"vipa0\" is the virtual adapter");
}

#[test]
fn nics_are_1_to_64() {
    let many = |n: u32| {
        let head = LEAST.split("[[nic]]").next().unwrap().to_owned();
        (0..n).fold(head, |text, i| text + &format!("[[nic]]\nname = \"eth{i}\"\n"))
    };
    assert!(parse(&many(64)).is_ok());
    assert_eq!(only_mistake(&many(65)), "there are 65 [[nic]]");
    assert_eq!(only_mistake(&many(0)), "the file has no `nic`");
}

#[test]
fn numbers_and_ports_have_bounds() {
    let in_virtual = |line: &str| LEAST.replace("[virtual]", &format!("[virtual]\n{line}"));
    assert!(only_mistake(&in_virtual("table = 254")).contains("kernel's own"));
    let many = LEAST
        .replace("[\"203", "[\"2001:db8::1\", \"203")
        .replace("[virtual]", "[virtual]\ntable = 252");
    assert!(only_mistake(&many).contains("too few tables behind it"));
    assert_eq!(only_mistake(&in_virtual("preference = 32667")), "`preference` is 32667");
    assert_eq!(
        only_mistake(&in_virtual("table = 99999999999999999999")),
        "`table` is 99999999999999999999"
    );
    assert_eq!(only_mistake(&in_virtual("protect = 1")), "`protect` is an integer");
    let source =
        |line: &str| only_mistake(&format!("{LEAST}[forwarder]\nworkers = 8\n[source]\n{line}"));
    assert_eq!(source("ports = '1000-2000'"), "`ports` are 1000-2000");
    assert_eq!(source("ports = '61000-61006'"), "`ports` are 61000-61006");
    assert_eq!(source("ports = '1024-65535'"), "`ports` are 1024-65535, 64512 of them");
    assert_eq!(source("hold = '0s'"), "`hold` is \"0s\"");
    assert_eq!(source("hold = 60"), "`hold` is an integer");
    assert_eq!(source("bound = 'yes'"), "`bound` is \"yes\"");
}

#[test]
fn what_a_later_version_has_is_told_so() {
    for section in ["[dns]", "[admin]", "[monitor]"] {
        let found = only_mistake(&format!("{LEAST}{section}\n"));
        assert!(found.ends_with("is not in this version of vipa"), "{found}");
    }
    let found = only_mistake(&format!("{LEAST}[forwarder]\noffload = \"tc\"\n"));
    assert_eq!(found, "`offload` \"tc\" is not in this version of vipa");
}

#[test]
fn the_replay_table_is_read() {
    let text = format!(
        r#"{LEAST}[replay]
ephemeral = "1024-4999"
[[replay.nic]]
name = "eth1"
mac = "02:00:5e:AA:00:01"
next-hop-mac = "02:00:5e:00:00:02"
addresses = ["10.1.1.2/24", "fe80::2/64"]
mtu = 9000
"#
    );
    let (config, _) = parse(&text).unwrap();
    let nic = ReplayNic {
        name: "eth1".into(),
        mac: Some(MacAddr([2, 0, 0x5e, 0xaa, 0, 1])),
        next_hop_mac: Some(MacAddr([2, 0, 0x5e, 0, 0, 2])),
        addresses: vec![("10.1.1.2".parse().unwrap(), 24), ("fe80::2".parse().unwrap(), 64)],
        mtu: 9000,
    };
    assert_eq!(config.replay, Replay { ephemeral: 1024..=4999, nics: vec![nic] });
    let (config, _) = parse(&format!("{LEAST}[[replay.nic]]\nname = \"eth1\"\n")).unwrap();
    assert_eq!((config.replay.nics[0].mac, config.replay.nics[0].mtu), (None, 1500));
}

#[test]
fn mistakes_of_the_replay_table_are_told_with_their_places() {
    let text = format!(
        r#"{LEAST}[replay]
ephemeral = "9-8"
speed = 1
[[replay.nic]]
name = "eth9"
mac = "02:00:00:00:00"
[[replay.nic]]
name = "eth1"
mac = "01:00:5e:00:00:01"
next-hop-mac = 7
addresses = ["10.1.1.2", "10.1.1.2/33", "224.0.0.1/4", "10.1.1.3/0"]
mtu = 67
[[replay.nic]]
name = "eth1"
mac = "+2:00:00:00:00:01"
[[replay.nic]]
"#
    );
    let expected = [
        (8, 13, "`ephemeral` \"9-8\" runs backwards"),
        (9, 1, "[replay] has no key `speed`"),
        (11, 8, "\"eth9\" is no [[nic]]"),
        (12, 7, "`mac` is \"02:00:00:00:00\""),
        (15, 7, "\"01:00:5e:00:00:01\" is a group's address"),
        (16, 16, "`next-hop-mac` is an integer"),
        (17, 14, "\"10.1.1.2\" has no prefix length"),
        (17, 26, "\"33\" is not a prefix length of 1 to 32"),
        (17, 41, "224.0.0.1 is multicast"),
        (17, 56, "\"0\" is not a prefix length of 1 to 32"),
        (18, 7, "`mtu` is 67"),
        (20, 8, "\"eth1\" is given twice"),
        (21, 7, "`mac` is \"+2:00:00:00:00:01\""),
        (22, 1, "[[replay.nic]] has no `name`"),
    ];
    let expected: Vec<_> = expected.map(|(l, c, f)| (l, c, f.to_owned())).into();
    assert_eq!(mistakes(&text), expected);
}

#[test]
fn rules_that_contradict_themselves_are_refused() {
    let rule = |body: &str| only_mistake(&with_rules(&format!("[[source.rule]]\n{body}\n")));
    assert_eq!(rule("protocol = 'tcp'"), "[[source.rule]] has no `use`");
    assert_eq!(rule("use = 'virtual'"), "`use` is \"virtual\"");
    assert_eq!(rule("use = 'physical'\nprotocol = 'sctp'\nport = 1"), "`protocol` is \"sctp\"");
    assert!(rule("use = 'physical'\nport = 443").contains("not for tcp or udp"));
    assert!(rule("use = 'physical'\nprotocol = 'icmp'\nport = 443").contains("not for tcp or udp"));
    assert!(rule("use = '2001:db8::10'\ndestination = '10.0.0.0/8'").contains("two families"));
    assert!(
        rule("use = 'physical'\ndestination = '10.0.0.1/8'").contains("bits behind its length")
    );
    assert!(rule("use = 'physical'\ndestinaton = '10.0.0.0/8'").contains("no key `destinaton`"));
    assert_eq!(rule("use = 'physical'\napply = 'kernel'"), "`apply` is \"kernel\"");
    assert!(rule("use = 'physical'\nprotocol = 'udp'\nport = '0-5'").contains("`port` is"));
    let physical = |body: &str| rule(&format!("use = 'physical'\n{body}"));
    assert_eq!(physical("user = 'no-such-user'"), "this host has no user \"no-such-user\"");
    assert_eq!(physical("user = ''"), "this host has no user \"\"");
    assert_eq!(physical("user = 4294967295"), "`user` is 4294967295");
    assert_eq!(physical("user = '99999999999'"), "`user` is \"99999999999\"");
    assert_eq!(physical("user = true"), "`user` is a boolean");
    assert_eq!(physical("mark = '0x10/0x0f'"), "`mark` \"0x10/0x0f\" has bits outside of its mask");
    assert_eq!(physical("mark = '0/0'"), "`mark` \"0/0\" has an empty mask");
    assert_eq!(physical("mark = 'high'"), "`mark` is \"high\"");
    assert_eq!(physical("mark = -1"), "`mark` is -1");
    assert_eq!(physical("mark = 1.5"), "`mark` is a float");
    for cgroup in ["", "/", "a//b", "a/../b"] {
        assert_eq!(physical(&format!("cgroup = '{cgroup}'")), format!("`cgroup` is {cgroup:?}"));
    }
}

#[test]
fn a_rule_that_can_never_match_is_a_warning() {
    let covered = "[[source.rule]]\ndestination = '10.0.0.0/8'\nuse = 'physical'\n\
                   [[source.rule]]\nprotocol = 'tcp'\nport = 80\ndestination = '10.1.0.0/16'\nuse = '203.0.113.11'\n";
    assert_eq!(warnings(covered), [(10, "taken whole by the rule of line 7".to_owned())]);

    let by_family = "[[source.rule]]\nuse = '203.0.113.11'\n[[source.rule]]\nuse = '2001:db8::10'\n\
                     [[source.rule]]\nuse = 'physical'\n";
    let both = "taken whole by the rule of line 7 and the rule of line 9".to_owned();
    assert_eq!(warnings(by_family), [(11, both)]);

    for rip in ["port = 520", "port = '520-521'", "local-port = 521"] {
        let rule = format!("[[source.rule]]\nprotocol = 'udp'\n{rip}\nuse = '203.0.113.11'\n");
        assert!(warnings(&rule)[0].1.starts_with("RIP"), "{rip}");
    }
    let multicast = "[[source.rule]]\ndestination = '224.0.0.0/24'\nuse = 'physical'\n";
    assert_eq!(warnings(multicast).len(), 1);

    for (first, second) in [
        ("user = 26", "user = 26\nmark = 1"),
        ("mark = '1/1'", "mark = 3"),
        ("cgroup = 'a'", "cgroup = 'a/b'"),
        ("protocol = 'udp'\nlocal-port = '1-9'", "protocol = 'udp'\nlocal-port = 5"),
    ] {
        let rules = format!(
            "[[source.rule]]\nuse = 'physical'\n{first}\n[[source.rule]]\nuse = '203.0.113.11'\n{second}\n"
        );
        assert_eq!(warnings(&rules).len(), 1, "{second} behind {first}");
        let turned = format!(
            "[[source.rule]]\nuse = 'physical'\n{second}\n[[source.rule]]\nuse = '203.0.113.11'\n{first}\n"
        );
        assert_eq!(warnings(&turned), [], "{first} behind {second}");
    }
    // What a UDP server answers is another rule's.
    let server = "[[source.rule]]\nprotocol = 'udp'\nuse = 'physical'\n\
                  [[source.rule]]\nprotocol = 'udp'\nlocal-port = 53\nuse = '203.0.113.11'\n";
    assert_eq!(warnings(server), []);

    let fine = "[[source.rule]]\nprotocol = 'tcp'\nport = '1-100'\nuse = 'physical'\n\
                [[source.rule]]\nprotocol = 'tcp'\nport = '50-101'\nuse = 'physical'\n\
                [[source.rule]]\nprotocol = 'udp'\nport = '519-521'\nuse = 'physical'\n\
                [[source.rule]]\nprotocol = 'tcp'\nuse = '2001:db8::10'\n\
                [[source.rule]]\nprotocol = 'tcp'\nuse = 'physical'\n";
    assert_eq!(warnings(fine), []);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let errors = Config::load(Path::new("/nonexistent/vipa.toml")).unwrap_err();
    assert!(errors.to_string().contains("/nonexistent/vipa.toml cannot be read"), "{errors}");
    let errors = Config::load(Path::new("/dev/zero")).unwrap_err();
    assert!(errors.to_string().contains("larger than"), "{errors}");
    let path = std::env::temp_dir().join(format!("vipa-not-utf8-{}.toml", std::process::id()));
    std::fs::write(&path, b"# fine\n# \xff\n").unwrap();
    let errors = Config::load(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert_eq!((errors.mistakes()[0].line, errors.mistakes()[0].column), (2, 3));
}

/// Every place has a line and a column of the file, and rendering shows them.
fn is_told_well(text: &str) {
    match parse(text) {
        Ok((_, warnings)) => {
            warnings.iter().for_each(|warning| assert!(!warning.render(true).is_empty()))
        }
        Err(errors) => {
            assert!(!errors.mistakes().is_empty());
            for mistake in errors.mistakes() {
                assert!(mistake.line <= 1 + text.matches('\n').count());
                assert!(!mistake.found.is_empty() && !mistake.wanted.is_empty());
            }
            assert!(!errors.render(false).is_empty());
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC*|[\\x00-\\x7f]{0,200}") {
        is_told_well(&text);
    }

    #[test]
    fn a_good_file_with_a_piece_torn_out_or_put_in_never_panics(
        at in 0..FULL.len(),
        length in 0usize..40,
        piece in "[\\[\\]\"'=.,0-9a-z\\n{}-]{0,12}",
    ) {
        let end = (at + length).min(FULL.len());
        is_told_well(&format!("{}{piece}{}", &FULL[..at], &FULL[end..]));
    }
}

#[test]
fn the_configurations_of_the_readme_are_right() {
    let readme = include_str!("../../README.md");
    let blocks: Vec<&str> =
        readme.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 5);
    for block in &blocks[..2] {
        let (_, warnings) = parse(block).unwrap();
        assert!(warnings.is_empty());
    }
    let (least, full) = (parse(blocks[0]).unwrap().0, parse(blocks[1]).unwrap().0);
    assert_eq!(full.adapter.table, least.adapter.table);
    assert_eq!(full.adapter.preference, least.adapter.preference);
    assert_eq!(full.source.ports, least.source.ports);
    assert_eq!(full.source.hold, least.source.hold);
    assert_eq!(full.nics[0].hold_down, least.nics[0].hold_down);
    assert_eq!(full.replay.ephemeral, least.replay.ephemeral);
    // The third is a section to be added; most of it shows defaults.
    let (with, warnings) = parse(&format!("{}\n{}", blocks[0], blocks[2])).unwrap();
    assert!(warnings.is_empty());
    let (shown, default) = (with.rip.unwrap(), rip(""));
    assert_eq!((shown.update, shown.timeout), (default.update, default.timeout));
    assert_eq!((shown.garbage, shown.metric), (default.garbage, default.metric));
    assert_eq!((shown.advertise, shown.most_routes), (default.advertise, default.most_routes));
    assert_eq!((shown.is_v1, shown.is_v2, shown.is_ng), (false, true, true));
    // So are the others.
    let (with, warnings) = parse(&format!("{}\n{}", blocks[0], blocks[4])).unwrap();
    assert!(warnings.is_empty());
    assert_eq!(with.announce, crate::announce::Settings::default());
    let path = format!("{}\n{}", blocks[0], blocks[3]);
    let (_, warnings) = parse(&path.replace("\"neighbour\"", "\"bfd\"")).unwrap();
    assert!(warnings.is_empty());
    let (with, _) = parse(&path).unwrap();
    let (shown, default) = (with.path, crate::path::Settings::default());
    assert_eq!((shown.probe, shown.interval), (default.probe, default.interval));
    assert_eq!((shown.fall, shown.rise), (default.fall, default.rise));
    assert_eq!(
        (shown.bfd.transmit, shown.bfd.receive),
        (default.bfd.transmit, default.bfd.receive)
    );
    assert_eq!(shown.bfd.multiplier, default.bfd.multiplier);
    assert!(shown.bfd.key.is_some_and(|key| key.id == 1 && !key.is_meticulous));
}

#[test]
fn mistakes_of_the_path_are_told() {
    for (text, wanted) in [
        ("probe = \"arp\"", "\"neighbour\", \"bfd\" or \"off\""),
        ("interval = \"1ms\"", "a time from 10ms to 1m"),
        ("fall = 0", "a whole number from 1 to 100"),
        ("[path.bfd]\nmultiplier = 256", "a whole number from 1 to 255"),
        ("[path.bfd.key]\nid = 1", "the secret, as text of 1 to 20 bytes"),
        ("[path.bfd.key]\nsecret = \"123456789012345678901\"", "1 to 20 bytes"),
        ("rises = 3", "did you mean `rise`?"),
    ] {
        let errors = parse(&format!("{LEAST}\n[path]\n{text}\n")).unwrap_err().to_string();
        assert!(errors.contains(wanted), "{text}: {errors}");
    }
}

/// Line, what is said, and why, of each warning about `text`, which stands behind the least configuration.
fn warnings_of(text: &str) -> Vec<(usize, String, String)> {
    let (_, warnings) = parse(&format!("{LEAST}{text}\n")).unwrap();
    let told = warnings.iter().map(|warning| warning.mistake());
    told.map(|told| (told.line, told.found.clone(), told.wanted.clone())).collect()
}

#[test]
fn bfd_that_is_set_up_and_not_spoken_is_a_warning() {
    for probe in ["", "[path]\nprobe = 'off'\n"] {
        let told = warnings_of(&format!("{probe}[path.bfd]\nmultiplier = 4"));
        let [(line, found, _)] = &told[..] else { panic!("{told:?}") };
        assert_eq!(*line, 7 + probe.lines().count());
        assert!(found.contains("probe = \"bfd\""), "{found}");
    }
    assert_eq!(warnings_of("[path]\nprobe = 'bfd'\n[path.bfd]\nmultiplier = 4"), []);
}

#[test]
fn keys_of_rip_that_do_not_count_now_are_a_warning() {
    let key = |id: u8, life: &str| format!("[[rip.key]]\nid = {id}\nsecret = 'x'\n{life}\n");
    let of = |keys: &[String]| warnings_of(&format!("[rip]\n{}", keys.concat()));
    let (over, early) = ("until = 2001-01-01T00:00:00Z", "from = 2999-01-01T00:00:00Z");
    assert_eq!(of(&[key(1, "")]), []);
    let told = of(&[key(1, over), key(2, early)]);
    let found: Vec<_> = told.iter().map(|told| (told.0, told.1.as_str())).collect();
    let (first, second) = ("the key 1 does not count any more", "the key 2 does not count yet");
    assert_eq!(found, [(11, first), (15, second)]);
    assert!(told[0].2.starts_with("no key counts now: 2"), "{told:?}");
    let told = of(&[key(1, ""), key(2, early)]);
    assert_eq!((told.len(), told[0].2.as_str()), (1, "another key counts now"));
    let told = of(&[key(1, &format!("{early}\n{over}"))]);
    assert_eq!(told[0].1, "the key 1 never counts: it ends before it begins");
}

#[test]
fn a_table_at_a_wrong_place_is_told_its_own() {
    let told = |text: &str| {
        let errors = parse(&format!("{LEAST}{text}\n")).unwrap_err();
        let [mistake] = errors.mistakes() else { panic!("{errors}") };
        (mistake.found.clone(), mistake.wanted.clone())
    };
    for (text, found, wanted) in [
        (
            "[[service.status]]\nkind = 'tcp'",
            "`service.status` stands before any [[service]]",
            "[[service]], with two brackets, once for each",
        ),
        (
            "[service]\nname = 'web'",
            "[[service]] is a table",
            "[[service]], with two brackets, once for each",
        ),
        ("[[status]]\nkind = 'tcp'", "no key `status`", "did you mean [[service.status]]?"),
        ("[[rule]]\nuse = 'physical'", "no key `rule`", "did you mean [[source.rule]]?"),
        ("[bfd]\nmultiplier = 3", "no key `bfd`", "did you mean [path.bfd]?"),
        ("[[key]]\nid = 3", "no key `key`", "did you mean [[rip.key]] or [path.bfd.key]?"),
        ("[[source.nic]]\nname = 'eth2'", "no key `nic`", "did you mean [[nic]] or [[rip.nic]]"),
        ("[fish]\nname = 'eth2'", "no key `fish`", "known here: "),
    ] {
        let (f, w) = told(text);
        assert!(f.contains(found) && w.contains(wanted), "{text}: {f}: {w}");
    }
}

#[test]
fn mistakes_of_announcing_are_told() {
    for (text, wanted) in [
        ("interval = 60", "a time from 0ms to 1h"),
        ("interval = \"2h\"", "a time from 0ms to 1h"),
        ("interval = \"99ms\"", "or at least \"100ms\""),
        ("every = \"60s\"", "known here: interval"),
    ] {
        let errors = parse(&format!("{LEAST}\n[announce]\n{text}\n")).unwrap_err().to_string();
        assert!(errors.contains(wanted), "{text}: {errors}");
    }
    let (never, _) = parse(&format!("{LEAST}\n[announce]\ninterval = \"0s\"\n")).unwrap();
    assert!(never.announce.interval.is_zero());
}

#[test]
fn the_readme_explains_every_drop_reason() {
    let readme = include_str!("../../README.md");
    for reason in crate::forward::verdict::DropReason::ALL {
        assert!(readme.contains(&format!("`{}`", reason.name())), "{}", reason.name());
    }
}

fn rip(keys: &str) -> crate::rip::Settings {
    let (config, _) = parse(&format!("{LEAST}[rip]\n{keys}\n")).expect("no mistake");
    config.rip.expect("[rip]")
}

#[test]
fn rip_has_the_defaults_of_the_rfc() {
    let rip = rip("");
    let seconds = [rip.update, rip.timeout, rip.garbage].map(|time| time.as_secs());
    assert_eq!(seconds, [30, 180, 120]);
    assert_eq!((rip.is_v1, rip.is_v2, rip.is_ng, rip.metric), (false, true, true, 1));
    assert!(parse(LEAST).expect("no mistake").0.rip.is_none());
}

#[test]
fn a_key_of_rip_does_not_go_out_in_clear_unless_that_is_said() {
    let algorithm =
        |words: &str| rip(&format!("[[rip.key]]\nsecret = 'x'\n{words}")).keys[0].algorithm;
    assert_eq!(algorithm(""), crate::rip::auth::Algorithm::HmacSha256);
    assert_eq!(algorithm("algorithm = 'password'"), crate::rip::auth::Algorithm::Password);
}

#[test]
fn keys_of_rip_have_lives() {
    let key = "[[rip.key]]\nid = 3\nalgorithm = 'hmac-sha-256'\nsecret = 'x'\n";
    let rip = rip(&format!("{key}from = 2026-11-24T01:00:00+01:00\nuntil = 2028-02-29T12:00:00Z"));
    // As `date -u -d … +%s` has them.
    assert_eq!(rip.keys[0].from, Some(1_795_478_400));
    assert_eq!(rip.keys[0].until, Some(1_835_438_400));
}

#[test]
fn learned_routes_are_not_told_by_a_host_that_does_not_forward() {
    let scratch = crate::lab::Scratch::new().expect("a scratch directory");
    let path = scratch.path().join("vipa.toml");
    let load = |rip: &str, forwards: Option<[bool; 2]>| {
        std::fs::write(&path, format!("{LEAST}[rip]\n{rip}\n")).expect("a file");
        let of = |_: &[super::Nic], family| {
            forwards.map(|[v4, v6]| if family == Family::V4 { v4 } else { v6 })
        };
        Config::load_for(&path, Some(&of))
    };
    let all = "metric = 2\nadvertise = \"all\"";
    assert!(load(all, Some([true, true])).expect("right").1.is_empty());
    let errors = load(all, Some([true, false])).expect_err("no IPv6");
    let place = |mistake: &super::Mistake| (mistake.line, mistake.column);
    assert_eq!(errors.mistakes().iter().map(place).collect::<Vec<_>>(), [(9, 1)]);
    let text = errors.to_string();
    assert!(text.contains("this host does not forward IPv6"), "{text}");
    assert!(text.contains("net.ipv6.conf.all.forwarding=1"), "{text}");
    assert_eq!(load(all, Some([false, false])).expect_err("neither").mistakes().len(), 2);
    // A family that is not spoken does not matter; nor does the host, if no more than its own is told.
    assert!(load("versions = [2]\nadvertise = \"all\"", Some([true, false])).is_ok());
    assert!(load("advertise = \"virtual+real\"", Some([false, false])).is_ok());
    // On another machine it is not known.
    let (_, warnings) = load(all, None).expect("no mistake");
    assert_eq!(warnings.len(), 2);
    assert_eq!(place(warnings[0].mistake()), (9, 1));
    assert!(warnings[0].to_string().contains("not known"), "{}", warnings[0]);
}

#[test]
fn no_report_shows_a_secret() {
    // Each is wrong in another way, on the line of the secret or beside it.
    for text in [
        "[rip]\n[[rip.key]]\nalgorithm = 'md5'\nsecret = 'hunter2-but-too-long'",
        "[rip]\n[[rip.key]]\nalgorithm = 'md5'\nsecert = 'hunter2'",
        "[rip]\n[[rip.key]]\nphrase = 'hunter2'",
        "[rip]\n[[rip.keys]]\nsecret = 'hunter2'",
        "[rip]\nsecret = 'hunter2'",
        "[rip]\nkey = [{ id = 300, secret = 'hunter2', algorithm = 'md5' }]",
        "[rip]\n[[rip.key]]\nsecret = 'hunter2'\nsecret = 'hunter2'",
        "[rip]\n[[rip.key]]\nsecret = 'hunter2",
        "[rip]\n[[rip.key]]\nsecret = hunter2",
        "[rip]\n[[rip.key]]\nphrase = hunter2'",
        "[rip]\n[[rip.key]]\nsecret = \"\"\"\nhunter2",
        "[rip]\n[[rip.key]]\nsecret = ['hunter2']",
        "[rip]\nkey = [{ id = 1 secret = 'hunter2' }]",
        "[path.bfd.key]\nsecret = 'hunter2-hunter2-hunter2'",
        "[path.bfd]\nkey = { id = 300, secret = 'hunter2' }",
        "path.bfd.key.secret = \"hunter2\" x",
        "[path.bfd.key]\nid = 1\npasswort = 'hunter2'",
    ] {
        let errors = parse(&format!("{LEAST}{text}\n")).expect_err(text);
        let (plain, debug) = (errors.to_string(), format!("{errors:?}"));
        assert!(!plain.contains("hunter2") && !debug.contains("hunter2"), "{text}:\n{plain}");
        assert!(plain.contains(" | "), "it is quoted all the same: {plain}");
    }
    let binary = [LEAST.as_bytes(), b"[rip]\n[[rip.key]]\nsecret = 'hunter2\xff'\n"].concat();
    let scratch = crate::lab::Scratch::new().expect("a scratch directory");
    let path = scratch.path().join("vipa.toml");
    std::fs::write(&path, binary).expect("a file");
    let errors = super::Config::load(&path).expect_err("no UTF-8").to_string();
    assert!(!errors.contains("hunter2") && errors.contains("UTF-8"), "{errors}");
    // What is none is shown.
    let id = parse(&format!("{LEAST}[rip]\n[[rip.key]]\nid = 300\nsecret = 'hunter2'\n"));
    assert!(id.expect_err("300").to_string().contains("id = 300"));
}

#[test]
fn what_is_wrong_in_rip() {
    let wrong = |keys: &str| only_mistake(&format!("{LEAST}[rip]\n{keys}\n"));
    assert_eq!(wrong("versions = [3]"), "there is no version 3");
    assert_eq!(wrong("versions = []"), "`versions` is empty");
    assert_eq!(wrong("timeout = '20s'"), "`timeout` is 20s, and `update` 30s");
    assert_eq!(wrong("metric = 15"), "`metric` is 15");
    assert_eq!(wrong("[[rip.nic]]\nname = 'eth9'"), "\"eth9\" is no [[nic]]");
    assert_eq!(wrong("[[rip.nic]]\nname = 'eth1'\nhorizon = 'no'"), "`horizon` is \"no\"");
    assert_eq!(wrong("record = 'rip.jsonl'"), "`record` is \"rip.jsonl\"");
    assert_eq!(wrong("[[rip.key]]\nalgorithm = 'md5'\nsecret = ''"), "`secret` has 0 bytes");
    assert_eq!(
        wrong("versions = [1]\n[[rip.key]]\nalgorithm = 'md5'\nsecret = 'x'"),
        "version 1 cannot be signed, and there are keys"
    );
}
