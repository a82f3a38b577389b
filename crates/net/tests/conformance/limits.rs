//! What may wait in one connection: whatever is beyond it comes back in the error, and everything else goes on.

use std::collections::HashSet;

use zcmi_net::file::FileBytes;
use zcmi_net::outgoing::{NotTaken, Payload};

use super::*;

impl<T: Transport> End<T> {
    /// Submits message `number`, and returns it if it is not taken: with its bytes as they were, where they were.
    fn try_submit(&mut self, number: u64, bytes: usize, stream: u32) -> Result<(), NotTaken> {
        let lease = self.written(number, bytes).expect("a slot");
        let (at, to) = (lease.as_ptr(), self.to().stream(stream).tag(number));
        self.transport.submit(to, lease.into(), Token(number)).inspect_err(|refused| {
            assert_eq!(refused.payload.bytes().as_ptr(), at, "it is the same lease");
            assert!(is_content(number, 0, refused.payload.bytes()) && refused.payload.byte_len() == bytes);
        })
    }

    /// Submits again what came back.
    fn submit_again(&mut self, payload: Payload, number: u64, stream: u32) {
        let to = self.to().stream(stream).tag(number);
        self.transport.submit(to, payload, Token(number)).expect("there is room again");
    }
}

/// Polls until so many messages in all have arrived and so many more have completed.
fn until_done<T: Transport>(
    ends: [&mut End<T>; 2],
    collector: &mut Collector,
    messages: usize,
    completed: &mut Vec<u64>,
) {
    until("the messages", ends, |one, two| {
        collector.sift(two.events());
        completed.extend(one.events().into_iter().filter_map(|event| match event {
            Event::Completed { token, .. } => Some(token.0),
            Event::Failed { .. } | Event::Closed { .. } => panic!("{event:?}"),
            _ => None,
        }));
        collector.messages >= messages && completed.len() >= messages
    });
    assert_eq!((collector.messages, completed.len()), (messages, messages));
}

pub(crate) fn messages_beyond_the_bytes_that_may_wait_come_back_and_go_later<R: Rig>(rig: &R) {
    let (mut one, mut two) = rig.pair(Wish { waiting_bytes: 100_000, ..Wish::default() });
    for number in 0..2 {
        one.try_submit(number, 40_000, 0).expect("it is within the limit");
    }
    let refused = one.try_submit(3, 40_000, 0).expect_err("it is beyond the limit");
    assert_eq!(refused.reason, SubmitError::FullBytes { waiting: 80_000, bytes: 40_000, limit: 100_000 });
    // What fits is taken all the same, up to the last byte.
    one.try_submit(2, 20_000, 1).expect("it is within the limit");
    let byte = one.try_submit(9, 1, 0).expect_err("it is beyond the limit");
    assert_eq!(byte.reason, SubmitError::FullBytes { waiting: 100_000, bytes: 1, limit: 100_000 });
    drop(byte);
    let (mut collector, mut completed) = (Collector::default(), Vec::new());
    until_done([&mut one, &mut two], &mut collector, 3, &mut completed);
    one.submit_again(refused.payload, 3, 0);
    until_done([&mut one, &mut two], &mut collector, 4, &mut completed);
    // One that is longer than all that may wait goes by itself.
    one.try_submit(4, 300_000, 0).expect("nothing waits");
    let refused = one.try_submit(5, 1, 0).expect_err("it is beyond the limit");
    assert_eq!(refused.reason, SubmitError::FullBytes { waiting: 300_000, bytes: 1, limit: 100_000 });
    until_done([&mut one, &mut two], &mut collector, 5, &mut completed);
    one.submit_again(refused.payload, 5, 0);
    until_done([&mut one, &mut two], &mut collector, 6, &mut completed);
    assert_eq!((&collector.whole[&0][..], &collector.whole[&1][..]), (&[0, 1, 3, 4, 5][..], &[2][..]));
}

