//! What the two sides of a transfer say: kinds, bodies, and the checks of a claim.
//!
//! The transport's word that travels with each message is `kind << 56 | number`; the number is that of an entry, or for
//! data the place in the file. The body of data is the file's bytes and nothing else, so that it goes from the page
//! cache into a slot, and from a slot into a file.

use thiserror::Error;

/// The first words of both sides: the name and version of this form.
const MAGIC: &[u8; 8] = b"zcmi-tx1";
/// Entries that may be unanswered at a time.
pub(crate) const WINDOW: usize = 128;
/// The longest path of an entry, and the longest target of a link.
pub(crate) const MAX_PATH_BYTES: usize = 4095;
/// The longest text for people.
const MAX_TEXT_BYTES: usize = 1024;
/// The longest body of all but data.
pub(crate) const MAX_BODY_BYTES: usize = 2 * MAX_PATH_BYTES + 64;
/// A length that is not known, because the bytes come from a pipe.
const UNKNOWN: u64 = u64::MAX;
const NUMBER: u64 = (1 << 56) - 1;

/// How a peer broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum TransferFault {
    #[error("it does not speak as `zcmi send` and `zcmi recv` of this release do")]
    Magic,
    #[error("it said a message of kind {kind} that cannot be read: {why}")]
    Body { kind: u8, why: &'static str },
    #[error("it said a message of kind {kind}, which does not exist")]
    Kind { kind: u8 },
    #[error("it said {what} where that cannot come")]
    Order { what: &'static str },
    #[error("it spoke of entry {number}, and {expected} is next")]
    Number { number: u64, expected: u64 },
    #[error("it spoke of more than {WINDOW} entries before it took the answers")]
    Window,
    #[error("it said bytes from {offset} on, and {expected} is next")]
    Offset { offset: u64, expected: u64 },
    #[error("it speaks of {claimed} bytes, and {bytes} came")]
    Size { claimed: u64, bytes: u64 },
    #[error("it speaks of {claimed} entries, and {entries} came")]
    Entries { claimed: u64, entries: u64 },
}

/// When a file was written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// What a file is, as its sender sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// `None` for what comes from a pipe.
    pub(crate) size: Option<u64>,
    pub(crate) mtime: Stamp,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Tells this file from others of the same name.
    pub(crate) identity: u128,
}

