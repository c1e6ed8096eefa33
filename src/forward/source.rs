//! FIG. 4 of US 5,923,854: which source address an outgoing datagram carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::wire::ip::{self, Family, Prefix};
use crate::wire::packet::{Headers, Layer4};

/// `[source]` of the configuration and what the host adds to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcePolicy {
    /// Step 415: is SOURCEVIPA enabled?
    pub sourcevipa: bool,
    /// All VIPAs, in the order of the configuration.
    pub vipas: Vec<IpAddr>,
    /// The first IPv4 VIPA: what step 425 inserts where no rule names another.
    pub default_v4: Option<Ipv4Addr>,
    /// The first IPv6 VIPA.
    pub default_v6: Option<Ipv6Addr>,
    /// Step 420, in order; the first that matches wins. UDP 520 and 521 stand before them all.
    pub rules: Vec<Rule>,
    /// Source ports that rewritten flows may get: `[source] ports` less those on which a socket listens.
    pub ports: Vec<u16>,
    /// `ip_local_port_range`: a UDP source port outside it marks an answer.
    pub ephemeral: Option<RangeInclusive<u16>>,
    /// `bound = "forward"`: FIG. 4 applies to sockets bound to a NIC's address as well.
    pub is_bound_forwarded: bool,
}

/// One `[[source.rule]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// IANA number; `None`: any. ICMP (1) matches ICMPv6 as well.
    pub protocol: Option<u8>,
    /// Destination; `None`: any.
    pub destination: Option<Prefix>,
    /// Destination ports; `None`: any.
    pub ports: Option<RangeInclusive<u16>>,
    /// Source ports as the application chose them; `None`: any.
    pub local_ports: Option<RangeInclusive<u16>>,
    /// What a match yields.
    pub target: Target,
    /// Line of the configuration file, from 1.
    pub line: u32,
}

/// The source address that a rule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This VIPA (step 425). The rule matches packets of its family alone.
    Vipa(IpAddr),
    /// The address of the NIC that the packet leaves by (IGNORE, step 435).
    Physical,
}

/// Why a datagram keeps the source that it has (step 410).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defined {
    /// It came from another host.
    Foreign,
    /// The application chose it: a VIPA other than the default one, or a NIC's address.
    Chosen,
    /// The datagram is an answer: the one it answers named the address.
    Answer,
}

/// What FIG. 4 yields for a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Step 410, yes: leave it.
    Keep(Defined),
    /// Step 425: insert this VIPA; by the rule of this index, or as the default.
    Vipa(IpAddr, Option<usize>),
    /// Step 435: insert the address of the NIC that it leaves by; by the rule of this index, by nature
    /// (RIP, claim 3 to 5), or because SOURCEVIPA is not enabled (415).
    Physical(Ignored),
}

/// What led to step 435.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// Step 415, no: SOURCEVIPA is not enabled.
    NotEnabled,
    /// Step 420, yes: the rule of this index.
    Rule(usize),
    /// Step 420, yes: RIP's own packets. They keep their port and need no way back.
    Rip,
    /// The family has no VIPA.
    NoVipa,
}

/// UDP ports of RIP (RFC 2453) and RIPng (RFC 2080).
const RIP_PORTS: [u16; 2] = [520, 521];

