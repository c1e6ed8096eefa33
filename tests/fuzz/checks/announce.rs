//! What anybody on a link may claim of a VIPA, for as long as he likes: however much it is, no more is said of the VIPA than time and moves
//! give cause for, and what this host says itself is nobody's claim.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use vipa::announce::announcer::{Announcer, News, Spot};
use vipa::announce::{Place, Settings};
use vipa::forward::view::NicId;
use vipa::wire::ethernet::MacAddr;
use vipa::wire::neighbour::{Advertisement, Arp};

use super::input::Input;

const INTERVAL: Duration = Duration::from_secs(60);
/// The longer of the two bursts.
const BURST: u64 = 3;

fn mac(nic: u8) -> MacAddr {
    MacAddr([2, 0, 0, 1, nic, 2])
}

fn place(is_v6: bool) -> Place {
    let (vipa, subnet) =
        if is_v6 { ("2001:db8:1::50", "2001:db8:1::/64") } else { ("10.1.1.50", "10.1.1.0/24") };
    (vipa.parse().expect("an address"), subnet.parse().expect("a prefix"))
}

fn spots(home: u8) -> BTreeMap<Place, Spot> {
    let home = (home < 2).then(|| (NicId(home), mac(home)));
    let spot = Spot { home, nics: [NicId(0), NicId(1)].into() };
    [place(false), place(true)].map(|place| (place, spot.clone())).into()
}

/// A step: half seconds that pass, then what happens: another home, or bytes of ARP or of an advertisement, their length first.
pub(crate) fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let own: BTreeSet<MacAddr> = [mac(0), mac(1)].into();
    let start = Instant::now();
    let (mut now, mut home, mut moves) = (start, 0, 0);
    let mut announcer = Announcer::new(Settings { interval: INTERVAL });
    announcer.follow(&spots(home), &own, now);
    let mut settled: BTreeMap<Place, u64> = BTreeMap::new();
    for _ in 0..256 {
        if input.is_empty() {
            break;
        }
        now += Duration::from_millis(500 * u64::from(input.byte()));
        let nic = NicId(input.byte() % 3);
        let claim = match input.byte() % 4 {
            0 => {
                let next = input.byte() % 3;
                moves += u64::from(next != home);
                home = next;
                announcer.follow(&spots(home), &own, now);
                None
            }
            1 => {
                let length = usize::from(input.byte());
                Arp::parse(input.bytes(length))
                    .map(|arp| (IpAddr::from(arp.sender.1), arp.sender.0))
            }
            2 => {
                let length = usize::from(input.byte());
                let told = Advertisement::parse(input.bytes(length));
                told.and_then(|told| Some((IpAddr::from(told.target), told.mac?)))
            }
            _ => Some((place(input.byte() & 1 == 0).0, MacAddr([2, 0, 0, 1, input.byte(), 2]))),
        };
        if let Some((address, mac)) = claim {
            announcer.hear(nic, address, mac, now);
        }
        announcer.tick(now);
        assert!(announcer.next_deadline().is_none_or(|at| at > now), "all that was due is done");
        for message in announcer.take_messages() {
            assert!(home < 2 && (message.nic, message.mac) == (NicId(home), mac(home)));
        }
        for news in announcer.take_news() {
            if let News::Settled(place) = news {
                *settled.entry(place).or_default() += 1;
            }
        }
        for (place, one) in announcer.iter() {
            let settled = settled.get(place).copied().unwrap_or(0);
            let periods = (now - start).as_secs() / INTERVAL.as_secs();
            let cause = BURST * (1 + moves + settled) + (1 + settled) + periods;
            assert!(one.announced() <= cause, "{} times, cause for {cause}", one.announced());
            assert!(one.conflict().is_none_or(|conflict| !own.contains(&conflict.mac)));
        }
    }
}