/// One thing said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// Both sides, first: whether this side wants files hashed, and how many bytes come, if it knows.
    Hello { hashed: bool, bytes: Option<u64> },
    /// A directory begins.
    Directory { number: u64, path: &'a [u8] },
    /// A symbolic link.
    Link { number: u64, path: &'a [u8], target: &'a [u8] },
    /// A file is there to be had.
    File { number: u64, source: Source, path: &'a [u8] },
    /// The hash of as many bytes of a file as the other side asked for.
    Proof { number: u64, hash: u128 },
    /// Bytes of the file whose turn it is.
    Data { offset: u64 },
    /// The file whose turn it is has ended.
    FileEnd { number: u64, size: u64, hash: Option<u128> },
    /// The file whose turn it is, or would be, cannot be sent whole.
    Skip { number: u64, why: &'a [u8] },
    /// A directory ends: everything in it was said.
    Leave { number: u64, mtime: Stamp, mode: u32, path: &'a [u8] },
    /// There are no more entries.
    End { entries: u64, bytes: u64, left_out: u64 },
    /// This side cannot go on.
    Abort { why: &'a [u8] },
    /// So many bytes of this file seem to be there: prove that they are yours.
    Prove { number: u64, length: u64 },
    /// Send this file from here on.
    Go { number: u64, from: u64 },
    /// The entry is in its place; of a file, the hash of what is there.
    Kept { number: u64, hash: Option<u128> },
    /// The entry is not taken.
    Refused { number: u64, why: &'a [u8] },
    /// Everything is in its place.
    Done { entries: u64 },
}

/// Text for people as it may be sent: not too long.
fn text(why: &[u8]) -> &[u8] {
    &why[..why.len().min(MAX_TEXT_BYTES)]
}

impl Message<'_> {
    fn kind_and_number(&self) -> (u8, u64) {
        match *self {
            Self::Hello { .. } => (1, 0),
            Self::Directory { number, .. } => (2, number),
            Self::Link { number, .. } => (3, number),
            Self::File { number, .. } => (4, number),
            Self::Proof { number, .. } => (5, number),
            Self::Data { offset } => (6, offset),
            Self::FileEnd { number, .. } => (7, number),
            Self::Skip { number, .. } => (8, number),
            Self::Leave { number, .. } => (9, number),
            Self::End { .. } => (10, 0),
            Self::Abort { .. } => (11, 0),
            Self::Prove { number, .. } => (12, number),
            Self::Go { number, .. } => (13, number),
            Self::Kept { number, .. } => (14, number),
            Self::Refused { number, .. } => (15, number),
            Self::Done { .. } => (16, 0),
        }
    }

    /// The word that goes with it.
    pub(crate) fn tag(&self) -> u64 {
        let (kind, number) = self.kind_and_number();
        u64::from(kind) << 56 | number & NUMBER
    }

    /// The body; of data there is none, the file's bytes are.
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let mut put = |bytes: &[u8]| body.extend_from_slice(bytes);
        match *self {
            Self::Hello { hashed, bytes } => {
                put(MAGIC);
                put(&u64::from(hashed).to_le_bytes());
                put(&bytes.unwrap_or(UNKNOWN).to_le_bytes());
            }
            Self::Directory { path, .. } => put(path),
            Self::Link { path, target, .. } => {
                put(&(path.len() as u64).to_le_bytes());
                put(path);
                put(target);
            }
            Self::File { source: Source { size, mtime, mode, identity }, path, .. } => {
                put(&size.unwrap_or(UNKNOWN).to_le_bytes());
                put(&mtime.seconds.to_le_bytes());
                put(&mtime.nanoseconds.to_le_bytes());
                put(&mode.to_le_bytes());
                put(&identity.to_le_bytes());
                put(path);
            }
            Self::Proof { hash, .. } => put(&hash.to_le_bytes()),
            Self::Data { .. } => {}
            Self::FileEnd { size, hash, .. } => {
                put(&size.to_le_bytes());
                put(hash.map(u128::to_le_bytes).as_ref().map_or(&[], |hash| hash));
            }
            Self::Skip { why, .. } | Self::Abort { why } | Self::Refused { why, .. } => put(text(why)),
            Self::Leave { mtime, mode, path, .. } => {
                put(&mtime.seconds.to_le_bytes());
                put(&mtime.nanoseconds.to_le_bytes());
                put(&mode.to_le_bytes());
                put(path);
            }
            Self::End { entries, bytes, left_out } => {
                put(&entries.to_le_bytes());
                put(&bytes.to_le_bytes());
                put(&left_out.to_le_bytes());
            }
            Self::Prove { length, .. } => put(&length.to_le_bytes()),
            Self::Go { from, .. } => put(&from.to_le_bytes()),
            Self::Kept { hash, .. } => put(hash.map(u128::to_le_bytes).as_ref().map_or(&[], |hash| hash)),
            Self::Done { entries } => put(&entries.to_le_bytes()),
        }
        body
    }
}

/// A body that is being read.
struct Body<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn wrong<T>(&self, why: &'static str) -> Result<T, TransferFault> {
        Err(TransferFault::Body { kind: self.kind, why })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], TransferFault> {
        match self.rest.split_first_chunk() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => self.wrong("it is too short"),
        }
    }

    fn u64(&mut self) -> Result<u64, TransferFault> {
        self.take().map(u64::from_le_bytes)
    }

    /// A number of bytes, each of which has a place that can be said.
    fn length(&mut self) -> Result<u64, TransferFault> {
        match self.u64()? {
            length if length <= NUMBER => Ok(length),
            _ => self.wrong("a length is past 2^56"),
        }
    }

    fn length_or_unknown(&mut self) -> Result<Option<u64>, TransferFault> {
        match self.u64()? {
            UNKNOWN => Ok(None),
            length if length <= NUMBER => Ok(Some(length)),
            _ => self.wrong("a length is past 2^56"),
        }
    }

    fn stamp(&mut self) -> Result<Stamp, TransferFault> {
        let (seconds, nanoseconds) = (i64::from_le_bytes(self.take()?), u32::from_le_bytes(self.take()?));
        if nanoseconds >= 1_000_000_000 { self.wrong("a time is none") } else { Ok(Stamp { seconds, nanoseconds }) }
    }

    fn mode(&mut self) -> Result<u32, TransferFault> {
        Ok(u32::from_le_bytes(self.take()?) & 0o777)
    }

    fn hash(&mut self) -> Result<u128, TransferFault> {
        self.take().map(u128::from_le_bytes)
    }

    fn hash_or_none(&mut self) -> Result<Option<u128>, TransferFault> {
        if self.rest.is_empty() { Ok(None) } else { self.hash().map(Some) }
    }

    fn path(&mut self) -> Result<&'a [u8], TransferFault> {
        match core::mem::take(&mut self.rest) {
            path if path.len() <= MAX_PATH_BYTES => Ok(path),
            _ => self.wrong("a path is longer than 4095 bytes"),
        }
    }

    fn text(&mut self) -> &'a [u8] {
        text(core::mem::take(&mut self.rest))
    }

    fn finish<T>(self, value: T) -> Result<T, TransferFault> {
        if self.rest.is_empty() { Ok(value) } else { self.wrong("it is too long") }
    }
}

