//! Why a datagram takes the way that it takes (B2): FIG. 4 of US 5,923,854 by step number, route, NIC and next
//! hop. What decides are the functions that the data plane calls; here is only what they are asked, and words
//! for what they say.

mod served;

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, PacketBuilder};
use serde::{Deserialize, Serialize};

use crate::balance::table::Named;
use crate::forward::applies::applies;
use crate::forward::begin;
use crate::forward::pipeline::{is_multicast, next_hop};
use crate::forward::route::NextHop;
use crate::forward::rule::{Rule, Target};
use crate::forward::socket::{Socket, SocketFacts};
use crate::forward::source::{Decision, Defined, Ignored, SourcePolicy};
use crate::forward::spread;
use crate::forward::verdict::DropReason;
use crate::forward::view::{NetView, NicId, NicState};
use crate::link::health::is_live;
use crate::wire::ip::{self, Family};
use crate::wire::packet::Headers;

/// The first packet of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// `tcp`, `udp`, `icmp`, or an IANA number.
    pub protocol: String,
    /// Its source as the host sends it.
    pub from: IpAddr,
    /// Source port; left out: the first ephemeral one is taken for an example.
    pub from_port: Option<u16>,
    /// Its destination.
    pub to: IpAddr,
    /// Destination port.
    pub to_port: Option<u16>,
    /// The user who made the socket; left out: unknown, and rules by user match nothing.
    #[serde(default)]
    pub user: Option<u32>,
    /// NICs that are taken for dead.
    #[serde(default)]
    pub down: Vec<String>,
}

/// What becomes of it, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// The question, in a line.
    pub question: String,
    /// The way through FIG. 4.
    pub steps: Vec<Step>,
    /// `transmit`, `drop`, `kernel`; of a service's `deliver` as well (its server is on this host) and `refuse`.
    pub verdict: String,
    /// Name of the drop reason.
    pub reason: Option<String>,
    /// The same in words.
    pub why: String,
    /// The `[[source.rule]]` that won.
    pub rule: Option<RuleMatch>,
    /// Lines of rules before it that would match, if the socket has the user, mark or cgroup that they ask for.
    pub unknown: Vec<u32>,
    /// `forwarder`, `kernel`, or `nobody` where nothing is changed.
    pub applied_by: String,
    /// The source address on the wire.
    pub source: Option<String>,
    /// Is it another than the host sends it with?
    pub is_rewritten: bool,
    /// Prefix of the route.
    pub route: Option<String>,
    /// The NIC that it leaves by.
    pub nic: Option<String>,
    /// The gateway, or the destination on the link.
    pub next_hop: Option<String>,
    /// MAC address of the next hop, if it is known.
    pub mac: Option<String>,
    /// Every next hop of the route, and why it was or was not taken.
    pub candidates: Vec<Candidate>,
    /// The service that it is for.
    pub service: Option<String>,
    /// The server that gets it.
    pub server: Option<String>,
    /// Where that is asked: address and port.
    pub server_address: Option<String>,
}

/// A step of FIG. 4.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its number in the figure.
    pub step: u16,
    /// What it asks or does.
    pub asks: String,
    /// The answer for this packet.
    pub answer: String,
}

/// A rule of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleMatch {
    /// The configuration file.
    pub file: String,
    /// Line of the rule.
    pub line: u32,
    /// What it asks for.
    pub target: String,
}

/// A next hop of the route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Name of the NIC.
    pub nic: String,
    /// The gateway, if there is one.
    pub gateway: Option<String>,
    /// State of the NIC.
    pub state: String,
    /// Its metric.
    pub metric: u32,
    /// Its weight.
    pub weight: u16,
    /// Share of all flows of this route that it gets, 0 to 1.
    pub share: f64,
    /// Why it was taken, or was not.
    pub why: String,
}

