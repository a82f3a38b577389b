//! The form of a stream: what the messages of `zcmi pub` say.
//!
//! ```text
//! one message   | body: 0 to 1 MiB | foot: 32 bytes |
//! one stream    (begin, data ..., end of file) ..., end of stream        or, given up: ..., abort
//! ```
//!
//! The body begins where the slot begins, at a page: data is read into it and written from it without another copy. The
//! picture with every byte is in `docs/layout/stream.md`.
//!
//! Invariants: the position in every foot is the number of data bytes before it; nothing follows the end or an abort;
//! the end repeats the number of files and bytes, and the hash (xxh3, 128 bits) of every message before it, foot
//! included. So a stream that is cut, reordered or changed is never taken for a whole one.
//!
//! What it does not do: it does not judge file names. Who stores them does.

use xxhash_rust::xxh3::Xxh3;

/// Bytes of a foot.
pub(crate) const FOOT_BYTES: usize = 32;
/// The most bytes of a body.
pub(crate) const MAX_BODY_BYTES: usize = 1 << 20;
/// The most bytes of a message.
pub(crate) const MAX_MESSAGE_BYTES: usize = MAX_BODY_BYTES + FOOT_BYTES;
/// What every foot begins with: the name and version of this form.
const MAGIC: [u8; 4] = *b"zcs1";
/// The size of a file that nobody knows beforehand.
const UNKNOWN: u64 = u64::MAX;

const BEGIN: u32 = 1;
const DATA: u32 = 2;
const END_OF_FILE: u32 = 3;
const END: u32 = 4;
const ABORT: u32 = 5;

/// What one message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// A file begins. Its name is a claim; empty for one that has none.
    Begin {
        /// The name, bytes as the file system of the publisher has them.
        name: &'a [u8],
        /// How long the publisher believes it to be.
        size: Option<u64>,
        /// Files of the stream from this one on.
        left: u64,
    },
    /// Bytes of the file.
    Data(&'a [u8]),
    /// The file has ended.
    EndOfFile {
        /// Its length.
        bytes: u64,
    },
    /// The stream has ended, and everything arrived as it was sent.
    End {
        /// How many files there were.
        files: u64,
        /// How many bytes they had together.
        bytes: u64,
        /// The hash of all that was sent.
        hash: u128,
    },
    /// The publisher gives up.
    Abort {
        /// Why, in words.
        reason: String,
    },
}

/// What a publisher says next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Saying {
    /// A file begins; the body is its name.
    Begin {
        /// How long it is believed to be.
        size: Option<u64>,
        /// Files of the stream from this one on.
        left: u64,
    },
    /// The body is data.
    Data,
    /// The file has ended; no body.
    EndOfFile,
    /// The stream has ended; the body is 16 bytes, which are written here.
    End,
    /// The body says why.
    Abort,
}

/// The publisher's side: writes feet, and knows how far it is.
#[derive(Clone)]
pub(crate) struct Composer {
    hash: Xxh3,
    offset: u64,
    file_begin: u64,
    files: u64,
}

impl Composer {
    pub(crate) fn new() -> Self {
        Self { hash: Xxh3::new(), offset: 0, file_begin: 0, files: 0 }
    }

    /// Data bytes said so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Files said so far.
    pub(crate) fn files(&self) -> u64 {
        self.files
    }

    /// The hash of everything said so far.
    pub(crate) fn hash(&self) -> u128 {
        self.hash.digest128()
    }

    /// Completes a message whose body is written: the last 32 bytes become its foot.
    ///
    /// # Panics
    /// If there is no room for the foot.
    pub(crate) fn complete(&mut self, saying: Saying, message: &mut [u8]) {
        let (body, foot) = message.split_at_mut(message.len() - FOOT_BYTES);
        let (kind, number, count) = match saying {
            Saying::Begin { size, left } => (BEGIN, size.unwrap_or(UNKNOWN), left),
            Saying::Data => (DATA, 0, 0),
            Saying::EndOfFile => (END_OF_FILE, self.offset - self.file_begin, 0),
            Saying::End => {
                body.copy_from_slice(&self.hash().to_le_bytes());
                (END, self.offset, self.files)
            }
            Saying::Abort => (ABORT, 0, 0),
        };
        foot[0..4].copy_from_slice(&MAGIC);
        foot[4..8].copy_from_slice(&kind.to_le_bytes());
        foot[8..16].copy_from_slice(&self.offset.to_le_bytes());
        foot[16..24].copy_from_slice(&number.to_le_bytes());
        foot[24..32].copy_from_slice(&count.to_le_bytes());
        match saying {
            Saying::Begin { .. } => {
                self.files += 1;
                self.file_begin = self.offset;
            }
            Saying::Data => self.offset += body.len() as u64,
            Saying::EndOfFile | Saying::End | Saying::Abort => {}
        }
        self.hash.update(message);
    }
}

