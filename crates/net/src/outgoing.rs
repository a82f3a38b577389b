//! What a connection has to send: messages cut into pieces, pieces framed and numbered, and each kept until nobody
//! reads it any more. Without I/O.
//!
//! ```text
//! submit ──▶ queue of its stream ──▶ framed: number, header slot, credit ──▶ accepted by the socket ──▶ acknowledged
//!               round robin over streams                                        │ pinned by a send      │ and not
//!                                                                               pinned ▼ until notified        ▼
//!                                                                                              completion, lease goes
//! ```
//!
//! # Invariants
//! - A message completes when the far program received all of it **and** no send that was accepted for it still owes a
//!   notification. Until then its lease and its header slots are here, and nowhere else.
//! - Pieces are numbered in the order in which they are framed; pieces of one message, and messages of one stream, are
//!   framed in order.
//! - No piece is framed without a credit of its class.
//! - What the peer says (acknowledgements, credits) is checked against what was sent; a lie is a [`PeerFault`].
//!
//! # Units
//! Lengths and offsets are bytes, sequences count pieces of a session, credits count slots of one epoch.

mod files;
mod payload;
mod release;

use core::fmt;
use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;
use thiserror::Error;
use zcmi_mem::lease::LeaseMut;
use zcmi_mem::pool::Slot;

pub use self::payload::Payload;
use crate::frame::{Class, HEADER_BYTES, Header, Hello, Kind, MESSAGE_BYTES, ReceiveCost};
use crate::incoming::PeerFault;
use crate::path::{PathKind, Release};
use crate::wire::{Home, Notification, Segment};

/// The most credits of a class that may be open at a time.
pub const MOST_CREDITS: u32 = 1 << 16;
/// Queues of streams that are kept for the next stream when they become empty.
const SPARE_QUEUES: usize = 8;
/// Notifications of two kinds have numbers of their own: those from this one on are io_uring's.
pub const URING_NUMBERS: u64 = 1 << 63;

/// The caller's name for a message, given back when the message completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The message is longer than messages can be.
    #[error("a message of {bytes} bytes is longer than the {MESSAGE_BYTES} that one can have; send it as several")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The message goes in one piece or not at all, and the peer has no slot for it.
    #[error("a message of {bytes} bytes does not fit the peer's slots of {slot_bytes} (0 until it is connected)")]
    LongerThanSlot {
        /// Its length.
        bytes: usize,
        /// Bytes of the peer's slots.
        slot_bytes: u32,
    },
    /// As many messages wait as may.
    #[error("{messages} messages wait to be sent or acknowledged; poll until one completes")]
    Full {
        /// How many wait.
        messages: usize,
    },
    /// As many bytes wait as may.
    #[error(
        "{waiting} bytes wait to be sent or acknowledged, {bytes} more would pass the {limit}; poll until some complete"
    )]
    FullBytes {
        /// Bytes that wait.
        waiting: u64,
        /// Bytes of this message.
        bytes: usize,
        /// The most that may wait.
        limit: u64,
    },
    /// The peer takes fewer streams at a time.
    #[error("messages wait on {streams} streams, as many as the peer takes; use one of them, or poll")]
    Streams {
        /// How many streams have messages.
        streams: u32,
    },
    /// The connection takes no more messages.
    #[error("the connection was closed for sending")]
    Closed,
    /// There is no such connection.
    #[error("there is no connection {0}; it was closed")]
    NoConnection(u64),
    /// The message lies in a file, and the transport sends none from there.
    #[error("this transport sends nothing from files; read the bytes into a slot")]
    FromFile,
}

/// A message that was not taken, and why.
#[derive(Debug)]
pub struct NotTaken {
    /// The message, untouched.
    pub payload: Payload,
    /// Why.
    pub reason: SubmitError,
}

/// What may wait in one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// How many messages.
    pub messages: usize,
    /// How many bytes.
    pub bytes: u64,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self { messages: 4096, bytes: 4 << 30 }
    }
}

