//! BFD control packets (RFC 5880 section 4): a checked view over what came in, and a writer for what goes out.

/// UDP port of single-hop sessions (RFC 5881 section 4).
pub const PORT: u16 = 3784;
/// Bytes of a packet without authentication.
pub const HEADER: usize = 24;

const VERSION: u8 = 1;
const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const AUTHENTICATED: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;
/// Type, length, key id, reserved, sequence, digest (RFC 5880 section 4.4).
const SHA1_SECTION: usize = 28;
/// Where the digest stands.
const DIGEST_AT: usize = HEADER + 8;
const DIGEST: usize = 20;

/// State of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Held down by the operator: says nothing of the path.
    AdminDown,
    /// Nothing heard.
    Down,
    /// The other is heard, and has yet to hear us.
    Init,
    /// Each hears the other.
    Up,
}

impl State {
    fn of(bits: u8) -> State {
        match bits & 3 {
            0 => State::AdminDown,
            1 => State::Down,
            2 => State::Init,
            _ => State::Up,
        }
    }
}

/// Why a session left its state last, as far as we tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Diagnostic {
    /// Nothing to tell.
    None = 0,
    /// Nothing was heard for the detection time.
    TimeExpired = 1,
    /// The other said that it is down.
    NeighbourDown = 3,
    /// Taken down by the operator.
    AdminDown = 7,
}

/// A control packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Why the sender left its state last.
    pub diagnostic: u8,
    /// The sender's state.
    pub state: State,
    /// It wants its new times confirmed.
    pub is_poll: bool,
    /// It confirms ours.
    pub is_final: bool,
    /// It wants no packets while both are up.
    pub is_demand: bool,
    /// Packets that may be lost in a row.
    pub multiplier: u8,
    /// The sender's number of the session; not 0.
    pub my: u32,
    /// Our number of it; 0: not known yet.
    pub your: u32,
    /// Microseconds between packets that the sender would like to send.
    pub desired_transmit: u32,
    /// Microseconds between packets that it can take; 0: it wants none.
    pub required_receive: u32,
    /// Microseconds between echo packets that it can take; 0: none.
    pub required_echo: u32,
}

/// A keyed SHA1 section (RFC 5880 section 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Its sequence number rises with each packet.
    pub is_meticulous: bool,
    /// Which key.
    pub key: u8,
    /// Sequence number.
    pub sequence: u32,
    /// SHA1 over the packet, with the key in the digest's place.
    pub digest: [u8; DIGEST],
}

impl Signature {
    fn kind(self) -> u8 {
        if self.is_meticulous { 5 } else { 4 }
    }
}

/// How a packet that came in is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// Not at all.
    No,
    /// Keyed SHA1.
    Sha1(Signature),
    /// In a way that is not spoken here.
    Otherwise,
}

/// Why bytes are no packet (RFC 5880 section 6.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no BFD control packet")]
pub struct Malformed;

/// Checks what can be checked without a session.
///
/// # Errors
/// Another version, a length that does not fit, a multiplier or sender's number of zero, the multipoint bit, or no number of ours in a
/// state that needs one.
pub fn parse(bytes: &[u8]) -> Result<(Packet, Signed), Malformed> {
    let header: &[u8; HEADER] = bytes.first_chunk().ok_or(Malformed)?;
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let flags = header[1];
    let packet = Packet {
        diagnostic: header[0] & 0x1f,
        state: State::of(flags >> 6),
        is_poll: flags & POLL != 0,
        is_final: flags & FINAL != 0,
        is_demand: flags & DEMAND != 0,
        multiplier: header[2],
        my: word(4),
        your: word(8),
        desired_transmit: word(12),
        required_receive: word(16),
        required_echo: word(20),
    };
    let length = usize::from(header[3]);
    let is_signed = flags & AUTHENTICATED != 0;
    let least = if is_signed { HEADER + 2 } else { HEADER };
    let needs_ours = matches!(packet.state, State::Init | State::Up);
    let is_sound = header[0] >> 5 == VERSION
        && (least..=bytes.len()).contains(&length)
        && packet.multiplier != 0
        && flags & MULTIPOINT == 0
        && packet.my != 0
        && (packet.your != 0 || !needs_ours);
    if !is_sound {
        return Err(Malformed);
    }
    let signed = if is_signed { signature(&bytes[HEADER..length]) } else { Signed::No };
    Ok((packet, signed))
}

