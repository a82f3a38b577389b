//! The side that sends: entries are offered ahead, and files are sent when the other side says from where. They are
//! read into slots, hashed there and sent from there; large ones that are not hashed leave from where they lie.
//!
//! # Invariants
//! - At most [`WINDOW`] entries are offered and not answered.
//! - Data belongs to the first entry of `ahead`; entries leave `ahead` in order.
//! - A file is whole when as many bytes as its size were read, and afterwards it has the size and time it had before.
//!   What leaves from where it lies is read until the other side has received it, so that such a file is looked at when
//!   all of it has arrived, and not before.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use indicatif::ProgressBar;
use rustix::fs::Advice;
use rustix::io::Errno;
use serde_json::json;
use xxhash_rust::xxh3::Xxh3;
use zcmi::Coded as _;
use zcmi::net::file::FileBytes;
use zcmi::net::incoming::PeerFault;
use zcmi::net::outgoing::Token;
use zcmi::net::path::PathKind;
use zcmi::net::transport::{Closed, Event, Transport as _};

use super::message::{Message, Source, Stamp, TransferFault, WINDOW};
use super::talk::{Talk, broke_protocol, gave_up, path_in_use, understand, words};
use super::walk::{Found, Walk};
use super::{LeftOut, Lines, PIECE_BYTES, hash_prefix};
use crate::code::Fault;
use crate::descriptor::LOOK;
use crate::failure::Failure;
use crate::publish::shortened;
use crate::say::Tell;

/// The number of what was not yet said.
const UNSAID: u64 = u64::MAX;
/// Bytes that are read between two turns of the transport.
const TURN_BYTES: u64 = 4 * PIECE_BYTES as u64;
/// A file of which so much is to be sent leaves from where it lies, if it is not hashed. At its end all of it must have
/// arrived before the next file begins, which is too long for a small one.
const FROM_FILE_BYTES: u64 = 16 << 20;
/// How much of it is handed over at a time, and how much may be on its way: what is said last goes behind it.
const RANGE_BYTES: u64 = 4 << 20;
const AHEAD_BYTES: u64 = 16 << 20;
/// Steps between two turns of the transport.
const TURN_STEPS: usize = 64;

/// What was offered.
struct Entry {
    number: u64,
    shown: String,
    work: Work,
}

enum Work {
    /// A directory's begin: everything about it is said.
    Directory,
    /// Everything about it is said.
    Said,
    /// A file, which is sent when the other side says so.
    File(Box<Outgoing>),
    /// A directory's end, said when everything before it is.
    Leave { path: Vec<u8>, mtime: Stamp, mode: u32 },
    /// It could not be sent whole; the other side knows, or will.
    Skipped,
}

struct Outgoing {
    file: Arc<OwnedFd>,
    source: Source,
    /// How many bytes the other side seemed to have, and their hash.
    proved: Option<(u64, Xxh3)>,
    /// From where to send, once that is said.
    go: Option<u64>,
    at: u64,
    hash: Xxh3,
    /// The hash of the whole, once it is sent.
    digest: Option<u128>,
    /// What leaves from where it lies and has not arrived: the messages, and their bytes.
    leaving: VecDeque<(Token, u64)>,
    /// Why some of that could not be read.
    unreadable: Option<String>,
}

/// How far a turn came.
#[derive(PartialEq, Eq)]
enum Pumped {
    /// There may be more at once.
    More,
    /// Nothing can be done before something happens.
    Blocked,
    /// The file is a pipe, and nothing is in it.
    Dry,
}

/// What was done, for the report.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) entries: u64,
    pub(crate) files: u64,
    /// Files that were there already.
    pub(crate) already: u64,
    /// Bytes of files that are whole at the other side.
    pub(crate) bytes: u64,
    /// Of these, those that were there already.
    pub(crate) bytes_kept: u64,
    pub(crate) left_out: LeftOut,
    /// Of these, those that were never offered.
    not_offered: u64,
    pub(crate) interruptions: u64,
}

impl Sent {
    fn new(left_out: LeftOut) -> Self {
        let (entries, files, already, bytes, bytes_kept) = (0, 0, 0, 0, 0);
        Self { entries, files, already, bytes, bytes_kept, left_out, not_offered: 0, interruptions: 0 }
    }
}

