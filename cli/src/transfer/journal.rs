//! The journal of a file that is not whole yet: whose bytes its part holds.
//!
//! ```text
//! byte 0  8 bytes magic, "zcmi-tj1"
//!      8  u64  size of the whole file
//!     16  i64  seconds, 24  u32 nanoseconds: when the sender's file was written last
//!     28  4 bytes reserved, 0
//!     32  u128 identity: the sender's word for the file
//!     48  u64  xxh3 of the bytes before
//!     56       end
//! ```
//!
//! It is written before the first byte of the part, and never changed. Bytes are written into a part in order, so the
//! part's length says how many came, whenever its writer was killed. Whether they are right is not taken from here:
//! both sides hash them before the sender goes on behind them.

use xxhash_rust::xxh3::xxh3_64;

use super::message::{Source, Stamp};

const MAGIC: &[u8; 8] = b"zcmi-tj1";
/// Bytes of a journal.
pub(crate) const JOURNAL_BYTES: usize = 56;

/// The journal of a file; none for one whose size is not known.
pub(crate) fn encode(source: &Source) -> Option<[u8; JOURNAL_BYTES]> {
    let mut bytes = [0; JOURNAL_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&source.size?.to_le_bytes());
    let Stamp { seconds, nanoseconds } = source.mtime;
    bytes[16..24].copy_from_slice(&seconds.to_le_bytes());
    bytes[24..28].copy_from_slice(&nanoseconds.to_le_bytes());
    bytes[32..48].copy_from_slice(&source.identity.to_le_bytes());
    let sum = xxh3_64(&bytes[..48]);
    bytes[48..].copy_from_slice(&sum.to_le_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_that_of_one_size_time_and_identity() {
        let mtime = Stamp { seconds: 5, nanoseconds: 6 };
        let source = Source { size: Some(7), mtime, mode: 0o644, identity: 8 };
        let journal = encode(&source).expect("the size is known");
        assert_eq!(encode(&Source { mode: 0o600, ..source }), Some(journal), "a mode may change meanwhile");
        let others = [
            Source { size: Some(8), ..source },
            Source { mtime: Stamp { seconds: 6, ..mtime }, ..source },
            Source { mtime: Stamp { nanoseconds: 7, ..mtime }, ..source },
            Source { identity: 9, ..source },
        ];
        assert!(others.iter().all(|other| encode(other) != Some(journal)));
        assert_eq!(encode(&Source { size: None, ..source }), None);
    }
}