pub(crate) fn a_stream_more_than_the_peer_takes_is_refused_until_another_is_done<R: Rig>(rig: &R) {
    let (mut one, mut two) = rig.pair(Wish { streams: 3, ..Wish::default() });
    for number in 0..3 {
        one.try_submit(number, 70_000, 10 + number as u32).expect("the peer takes it");
    }
    let refused = one.try_submit(4, 1000, 20).expect_err("a stream more than the peer takes");
    assert_eq!(refused.reason, SubmitError::Streams { streams: 3 });
    one.try_submit(3, 1000, 10).expect("one of the streams that there are");
    let (mut collector, mut completed) = (Collector::default(), Vec::new());
    until_done([&mut one, &mut two], &mut collector, 4, &mut completed);
    one.submit_again(refused.payload, 4, 20);
    until_done([&mut one, &mut two], &mut collector, 5, &mut completed);
    let mut whole: Vec<(u32, Vec<u64>)> = collector.whole.into_iter().collect();
    whole.sort_unstable();
    assert_eq!(whole, [(10, vec![0, 3]), (11, vec![1]), (12, vec![2]), (20, vec![4])]);
}

pub(crate) fn what_is_longer_than_messages_can_be_comes_back_and_nothing_else_changes<R: Rig>(rig: &R) {
    let (mut one, mut two) = rig.pair(Wish::default());
    let longest = one.transport.capabilities().message_bytes as usize;
    one.submit(0, 1000, 0);
    // No slot is that long; of a file nothing is looked at before it is sent.
    for bytes in [longest + 1, usize::MAX] {
        let range = FileBytes::new(shared(&file_of(1, 10)), 7, bytes);
        let to = one.to();
        let refused = one.transport.submit(to, range.into(), Token(1)).expect_err("it is too long");
        let why = if rig.sends_from_files() { SubmitError::TooLong { bytes } } else { SubmitError::FromFile };
        assert_eq!(refused.reason, why);
        assert!(matches!(refused.payload, Payload::File(file) if (file.offset(), file.byte_len()) == (7, bytes)));
    }
    one.submit(1, 1000, 0);
    let (mut collector, mut completed) = (Collector::default(), Vec::new());
    until_done([&mut one, &mut two], &mut collector, 2, &mut completed);
    assert_eq!((&collector.whole[&0][..], &completed[..]), (&[0, 1][..], &[0, 1][..]));
}

pub(crate) fn many_streams_take_turns_and_each_keeps_its_order<R: Rig>(rig: &R) {
    const STREAMS: u64 = 64;
    const EACH: u64 = 6;
    let wish = Wish { slot_bytes: 4096, large_slots: 64, message_bytes: 16 << 10, loans: 64, ..Wish::default() };
    let (mut one, mut two) = rig.pair(wish);
    // Each stream begins with a message of several pieces, and none is done before all have begun.
    let size = |number: u64| match number / STREAMS {
        0 => 16 << 10,
        _ => 1 + (number.wrapping_mul(2_654_435_761) % (16 << 10)) as usize,
    };
    let (mut next, mut collector, mut completed) = (0, Collector::default(), 0);
    let (mut begun, mut most_begun) = (HashSet::new(), 0);
    until("everything", [&mut one, &mut two], |one, two| {
        while next < STREAMS * EACH
            && let Some(lease) = one.written(next, size(next))
        {
            let to = one.to().stream((next % STREAMS) as u32).tag(next);
            one.transport.submit(to, lease.into(), Token(next)).expect("it is taken");
            next += 1;
        }
        for event in two.events() {
            let Event::Received { piece, .. } = event else { continue };
            if piece.is_last() {
                begun.remove(&piece.stream);
            } else {
                begun.insert(piece.stream);
            }
            most_begun = most_begun.max(begun.len());
            collector.take(&piece);
        }
        completed += one.events().iter().filter(|event| matches!(event, Event::Completed { .. })).count() as u64;
        completed == STREAMS * EACH
    });
    assert_eq!(most_begun as u64, STREAMS, "all streams had a message begun at a time");
    for stream in 0..STREAMS {
        let due: Vec<u64> = (0..EACH).map(|message| message * STREAMS + stream).collect();
        assert_eq!(collector.whole[&(stream as u32)], due, "stream {stream} is in order, and whole");
    }
}
