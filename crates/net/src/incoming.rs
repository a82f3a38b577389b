//! What a connection receives: frames checked one by one, credits given, acknowledgements owed. Without I/O.
//!
//! # Invariants
//! - Pieces are received in the order of their numbers, each once, whatever connections come and go.
//! - A piece changes nothing here until all of its bytes have come: a connection that breaks off within a piece leaves
//!   everything as it was before it.
//! - What is open of the credits (given and not used) is the number of slots that this connection may still claim.

use std::collections::HashMap;

use thiserror::Error;

use crate::frame::{Class, FrameFault, Header, Hello, Kind, ReceiveCost};
use crate::outgoing::{MOST_CREDITS, Note};
use crate::path::PathKind;

/// What a peer said that cannot be; it ends the connection, and the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PeerFault {
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameFault),
    /// A frame of another epoch.
    #[error("the peer sent a frame of epoch {claimed} in epoch {epoch}")]
    Epoch {
        /// The frame's.
        claimed: u32,
        /// The connection's.
        epoch: u32,
    },
    /// A piece out of order.
    #[error("the peer sent piece {claimed} where {expected} was due")]
    Sequence {
        /// The frame's.
        claimed: u64,
        /// The one that was due.
        expected: u64,
    },
    /// An acknowledgement of what was not sent, or less than before.
    #[error("the peer acknowledges {claimed} pieces after {before}, of {sent} that were sent")]
    Acknowledged {
        /// What it says.
        claimed: u64,
        /// What it said before.
        before: u64,
        /// How many were sent.
        sent: u64,
    },
    /// Credits taken back, or more than can be.
    #[error("the peer gives {claimed} credits for {class:?} pieces after {before}")]
    Credits {
        /// Of which class.
        class: Class,
        /// What it says.
        claimed: u32,
        /// What it said before.
        before: u32,
    },
    /// A piece without a credit for it.
    #[error("the peer sent a {class:?} piece, all {granted} credits for which it has used")]
    NoCredit {
        /// Of which class.
        class: Class,
        /// How many it was given.
        granted: u32,
    },
    /// A piece that no slot takes.
    #[error("the peer sent a piece of {length} bytes; slots have {slot_bytes}")]
    TooLong {
        /// Its length.
        length: u32,
        /// What a slot has.
        slot_bytes: u32,
    },
    /// More messages begun than may be.
    #[error("the peer began messages on more than {streams} streams at a time")]
    Streams {
        /// How many may be.
        streams: u32,
    },
    /// A piece that does not continue the message of its stream.
    #[error("the peer sent {offset} of {message_bytes} bytes on stream {stream}, where {due} of {due_bytes} were due")]
    Continuation {
        /// The stream.
        stream: u32,
        /// Where the piece begins.
        offset: u32,
        /// The message that it says it belongs to.
        message_bytes: u32,
        /// Where it had to begin.
        due: u32,
        /// The message that was begun.
        due_bytes: u32,
    },
    /// Something after the end, or an end in the midst of a message.
    #[error("the peer ended its stream at piece {sequence}, and {fault}")]
    End {
        /// The piece at which it ended.
        sequence: u64,
        /// What is wrong with that.
        fault: &'static str,
    },
    /// Another geometry than before, in the same session.
    #[error("the peer came back to its session with slots of {slot_bytes} bytes instead of {before}")]
    Geometry {
        /// What it says now.
        slot_bytes: u32,
        /// What it said first.
        before: u32,
    },
    /// Another side than the session's.
    #[error("another peer came back to the session")]
    Incarnation,
    /// An epoch that was before.
    #[error("the peer came back with epoch {claimed} after {epoch}")]
    OldEpoch {
        /// What it says.
        claimed: u32,
        /// The last one.
        epoch: u32,
    },
    /// The proof is not that of our key, or only one of the two sides has a key.
    #[error("the two ends have different keys, or only one has a key; give both the same one, or none")]
    Proof,
}

/// A message that was begun on a stream.
#[derive(Clone, Copy)]
struct Begun {
    message_bytes: u32,
    next: u32,
    tag: u64,
}

/// Everything that is received from one peer.
pub struct Incoming {
    small_bytes: u32,
    slot_bytes: u32,
    streams: u32,
    epoch: u32,
    expected: u64,
    begun: HashMap<u32, Begun>,
    granted: [u32; 2],
    used: [u32; 2],
    told: Note,
    wants: [bool; 2],
    ended: bool,
    /// Whether the end was told; it comes again over each wire.
    end_told: bool,
    costs: [Cost; PathKind::ALL.len()],
    /// The path whose cost is to be told next, if there is news of it.
    told_cost: usize,
}

