//! Publishers: loan a message, write it in place, publish it.
//!
//! The hot path is [`Publisher::loan`] and [`Publisher::publish`]: private free list, private tail, one cache line
//! written, no system call while everybody is awake. Everything else (joins, deaths) happens in the control thread,
//! through the seat.

mod error;
mod options;
mod raw;
mod room;
mod wakes;

pub(crate) use wakes::{Wakes, each};

pub use error::{LoanError, NoRoom, PublishError, PublishRefusal, PublisherError, SendError};
pub use options::PublisherOptions;

use core::fmt;
use core::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use zcmi_mem::lease::{LeaseMut, Loaned, is_inline};
use zcmi_mem::ledger::lanes::MAX_BATCH;
use zcmi_mem::ledger::{Counter, LaneCounts, LedgerWriter, ListedLane, SharedCounts};
use zcmi_mem::payload::{Message, MessageRecord};
use zcmi_mem::pool::{Ahead, Pool, PoolError, PoolPlan};
use zcmi_ring::layout::INLINE_WORDS;
use zcmi_ring::sync::{AtomicUsize, Ordering};
use zcmi_ring::{Controller, LifeMark, Occupant, PublishRefused, ReaderIndex, WakeWord, Writer};
use zerocopy::IntoBytes;

use self::room::RoomWait;
use crate::audience::Audience;
use crate::control::{Command, LinkId};
use crate::ledger::EndpointCounts;
use crate::name::ServiceName;
use crate::process::{ExtentGuard, Mailbox, Process, lock};
use crate::socket::{Connection, SendError as ConnectionSendError, SendOutcome};
use crate::sys;
use crate::wire::{LaneName, Message as ControlMessage};

/// Memory that a pool sets aside by default for what readers hold and for the ring, each.
const DEFAULT_BUDGET_BYTES: usize = 16 << 20;
/// Messages that a batch writes before it takes the seat.
const BATCH: usize = 32;
const _: () = assert!(BATCH as u64 <= MAX_BATCH, "an observer would count a larger batch that is half committed");
/// The largest ring.
pub const MAX_CAPACITY: u64 = 1 << 20;
/// The largest message.
pub const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// What a publisher does when every entry or slot is still wanted by a reliable subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Wait until there is room.
    Block,
    /// Wait at most so long, then say whom it waited for.
    BlockFor(Duration),
    /// Give the message back at once.
    RefuseNewest,
}

/// A reader as the publisher's hot path needs to know it.
#[derive(Debug, Default)]
struct SeatedReader {
    pid: u32,
    waker: Option<Waker>,
}

/// How a reader that sleeps is woken.
#[derive(Debug)]
pub(crate) enum Waker {
    /// By its eventfd: a process of our own user.
    Eventfd(Arc<OwnedFd>),
    /// By a message over its connection: a stranger, which gets no eventfd of ours and whose eventfd we do not take.
    Stranger { connection: Arc<Connection>, link: LinkId, lane: LaneName, mailbox: Arc<Mailbox> },
}

/// What lies in the seat: the lane, and whom to wake.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) writer: Writer,
    pub(crate) first: u64,
    wake: WakeWord,
    wakes: Arc<Wakes>,
    /// The strangers that sleep, one bit each: the wake word is not for them.
    parked: u64,
    readers: Vec<SeatedReader>,
    /// Where the publisher's thread counts the wakes that it sends.
    counts: LedgerWriter,
}

impl Reading {
    /// Wakes the readers that announced that they sleep. Called after the stamps.
    #[inline(always)]
    fn wake_sleepers(&mut self) {
        let parkers = self.writer.parkers();
        if parkers != 0 {
            let sleeping = self.wake.take(parkers) | self.parked;
            if sleeping != 0 {
                self.wake(sleeping);
            }
        }
    }

