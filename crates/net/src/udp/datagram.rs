//! What stands in a datagram. Picture: `docs/layout/datagram.md`.
//!
//! Every datagram begins with a [`Head`] of 64 bytes. Behind it comes payload in a data datagram, a [`Report`] in a
//! control datagram, one or two hellos in those of a greeting, and nothing in a reset. Words are little-endian.
//!
//! # Invariants
//! - What is decoded here is a claim about syntax only; the head's checksum says no more than that it was not mangled.

/// Bytes of a head.
pub(crate) const HEAD_BYTES: usize = 64;
/// The most ranges that a report names.
pub(crate) const RANGES: usize = 32;
/// Bytes of a report without its ranges.
const REPORT_BYTES: usize = 24;
/// Bytes of the longest control datagram.
pub(crate) const CONTROL_BYTES: usize = HEAD_BYTES + REPORT_BYTES + 16 * RANGES;
/// The version of this layout.
pub(crate) const VERSION: u8 = 1;

/// What a datagram is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes of a piece of a message.
    Data,
    /// What was received, and what may be sent.
    Control,
    /// There is no such session here.
    Reset,
    /// The first word of the side that connects.
    Hello,
    /// The answer, which leaves nothing behind at the side that gave it.
    Answer,
    /// The second word of the side that connects: the answer again, and the proof.
    Proof,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Data, Self::Control, Self::Reset, Self::Hello, Self::Answer, Self::Proof];

    fn word(self) -> u8 {
        self as u8 + 1
    }
}

/// The sender waits to hear that this datagram came.
pub(crate) const ELICITS: u16 = 1;
/// A piece waits for a small slot.
pub(crate) const WANTS_SMALL: u16 = 2;
/// A piece waits for a large slot.
pub(crate) const WANTS_LARGE: u16 = 4;
/// No piece comes behind those of a number below the sequence.
pub(crate) const END: u16 = 8;
/// The bytes are not sent again when they are lost, and took no credit.
pub(crate) const UNRELIABLE: u16 = 16;
const ALL_FLAGS: u16 = 31;

/// The head of every datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) flags: u16,
    /// The first half of the session.
    pub(crate) session: u64,
    /// The datagram's number; never used twice in a session by the same side.
    pub(crate) number: u64,
    /// The number of the piece; in control datagrams, how many pieces were begun so far.
    pub(crate) sequence: u64,
    /// How often the session was connected before.
    pub(crate) epoch: u32,
    pub(crate) stream: u32,
    pub(crate) tag: u64,
    /// Bytes of the whole message.
    pub(crate) message_bytes: u32,
    /// Where in the message the piece begins.
    pub(crate) offset: u32,
    /// Where in the piece the datagram's bytes begin.
    pub(crate) begin: u32,
    /// How many numbers before this piece the one before it on the same stream is; 0 if that is long received, or none.
    pub(crate) after: u32,
}

/// Why bytes are no datagram of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotOurs;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// A checksum of a head, its own place taken as zero. UDP's sum of 16 bits stands over head and payload; this one makes
/// it next to impossible that a mangled head passes for another.
fn checksum(bytes: &[u8; HEAD_BYTES]) -> u32 {
    let mut hash = 0x7a63_6d69_2d75_6470_u64;
    for at in (0..HEAD_BYTES).step_by(8) {
        let word = if at == 0 { u64::from(u32_at(bytes, 0)) } else { u64_at(bytes, at) };
        hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
    (hash ^ (hash >> 32)) as u32
}

impl Head {
    /// A head of this kind in which everything else is zero.
    pub(crate) const fn empty(kind: Kind, session: u64) -> Self {
        Self {
            kind,
            flags: 0,
            session,
            number: 0,
            sequence: 0,
            epoch: 0,
            stream: 0,
            tag: 0,
            message_bytes: 0,
            offset: 0,
            begin: 0,
            after: 0,
        }
    }

    /// Whether the flag is set.
    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Writes the head.
    pub(crate) fn encode(&self, bytes: &mut [u8; HEAD_BYTES]) {
        bytes[0] = self.kind.word();
        bytes[1] = VERSION;
        bytes[2..4].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.session.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.stream.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.tag.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.message_bytes.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.offset.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.begin.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.after.to_le_bytes());
        let sum = checksum(bytes);
        bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// The head as bytes.
    pub(crate) fn bytes(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        self.encode(&mut bytes);
        bytes
    }

    /// Reads the head of a datagram.
    ///
    /// # Errors
    /// [`NotOurs`] for what no peer of this version writes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, NotOurs> {
        let bytes: &[u8; HEAD_BYTES] = bytes.get(..HEAD_BYTES).and_then(|head| head.try_into().ok()).ok_or(NotOurs)?;
        let kind = Kind::ALL.get(usize::from(bytes[0]).wrapping_sub(1)).copied().ok_or(NotOurs)?;
        let flags = u16::from_le_bytes([bytes[2], bytes[3]]);
        if bytes[1] != VERSION || flags & !ALL_FLAGS != 0 || u32_at(bytes, 4) != checksum(bytes) {
            return Err(NotOurs);
        }
        Ok(Self {
            kind,
            flags,
            session: u64_at(bytes, 8),
            number: u64_at(bytes, 16),
            sequence: u64_at(bytes, 24),
            epoch: u32_at(bytes, 32),
            stream: u32_at(bytes, 36),
            tag: u64_at(bytes, 40),
            message_bytes: u32_at(bytes, 48),
            offset: u32_at(bytes, 52),
            begin: u32_at(bytes, 56),
            after: u32_at(bytes, 60),
        })
    }
}

