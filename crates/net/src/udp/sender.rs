//! What a connection over datagrams has to send: messages cut into pieces, pieces into datagrams, and each kept until
//! the peer has it and no send reads it any more. No I/O.
//!
//! ```text
//! submit ──▶ queue of its stream ──▶ piece: number, credit ──▶ trains of datagrams ──▶ arrived, and not pinned
//!               round robin                     ▲                       │                        ▼
//!                                               └────── lost: again ◀───┘            completion, the lease goes
//! ```
//!
//! # Invariants
//! - A message completes when every byte of it arrived **and** no send that was made for it still owes a notification.
//! - A datagram's number is never used twice; what is lost is sent again under a new one.
//! - No piece is begun without a credit of its class, unless it is unreliable.

mod under_way;

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::Reliability;
use super::datagram::{ELICITS, END, HEAD_BYTES, Head, Kind, UNRELIABLE, WANTS_LARGE, WANTS_SMALL};
use super::pace::{Nanos, Pace};
use super::ranges::Ranges;
use crate::frame::{Class, Hello, MESSAGE_BYTES};
use crate::incoming::PeerFault;
use crate::outgoing::{Kept, MOST_CREDITS, NotTaken, Payload, QueueLimits, SubmitError, Token};

/// Datagrams that are heard of after one that is not, until that one is lost.
const REORDERED: u64 = 3;
/// Silences in a row after which nothing is taken to arrive any more.
const COLLAPSE: u32 = 3;
/// Datagrams that are sent although the window is full, when nothing is heard.
const PROBES: u32 = 2;

/// Bytes of a piece that go in one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) sequence: u64,
    pub(crate) begin: u32,
    pub(crate) length: u32,
}

impl Item {
    fn size(&self) -> u64 {
        HEAD_BYTES as u64 + u64::from(self.length)
    }
}

/// Datagrams that go out by one call: all of one size, the last of that or less.
#[derive(Debug)]
pub(crate) struct Train {
    pub(crate) items: Vec<Item>,
    pub(crate) first_number: u64,
}

/// What a datagram was for.
#[derive(Clone, Copy, Debug)]
enum What {
    Data(Item),
    End,
    Ping,
    /// Nothing that could be missed.
    Report,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    InFlight,
    Lost,
    Done,
}

#[derive(Debug)]
struct Packet {
    sent_at: Nanos,
    size: u64,
    what: What,
    state: State,
}

struct Message {
    payload: Payload,
    token: Token,
    stream: u32,
    tag: u64,
    framed: u32,
    whole_framed: bool,
    open_pieces: u32,
}

struct Piece {
    message: u64,
    offset: u32,
    length: u32,
    after: u32,
    arrived: Ranges,
    has_arrived: bool,
    pins: u32,
    finished: bool,
}

/// What is left of a piece that is being sent for the first time.
#[derive(Clone, Copy)]
struct Fresh {
    sequence: u64,
    /// How far it was sent, and how long it is.
    begin: u32,
    length: u32,
    /// Bytes of each datagram but the last.
    part: u32,
}

/// Whether something can be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// So many bytes of datagrams.
    Now(u64),
    /// Not before that time.
    At(Nanos),
    /// Not before something is heard.
    Blocked,
}

/// Everything that is to be sent to one peer.
pub(crate) struct Sender {
    limits: QueueLimits,
    reliable: bool,
    segment: u32,
    small_bytes: u32,
    slot_bytes: u32,
    streams: u32,
    granted: [u32; 2],
    used: [u32; 2],
    lacking: [bool; 2],
    asked: bool,
    messages: VecDeque<Option<Message>>,
    first_message: u64,
    live_messages: usize,
    waiting_bytes: u64,
    queues: FxHashMap<u32, VecDeque<u64>>,
    ready: [VecDeque<u32>; 2],
    turn: usize,
    /// The last piece of each stream that is not wholly arrived.
    last_of: FxHashMap<u32, u64>,
    pieces: VecDeque<Piece>,
    first_piece: u64,
    /// The piece that is being sent for the first time.
    fresh: Option<Fresh>,
    again: VecDeque<Item>,
    packets: VecDeque<Packet>,
    first_packet: u64,
    in_flight: u64,
    largest: Option<u64>,
    last_sent: Nanos,
    /// Since when nothing was heard although something was sent.
    silent_since: Option<Nanos>,
    window_bytes: u64,
    /// Bytes of all sends that are owed a notification, each time counted that they were sent.
    pinned_bytes: u64,
    probes_left: u32,
    pub(crate) pace: Pace,
    /// Something must be sent that the peer answers.
    pub(crate) ping: bool,
    closed: bool,
    end: End,
    spare: Vec<Item>,
    /// Bytes of payload that were sent more than once.
    pub(crate) again_bytes: u64,
    /// Datagrams that were taken to be lost.
    pub(crate) lost: u64,
    /// Times that nothing was heard.
    pub(crate) silences: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Unsaid,
    Said,
    Heard,
}

