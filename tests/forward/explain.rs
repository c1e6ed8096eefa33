//! `explain` says what the data plane does (B2): for any flow the source, NIC and next hop that it names are those
//! of the frame that the pipeline sends.

use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use vipa::balance::table::Named;
use vipa::explain::{Error, Explanation, Question, explain};
use vipa::forward::frame::Frame;
use vipa::forward::pipeline::process_batch;
use vipa::forward::preferred::{Choice, Mode, PreferredTable, Server, ServerId, ServiceId};
use vipa::forward::route::{NextHop, Route, RouteTable};
use vipa::forward::rule::Rule;
use vipa::forward::source::SourcePolicy;
use vipa::forward::verdict::{DropReason, Verdict, Wait};
use vipa::forward::view::{NetView, NicId};
use vipa::wire::offload::Offload;
use vipa::wire::packet::Headers;

use crate::fixture::*;
use crate::services::{keep_client, nat, network, table};

fn question(protocol: &str, from: [u8; 4], port: u16, to: [u8; 4], to_port: u16) -> Question {
    Question {
        protocol: protocol.to_owned(),
        from: from.into(),
        from_port: Some(port),
        to: to.into(),
        to_port: Some(to_port),
        user: None,
        down: Vec::new(),
    }
}

fn told(view: &NetView, question: &Question) -> Explanation {
    explain(view, &Named::default(), question, "vipa.toml").expect("it can be asked")
}

fn steps(explanation: &Explanation) -> Vec<u16> {
    explanation.steps.iter().map(|step| step.step).collect()
}

#[test]
fn the_way_through_the_figure_is_told_by_step() {
    let view = view([true; 3]);
    let by_rule = told(&view, &question("tcp", VIPA, 40000, RULED, 443));
    assert_eq!(steps(&by_rule), [410, 415, 420, 425, 430]);
    assert_eq!(by_rule.rule.as_ref().map(|rule| rule.target.as_str()), Some("203.0.113.11"));
    assert_eq!((by_rule.applied_by.as_str(), by_rule.is_rewritten), ("forwarder", true));

    let ignored = told(&view, &question("tcp", VIPA, 40000, OTHER, 25));
    assert_eq!(steps(&ignored), [410, 415, 420, 435, 430]);
    assert_eq!(ignored.rule.as_ref().map(|rule| rule.target.as_str()), Some("physical"));

    let default = told(&view, &question("tcp", VIPA, 40000, OTHER, 80));
    assert_eq!(steps(&default), [410, 415, 420, 425, 430]);
    assert_eq!((default.rule.clone(), default.applied_by.as_str()), (None, "nobody"));

    let chosen = told(&view, &question("tcp", SECOND, 40000, OTHER, 80));
    assert_eq!(steps(&chosen), [410, 430]);

    let mut without = view.clone();
    without.source = SourcePolicy { sourcevipa: false, rules: vec![], ..without.source };
    let physical = told(&without, &question("tcp", VIPA, 40000, OTHER, 80));
    assert_eq!(steps(&physical), [410, 415, 435, 430]);
}

#[test]
fn what_cannot_be_sent_is_told_with_its_reason() {
    let dead = view([false; 3]);
    let explanation = told(&dead, &question("udp", VIPA, 40000, OTHER, 53));
    assert_eq!(explanation.verdict, "drop");
    assert_eq!(explanation.reason.as_deref(), Some(DropReason::NoLiveNic.name()));
    assert!(explanation.candidates.iter().all(|candidate| candidate.why == "not live"));

    let elsewhere = told(&view([true; 3]), &question("udp", VIPA, 40000, [172, 17, 0, 2], 53));
    assert_eq!(elsewhere.verdict, "kernel");
    let multicast = told(&view([true; 3]), &question("udp", VIPA, 40000, [224, 0, 0, 9], 53));
    assert_eq!(multicast.verdict, "kernel");
}

#[test]
fn a_nic_taken_for_dead_moves_the_flow_if_it_was_its_own_and_no_other() {
    let view = view([true; 3]);
    for port in 40000..40030 {
        let asked = question("tcp", VIPA, port, OTHER, 80);
        let now = told(&view, &asked).nic.expect("it is sent");
        for dead in ["eth0", "eth1", "eth2"] {
            let asked = Question { down: vec![dead.to_owned()], ..asked.clone() };
            let then = told(&view, &asked).nic.expect("it is sent");
            assert_eq!(then == now, dead != now, "{now} and then {then} without {dead}");
        }
    }
}