    /// Why no wake is lost: the bits were taken from the wake word, and each is either sent here or handed over (see
    /// `zcmi_ring::owed`), whatever the budget.
    #[cold]
    fn wake(&mut self, sleeping: u64) {
        let strangers = sleeping & self.parked;
        for index in each(strangers) {
            self.wake_stranger(index);
        }
        let sleeping = sleeping & !strangers;
        let mut owed = sleeping;
        if sleeping.count_ones() <= wakes::DIRECT {
            let now = self.wakes.now_ns();
            let in_budget = each(sleeping).filter(|&index| self.wakes.spend(index, now).is_ok());
            let direct = in_budget.fold(0, |bits, index| bits | 1 << index);
            self.wake_directly(direct);
            owed &= !direct;
        }
        if owed != 0 && !self.wakes.hand_over(owed) {
            // Without a control thread there is nobody else.
            self.wake_directly(owed);
        }
    }

    /// Wakes a stranger over its connection; it parks anew when it sleeps again.
    fn wake_stranger(&mut self, index: usize) {
        self.parked &= !(1 << index);
        self.writer.clear_may_park(ReaderIndex(index as u8));
        let Some(Waker::Stranger { connection, link, lane, mailbox }) = &self.readers[index].waker else { return };
        self.counts.add(Counter::WakesSent, 1);
        match connection.send(&ControlMessage::Wake(*lane).encode(), &[]) {
            // Whoever hung up is dropped by the control thread.
            Ok(SendOutcome::Sent) | Err(ConnectionSendError::HungUp) => {}
            // Late, and not lost: the control thread waits until the socket takes it.
            Ok(SendOutcome::WouldBlock) | Err(_) => mailbox.send(Command::Wake { link: *link, lane: *lane }),
        }
    }

    fn wake_directly(&self, readers: u64) {
        for index in each(readers) {
            if let Some(Waker::Eventfd(eventfd)) = &self.readers[index].waker {
                // A full eventfd is readable, so its reader is awake; a closed one's reader is gone.
                let _awake_or_gone = sys::wake(eventfd.as_fd());
                self.counts.add(Counter::WakesSent, 1);
            }
        }
    }

    /// Notes that a stranger sleeps with this cursor. Returns whether it does; if not, something is there for it.
    ///
    /// # Why no wake is lost
    /// This happens in the seat, between two messages: one that was published before is seen here, and one that comes
    /// later finds the bit.
    pub(crate) fn park_stranger(&mut self, index: ReaderIndex, cursor: u64) -> bool {
        if self.writer.tail() > cursor {
            return false;
        }
        self.parked |= 1 << index.0;
        self.writer.set_may_park(index)
    }

    pub(crate) fn seat_reader(&mut self, index: ReaderIndex, pid: u32, waker: Option<Waker>) {
        // A stranger parks each time anew.
        let parks = matches!(waker, Some(Waker::Eventfd(_)));
        self.wakes.begin(index.0.into());
        self.readers[usize::from(index.0)] = SeatedReader { pid, waker };
        if parks {
            self.writer.set_may_park(index);
        }
    }

    pub(crate) fn set_waiter(&mut self, index: ReaderIndex, waiter: Arc<OwnedFd>) {
        self.readers[usize::from(index.0)].waker = Some(Waker::Eventfd(waiter));
        self.writer.set_may_park(index);
    }

    pub(crate) fn remove(&mut self, index: ReaderIndex) {
        self.writer.remove_reader(index);
        self.parked &= !(1 << index.0);
        self.readers[usize::from(index.0)] = SeatedReader::default();
    }

    fn no_room(&self, refused: PublishRefused) -> NoRoom {
        match refused {
            PublishRefused::Ended { sequence } => NoRoom::Ended { sequence },
            _ => {
                let slowest = self.writer.slowest();
                let reader = slowest.map(|(index, _)| &self.readers[usize::from(index.0)]);
                NoRoom::WaitingFor {
                    pid: reader.map_or(0, |reader| reader.pid),
                    behind: slowest.map_or(0, |(_, seen)| self.writer.tail() - seen),
                    capacity: self.writer.capacity(),
                }
            }
        }
    }
}

