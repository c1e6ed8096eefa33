//! SYN floods (RFC 4987): SYNs from spoofed sources, each of which makes a half-open flow here and work for a server, which answers
//! several times, and nobody hears it.
//!
//! A client that is there sends its SYN again, after a second (RFC 6298 section 2.1) and by the same number; who spoofs his source does
//! not learn that it was not answered. So while a service is *flooded*, the first SYN is dropped and remembered, in a table that never
//! grows, and the same SYN is taken when it comes again. Connections that are open are not touched, and nothing of this is looked at for
//! their packets.
//!
//! Flooded is a service of whose connections many were not opened within a quarter of a second: [`Level`]. What takes longer and is opened
//! at last does not count, nor does what is on its way, up to some thousands at once. A worker whose services are flooded together, each a
//! little, takes them all for flooded.
//!
//! What this does not help against: who sends every SYN twice, at the right distance, gets half of them through, to where half-open flows
//! make room for each other ([`super::flow`]).

use super::flow::Millis;
use super::preferred::ServiceId;

/// Sooner no client sends its SYN again, in milliseconds.
pub(super) const PATIENCE: u64 = 500;

/// Connections are counted by slices of so many milliseconds …
const SLICE: u64 = 64;
/// … and are late so many slices after they began.
const SLICES: usize = 4;

/// Bounds of a level.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Late connections that are forgotten in each slice: about 1,000 in a second.
    forgotten: i64,
    /// More that are on their way at once count as late already, so that a fast flood is known before it is a quarter of a second old.
    under_way: i64,
    /// So many late ones are a flood …
    flood: i64,
    /// … until no more are left than these.
    calm: i64,
    /// More are not counted: it ends within seconds of the last SYN.
    most: i64,
}

const OF_ONE: Bounds =
    Bounds { forgotten: 64, under_way: 6_144, flood: 2_048, calm: 1_024, most: 4_096 };
/// Of all the services that are not flooded themselves.
const OF_ALL: Bounds =
    Bounds { forgotten: 256, under_way: 24_576, flood: 8_192, calm: 4_096, most: 16_384 };

/// How many connections were not opened in time, of late.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    /// Below zero: so many of the young ones are open already.
    late: i64,
    young: [u32; SLICES],
    slice: u64,
    is_flooded: bool,
}

impl Level {
    /// The time passes: the young get old. One that goes back changes nothing.
    fn pass(&mut self, now: Millis, bounds: Bounds) {
        let slice = now.0 / SLICE;
        let passed = slice.saturating_sub(self.slice);
        for step in 1..=passed.min(SLICES as u64) {
            let due = &mut self.young[((self.slice + step) % SLICES as u64) as usize];
            self.late += i64::from(std::mem::take(due));
        }
        self.slice += passed;
        let forgotten = bounds.forgotten.saturating_mul(passed.min(1 << 20) as i64);
        if self.late > 0 {
            self.late = (self.late.min(bounds.most) - forgotten).max(0);
        }
    }

    /// Is it flooded? Says whether it is that just now.
    fn judge(&mut self, bounds: Bounds) -> bool {
        let least = if self.is_flooded { bounds.calm + 1 } else { bounds.flood };
        let late = self.late.max(self.late + self.young() - bounds.under_way);
        let was_flooded = std::mem::replace(&mut self.is_flooded, late >= least);
        self.is_flooded && !was_flooded
    }

    /// What is told apart from now on counts here no more. Both levels have passed to the same time.
    fn excuse(&mut self, other: &Level) {
        self.late = (self.late - other.late).max(0);
        for (own, other) in self.young.iter_mut().zip(other.young) {
            *own = own.saturating_sub(other);
        }
    }

    /// One more began.
    fn began(&mut self) {
        let young = &mut self.young[(self.slice % SLICES as u64) as usize];
        *young = young.saturating_add(1);
    }

    /// One was opened.
    fn opened(&mut self) {
        self.late = (self.late - 1).max(-self.young());
    }

    fn young(&self) -> i64 {
        self.young.iter().map(|count| i64::from(*count)).sum()
    }
}

/// What a worker knows of floods.
#[derive(Debug, Default)]
pub struct Floods {
    /// By service.
    levels: Vec<Level>,
    all: Level,
    seen: Seen,
}

