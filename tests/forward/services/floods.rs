//! Services that are flooded with SYNs: whose packets go on, and whose are dropped.

use super::*;

const SHED: Verdict = Verdict::Drop(DropReason::SynFlood);

/// A host of which so many SYNs a millisecond were asked for a second, each by another source.
fn flooded(mode: Mode, each: u32) -> Host {
    let mut host = Host::new(mode);
    host.state = state(1 << 14);
    flood(&mut host, each, 1_000);
    host
}

fn flood(host: &mut Host, each: u32, milliseconds: u64) {
    for _ in 0..milliseconds {
        for n in 0..each {
            let [_, a, b, c] = (host.now.0 as u32 * each + n).to_be_bytes();
            host.run(&segment(([198, a, b, c], 99), (VIPA, 80), SYN, (7, 0)), FROM_CLIENT);
        }
        host.now.0 += 1;
    }
}

fn goes_on(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Transmit { .. })
}

#[test]
fn a_client_of_a_flooded_service_is_taken_when_its_syn_comes_again() {
    for mode in [nat(), keep_client(), Mode::Direct] {
        let mut host = flooded(mode, 10);
        let syn = segment((CLIENT, 1000), (VIPA, 80), SYN, (100, 0));
        assert_eq!(host.run(&syn, FROM_CLIENT).verdict, SHED);
        flood(&mut host, 10, 1_000);
        assert!(goes_on(host.run(&syn, FROM_CLIENT).verdict));
        let other = segment((CLIENT, 1001), (VIPA, 80), SYN, (100, 0));
        assert_eq!(host.run(&other, FROM_CLIENT).verdict, SHED, "another port");
        let other = segment((CLIENT, 1001), (VIPA, 80), SYN, (101, 0));
        flood(&mut host, 10, 1_000);
        assert_eq!(host.run(&other, FROM_CLIENT).verdict, SHED, "another number");
    }
}

#[test]
fn a_flood_touches_no_open_connection_and_no_other_service() {
    let mut host = Host::new(nat());
    host.state = state(1 << 14);
    host.connect(1000);
    flood(&mut host, 10, 2_000);
    let data = segment((CLIENT, 1000), (VIPA, 80), ACK, (101, 501));
    assert!(goes_on(host.run(&data, FROM_CLIENT).verdict));
    let fin = segment((CLIENT, 1000), (VIPA, 80), FIN | ACK, (101, 501));
    assert!(goes_on(host.run(&fin, FROM_CLIENT).verdict));
    let elsewhere = segment((CLIENT, 1000), (VIPA, 5000), SYN, (100, 0));
    assert!(goes_on(host.run(&elsewhere, FROM_CLIENT).verdict));
    // This host's own clients are no flood.
    let own = segment((VIPA, 1000), (VIPA, 80), SYN, (100, 0));
    assert!(goes_on(host.run(&own, Ingress::Tun).verdict));
}

#[test]
fn the_same_syn_sent_on_and_on_reaches_the_server_as_often_as_a_clients() {
    // Whatever its number: behind the last one comes 0, which stands for none.
    for number in [100, u32::MAX] {
        let mut host = flooded(nat(), 10);
        let syn = segment((CLIENT, 1000), (VIPA, 80), SYN, (number, 0));
        host.run(&syn, FROM_CLIENT);
        flood(&mut host, 10, 1_000);
        assert!(goes_on(host.run(&syn, FROM_CLIENT).verdict));
        assert_eq!(host.run(&syn, FROM_CLIENT).verdict, SHED, "sooner than a client's");
        flood(&mut host, 10, 1_000);
        assert!(goes_on(host.run(&syn, FROM_CLIENT).verdict), "the server's answer was lost");
    }
}

#[test]
fn a_syn_that_is_not_taken_ends_no_connection() {
    let mut host = Host::new(nat());
    host.state = state(1 << 14);
    let seen = host.connect(1000);
    flood(&mut host, 10, 1_000);
    // The client has said its last, the server not yet.
    host.run(&segment((CLIENT, 1000), (VIPA, 80), FIN | ACK, (101, 501)), FROM_CLIENT);
    let syn = segment((CLIENT, 1000), (VIPA, 80), SYN, (900, 0));
    assert_eq!(host.run(&syn, FROM_CLIENT).verdict, SHED);
    let data = host.run(&segment((SERVERS[0], 8080), seen, ACK, (501, 102)), FROM_SERVER);
    assert!(goes_on(data.verdict));
    assert_eq!(destination_of(&data), (CLIENT.into(), 1000), "it is that connection's");
    // Taken, it is another one.
    flood(&mut host, 10, 1_000);
    assert!(goes_on(host.run(&syn, FROM_CLIENT).verdict));
}

#[test]
fn every_port_of_a_service_is_flooded_with_it() {
    let mut host = Host::new(nat());
    host.state = state(1 << 14);
    for now in 1_000..2_000 {
        host.now = Millis(now);
        for n in 0..10u16 {
            let source = ([198, 18, (now >> 8) as u8, now as u8], n);
            host.run(&segment(source, (VIPA, 5000 + n), SYN, (7, 0)), FROM_CLIENT);
        }
    }
    let syn = segment((CLIENT, 1000), (VIPA, 5009), SYN, (100, 0));
    assert_eq!(host.run(&syn, FROM_CLIENT).verdict, SHED);
}
