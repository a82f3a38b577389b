//! The shared key: each side proves that it has it, without saying it.
//!
//! ```text
//! accepting side   HMAC-SHA-256(key, "zcmi accepts" ‖ connecting hello ‖ accepting hello before its proof)   in its
//! hello connecting side  HMAC-SHA-256(key, "zcmi connects" ‖ connecting hello ‖ accepting hello)
//! behind it
//! ```
//!
//! Both hellos hold 32 random bytes, so that a proof is good for one greeting.
//!
//! # What this does not do
//! It does not encrypt, and it does not protect what comes after the greeting: who can change bytes on the way can
//! change these. Use it inside a network, a tunnel or a VPN that does.
//!
//! # Sources
//! HMAC: RFC 2104. SHA-256: FIPS 180-4.

use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::frame::{HELLO_BYTES, Hello};

/// Bytes of a proof.
pub const PROOF_BYTES: usize = 32;
/// The shortest secret that is taken for a key.
pub const LEAST_SECRET_BYTES: usize = 16;

/// A secret that is too short to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key of {bytes} bytes can be guessed; take at least {LEAST_SECRET_BYTES}, for instance from /dev/urandom")]
pub struct ShortKey {
    /// Its length.
    pub bytes: usize,
}

/// A secret that both sides have.
#[derive(Clone)]
pub struct Key(Hmac<Sha256>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// The key of a secret of any length from [`LEAST_SECRET_BYTES`] on.
    ///
    /// # Errors
    /// [`ShortKey`] for a shorter one.
    pub fn new(secret: &[u8]) -> Result<Self, ShortKey> {
        let short = ShortKey { bytes: secret.len() };
        if secret.len() < LEAST_SECRET_BYTES {
            return Err(short);
        }
        Hmac::new_from_slice(secret).map(Self).map_err(|_| short)
    }

    fn accepts(&self, connecting: &Hello, accepting: &Hello) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(b"zcmi accepts");
        mac.update(&connecting.encode());
        mac.update(&accepting.encode()[..Hello::PROOF_OFFSET]);
        mac
    }

    fn connects(&self, connecting: &Hello, accepting: &[u8; HELLO_BYTES]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(b"zcmi connects");
        mac.update(&connecting.encode());
        mac.update(accepting);
        mac
    }

    /// The accepting side's proof, for its hello.
    pub(crate) fn prove_accepting(&self, connecting: &Hello, accepting: &Hello) -> [u8; PROOF_BYTES] {
        self.accepts(connecting, accepting).finalize().into_bytes().into()
    }

    /// Whether the accepting side has this key.
    pub(crate) fn is_proved_accepting(&self, connecting: &Hello, accepting: &Hello) -> bool {
        self.accepts(connecting, accepting).verify_slice(&accepting.proof).is_ok()
    }

    /// The connecting side's proof, which goes behind the accepting side's hello.
    pub(crate) fn prove_connecting(&self, connecting: &Hello, accepting: &Hello) -> [u8; PROOF_BYTES] {
        self.connects(connecting, &accepting.encode()).finalize().into_bytes().into()
    }

    /// Whether the connecting side has this key.
    pub(crate) fn is_proved_connecting(&self, connecting: &Hello, accepting: &Hello, proof: &[u8]) -> bool {
        self.connects(connecting, &accepting.encode()).verify_slice(proof).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(nonce: u8) -> Hello {
        Hello {
            incarnation: [1; 16],
            session: [2; 16],
            epoch: 0,
            resume_from: 0,
            small_bytes: 64,
            slot_bytes: 128,
            streams: 1,
            granted: [1, 1],
            nonce: [nonce; 32],
            proof: [0; 32],
        }
    }

    #[test]
    fn a_proof_is_good_for_its_key_its_side_and_its_greeting_only() {
        let (key, other) = (Key::new(&[7; 16]).expect("long enough"), Key::new(&[8; 16]).expect("long enough"));
        let (connecting, mut accepting) = (hello(1), hello(2));
        accepting.proof = key.prove_accepting(&connecting, &accepting);
        assert!(key.is_proved_accepting(&connecting, &accepting));
        assert!(!other.is_proved_accepting(&connecting, &accepting));
        assert!(!key.is_proved_accepting(&hello(3), &accepting));
        let proof = key.prove_connecting(&connecting, &accepting);
        assert!(key.is_proved_connecting(&connecting, &accepting, &proof));
        assert!(!key.is_proved_connecting(&connecting, &accepting, &accepting.proof));
        assert!(!other.is_proved_connecting(&connecting, &accepting, &proof));
        assert!(!key.is_proved_connecting(&hello(3), &accepting, &proof));
    }

    #[test]
    fn a_short_secret_is_no_key_and_none_is_printed() {
        assert_eq!(Key::new(&[0; 15]).err(), Some(ShortKey { bytes: 15 }));
        assert_eq!(format!("{:?}", Key::new(&[0x41; 20])), "Ok(Key(…))");
    }
}
