//! Status objects, good and bad.

use std::net::IpAddr;
use std::path::Path;

use toml::de::DeTable;

use super::*;
use crate::balance::status::dns::Question;
use crate::balance::status::flows::Measure;
use crate::balance::status::host::Resource;
use crate::balance::status::http::Url;
use crate::balance::status::maildir::Count;
use crate::balance::status::template::Template;
use crate::balance::status::tls::Trust;
use crate::balance::status::{Kind, Secret, redis, sql};

/// What `text` (the keys of one status object) reads as, or its mistakes: line, column and found.
fn parse(text: &str) -> Result<Vec<Settings>, Vec<(usize, usize, String)>> {
    let text = format!("[[status]]\n{text}");
    let mut mistakes = Mistakes::new(&text);
    let document = DeTable::parse(&text).expect("TOML");
    let all = read(document.get_ref().get("status"), &mut mistakes);
    match mistakes.finish(Path::new("vipa.toml")) {
        Ok(_) => Ok(all),
        Err(errors) => Err(errors
            .mistakes()
            .iter()
            .map(|mistake| (mistake.line, mistake.column, mistake.found.clone()))
            .collect()),
    }
}

fn one(text: &str) -> Settings {
    let mut all = parse(text).unwrap_or_else(|mistakes| panic!("{text}: {mistakes:?}"));
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn the_contracts_example() {
    let settings = one("name = \"clients\"\nrole = \"clients\"\nkind = \"http-json\"\n\
         url = \"http://{server}/stats\"\nselect = \"/active\"\nevery = \"1s\"\n");
    assert_eq!((&*settings.name, settings.role), ("clients", Some(Role::Clients)));
    assert_eq!((settings.every, settings.timeout), (Every::Period(SECOND), SECOND));
    let Kind::HttpJson { request, select } = settings.kind else { panic!("another kind") };
    assert_eq!(request.url, Url::parse("http://{server}/stats").expect("a URL"));
    assert_eq!((select.as_str(), request.method.as_str()), ("/active", "GET"));
    assert_eq!((request.most, request.trust), (64 << 10, Trust::System));
}

#[test]
fn the_status_objects_of_the_readme_are_right() {
    let readme = include_str!("../../../README.md");
    let block = readme.split("```toml status\n").nth(1).expect("the README's example");
    let block = block.split("```").next().expect("its end");
    let text = block.replace("[[service.status]]", "[[status]]");
    let all = parse(text.strip_prefix("[[status]]\n").expect("one")).expect("no mistake");
    assert_eq!(all.len(), 5);
    assert_eq!(all[0].timeout, SECOND);
    // The table of kinds has them all.
    for kind in KINDS {
        assert!(readme.contains(&format!("\n| `{kind}` | ")), "{kind}");
    }
}

#[test]
fn periods_and_timeouts() {
    let of = |keys: &str| {
        let settings = one(&format!("name = \"a\"\nkind = \"tcp\"\n{keys}"));
        (settings.every, settings.timeout.as_millis())
    };
    assert_eq!(of(""), (Every::Period(SECOND), 1000));
    assert_eq!(of("every = \"24h\""), (Every::Period(DAY), 3000));
    assert_eq!(of("every = \"demand\""), (Every::Demand, 3000));
    assert_eq!(of("timeout = \"200ms\""), (Every::Period(SECOND), 200));
}

#[test]
fn every_kind_is_read() {
    for (keys, wanted) in [
        ("kind = \"tcp\"\nport = 8080", Kind::Tcp { port: Some(8080) }),
        ("kind = \"ping\"", Kind::Ping),
        ("kind = \"hops\"", Kind::Hops { most: 32 }),
        (
            "kind = \"dns\"\nquery = \"a.bc\"\ntype = \"AAAA\"\nanswer = \"2001:db8::1\"\nport = 53",
            Kind::Dns(Question {
                port: Some(53),
                name: b"\x01a\x02bc\0".to_vec(),
                record: 28,
                answer: Some(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])),
            }),
        ),
        (
            "kind = \"maildir\"\npath = \"/var/mail\"\nread = \"bytes\"\nmax = 5",
            Kind::Maildir {
                path: Template::parse("/var/mail").expect("a template"),
                count: Count::Bytes,
                most: 5,
            },
        ),
        (
            "kind = \"redis\"\nfield = \"total_commands_processed\"\nsection = \"stats\"\nrate = true\n\
             user = \"ann\"\npassword = \"x\"\ntls = true\nverify = false",
            Kind::Redis(redis::Query {
                port: None,
                field: "total_commands_processed".into(),
                section: Some("stats".into()),
                is_rate: true,
                user: Some("ann".into()),
                password: Some(Secret::new("x")),
                tls: Some((Trust::All, None)),
            }),
        ),
        (
            "kind = \"sql\"\nquery = \"select 1\"\nuser = \"ann\"",
            Kind::Sql(sql::Query {
                port: None,
                query: "select 1".into(),
                user: "ann".into(),
                password: None,
                database: "ann".into(),
                tls: None,
            }),
        ),
        ("kind = \"fixed\"", Kind::Fixed { value: None }),
        ("kind = \"fixed\"\nvalue = 1_000", Kind::Fixed { value: Some(1000.0) }),
        ("kind = \"fixed\"\nvalue = 2.5", Kind::Fixed { value: Some(2.5) }),
        ("kind = \"flows\"", Kind::Flows(Measure::Active)),
        ("kind = \"flows\"\nread = \"failed\"", Kind::Flows(Measure::Failed)),
        ("kind = \"host\"\nread = \"load15\"", Kind::Host(Resource::Load(2))),
        ("kind = \"host\"\nread = \"cpu\"", Kind::Host(Resource::Cpu)),
        ("kind = \"push\"", Kind::Push { most_age: 3 * SECOND }),
        ("kind = \"push\"\nmax-age = \"1m\"", Kind::Push { most_age: Duration::from_secs(60) }),
        (
            "kind = \"agent-check\"\nport = 9\nsend = \"hi\\n\"",
            Kind::AgentCheck { port: Some(9), send: "hi\n".into() },
        ),
        (
            "kind = \"exec\"\ncommand = [\"/bin/echo\", \"{host}\"]",
            Kind::Exec {
                command: ["/bin/echo", "{host}"]
                    .map(|text| Template::parse(text).expect("a template"))
                    .to_vec(),
            },
        ),
        (
            "kind = \"file\"\npath = \"/run/{host}\"\nmax-age = \"5s\"",
            Kind::File {
                path: Template::parse("/run/{host}").expect("a template"),
                most_age: Some(Duration::from_secs(5)),
            },
        ),
    ] {
        assert_eq!(one(&format!("name = \"a\"\n{keys}\n")).kind, wanted, "{keys}");
    }
}