/// The memory of one lane.
#[derive(Debug)]
pub(crate) struct LaneMemory {
    pub(crate) control: ExtentGuard,
    pub(crate) ring: ExtentGuard,
    pub(crate) wake: ExtentGuard,
    pub(crate) pool: Option<(Arc<ExtentGuard>, PoolPlan)>,
}

impl LaneMemory {
    pub(crate) fn bytes(&self) -> u64 {
        let pool = self.pool.as_ref().map_or(0, |(guard, _)| guard.extent().bytes());
        (self.control.extent().bytes() + self.ring.extent().bytes() + pool) as u64
    }
}

/// What the control thread and the publisher's handle share.
#[derive(Debug, Default)]
pub(crate) struct PublisherShared {
    live: AtomicUsize,
    counted: Mutex<()>,
    changed: Condvar,
    /// The publisher's own eventfd, once it waited for room.
    pub(crate) room: OnceLock<Arc<OwnedFd>>,
}

impl PublisherShared {
    pub(crate) fn changed(&self, live: usize) {
        let _counted = lock(&self.counted);
        self.live.store(live, Ordering::Relaxed);
        self.changed.notify_all();
    }
}

/// What the control thread needs of a new publisher.
#[derive(Debug)]
pub(crate) struct NewPublisher {
    pub(crate) endpoint: u32,
    pub(crate) service: ServiceName,
    pub(crate) record: MessageRecord,
    pub(crate) seat: Controller<Reading>,
    pub(crate) shared: Arc<PublisherShared>,
    pub(crate) memory: Arc<LaneMemory>,
    pub(crate) wakes: Arc<Wakes>,
    pub(crate) capacity: u64,
    /// Slots that one reader may hold.
    pub(crate) holds: u32,
    /// Slots set aside for readers, over all of them.
    pub(crate) reserve: u32,
    pub(crate) late_joiners: bool,
    pub(crate) max_publishers: u32,
    /// Where the control thread counts what it does for the publisher.
    pub(crate) control_counts: SharedCounts,
    /// Who may subscribe besides our own user.
    pub(crate) allow: Audience,
    /// Which of them may hold the publisher up.
    pub(crate) may_block: Audience,
}

/// Publishes messages of one type on one service. `Send`, not `Sync`: one thread at a time.
///
/// Dropping it ends the lane in good order: subscribers receive all that was published, and then learn that it ended.
pub struct Publisher<M: Message + ?Sized> {
    seat: Occupant<Reading>,
    pool: Option<Pool>,
    life: LifeMark,
    when_full: WhenFull,
    loans: u32,
    largest: usize,
    shared: Arc<PublisherShared>,
    /// Kept while observers are told that the lane's words lie there.
    _memory: Arc<LaneMemory>,
    listed: Option<ListedLane>,
    counts: EndpointCounts,
    endpoint: u32,
    service: ServiceName,
    process: Process,
    message: PhantomData<fn(&M)>,
}

impl<M: Message + ?Sized> fmt::Debug for Publisher<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("service", &self.service)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl<M: Message + ?Sized> Publisher<M> {
    #[inline(always)]
    fn check_life(&self) -> Result<(), zcmi_mem::fork::Forked> {
        if self.life.is_present() { Ok(()) } else { Err(zcmi_mem::fork::Forked) }
    }

    #[inline(always)]
    fn loan_bytes(&mut self, bytes: usize) -> Result<LeaseMut<M>, LoanError> {
        self.check_life()?;
        if is_inline(bytes, M::ELEMENT_ALIGN) {
            return Ok(LeaseMut::inline(bytes));
        }
        if let Some(pool) = &mut self.pool
            && let Some(slot) = pool.take_at_hand(bytes)
        {
            return Ok(LeaseMut::slot(slot, bytes));
        }
        self.loan_slow(bytes)
    }

