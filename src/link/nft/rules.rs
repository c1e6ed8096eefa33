//! What stands in nftables for the rewritten flows: pure, from [`NftRules`] to tables.
//!
//! `inet vipa-<adapter>` keeps the kernel from answering, with a reset or a port-unreachable, what comes
//! for a reserved port of an address that rewritten flows carry, or has to do with a virtual service: the
//! forwarder's packet sockets have seen it by then.
//!
//! `netdev vipa-<adapter>` holds back, silently, what the forwarder would have rewritten and what leaves
//! un-rewritten by the kernel's fallback while no forwarder runs. It holds for as long as the lease lives
//! that the forwarder renews.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::NftRules;
use super::expression::{
    DESTINATION_PORT, Expressions, ICMP_IDENTIFIER, ICMP_TYPE, Meta, SCTP_CHUNK, SOURCE_PORT,
    Verdict, destination, octets, source,
};
use super::flows::Place;
use super::table::{
    ACCEPT, Content, Hook, INET, NETDEV, Set, TYPE_DEVICE, TYPE_IPV4, TYPE_IPV6, TYPE_MARK,
    TYPE_PORT, TYPE_PROTOCOL, Table, device_key, table_name,
};
use crate::config::Config;
use crate::device::MARK;
use crate::forward::claims::{Claim, Claims};
use crate::forward::rule::{Rule, Target};
use crate::wire::ip::{DCCP, Family, ICMP, ICMPV6, SCTP, TCP, UDP, UDP_LITE};

/// The set whose one element, [`LEASE_KEY`], runs out.
pub(super) const LEASE: &str = "lease";
/// The element of [`LEASE`].
pub(super) const LEASE_KEY: [u8; 4] = [0, 0, 0, 1];
/// Elements of the set run out.
pub(super) const TIMEOUT: u32 = 0x10;

/// Protocols with ports that a rewrite leaves as they are.
const WITH_PORTS: [u8; 3] = [SCTP, DCCP, UDP_LITE];

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const RIP_PORTS: std::ops::RangeInclusive<u16> = 520..=521;

/// Name of the base chain on this NIC.
pub(super) fn egress_chain(nic: &str) -> String {
    format!("egress-{nic}")
}

/// May a flow be rewritten that the kernel, without a forwarder, would let leave as it is? (What this host asks of its own services has no
/// other way.)
fn can_hold(rules: &[Rule], is_bound_forwarded: bool) -> bool {
    !rules.is_empty() || is_bound_forwarded
}

/// The tables in words, one line each, for `vipa check --plan`.
pub(super) fn outline(config: &Config) -> String {
    let table = table_name(&config.adapter.name);
    let (ports, hold) = (&config.source.ports, config.source.hold);
    let nics: Vec<&str> = config.nics.iter().map(|nic| nic.name.as_str()).collect();
    let services = match config.services.len() {
        0 => String::new(),
        1 => " and what one virtual service is asked".to_owned(),
        count => format!(" and what {count} virtual services are asked"),
    };
    let mut text = format!(
        "table inet {table}: replies to rewritten flows, ports {}-{},{services} go to the forwarder alone\n",
        ports.start(),
        ports.end(),
    );
    if can_hold(&config.source.rules, config.source.is_bound_forwarded) {
        let nics = nics.join(", ");
        let _ = writeln!(
            text,
            "table netdev {table}: on {nics}, what would leave un-rewritten without a forwarder is dropped, for {hold:?}"
        );
    }
    text
}

/// A range of so many ports is a rule of its own.
const FEW_PORTS: u16 = 64;

/// protocol . address . port, for each port.
fn claim_keys(claim: &Claim) -> impl Iterator<Item = Vec<u8>> {
    let Claim { address, protocol, ports: (first, last) } = *claim;
    (first..=last).map(move |port| {
        let mut key = vec![protocol, 0, 0, 0];
        key.extend(octets(address));
        key.extend(port.to_be_bytes());
        key.extend([0; 2]);
        key
    })
}

