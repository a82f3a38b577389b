//! The connections of a transport, told to whoever looks: a board in memory that other processes read.
//!
//! ```text
//! offset 0        4096          4608
//!        | header | BoardHeader | 256 rows of 1024 bytes: a sequence, and 127 words that say one connection |
//! ```
//!
//! # Invariants
//! - A board has one writer, its transport's thread, in a region of its own that everybody else maps to read.
//! - A row belongs to one connection, or to nobody. Connections beyond the rows are counted, and have none.
//! - A refresh writes a bounded number of rows, at most every [`REFRESH`]; nothing is written for a message.
//! - Whoever reads a board of another process reads claims: numbers that mean nothing are nothing, text is cut where it
//!   stops being text ([`reader`]).
//!
//! # Edges
//! - **B1**: a row is rewritten only while its sequence is odd. The writer stores the odd sequence, `fence(Release)`,
//!   the words, and the even sequence with release; the reader loads an even sequence, `fence(Acquire)`, the words,
//!   `fence(Acquire)`, and the same sequence again. All loads are relaxed, as read-only memory demands.
//!
//! # What this does not do
//! A transport that is not polled refreshes nothing. What happened in the last moments before, up to [`REFRESH`], may
//! so be missing in its rows if its user waits on its descriptor and not in `poll`.

pub mod find;
mod raw;
pub mod reader;

use core::mem::offset_of;
use std::sync::Arc;
use std::time::{Duration, Instant};

use zcmi_mem::region::{HEADER_BYTES, Region};
use zcmi_ring::View;
use zcmi_ring::sync::{AtomicU64, Ordering, fence};

use crate::link::PathCounts;
use crate::path::PathKind;
use crate::select::{Reason, Selection};
use crate::slots::SlotsError;

pub use find::{AllLinks, ProcessLinks, all_links};
pub use reader::{BoardClaimError, BoardReader, BoardReading};

/// How old a row may be, if its transport is polled.
pub const REFRESH: Duration = Duration::from_millis(100);
/// Rows of a board.
pub const ROWS: usize = 256;
/// Rows that one refresh writes at most.
pub const ROWS_AT_A_TIME: usize = 16;
/// The version of a board's layout.
pub const BOARD_VERSION: u64 = 1;
/// Bytes of an address; longer ones are cut.
pub const ADDRESS_BYTES: usize = 64;

const MAGIC_BYTES: &[u8; 8] = b"zcmi-lnk";
const MAGIC: u64 = u64::from_le_bytes(*MAGIC_BYTES);
const PATHS: usize = PathKind::ALL.len();
/// Words of a row behind its sequence.
const WORDS: usize = 127;

/// What a board begins with, behind the header of its region.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct BoardHeader {
    magic: AtomicU64,
    version: AtomicU64,
    pid: AtomicU64,
    rows: AtomicU64,
    /// Connections that have no row.
    unlisted: AtomicU64,
    reserved: [AtomicU64; 59],
}

/// A row: what one connection says.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct BoardRow {
    /// Odd while the words are rewritten.
    sequence: AtomicU64,
    words: [AtomicU64; WORDS],
}

const HEADER_OFFSET: usize = HEADER_BYTES;
const ROWS_OFFSET: usize = HEADER_OFFSET + size_of::<BoardHeader>();
const BOARD_BYTES: usize = ROWS_OFFSET + ROWS * size_of::<BoardRow>() - HEADER_OFFSET;

const _: () = {
    assert!(size_of::<BoardHeader>() == 512 && offset_of!(BoardHeader, reserved) == 40);
    // 1 word and 127 words: with 1,024 bytes in all there is no padding.
    assert!(size_of::<BoardRow>() == 1024 && offset_of!(BoardRow, words) == 8);
    assert!(ROWS_OFFSET == 4608);
};

/// Where the words of a row lie, behind its sequence.
mod word {
    pub(super) const STAGE: usize = 0;
    pub(super) const CONNECTION: usize = 1;
    pub(super) const SOCKET: usize = 2;
    pub(super) const ACCEPTED: usize = 3;
    pub(super) const PATH: usize = 4;
    pub(super) const REASON: usize = 5;
    /// The fields of [`Counts`](super::Counts), in their order.
    pub(super) const COUNTS: usize = 6;
    pub(super) const LOCAL: usize = 23;
    pub(super) const REMOTE: usize = 31;
    /// Twelve words for each path, in the order of `PathKind::ALL`.
    pub(super) const PATHS: usize = 39;
    pub(super) const PATH_WORDS: usize = 12;
    pub(super) const ADDRESS_WORDS: usize = super::ADDRESS_BYTES / 8;
    const _: () = assert!(COUNTS + super::COUNTS <= LOCAL && LOCAL + ADDRESS_WORDS == REMOTE);
    const _: () = assert!(REMOTE + ADDRESS_WORDS == PATHS && PATHS + super::PATHS * PATH_WORDS <= super::WORDS);
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkStage {
    /// Its socket is connecting, or greeting.
    Greeting,
    /// It works.
    Open,
    /// It is broken, and being mended.
    Broken,
}

impl LinkStage {
    const ALL: [Self; 3] = [Self::Greeting, Self::Open, Self::Broken];

