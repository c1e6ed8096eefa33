//! The flow file's words: a table adopted from whatever a dead process left there is a whole one. The fuzzer fills a
//! table, spoils its words, has it adopted, and goes on with it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use vipa::forward::flow::{Direction, Flow, FlowTable, Key, Millis, Shape, Side};
use vipa::forward::rewrite::Endpoint;

use super::input::Input;
use super::network;

const SEED: u64 = 7;
const STEPS: usize = 256;

pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let words = network::words(0, usize::from(input.pick(&[0u8, 1, 2, 5, 16, 33])));
    let (mut table, mut now) = (
        FlowTable::adopt(words, Shape::both((words.len() / Shape::both(1).words()) as u32), SEED).0,
        Millis(1),
    );
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.byte() & 7 {
            0..=2 => begin(&mut input, &mut table, now),
            3 => {
                if let Some((id, _)) = table.find(&key(&mut input)) {
                    let _ = table.remove(id);
                }
            }
            4 => {
                now.0 = now.0.saturating_add(u64::from(input.word()) << (input.byte() & 63));
                table.sweep(u32::from(input.byte()), now, |_| {});
            }
            5 => {
                if let Some((id, _)) = table.find(&key(&mut input)) {
                    table.set_held(id);
                }
            }
            _ => {
                // The process is dead; nobody else writes.
                drop(table);
                spoil(&mut input, words);
                table = adopted(words);
            }
        }
        whole(&mut table);
    }
}

fn address(input: &mut Input<'_>) -> IpAddr {
    match input.byte() {
        last @ 0..0x80 => IpAddr::from([10, 0, 0, last & 3]),
        last => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last & 3)]),
    }
}

fn end(input: &mut Input<'_>) -> Endpoint {
    Endpoint { address: address(input), port: u16::from(input.byte() & 3) }
}

fn key(input: &mut Input<'_>) -> Key {
    Key::new(end(input), end(input), input.pick(&[1, 6, 17, 58]), Side::Tun)
}

/// As the pipeline does: what is known already is not begun again.
fn begin(input: &mut Input<'_>, table: &mut FlowTable, now: Millis) {
    let (key, wire, choice) = (key(input), end(input), input.byte());
    let reply = Key::new(key.destination(), wire, key.protocol(), Side::Nic);
    let is_of_one_family = [key.destination(), wire]
        .iter()
        .all(|end| end.address.is_ipv4() == key.source().address.is_ipv4());
    if !is_of_one_family || table.find(&key).is_some() || table.find(&reply).is_some() {
        return;
    }
    let is_rewritten = choice & 1 != 0;
    let flow = Flow {
        rewritten: is_rewritten.then_some(wire),
        has_reply_key: is_rewritten && choice & 2 != 0,
        is_forwarded: choice & 4 != 0,
    };
    if let Ok((id, _)) = table.insert(&key, flow, now) {
        assert_eq!(table.find(&key), Some((id, Direction::Original)));
        assert_eq!(table.original(id), key);
        assert_eq!(table.rewritten_source(id), flow.rewritten);
        assert_eq!(table.find(&reply), flow.has_reply_key.then_some((id, Direction::Reply)));
    }
}

/// Words as no living process writes them.
fn spoil(input: &mut Input<'_>, words: &[AtomicU64]) {
    for _ in 0..input.byte() & 7 {
        let (at, choice) = (usize::from(input.word()), input.byte());
        let Some(word) = words.get(at % words.len().max(1)) else { return };
        let was = word.load(Ordering::Relaxed);
        let becomes = match choice & 3 {
            0 => input.long(),
            1 => was ^ 1 << (choice >> 2),
            2 => was ^ u64::from(input.word()),
            _ => words[usize::from(input.word()) % words.len()].load(Ordering::Relaxed),
        };
        word.store(becomes, Ordering::Relaxed);
    }
}

fn adopted(words: &'static [AtomicU64]) -> FlowTable {
    let (table, torn) =
        FlowTable::adopt(words, Shape::both((words.len() / Shape::both(1).words()) as u32), SEED);
    assert!(torn <= table.capacity() as usize);
    assert_eq!(table.rewritten(), table.len());
    table
}

/// Every flow is found by its keys, and the counts are right.
fn whole(table: &mut FlowTable) {
    assert!(table.len() <= table.capacity() && table.rewritten() <= table.len());
    let mut held = 0;
    for flow in table.held_flows() {
        let (id, _) = table.find(&flow.original).expect("a flow is found by its key");
        assert_eq!(table.rewritten_flow(id), flow);
        let (remote, protocol) = (flow.original.destination(), flow.original.protocol());
        let reply = Key::new(remote, flow.wire, protocol, Side::Nic);
        assert_eq!(table.find(&reply), Some((id, Direction::Reply)));
        held += 1;
    }
    assert!(held <= table.rewritten());
}
