//! The words of a lane as they lie in memory. Pictures: `docs/layout/lane.md`.
//!
//! A lane is spread over two owners' memory, so that no word has two writers:
//!
//! ```text
//! the publisher's region (its readers map it read-only)
//!   LaneControl   retired │ want_room │ counters            one 128-byte line each
//!   Entry[capacity]                                         one 64-byte line each
//! each reader's region (the publisher maps it read-only)
//!   ReaderBlock   identity │ cursor, counters │ released │ held[16]
//! ```
//!
//! Units: sequences and cursors count messages since the lane's beginning and never wrap: a lane ends at
//! [`SEQUENCE_END`]. Lengths are bytes.

use crate::sync::{AtomicU64, Ordering};

/// Where a lane ends: no sequence number reaches it. Bits 62 and 63 of a word stay free for marks.
pub const SEQUENCE_END: u64 = 1 << 62;
/// The mark in a hold that the kernel may still read the slot after the holder's death.
pub const HOLD_IN_KERNEL: u64 = 1 << 63;
/// The value of a cursor before its reader stored its start, and of `released` while the reader takes holds.
pub const UNSET: u64 = u64::MAX;
/// How many slots one reader may hold of one lane. Two in models, where each word costs time.
pub const HOLDS: usize = if cfg!(zcmi_loom) { 2 } else { 16 };
/// Bytes that fit into an entry itself.
pub const INLINE_BYTES: usize = 40;
/// Words that fit into an entry itself.
pub const INLINE_WORDS: usize = INLINE_BYTES / 8;
/// How many readers a lane serves: one bit each in its wake word.
pub const READERS: usize = 64;

/// Words that fill up a line; none in models, where every word is an object of its own.
const fn padding(words: usize) -> usize {
    if cfg!(zcmi_loom) { 0 } else { words }
}

/// One line of the ring: the stamp tells whether it holds the message that a reader waits for.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Entry {
    /// Sequence number of the message plus one; 0 in a fresh ring.
    pub stamp: AtomicU64,
    /// A [`Head`].
    pub head: AtomicU64,
    /// Up to 40 bytes of payload, or a descriptor.
    pub body: [AtomicU64; INLINE_WORDS],
    /// Zero; kept for a time of publication.
    pub reserved: AtomicU64,
}

/// What the publisher says of its lane as a whole.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct LaneControl {
    /// Everything below this sequence may be gone.
    pub retired: AtomicU64,
    retired_padding: [AtomicU64; padding(15)],
    /// Not 0 while the publisher waits for room: the sequence it wants to publish, plus one.
    pub want_room: AtomicU64,
    want_room_padding: [AtomicU64; padding(15)],
    /// Bytes of payload published.
    pub published_bytes: AtomicU64,
    /// Messages refused because there was no room.
    pub refused: AtomicU64,
    /// The sequence at which the publisher ended the lane in good order (nothing is there or after it), plus one; else
    /// 0.
    pub ended: AtomicU64,
    counters_padding: [AtomicU64; padding(13)],
}

/// What one reader says to one publisher.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct ReaderBlock {
    /// The publisher this block speaks to: its process's incarnation, low word first, and its endpoint.
    pub identity: [AtomicU64; 3],
    /// The first sequence that concerns this reader.
    pub start: AtomicU64,
    identity_padding: [AtomicU64; padding(12)],
    /// The next sequence this reader will look at, or [`UNSET`].
    pub cursor: AtomicU64,
    /// Messages that were overtaken before this reader saw them.
    pub lost: AtomicU64,
    /// Messages received.
    pub received: AtomicU64,
    /// Bytes of payload received.
    pub received_bytes: AtomicU64,
    cursor_padding: [AtomicU64; padding(12)],
    /// In-place readers: everything below is done with. [`UNSET`] for a reader that takes holds.
    pub released: AtomicU64,
    released_padding: [AtomicU64; padding(15)],
    /// Sequence plus one of each message kept, or 0; perhaps with [`HOLD_IN_KERNEL`].
    pub held: [AtomicU64; HOLDS],
}

#[cfg(not(zcmi_loom))]
const _: () = {
    assert!(size_of::<Entry>() == 64 && align_of::<Entry>() == 64);
    assert!(core::mem::offset_of!(Entry, head) == 8 && core::mem::offset_of!(Entry, body) == 16);
    assert!(size_of::<LaneControl>() == 384 && core::mem::offset_of!(LaneControl, want_room) == 128);
    assert!(core::mem::offset_of!(LaneControl, published_bytes) == 256);
    assert!(size_of::<ReaderBlock>() == 512 && core::mem::offset_of!(ReaderBlock, cursor) == 128);
    assert!(core::mem::offset_of!(ReaderBlock, released) == 256 && core::mem::offset_of!(ReaderBlock, held) == 384);
};

impl Entry {
    /// Clears what an earlier use of the memory left. Only the owner may call this, before it begins a lane.
    pub fn reset(&self) {
        for word in [&self.stamp, &self.head, &self.reserved].into_iter().chain(&self.body) {
            word.store(0, Ordering::Relaxed);
        }
    }
}

