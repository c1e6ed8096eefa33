//! Is a RIPv2 message from one who knows a key? Keyed MD5 (RFC 2082) and HMAC-SHA (RFC 4822); plain passwords (RFC 2453 section 4.1)
//! for neighbours that know nothing better.
//!
//! Of each neighbour and key the last sequence number is kept: what was heard once does not count twice. The daemon knows nothing of
//! signatures; they are taken off before it hears a message and put on after it has spoken.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use hashbrown::HashMap;
use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::{Sha256, Sha384, Sha512};

use super::Reject;

const AUTHENTICATION: [u8; 2] = [0xff, 0xff];
const PASSWORD: u16 = 2;
const CRYPTOGRAPHIC: u16 = 3;
/// Marks the digest at a message's end (RFC 2082 section 3.2.2).
const TRAILER: [u8; 4] = [0xff, 0xff, 0, 1];
/// RFC 4822 section 2.5: what stands at the digest's place while it is computed.
const APAD: [u8; 4] = [0x87, 0x8f, 0xe1, 0xf3];
const HEADER: usize = 4;
const ENTRY: usize = 20;
/// Neighbours whose sequence numbers are kept at most.
const NEIGHBOURS: usize = 1024;

/// How a message is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RFC 2453 section 4.1: readable by all on the link.
    Password,
    /// RFC 2082.
    Md5,
    /// RFC 4822, as are those behind it.
    HmacSha1,
    /// HMAC-SHA-256.
    HmacSha256,
    /// HMAC-SHA-384.
    HmacSha384,
    /// HMAC-SHA-512.
    HmacSha512,
}

impl Algorithm {
    /// As the configuration names them.
    pub const NAMES: [(&'static str, Algorithm); 6] = [
        ("hmac-sha-256", Algorithm::HmacSha256),
        ("hmac-sha-384", Algorithm::HmacSha384),
        ("hmac-sha-512", Algorithm::HmacSha512),
        ("hmac-sha-1", Algorithm::HmacSha1),
        ("md5", Algorithm::Md5),
        ("password", Algorithm::Password),
    ];

    fn digest_length(self) -> usize {
        match self {
            Algorithm::Password => 0,
            Algorithm::Md5 => 16,
            Algorithm::HmacSha1 => 20,
            Algorithm::HmacSha256 => 32,
            Algorithm::HmacSha384 => 48,
            Algorithm::HmacSha512 => 64,
        }
    }
}

/// A key (RFC 2082 section 4.1).
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its number on the wire.
    pub id: u8,
    /// What it is for.
    pub algorithm: Algorithm,
    /// The secret; 1 to 16 bytes for a password and MD5.
    pub secret: Vec<u8>,
    /// Seconds since 1970 from which it counts; `None`: always did.
    pub from: Option<u64>,
    /// Seconds since 1970 until which it counts; `None`: for ever.
    pub until: Option<u64>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl Key {
    fn is_valid(&self, wall: u64) -> bool {
        self.from.is_none_or(|from| from <= wall) && self.until.is_none_or(|until| wall < until)
    }
}

/// The keys, and what was heard under them.
#[derive(Debug, Default)]
pub struct Keyring {
    keys: Vec<Key>,
    /// Seconds after which a silent neighbour may begin anew.
    silence: u64,
    /// By neighbour and key: the last sequence number, and when it was heard.
    heard: HashMap<(IpAddr, u8), (u32, u64), foldhash::fast::RandomState>,
    sequence: u32,
}

impl Keyring {
    /// Without keys nothing is signed, and what is signed is not taken (RFC 2453 section 5.2). A neighbour that was silent for longer
    /// than `silence` may begin with any sequence number: it may have lost its own (RFC 2082 section 3.2.2).
    pub fn new(keys: Vec<Key>, silence: Duration) -> Keyring {
        Keyring { keys, silence: silence.as_secs(), ..Keyring::default() }
    }