pub(crate) struct Sender<'a> {
    talk: &'a mut Talk,
    walk: Walk,
    is_walked: bool,
    /// Whether this side wants hashes; both must.
    hashed: bool,
    /// The only path that may be used, if there is one.
    forced: Option<PathKind>,
    is_greeted: bool,
    ahead: VecDeque<Entry>,
    behind: VecDeque<Entry>,
    next: u64,
    /// Bytes that were read and handed over.
    read: u64,
    is_ended: bool,
    is_done: bool,
    is_closed: bool,
    /// Whether the other side was started anew, and waits for a new beginning.
    pub(crate) is_session_lost: bool,
    /// Directories that were refused and not left yet: to leave one is refused too, and is no other entry that was left
    /// out. They are on the way to what is offered now.
    refused: HashSet<String>,
    tell: Tell,
    bar: ProgressBar,
    peer: String,
    pub(crate) sent: Sent,
    /// By path, as far as the connection was seen.
    pub(crate) facts: Option<zcmi::net::stream::ConnectionFacts>,
}

impl<'a> Sender<'a> {
    pub(crate) fn new(
        talk: &'a mut Talk,
        walk: Walk,
        hashed: bool,
        forced: Option<PathKind>,
        peer: String,
        tell: Tell,
    ) -> Self {
        Self {
            talk,
            walk,
            is_walked: false,
            hashed,
            forced,
            is_greeted: false,
            ahead: VecDeque::new(),
            behind: VecDeque::new(),
            next: 0,
            read: 0,
            is_ended: false,
            is_done: false,
            is_closed: false,
            is_session_lost: false,
            tell,
            bar: ProgressBar::hidden(),
            peer,
            sent: Sent::new(LeftOut::new("zcmi-send-left-out/1", tell, Lines::Stdout)),
            refused: HashSet::new(),
            facts: None,
        }
    }

    pub(crate) fn is_hashed(&self) -> bool {
        self.hashed
    }

    /// Sends everything. What was left out is in the account; everything else that goes wrong is the failure.
    pub(crate) fn run(&mut self) -> Result<(), Failure> {
        let result = self.send_all();
        self.bar.finish_and_clear();
        if let Err(failure) = &result
            && !self.is_closed
        {
            self.talk.give_up(failure);
        }
        result
    }

    fn send_all(&mut self) -> Result<(), Failure> {
        self.talk.say(&Message::Hello { hashed: self.hashed, bytes: self.walk.bytes() })?;
        let mut events = Vec::new();
        while !self.is_closed {
            self.fill()?;
            let mut pumped = Pumped::More;
            let until = self.read + TURN_BYTES;
            for _ in 0..TURN_STEPS {
                pumped = self.pump()?;
                if pumped != Pumped::More || self.read >= until {
                    break;
                }
            }
            if pumped == Pumped::Dry
                && let Some(Work::File(file)) = self.ahead.front().map(|entry| &entry.work)
            {
                let pipe = file.file.as_fd().try_clone_to_owned();
                let pipe = pipe.map_err(|error| Failure::of("dup failed", &error))?;
                self.talk.wait_for(pipe.as_fd(), LOOK)?;
            }
            let wait = if pumped == Pumped::Blocked { LOOK } else { Duration::ZERO };
            self.talk.poll(&mut events, wait)?;
            for event in events.drain(..) {
                self.take(event)?;
            }
        }
        Ok(())
    }