#[test]
fn shares_follow_weights_and_live_nics() {
    let mut view = view([true, true, false]);
    view.nics[1].weight = 3;
    let explanation = told(&view, &question("tcp", VIPA, 40000, OTHER, 80));
    let shares: Vec<f64> = explanation.candidates.iter().map(|c| c.share).collect();
    assert_eq!(shares, [0.25, 0.75, 0.0]);
}

#[test]
fn a_question_that_cannot_be_asked_says_why() {
    let view = view([true; 3]);
    let asked = question("tcp", VIPA, 40000, OTHER, 80);
    let no_port = Question { to_port: None, ..asked.clone() };
    assert_eq!(explain(&view, &Named::default(), &no_port, ""), Err(Error::Port("tcp".to_owned())));
    let unknown = Question { protocol: "tpc".to_owned(), ..asked.clone() };
    assert_eq!(
        explain(&view, &Named::default(), &unknown, ""),
        Err(Error::Protocol("tpc".to_owned()))
    );
    let mixed = Question { to: IpAddr::from([1u16; 8]), ..asked.clone() };
    assert!(matches!(explain(&view, &Named::default(), &mixed, ""), Err(Error::Families(..))));
    let down = Question { down: vec!["eth9".to_owned()], ..asked };
    assert_eq!(explain(&view, &Named::default(), &down, ""), Err(Error::Nic("eth9".to_owned())));
}

fn first_packet(protocol: &str, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let step = etherparse::PacketBuilder::ipv4(from.0, to.0, 64);
    let mut bytes = Vec::new();
    match protocol {
        "tcp" => step.tcp(from.1, to.1, 1, 9).syn().write(&mut bytes, b""),
        "udp" => step.udp(from.1, to.1).write(&mut bytes, b""),
        _ => step.icmpv4_echo_request(from.1, 1).write(&mut bytes, b""),
    }
    .expect("a packet");
    bytes
}