/// Why a message is not the next one of a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamFault {
    #[error("a message of {bytes} bytes is too short or too long for a stream's ({FOOT_BYTES} to {MAX_MESSAGE_BYTES})")]
    Length { bytes: usize },
    #[error("the messages are not those of `zcmi pub` (a foot begins with {found:02x?}, not {MAGIC:02x?})")]
    Magic { found: [u8; 4] },
    #[error("a message says it stands at byte {said}, but byte {at} is next")]
    Position { said: u64, at: u64 },
    #[error("a message of kind {kind} cannot come {place}")]
    Order { kind: u32, place: &'static str },
    #[error("a file of {counted} bytes ended as one of {said}")]
    FileLength { said: u64, counted: u64 },
    #[error("a file begins as the first of {said} that are left, but {left} are")]
    FilesLeft { said: u64, left: u64 },
    #[error("the end speaks of {said_files} files and {said} bytes, but {files} and {bytes} came")]
    Total { said_files: u64, said: u64, files: u64, bytes: u64 },
    #[error("the hash of what came is {counted:032x}, but {said:032x} was sent")]
    Hash { said: u128, counted: u128 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    BetweenFiles,
    InFile,
    AfterTheEnd,
}

impl Place {
    fn words(self) -> &'static str {
        match self {
            Self::BetweenFiles => "between files",
            Self::InFile => "within a file",
            Self::AfterTheEnd => "after the end",
        }
    }
}

/// The subscriber's side: judges messages, and knows how far it is.
pub(crate) struct Checker {
    hash: Xxh3,
    offset: u64,
    file_begin: u64,
    files: u64,
    /// Files that are still to come; unknown before the first.
    left: Option<u64>,
    place: Place,
}

impl Checker {
    pub(crate) fn new() -> Self {
        Self { hash: Xxh3::new(), offset: 0, file_begin: 0, files: 0, left: None, place: Place::BetweenFiles }
    }

    /// Files that have begun so far.
    pub(crate) fn files(&self) -> u64 {
        self.files
    }

