//! A board of another process. Everything in it is a claim.

use zcmi_mem::region::{OutOfRegion, PeerRegion};
use zcmi_ring::View;
use zcmi_ring::sync::{AtomicU64, Ordering, fence};

use super::{BOARD_VERSION, BoardHeader, BoardRow, HEADER_OFFSET, LinkFacts, MAGIC, ROWS, ROWS_OFFSET};

/// How often a row is looked at again that is being rewritten, before that is said.
const TRIES: usize = 16;

/// Why a region is no board. The numbers are what it claims.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BoardClaimError {
    /// It is another region.
    #[error("the region is no board of connections: its data begins with {found:#018x}")]
    Magic {
        /// The first word.
        found: u64,
    },
    /// It has another layout.
    #[error(
        "the board of connections has version {found}, this program knows {BOARD_VERSION}; use the same release for \
         both"
    )]
    Version {
        /// The version claimed.
        found: u64,
    },
    /// Its size is not that of its version.
    #[error("the board of connections claims {rows} rows")]
    Shape {
        /// Rows claimed.
        rows: u64,
    },
    /// It is too small.
    #[error("the region of the board of connections is too small: {0}")]
    Size(#[from] OutOfRegion),
}

/// What a board says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BoardReading {
    /// The connections that have a row.
    pub links: Vec<LinkFacts>,
    /// Connections without one.
    pub unlisted: u64,
    /// Rows that were being rewritten at every look: their process stopped in the middle of that.
    pub unsettled: usize,
}

/// Another process's board.
#[derive(Debug)]
pub struct BoardReader {
    header: View<BoardHeader>,
    rows: View<BoardRow>,
}

fn load(word: &AtomicU64) -> u64 {
    u64::from_le(word.load(Ordering::Relaxed))
}

impl BoardReader {
    /// Checks that a region is a board.
    ///
    /// # Errors
    /// [`BoardClaimError`].
    pub fn new(region: &PeerRegion) -> Result<Self, BoardClaimError> {
        let header = region.view::<BoardHeader>(HEADER_OFFSET, 1)?;
        let found = load(&header.at(0).magic);
        if found != MAGIC {
            return Err(BoardClaimError::Magic { found });
        }
        fence(Ordering::Acquire);
        let found = load(&header.at(0).version);
        if found != BOARD_VERSION {
            return Err(BoardClaimError::Version { found });
        }
        let rows = load(&header.at(0).rows);
        if rows != ROWS as u64 {
            return Err(BoardClaimError::Shape { rows });
        }
        Ok(Self { header, rows: region.view::<BoardRow>(ROWS_OFFSET, ROWS)? })
    }

    /// The process as it numbers itself.
    #[must_use]
    pub fn pid(&self) -> u64 {
        load(&self.header.at(0).pid)
    }

    /// Reads all rows.
    #[must_use]
    pub fn read(&self) -> BoardReading {
        let mut reading = BoardReading { unlisted: load(&self.header.at(0).unlisted), ..BoardReading::default() };
        for row in (0..self.rows.len()).map(|row| self.rows.at(row)) {
            match read(row) {
                Some(facts) => reading.links.extend(facts),
                None => reading.unsettled += 1,
            }
        }
        reading
    }
}

/// A row at a moment at which it was whole, and what it says; none if there was no such moment.
fn read(row: &BoardRow) -> Option<Option<LinkFacts>> {
    for _ in 0..TRIES {
        let before = row.sequence.load(Ordering::Relaxed);
        if u64::from_le(before) & 1 == 0 {
            // B1 (Acquire): the words are those of this sequence, or of a later one, which is seen below.
            fence(Ordering::Acquire);
            let words = std::array::from_fn(|word| load(&row.words[word]));
            fence(Ordering::Acquire);
            if row.sequence.load(Ordering::Relaxed) == before {
                return Some(LinkFacts::of(&words));
            }
        }
        zcmi_ring::sync::spin_loop();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::{BoardHeader, WORDS};
    use super::*;
    use proptest::prelude::*;

    fn row(sequence: u64, words: &[u64]) -> BoardRow {
        let mut words = words.iter().copied();
        BoardRow {
            sequence: AtomicU64::new(sequence.to_le()),
            words: std::array::from_fn(|_| AtomicU64::new(words.next().unwrap_or(0).to_le())),
        }
    }

    fn board(rows: Vec<BoardRow>) -> BoardReader {
        let header = View::heap(1, |_| BoardHeader {
            magic: AtomicU64::new(0),
            version: AtomicU64::new(0),
            pid: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            unlisted: AtomicU64::new(0),
            reserved: [const { AtomicU64::new(0) }; 59],
        });
        let count = rows.len();
        let mut rows = rows.into_iter();
        BoardReader { header, rows: View::heap(count, |_| rows.next().expect("a row for each")) }
    }

    /// Words of which some are small, as numbers of things are.
    fn words() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(prop_oneof![0..9_u64, any::<u64>(), any::<f64>().prop_map(f64::to_bits)], WORDS)
    }

    proptest! {
        #[test]
        fn any_words_are_a_connection_or_none_and_every_number_in_it_means_something(words in words()) {
            let reading = board(vec![row(2, &words)]).read();
            prop_assert_eq!((reading.links.len(), reading.unsettled), (usize::from((1..=3).contains(&words[0])), 0));
            for facts in &reading.links {
                prop_assert!(facts.local.len() <= 64 && facts.remote.len() <= 64);
                for path in &facts.paths {
                    for cost in [path.piece_ns, path.kib_ns, path.receiver_kib_ns].into_iter().flatten() {
                        prop_assert!(cost.is_finite() && cost >= 0.0);
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_that_is_being_rewritten_is_counted_and_not_believed() {
        let whole = [2, 7];
        let reading = board(vec![row(4, &whole), row(5, &whole), row(6, &[])]).read();
        assert_eq!((reading.links.len(), reading.unsettled), (1, 1));
    }

    #[test]
    fn a_reader_never_sees_a_row_that_is_half_of_two() {
        let board = super::super::Board::new().expect("a board");
        let reader = BoardReader { header: board.header.clone(), rows: board.rows.clone() };
        let is_done = zcmi_ring::sync::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut seen = 0_u64;
                while seen < 2000 && !is_done.load(Ordering::Relaxed) {
                    let Some(facts) = reader.read().links.pop() else { continue };
                    let counts = facts.counts;
                    assert_eq!(counts.switches, facts.connection);
                    assert_eq!(
                        (counts.stray_notifications, facts.paths[6].copied),
                        (facts.connection, facts.connection)
                    );
                    seen += 1;
                }
                is_done.store(true, Ordering::Relaxed);
            });
            let mut words = [0; WORDS];
            for number in 0..10_000_000_u64 {
                words.fill(number);
                words[0] = 1 + number % 3;
                board.store(0, &words);
                if is_done.load(Ordering::Relaxed) {
                    break;
                }
            }
            is_done.store(true, Ordering::Relaxed);
        });
    }
}
