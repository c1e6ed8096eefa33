//! How a password is proved to PostgreSQL: hashed with a salt (md5), or by SCRAM-SHA-256 (RFC 5802, RFC 7677), in which
//! the server proves that it knows it, too.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha2::Sha256;

use super::super::Failure;
use super::super::answer::{told, wrong};

/// The name of the mechanism.
pub(super) const SCRAM: &str = "SCRAM-SHA-256";
/// Rounds of hashing that a server may ask for. PostgreSQL's default is 4096; a fifth of a second is the end of patience.
const MOST_ROUNDS: u32 = 1 << 18;
/// No channel binding, and that we know of none.
const HEADER: &str = "n,,";

/// The answer to a request for md5.
pub fn md5(user: &str, password: &str, salt: [u8; 4]) -> String {
    let inner = hex(&Md5::digest(format!("{password}{user}")));
    format!("md5{}", hex(&Md5::digest([inner.as_bytes(), &salt].concat())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One exchange of SCRAM. The user's name is in the startup message, and not said again.
#[derive(Debug)]
pub struct Scram {
    user: String,
    nonce: String,
}

/// What the server's last message has to prove.
#[derive(Debug, PartialEq, Eq)]
pub struct Proof(Vec<u8>);

impl Scram {
    /// With a number that nobody used before, printable.
    pub fn new(user: &str, nonce: &str) -> Scram {
        Scram { user: user.to_owned(), nonce: nonce.to_owned() }
    }

    /// client-first-message.
    pub fn first(&self) -> String {
        format!("{HEADER}{}", self.bare())
    }

    /// client-final-message, after the server's first; takes thousands of hashes.
    ///
    /// # Errors
    /// The server's message is not as it should be.
    pub fn last(&self, password: &str, said: &[u8]) -> Result<(String, Proof), Failure> {
        let not_ours = || wrong(&String::from_utf8_lossy(said), "a message of SCRAM-SHA-256");
        let said = std::str::from_utf8(said).map_err(|_| not_ours())?;
        let mut parts = said.split(',');
        let mut part = |name: &str| parts.next().and_then(|part| part.strip_prefix(name));
        let nonce = part("r=").filter(|nonce| {
            nonce.len() > self.nonce.len() && nonce.starts_with(self.nonce.as_str())
        });
        let nonce = nonce.ok_or_else(not_ours)?;
        let salt = part("s=").and_then(|salt| BASE64.decode(salt).ok()).ok_or_else(not_ours)?;
        let rounds = part("i=").and_then(|rounds| rounds.parse().ok()).ok_or_else(not_ours)?;
        if !(1..=MOST_ROUNDS).contains(&rounds) {
            return Err(told(format!("{rounds} rounds"), format!("at most {MOST_ROUNDS}")));
        }
        let salted = salted(password, &salt, rounds);
        let bound = BASE64.encode(HEADER);
        let without_proof = format!("c={bound},r={nonce}");
        let signed = format!("{},{said},{without_proof}", self.bare());
        let client_key = hmac(&salted, b"Client Key");
        let signature = hmac(&Sha256::digest(client_key), signed.as_bytes());
        let proof: Vec<u8> = client_key.iter().zip(signature).map(|(a, b)| a ^ b).collect();
        let server = hmac(&hmac(&salted, b"Server Key"), signed.as_bytes());
        let message = format!("{without_proof},p={}", BASE64.encode(proof));
        Ok((message, Proof(server.to_vec())))
    }

    fn bare(&self) -> String {
        let name = self.user.replace('=', "=3D").replace(',', "=2C");
        format!("n={name},r={}", self.nonce)
    }
}

impl Proof {
    /// Is it in the server's last message?
    ///
    /// # Errors
    /// The server does not know the password.
    pub fn check(&self, said: &[u8]) -> Result<(), Failure> {
        let signature = said.strip_prefix(b"v=").and_then(|text| BASE64.decode(text).ok());
        match signature {
            Some(signature) if signature == self.0 => Ok(()),
            _ => Err(wrong(&String::from_utf8_lossy(said), "proof that it knows the password")),
        }
    }
}

/// Hi() of RFC 5802 section 2.2: PBKDF2 with one block.
fn salted(password: &str, salt: &[u8], rounds: u32) -> [u8; 32] {
    // HMAC takes keys of any length.
    let Ok(keyed) = Hmac::<Sha256>::new_from_slice(password.as_bytes()) else { return [0; 32] };
    let hash = |bytes: &[&[u8]]| -> [u8; 32] {
        let mut mac = keyed.clone();
        bytes.iter().for_each(|bytes| mac.update(bytes));
        mac.finalize().into_bytes().into()
    };
    let mut last = hash(&[salt, &[0, 0, 0, 1]]);
    let mut all = last;
    for _ in 1..rounds {
        last = hash(&[&last]);
        all.iter_mut().zip(last).for_each(|(all, last)| *all ^= last);
    }
    all
}

fn hmac(key: &[u8], bytes: &[u8]) -> [u8; 32] {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    mac.update(bytes);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 7677 section 3.
    #[test]
    fn the_exchange_of_the_rfc() {
        let scram = Scram::new("user", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let said = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                     s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (last, proof) = scram.last("pencil", said).expect("an exchange");
        assert_eq!(
            last,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(proof.check(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
        for said in [&b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G8="[..], b"e=no", b""] {
            assert!(proof.check(said).is_err());
        }
    }

    #[test]
    fn a_server_that_plays_false_is_told() {
        let scram = Scram::new("user", "abc");
        for said in [
            &b""[..],
            b"r=abd1,s=AAAA,i=4096",
            b"r=abc,s=AAAA,i=4096",
            b"r=abc1,s=*,i=4096",
            b"r=abc1,s=AAAA,i=0",
            b"r=abc1,s=AAAA,i=4000000000",
            b"r=abc1,s=AAAA",
            b"\xff",
        ] {
            assert!(scram.last("pencil", said).is_err(), "{said:?}");
        }
    }

    /// As `psql` computes it: "md5" and md5(md5(password, user), salt).
    #[test]
    fn md5_with_a_salt() {
        assert_eq!(hex(&Md5::digest("")), "d41d8cd98f00b204e9800998ecf8427e");
        let inner = hex(&Md5::digest("pencilann"));
        let wanted = format!("md5{}", hex(&Md5::digest(format!("{inner}salt"))));
        assert_eq!(md5("ann", "pencil", *b"salt"), wanted);
    }

    proptest! {
        #[test]
        fn any_message_is_taken_or_refused(tail in "(r=abc|s=|i=|,|[0-9A-Za-z+/=]|\\PC)*") {
            let scram = Scram::new("user", "abc");
            if !tail.contains("i=") {
                prop_assert!(scram.last("pencil", tail.as_bytes()).is_err());
            }
            prop_assert!(Proof(vec![1]).check(tail.as_bytes()).is_err() || tail == "v=AQ==");
        }
    }
}