    /// Data bytes that came so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads the next message.
    ///
    /// # Errors
    /// [`StreamFault`]: the stream cannot go on.
    pub(crate) fn read<'a>(&mut self, message: &'a [u8]) -> Result<Record<'a>, StreamFault> {
        let bytes = message.len();
        if bytes > MAX_MESSAGE_BYTES {
            return Err(StreamFault::Length { bytes });
        }
        let (body, foot) = message.split_last_chunk::<FOOT_BYTES>().ok_or(StreamFault::Length { bytes })?;
        let word = |at: usize| u64::from_le_bytes(foot[at..at + 8].try_into().expect("eight bytes"));
        let magic: [u8; 4] = foot[..4].try_into().expect("four bytes");
        if magic != MAGIC {
            return Err(StreamFault::Magic { found: magic });
        }
        let kind = u32::from_le_bytes(foot[4..8].try_into().expect("four bytes"));
        let (said_offset, number, count) = (word(8), word(16), word(24));
        if said_offset != self.offset {
            return Err(StreamFault::Position { said: said_offset, at: self.offset });
        }
        let record = match (kind, self.place) {
            (BEGIN, Place::BetweenFiles) => {
                self.place = Place::InFile;
                self.files += 1;
                self.file_begin = self.offset;
                let left = self.left.unwrap_or(count);
                if count != left || count == 0 {
                    return Err(StreamFault::FilesLeft { said: count, left });
                }
                self.left = Some(left - 1);
                Record::Begin { name: body, size: (number != UNKNOWN).then_some(number), left }
            }
            (DATA, Place::InFile) => {
                self.offset += body.len() as u64;
                Record::Data(body)
            }
            (END_OF_FILE, Place::InFile) => {
                self.place = Place::BetweenFiles;
                let counted = self.offset - self.file_begin;
                if number != counted {
                    return Err(StreamFault::FileLength { said: number, counted });
                }
                Record::EndOfFile { bytes: counted }
            }
            (END, Place::BetweenFiles) => self.read_end(body, number, count)?,
            (ABORT, Place::BetweenFiles | Place::InFile) => {
                self.place = Place::AfterTheEnd;
                // Words of another process: what a terminal would act upon is taken out.
                let words = String::from_utf8_lossy(&body[..body.len().min(1024)]);
                Record::Abort { reason: words.chars().filter(|letter| !letter.is_control()).collect() }
            }
            (kind, place) => return Err(StreamFault::Order { kind, place: place.words() }),
        };
        self.hash.update(message);
        Ok(record)
    }

    fn read_end<'a>(&mut self, body: &[u8], said: u64, said_files: u64) -> Result<Record<'a>, StreamFault> {
        self.place = Place::AfterTheEnd;
        let (files, bytes) = (self.files, self.offset);
        if let Some(left @ 1..) = self.left {
            return Err(StreamFault::FilesLeft { said: 0, left });
        }
        if (said_files, said) != (files, bytes) {
            return Err(StreamFault::Total { said_files, said, files, bytes });
        }
        let said = u128::from_le_bytes(body.try_into().map_err(|_| StreamFault::Length { bytes: body.len() })?);
        let counted = self.hash.digest128();
        if said != counted {
            return Err(StreamFault::Hash { said, counted });
        }
        Ok(Record::End { files, bytes, hash: counted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(composer: &mut Composer, saying: Saying, body: &[u8]) -> Vec<u8> {
        let mut message = body.to_vec();
        message.resize(body.len() + FOOT_BYTES, 0);
        composer.complete(saying, &mut message);
        message
    }

    fn stream() -> Vec<Vec<u8>> {
        let mut composer = Composer::new();
        let sayings = [
            (Saying::Begin { size: Some(5), left: 2 }, b"one".as_slice()),
            (Saying::Data, b"abc"),
            (Saying::Data, b"de"),
            (Saying::EndOfFile, b""),
            (Saying::Begin { size: None, left: 1 }, b""),
            (Saying::EndOfFile, b""),
            (Saying::End, &[0; 16]),
        ];
        sayings.into_iter().map(|(saying, body)| message(&mut composer, saying, body)).collect()
    }

    fn read_all(messages: &[Vec<u8>]) -> Result<Option<(u64, u64)>, StreamFault> {
        let mut checker = Checker::new();
        let mut end = None;
        for message in messages {
            if let Record::End { files, bytes, .. } = checker.read(message)? {
                end = Some((files, bytes));
            }
        }
        Ok(end)
    }

    #[test]
    fn what_was_composed_is_read_back() {
        let messages = stream();
        let mut checker = Checker::new();
        assert_eq!(checker.read(&messages[0]), Ok(Record::Begin { name: b"one", size: Some(5), left: 2 }));
        assert_eq!(checker.read(&messages[1]), Ok(Record::Data(b"abc")));
        assert_eq!(checker.offset(), 3);
        assert_eq!(read_all(&messages), Ok(Some((2, 5))));
    }

    #[test]
    fn a_message_that_is_missing_twice_there_or_elsewhere_is_noticed() {
        let whole = stream();
        for index in 0..whole.len() {
            let mut cut = whole.clone();
            cut.remove(index);
            assert!(!matches!(read_all(&cut), Ok(Some(_))), "without message {index}");
            let mut twice = whole.clone();
            twice.insert(index, whole[index].clone());
            assert!(read_all(&twice).is_err(), "message {index} twice");
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let whole = stream();
        for index in 0..whole.len() {
            for bit in 0..whole[index].len() * 8 {
                let mut changed = whole.clone();
                changed[index][bit / 8] ^= 1 << (bit % 8);
                assert!(!matches!(read_all(&changed), Ok(Some(_))), "bit {bit} of message {index}");
            }
        }
    }

    #[test]
    fn the_files_are_as_many_as_the_first_says() {
        let mut composer = Composer::new();
        let mut say = |saying, body: &[u8]| message(&mut composer, saying, body);
        let begin = say(Saying::Begin { size: None, left: 2 }, b"");
        let end_of_file = say(Saying::EndOfFile, b"");
        let early_end = say(Saying::End, &[0; 16]);
        assert_eq!(read_all(&[begin, end_of_file, early_end]), Err(StreamFault::FilesLeft { said: 0, left: 1 }));
        for left in [0, 2] {
            let mut composer = Composer::new();
            let first = message(&mut composer, Saying::Begin { size: None, left: 2 }, b"");
            let end_of_file = message(&mut composer, Saying::EndOfFile, b"");
            let second = message(&mut composer, Saying::Begin { size: None, left }, b"");
            let fault = StreamFault::FilesLeft { said: left, left: 1 };
            assert_eq!(read_all(&[first, end_of_file, second]), Err(fault));
        }
    }

    #[test]
    fn messages_of_somebody_else_are_faults() {
        assert_eq!(Checker::new().read(&[1; 31]), Err(StreamFault::Length { bytes: 31 }));
        assert!(matches!(Checker::new().read(&[1; 40]), Err(StreamFault::Magic { .. })));
    }

    #[test]
    fn an_abort_is_no_end_and_says_why_without_control_letters() {
        let mut composer = Composer::new();
        let begin = message(&mut composer, Saying::Begin { size: None, left: 1 }, b"");
        let abort = message(&mut composer, Saying::Abort, b"no\x1b[2J more");
        let mut checker = Checker::new();
        assert!(checker.read(&begin).is_ok());
        assert_eq!(checker.read(&abort), Ok(Record::Abort { reason: "no[2J more".into() }));
        assert!(matches!(checker.read(&begin), Err(StreamFault::Order { .. })));
    }
}
