use super::*;

const WEB: ServiceId = ServiceId(3);
const MAIL: ServiceId = ServiceId(1);

/// So many SYNs in each millisecond from `from` on to before `to`, none of which comes again; how many were taken.
fn flood(floods: &mut Floods, service: ServiceId, each: u64, (from, to): (u64, u64)) -> u64 {
    let syns = (from..to).flat_map(|now| (0..each).map(move |n| (now, n)));
    let syns = syns.map(|(now, n)| (Millis(now), hash(now << 20 | n << 8 | u64::from(service.0))));
    syns.filter(|(now, syn)| floods.admits(service, *syn, *now)).count() as u64
}

fn hash(n: u64) -> u64 {
    crate::forward::spread::mix(n ^ 0x5bd1_e995_0000_0000)
}

#[test]
fn a_flood_is_noticed_and_ends_within_seconds_of_its_last_syn() {
    let mut floods = Floods::default();
    // 10,000 in a second.
    let taken = flood(&mut floods, WEB, 10, (1_000, 11_000));
    assert!((2_048..6_000).contains(&taken), "{taken}");
    assert_eq!(flood(&mut floods, WEB, 10, (11_000, 12_000)), 0);
    assert!(floods.is_flooded(WEB, Millis(12_100)), "not over at once");
    assert!(floods.is_flooded(WEB, Millis(14_000)));
    assert!(!floods.is_flooded(WEB, Millis(17_000)));
    assert!(floods.admits(WEB, hash(u64::MAX), Millis(17_001)));
}

#[test]
fn a_fast_flood_is_noticed_before_its_connections_are_late() {
    let mut floods = Floods::default();
    let taken = flood(&mut floods, WEB, 100, (1_000, 2_000));
    assert!((6_144..=8_192).contains(&taken), "{taken}");
}

#[test]
fn what_a_service_refuses_or_loses_by_itself_is_no_flood() {
    let mut floods = Floods::default();
    assert_eq!(flood(&mut floods, WEB, 1, (1_000, 61_000)), 60_000, "1,000 in a second");
    // A server dies, and 2,000 clients try at once.
    assert_eq!(flood(&mut floods, WEB, 2_000, (62_000, 62_001)), 2_000);
    assert!(!floods.is_flooded(WEB, Millis(62_300)));
}

#[test]
fn connections_that_are_opened_are_no_flood_however_many_there_are() {
    // In so many milliseconds: within the quarter of a second, and later.
    for (round_trip, each) in [(0, 500), (100, 50), (300, 20)] {
        let mut floods = Floods::default();
        for now in 1_000..5_000 {
            for n in 0..each {
                assert!(floods.admits(WEB, hash(now << 20 | n), Millis(now)), "{round_trip} {now}");
                if now >= 1_000 + round_trip {
                    floods.opened(WEB);
                }
            }
        }
    }
}

#[test]
fn a_flood_among_connections_that_are_opened_is_noticed() {
    let mut floods = Floods::default();
    for now in 1_000..3_000 {
        for n in 0..50 {
            if floods.admits(WEB, hash(now << 20 | n), Millis(now)) && n < 40 {
                floods.opened(WEB);
            }
        }
    }
    assert!(floods.is_flooded(WEB, Millis(3_000)));
}

#[test]
fn a_flooded_service_leaves_the_others() {
    let mut floods = Floods::default();
    flood(&mut floods, WEB, 100, (1_000, 3_000));
    assert!(floods.is_flooded(WEB, Millis(3_000)) && !floods.is_flooded(MAIL, Millis(3_000)));
    assert_eq!(flood(&mut floods, MAIL, 1, (3_000, 3_100)), 100);
    let flooded = floods.services(Millis(3_100)).filter(|(_, is_flooded)| *is_flooded);
    assert_eq!(flooded.collect::<Vec<_>>(), [(WEB, true)]);
}

