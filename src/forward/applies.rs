//! Who applies each source rule: the kernel, when a socket connects, or the forwarder, packet by packet.
//!
//! The kernel is the better one: what it decides is never rewritten, and holds while no forwarder runs. It
//! decides first, so what it is given must not overtake a rule of the forwarder's: a rule behind one of those
//! is the kernel's only where the two cannot match the same packet.

use std::fmt;
use std::ops::RangeInclusive;

use super::rule::{Rule, Target};
use crate::wire::ip::{TCP, UDP};

/// Preferences that policy rules for source rules have.
pub const ROOM: u32 = 80;

/// Who applies a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// The kernel, as a policy rule; the forwarder sees to what comes undecided all the same.
    Kernel,
    /// The forwarder alone.
    Forwarder(Because),
}

/// Why a rule is not handed to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// `apply = "forwarder"`.
    Told,
    /// Policy rules know no cgroups.
    Cgroup,
    /// A TCP socket that connects has no local port yet.
    LocalPort,
    /// Policy rules know no port 65535, by itself or at the end of a range (`fib_rule_port_range_valid`).
    LastPort,
    /// `bound = "forward"` leads sockets that have a NIC's address to the forwarder, however they got it.
    BoundForward,
    /// It can match the same packet as this earlier rule (an index), which is the forwarder's.
    Behind(usize),
    /// All preferences are taken.
    NoRoom,
}

impl Applies {
    /// Is it handed to the kernel?
    pub fn is_by_kernel(self) -> bool {
        self == Applies::Kernel
    }

    /// `kernel` or `forwarder`.
    pub fn name(self) -> &'static str {
        match self {
            Applies::Kernel => "kernel",
            Applies::Forwarder(_) => "forwarder",
        }
    }

    /// Why so, of `rule`, for a reader who knows `rules`.
    pub fn reason(self, rule: &Rule, rules: &[Rule]) -> String {
        let text = match self {
            Applies::Kernel if rule.target == Target::Physical => {
                "by the main table's route when the socket connects; where that has none, the forwarder"
            }
            Applies::Kernel => "by a policy rule when the socket connects",
            Applies::Forwarder(Because::Told) => "apply = \"forwarder\"",
            Applies::Forwarder(Because::Cgroup) => "policy rules know no cgroups",
            Applies::Forwarder(Because::LocalPort) => {
                "a TCP socket has no local port yet when the kernel decides"
            }
            Applies::Forwarder(Because::LastPort) => "policy rules cannot name port 65535",
            Applies::Forwarder(Because::BoundForward) => "bound = \"forward\"",
            Applies::Forwarder(Because::Behind(at)) => {
                let line = rules.get(at).map_or(0, |earlier| earlier.line);
                return format!(
                    "it can match the same packet as the rule of line {line}, which is the forwarder's"
                );
            }
            Applies::Forwarder(Because::NoRoom) => "there is room for 80 policy rules",
        };
        text.to_owned()
    }
}

impl fmt::Display for Applies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Preferences that a rule takes in the kernel: a lookup, and behind that of `physical` one for what the
/// main table has no way for.
pub fn preferences(rule: &Rule) -> u32 {
    match rule.target {
        Target::Vipa(_) => 1,
        Target::Physical => 2,
    }
}

/// Does the range end at 65535, which no policy rule can say?
pub fn has_last_port(ports: &RangeInclusive<u16>) -> bool {
    *ports.end() == u16::MAX
}

