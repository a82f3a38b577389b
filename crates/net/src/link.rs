//! A connection at work: what is to be sent goes out over a wire by some path, what comes in goes into slots.
//!
//! # Receiving
//! Small pieces are read together into a stage and copied out of it, counted. Of a large piece that has begun the rest
//! is read straight into its slot, and behind it, in the same call, headers and slots for as many more pieces of that
//! length as fit: a stream of large messages is received without a copy in user space and with one call for several.
//! When another length comes than was expected, what landed in the wrong place is copied, counted.
//!
//! # Invariants
//! - What was accepted of a send is noted before anything else happens.
//! - A path that is refused costs a counted fallback, never a message.
//! - A wire that is lost leaves behind what its notifications still pin ([`Orphan`]); whoever drives links keeps it.

mod budget;
mod counts;
mod files;
mod standing;

use std::io::{self, IoSliceMut};
use std::time::Instant;

use zcmi_mem::lease::LeaseMut;
use zcmi_mem::pool::Slot;

pub use self::counts::{LinkCounts, PathCounts};
pub(crate) use self::standing::GOING_ON_BYTES;
pub use self::standing::Progress;
use crate::frame::{Class, HEADER_BYTES, Header, Hello, Kind};
use crate::incoming::{Incoming, PeerFault};
use crate::outgoing::{Framed, Front, Kept, NotTaken, Outgoing, Payload, QueueLimits, Token};
use crate::path::{PathKind, Refusals};
use crate::refused::Refused;
use crate::select::{self, Choosing, Experience, Objective, Selection, Selector};
use crate::slots::{Need, Slots};
use crate::wire::{Notification, Segment, Wire};

/// Pieces from this length on are received straight into their slots.
pub const DIRECT_BYTES: u32 = 2048;
/// How many pieces are expected at most in one call.
const AHEAD_PIECES: usize = 4;
/// The buffers of such a call: what has begun, and pairs of a header and a piece.
const BUFFERS: usize = 1 + 2 * (AHEAD_PIECES + 1);
/// How many bytes are expected at most in one call.
const AHEAD_BYTES: usize = 512 << 10;
/// Frames of so many bytes together are copied behind each other before they are copied into the kernel, which takes
/// one buffer for less than what it saves to copy them once.
const STAGED_BYTES: usize = 2048;
/// Segments of one send.
const SEGMENTS: usize = 64;
/// Framed bytes that wait for the socket at most, beyond one piece.
const FRAMED_BYTES: u64 = 512 << 10;
/// Framed pieces that wait for the socket at most.
const FRAMED_PIECES: usize = 32;
/// How often one turn reads or writes before others have theirs.
const TURNS: usize = 16;

/// How many connections are a crowd.
pub(crate) const CROWD: usize = 64;

/// Credits that a peer gets before it has sent anything, by class.
const FIRST_CREDITS: [u32; 2] = [8, 1];

/// What a link wants of the memory and the time of its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLimits {
    /// What may wait to be sent.
    pub queue: QueueLimits,
    /// Credits kept open for the peer at most, by class. It begins with few; each piece that it sends makes it one
    /// more, as far as half of the slots are left for peers that wait for some.
    pub credits: [u32; 2],
    /// How many messages the peer may have begun at a time.
    pub streams: u32,
    /// Bytes whose pages the kernel may read after the call: beyond it a path that copies is used.
    pub pinned_bytes: u64,
}

impl LinkLimits {
    /// Promises the credits of a hello.
    pub fn first_credits(&self, slots: &mut Slots) -> [u32; 2] {
        Class::ALL.map(|class| {
            let index = class.index();
            slots.promise(class, FIRST_CREDITS[index].min(self.credits[index]), Need::Ahead)
        })
    }
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self { queue: QueueLimits::default(), credits: [256, 32], streams: 1024, pinned_bytes: 64 << 20 }
    }
}

/// A piece of a message that was received.
#[derive(Debug)]
pub struct Piece {
    /// The stream.
    pub stream: u32,
    /// The sender's word.
    pub tag: u64,
    /// Bytes of the whole message.
    pub message_bytes: u32,
    /// Where in the message the piece begins.
    pub offset: u32,
    /// The bytes, in a slot of ours.
    pub lease: LeaseMut<[u8]>,
}

impl Piece {
    /// Whether the message ends with this piece.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.offset as usize + self.lease.byte_len() == self.message_bytes as usize
    }

    /// Whether this is all of the message.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.offset == 0 && self.is_last()
    }
}

