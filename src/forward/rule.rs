//! One `[[source.rule]]` (step 420 of US 5,923,854 FIG. 4): which packets it speaks of.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::socket::SocketFacts;
use crate::wire::ip::{Family, ICMP, ICMPV6, Prefix, TCP, UDP};
use crate::wire::packet::{Headers, Layer4};

/// One `[[source.rule]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// IANA number; `None`: any. ICMP (1) matches ICMPv6 as well.
    pub protocol: Option<u8>,
    /// Destination; `None`: any.
    pub destination: Option<Prefix>,
    /// Destination ports; `None`: any.
    pub ports: Option<RangeInclusive<u16>>,
    /// Source ports as the application chose them; `None`: any, of UDP those of `ip_local_port_range`.
    pub local_ports: Option<RangeInclusive<u16>>,
    /// The socket's mark; `None`: any.
    pub mark: Option<Mark>,
    /// The user who made the socket; `None`: any.
    pub user: Option<u32>,
    /// The socket's cgroup, as a path below the root of cgroup2 without slashes at its ends, and all below
    /// it; `None`: any.
    pub cgroup: Option<String>,
    /// `apply = "forwarder"`.
    pub is_for_forwarder: bool,
    /// What a match yields.
    pub target: Target,
    /// Line of the configuration file, from 1.
    pub line: u32,
}

impl Default for Rule {
    /// Everything, `physical`.
    fn default() -> Rule {
        Rule {
            protocol: None,
            destination: None,
            ports: None,
            local_ports: None,
            mark: None,
            user: None,
            cgroup: None,
            is_for_forwarder: false,
            target: Target::Physical,
            line: 1,
        }
    }
}

/// The source address that a rule asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// This VIPA (step 425). The rule matches packets of its family alone.
    Vipa(IpAddr),
    /// The address of the NIC that the packet leaves by (IGNORE, step 435).
    Physical,
}

/// A mark as `ip rule` knows it: `value/mask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The bits of the mask, as they should be; zero elsewhere.
    pub value: u32,
    /// The bits that count; not 0.
    pub mask: u32,
}

impl Mark {
    /// Is `mark` one of these?
    pub fn contains(self, mark: u32) -> bool {
        mark & self.mask == self.value
    }
}

impl Rule {
    /// Does it speak of this datagram, as far as the datagram itself tells?
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

    /// The same, whatever the ports.
    pub fn matches_addresses(&self, headers: &Headers) -> bool {
        self.is_for(headers.family())
            && self.destination.is_none_or(|prefix| prefix.contains(headers.destination))
    }

    /// The same, of the protocol alone.
    pub fn matches_protocol(&self, protocol: u8) -> bool {
        match self.protocol {
            None => true,
            Some(ICMP) => protocol == ICMP || protocol == ICMPV6,
            Some(wanted) => protocol == wanted,
        }
    }

    /// Does it ask for something that only the socket knows?
    pub fn needs_socket(&self) -> bool {
        self.mark.is_some() || self.user.is_some() || self.cgroup.is_some()
    }

    /// Does it speak of packets of this socket, as far as the socket tells?
    pub fn matches_socket(&self, socket: &SocketFacts) -> bool {
        let is_below = |wanted: &String| {
            socket.cgroup.as_deref().is_some_and(|cgroup| is_at_or_below(cgroup, wanted))
        };
        self.mark.is_none_or(|mark| mark.contains(socket.mark))
            && self.user.is_none_or(|user| user == socket.user)
            && self.cgroup.as_ref().is_none_or(is_below)
    }

    /// Can it match packets of this family?
    pub fn is_for(&self, family: Family) -> bool {
        self.destination.is_none_or(|prefix| prefix.family() == family)
            && match self.target {
                Target::Vipa(vipa) => Family::of(vipa) == family,
                Target::Physical => true,
            }
    }

    /// Is there no packet of which both speak? When in doubt there is one.
    pub fn is_disjoint(&self, other: &Rule) -> bool {
        fn differ<T: Copy>(a: Option<T>, b: Option<T>, differ: impl Fn(T, T) -> bool) -> bool {
            a.zip(b).is_some_and(|(a, b)| differ(a, b))
        }
        let are_apart = |a: &RangeInclusive<u16>, b: &RangeInclusive<u16>| {
            a.end() < b.start() || b.end() < a.start()
        };
        !Family::BOTH.into_iter().any(|family| self.is_for(family) && other.is_for(family))
            || differ(self.protocol, other.protocol, |a, b| a != b)
            || differ(self.destination, other.destination, |a, b| {
                !a.contains(b.address()) && !b.contains(a.address())
            })
            || differ(self.ports.as_ref(), other.ports.as_ref(), are_apart)
            || differ(self.local_ports.as_ref(), other.local_ports.as_ref(), are_apart)
            || differ(self.user, other.user, |a, b| a != b)
            || differ(self.mark, other.mark, |a, b| (a.value ^ b.value) & a.mask & b.mask != 0)
            || differ(self.cgroup.as_deref(), other.cgroup.as_deref(), |a, b| {
                !is_at_or_below(a, b) && !is_at_or_below(b, a)
            })
    }
}

