//! What one configuration says otherwise than another, in words: what a reload tells that it changed. Values are left out: some are
//! secrets.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Config, Nic};
use crate::balance::service::{Server, Settings};
use crate::forward::rule::Rule;

/// Names of what came, went and became different.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Difference {
    /// What there was not.
    pub added: Vec<String>,
    /// What there is no more.
    pub removed: Vec<String>,
    /// What is there as before, and otherwise: its name, and behind a colon what of it.
    pub changed: Vec<String>,
}

impl fmt::Display for Difference {
    /// A line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, names) in
            [("added", &self.added), ("removed", &self.removed), ("changed", &self.changed)]
        {
            names.iter().try_for_each(|name| writeln!(f, "{what} {name}"))?;
        }
        Ok(())
    }
}

impl Difference {
    /// Between two configurations of one forwarder.
    pub fn between(before: &Config, after: &Config) -> Difference {
        let mut found = Difference::default();
        let address = |address: &std::net::IpAddr| format!("address {address}");
        let (was, is) = (&before.adapter.addresses, &after.adapter.addresses);
        found.items(was, is, address, |_, _| Vec::new());
        let first = |all: &[std::net::IpAddr]| {
            let of = |is_v4| all.iter().copied().find(|address| address.is_ipv4() == is_v4);
            (of(true), of(false))
        };
        found.section(first(was) != first(is), "default address");
        let there = |nics: &[Nic]| -> Vec<Nic> {
            nics.iter().filter(|nic| !nic.is_gone()).cloned().collect()
        };
        let name = |nic: &Nic| format!("nic {}", nic.name);
        found.items(&there(&before.nics), &there(&after.nics), name, of_nic);
        let plain = |config: &Config| super::Source { rules: Vec::new(), ..config.source.clone() };
        found.section(plain(before) != plain(after), "[source]");
        let rules = |config: &Config| -> Vec<Rule> {
            config.source.rules.iter().map(|rule| Rule { line: 0, ..rule.clone() }).collect()
        };
        found.section(rules(before) != rules(after), "[[source.rule]]");
        match (rip(before), rip(after)) {
            (None, Some(_)) => found.added.push("[rip]".to_owned()),
            (Some(_), None) => found.removed.push("[rip]".to_owned()),
            (was, is) => found.section(was != is, "[rip]"),
        }
        found.section(before.path != after.path, "[path]");
        found.section(before.announce != after.announce, "[announce]");
        let name = |service: &Settings| format!("service {}", service.name);
        found.items(&before.services, &after.services, name, of_service);
        for service in &after.services {
            let was = before.services.iter().find(|was| was.name == service.name);
            let name = |server: &Server| format!("server {}/{}", service.name, server.name);
            // Those of a service that came or went come or go with it.
            if let Some(was) = was {
                found.items(&was.servers, &service.servers, name, of_server);
            }
        }
        found
    }

