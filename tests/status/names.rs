//! `dns` with BIND.

use vipa::balance::status::Kind;
use vipa::balance::status::dns::Question;

use crate::bind;
use crate::fixture::{Site, wait_until};

#[test]
fn bind_is_asked_over_both_families() {
    let mut site = Site::new("bind");
    let many: String = (1..=60).map(|n| format!("many IN A 192.0.2.{n}\n")).collect();
    let records = format!(
        "www IN CNAME web\nweb IN A 192.0.2.7\nweb IN A 192.0.2.8\nweb IN AAAA 2001:db8::7\n{many}"
    );
    let arguments = bind::set_up(site.files.path(), &records);
    site.start("named", &arguments.each_ref().map(String::as_str));
    site.listens("127.0.0.1:5300");
    site.listens("[::1]:5300");
    let ask = |address: &str, name: &str, record: &str, answer: Option<&str>| {
        let record = Question::TYPES.iter().find(|(name, _)| *name == record).expect("a type").1;
        let answer = answer.map(|answer| answer.parse().expect("an address"));
        let name = Question::name(name).expect("a name");
        let question = Question { port: Some(5300), name, record, answer };
        let read = site.reader(Kind::Dns(question), address).read();
        read.map(|reading| reading.value.expect("a time")).map_err(|failure| failure.to_string())
    };
    wait_until("the zone is there", || ask("127.0.0.1:9", "vipa.test", "SOA", None).is_ok());
    for address in ["127.0.0.1:53", "[::1]:53"] {
        for (name, record, answer) in [
            ("vipa.test", "SOA", None),
            ("VIPA.test.", "NS", None),
            ("www.vipa.test", "A", Some("192.0.2.8")),
            ("www.vipa.test", "CNAME", None),
            ("web.vipa.test", "AAAA", Some("2001:db8::7")),
            // More than one datagram takes: cut short, but answered.
            ("many.vipa.test", "A", None),
        ] {
            let time = ask(address, name, record, answer).expect(name);
            assert!(time > 0.0, "{name}: {time}");
        }
    }
    let told = |name, record, answer| ask("127.0.0.1:53", name, record, answer).expect_err(name);
    assert_eq!(told("no.vipa.test", "A", None), "answered NXDOMAIN, wanted NOERROR");
    assert_eq!(told("www.example.com", "A", None), "answered REFUSED, wanted NOERROR");
    assert_eq!(told("ns.vipa.test", "AAAA", None), "answered no record, wanted a record");
    assert_eq!(
        told("ns.vipa.test", "A", Some("192.0.2.9")),
        "answered \"192.0.2.1\", wanted 192.0.2.9"
    );
}
