//! One side's connection: what is said goes into slots, what comes is taken out of events, and Ctrl-C is noticed.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use zcmi::LeaseMut;
use zcmi::net::outgoing::{Payload, SubmitError, Token};
use zcmi::net::path::PathKind;
use zcmi::net::slots::SlotPlan;
use zcmi::net::stream::{ConnectionFacts, StreamOptions, StreamTransport};
use zcmi::net::transport::{ConnectionId, Destination, Event, Transport};
use zcmi::pool::{PoolPlan, SizeClass};

use super::PIECE_BYTES;
use super::message::{MAX_BODY_BYTES, Message, TransferFault, WINDOW};
use crate::code::Fault;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::say;

/// Answers that may wait for a slot: as many as the entries that an honest peer leaves unanswered can have.
const MAX_WAITING: usize = 4 * WINDOW;
/// How long a last word may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What a transport for transfers takes: small slots for what is said, slots of a piece for data.
pub(crate) fn slots(received: u32, loaned: u32) -> Result<SlotPlan, Failure> {
    let classes = [(4096, 256), (64 << 10, 16), (PIECE_BYTES, loaned)];
    let classes = classes.map(|(slot_bytes, slots)| SizeClass { slot_bytes, slots });
    let loans = PoolPlan::new(classes.into()).map_err(|error| Failure::of("the memory cannot be laid out", &error))?;
    Ok(SlotPlan {
        small_bytes: 4096,
        small_slots: 512,
        slot_bytes: PIECE_BYTES as u32,
        large_slots: received,
        headers: 1024,
        loans: Some(loans),
    })
}

/// A transport, the connection that matters, and what could not be said yet.
pub(crate) struct Talk {
    pub(crate) transport: StreamTransport,
    pub(crate) interrupt: Interrupt,
    pub(crate) connection: ConnectionId,
    waiting: VecDeque<(u64, Vec<u8>)>,
    next: u64,
}

impl Talk {
    pub(crate) fn new(options: StreamOptions, interrupt: Interrupt) -> Result<Self, Failure> {
        let transport = StreamTransport::new(options);
        let transport = transport.map_err(|error| Failure::of("the transport cannot be made", &error))?;
        Ok(Self { transport, interrupt, connection: ConnectionId::NONE, waiting: VecDeque::new(), next: 0 })
    }

    /// From now on this is the connection that matters.
    pub(crate) fn turn_to(&mut self, connection: ConnectionId) {
        self.connection = connection;
        self.waiting.clear();
    }

