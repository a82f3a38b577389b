//! How two sides of a session over datagrams meet, without a trace of whoever did not show that it hears us.
//!
//! ```text
//! connecting side                              accepting side
//! ── hello: ours, and as many zeros as the answer is long ──▶
//!                              ◀── answer: theirs, in which the nonce is a cookie       nothing is kept
//! ── proof: ours, theirs again, the proof of the key ──▶                                the session is kept
//!                              ◀── control: credits
//! ```
//!
//! The cookie is an HMAC, by a secret that nobody else knows, over the time in slots of [`SLOT`], the address that the
//! hello came from, and the hello. Who repeats it heard us at that address. The answer is no longer than the hello, so
//! that nobody is flooded by way of us.
//!
//! # Sources
//! The cookie: RFC 9000 section 8.1 and RFC 6347 section 4.2.1 do the same.

use std::net::{IpAddr, SocketAddr};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::datagram::{HEAD_BYTES, Head, Kind};
use super::pace::{MS, Nanos};
use crate::frame::{HELLO_BYTES, Hello};
use crate::key::{Key, PROOF_BYTES};

/// How long a cookie is good, at least; and half of how long at most.
pub(crate) const SLOT: Nanos = 10_000 * MS;
/// Bytes of a hello's datagram, and of the answer's.
pub(crate) const HELLO_DATAGRAM: usize = HEAD_BYTES + HELLO_BYTES;
/// Bytes of the datagram that ends the greeting.
pub(crate) const PROOF_DATAGRAM: usize = HEAD_BYTES + 2 * HELLO_BYTES + PROOF_BYTES;

/// The word of a session that datagrams bear.
pub(crate) fn word_of(session: &[u8; 16]) -> u64 {
    u64::from_le_bytes([session[0], session[1], session[2], session[3], session[4], session[5], session[6], session[7]])
}

fn head(kind: Kind, hello: &Hello) -> [u8; HEAD_BYTES] {
    Head { epoch: hello.epoch, ..Head::empty(kind, word_of(&hello.session)) }.bytes()
}

/// The datagram of a hello or of an answer.
pub(crate) fn hello_datagram(kind: Kind, hello: &Hello) -> [u8; HELLO_DATAGRAM] {
    let mut bytes = [0; HELLO_DATAGRAM];
    bytes[..HEAD_BYTES].copy_from_slice(&head(kind, hello));
    bytes[HEAD_BYTES..].copy_from_slice(&hello.encode());
    bytes
}

/// The datagram that ends the greeting of the side that connects.
pub(crate) fn proof_datagram(ours: &Hello, theirs: &Hello, key: Option<&Key>) -> [u8; PROOF_DATAGRAM] {
    let mut bytes = [0; PROOF_DATAGRAM];
    bytes[..HEAD_BYTES].copy_from_slice(&head(Kind::Proof, ours));
    bytes[HEAD_BYTES..][..HELLO_BYTES].copy_from_slice(&ours.encode());
    bytes[HEAD_BYTES + HELLO_BYTES..][..HELLO_BYTES].copy_from_slice(&theirs.encode());
    if let Some(key) = key {
        bytes[HEAD_BYTES + 2 * HELLO_BYTES..].copy_from_slice(&key.prove_connecting(ours, theirs));
    }
    bytes
}

/// The hello in a datagram's body.
pub(crate) fn hello_of(body: &[u8]) -> Option<Hello> {
    Hello::decode(body.get(..HELLO_BYTES)?.try_into().ok()?).ok()
}

/// Whether the answer to our hello is from who has our key.
pub(crate) fn is_answer(ours: &Hello, theirs: &Hello, key: Option<&Key>) -> bool {
    theirs.session == ours.session
        && match key {
            Some(key) => key.is_proved_accepting(ours, theirs),
            None => theirs.proof == [0; PROOF_BYTES],
        }
}

/// The secret behind the cookies of one transport.
pub(crate) struct Cookies(Hmac<Sha256>);

impl Cookies {
    /// Cookies by this secret.
    pub(crate) fn new(secret: [u8; 32]) -> Option<Self> {
        Hmac::new_from_slice(&secret).ok().map(Self)
    }

