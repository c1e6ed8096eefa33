//! A router that comes up after our request (RFC 2453 section 3.9.1): what it asks of everybody is answered and asked back.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use vipa::rip::daemon::GROUP;
use vipa::wire::rip::PORT;

use super::RIP;
use crate::fixture::{Bench, Setup, number, wait_until};

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

#[test]
fn a_router_that_asks_everybody_is_asked_back_until_it_has_told_us_alone() {
    let mut bench = Bench::prepare(&Setup::new(2).rip(RIP));
    let address = (Ipv4Addr::new(10, 1, 1, 1), PORT);
    let socket = bench.network.router.run(|| UdpSocket::bind(address)).expect("port 520");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    bench.start_forwarder();
    wait_until("it speaks RIP", || number(&bench.status()["rip"]["sent"]) > 0);
    let mut request = vec![REQUEST, 2, 0, 0];
    request.extend([0; 19]);
    request.push(16);
    let hears = || {
        let mut buffer = [0; 512];
        let (_, from) = socket.recv_from(&mut buffer).expect("a message");
        assert_eq!(from.to_string(), "10.1.1.2:520");
        buffer[0]
    };
    let says = |to, message: &[u8]| {
        let sent = socket.send_to(message, (to, PORT)).expect("a datagram");
        assert_eq!(sent, message.len());
    };
    let (asks, response) = (|| says(GROUP, &request), [RESPONSE, 2, 0, 0]);

    asks();
    assert_eq!([hears(), hears()], [RESPONSE, REQUEST]);
    says(GROUP, &response);
    asks();
    assert_eq!([hears(), hears()], [RESPONSE, REQUEST], "what all are told may be only news");
    says(Ipv4Addr::new(10, 1, 1, 2), &response);
    asks();
    asks();
    assert_eq!([hears(), hears()], [RESPONSE, RESPONSE]);
}
