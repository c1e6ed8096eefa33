use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);

fn settings() -> Settings {
    let interval = 50 * MILLISECOND;
    Settings { transmit: interval, receive: interval, multiplier: 3, key: None }
}

fn key(id: u8, secret: &str, is_meticulous: bool) -> Key {
    Key { id, secret: secret.as_bytes().to_vec(), is_meticulous }
}

/// Two ends of a link and the time.
struct Link {
    ends: [Session; 2],
    start: Instant,
    now: Instant,
    /// Does what this end sends arrive?
    carries: [bool; 2],
    /// What each sent, and when.
    sent: [Vec<(Duration, Packet)>; 2],
    rejects: Vec<Reject>,
}

impl Link {
    fn new(a: Settings, b: Settings) -> Link {
        let now = Instant::now();
        let ends = [Session::new(&a, 11, false, 3, now), Session::new(&b, 22, false, 5, now)];
        let sent = [Vec::new(), Vec::new()];
        Link { ends, start: now, now, carries: [true; 2], sent, rejects: Vec::new() }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            for from in 0..2 {
                // Bounded: an end that sends for ever in one moment is wrong.
                for _ in 0..4 {
                    let Some(bytes) = self.ends[from].tick(self.now) else { break };
                    let (packet, signed) = bfd::parse(&bytes).expect("a packet");
                    self.sent[from].push((self.now - self.start, packet));
                    if self.carries[from] {
                        let to = &mut self.ends[1 - from];
                        self.rejects.extend(to.receive(&packet, &signed, &bytes, self.now).err());
                    }
                }
            }
            let next = self.ends.iter().map(Session::next_deadline).min().expect("two ends");
            self.now = next.max(self.now + MILLISECOND / 4).min(end);
        }
    }

    fn states(&self) -> [State; 2] {
        [self.ends[0].state(), self.ends[1].state()]
    }

    /// Forgets what was sent so far.
    fn up(a: Settings, b: Settings) -> Link {
        let mut link = Link::new(a, b);
        link.run(Duration::from_secs(4));
        assert_eq!(link.states(), [State::Up; 2]);
        link.sent = [Vec::new(), Vec::new()];
        link
    }
}

/// Section 6.8.3: not up, at most one packet a second, spread by a quarter; section 6.8.2: each at its negotiated pace when up.
#[test]
fn it_begins_slowly_and_goes_on_at_the_negotiated_pace() {
    let mut link = Link::new(settings(), Settings { receive: 80 * MILLISECOND, ..settings() });
    link.carries = [false; 2];
    link.run(Duration::from_secs(10));
    assert!((10..=14).contains(&link.sent[0].len()), "{}", link.sent[0].len());
    assert_eq!(link.states(), [State::Unknown; 2]);
    let mut link = Link::up(settings(), Settings { receive: 80 * MILLISECOND, ..settings() });
    link.run(Duration::from_secs(4));
    // The second takes one in 80 ms, the first one in 50 ms.
    assert!((50..=67).contains(&link.sent[0].len()), "{}", link.sent[0].len());
    assert!((80..=107).contains(&link.sent[1].len()), "{}", link.sent[1].len());
    assert!(link.rejects.is_empty());
}

/// Section 6.8.4.
#[test]
fn silence_for_the_detection_time_is_a_dead_path_and_it_heals() {
    let mut link = Link::up(settings(), settings());
    link.run(Duration::from_secs(1));
    link.carries = [false; 2];
    link.run(99 * MILLISECOND);
    assert_eq!(link.states(), [State::Up; 2]);
    link.run(52 * MILLISECOND);
    assert_eq!(link.states(), [State::Dead; 2]);
    let (_, last) = link.sent[0].last().expect("packets");
    assert_eq!((last.state, last.diagnostic), (Phase::Down, Diagnostic::TimeExpired as u8));
    assert_eq!(last.your, 0, "bfd.RemoteDiscr is forgotten");
    link.run(Duration::from_secs(10));
    link.carries = [true; 2];
    link.run(Duration::from_secs(3));
    assert_eq!(link.states(), [State::Up; 2]);
}

/// A path that is dead one way is dead: the end that hears nothing says so.
#[test]
fn one_dead_direction_is_told_by_the_other() {
    let mut link = Link::up(settings(), settings());
    link.run(Duration::from_secs(1));
    link.carries[0] = false;
    link.run(151 * MILLISECOND);
    assert_eq!(link.states(), [State::Dead; 2]);
    assert_eq!(link.ends[0].local_diag, Diagnostic::NeighbourDown);
    assert_eq!(link.ends[1].local_diag, Diagnostic::TimeExpired);
}

/// RFC 5882 section 4.2.
#[test]
fn a_neighbour_taken_down_by_its_operator_says_nothing_of_the_path() {
    let mut link = Link::up(settings(), settings());
    let bytes = link.ends[1].withdraw();
    let (packet, signed) = bfd::parse(&bytes).expect("a packet");
    assert_eq!((packet.state, packet.diagnostic), (Phase::AdminDown, 7));
    let now = link.now;
    link.ends[0].receive(&packet, &signed, &bytes, now).expect("taken");
    assert_eq!(link.ends[0].state(), State::Unknown);
    link.carries[1] = false;
    link.run(Duration::from_secs(5));
    assert_eq!(link.ends[0].state(), State::Unknown);
    // It comes back as a new session: not dead on its way up.
    link.ends[1] = Session::new(&settings(), 33, false, 9, link.now);
    link.carries = [true; 2];
    for _ in 0..400 {
        link.run(10 * MILLISECOND);
        assert_ne!(link.ends[0].state(), State::Dead);
    }
    assert_eq!(link.states(), [State::Up; 2]);
}