/// What a turn of a link brought.
#[derive(Debug)]
pub enum Happened {
    /// A piece came.
    Received(Piece),
    /// A message is received by the peer and free here.
    Completed(Token),
    /// Zeros went in the place of bytes of a message that its file no longer gives, and why.
    Unreadable(Token, String),
    /// The peer will send nothing more.
    Ended,
}

/// Why a wire is of no use any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The peer broke the protocol.
    #[error(transparent)]
    Peer(#[from] PeerFault),
    /// A system call failed.
    #[error("{call} failed")]
    System {
        /// The call.
        call: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The peer began something and did not go on.
    #[error(
        "the peer stalled: it began piece {piece}, or was given a slot because it waited, and did not go on for \
         {milliseconds} ms; if its network is that slow, raise `stall_timeout`"
    )]
    Stalled {
        /// The number of the piece.
        piece: u64,
        /// How long it was waited for.
        milliseconds: u64,
    },
    /// Nothing acknowledges what was sent: the peer's host is gone, or the way to it.
    #[error(
        "what was sent is not acknowledged, and the peer's host was silent for {milliseconds} ms; if its network is \
         away for so long at times, raise `keep_alive`"
    )]
    Silent {
        /// How long nothing was heard.
        milliseconds: u64,
    },
    /// The peer's side was closed before its end.
    #[error("the connection broke off: the peer closed it without an end")]
    CutOff,
}

/// A wire that is lost, and what its notifications still pin.
#[derive(Debug)]
pub struct Orphan<W> {
    /// The wire, on which the notifications come.
    pub wire: W,
    /// What must not be reused before.
    pub kept: Vec<Kept>,
}

/// A piece that is being received.
struct Filling {
    header: Header,
    slot: Option<Slot>,
    filled: usize,
}

/// What is said in a frame of its own, if no message carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saying {
    /// What the peer waits for.
    Urgent,
    /// And what is much.
    Due,
    /// And the rest.
    All,
}

/// Whether the bytes of a call were all there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Nothing is there now.
    Drained,
    /// More may be there.
    More,
    /// There is no slot for what comes; try again when one is free.
    Starved,
    /// The stream has ended.
    Eof,
}

/// One side of a session with a peer.
pub struct Link<W> {
    wire: Option<W>,
    outgoing: Outgoing,
    incoming: Incoming,
    limits: LinkLimits,
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    /// What the wait cost that the next receive ended, in nanoseconds.
    waited_ns: u64,
    filling: Option<Filling>,
    last_length: u32,
    choosing: Choosing,
    /// By which paths came what was received since this was last looked at: a bit for each.
    came_by: u8,
    /// Pieces received since their promises were taken back.
    used: [u32; 2],
    /// Pieces received over this wire, by class: the peer's credits grow with them.
    whole: [u32; 2],
    /// The numbers of the loans of classes of which the peer was given credits because it waited, and has used none;
    /// 0 for none.
    lent: [u32; 2],
    /// The number of the last loan.
    loan: u32,
    /// How many of the peer's credits it has because it is known, by class.
    known: [u32; 2],
    /// And how many because it waited as a newcomer.
    newcomer: [u32; 2],
    lacks_header: bool,
    lacks_slot: bool,
    has_turn: bool,
    counts: LinkCounts,
    /// None as long as no path was refused: a connection at rest is to be small.
    refused: Refused,
    /// The bytes [at risk](Outgoing::at_risk) of which the slots know.
    told_risk: u64,
    tokens: Vec<Token>,
    /// Messages of whose bytes some could not be read, and that was not told yet.
    unreadable: Vec<(Token, String)>,
}

impl<W> core::fmt::Debug for Link<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Link")
            .field("outgoing", &self.outgoing)
            .field("incoming", &self.incoming)
            .field("connected", &self.wire.is_some())
            .finish_non_exhaustive()
    }
}

