//! The side that receives: one transfer, entry by entry.
//!
//! # Invariants
//! - Whatever the other side says is checked against what it said before, and what it may make wait is bounded.
//! - Data belongs to the first of `pending`; a file that was said to go is answered when its end was said, not before.
//! - What came is written before the next event is taken, straight from the slot in which it was received.

use std::collections::{HashSet, VecDeque};

use indicatif::ProgressBar;
use rustix::io::Errno;
use serde_json::{Value, json};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};
use zcmi::net::link::Piece;

use super::message::{Message, Source, TransferFault, WINDOW};
use super::part::{Part, Trouble};
use super::talk::{Talk, broke_protocol, gave_up, understand, words};
use super::tree::{Held, Tree};
use super::{LeftOut, Lines, hash_prefix};
use crate::code::Fault;
use crate::descriptor::{Outlet, WriteError};
use crate::failure::Failure;
use crate::say::{self, Tell, harmless};

/// Directories that were refused and are remembered until they are left: more than a path has, and than are offered
/// ahead. Of what is offered beyond, a directory is told twice.
const MAX_REFUSED: usize = 4096;

/// Where it is received.
pub(crate) enum Target {
    /// Entries under their own names.
    Tree(Tree),
    /// One file of this name.
    One { tree: Tree, name: Vec<u8> },
    /// One file, to a pipe or a device.
    Stream { outlet: Outlet, shown: String },
}

/// A file that was offered and has no last answer.
struct Pending {
    number: u64,
    path: Vec<u8>,
    source: Source,
    state: State,
}

enum State {
    /// The sender was asked to prove that it has these bytes too; none for a file that is there under its name.
    Asked { part: Option<Part>, length: u64, hash: Box<Xxh3> },
    /// The sender was told to send it; none goes to the stream.
    Going { part: Option<Part>, at: u64, hash: Box<Xxh3>, broken: Option<Failure> },
}

/// What was done, for the report.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) entries: u64,
    pub(crate) files: u64,
    /// Files that were there already.
    pub(crate) already: u64,
    /// Bytes of files that are whole.
    pub(crate) bytes: u64,
    /// Of these, those that were there before.
    pub(crate) bytes_kept: u64,
    pub(crate) left_out: LeftOut,
    /// What the sender could not send.
    pub(crate) not_sent: u64,
}

impl Received {
    fn new(left_out: LeftOut) -> Self {
        Self { entries: 0, files: 0, already: 0, bytes: 0, bytes_kept: 0, left_out, not_sent: 0 }
    }
}

/// One transfer.
pub(crate) struct Session {
    is_greeted: bool,
    hashed: bool,
    next: u64,
    pending: VecDeque<Pending>,
    pub(crate) is_done: bool,
    pub(crate) bar: ProgressBar,
    tell: Tell,
    pub(crate) received: Received,
    lines: Lines,
    /// Hashes of the paths of directories that were refused and not left yet: to leave one is refused too, and is no
    /// other entry that was left out.
    refused: HashSet<u128>,
    /// Bytes that were given to the stream.
    streamed: u64,
}

fn order(what: &'static str) -> Failure {
    broke_protocol(TransferFault::Order { what })
}

impl Session {
    pub(crate) fn new(hashed: bool, tell: Tell, lines: Lines) -> Self {
        Self {
            is_greeted: false,
            hashed,
            next: 0,
            pending: VecDeque::new(),
            is_done: false,
            bar: ProgressBar::hidden(),
            tell,
            received: Received::new(LeftOut::new("zcmi-recv-left-out/1", tell, lines)),
            lines,
            refused: HashSet::new(),
            streamed: 0,
        }
    }

    pub(crate) fn is_greeted(&self) -> bool {
        self.is_greeted
    }

    pub(crate) fn is_hashed(&self) -> bool {
        self.hashed
    }

    /// Whether another attempt could not begin anew.
    pub(crate) fn has_streamed(&self) -> bool {
        self.streamed > 0
    }