/// What every frame says besides its own: how far we received, and what we give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// Everything below is received.
    pub acknowledged: u64,
    /// Credits given in this epoch.
    pub granted: [u32; 2],
    /// What it cost to receive, if there is news of that.
    pub cost: Option<ReceiveCost>,
}

/// What came of an attempt to frame the next piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framed {
    /// A piece of so many bytes stands at the end of the queue.
    Queued(u32),
    /// Nothing waits.
    Nothing,
    /// Whatever waits needs credits that we do not have.
    NoCredit,
    /// No header slot is free.
    NoHeader,
}

struct Message {
    /// Its bytes, or none when they are not needed any more.
    payload: Payload,
    bytes: u32,
    /// Pieces that were framed, and not accepted by a path that copies.
    unsent_pieces: u32,
    /// Pieces of which only the peer can say that nobody reads them any more.
    shared_pieces: u32,
    home: Option<Home>,
    token: Token,
    stream: u32,
    tag: u64,
    framed: u32,
    whole_framed: bool,
    open_pieces: u32,
    /// Whether zeros were sent in the place of bytes that could not be read.
    spoilt: bool,
}

struct Piece {
    message: u64,
    offset: u32,
    length: u32,
    header: Option<Slot>,
    /// How many sends that owe a notification took bytes of it.
    pins: u32,
    /// Whether its pages may be read until it is acknowledged.
    shared: bool,
    /// Whether it is acknowledged and nothing pins it.
    finished: bool,
}

enum Queued {
    Data(u64),
    Control([u8; HEADER_BYTES]),
}

/// A send that owes a notification: the pieces it took bytes of.
struct Flight {
    number: u64,
    first: u64,
    last: u64,
    path: PathKind,
    open: bool,
}

/// What must stay as it is although its connection is gone.
#[derive(Debug)]
pub struct Kept {
    /// The header of the piece.
    pub header: Option<Slot>,
    /// The payload.
    pub payload: Payload,
}

/// What became of everything when a connection was given up.
#[derive(Debug, Default)]
pub struct Failed {
    /// Messages that completed after all.
    pub completed: Vec<Token>,
    /// Messages that did not complete.
    pub tokens: Vec<Token>,
    /// What sends pin until they are notified.
    pub pinned: Vec<Kept>,
    /// What somebody may read for ever, because only an acknowledgement would have said otherwise.
    pub unanswered: Vec<Kept>,
}

/// The first frame that waits for the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Front {
    /// Bytes of its payload.
    pub payload_bytes: u32,
    /// Whether its payload lies in memory whose pages may be shared with the kernel.
    pub may_share: bool,
}

/// Everything that is to be sent to one peer.
pub struct Outgoing {
    limits: QueueLimits,
    small_bytes: u32,
    slot_bytes: u32,
    streams: u32,
    epoch: u32,
    granted: [u32; 2],
    used: [u32; 2],
    /// Classes that a piece waited for since the peer last granted.
    lacking: [bool; 2],
    /// Whether the peer was told so.
    asked: bool,
    messages: VecDeque<Option<Message>>,
    first_message: u64,
    live_messages: usize,
    waiting_bytes: u64,
    queues: FxHashMap<u32, VecDeque<u64>>,
    spare: Vec<VecDeque<u64>>,
    /// Streams whose next piece is of a class.
    ready: [VecDeque<u32>; 2],
    turn: usize,
    pieces: VecDeque<Piece>,
    first_piece: u64,
    /// The first piece that was framed in an earlier epoch and must be again.
    reframe: u64,
    acknowledged: u64,
    /// The piece after the last that a socket accepted whole.
    sent: u64,
    /// The piece after the last that the peer has, as it said when the epoch began, or that this epoch's socket
    /// accepted whole.
    sent_here: u64,
    queue: VecDeque<Queued>,
    /// Bytes of the queue's first frame that were accepted.
    front_sent: usize,
    flights: [VecDeque<Flight>; 2],
    pinned_bytes: u64,
    at_risk: u64,
    closed: bool,
    end_queued: bool,
    /// Whether what was sent may have to be sent again over another socket.
    resumes: bool,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("messages", &self.live_messages)
            .field("next_piece", &self.next_piece())
            .field("acknowledged", &self.acknowledged)
            .field("queued", &self.queue.len())
            .finish_non_exhaustive()
    }
}

