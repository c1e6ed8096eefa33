//! Flows: their source, their port, their NIC, their worker; and the table that remembers them.

use std::net::IpAddr;
use std::sync::atomic::AtomicU64;

use etherparse::PacketBuilder;
use proptest::prelude::*;
use vipa::forward::flow::{FlowTable, Millis};
use vipa::forward::frame::Ingress;
use vipa::forward::pipeline::State;
use vipa::forward::route::NextHop;
use vipa::forward::spread;
use vipa::forward::verdict::{DropReason, Verdict, Wait};
use vipa::forward::view::{NetView, NicId, WorkerId};
use vipa::wire::packet::Headers;

use crate::fixture::*;

#[test]
fn a_syn_sent_again_makes_no_second_flow() {
    let (mut state, view) = (state(8), view([true; 3]));
    let syn = tcp((VIPA, 40000), (OTHER, 80), true);
    let ways: Vec<Verdict> = (0..3).map(|_| run(&syn, TUN, &mut state, &view).verdict).collect();
    assert!(matches!(ways[0], Verdict::Transmit { .. }));
    assert_eq!(ways, [ways[0]; 3]);
    assert_eq!((state.flows.len(), state.flows.created()), (1, 1));
}

#[test]
fn a_flow_with_the_right_source_leaves_as_it_is() {
    let (mut state, view) = (state(16), view([true; 3]));
    let packet = tcp((VIPA, 40000), (OTHER, 80), true);
    let frame = run(&packet, TUN, &mut state, &view);
    assert!(matches!(frame.verdict, Verdict::Transmit { .. }));
    assert_eq!(frame.packet(), packet);
    assert_eq!((state.flows.len(), state.flows.rewritten()), (1, 0));
}

#[test]
fn a_rewritten_flow_works_both_ways() {
    let (mut state, view) = (state(16), view([true; 3]));
    let out = run_held(&tcp((VIPA, 40000), (RULED, 443), true), &mut state, &view);
    let headers = assert_checksum(&out);
    assert_eq!(headers.source, IpAddr::from(SECOND));
    let (port, _) = headers.ports();
    assert!([61000, 61001].contains(&port));

    let back = tcp((RULED, 443), (SECOND, port), false);
    let back = run(&back, Ingress::Nic(NicId(1)), &mut state, &view);
    assert_eq!(back.verdict, Verdict::Deliver);
    let headers = assert_checksum(&back);
    assert_eq!((headers.destination, headers.ports().1), (IpAddr::from(VIPA), 40000));
}