impl<W: Wire> Link<W> {
    /// A link without a wire yet.
    #[must_use]
    pub fn new(limits: LinkLimits, slots: &Slots) -> Self {
        let (small, large) = slots.sizes();
        Self {
            wire: None,
            outgoing: Outgoing::new(limits.queue),
            incoming: Incoming::new(small, large, limits.streams),
            limits,
            header: [0; HEADER_BYTES],
            header_filled: 0,
            waited_ns: 0,
            filling: None,
            last_length: 0,
            choosing: Choosing::Forced(PathKind::Write),
            came_by: 0,
            used: [0; 2],
            whole: [0; 2],
            lent: [0; 2],
            loan: 0,
            known: [0; 2],
            newcomer: [0; 2],
            lacks_header: false,
            lacks_slot: false,
            has_turn: false,
            counts: LinkCounts::default(),
            refused: Refused::default(),
            told_risk: 0,
            tokens: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// Uses this path, wherever it can be.
    pub fn force(&mut self, path: PathKind) {
        self.choosing = Choosing::Forced(path);
    }

    /// Uses the cheapest of these paths, which is found by measuring.
    pub fn choose_among(&mut self, usable: &'static [PathKind], objective: Objective) {
        self.choosing = Choosing::among(usable, objective);
    }

    /// Nothing will go on over another wire when this one breaks: see [`Outgoing::never_resumes`].
    pub fn never_resumes(&mut self) {
        self.outgoing.never_resumes();
    }

    /// Has the choice learn from other connections to the same host, and them from it.
    pub(crate) fn learn_from(&mut self, others: &Experience) {
        self.choosing.learn_from(others);
    }

    /// What is chosen and why; none as long as nothing was measured.
    #[must_use]
    pub fn selection(&self) -> Option<Selection> {
        self.choosing.selection()
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> &LinkCounts {
        &self.counts
    }

    /// Why each path was refused first, in the order of [`PathKind::ALL`].
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        self.refused.reasons()
    }

    /// A path that was refused for the first time since this was asked last, and why.
    pub fn take_refusal(&mut self) -> Option<(PathKind, String)> {
        self.refused.take_untold()
    }

    /// The wire, while there is one.
    pub fn wire_mut(&mut self) -> Option<&mut W> {
        self.wire.as_mut()
    }

    /// The wire, while there is one.
    #[must_use]
    pub fn wire(&self) -> Option<&W> {
        self.wire.as_ref()
    }

    /// The number of the piece that is expected next: what a hello says.
    #[must_use]
    pub fn expected(&self) -> u64 {
        self.incoming.expected()
    }

    /// Promises the credits of a hello.
    pub fn first_credits(&mut self, slots: &mut Slots) -> [u32; 2] {
        self.limits.first_credits(slots)
    }

    /// Goes on over a wire, on which both said hello.
    ///
    /// # Errors
    /// [`PeerFault`] for a hello that does not fit what came before; the wire comes back, and nothing has changed.
    pub fn connect(
        &mut self,
        wire: W,
        ours: &Hello,
        theirs: &Hello,
        happened: &mut Vec<Happened>,
    ) -> Result<(), (PeerFault, W)> {
        debug_assert!(self.wire.is_none(), "the wire before was released");
        if let Err(fault) = self.outgoing.begin(theirs, ours.epoch, &mut self.tokens) {
            return Err((fault, wire));
        }
        self.incoming.begin(ours);
        self.wire = Some(wire);
        self.complete(happened);
        Ok(())
    }

    /// Lets go of the wire: what it still pins comes with it. What was not acknowledged is sent again over the next.
    pub fn disconnect(&mut self, slots: &mut Slots, happened: &mut Vec<Happened>) -> Option<Orphan<W>> {
        let wire = self.wire.take()?;
        let kept = self.outgoing.release_wire(&mut self.tokens);
        self.tell_risk(slots);
        self.forget_receiving(slots);
        self.complete(happened);
        Some(Orphan { wire, kept })
    }

    fn forget_receiving(&mut self, slots: &mut Slots) {
        slots.unpromise(self.incoming.open());
        slots.forget_known(core::mem::take(&mut self.known));
        slots.forget_newcomer(core::mem::take(&mut self.newcomer));
        self.incoming.forget_credits();
        self.header_filled = 0;
        (self.whole, self.lent, self.lacks_slot) = ([0; 2], [0; 2], false);
        if let Some(slot) = self.filling.take().and_then(|filling| filling.slot) {
            slots.put_back(slot);
        }
    }

    /// Gives everything up. Returns the wire with what it pins, the messages that failed, and what must never be reused
    /// because only an acknowledgement would have freed it.
    pub fn fail(
        &mut self,
        slots: &mut Slots,
        happened: &mut Vec<Happened>,
    ) -> (Option<Orphan<W>>, Vec<Token>, Vec<Kept>) {
        let failed = self.outgoing.fail();
        self.tell_risk(slots);
        self.forget_receiving(slots);
        happened.extend(failed.completed.into_iter().map(Happened::Completed));
        let orphan = self.wire.take().map(|wire| Orphan { wire, kept: failed.pinned });
        (orphan, failed.tokens, failed.unanswered)
    }

    /// Takes a message for sending.
    ///
    /// # Errors
    /// [`NotTaken`] with the message in it.
    pub fn submit(
        &mut self,
        stream: u32,
        tag: u64,
        payload: Payload,
        token: Token,
        slots: &Slots,
    ) -> Result<(), NotTaken> {
        if self.outgoing.unfinished() == 0 {
            self.choosing.tell(Selector::resumes);
        }
        let home = slots.home(payload.bytes());
        self.outgoing.submit(stream, tag, payload, home, token)?;
        self.counts.submitted += 1;
        Ok(())
    }

    /// Takes no more messages; an end goes out behind the last.
    pub fn close(&mut self) {
        self.outgoing.close();
    }

    fn complete(&mut self, happened: &mut Vec<Happened>) {
        if !self.tokens.is_empty() && self.outgoing.unfinished() == 0 {
            self.choosing.tell(Selector::idles);
        }
        happened.extend(self.unreadable.drain(..).map(|(token, why)| Happened::Unreadable(token, why)));
        happened.extend(self.tokens.drain(..).map(Happened::Completed));
    }

    /// Notes that this end waited until something happened here, and what that cost. Returns whether that is of use.
    pub fn waited(&mut self, ns: u64) -> bool {
        let before = core::mem::replace(&mut self.waited_ns, ns);
        self.choosing.tell(|selector| selector.waited(ns)).is_some() || before == 0
    }

    /// Takes the notifications that have come.
    ///
    /// # Errors
    /// [`LinkError::System`] if they cannot be read.
    pub fn take_notifications(&mut self, happened: &mut Vec<Happened>) -> Result<(), LinkError> {
        let Some(wire) = &mut self.wire else { return Ok(()) };
        let (outgoing, tokens, counts) = (&mut self.outgoing, &mut self.tokens, &mut self.counts);
        let mut told: [(u32, bool); PathKind::ALL.len()] = Default::default();
        let begin = Instant::now();
        let read = wire.notifications(&mut |notification: Notification| {
            let mut known = 0;
            outgoing.notified(notification, tokens, &mut |path| {
                let index = path as usize;
                let path = &mut counts.paths[index];
                known += 1;
                told[index] = (told[index].0 + 1, notification.copied);
                path.notified += 1;
                path.copied += u64::from(notification.copied);
            });
            counts.stray_notifications += (notification.last - notification.first + 1).saturating_sub(known);
        });
        let all: u32 = told.iter().map(|(count, _)| count).sum();
        let took = begin.elapsed();
        self.choosing.tell(|selector| {
            for (path, (count, copied)) in PathKind::ALL.into_iter().zip(told).filter(|(_, (count, _))| *count > 0) {
                selector.notified(path, copied, count, took / all.max(1) * count);
            }
        });
        self.complete(happened);
        read.map_err(|source| LinkError::System { call: "reading notifications", source })
    }

    /// Frames and sends as much as the socket takes.
    ///
    /// With `flush`, acknowledgements that no message carried are said in a frame of their own.
    ///
    /// # Errors
    /// [`LinkError`] if the wire is of no use any more.
    pub fn send(&mut self, slots: &mut Slots, flush: bool) -> Result<(), LinkError> {
        self.send_saying(slots, if flush { Saying::All } else { Saying::Due })
    }

    /// The same as long as an answer to what was received may come: what is [due](Self::has_due_note) to be said alone
    /// waits for it.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_expecting(&mut self, slots: &mut Slots) -> Result<(), LinkError> {
        self.send_saying(slots, Saying::Urgent)
    }

    fn send_saying(&mut self, slots: &mut Slots, saying: Saying) -> Result<(), LinkError> {
        self.has_turn = false;
        for _ in 0..TURNS {
            self.fill_queue(slots, saying);
            let Some(front) = self.outgoing.front() else {
                return Ok(());
            };
            if !self.send_front(front, slots)? {
                return Ok(());
            }
        }
        self.has_turn = true;
        Ok(())
    }

    fn fill_queue(&mut self, slots: &mut Slots, saying: Saying) {
        let note = self.incoming.note();
        let mut bytes = 0;
        self.lacks_header = false;
        for _ in self.outgoing.queued()..FRAMED_PIECES {
            let held = self.outgoing.unfinished_pieces();
            match self.outgoing.frame(note, &mut || slots.header(held)) {
                Framed::Queued(length) => {
                    self.incoming.told(note);
                    bytes += u64::from(length);
                    if bytes > FRAMED_BYTES {
                        break;
                    }
                }
                Framed::NoHeader => {
                    self.lacks_header = true;
                    break;
                }
                Framed::Nothing | Framed::NoCredit => break,
            }
        }
        if !self.outgoing.has_queued() && (self.note_is_due(saying) || self.outgoing.must_ask()) {
            self.outgoing.note(note);
            self.incoming.told(note);
            self.counts.notes += 1;
        }
    }

    /// Whether what the peer does not know is worth a frame of its own.
    #[must_use]
    pub fn has_due_note(&self) -> bool {
        self.wire.is_some() && self.note_is_due(Saying::Due)
    }

    fn note_is_due(&self, saying: Saying) -> bool {
        let (pieces, credits) = self.incoming.untold();
        let many = |class: usize| credits[class] > 0 && u64::from(credits[class]) * 2 >= u64::from(self.aim(class));
        let wanted = |class: usize| self.incoming.wants()[class] && credits[class] > 0;
        let is_due = || pieces * 4 > u64::from(self.limits.credits[0].max(4)) || many(0) || many(1);
        wanted(0)
            || wanted(1)
            || match saying {
                Saying::Urgent => false,
                Saying::Due => is_due(),
                Saying::All => pieces > 0 || is_due(),
            }
    }

    /// Sends from the front of the queue; `false` if the socket takes no more now.
    fn send_front(&mut self, front: Front, slots: &mut Slots) -> Result<bool, LinkError> {
        if self.outgoing.file_frame().is_some() {
            let sent = self.send_file_frame(slots);
            return taken(sent);
        }
        let path = self.path_for(front, slots);
        let begin = (path != PathKind::Write && self.forced().is_none()).then(Instant::now);
        let sent = match self.send_by(path, front, slots) {
            Err(error) if path != PathKind::Write && error.kind() != io::ErrorKind::WouldBlock => {
                // Whatever is wrong with the path or with the connection, a plain send finds out which.
                self.counts.paths[path as usize].refused += 1;
                self.choosing.tell(|selector| selector.refused(path));
                let plain = self.send_by(PathKind::Write, front, slots);
                if let (Ok(bytes), Some(begin)) = (&plain, begin) {
                    let pieces = *bytes as f64 / (front.payload_bytes as usize + HEADER_BYTES) as f64;
                    self.choosing.tell(|selector| selector.fell_back(path, pieces, *bytes, begin.elapsed()));
                }
                if plain.as_ref().map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |_| true) {
                    // It was the path's fault.
                    self.refused.note(path, &error);
                }
                plain
            }
            other => other,
        };
        taken(sent)
    }

