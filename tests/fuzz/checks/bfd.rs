//! What a neighbour may send to BFD, signed or not: any packets at all. Nothing that is not signed with our key moves a session that
//! has one, and what is sent back is what we would read.

use std::time::{Duration, Instant};

use vipa::path::State;
use vipa::path::bfd::{Key, Session, Settings};
use vipa::wire::bfd;

/// The first byte chooses whether there is a key; then each packet has its length in one byte, and how many 10 ms pass before it in
/// another.
pub(crate) fn check(data: &[u8]) {
    let Some((first, mut rest)) = data.split_first() else { return };
    let key = Key { id: 1, secret: b"secret".to_vec(), is_meticulous: first & 2 != 0 };
    let settings = Settings { key: (first & 1 != 0).then_some(key), ..Settings::default() };
    let mut now = Instant::now();
    let mut session = Session::new(&settings, 7, first & 4 != 0, 1, now);
    let mut taken = 0;
    for _ in 0..64 {
        let [length, wait, tail @ ..] = rest else { break };
        let (packet, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = tail;
        now += Duration::from_millis(10 * u64::from(*wait));
        if let Ok((packet, signed)) = bfd::parse(packet).map(|(p, signed)| ((p, packet), signed))
            && session.receive(&packet.0, &signed, packet.1, now).is_ok()
        {
            taken += 1;
        }
        if let Some(sent) = session.tick(now) {
            let (ours, _) = bfd::parse(&sent).expect("what we send we would read");
            assert_eq!((ours.my, ours.required_echo), (7, 0));
            assert!(!(ours.is_poll && ours.is_final));
        }
        assert!(session.tick(now).is_none(), "one packet at a time");
    }
    if taken == 0 {
        assert_ne!(session.state(), State::Up);
    }
}