/// What a KiB that came by one path cost to receive.
#[derive(Clone, Copy, Default)]
struct Cost {
    kib: f32,
    ns: f32,
    is_news: bool,
}

/// What the calls before count at each further call.
const REMEMBERED: f32 = 0.95;
/// What they count once they were told, so that the peer hears soon that something changed. It smooths what it hears.
const TOLD: f32 = 0.2;

impl Cost {
    fn kib_ns(self) -> u16 {
        (self.ns / self.kib.max(f32::MIN_POSITIVE)).round() as u16
    }
}

impl core::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Incoming").field("expected", &self.expected).field("open", &self.open()).finish_non_exhaustive()
    }
}

impl Incoming {
    /// Nothing received yet, by a receiver with these sizes.
    #[must_use]
    pub fn new(small_bytes: u32, slot_bytes: u32, streams: u32) -> Self {
        Self {
            small_bytes,
            slot_bytes,
            streams,
            epoch: 0,
            expected: 0,
            begun: HashMap::new(),
            granted: [0; 2],
            used: [0; 2],
            told: Note::default(),
            wants: [false; 2],
            ended: false,
            end_told: false,
            costs: Default::default(),
            told_cost: 0,
        }
    }

    /// The number of the next piece.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// Whether the peer said that nothing more comes.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The peer's end has come, maybe again; `true` the first time.
    pub fn tell_end(&mut self) -> bool {
        !core::mem::replace(&mut self.end_told, true)
    }

    /// How many messages were begun and not finished.
    #[must_use]
    pub fn begun(&self) -> usize {
        self.begun.len()
    }

    /// Credits given and not used, by class.
    #[must_use]
    pub fn open(&self) -> [u32; 2] {
        [0, 1].map(|class| self.granted[class].wrapping_sub(self.used[class]))
    }

    /// The class of slots that a piece takes here.
    #[must_use]
    pub fn class_of(&self, length: u32) -> Class {
        if length <= self.small_bytes { Class::Small } else { Class::Large }
    }

    /// Begins an epoch with the credits that our hello gives.
    pub fn begin(&mut self, hello: &Hello) {
        self.epoch = hello.epoch;
        (self.granted, self.used, self.wants) = (hello.granted, [0; 2], [false; 2]);
        self.told = Note { acknowledged: hello.resume_from, granted: hello.granted, cost: None };
        // Its end comes again in the new epoch, if it came before.
        self.ended = false;
    }

    /// Checks a frame against everything that came before it.
    ///
    /// # Errors
    /// [`PeerFault`] for what no honest peer sends.
    pub fn check(&mut self, header: &Header) -> Result<(), PeerFault> {
        if header.epoch != self.epoch {
            return Err(PeerFault::Epoch { claimed: header.epoch, epoch: self.epoch });
        }
        if header.sequence != self.expected {
            return Err(PeerFault::Sequence { claimed: header.sequence, expected: self.expected });
        }
        // Each frame says what its sender lacks now: an older wish may be met already.
        self.wants = header.wants;
        let end = |fault| PeerFault::End { sequence: header.sequence, fault };
        match header.kind {
            Kind::Control => Ok(()),
            Kind::End if self.ended => Err(end("ended it again")),
            Kind::End if !self.begun.is_empty() => Err(end("a message was not finished")),
            Kind::End => {
                self.ended = true;
                Ok(())
            }
            Kind::Data if self.ended => Err(end("a piece came after it")),
            Kind::Data => self.check_piece(header),
        }
    }

    fn check_piece(&self, header: &Header) -> Result<(), PeerFault> {
        let &Header { stream, message_bytes, offset, length, tag, .. } = header;
        if length > self.slot_bytes {
            return Err(PeerFault::TooLong { length, slot_bytes: self.slot_bytes });
        }
        let class = self.class_of(length);
        if self.used[class.index()] == self.granted[class.index()] {
            return Err(PeerFault::NoCredit { class, granted: self.granted[class.index()] });
        }
        let due = self.begun.get(&stream);
        if due.is_none() && self.begun.len() >= self.streams as usize && length < message_bytes {
            return Err(PeerFault::Streams { streams: self.streams });
        }
        let due = due.copied().unwrap_or(Begun { message_bytes, next: 0, tag });
        if (message_bytes, offset, tag) != (due.message_bytes, due.next, due.tag) {
            let (due, due_bytes) = (due.next, due.message_bytes);
            return Err(PeerFault::Continuation { stream, offset, message_bytes, due, due_bytes });
        }
        Ok(())
    }

