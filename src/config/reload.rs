//! A file that is read again while the forwarder runs: what cannot change without a restart is a mistake there, with its line; NICs keep
//! the places that they have.

use std::fmt::Display;
use std::ops::Range;

use toml::de::DeTable;

use super::mistake::Mistakes;
use super::read::MOST_NICS;
use super::{Config, Nic};

/// Makes `config` follow the one that is `running`, or notes why it cannot.
pub(super) fn follow(
    running: &Config,
    config: &mut Config,
    document: &DeTable<'_>,
    mistakes: &mut Mistakes<'_>,
) {
    let mut fixed = Fixed { document, mistakes };
    let (was, is) = (&running.adapter, &config.adapter);
    let adapter = "the adapter, and all that stands around it, is made at start";
    fixed.same("virtual", "name", &was.name, &is.name, adapter);
    fixed.same("virtual", "table", was.table, is.table, adapter);
    fixed.same("virtual", "preference", was.preference, is.preference, adapter);
    let tables = "the nftables tables are made so at start";
    fixed.same("virtual", "protect", was.is_protected, is.is_protected, tables);
    let (was, is) = (&running.forwarder, &config.forwarder);
    fixed.same("forwarder", "workers", was.workers, is.workers, "they begin at start");
    let memory = "the flow table's memory is fixed at start";
    fixed.same("forwarder", "flows", was.flows, is.flows, memory);
    let families = |config: &Config| match config.families() {
        (true, true) => "addresses of both families",
        (true, false) => "IPv4 addresses alone",
        _ => "IPv6 addresses alone",
    };
    let of_families = "the flow table's memory is fixed at start, for the families that there are";
    fixed.same("virtual", "addresses", families(running), families(config), of_families);
    let ports =
        |config: &Config| format!("{}-{}", config.source.ports.start(), config.source.ports.end());
    let given = "rewritten flows have ports of this range";
    fixed.same("source", "ports", ports(running), ports(config), given);
    if !config.take_places(running) {
        let span = fixed.span("nic", None);
        let found = format!(
            "with those that were taken out while the forwarder ran there are more than {MOST_NICS} [[nic]]"
        );
        fixed.mistakes.error(span, found, "needs a restart: each has a place of its own");
    }
}

struct Fixed<'d, 'm, 't> {
    document: &'d DeTable<'d>,
    mistakes: &'m mut Mistakes<'t>,
}

impl Fixed<'_, '_, '_> {
    fn same<T: PartialEq + Display>(&mut self, table: &str, key: &str, was: T, is: T, why: &str) {
        if was != is {
            let found = format!("`{key}` is {is}, and was {was} when the forwarder started");
            self.mistakes.error(
                self.span(table, Some(key)),
                found,
                format!("needs a restart: {why}"),
            );
        }
    }

    /// Where the key stands, or its table, or the file.
    fn span(&self, table: &str, key: Option<&str>) -> Range<usize> {
        let Some((name, value)) = self.document.get_key_value(table) else { return 0..0 };
        let entry = key.and_then(|key| value.get_ref().as_table()?.get(key));
        entry.map_or_else(|| name.span(), |entry| entry.span())
    }
}

impl Config {
    /// Which families have a VIPA: IPv4, IPv6?
    fn families(&self) -> (bool, bool) {
        let addresses = &self.adapter.addresses;
        (addresses.iter().any(|a| a.is_ipv4()), addresses.iter().any(|a| a.is_ipv6()))
    }