/// `inet`: drops what is asked of services, and what comes for reserved ports, `spared` ones left out.
pub(super) fn reserved_ports(rules: &NftRules, spared: &BTreeSet<u16>) -> Table {
    let mut table = Table::new(INET);
    table.set("nics", TYPE_DEVICE, rules.nics.iter().map(|name| device_key(name)));
    table.addresses("owned4", "owned6", &rules.claims.owned);
    table.set("spared", TYPE_PORT, spared.iter().map(|port| port.to_be_bytes().to_vec()));
    table.base("prerouting", Hook { number: 0, priority: -300, device: None, policy: ACCEPT });
    table.chain("reserved");

    let new = Expressions::default;
    let others = new().meta_in(Meta::InputName, "nics", false);
    table.rule("prerouting", "no NIC of vipa", others.then(Verdict::Accept));
    table.services(&rules.claims, &rules.local);
    for (protocol, family, set) in [(2, Family::V4, "owned4"), (10, Family::V6, "owned6")] {
        let ours = new()
            .meta(Meta::NetfilterProtocol, &[protocol])
            .field_in(destination(family), set, true)
            .then(Verdict::Goto("reserved"));
        table.rule("prerouting", "an address of rewritten flows", ours);
    }
    for protocol in [TCP, UDP] {
        let spared = new().protocol(protocol).field_in(DESTINATION_PORT, "spared", true);
        table.rule("reserved", "a socket has this port", spared.then(Verdict::Return));
        let reserved = new().protocol(protocol).within(DESTINATION_PORT, &rules.claims.reserved);
        table.rule("reserved", "the forwarder's", reserved.counter().then(Verdict::Drop));
    }
    for family in Family::BOTH {
        let set = Place::Replies(family).set();
        table.sets.push(Place::Replies(family).definition());
        let protocol = if family == Family::V4 { 2 } else { 10 };
        let of_family = || new().meta(Meta::NetfilterProtocol, &[protocol]);
        let (icmp, reply) = match family {
            Family::V4 => (ICMP, ECHO_REPLY),
            Family::V6 => (ICMPV6, ECHO_REPLY_V6),
        };
        let echo = of_family().protocol(icmp).field(ICMP_TYPE, &[reply]);
        let echo = echo.reply_in(family, set, Some(ICMP_IDENTIFIER)).counter();
        table.rule("reserved", "the forwarder's", echo.then(Verdict::Drop));
        for protocol in WITH_PORTS {
            let kept = of_family().protocol(protocol);
            let kept = kept.reply_in(family, set, Some(DESTINATION_PORT)).counter();
            table.rule("reserved", "the forwarder's", kept.then(Verdict::Drop));
        }
        let portless = of_family().reply_in(family, set, None).counter();
        table.rule("reserved", "the forwarder's", portless.then(Verdict::Drop));
    }
    table
}

/// `netdev`: holds what would leave un-rewritten by `nics`, which exist. (The names of all stand in the other
/// table: a NIC that comes back must not let the kernel answer before we know of it.)
pub(super) fn egress_hold(rules: &NftRules, nics: &[String]) -> Table {
    let mut table = Table::new(NETDEV);
    table.addresses("sources4", "sources6", &rules.sources);
    table.sets.extend(Family::BOTH.map(|family| Place::Sent(family).definition()));
    table.sets.push(Set {
        name: LEASE,
        key_type: TYPE_MARK,
        key_length: LEASE_KEY.len() as u32,
        flags: TIMEOUT,
        content: Content::Lease,
    });
    for chain in ["hold", "hold4", "hold6", "first4", "first6"] {
        table.chain(chain);
    }
    for nic in nics {
        let chain = egress_chain(nic);
        let hook = Hook { number: 1, priority: 0, device: Some(nic.clone()), policy: ACCEPT };
        table.base(&chain, hook);
        table.rule(&chain, "", Expressions::default().then(Verdict::Goto("hold")));
    }

    let new = Expressions::default;
    let own = new().meta(Meta::Mark, &MARK.to_ne_bytes());
    table.rule("hold", "sent by the forwarder", own.then(Verdict::Accept));
    let over = new().constant_in(&LEASE_KEY, LEASE, false);
    table.rule("hold", "the lease has run out", over.then(Verdict::Accept));
    for (ethertype, family) in [(0x0800u16, Family::V4), (0x86dd, Family::V6)] {
        let (hold, first, sources) = match family {
            Family::V4 => ("hold4", "first4", "sources4"),
            Family::V6 => ("hold6", "first6", "sources6"),
        };
        let is_family = new().meta(Meta::Protocol, &ethertype.to_be_bytes());
        table.rule("hold", "", is_family.then(Verdict::Goto(hold)));

        let (icmp, request) = echo_request(family);
        let is_request = || new().protocol(icmp).field(ICMP_TYPE, &[request]);
        let set = Place::Sent(family).set();
        for protocol in [TCP, UDP].into_iter().chain(WITH_PORTS) {
            let flow = new().protocol(protocol).flow_in(family, set).counter();
            table.rule(hold, "a rewritten flow", flow.then(Verdict::Drop));
        }
        let echo = is_request().echo_flow_in(family, set).counter();
        table.rule(hold, "a rewritten flow", echo.then(Verdict::Drop));
        let portless = new().portless_flow_in(family, set).counter();
        table.rule(hold, "a rewritten flow", portless.then(Verdict::Drop));
        let chosen = new().field_in(source(family), sources, false);
        table.rule(hold, "the application chose its source", chosen.then(Verdict::Accept));
        let syn = new().protocol(TCP).bare_syn();
        table.rule(hold, "", syn.then(Verdict::Goto(first)));
        for port in [SOURCE_PORT, DESTINATION_PORT] {
            let rip = new().protocol(UDP).within(port, &RIP_PORTS);
            table.rule(hold, "RIP is IGNORE by nature", rip.then(Verdict::Accept));
        }
        let client = new().protocol(UDP).within(SOURCE_PORT, &rules.ephemeral);
        table.rule(hold, "", client.then(Verdict::Goto(first)));
        table.rule(hold, "", is_request().then(Verdict::Goto(first)));
        for protocol in [TCP, UDP, icmp] {
            let answer = new().protocol(protocol);
            table.rule(hold, "an answer, or known", answer.then(Verdict::Accept));
        }
        let init = new().protocol(SCTP).field(SCTP_CHUNK, &[1]);
        table.rule(hold, "", init.then(Verdict::Goto(first)));
        for protocol in WITH_PORTS {
            let answer = new().protocol(protocol);
            table.rule(hold, "an answer, or known", answer.then(Verdict::Accept));
        }
        table.rule(hold, "", new().then(Verdict::Goto(first)));
        for (rule, is_decided) in rules.held() {
            table.source_rule(first, family, rule, is_decided, rules.chosen_by_kernel(family));
        }
    }
    table
}