#[test]
fn what_http_and_prometheus_are_told() {
    let settings = one(
        "name = \"a\"\nkind = \"http\"\nurl = \"https://{host}:8443/\"\nmethod = \"HEAD\"\n\
         host = \"www.example.com\"\nheaders = { Accept = \"text/plain\" }\nverify = false\n\
         status = \"204, 300-301\"\nbody = \"ok\"\nnumber-after = \"Active connections:\"\nlimit = 1024\n",
    );
    let Kind::Http { request, expected } = settings.kind else { panic!("another kind") };
    assert_eq!((request.method.as_str(), request.most), ("HEAD", 1024));
    assert_eq!(request.host.as_deref(), Some("www.example.com"));
    assert_eq!(request.headers, [("Accept".to_owned(), "text/plain".to_owned())]);
    assert_eq!(request.trust, Trust::All);
    assert_eq!(expected.status, [204..=204, 300..=301]);
    assert_eq!(expected.body.as_deref(), Some("ok"));
    assert_eq!(expected.number_after.as_deref(), Some("Active connections:"));
    let settings =
        one("name = \"a\"\nkind = \"prometheus\"\nurl = \"http://{host}:9100/metrics\"\n\
         metric = \"node_cpu_seconds_total\"\nlabels = { mode = \"idle\" }\nrate = true\n");
    let Kind::Prometheus { request, selection } = settings.kind else { panic!("another kind") };
    assert_eq!(request.most, 1 << 20);
    assert_eq!(selection.to_string(), "node_cpu_seconds_total{mode=\"idle\"}");
    assert!(selection.is_rate);
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (keys, line, column, found) in [
        ("kind = \"tcp\"", 1, 1, "[[service.status]] has no `name`"),
        ("name = \"a\"", 1, 1, "[[service.status]] has no `kind`"),
        ("name = \"a\"\nkind = \"tpc\"", 3, 8, "`kind` is \"tpc\""),
        ("name = \"a b\"\nkind = \"tcp\"", 2, 8, "the name is \"a b\""),
        ("name = \"a\"\nkind = \"tcp\"\nrole = \"users\"", 4, 8, "`role` is \"users\""),
        ("name = \"a\"\nkind = \"tcp\"\nurl = \"http://{server}/\"", 4, 1, "no key `url`"),
        ("name = \"a\"\nkind = \"tcp\"\nevery = \"often\"", 4, 9, "`every` is \"often\""),
        ("name = \"a\"\nkind = \"tcp\"\nevery = \"1ms\"", 4, 9, "`every` is \"1ms\""),
        ("name = \"a\"\nkind = \"tcp\"\nport = 0", 4, 8, "`port` is 0"),
        ("name = \"a\"\nkind = \"http\"", 1, 1, "has no `url`"),
        ("name = \"a\"\nkind = \"http\"\nurl = \"http://web/\"", 4, 7, "is no address"),
        ("name = \"a\"\nkind = \"http\"\nurl = \"http://{sever}/\"", 4, 7, "{sever}"),
        (
            "name = \"a\"\nkind = \"http\"\nurl = \"http://{server}/\"\nstatus = \"2xx\"",
            5,
            10,
            "`status` is \"2xx\"",
        ),
        (
            "name = \"a\"\nkind = \"http\"\nurl = \"http://{server}/\"\nheaders = { \"A B\" = \"c\" }",
            5,
            13,
            "\"A B\"",
        ),
        (
            "name = \"a\"\nkind = \"http\"\nurl = \"http://{server}/\"\nverify = false",
            4,
            7,
            "`url` is http",
        ),
        (
            "name = \"a\"\nkind = \"http\"\nurl = \"https://{server}/\"\nca = \"/nonexistent\"",
            5,
            6,
            "`ca` cannot be used",
        ),
        (
            "name = \"a\"\nkind = \"http-json\"\nurl = \"http://{server}/\"\nselect = \"active\"",
            5,
            10,
            "`select` is \"active\"",
        ),
        (
            "name = \"a\"\nkind = \"prometheus\"\nurl = \"http://{server}/\"\nmetric = \"a{b=\\\"c\\\"}\"",
            5,
            10,
            "`metric` is",
        ),
        ("name = \"a\"\nkind = \"exec\"\ncommand = \"/bin/true\"", 4, 11, "`command` is a string"),
        ("name = \"a\"\nkind = \"exec\"\ncommand = []", 4, 11, "`command` is empty"),
        ("name = \"a\"\nkind = \"exec\"\ncommand = [\"true\"]", 4, 12, "the program is \"true\""),
        (
            "name = \"a\"\nkind = \"exec\"\ncommand = [\"/a\", \"{hots}\"]",
            4,
            18,
            "{hots} is no place",
        ),
        ("name = \"a\"\nkind = \"dns\"\nquery = \"a..b\"", 4, 9, "`query` is \"a..b\""),
        (
            "name = \"a\"\nkind = \"dns\"\nquery = \"a\"\nanswer = \"2001:db8::1\"",
            5,
            10,
            "`answer` is",
        ),
        ("name = \"a\"\nkind = \"maildir\"\npath = \"mail\"", 4, 8, "`path` is \"mail\""),
        ("name = \"a\"\nkind = \"redis\"", 1, 1, "has no `field`"),
        (
            "name = \"a\"\nkind = \"redis\"\nfield = \"b\"\nca = \"/dev/null\"\ntls = true",
            5,
            6,
            "no regular file",
        ),
        ("name = \"a\"\nkind = \"redis\"\nfield = \"b\"\nhost = \"c\"", 5, 1, "no `tls`"),
        ("name = \"a\"\nkind = \"redis\"\nfield = \"b\"\nuser = \"c\"", 5, 8, "without `password`"),
        ("name = \"a\"\nkind = \"sql\"\nuser = \"b\"", 1, 1, "has no `query`"),
        (
            "name = \"a\"\nkind = \"sql\"\nuser = \"b\"\nquery = \"q\"\npassword-file = \"/nonexistent\"",
            6,
            17,
            "cannot be read",
        ),
        (
            "name = \"a\"\nkind = \"sql\"\nuser = \"b\"\nquery = \"q\"\npassword-file = \"/dev/zero\"",
            6,
            17,
            "no regular file",
        ),
        ("name = \"a\"\nkind = \"fixed\"\nvalue = \"1\"", 4, 9, "`value` is a string"),
        ("name = \"a\"\nkind = \"fixed\"\nvalue = inf", 4, 9, "no finite number"),
        ("name = \"a\"\nkind = \"file\"\npath = \"load\"", 4, 8, "`path` is \"load\""),
        (
            "name = \"a\"\nkind = \"tcp\"\n[[status]]\nkind = \"tcp\"\nname = \"a\"",
            6,
            8,
            "two status objects have the name \"a\"",
        ),
        (
            "name = \"a\"\nkind = \"tcp\"\nrole = \"clients\"\n[[status]]\nname = \"b\"\nkind = \"tcp\"\nrole = \"clients\"",
            8,
            8,
            "two status objects have this role",
        ),
    ] {
        let mistakes = parse(keys).expect_err(keys);
        assert_eq!(mistakes.len(), 1, "{keys}: {mistakes:?}");
        let told = &mistakes[0];
        assert_eq!((told.0, told.1), (line, column), "{keys}: {told:?}");
        assert!(told.2.contains(found), "{keys}: {told:?}");
    }
}