/// Who applies each of `rules`.
pub fn applies(rules: &[Rule], is_bound_forwarded: bool) -> Vec<Applies> {
    let mut decided: Vec<Applies> = Vec::with_capacity(rules.len());
    let mut left = ROOM;
    for rule in rules {
        let is_behind =
            |(earlier, by): (&Rule, &Applies)| !by.is_by_kernel() && !earlier.is_disjoint(rule);
        let because = if rule.is_for_forwarder {
            Some(Because::Told)
        } else if rule.cgroup.is_some() {
            Some(Because::Cgroup)
        } else if rule.local_ports.is_some() && rule.protocol != Some(UDP) {
            debug_assert!(rule.protocol.is_none_or(|p| p == TCP), "ports are TCP's or UDP's");
            Some(Because::LocalPort)
        } else if [&rule.ports, &rule.local_ports].into_iter().flatten().any(has_last_port) {
            Some(Because::LastPort)
        } else if rule.target == Target::Physical && is_bound_forwarded {
            Some(Because::BoundForward)
        } else if let Some(at) = rules.iter().zip(&decided).position(is_behind) {
            Some(Because::Behind(at))
        } else {
            (preferences(rule) > left).then_some(Because::NoRoom)
        };
        decided.push(match because {
            Some(because) => Applies::Forwarder(because),
            None => {
                left -= preferences(rule);
                Applies::Kernel
            }
        });
    }
    decided
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::ICMP;

    fn to(vipa: &str) -> Rule {
        Rule { target: Target::Vipa(vipa.parse().expect("an address")), ..Rule::default() }
    }

    #[test]
    fn what_the_kernel_knows_when_a_socket_connects_is_its() {
        let rules = [
            Rule { protocol: Some(TCP), ports: Some(443..=443), user: Some(26), ..to("10.0.0.1") },
            Rule { protocol: Some(UDP), local_ports: Some(5060..=5060), ..to("10.0.0.1") },
            Rule { protocol: Some(ICMP), ..Rule::default() },
            to("::1"),
        ];
        assert_eq!(applies(&rules, false), [Applies::Kernel; 4]);
        let bound = applies(&rules, true);
        assert_eq!(bound[2], Applies::Forwarder(Because::BoundForward));
        assert_eq!((bound[1], bound[3]), (Applies::Kernel, Applies::Forwarder(Because::Behind(2))));
    }

    #[test]
    fn what_it_does_not_know_is_the_forwarders() {
        let rules = [
            Rule { is_for_forwarder: true, user: Some(1), ..to("10.0.0.1") },
            Rule { cgroup: Some("a".into()), user: Some(2), ..to("10.0.0.1") },
            Rule { protocol: Some(TCP), local_ports: Some(9..=9), user: Some(3), ..to("10.0.0.1") },
            Rule {
                protocol: Some(UDP),
                ports: Some(9..=u16::MAX),
                user: Some(4),
                ..to("10.0.0.1")
            },
        ];
        let because = [Because::Told, Because::Cgroup, Because::LocalPort, Because::LastPort];
        assert_eq!(applies(&rules, false), because.map(Applies::Forwarder));
    }

    #[test]
    fn a_rule_behind_one_of_the_forwarders_is_the_kernels_where_the_two_never_meet() {
        let first = Rule { protocol: Some(TCP), is_for_forwarder: true, ..to("10.0.0.1") };
        let rules = [
            first,
            Rule { protocol: Some(UDP), ..to("10.0.0.2") },
            Rule { ports: Some(80..=80), protocol: Some(TCP), ..to("10.0.0.2") },
            to("::2"),
            to("10.0.0.3"),
        ];
        let behind = Applies::Forwarder(Because::Behind(0));
        let wanted =
            [Applies::Forwarder(Because::Told), Applies::Kernel, behind, Applies::Kernel, behind];
        assert_eq!(applies(&rules, false), wanted);
    }

    #[test]
    fn beyond_the_room_that_policy_rules_have_the_forwarder_goes_on() {
        let rules: Vec<Rule> = (0..ROOM + 3)
            .map(|user| Rule { user: Some(user), ..to("10.0.0.1") })
            .chain([Rule { user: Some(0), ..to("10.0.0.2") }])
            .collect();
        let by = applies(&rules, false);
        let room = ROOM as usize;
        assert!(by[..room].iter().all(|by| by.is_by_kernel()));
        assert_eq!(by[room..], [Applies::Forwarder(Because::NoRoom); 4]);
    }
}