fn echo_request(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (ICMP, ECHO_REQUEST),
        Family::V6 => (ICMPV6, ECHO_REQUEST_V6),
    }
}

impl NftRules {
    pub(super) fn can_hold(&self) -> bool {
        can_hold(&self.rules, self.is_bound_forwarded)
    }

    /// The rules that bear on first packets, and of each whether the kernel has decided about them: those of
    /// the forwarder, and those of the kernel before them. (With `bound = "forward"` nobody but the forwarder
    /// sees to a socket bound to a NIC's address. What comes here of `physical`, the main table had no way for.)
    fn held(&self) -> impl Iterator<Item = (&Rule, bool)> {
        let decided: Vec<bool> = self
            .rules
            .iter()
            .zip(&self.applies)
            .map(|(rule, by)| by.is_by_kernel() && rule.target != Target::Physical)
            .collect();
        let is_forwarders = |is_decided: &bool| !is_decided || self.is_bound_forwarded;
        let count = decided.iter().rposition(is_forwarders).map_or(0, |last| last + 1);
        self.rules.iter().zip(decided).take(count)
    }

    /// Where sockets bound to a NIC's address come here as well, what the others carry.
    fn chosen_by_kernel(&self, family: Family) -> Option<IpAddr> {
        let mut defaults = self.sources.iter().filter(|a| Family::of(**a) == family);
        defaults.next().copied().filter(|_| self.is_bound_forwarded)
    }
}

impl Table {
    /// A `[[source.rule]]` as it bears on first packets of `family`: what carries the rule's VIPA already
    /// passes, all else that matches is held. Of what the kernel has decided about all passes, if it chose
    /// the source (`chosen`; `None`: as it did of all that comes here).
    fn source_rule(
        &mut self,
        chain: &str,
        family: Family,
        rule: &Rule,
        is_decided: bool,
        chosen: Option<IpAddr>,
    ) {
        for matching in matches(rule, family) {
            if is_decided {
                let mut kernels = matching.write();
                if let Some(vipa) = chosen {
                    kernels = kernels.field(source(family), &octets(vipa));
                }
                let comment = format!("source.rule of line {}: the kernel's", rule.line);
                self.rule(chain, &comment, kernels.then(Verdict::Accept));
                if chosen.is_none() {
                    continue;
                }
            }
            if let Target::Vipa(vipa) = rule.target {
                let same = matching.write().field(source(family), &octets(vipa));
                let comment = format!("source.rule of line {}: carries it", rule.line);
                self.rule(chain, &comment, same.then(Verdict::Accept));
            }
            let comment = format!("source.rule of line {}", rule.line);
            self.rule(chain, &comment, matching.write().counter().then(Verdict::Drop));
        }
    }