impl Outgoing {
    /// Nothing to send yet, to a peer that is not known yet.
    #[must_use]
    pub fn new(limits: QueueLimits) -> Self {
        Self {
            limits,
            small_bytes: 1,
            slot_bytes: 1,
            streams: u32::MAX,
            epoch: 0,
            granted: [0; 2],
            used: [0; 2],
            lacking: [false; 2],
            asked: false,
            messages: VecDeque::new(),
            first_message: 0,
            live_messages: 0,
            waiting_bytes: 0,
            queues: FxHashMap::default(),
            spare: Vec::new(),
            ready: [VecDeque::new(), VecDeque::new()],
            turn: 0,
            pieces: VecDeque::new(),
            first_piece: 0,
            reframe: 0,
            acknowledged: 0,
            sent: 0,
            sent_here: 0,
            queue: VecDeque::new(),
            front_sent: 0,
            flights: [VecDeque::new(), VecDeque::new()],
            pinned_bytes: 0,
            at_risk: 0,
            closed: false,
            end_queued: false,
            resumes: true,
        }
    }

    /// Nothing will be sent again: what a socket has copied is not kept until it is acknowledged.
    pub fn never_resumes(&mut self) {
        self.resumes = false;
    }

    fn next_piece(&self) -> u64 {
        self.first_piece + self.pieces.len() as u64
    }

