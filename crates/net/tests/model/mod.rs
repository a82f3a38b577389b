//! A kernel of a test's making: it accepts some of what it is given, reads shared pages late, and says so late, twice,
//! out of order or never.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use crate::dice::Dice;
use zcmi_mem::region::Region;
use zcmi_net::frame::HEADER_BYTES;
use zcmi_net::path::{PathKind, Release};
use zcmi_net::wire::{Notification, Segment, Sent, Wire};

/// What the kernel does wrong on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Nothing.
    None,
    /// A send by a path that shares pages claims to be done when it was accepted.
    ReleasedAtOnce,
    /// Notifications name the send after the one that they are for.
    WrongRange,
    /// Every seventh notification is lost.
    NotificationLost,
    /// A header is written into a slot that the kernel has not read yet, as if that slot had been given out again.
    HeaderReused,
}

/// How the kernel treats what it is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Temper {
    pub(crate) capacity: usize,
    pub(crate) would_block: u64,
    pub(crate) refused: u64,
    pub(crate) delay: u64,
    pub(crate) doubled: u64,
    pub(crate) mutant: Mutant,
}

struct Chunk {
    bytes: Bytes,
    number: Option<u64>,
}

enum Bytes {
    Copied(Vec<u8>),
    /// Read from the memfd when they are received, as they are then.
    Shared {
        region: Arc<Region>,
        offset: usize,
        len: usize,
    },
}

impl Chunk {
    fn len(&self) -> usize {
        match &self.bytes {
            Bytes::Copied(bytes) => bytes.len(),
            Bytes::Shared { len, .. } => *len,
        }
    }

    /// Where it will be read, if it is a whole header that was not.
    fn unread_header(&mut self, headers_end: usize) -> Option<&mut usize> {
        match &mut self.bytes {
            Bytes::Shared { offset, len: HEADER_BYTES, .. } if *offset < headers_end => Some(offset),
            _ => None,
        }
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    chunks: VecDeque<Chunk>,
    queued: usize,
    next: u64,
    /// Sends of which bytes were not received yet, and how many.
    open: Vec<(u64, usize)>,
    due: Vec<Notification>,
    /// What the pages of a send held when it was made: until the notification is read, the kernel may read them again.
    pinned: Vec<(u64, usize, Vec<u8>)>,
    /// How often it would have read something else.
    violations: u64,
    ended: bool,
    reset: bool,
}

/// One end of a connection.
pub(crate) struct ModelWire {
    region: Arc<Region>,
    base: usize,
    /// Where in the region the slots of headers end.
    headers_end: usize,
    outbound: Rc<RefCell<Pipe>>,
    inbound: Rc<RefCell<Pipe>>,
    dice: Dice,
    temper: Temper,
}

/// The file behind a region, to read it as the kernel does.
fn file(region: &Region) -> std::fs::File {
    let descriptor = region.descriptor().expect("a memfd has a descriptor");
    std::fs::File::from(descriptor.try_clone_to_owned().expect("one more descriptor"))
}

impl ModelWire {
    /// Two ends, whose pages lie in these regions, which begin with so many bytes of headers.
    pub(crate) fn pair(regions: [&Arc<Region>; 2], headers_bytes: usize, seed: u64, temper: Temper) -> (Self, Self) {
        let (one, two) = (Rc::new(RefCell::new(Pipe::default())), Rc::new(RefCell::new(Pipe::default())));
        let end = |region: &Arc<Region>, outbound: &Rc<RefCell<Pipe>>, inbound: &Rc<RefCell<Pipe>>, seed| Self {
            region: Arc::clone(region),
            headers_end: region.data_offset() + headers_bytes,
            base: region.bytes(region.data_offset(), 1).expect("data").base().as_ptr().addr() - region.data_offset(),
            outbound: Rc::clone(outbound),
            inbound: Rc::clone(inbound),
            dice: Dice::new(seed),
            temper,
        };
        (end(regions[0], &one, &two, seed), end(regions[1], &two, &one, seed ^ 0x5555))
    }

    /// Breaks the connection: neither side can use it any more, and what is in it is thrown away, as by a reset.
    pub(crate) fn reset(&self) {
        for pipe in [&self.outbound, &self.inbound] {
            let mut pipe = pipe.borrow_mut();
            pipe.reset = true;
            pipe.chunks.clear();
            pipe.queued = 0;
            let open = core::mem::take(&mut pipe.open);
            for (number, _) in open {
                pipe.due.push(Notification { first: number, last: number, copied: false });
            }
        }
    }

    /// How often the kernel, reading again what it had pinned, would have read something else.
    pub(crate) fn violations(&self) -> u64 {
        self.outbound.borrow().violations
    }

    /// Where in the region a segment is a whole header, if it is one.
    fn header_at(&self, segment: &Segment<'_>) -> Option<usize> {
        let offset = segment.bytes.as_ptr().addr().wrapping_sub(self.base);
        (offset < self.headers_end && segment.bytes.len() == HEADER_BYTES).then_some(offset)
    }

