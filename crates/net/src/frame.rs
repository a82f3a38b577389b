//! Frames: what stands before each piece of a message on a stream of bytes. Picture: `docs/layout/frame.md`.
//!
//! A connection begins with one [`Hello`] from each side; from then on each side sends frames: a [`Header`] of 64 bytes
//! and, in a data frame, `length` bytes of payload directly behind it. Words are little-endian.
//!
//! # Invariants
//! - Whatever is decoded here is a claim about syntax only: known kind, known flags, zero where zero is due. Whether
//!   the numbers fit the connection is for [`Incoming`](crate::incoming::Incoming) and
//!   [`Outgoing`](crate::outgoing::Outgoing) to say.
//! - A header never shares a cache line, a slot or a page's fate with the payload behind it.

use thiserror::Error;

use crate::path::PathKind;

/// The version of this layout.
pub const VERSION: u8 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a hello.
pub const HELLO_BYTES: usize = 192;
/// The longest message.
pub const MESSAGE_BYTES: u32 = 1 << 30;
/// The first bytes of a hello.
pub const MAGIC: [u8; 8] = *b"zcmi-net";

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A piece of a message; the only kind with payload, and the only one that takes a sequence number.
    Data,
    /// Acknowledgement, credits and wishes alone.
    Control,
    /// The sender will send no more pieces; its sequence is the number of pieces it sent.
    End,
}

impl Kind {
    const fn word(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Control => 2,
            Self::End => 3,
        }
    }
}

/// Which of a receiver's slots a piece needs; each has credits of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// At most the small size that the receiver named.
    Small,
    /// More than that.
    Large,
}

impl Class {
    /// Both, in the order of their credits.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    /// Its place among the credits.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}

/// The head of every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: Kind,
    /// Classes of which the sender of this frame would like more credits.
    pub wants: [bool; 2],
    /// The stream of the message.
    pub stream: u32,
    /// The piece's number, from 0, over all streams of the session; in other frames that of the next piece.
    pub sequence: u64,
    /// Every piece of the other side below this number is received.
    pub acknowledged: u64,
    /// Credits given since the epoch began, by class, modulo 2^32.
    pub granted: [u32; 2],
    /// Bytes of the whole message.
    pub message_bytes: u32,
    /// Where in the message this piece begins.
    pub offset: u32,
    /// Bytes of payload behind the header.
    pub length: u32,
    /// How often the session was connected before.
    pub epoch: u32,
    /// A word of the application's, the same for all pieces of a message.
    pub tag: u64,
    /// By which path the payload is sent, as a hint.
    pub path: Option<PathKind>,
    /// What a KiB that came by a path cost the sender of this frame to receive, in nanoseconds, as a hint.
    pub cost: Option<ReceiveCost>,
}

/// What it costs to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveCost {
    /// What came by this path.
    pub path: PathKind,
    /// What a KiB of it took, in nanoseconds; more than a `u16` holds counts as that.
    pub kib_ns: u16,
}

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameFault {
    /// A kind that does not exist.
    #[error("{0} is no kind of frame")]
    Kind(u8),
    /// A version that was not agreed on.
    #[error("the frame has version {0}, not {VERSION}")]
    Version(u8),
    /// Flags that do not exist.
    #[error("the frame has the unknown flags {0:#x}")]
    Flags(u16),
    /// Bytes that must be zero.
    #[error("a reserved word of the frame is {0:#x} and not zero")]
    Reserved(u64),
    /// Payload where none can be, or none where some must be, or more than the message has.
    #[error("a piece of {length} bytes at {offset} is none of a message of {message_bytes} bytes")]
    Piece {
        /// Bytes of the whole message.
        message_bytes: u32,
        /// Where the piece begins.
        offset: u32,
        /// Its length.
        length: u32,
    },
    /// Not a hello.
    #[error("the peer does not speak this protocol: it began with {0:02x?}")]
    Magic([u8; 8]),
    /// No version in common.
    #[error("the peer speaks versions {least} to {most}, we speak {VERSION}; use the same release at both ends")]
    NoCommonVersion {
        /// Its oldest.
        least: u16,
        /// Its newest.
        most: u16,
    },
    /// A hello whose sizes no receiver has.
    #[error("the peer names impossible sizes: small {small_bytes}, slot {slot_bytes}, {streams} streams")]
    Sizes {
        /// Its small size.
        small_bytes: u32,
        /// Its largest slot.
        slot_bytes: u32,
        /// How many streams it takes.
        streams: u32,
    },
}