/// Is the cgroup `path` that of `top`, or one below it?
pub fn is_at_or_below(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl fmt::Display for Mark {
    /// As `ip rule` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mask {
            u32::MAX => write!(f, "{:#x}", self.value),
            mask => write!(f, "{:#x}/{mask:#x}", self.value),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Vipa(vipa) => write!(f, "{vipa}"),
            Target::Physical => write!(f, "physical"),
        }
    }
}

impl fmt::Display for Rule {
    /// What it speaks of, without its target: `tcp to 10.20.0.0/16 port 443`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Some(TCP) => write!(f, "tcp")?,
            Some(UDP) => write!(f, "udp")?,
            Some(ICMP | ICMPV6) => write!(f, "icmp")?,
            Some(number) => write!(f, "protocol {number}")?,
            None => write!(f, "all")?,
        }
        if let Some(prefix) = self.destination {
            write!(f, " to {prefix}")?;
        }
        for (word, ports) in [("port", &self.ports), ("local-port", &self.local_ports)] {
            match ports {
                Some(ports) if ports.start() == ports.end() => {
                    write!(f, " {word} {}", ports.start())?;
                }
                Some(ports) => write!(f, " {word} {}-{}", ports.start(), ports.end())?,
                None => {}
            }
        }
        if let Some(mark) = self.mark {
            write!(f, " mark {mark}")?;
        }
        if let Some(user) = self.user {
            write!(f, " user {user}")?;
        }
        if let Some(cgroup) = &self.cgroup {
            write!(f, " cgroup {cgroup}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(change: impl FnOnce(&mut Rule)) -> Rule {
        let mut rule = Rule::default();
        change(&mut rule);
        rule
    }

    #[test]
    fn a_cgroup_is_itself_and_all_below_it() {
        let nginx = rule(|r| r.cgroup = Some("system.slice/nginx.service".into()));
        for (path, is_in) in [
            ("system.slice/nginx.service", true),
            ("system.slice/nginx.service/worker", true),
            ("system.slice/nginx.service2", false),
            ("system.slice", false),
        ] {
            let socket = SocketFacts { cgroup: Some(path.into()), ..SocketFacts::default() };
            assert_eq!(nginx.matches_socket(&socket), is_in, "{path}");
        }
        assert!(!nginx.matches_socket(&SocketFacts::default()));
    }

    #[test]
    fn a_mark_counts_under_its_mask_alone() {
        let mark = Mark { value: 0x10, mask: 0xf0 };
        assert!(mark.contains(0x1f) && !mark.contains(0x2f));
        let other = |value, mask| rule(|r| r.mark = Some(Mark { value, mask }));
        let marked = other(0x10, 0xf0);
        assert!(marked.is_disjoint(&other(0x20, 0xff)));
        assert!(!marked.is_disjoint(&other(0x03, 0x0f)), "0x13 is both");
    }

    #[test]
    fn rules_are_disjoint_by_each_of_their_keys() {
        let prefix = |text: &str| Some(text.parse().expect("a prefix"));
        let vipa = |text: &str| Target::Vipa(text.parse().expect("an address"));
        let all = Rule::default();
        let pairs: [(Rule, Rule); 6] = [
            (rule(|r| r.protocol = Some(TCP)), rule(|r| r.protocol = Some(UDP))),
            (
                rule(|r| r.destination = prefix("10.1.0.0/16")),
                rule(|r| r.destination = prefix("10.2.0.0/16")),
            ),
            (rule(|r| r.ports = Some(1..=9)), rule(|r| r.ports = Some(10..=11))),
            (rule(|r| r.local_ports = Some(7..=7)), rule(|r| r.local_ports = Some(5..=6))),
            (rule(|r| r.user = Some(1)), rule(|r| r.user = Some(2))),
            (rule(|r| r.target = vipa("::1")), rule(|r| r.target = vipa("10.0.0.1"))),
        ];
        for (a, b) in pairs {
            assert!(a.is_disjoint(&b) && b.is_disjoint(&a), "{a} and {b}");
            assert!(!a.is_disjoint(&all) && !all.is_disjoint(&b) && !a.is_disjoint(&a));
        }
        let wide = rule(|r| r.destination = prefix("10.0.0.0/8"));
        assert!(!wide.is_disjoint(&rule(|r| r.destination = prefix("10.2.0.0/16"))));
    }

    #[test]
    fn it_is_shown_in_the_words_of_the_configuration() {
        let shown = rule(|r| {
            r.protocol = Some(TCP);
            r.destination = Some("10.20.0.0/16".parse().expect("a prefix"));
            r.ports = Some(443..=443);
            r.mark = Some(Mark { value: 1, mask: 0xff });
            r.user = Some(26);
            r.cgroup = Some("a/b".into());
        });
        let wanted = "tcp to 10.20.0.0/16 port 443 mark 0x1/0xff user 26 cgroup a/b";
        assert_eq!(shown.to_string(), wanted);
    }
}