    /// The word for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Greeting => "greeting",
            Self::Open => "open",
            Self::Broken => "broken",
        }
    }
}

/// What kind of socket carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkSocket {
    /// TCP.
    Tcp,
    /// A Unix stream socket.
    Unix,
    /// UDP.
    Udp,
}

impl LinkSocket {
    const ALL: [Self; 3] = [Self::Tcp, Self::Unix, Self::Udp];

    /// The word for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Udp => "udp",
        }
    }
}

const REASONS: [Reason; 4] = [Reason::First, Reason::Forced, Reason::Cheaper, Reason::WireChanged];
/// The counts of a connection: each is named once here, in the order in which they lie in a row.
macro_rules! counts {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// What a connection counted.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])+ pub $name: u64,)+
        }

        /// The fields of [`Counts`].
        const COUNTS: usize = [$(stringify!($name)),+].len();

        impl Counts {
            /// Each count with its name, in the order of the row.
            #[must_use]
            pub fn named(&self) -> [(&'static str, u64); COUNTS] {
                [$((stringify!($name), self.$name)),+]
            }

            fn of([$($name),+]: [u64; COUNTS]) -> Self {
                Self { $($name),+ }
            }
        }
    };
}

counts! {
    /// How often the path was changed.
    switches,
    /// How often the wire was found to have changed.
    changes,
    /// Calls that tried another path.
    probes,
    /// Messages that have not completed.
    unfinished,
    /// How often the connection was mended.
    mended,
    /// Messages taken for sending.
    submitted,
    /// Pieces received.
    pieces_received,
    /// Bytes of payload received.
    bytes_received,
    /// Of these, how many were copied in user space.
    copied_user,
    /// Bytes that the kernel may be reading now.
    pinned_bytes,
    /// Sends by a path that copies because too much was pinned.
    over_budget,
    /// Calls that received something; over UDP those of its socket, which the connections of a listener share.
    receives,
    /// Notifications for what was not owed.
    stray_notifications,
}

/// What was done by one path, and what the selection believes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PathFacts {
    /// What a piece costs at the sender, in nanoseconds.
    pub piece_ns: Option<f64>,
    /// What a KiB costs at the sender.
    pub kib_ns: Option<f64>,
    /// What a KiB costs at the receiver, if it told.
    pub receiver_kib_ns: Option<f64>,
    /// How many calls the costs rest on.
    pub samples: u64,
    /// How often the path was refused in a row.
    pub refused_in_a_row: u64,
    /// What its last completion said: copied or not.
    pub says_copied: Option<bool>,
    /// Calls that accepted bytes.
    pub sends: u64,
    /// Bytes accepted, headers included.
    pub bytes: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Notifications that came.
    pub notified: u64,
    /// Of these, how many said that the kernel copied.
    pub copied: u64,
}

impl PathFacts {
    /// Whether there is anything to say.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.samples > 0 || self.sends > 0 || self.refused > 0
    }

    fn words(&self) -> [u64; word::PATH_WORDS] {
        let cost = |cost: Option<f64>| cost.unwrap_or(f64::NAN).to_bits();
        let said = self.says_copied.map_or(0, |copied| 1 + u64::from(copied));
        [
            cost(self.piece_ns),
            cost(self.kib_ns),
            cost(self.receiver_kib_ns),
            self.samples,
            self.refused_in_a_row,
            said,
            self.sends,
            self.bytes,
            self.refused,
            self.notified,
            self.copied,
            0,
        ]
    }

    /// Whatever the words are.
    fn of(words: [u64; word::PATH_WORDS]) -> Self {
        let [piece, kib, receiver, samples, refused_in_a_row, said, sends, bytes, refused, notified, copied, _] = words;
        let cost = |bits| Some(f64::from_bits(bits)).filter(|cost| cost.is_finite() && *cost >= 0.0);
        Self {
            piece_ns: cost(piece),
            kib_ns: cost(kib),
            receiver_kib_ns: cost(receiver),
            samples,
            refused_in_a_row,
            says_copied: [None, Some(false), Some(true)].get(said as usize).copied().flatten(),
            sends,
            bytes,
            refused,
            notified,
            copied,
        }
    }
}