    /// Notes that all bytes of a checked piece have come.
    pub fn received(&mut self, header: &Header) {
        let &Header { stream, message_bytes, offset, length, tag, .. } = header;
        let class = self.class_of(length).index();
        self.used[class] = self.used[class].wrapping_add(1);
        self.expected += 1;
        let next = offset + length;
        if next == message_bytes {
            self.begun.remove(&stream);
        } else {
            self.begun.insert(stream, Begun { message_bytes, next, tag });
        }
    }

    /// Gives more credits; not more than can be open are given. Returns how many were.
    pub fn grant(&mut self, class: Class, count: u32) -> u32 {
        let index = class.index();
        let count = count.min(MOST_CREDITS - self.open()[index]);
        self.granted[index] = self.granted[index].wrapping_add(count);
        count
    }

    /// Forgets what was given: the wire over which it could be used is gone.
    pub fn forget_credits(&mut self) {
        (self.granted, self.used, self.wants) = ([0; 2], [0; 2], [false; 2]);
    }

    /// Whether the peer said that it waits for credits of a class, and was not told of any since.
    #[must_use]
    pub fn wants(&self) -> [bool; 2] {
        self.wants
    }

    /// What is to be said in the next frame.
    #[must_use]
    pub fn note(&self) -> Note {
        // One after the other, or the path in use would always come first.
        let (before, after) = PathKind::ALL.split_at(self.told_cost);
        let news = after.iter().chain(before).copied().find(|path| self.costs[*path as usize].is_news);
        let cost = news.map(|path| ReceiveCost { path, kib_ns: self.costs[path as usize].kib_ns() });
        Note { acknowledged: self.expected, granted: self.granted, cost }
    }

    /// Notes that a frame said it.
    pub fn told(&mut self, note: Note) {
        if let Some(cost) = note.cost {
            let told = &mut self.costs[cost.path as usize];
            (told.kib, told.ns, told.is_news) = (told.kib * TOLD, told.ns * TOLD, false);
            self.told_cost = (cost.path as usize + 1) % PathKind::ALL.len();
        }
        for class in [0, 1] {
            self.wants[class] &= note.granted[class] == self.told.granted[class];
        }
        self.told = note;
    }

    /// Notes what a call took that received this many bytes, all of which came by one path.
    pub fn took(&mut self, path: PathKind, bytes: usize, ns: u64) {
        let cost = &mut self.costs[path as usize];
        let kib = bytes.max(1) as f32 / 1024.0;
        let mut ns = ns as f32;
        if cost.kib > 0.0 {
            // A call that was interrupted for long says nothing about the path.
            ns = ns.min((cost.ns + cost.ns / cost.kib * kib) * 2.0);
        }
        // By bytes: many calls that take little cost less than a few that take much.
        (cost.kib, cost.ns) = (cost.kib * REMEMBERED + kib, cost.ns * REMEMBERED + ns);
        cost.is_news = true;
    }

    /// How many pieces were received since a frame said so, and how many credits were given, by class.
    #[must_use]
    pub fn untold(&self) -> (u64, [u32; 2]) {
        let credits = [0, 1].map(|class| self.granted[class].wrapping_sub(self.told.granted[class]));
        (self.expected - self.told.acknowledged, credits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_path_costs_is_told_anew_when_it_has_changed() {
        let mut incoming = Incoming::new(64, 4096, 1);
        let mut told = |ns: u64| {
            incoming.took(PathKind::Write, 10_240, ns);
            let note = incoming.note();
            incoming.told(note);
            note.cost.map(|cost| cost.kib_ns)
        };
        for _ in 0..50 {
            told(10_000);
        }
        assert_eq!(told(10_000), Some(1000));
        // A fifth of what is told is what was told before, after the second call a fifth of that.
        assert_eq!([told(2000), told(2000)], [Some(352), Some(229)]);
    }

    #[test]
    fn what_each_path_cost_is_told_in_turn_although_one_has_news_all_the_time() {
        let mut incoming = Incoming::new(64, 4096, 1);
        incoming.took(PathKind::SendFile, 1024, 900);
        incoming.took(PathKind::Splice, 2048, 600);
        let mut told = Vec::new();
        for _ in 0..4 {
            // The path in use: something comes by it before every frame.
            incoming.took(PathKind::Write, 1024, 100);
            let note = incoming.note();
            told.extend(note.cost.map(|cost| (cost.path, cost.kib_ns)));
            incoming.told(note);
        }
        let (write, file, splice) = (PathKind::Write, PathKind::SendFile, PathKind::Splice);
        assert_eq!(told, [(write, 100), (file, 900), (splice, 300), (write, 100)]);
    }
}
