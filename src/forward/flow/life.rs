//! How long a flow lives: what its packets say of it, its time-outs, and which flow makes room for another.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;

use super::entries::{
    ANSWERED, CLIENT_ENDED, LIVE, OVER, PHASE_AT, REPLY_KEY, REWRITTEN, SEEN, SERVED, SERVED_BY,
    SERVER_ENDED,
};
use super::{Direction, Ended, Expected, FlowId, FlowTable, Millis, Phase, Rewritten, TableFull};
use crate::wire::ip::{self, Family};
use crate::wire::packet::{Headers, Layer4};

/// Entries looked at to find one to evict.
const EVICTION_LOOK: u32 = 32;
/// An open served flow may make room once it was silent for so long, in milliseconds.
const IDLE: u64 = 60_000;
/// A direct flow of datagrams, whose answers are not seen, is alive when its client still sends so long after it began, in milliseconds.
/// As conntrack has it, which takes for a stream what goes on for so long; a question that is asked again at once is none.
const GOES_ON: u32 = 2_000;
/// Flows that are half-open no more and are still remembered as such, before they are looked for.
const SLACK: usize = 64;

/// Half-open served flows of a family.
#[derive(Debug, Default)]
pub(super) struct Opening {
    pub(super) count: u32,
    /// In the order in which they began, by entry and stamp (0: of an earlier process); some are it no more.
    order: VecDeque<(FlowId, u32)>,
}

impl FlowTable {
    /// How far the flow has come.
    pub fn phase(&self, id: FlowId) -> Phase {
        match (self.flags(id) >> PHASE_AT) & 3 {
            0 => Phase::Opening,
            1 => Phase::Open,
            _ => Phase::Closing,
        }
    }

    /// A packet of a flow of this host passes: its time and phase follow.
    #[inline]
    pub fn touch(&mut self, id: FlowId, headers: &Headers, direction: Direction, now: Millis) {
        self.seen(id, now);
        let phase = self.phase(id);
        let next = match headers.layer4 {
            Layer4::Tcp { flags, .. } if flags.is_rst() || flags.is_fin() => Phase::Closing,
            Layer4::Tcp { flags, .. } if flags.is_bare_syn() => Phase::Opening,
            Layer4::Tcp { flags, .. } if flags.is_syn() => phase,
            Layer4::Tcp { .. } if phase == Phase::Closing => phase,
            Layer4::Tcp { .. } => Phase::Open,
            _ if direction == Direction::Reply => Phase::Open,
            _ => phase,
        };
        if next != phase {
            self.set_flags(id, 3 << PHASE_AT, (next as u32) << PHASE_AT);
        }
    }

    /// A packet of a served flow passes. It is open once the client has answered what the server answered; a
    /// direct one, whose answers are not seen, once the client says more than SYN, or after [`GOES_ON`]. A SYN on an open connection
    /// changes nothing: the server knows what to say to it (RFC 5961 section 4). Nor does a client's reset of what is not
    /// open: the server may have taken the SYN for one of an earlier connection with the same ends, of which it answers; the client
    /// resets that and sends its SYN again (RFC 9293 section 3.5.2, figure 9). Says whether it was opened just now.
    #[inline]
    pub fn touch_served(
        &mut self,
        id: FlowId,
        headers: &Headers,
        direction: Direction,
        now: Millis,
    ) -> bool {
        self.seen(id, now);
        let flags = self.flags(id);
        let may_open = flags & (ANSWERED | REPLY_KEY) != REPLY_KEY;
        let phase = self.phase(id);
        let is_original = direction == Direction::Original;
        let next = match headers.layer4 {
            Layer4::Tcp { flags, .. }
                if flags.is_rst() && is_original && phase == Phase::Opening =>
            {
                phase
            }
            Layer4::Tcp { flags, .. } if flags.is_rst() || flags.is_fin() => {
                self.says_its_last(id, direction, flags.is_rst());
                Phase::Closing
            }
            Layer4::Tcp { flags, .. } if phase == Phase::Opening => {
                let is_answer = is_original && !flags.is_syn();
                if is_answer && may_open { Phase::Open } else { phase }
            }
            Layer4::Tcp { .. } => phase,
            _ if direction == Direction::Reply => Phase::Open,
            _ if flags & REPLY_KEY == 0 && phase == Phase::Opening && self.goes_on(id, now) => {
                Phase::Open
            }
            _ => phase,
        };
        if direction == Direction::Reply && flags & ANSWERED == 0 {
            self.set_flags(id, ANSWERED, ANSWERED);
        }
        if next != phase {
            self.set_flags(id, 3 << PHASE_AT, (next as u32) << PHASE_AT);
            self.opening(id.family()).count -= u32::from(phase == Phase::Opening);
        }
        phase == Phase::Opening && next == Phase::Open
    }