    fn shared(&self, segment: &Segment<'_>, len: usize) -> Bytes {
        let offset = segment.bytes.as_ptr().addr().wrapping_sub(self.base);
        if offset < self.region.len() {
            Bytes::Shared { region: Arc::clone(&self.region), offset, len }
        } else {
            Bytes::Copied(segment.bytes[..len].to_vec())
        }
    }
}

impl Wire for ModelWire {
    fn send(&mut self, path: PathKind, segments: &[Segment<'_>]) -> io::Result<Sent> {
        let total: usize = segments.iter().map(|segment| segment.bytes.len()).sum();
        let (would_block, refused) = (self.dice.often(self.temper.would_block), self.dice.often(self.temper.refused));
        let (cut, prefix) = (self.dice.often(40), self.dice.below(total as u64) as usize + 1);
        let mut pipe = self.outbound.borrow_mut();
        if pipe.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if would_block || pipe.queued >= self.temper.capacity {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if path != PathKind::Write && refused {
            return Err(io::Error::from_raw_os_error(105));
        }
        let room = self.temper.capacity - pipe.queued;
        let bytes = if cut { prefix } else { total }.min(room);
        let notified = matches!(path, PathKind::ZeroCopy | PathKind::UringZeroCopy | PathKind::UringFixed);
        let number = pipe.next;
        let mut rest = bytes;
        for segment in segments {
            let len = segment.bytes.len().min(rest);
            if len == 0 {
                continue;
            }
            rest -= len;
            let header = self.header_at(segment);
            if self.temper.mutant == Mutant::HeaderReused
                && let Some(new) = header
                && self.dice.often(10)
                && let Some(old) = pipe.chunks.iter_mut().find_map(|chunk| chunk.unread_header(self.headers_end))
            {
                // One slot for both: what is read for the first is the second.
                *old = new;
            }
            let copies = !path.shares_pages() || (!notified && segment.home.is_none());
            let bytes = if copies { Bytes::Copied(segment.bytes[..len].to_vec()) } else { self.shared(segment, len) };
            if let (true, Bytes::Shared { offset, .. }) = (notified, &bytes) {
                pipe.pinned.push((number, *offset, segment.bytes[..len].to_vec()));
            }
            pipe.chunks.push_back(Chunk { bytes, number: notified.then_some(number) });
        }
        pipe.queued += bytes;
        let release = match path {
            _ if !path.shares_pages() => Release::Now,
            _ if notified => {
                pipe.next += 1;
                pipe.open.push((number, bytes));
                Release::Notified(number)
            }
            _ => Release::Acknowledged,
        };
        let release = if self.temper.mutant == Mutant::ReleasedAtOnce { Release::Now } else { release };
        Ok(Sent { bytes, release })
    }

    fn receive(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let (would_block, cut) = (self.dice.often(self.temper.would_block), self.dice.often(30));
        let room: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let limit = if cut { self.dice.below(room as u64) as usize + 1 } else { room };
        let mut pipe = self.inbound.borrow_mut();
        if pipe.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if pipe.chunks.is_empty() && pipe.ended {
            return Ok(0);
        }
        if would_block || pipe.chunks.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut got = Vec::new();
        while got.len() < limit {
            let Some(mut chunk) = pipe.chunks.pop_front() else { break };
            let take = chunk.len().min(limit - got.len());
            match &mut chunk.bytes {
                Bytes::Copied(bytes) => got.extend(bytes.drain(..take)),
                Bytes::Shared { region, offset, len } => {
                    let begin = got.len();
                    got.resize(begin + take, 0);
                    file(region).read_exact_at(&mut got[begin..], *offset as u64).expect("the region can be read");
                    *offset += take;
                    *len -= take;
                }
            }
            pipe.queued -= take;
            if let Some(number) = chunk.number {
                for (open, bytes) in &mut pipe.open {
                    *bytes -= if *open == number { take } else { 0 };
                }
            }
            if chunk.len() > 0 {
                pipe.chunks.push_front(chunk);
            }
        }
        let done: Vec<u64> = pipe.open.iter().filter(|(_, bytes)| *bytes == 0).map(|(number, _)| *number).collect();
        pipe.open.retain(|(_, bytes)| *bytes > 0);
        for number in done {
            // Ranges are made of neighbours, as the kernel does.
            match pipe.due.last_mut() {
                Some(last) if last.last + 1 == number && number % 3 != 0 => last.last = number,
                _ => pipe.due.push(Notification { first: number, last: number, copied: number % 2 == 0 }),
            }
        }
        drop(pipe);
        let mut from = &got[..];
        for buffer in buffers {
            let take = buffer.len().min(from.len());
            buffer[..take].copy_from_slice(&from[..take]);
            from = &from[take..];
        }
        Ok(got.len())
    }

    fn notifications(&mut self, each: &mut dyn FnMut(Notification)) -> io::Result<()> {
        let mut pipe = self.outbound.borrow_mut();
        let mut index = 0;
        while index < pipe.due.len() {
            if self.dice.often(self.temper.delay) {
                index += 1;
                continue;
            }
            // Whichever is next in the list, which others overtake.
            let mut notification = pipe.due.swap_remove(index);
            let numbers = notification.first..=notification.last;
            let changed = pipe.pinned.iter().filter(|(number, offset, bytes)| {
                numbers.contains(number) && {
                    let mut now = vec![0; bytes.len()];
                    file(&self.region).read_exact_at(&mut now, *offset as u64).expect("the region can be read");
                    now != *bytes
                }
            });
            let changed = changed.count() as u64;
            pipe.violations += changed;
            pipe.pinned.retain(|(number, ..)| !numbers.contains(number));
            match self.temper.mutant {
                Mutant::WrongRange => {
                    (notification.first, notification.last) = (notification.first + 1, notification.last + 1)
                }
                Mutant::NotificationLost if notification.first.is_multiple_of(7) => continue,
                _ => {}
            }
            each(notification);
            if self.dice.often(self.temper.doubled) {
                each(notification);
            }
        }
        Ok(())
    }

    fn owed(&self) -> u64 {
        let pipe = self.outbound.borrow();
        pipe.open.len() as u64 + pipe.due.iter().map(|due| due.last - due.first + 1).sum::<u64>()
    }

    fn end(&mut self) -> io::Result<()> {
        self.outbound.borrow_mut().ended = true;
        Ok(())
    }

    fn abort(&mut self) {
        self.reset();
    }
}