    /// Takes what came.
    pub(crate) fn take(&mut self, piece: &Piece, target: &mut Target, talk: &mut Talk) -> Result<(), Failure> {
        let message = understand(piece.tag, &piece.lease, piece.is_whole())?;
        if let Message::Abort { why } = message {
            let is_pipe = self.pending.iter().any(|pending| pending.source.size.is_none());
            return Err(gave_up("the sender", why, !is_pipe && !self.has_streamed()));
        }
        if self.is_greeted == matches!(message, Message::Hello { .. }) || self.is_done {
            return Err(order("a greeting, something before it, or something behind the end,"));
        }
        match message {
            Message::Hello { hashed, bytes } => {
                self.is_greeted = true;
                talk.say(&Message::Hello { hashed: self.hashed, bytes: None })?;
                self.hashed &= hashed;
                self.bar = self.tell.bytes_bar(bytes);
                Ok(())
            }
            Message::Data { offset } => self.data(offset + u64::from(piece.offset), &piece.lease, target, talk),
            Message::FileEnd { number, size, hash } => self.file_end(number, size, hash, target, talk),
            Message::Skip { number, why } => self.skip(number, why, talk),
            Message::Proof { number, hash } => self.proof(number, hash, target, talk),
            Message::File { number, source, path } => {
                self.is_next(number)?;
                self.offered(number, source, path, target, talk)
            }
            Message::Directory { number, path } => {
                let made = tree_of(target).and_then(|tree| tree.directory(path));
                if matches!(made, Err(Trouble::Entry(_))) && self.refused.len() < MAX_REFUSED {
                    self.refused.insert(xxh3_128(path));
                }
                self.entry(number, path, made, talk)
            }
            Message::Link { number, path, target: leads_to } => {
                let made = tree_of(target).and_then(|tree| tree.link(path, leads_to));
                self.entry(number, path, made, talk)
            }
            Message::Leave { number, mtime, mode, path } => {
                if self.refused.remove(&xxh3_128(path)) {
                    self.is_next(number)?;
                    return talk.say(&Message::Refused { number, why: b"it was refused when it began" });
                }
                let left = tree_of(target).and_then(|tree| tree.leave(path, mtime, mode));
                self.entry(number, path, left, talk)
            }
            Message::End { entries, bytes, left_out } => {
                if entries != self.next || !self.pending.is_empty() {
                    let fault = TransferFault::Entries { claimed: entries, entries: self.next };
                    return Err(broke_protocol(fault));
                }
                if bytes != self.received.bytes {
                    return Err(broke_protocol(TransferFault::Size { claimed: bytes, bytes: self.received.bytes }));
                }
                self.received.not_sent = left_out;
                self.is_done = true;
                talk.say(&Message::Done { entries })
            }
            _ => Err(order("a message of the side that receives")),
        }
    }

    fn is_next(&mut self, number: u64) -> Result<(), Failure> {
        if number != self.next {
            return Err(broke_protocol(TransferFault::Number { number, expected: self.next }));
        }
        if self.pending.len() >= WINDOW {
            return Err(broke_protocol(TransferFault::Window));
        }
        self.next += 1;
        Ok(())
    }

    /// Answers an entry that is no file.
    fn entry(&mut self, number: u64, path: &[u8], done: Result<(), Trouble>, talk: &mut Talk) -> Result<(), Failure> {
        self.is_next(number)?;
        match done {
            Ok(()) => {
                self.received.entries += 1;
                talk.say(&Message::Kept { number, hash: None })
            }
            Err(trouble) => self.refuse(number, path, trouble, talk),
        }
    }

    fn refuse(&mut self, number: u64, path: &[u8], trouble: Trouble, talk: &mut Talk) -> Result<(), Failure> {
        match trouble {
            Trouble::All(failure) => Err(failure),
            Trouble::Entry(failure) => {
                let text = format!("{failure} [{}]", failure.code());
                talk.say(&Message::Refused { number, why: text.as_bytes() })?;
                self.received.left_out.add(&words(path), text)
            }
        }
    }

    fn offered(
        &mut self,
        number: u64,
        source: Source,
        path: &[u8],
        target: &mut Target,
        talk: &mut Talk,
    ) -> Result<(), Failure> {
        let held = match target {
            Target::Tree(_) if path.is_empty() => Err(Trouble::All(Failure::new(
                Fault::NoFileName,
                "what the sender reads from a pipe has no name; give a file to --output",
            ))),
            Target::Tree(tree) => tree.file(path, &source).map(Some),
            Target::One { .. } | Target::Stream { .. } if number > 0 || path.contains(&b'/') => {
                Err(Trouble::All(many()))
            }
            Target::One { tree, name } => tree.file(name, &source).map(Some),
            Target::Stream { .. } => Ok(None),
        };
        let (file, length) = match held {
            Err(trouble) => return self.refuse(number, path, trouble, talk),
            Ok(None) => return self.go(number, source, path, None, talk),
            Ok(Some(Held::Part(part, 0))) => return self.go(number, source, path, Some(part), talk),
            Ok(Some(Held::Part(part, length))) => (Ok(part), length),
            Ok(Some(Held::Whole(file))) => (Err(file), source.size.unwrap_or(0)),
        };
        let hashed = match &file {
            Ok(part) => hash_prefix(part.file(), length, &talk.interrupt)?,
            Err(file) => hash_prefix(file, length, &talk.interrupt)?,
        };
        match (hashed, file) {
            (Ok(Some(hash)), file) => {
                talk.say(&Message::Prove { number, length })?;
                let state = State::Asked { part: file.ok(), length, hash: Box::new(hash) };
                self.pending.push_back(Pending { number, path: path.to_vec(), source, state });
                Ok(())
            }
            // A part that cannot be read back is of no use.
            (_, Ok(part)) => match part.begin_anew() {
                Ok(()) => self.go(number, source, path, Some(part), talk),
                Err(errno) => self.refuse(number, path, part.cannot_begin(errno), talk),
            },
            (problem, Err(_)) => {
                let errno = problem.err().unwrap_or(Errno::IO);
                let shown = harmless(&String::from_utf8_lossy(path));
                let text = format!("{shown} exists already, and cannot be compared: {errno}");
                self.refuse(number, path, Trouble::new(Fault::FileExists, text), talk)
            }
        }
    }