/// What is told of paths: what was done by each, and what the selection believes of it.
pub(crate) fn path_facts(counts: &[PathCounts; PATHS], selection: Option<&Selection>) -> [PathFacts; PATHS] {
    let mut paths = counts.map(|done| PathFacts {
        sends: done.sends,
        bytes: done.bytes,
        refused: done.refused,
        notified: done.notified,
        copied: done.copied,
        ..PathFacts::default()
    });
    for model in selection.iter().flat_map(|selection| &selection.models) {
        let path = &mut paths[model.path as usize];
        (path.piece_ns, path.kib_ns, path.receiver_kib_ns) =
            (Some(model.piece_ns), Some(model.kib_ns), model.receiver_kib_ns);
        (path.samples, path.refused_in_a_row) = (model.calls.into(), model.refused.into());
        path.says_copied = model.says_copied;
    }
    paths
}

/// The path for large pieces, and why it is this one. Before anything is measured, everything is written.
pub(crate) fn path_and_reason(forced: Option<PathKind>, selection: Option<&Selection>) -> (PathKind, Reason) {
    let chosen = selection.map(|selection| (selection.path, selection.reason));
    forced.map(|path| (path, Reason::Forced)).or(chosen).unwrap_or((PathKind::Write, Reason::First))
}

/// What one connection says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkFacts {
    /// Its number in its transport.
    pub connection: u64,
    /// What it is doing.
    pub stage: LinkStage,
    /// Its socket, once there was one.
    pub socket: Option<LinkSocket>,
    /// Whether the other side connected.
    pub accepted: bool,
    /// The address at this side; empty where there is none.
    pub local: String,
    /// The address at the other.
    pub remote: String,
    /// The path for large pieces.
    pub path: Option<PathKind>,
    /// Why it is this one.
    pub reason: Option<Reason>,
    /// What was counted.
    pub counts: Counts,
    /// Each path, in the order of [`PathKind::ALL`].
    pub paths: [PathFacts; PATHS],
}

/// The number of a thing in a list, counted from 1; 0 for none.
fn number<T: PartialEq>(all: &[T], one: Option<&T>) -> u64 {
    one.and_then(|one| all.iter().position(|other| other == one)).map_or(0, |index| index as u64 + 1)
}

/// The thing of that number.
fn numbered<T: Copy>(all: &[T], number: u64) -> Option<T> {
    all.get(usize::try_from(number.checked_sub(1)?).ok()?).copied()
}

fn text_words(text: &str) -> [u64; word::ADDRESS_WORDS] {
    let mut bytes = [0; ADDRESS_BYTES];
    let length = text.floor_char_boundary(ADDRESS_BYTES);
    bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
    let mut words = bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().expect("8 bytes")));
    std::array::from_fn(|_| words.next().unwrap_or(0))
}

/// The text in these words, to the first NUL, or to where it stops being text.
fn text_of(words: &[u64]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let ended = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    match str::from_utf8(ended) {
        Ok(text) => text.into(),
        Err(error) => String::from_utf8_lossy(&ended[..error.valid_up_to()]).into_owned(),
    }
}

impl LinkFacts {
    fn words(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[word::STAGE] = number(&LinkStage::ALL, Some(&self.stage));
        words[word::CONNECTION] = self.connection;
        words[word::SOCKET] = number(&LinkSocket::ALL, self.socket.as_ref());
        words[word::ACCEPTED] = self.accepted.into();
        words[word::PATH] = number(&PathKind::ALL, self.path.as_ref());
        words[word::REASON] = number(&REASONS, self.reason.as_ref());
        words[word::COUNTS..word::COUNTS + COUNTS].copy_from_slice(&self.counts.named().map(|(_, count)| count));
        words[word::LOCAL..word::REMOTE].copy_from_slice(&text_words(&self.local));
        words[word::REMOTE..word::PATHS].copy_from_slice(&text_words(&self.remote));
        for (place, path) in words[word::PATHS..].chunks_exact_mut(word::PATH_WORDS).zip(&self.paths) {
            place.copy_from_slice(&path.words());
        }
        words
    }