    /// A direct flow of datagrams begins: nobody says what is to be expected next, so its time stands there.
    pub(super) fn begins(&mut self, id: FlowId, now: Millis) {
        self.set_expected(id, Expected { client: now.0 as u32, server: 0 });
    }

    fn goes_on(&self, id: FlowId, now: Millis) -> bool {
        (now.0 as u32).wrapping_sub(self.expected(id).client) >= GOES_ON
    }

    /// Have both ends of a served connection said their last?
    pub fn is_over(&self, id: FlowId) -> bool {
        self.flags(id) & OVER != 0
    }

    /// One end of a served connection sends a FIN or a RST.
    fn says_its_last(&mut self, id: FlowId, direction: Direction, is_reset: bool) {
        let flags = self.flags(id);
        if flags & OVER != 0 {
            return;
        }
        let said = match direction {
            Direction::Original => CLIENT_ENDED,
            Direction::Reply => SERVER_ENDED,
        };
        // Of a direct one the server is not heard.
        let all = if flags & REPLY_KEY != 0 { CLIENT_ENDED | SERVER_ENDED } else { CLIENT_ENDED };
        if !is_reset && (flags | said) & all != all {
            self.set_flags(id, said, said);
            return;
        }
        self.set_flags(id, said | OVER, said | OVER);
        // It was refused: a client does not get here before it is open.
        let has_failed = is_reset && self.phase(id) == Phase::Opening;
        let server = self.served_by(id);
        self.ended.extend(server.map(|(_, server)| Ended { server, has_failed }));
    }

    /// Looks at the next `count` entries and forgets those whose time is over; `released` is told each
    /// rewritten flow that had a reply key.
    pub fn sweep(&mut self, count: u32, now: Millis, mut released: impl FnMut(Rewritten)) {
        for family in Family::BOTH {
            for _ in 0..count.min(self.half(family).capacity()) {
                let id = FlowId::new(family, self.half_mut(family).advance());
                if self.flags(id) & LIVE != 0
                    && self.idle(id, now) > self.timeout(id)
                    && let Some(flow) = self.remove(id)
                {
                    released(flow);
                }
            }
        }
    }

    /// How long a flow may be silent, in milliseconds. RFC 5382 REQ-5 (TCP), RFC 4787 REQ-5 (UDP), RFC 5508
    /// REQ-1 (ICMP). Of a flow that is not rewritten only its way is remembered: a minute will do.
    fn timeout(&self, id: FlowId) -> u64 {
        let flags = self.flags(id);
        if flags & (REWRITTEN | SERVED) == 0 {
            return 60_000;
        }
        let is_served = flags & SERVED != 0;
        match (self.half(id.family()).protocol(id.at()), self.phase(id)) {
            // A client that is there answers within seconds; a SYN sent again begins anew.
            (ip::TCP, Phase::Opening) if is_served => 15_000,
            (ip::TCP, Phase::Opening) => 75_000,
            (ip::TCP, Phase::Open) => 7_440_000,
            (ip::TCP, Phase::Closing) => 120_000,
            (ip::ICMP | ip::ICMPV6, _) => 60_000,
            (_, Phase::Opening) if is_served && flags & REPLY_KEY != 0 => 30_000,
            _ => 300_000,
        }
    }

    /// Makes room for one more flow.
    pub(super) fn make_room(
        &mut self,
        family: Family,
        now: Millis,
    ) -> Result<Option<Rewritten>, TableFull> {
        if !self.half(family).is_full() {
            return Ok(None);
        }
        let victim = self.victim(family, now).ok_or(TableFull)?;
        self.evicted += 1;
        Ok(self.remove(victim))
    }