impl LaneControl {
    /// Clears what an earlier use of the memory left. Only the owner may call this, before it begins a lane.
    pub fn reset(&self) {
        for word in [&self.retired, &self.want_room, &self.published_bytes, &self.refused, &self.ended] {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Bytes of payload published, as the publisher counts them; a claim.
    #[must_use]
    pub fn published_bytes(&self) -> u64 {
        self.published_bytes.load(Ordering::Relaxed)
    }

    /// Messages refused for want of room, as the publisher counts them; a claim.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl ReaderBlock {
    /// Makes the block speak to a new publisher. Only the reader may call this, before it names the block in a join.
    pub fn reset(&self, identity: [u64; 3]) {
        self.cursor.store(UNSET, Ordering::Relaxed);
        self.released.store(UNSET, Ordering::Relaxed);
        self.start.store(UNSET, Ordering::Relaxed);
        for word in self.held.iter().chain([&self.lost, &self.received, &self.received_bytes]) {
            word.store(0, Ordering::Relaxed);
        }
        for (word, value) in self.identity.iter().zip(identity) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// How far this reader is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let cursor = self.cursor.load(Ordering::Relaxed);
        let start = self.start.load(Ordering::Relaxed);
        let lost = self.lost.load(Ordering::Relaxed);
        let seen = if cursor == UNSET || start == UNSET { 0 } else { cursor.saturating_sub(start) };
        Progress { messages: seen.saturating_sub(lost), lost, bytes: self.received_bytes.load(Ordering::Relaxed) }
    }

    /// The publisher this block says it speaks to; a claim.
    #[must_use]
    pub fn identity(&self) -> [u64; 3] {
        [0, 1, 2].map(|word: usize| self.identity[word].load(Ordering::Relaxed))
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn holds_nothing(&self) -> bool {
        // C5 (acquire): what the holds' droppers did happened before whatever follows from holding nothing.
        self.held.iter().all(|hold| hold.load(Ordering::Acquire) == 0)
    }
}

/// What a reader has received, derived from its block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Messages received.
    pub messages: u64,
    /// Messages overtaken and lost.
    pub lost: u64,
    /// Bytes of payload received, where the reader counts them.
    pub bytes: u64,
}

/// Kind and length of a message, packed into an entry's second word.
///
/// ```text
/// 63            32 31      8 7    0
/// │  length, bytes │ reserved │ kind │
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head(pub u64);

/// What an entry carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Kind {
    /// The payload itself, at most [`INLINE_BYTES`].
    Inline,
    /// A descriptor of a slot that holds the payload.
    Slot,
    /// The publisher's graceful end; nothing follows.
    End,
    /// A kind that this version does not know.
    Unknown(u8),
}

impl Head {
    /// Packs a kind and a length.
    #[inline]
    #[must_use]
    pub const fn new(kind: Kind, bytes: u32) -> Self {
        let kind = match kind {
            Kind::Inline => 1,
            Kind::Slot => 2,
            Kind::End => 3,
            Kind::Unknown(code) => code,
        };
        Self((bytes as u64) << 32 | kind as u64)
    }

    /// What the entry carries; a claim when it comes from a peer.
    #[inline]
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self.0 as u8 {
            1 => Kind::Inline,
            2 => Kind::Slot,
            3 => Kind::End,
            code => Kind::Unknown(code),
        }
    }

    /// The payload's length; a claim when it comes from a peer.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A message as it is copied out of, or into, an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Kind and length.
    pub head: Head,
    /// Payload or descriptor.
    pub body: [u64; INLINE_WORDS],
}

/// Names a slot: what travels in an entry instead of the bytes, in the first word of its body.
///
/// ```text
/// 63           32 31    26 25           0
/// │      0       │ class │     slot     │
/// ```
///
/// Where the slot begins follows from the pool's geometry, which a reader got at the join and knows privately; a lane
/// has one pool. The generation is the entry's stamp: a slot is published under one sequence at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RawDescriptor(u32);

impl RawDescriptor {
    /// Bits of the slot's number.
    pub const SLOT_BITS: u32 = 26;

    /// Names slot `slot` of size class `class`.
    #[inline(always)]
    #[must_use]
    pub const fn new(class: u8, slot: u32) -> Self {
        Self((class as u32) << Self::SLOT_BITS | slot)
    }

    /// The descriptor as a publisher's books and entries carry it.
    #[inline(always)]
    #[must_use]
    pub const fn token(self) -> u32 {
        self.0
    }

    /// The descriptor of such a token.
    #[inline(always)]
    #[must_use]
    pub const fn from_token(token: u32) -> Self {
        Self(token)
    }

    /// Reads a claim; `None` if bits that must be zero are not.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Option<Self> {
        if word >> 32 == 0 { Some(Self(word as u32)) } else { None }
    }

    /// The size class.
    #[inline(always)]
    #[must_use]
    pub const fn class(self) -> usize {
        (self.0 >> Self::SLOT_BITS) as usize
    }

    /// The slot within the class.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.0 & ((1 << Self::SLOT_BITS) - 1)
    }
}