/// A question that cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No protocol has this name.
    #[error("protocol {0:?} is none of tcp, udp, icmp, or a number to 255")]
    Protocol(String),
    /// Source and destination are of two families.
    #[error("{0} and {1} are of two families")]
    Families(IpAddr, IpAddr),
    /// A NIC that is to be taken for dead is none of ours.
    #[error("{0} is no [[nic]]")]
    Nic(String),
    /// TCP and UDP have ports.
    #[error("{0} needs a destination port")]
    Port(String),
    /// Such a packet cannot be made.
    #[error("no such packet can be made")]
    Packet,
}

/// Explains what `view` and `services` would do with the first packet of a flow; `file` is the configuration's name.
///
/// # Errors
/// See [`Error`].
pub fn explain(
    view: &NetView,
    services: &Named,
    question: &Question,
    file: &str,
) -> Result<Explanation, Error> {
    let view = &with_dead(view, &question.down)?;
    let (packet, assumed) = first_packet(view, question)?;
    let headers = Headers::parse(&packet).map_err(|_| Error::Packet)?;
    let mut told = Explanation {
        question: in_a_line(question, assumed, &headers),
        applied_by: "nobody".to_owned(),
        ..Explanation::default()
    };
    if is_multicast(headers.destination) || view.is_broadcast(headers.destination) {
        told.verdict = "kernel".to_owned();
        told.why = "multicast and broadcast keep to the kernel's own routes".to_owned();
        return Ok(told);
    }
    if served::explain(&mut told, view, services, &headers) {
        return Ok(told);
    }
    let is_nic_address = view.has_nic_address(headers.source);
    // As if no rule were the kernel's: it decides as the forwarder would, only earlier.
    let policy = SourcePolicy { applies: Vec::new(), can_ask: false, ..view.source.clone() };
    let socket = question.user.map_or(Socket::Unknown, |user| {
        Socket::Known(SocketFacts { user, ..SocketFacts::default() })
    });
    let decision = policy.decide(&headers, is_nic_address, &socket);
    let by_kernel = rule_of(decision).is_some_and(|at| {
        let by = applies(&policy.rules, policy.is_bound_forwarded);
        by.get(at).is_some_and(|by| by.is_by_kernel())
    });
    if !matches!(decision, Decision::Keep(_)) {
        told.unknown = unknown(&policy, &headers, &socket, rule_of(decision));
    }
    told.steps = steps(&view.source, &headers, decision);
    told.rule = rule_of(decision).and_then(|at| view.source.rules.get(at)).map(|rule| RuleMatch {
        file: file.to_owned(),
        line: rule.line,
        target: match rule.target {
            Target::Vipa(address) => address.to_string(),
            Target::Physical => "physical".to_owned(),
        },
    });
    if let Some(route) = view.routes.lookup(headers.destination) {
        told.route = Some(route.prefix.to_string());
        told.candidates = candidates(view, &route.next_hops);
    }
    let outcome = begin::source(&headers, decision, view).and_then(|source| {
        let wire = (source != headers.source && !by_kernel).then_some(source);
        Ok((source, next_hop(&headers, wire, view)?))
    });
    match outcome {
        Err(DropReason::RouteElsewhere) => {
            told.verdict = "kernel".to_owned();
            told.why = "the kernel's own route leaves by a device that is no [[nic]]".to_owned();
        }
        Err(reason) => told.drops(reason),
        Ok(_) if by_kernel && matches!(decision, Decision::Physical(_)) => {
            told.verdict = "kernel".to_owned();
            told.applied_by = "kernel".to_owned();
            told.why =
                "the main table's route and its card's address, if it has one over a [[nic]]; \
                        else the forwarder sees to it"
                    .to_owned();
        }
        Ok((source, hop)) => sent(&mut told, view, &headers, source, hop, by_kernel),
    }
    Ok(told)
}