    fn cookie(&self, slot: u64, from: &SocketAddr, theirs: &Hello) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(b"zcmi cookie");
        mac.update(&slot.to_le_bytes());
        match from.ip() {
            IpAddr::V4(ip) => mac.update(&ip.octets()),
            IpAddr::V6(ip) => mac.update(&ip.octets()),
        }
        mac.update(&from.port().to_le_bytes());
        mac.update(&theirs.encode());
        mac.finalize().into_bytes().into()
    }

    /// Completes our answer to a hello: nonce and proof. `ours` is the same whenever it is asked for.
    pub(crate) fn answer(
        &self,
        now: Nanos,
        from: &SocketAddr,
        theirs: &Hello,
        ours: Hello,
        key: Option<&Key>,
    ) -> Hello {
        self.answer_at(now / SLOT, from, theirs, ours, key)
    }

    fn answer_at(&self, slot: u64, from: &SocketAddr, theirs: &Hello, mut ours: Hello, key: Option<&Key>) -> Hello {
        ours.nonce = self.cookie(slot, from, theirs);
        ours.proof = [0; PROOF_BYTES];
        if let Some(key) = key {
            ours.proof = key.prove_accepting(theirs, &ours);
        }
        ours
    }

    /// Whether a proof repeats our answer to that hello from that address, and shows the key.
    pub(crate) fn is_proved(
        &self,
        now: Nanos,
        from: &SocketAddr,
        theirs: &Hello,
        ours: Hello,
        body: &[u8],
        key: Option<&Key>,
    ) -> bool {
        let (Some(said), Some(proof)) = (body.get(HELLO_BYTES..2 * HELLO_BYTES), body.get(2 * HELLO_BYTES..)) else {
            return false;
        };
        let slot = now / SLOT;
        let answer = [Some(slot), slot.checked_sub(1)]
            .into_iter()
            .flatten()
            .map(|slot| self.answer_at(slot, from, theirs, ours, key))
            .find(|answer| answer.encode() == said);
        answer.is_some_and(|answer| match key {
            Some(key) => key.is_proved_connecting(theirs, &answer, proof),
            None => proof == [0; PROOF_BYTES],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(session: u8, nonce: u8) -> Hello {
        Hello {
            incarnation: [1; 16],
            session: [session; 16],
            epoch: 0,
            resume_from: 0,
            small_bytes: 64,
            slot_bytes: 128,
            streams: 1,
            granted: [0; 2],
            nonce: [nonce; 32],
            proof: [0; 32],
        }
    }

    #[test]
    fn a_cookie_is_good_for_its_address_its_hello_and_a_while() {
        let cookies = Cookies::new([3; 32]).expect("a secret");
        let key = Key::new(&[5; 16]).expect("a key");
        let (here, there) = ("127.0.0.1:5".parse().expect("one"), "127.0.0.1:6".parse().expect("one"));
        for key in [None, Some(&key)] {
            let (asks, ours) = (hello(1, 1), hello(1, 0));
            let answer = cookies.answer(SLOT, &here, &asks, ours, key);
            assert!(is_answer(&asks, &answer, key));
            let proof = proof_datagram(&asks, &answer, key);
            let proved = |now, from, asks: &Hello| cookies.is_proved(now, from, asks, ours, &proof[HEAD_BYTES..], key);
            assert!(proved(SLOT, &here, &asks) && proved(2 * SLOT, &here, &asks));
            assert!(!proved(3 * SLOT, &here, &asks), "it is too old");
            assert!(!proved(SLOT, &there, &asks), "it is another's");
            assert!(!proved(SLOT, &here, &hello(1, 2)), "it answers another hello");
            let other = Cookies::new([4; 32]).expect("a secret");
            assert!(!other.is_proved(SLOT, &here, &asks, ours, &proof[HEAD_BYTES..], key), "it is not ours");
        }
        let answer = cookies.answer(SLOT, &here, &hello(1, 1), hello(1, 0), Some(&key));
        let proof = proof_datagram(&hello(1, 1), &answer, None);
        assert!(!cookies.is_proved(SLOT, &here, &hello(1, 1), hello(1, 0), &proof[HEAD_BYTES..], Some(&key)));
    }

    #[test]
    fn an_answer_is_no_longer_than_what_it_answers() {
        let asked = hello_datagram(Kind::Hello, &hello(1, 1));
        assert!(hello_datagram(Kind::Answer, &hello(1, 2)).len() <= asked.len());
        assert_eq!(hello_of(&asked[HEAD_BYTES..]), Some(hello(1, 1)));
    }
}