impl core::fmt::Debug for Sender {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Sender")
            .field("messages", &self.live_messages)
            .field("pieces", &(self.first_piece..self.next_piece()))
            .field("datagrams", &(self.first_packet..self.next_number()))
            .field("in_flight", &self.in_flight)
            .field("again", &self.again.len())
            .field("credits", &(self.used, self.granted, self.lacking, self.asked))
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Sender {
    /// Nothing to send yet, to a peer that is not known yet.
    pub(crate) fn new(limits: QueueLimits, reliability: Reliability, segment: u32, now: Nanos) -> Self {
        let reliable = reliability == Reliability::Reliable;
        let rate = match reliability {
            Reliability::ConstantRate { bytes_per_s } => Some(bytes_per_s),
            Reliability::Reliable | Reliability::Unreliable => None,
        };
        Self {
            limits,
            reliable,
            segment,
            small_bytes: 1,
            slot_bytes: if reliable { MESSAGE_BYTES } else { 0 },
            streams: u32::MAX,
            granted: [0; 2],
            used: [0; 2],
            lacking: [false; 2],
            asked: false,
            messages: VecDeque::new(),
            first_message: 0,
            live_messages: 0,
            waiting_bytes: 0,
            queues: FxHashMap::default(),
            ready: [VecDeque::new(), VecDeque::new()],
            turn: 0,
            last_of: FxHashMap::default(),
            pieces: VecDeque::new(),
            first_piece: 0,
            fresh: None,
            again: VecDeque::new(),
            packets: VecDeque::new(),
            first_packet: 0,
            in_flight: 0,
            largest: None,
            last_sent: now,
            silent_since: None,
            window_bytes: u64::MAX,
            pinned_bytes: 0,
            probes_left: 0,
            pace: Pace::new(u64::from(segment) + HEAD_BYTES as u64, rate, now),
            ping: false,
            closed: false,
            end: End::Unsaid,
            spare: Vec::new(),
            again_bytes: 0,
            lost: 0,
            silences: 0,
        }
    }

    /// Takes the peer's sizes, which are the same in every greeting of a session.
    pub(crate) fn begin(&mut self, hello: &Hello) {
        (self.small_bytes, self.slot_bytes, self.streams) = (hello.small_bytes, hello.slot_bytes, hello.streams);
        let waiting: Vec<u32> = self.ready.iter_mut().flat_map(|ready| ready.drain(..)).collect();
        waiting.into_iter().for_each(|stream| self.make_ready(stream));
    }

    /// Bytes of payload in a datagram.
    pub(crate) fn segment(&self) -> u32 {
        self.segment
    }

    /// Makes datagrams smaller.
    pub(crate) fn set_segment(&mut self, segment: u32) {
        self.segment = segment;
        self.pace.set_datagram(u64::from(segment) + HEAD_BYTES as u64);
    }

    /// How many messages have not completed.
    pub(crate) fn unfinished(&self) -> usize {
        self.live_messages
    }

    /// Bytes that were sent and are not acknowledged.
    pub(crate) fn unacknowledged(&self) -> u64 {
        self.in_flight
    }

    /// Bytes that the kernel may read although the calls that sent them have returned.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    /// Since when nothing was heard, if something was sent since.
    pub(crate) fn silent_since(&self) -> Option<Nanos> {
        self.silent_since
    }

    /// Takes a message.
    pub(crate) fn submit(&mut self, stream: u32, tag: u64, payload: Payload, token: Token) -> Result<(), NotTaken> {
        let (bytes, limit) = (payload.byte_len(), self.limits.bytes);
        let reason = if self.closed {
            SubmitError::Closed
        } else if matches!(payload, Payload::File(_)) {
            SubmitError::FromFile
        } else if bytes > MESSAGE_BYTES as usize {
            SubmitError::TooLong { bytes }
        } else if !self.reliable && bytes > self.slot_bytes as usize {
            SubmitError::LongerThanSlot { bytes, slot_bytes: self.slot_bytes }
        } else if self.live_messages >= self.limits.messages {
            SubmitError::Full { messages: self.live_messages }
        } else if self.live_messages > 0 && self.waiting_bytes + bytes as u64 > limit {
            SubmitError::FullBytes { waiting: self.waiting_bytes, bytes, limit }
        } else if self.queues.len() >= self.streams as usize && !self.queues.contains_key(&stream) {
            SubmitError::Streams { streams: self.streams }
        } else {
            let number = self.first_message + self.messages.len() as u64;
            let message = Message { payload, token, stream, tag, framed: 0, whole_framed: false, open_pieces: 0 };
            self.messages.push_back(Some(message));
            self.live_messages += 1;
            self.waiting_bytes += bytes as u64;
            let queue = self.queues.entry(stream).or_default();
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

    /// Notes that the first message of a stream has a piece to be begun.
    fn make_ready(&mut self, stream: u32) {
        let Some(&number) = self.queues.get(&stream).and_then(VecDeque::front) else { return };
        let Some(message) = self.message(number) else { return };
        let rest = message.payload.byte_len() as u32 - message.framed;
        let class = self.class_of(rest.min(self.slot_bytes));
        self.ready[class.index()].push_back(stream);
    }

    fn next_piece(&self) -> u64 {
        self.first_piece + self.pieces.len() as u64
    }

    fn next_number(&self) -> u64 {
        self.first_packet + self.packets.len() as u64
    }

    /// Begins the next piece, if there is one and a credit for it.
    fn frame(&mut self) {
        for _ in 0..2 {
            let class = self.turn;
            self.turn ^= 1;
            let Some(&stream) = self.ready[class].front() else { continue };
            if self.reliable && self.used[class] == self.granted[class] {
                self.lacking[class] = true;
                continue;
            }
            let number = self.queues.get(&stream).and_then(|queue| queue.front().copied());
            let (slot_bytes, sequence) = (self.slot_bytes, self.next_piece());
            let Some((number, message)) = number.and_then(|number| Some((number, self.message_mut(number)?))) else {
                unreachable!("a stream that is ready has a message")
            };
            let (offset, bytes) = (message.framed, message.payload.byte_len() as u32);
            let length = (bytes - offset).min(slot_bytes);
            message.framed += length;
            message.open_pieces += 1;
            message.whole_framed = message.framed == bytes;
            let whole = message.whole_framed;
            self.ready[class].pop_front();
            if whole {
                let empty = self.queues.get_mut(&stream).is_some_and(|queue| {
                    queue.pop_front();
                    queue.is_empty()
                });
                if empty {
                    self.queues.remove(&stream);
                }
            }
            self.make_ready(stream);
            self.used[class] = self.used[class].wrapping_add(u32::from(self.reliable));
            let before = self.last_of.insert(stream, sequence).filter(|&before| before >= self.first_piece);
            self.pieces.push_back(Piece {
                message: number,
                offset,
                length,
                after: before.map_or(0, |before| u32::try_from(sequence - before).unwrap_or(0)),
                arrived: Ranges::default(),
                has_arrived: false,
                pins: 0,
                finished: false,
            });
            // Equal parts, so that the last is not a crumb.
            let parts = length.div_ceil(self.segment).max(1);
            let part = length.div_ceil(parts).next_multiple_of(64).min(self.segment);
            self.fresh = Some(Fresh { sequence, begin: 0, length, part });
            return;
        }
    }

    /// The next bytes to send, the lost ones first.
    fn next_item(&mut self) -> Option<Item> {
        while let Some(item) = self.again.pop_front() {
            let end = item.begin + item.length;
            let Some(piece) = self.piece(item.sequence) else { continue };
            let covered = item.length > 0 && piece.arrived.covers(item.begin.into(), end.into());
            if piece.has_arrived || covered {
                continue;
            }
            if item.length > self.segment {
                let length = self.segment;
                self.again.push_front(Item { begin: item.begin + length, length: item.length - length, ..item });
                return Some(Item { length, ..item });
            }
            return Some(item);
        }
        if self.fresh.is_none() {
            self.frame();
        }
        let fresh = self.fresh?;
        // Datagrams may have become smaller since it was begun.
        let length = fresh.part.min(self.segment).min(fresh.length - fresh.begin);
        let end = fresh.begin + length;
        self.fresh = (end < fresh.length).then_some(Fresh { begin: end, ..fresh });
        Some(Item { sequence: fresh.sequence, begin: fresh.begin, length })
    }

    /// Whether a message or a part of one waits to be sent. It may wait for credits.
    pub(crate) fn has_data(&self) -> bool {
        self.fresh.is_some() || !self.again.is_empty() || self.ready.iter().any(|ready| !ready.is_empty())
    }

    /// Whether a datagram of data could be sent now.
    pub(crate) fn ready(&mut self, now: Nanos) -> Ready {
        let datagram = u64::from(self.segment) + HEAD_BYTES as u64;
        if self.probes_left > 0 {
            return Ready::Now(datagram);
        }
        let constant = self.pace.rate().is_some();
        let window = if constant { u64::MAX } else { self.pace.window().min(self.window_bytes) };
        let room = window.saturating_sub(self.in_flight);
        if room < datagram && self.in_flight > 0 {
            return Ready::Blocked;
        }
        let allowed = self.pace.allowed(now);
        if allowed < datagram {
            return Ready::At(self.pace.when_allowed(datagram, now));
        }
        Ready::Now(room.max(datagram).min(allowed))
    }

    /// The next train of data: at most so many datagrams, and so many bytes; the first fits in any case.
    pub(crate) fn train(&mut self, datagrams: usize, bytes: u64) -> Option<Train> {
        let mut items = core::mem::take(&mut self.spare);
        items.clear();
        let mut whole = 0;
        while items.len() < datagrams {
            let Some(item) = self.next_item() else { break };
            let size = item.size();
            let first = items.first().map_or(size, Item::size);
            if !items.is_empty() && (size > first || whole + size > bytes) {
                self.again.push_front(item);
                break;
            }
            whole += size;
            items.push(item);
            if size < first {
                break;
            }
        }
        if items.is_empty() {
            self.spare = items;
            return None;
        }
        Some(Train { items, first_number: self.next_number() })
    }

    /// The train was not sent.
    pub(crate) fn put_back(&mut self, train: Train, from: usize) {
        for &item in train.items[from..].iter().rev() {
            self.again.push_front(item);
        }
        self.spare = train.items;
    }

    /// The first so many datagrams of a train were sent; the rest was not.
    pub(crate) fn sent(&mut self, train: Train, count: usize, pinned: bool, now: Nanos, done: &mut Vec<Token>) {
        for &item in &train.items[..count] {
            if self.pace.rate().is_some() {
                // Nobody is asked whether it came.
                self.note_sent(What::Report, item.size(), now);
                self.pace.left(item.size());
            } else {
                self.note_sent(What::Data(item), item.size(), now);
            }
            self.probes_left = self.probes_left.saturating_sub(1);
            if let (true, Some(piece)) = (pinned, self.piece_mut(item.sequence)) {
                piece.pins += 1;
                self.pinned_bytes += u64::from(item.length);
            }
            if !self.reliable {
                // It is sent once, and what becomes of it is not waited for.
                self.note_arrived(item, done);
            }
        }
        if count < train.items.len() {
            self.put_back(train, count);
        } else {
            self.spare = train.items;
        }
    }

    /// The datagrams of a train, each with its head and the bytes behind that.
    pub(crate) fn datagrams<'a>(
        &'a self,
        train: &'a Train,
        session: u64,
        epoch: u32,
    ) -> impl Iterator<Item = (Head, &'a [u8])> {
        let flags = if self.pace.rate().is_some() { 0 } else { ELICITS } | if self.reliable { 0 } else { UNRELIABLE };
        let empty = Head { epoch, flags, ..Head::empty(Kind::Data, session) };
        // Most are parts of the same piece.
        let (mut of_piece, mut whole): (Option<Head>, &[u8]) = (None, &[]);
        train.items.iter().zip(train.first_number..).map(move |(item, number)| {
            let mut head = match of_piece.filter(|head| head.sequence == item.sequence) {
                Some(head) => head,
                None => {
                    let mut head = Head { sequence: item.sequence, ..empty };
                    whole = &[];
                    if let Some(piece) = self.piece(item.sequence)
                        && let Some(message) = self.message(piece.message)
                    {
                        let bytes = message.payload.bytes();
                        (head.stream, head.tag, head.message_bytes) = (message.stream, message.tag, bytes.len() as u32);
                        (head.offset, head.after) = (piece.offset, piece.after);
                        whole = bytes.get(piece.offset as usize..).unwrap_or(&[]);
                    }
                    *of_piece.insert(head)
                }
            };
            (head.number, head.begin) = (number, item.begin);
            (head, whole.get(item.begin as usize..(item.begin + item.length) as usize).unwrap_or(&[]))
        })
    }

    /// Whether a control datagram must go out for the sender's sake.
    pub(crate) fn must_speak(&self) -> bool {
        self.ping || self.end_is_due() || (self.lacking != [false; 2] && !self.asked)
    }

    fn end_is_due(&self) -> bool {
        let all_begun = self.fresh.is_none() && self.ready.iter().all(VecDeque::is_empty);
        self.closed && self.end == End::Unsaid && all_begun
    }

    /// What the sender says in a control datagram: its number, its flags, and how many pieces were begun.
    pub(crate) fn speak(&mut self, elicits: bool, size: u64, now: Nanos) -> (u64, u16, u64) {
        let number = self.next_number();
        let says_end = self.end_is_due();
        let asks = self.lacking != [false; 2];
        let mut flags = 0;
        flags |= if self.lacking[0] { WANTS_SMALL } else { 0 };
        flags |= if self.lacking[1] { WANTS_LARGE } else { 0 };
        flags |= if says_end { END } else { 0 };
        flags |= if self.reliable { 0 } else { UNRELIABLE };
        let elicits = elicits || self.ping || says_end || (asks && !self.asked);
        self.asked |= asks;
        self.ping = false;
        if says_end {
            self.end = End::Said;
        }
        flags |= if elicits { ELICITS } else { 0 };
        let what = match (says_end, elicits) {
            (true, _) => What::End,
            (_, true) => What::Ping,
            _ => What::Report,
        };
        self.note_sent(what, size, now);
        (number, flags, self.next_piece())
    }

    /// Notes that bytes of a piece arrived, or need not.
    fn note_arrived(&mut self, item: Item, done: &mut Vec<Token>) {
        let Some(piece) = self.piece_mut(item.sequence) else { return };
        if piece.has_arrived {
            return;
        }
        if item.length < piece.length {
            piece.arrived.insert(item.begin.into(), (item.begin + item.length).into());
            if !piece.arrived.covers(0, piece.length.into()) {
                return;
            }
        }
        (piece.has_arrived, piece.arrived) = (true, Ranges::default());
        if piece.pins == 0 {
            self.finish_piece(item.sequence, done);
        }
    }

    /// A send that pinned so many bytes of a piece is done with them.
    pub(crate) fn unpin(&mut self, sequence: u64, bytes: u32, done: &mut Vec<Token>) {
        self.pinned_bytes = self.pinned_bytes.saturating_sub(bytes.into());
        let Some(piece) = self.piece_mut(sequence) else { return };
        piece.pins -= 1;
        if piece.pins == 0 && piece.has_arrived {
            self.finish_piece(sequence, done);
            self.pop_pieces();
        }
    }

    fn finish_piece(&mut self, sequence: u64, done: &mut Vec<Token>) {
        let Some(piece) = self.piece_mut(sequence) else { return };
        if core::mem::replace(&mut piece.finished, true) {
            return;
        }
        let number = piece.message;
        let Some(message) = self.message_mut(number) else { return };
        message.open_pieces -= 1;
        if message.open_pieces == 0 && message.whole_framed {
            let index = (number - self.first_message) as usize;
            if let Some(message) = self.messages[index].take() {
                self.live_messages -= 1;
                self.waiting_bytes -= message.payload.byte_len() as u64;
                done.push(message.token);
            }
            while self.messages.front().is_some_and(Option::is_none) {
                self.messages.pop_front();
                self.first_message += 1;
            }
        }
    }

    fn pop_pieces(&mut self) {
        let before = self.first_piece;
        while self.pieces.front().is_some_and(|piece| piece.finished) {
            self.pieces.pop_front();
            self.first_piece += 1;
        }
        // Streams that are done are forgotten from time to time, so that there are never many more than pieces.
        if self.first_piece > before && self.last_of.len() > 2 * self.pieces.len() + 16 {
            let first = self.first_piece;
            self.last_of.retain(|_, last| *last >= first);
        }
    }

    /// Takes credits; those of an older report change nothing.
    fn granted(&mut self, granted: [u32; 2]) -> Result<(), PeerFault> {
        for class in Class::ALL {
            let index = class.index();
            let more = granted[index].wrapping_sub(self.granted[index]);
            if more == 0 || more > u32::MAX / 2 {
                continue;
            }
            if !self.reliable {
                // What is sent once takes no credits, so that none are left to be too many.
                (self.granted[index], self.used[index]) = (granted[index], granted[index]);
                continue;
            }
            let open = self.granted[index].wrapping_sub(self.used[index]);
            if more > MOST_CREDITS || open + more > MOST_CREDITS {
                return Err(PeerFault::Credits { class, claimed: granted[index], before: self.granted[index] });
            }
            self.granted[index] = granted[index];
            (self.lacking[index], self.asked) = (false, false);
        }
        Ok(())
    }

    /// Takes no more messages.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Whether the peer has everything, and knows that nothing more comes.
    pub(crate) fn is_finished(&self) -> bool {
        self.end == End::Heard && self.live_messages == 0
    }

    /// Whether the end was said, and everything before it arrived.
    pub(crate) fn has_ended(&self) -> bool {
        self.end != End::Unsaid && self.live_messages == 0
    }

    /// The peer has ended after our end, with so many of our pieces received, and only its last words were lost.
    ///
    /// # Errors
    /// [`PeerFault`] if that cannot be; nothing has changed then.
    pub(crate) fn ended_there(&mut self, pieces: u64, done: &mut Vec<Token>) -> Result<(), PeerFault> {
        let count = self.next_piece();
        if self.end == End::Unsaid || (self.reliable && pieces != count) {
            return Err(PeerFault::End { sequence: pieces, fault: "we had not ended ours there" });
        }
        self.end = End::Heard;
        self.again.clear();
        for sequence in self.first_piece..count {
            let length = self.piece(sequence).map_or(0, |piece| piece.length);
            self.note_arrived(Item { sequence, begin: 0, length }, done);
        }
        self.pop_pieces();
        Ok(())
    }

    /// Gives up: the messages that did not complete, and what sends still pin.
    pub(crate) fn fail(&mut self) -> (Vec<Token>, Vec<Kept>) {
        self.closed = true;
        let pinned: Vec<u64> = self.pieces.iter().filter(|piece| piece.pins > 0).map(|piece| piece.message).collect();
        let first = self.first_message;
        let (mut tokens, mut kept) = (Vec::new(), Vec::new());
        for (index, message) in self.messages.drain(..).enumerate() {
            let Some(message) = message else { continue };
            tokens.push(message.token);
            if pinned.contains(&(first + index as u64)) {
                kept.push(Kept { header: None, payload: message.payload });
            }
        }
        self.pieces.clear();
        self.queues.clear();
        self.again.clear();
        self.packets.clear();
        self.ready.iter_mut().for_each(VecDeque::clear);
        (self.fresh, self.in_flight, self.live_messages, self.waiting_bytes) = (None, 0, 0, 0);
        (tokens, kept)
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
