//! The first words on a wire: one hello from each side, the connecting side's first.
//!
//! ```text
//! connecting side                         accepting side
//! ── hello: session, epoch, expected ──▶
//!                          ◀── hello: the same session and epoch, expected, credits, proof
//! ── proof, if there is a key ──▶
//! ── frames ──▶                                     ◀── frames ──
//! ```
//!
//! A side that was told of a session that it does not know answers with the epoch [`UNKNOWN_SESSION`], of one that has
//! ended with [`ENDED_SESSION`].
//!
//! # Invariants
//! - Not one byte behind what is due is read here.

use std::io::{self, IoSliceMut};

use crate::frame::{HELLO_BYTES, Hello};
use crate::incoming::PeerFault;
use crate::key::{Key, PROOF_BYTES};
use crate::link::LinkError;
use crate::path::PathKind;
use crate::wire::{Segment, Wire};

/// The epoch of an answer to a side whose session is not known.
pub(crate) const UNKNOWN_SESSION: u32 = u32::MAX;

/// The epoch of an answer to a side whose session has ended well, as far as the answering side is concerned.
pub(crate) const ENDED_SESSION: u32 = u32::MAX - 1;

/// What a greeting waits for.
#[derive(Debug)]
pub(crate) enum Greeted {
    /// The peer, or the socket.
    Waiting,
    /// The accepting side: what to [answer](Greeting::answer) to this.
    Asked(Hello),
    /// Nothing: both sides have said what they had to.
    Done { ours: Hello, theirs: Hello },
}

/// A greeting under way.
#[derive(Debug)]
pub(crate) struct Greeting {
    key: Option<Key>,
    connects: bool,
    ours: Option<Hello>,
    theirs: Option<Hello>,
    out: Vec<u8>,
    sent: usize,
    inbox: [u8; HELLO_BYTES],
    received: usize,
    proved: bool,
}

/// Whether the first call behind a connect that did not wait tells how that went.
fn is_of_connecting(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | TimedOut)
}

impl Greeting {
    /// The greeting of the side that connects.
    pub(crate) fn connecting(ours: Hello, key: Option<Key>) -> Self {
        Self { connects: true, ours: Some(ours), out: ours.encode().to_vec(), ..Self::accepting(key) }
    }

    /// The greeting of the side that accepts.
    pub(crate) fn accepting(key: Option<Key>) -> Self {
        Self {
            key,
            connects: false,
            ours: None,
            theirs: None,
            out: Vec::new(),
            sent: 0,
            inbox: [0; HELLO_BYTES],
            received: 0,
            proved: false,
        }
    }

    /// Answers the hello that [`Greeted::Asked`] told of.
    pub(crate) fn answer(&mut self, mut ours: Hello) {
        if let (Some(key), Some(theirs)) = (&self.key, &self.theirs) {
            ours.proof = key.prove_accepting(theirs, &ours);
        }
        self.out.extend_from_slice(&ours.encode());
        self.ours = Some(ours);
    }

    /// Goes on as far as the wire lets it.
    pub(crate) fn go_on(&mut self, wire: &mut impl Wire) -> Result<Greeted, LinkError> {
        self.send(wire)?;
        if self.theirs.is_none() {
            if !self.receive(wire, HELLO_BYTES)? {
                return Ok(Greeted::Waiting);
            }
            let theirs = Hello::decode(&self.inbox).map_err(PeerFault::from)?;
            self.received = 0;
            self.theirs = Some(theirs);
            if let (true, Some(ours)) = (self.connects, &self.ours) {
                match &self.key {
                    // Whoever does not know the session proves nothing: there is nothing to be had.
                    _ if theirs.epoch == UNKNOWN_SESSION => {}
                    Some(key) if !key.is_proved_accepting(ours, &theirs) => return Err(PeerFault::Proof.into()),
                    Some(key) => self.out.extend_from_slice(&key.prove_connecting(ours, &theirs)),
                    None if theirs.proof != [0; PROOF_BYTES] => return Err(PeerFault::Proof.into()),
                    None => {}
                }
                self.proved = true;
            }
        }
        let (Some(theirs), Some(ours)) = (self.theirs, self.ours) else {
            return Ok(self.theirs.map_or(Greeted::Waiting, Greeted::Asked));
        };
        self.send(wire)?;
        if self.key.is_some() && !self.proved && !self.receive(wire, PROOF_BYTES)? {
            return Ok(Greeted::Waiting);
        }
        if let (Some(key), false) = (&self.key, self.proved)
            && !key.is_proved_connecting(&theirs, &ours, &self.inbox[..PROOF_BYTES])
        {
            return Err(PeerFault::Proof.into());
        }
        self.proved = true;
        let done = self.sent == self.out.len();
        Ok(if done { Greeted::Done { ours, theirs } } else { Greeted::Waiting })
    }

    fn send(&mut self, wire: &mut impl Wire) -> Result<(), LinkError> {
        while self.sent < self.out.len() {
            match wire.send(PathKind::Write, &[Segment { bytes: &self.out[self.sent..], home: None }]) {
                Ok(sent) => self.sent += sent.bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let call = if self.connects && self.sent == 0 && is_of_connecting(&source) {
                        "connect"
                    } else {
                        "sendmsg"
                    };
                    return Err(LinkError::System { call, source });
                }
            }
        }
        Ok(())
    }

    /// Receives until `bytes` bytes are there; `true` if they are.
    fn receive(&mut self, wire: &mut impl Wire, bytes: usize) -> Result<bool, LinkError> {
        while self.received < bytes {
            match wire.receive(&mut [IoSliceMut::new(&mut self.inbox[self.received..bytes])]) {
                Ok(0) => return Err(LinkError::CutOff),
                Ok(received) => self.received += received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(LinkError::System { call: "recvmsg", source }),
            }
        }
        Ok(true)
    }
}