    /// Says to send a file from its begin.
    fn go(
        &mut self,
        number: u64,
        source: Source,
        path: &[u8],
        part: Option<Part>,
        talk: &mut Talk,
    ) -> Result<(), Failure> {
        talk.say(&Message::Go { number, from: 0 })?;
        let state = State::Going { part, at: 0, hash: Box::new(Xxh3::new()), broken: None };
        self.pending.push_back(Pending { number, path: path.to_vec(), source, state });
        Ok(())
    }

    /// The sender hashed what we seem to have.
    fn proof(&mut self, number: u64, theirs: u128, target: &mut Target, talk: &mut Talk) -> Result<(), Failure> {
        let asked = |pending: &Pending| pending.number == number && matches!(pending.state, State::Asked { .. });
        let Some(index) = self.pending.iter().position(asked) else {
            return Err(broke_protocol(TransferFault::Number { number, expected: self.next }));
        };
        let Some(Pending { path, source, state, .. }) = self.pending.remove(index) else { return Ok(()) };
        let State::Asked { part, length, hash } = state else { return Ok(()) };
        let is_same = hash.digest128() == theirs;
        let (part, at, hash) = match part {
            None if is_same => {
                self.received.already += 1;
                self.bar.inc(length);
                self.received.bytes_kept += length;
                return self.is_kept(number, &path, length, true, Some(theirs), talk);
            }
            None => {
                let tree = match target {
                    Target::Tree(tree) | Target::One { tree, .. } => tree,
                    Target::Stream { .. } => return Err(order("a proof")),
                };
                match tree.instead(&path, &source) {
                    Ok(part) => (part, 0, Box::new(Xxh3::new())),
                    Err(trouble) => return self.refuse(number, &path, trouble, talk),
                }
            }
            Some(part) if is_same => (part, length, hash),
            Some(part) => match part.begin_anew() {
                Ok(()) => (part, 0, Box::new(Xxh3::new())),
                Err(errno) => return self.refuse(number, &path, part.cannot_begin(errno), talk),
            },
        };
        talk.say(&Message::Go { number, from: at })?;
        if at > 0 {
            self.tell.note(format!("{} goes on at {}", part.shown(), say::bytes(at)));
            self.bar.inc(at);
            self.received.bytes_kept += at;
        }
        let state = State::Going { part: Some(part), at, hash, broken: None };
        self.pending.insert(index, Pending { number, path, source, state });
        Ok(())
    }

    fn data(&mut self, offset: u64, bytes: &[u8], target: &mut Target, talk: &Talk) -> Result<(), Failure> {
        let Some(Pending { source, state: State::Going { part, at, hash, broken }, .. }) = self.pending.front_mut()
        else {
            return Err(order("data"));
        };
        if offset != *at {
            return Err(broke_protocol(TransferFault::Offset { offset, expected: *at }));
        }
        let length = bytes.len() as u64;
        if source.size.is_some_and(|size| length > size - *at) {
            return Err(broke_protocol(TransferFault::Size { claimed: source.size.unwrap_or(0), bytes: *at + length }));
        }
        *at += length;
        if broken.is_some() {
            return Ok(());
        }
        match (part, target) {
            (Some(part), _) => match part.write(bytes, offset) {
                Ok(()) => {}
                Err(Trouble::All(failure)) => return Err(failure),
                Err(Trouble::Entry(failure)) => *broken = Some(failure),
            },
            (None, Target::Stream { outlet, shown }) => {
                let written = outlet.write_all(bytes, &talk.interrupt);
                self.streamed += length;
                written.map_err(|error| match error {
                    WriteError::Wait(failure) => failure,
                    WriteError::Write { errno: Errno::PIPE, .. } => {
                        Failure::new(Fault::ReaderGone, format!("whoever read {shown} has gone"))
                    }
                    WriteError::Write { errno, .. } => Failure::of(format_args!("{shown} cannot be written"), &errno),
                })?;
            }
            (None, _) => return Err(order("data")),
        }
        if self.hashed {
            hash.update(bytes);
        }
        self.bar.inc(length);
        Ok(())
    }