/// What a control datagram says besides its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Credits given since the session began, by class, modulo 2^32.
    pub(crate) granted: [u32; 2],
    /// Bytes that the receiver's socket takes without being read.
    pub(crate) window_bytes: u32,
    /// How long ago the datagram of the highest number came.
    pub(crate) delay_us: u32,
    /// Datagrams that came: the first and the one behind the last of each range, the highest range first.
    pub(crate) ranges: [(u64, u64); RANGES],
    /// How many ranges there are.
    pub(crate) count: usize,
}

impl Report {
    /// Writes the report; how many bytes it takes.
    pub(crate) fn encode(&self, bytes: &mut [u8]) -> usize {
        bytes[0..4].copy_from_slice(&self.granted[0].to_le_bytes());
        bytes[4..8].copy_from_slice(&self.granted[1].to_le_bytes());
        bytes[8..12].copy_from_slice(&self.window_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.delay_us.to_le_bytes());
        bytes[16..20].copy_from_slice(&(self.count as u32).to_le_bytes());
        bytes[20..24].fill(0);
        for (index, (begin, end)) in self.ranges[..self.count].iter().enumerate() {
            let at = REPORT_BYTES + 16 * index;
            bytes[at..at + 8].copy_from_slice(&begin.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&end.to_le_bytes());
        }
        REPORT_BYTES + 16 * self.count
    }

    /// Reads a report.
    ///
    /// # Errors
    /// [`NotOurs`] for ranges that are empty, touch, or do not descend, and for lengths that do not fit.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, NotOurs> {
        if bytes.len() < REPORT_BYTES || u32_at(bytes, 20) != 0 {
            return Err(NotOurs);
        }
        let count = u32_at(bytes, 16) as usize;
        if count > RANGES || bytes.len() != REPORT_BYTES + 16 * count {
            return Err(NotOurs);
        }
        let mut ranges = [(0, 0); RANGES];
        let mut above = u64::MAX;
        for (index, range) in ranges[..count].iter_mut().enumerate() {
            let at = REPORT_BYTES + 16 * index;
            let (begin, end) = (u64_at(bytes, at), u64_at(bytes, at + 8));
            if begin >= end || end >= above {
                return Err(NotOurs);
            }
            (*range, above) = ((begin, end), begin);
        }
        let (granted, window_bytes) = ([u32_at(bytes, 0), u32_at(bytes, 4)], u32_at(bytes, 8));
        Ok(Self { granted, window_bytes, delay_us: u32_at(bytes, 12), ranges, count })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn heads_come_back_as_they_were_written_and_no_mangled_one_does(
            kind in 0..6_usize, flags in 0..=ALL_FLAGS, longs in any::<[u64; 4]>(), shorts in any::<[u32; 6]>(),
            bit in 0..512_usize,
        ) {
            let head = Head {
                kind: Kind::ALL[kind], flags, session: longs[0], number: longs[1], sequence: longs[2], tag: longs[3],
                epoch: shorts[0], stream: shorts[1], message_bytes: shorts[2], offset: shorts[3], begin: shorts[4],
                after: shorts[5],
            };
            let mut bytes = head.bytes();
            prop_assert_eq!(Head::decode(&bytes), Ok(head));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Head::decode(&bytes), Err(NotOurs));
            prop_assert_eq!(Head::decode(&bytes[..63]), Err(NotOurs));
        }

        #[test]
        fn any_bytes_are_a_report_that_is_written_alike_or_none(mut bytes in prop::collection::vec(0..3_u8, 0..120)) {
            if bytes.len() >= REPORT_BYTES {
                let count = (bytes.len() - REPORT_BYTES) / 16;
                bytes[16..20].copy_from_slice(&(count as u32).to_le_bytes());
            }
            if let Ok(report) = Report::decode(&bytes) {
                let mut again = [0; CONTROL_BYTES];
                let length = report.encode(&mut again);
                prop_assert_eq!(&again[..length], &bytes[..]);
            }
        }
    }

    #[test]
    fn reports_descend_and_do_not_touch() {
        let mut report = Report { granted: [1, 2], window_bytes: 3, delay_us: 4, ranges: [(0, 0); RANGES], count: 2 };
        let mut with = |first, second| {
            (report.ranges[0], report.ranges[1]) = (first, second);
            let mut bytes = [0; CONTROL_BYTES];
            let length = report.encode(&mut bytes);
            Report::decode(&bytes[..length]).is_ok()
        };
        assert!(with((10, 12), (3, 9)));
        assert!(!with((10, 12), (3, 10)), "they touch");
        assert!(!with((10, 12), (13, 14)), "they ascend");
        assert!(!with((10, 10), (3, 4)), "one is empty");
        assert!(!with((10, 12), (4, 3)), "one is inside out");
    }
}
