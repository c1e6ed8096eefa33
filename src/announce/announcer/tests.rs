use super::*;

const HOST: [MacAddr; 2] = [MacAddr([2, 0, 0, 1, 1, 2]), MacAddr([2, 0, 0, 1, 2, 2])];
const RIVAL: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x77]);
const V4: &str = "10.1.1.50";
const V6: &str = "2001:db8:1::50";

fn second() -> Duration {
    Duration::from_secs(1)
}

fn place(vipa: &str) -> Place {
    let subnet = if vipa == V4 { "10.1.1.0/24" } else { "2001:db8:1::/64" };
    (vipa.parse().expect("an address"), subnet.parse().expect("a prefix"))
}

/// Both VIPAs on the link of the first two NICs, at home with one of these.
fn spots(home: Option<u8>) -> BTreeMap<Place, Spot> {
    let home = home.map(|nic| (NicId(nic), HOST[usize::from(nic)]));
    let spot = Spot { home, nics: [NicId(0), NicId(1)].into() };
    [V4, V6].map(|vipa| (place(vipa), spot.clone())).into()
}

struct Play {
    announcer: Announcer,
    start: Instant,
    now: Instant,
}

impl Play {
    fn begin(interval: u64) -> Play {
        let now = Instant::now();
        let interval = Duration::from_secs(interval);
        let mut play = Play { announcer: Announcer::new(Settings { interval }), start: now, now };
        play.follow(Some(0));
        play
    }

    fn follow(&mut self, home: Option<u8>) {
        self.announcer.follow(&spots(home), &HOST.into(), self.now);
    }

    fn hear(&mut self, nic: u8, vipa: &str, mac: MacAddr) {
        self.announcer.hear(NicId(nic), place(vipa).0, mac, self.now);
    }

    /// What is said about a VIPA until so many seconds from now are over: when, and whether it is a question.
    fn said(&mut self, vipa: &str, seconds: u64) -> Vec<(u64, bool)> {
        let end = self.now + second() * seconds as u32;
        let mut said = Vec::new();
        loop {
            self.announcer.tick(self.now);
            for message in self.announcer.take_messages() {
                if message.place == place(vipa) {
                    said.push(((self.now - self.start).as_secs(), message.is_question));
                }
            }
            match self.announcer.next_deadline().filter(|at| *at <= end) {
                Some(at) => self.now = self.now.max(at),
                None => break,
            }
        }
        self.now = end;
        said
    }

    fn announced(&mut self, vipa: &str, seconds: u64) -> Vec<u64> {
        let said = self.said(vipa, seconds).into_iter();
        said.filter(|(_, is_question)| !is_question).map(|(at, _)| at).collect()
    }

    fn conflict(&self, vipa: &str) -> Option<Conflict> {
        self.announcer
            .iter()
            .find(|(at, _)| **at == place(vipa))
            .and_then(|(_, one)| one.conflict())
    }
}

/// RFC 5227 section 2.3: two announcements, two seconds apart. RFC 4861 section 7.2.6: up to three, a second apart.
#[test]
fn what_is_new_is_announced_in_a_burst_and_then_now_and_then() {
    assert_eq!(Play::begin(60).announced(V4, 150), [0, 2, 62, 122]);
    assert_eq!(Play::begin(60).announced(V6, 150), [0, 1, 2, 62, 122]);
}

#[test]
fn with_each_of_them_the_others_are_asked() {
    assert_eq!(
        Play::begin(60).said(V4, 70),
        [(0, false), (0, true), (2, false), (60, true), (62, false)]
    );
}

#[test]
fn without_an_interval_nothing_comes_after_the_burst() {
    let mut play = Play::begin(0);
    assert_eq!(play.said(V4, 1000), [(0, false), (0, true), (2, false)]);
    assert_eq!(play.announcer.next_deadline(), None);
}