    /// Reclaims what readers are done with; waits if need be and allowed.
    #[cold]
    #[inline(never)]
    fn loan_slow(&mut self, bytes: usize) -> Result<LeaseMut<M>, LoanError> {
        let largest = self.largest;
        let mut deadline = None;
        loop {
            let Some(pool) = &mut self.pool else { return Err(LoanError::TooLarge { bytes, largest }) };
            {
                let mut reading = self.seat.sit();
                raw::reclaim(&mut reading.writer, pool);
            }
            match pool.take(bytes) {
                Ok(slot) => return Ok(LeaseMut::slot(slot, bytes)),
                Err(PoolError::Exhausted { .. }) => {}
                Err(_) => return Err(LoanError::TooLarge { bytes, largest }),
            }
            if pool.out() >= self.loans as usize {
                return Err(LoanError::TooManyLoans { loans: self.loans });
            }
            self.room_wait().wait(&mut deadline)?;
        }
    }

    /// What waiting for room needs of this publisher.
    fn room_wait(&mut self) -> RoomWait<'_> {
        RoomWait {
            seat: &mut self.seat,
            pool: self.pool.as_mut(),
            shared: &self.shared,
            process: &self.process,
            counts: &self.counts,
            endpoint: self.endpoint,
            when_full: self.when_full,
        }
    }

    /// Publishes a message, and returns its place in this publisher's order, 0 for the first.
    ///
    /// # Errors
    /// [`PublishError`], which gives the message back.
    #[inline(always)]
    pub fn publish(&mut self, lease: LeaseMut<M>) -> Result<u64, PublishError<M>> {
        if self.life.is_present() {
            let mut reading = self.seat.sit();
            let reading = &mut *reading;
            if let Some(sequence) = raw::publish_at_once(&mut reading.writer, self.pool.as_mut(), &lease) {
                if M::SLICE {
                    reading.writer.count_bytes(lease.byte_len() as u64);
                }
                // Its slot, if it had one, belongs to the lane now.
                core::mem::forget(lease);
                reading.wake_sleepers();
                if reading.writer.ask_is_due() {
                    ask_ahead(&mut reading.writer, self.pool.as_mut());
                }
                return Ok(sequence);
            }
        }
        self.publish_slow(lease)
    }

    /// Publishes a message if that is possible at once.
    ///
    /// # Errors
    /// [`PublishError`], which gives the message back.
    pub fn try_publish(&mut self, lease: LeaseMut<M>) -> Result<u64, PublishError<M>> {
        self.try_publish_once(lease).inspect_err(|error| self.count_refused(error))
    }

    #[cold]
    fn count_refused(&mut self, error: &PublishError<M>) {
        if matches!(error.reason, PublishRefusal::NoRoom(_)) {
            self.seat.sit().writer.count_refused();
        }
    }

    fn try_publish_once(&mut self, lease: LeaseMut<M>) -> Result<u64, PublishError<M>> {
        if let Err(forked) = self.check_life() {
            return Err(PublishError { lease, reason: forked.into() });
        }
        let mut reading = self.seat.sit();
        let reading = &mut *reading;
        let reserved = match &mut self.pool {
            Some(pool) => raw::reserve(&mut reading.writer, pool),
            None => reading.writer.reserve(&mut |_| {}),
        };
        if let Err(refused) = reserved {
            return Err(PublishError { lease, reason: reading.no_room(refused).into() });
        }
        let (loaned, bytes) = lease.into_parts();
        let sequence = match loaned {
            Loaned::Inline(words) => {
                let sequence = stage_words(&mut reading.writer, 0, bytes, &words);
                reading.writer.commit(1);
                sequence
            }
            Loaned::Slot(slot) => match &mut self.pool {
                Some(pool) if pool.owns(&slot) => {
                    let slot = pool.publish(slot);
                    reading.writer.publish_slot(slot, bytes)
                }
                _ => {
                    let lease = LeaseMut::from_parts(Loaned::Slot(slot), bytes);
                    return Err(PublishError { lease, reason: PublishRefusal::OtherPublisher });
                }
            },
        };
        if M::SLICE {
            reading.writer.count_bytes(bytes.into());
        }
        reading.wake_sleepers();
        Ok(sequence)
    }

    #[cold]
    #[inline(never)]
    fn publish_slow(&mut self, lease: LeaseMut<M>) -> Result<u64, PublishError<M>> {
        let mut refused = match self.try_publish_once(lease) {
            Ok(sequence) => return Ok(sequence),
            Err(refused) => refused,
        };
        let mut deadline = None;
        loop {
            if !matches!(refused.reason, PublishRefusal::NoRoom(NoRoom::WaitingFor { .. })) {
                return Err(refused);
            }
            if let Err(reason) = self.room_wait().wait(&mut deadline) {
                self.seat.sit().writer.count_refused();
                return Err(PublishError { lease: refused.lease, reason: reason.into() });
            }
            refused = match self.try_publish_once(refused.lease) {
                Ok(sequence) => return Ok(sequence),
                Err(refused) => refused,
            };
        }
    }

    /// Counts what was copied into a slot. What travels in the entry is written there once, as the descriptor would be.
    #[inline(always)]
    fn count_copied(&self, lease: &LeaseMut<M>) {
        if lease.as_slot().is_some() {
            self.counts.add(Counter::CopiedUser, lease.byte_len() as u64);
        }
    }

    /// How many subscribers read this publisher's lane now.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.shared.live.load(Ordering::Relaxed)
    }

    /// Waits until at least `count` subscribers have joined, or the time is over. Returns how many there are.
    pub fn wait_for_subscribers(&self, count: usize, timeout: Duration) -> usize {
        let deadline = Instant::now().checked_add(timeout);
        let mut counted = lock(&self.shared.counted);
        loop {
            let live = self.shared.live.load(Ordering::Relaxed);
            let left = deadline.map_or(Duration::from_secs(3600), |end| end.saturating_duration_since(Instant::now()));
            if live >= count || left.is_zero() {
                return live;
            }
            let waited = self.shared.changed.wait_timeout(counted, left);
            counted = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// Waits until every subscriber has received all that was published (and dropped in-place readers have released
    /// it), or the time is over. Returns whether they have.
    pub fn wait_until_received(&mut self, timeout: Duration) -> bool {
        if !self.life.is_present() {
            return false;
        }
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let all = {
                let mut reading = self.seat.sit();
                match &mut self.pool {
                    Some(pool) => raw::all_received(&mut reading.writer, pool),
                    None => reading.writer.all_received(&mut |_| {}),
                }
            };
            if all {
                return true;
            }
            if deadline.is_some_and(|end| end <= Instant::now()) {
                return false;
            }
            // Nobody tells when a cursor reaches the tail, so this looks again; it is not the hot path.
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// How many messages were published; 0 in a forked child.
    #[must_use]
    pub fn published(&mut self) -> u64 {
        if !self.life.is_present() {
            return 0;
        }
        self.seat.sit().writer.tail()
    }

    /// Messages that may be under way; 0 in a forked child.
    #[must_use]
    pub fn capacity(&mut self) -> u64 {
        if !self.life.is_present() {
            return 0;
        }
        self.seat.sit().writer.capacity()
    }
}

impl<M: Message> Publisher<M> {
    /// Loans room for one message, to be written in place. Its content is whatever was there before.
    ///
    /// # Errors
    /// [`LoanError`].
    #[inline(always)]
    pub fn loan(&mut self) -> Result<LeaseMut<M>, LoanError> {
        self.loan_bytes(M::ELEMENT_BYTES)
    }

    /// Publishes a copy of `message`: for small messages, or those that exist elsewhere already.
    ///
    /// # Errors
    /// [`SendError`].
    #[inline(always)]
    pub fn publish_copy(&mut self, message: &M) -> Result<u64, SendError> {
        let mut lease = self.loan()?;
        lease.as_mut_message_bytes().copy_from_slice(message.message_bytes());
        self.count_copied(&lease);
        self.publish(lease).map_err(|error| error.reason.into())
    }

    /// Publishes `count` messages, each written by `fill` in place, in as few steps as there is room for: subscribers
    /// see each step as a whole.
    ///
    /// # Errors
    /// [`SendError`]; what was published before stays published.
    #[inline]
    pub fn publish_batch(&mut self, count: u64, mut fill: impl FnMut(u64, &mut M)) -> Result<(), SendError> {
        let mut done = 0;
        while done < count {
            self.check_life().map_err(LoanError::from)?;
            let step = (count - done).min(BATCH as u64) as usize;
            // Everything is written before the seat is taken: what `fill` does must not keep the control thread
            // waiting.
            if is_inline(M::ELEMENT_BYTES, M::ELEMENT_ALIGN) {
                let mut messages = [[0_u64; INLINE_WORDS]; BATCH];
                for (index, words) in messages[..step].iter_mut().enumerate() {
                    let bytes = &mut words.as_mut_bytes()[..M::ELEMENT_BYTES];
                    let message = M::from_bytes_mut(bytes).expect("a message of this type fits its own size");
                    fill(done + index as u64, message);
                }
                self.publish_all_words(&messages[..step])?;
            } else {
                let ahead = self.pool.as_mut().map(|pool| {
                    pool.write_ahead(M::ELEMENT_BYTES, step, |index, bytes| {
                        let message = M::from_bytes_mut(bytes).expect("a slot fits and is aligned");
                        fill(done + index as u64, message);
                    })
                });
                match ahead {
                    Some(ahead) if ahead.count() > 0 => {
                        done += ahead.count() as u64;
                        self.publish_ahead(ahead)?;
                    }
                    _ => {
                        // No slot is at hand: this one is waited for, as the policy says.
                        let mut lease = self.loan()?;
                        fill(done, &mut lease);
                        self.publish(lease).map_err(|error| error.reason)?;
                        done += 1;
                    }
                }
                continue;
            }
            done += step as u64;
        }
        Ok(())
    }

    /// Publishes messages that travel in entries, as many at once as there is room for.
    #[inline(always)]
    fn publish_all_words(&mut self, messages: &[[u64; INLINE_WORDS]]) -> Result<(), SendError> {
        let bytes = M::ELEMENT_BYTES as u32;
        let mut rest = messages;
        while let Some(first) = rest.first() {
            self.check_life().map_err(LoanError::from)?;
            let staged = {
                let mut reading = self.seat.sit();
                let reading = &mut *reading;
                let room = match reading.writer.reserve(&mut |_| {}) {
                    Ok(()) => (reading.writer.room() as usize).min(rest.len()),
                    Err(_) => 0,
                };
                for (ahead, words) in rest[..room].iter().enumerate() {
                    stage_words(&mut reading.writer, ahead as u64, bytes, words);
                }
                reading.writer.commit(room as u64);
                reading.wake_sleepers();
                room
            };
            if staged == 0 {
                let lease = LeaseMut::from_parts(Loaned::Inline(*first), bytes);
                self.publish_slow(lease).map_err(|error| error.reason)?;
                rest = &rest[1..];
            } else {
                rest = &rest[staged..];
            }
        }
        Ok(())
    }

    /// Publishes slots that are written, as many at once as there is room for.
    #[inline(always)]
    fn publish_ahead(&mut self, mut ahead: Ahead) -> Result<(), SendError> {
        while ahead.count() > 0 {
            self.check_life().map_err(LoanError::from)?;
            let Some(pool) = &mut self.pool else { break };
            let published = {
                let mut reading = self.seat.sit();
                let reading = &mut *reading;
                let published = raw::publish_ahead(&mut reading.writer, pool, &mut ahead, M::ELEMENT_BYTES as u32);
                reading.wake_sleepers();
                published
            };
            if published == 0
                && let Some(slot) = pool.take_ahead(&mut ahead)
            {
                let lease = LeaseMut::slot(slot, M::ELEMENT_BYTES);
                // If it is refused, those behind it are free still.
                self.publish_slow(lease).map_err(|error| error.reason)?;
            }
        }
        Ok(())
    }
}

impl<T: zcmi_mem::payload::Payload> Publisher<[T]> {
    /// Loans room for a message of `len` elements, to be written in place. Its content is whatever was there before.
    ///
    /// # Errors
    /// [`LoanError`].
    #[inline(always)]
    pub fn loan_slice(&mut self, len: usize) -> Result<LeaseMut<[T]>, LoanError> {
        match len.checked_mul(size_of::<T>()) {
            Some(bytes) if bytes <= self.largest => self.loan_bytes(bytes),
            bytes => Err(LoanError::TooLarge { bytes: bytes.unwrap_or(usize::MAX), largest: self.largest }),
        }
    }

    /// Publishes a copy of `message`: for small messages, or those that exist elsewhere already.
    ///
    /// # Errors
    /// [`SendError`].
    #[inline(always)]
    pub fn publish_copy_of(&mut self, message: &[T]) -> Result<u64, SendError> {
        let mut lease = self.loan_slice(message.len())?;
        lease.as_mut_message_bytes().copy_from_slice(message.as_bytes());
        self.count_copied(&lease);
        self.publish(lease).map_err(|error| error.reason.into())
    }
}

/// Takes back what readers are done with while the message just published is under way.
#[cold]
#[inline(never)]
fn ask_ahead(writer: &mut Writer, pool: Option<&mut Pool>) {
    match pool {
        Some(pool) => raw::reclaim(writer, pool),
        None => writer.reclaim(&mut |_| {}),
    }
}

/// The size of a message where all have one; 0 where the lane counts bytes.
pub(crate) fn message_bytes<M: Message + ?Sized>() -> u64 {
    if M::SLICE { 0 } else { M::ELEMENT_BYTES as u64 }
}

/// Publishes as many words as the bytes need and no more, if there is room at once.
#[inline(always)]
fn publish_words(writer: &mut Writer, bytes: u32, words: &[u64; INLINE_WORDS]) -> Option<u64> {
    let [a, b, c, d, _] = *words;
    match bytes.div_ceil(8) {
        0 => writer.publish_inline_at_once::<0>(bytes, &[]),
        1 => writer.publish_inline_at_once(bytes, &[a]),
        2 => writer.publish_inline_at_once(bytes, &[a, b]),
        3 => writer.publish_inline_at_once(bytes, &[a, b, c]),
        4 => writer.publish_inline_at_once(bytes, &[a, b, c, d]),
        _ => writer.publish_inline_at_once(bytes, words),
    }
}

/// Stages as many words as the bytes need and no more.
#[inline(always)]
fn stage_words(writer: &mut Writer, ahead: u64, bytes: u32, words: &[u64; INLINE_WORDS]) -> u64 {
    let [a, b, c, d, _] = *words;
    match bytes.div_ceil(8) {
        0 => writer.stage_inline::<0>(ahead, bytes, &[]),
        1 => writer.stage_inline(ahead, bytes, &[a]),
        2 => writer.stage_inline(ahead, bytes, &[a, b]),
        3 => writer.stage_inline(ahead, bytes, &[a, b, c]),
        4 => writer.stage_inline(ahead, bytes, &[a, b, c, d]),
        _ => writer.stage_inline(ahead, bytes, words),
    }
}

impl<M: Message + ?Sized> Drop for Publisher<M> {
    fn drop(&mut self) {
        if !self.life.is_present() {
            // The lane is the parent's. The pool's memory is not mapped here, and its drop touches only our copy of the
            // books.
            return;
        }
        let written = {
            let mut reading = self.seat.sit();
            let messages = reading.writer.end();
            LaneCounts::of_publisher(reading.writer.control(), messages, message_bytes::<M>())
        };
        if let Some(listed) = self.listed.take() {
            self.counts.settle(listed, &written);
        }
        let (done, answer) = channel();
        self.process.mailbox().send(Command::DropPublisher { endpoint: self.endpoint, done });
        // Waits until the end was said, so that a process which exits now is not taken for one that died.
        let _control_ended = answer.recv();
    }
}

#[cfg(test)]
mod tests;