    /// What is asked of virtual services, and what their servers answer: the forwarder's. A few ports each stand in
    /// a set, so that many services cost no packet more; a wide range is a rule.
    fn services(&mut self, claims: &Claims, local: &[IpAddr]) {
        let new = Expressions::default;
        self.addresses("local4", "local6", local);
        for family in Family::BOTH {
            let number = if family == Family::V4 { 2 } else { 10 };
            let of_family = || new().meta(Meta::NetfilterProtocol, &[number]);
            let (asked, answered) = match family {
                Family::V4 => ("services4", "servers4"),
                Family::V6 => ("services6", "servers6"),
            };
            let address = if family == Family::V4 { TYPE_IPV4 } else { TYPE_IPV6 };
            let key_type =
                [TYPE_PROTOCOL, address, TYPE_PORT].iter().fold(0, |all, one| all << 6 | one);
            for (set, all, comment) in [
                (asked, &claims.services, "asked of a virtual service"),
                (answered, &claims.servers, "a server's answer"),
            ] {
                let is_asked = set == asked;
                let (field, port) = if is_asked {
                    (destination(family), DESTINATION_PORT)
                } else {
                    (source(family), SOURCE_PORT)
                };
                let of_family_alone =
                    all.iter().filter(|claim| Family::of(claim.address) == family);
                let (wide, few): (Vec<&Claim>, Vec<&Claim>) =
                    of_family_alone.partition(|claim| claim.ports.1 - claim.ports.0 >= FEW_PORTS);
                self.set(set, key_type, few.into_iter().flat_map(claim_keys));
                // A server answers a client; what it answers this host, a status object's question, is the kernel's.
                let own = if family == Family::V4 { "local4" } else { "local6" };
                let asked_or_answered = || match is_asked {
                    true => of_family(),
                    false => of_family().field_in(destination(family), own, false),
                };
                let known = asked_or_answered().end_in(field, port, set).counter();
                self.rule("prerouting", comment, known.then(Verdict::Drop));
                for claim in wide {
                    let ports = claim.ports.0..=claim.ports.1;
                    let known = asked_or_answered()
                        .protocol(claim.protocol)
                        .field(field, &octets(claim.address));
                    let known = known.within(port, &ports).counter();
                    self.rule("prerouting", comment, known.then(Verdict::Drop));
                }
            }
            let sources = claims.sources.iter().filter(|(a, _)| Family::of(*a) == family);
            for (address, ports) in sources {
                for protocol in [TCP, UDP] {
                    let answer = of_family().protocol(protocol);
                    let answer = answer.field(destination(family), &octets(*address));
                    let answer = answer.within(DESTINATION_PORT, ports).counter();
                    self.rule("prerouting", "a server's answer", answer.then(Verdict::Drop));
                }
            }
        }
    }
}

/// What a rule matches, for one upper protocol.
#[derive(Debug)]
struct Matching<'a> {
    family: Family,
    protocol: Option<u8>,
    rule: &'a Rule,
}

impl Matching<'_> {
    fn write(&self) -> Expressions {
        let mut expressions = Expressions::default();
        if let Some(protocol) = self.protocol {
            expressions = expressions.protocol(protocol);
        }
        if let Some(prefix) = self.rule.destination {
            expressions = expressions.prefix(destination(self.family), prefix);
        }
        for (ports, field) in
            [(&self.rule.ports, DESTINATION_PORT), (&self.rule.local_ports, SOURCE_PORT)]
        {
            if let Some(ports) = ports {
                expressions = expressions.within(field, ports);
            }
        }
        if let Some(mark) = self.rule.mark {
            expressions = expressions.meta_masked(Meta::Mark, mark.mask, mark.value);
        }
        if let Some(user) = self.rule.user {
            expressions = expressions.meta_masked(Meta::SocketUser, u32::MAX, user);
        }
        expressions
    }
}

