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
use serde_json::{Value, json};
use xxhash_rust::xxh3::Xxh3;

use crate::code::Fault;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::say::{self, Tell};

/// Bytes that are read, sent and written at a time: many enough that the calls cost little, few enough that they are in
/// a processor's cache when they are hashed or written.
pub(crate) const PIECE_BYTES: usize = 512 << 10;
/// Bytes that are hashed between two looks at whether somebody wants us to end.
const HASH_BYTES: usize = 1 << 20;

/// Where lines for programs go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lines {
    Stdout,
    /// stdout has the data.
    Stderr,
}

impl Lines {
    /// Prints a line for programs.
    pub(crate) fn print(self, line: &Value) -> Result<(), Failure> {
        match self {
            Self::Stdout => say::print(&format!("{line}\n")),
            Self::Stderr => {
                say::line(line.to_string());
                Ok(())
            }
        }
    }
}

/// What did not arrive although the rest did: each is told at once and not held, and at the end comes the reason to
/// fail.
#[derive(Debug)]
pub(crate) struct LeftOut {
    /// Of the line for programs.
    schema: &'static str,
    tell: Tell,
    lines: Lines,
    pub(crate) count: u64,
    first: Option<String>,
}

impl LeftOut {
    pub(crate) fn new(schema: &'static str, tell: Tell, lines: Lines) -> Self {
        Self { schema, tell, lines, count: 0, first: None }
    }

    /// One entry more that was left out: its name, and a text that has it too. That is a failure, so that `--quiet`
    /// does not keep it back.
    pub(crate) fn add(&mut self, name: &str, text: String) -> Result<(), Failure> {
        if self.tell.json {
            self.lines.print(&json!({ "schema": self.schema, "name": name, "why": text }))?;
        } else {
            say::line(format!("zcmi: left out: {text}"));
        }
        self.count += 1;
        self.first.get_or_insert(text);
        Ok(())
    }

    /// The failure of a transfer of which something was left out, and so much arrived.
    pub(crate) fn failure(&self, entries: u64, files: u64) -> Option<Failure> {
        let first = self.first.as_ref()?;
        let rest = what_arrived(entries, files);
        let text = match self.count {
            1 => format!("{rest} this was left out: {first}"),
            count => format!("{rest} {count} entries were left out; the first: {first}"),
        };
        Some(Failure::new(Fault::LeftOut, text))
    }
}

/// The beginning of a sentence about what did not arrive.
pub(crate) fn what_arrived(entries: u64, files: u64) -> &'static str {
    match (entries, files) {
        (0, _) => "nothing arrived, and",
        (_, 0) => "no file arrived, and",
        _ => "everything else arrived, but",
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