impl SourcePolicy {
    /// The default VIPA of a family.
    pub fn default_vipa(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.default_v4.map(IpAddr::from),
            Family::V6 => self.default_v6.map(IpAddr::from),
        }
    }

    /// FIG. 4 for a datagram that has no flow yet. `is_nic_address` tells whether the source is the address
    /// of a NIC and no VIPA.
    pub fn decide(&self, headers: &Headers, is_nic_address: bool) -> Decision {
        // 410: is the source defined already?
        if let Some(defined) = self.defined(headers, is_nic_address) {
            return Decision::Keep(defined);
        }
        self.insert(headers)
    }

    /// Would a first packet with these addresses and ports get another source than it has?
    pub fn would_change(&self, headers: &Headers) -> bool {
        match self.insert(headers) {
            Decision::Vipa(address, _) => address != headers.source,
            _ => true,
        }
    }

    /// Steps 415 to 435.
    fn insert(&self, headers: &Headers) -> Decision {
        // 420 comes before 415 where a rule speaks of the datagram: a rule is the operator's own word.
        if is_rip(headers) {
            return Decision::Physical(Ignored::Rip);
        }
        if let Some(at) = self.rules.iter().position(|rule| rule.matches(headers)) {
            return match self.rules[at].target {
                Target::Vipa(address) => Decision::Vipa(address, Some(at)),
                Target::Physical => Decision::Physical(Ignored::Rule(at)),
            };
        }
        // 415: is SOURCEVIPA enabled?
        if !self.sourcevipa {
            return Decision::Physical(Ignored::NotEnabled);
        }
        // 425, or 435 for a family without a VIPA.
        match self.default_vipa(headers.family()) {
            Some(address) => Decision::Vipa(address, None),
            None => Decision::Physical(Ignored::NoVipa),
        }
    }

    /// Could a rule rewrite datagrams with these addresses, whatever their ports? Later fragments show none.
    pub fn may_rewrite(&self, headers: &Headers) -> bool {
        self.default_vipa(headers.family()) == Some(headers.source)
            && self.rules.iter().any(|rule| {
                rule.target != Target::Vipa(headers.source)
                    && rule.matches_addresses(headers)
                    && rule.matches_protocol(headers.protocol)
            })
    }

    fn defined(&self, headers: &Headers, is_nic_address: bool) -> Option<Defined> {
        if is_nic_address {
            if !self.is_bound_forwarded {
                return Some(Defined::Chosen);
            }
        } else if self.default_vipa(headers.family()) != Some(headers.source)
            && !headers.source.is_unspecified()
        {
            let is_vipa = self.vipas.contains(&headers.source);
            return Some(if is_vipa { Defined::Chosen } else { Defined::Foreign });
        }
        self.is_answer(headers).then_some(Defined::Answer)
    }

    fn is_server_port(&self, source: u16) -> bool {
        self.ephemeral.as_ref().is_some_and(|range| !range.contains(&source))
    }

    /// An answer, as far as one packet without a flow can tell.
    fn is_answer(&self, headers: &Headers) -> bool {
        match headers.layer4 {
            Layer4::Tcp { flags, .. } => !flags.is_bare_syn(),
            Layer4::Udp { source, .. } if !is_rip(headers) => {
                self.is_server_port(source)
                    && !self.rules.iter().any(|r| r.local_ports.is_some() && r.matches(headers))
            }
            Layer4::Udp { .. } => false,
            Layer4::Kept { source, .. } if headers.protocol == ip::UDP_LITE => {
                self.is_server_port(source)
            }
            Layer4::Kept { opens, .. } => !opens,
            Layer4::Echo { is_request, .. } => !is_request,
            Layer4::Icmp { .. } => true,
            Layer4::Other => false,
        }
    }
}

fn is_rip(headers: &Headers) -> bool {
    matches!(headers.layer4, Layer4::Udp { source, destination }
        if RIP_PORTS.contains(&source) || RIP_PORTS.contains(&destination))
}

impl Rule {
    /// Does the rule speak of this datagram?
    pub fn matches(&self, headers: &Headers) -> bool {
        let (source, destination) = match headers.layer4 {
            Layer4::Tcp { source, destination, .. } | Layer4::Udp { source, destination } => {
                (Some(source), Some(destination))
            }
            _ => (None, None),
        };
        let within = |range: &Option<RangeInclusive<u16>>, port: Option<u16>| match range {
            None => true,
            Some(range) => port.is_some_and(|port| range.contains(&port)),
        };
        self.matches_addresses(headers)
            && self.matches_protocol(headers.protocol)
            && within(&self.ports, destination)
            && within(&self.local_ports, source)
    }

    fn matches_addresses(&self, headers: &Headers) -> bool {
        let of_family = match self.target {
            Target::Vipa(address) => Family::of(address) == headers.family(),
            Target::Physical => true,
        };
        of_family && self.destination.is_none_or(|prefix| prefix.contains(headers.destination))
    }

