//! A wire in memory, whose far end is the test.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::rc::Rc;

use zcmi_net::frame::{HEADER_BYTES, Header};
use zcmi_net::path::{PathKind, Release};
use zcmi_net::wire::{Notification, Segment, Sent, Wire};

use crate::dice::Dice;

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