    /// How many messages have not completed.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.live_messages
    }

    /// How many pieces were framed and are not done with.
    #[must_use]
    pub fn unfinished_pieces(&self) -> usize {
        self.pieces.len()
    }

    /// How many pieces were sent and are not acknowledged.
    #[must_use]
    pub fn unacknowledged(&self) -> u64 {
        self.sent.saturating_sub(self.acknowledged)
    }

    /// Bytes whose pages the kernel may read although the call that sent them has returned.
    #[must_use]
    pub fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    /// Whether frames wait for the socket.
    #[must_use]
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Bytes of messages that were taken and have not completed.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Whether a send still owes a notification.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.flights.iter().any(|flights| !flights.is_empty())
    }

    /// Takes a message.
    ///
    /// # Errors
    /// [`NotTaken`] with the message in it, for what cannot be sent ever or now.
    pub fn submit(
        &mut self,
        stream: u32,
        tag: u64,
        payload: Payload,
        home: Option<Home>,
        token: Token,
    ) -> Result<(), NotTaken> {
        let bytes = payload.byte_len();
        let limit = self.limits.bytes;
        let reason = if self.closed {
            SubmitError::Closed
        } else if bytes > MESSAGE_BYTES as usize {
            SubmitError::TooLong { bytes }
        } else if self.live_messages >= self.limits.messages {
            SubmitError::Full { messages: self.live_messages }
        } else if self.live_messages > 0 && self.waiting_bytes + bytes as u64 > limit {
            SubmitError::FullBytes { waiting: self.waiting_bytes, bytes, limit }
        } else if self.queues.len() >= self.streams as usize && !self.queues.contains_key(&stream) {
            SubmitError::Streams { streams: self.streams }
        } else {
            let home = home.filter(|_| payload.stays());
            let number = self.first_message + self.messages.len() as u64;
            let message = Message {
                payload,
                bytes: bytes as u32,
                unsent_pieces: 0,
                shared_pieces: 0,
                home,
                token,
                stream,
                tag,
                framed: 0,
                whole_framed: false,
                open_pieces: 0,
                spoilt: false,
            };
            push(&mut self.messages, Some(message));
            self.live_messages += 1;
            self.waiting_bytes += bytes as u64;
            let spare = &mut self.spare;
            let queue = self.queues.entry(stream).or_insert_with(|| spare.pop().unwrap_or_default());
            queue.push_back(number);
            if queue.len() == 1 {
                self.make_ready(stream);
            }
            return Ok(());
        };
        Err(NotTaken { payload, reason })
    }

    fn class_of(&self, length: u32) -> Class {
        if length <= self.small_bytes { Class::Small } else { Class::Large }
    }

    /// Notes that the first message of a stream has a piece to be framed.
    fn make_ready(&mut self, stream: u32) {
        let Some(&number) = self.queues.get(&stream).and_then(VecDeque::front) else { return };
        let Some(message) = self.message(number) else { return };
        let rest = message.bytes - message.framed;
        let class = self.class_of(rest.min(self.slot_bytes));
        self.ready[class.index()].push_back(stream);
    }

    /// Begins an epoch: a peer with these sizes and credits, who has every piece below the one it names.
    ///
    /// Pieces that were sent before and did not arrive are framed again. The wire of the epoch before was
    /// [released](Self::release_wire). Completions go to `done`.
    ///
    /// # Errors
    /// [`PeerFault`] if the peer claims what was never sent, or takes back what it acknowledged; nothing has changed
    /// then.
    pub fn begin(&mut self, hello: &Hello, epoch: u32, done: &mut Vec<Token>) -> Result<(), PeerFault> {
        self.check_acknowledged(hello.resume_from, self.sent)?;
        check_credits(0, hello.granted)?;
        if !self.resumes && hello.resume_from < self.sent {
            // What it asks for is not here any more.
            let (before, sent) = (self.acknowledged, self.sent);
            return Err(PeerFault::Acknowledged { claimed: hello.resume_from, before, sent });
        }
        self.settle(hello.resume_from, done);
        self.sent_here = hello.resume_from;
        self.epoch = epoch;
        (self.small_bytes, self.slot_bytes, self.streams) = (hello.small_bytes, hello.slot_bytes, hello.streams);
        (self.granted, self.used, self.lacking, self.asked) = (hello.granted, [0; 2], [false; 2], false);
        self.reframe = self.first_piece;
        self.end_queued = false;
        let waiting: Vec<u32> = self.ready.iter_mut().flat_map(|ready| ready.drain(..)).collect();
        waiting.into_iter().for_each(|stream| self.make_ready(stream));
        Ok(())
    }

    /// Settles everything: the peer has it all, and has ended after our end. Completions go to `done`.
    ///
    /// # Errors
    /// [`PeerFault`] if it cannot have; what it does have is settled all the same.
    pub fn ended(&mut self, received: u64, done: &mut Vec<Token>) -> Result<(), PeerFault> {
        self.check_acknowledged(received, self.sent)?;
        self.settle(received, done);
        let all = self.closed && self.live_messages == 0;
        all.then_some(()).ok_or(PeerFault::End { sequence: received, fault: "we had not ended ours" })
    }

    /// Forgets the wire: what it was given is framed again in the next epoch, and what its sends pin is handed out, to
    /// be kept until they are notified. Completions go to `done`.
    pub fn release_wire(&mut self, done: &mut Vec<Token>) -> Vec<Kept> {
        self.queue.clear();
        self.front_sent = 0;
        self.flights.iter_mut().for_each(VecDeque::clear);
        self.pinned_bytes = 0;
        self.reframe = self.first_piece;
        let mut kept = Vec::new();
        for sequence in self.first_piece..self.next_piece() {
            let Some(piece) = self.piece_mut(sequence) else { continue };
            let (pins, header, number) = (core::mem::take(&mut piece.pins), piece.header.take(), piece.message);
            let still_shared = u64::from(piece.shared) * u64::from(piece.length);
            self.pinned_bytes += still_shared;
            if pins == 0 {
                continue;
            }
            if let Some(payload) = self.message_mut(number).map(|message| message.payload.share()) {
                kept.push(Kept { header, payload });
            }
            if sequence < self.acknowledged {
                self.finish_piece(sequence, done);
            }
        }
        self.pop_finished();
        kept
    }

    /// Gives up: nothing more will be sent. Returns the messages that were not completed, and what must not be reused:
    /// what sends pin, and what was sent by a path that only an acknowledgement ends.
    pub fn fail(&mut self) -> Failed {
        self.closed = true;
        let mut done = Vec::new();
        let mut failed = Failed { pinned: self.release_wire(&mut done), ..Failed::default() };
        let mut kept = BTreeSet::new();
        for sequence in self.acknowledged.max(self.first_piece)..self.next_piece() {
            let Some(piece) = self.piece_mut(sequence) else { continue };
            let number = piece.message;
            // A message is kept once, however many of its pieces were sent so.
            if !core::mem::take(&mut piece.shared) || !kept.insert(number) {
                continue;
            }
            if let Some(payload) = self.message_mut(number).map(|message| message.payload.share()) {
                failed.unanswered.push(Kept { header: None, payload });
            }
        }
        self.at_risk = 0;
        failed.completed = done;
        failed.tokens = self.messages.drain(..).flatten().map(|message| message.token).collect();
        self.pieces.clear();
        self.queues.clear();
        self.ready.iter_mut().for_each(VecDeque::clear);
        (self.live_messages, self.waiting_bytes) = (0, 0);
        failed
    }

    /// Says that no message comes any more: an end is framed behind the last piece.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether the end was accepted by the socket and everything before it is received and free.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.end_queued && self.live_messages == 0 && self.queue.is_empty()
    }

    /// Frames the next piece.
    pub fn frame(&mut self, note: Note, take_header: &mut dyn FnMut() -> Option<Slot>) -> Framed {
        if self.reframe < self.next_piece() {
            return self.frame_again(note, take_header);
        }
        let mut lacked = false;
        for _ in 0..2 {
            let class = self.turn;
            self.turn ^= 1;
            let Some(&stream) = self.ready[class].front() else { continue };
            if self.used[class] == self.granted[class] {
                (self.lacking[class], lacked) = (true, true);
                continue;
            }
            return self.frame_new(class, stream, note, take_header);
        }
        if lacked {
            return Framed::NoCredit;
        }
        if self.closed && !self.end_queued {
            let header = Header { sequence: self.next_piece(), ..self.header(Kind::End, note) };
            self.queue_control(&header);
            self.end_queued = true;
            return Framed::Queued(0);
        }
        Framed::Nothing
    }

    fn frame_new(
        &mut self,
        class: usize,
        stream: u32,
        note: Note,
        take_header: &mut dyn FnMut() -> Option<Slot>,
    ) -> Framed {
        let Some(mut header) = take_header() else { return Framed::NoHeader };
        let number = self.queues.get(&stream).and_then(|queue| queue.front().copied());
        let (slot_bytes, sequence) = (self.slot_bytes, self.next_piece());
        let template = self.header(Kind::Data, note);
        let Some((number, message)) = number.and_then(|number| Some((number, self.message_mut(number)?))) else {
            unreachable!("a stream that is ready has a message")
        };
        let (offset, bytes) = (message.framed, message.bytes);
        let length = (bytes - offset).min(slot_bytes);
        message.framed += length;
        message.open_pieces += 1;
        message.unsent_pieces += 1;
        message.whole_framed = message.framed == bytes;
        let whole = message.whole_framed;
        let fields = Header { stream, sequence, message_bytes: bytes, offset, length, tag: message.tag, ..template };
        write_header(&mut header, &fields);
        self.ready[class].pop_front();
        if whole {
            let queue = self.queues.get_mut(&stream).map(|queue| (queue.pop_front(), queue.is_empty()));
            if let Some((_, true)) = queue
                && let Some(queue) = self.queues.remove(&stream)
                && self.spare.len() < SPARE_QUEUES
            {
                self.spare.push(queue);
            }
        }
        self.make_ready(stream);
        self.used[class] = self.used[class].wrapping_add(1);
        let piece =
            Piece { message: number, offset, length, header: Some(header), pins: 0, shared: false, finished: false };
        push(&mut self.pieces, piece);
        self.reframe = sequence + 1;
        push(&mut self.queue, Queued::Data(sequence));
        Framed::Queued(length)
    }

    /// Frames a piece of an earlier epoch with the numbers of this one.
    fn frame_again(&mut self, note: Note, take_header: &mut dyn FnMut() -> Option<Slot>) -> Framed {
        let sequence = self.reframe;
        let Some((number, offset, length)) = self
            .piece_mut(sequence)
            .filter(|piece| !piece.finished)
            .map(|piece| (piece.message, piece.offset, piece.length))
        else {
            // It is acknowledged; only a send of the wire before could have kept it, and that is gone.
            self.reframe += 1;
            return Framed::Queued(0);
        };
        let class = self.class_of(length).index();
        if self.used[class] == self.granted[class] {
            self.lacking[class] = true;
            return Framed::NoCredit;
        }
        let Some(mut header) = take_header() else { return Framed::NoHeader };
        let template = self.header(Kind::Data, note);
        if let Some(message) = self.message_mut(number) {
            let bytes = message.bytes;
            let (stream, tag) = (message.stream, message.tag);
            let fields = Header { stream, sequence, message_bytes: bytes, offset, length, tag, ..template };
            write_header(&mut header, &fields);
        }
        if let Some(piece) = self.piece_mut(sequence) {
            piece.header = Some(header);
        }
        self.used[class] = self.used[class].wrapping_add(1);
        self.reframe += 1;
        push(&mut self.queue, Queued::Data(sequence));
        Framed::Queued(length)
    }

    /// A header of this epoch that says what every frame says.
    fn header(&mut self, kind: Kind, note: Note) -> Header {
        self.asked |= self.lacking != [false; 2];
        Header {
            wants: self.lacking,
            acknowledged: note.acknowledged,
            granted: note.granted,
            cost: note.cost,
            epoch: self.epoch,
            ..Header::empty(kind)
        }
    }

    /// Queues a frame that carries nothing but the note, and the wish for credits that are lacking.
    pub fn note(&mut self, note: Note) {
        let header = Header { sequence: self.reframe, ..self.header(Kind::Control, note) };
        self.queue_control(&header);
    }

    fn queue_control(&mut self, header: &Header) {
        let mut bytes = [0; HEADER_BYTES];
        header.encode(&mut bytes);
        push(&mut self.queue, Queued::Control(bytes));
    }

    /// Bytes of the frame at the front of the queue that were not accepted yet, and of what kind they are.
    #[must_use]
    pub fn front(&self) -> Option<Front> {
        match self.queue.front()? {
            Queued::Control(_) => Some(Front { payload_bytes: 0, may_share: false }),
            &Queued::Data(sequence) => {
                let piece = self.piece(sequence)?;
                let may_share = self.message(piece.message)?.home.is_some();
                Some(Front { payload_bytes: piece.length, may_share })
            }
        }
    }

    /// Writes into the headers of the frames that are sent next by which path they go; `alike` as in
    /// [`segments`](Self::segments). A header of which bytes have left stays as it is.
    pub fn stamp(&mut self, alike: &dyn Fn(Front) -> bool, most: usize, path: PathKind) {
        for (index, queued) in self.queue.iter().enumerate().take(most) {
            let &Queued::Data(sequence) = queued else { break };
            let place = usize::try_from(sequence - self.first_piece).unwrap_or(usize::MAX);
            let Some(piece) = self.pieces.get_mut(place) else { break };
            let message = usize::try_from(piece.message - self.first_message).unwrap_or(usize::MAX);
            let may_share =
                self.messages.get(message).and_then(Option::as_ref).is_some_and(|message| message.home.is_some());
            if index > 0 && !alike(Front { payload_bytes: piece.length, may_share }) {
                break;
            }
            if (index > 0 || self.front_sent == 0)
                && let Some(header) = &mut piece.header
            {
                Header::stamp(header.bytes_mut(HEADER_BYTES), path);
            }
        }
    }

    /// How many of the frames to send next, at most `most`, carry no more than so many bytes together, and put no more
    /// [at risk](Self::at_risk), if there are such bounds. The first counts whatever it is.
    #[must_use]
    pub fn fitting(&self, most: usize, bytes: Option<u64>, risk: Option<u64>) -> usize {
        if bytes.is_none() && risk.is_none() {
            return most;
        }
        let has_risk = risk.is_some();
        let (mut bytes, mut risk) = (bytes.unwrap_or(u64::MAX), risk.unwrap_or(u64::MAX));
        let fits = |queued: &&Queued| {
            let (length, more) = match queued {
                Queued::Control(_) => (0, 0),
                Queued::Data(sequence) => {
                    let length = self.piece(*sequence).map_or(0, |piece| u64::from(piece.length));
                    (length, if has_risk { self.risk_of(*sequence) } else { 0 })
                }
            };
            let fits = length <= bytes && more <= risk;
            (bytes, risk) = (bytes.saturating_sub(length), risk.saturating_sub(more));
            fits
        };
        self.queue.iter().take(most).take_while(fits).count().max(1)
    }

    /// The bytes to send next, in order: at most `most` segments, of as many frames as are `alike`. The first is taken
    /// whatever it is.
    pub fn segments<'a>(&'a self, alike: &dyn Fn(Front) -> bool, most: usize, into: &mut Vec<Segment<'a>>) {
        let mut skip = self.front_sent;
        for queued in &self.queue {
            let (header, payload, home) = match queued {
                Queued::Control(bytes) => (&bytes[..], &[][..], None),
                &Queued::Data(sequence) => {
                    let Some(piece) = self.piece(sequence) else { break };
                    let Some(message) = self.message(piece.message) else { break };
                    let Some(header) = &piece.header else { break };
                    if matches!(message.payload, Payload::File(_)) {
                        // It goes alone: [`file_frame`](Self::file_frame).
                        break;
                    }
                    let (begin, end) = (piece.offset as usize, (piece.offset + piece.length) as usize);
                    let home = message.home.map(|home| Home { offset: home.offset + begin, ..home });
                    (header.bytes(HEADER_BYTES), &message.payload.bytes()[begin..end], home)
                }
            };
            let front = Front { payload_bytes: payload.len() as u32, may_share: home.is_some() };
            if into.len() + 2 > most || !(into.is_empty() || alike(front)) {
                break;
            }
            if skip < HEADER_BYTES {
                into.push(Segment { bytes: &header[skip..], home: None });
            }
            let skipped = skip.saturating_sub(HEADER_BYTES);
            if skipped < payload.len() {
                let home = home.map(|home| Home { offset: home.offset + skipped, ..home });
                into.push(Segment { bytes: &payload[skipped..], home });
            }
            skip = 0;
        }
    }

    /// Notes that the socket accepted the first bytes of the [segments](Self::segments) or of the
    /// [frame from a file](Self::file_frame), and when they are free.
    pub fn sent(&mut self, path: PathKind, mut bytes: usize, release: Release) {
        let mut touched: Option<(u64, u64)> = None;
        while bytes > 0 {
            let (length, sequence) = match self.queue.front() {
                None => break,
                Some(Queued::Control(_)) => (HEADER_BYTES, None),
                Some(&Queued::Data(sequence)) => {
                    (HEADER_BYTES + self.piece(sequence).map_or(0, |piece| piece.length as usize), Some(sequence))
                }
            };
            let taken = bytes.min(length - self.front_sent);
            if let Some(sequence) = sequence {
                touched = Some((touched.map_or(sequence, |(first, _)| first), sequence));
            }
            bytes -= taken;
            self.front_sent += taken;
            if self.front_sent == length {
                self.queue.pop_front();
                self.front_sent = 0;
                self.sent_here = sequence.map_or(self.sent_here, |sequence| sequence + 1);
                self.sent = self.sent.max(self.sent_here);
                if let (Some(sequence), Release::Now, false) = (sequence, release, self.resumes) {
                    self.let_go(sequence);
                }
            }
        }
        let Some((first, last)) = touched else { return };
        match release {
            Release::Now => {}
            Release::Notified(number) => {
                for sequence in first..=last {
                    if let Some(piece) = self.piece_mut(sequence) {
                        piece.pins += 1;
                        let first_pin = piece.pins == 1;
                        let length = u64::from(piece.length);
                        self.pinned_bytes += if first_pin { length } else { 0 };
                    }
                }
                self.flights[usize::from(number >= URING_NUMBERS)].push_back(Flight {
                    number,
                    first,
                    last,
                    path,
                    open: true,
                });
            }
            Release::Acknowledged => {
                for sequence in first..=last {
                    if let Some(piece) = self.piece_mut(sequence)
                        && !core::mem::replace(&mut piece.shared, true)
                    {
                        let (number, length) = (piece.message, u64::from(piece.length));
                        self.pinned_bytes += length;
                        self.note_shared(number);
                    }
                }
            }
        }
    }

    /// Notes the credits that the peer gave since the epoch began.
    ///
    /// # Errors
    /// [`PeerFault`] if it takes some back, or gives more than can be open.
    pub fn granted(&mut self, granted: [u32; 2]) -> Result<(), PeerFault> {
        if granted == self.granted {
            return Ok(());
        }
        for class in Class::ALL {
            let index = class.index();
            let more = granted[index].wrapping_sub(self.granted[index]);
            let open = self.granted[index].wrapping_sub(self.used[index]);
            if more > MOST_CREDITS || open + more > MOST_CREDITS {
                return Err(PeerFault::Credits { class, claimed: granted[index], before: self.granted[index] });
            }
        }
        self.granted = granted;
        (self.lacking, self.asked) = ([false; 2], false);
        Ok(())
    }

    /// Whether a piece waits for credits, and the peer has not been told so since it last gave some.
    #[must_use]
    pub fn must_ask(&self) -> bool {
        self.lacking != [false; 2] && !self.asked
    }

    /// How many frames wait for the socket.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    fn piece(&self, sequence: u64) -> Option<&Piece> {
        self.pieces.get(usize::try_from(sequence.checked_sub(self.first_piece)?).ok()?)
    }

    fn piece_mut(&mut self, sequence: u64) -> Option<&mut Piece> {
        self.pieces.get_mut(usize::try_from(sequence.checked_sub(self.first_piece)?).ok()?)
    }

    fn message(&self, number: u64) -> Option<&Message> {
        self.messages.get(usize::try_from(number.checked_sub(self.first_message)?).ok()?)?.as_ref()
    }

    fn message_mut(&mut self, number: u64) -> Option<&mut Message> {
        self.messages.get_mut(usize::try_from(number.checked_sub(self.first_message)?).ok()?)?.as_mut()
    }
}

/// Puts something at the end. The first takes room for itself alone, because many connections never have two.
fn push<T>(queue: &mut VecDeque<T>, last: T) {
    if queue.capacity() == 0 {
        queue.reserve_exact(1);
    }
    queue.push_back(last);
}

fn write_header(slot: &mut Slot, fields: &Header) {
    let bytes = slot.bytes_mut(HEADER_BYTES);
    if let Ok(bytes) = bytes.try_into() {
        fields.encode(bytes);
    }
}

/// Refuses credits that nobody gives.
fn check_credits(before: u32, granted: [u32; 2]) -> Result<(), PeerFault> {
    for class in Class::ALL {
        if granted[class.index()] > MOST_CREDITS {
            return Err(PeerFault::Credits { class, claimed: granted[class.index()], before });
        }
    }
    Ok(())
}