fn signature(section: &[u8]) -> Signed {
    let Ok(section) = <&[u8; SHA1_SECTION]>::try_from(section) else { return Signed::Otherwise };
    let [kind @ (4 | 5), 28, key, _, a, b, c, d, digest @ ..] = section else {
        return Signed::Otherwise;
    };
    Signed::Sha1(Signature {
        is_meticulous: *kind == 5,
        key: *key,
        sequence: u32::from_be_bytes([*a, *b, *c, *d]),
        digest: *digest,
    })
}

impl Packet {
    /// As bytes; with a signature, its digest as it is given.
    pub fn bytes(&self, signature: Option<&Signature>) -> Vec<u8> {
        let length = HEADER + if signature.is_some() { SHA1_SECTION } else { 0 };
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let mut bytes = vec![
            VERSION << 5 | self.diagnostic & 0x1f,
            (self.state as u8) << 6
                | flag(self.is_poll, POLL)
                | flag(self.is_final, FINAL)
                | flag(signature.is_some(), AUTHENTICATED)
                | flag(self.is_demand, DEMAND),
            self.multiplier,
            length as u8,
        ];
        for word in
            [self.my, self.your, self.desired_transmit, self.required_receive, self.required_echo]
        {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        if let Some(signature) = signature {
            bytes.extend_from_slice(&[signature.kind(), SHA1_SECTION as u8, signature.key, 0]);
            bytes.extend_from_slice(&signature.sequence.to_be_bytes());
            bytes.extend_from_slice(&signature.digest);
        }
        bytes
    }
}

/// Where the digest of a signed packet stands.
pub fn digest_mut(bytes: &mut [u8]) -> Option<&mut [u8]> {
    bytes.get_mut(DIGEST_AT..DIGEST_AT + DIGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Packet {
        Packet {
            diagnostic: 1,
            state: State::Up,
            is_poll: true,
            is_final: false,
            is_demand: true,
            multiplier: 3,
            my: 0x0102_0304,
            your: 0x0506_0708,
            desired_transmit: 50_000,
            required_receive: 60_000,
            required_echo: 0,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let signature =
            Signature { is_meticulous: true, key: 7, sequence: 99, digest: [0xab; DIGEST] };
        assert_eq!(parse(&packet().bytes(None)), Ok((packet(), Signed::No)));
        let bytes = packet().bytes(Some(&signature));
        assert_eq!(parse(&bytes), Ok((packet(), Signed::Sha1(signature))));
    }

    /// RFC 5880 section 4.1.
    #[test]
    fn each_field_has_its_place() {
        let bytes = packet().bytes(None);
        assert_eq!(bytes[..4], [0x21, 0xc0 | 0x20 | 0x02, 3, 24]);
        assert_eq!(bytes[4..12], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[12..16], 50_000u32.to_be_bytes());
    }

    /// RFC 5880 section 6.8.6, in its order.
    #[test]
    fn what_must_be_discarded_is() {
        let whole = packet().bytes(None);
        let with = |at: usize, value: u8| {
            let mut bytes = whole.clone();
            bytes[at] = value;
            parse(&bytes)
        };
        assert_eq!(with(0, 0x41), Err(Malformed), "another version");
        assert_eq!(with(3, 23), Err(Malformed), "shorter than a header");
        assert_eq!(with(1, 0xc4), Err(Malformed), "signed, and no room for it");
        assert_eq!(with(3, 25), Err(Malformed), "longer than what came");
        assert_eq!(with(2, 0), Err(Malformed), "multiplier");
        assert_eq!(with(1, 0xc1), Err(Malformed), "multipoint");
        let mut nobody = packet();
        nobody.my = 0;
        assert_eq!(parse(&nobody.bytes(None)), Err(Malformed));
        for (state, is_taken) in [
            (State::AdminDown, true),
            (State::Down, true),
            (State::Init, false),
            (State::Up, false),
        ] {
            let bytes = Packet { your: 0, state, ..packet() }.bytes(None);
            assert_eq!(parse(&bytes).is_ok(), is_taken, "{state:?}");
        }
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), Err(Malformed));
        }
    }

    #[test]
    fn other_signatures_are_known_as_such() {
        let signature =
            Signature { is_meticulous: false, key: 1, sequence: 1, digest: [0; DIGEST] };
        let mut bytes = packet().bytes(Some(&signature));
        bytes[HEADER] = 3; // meticulous keyed MD5
        assert_eq!(parse(&bytes).map(|(_, signed)| signed), Ok(Signed::Otherwise));
        bytes[HEADER] = 4;
        bytes[HEADER + 1] = 27;
        assert_eq!(parse(&bytes).map(|(_, signed)| signed), Ok(Signed::Otherwise));
    }
}