#[test]
fn services_that_are_flooded_much_leave_the_others_however_many_they_are() {
    let mut floods = Floods::default();
    for now in 1_000..3_000 {
        for n in 0..200 {
            let service = ServiceId(10 + (n % 4) as u16);
            floods.admits(service, hash(now << 20 | n), Millis(now));
        }
        assert!(floods.admits(MAIL, hash(now << 20 | 1 << 10), Millis(now)), "at {now}");
    }
}

#[test]
fn services_that_are_flooded_a_little_each_are_flooded_together() {
    let mut floods = Floods::default();
    for now in 1_000..4_000 {
        // 20 services, 1,000 in a second each.
        for service in 0..20 {
            floods.admits(ServiceId(service), hash(now << 20 | u64::from(service)), Millis(now));
        }
    }
    assert!((0..30).all(|service| floods.is_flooded(ServiceId(service), Millis(4_000))));
}

#[test]
fn the_same_syn_is_taken_when_it_comes_again_as_a_clients_does() {
    // The time that is kept goes round at each 65,536 ms.
    for (first, after) in [1_000, 2_000, 3_000, 7_000]
        .map(|after| [5_000, 64_600, 4_000_000].map(|first| (first, after)))
        .concat()
    {
        let mut floods = Floods::default();
        flood(&mut floods, WEB, 10, (first - 4_000, first));
        let syn = hash(u64::MAX);
        assert!(!floods.admits(WEB, syn, Millis(first)));
        // Sooner, it is not a client's.
        for soon in [0, 100, 400] {
            assert!(!floods.admits(WEB, syn, Millis(first + soon)), "{soon}");
        }
        flood(&mut floods, WEB, 10, (first, first + after));
        assert!(!floods.admits(WEB, syn ^ 1 << 63, Millis(first + after)), "another one");
        assert!(floods.admits(WEB, syn, Millis(first + after)), "{first}, after {after} ms");
        assert!(!floods.admits(WEB, syn, Millis(first + after + 1)), "once");
    }
}

#[test]
fn a_syn_is_forgotten_after_a_while() {
    let mut floods = Floods::default();
    let syn = hash(u64::MAX);
    flood(&mut floods, WEB, 10, (1_000, 5_000));
    assert!(!floods.admits(WEB, syn, Millis(5_000)));
    flood(&mut floods, WEB, 5, (5_000, 15_000));
    assert!(!floods.admits(WEB, syn, Millis(15_000)), "a first one again");
    assert!(floods.admits(WEB, syn, Millis(16_000)));
}

#[test]
fn a_hundred_thousand_in_a_second_push_no_client_out() {
    let mut floods = Floods::default();
    flood(&mut floods, WEB, 100, (1_000, 3_000));
    let clients = |now| (0..100).map(move |n| (hash(u64::MAX - n), Millis(now)));
    assert!(clients(3_000).all(|(syn, now)| !floods.admits(WEB, syn, now)));
    flood(&mut floods, WEB, 100, (3_000, 4_000));
    let back = clients(4_000).filter(|(syn, now)| floods.admits(WEB, *syn, *now)).count();
    assert_eq!(back, 100);
}

#[test]
fn one_spoofed_source_that_never_stops_is_a_flood_too() {
    let mut floods = Floods::default();
    let syns = (1_000..4_000).flat_map(|now| [now; 10]);
    let gone_on = syns.filter(|now| floods.admits_again(WEB, Millis(*now))).count();
    assert!((2_048..6_000).contains(&gone_on), "{gone_on}");
    assert!(floods.is_flooded(WEB, Millis(4_000)));
}

#[test]
fn a_clock_that_goes_back_or_far_ahead_harms_nothing() {
    let mut floods = Floods::default();
    flood(&mut floods, WEB, 10, (5_000, 10_000));
    flood(&mut floods, WEB, 10, (1_000, 2_000));
    assert!(floods.is_flooded(WEB, Millis(10_000)));
    assert!(!floods.is_flooded(WEB, Millis(u64::MAX)));
    floods.opened(WEB);
    assert!(floods.admits(WEB, 1, Millis(u64::MAX)));
}