    /// Puts the NICs that are in `running` too where they are there. Others come behind them, and where all places have been had, into
    /// those of NICs that have long been gone. False: there is no place left.
    fn take_places(&mut self, running: &Config) -> bool {
        let place = |nic: &Nic| self.nics.iter().position(|of| of.name == nic.name);
        let mut places: Vec<Option<usize>> = running.nics.iter().map(place).collect();
        let is_new = |at: &usize| !places.contains(&Some(*at));
        let new: Vec<usize> = (0..self.nics.len()).filter(is_new).collect();
        let mut left = (0..running.nics.len()).filter(|at| running.nics[*at].is_gone());
        for at in new {
            if places.len() < MOST_NICS {
                places.push(Some(at));
            } else if let Some(empty) = left.next() {
                places[empty] = Some(at);
            } else {
                return false;
            }
        }
        let nic = |at: &Option<usize>| at.map_or_else(Nic::gone, |at| self.nics[at].clone());
        let nics = places.iter().map(nic).collect();
        if let Some(rip) = &mut self.rip {
            let of = |at: &Option<usize>| at.and_then(|at| rip.nics.get(at)).copied();
            rip.nics = places.iter().map(|at| of(at).unwrap_or_default()).collect();
        }
        self.nics = nics;
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;
    use crate::config::Mistake;

    const FILE: &str = r#"[virtual]
name = "vipa0"
addresses = ["203.0.113.10", "2001:db8::10"]
[forwarder]
flows = 4096
[[nic]]
name = "eth1"
[[nic]]
name = "eth2"
[[nic]]
name = "eth3"
[rip]
[[rip.nic]]
name = "eth2"
cost = 2
[[rip.nic]]
name = "eth3"
cost = 3
"#;

    fn parse(text: &str, running: Option<&Config>) -> Result<Config, Vec<Mistake>> {
        Config::parse_for(text, Path::new("vipa.toml"), None, running)
            .map(|(config, _)| config)
            .map_err(|errors| errors.mistakes().to_vec())
    }

    /// The file with `from` in it replaced, read by a forwarder that runs by the file.
    fn reloaded(from: &str, to: &str) -> Result<Config, Vec<Mistake>> {
        assert!(FILE.contains(from), "{from}");
        parse(&FILE.replacen(from, to, 1), Some(&parse(FILE, None).unwrap()))
    }

    #[test]
    fn what_needs_a_restart_is_told_with_its_line() {
        for (from, to, line, found) in [
            ("vipa0", "vipa1", 2, "`name` is vipa1, and was vipa0 when the forwarder started"),
            ("4096", "8192", 5, "`flows` is 8192, and was 4096 when the forwarder started"),
            ("flows = 4096", "", 4, "`flows` is 65536, and was 4096 when the forwarder started"),
            (
                "flows",
                "workers = 2\nflows",
                5,
                "`workers` is 2, and was 1 when the forwarder started",
            ),
            (
                ", \"2001:db8::10\"",
                "",
                3,
                "`addresses` is IPv4 addresses alone, and was addresses of both families when the forwarder started",
            ),
            (
                "[rip]",
                "[source]\nports = \"62000-65535\"\n[rip]",
                13,
                "`ports` is 62000-65535, and was 61000-65535 when the forwarder started",
            ),
        ] {
            let mistakes = reloaded(from, to).unwrap_err();
            let [mistake] = &mistakes[..] else { panic!("{mistakes:?}") };
            assert_eq!((mistake.line, mistake.found.as_str()), (line, found));
            assert!(mistake.wanted.starts_with("needs a restart: "), "{}", mistake.wanted);
        }
    }

    #[test]
    fn what_may_change_is_no_mistake() {
        for (from, to) in [
            ("203.0.113.10", "203.0.113.11"),
            ("[rip]", "[path]\nprobe = \"off\"\n[rip]"),
            ("[rip]", "[source]\nhold = \"9s\"\n[rip]\nupdate = \"10s\""),
            ("\"eth3\"\n[rip]", "\"eth3\"\nweight = 9\n[[nic]]\nname = \"eth4\"\n[rip]"),
        ] {
            reloaded(from, to).unwrap();
        }
    }

    fn names(config: &Config) -> Vec<(&str, u8)> {
        let costs = config.rip.as_ref().unwrap().nics.iter().map(|nic| nic.cost);
        config.nics.iter().map(|nic| nic.name.as_str()).zip(costs).collect()
    }

    #[test]
    fn nics_keep_their_places() {
        let without = FILE.replace("[[nic]]\nname = \"eth2\"\n", "");
        let without = without.replace("[[rip.nic]]\nname = \"eth2\"\ncost = 2\n", "");
        let config = parse(&without, Some(&parse(FILE, None).unwrap())).unwrap();
        assert_eq!(names(&config), [("eth1", 1), ("", 1), ("eth3", 3)]);
        assert!(config.nics[1].is_gone());
        // Back, it is another; and the order of the file is of no account.
        let back = without.replace("[rip]\n", "[[nic]]\nname = \"eth2\"\n[rip]\n");
        let back = back.replace("eth1", "eth9").replace("eth3", "eth1").replace("eth9", "eth3");
        let config = parse(&back, Some(&config)).unwrap();
        assert_eq!(names(&config), [("eth1", 3), ("", 1), ("eth3", 1), ("eth2", 1)]);
    }

    #[test]
    fn places_are_had_again_only_when_all_have_been_had() {
        let head = "[virtual]\nname = \"vipa0\"\naddresses = [\"203.0.113.10\"]\n";
        let file = |numbers: std::ops::Range<usize>| {
            let nic = |number| format!("[[nic]]\nname = \"eth{number}\"\n");
            head.to_owned() + &numbers.map(nic).collect::<String>()
        };
        let mut config = parse(&file(0..63), None).unwrap();
        config = parse(&file(1..64), Some(&config)).unwrap();
        assert_eq!((config.nics.len(), config.nics[63].name.as_str()), (64, "eth63"));
        config = parse(&file(1..65), Some(&config)).unwrap();
        assert_eq!((config.nics.len(), config.nics[0].name.as_str()), (64, "eth64"));
        // What this very reload takes out is not anybody's yet.
        let mistakes = parse(&file(2..66), Some(&config)).unwrap_err();
        assert!(mistakes[0].wanted.starts_with("needs a restart"), "{mistakes:?}");
    }
}