    /// Says something, at once or as soon as there is a slot.
    ///
    /// # Errors
    /// The peer takes none of the answers to what it says.
    pub(crate) fn say(&mut self, message: &Message<'_>) -> Result<(), Failure> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(broke_protocol(TransferFault::Window));
        }
        self.waiting.push_back((message.tag(), message.body()));
        self.flush()
    }

    /// Says what waits, as far as there are slots.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        while let Some((tag, body)) = self.waiting.pop_front() {
            let Some(mut lease) = self.loan(body.len()) else {
                self.waiting.push_front((tag, body));
                return Ok(());
            };
            lease.as_mut_message_bytes().copy_from_slice(&body);
            self.submit(self.connection, tag, lease.into())?;
        }
        Ok(())
    }

    /// Whether something that was said still waits for a slot. What is said later must not overtake it.
    pub(crate) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A slot to fill, if one is free.
    pub(crate) fn loan(&mut self, bytes: usize) -> Option<LeaseMut<[u8]>> {
        self.transport.loan(bytes).ok()
    }

    /// Hands a filled slot over, or a part of a file.
    pub(crate) fn submit(&mut self, to: ConnectionId, tag: u64, payload: Payload) -> Result<Token, Failure> {
        self.next += 1;
        let (to, token) = (Destination::new(to).tag(tag), Token(self.next));
        match self.transport.submit(to, payload, token) {
            Ok(()) => Ok(token),
            // Why the connection is gone is an event, which is taken next.
            Err(refused) if matches!(refused.reason, SubmitError::NoConnection(_) | SubmitError::Closed) => Ok(token),
            Err(refused) => Err(Failure::of("a message was not taken", &refused.reason)),
        }
    }

    /// What happened, after at most `timeout`.
    pub(crate) fn poll(&mut self, events: &mut Vec<Event>, timeout: Duration) -> Result<(), Failure> {
        self.interrupt.check()?;
        self.flush()?;
        let polled = self.transport.poll(events, Some(timeout));
        polled.map(|_| ()).map_err(|error| Failure::of("the transport cannot go on", &error))
    }

    /// Waits until `other` or the transport has something.
    pub(crate) fn wait_for(&mut self, other: BorrowedFd<'_>, timeout: Duration) -> Result<(), Failure> {
        let ours = self.transport.descriptor();
        let both = [(other, PollFlags::IN), (ours.as_fd(), PollFlags::IN)];
        self.interrupt.wait(&both, Some(timeout)).map(|_| ())
    }

    /// Tells the peer why this side gives up, and waits a little until it knows.
    pub(crate) fn give_up(&mut self, failure: &Failure) {
        let connection = self.connection;
        self.waiting.clear();
        self.turn_away(connection, &failure.to_string());
        let until = Instant::now() + LAST_WORD;
        let mut events = Vec::new();
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            events.clear();
            if self.transport.poll(&mut events, Some(left)).is_err()
                || events.iter().any(|event| is_over(event, connection))
            {
                return;
            }
        }
    }

    /// Tells a peer why it is not served.
    pub(crate) fn turn_away(&mut self, connection: ConnectionId, why: &str) {
        let said = Message::Abort { why: why.as_bytes() };
        let body = said.body();
        if let Some(mut lease) = self.loan(body.len()) {
            lease.as_mut_message_bytes().copy_from_slice(&body);
            let _or_it_sees_that_we_hang_up = self.submit(connection, said.tag(), lease.into());
        }
        self.transport.close(connection);
    }

    /// What the connection did.
    pub(crate) fn facts(&self) -> Option<ConnectionFacts> {
        self.transport.facts(self.connection)
    }
}

/// Whether the peer has our last word, or will never have it. An acknowledgement comes in order, so that a count of
/// what is unfinished is not needed: the connection closes when both sides have ended.
fn is_over(event: &Event, connection: ConnectionId) -> bool {
    match event {
        Event::Closed { connection: which, .. } | Event::Interrupted { connection: which, .. } => *which == connection,
        _ => false,
    }
}

/// The failure of a peer that gave up. Where it only was interrupted, its words have no next step; `goes_on` says
/// whether another attempt goes on where this one was.
pub(crate) fn gave_up(peer: &str, why: &[u8], goes_on: bool) -> Failure {
    let failure = Failure::new(Fault::PeerGaveUp, format!("{peer} gave up: {}", words(why)));
    match (why == Failure::Interrupted.to_string().as_bytes(), goes_on) {
        (true, true) => failure.and("run both again to go on"),
        (true, false) => failure.and("run both again"),
        (false, _) => failure,
    }
}

/// The failure of a peer that does not keep to the protocol.
pub(crate) fn broke_protocol(fault: TransferFault) -> Failure {
    Failure::coded(fault.code(), format!("the other side broke the protocol of a transfer: {fault}"))
}

/// What a piece says, of all that is not data.
pub(crate) fn understand(tag: u64, body: &[u8], is_whole: bool) -> Result<Message<'_>, Failure> {
    let message = Message::decode(tag, body).map_err(broke_protocol)?;
    if !matches!(message, Message::Data { .. }) && (!is_whole || body.len() > MAX_BODY_BYTES) {
        let kind = (tag >> 56) as u8;
        return Err(broke_protocol(TransferFault::Body { kind, why: "it is too long" }));
    }
    Ok(message)
}

/// A peer's words as they may stand on a terminal.
pub(crate) fn words(text: &[u8]) -> String {
    say::harmless(&String::from_utf8_lossy(text))
}

/// What was sent by each path, and the path that most of it took.
pub(crate) fn path_in_use(facts: &ConnectionFacts) -> Option<(PathKind, u64)> {
    let paths = PathKind::ALL.iter().zip(&facts.counts.paths).map(|(path, counts)| (*path, counts.bytes));
    paths.filter(|(_, bytes)| *bytes > 0).max_by_key(|(_, bytes)| *bytes)
}