    /// The key to send with: the one that began last; where none is valid the last one to end.
    fn current(&self, wall: u64) -> Option<&Key> {
        self.usable(wall).max_by_key(|key| key.from)
    }

    /// The keys that count. Where none is valid that is the last one to end: silence would cut the host off, and so would deafness
    /// (RFC 2082 section 4.3).
    fn usable(&self, wall: u64) -> impl Iterator<Item = &Key> {
        let is_last = move |key: &Key| self.last_resort(wall).is_some_and(|last| last == key);
        self.keys.iter().filter(move |key| key.is_valid(wall) || is_last(key))
    }

    fn last_resort(&self, wall: u64) -> Option<&Key> {
        let is_any_valid = self.keys.iter().any(|key| key.is_valid(wall));
        let last = self.keys.iter().max_by_key(|key| key.until.unwrap_or(u64::MAX));
        last.filter(|_| !is_any_valid)
    }

    /// The id of the key that is used as of `wall` though its life is over or has not begun, since that is so of all; `None`: one is
    /// valid, or there are none.
    pub fn stopgap(&self, wall: u64) -> Option<u8> {
        self.last_resort(wall).map(|key| key.id)
    }

    /// `message`, header and entries of at most 24 routes, signed as of `wall` seconds since 1970.
    pub fn sign<'a>(&mut self, message: &'a [u8], wall: u64) -> Cow<'a, [u8]> {
        // RFC 2082 section 3.2.1: never less than what was sent last, also by an earlier run.
        self.sequence = self.sequence.saturating_add(1).max(wall as u32);
        let sequence = self.sequence;
        let Some(key) = self.current(wall) else { return Cow::Borrowed(message) };
        let Some((header, entries)) = message.split_at_checked(HEADER) else {
            return Cow::Borrowed(message);
        };
        let mut signed = header.to_vec();
        signed.extend(AUTHENTICATION);
        if key.algorithm == Algorithm::Password {
            signed.extend(PASSWORD.to_be_bytes());
            signed.extend(padded(&key.secret));
            signed.extend(entries);
            return Cow::Owned(signed);
        }
        let length = (message.len() + ENTRY) as u16;
        signed.extend(CRYPTOGRAPHIC.to_be_bytes());
        signed.extend(length.to_be_bytes());
        signed.extend([key.id, key.algorithm.digest_length() as u8]);
        signed.extend(sequence.to_be_bytes());
        signed.extend([0; 8]);
        signed.extend(entries);
        signed.extend(TRAILER);
        let digest = digest(key, &signed);
        signed.extend(digest);
        Cow::Owned(signed)
    }

    /// The message without all that signs it, if `neighbour` may be believed as of `wall`. Version 1 cannot be signed: with keys it is
    /// refused.
    ///
    /// # Errors
    /// Why not.
    pub fn verify<'a>(
        &mut self,
        bytes: &'a [u8],
        neighbour: IpAddr,
        wall: u64,
    ) -> Result<Cow<'a, [u8]>, Reject> {
        let Some((&[kind_a, kind_b], field)) = signature(bytes) else {
            return if self.keys.is_empty() { bare(bytes) } else { Err(Reject::Unsigned) };
        };
        if self.keys.is_empty() {
            return Err(Reject::Signed);
        }
        match u16::from_be_bytes([kind_a, kind_b]) {
            PASSWORD => {
                let is_right = |key: &Key| {
                    key.algorithm == Algorithm::Password && is_equal(&padded(&key.secret), field)
                };
                if self.usable(wall).any(is_right) { bare(bytes) } else { Err(Reject::Password) }
            }
            CRYPTOGRAPHIC => bare(self.verify_digest(bytes, field, neighbour, wall)?),
            _ => Err(Reject::SignatureKind),
        }
    }

    fn verify_digest<'a>(
        &mut self,
        bytes: &'a [u8],
        field: &[u8],
        neighbour: IpAddr,
        wall: u64,
    ) -> Result<&'a [u8], Reject> {
        let length = usize::from(u16::from_be_bytes([field[0], field[1]]));
        let id = field[2];
        let sequence = u32::from_be_bytes([field[4], field[5], field[6], field[7]]);
        let is_meant = |key: &&Key| key.id == id && key.algorithm != Algorithm::Password;
        let key = self.usable(wall).find(is_meant).ok_or(Reject::KeyId)?;
        let (body, trailer) = bytes.split_at_checked(length).ok_or(Reject::Digest)?;
        let (mark, sent) = trailer.split_at_checked(TRAILER.len()).ok_or(Reject::Digest)?;
        if mark != TRAILER || length < HEADER + ENTRY || sent.len() != key.algorithm.digest_length()
        {
            return Err(Reject::Digest);
        }
        let wanted = digest(key, &bytes[..length + TRAILER.len()]);
        if !is_equal(&wanted, sent) {
            return Err(Reject::Digest);
        }
        // RFC 2082 section 3.2.2: not less than the last.
        let last = self.heard.get(&(neighbour, id));
        if last.is_some_and(|(last, at)| sequence < *last && wall <= at + self.silence) {
            return Err(Reject::Replayed);
        }
        if self.heard.len() >= NEIGHBOURS && last.is_none() {
            return Err(Reject::Neighbours);
        }
        self.heard.insert((neighbour, id), (sequence, wall));
        Ok(body)
    }
}