/// Rules that match as far as the packet tells, and stand before the one that won.
fn unknown(
    policy: &SourcePolicy,
    headers: &Headers,
    socket: &Socket,
    winner: Option<usize>,
) -> Vec<u32> {
    let before = policy.rules.iter().take(winner.unwrap_or(policy.rules.len()));
    let is_unknown = |rule: &&Rule| match socket {
        Socket::Known(_) => rule.mark.is_some() || rule.cgroup.is_some(),
        Socket::Unknown | Socket::Unasked => rule.needs_socket(),
    };
    before.filter(|rule| rule.matches(headers)).filter(is_unknown).map(|rule| rule.line).collect()
}

/// `view` as it would be without these NICs.
fn with_dead(view: &NetView, down: &[String]) -> Result<NetView, Error> {
    let mut view = view.clone();
    for name in down {
        let nic = view.nics.iter_mut().find(|nic| nic.name == *name);
        nic.ok_or_else(|| Error::Nic(name.clone()))?.state = NicState::NoCarrier;
    }
    if !down.is_empty() {
        let states: Vec<NicState> = view.nics.iter().map(|nic| nic.state).collect();
        for (at, nic) in view.nics.iter_mut().enumerate() {
            nic.is_live = is_live(&states, NicId(at as u8));
        }
    }
    Ok(view)
}

/// The packet, and the source port that was taken for an example.
fn first_packet(view: &NetView, question: &Question) -> Result<(Vec<u8>, Option<u16>), Error> {
    let Question { from, to, .. } = *question;
    let v6 = from.is_ipv6();
    let protocol = match question.protocol.as_str() {
        "tcp" => ip::TCP,
        "udp" => ip::UDP,
        "icmp" | "icmpv6" | "ipv6-icmp" => {
            if v6 {
                ip::ICMPV6
            } else {
                ip::ICMP
            }
        }
        number => number.parse().map_err(|_| Error::Protocol(number.to_owned()))?,
    };
    let step = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => return Err(Error::Families(from, to)),
    };
    let example = view.source.ephemeral.as_ref().map_or(32768, |range| *range.start());
    let port = question.from_port.unwrap_or(example);
    let to_port = || question.to_port.ok_or_else(|| Error::Port(question.protocol.clone()));
    let mut bytes = Vec::new();
    let mut has_example = question.from_port.is_none();
    match protocol {
        ip::TCP => step.tcp(port, to_port()?, 0, 65535).syn().write(&mut bytes, &[]),
        ip::UDP => step.udp(port, to_port()?).write(&mut bytes, &[]),
        ip::ICMP => step.icmpv4_echo_request(port, 1).write(&mut bytes, &[]),
        ip::ICMPV6 => step.icmpv6_echo_request(port, 1).write(&mut bytes, &[]),
        other => {
            has_example = false;
            let ports = [port.to_be_bytes(), question.to_port.unwrap_or(0).to_be_bytes()].concat();
            // The first chunk of SCTP is an INIT; to other protocols these are any bytes.
            let payload = [&ports[..], &[0; 8], &[1, 0, 0, 4]].concat();
            step.write(&mut bytes, IpNumber(other), &payload)
        }
    }
    .map_err(|_| Error::Packet)?;
    Ok((bytes, has_example.then_some(port)))
}

fn in_a_line(question: &Question, assumed: Option<u16>, headers: &Headers) -> String {
    let (source, destination) = headers.ports();
    let end = |address: IpAddr, port: u16| match port {
        0 => address.to_string(),
        port => SocketAddr::new(address, port).to_string(),
    };
    let mut line = format!(
        "{} {} → {}",
        question.protocol,
        end(headers.source, source),
        end(headers.destination, destination)
    );
    if let Some(port) = assumed {
        let what = if destination == 0 { "identifier" } else { "source port" };
        line.push_str(&format!(" ({what} {port} taken for an example)"));
    }
    if let Some(user) = question.user {
        line.push_str(&format!(", by user {user}"));
    }
    for nic in &question.down {
        line.push_str(&format!(", as if {nic} were down"));
    }
    line
}

fn rule_of(decision: Decision) -> Option<usize> {
    match decision {
        Decision::Vipa(_, rule) => rule,
        Decision::Physical(Ignored::Rule(rule)) => Some(rule),
        Decision::Physical(_) | Decision::Keep(_) | Decision::Ask => None,
    }
}