impl Floods {
    /// May this SYN, which no flow knows, begin a connection to `service`? `syn` is a hash of its ends and number, keyed by what
    /// nobody else knows.
    pub fn admits(&mut self, service: ServiceId, syn: u64, now: Millis) -> bool {
        if !self.is_flooded(service, now) {
            self.began(service);
            return true;
        }
        if self.seen.is_again(syn, now) {
            return true;
        }
        self.began(service);
        false
    }

    /// A SYN of a half-open flow comes again, and too soon for a client's: may it go on?
    pub fn admits_again(&mut self, service: ServiceId, now: Millis) -> bool {
        let is_flooded = self.is_flooded(service, now);
        self.began(service);
        !is_flooded
    }

    /// A connection of `service` was opened.
    pub fn opened(&mut self, service: ServiceId) {
        let Some(level) = self.levels.get_mut(usize::from(service.0)) else { return };
        level.opened();
        if !level.is_flooded {
            self.all.opened();
        }
    }

    /// Is it flooded?
    pub fn is_flooded(&mut self, service: ServiceId, now: Millis) -> bool {
        self.level(service);
        let Floods { levels, all, .. } = self;
        let level = &mut levels[usize::from(service.0)];
        Floods::look(level, all, now)
    }

    /// Services of which anything began, and whether each is flooded.
    pub fn services(&mut self, now: Millis) -> impl Iterator<Item = (ServiceId, bool)> {
        let Floods { levels, all, .. } = self;
        let levels = levels.iter_mut().enumerate();
        levels.map(move |(at, level)| (ServiceId(at as u16), Floods::look(level, all, now)))
    }

    fn look(level: &mut Level, all: &mut Level, now: Millis) -> bool {
        all.pass(now, OF_ALL);
        level.pass(now, OF_ONE);
        if level.judge(OF_ONE) {
            all.excuse(level);
        }
        all.judge(OF_ALL);
        level.is_flooded || all.is_flooded
    }

    fn began(&mut self, service: ServiceId) {
        let level = self.level(service);
        level.began();
        if !level.is_flooded {
            self.all.began();
        }
    }

    fn level(&mut self, service: ServiceId) -> &mut Level {
        let at = usize::from(service.0);
        if at >= self.levels.len() {
            self.levels.resize(at + 1, Level::default());
        }
        &mut self.levels[at]
    }
}

/// SYNs of one line of [`Seen`].
const WAYS: usize = 16;
/// Lines: 1 MiB in all. Of 100,000 SYNs a second it remembers those of the last two and a half.
const LINES: usize = 1 << 14;
/// Time is kept in units of so many milliseconds, by ten bits.
const UNIT: u64 = 64;
const UNITS: u32 = (1 << 10) - 1;
/// A SYN that comes again is a client's from half a second …
const SOONEST: u32 = 8;
/// … to eight seconds after the first.
const LATEST: u32 = 125;

/// SYNs that were dropped. The newest of each line are kept, so that what came within a time is there, whatever came after it. Nothing
/// of the memory is touched before the first flood.
#[derive(Debug)]
struct Seen {
    /// The newest first: the upper bits of a hash, never zero, and the time.
    lines: Vec<[u32; WAYS]>,
}

impl Default for Seen {
    fn default() -> Seen {
        Seen { lines: vec![[0; WAYS]; LINES] }
    }
}

impl Seen {
    /// Did it come before, as long ago as a client waits? It is remembered if not, and forgotten if so.
    fn is_again(&mut self, syn: u64, now: Millis) -> bool {
        let line = &mut self.lines[syn as usize % LINES];
        let mark = (syn >> 32) as u32 & !UNITS | (UNITS + 1);
        let time = (now.0 / UNIT) as u32 & UNITS;
        let at = line.iter().position(|one| one & !UNITS == mark);
        let age = at.map(|at| time.wrapping_sub(line[at]) & UNITS);
        match (at, age) {
            (Some(_), Some(..SOONEST)) => false,
            (Some(at), Some(SOONEST..=LATEST)) => {
                // The last one's place, so that what is older than it stays in order.
                line[at..].rotate_left(1);
                line[WAYS - 1] = 0;
                true
            }
            _ => {
                line[..=at.unwrap_or(WAYS - 1)].rotate_right(1);
                line[0] = mark | time;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
