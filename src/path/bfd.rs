//! A single-hop BFD session in asynchronous mode (RFC 5880 section 6, RFC 5881). Pure: packets and time in, packets and a state out.
//!
//! We speak first, ask for no demand mode, and take no echo packets ("Required Min Echo RX Interval" 0, section 6.8.9). A neighbour's
//! demand mode is honoured (6.8.7).

use std::time::{Duration, Instant};

use sha1::{Digest, Sha1};

use super::{Reject, State};
use crate::wire::bfd::{self, Diagnostic, Packet, Signature, Signed, State as Phase};

/// While a session is not up nobody sends faster (RFC 5880 section 6.8.3).
const SLOW: Duration = Duration::from_secs(1);
/// How long a session that was up before has to come up again, before the path is dead.
const GRACE: Duration = Duration::from_secs(3);

/// `[path.bfd]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// "Desired Min TX Interval".
    pub transmit: Duration,
    /// "Required Min RX Interval".
    pub receive: Duration,
    /// "Detect Mult".
    pub multiplier: u8,
    /// Packets are signed, and have to be.
    pub key: Option<Key>,
}

impl Default for Settings {
    fn default() -> Settings {
        let interval = Duration::from_millis(300);
        Settings { transmit: interval, receive: interval, multiplier: 3, key: None }
    }
}

/// Keyed SHA1 (RFC 5880 section 6.7.4).
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its number on the wire.
    pub id: u8,
    /// 1 to 20 bytes.
    pub secret: Vec<u8>,
    /// The sequence number rises with every packet.
    pub is_meticulous: bool,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

/// One session, named as in RFC 5880 section 6.8.1 where a variable of it is meant.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    session_state: Phase,
    remote_state: Phase,
    local_discr: u32,
    remote_discr: u32,
    local_diag: Diagnostic,
    remote_min_rx: Duration,
    remote_min_tx: Duration,
    remote_multiplier: u8,
    remote_demand: bool,
    /// bfd.XmitAuthSeq
    sequence: u32,
    /// bfd.RcvAuthSeq, once bfd.AuthSeqKnown
    heard_sequence: Option<u32>,
    /// A poll sequence of ours runs (section 6.5).
    is_polling: bool,
    /// The other polls: the next packet says so.
    owes_final: bool,
    next_send: Instant,
    /// Nothing heard until then is a loss.
    expires: Option<Instant>,
    /// A session that was up before counts as dead from then on, unless it is up.
    verdict_at: Option<Instant>,
    has_been_up: bool,
    seed: u64,
}

impl Session {
    /// A session of the number `local_discr`, not 0. `seed` spreads its packets and begins its sequence numbers.
    pub fn new(
        settings: &Settings,
        local_discr: u32,
        has_been_up: bool,
        seed: u64,
        now: Instant,
    ) -> Session {
        Session {
            settings: settings.clone(),
            session_state: Phase::Down,
            remote_state: Phase::Down,
            local_discr,
            remote_discr: 0,
            local_diag: Diagnostic::None,
            remote_min_rx: Duration::from_micros(1),
            remote_min_tx: Duration::ZERO,
            remote_multiplier: 0,
            remote_demand: false,
            sequence: seed as u32,
            heard_sequence: None,
            is_polling: false,
            owes_final: false,
            next_send: now,
            expires: None,
            verdict_at: has_been_up.then(|| now + GRACE),
            has_been_up: false,
            seed: seed | 1,
        }
    }

    /// bfd.LocalDiscr
    pub fn local_discr(&self) -> u32 {
        self.local_discr
    }

    /// What is known of the path. A neighbour that was taken down by its operator says nothing of it (RFC 5882 section 4.2).
    pub fn state(&self) -> State {
        match (self.session_state, self.remote_state) {
            (Phase::Up, _) => State::Up,
            (_, Phase::AdminDown) => State::Unknown,
            _ if self.has_been_up => State::Dead,
            _ => State::Unknown,
        }
    }

    /// When [`Session::tick`] has something to do.
    pub fn next_deadline(&self) -> Instant {
        let send = self.is_periodic().then_some(self.next_send);
        [send, self.expires, self.verdict_at].into_iter().flatten().min().unwrap_or(self.next_send)
    }

    /// Section 6.8.6, from the choice of the session on: `bytes` are the whole packet.
    ///
    /// # Errors
    /// Why it is discarded.
    pub fn receive(
        &mut self,
        packet: &Packet,
        signed: &Signed,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), Reject> {
        // What stands behind the packet in the datagram is not part of it.
        let length = bytes.get(3).map_or(0, |length| usize::from(*length));
        self.authenticate(signed, bytes.get(..length).ok_or(Reject::Malformed)?)?;
        self.remote_discr = packet.my;
        self.remote_state = packet.state;
        self.remote_demand = packet.is_demand;
        self.remote_min_rx = Duration::from_micros(packet.required_receive.into());
        self.remote_min_tx = Duration::from_micros(packet.desired_transmit.into());
        self.remote_multiplier = packet.multiplier;
        if packet.is_final {
            self.is_polling = false;
        }
        self.follow(packet.state, now);
        // Section 6.8.4: the detection time.
        let interval = self.settings.receive.max(self.remote_min_tx);
        self.expires = Some(now + interval * u32::from(self.remote_multiplier));
        if packet.is_poll {
            self.owes_final = true;
            self.next_send = now;
        }
        // The neighbour may take packets sooner now than when the next was put off.
        self.next_send = self.next_send.min(now + self.interval());
        Ok(())
    }

