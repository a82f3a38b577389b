//! What every transport keeps to, whatever path its bytes take. A transport joins by a [`Rig`] and one call of
//! [`conformance`](crate::conformance).

mod files;
mod limits;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use zcmi_mem::lease::LeaseMut;
use zcmi_net::link::{LinkLimits, Piece};
use zcmi_net::outgoing::{QueueLimits, SubmitError, Token};
use zcmi_net::transport::{Closed, ConnectionId, Destination, Event, Transport};

pub(crate) use files::*;
pub(crate) use limits::*;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How a pair of transports is made for a test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// The longest piece.
    pub(crate) slot_bytes: u32,
    /// How many slots of that size the receiver has.
    pub(crate) large_slots: u32,
    /// How many small slots, of 1 KiB, the receiver has.
    pub(crate) small_slots: u32,
    /// The largest message that is loaned.
    pub(crate) message_bytes: usize,
    /// How many of these.
    pub(crate) loans: u32,
    /// How many messages may wait.
    pub(crate) waiting: usize,
    /// How many bytes of them.
    pub(crate) waiting_bytes: u64,
    /// On how many streams.
    pub(crate) streams: u32,
    /// How long a broken connection is mended.
    pub(crate) resume_for: Duration,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            slot_bytes: 64 << 10,
            large_slots: 16,
            small_slots: 64,
            message_bytes: 1 << 20,
            loans: 8,
            waiting: 256,
            waiting_bytes: 4 << 30,
            streams: 1024,
            resume_for: Duration::from_secs(10),
        }
    }
}

impl Wish {
    /// What each connection may take.
    pub(crate) fn limits(&self) -> LinkLimits {
        let queue = QueueLimits { messages: self.waiting, bytes: self.waiting_bytes };
        LinkLimits { queue, streams: self.streams, ..LinkLimits::default() }
    }
}

/// One end: a transport, its connection, and the events that nobody has looked at yet.
pub(crate) struct End<T> {
    pub(crate) transport: T,
    pub(crate) connection: ConnectionId,
    pub(crate) seen: Vec<Event>,
    /// What goes with the pair, for instance the name of a socket.
    #[expect(dead_code, reason = "it goes when the end goes")]
    pub(crate) keep: Option<Box<dyn std::any::Any>>,
}

/// How a transport comes to a pair of connected ends.
pub(crate) trait Rig {
    type Transport: Transport;

    /// Two transports with one connection, the connecting one first.
    fn pair(&self, wish: Wish) -> (End<Self::Transport>, End<Self::Transport>);

    /// Breaks what carries the connection, as a network would.
    fn break_off(&self, end: &mut End<Self::Transport>);

    /// How many bytes of payload went by the path that is to be tested, and whether it was refused each time.
    fn went_by_the_path(&self, end: &End<Self::Transport>) -> bool;

    /// Whether messages may lie in files.
    fn sends_from_files(&self) -> bool {
        true
    }
}

/// The bytes of message `number`.
pub(crate) fn content(number: u64, bytes: usize) -> impl Iterator<Item = u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..bytes).map(move |at| {
        if at % 8 == 0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        (state >> (8 * (at % 8))) as u8
    })
}

fn is_content(number: u64, from: usize, bytes: &[u8]) -> bool {
    content(number, from + bytes.len()).skip(from).eq(bytes.iter().copied())
}

impl<T: Transport> End<T> {
    pub(crate) fn to(&self) -> Destination {
        Destination::new(self.connection)
    }

    /// A lease with the bytes of message `number`, if there is a slot.
    pub(crate) fn written(&mut self, number: u64, bytes: usize) -> Option<LeaseMut<[u8]>> {
        let mut lease = self.transport.loan(bytes).ok()?;
        for (to, from) in lease.iter_mut().zip(content(number, bytes)) {
            *to = from;
        }
        Some(lease)
    }

    /// Submits message `number`; it must be taken.
    pub(crate) fn submit(&mut self, number: u64, bytes: usize, stream: u32) {
        let lease = self.written(number, bytes).expect("a slot");
        let to = self.to().stream(stream).tag(number);
        self.transport.submit(to, lease.into(), Token(number)).expect("the message is taken");
    }

    pub(crate) fn poll(&mut self) {
        self.transport.poll(&mut self.seen, Some(Duration::ZERO)).expect("the transport goes on");
    }

