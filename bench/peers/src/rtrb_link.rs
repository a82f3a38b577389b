//! Row `rtrb`: the single-producer single-consumer ring of the crate rtrb, between two threads.
//!
//! Payloads that fit a cache line travel as values. Larger ones travel as boxes: the receiver hands an emptied box back
//! over a second ring, so that no byte of them is copied and nothing is allocated.

use std::time::Duration;

use rtrb::{Consumer, Producer, RingBuffer};
use zcmi_bench::ipc::{BenchError, both_ways};
use zcmi_bench::link::{Link, LinkError, Near};
use zcmi_bench::pattern;
use zcmi_bench::pin::Pair;
use zcmi_bench::rounds::Contender;
use zcmi_bench::spin::{Patience, Stalled};
use zcmi_bench::threads::FarThread;

/// Entries of a ring of values.
const CAPACITY: usize = 1024;
/// Boxes under way stay near this size together, as the slots of zcmi's row `bare`.
const FOOTPRINT_BYTES: usize = 256 << 10;

#[inline]
fn push<T>(ring: &mut Producer<T>, mut value: T) -> Result<(), Stalled> {
    let mut patience = Patience::new();
    while let Err(rtrb::PushError::Full(back)) = ring.push(value) {
        value = back;
        patience.turn()?;
    }
    Ok(())
}

#[inline]
fn pop<T>(ring: &mut Consumer<T>) -> Result<T, Stalled> {
    let mut patience = Patience::new();
    loop {
        match ring.pop() {
            Ok(value) => return Ok(value),
            Err(_) => patience.turn()?,
        }
    }
}

/// One end with payloads as values.
struct Values<const WORDS: usize> {
    outgoing: Producer<[u64; WORDS]>,
    incoming: Consumer<[u64; WORDS]>,
}

impl<const WORDS: usize> Link for Values<WORDS> {
    #[inline]
    fn send_word(&mut self, word: u64) -> Result<(), LinkError> {
        let mut message = [0; WORDS];
        message[0] = word;
        Ok(push(&mut self.outgoing, message)?)
    }

    #[inline]
    fn receive_word(&mut self) -> Result<u64, LinkError> {
        Ok(pop(&mut self.incoming)?[0])
    }

    #[inline]
    fn produce(&mut self, sequence: u64) -> Result<(), LinkError> {
        let mut message = [0; WORDS];
        pattern::fill(&mut message, sequence);
        Ok(push(&mut self.outgoing, message)?)
    }

    #[inline]
    fn consume(&mut self, sequence: u64) -> Result<(), LinkError> {
        Ok(pattern::check(&pop(&mut self.incoming)?, sequence)?)
    }
}

type Message = Box<[u64]>;

/// One end with payloads as boxes.
struct Boxes {
    outgoing: Producer<Message>,
    /// Boxes of ours that the other side has emptied.
    ours: Consumer<Message>,
    incoming: Consumer<Message>,
    /// Where boxes of the other side go back.
    theirs: Producer<Message>,
}

impl Link for Boxes {
    #[inline]
    fn send_word(&mut self, word: u64) -> Result<(), LinkError> {
        let mut message = pop(&mut self.ours)?;
        message[0] = word;
        Ok(push(&mut self.outgoing, message)?)
    }

    #[inline]
    fn receive_word(&mut self) -> Result<u64, LinkError> {
        let message = pop(&mut self.incoming)?;
        let word = message[0];
        push(&mut self.theirs, message)?;
        Ok(word)
    }

    #[inline]
    fn produce(&mut self, sequence: u64) -> Result<(), LinkError> {
        let mut message = pop(&mut self.ours)?;
        pattern::fill(&mut message, sequence);
        Ok(push(&mut self.outgoing, message)?)
    }

    #[inline]
    fn consume(&mut self, sequence: u64) -> Result<(), LinkError> {
        let message = pop(&mut self.incoming)?;
        pattern::check(&message, sequence)?;
        Ok(push(&mut self.theirs, message)?)
    }
}

fn values<'a, const WORDS: usize>(
    pair: Pair,
    samples: u64,
    stream: Duration,
) -> Result<Contender<'a, BenchError>, LinkError> {
    let (to_far, from_near) = RingBuffer::new(CAPACITY);
    let (to_near, from_far) = RingBuffer::new(CAPACITY);
    let far = FarThread::spawn(Values::<WORDS> { outgoing: to_near, incoming: from_near }, pair.far)?;
    let near = Near::new(Values::<WORDS> { outgoing: to_far, incoming: from_far }, far, WORDS * 8);
    // In by value and out by value.
    Ok(both_ways("rtrb", WORDS * 8, near, samples, stream, (2.0, 0.0)))
}

fn boxes<'a>(bytes: usize, pair: Pair, samples: u64, stream: Duration) -> Result<Contender<'a, BenchError>, LinkError> {
    let count = (FOOTPRINT_BYTES / bytes).clamp(4, CAPACITY);
    let filled = || -> Result<_, LinkError> {
        let (mut give, take) = RingBuffer::new(count);
        for _ in 0..count {
            push(&mut give, vec![0; bytes / 8].into_boxed_slice())?;
        }
        Ok((give, take))
    };
    let (to_far, from_near) = RingBuffer::new(count);
    let (to_near, from_far) = RingBuffer::new(count);
    let ((back_to_near, near_boxes), (back_to_far, far_boxes)) = (filled()?, filled()?);
    let far = Boxes { outgoing: to_near, ours: far_boxes, incoming: from_near, theirs: back_to_near };
    let near = Boxes { outgoing: to_far, ours: near_boxes, incoming: from_far, theirs: back_to_far };
    let near = Near::new(near, FarThread::spawn(far, pair.far)?, bytes);
    Ok(both_ways("rtrb", bytes, near, samples, stream, (0.0, 0.0)))
}

/// The row at one size.
pub(crate) fn contender<'a>(
    bytes: usize,
    pair: Pair,
    samples: u64,
    stream: Duration,
) -> Result<Contender<'a, BenchError>, LinkError> {
    match bytes {
        8 => values::<1>(pair, samples, stream),
        40 => values::<5>(pair, samples, stream),
        64 => values::<8>(pair, samples, stream),
        _ => boxes(bytes, pair, samples, stream),
    }
}