    /// The state machine of section 6.8.6.
    fn follow(&mut self, heard: Phase, now: Instant) {
        use Phase::{AdminDown, Down, Init, Up};
        if heard == AdminDown {
            // Until it is up again its silence means nothing.
            (self.has_been_up, self.verdict_at) = (false, None);
        }
        let (state, diag) = match (self.session_state, heard) {
            (AdminDown, _) => return,
            (Down, AdminDown) => return,
            (_, AdminDown) => (Down, Diagnostic::NeighbourDown),
            (Down, Down) => (Init, Diagnostic::None),
            (Down, Init) => (Up, Diagnostic::None),
            (Init, Init | Up) => (Up, Diagnostic::None),
            (Up, Down) => (Down, Diagnostic::NeighbourDown),
            _ => return,
        };
        self.enter(state, diag, now);
    }

    fn enter(&mut self, state: Phase, diag: Diagnostic, now: Instant) {
        if state == Phase::Up {
            self.has_been_up = true;
            self.verdict_at = None;
            // The times change with the state (section 6.8.3).
            self.is_polling = true;
        } else {
            self.is_polling = false;
        }
        (self.session_state, self.local_diag) = (state, diag);
        // Section 6.8.7: a change is told at once.
        self.next_send = now;
    }

    /// Does what is due; what is to be sent then, if anything.
    pub fn tick(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.expires.is_some_and(|at| at <= now) {
            self.expires = None;
            self.remote_discr = 0;
            // Section 6.8.1: bfd.AuthSeqKnown; twice the detection time would do.
            self.heard_sequence = None;
            if matches!(self.session_state, Phase::Init | Phase::Up) {
                self.remote_state = Phase::Down;
                self.enter(Phase::Down, Diagnostic::TimeExpired, now);
            }
        }
        if self.verdict_at.is_some_and(|at| at <= now) {
            self.verdict_at = None;
            self.has_been_up = true;
        }
        if now < self.next_send || !(self.is_periodic() || self.owes_final) {
            return None;
        }
        let spread = self.interval();
        // Section 6.8.7: up to 25 % less, and never more than 90 % if the multiplier is 1.
        let most = if self.settings.multiplier == 1 { 0.9 } else { 1.0 };
        self.next_send = now + spread.mul_f64(0.75 + (most - 0.75) * self.random());
        let is_final = std::mem::take(&mut self.owes_final);
        Some(self.packet(is_final))
    }

    /// Taken down by the operator (section 6.8.16): what is to be sent then. Neighbours keep the routes by us.
    pub fn withdraw(&mut self) -> Vec<u8> {
        (self.session_state, self.local_diag) = (Phase::AdminDown, Diagnostic::AdminDown);
        self.is_polling = false;
        self.packet(false)
    }

    fn packet(&mut self, is_final: bool) -> Vec<u8> {
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let packet = Packet {
            diagnostic: self.local_diag as u8,
            state: self.session_state,
            // Never both in one packet (section 6.5).
            is_poll: self.is_polling && !is_final,
            is_final,
            is_demand: false,
            multiplier: self.settings.multiplier,
            my: self.local_discr,
            your: self.remote_discr,
            desired_transmit: micros(self.desired_transmit()),
            required_receive: micros(self.settings.receive),
            required_echo: 0,
        };
        let Some(key) = &self.settings.key else { return packet.bytes(None) };
        self.sequence = self.sequence.wrapping_add(1);
        let mut signature = Signature {
            is_meticulous: key.is_meticulous,
            key: key.id,
            sequence: self.sequence,
            digest: [0; 20],
        };
        signature.digest = digest(&packet.bytes(Some(&signature)), &key.secret);
        packet.bytes(Some(&signature))
    }

    fn desired_transmit(&self) -> Duration {
        let wanted = self.settings.transmit;
        if self.session_state == Phase::Up { wanted } else { wanted.max(SLOW) }
    }

    /// Between two packets, before they are spread.
    fn interval(&self) -> Duration {
        self.desired_transmit().max(self.remote_min_rx)
    }

    /// Section 6.8.7: are packets sent unasked?
    fn is_periodic(&self) -> bool {
        let is_demanded = self.remote_demand
            && self.session_state == Phase::Up
            && self.remote_state == Phase::Up
            && !self.is_polling;
        !is_demanded && !self.remote_min_rx.is_zero() || self.owes_final
    }

    /// Section 6.7.4.
    fn authenticate(&mut self, signed: &Signed, bytes: &[u8]) -> Result<(), Reject> {
        let (key, signature) = match (&self.settings.key, signed) {
            (None, Signed::No) => return Ok(()),
            (Some(key), Signed::Sha1(signature)) => (key, signature),
            _ => return Err(Reject::Authentication),
        };
        if signature.key != key.id
            || signature.is_meticulous != key.is_meticulous
            || digest(bytes, &key.secret) != signature.digest
        {
            return Err(Reject::Authentication);
        }
        if let Some(last) = self.heard_sequence {
            let ahead = signature.sequence.wrapping_sub(last);
            let least = u32::from(key.is_meticulous);
            if !(least..=3 * u32::from(self.remote_multiplier)).contains(&ahead) {
                return Err(Reject::Replayed);
            }
        }
        self.heard_sequence = Some(signature.sequence);
        Ok(())
    }

    /// From 0 to 1 (xorshift).
    fn random(&mut self) -> f64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// SHA1 over the packet, with the secret where the digest stands.
fn digest(bytes: &[u8], secret: &[u8]) -> [u8; 20] {
    let mut bytes = bytes.to_vec();
    if let Some(place) = bfd::digest_mut(&mut bytes) {
        place.fill(0);
        for (to, from) in place.iter_mut().zip(secret) {
            *to = *from;
        }
    }
    Sha1::digest(&bytes).into()
}

#[cfg(test)]
mod tests;