    /// Offers entries, as many as may be unanswered.
    fn fill(&mut self) -> Result<(), Failure> {
        while !self.is_walked && self.ahead.len() + self.behind.len() < WINDOW && !self.talk.is_behind() {
            let Some(found) = self.walk.next() else {
                self.is_walked = true;
                break;
            };
            self.talk.interrupt.check()?;
            let number = self.next;
            let (shown, work) = match found {
                Found::Cannot { shown, why } => {
                    self.sent.left_out.add(&shown, format!("{shown} {why}"))?;
                    self.sent.not_offered += 1;
                    continue;
                }
                Found::Directory { path } => {
                    self.talk.say(&Message::Directory { number, path: &path })?;
                    (words(&path), Work::Directory)
                }
                Found::Link { path, target } => {
                    self.talk.say(&Message::Link { number, path: &path, target: &target })?;
                    (words(&path), Work::Said)
                }
                Found::File { path, shown, file, source } => {
                    self.talk.say(&Message::File { number, source, path: &path })?;
                    let hash = Xxh3::new();
                    let (file, leaving) = (Arc::new(file), VecDeque::new());
                    let (go, at, digest, unreadable) = (None, 0, None, None);
                    let work = Outgoing { file, source, proved: None, go, at, hash, digest, leaving, unreadable };
                    (shown, Work::File(Box::new(work)))
                }
                Found::Leave { path, mtime, mode } => {
                    let (number, shown) = (UNSAID, words(&path));
                    self.ahead.push_back(Entry { number, shown, work: Work::Leave { path, mtime, mode } });
                    continue;
                }
            };
            self.next += 1;
            self.ahead.push_back(Entry { number, shown, work });
        }
        Ok(())
    }

    /// Goes on with the entry whose turn it is.
    fn pump(&mut self) -> Result<Pumped, Failure> {
        if self.talk.is_behind() {
            return Ok(Pumped::Blocked);
        }
        let Some(entry) = self.ahead.front_mut() else {
            if self.is_walked && self.behind.is_empty() && self.is_greeted && !self.is_ended {
                self.is_ended = true;
                let (bytes, left_out) = (self.sent.bytes, self.sent.not_offered);
                self.talk.say(&Message::End { entries: self.next, bytes, left_out })?;
            }
            return Ok(Pumped::Blocked);
        };
        match &mut entry.work {
            Work::Directory | Work::Said | Work::Skipped => {}
            Work::Leave { path, mtime, mode } => {
                entry.number = self.next;
                self.next += 1;
                self.talk.say(&Message::Leave { number: entry.number, mtime: *mtime, mode: *mode, path })?;
            }
            Work::File(file) => {
                if file.go.is_none() {
                    return Ok(Pumped::Blocked);
                }
                let leaves = !self.hashed && matches!(self.forced, None | Some(PathKind::SendFile)) && file.is_large();
                let piece = if leaves {
                    hand_over(self.talk, file)?
                } else {
                    read_piece(self.talk, file, self.hashed, &self.bar)?
                };
                let piece = match piece {
                    Piece::Wait(pumped) => return Ok(pumped),
                    Piece::Sent(bytes) => {
                        self.read += bytes;
                        return Ok(Pumped::More);
                    }
                    Piece::End => None,
                    Piece::Broken(why) => Some(why),
                };
                let number = entry.number;
                match piece {
                    None => {
                        let digest = self.hashed.then(|| file.hash.digest128());
                        file.digest = digest;
                        self.talk.say(&Message::FileEnd { number, size: file.at, hash: digest })?;
                    }
                    Some(why) => {
                        self.talk.say(&Message::Skip { number, why: why.as_bytes() })?;
                        self.sent.left_out.add(&entry.shown, format!("{} {why}", entry.shown))?;
                        entry.work = Work::Skipped;
                    }
                }
            }
        }
        if let Some(entry) = self.ahead.pop_front() {
            self.behind.push_back(entry);
        }
        Ok(Pumped::More)
    }