/// Section 6.5: a change of times is polled until it is confirmed, and never in a packet that confirms.
#[test]
fn a_poll_is_answered_at_once() {
    let mut link = Link::new(settings(), settings());
    link.run(Duration::from_secs(4));
    for sent in &link.sent {
        assert!(sent.iter().any(|(_, packet)| packet.is_poll), "its times changed when it came up");
        assert!(sent.iter().any(|(_, packet)| packet.is_final));
        assert!(!sent.iter().any(|(_, packet)| packet.is_poll && packet.is_final));
        assert!(!sent.last().expect("packets").1.is_poll, "confirmed");
    }
    let poll = Packet { is_poll: true, ..link.sent[1].last().expect("packets").1 };
    let now = link.now + MILLISECOND;
    link.ends[0].receive(&poll, &Signed::No, &poll.bytes(None), now).expect("taken");
    let answer = link.ends[0].tick(now).expect("an answer");
    assert!(bfd::parse(&answer).expect("a packet").0.is_final);
}

/// Section 6.8.7, and section 6.6: demand mode of the other, and "Required Min RX Interval" 0.
#[test]
fn a_neighbour_that_wants_no_packets_gets_none() {
    for change in [
        |packet: &mut Packet| packet.is_demand = true,
        |packet: &mut Packet| packet.required_receive = 0,
    ] {
        let mut link = Link::up(settings(), settings());
        link.run(Duration::from_secs(1));
        let mut packet = link.sent[1].last().expect("packets").1;
        (packet.is_poll, packet.is_final) = (false, false);
        change(&mut packet);
        link.carries = [true, false];
        link.sent[0].clear();
        for _ in 0..40 {
            // It goes on to tell that it lives.
            let now = link.now;
            link.ends[0].receive(&packet, &Signed::No, &packet.bytes(None), now).expect("taken");
            link.run(50 * MILLISECOND);
        }
        assert!(link.sent[0].len() <= 1, "{}", link.sent[0].len());
        assert_eq!(link.ends[0].state(), State::Up);
        let poll = Packet { is_poll: true, ..packet };
        let now = link.now;
        link.ends[0].receive(&poll, &Signed::No, &poll.bytes(None), now).expect("taken");
        assert!(link.ends[0].tick(now).is_some(), "a poll is answered all the same");
    }
}

/// Section 6.7.4.
#[test]
fn signed_by_one_who_knows_the_key() {
    for is_meticulous in [false, true] {
        let signed =
            |id, secret| Settings { key: Some(key(id, secret, is_meticulous)), ..settings() };
        let link = Link::up(signed(1, "secret"), signed(1, "secret"));
        assert!(link.rejects.is_empty(), "{:?}", link.rejects);
        for other in [signed(2, "secret"), signed(1, "Secret"), settings()] {
            let mut link = Link::new(signed(1, "secret"), other);
            link.run(Duration::from_secs(4));
            assert_eq!(link.states(), [State::Unknown; 2]);
            assert!(!link.rejects.is_empty());
            assert!(link.rejects.iter().all(|reject| *reject == Reject::Authentication));
        }
    }
}

#[test]
fn what_was_heard_before_is_not_heard_again() {
    let signed = |is_meticulous| Settings { key: Some(key(1, "x", is_meticulous)), ..settings() };
    for is_meticulous in [false, true] {
        let mut link = Link::up(signed(is_meticulous), signed(is_meticulous));
        let hear = |link: &mut Link, bytes: &[u8]| {
            let (packet, signed) = bfd::parse(bytes).expect("a packet");
            let now = link.now;
            link.ends[0].receive(&packet, &signed, bytes, now)
        };
        let old = link.ends[1].packet(false);
        assert_eq!(hear(&mut link, &old), Ok(()));
        // Plain keyed SHA1 may repeat a number, never go back.
        let again = if is_meticulous { Err(Reject::Replayed) } else { Ok(()) };
        assert_eq!(hear(&mut link, &old), again);
        let new = link.ends[1].packet(false);
        assert_eq!(hear(&mut link, &new), Ok(()));
        assert_eq!(hear(&mut link, &old), Err(Reject::Replayed));
        let mut forged = link.ends[1].packet(false);
        forged[12] ^= 1;
        assert_eq!(hear(&mut link, &forged), Err(Reject::Authentication));
    }
}

#[test]
fn after_a_loss_of_carrier_it_has_to_come_up_again() {
    let now = Instant::now();
    let mut session = Session::new(&settings(), 1, true, 1, now);
    assert_eq!(session.state(), State::Unknown);
    session.tick(now + GRACE - MILLISECOND);
    assert_eq!(session.state(), State::Unknown);
    session.tick(now + GRACE);
    assert_eq!(session.state(), State::Dead);
}