    /// Of the next entries the one that is missed least: a remembered way before all others, a closing or half-open
    /// flow before an open one; of equals the one silent longest. An open rewritten flow is never taken, an open
    /// served one only if it is idle.
    fn victim(&mut self, family: Family, now: Millis) -> Option<FlowId> {
        let mut best: Option<((u8, u64), FlowId)> = None;
        for _ in 0..EVICTION_LOOK.min(self.half(family).capacity()) {
            let id = FlowId::new(family, self.half_mut(family).advance());
            let flags = self.flags(id);
            let idle = self.idle(id, now);
            let rank = match self.phase(id) {
                _ if flags & (REWRITTEN | SERVED) == 0 => 4,
                Phase::Closing => 3,
                Phase::Opening => 2,
                Phase::Open if flags & SERVED != 0 && idle > IDLE => 1,
                Phase::Open => continue,
            };
            if best.is_none_or(|(highest, _)| (rank, idle) > highest) {
                best = Some(((rank, idle), id));
            }
        }
        best.map(|(_, id)| id)
    }

    /// The oldest half-open flow of a family makes room.
    pub(super) fn evict_half_open(&mut self, family: Family) {
        while let Some(oldest) = self.opening(family).order.pop_front() {
            if self.is_half_open(&oldest) {
                self.remove(oldest.0);
                self.evicted += 1;
                return;
            }
        }
    }

    /// A served flow is half-open, if it is.
    pub(super) fn opens(&mut self, id: FlowId) {
        if self.phase(id) != Phase::Opening {
            return;
        }
        let stamp = (self.word(id, SERVED_BY).load(Relaxed) >> 32) as u32;
        let opening = self.opening(id.family());
        opening.count += 1;
        opening.order.push_back((id, stamp));
        if opening.order.len() > 2 * opening.count as usize + SLACK {
            let mut order = std::mem::take(&mut opening.order);
            order.retain(|one| self.is_half_open(one));
            self.opening(id.family()).order = order;
        }
    }

    pub(super) fn opening(&mut self, family: Family) -> &mut Opening {
        &mut self.opening[usize::from(family == Family::V6)]
    }

    fn is_half_open(&self, (id, stamp): &(FlowId, u32)) -> bool {
        let is_it = (self.word(*id, SERVED_BY).load(Relaxed) >> 32) as u32 == *stamp;
        is_it
            && self.flags(*id) & (LIVE | SERVED) == LIVE | SERVED
            && self.phase(*id) == Phase::Opening
    }

    fn seen(&self, id: FlowId, now: Millis) {
        let seen = self.word(id, SEEN);
        if seen.load(Relaxed) != now.0 {
            seen.store(now.0, Relaxed);
        }
    }

    /// For how many milliseconds nothing of it has passed.
    pub(in crate::forward) fn idle(&self, id: FlowId, now: Millis) -> u64 {
        now.0.saturating_sub(self.word(id, SEEN).load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::atomic::AtomicU64;

    use super::super::{Key, Served, Shape, Side};
    use super::*;
    use crate::forward::preferred::{ServerId, ServiceId};
    use crate::forward::rewrite::Endpoint;

    const NOW: Millis = Millis(1_000);
    const SHAPE: Shape = Shape::both(64);
    /// Of each family's.
    const QUARTER: u32 = 16;

    fn words() -> &'static [AtomicU64] {
        (0..SHAPE.words()).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak()
    }

    fn end(family: Family, n: u32) -> Endpoint {
        let address = match family {
            Family::V4 => IpAddr::from((0x0a00_0000 | n).to_be_bytes()),
            Family::V6 => IpAddr::from(u128::from(n).to_be_bytes()),
        };
        Endpoint { address, port: 80 }
    }

    /// A flow of client number `n`, begun.
    fn begin(table: &mut FlowTable, family: Family, n: u32, is_direct: bool) -> FlowId {
        let key = Key::new(end(family, n), end(family, 1 << 20), ip::UDP, Side::Nic);
        let reply = Key::new(end(family, 2 << 20), end(family, n), ip::UDP, Side::Nic);
        let served = Served { service: ServiceId(0), server: ServerId(0), reply, is_direct };
        table.insert_served(&key, &served, NOW).expect("room").0
    }

    fn is_there(table: &FlowTable, family: Family, n: u32) -> bool {
        let key = Key::new(end(family, n), end(family, 1 << 20), ip::UDP, Side::Nic);
        table.find(&key).is_some()
    }

    #[test]
    fn half_open_flows_of_one_family_leave_those_of_the_other() {
        let mut table = FlowTable::fresh(words(), SHAPE, 7);
        for (flooded, other) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
            begin(&mut table, other, 5000, false);
            for n in 0..1000 {
                begin(&mut table, flooded, n, false);
            }
            assert!(is_there(&table, other, 5000), "{other:?}");
        }
        assert_eq!(table.half_open(), 2 * QUARTER);
    }