    /// Takes the events that are there.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        core::mem::take(&mut self.seen)
    }
}

/// Polls both ends until `done` says so; panics when it takes too long.
pub(crate) fn until<T: Transport>(
    what: &str,
    ends: [&mut End<T>; 2],
    done: impl FnMut(&mut End<T>, &mut End<T>) -> bool,
) {
    until_within(PATIENCE, what, ends, done);
}

fn until_within<T: Transport>(
    patience: Duration,
    what: &str,
    ends: [&mut End<T>; 2],
    mut done: impl FnMut(&mut End<T>, &mut End<T>) -> bool,
) {
    let [one, two] = ends;
    let deadline = Instant::now() + patience;
    while !done(one, two) {
        assert!(Instant::now() < deadline, "{what}: not in {patience:?}");
        one.poll();
        two.poll();
    }
}

/// Puts pieces together, and looks whether they are the messages that their tags say.
#[derive(Default)]
pub(crate) struct Collector {
    partial: HashMap<u32, (u64, usize)>,
    /// The whole messages, by stream, in the order of their arrival.
    pub(crate) whole: HashMap<u32, Vec<u64>>,
    pub(crate) messages: usize,
    pub(crate) pieces: usize,
}

impl Collector {
    pub(crate) fn take(&mut self, piece: &Piece) {
        let (tag, at) = self.partial.remove(&piece.stream).unwrap_or((piece.tag, 0));
        assert_eq!((tag, at), (piece.tag, piece.offset as usize), "pieces of a stream come in order");
        assert!(is_content(piece.tag, at, &piece.lease), "message {tag} is wrong from {at} on");
        self.pieces += 1;
        if piece.is_last() {
            self.messages += 1;
            self.whole.entry(piece.stream).or_default().push(tag);
        } else {
            self.partial.insert(piece.stream, (tag, at + piece.lease.byte_len()));
        }
    }

    /// Takes the pieces among the events, and hands on the rest.
    pub(crate) fn sift(&mut self, events: Vec<Event>) -> Vec<Event> {
        let mut rest = Vec::new();
        for event in events {
            match event {
                Event::Received { piece, .. } => self.take(&piece),
                other => rest.push(other),
            }
        }
        rest
    }
}

pub(crate) fn messages_keep_their_bounds_and_their_order<R: Rig>(rig: &R) {
    let (mut one, mut two) = rig.pair(Wish::default());
    let sizes = [0, 1, 39, 40, 41, 1023, 1024, 1025, 2048, 65_535, 65_536, 65_537, 200_000, 1 << 20];
    let (mut collector, mut completed) = (Collector::default(), Vec::new());
    for (number, &bytes) in sizes.iter().enumerate() {
        one.submit(number as u64, bytes, 0);
        until("a message", [&mut one, &mut two], |one, two| {
            collector.sift(two.events());
            completed.extend(one.events().into_iter().filter_map(|event| match event {
                Event::Completed { token, .. } => Some(token.0),
                _ => None,
            }));
            collector.messages > number && completed.len() > number
        });
    }
    let all: Vec<u64> = (0..sizes.len() as u64).collect();
    assert_eq!(collector.whole.remove(&0), Some(all.clone()));
    assert_eq!(completed, all);
    assert!(rig.went_by_the_path(&one), "the path under test was used");
}

pub(crate) fn both_directions_carry_many_messages_at_once<R: Rig>(rig: &R) {
    let (mut one, mut two) = rig.pair(Wish { loans: 32, ..Wish::default() });
    let total = if cfg!(debug_assertions) { 2_000 } else { 20_000 };
    let size = |number: u64| (number.wrapping_mul(2_654_435_761) % 40_000) as usize >> (number % 9);
    let (mut sent, mut received) = ([0_u64; 2], [Collector::default(), Collector::default()]);
    until("everything", [&mut one, &mut two], |one, two| {
        for (side, end) in [&mut *one, &mut *two].into_iter().enumerate() {
            while sent[side] < total {
                let number = sent[side];
                let Some(lease) = end.written(number, size(number)) else { break };
                let to = end.to().stream((number % 3) as u32).tag(number);
                if end.transport.submit(to, lease.into(), Token(number)).is_err() {
                    break;
                }
                sent[side] += 1;
            }
            received[side].sift(end.events());
        }
        received.iter().all(|received| received.messages as u64 == total)
    });
    for received in received {
        for (stream, numbers) in received.whole {
            let due: Vec<u64> = (0..total).filter(|number| number % 3 == u64::from(stream)).collect();
            assert_eq!(numbers, due, "stream {stream} is in order, and whole");
        }
    }
}