/// Kind and field of the first entry, if it is a signature.
fn signature(bytes: &[u8]) -> Option<(&[u8; 2], &[u8])> {
    let first = bytes.get(HEADER..HEADER + ENTRY)?;
    if first[..2] != AUTHENTICATION {
        return None;
    }
    Some((first.get(2..4)?.first_chunk()?, &first[4..]))
}

/// Header and entries without the signature in front. RFC 2453 section 4.1: it stands in the first entry, and nowhere else.
fn bare(message: &[u8]) -> Result<Cow<'_, [u8]>, Reject> {
    let signed = if signature(message).is_some() { ENTRY } else { 0 };
    let Some(entries) = message.get(HEADER + signed..) else { return Ok(Cow::Borrowed(message)) };
    if entries.chunks(ENTRY).any(|entry| entry.starts_with(&AUTHENTICATION)) {
        return Err(Reject::SignaturePlace);
    }
    Ok(match signed {
        0 => Cow::Borrowed(message),
        _ => Cow::Owned([&message[..HEADER], entries].concat()),
    })
}

fn padded(secret: &[u8]) -> [u8; 16] {
    let mut key = [0; 16];
    let length = secret.len().min(16);
    key[..length].copy_from_slice(&secret[..length]);
    key
}

/// Over `signed`, which ends with the trailer's mark.
fn digest(key: &Key, signed: &[u8]) -> Vec<u8> {
    match key.algorithm {
        Algorithm::Password => Vec::new(),
        Algorithm::Md5 => {
            let mut md5 = Md5::new();
            md5.update(signed);
            md5.update(padded(&key.secret));
            md5.finalize().to_vec()
        }
        Algorithm::HmacSha1 => hmac::<Sha1, Hmac<Sha1>>(key, signed),
        Algorithm::HmacSha256 => hmac::<Sha256, Hmac<Sha256>>(key, signed),
        Algorithm::HmacSha384 => hmac::<Sha384, Hmac<Sha384>>(key, signed),
        Algorithm::HmacSha512 => hmac::<Sha512, Hmac<Sha512>>(key, signed),
    }
}

/// RFC 4822 section 2.5: a secret longer than the digest is hashed first (HMAC itself would let a longer one pass).
fn hmac<D: Digest, M: Mac + KeyInit>(key: &Key, signed: &[u8]) -> Vec<u8> {
    let length = key.algorithm.digest_length();
    let hashed;
    let secret = if key.secret.len() > length {
        hashed = D::digest(&key.secret);
        &hashed[..]
    } else {
        &key.secret[..]
    };
    // HMAC takes keys of any length.
    let Ok(mut mac) = <M as KeyInit>::new_from_slice(secret) else { return Vec::new() };
    mac.update(signed);
    for _ in 0..length / APAD.len() {
        mac.update(&APAD);
    }
    mac.finalize().into_bytes().to_vec()
}