    fn matches_protocol(&self, protocol: u8) -> bool {
        match self.protocol {
            None => true,
            Some(ip::ICMP) => protocol == ip::ICMP || protocol == ip::ICMPV6,
            Some(wanted) => protocol == wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    const DEFAULT: [u8; 4] = [203, 0, 113, 10];
    const SECOND: [u8; 4] = [203, 0, 113, 11];
    const NIC: [u8; 4] = [10, 1, 1, 2];
    const REMOTE: [u8; 4] = [10, 20, 0, 1];

    fn rule(protocol: Option<u8>, port: Option<u16>, target: Target) -> Rule {
        Rule {
            protocol,
            destination: Some("10.20.0.0/16".parse().expect("a prefix")),
            ports: port.map(|p| p..=p),
            local_ports: None,
            target,
            line: 1,
        }
    }

    fn policy(rules: Vec<Rule>) -> SourcePolicy {
        SourcePolicy {
            sourcevipa: true,
            vipas: vec![DEFAULT.into(), SECOND.into()],
            default_v4: Some(DEFAULT.into()),
            rules,
            ephemeral: Some(32768..=60999),
            ..SourcePolicy::default()
        }
    }

    fn udp(source: [u8; 4], port: u16, to: u16) -> Headers {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(source, REMOTE, 9).udp(port, to).write(&mut bytes, b"").expect("built");
        Headers::parse(&bytes).expect("headers")
    }

    fn tcp(source: [u8; 4], syn: bool, to: u16) -> Headers {
        let mut bytes = Vec::new();
        let step = PacketBuilder::ipv4(source, REMOTE, 9).tcp(40000, to, 1, 1);
        let step = if syn { step.syn() } else { step.ack(1) };
        step.write(&mut bytes, b"").expect("built");
        Headers::parse(&bytes).expect("headers")
    }

    #[test]
    fn step_410_leaves_what_came_from_another_host() {
        let decision = policy(vec![rule(None, None, Target::Physical)])
            .decide(&tcp([9, 9, 9, 9], true, 80), false);
        assert_eq!(decision, Decision::Keep(Defined::Foreign));
    }

    #[test]
    fn step_410_leaves_a_vipa_that_the_application_chose() {
        let decision =
            policy(vec![rule(None, None, Target::Physical)]).decide(&tcp(SECOND, true, 80), false);
        assert_eq!(decision, Decision::Keep(Defined::Chosen));
    }

    #[test]
    fn step_410_leaves_answers() {
        let policy = policy(vec![rule(None, None, Target::Physical)]);
        assert_eq!(policy.decide(&tcp(DEFAULT, false, 80), false), Decision::Keep(Defined::Answer));
        assert_eq!(policy.decide(&udp(DEFAULT, 53, 4000), false), Decision::Keep(Defined::Answer));
        assert_ne!(policy.decide(&udp(DEFAULT, 40000, 53), false), Decision::Keep(Defined::Answer));
    }

    #[test]
    fn step_415_without_sourcevipa_inserts_the_physical_address() {
        let policy = SourcePolicy { sourcevipa: false, ..policy(vec![]) };
        let decision = policy.decide(&tcp(DEFAULT, true, 80), false);
        assert_eq!(decision, Decision::Physical(Ignored::NotEnabled));
    }

    #[test]
    fn step_420_takes_the_first_rule_that_matches() {
        let second = Target::Vipa(SECOND.into());
        let policy = policy(vec![
            rule(Some(ip::UDP), None, Target::Physical),
            rule(Some(ip::TCP), Some(443), second),
            rule(Some(ip::TCP), None, Target::Physical),
        ]);
        assert_eq!(
            policy.decide(&tcp(DEFAULT, true, 443), false),
            Decision::Vipa(SECOND.into(), Some(1))
        );
        assert_eq!(
            policy.decide(&tcp(DEFAULT, true, 80), false),
            Decision::Physical(Ignored::Rule(2))
        );
    }

    #[test]
    fn step_425_inserts_the_default_vipa_where_no_rule_speaks() {
        let unspecified = tcp([0; 4], true, 80);
        assert_eq!(
            policy(vec![]).decide(&unspecified, false),
            Decision::Vipa(DEFAULT.into(), None)
        );
    }

    #[test]
    fn rip_is_ignore_by_nature_before_any_rule() {
        let policy = policy(vec![rule(None, None, Target::Vipa(SECOND.into()))]);
        for (from, to) in [(520, 520), (521, 9), (40000, 521)] {
            assert_eq!(
                policy.decide(&udp(DEFAULT, from, to), false),
                Decision::Physical(Ignored::Rip)
            );
        }
    }

    #[test]
    fn a_bound_socket_is_left_alone_unless_it_is_to_be_forwarded() {
        let bypass = policy(vec![]);
        assert_eq!(bypass.decide(&tcp(NIC, true, 80), true), Decision::Keep(Defined::Chosen));
        let forward = SourcePolicy { is_bound_forwarded: true, ..bypass };
        assert_eq!(forward.decide(&tcp(NIC, true, 80), true), Decision::Vipa(DEFAULT.into(), None));
        assert_eq!(forward.decide(&tcp(NIC, false, 80), true), Decision::Keep(Defined::Answer));
    }

    #[test]
    fn a_rule_that_names_a_local_port_reaches_a_server_outside_the_ephemeral_range() {
        let mut named = rule(Some(ip::UDP), None, Target::Vipa(SECOND.into()));
        named.local_ports = Some(5060..=5060);
        let policy = policy(vec![named]);
        assert_eq!(
            policy.decide(&udp(DEFAULT, 5060, 9), false),
            Decision::Vipa(SECOND.into(), Some(0))
        );
    }
}