/// A reader of little-endian words from bytes whose length the caller knows.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from(self.u32(at)) | u64::from(self.u32(at + 4)) << 32
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.0[at..at + N]);
        array
    }

    /// Refuses anything but zeros.
    fn zero(&self, from: usize, to: usize) -> Result<(), FrameFault> {
        match self.0[from..to].iter().find(|&&byte| byte != 0) {
            Some(&byte) => Err(FrameFault::Reserved(u64::from(byte))),
            None => Ok(()),
        }
    }
}

const WANT_SMALL: u16 = 1;
const WANT_LARGE: u16 = 2;

/// A path as frames name it: its place among all, from 1; 0 for none.
fn path_word(path: Option<PathKind>) -> u8 {
    path.map_or(0, |path| path as u8 + 1)
}

fn path_of(word: u8) -> Option<PathKind> {
    PathKind::ALL.get(usize::from(word).checked_sub(1)?).copied()
}

impl Header {
    /// Where a header says by which path its payload is sent.
    const PATH_OFFSET: usize = 56;

    /// Says by which path the payload of an encoded header is sent.
    pub(crate) fn stamp(bytes: &mut [u8], path: PathKind) {
        bytes[Self::PATH_OFFSET] = path_word(Some(path));
    }

    /// A frame of this kind in which everything else is zero.
    #[must_use]
    pub const fn empty(kind: Kind) -> Self {
        Self {
            kind,
            wants: [false; 2],
            stream: 0,
            sequence: 0,
            acknowledged: 0,
            granted: [0; 2],
            message_bytes: 0,
            offset: 0,
            length: 0,
            epoch: 0,
            tag: 0,
            path: None,
            cost: None,
        }
    }

    /// Writes the header.
    pub fn encode(&self, bytes: &mut [u8; HEADER_BYTES]) {
        let flags = (u16::from(self.wants[0]) * WANT_SMALL) | (u16::from(self.wants[1]) * WANT_LARGE);
        bytes[0] = self.kind.word();
        bytes[1] = VERSION;
        bytes[2..4].copy_from_slice(&flags.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.acknowledged.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.granted[0].to_le_bytes());
        bytes[28..32].copy_from_slice(&self.granted[1].to_le_bytes());
        bytes[32..36].copy_from_slice(&self.message_bytes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.offset.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.length.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.tag.to_le_bytes());
        bytes[Self::PATH_OFFSET] = path_word(self.path);
        bytes[57] = path_word(self.cost.map(|cost| cost.path));
        bytes[58..60].copy_from_slice(&self.cost.map_or(0, |cost| cost.kib_ns).to_le_bytes());
        bytes[60..64].fill(0);
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`FrameFault`] for what no peer of this version writes.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FrameFault> {
        let words = Words(bytes);
        let kind = match bytes[0] {
            1 => Kind::Data,
            2 => Kind::Control,
            3 => Kind::End,
            other => return Err(FrameFault::Kind(other)),
        };
        if bytes[1] != VERSION {
            return Err(FrameFault::Version(bytes[1]));
        }
        let flags = words.u16(2);
        if flags & !(WANT_SMALL | WANT_LARGE) != 0 {
            return Err(FrameFault::Flags(flags));
        }
        words.zero(60, 64)?;
        // A hint about a path that we do not know is none.
        let (path, told) = (path_of(bytes[Self::PATH_OFFSET]), path_of(bytes[57]));
        let cost = told.map(|path| ReceiveCost { path, kib_ns: words.u16(58) });
        let header = Self {
            kind,
            wants: [flags & WANT_SMALL != 0, flags & WANT_LARGE != 0],
            stream: words.u32(4),
            sequence: words.u64(8),
            acknowledged: words.u64(16),
            granted: [words.u32(24), words.u32(28)],
            message_bytes: words.u32(32),
            offset: words.u32(36),
            length: words.u32(40),
            epoch: words.u32(44),
            tag: words.u64(48),
            path,
            cost,
        };
        let Self { message_bytes, offset, length, .. } = header;
        let fits = message_bytes <= MESSAGE_BYTES && offset <= message_bytes && length <= message_bytes - offset;
        let whole = if kind == Kind::Data { length > 0 || message_bytes == 0 } else { message_bytes == 0 };
        if fits && whole { Ok(header) } else { Err(FrameFault::Piece { message_bytes, offset, length }) }
    }
}