/// A rule without protocol but with ports is about TCP and about UDP; one with ports never about ICMP. What a
/// cgroup sends cannot be told from the rest here: it is not held.
fn matches(rule: &Rule, family: Family) -> Vec<Matching<'_>> {
    let of_target = match rule.target {
        Target::Vipa(vipa) => Some(Family::of(vipa)),
        Target::Physical => None,
    };
    let of_destination = rule.destination.map(|prefix| prefix.family());
    if rule.cgroup.is_some() {
        return Vec::new();
    }
    if [of_target, of_destination].into_iter().flatten().any(|of| of != family) {
        return Vec::new();
    }
    let has_ports = rule.ports.is_some() || rule.local_ports.is_some();
    let protocols = match rule.protocol {
        Some(ICMP | ICMPV6) if has_ports => vec![],
        Some(ICMP | ICMPV6) => vec![Some(echo_request(family).0)],
        Some(protocol) => vec![Some(protocol)],
        None if has_ports => vec![Some(TCP), Some(UDP)],
        None => vec![None],
    };
    protocols.into_iter().map(|protocol| Matching { family, protocol, rule }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::applies::{Applies, Because, applies};

    fn rule(target: Target) -> Rule {
        Rule { target, line: 7, ..Rule::default() }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_rule_bears_only_on_its_family_and_protocols() {
        let vipa = rule(Target::Vipa(address("203.0.113.11")));
        assert_eq!(matches(&vipa, Family::V4).len(), 1);
        assert_eq!(matches(&vipa, Family::V6).len(), 0);
        let physical = rule(Target::Physical);
        assert_eq!(matches(&physical, Family::V6).len(), 1);
        let ports = Rule { ports: Some(443..=443), ..physical };
        let protocols: Vec<_> = matches(&ports, Family::V6).iter().map(|m| m.protocol).collect();
        assert_eq!(protocols, [Some(TCP), Some(UDP)]);
        assert!(matches(&Rule { protocol: Some(ICMP), ..ports }, Family::V4).is_empty());
        let echo = Rule { protocol: Some(ICMP), ..rule(Target::Physical) };
        assert_eq!(matches(&echo, Family::V6)[0].protocol, Some(ICMPV6));
    }

    #[test]
    fn a_changed_rule_has_another_comment() {
        let rules = |port: u16| NftRules {
            nics: vec!["eth1".into()],
            claims: Claims {
                owned: vec![address("203.0.113.11")],
                reserved: 61_000..=65_535,
                ..Claims::default()
            },
            local: Vec::new(),
            ephemeral: 32_768..=60_999,
            sources: vec![address("203.0.113.10")],
            rules: vec![Rule { ports: Some(port..=port), ..rule(Target::Physical) }],
            applies: vec![Applies::Forwarder(Because::Told)],
            is_bound_forwarded: false,
            hold: std::time::Duration::from_secs(60),
        };
        let comments = |port| {
            egress_hold(&rules(port), &["eth1".into()])
                .rules
                .into_iter()
                .map(|r| r.comment)
                .collect::<Vec<_>>()
        };
        assert_eq!(comments(443), comments(443));
        let differing =
            comments(443).iter().zip(&comments(444)).filter(|(one, other)| one != other).count();
        assert_eq!(differing, 4, "TCP and UDP, both families");
    }

    fn first_v4(rules: Vec<Rule>, is_bound_forwarded: bool) -> Vec<String> {
        let nft = NftRules {
            nics: vec!["eth1".into()],
            claims: Claims::default(),
            local: Vec::new(),
            ephemeral: 32_768..=60_999,
            sources: vec![address("203.0.113.10"), address("10.1.1.2")],
            applies: applies(&rules, is_bound_forwarded),
            rules,
            is_bound_forwarded,
            hold: std::time::Duration::from_secs(60),
        };
        let table = egress_hold(&nft, &["eth1".into()]);
        let first = table.rules.iter().filter(|rule| rule.chain == "first4");
        first.map(|r| r.comment.rsplit_once(" #").expect("a fingerprint").0.to_owned()).collect()
    }

    #[test]
    fn only_what_the_forwarder_would_rewrite_is_held() {
        let vipa = Target::Vipa(address("203.0.113.11"));
        let kernels = Rule { protocol: Some(UDP), line: 1, ..rule(vipa) };
        let told = Rule { is_for_forwarder: true, line: 2, ..rule(Target::Physical) };
        let cgroup = Rule { cgroup: Some("a".into()), line: 3, ..rule(Target::Physical) };
        assert_eq!(first_v4(vec![kernels.clone()], false), Vec::<String>::new());
        let in_order = ["source.rule of line 1: the kernel's", "source.rule of line 2"];
        assert_eq!(first_v4(vec![kernels.clone(), told.clone(), cgroup], false), in_order);
        let behind = Rule { line: 4, target: Target::Physical, ..kernels };
        let both = ["source.rule of line 2", "source.rule of line 4"];
        assert_eq!(first_v4(vec![told, behind.clone()], false), both);
        // The kernel's, but for what the main table has no way for.
        assert_eq!(first_v4(vec![behind], false), ["source.rule of line 4"]);
    }

    #[test]
    fn what_is_bound_to_a_nics_address_and_is_to_be_forwarded_is_held_though_the_rule_is_the_kernels()
     {
        let vipa = Target::Vipa(address("203.0.113.11"));
        let kernels = Rule { protocol: Some(UDP), line: 1, ..rule(vipa) };
        let line = "source.rule of line 1";
        assert_eq!(
            first_v4(vec![kernels], true),
            [format!("{line}: the kernel's"), format!("{line}: carries it"), line.to_owned()]
        );
    }
}