    /// Is it the same?
    pub fn is_nothing(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    fn section(&mut self, is_other: bool, name: &str) {
        self.changed.extend(is_other.then(|| name.to_owned()));
    }

    fn items<T>(
        &mut self,
        before: &[T],
        after: &[T],
        name: impl Fn(&T) -> String,
        different: impl Fn(&T, &T) -> Vec<&'static str>,
    ) {
        for item in after {
            let name_of = name(item);
            match before.iter().find(|was| name(was) == name_of) {
                None => self.added.push(name_of),
                Some(was) => {
                    let keys = different(was, item);
                    if !keys.is_empty() {
                        self.changed.push(format!("{name_of}: {}", keys.join(", ")));
                    }
                }
            }
        }
        let is_gone = |was: &&T| !after.iter().any(|item| name(item) == name(was));
        self.removed.extend(before.iter().filter(is_gone).map(&name));
    }
}

/// Of NICs what is said of them by name, whatever their places.
fn rip(config: &Config) -> Option<(crate::rip::Settings, Vec<(&str, crate::rip::NicSettings)>)> {
    let settings = config.rip.as_ref()?;
    let names = config.nics.iter().map(|nic| nic.name.as_str());
    let told = names.zip(settings.nics.iter().copied());
    let mut nics: Vec<_> = told.filter(|(_, nic)| *nic != Default::default()).collect();
    nics.sort_unstable_by_key(|(name, _)| *name);
    Some((crate::rip::Settings { nics: Vec::new(), ..settings.clone() }, nics))
}

/// The names that stand beside `true`.
fn those<const N: usize>(all: [(bool, &'static str); N]) -> Vec<&'static str> {
    all.into_iter().filter(|(is_other, _)| *is_other).map(|(_, name)| name).collect()
}

fn of_nic(was: &Nic, is: &Nic) -> Vec<&'static str> {
    those([
        (was.gateways != is.gateways, "gateway"),
        (was.weight != is.weight, "weight"),
        (was.metric != is.metric, "metric"),
        (was.hold_down != is.hold_down, "hold-down"),
    ])
}

fn of_service(was: &Settings, is: &Settings) -> Vec<&'static str> {
    let order = |of: &Settings, other: &Settings| -> Vec<std::sync::Arc<str>> {
        let names = of.servers.iter().map(|server| server.name.clone());
        names.filter(|name| other.servers.iter().any(|server| server.name == *name)).collect()
    };
    those([
        ((was.address, &was.ports) != (is.address, &is.ports), "address"),
        (was.protocol != is.protocol, "protocol"),
        (was.mode != is.mode, "mode"),
        (was.policy != is.policy, "policy"),
        (was.choose != is.choose, "choose"),
        (was.hysteresis != is.hysteresis, "hysteresis"),
        (was.when_none != is.when_none, "when-none"),
        (was.on_death != is.on_death, "on-death"),
        ((was.rise, was.fall) != (is.rise, is.fall), "rise and fall"),
        (was.slow_start != is.slow_start, "slow-start"),
        (was.statuses != is.statuses, "status objects"),
        (order(was, is) != order(is, was), "order of servers"),
    ])
}

fn of_server(was: &Server, is: &Server) -> Vec<&'static str> {
    those([
        ((was.address, was.port) != (is.address, is.port), "address"),
        (was.weight != is.weight, "weight"),
        (was.capacity != is.capacity, "capacity"),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;

    const FILE: &str = r#"
[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "203.0.113.11"]
[[nic]]
name = "eth1"
[[nic]]
name = "eth2"
[[source.rule]]
protocol = "tcp"
use = "203.0.113.11"
[rip]
[[rip.nic]]
name = "eth2"
cost = 2
[[rip.key]]
secret = "hidden"
algorithm = "md5"
[[service]]
name = "web"
address = "203.0.113.10:80"
policy = "least-loaded"
[[service.status]]
name = "clients"
role = "clients"
kind = "tcp"
[[service.server]]
name = "a"
address = "10.2.0.1:80"
[[service.server]]
name = "b"
address = "10.2.0.2:80"
"#;

    /// The lines of the difference that `from` in place of `to` makes.
    fn told(from: &str, to: &str) -> String {
        assert!(FILE.contains(from), "{from}");
        let read = |text: &str| Config::parse(text, Path::new("vipa.toml")).unwrap().0;
        Difference::between(&read(FILE), &read(&FILE.replacen(from, to, 1))).to_string()
    }

    #[test]
    fn what_says_the_same_is_no_difference_wherever_it_stands() {
        assert_eq!(told("[virtual]", "# a line\n\n[virtual]"), "");
        let (first, second) = ("[[nic]]\nname = \"eth1\"\n", "[[nic]]\nname = \"eth2\"\n");
        assert_eq!(told(&format!("{first}{second}"), &format!("{second}{first}")), "");
    }

    #[test]
    fn each_difference_has_its_name() {
        let server = "[[service.server]]\nname = \"b\"\naddress = \"10.2.0.2:80\"\n";
        for (from, to, wanted) in [
            (
                ", \"203.0.113.11\"]",
                ", \"203.0.113.11\", \"203.0.113.12\"]",
                "added address 203.0.113.12\n",
            ),
            (
                "\"203.0.113.10\", \"203.0.113.11\"",
                "\"203.0.113.11\", \"203.0.113.10\"",
                "changed default address\n",
            ),
            (
                "\"eth1\"\n",
                "\"eth1\"\nmetric = 3\nweight = 2\n",
                "changed nic eth1: weight, metric\n",
            ),
            ("\"eth1\"", "\"eth3\"", "added nic eth3\nremoved nic eth1\n"),
            ("cost = 2", "cost = 3", "changed [rip]\n"),
            ("\"hidden\"", "\"other\"", "changed [rip]\n"),
            ("protocol = \"tcp\"", "protocol = \"udp\"", "changed [[source.rule]]\n"),
            ("[rip]", "[source]\nhold = \"9s\"\n[rip]", "changed [source]\n"),
            (
                "[rip]",
                "[path]\nfall = 9\n[announce]\ninterval = \"9s\"\n[rip]",
                "changed [path]\nchanged [announce]\n",
            ),
            (
                "203.0.113.10:80\"",
                "203.0.113.10:80\"\nhysteresis = \"50%\"\nfall = 5",
                "changed service web: hysteresis, rise and fall\n",
            ),
            (server, "", "removed server web/b\n"),
            ("10.2.0.2:80", "10.2.0.3:80", "changed server web/b: address\n"),
            ("\"web\"", "\"site\"", "added service site\nremoved service web\n"),
            ("kind = \"tcp\"", "kind = \"ping\"", "changed service web: status objects\n"),
        ] {
            assert_eq!(told(from, to), wanted, "{from} → {to}");
        }
    }
}
