//! What a hostile peer is made of: numbers from a seed, bytes by tag, and a wire whose far end is the test.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::rc::Rc;

use zcmi_net::frame::{HEADER_BYTES, Header};
use zcmi_net::path::{PathKind, Release};
use zcmi_net::wire::{Notification, Segment, Sent, Wire};

/// A small generator of numbers, so that a seed gives the same run again.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True `percent` times in a hundred.
    pub(crate) fn often(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

fn byte(tag: u64, at: u32) -> u8 {
    (tag as u8).wrapping_mul(31).wrapping_add(at as u8).wrapping_add((at >> 8) as u8)
}

/// Writes the bytes of a message from `offset` on.
pub(crate) fn content(tag: u64, offset: u32, into: &mut [u8]) {
    for (at, to) in (offset..).zip(into) {
        *to = byte(tag, at);
    }
}

/// Whether these are the bytes of a message from `offset` on.
pub(crate) fn is_content(tag: u64, offset: u32, bytes: &[u8]) -> bool {
    (offset..).zip(bytes).all(|(at, &is)| is == byte(tag, at))
}

#[derive(Default)]
struct Reel {
    inbound: VecDeque<u8>,
    ended: bool,
    outbound: Vec<u8>,
    read: usize,
}

/// A wire in memory: one of two handles is the link's, the other the test's.
pub(crate) struct Tape {
    reel: Rc<RefCell<Reel>>,
    dice: Dice,
}

impl Default for Tape {
    fn default() -> Self {
        Self { reel: Rc::default(), dice: Dice::new(0) }
    }
}

impl Tape {
    /// The test's handle, and the link's.
    pub(crate) fn new(seed: u64) -> (Self, Self) {
        let reel: Rc<RefCell<Reel>> = Rc::default();
        (Self { reel: Rc::clone(&reel), dice: Dice::new(seed) }, Self { reel, dice: Dice::new(seed) })
    }

    /// What the link is to read.
    pub(crate) fn write(&self, bytes: &[u8]) {
        self.reel.borrow_mut().inbound.extend(bytes);
    }

    /// Nothing more comes.
    pub(crate) fn end(&self) {
        self.reel.borrow_mut().ended = true;
    }

    /// How much the link has not read, the end included.
    pub(crate) fn unread(&self) -> usize {
        let reel = self.reel.borrow();
        reel.inbound.len() + usize::from(reel.ended)
    }

    /// The next whole frame that the link sent.
    pub(crate) fn take_frame(&self) -> Option<(Header, Vec<u8>)> {
        let mut reel = self.reel.borrow_mut();
        let rest = &reel.outbound[reel.read..];
        let header = Header::decode(rest.first_chunk()?).expect("a link sends frames");
        let end = HEADER_BYTES + header.length as usize;
        let payload = rest.get(HEADER_BYTES..end)?.to_vec();
        reel.read += end;
        if reel.read == reel.outbound.len() {
            reel.outbound.clear();
            reel.read = 0;
        }
        Some((header, payload))
    }
}

impl Wire for Tape {
    fn send(&mut self, _path: PathKind, segments: &[Segment<'_>]) -> io::Result<Sent> {
        let total: usize = segments.iter().map(|segment| segment.bytes.len()).sum();
        let bytes = if self.dice.often(20) { 1 + self.dice.below(total as u64) as usize } else { total };
        let mut rest = bytes;
        let mut reel = self.reel.borrow_mut();
        for segment in segments {
            let taken = segment.bytes.len().min(rest);
            reel.outbound.extend_from_slice(&segment.bytes[..taken]);
            rest -= taken;
        }
        Ok(Sent { bytes, release: Release::Now })
    }

    fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let room: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let limit = if self.dice.often(30) { 1 + self.dice.below(room as u64) as usize } else { room };
        let mut reel = self.reel.borrow_mut();
        if reel.inbound.is_empty() {
            return if reel.ended { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let read = limit.min(reel.inbound.len());
        let mut at = 0;
        for buffer in buffers {
            let taken = buffer.len().min(read - at);
            for (to, from) in buffer[..taken].iter_mut().zip(reel.inbound.drain(..taken)) {
                *to = from;
            }
            at += taken;
        }
        Ok(read)
    }

    fn notifications(&mut self, _each: &mut dyn FnMut(Notification)) -> io::Result<()> {
        Ok(())
    }

    fn owed(&self) -> u64 {
        0
    }

    fn end(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn abort(&mut self) {}
}