/// The way through the figure.
fn steps(policy: &SourcePolicy, headers: &Headers, decision: Decision) -> Vec<Step> {
    let step = |step, asks: &str, answer: String| Step { step, asks: asks.to_owned(), answer };
    let sent = step(430, "send", format!("to {}", headers.destination));
    let defined = "is the source defined already?";
    if let Decision::Keep(why) = decision {
        let why = match why {
            Defined::Foreign => "it came from another host",
            Defined::Chosen => "the application chose it",
            Defined::Answer => "it is an answer, and the question named the address",
        };
        return vec![step(410, defined, format!("yes: {why}")), sent];
    }
    let family = if headers.family() == Family::V4 { "IPv4" } else { "IPv6" };
    let undefined = if headers.source.is_unspecified() {
        "no: it names none".to_owned()
    } else if policy.default_vipa(headers.family()) == Some(headers.source) {
        "no: it is the default VIPA, the stack's own choice".to_owned()
    } else {
        "no: it is a NIC's address, and [source] bound = \"forward\"".to_owned()
    };
    let mut steps = vec![step(410, defined, undefined)];
    let line = |rule: usize| policy.rules.get(rule).map_or(0, |rule| rule.line);
    let enabled = match (decision, policy.sourcevipa) {
        (Decision::Physical(Ignored::NotEnabled), _) => "no, and no rule speaks of it",
        (_, true) => "yes",
        (_, false) => "no, but a rule speaks of it",
    };
    steps.push(step(415, "is SOURCEVIPA enabled?", enabled.to_owned()));
    let ignore = match decision {
        Decision::Physical(Ignored::Rip) => Some("yes: RIP, by nature".to_owned()),
        Decision::Physical(Ignored::Rule(rule)) => {
            Some(format!("yes: rule of line {}", line(rule)))
        }
        Decision::Physical(Ignored::NotEnabled) => None,
        Decision::Physical(Ignored::NoVipa) => Some(format!("yes: {family} has no VIPA")),
        Decision::Vipa(address, Some(rule)) => {
            Some(format!("no: rule of line {} asks for {address}", line(rule)))
        }
        Decision::Vipa(_, None) => Some("no: no rule speaks of it".to_owned()),
        // Nobody is asked here.
        Decision::Keep(_) | Decision::Ask => None,
    };
    steps.extend(ignore.map(|answer| step(420, "is it IGNORE SOURCEVIPA?", answer)));
    steps.push(match decision {
        Decision::Vipa(address, None) => {
            step(425, "insert the VIPA", format!("{address}, the default of {family}"))
        }
        Decision::Vipa(address, Some(_)) => step(425, "insert the VIPA", address.to_string()),
        _ => step(435, "insert the physical address", "of the NIC that it leaves by".to_owned()),
    });
    steps.push(sent);
    steps
}

fn candidates(view: &NetView, hops: &[NextHop]) -> Vec<Candidate> {
    let shares = spread::shares(hops, view);
    hops.iter()
        .zip(shares)
        .map(|(hop, share)| {
            let nic = view.nic(hop.nic);
            Candidate {
                nic: nic.name.clone(),
                gateway: hop.gateway.map(|gateway| gateway.to_string()),
                state: nic.state.name().to_owned(),
                metric: nic.metric,
                weight: nic.weight,
                share,
                why: match (nic.is_live, share > 0.0) {
                    (false, _) => "not live".to_owned(),
                    (true, false) => "a live NIC has a lower metric".to_owned(),
                    (true, true) => "not this flow's: another has the higher score".to_owned(),
                },
            }
        })
        .collect()
}