#[test]
fn a_move_is_announced_by_the_new_home() {
    let mut play = Play::begin(60);
    play.said(V4, 10);
    play.follow(Some(1));
    play.announcer.tick(play.now);
    let messages = play.announcer.take_messages();
    assert_eq!(messages.len(), 4);
    assert!(messages.iter().all(|m| (m.nic, m.mac) == (NicId(1), HOST[1])));
    assert_eq!(play.announced(V4, 10), [12]);
    play.follow(Some(1));
    assert_eq!(play.announced(V4, 10), [0; 0], "no move");
}

#[test]
fn where_no_nic_has_carrier_nothing_is_said_until_one_has() {
    let mut play = Play::begin(60);
    play.said(V4, 1);
    play.follow(None);
    assert_eq!(play.said(V4, 100), []);
    play.follow(Some(0));
    assert_eq!(play.announced(V4, 3), [101, 103]);
}

#[test]
fn a_vipa_that_left_the_link_is_forgotten() {
    let mut play = Play::begin(60);
    play.hear(0, V4, RIVAL);
    play.announcer.follow(&BTreeMap::new(), &HOST.into(), play.now);
    assert_eq!(play.said(V4, 1000), []);
    assert_eq!(play.announcer.iter().count(), 0);
}

/// RFC 5227 section 2.4: a single announcement. Ours is the only one as long as the conflict lasts.
#[test]
fn a_vipa_is_defended_once_and_asked_for_until_nobody_else_answers() {
    let mut play = Play::begin(5);
    play.said(V4, 20);
    play.hear(1, V4, RIVAL);
    assert_eq!(play.said(V4, 3), [(20, false), (23, true)]);
    for at in [26, 29, 32, 35] {
        play.hear(0, V4, RIVAL);
        assert_eq!(play.said(V4, 3), [(at, true)]);
    }
    let conflict = play.conflict(V4).expect("it stands");
    assert_eq!((conflict.mac, conflict.nic, conflict.claims), (RIVAL, NicId(0), 5));
    assert_eq!(play.conflict(V6), None);
    // Last heard at 32.
    assert_eq!(play.announced(V4, 10), [42, 44]);
    assert_eq!(play.conflict(V4), None);
    let news = play.announcer.take_news();
    assert!(
        matches!(news[..], [News::Disputed(a, _), News::Settled(b)] if a == place(V4) && a == b),
        "{news:?}"
    );
}

#[test]
fn who_claims_in_a_burst_ends_it() {
    let mut play = Play::begin(60);
    assert_eq!(play.announced(V6, 1), [0, 1]);
    play.hear(0, V6, RIVAL);
    assert_eq!(play.announced(V6, 9), [1], "the defence, and what would have come at 2 does not");
}

#[test]
fn a_move_in_a_conflict_is_announced_all_the_same() {
    let mut play = Play::begin(60);
    play.said(V4, 5);
    play.hear(0, V4, RIVAL);
    play.said(V4, 1);
    play.follow(Some(1));
    assert_eq!(play.announced(V4, 4), [6, 8]);
    assert!(play.conflict(V4).is_some());
}

#[test]
fn our_own_frames_on_another_nic_of_the_link_are_no_claim() {
    let mut play = Play::begin(60);
    play.said(V4, 5);
    play.hear(1, V4, HOST[0]);
    play.hear(0, V4, HOST[1]);
    assert_eq!(play.conflict(V4), None);
    assert_eq!(play.said(V4, 3), []);
}

#[test]
fn a_claim_on_another_link_or_of_another_address_is_none_of_ours() {
    let mut play = Play::begin(60);
    play.hear(2, V4, RIVAL);
    play.announcer.hear(NicId(0), "10.1.1.77".parse().expect("an address"), RIVAL, play.now);
    assert_eq!((play.conflict(V4), play.conflict(V6)), (None, None));
}

#[test]
fn each_new_claimant_is_told_of_and_none_is_fought() {
    let mut play = Play::begin(0);
    play.said(V4, 5);
    for last in 0..200 {
        play.hear(0, V4, MacAddr([2, 0, 0, 0, 9, last]));
    }
    assert_eq!(play.announcer.take_news().len(), 200);
    assert_eq!(play.announced(V4, 5), [5]);
}