    #[test]
    fn half_open_flows_of_an_earlier_process_make_room_before_new_ones() {
        let words = words();
        let mut table = FlowTable::fresh(words, SHAPE, 7);
        for n in 0..QUARTER {
            begin(&mut table, Family::V4, n, false);
        }
        let (mut table, torn) = FlowTable::adopt(words, SHAPE, 7);
        assert_eq!((table.half_open(), torn), (QUARTER, 0));
        let first = begin(&mut table, Family::V4, 100, false);
        for n in 101..100 + QUARTER {
            begin(&mut table, Family::V4, n, false);
        }
        assert!(is_there(&table, Family::V4, 100));
        // Whose an adopted flow is becomes known later, and changes nothing of its age.
        table.set_served_by(first, ServiceId(1), ServerId(1));
        begin(&mut table, Family::V4, 200, false);
        assert!(!is_there(&table, Family::V4, 100), "the oldest");
        assert_eq!(table.half_open(), QUARTER);
    }

    #[test]
    fn what_is_half_open_no_more_is_not_remembered_as_such() {
        let mut table = FlowTable::fresh(words(), SHAPE, 7);
        begin(&mut table, Family::V4, 5000, true);
        for n in 0..10_000 {
            let id = begin(&mut table, Family::V4, n, false);
            table.remove(id);
        }
        assert!(table.opening(Family::V4).order.len() <= 2 + SLACK + 1);
        assert!(is_there(&table, Family::V4, 5000));
    }

    #[test]
    fn a_flow_whose_answers_do_not_pass_here_has_not_failed_without_them() {
        let mut table = FlowTable::fresh(words(), SHAPE, 7);
        for (is_direct, has_failed) in [(true, false), (false, true)] {
            let id = begin(&mut table, Family::V4, 1, is_direct);
            table.remove(id);
            let ended: Vec<bool> = table.take_ended().map(|ended| ended.has_failed).collect();
            assert_eq!(ended, [has_failed]);
        }
    }

    #[test]
    fn a_direct_flow_is_alive_once_its_client_goes_on_sending() {
        let mut table = FlowTable::fresh(words(), SHAPE, 7);
        let datagram = |n: u32| {
            let mut bytes = Vec::new();
            let (from, to): (u32, u32) = (0x0a00_0000 | n, 0x0a00_0000 | 1 << 20);
            etherparse::PacketBuilder::ipv4(from.to_be_bytes(), to.to_be_bytes(), 64)
                .udp(80, 80)
                .write(&mut bytes, b"")
                .expect("a datagram");
            Headers::parse(&bytes).expect("headers")
        };
        let say = |table: &mut FlowTable, id, n, after: u64| {
            let now = Millis(NOW.0 + after);
            table.touch_served(id, &datagram(n), Direction::Original, now);
        };
        // More of them than may be half-open, each with a client that sends ten times a second.
        for n in 0..2 * QUARTER {
            let id = begin(&mut table, Family::V4, n, true);
            for after in (0..2000).step_by(100) {
                say(&mut table, id, n, after);
                assert_eq!(table.phase(id), Phase::Opening, "after {after} ms");
            }
            say(&mut table, id, n, 2000);
            assert_eq!(table.phase(id), Phase::Open);
        }
        assert!((0..2 * QUARTER).all(|n| is_there(&table, Family::V4, n)));
        // Questions of one datagram make room for each other alone.
        for n in 1000..1000 + 2 * QUARTER {
            begin(&mut table, Family::V4, n, true);
        }
        assert_eq!(table.half_open(), QUARTER);
        assert!((0..2 * QUARTER).all(|n| is_there(&table, Family::V4, n)));
        // Where answers pass, a client that is not answered is not alive by saying it again.
        let id = begin(&mut table, Family::V6, 1, false);
        say(&mut table, id, 1, 60_000);
        assert_eq!(table.phase(id), Phase::Opening);
    }
}