    fn take(&mut self, event: Event) -> Result<(), Failure> {
        if let Some(facts) = self.talk.facts() {
            self.facts = Some(facts);
        }
        match event {
            Event::Connected { .. } => {
                self.bar = self.tell.bytes_bar(self.walk.bytes());
                self.tell.note(format!("sending to {}", self.peer));
            }
            Event::Received { piece, .. } => {
                let message = understand(piece.tag, &piece.lease, piece.is_whole())?;
                self.answer(message)?;
                if let Some((path, _)) = self.facts.as_ref().and_then(path_in_use) {
                    self.bar.set_message(path.name());
                }
            }
            Event::Completed { token, .. } => {
                if let Some(Work::File(file)) = self.ahead.front_mut().map(|entry| &mut entry.work)
                    && let Some(index) = file.leaving.iter().position(|(leaving, _)| *leaving == token)
                    && let Some((_, bytes)) = file.leaving.remove(index)
                {
                    self.bar.inc(bytes);
                }
            }
            Event::Unreadable { token, reason, .. } => {
                if let Some(Work::File(file)) = self.ahead.front_mut().map(|entry| &mut entry.work)
                    && file.leaving.iter().any(|(leaving, _)| *leaving == token)
                {
                    file.unreadable.get_or_insert(reason);
                }
            }
            Event::Interrupted { reason, .. } => {
                self.sent.interruptions += 1;
                self.tell.note(format!("the connection broke ({}); mending it", words(reason.as_bytes())));
            }
            Event::Resumed { .. } => self.tell.note("the connection is mended"),
            Event::Closed { reason, .. } => {
                self.is_closed = true;
                self.is_session_lost = matches!(reason, Closed::SessionLost);
                if !self.is_done {
                    return Err(self.lost(&reason));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn lost(&self, reason: &Closed) -> Failure {
        match reason {
            Closed::Ended => Failure::new(
                Fault::PeerGaveUp,
                format!("{} ended before everything had arrived; run it again to go on where it was", self.peer),
            ),
            Closed::Peer(fault @ PeerFault::Proof) if !self.is_greeted => Failure::coded(
                fault.code(),
                format!(
                    "no transfer to {} came about: the two sides have different keys, or only one has a key; give the \
                     same `--key-file` to both, or to none",
                    self.peer
                ),
            ),
            reason if self.is_greeted => Failure::of(
                format_args!("the transfer to {} broke off; run it again to go on where it was", self.peer),
                reason,
            ),
            reason => Failure::of(
                format_args!(
                    "no transfer to {} came about; `zcmi recv` must run there, and both need the same `--key-file`, \
                     or none",
                    self.peer
                ),
                reason,
            ),
        }
    }

    /// The entry of a number, which must be unanswered.
    fn entry(&mut self, number: u64) -> Result<&mut Entry, Failure> {
        let expected = self.next;
        let mut entries = self.behind.iter_mut().chain(&mut self.ahead);
        entries
            .find(|entry| entry.number == number)
            .ok_or_else(|| broke_protocol(TransferFault::Number { number, expected }))
    }

    /// A file that was offered and not sent.
    fn offered(&mut self, number: u64) -> Result<&mut Outgoing, Failure> {
        match &mut self.entry(number)?.work {
            Work::File(file) if file.go.is_none() => Ok(file),
            _ => Err(order("an answer to a file")),
        }
    }

    fn answer(&mut self, message: Message<'_>) -> Result<(), Failure> {
        if let Message::Abort { why } = message {
            let mut entries = self.ahead.iter().chain(&self.behind);
            let is_pipe = entries.any(|entry| matches!(&entry.work, Work::File(file) if file.source.size.is_none()));
            return Err(gave_up(&self.peer, why, !is_pipe));
        }
        if self.is_greeted == matches!(message, Message::Hello { .. }) {
            return Err(order("a greeting, or something before it,"));
        }
        match message {
            Message::Hello { hashed, .. } => {
                self.is_greeted = true;
                self.hashed &= hashed;
            }
            Message::Prove { number, length } => self.prove(number, length)?,
            Message::Go { number, from } => {
                let file = self.offered(number)?;
                let proved = file.proved.take();
                match (from, proved) {
                    (0, _) => {}
                    (from, Some((length, hash))) if from == length => file.hash = hash,
                    _ => return Err(order("a place in a file that was not proved")),
                }
                (file.go, file.at) = (Some(from), from);
                self.bar.inc(from);
                self.sent.bytes_kept += from;
            }
            Message::Kept { number, hash } => self.kept(number, hash)?,
            Message::Refused { number, why } => {
                let entry = self.entry(number)?;
                let shown = entry.shown.clone();
                let is_told = match entry.work {
                    Work::Skipped => true,
                    Work::Leave { .. } => self.refused.remove(&shown),
                    Work::Directory => !self.refused.insert(shown.clone()),
                    Work::Said | Work::File(_) => false,
                };
                if !is_told {
                    let text = format!("{shown}: {}", words(why));
                    self.sent.left_out.add(&shown, text)?;
                }
                self.forget(number)?;
            }
            Message::Done { entries } if self.is_ended => {
                if entries != self.next {
                    return Err(broke_protocol(TransferFault::Entries { claimed: entries, entries: self.next }));
                }
                self.is_done = true;
                self.talk.transport.close(self.talk.connection);
            }
            _ => return Err(order("a message of the side that sends")),
        }
        Ok(())
    }

    /// Hashes as much of a file as the other side seems to have.
    fn prove(&mut self, number: u64, length: u64) -> Result<(), Failure> {
        let file = self.offered(number)?;
        if file.proved.is_some() || file.source.size.is_none_or(|size| length > size) {
            return Err(order("a question for bytes that a file has not"));
        }
        let pipe = Arc::clone(&file.file);
        // A file that became shorter, or cannot be read, has no such bytes: the other side says to send it from its
        // begin, and that finds out what is wrong.
        let hash = hash_prefix(&pipe, length, &self.talk.interrupt)?.ok().flatten();
        let digest = hash.as_ref().map_or(0, Xxh3::digest128);
        let file = self.offered(number)?;
        file.proved = hash.map(|hash| (length, hash));
        self.talk.say(&Message::Proof { number, hash: digest })
    }

    fn kept(&mut self, number: u64, hash: Option<u128>) -> Result<(), Failure> {
        let entry = self.entry(number)?;
        let shown = entry.shown.clone();
        let mut done = None;
        if matches!(entry.work, Work::Skipped) {
            return Err(order("that a file is whole"));
        }
        if let Work::File(file) = &entry.work {
            let (ours, was_there) = match (&file.go, &file.proved) {
                (Some(_), _) if file.source.size.is_some_and(|size| file.at < size) => {
                    return Err(order("the end of a file"));
                }
                (Some(_), _) => (file.digest, false),
                (None, Some((length, proved))) if file.source.size == Some(*length) => (Some(proved.digest128()), true),
                (None, _) => return Err(order("the end of a file")),
            };
            if ours != hash {
                let text = format!("the hash of {shown} at {} is not that of what was sent", self.peer);
                return Err(Failure::new(Fault::TransferHash, text));
            }
            let size = file.source.size.unwrap_or(file.at);
            done = Some((size, was_there, hash));
        }
        if let Some((size, was_there, hash)) = done {
            self.sent.files += 1;
            self.sent.bytes += size;
            if was_there {
                self.sent.already += 1;
                self.sent.bytes_kept += size;
                self.bar.inc(size);
            }
            if self.tell.json {
                let hash = hash.map(|hash| format!("{hash:032x}"));
                let schema = "zcmi-send-file/1";
                let line = json!({
                    "schema": schema, "name": shown, "bytes": size, "already_there": was_there, "xxh3_128": hash,
                });
                Lines::Stdout.print(&line)?;
            }
        }
        self.refused.remove(&shown);
        self.sent.entries += 1;
        self.forget(number)
    }

    /// An entry has its last answer.
    fn forget(&mut self, number: u64) -> Result<(), Failure> {
        if let Some(index) = self.behind.iter().position(|entry| entry.number == number) {
            self.behind.remove(index);
        } else if let Some(index) = self.ahead.iter().position(|entry| entry.number == number) {
            let is_begun = match &self.ahead[index].work {
                Work::File(file) => file.go.is_some(),
                Work::Leave { .. } => true,
                Work::Directory | Work::Said | Work::Skipped => false,
            };
            if is_begun {
                return Err(order("the last answer to what was not yet said"));
            }
            self.ahead.remove(index);
        }
        Ok(())
    }
}

fn order(what: &'static str) -> Failure {
    broke_protocol(TransferFault::Order { what })
}

impl Outgoing {
    /// Whether so much of it is to be sent that it leaves from where it lies.
    fn is_large(&self) -> bool {
        self.source.size.zip(self.go).is_some_and(|(size, from)| size - from >= FROM_FILE_BYTES)
    }
}

/// What came of a turn with a file.
enum Piece {
    Sent(u64),
    End,
    Wait(Pumped),
    /// It cannot be sent whole, because it …
    Broken(String),
}

/// Reads the next piece of a file into a slot and hands it over.
fn read_piece(talk: &mut Talk, file: &mut Outgoing, hashed: bool, bar: &ProgressBar) -> Result<Piece, Failure> {
    let left = match file.source.size {
        Some(size) if file.at == size => return Ok(finish(file)),
        Some(size) => size - file.at,
        None => u64::MAX,
    };
    let wanted = PIECE_BYTES.min(usize::try_from(left).unwrap_or(PIECE_BYTES));
    let is_pipe = file.source.size.is_none();
    if is_pipe && !talk.interrupt.wait(&[(file.file.as_fd(), rustix::event::PollFlags::IN)], Some(Duration::ZERO))? {
        return Ok(Piece::Wait(Pumped::Dry));
    }
    let Some(mut lease) = talk.loan(wanted) else { return Ok(Piece::Wait(Pumped::Blocked)) };
    if file.at == 0 && !is_pipe {
        // The kernel may ignore it.
        let _ = rustix::fs::fadvise(&file.file, 0, None, Advice::Sequential);
    }
    let room = lease.as_mut_message_bytes();
    let mut filled = 0;
    while filled < wanted {
        let read = if is_pipe {
            rustix::io::read(&file.file, &mut room[filled..])
        } else {
            rustix::io::pread(&file.file, &mut room[filled..], file.at + filled as u64)
        };
        match read {
            Ok(0) if is_pipe => break,
            Ok(0) => return Ok(Piece::Broken(format!("became shorter while it was sent, at byte {}", file.at))),
            Ok(bytes) => filled += bytes,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) if is_pipe => return Ok(Piece::Wait(Pumped::Dry)),
            Err(errno) if filled == 0 || !is_pipe => {
                return Ok(Piece::Broken(format!("cannot be read at byte {}: {errno}", file.at)));
            }
            // It will be there again, after what was read has been passed on.
            Err(_) => break,
        }
        if is_pipe {
            let more = [(file.file.as_fd(), rustix::event::PollFlags::IN)];
            if !talk.interrupt.wait(&more, Some(Duration::ZERO))? {
                break;
            }
        }
    }
    if filled == 0 {
        return Ok(Piece::End);
    }
    if hashed {
        file.hash.update(&room[..filled]);
    }
    let lease = if filled < wanted { shortened(lease, filled) } else { lease };
    let connection = talk.connection;
    talk.submit(connection, Message::Data { offset: file.at }.tag(), lease.into())?;
    file.at += filled as u64;
    bar.inc(filled as u64);
    Ok(Piece::Sent(filled as u64))
}

/// Hands the next part of a file over, which is not read into a slot.
fn hand_over(talk: &mut Talk, file: &mut Outgoing) -> Result<Piece, Failure> {
    if let Some(why) = &file.unreadable {
        let size = rustix::fs::fstat(&*file.file).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
        return Ok(Piece::Broken(match size {
            Some(size) if file.source.size.is_some_and(|before| size < before) => {
                format!("became shorter while it was sent, at byte {size}")
            }
            _ => format!("cannot be read: {why}"),
        }));
    }
    let left = file.source.size.unwrap_or(file.at) - file.at;
    let leaving: u64 = file.leaving.iter().map(|(_, bytes)| bytes).sum();
    if left == 0 && leaving == 0 {
        return Ok(finish(file));
    }
    if left == 0 || leaving >= AHEAD_BYTES {
        return Ok(Piece::Wait(Pumped::Blocked));
    }
    if file.go == Some(file.at) {
        // The kernel may ignore it.
        let _ = rustix::fs::fadvise(&*file.file, file.at, None, Advice::Sequential);
    }
    let bytes = left.min(RANGE_BYTES);
    let range = FileBytes::new(Arc::clone(&file.file), file.at, bytes as usize);
    let connection = talk.connection;
    let token = talk.submit(connection, Message::Data { offset: file.at }.tag(), range.into())?;
    file.leaving.push_back((token, bytes));
    file.at += bytes;
    Ok(Piece::Sent(bytes))
}

/// Whether a file that was read to its end is still the one that was offered.
fn finish(file: &Outgoing) -> Piece {
    let stat = match rustix::fs::fstat(&file.file) {
        Ok(stat) => stat,
        Err(errno) => return Piece::Broken(format!("cannot be looked at any more: {errno}")),
    };
    let mtime = Stamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 };
    if u64::try_from(stat.st_size).ok() != file.source.size || mtime != file.source.mtime {
        return Piece::Broken("changed while it was sent".into());
    }
    Piece::End
}
