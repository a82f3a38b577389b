//! Files from one host to another: what `zcmi send` and `zcmi recv` say to each other, and what each does.
//!
//! ```text
//! send ── walk ──▶ entries ──▶ message ═══ StreamTransport ═══▶ message ──▶ receiver ──▶ tree: parts, journals, names
//!          sender: file ──read──▶ slot ──────────────────────▶ slot ──pwrite──▶ part
//! ```
//!
//! The protocol is in `docs/layout/transfer.md`. The side that receives decides everything: what it takes, from where
//! in a file the sender goes on, under which name. The side that sends obeys, and says when it cannot.

pub(crate) mod journal;
pub(crate) mod message;
pub(crate) mod part;
pub(crate) mod reach;
pub(crate) mod receiver;
pub(crate) mod sender;
pub(crate) mod talk;
pub(crate) mod tree;
pub(crate) mod walk;

use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

use crate::code::Fault;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::say::Tell;

/// Bytes that are read, sent and written at a time: many enough that the calls cost little, few enough that they are in
/// a processor's cache when they are hashed or written.
pub(crate) const PIECE_BYTES: usize = 512 << 10;
/// Bytes that are hashed between two looks at whether somebody wants us to end.
const HASH_BYTES: usize = 1 << 20;

/// What did not arrive although everything else did: told one by one, and at the end the reason to fail.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    pub(crate) count: u64,
    first: Option<String>,
}

impl LeftOut {
    /// One entry more that was left out.
    pub(crate) fn add(&mut self, text: String, tell: Tell) {
        tell.note(format!("left out: {text}"));
        self.count += 1;
        self.first.get_or_insert(text);
    }

    /// The failure of a transfer of which something was left out.
    pub(crate) fn failure(&self) -> Option<Failure> {
        let first = self.first.as_ref()?;
        let text = match self.count {
            1 => format!("everything else arrived, but this was left out: {first}"),
            count => format!("everything else arrived, but {count} entries were left out; the first: {first}"),
        };
        Some(Failure::new(Fault::LeftOut, text))
    }
}

/// Hashes the first `length` bytes of a file; `None` if it has fewer.
pub(crate) fn hash_prefix(
    file: impl std::os::fd::AsFd,
    length: u64,
    interrupt: &Interrupt,
) -> Result<Result<Option<Xxh3>, Errno>, Failure> {
    let mut hash = Xxh3::new();
    let mut room = vec![0; HASH_BYTES.min(usize::try_from(length).unwrap_or(HASH_BYTES))];
    let mut at = 0;
    while at < length {
        interrupt.check()?;
        let wanted = room.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
        match rustix::io::pread(&file, &mut room[..wanted], at) {
            Ok(0) => return Ok(Ok(None)),
            Ok(read) => {
                hash.update(&room[..read]);
                at += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Ok(Err(errno)),
        }
    }
    Ok(Ok(Some(hash)))
}