    fn send_by(&mut self, path: PathKind, first: Front, slots: &mut Slots) -> io::Result<usize> {
        let left = self.left_to_pin();
        let risk = path.is_acknowledged().then(|| slots.risk_left().0);
        let Some(wire) = &mut self.wire else { return Err(io::ErrorKind::NotConnected.into()) };
        let alike: &dyn Fn(Front) -> bool = match &self.choosing {
            Choosing::Forced(_) => &|other| other.may_share == first.may_share,
            Choosing::Cheapest { .. } => &|other| Selector::is_alike(first, other),
        };
        let measures = first.payload_bytes >= select::LEAST_BYTES && first.may_share;
        let most = if measures { self.choosing.tell(|selector| selector.most_pieces()) } else { None };
        let most = most.unwrap_or(usize::MAX).min(SEGMENTS / 2);
        let most = self.outgoing.fitting(most, path.shares_pages().then_some(left), risk);
        if measures {
            self.outgoing.stamp(alike, most, path);
        }
        let mut segments = Vec::with_capacity((2 * self.outgoing.queued()).min(SEGMENTS));
        self.outgoing.segments(alike, 2 * most, &mut segments);
        let begin = measures.then(Instant::now);
        let all: usize = segments.iter().map(|segment| segment.bytes.len()).sum();
        let sent = if path == PathKind::Write && segments.len() > 1 && all <= STAGED_BYTES {
            let mut stage = [0; STAGED_BYTES];
            let mut end = 0;
            for segment in &segments {
                stage[end..][..segment.bytes.len()].copy_from_slice(segment.bytes);
                end += segment.bytes.len();
            }
            let sent = wire.send(path, &[Segment { bytes: &stage[..end], home: None }]);
            self.counts.copied_user += sent.as_ref().map_or(0, |sent| sent.bytes as u64);
            sent
        } else {
            wire.send(path, &segments)
        };
        drop(segments);
        let sent = sent?;
        self.outgoing.sent(path, sent.bytes, sent.release);
        self.tell_risk(slots);
        if let Some(begin) = begin {
            let (now, each) = (Instant::now(), first.payload_bytes as usize + HEADER_BYTES);
            let pieces = sent.bytes as f64 / each as f64;
            let took = now.duration_since(begin);
            let under_way = self.outgoing.unacknowledged() * each as u64;
            self.choosing.tell(|selector| selector.called(path, pieces, sent.bytes, took, under_way, now));
        }
        let counts = &mut self.counts.paths[path as usize];
        counts.sends += 1;
        counts.bytes += sent.bytes as u64;
        Ok(sent.bytes)
    }