proptest! {
    #[test]
    fn the_explanation_is_what_the_pipeline_does(
        protocol in prop_oneof![Just("tcp"), Just("udp"), Just("icmp")],
        from in prop_oneof![Just(VIPA), Just(SECOND), Just([10, 1, 1, 2]), Just([9, 9, 9, 9])],
        to in prop_oneof![Just(RULED), Just(OTHER), Just([172, 17, 0, 2]), Just([224, 0, 0, 1])],
        from_port in 1u16..,
        to_port in prop_oneof![Just(25u16), Just(80), Just(520)],
        live: [bool; 3],
        bound_forward: bool,
        physical: bool,
    ) {
        let mut view = view(live);
        view.source.is_bound_forwarded = bound_forward;
        if physical {
            view.source.rules.push(Rule { is_for_forwarder: true, line: 9, ..Rule::default() });
        }
        let explanation = told(&view, &question(protocol, from, from_port, to, to_port));
        let packet = first_packet(protocol, (from, from_port), (to, to_port));
        let frame = run_held(&packet, &mut state(16), &view);
        match frame.verdict {
            Verdict::Transmit { nic, destination } => {
                let headers = Headers::parse(frame.packet()).expect("headers");
                prop_assert_eq!(explanation.verdict.as_str(), "transmit");
                prop_assert_eq!(explanation.source, Some(headers.source.to_string()));
                prop_assert_eq!(explanation.nic, Some(view.nic(nic).name.clone()));
                prop_assert_eq!(explanation.mac, Some(destination.to_string()));
                prop_assert_eq!(explanation.is_rewritten, headers.source != IpAddr::from(from));
            }
            Verdict::Drop(DropReason::Multicast | DropReason::RouteElsewhere) => {
                prop_assert_eq!(explanation.verdict.as_str(), "kernel");
            }
            Verdict::Drop(reason) => {
                prop_assert_eq!(explanation.verdict.as_str(), "drop");
                prop_assert_eq!(explanation.reason.as_deref(), Some(reason.name()));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

/// A table whose servers are named by their places.
fn named(table: PreferredTable) -> Named {
    let names = (0..6).map(|id| (ServerId(id), format!("s{id}"))).collect();
    let reasons = (0..3).map(|id| (ServiceId(id), "as told".to_owned())).collect();
    Named { table: Arc::new(table), names, reasons }
}

fn asked(services: &Named, question: &Question) -> Explanation {
    explain(&network(), services, question, "vipa.toml").expect("it can be asked")
}

#[test]
fn a_service_is_told_with_its_server_and_why_it_is_that_one() {
    let mut table = table(nat());
    let to_web = question("tcp", OTHER, 40000, VIPA, 80);
    let told = asked(&named(table.clone()), &to_web);
    assert_eq!((told.verdict.as_str(), told.service.as_deref()), ("transmit", Some("web")));
    assert_eq!(told.server.as_deref(), Some("s0"));
    assert_eq!(told.server_address.as_deref(), Some("10.9.0.1:8080"));
    assert_eq!(told.why, "the source 192.0.2.1 becomes 203.0.113.11: as told");
    assert!(told.steps.is_empty(), "FIG. 4 is about what this host sends");
    let page = told.render();
    for line in ["service    web", "server     s0, 10.9.0.1:8080", "NIC        eth1"] {
        assert!(page.contains(line), "{page}");
    }

    table.set_choice(ServiceId(0), Choice::Refuse);
    let refused = asked(&named(table.clone()), &to_web);
    assert_eq!((refused.verdict.as_str(), refused.server), ("refuse", None));
    assert!(refused.why.contains("reset") && refused.why.contains("as told"), "{}", refused.why);

    table.set_choice(ServiceId(0), Choice::Wait);
    let unread = asked(&named(table), &to_web);
    assert_eq!(unread.reason.as_deref(), Some(DropReason::ServersUnread.name()));
}

#[test]
fn what_is_this_hosts_and_no_services_is_the_kernels() {
    let services = named(table(nat()));
    for from in [OTHER, VIPA] {
        let told = asked(&services, &question("tcp", from, 40000, VIPA, 81));
        assert_eq!((told.verdict.as_str(), told.service), ("kernel", None), "{from:?}");
    }
}

#[test]
fn a_port_that_only_answers_come_to_drops_what_is_none() {
    let services = named(table(nat()));
    for (to, port, verdict) in [
        // Rewritten flows have these, served ones those.
        (SECOND, 61000, "drop"),
        ([10, 1, 1, 2], 61000, "drop"),
        (SECOND, 40005, "drop"),
        (SECOND, 61002, "kernel"),
        (VIPA, 61000, "kernel"),
        ([10, 1, 1, 2], 22, "kernel"),
    ] {
        let told = asked(&services, &question("tcp", OTHER, 40000, to, port));
        assert_eq!(told.verdict, verdict, "{to:?} {port}");
        assert_eq!(told.reason.is_some(), verdict == "drop");
    }
}

#[derive(Clone, Copy, Debug)]
enum Place {
    OnLink,
    BehindAGateway,
    Here,
}

/// The services with their servers there, and what is around.
fn served(mode: Mode, place: Place, live: [bool; 3], choice: Choice) -> (NetView, PreferredTable) {
    let mut view = network();
    for (nic, is_live) in view.nics.iter_mut().zip(live) {
        nic.is_live = is_live;
    }
    let before = table(mode);
    let servers = (0..6).map(|id| {
        let server = before.server(ServerId(id)).cloned().expect("a server");
        Some(match place {
            Place::Here => Server { address: SECOND.into(), is_local: true, ..server },
            Place::OnLink | Place::BehindAGateway => server,
        })
    });
    let services = before.services().map(|(_, service)| Some(service.clone())).collect();
    let mut table = PreferredTable::new(services, servers.collect());
    for service in 0..3 {
        table.set_choice(ServiceId(service), choice.clone());
    }
    if matches!(place, Place::BehindAGateway) {
        let routes = view.routes.routes().iter().filter(|route| route.prefix.length() != 24);
        let next_hops = vec![NextHop { nic: NicId(2), gateway: Some(gateway(2)) }];
        let behind = Route { prefix: "10.9.0.0/24".parse().expect("a prefix"), next_hops };
        view.routes = RouteTable::new(routes.cloned().chain([behind]).collect());
    }
    (view, table)
}

proptest! {
    #[test]
    fn the_explanation_of_a_service_is_what_the_pipeline_does(
        mode in prop_oneof![Just(nat()), Just(keep_client()), Just(Mode::Direct)],
        place in prop_oneof![Just(Place::OnLink), Just(Place::BehindAGateway), Just(Place::Here)],
        choice in prop_oneof![
            Just(Choice::Preferred(ServerId(0))),
            Just(Choice::Preferred(ServerId(1))),
            Just(Choice::Weighted([ServerId(0), ServerId(1), ServerId(1)].into())),
            Just(Choice::Refuse),
            Just(Choice::Wait),
        ],
        protocol in prop_oneof![Just("tcp"), Just("udp")],
        from in prop_oneof![
            Just(VIPA), Just(SECOND), Just([10, 1, 1, 2]), Just(OTHER), Just([9, 9, 9, 9]),
            Just([127, 0, 0, 1]),
        ],
        to in prop_oneof![3 => Just(VIPA), 1 => Just(SECOND), 1 => Just([10, 1, 1, 2])],
        from_port in 1u16..,
        // Those that only answers come to, too.
        to_port in prop_oneof![
            Just(53u16), Just(80), Just(81), Just(5007), Just(61000), Just(61001), Just(40005),
        ],
        live: [bool; 3],
        has_ports: bool,
        has_rules: bool,
    ) {
        let (mut view, table) = served(mode, place, live, choice);
        if !has_ports {
            view.source.ports.clear();
        }
        if !has_rules {
            view.source.rules.clear();
        }
        let services = named(table);
        let question = question(protocol, from, from_port, to, to_port);
        let told = explain(&view, &services, &question, "").expect("it can be asked");
        let is_own = [VIPA, SECOND, [10, 1, 1, 2]].contains(&from);
        let ingress = if is_own { TUN } else { vipa::forward::frame::Ingress::Nic(NicId(0)) };
        if is_own && told.service.is_none() {
            // The kernel keeps it from the adapter; what comes there is a server's, and begins nothing.
            prop_assert_eq!(told.verdict.as_str(), "kernel");
            return Ok(());
        }
        let packet = first_packet(protocol, (from, from_port), (to, to_port));
        let mut frames = [Frame::holding(&packet, Offload::default(), ingress)];
        process_batch(&mut frames, &mut state(16), sight(&view, &services.table));
        let [frame] = frames;
        let headers = Headers::parse(frame.packet()).expect("headers");
        let is_answer = headers.destination == IpAddr::from(from) && !is_own;
        match frame.verdict {
            Verdict::Kernel => prop_assert_eq!(told.verdict.as_str(), "kernel"),
            Verdict::Deliver if told.service.is_none() => {
                prop_assert_eq!(told.verdict.as_str(), "kernel");
            }
            Verdict::Answer => prop_assert_eq!(told.verdict.as_str(), "refuse"),
            Verdict::Transmit { .. } if is_answer => {
                prop_assert_eq!(told.verdict.as_str(), "refuse");
            }
            Verdict::Deliver => {
                prop_assert_eq!(told.verdict.as_str(), "deliver");
                prop_assert_eq!(told.source, Some(headers.source.to_string()));
                let asked = std::net::SocketAddr::new(headers.destination, headers.ports().1);
                prop_assert_eq!(told.server_address, Some(asked.to_string()));
            }
            Verdict::Transmit { nic, destination } => {
                prop_assert_eq!(told.verdict.as_str(), "transmit");
                prop_assert_eq!(told.source, Some(headers.source.to_string()));
                prop_assert_eq!(told.is_rewritten, headers.source != IpAddr::from(from));
                prop_assert_eq!(told.nic, Some(view.nic(nic).name.clone()));
                prop_assert_eq!(told.mac, Some(destination.to_string()));
            }
            Verdict::Wait(Wait::Neighbour { nic, address }) => {
                prop_assert_eq!(told.verdict.as_str(), "transmit");
                prop_assert_eq!(told.nic, Some(view.nic(nic).name.clone()));
                prop_assert_eq!(told.next_hop, Some(address.to_string()));
                prop_assert_eq!(told.mac, None);
            }
            Verdict::Drop(reason) => {
                prop_assert_eq!(told.verdict.as_str(), "drop");
                prop_assert_eq!(told.reason.as_deref(), Some(reason.name()));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