impl<'a> Message<'a> {
    /// Reads what a peer claims. The body of data is not looked at.
    pub(crate) fn decode(tag: u64, body: &'a [u8]) -> Result<Self, TransferFault> {
        let (kind, number) = ((tag >> 56) as u8, tag & NUMBER);
        let mut body = Body { kind, rest: body };
        let said = match kind {
            1 => {
                if body.take::<8>() != Ok(*MAGIC) {
                    return Err(TransferFault::Magic);
                }
                Self::Hello { hashed: body.u64()? & 1 != 0, bytes: body.length_or_unknown()? }
            }
            2 => Self::Directory { number, path: body.path()? },
            3 => {
                let length = body.u64()?;
                let Some((path, target)) = usize::try_from(length).ok().and_then(|at| body.rest.split_at_checked(at))
                else {
                    return body.wrong("it is too short");
                };
                body.rest = &[];
                if path.len() > MAX_PATH_BYTES || target.len() > MAX_PATH_BYTES {
                    return body.wrong("a path is longer than 4095 bytes");
                }
                Self::Link { number, path, target }
            }
            4 => {
                let (size, mtime, mode) = (body.length_or_unknown()?, body.stamp()?, body.mode()?);
                let source = Source { size, mtime, mode, identity: body.hash()? };
                Self::File { number, source, path: body.path()? }
            }
            5 => Self::Proof { number, hash: body.hash()? },
            6 => return Ok(Self::Data { offset: number }),
            7 => Self::FileEnd { number, size: body.length()?, hash: body.hash_or_none()? },
            8 => Self::Skip { number, why: body.text() },
            9 => Self::Leave { number, mtime: body.stamp()?, mode: body.mode()?, path: body.path()? },
            10 => Self::End { entries: body.u64()?, bytes: body.u64()?, left_out: body.u64()? },
            11 => Self::Abort { why: body.text() },
            12 => Self::Prove { number, length: body.length()? },
            13 => Self::Go { number, from: body.length()? },
            14 => Self::Kept { number, hash: body.hash_or_none()? },
            15 => Self::Refused { number, why: body.text() },
            16 => Self::Done { entries: body.u64()? },
            _ => return Err(TransferFault::Kind { kind }),
        };
        body.finish(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { seconds: -5, nanoseconds: 999_999_999 };

    fn all() -> Vec<Message<'static>> {
        let source = Source { size: None, mtime: STAMP, mode: 0o644, identity: 7 };
        vec![
            Message::Hello { hashed: true, bytes: Some(9) },
            Message::Hello { hashed: false, bytes: None },
            Message::Directory { number: 1, path: b"a" },
            Message::Link { number: 2, path: b"a/b", target: b"../c" },
            Message::File { number: 3, source, path: b"" },
            Message::File { number: 3, source: Source { size: Some(0), ..source }, path: b"x" },
            Message::Proof { number: NUMBER, hash: u128::MAX },
            Message::FileEnd { number: 4, size: 5, hash: Some(6) },
            Message::FileEnd { number: 4, size: 5, hash: None },
            Message::Skip { number: 4, why: b"gone" },
            Message::Leave { number: 5, mtime: STAMP, mode: 0o755, path: b"a" },
            Message::End { entries: 1, bytes: 2, left_out: 3 },
            Message::Abort { why: b"" },
            Message::Prove { number: 6, length: 7 },
            Message::Go { number: 6, from: 7 },
            Message::Kept { number: 6, hash: None },
            Message::Kept { number: 6, hash: Some(1) },
            Message::Refused { number: 6, why: b"no" },
            Message::Done { entries: 4 },
        ]
    }

    #[test]
    fn what_is_said_is_understood() {
        for said in all() {
            assert_eq!(Message::decode(said.tag(), &said.body()), Ok(said));
        }
        assert_eq!(Message::decode(6 << 56 | 77, b"bytes"), Ok(Message::Data { offset: 77 }));
    }

    #[test]
    fn bodies_that_are_cut_lengthened_or_changed_never_panic_and_short_ones_are_refused() {
        for said in all() {
            let body = said.body();
            for cut in 0..body.len() {
                let _understood_or_not = Message::decode(said.tag(), &body[..cut]);
            }
            for at in 0..body.len() {
                let mut changed = body.clone();
                changed[at] ^= 0xff;
                let _understood_or_not = Message::decode(said.tag(), &changed);
            }
        }
        let said = Message::End { entries: 1, bytes: 2, left_out: 3 };
        let wrong = |why| Err(TransferFault::Body { kind: 10, why });
        assert_eq!(Message::decode(said.tag(), &said.body()[..23]), wrong("it is too short"));
        assert_eq!(Message::decode(said.tag(), &[said.body(), vec![0]].concat()), wrong("it is too long"));
        assert_eq!(Message::decode(17 << 56, b""), Err(TransferFault::Kind { kind: 17 }));
        assert_eq!(Message::decode(1 << 56, b"zcmi-tx0"), Err(TransferFault::Magic));
        let long = vec![b'a'; MAX_PATH_BYTES + 1];
        assert!(Message::decode(2 << 56, &long).is_err());
        assert!(Message::decode(3 << 56, &u64::MAX.to_le_bytes()).is_err());
    }
}