pub(crate) fn a_small_message_overtakes_a_large_one_on_another_stream<R: Rig>(rig: &R) {
    let wish = Wish { message_bytes: 8 << 20, loans: 1, large_slots: 4, ..Wish::default() };
    let (mut one, mut two) = rig.pair(wish);
    one.submit(1, 8 << 20, 1);
    one.submit(2, 100, 2);
    let (mut collector, mut order) = (Collector::default(), Vec::new());
    until("both messages", [&mut one, &mut two], |_, two| {
        for event in two.events() {
            if let Event::Received { piece, .. } = event {
                if piece.is_last() {
                    order.push(piece.tag);
                }
                collector.take(&piece);
            }
        }
        order.len() == 2
    });
    assert_eq!(order, [2, 1]);
}

pub(crate) fn a_refused_message_comes_back_untouched<R: Rig>(rig: &R) {
    let (mut one, mut two) = rig.pair(Wish { waiting: 4, ..Wish::default() });
    let mut taken = 0;
    let refused = loop {
        let lease = one.written(taken, 100).expect("a slot");
        let to = one.to().tag(taken);
        match one.transport.submit(to, lease.into(), Token(taken)) {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!((taken, refused.reason), (4, SubmitError::Full { messages: 4 }));
    assert!(content(4, 100).eq(refused.payload.bytes().iter().copied()), "its bytes are as they were");
    let mut collector = Collector::default();
    until("those that were taken", [&mut one, &mut two], |one, two| {
        collector.sift(two.events());
        one.events().iter().filter(|event| matches!(event, Event::Completed { .. })).count() > 0
            && collector.messages == 4
    });
    let to = one.to().tag(4);
    one.transport.submit(to, refused.payload, Token(4)).expect("there is room again");
    until("the one that came back", [&mut one, &mut two], |_, two| {
        collector.sift(two.events());
        collector.messages == 5
    });
    let long = one.transport.submit(
        Destination::new(ConnectionId::NONE),
        two.written(9, 10).expect("a slot").into(),
        Token(9),
    );
    assert!(matches!(long.map_err(|refused| refused.reason), Err(SubmitError::NoConnection(_))));
}

pub(crate) fn a_receiver_that_holds_its_slots_stops_the_sender_and_loses_nothing<R: Rig>(rig: &R) {
    let (mut one, mut two) = rig.pair(Wish { large_slots: 4, loans: 32, ..Wish::default() });
    let total = 24;
    for number in 0..total {
        one.submit(number, 50_000, 0);
    }
    // It holds whatever it gets until no more comes.
    let (mut held, mut quiet) = (Vec::new(), Instant::now());
    until("the sender to stop", [&mut one, &mut two], |_, two| {
        let events = two.events();
        if !events.is_empty() {
            quiet = Instant::now();
        }
        held.extend(events.into_iter().filter_map(|event| match event {
            Event::Received { piece, .. } => Some(piece),
            _ => None,
        }));
        held.len() >= 3 && quiet.elapsed() > Duration::from_millis(100)
    });
    assert!(held.len() <= 4, "{} pieces were received into 4 slots", held.len());
    let mut collector = Collector::default();
    held.iter().for_each(|piece| collector.take(piece));
    drop(held);
    until("the rest", [&mut one, &mut two], |_, two| {
        collector.sift(two.events());
        collector.messages as u64 == total
    });
    assert_eq!(collector.whole[&0], (0..total).collect::<Vec<u64>>());
}

/// The reasons for which the connections were closed.
fn closings(events: &[Event]) -> Vec<String> {
    let reason = |event: &Event| match event {
        Event::Closed { reason, .. } => Some(reason.to_string()),
        _ => None,
    };
    events.iter().filter_map(reason).collect()
}

pub(crate) fn a_graceful_end_loses_nothing<R: Rig>(rig: &R) {
    let (mut one, mut two) = rig.pair(Wish::default());
    for number in 0..6 {
        one.submit(number, 300_000, 0);
        two.submit(number, 1000, 0);
    }
    one.transport.close(one.connection);
    let lease = one.written(9, 10).expect("a slot");
    let late = one.transport.submit(one.to(), lease.into(), Token(9)).map_err(|refused| refused.reason);
    assert_eq!(late, Err(SubmitError::Closed));
    let (mut collectors, mut rest, mut closed) = ([Collector::default(), Collector::default()], Vec::new(), false);
    until("both ends", [&mut one, &mut two], |one, two| {
        rest.extend(collectors[0].sift(one.events()));
        let events = collectors[1].sift(two.events());
        if events.iter().any(|event| matches!(event, Event::Ended { .. })) && !closed {
            assert_eq!(collectors[1].messages, 6, "everything comes before the end");
            two.transport.close(two.connection);
            closed = true;
        }
        rest.extend(events);
        closings(&rest).len() == 2
    });
    assert_eq!(collectors.map(|collector| collector.messages), [6, 6]);
    assert!(closings(&rest).iter().all(|reason| *reason == Closed::Ended.to_string()), "{:?}", closings(&rest));
    let completed = rest.iter().filter(|event| matches!(event, Event::Completed { .. })).count();
    assert_eq!(completed, 12, "each message completed before its connection closed");
}

pub(crate) fn a_peer_that_goes_without_an_end_fails_what_is_under_way<R: Rig>(rig: &R) {
    let wish = Wish { resume_for: Duration::ZERO, large_slots: 2, loans: 32, ..Wish::default() };
    let (mut one, mut two) = rig.pair(wish);
    for number in 0..20 {
        one.submit(number, 60_000, 0);
    }
    let mut held = Vec::new();
    until("the first pieces", [&mut one, &mut two], |_, two| {
        held.extend(two.events().into_iter().filter(|event| matches!(event, Event::Received { .. })));
        held.len() == 2
    });
    two.transport.abort(two.connection);
    let mut rest = Vec::new();
    until("the news", [&mut one, &mut two], |one, _| {
        rest.extend(one.events());
        !closings(&rest).is_empty()
    });
    let mut tokens: Vec<u64> = rest
        .iter()
        .filter_map(|event| match event {
            Event::Completed { token, .. } | Event::Failed { token, .. } => Some(token.0),
            _ => None,
        })
        .collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..20).collect::<Vec<u64>>(), "each message completed or failed, once");
    assert!(rest.iter().any(|event| matches!(event, Event::Failed { .. })));
    assert!(one.transport.submit(one.to(), two.written(0, 1).expect("a slot").into(), Token(0)).is_err());
}