#[test]
fn a_rewritten_flow_survives_the_process_that_made_it() {
    let words: &'static [AtomicU64] =
        (0..16 * WORDS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    let view = view([true; 3]);
    let syn = tcp((VIPA, 40000), (RULED, 443), true);
    let first = assert_checksum(&run_held(&syn, &mut state_over(words), &view)).ports();

    let mut state = state_over(words);
    assert_eq!(state.flows.rewritten(), 1);
    let data = run(&tcp((VIPA, 40000), (RULED, 443), false), TUN, &mut state, &view);
    assert_eq!(assert_checksum(&data).ports(), first);
}

#[test]
fn a_torn_entry_is_dropped_at_adoption() {
    let words: &'static [AtomicU64] =
        (0..16 * WORDS).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
    let view = view([true; 3]);
    for port in [40000, 40001] {
        run_held(&tcp((VIPA, port), (RULED, 443), true), &mut state_over(words), &view);
    }
    words[0].store(0xdead, std::sync::atomic::Ordering::Relaxed);
    let (flows, torn) = FlowTable::adopt(words, shape(words.len()), 7);
    assert_eq!((flows.rewritten(), torn), (1, 1));
}

#[test]
fn an_answer_inside_a_rules_prefix_keeps_the_address_it_was_asked_on() {
    let (mut state, view) = (state(16), view([true; 3]));
    let syn_ack = tcp((VIPA, 443), (RULED, 50000), false);
    let frame = run(&syn_ack, TUN, &mut state, &view);
    assert!(matches!(frame.verdict, Verdict::Transmit { .. }));
    assert_eq!(frame.packet(), syn_ack);
}

#[test]
fn out_of_ports_drops_that_flow_and_no_other() {
    let (mut state, view) = (state(16), view([true; 3]));
    for port in [40000, 40001] {
        let frame = run_held(&tcp((VIPA, port), (RULED, 443), true), &mut state, &view);
        assert!(matches!(frame.verdict, Verdict::Transmit { .. }));
    }
    let third = run_held(&tcp((VIPA, 40002), (RULED, 443), true), &mut state, &view);
    assert_eq!(third.verdict, Verdict::Drop(DropReason::PortsExhausted));
    let elsewhere = run_held(&tcp((VIPA, 40002), (RULED, 444), true), &mut state, &view);
    assert!(matches!(elsewhere.verdict, Verdict::Transmit { .. }));
    let known = run_held(&tcp((VIPA, 40000), (RULED, 443), false), &mut state, &view);
    assert!(matches!(known.verdict, Verdict::Transmit { .. }));
}

#[test]
fn ignore_inserts_the_address_of_the_nic_it_leaves_by_and_stays_there() {
    let (mut state, mut view) = (state(64), view([true; 3]));
    view.source.ports = (61000..=61100).collect();
    for port in 40000..40020 {
        let syn = tcp((VIPA, port), (OTHER, 25), true);
        let frame = run_held(&syn, &mut state, &view);
        let Verdict::Transmit { nic, .. } = frame.verdict else { panic!("{:?}", frame.verdict) };
        assert_eq!(assert_checksum(&frame).source, view.nic(nic).addresses[0].0);
    }
}

#[test]
fn a_datagram_flow_whose_physical_address_is_gone_gets_another_and_a_connection_waits() {
    let (mut state, mut view) = (state(64), view([true, false, false]));
    view.source.ports = (61000..=61100).collect();
    view.source.rules[0].protocol = None;
    view.source.rules[0].ports = None;
    let mut datagram = Vec::new();
    PacketBuilder::ipv4(VIPA, OTHER, 64).udp(40000, 53).write(&mut datagram, b"?").expect("built");
    let connection = tcp((VIPA, 40000), (OTHER, 80), true);
    let old = view.nics[0].addresses[0].0;
    for packet in [&datagram, &connection] {
        assert_eq!(assert_checksum(&run_held(packet, &mut state, &view)).source, old);
    }
    let new = IpAddr::from([10, 0, 1, 7]);
    view.nics[0].addresses[0].0 = new;
    view.generation = 2;
    assert_eq!(assert_checksum(&run_held(&datagram, &mut state, &view)).source, new);
    assert_eq!(state.released.len(), 1, "the hold forgets the old one");
    assert_eq!(assert_checksum(&run_held(&connection, &mut state, &view)).source, old);
}

#[test]
fn rip_leaves_with_the_physical_address_and_its_own_port() {
    let (mut state, view) = (state(16), view([true; 3]));
    let mut packet = Vec::new();
    PacketBuilder::ipv4(VIPA, OTHER, 1).udp(520, 520).write(&mut packet, b"rip").expect("built");
    let frame = run(&packet, TUN, &mut state, &view);
    let Verdict::Transmit { nic, .. } = frame.verdict else { panic!("{:?}", frame.verdict) };
    let headers = assert_checksum(&frame);
    assert_eq!((headers.source, headers.ports()), (view.nic(nic).addresses[0].0, (520, 520)));
}

#[test]
fn what_cannot_be_forwarded_has_a_reason() {
    let (mut state, view) = (state(16), view([true; 3]));
    let mut reason = |to: [u8; 4], view: &NetView| {
        run(&tcp((VIPA, 40000), (to, 80), true), TUN, &mut state, view).verdict
    };
    assert_eq!(reason([224, 0, 0, 9], &view), Verdict::Drop(DropReason::Multicast));
    assert_eq!(reason([172, 17, 0, 2], &view), Verdict::Drop(DropReason::RouteElsewhere));
    let dead = self::view([false; 3]);
    assert_eq!(reason(OTHER, &dead), Verdict::Drop(DropReason::NoLiveNic));
    assert_eq!(run(&[0x55; 40], TUN, &mut state, &view).verdict, Verdict::Drop(DropReason::NotIp));
    assert_eq!(
        run(&[0x45; 12], TUN, &mut state, &view).verdict,
        Verdict::Drop(DropReason::Malformed)
    );
    let stray = tcp((OTHER, 80), (SECOND, 61000), false);
    let stray = run(&stray, Ingress::Nic(NicId(0)), &mut state, &view);
    assert_eq!(stray.verdict, Verdict::Drop(DropReason::NoFlow));
}

#[test]
fn a_next_hop_without_mac_makes_the_frame_wait() {
    let (mut state, mut view) = (state(16), view([true, false, false]));
    view.neighbours.clear();
    let frame = run(&tcp((VIPA, 40000), (OTHER, 80), true), TUN, &mut state, &view);
    let wait = Wait::Neighbour { nic: NicId(0), address: gateway(0) };
    assert_eq!(frame.verdict, Verdict::Wait(wait));
}

#[test]
fn a_new_view_moves_flows_at_their_next_packet() {
    let (mut state, mut all) = (state(256), view([true; 3]));
    let flows: Vec<_> = (40000..40060).map(|port| tcp((VIPA, port), (OTHER, 80), true)).collect();
    let nic_of =
        |packet: &[u8], state: &mut State, view: &NetView| match run(packet, TUN, state, view)
            .verdict
        {
            Verdict::Transmit { nic, .. } => nic,
            other => panic!("{other:?}"),
        };
    let before: Vec<_> = flows.iter().map(|p| nic_of(p, &mut state, &all)).collect();
    let mut without = view([true, false, true]);
    without.generation = 2;
    for (packet, before) in flows.iter().zip(&before) {
        let after = nic_of(packet, &mut state, &without);
        assert_ne!(after, NicId(1));
        if *before != NicId(1) {
            assert_eq!(after, *before, "a flow of a live NIC moved");
        }
    }
    all.generation = 3;
    let again: Vec<_> = flows.iter().map(|p| nic_of(p, &mut state, &all)).collect();
    assert_eq!(before, again, "a NIC that returns takes back just what it had");
}

#[test]
fn a_full_table_makes_room_from_remembered_ways_and_keeps_open_rewritten_flows() {
    let (mut state, mut view) = (state(4), view([true; 3]));
    view.source.ports = (61000..=61100).collect();
    for port in 40000..40004 {
        run_held(&tcp((VIPA, port), (RULED, 443), true), &mut state, &view);
        run_held(&tcp((VIPA, port), (RULED, 443), false), &mut state, &view);
    }
    assert_eq!(state.flows.rewritten(), 4);
    let fifth = run_held(&tcp((VIPA, 40009), (RULED, 443), true), &mut state, &view);
    assert_eq!(fifth.verdict, Verdict::Drop(DropReason::FlowTableFull));
    let plain = run(&tcp((VIPA, 40009), (OTHER, 80), true), TUN, &mut state, &view);
    assert!(matches!(plain.verdict, Verdict::Transmit { .. }), "goes without an entry");
    assert_eq!(state.flows.rewritten(), 4);
}

#[test]
fn a_silent_flow_is_swept_and_the_hold_is_told() {
    let (mut state, view) = (state(8), view([true; 3]));
    run_held(&tcp((VIPA, 40000), (RULED, 443), true), &mut state, &view);
    let mut released = Vec::new();
    state.flows.sweep(8, Millis(NOW.0 + 60_000), |flow| released.push(flow));
    assert!(released.is_empty());
    state.flows.sweep(8, Millis(NOW.0 + 80_000), |flow| released.push(flow));
    assert_eq!(
        released.iter().map(|flow| flow.original.source().port).collect::<Vec<_>>(),
        [40000]
    );
    assert!(state.flows.is_empty());
}

#[test]
fn with_two_workers_a_rewritten_flow_has_one_owner() {
    let view = view([true; 3]);
    let mut owners = [0, 0];
    for port in 40000..40050 {
        let syn = tcp((VIPA, port), (RULED, 443), true);
        let verdicts = [0, 1].map(|number| {
            let mut state = State { worker: WorkerId(number), workers: 2, ..state(16) };
            run_held(&syn, &mut state, &view).verdict
        });
        match verdicts {
            [Verdict::Transmit { .. }, Verdict::Punt(WorkerId(0))] => owners[0] += 1,
            [Verdict::Punt(WorkerId(1)), Verdict::Transmit { .. }] => owners[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(owners[0] > 5 && owners[1] > 5, "{owners:?}");
}

/// A segment in the middle of a connection comes to a worker that does not own the flow: the adapter's queues
/// follow a flow a moment late. Only the owner knows whether it is a rewritten flow or an answer.
#[test]
fn the_middle_of_a_connection_that_a_rule_could_have_rewritten_goes_to_its_owner() {
    let view = view([true; 3]);
    for port in 40000..40020 {
        let segment = tcp((VIPA, port), (RULED, 443), false);
        let syn = tcp((VIPA, port), (RULED, 443), true);
        let mut workers =
            [0, 1].map(|number| State { worker: WorkerId(number), workers: 2, ..state(16) });
        let is_owner = |state: &mut State| {
            matches!(run_held(&syn, state, &view).verdict, Verdict::Transmit { .. })
        };
        let [first, second] = &mut workers;
        let owner = if is_owner(first) { 0 } else { 1 };
        assert_eq!(is_owner(second), owner == 1, "one owner");

        let stranger = run(&segment, TUN, &mut workers[1 - owner], &view);
        assert_eq!(stranger.verdict, Verdict::Punt(WorkerId(owner as u8)));
        assert_eq!(stranger.packet(), segment, "a frame for another worker is untouched");
        let owned = run(&segment, TUN, &mut workers[owner], &view);
        assert_eq!(assert_checksum(&owned).source, IpAddr::from(SECOND));
    }
}

#[test]
fn answers_and_what_no_rule_would_change_stay_with_the_worker_that_met_them() {
    let view = view([true; 3]);
    let mut syn_ack = Vec::new();
    PacketBuilder::ipv4(VIPA, RULED, 64)
        .tcp(443, 50000, 1, 100)
        .syn()
        .ack(7)
        .write(&mut syn_ack, b"")
        .expect("a packet");
    let answer_goes_on = tcp((VIPA, 443), (RULED, 50000), false);
    let unruled = tcp((VIPA, 40000), (OTHER, 80), false);
    for number in [0, 1] {
        let mut state = State { worker: WorkerId(number), workers: 2, ..state(16) };
        for packet in [&syn_ack, &answer_goes_on, &unruled] {
            let frame = run(packet, TUN, &mut state, &view);
            assert!(matches!(frame.verdict, Verdict::Transmit { .. }), "{:?}", frame.verdict);
            assert_eq!(frame.packet(), packet.as_slice());
        }
    }
}

#[test]
fn a_reply_goes_to_the_worker_whose_port_it_is() {
    let view = view([true; 3]);
    for port in [61000, 61001] {
        let reply = tcp((RULED, 443), (SECOND, port), false);
        for number in [0, 1] {
            let mut state = State { worker: WorkerId(number), workers: 2, ..state(16) };
            let verdict = run(&reply, Ingress::Nic(NicId(0)), &mut state, &view).verdict;
            let owner = (port % 2) as u8;
            let wanted = if owner == number {
                Verdict::Drop(DropReason::NoFlow)
            } else {
                Verdict::Punt(WorkerId(owner))
            };
            assert_eq!(verdict, wanted);
        }
    }
}

proptest! {
    #[test]
    fn rendezvous_moves_only_what_it_must(flow: u64, dead in 0u8..3) {
        let hops: Vec<_> = (0..3).map(|n| NextHop { nic: NicId(n), gateway: Some(gateway(n)) }).collect();
        let all = spread::choose(&hops, &view([true; 3]), flow).expect("a hop");
        let mut live = [true; 3];
        live[usize::from(dead)] = false;
        let rest = spread::choose(&hops, &view(live), flow).expect("a hop");
        prop_assert_ne!(rest.nic, NicId(dead));
        if all.nic != NicId(dead) { prop_assert_eq!(all, rest); }
    }

    #[test]
    fn the_hash_of_a_flow_is_the_same_both_ways(a: [u8; 4], b: [u8; 4], p: u16, q: u16) {
        let there = Headers::parse(&tcp((a, p), (b, q), true)).expect("headers");
        let back = Headers::parse(&tcp((b, q), (a, p), true)).expect("headers");
        prop_assert_eq!(spread::symmetric_hash(&there), spread::symmetric_hash(&back));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), from_nic: bool) {
        let ingress = if from_nic { Ingress::Nic(NicId(0)) } else { TUN };
        run(&bytes, ingress, &mut state(4), &view([true; 3]));
    }

    /// The table against the obvious model of it, through insertions, deletions and look-ups that collide.
    #[test]
    fn the_flow_table_agrees_with_a_map(steps in proptest::collection::vec((any::<bool>(), 0u16..40), 1..400)) {
        use vipa::forward::flow::{Direction, Flow, Key, Side};
        use vipa::forward::rewrite::Endpoint;
        let mut flows = state(64).flows;
        let mut model = std::collections::HashMap::new();
        let key = |n: u16| {
            let local = Endpoint { address: VIPA.into(), port: n };
            Key::new(local, Endpoint { address: OTHER.into(), port: 80 }, 6, Side::Tun)
        };
        let reply = |n: u16| {
            let wire = Endpoint { address: SECOND.into(), port: 61000 + n };
            Key::new(Endpoint { address: OTHER.into(), port: 80 }, wire, 6, Side::Nic)
        };
        for (insert, n) in steps {
            if insert && !model.contains_key(&n) {
                let wire = Endpoint { address: SECOND.into(), port: 61000 + n };
                let flow = Flow { rewritten: Some(wire), has_reply_key: true, is_forwarded: false };
                model.insert(n, flows.insert(&key(n), flow, NOW).expect("room").0);
            } else if !insert && let Some(id) = model.remove(&n) {
                flows.remove(id);
            }
            for n in 0..40 {
                let found = |direction| model.get(&n).map(|id| (*id, direction));
                prop_assert_eq!(flows.find(&key(n)), found(Direction::Original));
                prop_assert_eq!(flows.find(&reply(n)), found(Direction::Reply));
            }
            prop_assert_eq!(flows.len() as usize, model.len());
        }
    }
}

#[test]
fn weights_share_the_flows() {
    let mut view = view([true; 3]);
    view.nics[2].weight = 2;
    let hops: Vec<_> = (0..3).map(|n| NextHop { nic: NicId(n), gateway: None }).collect();
    let mut counts = [0u32; 3];
    for flow in 0..40_000u64 {
        counts[spread::choose(&hops, &view, flow).expect("a hop").nic.index()] += 1;
    }
    let [a, b, c] = counts.map(|count| f64::from(count) / 10_000.0);
    assert!(
        (a - 1.0).abs() < 0.05 && (b - 1.0).abs() < 0.05 && (c - 2.0).abs() < 0.07,
        "{counts:?}"
    );
}

#[test]
fn only_live_nics_of_the_lowest_metric_carry_traffic() {
    let mut view = view([true, true, true]);
    view.nics[0].metric = 5;
    view.nics[1].metric = 5;
    let hops: Vec<_> = (0..3).map(|n| NextHop { nic: NicId(n), gateway: None }).collect();
    assert!(
        (0..100).all(|flow| spread::choose(&hops, &view, flow).map(|h| h.nic) == Some(NicId(2)))
    );
    view.nics[2].is_live = false;
    assert!(
        (0..100).all(|flow| spread::choose(&hops, &view, flow).map(|h| h.nic) != Some(NicId(2)))
    );
}