    /// What the words say, whatever they are; none for a row that nobody has, or whose stage is none.
    fn of(words: &[u64; WORDS]) -> Option<Self> {
        let stage = numbered(&LinkStage::ALL, words[word::STAGE])?;
        let counts = std::array::from_fn(|index| words[word::COUNTS + index]);
        let path = |path: usize| {
            PathFacts::of(std::array::from_fn(|index| words[word::PATHS + path * word::PATH_WORDS + index]))
        };
        Some(Self {
            connection: words[word::CONNECTION],
            stage,
            socket: numbered(&LinkSocket::ALL, words[word::SOCKET]),
            accepted: words[word::ACCEPTED] != 0,
            local: text_of(&words[word::LOCAL..word::REMOTE]),
            remote: text_of(&words[word::REMOTE..word::PATHS]),
            path: numbered(&PathKind::ALL, words[word::PATH]),
            reason: numbered(&REASONS, words[word::REASON]),
            counts: Counts::of(counts),
            paths: std::array::from_fn(path),
        })
    }
}

/// A transport's board, at its writer's.
#[derive(Debug)]
pub(crate) struct Board {
    header: View<BoardHeader>,
    rows: View<BoardRow>,
    /// Whose each row is.
    owners: Vec<Option<u64>>,
    free: Vec<u16>,
    /// Whether anything may have changed since the last round began.
    changed: bool,
    /// When the next rows are due, and which.
    due: Instant,
    next: usize,
    _region: Arc<Region>,
}

impl Board {
    pub(crate) fn new() -> Result<Self, SlotsError> {
        let region = Arc::new(Region::options(BOARD_BYTES).create()?);
        let header = region.view::<BoardHeader>(HEADER_OFFSET, 1)?;
        let rows = region.view::<BoardRow>(ROWS_OFFSET, ROWS)?;
        let words = header.at(0);
        words.version.store(BOARD_VERSION.to_le(), Ordering::Relaxed);
        words.pid.store(u64::from(std::process::id()).to_le(), Ordering::Relaxed);
        words.rows.store((ROWS as u64).to_le(), Ordering::Relaxed);
        // Last, and with release, for a reader that finds the region while it is being made.
        words.magic.store(MAGIC.to_le(), Ordering::Release);
        Ok(Self {
            header,
            rows,
            owners: vec![None; ROWS],
            free: (0..ROWS as u16).rev().collect(),
            changed: false,
            due: Instant::now(),
            next: 0,
            _region: region,
        })
    }

    /// A row for a connection; none if all are taken.
    pub(crate) fn enter(&mut self, connection: u64) -> Option<u16> {
        self.changed = true;
        let row = self.free.pop();
        match row {
            Some(row) => self.owners[usize::from(row)] = Some(connection),
            None => self.add_unlisted(1),
        }
        row
    }

    /// The connection is gone: nobody sees its row any more.
    pub(crate) fn leave(&mut self, row: Option<u16>) {
        match row {
            Some(row) => {
                self.owners[usize::from(row)] = None;
                self.store(row.into(), &[0; WORDS]);
                self.free.push(row);
            }
            None => self.add_unlisted(-1),
        }
    }

    fn add_unlisted(&self, more: i64) {
        let unlisted = &self.header.at(0).unlisted;
        let count = u64::from_le(unlisted.load(Ordering::Relaxed)).wrapping_add_signed(more);
        unlisted.store(count.to_le(), Ordering::Relaxed);
    }

    /// Something was done that rows may tell.
    pub(crate) fn note(&mut self) {
        self.changed = true;
    }

    /// When rows are to be written, if there is anything to tell.
    pub(crate) fn due(&self) -> Option<Instant> {
        (self.changed || self.next > 0).then_some(self.due)
    }

    /// The rows that are due now, a bounded number of them, with their connections.
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<(u16, u64)> {
        if self.due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        if self.next == 0 {
            self.changed = false;
        }
        let mut due = Vec::new();
        while self.next < ROWS && due.len() < ROWS_AT_A_TIME {
            due.extend(self.owners[self.next].map(|connection| (self.next as u16, connection)));
            self.next += 1;
        }
        if self.next == ROWS {
            // The round is over.
            (self.next, self.due) = (0, now + REFRESH);
        }
        due
    }

    /// Writes a row.
    pub(crate) fn write(&self, row: u16, facts: &LinkFacts) {
        self.store(row.into(), &facts.words());
    }

