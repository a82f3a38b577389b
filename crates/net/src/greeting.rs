//! The first words on a wire: one hello from each side, the connecting side's first.
//!
//! ```text
//! connecting side                         accepting side
//! ── hello: session, epoch, expected ──▶
//!                          ◀── hello: the same session and epoch, expected, credits ──
//! ── frames ──▶
//! ```
//!
//! A side that was told of a session that it does not know answers with the epoch [`UNKNOWN_SESSION`].
//!
//! # Invariants
//! - Not one byte behind the peer's hello is read here.

use std::io::{self, IoSliceMut};

use crate::frame::{HELLO_BYTES, Hello};
use crate::incoming::PeerFault;
use crate::link::LinkError;
use crate::path::PathKind;
use crate::wire::{Segment, Wire};

/// The epoch of an answer to a side whose session is not known.
pub const UNKNOWN_SESSION: u32 = u32::MAX;

/// A hello that is being sent, and one that is being received.
pub(crate) struct Greeting {
    ours: Option<[u8; HELLO_BYTES]>,
    sent: usize,
    theirs: [u8; HELLO_BYTES],
    received: usize,
}

impl Greeting {
    /// A greeting in which our hello goes out now, or when it is [known](Self::answer).
    pub(crate) fn new(ours: Option<&Hello>) -> Self {
        Self { ours: ours.map(Hello::encode), sent: 0, theirs: [0; HELLO_BYTES], received: 0 }
    }

    /// Sets our hello, which depends on theirs.
    pub(crate) fn answer(&mut self, ours: &Hello) {
        self.ours = Some(ours.encode());
    }

    /// Goes on; `true` if our hello has left.
    pub(crate) fn send(&mut self, wire: &mut impl Wire) -> Result<bool, LinkError> {
        let Some(ours) = &self.ours else { return Ok(false) };
        while self.sent < HELLO_BYTES {
            match wire.send(PathKind::Write, &[Segment { bytes: &ours[self.sent..], home: None }]) {
                Ok(sent) => self.sent += sent.bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(LinkError::System { call: "sendmsg", source }),
            }
        }
        Ok(true)
    }

    /// Goes on; their hello once it is whole.
    pub(crate) fn receive(&mut self, wire: &mut impl Wire) -> Result<Option<Hello>, LinkError> {
        while self.received < HELLO_BYTES {
            match wire.receive(&mut [IoSliceMut::new(&mut self.theirs[self.received..])]) {
                Ok(0) => return Err(LinkError::CutOff),
                Ok(received) => self.received += received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(LinkError::System { call: "recvmsg", source }),
            }
        }
        Ok(Some(Hello::decode(&self.theirs).map_err(PeerFault::from)?))
    }
}