/// In a time that does not tell where they differ.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::Family;
    use crate::wire::rip::{Command, Item, Message, Told, Version, header, put, request_for_all};

    const SILENCE: u64 = 180;

    fn ring(keys: &[Key]) -> Keyring {
        Keyring::new(keys.to_vec(), Duration::from_secs(SILENCE))
    }

    fn message() -> Vec<u8> {
        let mut bytes = header(Command::Response, Version::V2).to_vec();
        let prefix = "10.1.0.0/16".parse().expect("a prefix");
        put(&mut bytes, Version::V2, Told { prefix, tag: 0, metric: 1 });
        bytes
    }

    fn signed(ring: &mut Keyring, wall: u64) -> Vec<u8> {
        ring.sign(&message(), wall).into_owned()
    }

    fn key(algorithm: Algorithm, secret: &str) -> Key {
        Key { id: 7, algorithm, secret: secret.into(), from: None, until: None }
    }

    fn neighbour() -> IpAddr {
        "10.0.0.1".parse().expect("an address")
    }

    #[test]
    fn what_is_signed_is_believed_and_what_is_changed_is_not() {
        for (name, algorithm) in Algorithm::NAMES {
            for secret in ["short", &"x".repeat(16), &"long".repeat(40)] {
                let mut ours = ring(&[key(algorithm, secret)]);
                let signed = signed(&mut ours, 1000);
                let mut theirs = ring(&[key(algorithm, secret)]);
                let body = theirs.verify(&signed, neighbour(), 1000).expect(name);
                assert_eq!(*body, message(), "{name}");
                let mut others = ring(&[key(algorithm, "other")]);
                assert!(others.verify(&signed, neighbour(), 1000).is_err(), "{name}");
                if algorithm != Algorithm::Password {
                    for at in 0..signed.len() {
                        let mut changed = signed.clone();
                        changed[at] ^= 1;
                        let mut fresh = ring(&[key(algorithm, secret)]);
                        assert!(fresh.verify(&changed, neighbour(), 1000).is_err(), "{name} {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn rfc2082_3_2_2_what_was_heard_before_a_newer_one_is_replayed() {
        let mut ours = ring(&[key(Algorithm::HmacSha256, "secret")]);
        let first = signed(&mut ours, 1000);
        let second = signed(&mut ours, 1000);
        let mut theirs = ring(&[key(Algorithm::HmacSha256, "secret")]);
        assert!(theirs.verify(&second, neighbour(), 1000).is_ok());
        assert_eq!(theirs.verify(&first, neighbour(), 1000), Err(Reject::Replayed));
        // Once more the same is no replay: a neighbour may count by the second.
        assert!(theirs.verify(&second, neighbour(), 1000).is_ok());
        // One that was away for so long may have lost count.
        assert_eq!(theirs.verify(&first, neighbour(), 1000 + SILENCE), Err(Reject::Replayed));
        assert!(theirs.verify(&first, neighbour(), 1001 + SILENCE).is_ok());
    }

    #[test]
    fn neighbours_whose_sequence_numbers_are_kept_are_bounded() {
        let signed = signed(&mut ring(&[key(Algorithm::Md5, "secret")]), 1000);
        let mut theirs = ring(&[key(Algorithm::Md5, "secret")]);
        for n in 0..NEIGHBOURS as u32 {
            let neighbour = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            assert!(theirs.verify(&signed, neighbour, 1000).is_ok());
        }
        let other = "10.9.9.9".parse().expect("an address");
        assert_eq!(theirs.verify(&signed, other, 1000), Err(Reject::Neighbours));
        assert!(theirs.verify(&signed, neighbour(), 1000).is_ok(), "a known one");
    }

    #[test]
    fn rfc2453_4_1_a_password_is_padded_with_nulls() {
        let mut ours = ring(&[key(Algorithm::Password, "short")]);
        assert_eq!(signed(&mut ours, 0)[4..24], *b"\xff\xff\0\x02short\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn rfc2453_4_1_a_signature_stands_in_the_first_entry_alone() {
        let mut ours = ring(&[key(Algorithm::Password, "secret")]);
        let mut doubled = signed(&mut ours, 0);
        doubled.extend_from_within(HEADER..HEADER + ENTRY);
        assert_eq!(ours.verify(&doubled, neighbour(), 0), Err(Reject::SignaturePlace));
        let mut behind = message();
        behind.extend_from_slice(&doubled[HEADER..HEADER + 8]);
        let mut none = Keyring::default();
        assert_eq!(none.verify(&behind, neighbour(), 0), Err(Reject::SignaturePlace));
    }

    #[test]
    fn a_signed_request_for_everything_is_one_still() {
        let mut ours = ring(&[key(Algorithm::HmacSha1, "secret")]);
        let signed = ours.sign(&request_for_all(Version::V2), 0).into_owned();
        let body = ours.verify(&signed, neighbour(), 0).expect("our own");
        let message = Message::parse(&body, Family::V4).expect("a request");
        assert_eq!(message.items().collect::<Vec<_>>(), [Ok(Item::WholeTable)]);
    }

    #[test]
    fn a_key_counts_within_its_life_and_the_youngest_is_sent_with() {
        let old = Key { id: 1, until: Some(2000), ..key(Algorithm::Md5, "old") };
        let new = Key { id: 2, from: Some(1500), ..key(Algorithm::Md5, "new") };
        let mut ring = ring(&[old, new]);
        let id = |ring: &mut Keyring, wall| signed(ring, wall)[10];
        assert_eq!(id(&mut ring, 1000), 1);
        assert_eq!(id(&mut ring, 1600), 2);
        let early = Key { id: 1, ..key(Algorithm::Md5, "old") };
        let signed = signed(&mut Keyring::new(vec![early], Duration::ZERO), 1000);
        assert!(ring.verify(&signed, neighbour(), 1999).is_ok());
        assert_eq!(ring.verify(&signed, neighbour(), 2000), Err(Reject::KeyId));
    }

    #[test]
    fn rfc2453_4_1_signed_and_unsigned_do_not_mix() {
        let mut none = Keyring::default();
        let mut some = ring(&[key(Algorithm::Md5, "secret")]);
        assert_eq!(some.verify(&message(), neighbour(), 0), Err(Reject::Unsigned));
        let signed = signed(&mut some, 0);
        assert_eq!(none.verify(&signed, neighbour(), 0), Err(Reject::Signed));
        assert!(none.verify(&message(), neighbour(), 0).is_ok());
    }

    #[test]
    fn rfc2082_4_3_where_no_key_is_valid_the_last_one_to_end_is_used_all_the_same() {
        let first = Key { id: 1, until: Some(1000), ..key(Algorithm::Md5, "first") };
        let last = Key { id: 2, until: Some(2000), ..key(Algorithm::Md5, "last") };
        let mut ring = ring(&[first, last]);
        assert_eq!((ring.stopgap(1999), ring.stopgap(2000)), (None, Some(2)));
        assert_eq!(Keyring::default().stopgap(2000), None);
        for (id, secret, believed) in [(2, "last", true), (1, "first", false)] {
            let theirs = Key { id, ..key(Algorithm::Md5, secret) };
            let signed = signed(&mut Keyring::new(vec![theirs], Duration::ZERO), 2000);
            assert_eq!(ring.verify(&signed, neighbour(), 2000).is_ok(), believed, "{id}");
        }
        assert_eq!(signed(&mut ring, 2000)[10], 2);
    }
}
