//! `explain` says what the data plane does (B2): for any flow the source, NIC and next hop that it names are those
//! of the frame that the pipeline sends.

use std::net::IpAddr;

use proptest::prelude::*;
use vipa::explain::{Error, Explanation, Question, explain};
use vipa::forward::rule::Rule;
use vipa::forward::source::SourcePolicy;
use vipa::forward::verdict::{DropReason, Verdict};
use vipa::forward::view::NetView;
use vipa::wire::packet::Headers;

use crate::fixture::*;

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
    explain(view, question, "vipa.toml").expect("it can be asked")
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
    assert_eq!(explain(&view, &no_port, ""), Err(Error::Port("tcp".to_owned())));
    let unknown = Question { protocol: "tpc".to_owned(), ..asked.clone() };
    assert_eq!(explain(&view, &unknown, ""), Err(Error::Protocol("tpc".to_owned())));
    let mixed = Question { to: IpAddr::from([1u16; 8]), ..asked.clone() };
    assert!(matches!(explain(&view, &mixed, ""), Err(Error::Families(..))));
    let down = Question { down: vec!["eth9".to_owned()], ..asked };
    assert_eq!(explain(&view, &down, ""), Err(Error::Nic("eth9".to_owned())));
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
