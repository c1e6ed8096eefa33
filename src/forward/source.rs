//! FIG. 4 of US 5,923,854: which source address an outgoing datagram carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::applies::Applies;
pub use super::rule::{Rule, Target};
use super::socket::Socket;
use crate::wire::ip::{Family, ICMP, ICMPV6, TCP, UDP, UDP_LITE};
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
    /// Who applies each of `rules`; the forwarder those that it does not name.
    pub applies: Vec<Applies>,
    /// The engine can find out about sockets. Where it cannot (replay), rules that need one never match.
    pub can_ask: bool,
    /// Source ports that rewritten flows may get: `[source] ports` less those on which a socket listens.
    pub ports: Vec<u16>,
    /// `ip_local_port_range`: a UDP source port outside it marks an answer.
    pub ephemeral: Option<RangeInclusive<u16>>,
    /// `bound = "forward"`: FIG. 4 applies to sockets bound to a NIC's address as well.
    pub is_bound_forwarded: bool,
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
    /// Only the socket can tell whether a rule speaks of the datagram.
    Ask,
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

/// What looking for a rule brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// The rule of this index.
    Rule(usize),
    /// No rule speaks of it.
    None,
    /// Only the socket can tell.
    Unsure,
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
    pub fn decide(&self, headers: &Headers, is_nic_address: bool, socket: &Socket) -> Decision {
        // 410: is the source defined already?
        if let Some(defined) = self.defined(headers, is_nic_address) {
            return Decision::Keep(defined);
        }
        self.insert(headers, socket)
    }

    /// Might a first packet with these addresses and ports get another source than it has?
    pub fn would_change(&self, headers: &Headers) -> bool {
        self.changes(self.insert(headers, &Socket::Unasked), headers)
    }

    fn changes(&self, decision: Decision, headers: &Headers) -> bool {
        match decision {
            Decision::Keep(_) => false,
            Decision::Vipa(address, _) => address != headers.source,
            Decision::Physical(_) | Decision::Ask => true,
        }
    }

    /// Steps 415 to 435.
    fn insert(&self, headers: &Headers, socket: &Socket) -> Decision {
        // 420 comes before 415 where a rule speaks of the datagram: a rule is the operator's own word.
        if is_rip(headers) {
            return Decision::Physical(Ignored::Rip);
        }
        match self.find(headers, socket) {
            Found::Rule(at) => self.by_rule(at),
            Found::None => self.by_default(headers),
            Found::Unsure => Decision::Ask,
        }
    }

    fn by_rule(&self, at: usize) -> Decision {
        match self.rules[at].target {
            Target::Vipa(address) => Decision::Vipa(address, Some(at)),
            Target::Physical => Decision::Physical(Ignored::Rule(at)),
        }
    }

    fn by_default(&self, headers: &Headers) -> Decision {
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

    /// The first rule that matches. Of a rule that needs the socket and was the kernel's, the default VIPA says
    /// that it did not match, unless it yields the default VIPA itself; so the socket is asked for such a rule
    /// only where something would be rewritten though the kernel should have seen to it.
    fn find(&self, headers: &Headers, socket: &Socket) -> Found {
        let can_be_asked = *socket == Socket::Unasked && self.can_ask;
        let mut passed: Option<usize> = None;
        let mut yields_this = None;
        let mut found = Found::None;
        for (at, rule) in self.rules.iter().enumerate().filter(|(_, r)| self.speaks(r, headers)) {
            let is_match = match socket {
                _ if !rule.needs_socket() => true,
                Socket::Known(facts) => rule.matches_socket(facts),
                _ if self.has_kernel_decided(at, headers) => {
                    passed.get_or_insert(at);
                    if rule.target == Target::Vipa(headers.source) {
                        yields_this.get_or_insert(at);
                    }
                    false
                }
                _ if can_be_asked => return Found::Unsure,
                _ => false,
            };
            if is_match {
                found = Found::Rule(at);
                break;
            }
        }
        let by_kernel = matches!(found, Found::Rule(at) if self.has_kernel_decided(at, headers));
        let decision = match found {
            Found::Rule(at) => self.by_rule(at),
            _ => self.by_default(headers),
        };
        let is_doubtful = self.changes(decision, headers)
            && (yields_this.is_some() || (by_kernel && passed.is_some()));
        match yields_this {
            _ if !is_doubtful => found,
            _ if can_be_asked => Found::Unsure,
            // Nobody can tell any more: the kernel had its reasons.
            Some(at) if by_kernel => Found::Rule(at),
            _ => found,
        }
    }

    /// The kernel applied the rule when the socket connected. (The main table may have no way for `physical`,
    /// with `bound = "forward"` a NIC's address says nothing, and no policy rule knows port 65535.)
    fn has_kernel_decided(&self, at: usize, headers: &Headers) -> bool {
        self.applies.get(at).is_some_and(|by| by.is_by_kernel())
            && [TCP, UDP, ICMP, ICMPV6].contains(&headers.protocol)
            && !matches!(headers.layer4, Layer4::Udp { source: u16::MAX, .. })
            && self.rules[at].target != Target::Physical
            && self.default_vipa(headers.family()) == Some(headers.source)
    }

    /// Does the rule speak of this datagram, as far as the datagram tells? A rule that names no local port
    /// does not speak of what a UDP server answers.
    fn speaks(&self, rule: &Rule, headers: &Headers) -> bool {
        rule.matches(headers) && (rule.local_ports.is_some() || !self.is_udp_servers(headers))
    }

    fn is_udp_servers(&self, headers: &Headers) -> bool {
        matches!(headers.layer4, Layer4::Udp { source, .. } if self.is_server_port(source))
    }

    fn is_server_port(&self, source: u16) -> bool {
        self.ephemeral.as_ref().is_some_and(|range| !range.contains(&source))
    }

    /// Could a rule rewrite datagrams with these addresses, whatever their ports? Later fragments show none.
    pub fn may_rewrite(&self, headers: &Headers) -> bool {
        self.default_vipa(headers.family()) == Some(headers.source)
            && self.rules.iter().enumerate().any(|(at, rule)| {
                rule.target != Target::Vipa(headers.source)
                    && rule.matches_addresses(headers)
                    && rule.matches_protocol(headers.protocol)
                    && !self.has_kernel_decided(at, headers)
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

    /// An answer, as far as one packet without a flow can tell.
    fn is_answer(&self, headers: &Headers) -> bool {
        match headers.layer4 {
            Layer4::Tcp { flags, .. } => !flags.is_bare_syn(),
            Layer4::Udp { .. } if !is_rip(headers) => {
                self.is_udp_servers(headers)
                    && !self.rules.iter().any(|r| r.local_ports.is_some() && r.matches(headers))
            }
            Layer4::Udp { .. } => false,
            Layer4::Kept { source, .. } if headers.protocol == UDP_LITE => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::applies::applies;
    use crate::forward::socket::SocketFacts;
    use crate::wire::ip;
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
            target,
            ..Rule::default()
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
        let decision = policy(vec![rule(None, None, Target::Physical)]).decide(
            &tcp([9, 9, 9, 9], true, 80),
            false,
            &Socket::Unknown,
        );
        assert_eq!(decision, Decision::Keep(Defined::Foreign));
    }

    #[test]
    fn step_410_leaves_a_vipa_that_the_application_chose() {
        let decision = policy(vec![rule(None, None, Target::Physical)]).decide(
            &tcp(SECOND, true, 80),
            false,
            &Socket::Unknown,
        );
        assert_eq!(decision, Decision::Keep(Defined::Chosen));
    }

    #[test]
    fn step_410_leaves_answers() {
        let policy = policy(vec![rule(None, None, Target::Physical)]);
        assert_eq!(
            policy.decide(&tcp(DEFAULT, false, 80), false, &Socket::Unknown),
            Decision::Keep(Defined::Answer)
        );
        assert_eq!(
            policy.decide(&udp(DEFAULT, 53, 4000), false, &Socket::Unknown),
            Decision::Keep(Defined::Answer)
        );
        assert_ne!(
            policy.decide(&udp(DEFAULT, 40000, 53), false, &Socket::Unknown),
            Decision::Keep(Defined::Answer)
        );
    }

    #[test]
    fn step_415_without_sourcevipa_inserts_the_physical_address() {
        let policy = SourcePolicy { sourcevipa: false, ..policy(vec![]) };
        let decision = policy.decide(&tcp(DEFAULT, true, 80), false, &Socket::Unknown);
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
            policy.decide(&tcp(DEFAULT, true, 443), false, &Socket::Unknown),
            Decision::Vipa(SECOND.into(), Some(1))
        );
        assert_eq!(
            policy.decide(&tcp(DEFAULT, true, 80), false, &Socket::Unknown),
            Decision::Physical(Ignored::Rule(2))
        );
    }

    #[test]
    fn step_425_inserts_the_default_vipa_where_no_rule_speaks() {
        let unspecified = tcp([0; 4], true, 80);
        assert_eq!(
            policy(vec![]).decide(&unspecified, false, &Socket::Unknown),
            Decision::Vipa(DEFAULT.into(), None)
        );
    }

    #[test]
    fn rip_is_ignore_by_nature_before_any_rule() {
        let policy = policy(vec![rule(None, None, Target::Vipa(SECOND.into()))]);
        for (from, to) in [(520, 520), (521, 9), (40000, 521)] {
            assert_eq!(
                policy.decide(&udp(DEFAULT, from, to), false, &Socket::Unknown),
                Decision::Physical(Ignored::Rip)
            );
        }
    }

    #[test]
    fn a_bound_socket_is_left_alone_unless_it_is_to_be_forwarded() {
        let bypass = policy(vec![]);
        assert_eq!(
            bypass.decide(&tcp(NIC, true, 80), true, &Socket::Unknown),
            Decision::Keep(Defined::Chosen)
        );
        let forward = SourcePolicy { is_bound_forwarded: true, ..bypass };
        assert_eq!(
            forward.decide(&tcp(NIC, true, 80), true, &Socket::Unknown),
            Decision::Vipa(DEFAULT.into(), None)
        );
        assert_eq!(
            forward.decide(&tcp(NIC, false, 80), true, &Socket::Unknown),
            Decision::Keep(Defined::Answer)
        );
    }

    #[test]
    fn a_rule_that_names_a_local_port_reaches_a_server_outside_the_ephemeral_range() {
        let mut named = rule(Some(ip::UDP), None, Target::Vipa(SECOND.into()));
        named.local_ports = Some(5060..=5060);
        let policy = policy(vec![named]);
        assert_eq!(
            policy.decide(&udp(DEFAULT, 5060, 9), false, &Socket::Unknown),
            Decision::Vipa(SECOND.into(), Some(0))
        );
    }

    /// A rule that needs the user, then one that does not; who applies them is not said.
    fn by_user(first: Target, second: Target) -> SourcePolicy {
        let user = Rule { user: Some(26), ..rule(Some(ip::TCP), None, first) };
        SourcePolicy { can_ask: true, ..policy(vec![user, rule(Some(ip::TCP), None, second)]) }
    }

    fn of_user(user: u32) -> Socket {
        Socket::Known(SocketFacts { user, ..SocketFacts::default() })
    }

    #[test]
    fn only_the_socket_tells_whether_a_rule_of_the_forwarders_speaks_of_it() {
        let policy = by_user(Target::Vipa(SECOND.into()), Target::Physical);
        let decide = |socket: &Socket| policy.decide(&tcp(DEFAULT, true, 443), false, socket);
        assert_eq!(decide(&Socket::Unasked), Decision::Ask);
        assert_eq!(decide(&of_user(26)), Decision::Vipa(SECOND.into(), Some(0)));
        assert_eq!(decide(&of_user(27)), Decision::Physical(Ignored::Rule(1)));
        assert_eq!(decide(&Socket::Unknown), Decision::Physical(Ignored::Rule(1)));
        let elsewhere = {
            let mut bytes = Vec::new();
            let step = PacketBuilder::ipv4(DEFAULT, [9, 9, 9, 9], 9).tcp(40000, 443, 1, 1).syn();
            step.write(&mut bytes, b"").expect("built");
            Headers::parse(&bytes).expect("headers")
        };
        let decision = policy.decide(&elsewhere, false, &Socket::Unasked);
        assert_eq!(
            decision,
            Decision::Vipa(DEFAULT.into(), None),
            "no rule speaks of it: no question"
        );
        let nobody = SourcePolicy { can_ask: false, ..policy };
        let decision = nobody.decide(&tcp(DEFAULT, true, 443), false, &Socket::Unasked);
        assert_eq!(decision, Decision::Physical(Ignored::Rule(1)), "replay");
    }

    #[test]
    fn what_the_kernel_decided_by_the_socket_is_not_asked_again() {
        let mut policy = by_user(Target::Vipa(SECOND.into()), Target::Physical);
        policy.rules.truncate(1);
        policy.applies = applies(&policy.rules, false);
        let syn = tcp(DEFAULT, true, 443);
        assert_eq!(
            policy.decide(&syn, false, &Socket::Unasked),
            Decision::Vipa(DEFAULT.into(), None)
        );
        // Unless the kernel may have yielded just this, and a later rule would take it away.
        let mut policy = by_user(Target::Vipa(DEFAULT.into()), Target::Vipa(SECOND.into()));
        policy.applies = applies(&policy.rules, false);
        assert_eq!(policy.decide(&syn, false, &Socket::Unasked), Decision::Ask);
        let kept = Decision::Vipa(DEFAULT.into(), Some(0));
        assert_eq!(policy.decide(&syn, false, &of_user(26)), kept);
        assert_eq!(
            policy.decide(&syn, false, &Socket::Unknown),
            kept,
            "the kernel had its reasons"
        );
        let other = policy.decide(&syn, false, &of_user(1));
        assert_eq!(other, Decision::Vipa(SECOND.into(), Some(1)));
        // Nothing is rewritten by what a NIC's address says of a rule: nobody has decided about that.
        let policy = SourcePolicy { is_bound_forwarded: true, ..policy };
        assert_eq!(policy.decide(&tcp(NIC, true, 443), true, &Socket::Unasked), Decision::Ask);
    }

    #[test]
    fn a_rule_without_local_port_does_not_speak_of_a_servers_answers() {
        let second = Target::Vipa(SECOND.into());
        let named = Rule { local_ports: Some(5060..=5060), ..rule(Some(ip::UDP), None, second) };
        let policy = policy(vec![rule(Some(ip::UDP), None, Target::Physical), named]);
        let decide = |port| policy.decide(&udp(DEFAULT, port, 9), false, &Socket::Unknown);
        assert_eq!(decide(40000), Decision::Physical(Ignored::Rule(0)));
        assert_eq!(decide(5060), Decision::Vipa(SECOND.into(), Some(1)));
        assert_eq!(decide(5061), Decision::Keep(Defined::Answer));
    }
}