pub(crate) fn a_side_that_gives_up_is_told_what_became_of_its_messages<R: Rig>(rig: &R) {
    let (mut one, mut two) = rig.pair(Wish { large_slots: 2, loans: 32, ..Wish::default() });
    for number in 0..20 {
        one.submit(number, 60_000, 0);
    }
    let mut held = Vec::new();
    until("the first pieces", [&mut one, &mut two], |_, two| {
        held.extend(two.events().into_iter().filter(|event| matches!(event, Event::Received { .. })));
        held.len() == 2
    });
    one.transport.abort(one.connection);
    one.poll();
    let events = one.events();
    let mut tokens: Vec<u64> = events
        .iter()
        .filter_map(|event| match event {
            Event::Completed { token, .. } | Event::Failed { token, .. } => Some(token.0),
            _ => None,
        })
        .collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..20).collect::<Vec<u64>>(), "each message completed or failed, once");
    assert_eq!(closings(&events), [Closed::Aborted.to_string()]);
}

pub(crate) fn a_broken_connection_goes_on_and_each_message_arrives_once<R: Rig>(rig: &R) {
    let (mut one, mut two) = rig.pair(Wish { loans: 32, ..Wish::default() });
    let total = 400_u64;
    let (mut sent, mut breaks, mut resumed) = ([0_u64; 2], 0, 0);
    let mut received = [Collector::default(), Collector::default()];
    until("everything", [&mut one, &mut two], |one, two| {
        for (side, end) in [&mut *one, &mut *two].into_iter().enumerate() {
            while sent[side] < total {
                let number = sent[side];
                let Some(lease) = end.written(number, 1 + (number as usize * 7919) % 150_000) else { break };
                let to = end.to().tag(number);
                if end.transport.submit(to, lease.into(), Token(number)).is_err() {
                    break;
                }
                sent[side] += 1;
            }
            for event in received[side].sift(end.events()) {
                assert!(!matches!(event, Event::Closed { .. } | Event::Failed { .. }), "{event:?}");
                resumed += usize::from(matches!(event, Event::Resumed { .. }));
            }
        }
        let done: usize = received.iter().map(|received| received.messages).sum();
        if done > (breaks + 1) * 100 && breaks < 6 {
            breaks += 1;
            rig.break_off(if breaks % 2 == 0 { &mut *one } else { &mut *two });
        }
        done as u64 == 2 * total
    });
    assert!(breaks == 6 && resumed >= 6, "{breaks} breaks, {resumed} resumptions");
    let all: Vec<u64> = (0..total).collect();
    assert!(received.iter().all(|received| received.whole[&0] == all), "once, and in order");
}