    fn store(&self, row: usize, words: &[u64; WORDS]) {
        let row = self.rows.at(row);
        let sequence = u64::from_le(row.sequence.load(Ordering::Relaxed));
        // B1: odd from here on, until the words are whole again.
        row.sequence.store(sequence.wrapping_add(1).to_le(), Ordering::Relaxed);
        fence(Ordering::Release);
        for (place, word) in row.words.iter().zip(words) {
            place.store(word.to_le(), Ordering::Relaxed);
        }
        // B1 (Release): publishes the words stored above.
        row.sequence.store(sequence.wrapping_add(2).to_le(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Facts in which no two numbers are alike.
    fn facts() -> LinkFacts {
        let path = |path: usize| PathFacts {
            piece_ns: Some(1000.5 + path as f64),
            kib_ns: (path != 2).then_some(70.25),
            receiver_kib_ns: None,
            samples: 100 + path as u64,
            refused_in_a_row: 3,
            says_copied: [None, Some(false), Some(true)][path % 3],
            sends: 200 + path as u64,
            bytes: 1 << (20 + path),
            refused: 5,
            notified: 300 + path as u64,
            copied: 7,
        };
        LinkFacts {
            connection: 1 << 32 | 5,
            stage: LinkStage::Open,
            socket: Some(LinkSocket::Unix),
            accepted: true,
            local: "unix:/run/x".into(),
            remote: "[::1]:7070".into(),
            path: Some(PathKind::SendFile),
            reason: Some(Reason::WireChanged),
            counts: Counts::of(std::array::from_fn(|index| 11 + index as u64)),
            paths: std::array::from_fn(path),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let facts = facts();
        assert_eq!(LinkFacts::of(&facts.words()), Some(facts.clone()));
        let empty = LinkFacts { path: None, reason: None, socket: None, ..facts };
        assert_eq!(LinkFacts::of(&empty.words()), Some(empty));
        assert_eq!(LinkFacts::of(&[0; WORDS]), None, "a row that nobody has");
    }

    #[test]
    fn words_lie_where_the_layout_says() {
        let words = facts().words();
        // docs/layout/links.md counts them from the sequence.
        let at = |word: usize| words[word - 1];
        assert_eq!([at(1), at(2), at(3), at(4), at(5), at(6)], [2, 1 << 32 | 5, 2, 1, 6, 4]);
        assert_eq!((at(7), at(8), at(14), at(16), at(19)), (11, 12, 18, 20, 23));
        assert_eq!(at(24).to_le_bytes(), *b"unix:/ru");
        assert_eq!(at(32).to_le_bytes(), *b"[::1]:70");
        assert_eq!((f64::from_bits(at(40)), at(43), at(46), at(47), at(50)), (1000.5, 100, 200, 1 << 20, 7));
        assert_eq!((at(52 + 3), at(40 + 6 * 12 + 3)), (101, 106), "twelve words for each path");
        assert!(words[word::PATHS + PATHS * word::PATH_WORDS..].iter().all(|&word| word == 0));
    }

    #[test]
    fn text_that_is_too_long_is_cut_between_letters() {
        let long = "ü".repeat(40);
        let text = text_of(&text_words(&long));
        assert_eq!(text, "ü".repeat(32));
        assert_eq!(text_of(&text_words(&format!("a{long}"))), format!("a{}", "ü".repeat(31)));
    }

    #[test]
    fn connections_beyond_the_rows_are_counted_and_rows_are_given_again() {
        let mut board = Board::new().expect("a board");
        let rows: Vec<_> = (0..ROWS as u64 + 3).map(|connection| board.enter(connection)).collect();
        let unlisted = |board: &Board| u64::from_le(board.header.at(0).unlisted.load(Ordering::Relaxed));
        assert_eq!((rows.iter().flatten().count(), unlisted(&board)), (ROWS, 3));
        board.leave(rows[ROWS]);
        board.leave(rows[7]);
        assert_eq!((unlisted(&board), board.enter(1000)), (2, rows[7]));
    }

    #[test]
    fn a_refresh_is_bounded_and_none_is_due_while_nothing_happens() {
        let mut board = Board::new().expect("a board");
        let now = Instant::now();
        assert_eq!((board.due(), board.take_due(now)), (None, vec![]));
        (0..ROWS as u64).for_each(|connection| assert!(board.enter(connection).is_some()));
        let mut written = 0;
        for _ in 0..ROWS / ROWS_AT_A_TIME {
            let due = board.take_due(now + REFRESH);
            assert_eq!(due.len(), ROWS_AT_A_TIME);
            written += due.len();
        }
        assert_eq!((written, board.due()), (ROWS, None));
        board.note();
        assert_eq!(board.take_due(now + REFRESH), [], "not so soon");
        assert_eq!(board.due(), Some(now + 2 * REFRESH));
        assert_eq!(board.take_due(now + 2 * REFRESH).len(), ROWS_AT_A_TIME);
    }
}
