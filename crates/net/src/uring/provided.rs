//! Receiving into slots of a pool: the kernel takes a slot when bytes have come, and not before.
//!
//! A ring has one queue of slots for all its sockets ([`Ring::receiving`]), so that an idle connection needs none. A
//! socket is [armed](Ring::arm) once and then delivers until it ends, or until the slots have run out.
//!
//! ```text
//!  provide(slot) ──▶ queue of slots ──▶ kernel ──▶ completion ──▶ received(): key, slot, bytes
//!  arm(socket, key) ─────────────────────▲              └───────▶ received(): key, Paused │ Ended
//! ```
//!
//! # Invariants
//! - A slot is with its owner, or here; the kernel writes only into slots that are here. It comes back with the bytes
//!   that it holds, or when the ring is dropped.
//! - The kernel takes slots in the order in which they were provided. A completion names the first that it filled;
//!   where it may fill several (a bundle) those behind it are the next in that order, each full but the last. How many
//!   bytes make a slot full is what its entry in the queue says then: the kernel makes an entry shorter to the bytes
//!   that it expects, and leaves it so if they do not come after all, for the next socket. What names slots that are
//!   not here, or more bytes than they hold, releases none and ends the stream.
//! - A socket has one request at a time. What an earlier one of the same key still delivers is not taken for its own:
//!   its slot goes back to the pool.
//! - What has not been taken is bounded by the slots that were provided and the sockets that are armed.
//! - When the ring is dropped the queue is taken from the kernel first; if the kernel refuses that, queue and slots are
//!   leaked.
//!
//! # What this does not do
//! It fills no slot twice (incremental consumption): all sockets share the queue, so that a slot would hold bytes of
//! several connections, and whoever gets it by descriptor could read them all.
//!
//! # Sources
//! io_uring_register_buf_ring(3), io_uring_prep_recv_multishot(3); io_uring/kbuf.c and net.c of Linux 6.18.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;
use zcmi_mem::pool::Slot;
use zcmi_mem::registration::Support;

use super::owed::Ticket;
use super::sys::{Completion, Request};
use super::{BufferRing, CANCEL, Kernel, RECEIVE, Ring};

/// The most slots that can be with the kernel.
const MOST: u16 = 1 << 15;

/// What a socket delivered.
#[derive(Debug)]
pub enum Received {
    /// Bytes, at the beginning of a slot.
    Bytes {
        /// The slot.
        slot: Slot,
        /// How many there are, at least 1.
        bytes: usize,
    },
    /// The socket delivers no more until it is armed again: there was no slot or no room for completions, or
    /// [bundles](Ring::bundles) saw the last slot.
    Paused {
        /// Whether no slot is left that was provided.
        starved: bool,
    },
    /// The stream is over; the error is none at its regular end.
    Ended {
        /// What ended it.
        error: Option<Errno>,
    },
}

/// Why a ring does not receive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The queue of slots was made before.
    #[error("the ring has a queue of {slots} slots already")]
    Twice {
        /// How many it takes.
        slots: usize,
    },
    /// A call failed.
    #[error("{call} failed: {source}; receive from the socket itself")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// The queue of slots, and what came out of it.
pub(super) struct Provided {
    queue: BufferRing,
    /// The slots that are with the kernel, by their numbers there.
    slots: ManuallyDrop<Vec<Option<Slot>>>,
    free: Vec<u16>,
    /// The numbers of those slots, and the places of their entries, in the order in which the kernel takes them.
    order: VecDeque<(u16, u16)>,
    /// Whether one completion may fill several slots.
    bundles: bool,
    /// How many did.
    bundled: u64,
    /// The stamp of each socket's request.
    armed: HashMap<u32, u32>,
    arrived: VecDeque<(u32, Received)>,
    stamp: u32,
}

impl Drop for Provided {
    fn drop(&mut self) {
        // The kernel picks a slot and fills it in one go, under the lock that this call takes too: once the queue is
        // gone no slot is written.
        if self.queue.end() {
            drop(core::mem::take(&mut *self.slots));
        }
    }
}