    /// Receives what is there, a bounded number of times.
    ///
    /// # Errors
    /// [`LinkError`] if the wire is of no use any more, or the peer broke the protocol.
    pub fn receive(&mut self, slots: &mut Slots, happened: &mut Vec<Happened>) -> Result<Readiness, LinkError> {
        self.receive_beside(0, slots, happened)
    }

    /// The same among so many connections: in a crowd a long piece is read on while something comes, so that it has its
    /// slot for few turns of all and not for one for each of the socket's windows, which open while it is read.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn receive_beside(
        &mut self,
        connections: usize,
        slots: &mut Slots,
        happened: &mut Vec<Happened>,
    ) -> Result<Readiness, LinkError> {
        let mut read = Ok(Readiness::More);
        for _ in 0..TURNS {
            let before = self.counts.receives;
            read = self.receive_once(slots, happened);
            let goes_on = match &read {
                Ok(Readiness::More) => true,
                Ok(Readiness::Drained) => connections >= CROWD && self.fills_long() && self.counts.receives > before,
                _ => false,
            };
            if !goes_on {
                break;
            }
        }
        self.tell_risk(slots);
        // The credits of a class are alike: those that it has for being known are used first.
        let known = [0, 1].map(|class: usize| self.used[class].min(self.known[class]));
        known.iter().zip(&mut self.known).for_each(|(used, known)| *known -= used);
        slots.forget_known(known);
        let newcomer = [0, 1].map(|class: usize| self.used[class].min(self.newcomer[class]));
        newcomer.iter().zip(&mut self.newcomer).for_each(|(used, newcomer)| *newcomer -= used);
        slots.forget_newcomer(newcomer);
        slots.unpromise(core::mem::take(&mut self.used));
        self.complete(happened);
        self.top_up(slots, false);
        match read? {
            Readiness::Eof if !self.is_finished() => Err(LinkError::CutOff),
            other => Ok(other),
        }
    }

    fn receive_once(&mut self, slots: &mut Slots, happened: &mut Vec<Happened>) -> Result<Readiness, LinkError> {
        if let Some(filling) = &mut self.filling
            && filling.slot.is_none()
        {
            filling.slot = slots.take(self.incoming.class_of(filling.header.length));
            self.lacks_slot = filling.slot.is_none();
            if self.lacks_slot {
                return Ok(Readiness::Starved);
            }
        }
        if self.last_length >= DIRECT_BYTES {
            self.receive_direct(slots, happened)
        } else {
            self.receive_staged(slots, happened)
        }
    }

    /// Reads the rest of a piece, if one has begun, and behind it into the stage.
    fn receive_staged(&mut self, slots: &mut Slots, happened: &mut Vec<Happened>) -> Result<Readiness, LinkError> {
        let mut stage = slots.take_stage();
        let room = stage.len();
        let result = self.read_staged(&mut stage).and_then(|read| match read {
            None => Ok(Readiness::Drained),
            Some((0, 0)) => Ok(Readiness::Eof),
            Some((direct, staged)) => {
                self.filled(direct, happened)?;
                self.feed(&stage[..staged], slots, happened)?;
                Ok(if staged < room { Readiness::Drained } else { Readiness::More })
            }
        });
        slots.return_stage(stage);
        result
    }

    /// How many bytes went into the piece that has begun, and how many into the stage.
    fn read_staged(&mut self, stage: &mut [u8]) -> Result<Option<(usize, usize)>, LinkError> {
        let Some(wire) = &mut self.wire else { return Ok(None) };
        let (direct, read) = match &mut self.filling {
            Some(Filling { header, slot: Some(slot), filled }) => {
                let rest = &mut slot.bytes_mut(header.length as usize)[*filled..];
                let room = rest.len();
                (room, wire.receive(&mut [IoSliceMut::new(rest), IoSliceMut::new(stage)]))
            }
            _ => (0, wire.receive(&mut [IoSliceMut::new(stage)])),
        };
        let Some(read) = received(read)? else { return Ok(None) };
        self.counts.receives += 1;
        Ok(Some((read.min(direct), read.saturating_sub(direct))))
    }

    /// Reads the rest of a piece or header that has begun, and behind it headers and pieces as long as the last.
    fn receive_direct(&mut self, slots: &mut Slots, happened: &mut Vec<Happened>) -> Result<Readiness, LinkError> {
        let expected = self.last_length as usize;
        let mut cells = [[0_u8; HEADER_BYTES]; AHEAD_PIECES + 1];
        let mut ahead: [Option<Slot>; AHEAD_PIECES + 1] = [const { None }; AHEAD_PIECES + 1];
        let class = self.incoming.class_of(self.last_length);
        let large = class == Class::Large;
        // No more pieces can come than there are credits for. A peer that has used them all says so in a frame of its
        // own, and that is what the last cell, behind which no slot stands, is for.
        let begun = self.filling.as_ref().map(|filling| self.incoming.class_of(filling.header.length));
        let credits = self.incoming.open()[class.index()] - u32::from(begun == Some(class));
        let count = (AHEAD_BYTES / expected).clamp(1, AHEAD_PIECES).min(credits as usize);
        for slot in &mut ahead[..count] {
            *slot = if large { slots.take_ahead() } else { slots.take(Class::Small) };
        }
        let (mut lengths, mut room) = ([0; BUFFERS], 0);
        let begin;
        self.came_by = 0;
        let read = {
            let mut buffers: [IoSliceMut<'_>; BUFFERS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
            if let Some(Filling { header, slot: Some(slot), filled }) = &mut self.filling {
                buffers[0] = IoSliceMut::new(&mut slot.bytes_mut(header.length as usize)[*filled..]);
            }
            let mut skip = self.header_filled;
            for (index, (cell, slot)) in cells.iter_mut().zip(&mut ahead).take(count + 1).enumerate() {
                buffers[1 + 2 * index] = IoSliceMut::new(&mut cell[core::mem::take(&mut skip)..]);
                let Some(slot) = slot else { break };
                buffers[2 + 2 * index] = IoSliceMut::new(slot.bytes_mut(expected));
            }
            for (length, buffer) in lengths.iter_mut().zip(&buffers) {
                *length = buffer.len();
                room += buffer.len();
            }
            begin = Instant::now();
            match &mut self.wire {
                Some(wire) => received(wire.receive(&mut buffers)),
                None => Ok(None),
            }
        };
        let took = begin.elapsed();
        let result = match read {
            Ok(None) => Ok(Readiness::Drained),
            Ok(Some(0)) => Ok(Readiness::Eof),
            Ok(Some(read)) => {
                self.counts.receives += 1;
                let skip = self.header_filled;
                let placed = self.place(read, &lengths, skip, &cells, &mut ahead, slots, happened);
                // What it cost is told to the sender, where all of it came by one path.
                let one = PathKind::ALL.into_iter().find(|path| self.came_by == 1 << *path as u8);
                if let Some(path) = one.filter(|_| read >= select::LEAST_BYTES as usize) {
                    let waited = core::mem::take(&mut self.waited_ns);
                    self.incoming.took(path, read, took.as_nanos() as u64 + waited);
                }
                placed.map(|()| if read < room { Readiness::Drained } else { Readiness::More })
            }
            Err(error) => Err(error),
        };
        ahead.into_iter().flatten().for_each(|slot| slots.put_back(slot));
        result
    }

    /// Puts to use what was read into the piece that had begun, header cells and slots.
    #[expect(clippy::too_many_arguments, reason = "the parts of one call's buffers")]
    fn place(
        &mut self,
        mut read: usize,
        lengths: &[usize],
        mut skip: usize,
        cells: &[[u8; HEADER_BYTES]],
        ahead: &mut [Option<Slot>],
        slots: &mut Slots,
        happened: &mut Vec<Happened>,
    ) -> Result<(), LinkError> {
        let mut next = |length: usize| {
            let taken = read.min(length);
            read -= taken;
            taken
        };
        // A piece takes a slot of its own class: those of the other may be promised to other peers.
        let class = self.incoming.class_of(self.last_length);
        let direct = next(lengths[0]);
        self.filled(direct, happened)?;
        for index in 0..cells.len() {
            let (cell, slot) = (&cells[index], &mut ahead[index]);
            let (head, body) = (next(lengths[1 + 2 * index]), next(lengths[2 + 2 * index]));
            let begin = core::mem::take(&mut skip);
            self.feed(&cell[begin..begin + head], slots, happened)?;
            if body == 0 {
                continue;
            }
            let filling = self.filling.as_mut().filter(|filling| filling.filled == 0);
            match (filling, slot.take()) {
                // What was expected came: the slot is where the piece lives.
                (Some(filling), Some(taken))
                    if body <= filling.header.length as usize
                        && fits(filling, &taken)
                        && self.incoming.class_of(filling.header.length) == class =>
                {
                    filling.slot = Some(taken);
                    self.filled(body, happened)?;
                }
                (_, taken) => {
                    // From here on everything lies in the wrong place. It is copied out first, so that the slots are
                    // free for the pieces it consists of.
                    let mut behind = taken.as_ref().map_or(Vec::new(), |slot| slot.bytes(body).to_vec());
                    taken.into_iter().for_each(|slot| slots.put_back(slot));
                    for later in index + 1..cells.len() {
                        let (head, body) = (next(lengths[1 + 2 * later]), next(lengths[2 + 2 * later]));
                        behind.extend_from_slice(&cells[later][..head]);
                        if let Some(slot) = ahead[later].take() {
                            behind.extend_from_slice(slot.bytes(body));
                            slots.put_back(slot);
                        }
                    }
                    return self.feed(&behind, slots, happened);
                }
            }
        }
        Ok(())
    }

    /// Notes bytes that were read straight into the piece that has begun.
    fn filled(&mut self, bytes: usize, happened: &mut Vec<Happened>) -> Result<(), LinkError> {
        if bytes == 0 {
            return Ok(());
        }
        if let Some(filling) = &mut self.filling {
            self.came_by |= filling.header.path.map_or(1 << 7, |path| 1 << path as u8);
            filling.filled += bytes;
            if filling.filled == filling.header.length as usize {
                self.finish_piece(happened);
            }
        }
        Ok(())
    }

    /// Takes bytes of the stream that lie elsewhere than where they belong.
    fn feed(&mut self, mut bytes: &[u8], slots: &mut Slots, happened: &mut Vec<Happened>) -> Result<(), LinkError> {
        while !bytes.is_empty() {
            if let Some(filling) = &mut self.filling {
                if filling.slot.is_none() {
                    filling.slot = slots.take(self.incoming.class_of(filling.header.length));
                }
                let Some(slot) = &mut filling.slot else {
                    // A credit is a promise of a slot, and the promise was kept when it was given.
                    return Err(LinkError::System {
                        call: "taking a promised slot",
                        source: io::ErrorKind::OutOfMemory.into(),
                    });
                };
                let rest = &mut slot.bytes_mut(filling.header.length as usize)[filling.filled..];
                let taken = rest.len().min(bytes.len());
                rest[..taken].copy_from_slice(&bytes[..taken]);
                self.counts.copied_user += taken as u64;
                bytes = &bytes[taken..];
                self.filled(taken, happened)?;
            } else {
                let taken = (HEADER_BYTES - self.header_filled).min(bytes.len());
                self.header[self.header_filled..][..taken].copy_from_slice(&bytes[..taken]);
                self.header_filled += taken;
                bytes = &bytes[taken..];
                if self.header_filled == HEADER_BYTES {
                    self.header_filled = 0;
                    self.take_header(happened)?;
                }
            }
        }
        Ok(())
    }

    fn take_header(&mut self, happened: &mut Vec<Happened>) -> Result<(), LinkError> {
        let header = Header::decode(&self.header).map_err(PeerFault::from)?;
        self.incoming.check(&header)?;
        if let Some(cost) = header.cost {
            self.choosing.tell(|selector| selector.received(cost.path, f64::from(cost.kib_ns)));
        }
        self.outgoing.granted(header.granted)?;
        self.outgoing.acknowledged(header.acknowledged, &mut self.tokens)?;
        match header.kind {
            Kind::Data => {
                self.filling = Some(Filling { header, slot: None, filled: 0 });
                if header.length == 0 {
                    self.finish_piece(happened);
                }
            }
            Kind::End if self.incoming.tell_end() => happened.push(Happened::Ended),
            Kind::End | Kind::Control => {}
        }
        Ok(())
    }

    fn finish_piece(&mut self, happened: &mut Vec<Happened>) {
        let Some(Filling { header, slot, .. }) = self.filling.take() else { return };
        self.incoming.received(&header);
        self.last_length = header.length;
        self.counts.pieces_received += 1;
        self.counts.bytes_received += u64::from(header.length);
        let class = self.incoming.class_of(header.length).index();
        self.used[class] += 1;
        self.whole[class] = self.whole[class].saturating_add(1);
        self.lent[class] = 0;
        let lease = match slot {
            Some(slot) => LeaseMut::slot(slot, header.length as usize),
            None => LeaseMut::inline(0),
        };
        let Header { stream, tag, message_bytes, offset, .. } = header;
        happened.push(Happened::Received(Piece { stream, tag, message_bytes, offset, lease }));
    }
}

/// Whether a slot takes the whole piece.
fn fits(filling: &Filling, slot: &Slot) -> bool {
    filling.header.length as usize <= slot.capacity()
}

/// What a send came to: `false` if the socket takes no more now.
fn taken(sent: io::Result<usize>) -> Result<bool, LinkError> {
    match sent {
        Ok(accepted) => Ok(accepted > 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(source) => Err(LinkError::System { call: "sendmsg", source }),
    }
}

/// What a call received: nothing yet, or so many bytes.
fn received(read: io::Result<usize>) -> Result<Option<usize>, LinkError> {
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(source) => Err(LinkError::System { call: "recvmsg", source }),
    }
}