pub(crate) fn a_message_of_a_gibibyte_passes_through_few_slots<R: Rig>(rig: &R) {
    let bytes = 1 << 30;
    let wish = Wish { message_bytes: bytes, loans: 1, large_slots: 4, slot_bytes: 1 << 20, ..Wish::default() };
    let (mut one, mut two) = rig.pair(wish);
    let mut lease = one.transport.loan(bytes).expect("a slot");
    // Each page has its own first word; the rest is as the kernel made it.
    for (page, bytes) in lease.chunks_mut(4096).enumerate() {
        bytes[..8].copy_from_slice(&(page as u64).to_le_bytes());
    }
    one.transport.submit(one.to(), lease.into(), Token(1)).expect("the message is taken");
    let (mut at, mut done) = (0, false);
    // Seconds where nobody else wants the processor.
    until_within(4 * PATIENCE, "the message", [&mut one, &mut two], |one, two| {
        for event in two.events() {
            let Event::Received { piece, .. } = event else { continue };
            assert_eq!(piece.offset as usize, at);
            for (page, bytes) in piece.lease.chunks(4096).enumerate() {
                assert_eq!(bytes[..8], ((at / 4096 + page) as u64).to_le_bytes());
            }
            at += piece.lease.byte_len();
        }
        done |= one.events().iter().any(|event| matches!(event, Event::Completed { .. }));
        done
    });
    assert_eq!(at, bytes);
}

/// The tests of one transport: a module of that name.
#[macro_export]
macro_rules! conformance {
    ($name:ident, $rig:expr) => {
        mod $name {
            use super::*;

            $crate::conformance!(@each tests $rig);
        }
    };
    (@each $what:ident $rig:expr) => {
        $crate::conformance!(@$what $rig;
                messages_keep_their_bounds_and_their_order,
                both_directions_carry_many_messages_at_once,
                a_small_message_overtakes_a_large_one_on_another_stream,
                a_refused_message_comes_back_untouched,
                messages_beyond_the_bytes_that_may_wait_come_back_and_go_later,
                a_stream_more_than_the_peer_takes_is_refused_until_another_is_done,
                what_is_longer_than_messages_can_be_comes_back_and_nothing_else_changes,
                many_streams_take_turns_and_each_keeps_its_order,
                a_receiver_that_holds_its_slots_stops_the_sender_and_loses_nothing,
                a_graceful_end_loses_nothing,
                a_peer_that_goes_without_an_end_fails_what_is_under_way,
                a_side_that_gives_up_is_told_what_became_of_its_messages,
                a_broken_connection_goes_on_and_each_message_arrives_once,
                messages_from_files_arrive_among_others_in_order,
                what_comes_from_a_file_is_read_again_when_the_connection_broke,
                zeros_go_where_a_file_became_shorter_and_its_sender_is_told_once,
        );
    };
    (@tests $rig:expr; $($test:ident,)+) => {
        $(#[test]
        fn $test() {
            conformance::$test(&$rig);
        })+
    };
    (@calls $rig:expr; $($test:ident,)+) => {
        $($crate::conformance::$test($rig);)+
    };
}

/// All tests, one after the other.
pub(crate) fn everything<R: Rig>(rig: &R) {
    crate::conformance!(@each calls rig);
}