/// The first bytes of each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender's incarnation: drawn anew by each transport that is made.
    pub incarnation: [u8; 16],
    /// The session: drawn by the side that connects, repeated by the other.
    pub session: [u8; 16],
    /// How often the session was connected before.
    pub epoch: u32,
    /// The number of the piece that the sender of this hello expects next.
    pub resume_from: u64,
    /// The longest piece that takes a small slot.
    pub small_bytes: u32,
    /// The longest piece of all.
    pub slot_bytes: u32,
    /// How many messages may be begun at a time: each on a stream of its own.
    pub streams: u32,
    /// The first credits, by class.
    pub granted: [u32; 2],
    /// Random bytes for the proof.
    pub nonce: [u8; 32],
    /// The proof that the sender has the key, zeros where there is none.
    pub proof: [u8; 32],
}

impl Hello {
    /// Where the proof stands; what is proved is what lies before it.
    pub const PROOF_OFFSET: usize = 128;

    /// Writes the hello.
    #[must_use]
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&u16::from(VERSION).to_le_bytes());
        bytes[10..12].copy_from_slice(&u16::from(VERSION).to_le_bytes());
        bytes[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.incarnation);
        bytes[32..48].copy_from_slice(&self.session);
        bytes[48..56].copy_from_slice(&self.resume_from.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.small_bytes.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.slot_bytes.to_le_bytes());
        bytes[64..68].copy_from_slice(&self.streams.to_le_bytes());
        bytes[72..76].copy_from_slice(&self.granted[0].to_le_bytes());
        bytes[76..80].copy_from_slice(&self.granted[1].to_le_bytes());
        bytes[96..128].copy_from_slice(&self.nonce);
        bytes[Self::PROOF_OFFSET..160].copy_from_slice(&self.proof);
        bytes
    }

    /// Reads a hello.
    ///
    /// # Errors
    /// [`FrameFault`] for what no peer writes with whom we have a version in common.
    pub fn decode(bytes: &[u8; HELLO_BYTES]) -> Result<Self, FrameFault> {
        let words = Words(bytes);
        if words.array(0) != MAGIC {
            return Err(FrameFault::Magic(words.array(0)));
        }
        let (least, most) = (words.u16(8), words.u16(10));
        if least > u16::from(VERSION) || most < u16::from(VERSION) {
            return Err(FrameFault::NoCommonVersion { least, most });
        }
        words.zero(68, 72)?;
        words.zero(80, 96)?;
        words.zero(160, HELLO_BYTES)?;
        let hello = Self {
            incarnation: words.array(16),
            session: words.array(32),
            epoch: words.u32(12),
            resume_from: words.u64(48),
            small_bytes: words.u32(56),
            slot_bytes: words.u32(60),
            streams: words.u32(64),
            granted: [words.u32(72), words.u32(76)],
            nonce: words.array(96),
            proof: words.array(Self::PROOF_OFFSET),
        };
        let Self { small_bytes, slot_bytes, streams, .. } = hello;
        let sizes = small_bytes >= 1 && small_bytes <= slot_bytes && slot_bytes <= MESSAGE_BYTES && streams >= 1;
        if sizes { Ok(hello) } else { Err(FrameFault::Sizes { small_bytes, slot_bytes, streams }) }
    }

    /// The class of slots that a piece of this length takes at the sender of this hello.
    #[must_use]
    pub fn class_of(&self, length: u32) -> Class {
        if length <= self.small_bytes { Class::Small } else { Class::Large }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            incarnation: [1; 16],
            session: [2; 16],
            epoch: 3,
            resume_from: 4,
            small_bytes: 4096,
            slot_bytes: 1 << 18,
            streams: 5,
            granted: [6, 7],
            nonce: [8; 32],
            proof: [9; 32],
        }
    }

    proptest! {
        #[test]
        fn headers_come_back_as_they_were_written(
            kind in prop_oneof![Just(Kind::Data), Just(Kind::Control), Just(Kind::End)],
            words in any::<(bool, bool, u32, u64, u64, u32, u32, u32, u64)>(),
            cut in any::<(prop::sample::Index, prop::sample::Index)>(),
            message_bytes in 1..=MESSAGE_BYTES,
        ) {
            let (small, large, stream, sequence, acknowledged, one, two, epoch, tag) = words;
            let offset = cut.0.index(message_bytes as usize) as u32;
            let length = 1 + cut.1.index((message_bytes - offset) as usize) as u32;
            let data = Header {
                kind, wants: [small, large], stream, sequence, acknowledged, granted: [one, two], message_bytes, offset,
                length, epoch, tag, path: path_of(tag as u8),
                cost: path_of(epoch as u8).map(|path| ReceiveCost { path, kib_ns: stream as u16 }),
            };
            let header = match kind {
                Kind::Data => data,
                _ => Header { message_bytes: 0, offset: 0, length: 0, ..data },
            };
            let mut bytes = [0xff; HEADER_BYTES];
            header.encode(&mut bytes);
            prop_assert_eq!(Header::decode(&bytes), Ok(header));
        }

        #[test]
        fn arbitrary_bytes_are_a_frame_or_a_fault(bytes in prop::array::uniform32(any::<u16>())) {
            let mut frame = [0; HEADER_BYTES];
            for (at, word) in bytes.iter().enumerate() {
                frame[at * 2..at * 2 + 2].copy_from_slice(&word.to_le_bytes());
            }
            if let Ok(header) = Header::decode(&frame) {
                let mut again = [0; HEADER_BYTES];
                header.encode(&mut again);
                // Hints that mean nothing are not kept.
                again[56..60].fill(0);
                frame[56..60].fill(0);
                prop_assert_eq!(again, frame);
            }
        }
    }

    #[test]
    fn each_claim_that_cannot_be_is_refused_by_name() {
        let mut good = [0; HEADER_BYTES];
        Header { message_bytes: 10, length: 10, ..Header::empty(Kind::Data) }.encode(&mut good);
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Header::decode(&bytes)
        };
        assert_eq!(with(0, 0), Err(FrameFault::Kind(0)));
        assert_eq!(with(1, 2), Err(FrameFault::Version(2)));
        assert_eq!(with(2, 4), Err(FrameFault::Flags(4)));
        assert_eq!(with(60, 1), Err(FrameFault::Reserved(1)));
        assert_eq!(with(40, 11), Err(FrameFault::Piece { message_bytes: 10, offset: 0, length: 11 }));
        assert_eq!(with(40, 0), Err(FrameFault::Piece { message_bytes: 10, offset: 0, length: 0 }));
        assert_eq!(with(36, 11), Err(FrameFault::Piece { message_bytes: 10, offset: 11, length: 10 }));
        assert_eq!(with(0, 2), Err(FrameFault::Piece { message_bytes: 10, offset: 0, length: 10 }));
    }

    #[test]
    fn a_hello_of_another_protocol_version_or_of_impossible_sizes_is_refused() {
        let good = hello();
        assert_eq!(Hello::decode(&good.encode()), Ok(good));
        let with = |at: usize, byte: u8| {
            let mut bytes = good.encode();
            bytes[at] = byte;
            Hello::decode(&bytes)
        };
        assert!(matches!(with(0, b'G'), Err(FrameFault::Magic(_))));
        assert_eq!(with(8, 9), Err(FrameFault::NoCommonVersion { least: 9, most: 1 }));
        assert_eq!(with(10, 0), Err(FrameFault::NoCommonVersion { least: 1, most: 0 }));
        assert!(matches!(with(191, 1), Err(FrameFault::Reserved(1))));
        assert!(matches!(with(64, 0), Err(FrameFault::Sizes { streams: 0, .. })));
        assert!(matches!(with(63, 255), Err(FrameFault::Sizes { .. })));
        assert_eq!((good.class_of(4096), good.class_of(4097)), (Class::Small, Class::Large));
    }
}