    fn file_end(
        &mut self,
        number: u64,
        size: u64,
        theirs: Option<u128>,
        target: &mut Target,
        talk: &mut Talk,
    ) -> Result<(), Failure> {
        let Some(Pending { number: expected, path, source, state }) = self.pending.pop_front() else {
            return Err(order("the end of a file"));
        };
        if number != expected {
            return Err(broke_protocol(TransferFault::Number { number, expected }));
        }
        let State::Going { part, at, hash, broken } = state else { return Err(order("the end of a file")) };
        if size != at || source.size.is_some_and(|size| size != at) {
            return Err(broke_protocol(TransferFault::Size { claimed: source.size.unwrap_or(size), bytes: at }));
        }
        if theirs.is_some() != self.hashed {
            return Err(order("a file's end with a hash, or without one,"));
        }
        if let Some(failure) = broken {
            return self.refuse(number, &path, Trouble::Entry(failure), talk);
        }
        let ours = self.hashed.then(|| hash.digest128());
        if ours != theirs {
            let shown = harmless(&String::from_utf8_lossy(&path));
            part.into_iter().for_each(Part::discard);
            let text = format!("the hash of what came of {shown} is not that of what was sent; it was discarded");
            return self.refuse(number, &path, Trouble::new(Fault::TransferHash, text), talk);
        }
        let tree = match target {
            Target::Tree(tree) | Target::One { tree, .. } => Some(tree),
            Target::Stream { .. } => None,
        };
        if let (Some(part), Some(tree)) = (part, tree)
            && let Err(trouble) = part.finish(tree.allowed.force, tree.allowed.fsync)
        {
            return self.refuse(number, &path, trouble, talk);
        }
        self.is_kept(number, &path, at, false, ours, talk)
    }

    /// A file is in its place.
    fn is_kept(
        &mut self,
        number: u64,
        path: &[u8],
        bytes: u64,
        already: bool,
        hash: Option<u128>,
        talk: &mut Talk,
    ) -> Result<(), Failure> {
        self.received.entries += 1;
        self.received.files += 1;
        self.received.bytes += bytes;
        talk.say(&Message::Kept { number, hash })?;
        let hash = hash.map(|hash| format!("{hash:032x}"));
        let name = harmless(&String::from_utf8_lossy(path));
        self.report(&json!({
            "schema": "zcmi-recv-file/1", "name": name, "bytes": bytes, "already_there": already, "xxh3_128": hash,
        }))
    }

    /// Prints a line for programs, beside the data.
    pub(crate) fn report(&self, line: &Value) -> Result<(), Failure> {
        if self.tell.json { self.lines.print(line) } else { Ok(()) }
    }

    /// The sender cannot send a file whole.
    fn skip(&mut self, number: u64, why: &[u8], talk: &mut Talk) -> Result<(), Failure> {
        let Some(Pending { number: expected, path, state, .. }) = self.pending.pop_front() else {
            return Err(order("a file that is left out"));
        };
        if number != expected {
            return Err(broke_protocol(TransferFault::Number { number, expected }));
        }
        let State::Going { part, at, .. } = state else { return Err(order("a file that is left out")) };
        let shown = harmless(&String::from_utf8_lossy(&path));
        let text = format!("{shown} {}", words(why));
        if part.is_none() && at > 0 {
            return Err(Failure::new(Fault::PeerGaveUp, format!("the stream cannot be whole: {text}")));
        }
        part.into_iter().for_each(Part::discard);
        self.refuse(number, &path, Trouble::new(Fault::PeerGaveUp, text), talk)
    }
}

fn many() -> Failure {
    Failure::new(
        Fault::ManyFiles,
        "the sender sends several files, or a directory, and --output takes one file; give a directory such as `NAME/`",
    )
}

/// The tree for what is no file.
fn tree_of(target: &mut Target) -> Result<&mut Tree, Trouble> {
    match target {
        Target::Tree(tree) => Ok(tree),
        Target::One { .. } | Target::Stream { .. } => Err(Trouble::All(many())),
    }
}