impl Provided {
    fn new(kernel: &Arc<Kernel>, slots: u16, bundles: bool) -> Result<Self, ReceiveError> {
        let entries = slots.clamp(1, MOST).next_power_of_two();
        let failed = |(call, source)| ReceiveError::System { call, source };
        let queue = BufferRing::new(kernel, entries).map_err(failed)?;
        Ok(Self {
            queue,
            slots: ManuallyDrop::new((0..entries).map(|_| None).collect()),
            free: (0..entries).rev().collect(),
            order: VecDeque::with_capacity(usize::from(entries)),
            bundles,
            bundled: 0,
            armed: HashMap::new(),
            arrived: VecDeque::with_capacity(usize::from(entries)),
            stamp: 0,
        })
    }

    /// Takes what the kernel says of a socket. Returns whether it was expected.
    pub(super) fn completed(&mut self, completion: Completion) -> bool {
        let (Ticket { index: key, stamp }, _) = Ticket::from_word(completion.word);
        let bytes = usize::try_from(completion.result).unwrap_or(0);
        let error = (completion.result < 0).then(|| Errno::from_raw_os_error(completion.result.wrapping_neg()));
        // Of a request that was given up the slots go back to the pool.
        let ours = self.armed.get(&key) == Some(&stamp);
        // Bytes without slots of ours: what came is lost, so the stream is over.
        let expected = bytes == 0 || completion.buffer().is_some_and(|first| self.take(first, bytes, key, ours));
        if !ours {
            return expected;
        }
        if !expected {
            self.armed.remove(&key);
            self.arrived.push_back((key, Received::Ended { error: Some(Errno::PROTO) }));
        } else if !completion.more() {
            self.armed.remove(&key);
            let last = match error {
                None if bytes > 0 => Received::Paused { starved: self.order.is_empty() },
                Some(Errno::NOBUFS) => Received::Paused { starved: true },
                error => Received::Ended { error },
            };
            self.arrived.push_back((key, last));
        }
        expected
    }

    /// Takes the slots that so many bytes fill, from this one on, and delivers them. Returns whether they are here.
    fn take(&mut self, first: u16, bytes: usize, key: u32, deliver: bool) -> bool {
        let Some(at) = self.order.iter().position(|&(number, _)| number == first) else { return false };
        let most = if self.bundles { usize::MAX } else { 1 };
        let mut room = 0;
        let mut run = self.order.range(at..).take(most);
        if !run.any(|&with| {
            room += self.room(with);
            room >= bytes
        }) {
            return false;
        }
        let (mut left, mut filled) = (bytes, 0);
        while left > 0 {
            let Some((number, place)) = self.order.remove(at) else { break };
            let bytes = self.room((number, place)).min(left);
            let Some(slot) = self.slots[usize::from(number)].take() else { continue };
            self.free.push(number);
            left -= bytes;
            filled += 1;
            if deliver {
                self.arrived.push_back((key, Received::Bytes { slot, bytes }));
            }
        }
        self.bundled += u64::from(filled > 1);
        true
    }

    /// How many bytes fill a slot that is with the kernel.
    fn room(&self, (number, place): (u16, u16)) -> usize {
        let slot = self.slots[usize::from(number)].as_ref();
        slot.map_or(0, |slot| self.queue.len(place).min(slot.capacity()))
    }
}

impl Ring {
    /// Makes the queue of slots, for so many (rounded up to a power of two, at most 32768).
    ///
    /// # Errors
    /// [`ReceiveError`].
    ///
    /// # Kernel
    /// Queues of buffers are there from 5.19 on, requests that deliver more than once from 6.0.
    pub fn receiving(&mut self, slots: u16) -> Result<(), ReceiveError> {
        if let Some(provided) = &self.provided {
            return Err(ReceiveError::Twice { slots: provided.slots.len() });
        }
        let forked = |forked| ReceiveError::System { call: "io_uring_register", source: io::Error::other(forked) };
        self.life.check().map_err(forked)?;
        let bundles = self.bundles == Support::Yes;
        self.provided = Some(Provided::new(self.queue.kernel(), slots, bundles)?);
        Ok(())
    }