fn sent(
    told: &mut Explanation,
    view: &NetView,
    headers: &Headers,
    source: IpAddr,
    hop: NextHop,
    by_kernel: bool,
) {
    let is_home = source != headers.source
        && !by_kernel
        && view.nic(hop.nic).addresses.iter().any(|(own, _)| *own == source);
    taken(told, view, hop, headers.destination, is_home);
    told.verdict = "transmit".to_owned();
    told.source = Some(source.to_string());
    told.is_rewritten = source != headers.source && !by_kernel;
    if by_kernel {
        told.applied_by = "kernel".to_owned();
        told.why = format!("the socket has {source} from the start");
    } else if told.is_rewritten {
        told.applied_by = "forwarder".to_owned();
        told.why = format!("the source {} becomes {source}", headers.source);
    } else {
        told.why = format!("the source stays {source}");
    }
}

/// It leaves by this next hop; `is_home`: since it carries the NIC's address.
fn taken(told: &mut Explanation, view: &NetView, hop: NextHop, destination: IpAddr, is_home: bool) {
    let nic = view.nic(hop.nic);
    let address = hop.gateway.unwrap_or(destination);
    let gateway = hop.gateway.map(|gateway| gateway.to_string());
    for candidate in &mut told.candidates {
        if candidate.nic == nic.name && candidate.gateway == gateway {
            candidate.why = match (is_home, candidate.share >= 1.0) {
                (true, _) => "taken: the flow carries this NIC's address".to_owned(),
                (false, true) => "taken: the only one that is left".to_owned(),
                (false, false) => "taken: the flow's highest score (rendezvous hash)".to_owned(),
            };
        }
    }
    told.nic = Some(nic.name.clone());
    told.next_hop = Some(address.to_string());
    told.mac = view.neighbours.find(hop.nic, address).map(|(_, way)| way.destination.to_string());
}

impl Explanation {
    fn drops(&mut self, reason: DropReason) {
        self.verdict = "drop".to_owned();
        self.reason = Some(reason.name().to_owned());
        self.why = reason.meaning().trim().to_owned();
    }

    /// For a reader at a terminal.
    pub fn render(&self) -> String {
        use std::fmt::Write;
        let mut page = format!("{}\n\n", self.question);
        let widest = self.steps.iter().map(|step| step.asks.chars().count()).max().unwrap_or(0);
        for step in &self.steps {
            let _ = writeln!(page, "  {}  {:widest$}  {}", step.step, step.asks, step.answer);
        }
        let rule = match &self.rule {
            Some(rule) => format!("{}:{} → {}", rule.file, rule.line, rule.target),
            None if self.steps.len() > 2 => "none: the default".to_owned(),
            None => "none is asked".to_owned(),
        };
        let mut line = |name: &str, text: &str| {
            let _ = writeln!(page, "{name:<11}{text}");
        };
        match &self.service {
            None => line("\nrule", &format!(" {rule}")),
            Some(service) => line("service", service),
        }
        if let (Some(server), Some(address)) = (&self.server, &self.server_address) {
            line("server", &format!("{server}, {address}"));
        }
        for at in &self.unknown {
            line(
                "",
                &format!("the rule of line {at} comes before, if the socket is what it asks for"),
            );
        }
        line("applied by", &self.applied_by);
        if let Some(route) = &self.route {
            line("route", route);
        }
        if let (Some(nic), Some(hop)) = (&self.nic, &self.next_hop) {
            let mac = self.mac.as_deref().unwrap_or("not resolved yet");
            line("NIC", nic);
            line("next hop", &format!("{hop} ({mac})"));
        }
        for candidate in &self.candidates {
            let via =
                candidate.gateway.as_deref().map_or("on link".to_owned(), |g| format!("via {g}"));
            let Candidate { nic, state, metric, weight, share, why, .. } = candidate;
            let state = state.replace('_', " ");
            let share = share * 100.0;
            line(
                "",
                &format!(
                    "{nic} {via}: {state}, metric {metric}, weight {weight}, {share:.0} % of flows; {why}"
                ),
            );
        }
        let verdict = match &self.reason {
            Some(reason) => format!("{} ({reason}): {}", self.verdict, self.why),
            None => format!("{}: {}", self.verdict, self.why),
        };
        line("verdict", &verdict);
        page
    }
}