    /// Gives the kernel a slot to receive into.
    ///
    /// # Errors
    /// The slot, if there is no queue, or it is full.
    pub fn provide(&mut self, mut slot: Slot) -> Result<(), Slot> {
        let present = self.life.is_present();
        let Some(provided) = self.provided.as_mut().filter(|_| present) else { return Err(slot) };
        let Some(number) = provided.free.pop() else { return Err(slot) };
        let bytes = slot.capacity();
        let place = provided.queue.push(slot.bytes_mut(bytes), number);
        provided.order.push_back((number, place));
        provided.slots[usize::from(number)] = Some(slot);
        Ok(())
    }

    /// How many slots are with the kernel.
    #[must_use]
    pub fn provided(&self) -> usize {
        self.provided.as_ref().map_or(0, |provided| provided.slots.len() - provided.free.len())
    }

    /// Whether one completion may fill several slots.
    ///
    /// # Kernel
    /// From 6.16 on: earlier kernels have it since 6.10, and may leave a gap inside what they say that they filled.
    #[must_use]
    pub fn bundles(&self) -> &Support {
        &self.bundles
    }

    /// How many completions filled several slots.
    #[must_use]
    pub fn bundled(&self) -> u64 {
        self.provided.as_ref().map_or(0, |provided| provided.bundled)
    }

    /// Has a socket deliver what comes, under this key, until [`Received::Paused`] or [`Received::Ended`].
    ///
    /// Without a slot it is paused at once, whether or not anything came: [`provide`](Self::provide) first.
    ///
    /// The kernel holds on to the socket meanwhile: closing its descriptor does not close it. [`disarm`](Self::disarm)
    /// it before.
    ///
    /// # Errors
    /// `AlreadyExists` if the key is armed; `Unsupported` without a queue of slots; a
    /// [`Refusal`](super::Refusal) if the ring has stopped.
    pub fn arm(&mut self, socket: BorrowedFd<'_>, key: u32) -> io::Result<()> {
        self.life.check().map_err(io::Error::other)?;
        if let Some(refusal) = self.stopped {
            return Err(refusal.into());
        }
        let Some(provided) = &mut self.provided else { return Err(io::ErrorKind::Unsupported.into()) };
        if provided.armed.contains_key(&key) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let stamp = provided.stamp;
        provided.stamp = Ticket::stamp_after(stamp);
        provided.armed.insert(key, stamp);
        let (word, bundles) = (Ticket { index: key, stamp }.word(RECEIVE), provided.bundles);
        self.submit(Request::Receive { socket, bundles }, false, word).map_err(|refusal| {
            self.stopped = Some(refusal);
            refusal.into()
        })
    }

    /// Has a socket deliver nothing more; what it has delivered and was not taken is lost, and its slots go back.
    ///
    /// # Errors
    /// A [`Refusal`](super::Refusal) if the ring has stopped.
    pub fn disarm(&mut self, key: u32) -> io::Result<()> {
        self.life.check().map_err(io::Error::other)?;
        let Some(provided) = &mut self.provided else { return Ok(()) };
        provided.arrived.retain(|&(of, _)| of != key);
        let Some(stamp) = provided.armed.remove(&key) else { return Ok(()) };
        if let Some(refusal) = self.stopped {
            return Err(refusal.into());
        }
        let cancel = Request::Cancel { word: Ticket { index: key, stamp }.word(RECEIVE) };
        self.submit(cancel, false, Ticket { index: 0, stamp: 0 }.word(CANCEL)).map_err(|refusal| {
            self.stopped = Some(refusal);
            refusal.into()
        })
    }

    /// The next that a socket has delivered, with its key.
    pub fn received(&mut self) -> Option<(u32, Received)> {
        self.provided.as_ref()?;
        self.look();
        self.provided.as_mut()?.arrived.pop_front()
    }
}
